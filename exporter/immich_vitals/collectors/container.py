"""The collectors `container` and `container_usage`: do Immich's containers run, and why did they stop?"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self, TypeVar

from immich_vitals.collector import Clock, Collector, CollectorFailure, Context, Deadline, Every, OnScrape, SystemClock
from immich_vitals.config import Config, DockerConfig
from immich_vitals.metrics import Metric, Sample, info
from immich_vitals.sources.docker import (
    HEALTHS,
    STATES,
    ContainerFacts,
    Engine,
    Event,
    Read,
    UsageFacts,
    usual_sockets,
)
from immich_vitals.sources.docker_components import Finder, Matching, Part, component_of
from immich_vitals.sources.docker_immich import media_mounted, version_of
from immich_vitals.sources.engines import ways_to_engine

T = TypeVar("T")

_EACH = ("component", "container")

FOUND = Metric(
    "container_found",
    "1 when there is a container, running or not, for this part of Immich; 0 when an expected one is missing.",
    ("component",),
)
INFO = Metric(
    "container_info",
    "Image that the container was made from, and the version in it as far as the image tells.",
    (*_EACH, "image", "version"),
)
STATE = Metric("container_state", "1 for the state that the container is in.", (*_EACH, "state"))
HEALTH = Metric(
    "container_health",
    "1 for what the container's own health check last said; none means that it has no health check.",
    (*_EACH, "health"),
)
RESTARTS = Metric("container_restarts_total", "How often the engine restarted the container by its policy.", _EACH)
START = Metric("container_start_timestamp_seconds", "When the container was last started.", _EACH)
FINISH = Metric("container_finish_timestamp_seconds", "When the container last ended.", _EACH)
EXIT_CODE = Metric(
    "container_exit_code", "Exit code of the last run; no sample while the container runs or before it ever ran.", _EACH
)
OOM_KILLED = Metric(
    "container_oom_killed", "1 when a process of the last run was killed for reaching the memory limit.", _EACH
)
START_FAILED = Metric(
    "container_start_failed",
    "1 when the engine could not start the container at all: a path, port or device of it is missing or taken.",
    _EACH,
)
POLICY = Metric(
    "container_restart_policy_info",
    "Restart policy; one that ended although it says always or unless-stopped was stopped, or failed to start.",
    (*_EACH, "policy"),
)
MEMORY_LIMIT = Metric("container_memory_limit_bytes", "Memory limit of the container; no sample without one.", _EACH)
SHM_SIZE = Metric("container_shm_size_bytes", "Size of /dev/shm, unless it is shared with the host.", _EACH)
MEDIA_MOUNTED = Metric(
    "container_media_mounted",
    "1 when the photos are on a bind mount or named volume, 0 when they are lost with the container.",
    _EACH,
)
EXITS = Metric(
    "container_exits_total",
    "Ends of containers by exit code, as the engine reported them while this exporter ran.",
    ("component", "code"),
)
OOM_EVENTS = Metric(
    "container_oom_events_total",
    "Times that a container reached its memory limit and lost a process, as the engine reported them.",
    ("component",),
)
STREAM_UP = Metric("container_event_stream_up", "1 while the engine's stream of container events is being followed.")
MEMORY = Metric(
    "container_memory_working_set_bytes",
    "Memory in use without page cache that can be taken back, refreshed every IMMICH_VITALS_CONTAINER_USAGE_INTERVAL.",
    _EACH,
)
CPU = Metric(
    "container_cpu_seconds_total",
    "CPU time used by the container, refreshed every IMMICH_VITALS_CONTAINER_USAGE_INTERVAL.",
    _EACH,
)

# Ends that people look for: normal, error, SIGILL, SIGABRT (node's heap limit), SIGKILL, SIGSEGV, SIGTERM.
EXIT_CODES = ("0", "1", "132", "134", "137", "139", "143")
# After this much silence the event stream is begun anew, to notice a daemon that is gone without a word.
QUIET_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """One container of Immich: as it was listed and, unless that could not be read, as inspected."""

    part: Part
    facts: ContainerFacts | None


@dataclass(frozen=True, slots=True)
class EventCounts:
    """Exits by (component, code) and OOM kills by component since the exporter started."""

    exits: Counter[tuple[str, str]]
    ooms: Counter[str]
    connected: bool


class _EngineCollector(Collector):
    """What both collectors share: they are there when there is a Docker or a Kubernetes to ask.

    `ways` makes a new way to it.
    """

    def __init__(self, ways: Callable[[], Engine], config: DockerConfig) -> None:
        self._config = config
        self._docker = ways()
        self._finder = Finder(self._docker, Matching.of(config))

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        ways = ways_to_engine(config.docker)
        return cls(ways, config.docker) if ways else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        tried = ", ".join(str(path) for path in usual_sockets())
        return f"no Docker or Podman socket found (tried {tried}); mount one, or set DOCKER_HOST to where it answers"

    def close(self) -> None:
        self._docker.close()


class ContainerCollector(_EngineCollector):
    """Immich's containers: state, health, restarts, exits and OOM kills, limits, mounts.

    immich_vitals_container_found{component="server"} 1
    immich_vitals_container_state{component="server",container="immich_server",state="running"} 1
    immich_vitals_container_exits_total{component="machine_learning",code="137"} 2
    """

    name = "container"
    metrics = (
        FOUND, INFO, STATE, HEALTH, RESTARTS, START, FINISH, EXIT_CODE, OOM_KILLED, START_FAILED, POLICY, MEMORY_LIMIT,
        SHM_SIZE, MEDIA_MOUNTED, EXITS, OOM_EVENTS, STREAM_UP,
    )  # fmt: skip
    trigger = OnScrape()
    timeout = 3.0

    def __init__(
        self,
        ways: Callable[[], Engine],
        config: DockerConfig,
        *,
        quiet: float = QUIET_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(ways, config)
        self._matching = Matching.of(config)
        # Connections and finders are not shared between the thread that scrapes and the one that follows.
        self._followed = ways()
        self._followed_finder = Finder(self._followed, self._matching)
        self._events = self._followed.ends(quiet, (clock or SystemClock()).time)
        self._lock = threading.Lock()
        self._parts: Sequence[Part] = ()
        self._components = dict.fromkeys(config.expected)
        self._exits: Counter[tuple[str, str]] = Counter()
        self._ooms: Counter[str] = Counter()

    def collect(self, ctx: Context) -> Iterable[Sample]:
        try:
            parts = self._finder.parts(ctx.deadline)
        except CollectorFailure as failure:
            failure.known = tuple(event_samples(self._counts()))
            raise
        self._remember(parts)
        read = self._docker.inspect_all([part.container.id for part in parts], ctx.deadline)
        # Listed and gone when inspected: it is not there.
        readings = [
            ContainerReading(part, read.facts.get(part.container.id))
            for part in parts
            if part.container.id not in read.gone
        ]
        samples = [*container_samples(readings, self._config.expected), *event_samples(self._counts())]
        _tell(read, samples, ctx)
        return samples

    def follow(self, stop: Callable[[], bool]) -> None:
        self._remember(self._followed_finder.parts(Deadline.after(self.timeout)))
        with closing(self._events.new(stop)) as events:
            for event in events:
                self._count(event)

    def close(self) -> None:
        super().close()
        self._followed.close()

    def _remember(self, parts: Sequence[Part]) -> None:
        with self._lock:
            self._parts = tuple(parts)
            self._components.update(dict.fromkeys(part.component for part in parts))

    def _count(self, event: Event) -> None:
        with self._lock:
            component = component_of(event, self._matching, self._parts)
            if component is None:
                return
            self._components[component] = None
            if event.exit_code is None:
                self._ooms[component] += 1
            else:
                self._exits[component, event.exit_code] += 1

    def _counts(self) -> EventCounts:
        """The counts, with zeros for what is known to be possible."""
        with self._lock:
            exits = Counter({(component, code): 0 for component in self._components for code in EXIT_CODES})
            ooms = Counter(dict.fromkeys(self._components, 0))
            exits.update(self._exits)
            ooms.update(self._ooms)
            return EventCounts(exits, ooms, self._events.connected)


class ContainerUsageCollector(_EngineCollector):
    """Memory and CPU of Immich's running containers.

    immich_vitals_container_memory_working_set_bytes{component="server",container="immich_server"} 4.1e+08
    """

    name = "container_usage"
    metrics = (MEMORY, CPU)
    timeout = 10.0

    def __init__(self, ways: Callable[[], Engine], config: DockerConfig) -> None:
        super().__init__(ways, config)
        # Not stretched: most of the second that Docker takes for an answer is spent waiting for its own next reading.
        self.trigger = Every(config.usage_interval, stretch=False)

    def collect(self, ctx: Context) -> Iterable[Sample]:
        running = [part for part in self._finder.parts(ctx.deadline) if part.container.state in ("running", "paused")]
        read = self._docker.usage_of_all([part.container.id for part in running], ctx.deadline)
        usages = [(part, read.facts[part.container.id]) for part in running if part.container.id in read.facts]
        _tell(read, (), ctx)
        if read.hint is not None:
            ctx.remark(read.hint.message, read.hint.mend, optional=True)
        return container_usage_samples(usages)


def _tell(read: Read[T], known: Sequence[Sample], ctx: Context) -> None:
    """One container that cannot be read is a remark; none that can be is a failure."""
    if read.failure is None:
        return
    if not read.facts:
        read.failure.known = tuple(known)
        raise read.failure
    ctx.remark(read.failure.message, read.failure.mend)


def container_samples(readings: Iterable[ContainerReading], expected: Iterable[str]) -> Iterator[Sample]:
    readings = list(readings)
    found = {reading.part.component for reading in readings}
    for component in dict.fromkeys([*expected, *sorted(found)]):
        yield FOUND.sample(component in found, component=component)
    for reading in readings:
        labels = {"component": reading.part.component, "container": reading.part.container.name}
        current = reading.facts.state if reading.facts else reading.part.container.state
        for state in STATES:
            yield STATE.sample(state == current, **labels, state=state)
        if reading.facts is not None:
            yield from _inspected_samples(reading.facts, labels)


def _inspected_samples(facts: ContainerFacts, labels: dict[str, str]) -> Iterator[Sample]:
    component = labels["component"]
    yield INFO.sample(1, **labels, **info(image=facts.image, version=version_of(component, facts)))
    for health in HEALTHS:
        yield HEALTH.sample(health == facts.health, **labels, health=health)
    yield RESTARTS.sample(facts.restarts, **labels)
    yield from START.known(facts.started, **labels)
    yield from FINISH.known(facts.finished, **labels)
    yield from EXIT_CODE.known(facts.exit_code, **labels)
    yield OOM_KILLED.sample(facts.oom_killed, **labels)
    yield START_FAILED.sample(facts.start_failed, **labels)
    yield POLICY.sample(1, **labels, policy=facts.restart_policy)
    yield from MEMORY_LIMIT.known(facts.memory_limit, **labels)
    yield from SHM_SIZE.known(facts.shm_size, **labels)
    if component in ("server", "microservices"):
        yield from MEDIA_MOUNTED.known(media_mounted(facts), **labels)


def event_samples(counts: EventCounts) -> Iterator[Sample]:
    for (component, code), count in counts.exits.items():
        yield EXITS.sample(count, component=component, code=code)
    for component, count in counts.ooms.items():
        yield OOM_EVENTS.sample(count, component=component)
    yield STREAM_UP.sample(counts.connected)


def container_usage_samples(usages: Iterable[tuple[Part, UsageFacts]]) -> Iterator[Sample]:
    for part, usage in usages:
        labels = {"component": part.component, "container": part.container.name}
        yield from MEMORY.known(usage.memory_working_set, **labels)
        yield from CPU.known(usage.cpu_seconds, **labels)
