"""What a Docker or Podman API says about containers, as plain facts. Every answer is read-only and has a deadline."""

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from immich_vitals.collector import CollectorFailure, Deadline, Remark, TimedOut, Unavailable
from immich_vitals.config import DockerConfig
from immich_vitals.flight import Flight
from immich_vitals.sources.json_values import dict_of, text_of, texts_of, whole_of

if TYPE_CHECKING:
    from immich_vitals.sources.docker_http import Connection
    from immich_vitals.sources.http_within import Bytes, Stream

STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTHS = ("starting", "healthy", "unhealthy", "none")
# Podman's own words for some of them.
_STATE_OF = {"configured": "created", "initialized": "created", "stopped": "exited", "stopping": "running"}
# The only variables that are read out of a container; all others may be secrets.
READ_ENV = (
    "IMMICH_MEDIA_LOCATION", "IMMICH_WORKERS_INCLUDE", "IMMICH_WORKERS_EXCLUDE", "IMMICH_SOURCE_REF",
    "PG_VERSION", "VALKEY_VERSION", "REDIS_VERSION", "NGINX_VERSION", "PUID", "PGID",
)  # fmt: skip
# One container whose daemon-side lock is stuck must not use up the time of the others.
ONE_CONTAINER_SECONDS = 1.0
STATS_SECONDS = 4.0
STATS_AT_ONCE = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as the list of all containers shows it. `image` may be a bare id, once its tag has moved on."""

    id: str
    name: str
    image: str
    command: str
    state: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mount:
    """Something mounted into a container. `kind` is Docker's type (bind, volume, tmpfs, ...); `name` a volume's;
    `source` is the path on the host, empty where it is not told; `writable` for the container."""

    kind: str
    name: str
    target: str
    source: str = ""
    writable: bool = True


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """A container as `docker inspect` shows it. Moments are seconds since the epoch, None for "never".

    `image` is the reference that it was created from. `exit_code` is None while it runs or before its first run.
    `memory_limit` is None without one, `shm_size` when it is the host's. `mounts` is None when they are not told.
    `user` is as given to the container or its image, `uid`, `uid:gid` or names; empty for root. `groups` are its
    further groups (`group_add`). `root_overrides`: its root is above the permissions of files, as root is unless the
    capability DAC_OVERRIDE was dropped. `own_users`: its user numbers are the host's (`userns_mode: host`), whatever
    the engine does with those of others.
    """

    name: str
    image: str
    state: str
    health: str
    restarts: int
    started: float | None
    finished: float | None
    exit_code: int | None
    oom_killed: bool
    start_failed: bool
    restart_policy: str
    memory_limit: int | None
    shm_size: int | None
    mounts: tuple[Mount, ...] | None
    env: Mapping[str, str]
    labels: Mapping[str, str]
    user: str = ""
    groups: tuple[str, ...] = ()
    root_overrides: bool = True
    own_users: bool = False


@dataclass(frozen=True, slots=True)
class UsageFacts:
    """Memory in bytes, without page cache that the kernel can take back, and CPU time used in seconds."""

    memory_working_set: float | None
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """A container ended (`action` is `die`) or ran out of memory (`oom`).

    `nanoseconds` since the epoch, by the daemon's clock. `exit_code` only for `die`. `labels` are the container's.
    """

    action: str
    id: str
    name: str
    image: str
    labels: Mapping[str, str]
    exit_code: str | None
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """What was read of several containers, by id; those that no longer exist; the first failure with the others; and
    what would let more be known."""

    facts: Mapping[str, T]
    gone: frozenset[str]
    failure: CollectorFailure | None
    hint: Remark | None = None


class EndsOfContainers(Protocol):
    """Where ends and OOM kills come from; `connected` while that stands. See `Events`."""

    connected: bool

    def new(self, stop: Callable[[], bool]) -> Generator[Event, None, None]: ...


class Engine(Protocol):
    """Whom to ask for containers: `Docker`, or `Kubernetes`, whose pods are told in Docker's words."""

    def containers(self, deadline: Deadline) -> list[Listed]: ...
    def inspect(self, container: str, deadline: Deadline) -> ContainerFacts | None: ...
    def inspect_all(self, containers: Iterable[str], deadline: Deadline) -> Read[ContainerFacts]: ...
    def maps_users(self, deadline: Deadline) -> bool | None: ...
    def usage_of_all(self, containers: Iterable[str], deadline: Deadline) -> Read[UsageFacts]: ...
    def ends(self, quiet: float, clock_time: Callable[[], float]) -> EndsOfContainers: ...
    def logs(
        self, container: str, deadline: Deadline, *, since: str | None = None, tail: int | None, follow: bool = True
    ) -> "Bytes | None": ...
    def close(self) -> None: ...


