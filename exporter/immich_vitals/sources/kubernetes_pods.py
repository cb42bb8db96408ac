"""What the pods of one namespace say of Immich, in the words that are used of Docker's containers.

Names that are looked for, beside images: the labels of the official Helm chart and of the bjw-s library below it
(`app.kubernetes.io/name`, `instance`, `controller`, before version 4 `component`), those of CloudNativePG
(`cnpg.io/cluster`), plain `app`, and the containers' own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from immich_vitals.collector import Unavailable
from immich_vitals.sources.docker import READ_ENV, ContainerFacts, Listed, Mount, moment_of, root_overrides
from immich_vitals.sources.docker_components import is_word
from immich_vitals.sources.docker_immich import NEW_LOCATION, OLD_LOCATION
from immich_vitals.sources.json_values import dict_of, list_of, text_of, texts_of, whole_of

_NAMES = "app.kubernetes.io/"
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
# What a container waits for that comes by itself; all else that it waits for is a fault.
_COMING = ("", "ContainerCreating", "PodInitializing")
_LOOP = "CrashLoopBackOff"
# Lost when the pod is: Docker's tmpfs is what comes closest.
_PASSING = ("emptyDir", "ephemeral")
_POLICIES = {"Always": "always", "OnFailure": "on-failure"}
_SCALES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3} | {
    prefix + end: float(base**power)
    for power, prefix in enumerate("KMGTPE", 1)
    for end, base in (("i", 1024), ("", 1000))
    if prefix + end != "K"
}


@dataclass(frozen=True, slots=True)
class End:
    """One run of a container that ended. `run` tells runs apart; `code` is "unknown" when the kubelet lost sight."""

    run: str
    code: str
    oom: bool
    moment: float


@dataclass(frozen=True, slots=True)
class PodContainer:
    """A container in a pod. `ends` are those of its last runs that are still told, the older one first, `ended` is how
    many there have been. `run` is the run that its log is of, `previous` the one before; empty for none."""

    listed: Listed
    facts: ContainerFacts
    pod: str
    name: str
    ends: tuple[End, ...]
    ended: int
    run: str
    previous: str


@dataclass(frozen=True, slots=True)
class Pod:
    """`group` is what made it (a Deployment, say); `over`: it will not run again; `going`: it is being deleted."""

    name: str
    uid: str
    group: str
    over: bool
    going: bool
    passing: bool
    containers: tuple[PodContainer, ...]


def at_work(pods: Iterable[Pod]) -> list[Pod]:
    """Without those of jobs, those that are done, and those that another of the same group has replaced."""
    pods = [pod for pod in pods if not pod.passing]
    alive = {pod.group for pod in pods if not pod.over and not pod.going}
    return [pod for pod in pods if not ((pod.over or pod.going) and pod.group in alive)]


def pod_of(raw: object, now: float) -> Pod:
    """The pod in an item of a PodList. Raises `Unavailable` when it is none."""
    answer = dict_of(raw)
    meta, spec, status = (dict_of(answer.get(key)) for key in ("metadata", "spec", "status"))
    name, uid = text_of(meta.get("name")), text_of(meta.get("uid"))
    specs = [each for each in map(dict_of, list_of(spec.get("containers"))) if text_of(each.get("name"))]
    if not name or not uid or not specs:
        raise Unavailable(
            f"Kubernetes described the pod {name or '(without a name)'} without its name, uid or containers",
            mend="look at it with `kubectl get pods -o yaml`",
        )
    labels = texts_of(meta.get("labels"))
    owner = next((each for each in map(dict_of, list_of(meta.get("ownerReferences"))) if each.get("controller")), {})
    phase = text_of(status.get("phase"))
    statuses = {text_of(each.get("name")): each for each in map(dict_of, list_of(status.get("containerStatuses")))}
    look = _Look(name, uid, labels, text_of(meta.get("namespace")), spec, status, "deletionTimestamp" in meta, now)
    main = _main(specs, labels, texts_of(meta.get("annotations")).get(_DEFAULT_CONTAINER))
    return Pod(
        name,
        uid,
        _group(name, labels, owner),
        over=phase in ("Failed", "Succeeded"),
        going="deletionTimestamp" in meta,
        passing=phase == "Succeeded" or text_of(owner.get("kind")) == "Job",
        containers=tuple(
            _container(look, each, statuses.get(text_of(each.get("name")), {}), each is main) for each in specs
        ),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """A pod, while its containers are looked at."""

    name: str
    uid: str
    labels: Mapping[str, str]
    namespace: str
    spec: Mapping[str, object]
    status: Mapping[str, object]
    going: bool
    now: float


def _container(pod: _Look, spec: Mapping[str, object], status: Mapping[str, object], main: bool) -> PodContainer:
    own = text_of(spec.get("name"))
    name = pod.name if main else f"{pod.name}/{own}"
    image = text_of(spec.get("image"))
    state, failed = _state(pod, status)
    command = " ".join(text_of(each) for key in ("command", "args") for each in list_of(spec.get(key)))
    labels = {
        "com.docker.compose.project": _project(pod.labels, pod.namespace),
        "com.docker.compose.service": _word(pod.labels, own) if main else own,
    }
    last = dict_of(dict_of(status.get("lastState")).get("terminated"))
    running, terminated = (dict_of(dict_of(status.get("state")).get(key)) for key in ("running", "terminated"))
    ended = terminated or ({} if running else last)
    policy = text_of(pod.spec.get("restartPolicy")) or "Always"
    code = _code(ended)
    run = _run(status) if running else _run(ended)
    restarts = whole_of(status.get("restartCount")) or 0
    return PodContainer(
        Listed(f"{pod.uid}/{own}", name, image, command, state, labels),
        ContainerFacts(
            name=name,
            image=image,
            state=state,
            health=_health(pod, spec, status),
            restarts=restarts,
            started=moment_of((running or ended).get("startedAt")),
            finished=moment_of((terminated or last).get("finishedAt")),
            exit_code=int(code) if code != "unknown" else None,
            oom_killed=text_of(ended.get("reason")) == "OOMKilled",
            start_failed=failed,
            restart_policy=_POLICIES.get(policy, "no"),
            memory_limit=_memory_limit(spec, status),
            shm_size=_shm_size(pod.spec, spec),
            mounts=_mounts(pod.spec, spec),
            env=_env(spec.get("env")),
            labels={},
            user=_user(pod.spec, spec),
            groups=_groups(pod.spec),
            root_overrides=root_overrides(_host_config(spec)),
            own_users=pod.spec.get("hostUsers") is not False,
        ),
        pod=pod.name,
        name=own,
        ends=tuple(_end(each) for each in (last, terminated) if each),
        ended=restarts + bool(ended),
        run=run,
        previous=_run(last) if _run(last) != run else "",
    )


def _state(pod: _Look, status: Mapping[str, object]) -> tuple[str, bool]:
    """The state in Docker's words, and whether the container cannot be started."""
    state = dict_of(status.get("state"))
    reason = text_of(dict_of(state.get("waiting")).get("reason"))
    over = text_of(pod.status.get("phase")) in ("Failed", "Succeeded")
    if pod.going:
        return "removing", False
    if state.get("running"):
        return "running", False
    if over:
        return "exited", not state.get("terminated")  # evicted before it began
    if terminated := dict_of(state.get("terminated")):
        # With a policy that starts it again, it is only between two runs.
        again = {"Always": True, "OnFailure": terminated.get("exitCode") != 0}
        return ("restarting" if again.get(text_of(pod.spec.get("restartPolicy")) or "Always") else "exited"), False
    if reason == _LOOP:
        last = text_of(dict_of(dict_of(status.get("lastState")).get("terminated")).get("reason"))
        return "restarting", last in ("StartError", "ContainerCannotRun")
    if reason in _COMING:
        return "created", _held_up(pod.status)
    return "created", True


