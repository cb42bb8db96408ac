"""The collectors `container` and `container_usage` against a Kubernetes API that misbehaves as told."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from immich_vitals.collectors.version import VersionCollector
from immich_vitals.config import load
from immich_vitals.metrics import Sample
from immich_vitals.sources.docker_components import Matching
from immich_vitals.sources.docker_writers import WritersOfDocker
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.kubernetes import Kubernetes
from support import golden, pods
from support.fake_kubernetes import RIGHTS, TOKEN, FakeKubernetes

Json = dict[str, Any]


def cases(collector: str) -> list[Path]:
    return [case for case in golden.cases(collector) if case.name.startswith("kubernetes-")]


def read(case: Path, name: str) -> Any:
    return json.loads((case / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path, pods.healthy()) as fake:
        yield fake


def opened(kind: type[Collector], fake: FakeKubernetes, **others: str) -> Collector:
    collector = kind.from_config(load({**fake.environment, **others}))
    assert collector is not None
    return collector


def ask(collector: Collector, seconds: float = 10.0) -> tuple[list[Sample], list[str]]:
    """The samples of a run, and what it remarks on."""
    context = Context(Deadline.after(seconds), SystemClock())
    samples = list(collector.collect(context))
    return samples, [remark.message for remark in context.remarks]


def values(samples: Any, name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


def found(fake: FakeKubernetes, **others: str) -> dict[tuple[str, ...], float]:
    collector = opened(ContainerCollector, fake, **others)
    samples, _ = ask(collector)
    collector.close()
    return values(samples, "container_found")


def failure_of(
    fake: FakeKubernetes, kind: type[CollectorFailure] = Unavailable, seconds: float = 5.0, **others: str
) -> CollectorFailure:
    """How a run fails; whatever happens, nothing that it says holds the token."""
    collector = opened(ContainerCollector, fake, **others)
    with pytest.raises(kind) as caught:
        ask(collector, seconds)
    collector.close()
    assert "hunter2" not in caught.value.message + caught.value.mend
    assert values(caught.value.known, "container_event_stream_up") == {(): 0}
    return caught.value


@pytest.mark.parametrize("case", cases("container"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool, tmp_path: Path) -> None:
    """What the API tells of pods becomes exactly the expected samples, with no secret among them."""
    with FakeKubernetes(tmp_path, read(case, "pods")) as fake:
        collector = opened(ContainerCollector, fake)
        samples, _ = ask(collector)
        collector.close()
    golden.check(case, collector.metrics, samples, update_golden)
    assert "hunter2" not in (case / "expected.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", cases("container_usage"), ids=lambda path: path.name)
def test_golden_usage(case: Path, update_golden: bool, tmp_path: Path) -> None:
    """What a metrics-server tells becomes exactly the expected samples."""
    with FakeKubernetes(tmp_path, read(case, "pods"), read(case, "metrics")) as fake:
        collector = opened(ContainerUsageCollector, fake)
        samples, _ = ask(collector)
        collector.close()
    golden.check(case, collector.metrics, samples, update_golden)


def test_cases_are_as_written() -> None:
    """The inputs of the golden cases are those that tests/support/pods.py makes: `python -m support.pods`."""
    for name, made in pods.cases().items():
        assert read(golden.ROOT / "container" / f"kubernetes-{name}", "pods") == made


def test_chosen_in_a_cluster(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """In a cluster its API is asked, unless DOCKER_HOST names another engine."""
    assert isinstance(find_engine(load(cluster.environment).docker), Kubernetes)
    chosen = load({**cluster.environment, "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"})
    assert not isinstance(find_engine(chosen.docker), Kubernetes)


def test_from_outside(cluster: FakeKubernetes) -> None:
    """From outside, the address, the account and the namespace are settings."""
    cluster.namespace = "photos"
    account = cluster.environment["IMMICH_VITALS_KUBERNETES_ACCOUNT_PATH"]
    collector = ContainerCollector.from_config(
        load({
            "IMMICH_VITALS_KUBERNETES_API": cluster.api + "/", "IMMICH_VITALS_KUBERNETES_ACCOUNT_PATH": account,
            "IMMICH_VITALS_KUBERNETES_NAMESPACE": "photos",
        })
    )  # fmt: skip
    assert collector is not None
    assert values(ask(collector)[0], "container_found")["server",] == 1
    collector.close()


def test_names_of_your_own(cluster: FakeKubernetes) -> None:
    """A pattern of pod names wins over all labels; a release of Helm leaves all others out."""
    cluster.pods = pods.replaced(
        pods.healthy(),
        pods.pod(
            "photos-pg-1",
            "ghcr.io/cloudnative-pg/postgresql:18",
            {"cnpg.io/cluster": "photos-pg", "app.kubernetes.io/instance": "photos"},
        ),
    )
    cluster.pods = [each for each in cluster.pods if each["metadata"]["name"] != "immich-database-1"]
    assert found(cluster)["database",] == 0
    assert found(cluster, IMMICH_VITALS_CONTAINERS="database=photos-pg-*")["database",] == 1
    assert found(cluster, IMMICH_VITALS_COMPOSE_PROJECT="immich")["server",] == 1
    assert found(cluster, IMMICH_VITALS_COMPOSE_PROJECT="other")["server",] == 0


def test_only_what_is_granted(tmp_path: Path) -> None:
    """Scrapes, usage and the watch need the rights of our Role, each of them, and send nothing but GET."""
    with FakeKubernetes(tmp_path, pods.healthy(), []) as fake:
        with following(fake) as follower:
            ask(follower.collector)
            usage = opened(ContainerUsageCollector, fake)
            ask(usage)
            usage.close()
        assert fake.asked == RIGHTS - {("", "pods/log", "get")}
        assert {method for method, _ in fake.requests} == {"GET"}


def test_one_request(cluster: FakeKubernetes) -> None:
    """A scrape asks once, however many pods there are."""
    collector = opened(ContainerCollector, cluster)
    ask(collector)
    assert len(cluster.requests) == 1
    collector.close()


@pytest.mark.parametrize(("name", "mend"), [("token", "automountServiceAccountToken"), ("namespace", "NAMESPACE")])
def test_absent(cluster: FakeKubernetes, name: str, mend: str) -> None:
    """A pod without the files of its service account says which, and what to set."""
    (cluster.account / name).unlink()
    failure = failure_of(cluster, Absent)
    assert str(cluster.account / name) in failure.message
    assert mend in failure.mend


def test_refused(cluster: FakeKubernetes) -> None:
    """A port that nobody listens on is unavailable."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        failure = failure_of(cluster, KUBERNETES_SERVICE_PORT=str(closed.getsockname()[1]))
    assert "Connection refused" in failure.message
    assert "NetworkPolicy" in failure.mend


