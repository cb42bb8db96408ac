"""The collector `log`: what is counted, what is kept over a restart, what is said of logs that cannot be followed."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, Remark, SystemClock, TimedOut, Unavailable
from immich_vitals.collectors.log import Counts, LogCollector, log_samples
from immich_vitals.config import ConfigError, load
from immich_vitals.metrics import Sample
from immich_vitals.signatures import LONGEST_LINE, Catalogue
from immich_vitals.sources import docker as docker_source
from immich_vitals.sources.log_lines import Batch, Budget, Followed, Splitter
from immich_vitals.sources.state import State
from support.clock import FakeClock
from support.fake_docker import FakeDocker
from support.golden import ROOT, cases, check

FULL = b"[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~jsbd6sja] Error: ENOSPC: no space left on device"
CALM = b"[Nest] 7  - 11/20/2026, 5:22:51 PM     LOG [Api:X] all is well"


def counts_of(kept: dict[str, object] | None = None, clock: FakeClock | None = None) -> Counts:
    return Counts(Catalogue.load(), kept or {}, clock or FakeClock())


def values(samples: Sequence[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


class Words:
    """A source that follows nothing and says what it is told to."""

    def __init__(self, *followed: Followed, failure: CollectorFailure | None = None) -> None:
        self.told, self.failure = followed, failure
        self.looks = 0
        self.running = threading.Event()

    def look(self, deadline: Deadline) -> None:
        self.looks += 1

    def run(self, stop: Callable[[], bool]) -> None:
        self.running.set()
        while not stop():
            threading.Event().wait(0.01)

    def followed(self) -> Sequence[Followed]:
        return self.told

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("case", cases("log"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """The lines that the programs of the case printed give exactly its expected samples."""
    counts = counts_of()
    chosen = case / "followed.json"
    up = json.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    components = [path.stem for path in sorted(case.glob("*.log"))]
    for component in components:
        lines = (case / f"{component}.log").read_bytes().splitlines()
        counts.open(component, component)(Batch(lines, [1_800_000_000.0] * len(lines), {}))
    followed = [Followed(component, up.get(component, True)) for component in components]
    check(case, LogCollector.metrics, log_samples(counts.facts(), followed), update_golden)


def test_splitter_counts_lines_whatever_the_pieces() -> None:
    """The same lines come out however the bytes are cut; `\\r\\n` is a line end."""
    text = b"one\r\ntwo\n\n" + b"x" * (3 * LONGEST_LINE) + b"\nlast\nunended"
    for size in (1, 7, 1000, LONGEST_LINE, len(text)):
        splitter = Splitter()
        found = [line for at in range(0, len(text), size) for line in splitter.lines(text[at : at + size])]
        assert found == [b"one", b"two", b"", b"x" * LONGEST_LINE, b"last"]
        assert splitter.kept == len("unended")
        assert splitter.rest() == [b"unended"]


def test_splitter_keeps_no_more_than_one_line() -> None:
    """A log without any line end keeps LONGEST_LINE bytes, however long it goes on."""
    splitter = Splitter()
    for _ in range(2000):
        assert splitter.lines(b"\x00\xff" * 16384) == []
        assert splitter.kept <= LONGEST_LINE
    assert splitter.skipping
    assert [len(line) for line in splitter.lines(b"end\nnext\n")] == [LONGEST_LINE, 4]


def test_budget_is_shared() -> None:
    """All logs together use a quarter of a CPU, and whoever is to stop does not wait."""
    clock = FakeClock()
    began = clock.monotonic()
    budget = Budget(0.25, clock, clock.advance)
    for _ in range(100):
        clock.advance(0.01)
        budget.spend(0.01, lambda: False)
    assert clock.monotonic() - began == pytest.approx(4.0)
    budget.spend(1000.0, lambda: True)
    assert clock.monotonic() - began == pytest.approx(4.0)


def test_zeros_from_the_start() -> None:
    """A component that is followed has all its signatures, and one that is not has none."""
    counts = counts_of()
    counts.open("docker:1", "redis")
    samples = list(log_samples(counts.facts(), [Followed("redis", True)]))
    signatures = Catalogue.load().signatures("redis")
    assert values(samples, "log_matches_total") == {("redis", each): 0 for each in signatures}
    assert values(samples, "log_lines_total") == {("redis",): 0}
    assert values(samples, "log_last_match_timestamp_seconds") == {}


def test_moment_of_the_last_match() -> None:
    """It is the engine's moment of the line where there is one, and else when it was read."""
    clock = FakeClock(2_000_000_000.0)
    counts = counts_of(clock=clock)
    counts.open("docker:1", "server")(Batch([CALM, FULL], [1.0, 1_999_999_000.5], {}))
    assert counts.facts().lasts == {("server", "no_space"): 1_999_999_000.5}
    clock.advance(100)
    counts.open("file:1", "server")(Batch([FULL.replace(b"jsbd6sja", b"abcdefgh")], None, {}))
    assert counts.facts().lasts == {("server", "no_space"): 2_000_000_100.0}