def usual_sockets() -> tuple[Path, ...]:
    """Where Docker and Podman listen when nobody says otherwise, with and without root."""
    own = Path(f"/run/user/{os.getuid()}")
    return (
        Path("/var/run/docker.sock"),
        own / "docker.sock",
        Path("/run/podman/podman.sock"),
        own / "podman/podman.sock",
    )


def find_host(config: DockerConfig) -> str | None:
    """The configured address, else that of the first usual socket we may use, or of the first there is."""
    if config.host:
        return config.host
    sockets = [path for path in usual_sockets() if _is_socket(path)]
    usable = [path for path in sockets if os.access(path, os.R_OK | os.W_OK)]
    return next((f"unix://{path}" for path in (*usable, *sockets)), None)


class Docker:
    """One Docker API. Connects at the first question. May be shared between threads."""

    def __init__(self, host: str, config: DockerConfig) -> None:
        self._host = host
        self._certificates = (config.cert_path or Path.home() / ".docker") if config.tls_verify else None
        self._connected: Connection | None = None

    def containers(self, deadline: Deadline) -> list[Listed]:
        """All containers, running or not, in one request."""
        found = self._connection().get("/containers/json", deadline, {"all": "1"})
        if not isinstance(found, list):
            raise Unavailable(
                "Docker's list of containers is not a list",
                mend="look whether it is a Docker API that DOCKER_HOST names",
            )
        # An engine has one container of a name; several, behind one address, may have more, and the first is taken.
        return list({each.name: each for each in map(_listed, reversed(found))}.values())[::-1]

    def inspect(self, container: str, deadline: Deadline) -> ContainerFacts | None:
        """All about one container, or None when it is gone."""
        found = self._connection().get(f"/containers/{container}/json", deadline, longest=ONE_CONTAINER_SECONDS)
        return None if found is None else container_facts(found)

    def inspect_all(self, containers: Iterable[str], deadline: Deadline) -> Read[ContainerFacts]:
        """Each of these containers in turn; one that cannot be read does not hide the others."""
        facts: dict[str, ContainerFacts] = {}
        gone: set[str] = set()
        failure: CollectorFailure | None = None
        for container in containers:
            try:
                found = self.inspect(container, deadline)
            except CollectorFailure as error:
                failure = failure or error.to_keep()
            else:
                if found is None:
                    gone.add(container)
                else:
                    facts[container] = found
        return Read(facts, frozenset(gone), failure)

    def maps_users(self, deadline: Deadline) -> bool | None:
        """Whether the engine gives its containers other user numbers than the host's: rootless, or `userns-remap`.

        None when a filtering proxy does not let us ask.
        """
        try:
            found = dict_of(self._connection().get("/info", deadline, longest=ONE_CONTAINER_SECONDS))
        except Unavailable:
            return None
        options = found.get("SecurityOptions")
        if not found:
            return None
        words = " ".join(text_of(each) for each in options) if isinstance(options, list) else ""
        return "name=rootless" in words or "name=userns" in words

    def usage(self, container: str, deadline: Deadline) -> UsageFacts | None:
        """Memory and CPU of one running container, or None when it is gone. Takes about a second on some versions."""
        params = {"stream": "false", "one-shot": "true"}
        found = self._connection().get(f"/containers/{container}/stats", deadline, params, longest=STATS_SECONDS)
        return None if found is None else usage_facts(found)

    def usage_of_all(self, containers: Iterable[str], deadline: Deadline) -> Read[UsageFacts]:
        """Usage of all these containers, several at once, since Docker 20.10 takes a second for each."""
        asked = list(containers)
        waiting = deque(asked)
        answers: dict[str, UsageFacts | None] = {}
        failures: list[CollectorFailure] = []

        def work() -> None:
            while waiting:
                try:
                    container = waiting.popleft()
                except IndexError:
                    return  # another worker was faster
                try:
                    answers[container] = self.usage(container, deadline)
                except CollectorFailure as error:
                    failures.append(error.to_keep())

        flights = [Flight[None](f"docker-usage-{n}") for n in range(min(STATS_AT_ONCE, len(asked)))]
        done, late = wait_for([each.join_or_start(work) for each in flights], timeout=max(0.0, deadline.remaining()))
        for future in done:
            future.result()
        if late:
            failures.append(TimedOut("Docker did not tell the usage of all containers in time"))
        told = {container: facts for container in asked if (facts := answers.get(container)) is not None}
        gone = frozenset(container for container in asked if container in answers and container not in told)
        return Read(told, gone, next(iter(failures), None))

    def events(self, since: str | None, deadline: Deadline, quiet: float) -> "Stream":
        """The stream of exits and OOM kills of all containers; see `event_of`.

        `since` is a moment as Docker writes it, `seconds.nanoseconds`; None means from now on.
        """
        filters = '{"type":["container"],"event":["die","oom"]}'
        params = {"filters": filters} | ({"since": since} if since else {})
        return self._connection().stream("/events", params, deadline, quiet)

    def ends(self, quiet: float, clock_time: Callable[[], float]) -> EndsOfContainers:
        return Events(self, quiet, clock_time)

    def logs(
        self, container: str, deadline: Deadline, *, since: str | None = None, tail: int | None, follow: bool = True
    ) -> "Bytes | None":
        """The log of one container with the moment of each line, or None when the container is gone.

        `since` as of `events`; `tail` is how many of the last lines are told, None for all. See `docker_logs.Frames`.
        """
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        params |= {"tail": "all" if tail is None else str(tail)} | ({"since": since} if since else {})
        return self._connection().bytes_of(f"/containers/{container}/logs", params, deadline)

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    def _connection(self) -> "Connection":
        if self._connected is None:
            from immich_vitals.sources.docker_http import Connection

            self._connected = Connection(self._host, self._certificates)
        return self._connected