def test_token_of_somebody_else(cluster: FakeKubernetes) -> None:
    """A token that is not taken is told, and not shown; the next one is taken at once: it rotates."""
    (cluster.account / "token").write_text("hunter2")
    assert "does not take the token" in failure_of(cluster).message
    (cluster.account / "token").write_text(TOKEN)
    assert found(cluster)["server",] == 1


@pytest.mark.parametrize("text", ["", "hunter2\nX-Other: 1", "hunter2 \0"])
def test_token_that_is_none(cluster: FakeKubernetes, text: str) -> None:
    """What cannot be a token is not sent, nor shown."""
    (cluster.account / "token").write_text(text)
    assert "is no token" in failure_of(cluster).message
    assert not cluster.requests


def test_rotated_while_it_runs(cluster: FakeKubernetes) -> None:
    """The token is read again for each request."""
    collector = opened(ContainerCollector, cluster)
    ask(collector)
    (cluster.account / "token").write_text("old")
    with pytest.raises(Unavailable):
        ask(collector)
    (cluster.account / "token").write_text(TOKEN)
    assert values(ask(collector)[0], "container_found")["server",] == 1
    collector.close()


def test_forbidden(cluster: FakeKubernetes) -> None:
    """A missing right names the RoleBinding, its namespace and the service account that it is for."""
    cluster.rights = set()
    failure = failure_of(cluster)
    assert 'cannot list resource "pods"' in failure.message
    assert "RoleBinding immich-vitals of kubernetes/base/rbac.yaml in namespace immich" in failure.mend
    assert "service account immich-vitals (namespace immich)" in failure.mend


