"""The collector `log` against a real Docker engine of the tests' own: every line once, whatever happens to containers,
their logs, the engine and ourselves."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.log import Counts, LogCollector
from immich_vitals.config import load
from immich_vitals.metrics import Sample
from immich_vitals.signatures import Catalogue
from immich_vitals.sources import docker_http, docker_logs
from immich_vitals.sources.docker import Docker
from immich_vitals.sources.docker_components import Matching
from immich_vitals.sources.docker_logs import DockerLogs
from immich_vitals.sources.log_lines import Budget
from immich_vitals.sources.state import State
from support.docker_engine import Engine, why_not

pytestmark = pytest.mark.docker

FULL = (
    "[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~jsbd6sja] Unknown error: Error: ENOSPC: no space left on device"
)


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[Engine]:
    reason = why_not()
    if reason is not None:
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
    with Engine() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    yield shared_engine
    shared_engine.remove_containers()


class Follower:
    """A collector that follows as the runner has it do, in a hurry."""

    def __init__(self, engine: Engine, state: Path | None, quiet: float, list_seconds: float) -> None:
        self._engine = engine
        self._quiet = quiet
        self._list_seconds = list_seconds
        self._state = State(state, "log")
        self.start()

    def start(self) -> None:
        config = load({"DOCKER_HOST": self._engine.host}).docker
        counts = Counts(Catalogue.load(), self._state.read(), SystemClock())
        self.source = DockerLogs(
            Docker(self._engine.host, config),
            Matching.of(config),
            counts,
            Budget(1.0),
            list_seconds=self._list_seconds,
            quiet=self._quiet,
        )
        self.collector = LogCollector(counts, [self.source], self._state)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: self.collector.follow(self._stop.is_set), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.collector.close()
        self._thread.join(1.0)
        assert not self._thread.is_alive()

    def samples(self) -> tuple[list[Sample], list[str]]:
        context = Context(Deadline.after(10.0), SystemClock())
        try:
            return list(self.collector.collect(context)), [remark.message for remark in context.remarks]
        except CollectorFailure as failure:
            return list(failure.known), [failure.message]

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        return {each.labels: each.value for each in self.samples()[0] if each.metric.name == f"log_{name}"}

    def lines(self, component: str) -> float:
        return self.values("lines_total").get((component,), -1)

    def matches(self) -> dict[tuple[str, ...], float]:
        return {each: count for each, count in self.values("matches_total").items() if count}

    def until(self, look: Callable[[], bool], what: str) -> None:
        self._engine.wait_for(look, what)

    def until_looked(self) -> None:
        """Wait until what is made from now on is new."""
        self._engine.create("immich_nginx")
        self.until_up("proxy")

    def until_up(self, *components: str) -> None:
        self.until(lambda: all(self.values("stream_up").get((each,)) == 1 for each in components), "the streams are up")


@pytest.fixture
def follower(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Follower]]:
    """Makes followers, and ends those that are left."""
    for name, seconds in (("AGAIN", 0.1), ("STALL", 0.5)):
        monkeypatch.setattr(docker_logs, f"{name}_SECONDS", seconds)
    made: list[Follower] = []

    def make(state: Path | None = None, quiet: float = 1.0, list_seconds: float = 0.1) -> Follower:
        made.append(Follower(engine, state, quiet, list_seconds))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def shown(engine: Engine, name: str) -> int:
    """How many lines of standard output `docker logs` shows."""
    return len(engine.run("logs", name).splitlines())


def gate(engine: Engine, name: str) -> tuple[str, Path]:
    """An option that mounts a folder, and the file in it whose coming lets `wait_for_gate` go on."""
    folder = engine.folder / f"gate-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "open").unlink(missing_ok=True)
    return f"--volume={folder}:/gate", folder / "open"


def open_files(process: str) -> int:
    return sum(1 for _ in Path("/proc", process, "fd").iterdir())


GATE = "while ! cat /gate/open 2>/dev/null; do sleep 0.05; done"


def test_what_is_said_from_now_on_is_counted(engine: Engine, follower: Callable[..., Follower]) -> None:
    """Old lines are no news; new ones are counted once, with a terminal and without, past a log nobody can read."""
    volume, opened = gate(engine, "now")
    command = f"echo '{FULL}'; {GATE}; echo one; echo '{FULL}' >&2; echo '{FULL}'; exec sleep 1000"
    engine.start_container("immich_server", volume, command=command)
    engine.start_container("immich_redis", "-t", volume, command=f"echo old; {GATE}; echo one; echo two; sleep 1000")
    engine.start_container("immich_postgres", "--log-driver=none", command="echo one; sleep 1000")
    engine.create("immich_nginx", command="echo one; echo two")
    following = follower()
    following.until_up("server", "redis", "proxy")
    opened.touch()
    following.until(lambda: following.lines("server") == 3 and following.lines("redis") == 2, "the lines")
    engine.run("start", "immich_nginx")
    following.until(lambda: following.lines("proxy") == 2, "the lines of a container that is gone again")
    assert following.matches() == {("server", "no_space"): 1}
    samples, remarks = following.samples()
    assert following.values("stream_up") == {("server",): 1, ("redis",): 1, ("proxy",): 1, ("database",): 0}
    assert remarks == ["the logging driver of container immich_postgres keeps no log that can be read"]
    assert {each.labels for each in samples if each.metric.name == "log_last_match_timestamp_seconds"} == {
        ("server", "no_space")
    }
    assert "ENOSPC" not in str(samples) + str(remarks)


def test_crash_loop_and_re_creation(engine: Engine, follower: Callable[..., Follower]) -> None:
    """Each run of a container in a crash loop, and each container after another, is read from its first line."""
    following = follower()
    following.until_looked()
    command = "echo one; echo two >&2; printf three; exit 1"
    engine.start_container("immich_server", "--restart=always", command=command)
    engine.wait_for(lambda: int(engine.value("immich_server", "{{.RestartCount}}")) >= 5, "a crash loop")
    engine.run("stop", "immich_server")
    runs = engine.run("logs", "immich_server").count("one")
    following.until(lambda: following.lines("server") == 3 * runs, f"{3 * runs} lines")
    engine.run("rm", "-f", "immich_server")
    engine.start_container("immich_server", command="for n in 1 2 3 4; do echo $n; done")
    following.until(lambda: following.lines("server") == 3 * runs + 4, "the lines of the second container")
    following.until_up("server")


def test_a_container_is_looked_for_where_one_ended(engine: Engine, follower: Callable[..., Follower]) -> None:
    """One that takes the place of another is followed soon, and not at the next look at all containers."""
    engine.start_container("immich_server")
    following = follower(quiet=600.0, list_seconds=3600.0)
    following.until_up("server")
    engine.run("rm", "-f", "immich_server")
    engine.start_container("immich_server", command="echo one; exec sleep 1000")
    following.until(lambda: following.lines("server") == 1, "the line of the new container")


def test_rotation_by_the_engine(engine: Engine, follower: Callable[..., Follower]) -> None:
    """A log that the engine rotates many times is counted to the line."""
    volume, opened = gate(engine, "rotation")
    command = f"{GATE}; n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo line $n of many; sleep 0.002; done; sleep 1000"
    engine.start_container(
        "immich_server", volume, "--log-opt=max-size=4k", "--log-opt=max-file=3", command=command
    )  # fmt: skip
    following = follower()
    following.until_up("server")
    opened.touch()
    engine.wait_for(lambda: "line 300 of" in engine.run("logs", "--tail=1", "immich_server"), "the last line")
    engine.run("kill", "immich_server")
    engine.run("start", "immich_server")  # the last lines behind all others
    following.until(lambda: following.lines("server") >= 600, "all lines")
    assert shown(engine, "immich_server") < 300
    assert following.lines("server") == 600


def test_restart_of_the_engine_and_of_ourselves(
    engine: Engine, follower: Callable[..., Follower], tmp_path: Path
) -> None:
    """Over a restart of the engine, and over our own, each line counts once, also those that came meanwhile."""
    following = follower(tmp_path)
    following.until_looked()
    engine.start_container("immich_server", command=f"echo one; echo '{FULL}'; sleep 1000")
    following.until(lambda: following.lines("server") == 2, "the first run")
    engine.stop()
    following.until(lambda: following.values("stream_up")["server",] == 0, "the stream is down")
    engine.start()
    engine.run("start", "immich_server")
    following.until(lambda: following.lines("server") == 4, "the second run")
    following.stop()
    engine.run("restart", "--time=0", "immich_server")
    engine.start_container("immich_redis", command="echo meanwhile")
    engine.wait_for(lambda: shown(engine, "immich_server") == 6, "the third run")
    following.start()
    following.until(lambda: following.lines("server") == 6, "the third run was counted")
    following.until(lambda: following.lines("redis") == 1, "a container made meanwhile was read")
    assert set(following.matches()) == {("server", "no_space")}
    engine.run("restart", "--time=0", "immich_server")
    following.until(lambda: following.lines("server") == 8, "the fourth run")


def test_long_lines_and_garbage(engine: Engine, follower: Callable[..., Follower]) -> None:
    """A line of a megabyte is one line, and a program printed as text has as many as it has line ends."""
    following = follower()
    following.until_looked()
    long = "dd if=/dev/zero bs=1048576 count=1 2>/dev/null"
    engine.start_container("immich_server", command=f"{long}; echo; echo '{FULL}'; {long}; {long}; printf '\\nend'")
    engine.start_container("immich_redis", command="cat /bin/busybox; echo; echo end")
    engine.start_container("immich_postgres", "-t", command=f"{long}; echo; echo end")
    garbage = Path(shutil.which("busybox") or "").resolve().read_bytes()
    following.until(lambda: following.lines("server") >= 4 and following.lines("database") >= 2, "long lines")
    following.until(lambda: following.lines("redis") >= garbage.count(b"\n") + 2, "garbage")
    assert (following.lines("server"), following.lines("database")) == (4, 2)
    assert following.lines("redis") == garbage.count(b"\n") + 2
    assert following.matches()["server", "no_space"] == 1


def test_damaged_log(engine: Engine, follower: Callable[..., Follower], tmp_path: Path) -> None:
    """A log that the engine can no longer read in full, as after a power cut, is followed behind the damage."""
    volume, opened = gate(engine, "damaged")
    following = follower(tmp_path)
    following.until_looked()
    later = f"{GATE}; while true; do echo later; sleep 0.1; done"
    identity = engine.start_container("immich_server", volume, command=f"echo one; {later}")
    following.until(lambda: following.lines("server") == 1, "the first line")
    following.stop()
    file = engine.folder / "r/containers" / identity / f"{identity}-json.log"
    with file.open("ab") as log:
        log.write(b"\0" * 300 + b"\n")
    opened.touch()
    engine.wait_for(lambda: file.read_bytes().count(b"later") > 3, "lines behind the damage")
    following.start()
    following.until(lambda: following.lines("server") > 3, "lines behind the damage are counted")
    following.until_up("server")


def test_nothing_is_left_open(
    engine: Engine, follower: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that are begun anew many times leave no connection behind, here or in the engine."""
    monkeypatch.setattr(docker_logs, "STALL_SECONDS", 0.01)
    monkeypatch.setattr(docker_logs, "AGAIN_SECONDS", 0.01)
    asked: list[str] = []
    send = docker_http.Connection._send

    def noted(connection: docker_http.Connection, path: str, *others: object) -> object:
        asked.append(path)
        return send(connection, path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(docker_http.Connection, "_send", noted)
    engine.start_container("immich_server")
    following = follower(quiet=0.02)

    def opened() -> tuple[int, int]:
        return open_files("self"), open_files(str(engine.pid))

    def begun(times: int) -> None:
        asked.clear()
        following.until(lambda: sum(path.endswith("/logs") for path in asked) > times, "streams begun anew")

    begun(10)
    before = opened()
    begun(50)
    assert all(now <= was + 8 for now, was in zip(opened(), before, strict=True))


def test_without_following(engine: Engine) -> None:
    """`immich-vitals check` finds out what could be followed, and counts nothing."""
    engine.start_container("immich_server", command="echo one; sleep 1000")
    engine.create("immich_redis", "--log-driver=none")
    config = load({"DOCKER_HOST": engine.host})
    collector = LogCollector.from_config(config)
    assert collector is not None
    context = Context(Deadline.after(10.0), SystemClock())
    samples = list(collector.collect(context))
    collector.close()
    assert {each.labels: each.value for each in samples if each.metric.name == "log_stream_up"} == {
        ("server",): 1, ("redis",): 0,
    }  # fmt: skip
    assert [remark.mend for remark in context.remarks if "logging driver" in remark.message]
    assert all(each.value == 0 for each in samples if each.metric.name == "log_matches_total")
