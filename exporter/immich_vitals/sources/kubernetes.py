"""A Kubernetes API as an `Engine`: the pods of one namespace, their ends, their use of memory and CPU, and their logs.

One list of pods answers a scrape. It needs `list` and `watch` on pods, `get` on `pods/log`, and, where there is a
metrics-server, `list` on its pods.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from immich_vitals.collector import Absent, CollectorFailure, Deadline, Remark, Unavailable
from immich_vitals.config import KubernetesConfig
from immich_vitals.settings import OWN
from immich_vitals.sources.docker import ContainerFacts, Event, Listed, Read, UsageFacts, moment_of
from immich_vitals.sources.json_values import dict_of, list_of, text_of
from immich_vitals.sources.kubernetes_pods import End, Pod, PodContainer, at_work, pod_of, quantity

if TYPE_CHECKING:
    from immich_vitals.sources.http_within import Bytes, Stream
    from immich_vitals.sources.kubernetes_http import Connection

WATCH_SECONDS = 300  # then the API ends a watch by itself, and it is begun anew
# More ends of one container that nobody saw are no longer told one by one.
MOST_UNSEEN = 100
_ALIEN = f"look what it is that {OWN}KUBERNETES_API names"


class Kubernetes:
    """One namespace of a cluster. Connects at the first question. May be shared between threads.

    With `runs`, each run of a container is listed as a container of its own: that is what a log is of.
    """

    def __init__(self, config: KubernetesConfig, *, runs: bool = False) -> None:
        self._config = config
        self._runs = runs
        self._connected: Connection | None = None
        self._namespace: str | None = config.namespace
        self._listed: dict[str, PodContainer] = {}
        self._bad: CollectorFailure | None = None
        self._forgotten: frozenset[str] = frozenset()  # runs whose log is no more
        self._cpu: dict[str, tuple[float, float]] = {}
        self._counting = threading.Lock()

    def containers(self, deadline: Deadline) -> list[Listed]:
        """The containers of all pods that are at work, in one request."""
        pods, self._bad, _ = self.pods(deadline)
        found = [each for pod in at_work(pods) for each in pod.containers]
        if self._runs:
            told = {run: each for each in found for run in (each.previous, each.run) if run}
            self._forgotten &= told.keys()
            self._listed = {run: each for run, each in told.items() if run not in self._forgotten}
            return [_as_run(each, run) for run, each in self._listed.items()]
        self._listed = {each.listed.id: each for each in found}
        return [each.listed for each in found]

    def inspect(self, container: str, deadline: Deadline) -> ContainerFacts | None:
        """All about one container of the last list, or None when it is not on it."""
        found = self._listed.get(container)
        return found.facts if found else None

    def inspect_all(self, containers: Iterable[str], deadline: Deadline) -> Read[ContainerFacts]:
        """All about these, as of the last list, and what is wrong with another pod of it."""
        asked = list(containers)
        facts = {each: self._listed[each].facts for each in asked if each in self._listed}
        return Read(facts, frozenset(asked) - facts.keys(), self._bad if facts else None)

    def maps_users(self, deadline: Deadline) -> bool | None:
        """As `own_users` of each says: pods with a user namespace (`hostUsers: false`) have others than the host."""
        return True

    def usage_of_all(self, containers: Iterable[str], deadline: Deadline) -> Read[UsageFacts]:
        """Memory and CPU of these as the metrics-server has them, where there is one and we may ask."""
        from immich_vitals.sources.kubernetes_http import Forbidden, Missing

        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{self.namespace()}/pods"
        try:
            answer = self._connection().get(path, deadline)
        except Missing:
            return _no_usage("this cluster has no metrics-server", "install metrics-server")
        except Forbidden as failure:
            return _no_usage(failure.message, failure.mend)
        told = {}
        for pod in map(dict_of, _items(answer, "PodMetricsList")):
            name, moment = text_of(dict_of(pod.get("metadata")).get("name")), moment_of(pod.get("timestamp"))
            for each in map(dict_of, list_of(pod.get("containers"))):
                told[name, text_of(each.get("name"))] = (dict_of(each.get("usage")), moment)
        asked = [self._listed[each] for each in containers if each in self._listed]
        usages = {each.listed.id: told[each.pod, each.name] for each in asked if (each.pod, each.name) in told}
        return Read({each: self._usage(each, *usage) for each, usage in usages.items()}, frozenset(), None)

    def ends(self, quiet: float, clock_time: Callable[[], float]) -> "Ends":
        return Ends(self, quiet)

    def logs(
        self, container: str, deadline: Deadline, *, since: str | None = None, tail: int | None, follow: bool = True
    ) -> "Bytes | None":
        """The log of one run of a container, as Docker's API has it without frames; None when it is forgotten."""
        known = self._listed.get(container)
        previous = known is not None and known.run != container
        while known is not None:
            answer = self._log(known, deadline, previous, since, tail, follow)
            if answer is None:
                break
            # The API has a log of the present run and one of the run before it, whichever they are by now.
            try:
                now = self._now(known, deadline)
            except CollectorFailure:
                answer.close()
                raise
            if now is not None and container == (now.previous if previous else now.run):
                return answer
            answer.close()
            turned = now is not None and not previous and container == now.previous
            known, previous = (now if turned else None), True
        if previous:
            self._forgotten |= {container}
        return None

    def pods(
        self, deadline: Deadline, params: dict[str, str] | None = None
    ) -> tuple[list[Pod], CollectorFailure | None, str]:
        """All pods, the failure of the first that cannot be read, and the version of the list."""
        from immich_vitals.sources.kubernetes_http import Missing

        try:
            answer = self._connection().get(self._path, deadline, params)
        except Missing:
            raise Unavailable(f"there are no pods to ask for at {self._config.api}", mend=_ALIEN) from None
        pods, bad = [], None
        for item in _items(answer, "PodList"):
            try:
                pods.append(pod_of(item, deadline.clock.time()))
            except Unavailable as failure:
                bad = bad or failure
        if bad is not None and not pods:
            raise bad
        return pods, bad, text_of(dict_of(dict_of(answer).get("metadata")).get("resourceVersion"))

    def watch(self, version: str, deadline: Deadline, quiet: float) -> "Stream":
        """What changes about the pods from a version on. Raises `Gone` when that is too old."""
        params = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        params |= {"timeoutSeconds": str(WATCH_SECONDS)}
        return self._connection().stream(self._path, params, deadline, quiet)

    def namespace(self) -> str:
        """The one to look at: as set, else the pod's own."""
        if self._namespace is None:
            file = self._config.account / "namespace"
            try:
                self._namespace = file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeError):
                raise Absent(
                    f"which namespace Immich is in is not known: {file} cannot be read",
                    mend=f"set {OWN}KUBERNETES_NAMESPACE, or let the pod have the token of its service account"
                    " (automountServiceAccountToken: true)",
                ) from None
        return self._namespace

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace()}/pods"

    def _log(
        self, known: PodContainer, deadline: Deadline, previous: bool, since: str | None, tail: int | None, follow: bool
    ) -> "Bytes | None":
        from immich_vitals.sources.kubernetes_http import Missing, NotYet

        params = {"container": known.name, "timestamps": "true"}
        params |= {"previous": "true"} if previous else {"follow": "true"} if follow else {}
        params |= {} if tail is None else {"tailLines": str(tail)}
        if since is not None:
            whole = datetime.fromtimestamp(int(since.partition(".")[0]), UTC)
            params["sinceTime"] = whole.strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            return self._connection().bytes_of(f"{self._path}/{known.pod}/log", params, deadline)
        except (Missing, NotYet):
            return None

    def _now(self, known: PodContainer, deadline: Deadline) -> PodContainer | None:
        pods, _, _ = self.pods(deadline, {"fieldSelector": f"metadata.name={known.pod}"})
        return next((each for pod in pods for each in pod.containers if each.listed.id == known.listed.id), None)

    def _usage(self, container: str, usage: dict[str, object], moment: float | None) -> UsageFacts:
        """The API tells how much CPU is used just now; we add it up, from one of its readings to the next."""
        cores = quantity(usage.get("cpu"))
        if cores is None or moment is None:
            return UsageFacts(quantity(usage.get("memory")), None)
        with self._counting:
            before, seconds = self._cpu.get(container, (moment, 0.0))
            seconds += cores * max(0.0, moment - before)
            self._cpu[container] = (max(moment, before), seconds)
            self._cpu = {each: value for each, value in self._cpu.items() if each in self._listed}
        return UsageFacts(quantity(usage.get("memory")), seconds)

    def _connection(self) -> "Connection":
        if self._connected is None:
            from immich_vitals.sources.kubernetes_http import Connection

            self._connected = Connection(self._config.api, self._config.account)
        return self._connected