def container_facts(raw: object) -> ContainerFacts:
    """The facts in an answer to `GET /containers/<id>/json`. Raises `Unavailable` when it is not one."""
    answer = dict_of(raw)
    state, config, host = (dict_of(answer.get(key)) for key in ("State", "Config", "HostConfig"))
    name, word = text_of(answer.get("Name")).lstrip("/"), text_of(state.get("Status"))
    if not name or not word:
        raise Unavailable(
            "Docker described a container without its name or state",
            mend="look whether it is a Docker API that DOCKER_HOST names",
        )
    word = _STATE_OF.get(word, word)
    started = moment_of(state.get("StartedAt"))
    ended = word in ("exited", "dead", "restarting", "removing") and started is not None
    mounts, groups = answer.get("Mounts"), host.get("GroupAdd")
    own_shm = not text_of(host.get("IpcMode")).startswith(("host", "container:"))
    return ContainerFacts(
        name=name,
        image=text_of(config.get("Image")) or text_of(answer.get("Image")),
        state=word,
        health=_health(state),
        restarts=whole_of(answer.get("RestartCount")) or 0,
        started=started,
        finished=moment_of(state.get("FinishedAt")),
        exit_code=whole_of(state.get("ExitCode")) if ended else None,
        oom_killed=state.get("OOMKilled") is True,
        start_failed=word in ("created", "exited", "dead") and bool(text_of(state.get("Error"))),
        restart_policy=text_of(dict_of(host.get("RestartPolicy")).get("Name")) or "no",
        memory_limit=whole_of(host.get("Memory")) or None,
        shm_size=(whole_of(host.get("ShmSize")) or None) if own_shm else None,
        mounts=tuple(_mount(each) for each in mounts) if isinstance(mounts, list) else None,
        env=_read_env(config.get("Env")),
        labels=texts_of(config.get("Labels")),
        user=text_of(config.get("User")),
        groups=tuple(text_of(each) for each in groups) if isinstance(groups, list) else (),
        root_overrides=root_overrides(host),
        own_users=text_of(host.get("UsernsMode")) == "host",
    )


def usage_facts(raw: object) -> UsageFacts:
    """The facts in an answer to `GET /containers/<id>/stats`, with cgroup v1 or v2.

    Podman tells no parts of the memory: then the working set is not known.
    """
    answer = dict_of(raw)
    memory = dict_of(answer.get("memory_stats"))
    parts = dict_of(memory.get("stats"))
    usage = whole_of(memory.get("usage"))
    cache = whole_of(parts.get("total_inactive_file", parts.get("inactive_file")))
    cpu = whole_of(dict_of(dict_of(answer.get("cpu_stats")).get("cpu_usage")).get("total_usage"))
    return UsageFacts(
        memory_working_set=max(0, usage - cache) if usage and cache is not None else None,
        cpu_seconds=cpu / 1e9 if cpu else None,  # 0 stands for a container that has just ended
    )


def event_of(raw: object) -> Event | None:
    """The event in one line of the stream, or None when it is another kind of event."""
    answer = dict_of(raw)
    actor = dict_of(answer.get("Actor"))
    attributes = texts_of(actor.get("Attributes"))
    action, container = text_of(answer.get("Action") or answer.get("status")), text_of(actor.get("ID"))
    moment = whole_of(answer.get("timeNano"))
    if action not in ("die", "oom") or not container or moment is None:
        return None
    code = attributes.get("exitCode")
    return Event(
        action=action,
        id=container,
        name=attributes.get("name", ""),
        image=attributes.get("image", ""),
        labels=attributes,
        exit_code=(code if code and code.isdigit() and len(code) <= 3 else "unknown") if action == "die" else None,
        nanoseconds=moment,
    )