def test_forbidden_elsewhere(cluster: FakeKubernetes) -> None:
    """In another namespace than the granted one it is that one which is named."""
    assert "in namespace photos" in failure_of(cluster, IMMICH_VITALS_KUBERNETES_NAMESPACE="photos").mend


def test_certificate_of_somebody_else(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """An API server that our authority did not sign gets no token."""
    with FakeKubernetes(tmp_path / "other", []) as other:
        (cluster.account / "ca.crt").write_bytes((other.account / "ca.crt").read_bytes())
    failure = failure_of(cluster)
    assert "no TLS" in failure.message
    assert "ca.crt" in failure.mend
    assert not cluster.requests


def test_no_token_without_tls() -> None:
    """Over plain HTTP, as `kubectl proxy` has it, no token is sent, and none is needed."""
    config = load({"IMMICH_VITALS_KUBERNETES_API": "http://127.0.0.1:1", "IMMICH_VITALS_KUBERNETES_NAMESPACE": "x"})
    collector = ContainerCollector.from_config(config)
    assert collector is not None
    with pytest.raises(Unavailable, match="refused"):
        ask(collector)
    collector.close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_server_error(cluster: FakeKubernetes, status: int) -> None:
    """An error of the API server is told by its status, without its words."""
    cluster.statuses["/api"] = status
    assert failure_of(cluster).message.endswith(f"with status {status}")


def test_no_such_api(cluster: FakeKubernetes) -> None:
    """A server that has no pods is none of Kubernetes."""
    cluster.statuses["/api"] = 404
    assert "IMMICH_VITALS_KUBERNETES_API" in failure_of(cluster).mend


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{", b"[]", b'{"kind":"Status"}', b'{"kind":"PodList","items":[1]}', b""]
)
def test_malformed_list(cluster: FakeKubernetes, body: bytes) -> None:
    """A list of pods that is none is unavailable, not a bug."""
    cluster.bodies["/api/v1/namespaces/immich/pods"] = body
    failure_of(cluster)


def test_nothing_there(cluster: FakeKubernetes) -> None:
    """A namespace without pods has none of Immich's parts; `items` may be null then."""
    cluster.bodies["/api/v1/namespaces/immich/pods"] = b'{"kind":"PodList","items":null}'
    assert set(found(cluster).values()) == {0}


def test_slower_than_the_deadline(cluster: FakeKubernetes) -> None:
    """A list that does not come ends at the deadline as a time-out; the next run recovers."""
    release = threading.Event()
    cluster.before = lambda path: (release.wait(20), None)[1]
    collector = opened(ContainerCollector, cluster)
    with pytest.raises(TimedOut, match="did not answer GET"):
        ask(collector, 0.3)
    release.set()
    assert values(ask(collector)[0], "container_found")["server",] == 1
    collector.close()


def test_dripping_answer(cluster: FakeKubernetes) -> None:
    """An answer that drips ends at the deadline, although no single read takes long."""
    cluster.dripping.add("/api/v1/namespaces/immich/pods")
    failure_of(cluster, TimedOut, 0.4)


def test_one_bad_item(cluster: FakeKubernetes) -> None:
    """A pod that cannot be read is a remark; the others are as usual."""
    cluster.pods = [*pods.healthy()[:3], {"metadata": {"name": "immich-database-1", "uid": "x"}, "spec": None}]
    samples, remarks = ask(opened(ContainerCollector, cluster))
    assert values(samples, "container_found") == {
        ("server",): 1, ("machine_learning",): 1, ("redis",): 1, ("database",): 0
    }  # fmt: skip
    assert len(remarks) == 1 and "immich-database-1" in remarks[0]


def test_readiness_takes_its_time(cluster: FakeKubernetes) -> None:
    """As long as the probe may still fail before it counts, a container that is not ready is starting."""
    now = SystemClock().time
    for age, health in ((5, "starting"), (60, "unhealthy")):
        started = datetime.fromtimestamp(now() - age, UTC)
        status = pods.running(pods.V, "main", started=started.strftime("%Y-%m-%dT%H:%M:%SZ"))
        cluster.pods = pods.replaced(pods.healthy(), pods.valkey(status={**status, "ready": False}))
        collector = opened(ContainerCollector, cluster)
        assert values(ask(collector)[0], "container_health")["redis", pods.V, health] == 1
        collector.close()


# Ends and OOM kills.


class Follower:
    """A collector whose watch is followed in a thread, as the runner does."""

    def __init__(self, fake: FakeKubernetes, quiet: float) -> None:
        self.fake = fake
        engine: Callable[[], Any] = lambda: find_engine(load(fake.environment).docker)  # noqa: E731
        self.collector = ContainerCollector(engine, load(fake.environment).docker, quiet=quiet)
        self.stopping = threading.Event()
        self.failure: CollectorFailure | None = None
        self.begin()

    def begin(self) -> None:
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        assert self.fake.watches_started.acquire(timeout=10)

    def _follow(self) -> None:
        try:
            self.collector.follow(self.stopping.is_set)
        except CollectorFailure as failure:
            self.failure = failure

    def until(self, expected: dict[tuple[str, ...], float], name: str = "container_exits_total") -> None:
        """Wait until these, and no other, series of a counter are not 0."""
        deadline = Deadline.after(10)
        while True:
            counted = {key: value for key, value in values(ask(self.collector)[0], name).items() if value}
            if counted == expected:
                return
            assert deadline.remaining() > 0, counted


@contextmanager
def following(fake: FakeKubernetes, quiet: float = 10.0) -> Iterator[Follower]:
    follower = Follower(fake, quiet)
    yield follower
    follower.stopping.set()
    fake.drop_watches()
    follower.thread.join(10)
    assert not follower.thread.is_alive()
    follower.collector.close()


def last(run: int, code: int = 1, reason: str = "Error") -> Json:
    return pods.terminated(pods.S, "main", run, code, reason)


def test_each_end_counts_once(cluster: FakeKubernetes) -> None:
    """One end is told three times: when it ends, while it waits, and as the last run of the next; it counts once."""
    with following(cluster) as follower:
        cluster.change("MODIFIED", pods.server(status=pods.ended(pods.S, "main", 0, 137, "OOMKilled")))
        again = last(0, 137, "OOMKilled")
        cluster.change("MODIFIED", pods.server(status=pods.waiting("main", "CrashLoopBackOff", 0, again)))
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 1, last=again)))
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 2, last=last(1, 139))))
        follower.until({("server", "137"): 1, ("server", "139"): 1})
        follower.until({("server",): 1}, "container_oom_events_total")
        assert values(ask(follower.collector)[0], "container_event_stream_up") == {(): 1}


