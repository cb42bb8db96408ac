"""The collectors `container` and `container_usage` against a real Docker engine of the tests' own."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.container import ContainerCollector, ContainerUsageCollector
from immich_vitals.collectors.storage import StorageCollector
from immich_vitals.config import load
from immich_vitals.metrics import Sample
from immich_vitals.sources import docker_http
from immich_vitals.sources.docker import Docker
from immich_vitals.sources.storage import NAMES
from support.docker_engine import IMAGE, Engine, EngineError, why_not

SERVER, ML = "ghcr.io/immich-app/immich-server:v2.7.5", "ghcr.io/immich-app/immich-machine-learning:v2.7.5"
DATABASE = "ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0"
QUICK_CHECK = ("--health-interval=1s", "--health-retries=1", "--health-timeout=5s")
# PID 1 ignores a signal that it sends to itself; the status of a child that dies of it is what Immich's images pass on.
DIES_OF = "sh -c 'kill -{} $$'; exit $?"

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[Engine]:
    reason = why_not()
    if reason is not None:
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
    with Engine() as engine:
        for image in (SERVER, ML, DATABASE, "valkey/valkey:9"):
            engine.run("tag", IMAGE, image)
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    yield shared_engine
    shared_engine.remove_containers()


@pytest.fixture
def container(engine: Engine) -> Iterator[ContainerCollector]:
    config = load({"DOCKER_HOST": engine.host}).docker
    collector = ContainerCollector(lambda: Docker(engine.host, config), config, quiet=0.5)
    yield collector
    collector.close()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are asked for."""
    asked: list[str] = []
    send = docker_http.Connection._send

    def noted(
        connection: docker_http.Connection, path: str, params: docker_http.Params | None, deadline: Deadline
    ) -> object:
        asked.append(path)
        return send(connection, path, params, deadline)

    monkeypatch.setattr(docker_http.Connection, "_send", noted)
    return asked


def labels(service: str, project: str = "immich") -> tuple[str, ...]:
    return (
        f"--label=com.docker.compose.project={project}",
        f"--label=com.docker.compose.service={service}",
        "--label=com.docker.compose.oneoff=False",
    )


def collected(collector: ContainerCollector | ContainerUsageCollector) -> list[Sample]:
    return list(collector.collect(Context(Deadline.after(10.0), SystemClock())))