def test_counts_and_places_go_over_a_restart_together(tmp_path: Path) -> None:
    """The next process begins with the counts of the one before, so that no counter goes back and nothing is lost."""
    clock = FakeClock()
    first = counts_of(clock=clock)
    first.open("docker:1", "server")(Batch([CALM, FULL], [5.0, 6.0], {"last": 6}))
    State(tmp_path, "log").write(first.to_keep())
    clock.advance(3600)
    second = counts_of(State(tmp_path, "log").read(), clock)
    assert second.since == FakeClock().time()
    assert second.place("docker:1") == {"last": 6}
    assert second.facts().lines == {}  # not followed yet
    second.open("docker:1", "server")
    assert second.facts() == first.facts()
    second.retain("docker", ["docker:2"])
    assert second.place("docker:1") is None


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"saved": "soon"},
        {"saved": 1_800_000_000.0},
        {"saved": 1_800_000_000.0, "lines": [], "matches": [], "lasts": [], "places": {}},
        {"saved": 1_800_000_000.0, "lines": {}, "matches": [[1]], "lasts": [], "places": {}},
        {"saved": 1_800_000_000.0, "lines": {}, "matches": [], "lasts": [], "places": {"docker:1": 3}},
        {"saved": 1_799_000_000.0, "lines": {"server": 9}, "matches": [], "lasts": [], "places": {"docker:1": {}}},
        {"saved": 1_900_000_000.0, "lines": {"server": 9}, "matches": [], "lasts": [], "places": {"docker:1": {}}},
    ],
    ids=["none", "no-moment", "no-counts", "lists", "short", "place", "old", "future"],
)
def test_kept_counts_that_are_not_ours_or_too_old(kept: dict[str, object]) -> None:
    """What somebody else wrote into our file, or what is a day old, is as good as nothing."""
    counts = counts_of(kept)
    counts.open("docker:1", "server")
    assert (counts.since, counts.facts().lines, counts.place("docker:1")) == (None, {"server": 0}, None)


def test_one_log_that_cannot_be_followed_is_a_remark(context: Context) -> None:
    """It has its 0, the others their values, and a person the mend."""
    counts = counts_of()
    counts.open("docker:1", "server")(Batch([CALM], [1.0], {}))
    remark = Remark("the log of redis is not there", "mount it")
    collector = LogCollector(
        counts, [Words(Followed("server", True), Followed("redis", False, remark))], State(None, "log")
    )
    samples = list(collector.collect(context))
    assert values(samples, "log_stream_up") == {("server",): 1, ("redis",): 0}
    assert values(samples, "log_lines_total") == {("server",): 1}
    assert context.remarks == [remark]


def test_engine_away(context: Context) -> None:
    """While no log can be followed the collector fails, and keeps the counters that are true all the same."""
    counts = counts_of()
    counts.open("docker:1", "server")(Batch([CALM], [1.0], {}))
    failure = Unavailable("Docker is gone", mend="start it")
    collector = LogCollector(counts, [Words(Followed("server", False), failure=failure)], State(None, "log"))
    with pytest.raises(Unavailable, match="Docker is gone") as caught:
        list(collector.collect(context))
    assert values(caught.value.known, "log_lines_total") == {("server",): 1}
    assert values(caught.value.known, "log_stream_up") == {("server",): 0}
    beside = LogCollector(
        counts, [Words(Followed("server", False), failure=failure), Words(Followed("redis", True))], State(None, "log")
    )
    assert values(list(beside.collect(context)), "log_stream_up") == {("server",): 0, ("redis",): 1}
    assert context.remarks == [Remark("Docker is gone", "start it")]


def test_state_folder_that_cannot_be_written(tmp_path: Path, context: Context) -> None:
    """It costs the memory over a restart, and is said."""
    source = Words(Followed("server", True))
    collector = LogCollector(counts_of(), [source], State(tmp_path / "gone", "log"))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: collector.follow(stop.is_set))
    thread.start()
    assert source.running.wait(5)
    stop.set()
    thread.join(5)
    list(collector.collect(context))
    assert source.looks == 0  # who follows does not have to look
    assert [remark.message for remark in context.remarks] == [
        f"cannot write {tmp_path}/gone/log.json: No such file or directory"
    ]


