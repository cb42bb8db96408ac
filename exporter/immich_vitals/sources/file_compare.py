"""Compares what Immich's database says with what is on disk, slowly, and never takes a move for a loss."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from immich_vitals.collector import Clock, CollectorFailure, Deadline
from immich_vitals.config import Config
from immich_vitals.sources.asset_files import ORIGINAL, AssetFiles, Recorded
from immich_vitals.sources.docker import ContainerFacts
from immich_vitals.sources.docker_components import Finder, Matching
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.file_looks import EMPTY, MISSING, OK, Looker, chunks
from immich_vitals.sources.media_map import MediaMap
from immich_vitals.sources.pace import Pace

# Immich moves a file and then notes where it is now, within milliseconds; thumbnails it writes over the old ones. So
# what is not there is looked for once more, after this long, where the database then says it is.
SECOND_LOOK_SECONDS = 10.0
TOGETHER = 10
BAD = (MISSING, EMPTY)
NAP_SECONDS = 0.5

Counts = Counter[tuple[str, str]]
Name = tuple[str, str, str]
"""`Recorded.name`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one recorded file: one of `file_looks.RESULTS`."""

    file: Recorded
    result: str


class Stopped(Exception):
    """The exporter ends, or looking is no longer allowed: what was begun is left."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Where recorded files are here, and which folders have something in them that we may look at now."""

    media: MediaMap
    alive: Mapping[str, bool]


class Gate:
    """Asked around each handful of files. `before` raises `Stopped`, `after` learns that the disk was used by us."""

    def before(self) -> None:
        """Go on."""

    def after(self) -> None:
        """Nothing to note."""


class Comparer:
    """Looks for recorded files on disk, `rate` in a second at most."""

    def __init__(self, looker: Looker, rate: int, clock: Clock, pause: Callable[[float], None] = time.sleep) -> None:
        self._looker = looker
        self._pace = Pace(rate, clock, pause)
        self._handful = max(1, min(TOGETHER, rate // 2))
        self._pause = pause

    def look(self, files: Sequence[Recorded], disk: Disk, gate: Gate) -> list[Verdict]:
        """The verdict on each file as it is this moment. Raises `Stopped` and `TimedOut`."""
        verdicts: list[Verdict] = []
        for handful in chunks(files, self._handful):
            self._pace.take(len(handful))
            gate.before()
            results = self._looker.results([disk.media.find(file.path) for file in handful], disk.alive)
            gate.after()
            verdicts += map(Verdict, handful, results)
        return verdicts

    def confirmed(
        self,
        verdicts: Iterable[Verdict],
        database: AssetFiles,
        disk: Disk,
        gate: Gate,
        deadline: Callable[[], Deadline],
        wait: float = SECOND_LOOK_SECONDS,
    ) -> list[Verdict]:
        """The verdicts, where those that are bad have been looked at again after `wait` seconds.

        A file whose row has gone in the meantime has no verdict any more. Raises `Stopped` and what the database and
        the disk raise.
        """
        verdicts = list(verdicts)
        bad = [verdict.file.name for verdict in verdicts if verdict.result in BAD]
        if not bad:
            return verdicts
        while wait > 0:
            gate.before()
            self._pause(min(wait, NAP_SECONDS))
            wait -= NAP_SECONDS
        again = self.look(database.again(bad, deadline()), disk, gate)
        empty = [each.file.key for each in again if each.result == EMPTY and each.file.kind == ORIGINAL]
        emptied = database.emptied(empty, deadline())
        good = [verdict for verdict in verdicts if verdict.result not in BAD]
        return good + [_as_uploaded(verdict, emptied) for verdict in again]


def _as_uploaded(verdict: Verdict, emptied: set[str]) -> Verdict:
    """An original that came without a byte is as it should be."""
    if verdict.result == EMPTY and verdict.file.kind == ORIGINAL and verdict.file.key not in emptied:
        return Verdict(verdict.file, OK)
    return verdict


def counts_of(verdicts: Iterable[Verdict]) -> Counts:
    """How many of each kind and result."""
    return Counter((verdict.file.kind, verdict.result) for verdict in verdicts)


class Lost:
    """Files that were found missing or empty, until they are there again or Immich no longer has them.

    So many of each kind at most: what is beyond is as bad as that. May be shared between threads.
    """

    MOST = 1000

    def __init__(self, names: Iterable[Name] = ()) -> None:
        self._lock = threading.Lock()
        self._names: dict[Name, None] = {}
        self._add(names)

    def take(self, verdicts: Iterable[Verdict]) -> None:
        """Note what is bad, and forget what is there."""
        verdicts = list(verdicts)
        with self._lock:
            for verdict in verdicts:
                if verdict.result == OK:
                    self._names.pop(verdict.file.name, None)
            self._add(verdict.file.name for verdict in verdicts if verdict.result in BAD)

    def forget(self, names: Iterable[Name]) -> None:
        """Immich no longer has them."""
        with self._lock:
            for name in names:
                self._names.pop(name, None)

    def names(self) -> list[Name]:
        with self._lock:
            return list(self._names)

    def by_kind(self) -> Counter[str]:
        return Counter(kind for _, _, kind in self.names())

    def _add(self, names: Iterable[Name]) -> None:
        counts = Counter(kind for _, _, kind in self._names)
        for name in names:
            if name not in self._names and counts[name[2]] < self.MOST:
                self._names[name] = None
                counts[name[2]] += 1


class Server:
    """The server's container, where a Docker shows it. What was seen last holds while Docker is silent."""

    def __init__(self, config: Config) -> None:
        self._docker = find_engine(config.docker)
        self._finder = Finder(self._docker, Matching.of(config.docker)) if self._docker else None
        self._last: ContainerFacts | None = None

    def facts(self, clock: Clock) -> ContainerFacts | None:
        """None without Docker, or where it has never shown a server."""
        if self._docker is None or self._finder is None:
            return None
        deadline = Deadline.after(5.0, clock)
        try:
            servers = [part for part in self._finder.parts(deadline) if part.component == "server"]
            # One that runs tells better than one that an update has left behind.
            servers.sort(key=lambda part: part.container.state != "running")
            if servers:
                self._last = self._docker.inspect(servers[0].container.id, deadline) or self._last
        except CollectorFailure:
            pass  # the collector of the containers says so
        return self._last

    def close(self) -> None:
        if self._docker is not None:
            self._docker.close()