def _held_up(status: Mapping[str, object]) -> bool:
    """Whether a pod waits for what does not come by itself: a place on a node, or an init container that fails."""
    for condition in map(dict_of, list_of(status.get("conditions"))):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return True
    waits = (
        text_of(dict_of(dict_of(each.get("state")).get("waiting")).get("reason"))
        for each in map(dict_of, list_of(status.get("initContainerStatuses")))
    )
    return any(reason not in _COMING for reason in waits)


def _health(pod: _Look, spec: Mapping[str, object], status: Mapping[str, object]) -> str:
    """What the readiness probe says; none without one, and while nothing runs."""
    probe = dict_of(spec.get("readinessProbe"))
    running = dict_of(dict_of(status.get("state")).get("running"))
    if not probe or not running:
        return "none"
    if status.get("ready") is True:
        return "healthy"
    if status.get("started") is False:
        return "starting"
    period, failures = whole_of(probe.get("periodSeconds")) or 10, whole_of(probe.get("failureThreshold")) or 3
    patience = (whole_of(probe.get("initialDelaySeconds")) or 0) + period * failures
    began = moment_of(running.get("startedAt"))
    return "starting" if began is not None and 0 <= pod.now - began < patience else "unhealthy"


def _end(raw: Mapping[str, object]) -> End:
    moment = moment_of(raw.get("finishedAt")) or 0.0
    return End(_run(raw) or f"ended {moment}", _code(raw), raw.get("reason") == "OOMKilled", moment)