def test_what_was_shown_is_kept_soon(tmp_path: Path, context: Context) -> None:
    """After a scrape has shown new counts they are kept, so that no counter goes back after a crash."""
    clock = FakeClock()
    counts = counts_of(clock=clock)
    source = Words(Followed("server", True))
    collector = LogCollector(counts, [source], State(tmp_path, "log"), clock)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: collector.follow(stop.is_set))
    thread.start()
    assert source.running.wait(5)
    counts.open("docker:1", "server")(Batch([CALM], [1.0], {}))
    list(collector.collect(context))
    while not State(tmp_path, "log").read():
        thread.join(0.01)
    assert State(tmp_path, "log").read()["lines"] == {"server": 1}
    stop.set()
    thread.join(5)
    collector.close()
    assert not thread.is_alive()


def test_nothing_to_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Docker, files and units the collector is disabled, and says which settings there are."""
    monkeypatch.setattr(docker_source, "usual_sockets", lambda: (tmp_path / "docker.sock",))
    assert LogCollector.from_config(load({})) is None
    assert "IMMICH_VITALS_LOG_FILES" in LogCollector.disabled_because(load({}))
    assert LogCollector.from_config(load({"IMMICH_VITALS_LOG_FILES": "server=/var/log/server.log"})) is not None


def test_own_catalogue_with_mistakes(tmp_path: Path) -> None:
    """A catalogue that cannot be used stops the start, and each mistake names the setting."""
    own = tmp_path / "own.yml"
    own.write_text("signatures: [{signature: Bad Name}]", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        LogCollector.from_config(
            load({"IMMICH_VITALS_LOG_CATALOGUE": str(own), "IMMICH_VITALS_LOG_FILES": "server=/x.log"})
        )
    assert {mistake.setting for mistake in caught.value.mistakes} == {"IMMICH_VITALS_LOG_CATALOGUE"}
    assert str(own) in str(caught.value)


@pytest.fixture
def engine() -> Iterator[FakeDocker]:
    with FakeDocker(ROOT / "container" / "healthy") as fake:
        for each in json.loads((fake.folder / "containers.json").read_text(encoding="utf-8")):
            fake.bodies[f"/containers/{each['Id']}/logs"] = b""
        yield fake


def of(engine: FakeDocker) -> LogCollector:
    collector = LogCollector.from_config(load({"DOCKER_HOST": engine.host}))
    assert collector is not None
    return collector


def test_proxy_that_forbids_logs(engine: FakeDocker, context: Context) -> None:
    """A socket proxy that lets the list through and not the logs: nothing is up, and the mend names what to allow."""
    engine.statuses.update(dict.fromkeys(engine.bodies, 403))
    collector = of(engine)
    samples = list(collector.collect(context))
    collector.close()
    assert set(values(samples, "log_stream_up").values()) == {0}
    assert "CONTAINERS=1" in context.remarks[0].mend


def test_one_log_that_hangs(engine: FakeDocker) -> None:
    """A container whose log does not answer costs its own 0, and not the others'."""
    hanging = sorted(engine.bodies)[0]
    engine.before = lambda path: engine.ended.wait(20) if path == hanging else None  # type: ignore[assignment,return-value]
    collector = of(engine)
    samples = list(collector.collect(Context(Deadline.after(5.0), SystemClock())))
    collector.close()
    up = list(values(samples, "log_stream_up").values())
    assert up.count(0) == 1
    assert up.count(1) >= 3


def test_engine_that_hangs(engine: FakeDocker) -> None:
    """A daemon that accepts and says nothing is a time-out, with the mend."""
    engine.before = lambda path: engine.ended.wait(20)  # type: ignore[assignment,return-value]
    collector = of(engine)
    with pytest.raises(TimedOut, match="did not answer"):
        list(collector.collect(Context(Deadline.after(0.3), SystemClock())))
    collector.close()


def test_component_named_elsewhere_is_left_alone(engine: FakeDocker, tmp_path: Path, context: Context) -> None:
    """A component with a file is not followed through Docker, too."""
    (tmp_path / "redis.log").write_text("one\n", encoding="utf-8")
    collector = LogCollector.from_config(
        load({"DOCKER_HOST": engine.host, "IMMICH_VITALS_LOG_FILES": f"redis={tmp_path / 'redis.log'}"})
    )
    assert collector is not None
    samples = list(collector.collect(context))
    collector.close()
    asked = [path for path in engine.paths if path.endswith("/logs")]
    assert len(asked) == len(values(samples, "log_stream_up")) - 1
    assert {method for method, _ in engine.requests} == {"GET"}
    assert values(samples, "log_stream_up")["redis",] == 1


def test_a_bug_is_met_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that our reader stumbles over is shown as a bug, and what is behind it is read all the same."""
    counts = counts_of()
    take = counts.open("docker:1", "server")
    with monkeypatch.context() as patch:
        patch.setattr("immich_vitals.signatures.Reader.feed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(Batch([CALM], [1.0], {"last": 1}))
    assert counts.place("docker:1") == {"last": 1}
    take(Batch([FULL], [2.0], {"last": 2}))
    assert counts.facts().lines == {"server": 2}
    assert counts.facts().matches["server", "no_space"] == 1
