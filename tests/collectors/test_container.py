"""The collectors `container` and `container_usage` against a Docker API that misbehaves as told."""

import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from immich_vitals.collector import (
    Absent,
    Collector,
    CollectorFailure,
    Context,
    Deadline,
    SystemClock,
    TimedOut,
    Unavailable,
)
from immich_vitals.collectors.container import ContainerCollector, ContainerUsageCollector
from immich_vitals.config import Config, load
from immich_vitals.metrics import Sample
from immich_vitals.sources import docker as docker_source
from immich_vitals.sources.docker import Docker
from support import golden
from support.certificates import make_certificate
from support.fake_docker import FakeDocker

HEALTHY = golden.ROOT / "container" / "healthy"
HEALTHY_USAGE = golden.ROOT / "container_usage" / "healthy"
IMMICH = ("immich_server", "immich_machine_learning", "immich_redis", "immich_postgres", "immich_nginx")


def settings(host: str, **others: str) -> Config:
    return load({"DOCKER_HOST": host, **others})


def docker_cases(collector: str) -> list[Path]:
    """Those of Kubernetes are in test_container_kubernetes.py."""
    return [case for case in golden.cases(collector) if not case.name.startswith("kubernetes-")]


def ids(folder: Path) -> dict[str, str]:
    """The ids of the listed containers by name."""
    listed = json.loads((folder / "containers.json").read_text(encoding="utf-8"))
    return {each["Names"][0].lstrip("/"): each["Id"] for each in listed}


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def within(seconds: float) -> Context:
    return Context(Deadline.after(seconds), SystemClock())