def values(samples: list[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == f"container_{name}"}


def chosen(samples: list[Sample], name: str) -> dict[str, str]:
    """The state or health of each container: the one whose series is 1."""
    return {found[1]: found[2] for found, value in values(samples, name).items() if value == 1}


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_every_number_is_that_of_docker(engine: Engine, container: ContainerCollector) -> None:
    """State, health, restarts, moments, codes, limits and mounts are those of `docker inspect`, for each container."""
    photos = engine.folder / "photos"
    photos.mkdir(exist_ok=True)
    engine.start_container(
        "immich_server", *labels("immich-server"), *QUICK_CHECK, "--health-cmd=true", "--memory=64m", "-v",
        f"{photos}:/data", "-e", "DB_PASSWORD=hunter2", "-e", "IMMICH_SOURCE_REF=v2.7.5", image=SERVER,
    )  # fmt: skip
    engine.start_container("immich_machine_learning", *QUICK_CHECK, "--health-cmd=false", image=ML)
    engine.start_container("immich_redis", *labels("redis"), "--restart=always", command="exit 3")
    engine.start_container("immich_postgres", *labels("database"), "--shm-size=128m", image=DATABASE)
    engine.run("pause", "immich_postgres")
    engine.create("immich_nginx", *labels("nginx"))
    engine.wait_until("immich_server", "{{.State.Health.Status}}", "healthy")
    engine.wait_until("immich_machine_learning", "{{.State.Health.Status}}", "unhealthy")
    # The pause between restarts doubles: from the sixth on there is time to compare.
    engine.wait_for(lambda: int(engine.value("immich_redis", "{{.RestartCount}}")) >= 6, "a restart loop")
    engine.wait_until("immich_redis", "{{.State.Status}}", "restarting")
    samples = collected(container)
    assert set(values(samples, "found")) == {
        (each,) for each in ("server", "machine_learning", "database", "redis", "proxy")
    }
    assert set(values(samples, "found").values()) == {1}
    names = {found[1]: found[0] for found in values(samples, "restarts_total")}
    assert len(names) == 5
    for name, component in names.items():
        seen = json.loads(engine.run("container", "inspect", name))[0]
        state, host = seen["State"], seen["HostConfig"]
        key = (component, name)
        assert chosen(samples, "state")[name] == state["Status"]
        assert chosen(samples, "health")[name] == state.get("Health", {"Status": "none"})["Status"]
        assert values(samples, "restarts_total")[key] == seen["RestartCount"]
        assert values(samples, "oom_killed")[key] == state["OOMKilled"]
        assert values(samples, "memory_limit_bytes").get(key, 0) == host["Memory"]
        assert values(samples, "shm_size_bytes")[key] == host["ShmSize"]
        assert values(samples, "restart_policy_info")[*key, host["RestartPolicy"]["Name"]] == 1
        for metric, field in (("start_timestamp_seconds", "StartedAt"), ("finish_timestamp_seconds", "FinishedAt")):
            told = values(samples, metric).get(key)
            assert state[field].startswith("0001") if told is None else told == pytest.approx(moment(state[field]))
    assert values(samples, "exit_code") == {("redis", "immich_redis"): 3}
    assert chosen(samples, "state") == {
        "immich_server": "running", "immich_machine_learning": "running", "immich_redis": "restarting",
        "immich_postgres": "paused", "immich_nginx": "created",
    }  # fmt: skip
    assert values(samples, "memory_limit_bytes") == {("server", "immich_server"): 64 * 2**20}
    assert values(samples, "shm_size_bytes")["database", "immich_postgres"] == 128 * 2**20
    assert values(samples, "media_mounted") == {("server", "immich_server"): 1}
    assert ("server", "immich_server", SERVER, "v2.7.5") in values(samples, "info")
    assert "hunter2" not in str(samples)


def test_missing_and_re_created(engine: Engine, container: ContainerCollector) -> None:
    """A missing container is missing; one re-created under its name, or scaled to two, is read as it is now."""
    engine.start_container("immich_server", image=SERVER)
    assert values(collected(container), "found") == {
        ("server",): 1, ("machine_learning",): 0, ("database",): 0, ("redis",): 0,
    }  # fmt: skip
    engine.run("rm", "-f", "immich_server")
    assert values(collected(container), "found")["server",] == 0
    engine.create("immich_server", image=SERVER)
    engine.start_container("immich_server_2", image=SERVER)
    samples = collected(container)
    assert values(samples, "found")["server",] == 1
    assert chosen(samples, "state") == {"immich_server": "created", "immich_server_2": "running"}


def test_not_startable(engine: Engine, container: ContainerCollector) -> None:
    """A container that the engine cannot start is told from one that nobody has started."""
    engine.create("immich_server", "--device=/dev/not-there", image=SERVER)
    engine.create("immich_redis")
    with pytest.raises(EngineError, match="not-there"):
        engine.run("start", "immich_server")
    failed = values(collected(container), "start_failed")
    assert failed == {("server", "immich_server"): 1, ("redis", "immich_redis"): 0}


def test_usage_is_that_of_docker(engine: Engine) -> None:
    """Memory and CPU agree with the cgroup's own files, which are what `docker stats` shows."""
    busy = "dd if=/dev/zero of=/file bs=1048576 count=40; exec sleep 1000"
    identity = engine.start_container("immich_server", image=SERVER, command=busy)
    engine.start_container("immich_machine_learning", image=ML)
    engine.create("immich_redis")
    # Without page cache the comparison below would hold for the plain usage, too.
    engine.wait_for(lambda: cgroup_usage(identity)[1] > 20 * 2**20, "the file just written is in the page cache")
    config = load({"DOCKER_HOST": engine.host}).docker
    collector = ContainerUsageCollector(lambda: Docker(engine.host, config), config)
    samples = collected(collector)
    collector.close()
    used, cache, cpu = cgroup_usage(identity)
    key = ("server", "immich_server")
    assert values(samples, "memory_working_set_bytes")[key] == pytest.approx(used - cache, abs=2 * 2**20)
    assert values(samples, "cpu_seconds_total")[key] == pytest.approx(cpu, abs=0.05)
    assert set(values(samples, "cpu_seconds_total")) == {key, ("machine_learning", "immich_machine_learning")}
    shown = engine.run("stats", "--no-stream", "--format", "{{.MemUsage}}", "immich_server").split()[0]
    assert shown.endswith("iB")


def cgroup_usage(identity: str) -> tuple[int, int, float]:
    """Bytes used, bytes of inactive page cache in them, and CPU seconds, from the kernel's own files."""
    root = Path("/sys/fs/cgroup")
    memory = next(each for each in (root / "memory/docker" / identity, *root.glob(f"**/*{identity}*")) if each.is_dir())
    words = (line.split() for line in (memory / "memory.stat").read_text(encoding="ascii").splitlines())
    parts = {name: int(value) for name, value in words}
    if (memory / "memory.current").exists():
        cpu_words = (line.split() for line in (memory / "cpu.stat").read_text(encoding="ascii").splitlines())
        cpu = dict(cpu_words)["usage_usec"]
        return int((memory / "memory.current").read_text(encoding="ascii")), parts["inactive_file"], int(cpu) / 1e6
    account = root / "cpuacct/docker" / identity / "cpuacct.usage"
    used = int((memory / "memory.usage_in_bytes").read_text(encoding="ascii"))
    return used, parts["total_inactive_file"], int(account.read_text(encoding="ascii")) / 1e9


def test_many_strangers_cost_no_request(engine: Engine, container: ContainerCollector, requests: list[str]) -> None:
    """Two hundred containers of others add not one request to a scrape."""
    engine.start_container("immich_server", image=SERVER)
    engine.start_container("immich_redis")
    collected(container)

    def counted() -> int:
        requests.clear()
        collected(container)
        return len(requests)

    alone = counted()
    script = (
        f"for n in $(seq 200); do docker -H {engine.host} create --name stranger-$n --network=none {IMAGE} true; done"
    )
    engine.shell(script)
    assert len(engine.run("ps", "-aq").split()) == 202
    assert counted() == alone == 3


class Follower:
    """Follows the events in a thread, again and again, as the runner does."""

    def __init__(self, collector: ContainerCollector, engine: Engine) -> None:
        self._collector, self._engine = collector, engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self.until(lambda: self.up() == 1, "the stream is up")

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._collector.follow(self._stop.is_set)
            except CollectorFailure:
                self._stop.wait(0.1)

    def samples(self) -> list[Sample]:
        try:
            return collected(self._collector)
        except CollectorFailure as failure:
            return list(failure.known)

    def up(self) -> float:
        return values(self.samples(), "event_stream_up")[()]

    def exits(self) -> dict[tuple[str, ...], float]:
        return {found: count for found, count in values(self.samples(), "exits_total").items() if count}

    def until(self, look: Callable[[], bool], what: str) -> None:
        self._engine.wait_for(look, what)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def follower(container: ContainerCollector, engine: Engine) -> Iterator[Follower]:
    follower = Follower(container, engine)
    yield follower
    follower.stop()


def test_exit_codes(engine: Engine, container: ContainerCollector, follower: Follower) -> None:
    """Ends by signals, by the server's choice and by `docker kill` are counted under the codes that Docker shows."""
    engine.start_container("immich_machine_learning", image=ML, command=DIES_OF.format("ILL"))
    engine.start_container("immich_server", image=SERVER)
    engine.run("kill", "immich_server")
    engine.start_container("immich_redis", command="exit 7")
    engine.start_container("stranger", command="exit 1")
    engine.run("wait", "stranger")
    follower.until(lambda: len(follower.exits()) == 3, "three exits")
    assert follower.exits() == {("machine_learning", "132"): 1, ("server", "137"): 1, ("redis", "7"): 1}
    codes = values(collected(container), "exit_code")
    for (_, name), code in codes.items():
        assert code == int(engine.value(name, "{{.State.ExitCode}}"))
    assert codes["machine_learning", "immich_machine_learning"] == 132
    assert sum(values(collected(container), "oom_events_total").values()) == 0


def test_out_of_memory(engine: Engine, container: ContainerCollector, follower: Follower) -> None:
    """A container that passes its memory limit has the flag, the event and code 137; its neighbour has none."""
    # Docker sets the flag only when it hears of the kill before the end: a container that ends with it may have none.
    dies_late = "tail /dev/zero; code=$?; sleep 1; exit $code"
    limit = ("--memory=24m", "--memory-swap=24m")
    engine.start_container("immich_server", *limit, image=SERVER)
    engine.start_container("immich_machine_learning", *limit, image=ML, command=dies_late)
    engine.run("wait", "immich_machine_learning")
    follower.until(lambda: bool(follower.exits()), "the exit")
    samples = collected(container)
    assert follower.exits() == {("machine_learning", "137"): 1}
    assert values(samples, "oom_killed") == {
        ("machine_learning", "immich_machine_learning"): 1, ("server", "immich_server"): 0,
    }  # fmt: skip
    follower.until(lambda: values(follower.samples(), "oom_events_total")["machine_learning",] >= 1, "the OOM event")
    assert values(collected(container), "oom_events_total")["server",] == 0
    assert values(samples, "exit_code") == {("machine_learning", "immich_machine_learning"): 137}


def test_restart_of_the_daemon(engine: Engine, follower: Follower) -> None:
    """Over a restart of the daemon the stream goes down and up again, and each exit is counted exactly once."""
    engine.start_container("immich_server", image=SERVER, command="trap 'exit 5' TERM; sleep 1000 & wait")
    engine.start_container("immich_redis", command="exit 7")
    follower.until(lambda: follower.exits() == {("redis", "7"): 1}, "the first exit")
    engine.stop()
    follower.until(lambda: follower.up() == 0, "the stream is down")
    assert follower.exits()["redis", "7"] == 1
    engine.start()
    follower.until(lambda: follower.up() == 1, "the stream is up again")
    engine.run("start", "immich_redis")
    follower.until(lambda: follower.exits().get(("redis", "7")) == 2, "the second exit")
    engine.run("start", "immich_server")
    engine.run("stop", "immich_server")
    engine.run("start", "immich_redis")
    follower.until(lambda: follower.exits().get(("redis", "7")) == 3, "the third exit")
    # Of the server one exit is the one just made, the other that of the daemon's own shutdown, if it was told.
    assert follower.exits()["server", "5"] in (1, 2)


def test_nothing_is_lost_between_streams(engine: Engine, follower: Follower) -> None:
    """Forty exits while the stream is begun anew again and again are counted, each once."""
    engine.create("immich_redis", command="exit 7")
    engine.shell(f"for n in $(seq 40); do docker -H {engine.host} start -a immich_redis; done; true")
    follower.until(lambda: follower.exits().get(("redis", "7"), 0) >= 40, "forty exits")
    follower.until(lambda: follower.up() == 1, "the stream is up")
    assert follower.exits() == {("redis", "7"): 40}


def test_storage_asks_who_writes_and_how_folders_are_mounted(engine: Engine, tmp_path: Path) -> None:
    """User, groups, dropped capabilities, read-only mounts, folders on other disks, as the engine has them."""
    media, fast = tmp_path / "media", tmp_path / "fast"
    for folder in [*(media / name for name in NAMES.values()), fast]:
        folder.mkdir(parents=True)
        (folder / ".immich").touch()
        folder.chmod(0o775)
        os.chown(folder, 0, 44)
    settings = {"DOCKER_HOST": engine.host, "IMMICH_MEDIA_LOCATION": str(media)}
    collector = StorageCollector.from_config(load(settings))
    assert collector is not None

    def may(access: str) -> dict[str, float]:
        samples = collector.collect(Context(Deadline.after(10.0), SystemClock()))
        return {each.labels[0]: each.value for each in samples if each.labels[1:] == (access,)}

    mounts = (f"--volume={media}:/data", f"--volume={media}/profile:/data/profile:ro")
    assert may("write") == {}, "nobody writes"
    engine.create("immich_server", *mounts, image=SERVER)
    assert may("write") == {**dict.fromkeys(NAMES, 1.0), "profile": 0.0}
    engine.remove_containers()
    engine.create("immich_server", *mounts, "--user=1000:1000", "--group-add=44", image=SERVER)
    # The group may write to the folders, and not to the markers, which are root's alone.
    assert set(may("write").values()) == {0.0}
    assert set(may("read").values()) == {1.0}
    for marker in media.glob("*/.immich"):
        os.chown(marker, 1000, 0)
    assert may("write") == {**dict.fromkeys(NAMES, 1.0), "profile": 0.0}
    engine.remove_containers()
    engine.create("immich_server", *mounts, "--cap-drop=ALL", "--user=0:0", image=SERVER)
    for folder in media.iterdir():
        os.chown(folder, 1000, 1000)
    assert set(may("write").values()) == {0.0}
    engine.remove_containers()
    engine.create("immich_server", *mounts, f"--volume={fast}:/data/thumbs", image=SERVER)
    assert "thumbs" not in may("read")
    collector.close()
