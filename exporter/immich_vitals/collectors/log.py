"""Immich's logs: how many lines tell of which trouble."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

from immich_vitals.collector import Clock, Collector, Context, Remark, SystemClock
from immich_vitals.config import Config, ConfigError, LogConfig, Mistake
from immich_vitals.flight import Flight, start_thread
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import OWN
from immich_vitals.signatures import Catalogue, CatalogueError, Reader
from immich_vitals.sources.docker import usual_sockets
from immich_vitals.sources.docker_components import Matching
from immich_vitals.sources.docker_logs import DockerLogs
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.log_files import FileLogs
from immich_vitals.sources.log_journal import JournalLogs
from immich_vitals.sources.log_lines import Batch, Budget, Followed, Place, Source
from immich_vitals.sources.state import State

MATCHES = Metric(
    "log_matches_total",
    "Events in the component's log that tell of a trouble known by this signature; one error that the log repeats is"
    " one event.",
    ("component", "signature"),
)
LINES = Metric("log_lines_total", "Lines in the component's log.", ("component",))
UP = Metric(
    "log_stream_up",
    "1 while the component's log can be followed, also while its container is stopped; 0 when it cannot.",
    ("component",),
)
LAST = Metric(
    "log_last_match_timestamp_seconds",
    "When the last event with this signature was logged; no sample before the first.",
    ("component", "signature"),
)

SAVE_SECONDS = 5.0
# What an exporter that was away for longer would find in the logs is old news.
FORGET_SECONDS = 86400.0
END_SECONDS = 0.5


class LogCollector(Collector):
    """Immich's logs, from Docker or Kubernetes, in files or in the systemd journal, and the known troubles in them.

    immich_vitals_log_matches_total{component="server",signature="no_space"} 3
    immich_vitals_log_lines_total{component="server"} 48210
    immich_vitals_log_stream_up{component="server"} 1
    """

    name = "log"
    metrics = (MATCHES, LINES, UP, LAST)
    timeout = 5.0

    def __init__(self, counts: "Counts", sources: Sequence[Source], state: State, clock: Clock | None = None) -> None:
        self._counts = counts
        self._sources = tuple(sources)
        self._flights = [Flight[None]("log-source") for _ in self._sources]
        self._state = state
        self._clock = clock or SystemClock()
        self._saving = threading.Lock()
        self._saved = (self._clock.monotonic(), 0)
        self._shown = 0
        self._follows = False
        self._closed = threading.Event()
        self._woken = threading.Event()  # there is something to save, or a source has ended

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        engine = find_engine(config.docker, runs=True)
        if engine is None and not config.log.files and not config.log.units:
            return None
        state = State(config.state, cls.name)
        clock = SystemClock()
        counts = Counts(_catalogue(config.log), state.read(), clock)
        budget = Budget()
        sources: list[Source] = []
        if engine is not None:
            elsewhere = {*config.log.files, *config.log.units}
            sources.append(DockerLogs(engine, Matching.of(config.docker), counts, budget, without=elsewhere))
        if config.log.files:
            sources.append(FileLogs(config.log.files, counts, budget))
        if config.log.units:
            sources.append(JournalLogs(config.log.units, counts, budget))
        return cls(counts, sources, state, clock)

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        tried = ", ".join(str(path) for path in usual_sockets())
        return (
            f"no Docker or Podman socket found (tried {tried}); mount one, set DOCKER_HOST to where it answers, or set"
            " IMMICH_VITALS_LOG_FILES or IMMICH_VITALS_LOG_UNITS"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        if not self._follows:
            for source in self._sources:
                source.look(ctx.deadline)
        followed = [each for source in self._sources for each in source.followed()]
        self._shown = self._counts.changes
        if self._is_due():
            self._woken.set()
        samples = tuple(log_samples(self._counts.facts(), followed))
        failures = [source.failure for source in self._sources if source.failure is not None]
        if failures and not any(each.up for each in followed):
            raise type(failures[0])(failures[0].message, mend=failures[0].mend, known=samples)
        problems = [each.problem for each in followed if each.problem is not None]
        for problem in dict.fromkeys([*(Remark(each.message, each.mend) for each in failures), *problems]):
            ctx.remark(problem.message, problem.mend)
        if self._state.problem:
            ctx.remark(self._state.problem, _STATE_MEND)
        return samples

    def follow(self, stop: Callable[[], bool]) -> None:
        self._follows = True

        def ended() -> bool:
            return stop() or self._closed.is_set()

        runs = [
            flight.join_or_start(partial(source.run, ended))
            for source, flight in zip(self._sources, self._flights, strict=True)
        ]
        for run in runs:
            run.add_done_callback(lambda _: self._woken.set())
        while not ended():
            self._woken.wait(SAVE_SECONDS)
            self._woken.clear()
            for run in runs:
                if run.done():
                    run.result()
            if self._is_due():
                self._save()
        wait(runs, timeout=END_SECONDS)
        self._save()

    def close(self) -> None:
        self._closed.set()
        self._woken.set()
        if self._follows:
            start_thread(self._save, "log-save").join(END_SECONDS)  # the disk may hang
        for source in self._sources:
            source.close()

    def _is_due(self) -> bool:
        """Every few seconds, and after a scrape: what was shown must not be lost, or a counter would go back."""
        at, changes = self._saved
        late = self._clock.monotonic() - at >= SAVE_SECONDS
        return self._state.kept and (late or self._shown > changes) and self._counts.changes > changes

    def _save(self) -> None:
        with self._saving:
            changes = self._counts.changes
            self._state.write(self._counts.to_keep())
            self._saved = (self._clock.monotonic(), changes)


_STATE_MEND = (
    "IMMICH_VITALS_STATE_PATH must be a folder that this process may write to; without it, lines that come"
    " while the exporter is down are not counted"
)


def _catalogue(config: LogConfig) -> Catalogue:
    try:
        return Catalogue.load(config.catalogue)
    except CatalogueError as error:
        raise ConfigError(
            [
                Mistake(OWN + "LOG_CATALOGUE", each, "see the signatures of the exporter for the form")
                for each in error.mistakes
            ]
        ) from error


@dataclass(frozen=True, slots=True)
class LogFacts:
    """What was counted so far, by component and by (component, signature); `lasts` are seconds since the epoch."""

    components: Sequence[str]
    lines: Mapping[str, int]
    matches: Mapping[tuple[str, str], int]
    lasts: Mapping[tuple[str, str], float]


class Counts:
    """What was counted, and the place in each log up to which it was: they change and are kept together, so that each
    line is counted once over a restart, too. May be shared between threads."""

    def __init__(self, catalogue: Catalogue, kept: Mapping[str, object], clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._lock = threading.Lock()
        self._components: dict[str, tuple[str, ...]] = {}
        self.since: float | None = None
        self._lines: Counter[str] = Counter()
        self._matches: Counter[tuple[str, str]] = Counter()
        self._lasts: dict[tuple[str, str], float] = {}
        self._places: dict[str, Place] = {}
        self.changes = 0
        with suppress(TypeError, ValueError, KeyError, AssertionError):  # of somebody who wrote into our file
            self._take_over(kept)

    def place(self, key: str) -> Place | None:
        with self._lock:
            return self._places.get(key)

    def open(self, key: str, component: str) -> Callable[[Batch], None]:
        with self._lock:
            self._components[component] = self._catalogue.signatures(component)
        return partial(self._take, key, component, Reader(self._catalogue, component))

    def retain(self, kind: str, keys: Iterable[str]) -> None:
        wanted = set(keys)
        with self._lock:
            for key in [key for key in self._places if key.startswith(f"{kind}:") and key not in wanted]:
                del self._places[key]

    def facts(self) -> LogFacts:
        """As of now, with zeros for what is known to be possible."""
        with self._lock:
            components = tuple(self._components)
            possible = [(each, word) for each, words in self._components.items() for word in words]
            return LogFacts(
                components,
                {each: self._lines[each] for each in components},
                {each: self._matches[each] for each in possible},
                {each: self._lasts[each] for each in possible if each in self._lasts},
            )

    def to_keep(self) -> Mapping[str, object]:
        """All of it as JSON."""
        with self._lock:
            return {
                "saved": self._clock.time(),
                "lines": dict(self._lines),
                "matches": [[*each, count] for each, count in self._matches.items()],
                "lasts": [[*each, moment] for each, moment in self._lasts.items()],
                "places": dict(self._places),
            }

    def _take(self, key: str, component: str, reader: Reader, batch: Batch) -> None:
        events: Sequence[tuple[int, str]] = ()
        try:
            events = reader.feed(batch.lines, batch.moments)
        finally:  # a line that a bug of ours stumbles over is not met again
            self._count(key, component, batch, events)

    def _count(self, key: str, component: str, batch: Batch, events: Sequence[tuple[int, str]]) -> None:
        now = self._clock.time()
        with self._lock:
            self._lines[component] += len(batch.lines)
            for index, signature in events:
                self._matches[component, signature] += 1
                moment = batch.moments[index] if batch.moments is not None else now
                self._lasts[component, signature] = max(moment, self._lasts.get((component, signature), 0.0))
            self._places[key] = batch.place
            self.changes += 1

    def _take_over(self, kept: Mapping[str, object]) -> None:
        saved = kept["saved"]
        if not isinstance(saved, int | float) or not 0 <= self._clock.time() - saved <= FORGET_SECONDS:
            return
        lines, matches, lasts, places = (kept[key] for key in ("lines", "matches", "lasts", "places"))
        assert isinstance(lines, dict)
        assert isinstance(matches, list)
        assert isinstance(lasts, list)
        assert isinstance(places, dict)
        kept_lines = Counter({str(each): int(count) for each, count in lines.items()})
        kept_matches = Counter({(str(each), str(word)): int(count) for each, word, count in matches})
        kept_lasts = {(str(each), str(word)): float(moment) for each, word, moment in lasts}
        self._places.update({str(key): dict(place) for key, place in places.items()})
        self._lines, self._matches, self._lasts = kept_lines, kept_matches, kept_lasts
        self.since = float(saved)


def log_samples(facts: LogFacts, followed: Iterable[Followed]) -> Iterator[Sample]:
    """The samples of logs that are followed."""
    for (component, signature), count in facts.matches.items():
        yield MATCHES.sample(count, component=component, signature=signature)
    for component, count in facts.lines.items():
        yield LINES.sample(count, component=component)
    for each in followed:
        yield UP.sample(each.up, component=each.component)
    for (component, signature), moment in facts.lasts.items():
        yield LAST.sample(moment, component=component, signature=signature)