def values(samples: object, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by its label values."""
    assert isinstance(samples, list | tuple)
    found = [sample for sample in samples if isinstance(sample, Sample) and sample.metric.name == name]
    return {sample.labels: sample.value for sample in found}


def collected(collector: Collector, seconds: float = 10.0) -> list[Sample]:
    return list(collector.collect(within(seconds)))


def failure_of(collector: Collector, kind: type[CollectorFailure], seconds: float = 5.0) -> CollectorFailure:
    with pytest.raises(kind) as caught:
        collected(collector, seconds)
    return caught.value


def remarked(collector: Collector, seconds: float = 5.0) -> tuple[list[Sample], list[str]]:
    """The samples of a run, and what it remarks on."""
    context = within(seconds)
    samples = list(collector.collect(context))
    return samples, [remark.message for remark in context.remarks]


def opened(kind: type[Collector], config: Config) -> Collector:
    collector = kind.from_config(config)
    assert collector is not None
    return collector


@pytest.fixture
def healthy() -> Iterator[FakeDocker]:
    with FakeDocker(HEALTHY) as fake:
        yield fake


@pytest.fixture
def container(healthy: FakeDocker) -> Iterator[Collector]:
    collector = opened(ContainerCollector, settings(healthy.host))
    yield collector
    collector.close()


@pytest.mark.parametrize("case", docker_cases("container"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """What the engine answered becomes exactly the expected samples, with no secret among them."""
    chosen = case / "settings.json"
    environment = json.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    with FakeDocker(case) as fake:
        collector = opened(ContainerCollector, settings(fake.host, **environment))
        samples = collected(collector)
        collector.close()
    golden.check(case, collector.metrics, samples, update_golden)
    assert "hunter2" not in (case / "expected.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", docker_cases("container_usage"), ids=lambda path: path.name)
def test_golden_usage(case: Path, update_golden: bool) -> None:
    """What the engine answered about usage becomes exactly the expected samples."""
    with FakeDocker(case) as fake:
        collector = opened(ContainerUsageCollector, settings(fake.host))
        samples = collected(collector)
        collector.close()
    golden.check(case, collector.metrics, samples, update_golden)


def test_no_docker_disables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a socket and without DOCKER_HOST both collectors are disabled and say what to do."""
    monkeypatch.setattr(docker_source, "usual_sockets", lambda: (tmp_path / "docker.sock",))
    config = load({})
    for kind in (ContainerCollector, ContainerUsageCollector):
        assert kind.from_config(config) is None
        assert "set DOCKER_HOST" in kind.disabled_because(config)


def test_usual_socket_is_found(healthy: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DOCKER_HOST the first usual path that is a socket is taken; a folder in its place is not."""
    monkeypatch.setattr(docker_source, "usual_sockets", lambda: (tmp_path, tmp_path / "no.sock", healthy.socket))
    collector = opened(ContainerCollector, load({}))
    assert values(collected(collector), "container_found")["server",] == 1
    collector.close()


def test_usual_sockets_include_podman_and_rootless() -> None:
    """The sockets of Docker and Podman are tried, with root's before the user's."""
    words = [str(path) for path in docker_source.usual_sockets()]
    own = f"/run/user/{os.getuid()}"
    assert words == [
        "/var/run/docker.sock",
        f"{own}/docker.sock",
        "/run/podman/podman.sock",
        f"{own}/podman/podman.sock",
    ]


def test_absent(tmp_path: Path) -> None:
    """A socket file that is gone is absent; the counters of events are true all the same."""
    collector = opened(ContainerCollector, settings(f"unix://{tmp_path}/no.sock"))
    failure = failure_of(collector, Absent)
    assert f"{tmp_path}/no.sock is not there" in failure.message
    assert "DOCKER_HOST" in failure.mend
    assert values(failure.known, "container_event_stream_up") == {(): 0}
    assert values(failure.known, "container_exits_total")["server", "137"] == 0
    assert values(failure.known, "container_found") == {}


def test_folder_in_place_of_the_socket(tmp_path: Path) -> None:
    """A folder, as Docker makes for a missing mount source, is named as what it is."""
    failure = failure_of(opened(ContainerCollector, settings(f"unix://{tmp_path}")), Absent)
    assert "is not a socket" in failure.message


def test_refused(tmp_path: Path) -> None:
    """A socket that nobody listens on is unavailable."""
    path = Path(f"/tmp/refused-{os.getpid()}.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    try:
        failure = failure_of(opened(ContainerCollector, settings(f"unix://{path}")), Unavailable)
    finally:
        path.unlink()
    assert "Connection refused" in failure.message


def test_refused_tcp() -> None:
    """A TCP port that nobody listens on is unavailable."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        failure = failure_of(opened(ContainerCollector, settings(host)), Unavailable)
    assert host in failure.message


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's power over permissions, if we have it."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_no_right(healthy: FakeDocker, container: Collector) -> None:
    """A socket that our user may not open names the group and the proxy as ways out."""
    healthy.socket.chmod(0)
    healthy.socket.parent.chmod(0o755)
    with nobody():
        failure = failure_of(container, Unavailable)
    assert "no right" in failure.message
    assert "group" in failure.mend and "proxy" in failure.mend


def test_address_that_is_none() -> None:
    """An address without a port is unavailable, not a bug."""
    failure = failure_of(opened(ContainerCollector, settings("tcp://docker-proxy")), Unavailable)
    assert "DOCKER_HOST" in failure.message


@pytest.mark.parametrize("status", [401, 403, 405])
def test_forbidden(healthy: FakeDocker, container: Collector, status: int) -> None:
    """A proxy that forbids a path is unavailable, and the path is named."""
    healthy.statuses["/containers"] = status
    failure = failure_of(container, Unavailable)
    assert "/v1.41/containers/json" in failure.mend


def test_server_error(healthy: FakeDocker, container: Collector) -> None:
    """An error of the daemon is told by its status; its words, which may name a path of somebody's, are in its log."""
    healthy.statuses["/containers"] = 500
    assert failure_of(container, Unavailable).message.endswith("with status 500")


@pytest.mark.parametrize(
    ("versions", "used"), [(("1.12", "1.41"), "1.41"), (("1.44", "1.52"), "1.44"), (("1.50", "1.60"), "1.50")]
)
@pytest.mark.parametrize("may_ask", [True, False], ids=["version allowed", "version forbidden"])
def test_versions(versions: tuple[str, str], used: str, may_ask: bool) -> None:
    """Old and new engines are read, also where a proxy forbids to ask for the version."""
    with FakeDocker(HEALTHY, versions=versions) as fake:
        if not may_ask:
            fake.statuses["/version"] = 403
        collector = opened(ContainerCollector, settings(fake.host))
        assert values(collected(collector), "container_found")["server",] == 1
        assert fake.requests[-1][1].startswith(f"/v{used}/")
        before = len(fake.requests)
        collected(collector)
        assert len(fake.requests) - before == 1 + len(IMMICH)
        collector.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as DOCKER_CERT_PATH has it; its one certificate is the authority, the server's and the client's."""
    folder = tmp_path_factory.mktemp("certificates")
    made = make_certificate(folder, "docker")
    for file in ("ca.pem", "cert.pem"):
        shutil.copy(made.public, folder / file)
    shutil.copy(made.private, folder / "key.pem")
    return folder


def demanding(certificates: Path) -> ssl.SSLContext:
    """A server's side of TLS that takes only clients with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_tls(certificates: Path) -> None:
    """A `tcp://` host is read over TLS with the client certificate from DOCKER_CERT_PATH."""
    with FakeDocker(HEALTHY, tls=demanding(certificates)) as fake:
        chosen = settings(fake.host, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(certificates))
        collector = opened(ContainerCollector, chosen)
        assert values(collected(collector), "container_found")["server",] == 1
        collector.close()


def test_tls_of_somebody_else(certificates: Path, tmp_path: Path) -> None:
    """A daemon whose certificate is not signed by our authority is unavailable, and the settings are named."""
    with FakeDocker(HEALTHY, tls=demanding(certificates)) as fake:
        collector = opened(
            ContainerCollector, settings(fake.host, DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(tmp_path))
        )
        assert "DOCKER_CERT_PATH" in failure_of(collector, Unavailable).mend
        collector.close()


def hang(fake: FakeDocker, beginning: str) -> threading.Event:
    """Make the paths that begin so hang until the event is set."""
    release = threading.Event()

    def wait(path: str) -> None:
        if path.startswith(beginning):
            release.wait(20)

    fake.before = wait
    return release


def test_slower_than_the_deadline(healthy: FakeDocker, container: Collector) -> None:
    """A list that does not come ends at the deadline as a time-out; the next run recovers."""
    release = hang(healthy, "/containers")
    clock = SystemClock()
    began = clock.monotonic()
    failure = failure_of(container, TimedOut, 0.4)
    assert clock.monotonic() - began < 0.8
    assert "/containers/json in time" in failure.message
    release.set()
    assert values(collected(container), "container_found")["server",] == 1


def test_dripping_answer(healthy: FakeDocker, container: Collector) -> None:
    """An answer that drips ends at the deadline, although no single read takes long."""
    healthy.dripping.add("/containers/json")
    clock = SystemClock()
    began = clock.monotonic()
    failure_of(container, TimedOut, 0.4)
    assert clock.monotonic() - began < 0.8


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{", b'{"message": "hello"}', b'[{"Names": []}]', b"[1]", b""]
)
def test_malformed_list(healthy: FakeDocker, container: Collector, body: bytes) -> None:
    """A list that is none is unavailable, not a bug."""
    healthy.bodies["/containers/json"] = body
    assert "DOCKER_HOST" in failure_of(container, Unavailable).mend


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"Name": "/x", "State": {}}', b'{"State": null}'])
def test_one_malformed_container(healthy: FakeDocker, container: Collector, body: bytes) -> None:
    """A container that cannot be read is shown as listed; the others are shown in full, and people are told."""
    healthy.bodies[f"/containers/{ids(HEALTHY)['immich_redis']}/json"] = body
    known, remarks = remarked(container)
    assert len(remarks) == 1
    assert values(known, "container_found")["redis",] == 1
    assert values(known, "container_state")["redis", "immich_redis", "running"] == 1
    assert {labels[1] for labels in values(known, "container_restarts_total")} == set(IMMICH) - {"immich_redis"}


def test_one_container_hangs(healthy: FakeDocker, container: Collector) -> None:
    """A container whose inspection hangs costs a second and does not hide the others."""
    release = hang(healthy, f"/containers/{ids(HEALTHY)['immich_postgres']}/json")
    known, remarks = remarked(container, 4.0)
    release.set()
    assert len(remarks) == 1
    assert {labels[1] for labels in values(known, "container_restarts_total")} == set(IMMICH) - {"immich_postgres"}
    assert values(known, "container_found")["database",] == 1


def test_vanished_between_list_and_inspection(tmp_path: Path) -> None:
    """A container that is removed between the list and its inspection is simply not there."""
    folder = copied(HEALTHY, tmp_path)
    (folder / f"{ids(folder)['immich_redis']}.json").unlink()
    with FakeDocker(folder) as fake:
        collector = opened(ContainerCollector, settings(fake.host))
        samples = collected(collector)
        collector.close()
    assert values(samples, "container_found")["redis",] == 0
    assert not [labels for labels in values(samples, "container_state") if labels[0] == "redis"]


def test_nothing_there(tmp_path: Path) -> None:
    """On an engine without containers the expected components are missing, and their counters stand at 0."""
    (tmp_path / "containers.json").write_text("[]", encoding="utf-8")
    with FakeDocker(tmp_path) as fake:
        collector = opened(ContainerCollector, settings(fake.host))
        samples = collected(collector)
        collector.close()
    expected = {("server",), ("machine_learning",), ("database",), ("redis",)}
    assert values(samples, "container_found") == dict.fromkeys(expected, 0)
    assert values(samples, "container_oom_events_total") == dict.fromkeys(expected, 0)
    assert len(values(samples, "container_exits_total")) == 4 * 7


def test_enormous_list(tmp_path: Path) -> None:
    """Five thousand containers of others cost no request more, and only Immich's are inspected."""
    folder = copied(HEALTHY, tmp_path)
    listed = json.loads((folder / "containers.json").read_text(encoding="utf-8"))
    stranger = next(each for each in listed if each["Names"] == ["/nextcloud-db"])
    listed += [{**stranger, "Id": f"{n:064x}", "Names": [f"/stranger-{n}"]} for n in range(5000)]
    (folder / "containers.json").write_text(json.dumps(listed), encoding="utf-8")
    with FakeDocker(folder) as fake:
        collector = opened(ContainerCollector, settings(fake.host))
        collected(collector)
        fake.requests.clear()
        samples = collected(collector)
        collector.close()
        mine = {f"/containers/{ids(HEALTHY)[name]}/json" for name in IMMICH}
        assert sorted(fake.paths) == sorted(["/containers/json", *mine])
    assert {labels[1] for labels in values(samples, "container_restarts_total")} == set(IMMICH)


def test_image_ids_are_looked_up_once() -> None:
    """A container that is listed by image id alone is inspected to learn the image, and never again for that."""
    case = golden.ROOT / "container" / "without-compose"
    with FakeDocker(case) as fake:
        collector = opened(ContainerCollector, settings(fake.host))
        assert ("server", "photos-a") in values(collected(collector), "container_restarts_total")
        fake.requests.clear()
        collected(collector)
        collector.close()
        assert len(fake.paths) == len(set(fake.paths)) == 4
        assert f"/containers/{ids(case)['blog-db']}/json" not in fake.paths


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_nothing_leaks(healthy: FakeDocker, container: Collector) -> None:
    """Fifty runs, good and bad in turn, leave no descriptor and no thread behind."""
    collected(container)
    threads, descriptors = threading.active_count(), open_descriptors()
    for turn in range(50):
        healthy.bodies = {} if turn % 2 else {"/containers/json": b"nonsense"}
        if turn % 2:
            collected(container)
        else:
            failure_of(container, Unavailable)
    assert threading.active_count() <= threads
    assert open_descriptors() <= descriptors


# The event stream.


def event(action: str, container: str, nanoseconds: int, name: str = "", image: str = "", **attributes: str) -> bytes:
    """A line as the engine writes it."""
    actor = {"ID": container, "Attributes": {"name": name, "image": image, **attributes}}
    return json.dumps({"Type": "container", "Action": action, "Actor": actor, "timeNano": nanoseconds}).encode() + b"\n"


class Follower:
    """A collector whose event stream is followed in a thread, as the runner does."""

    def __init__(self, fake: FakeDocker, quiet: float) -> None:
        config = settings(fake.host).docker
        self.collector = ContainerCollector(lambda: Docker(fake.host, config), config, quiet=quiet)
        self._stop = threading.Event()
        self.failure: CollectorFailure | None = None
        self._ended = threading.Thread(target=self._follow, daemon=True)
        self._ended.start()
        assert fake.streams_started.acquire(timeout=10)

    def _follow(self) -> None:
        try:
            self.collector.follow(self._stop.is_set)
        except CollectorFailure as failure:
            self.failure = failure

    def counted(self, name: str = "container_exits_total") -> dict[tuple[str, ...], float]:
        """The series of a counter that are not 0."""
        return {labels: value for labels, value in values(collected(self.collector), name).items() if value}

    def until(self, expected: dict[tuple[str, ...], float], name: str = "container_exits_total") -> None:
        """Wait until these, and no other, series of a counter are not 0."""
        deadline = Deadline.after(10)
        while (found := self.counted(name)) != expected:
            assert deadline.remaining() > 0, found

    def join(self) -> None:
        self._ended.join(10)
        assert not self._ended.is_alive()

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def following(fake: FakeDocker, quiet: float = 10.0) -> Iterator[Follower]:
    follower = Follower(fake, quiet)
    yield follower
    follower.stop()
    fake.drop_streams()
    follower.join()
    follower.collector.close()


def test_events_are_counted(healthy: FakeDocker) -> None:
    """Exits are counted by component and code, OOM kills by component; those of strangers are not."""
    known = ids(HEALTHY)
    with following(healthy) as follower:
        healthy.say(event("die", known["nextcloud-db"], 1, "nextcloud-db", "mariadb:11", exitCode="1"))
        healthy.say(event("oom", known["immich_machine_learning"], 2))
        healthy.say(event("die", known["immich_machine_learning"], 3, exitCode="137"))
        healthy.say(event("die", known["immich_machine_learning"], 4, exitCode="137"))
        healthy.say(event("start", known["immich_redis"], 5) + event("die", known["immich_redis"], 6, exitCode="77"))
        follower.until({("machine_learning", "137"): 2, ("redis", "77"): 1})
        assert follower.counted("container_oom_events_total") == {("machine_learning",): 1}
        assert values(collected(follower.collector), "container_event_stream_up") == {(): 1}


def test_event_without_code(healthy: FakeDocker) -> None:
    """An exit whose code is missing or no number is counted under a code of its own, not as a new label."""
    with following(healthy) as follower:
        server = ids(HEALTHY)["immich_server"]
        healthy.say(event("die", server, 1) + event("die", server, 2, exitCode="x" * 50))
        follower.until({("server", "unknown"): 2})


def test_events_of_newcomers(healthy: FakeDocker) -> None:
    """A container that no scrape has seen is told by its labels; so is one re-created under an old name."""
    compose = {"com.docker.compose.project": "immich", "com.docker.compose.service": "redis"}
    with following(healthy) as follower:
        healthy.say(event("die", "f" * 64, 1, "immich_redis", "valkey/valkey:9", exitCode="1", **compose))
        healthy.say(event("die", "e" * 64, 2, "x", "ghcr.io/immich-app/immich-server:v3", exitCode="1"))
        healthy.say(event("die", "d" * 64, 3, "paperless-redis", "redis:7", exitCode="1"))
        one_off = {**compose, "com.docker.compose.oneoff": "True"}
        healthy.say(event("die", "c" * 64, 4, "immich_redis_run", "valkey/valkey:9", exitCode="1", **one_off))
        healthy.say(event("die", "b" * 64, 5, "y", "ghcr.io/immich-app/immich-server:v3", exitCode="0"))
        follower.until({("redis", "1"): 1, ("server", "1"): 1, ("server", "0"): 1})


def test_event_in_two_pieces(healthy: FakeDocker) -> None:
    """An event that arrives in two pieces, behind an empty line, is read as one."""
    with following(healthy) as follower:
        line = b"\n" + event("die", ids(HEALTHY)["immich_server"], 1, exitCode="1")
        healthy.say(line[:40])
        healthy.say(line[40:])
        follower.until({("server", "1"): 1})


def test_broken_stream(healthy: FakeDocker) -> None:
    """A stream that the engine ends is a failure and shows; following again counts nothing twice and loses nothing."""
    server = ids(HEALTHY)["immich_server"]
    lines = [event("die", server, moment * 10**9, exitCode="1") for moment in (2_000_000_001, 2_000_000_002)]
    with following(healthy) as follower:
        healthy.say(lines[0])
        follower.until({("server", "1"): 1})
        healthy.drop_streams()
        follower.join()
        assert isinstance(follower.failure, Unavailable)
        assert values(collected(follower.collector), "container_event_stream_up") == {(): 0}
        healthy.event_lines = lines
        follower._ended = threading.Thread(target=follower._follow, daemon=True)
        follower._ended.start()
        follower.until({("server", "1"): 2})
        assert healthy.streams_started.acquire(timeout=10)
        since = [path for _, path in healthy.requests if "since=2000000000.000000000" in path]
        assert len(since) == 1


def test_quiet_stream_is_begun_anew(healthy: FakeDocker) -> None:
    """After a quiet time the stream is asked for again from where it was, and nothing is counted twice."""
    server = ids(HEALTHY)["immich_server"]
    with following(healthy, quiet=0.1) as follower:
        healthy.event_lines = [event("die", server, 2 * 10**18, exitCode="1")]
        for _ in range(3):
            assert healthy.streams_started.acquire(timeout=10)
        assert follower.counted() == {("server", "1"): 1}
        assert values(collected(follower.collector), "container_event_stream_up") == {(): 1}
    asked = [path for _, path in healthy.requests if "/events" in path]
    assert "since" not in asked[0]
    assert "since=1999999999.000000000" in asked[-1]


def test_stream_that_is_none(healthy: FakeDocker) -> None:
    """Lines that are not JSON end the stream as unavailable."""
    with following(healthy) as follower:
        healthy.say(b"hello\n")
        follower.join()
        assert isinstance(follower.failure, Unavailable)


def test_events_forbidden(healthy: FakeDocker, container: Collector) -> None:
    """A proxy that forbids the events is named with the path; scrapes go on and show the stream as down."""
    healthy.statuses["/events"] = 403
    with pytest.raises(Unavailable) as caught:
        container.follow(lambda: False)
    assert "/v1.41/events" in caught.value.message
    assert values(collected(container), "container_event_stream_up") == {(): 0}


def test_stop_ends_following(healthy: FakeDocker) -> None:
    """After `stop` the thread that follows a silent stream ends by itself."""
    with following(healthy, quiet=0.1) as follower:
        follower.stop()
        follower.join()
        assert follower.failure is None


# Usage.


def usage(fake: FakeDocker) -> Collector:
    return opened(ContainerUsageCollector, settings(fake.host))


def test_usage_is_asked_at_once() -> None:
    """The engine's waiting time overlaps: all five containers are asked before the first has answered."""
    together = threading.Barrier(5)

    def wait(path: str) -> None:
        if path.endswith("/stats"):
            together.wait(5)

    with FakeDocker(HEALTHY_USAGE) as fake:
        fake.before = wait
        assert len(values(collected(usage(fake)), "container_cpu_seconds_total")) == 5


def test_usage_is_bounded(tmp_path: Path) -> None:
    """However many servers there are, no more than eight are asked at the same time."""
    folder = copied(HEALTHY_USAGE, tmp_path)
    listed = json.loads((folder / "containers.json").read_text(encoding="utf-8"))
    redis = next(each for each in listed if each["Names"] == ["/immich_redis"])
    stats = (folder / f"{redis['Id']}.stats.json").read_text(encoding="utf-8")
    many = [{**redis, "Id": f"{n:064x}", "Names": [f"/redis-{n}"]} for n in range(20)]
    for each in many:
        (folder / f"{each['Id']}.stats.json").write_text(stats, encoding="utf-8")
    (folder / "containers.json").write_text(json.dumps(many), encoding="utf-8")
    nine_at_once = threading.Barrier(9)
    met: list[str] = []

    def watch(path: str) -> None:
        if path.endswith("/stats"):
            with suppress(threading.BrokenBarrierError):
                nine_at_once.wait(1.0)  # a ninth that is asked at the same time as eight others would end this wait
                met.append(path)

    with FakeDocker(folder) as fake:
        fake.before = watch
        assert len(values(collected(usage(fake)), "container_cpu_seconds_total")) == 20
    assert met == []


USAGE_OF_REDIS = f"/containers/{ids(HEALTHY_USAGE)['immich_redis']}/stats"


def test_usage_of_one_is_malformed() -> None:
    """A container whose usage is not JSON does not hide the others."""
    with FakeDocker(HEALTHY_USAGE) as fake:
        fake.bodies[USAGE_OF_REDIS] = b"<html>"
        samples, remarks = remarked(usage(fake))
    assert len(remarks) == 1
    assert {labels[1] for labels in values(samples, "container_cpu_seconds_total")} == set(IMMICH) - {"immich_redis"}


def test_usage_of_one_hangs() -> None:
    """A container whose usage hangs ends at the deadline and does not hide the others."""
    with FakeDocker(HEALTHY_USAGE) as fake:
        release = hang(fake, USAGE_OF_REDIS)
        samples, remarks = remarked(usage(fake), 1.0)
        release.set()
    assert len(remarks) == 1
    assert {labels[1] for labels in values(samples, "container_cpu_seconds_total")} == set(IMMICH) - {"immich_redis"}


@pytest.mark.parametrize("status", [404, 409])
def test_usage_of_one_that_ended(status: int) -> None:
    """A container that ended or vanished in between has no usage, and that is no failure."""
    with FakeDocker(HEALTHY_USAGE) as fake:
        fake.statuses[f"/containers/{ids(HEALTHY_USAGE)['immich_redis']}/stats"] = status
        samples = collected(usage(fake))
    assert {labels[1] for labels in values(samples, "container_cpu_seconds_total")} == set(IMMICH) - {"immich_redis"}


def test_usage_absent_refused_and_forbidden(tmp_path: Path) -> None:
    """Without the engine, or without the right, there is no usage and the reason is told."""
    failure_of(opened(ContainerUsageCollector, settings(f"unix://{tmp_path}/no.sock")), Absent)
    with FakeDocker(HEALTHY_USAGE) as fake:
        fake.statuses["/containers/json"] = 403
        failure_of(usage(fake), Unavailable)


def test_nothing_but_get(healthy: FakeDocker) -> None:
    """Whatever is read, nothing but GET is ever sent, and only to the paths a filtering proxy allows."""
    with following(healthy) as follower:
        collected(follower.collector)
        collected(usage(healthy), 2.0)
    assert {method for method, _ in healthy.requests} == {"GET"}
    assert {path.split("/")[1] for path in healthy.paths} == {"version", "containers", "events"}