def test_what_was_before_us_does_not_count(cluster: FakeKubernetes) -> None:
    """Restarts from before the exporter started are in the counter of restarts alone."""
    cluster.pods = pods.replaced(pods.healthy(), pods.server(status=pods.running(pods.S, "main", 9, last=last(8))))
    with following(cluster) as follower:
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 10, last=last(9))))
        follower.until({("server", "1"): 1})


def test_newcomers_and_leavers(cluster: FakeKubernetes) -> None:
    """A pod that is made later counts from its beginning, one that is deleted to its end; jobs and strangers do not."""
    with following(cluster) as follower:
        new = "immich-server-7d9c5f6b8-newer"
        cluster.change("ADDED", pods.server("7d9c5f6b8-newer", status=pods.waiting("main", "ContainerCreating")))
        cluster.change("MODIFIED", pods.server("7d9c5f6b8-newer", status=pods.ended(new, "main", 0, 132)))
        gone = {"deletionTimestamp": pods.ENDED}
        cluster.change("MODIFIED", pods.server(metadata=gone, status=pods.ended(pods.S, "main", 0, 0, "Completed")))
        cluster.change("DELETED", pods.server(metadata=gone, status=pods.ended(pods.S, "main", 0, 0, "Completed")))
        for each in (*pods.cases()["jobs"][4:], *pods.cases()["strangers"][4:]):
            own = each["spec"]["containers"][0]["name"]
            each["status"]["containerStatuses"] = [pods.ended(each["metadata"]["name"], own, 0, 77)]
            cluster.change("ADDED", each)
        cluster.change("MODIFIED", pods.valkey(status=pods.ended(pods.V, "main", 0, 143)))
        follower.until({("server", "132"): 1, ("server", "0"): 1, ("redis", "143"): 1})