class Events:
    """Exits and OOM kills, each once, across reconnections and restarts of the daemon.

    `connected` is true while the stream stands. Not to be shared between threads.
    """

    # The daemon keeps its last 256 events; what it may tell twice is remembered for longer.
    _REMEMBERED = 1024
    _OVERLAP = 1_000_000_000  # two events may be told in another order than that of their moments

    def __init__(self, docker: Docker, quiet: float, clock_time: Callable[[], float]) -> None:
        self._docker = docker
        self._quiet = quiet
        self._time = clock_time
        self._first = 0
        self._newest = 0
        self._seen: dict[tuple[int, str, str], None] = {}
        self.connected = False

    def new(self, stop: Callable[[], bool], connect_seconds: float = 10.0) -> Generator[Event, None, None]:
        """Events as they come, until `stop()`. Raises `Absent`, `Unavailable` or `TimedOut` when the daemon is gone.

        After some quiet seconds the stream is begun anew: that is how a daemon that has vanished without a word,
        and `stop`, are noticed.
        """
        try:
            while not stop():
                asked = self._time()
                with self._docker.events(self._since(), Deadline.after(connect_seconds), self._quiet) as stream:
                    self._first = self._first or int(on_its_clock(asked, stream.began) * 1e9)
                    self.connected = True
                    yield from self._fresh(stream, stop)
        finally:
            self.connected = False

    def _since(self) -> str | None:
        since = max(self._first, self._newest - self._OVERLAP)
        return f"{since // 1_000_000_000}.{since % 1_000_000_000:09d}" if since else None

    def _fresh(self, stream: "Stream", stop: Callable[[], bool]) -> Iterator[Event]:
        for parsed in stream.objects():
            event = event_of(parsed)
            if event is not None and self._is_new(event):
                yield event
            if stop():
                return

    def _is_new(self, event: Event) -> bool:
        key = (event.nanoseconds, event.id, event.action)
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > self._REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._newest = max(self._newest, event.nanoseconds)
        return True


def on_its_clock(asked: float, told: float | None) -> float:
    """The moment `asked` by the clock of a daemon that answered at `told`, of which only whole seconds are known."""
    return asked if told is None or -1 < asked - told < 2 else told


def _listed(raw: object) -> Listed:
    answer = dict_of(raw)
    names = answer.get("Names")
    container = text_of(answer.get("Id"))
    if not container:
        raise Unavailable(
            "Docker listed a container without its id",
            mend="look whether it is a Docker API that DOCKER_HOST names",
        )
    # Other names, with a second slash, are links of old.
    own = [name for name in map(text_of, names) if name.count("/") <= 1] if isinstance(names, list) else []
    state = text_of(answer.get("State")).lower()
    return Listed(
        id=container,
        name=(own or [container[:12]])[0].lstrip("/"),
        image=text_of(answer.get("Image")),
        command=text_of(answer.get("Command")),
        state=_STATE_OF.get(state, state),
        labels=texts_of(answer.get("Labels")),
    )


def _health(state: Mapping[str, object]) -> str:
    health = text_of(dict_of(state.get("Health")).get("Status"))
    return health if health in HEALTHS else "none"


def _mount(raw: object) -> Mount:
    answer = dict_of(raw)
    kind, name, target, source = (text_of(answer.get(key)) for key in ("Type", "Name", "Destination", "Source"))
    return Mount(kind, name, target, source, writable=answer.get("RW") is not False)


def root_overrides(host: Mapping[str, object]) -> bool:
    """Whether root in a container with this HostConfig has the capability DAC_OVERRIDE, as it has by default."""
    added, dropped = (
        {text_of(each).upper().removeprefix("CAP_") for each in found} if isinstance(found, list) else set()
        for found in (host.get("CapAdd"), host.get("CapDrop"))
    )
    if host.get("Privileged") is True or "DAC_OVERRIDE" in added:
        return True
    # What is added by name stays when ALL is dropped, and the other way round.
    return "DAC_OVERRIDE" not in dropped and ("ALL" not in dropped or "ALL" in added)


def _read_env(raw: object) -> dict[str, str]:
    pairs = (text_of(each).partition("=") for each in raw) if isinstance(raw, list) else ()
    return {name: value for name, _, value in pairs if name in READ_ENV and value}


def moment_of(raw: object) -> float | None:
    """Seconds since the epoch, from `2026-11-20T19:04:42.459134483Z`; the year 1 stands for "never"."""
    try:
        moment = datetime.fromisoformat(text_of(raw))
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1 and moment.tzinfo else None


def _is_socket(path: Path) -> bool:
    """As `Path.is_socket`, which raises where we may not look."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