def _code(raw: Mapping[str, object]) -> str:
    code = whole_of(raw.get("exitCode"))
    known = code is not None and 0 <= code <= 255 and raw.get("reason") != "ContainerStatusUnknown"
    return str(code) if known else "unknown"


def _run(raw: Mapping[str, object]) -> str:
    """The runtime's id of one run: `4d5e...` of `containerd://4d5e...`."""
    return text_of(raw.get("containerID")).rpartition("://")[2]


def _memory_limit(spec: Mapping[str, object], status: Mapping[str, object]) -> int | None:
    """As it is in force, where that is told: it can be changed in place."""
    found = (dict_of(dict_of(each.get("resources")).get("limits")).get("memory") for each in (status, spec))
    limits = (quantity(each) for each in found if each is not None)
    return next((int(limit) for limit in limits if limit), None)


def quantity(raw: object) -> float | None:
    """`512Mi`, `1.5G`, `250m`, `1e9` or a plain number; None when it is none."""
    text = str(raw) if isinstance(raw, str | int | float) else ""
    found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,3})|([KMGTPE]i|[numkMGTPE])?)", text)
    if not found:
        return None
    return float(found[1] + found[2]) if found[2] else float(found[1]) * _SCALES[found[3] or ""]


def _volumes(pod: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {text_of(each.get("name")): each for each in map(dict_of, list_of(pod.get("volumes")))}


def _shm_size(pod: Mapping[str, object], spec: Mapping[str, object]) -> int | None:
    """Of a volume in memory at /dev/shm. Without one the runtime decides, and does not tell."""
    volumes = _volumes(pod)
    for mount in map(dict_of, list_of(spec.get("volumeMounts"))):
        volume = dict_of(volumes.get(text_of(mount.get("name")), {}).get("emptyDir"))
        if mount.get("mountPath") == "/dev/shm" and volume.get("medium") == "Memory":
            size = quantity(volume.get("sizeLimit"))
            return int(size) if size else None
    return None


def _mounts(pod: Mapping[str, object], spec: Mapping[str, object]) -> tuple[Mount, ...] | None:
    """None where they say nothing: the media location may be in a ConfigMap or Secret, and none of the usual ones is
    mounted."""
    volumes = _volumes(pod)
    mounted = map(dict_of, list_of(spec.get("volumeMounts")))
    mounts = tuple(_mount(volumes.get(text_of(each.get("name")), {}), each) for each in mounted)
    usual = {str(NEW_LOCATION), str(OLD_LOCATION)}
    hidden = _hides(spec, "IMMICH_MEDIA_LOCATION") and not any(mount.target in usual for mount in mounts)
    return None if hidden else mounts


def _hides(spec: Mapping[str, object], name: str) -> bool:
    """Whether a variable may be set to what a pod's description does not tell."""
    told = [each for each in map(dict_of, list_of(spec.get("env"))) if each.get("name") == name]
    return "valueFrom" in told[-1] if told else bool(list_of(spec.get("envFrom")))


def _mount(volume: Mapping[str, object], mount: Mapping[str, object]) -> Mount:
    target, writable = text_of(mount.get("mountPath")), mount.get("readOnly") is not True
    if any(key in volume for key in _PASSING):
        return Mount("tmpfs", "", target, writable=writable)
    if "hostPath" in volume:
        path = text_of(dict_of(volume["hostPath"]).get("path")).rstrip("/")
        below = text_of(mount.get("subPath"))
        return Mount("bind", "", target, f"{path}/{below}" if below else path, writable)
    claim = text_of(dict_of(volume.get("persistentVolumeClaim")).get("claimName"))
    return Mount("volume", claim or text_of(volume.get("name")), target, writable=writable)


def _env(raw: object) -> dict[str, str]:
    """The few variables that are read; one whose value is elsewhere (`valueFrom`) is not."""
    pairs = ((text_of(each.get("name")), text_of(each.get("value"))) for each in map(dict_of, list_of(raw)))
    return {name: value for name, value in pairs if name in READ_ENV and value}


def _user(pod: Mapping[str, object], spec: Mapping[str, object]) -> str:
    """`uid:gid` as far as it is set; what is not set is as in the image."""
    contexts = [dict_of(each.get("securityContext")) for each in (spec, pod)]
    uid, gid = (
        next((number for each in contexts if (number := whole_of(each.get(key))) is not None), None)
        for key in ("runAsUser", "runAsGroup")
    )
    if uid is None and gid is None:
        return ""
    return f"{uid or 0}" if gid is None else f"{uid or 0}:{gid}"


def _groups(pod: Mapping[str, object]) -> tuple[str, ...]:
    context = dict_of(pod.get("securityContext"))
    found = (whole_of(each) for each in (*list_of(context.get("supplementalGroups")), context.get("fsGroup")))
    return tuple(str(each) for each in found if each is not None)


def _host_config(spec: Mapping[str, object]) -> dict[str, object]:
    """The capabilities, in Docker's words."""
    context = dict_of(spec.get("securityContext"))
    capabilities = dict_of(context.get("capabilities"))
    return {
        "Privileged": context.get("privileged"),
        "CapAdd": capabilities.get("add"),
        "CapDrop": capabilities.get("drop"),
    }


def _word(labels: Mapping[str, str], container: str) -> str:
    """The word that tells what the main container of a pod is, as the service of a compose project would be named."""
    cluster = _cluster(labels)
    if cluster:
        return "immich-database" if "immich" in cluster else cluster
    told = [labels.get(_NAMES + key, "") for key in ("controller", "component", "name")]
    told = [word for word in (*told, labels.get("app", ""), container) if word]
    instance = labels.get(_NAMES + "instance", "")
    for word in told:
        full = word if word.startswith("immich") or "immich" not in instance else f"immich-{word}"
        if is_word(full):
            return full
    return told[0]


def _project(labels: Mapping[str, str], namespace: str) -> str:
    """What belongs together: a release of Helm, else all in the namespace."""
    instance = labels.get(_NAMES + "instance", "")
    cluster = _cluster(labels)
    if cluster and instance == cluster:
        instance = ""  # CloudNativePG gives each of its clusters this name
    return instance or labels.get(_NAMES + "part-of", "") or namespace


def _cluster(labels: Mapping[str, str]) -> str:
    """The cluster of CloudNativePG that this pod is a Postgres of; not its pool of connections."""
    return "" if "cnpg.io/poolerName" in labels else labels.get("cnpg.io/cluster", "")


def _main(specs: Sequence[dict[str, object]], labels: Mapping[str, str], chosen: str | None) -> dict[str, object]:
    """The container that the labels of a pod speak of; others in it are beside it."""
    words = {labels.get(_NAMES + key) for key in ("controller", "component", "name")} | {labels.get("app")}
    wanted = ({chosen}, {"postgres"} if _cluster(labels) else set(), words, {"main", "app"})
    return next((each for names in wanted for each in specs if each.get("name") in names), specs[0])


def _group(name: str, labels: Mapping[str, str], owner: Mapping[str, object]) -> str:
    """What makes the pod, over all its versions: a ReplicaSet is one version of a Deployment."""
    made_by = text_of(owner.get("name"))
    if text_of(owner.get("kind")) == "ReplicaSet":
        made_by = made_by.removesuffix("-" + labels.get("pod-template-hash", "-"))
    return f"{text_of(owner.get('kind'))}/{made_by}" if made_by else f"Pod/{name}"