def test_a_broken_watch_loses_nothing(cluster: FakeKubernetes) -> None:
    """What happened while no watch stood counts, at worst without its code, and nothing counts twice."""
    with following(cluster) as follower:
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 1, last=last(0))))
        follower.until({("server", "1"): 1})
        cluster.pods = pods.replaced(
            cluster.pods, pods.server(status=pods.running(pods.S, "main", 4, last=last(3, 134)))
        )
        cluster.version += 1
        cluster.pods[-1]["metadata"]["resourceVersion"] = str(cluster.version)
        cluster.drop_watches()
        assert cluster.watches_started.acquire(timeout=10)
        follower.until({("server", "1"): 1, ("server", "134"): 1, ("server", "unknown"): 2})
        assert follower.failure is None


def test_too_old_a_version(cluster: FakeKubernetes) -> None:
    """A watch whose version the API has forgotten (410) begins again with a list, and nothing is lost or doubled."""
    with following(cluster) as follower:
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 1, last=last(0))))
        follower.until({("server", "1"): 1})
        cluster.gone_versions.add(str(cluster.version))
        cluster.version += 1
        cluster.pods = pods.replaced(
            cluster.pods, pods.server(status=pods.running(pods.S, "main", 2, last=last(1, 139)))
        )
        cluster.drop_watches()
        assert cluster.watches_started.acquire(timeout=10)
        follower.until({("server", "1"): 1, ("server", "139"): 1})


def test_a_silent_watch_is_begun_anew(cluster: FakeKubernetes) -> None:
    """After a quiet time the pods are watched anew from where it was, without a list: an API that has vanished without
    a word is noticed so."""
    with following(cluster, quiet=0.1) as follower:
        for _ in range(3):
            assert cluster.watches_started.acquire(timeout=10)
        assert follower.failure is None
        listed = [path for _, path in cluster.requests if path.endswith("/pods")]
        assert len(listed) == 2  # who is there, and what they are like before the first watch


