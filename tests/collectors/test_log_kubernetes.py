"""The collector `log` in a cluster: each run of a container has a log, and every line of it counts once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.log import Counts, LogCollector
from immich_vitals.config import load
from immich_vitals.metrics import Sample
from immich_vitals.signatures import Catalogue
from immich_vitals.sources.docker_components import Matching
from immich_vitals.sources.docker_logs import DockerLogs
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.log_lines import Budget
from immich_vitals.sources.state import State
from support import pods
from support.fake_kubernetes import RIGHTS, FakeKubernetes, FakeLog

NO_SPACE = "[Nest] 7 - ERROR [Microservices:JobService] Error: ENOSPC: no space left on device, write"
CALM = "[Nest] 7 - LOG [Api:Bootstrap] Immich Server is listening"


def stamped(line: str, nanoseconds: int = 0) -> str:
    """A line as the kubelet tells it, with its moment: now, and so many nanoseconds later."""
    moment = datetime.fromtimestamp(SystemClock().time(), UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond * 1000 + nanoseconds:09d}Z {line}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path / "cluster", pods.healthy()) as fake:
        for each in fake.pods:
            fake.logs[each["metadata"]["name"], each["spec"]["containers"][0]["name"], False] = FakeLog()
        yield fake


class Follower:
    """A collector that follows as the runner has it do, in a hurry."""

    def __init__(self, fake: FakeKubernetes, state: Path | None) -> None:
        config = load(fake.environment).docker
        engine = find_engine(config, runs=True)
        assert engine is not None
        kept = State(state, "log")
        counts = Counts(Catalogue.load(), kept.read(), SystemClock())
        self.source = DockerLogs(engine, Matching.of(config), counts, Budget(1.0), list_seconds=0.1)
        self.collector = LogCollector(counts, [self.source], kept)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: self.collector.follow(self._stop.is_set), daemon=True)
        self._thread.start()
        self.until("log_stream_up", {(each,): 1 for each in ("server", "machine_learning", "redis", "database")})

    def stop(self) -> None:
        self._stop.set()
        self.collector.close()
        self._thread.join(5)

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        context = Context(Deadline.after(10.0), SystemClock())
        try:
            samples: Any = self.collector.collect(context)
        except CollectorFailure as failure:
            samples = failure.known
        found: list[Sample] = [each for each in samples if each.metric.name == name]
        return {each.labels: each.value for each in found if each.value}

    def until(self, name: str, expected: dict[tuple[str, ...], float]) -> None:
        """Wait until these series of a metric, and no other, are not 0."""
        deadline = Deadline.after(10)
        while (found := self.values(name)) != expected:
            assert deadline.remaining() > 0, found


@contextmanager
def following(fake: FakeKubernetes, state: Path | None = None) -> Iterator[Follower]:
    follower = Follower(fake, state)
    yield follower
    follower.stop()


def restarted(run: int) -> pods.Json:
    """The server, in its run of this number."""
    last = pods.terminated(pods.S, "main", run - 1)
    return pods.server(status=pods.running(pods.S, "main", run, last=last))


def test_lines_are_counted(cluster: FakeKubernetes) -> None:
    """Lines of all parts, as they come; what was there before us does not count."""
    cluster.write(pods.V, "main", f"2026-01-01T00:00:00.000000000Z {NO_SPACE}")
    with following(cluster) as follower:
        cluster.write(pods.S, "main", stamped(CALM), stamped(NO_SPACE, 1))
        cluster.write("immich-database-1", "postgres", stamped("LOG:  checkpoint starting: time"))
        follower.until("log_lines_total", {("server",): 2, ("database",): 1})
        assert follower.values("log_matches_total") == {("server", "no_space"): 1}


def test_every_run_has_a_log(cluster: FakeKubernetes) -> None:
    """The last words of a run that crashed count, and so do the first of the next; none counts twice."""
    with following(cluster) as follower:
        cluster.write(pods.S, "main", stamped(CALM))
        follower.until("log_lines_total", {("server",): 1})
        for run in (1, 2, 3):
            cluster.write(pods.S, "main", stamped(NO_SPACE))
            cluster.restart(pods.S, "main")
            cluster.write(pods.S, "main", stamped(CALM))
            cluster.change("MODIFIED", restarted(run))
            follower.until("log_lines_total", {("server",): 1 + 2 * run})
        assert follower.values("log_matches_total") == {("server", "no_space"): 3}


def test_the_log_of_another_run_is_not_taken_for_it(cluster: FakeKubernetes) -> None:
    """A container that restarts between our look at its pod and the question for its log: the API then gives the log
    of the new run, and it is read as that."""
    with following(cluster) as follower:
        cluster.write(pods.S, "main", stamped(CALM))
        follower.until("log_lines_total", {("server",): 1})
        once = threading.Event()

        def restart(path: str) -> None:
            if path.endswith(f"/{pods.S}/log") and not once.is_set():
                once.set()
                cluster.restart(pods.S, "main")
                cluster.write(pods.S, "main", stamped(NO_SPACE, 5))
                cluster.change("MODIFIED", restarted(2))

        cluster.before = restart
        cluster.restart(pods.S, "main")
        cluster.change("MODIFIED", restarted(1))
        follower.until("log_lines_total", {("server",): 2})
        assert once.is_set()
        assert follower.values("log_matches_total") == {("server", "no_space"): 1}


def test_while_we_were_away(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """What was logged while the exporter was down counts afterwards, also the last words of a run that ended then."""
    state = tmp_path / "state"
    state.mkdir()
    with following(cluster, state) as follower:
        cluster.write(pods.S, "main", stamped(CALM))
        follower.until("log_lines_total", {("server",): 1})
    cluster.write(pods.S, "main", stamped(NO_SPACE))
    cluster.restart(pods.S, "main")
    cluster.write(pods.S, "main", stamped(CALM))
    cluster.change("MODIFIED", restarted(1))
    with following(cluster, state) as follower:
        follower.until("log_lines_total", {("server",): 3})
        assert follower.values("log_matches_total") == {("server", "no_space"): 1}


def test_a_log_that_is_forgotten(cluster: FakeKubernetes) -> None:
    """A node forgets the logs of earlier runs: then the present one is followed alone, and that is well."""
    cluster.change("MODIFIED", restarted(4))
    with following(cluster) as follower:
        cluster.write(pods.S, "main", stamped(CALM))
        follower.until("log_lines_total", {("server",): 1})
        follower.until("log_stream_up", {(each,): 1 for each in ("server", "machine_learning", "redis", "database")})


def test_container_that_never_ran(cluster: FakeKubernetes) -> None:
    """A pod that waits for its image has no log, and nobody misses it."""
    cluster.change("MODIFIED", pods.valkey(status=pods.waiting("main", "ImagePullBackOff"), phase="Pending"))
    collector = LogCollector.from_config(load(cluster.environment))
    assert collector is not None
    context = Context(Deadline.after(5), SystemClock())
    assert {s.labels for s in collector.collect(context) if s.metric.name == "log_stream_up"} == {
        ("server",), ("machine_learning",), ("database",)
    }  # fmt: skip
    assert not context.remarks
    collector.close()


def test_forbidden(cluster: FakeKubernetes) -> None:
    """Without the right to read logs nothing is up, and the binding is named."""
    cluster.rights.discard(("", "pods/log", "get"))
    collector = LogCollector.from_config(load(cluster.environment))
    assert collector is not None
    context = Context(Deadline.after(5), SystemClock())
    samples = list(collector.collect(context))
    assert {s.value for s in samples if s.metric.name == "log_stream_up"} == {0}
    assert 'cannot get resource "pods/log"' in context.remarks[0].message
    assert "RoleBinding" in context.remarks[0].mend
    collector.close()


def test_only_what_is_granted(cluster: FakeKubernetes) -> None:
    """Following needs a list of pods and their logs, and sends nothing but GET."""
    with following(cluster):
        pass
    assert cluster.asked == {("", "pods", "list"), ("", "pods/log", "get")}
    assert cluster.asked < RIGHTS
    assert {method for method, _ in cluster.requests} == {"GET"}