class Ends:
    """Ends and OOM kills of containers, each once, from what a watch tells of their pods.

    A pod tells of the last two runs of each of its containers and how many there were: what a watch that broke has
    missed is counted all the same, at worst without its exit code. Those before the first look do not count.
    `connected` is true while the watch stands. Not to be shared between threads.
    """

    def __init__(self, kubernetes: Kubernetes, quiet: float) -> None:
        self._kubernetes = kubernetes
        self._quiet = quiet
        self._known: dict[str, tuple[int, frozenset[str]]] | None = None
        self.connected = False

    def new(self, stop: Callable[[], bool], connect_seconds: float = 10.0) -> Generator[Event, None, None]:
        """Events as they come, until `stop()`. Raises `Absent`, `Unavailable` or `TimedOut` when the API is away."""
        from immich_vitals.sources.kubernetes_http import Gone, Missing

        try:
            version = ""
            while not stop():
                if not version:
                    pods, _, version = self._kubernetes.pods(Deadline.after(connect_seconds))
                    yield from self._all(pods)
                try:
                    with self._kubernetes.watch(version, Deadline.after(connect_seconds), self._quiet) as stream:
                        self.connected = True
                        version = yield from self._changes(stream, version, stop)
                except Gone:
                    version = ""
                except Missing:
                    raise Unavailable("this Kubernetes API has no watch on pods", mend=_ALIEN) from None
        finally:
            self.connected = False

    def _all(self, pods: list[Pod]) -> Iterator[Event]:
        if self._known is None:
            self._known = {}
            for pod in pods:
                for _ in self._fresh(pod):
                    pass
            return
        there = {each.listed.id for pod in pods for each in pod.containers}
        self._known = {key: value for key, value in self._known.items() if key in there}
        for pod in pods:
            yield from self._fresh(pod)

    def _changes(self, stream: "Stream", version: str, stop: Callable[[], bool]) -> Generator[Event, None, str]:
        """The version to go on from; empty when the API does not know it any more."""
        for change in stream.objects():
            kind, told = text_of(dict_of(change).get("type")), dict_of(dict_of(change).get("object"))
            if kind == "ERROR":
                if told.get("code") == 410:
                    return ""
                raise Unavailable(
                    f"Kubernetes ended the watch on pods: {' '.join(text_of(told.get('message')).split())[:200]}",
                    mend="look at the API server: `kubectl get --raw /readyz?verbose`",
                )
            version = text_of(dict_of(told.get("metadata")).get("resourceVersion")) or version
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                yield from self._changed(told, gone=kind == "DELETED")
            if stop():
                break
        return version

    def _changed(self, told: dict[str, object], gone: bool) -> Iterator[Event]:
        try:
            pod = pod_of(told, 0.0)
        except Unavailable:
            return  # the scrape says so
        yield from self._fresh(pod)
        if gone and self._known is not None:
            for each in pod.containers:
                self._known.pop(each.listed.id, None)

    def _fresh(self, pod: Pod) -> Iterator[Event]:
        """The ends that this pod tells of and that are not known."""
        known = self._known if self._known is not None else {}
        for each in [] if pod.passing else pod.containers:
            count, runs = known.get(each.listed.id, (0, frozenset()))
            fresh = [end for end in each.ends if end.run not in runs]
            unseen = min(MOST_UNSEEN, max(0, each.ended - count - len(fresh)))
            known[each.listed.id] = max(count, each.ended), frozenset(end.run for end in each.ends) or runs
            for end in [*[End("", "unknown", False, 0.0)] * unseen, *fresh]:
                yield from _events(each, end)


def _events(container: PodContainer, end: End) -> Iterator[Event]:
    about = container.listed
    for action, code in ((("oom", None),) if end.oom else ()) + (("die", end.code),):
        yield Event(action, about.id, about.name, about.image, about.labels, code, int(end.moment * 1e9))


def _as_run(container: PodContainer, run: str) -> Listed:
    about = container.listed
    state = about.state if run == container.run else "exited"
    return Listed(run, about.name, about.image, about.command, state, about.labels)


def _no_usage(why: str, mend: str) -> Read[UsageFacts]:
    hint = Remark(f"memory and CPU of Immich's containers are not known: {why}", mend, optional=True)
    return Read({}, frozenset(), None, hint)


def _items(answer: object, kind: str) -> list[object]:
    found = dict_of(answer)
    if found.get("kind") != kind:
        raise Unavailable(f"an answer of Kubernetes is no {kind}", mend=_ALIEN)
    return list_of(found.get("items"))