def test_watch_that_is_none(cluster: FakeKubernetes) -> None:
    """An error in the watch, or what is no JSON, ends it as unavailable; following again works."""
    with following(cluster) as follower:
        cluster.say({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5000"}}})
        cluster.say({"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}})
        follower.thread.join(10)
        assert isinstance(follower.failure, Unavailable)
        assert "etcd is away" in follower.failure.message
        cluster.drop_watches()
        follower.begin()
        cluster.change("MODIFIED", pods.server(status=pods.running(pods.S, "main", 1, last=last(0))))
        follower.until({("server", "1"): 1})


def test_watch_forbidden(cluster: FakeKubernetes) -> None:
    """Without the right to watch, scrapes go on, and the binding is named."""
    cluster.rights.discard(("", "pods", "watch"))
    collector = opened(ContainerCollector, cluster)
    with pytest.raises(Unavailable) as caught:
        collector.follow(lambda: False)
    assert "RoleBinding" in caught.value.mend
    assert values(ask(collector)[0], "container_event_stream_up") == {(): 0}
    collector.close()


# Usage.


def metrics(name: str, cpu: str, memory: str, moment: str) -> Json:
    return {
        "metadata": {"name": name, "namespace": "immich"}, "timestamp": moment, "window": "15s",
        "containers": [{"name": "main", "usage": {"cpu": cpu, "memory": memory}}],
    }  # fmt: skip


@pytest.mark.parametrize("granted", [False, True], ids=["not granted", "no metrics-server"])
def test_no_usage(tmp_path: Path, granted: bool) -> None:
    """Without a metrics-server, or without the right to ask it, there is no usage, and that is no failure."""
    with FakeKubernetes(tmp_path, pods.healthy(), None if granted else []) as fake:
        fake.rights.discard(("metrics.k8s.io", "pods", "list"))
        collector = opened(ContainerUsageCollector, fake)
        context = Context(Deadline.after(5), SystemClock())
        assert list(collector.collect(context)) == []
        assert [remark.optional for remark in context.remarks] == [True]
        collector.close()


def test_metrics_server_away(tmp_path: Path) -> None:
    """One that is there and does not answer is a failure."""
    with FakeKubernetes(tmp_path, pods.healthy(), []) as fake:
        fake.statuses["/apis/metrics.k8s.io"] = 503
        collector = opened(ContainerUsageCollector, fake)
        with pytest.raises(Unavailable, match="status 503"):
            ask(collector)
        collector.close()


def test_cpu_adds_up(tmp_path: Path) -> None:
    """CPU in use, from one reading of the metrics-server to the next; one that is told again adds nothing."""
    with FakeKubernetes(tmp_path, pods.healthy(), []) as fake:
        collector = opened(ContainerUsageCollector, fake)
        for seconds, total in (("00", 0), ("15", 7.5), ("15", 7.5), ("35", 17.5)):
            fake.metrics = [metrics(pods.S, "500m", "300Mi", f"2026-11-20T20:00:{seconds}Z")]
            samples, _ = ask(collector)
            assert values(samples, "container_cpu_seconds_total") == {("server", pods.S): total}
            assert values(samples, "container_memory_working_set_bytes") == {("server", pods.S): 300 * 2**20}
        collector.close()


def test_tls_has_to_be_verified() -> None:
    """The authority of a cluster may lack what Python 3.13 asks for; all else is asked for."""
    from immich_vitals.sources.kubernetes_http import Connection

    context = Connection("https://127.0.0.1:1", Path("/nonexistent"))._new_pool().conn_kw["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


# Who else asks.


def test_versions(cluster: FakeKubernetes) -> None:
    """During a rollout two servers of different versions run, and that is told."""
    cluster.pods.append(pods.server("58d6f7c9b-newer"))
    cluster.pods[-1]["spec"]["containers"][0]["image"] = "ghcr.io/immich-app/immich-server:v2.7.0"
    collector = VersionCollector.from_config(load(cluster.environment))
    assert collector is not None
    samples, remarks = ask(collector)
    assert values(samples, "version_info") == {
        ("server", "2.6.3"): 1, ("server", "2.7.0"): 1, ("machine_learning", "2.6.3"): 1
    }  # fmt: skip
    assert values(samples, "version_skew") == {(): 1}
    assert not remarks
    collector.close()


def test_writers(cluster: FakeKubernetes) -> None:
    """Whom Immich writes as is known from the pod, without a further right."""
    cluster.pods = [pods.server(pod={"securityContext": {"runAsUser": 1000, "fsGroup": 1000}})]
    config = load(cluster.environment).docker
    engine = find_engine(config)
    assert engine is not None
    found = WritersOfDocker(engine, Matching.of(config)).read(Deadline.after(5))
    engine.close()
    assert [(each.user.uid, each.user.groups) for each in found.found if each.user] == [(1000, {1000})]
    assert not found.problem
    assert cluster.asked == {("", "pods", "list")}
