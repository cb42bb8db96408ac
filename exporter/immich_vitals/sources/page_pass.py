"""One pass over all pages after another, and over all indexes where amcheck is wanted: where it stands, what it found,
and how it goes round damage it knows."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from immich_vitals.collector import Clock, CollectorFailure, Deadline, SystemClock, TimedOut
from immich_vitals.config import PatrolConfig
from immich_vitals.sources.kept import Down
from immich_vitals.sources.page_patrol import (
    Damaged,
    Gone,
    Patroller,
    Relation,
    Survey,
    Unsafe,
    broke,
    check_index,
    read_pages,
    survey,
    truncated,
)
from immich_vitals.sources.postgres import Answered, Database, Slow
from immich_vitals.sources.state import State

STEP = 64  # pages in one statement: half a megabyte, milliseconds from a disk
ANSWER_SECONDS = 10.0  # for one step; a disk that needs longer for half a megabyte has other troubles
CHECK_SECONDS = 20.0  # for one index; so long a migration of Immich may have to wait for the lock on its table
ROUND_SECONDS = 300.0  # how often the catalogue is looked at, and the memory written
RETRY_SECONDS = 30.0
STOP_SECONDS = 5.0  # the process ends sooner: nobody waits for this thread
TRIES = 3  # of a step that a lock, a slow disk or another error prevents; then it is left for the next pass
MOST_DAMAGED = 1000  # more is a lost disk, which is not read to its end

Key = tuple[int, int]
Verdict = Literal["again", "leave", "crashed"]
Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Spot:
    """Damaged pages, from `first` to before `after`, of a relation, in that file of it. One that crashed Postgres is
    not read again as long as the file is the same."""

    oid: int
    filenode: int
    first: int
    after: int
    crashed: bool = False

    @property
    def key(self) -> Key:
        return self.oid, self.filenode


@dataclass(frozen=True, slots=True)
class BadIndex:
    """An index that amcheck found damaged, in that file of it. One that crashed Postgres is not checked again."""

    oid: int
    filenode: int
    crashed: bool = False

    @property
    def key(self) -> Key:
        return self.oid, self.filenode


@dataclass(slots=True)
class Memory:
    """What is kept over a restart of the exporter. `oid` and `block` are where the pass goes on; moments are seconds
    since the epoch. `whole` is false when the pass under way had to leave something out; `clean` is when the last one
    began that read all, indexes too, and left nothing damaged. `checking` is true from the end of a pass until the
    indexes are through that `checked` does not have; `unchecked` are those that the last attempt did not get through;
    `told` is true once all have been tried."""

    place: str = ""
    started: float = 0.0
    begun: float | None = None
    completed: float | None = None
    clean: float | None = None
    under_way: bool = False
    whole: bool = True
    oid: int = 0
    block: int = 0
    damaged: list[Spot] = field(default_factory=list)
    truncated: list[Key] = field(default_factory=list)
    checking: bool = False
    told: bool = False
    checked: list[int] = field(default_factory=list)
    unchecked: list[int] = field(default_factory=list)
    bad: list[BadIndex] = field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, object]) -> "Memory":
        """As `kept` has it; a new one when that is not what we wrote."""
        try:
            memory = cls(**kept)  # type: ignore[arg-type]
            memory.damaged = [Spot(**spot) for spot in memory.damaged]  # type: ignore[arg-type]
            memory.truncated = [(oid, filenode) for oid, filenode in memory.truncated]
            memory.bad = [BadIndex(**index) for index in memory.bad]  # type: ignore[arg-type]
            memory.checked, memory.unchecked = list(memory.checked), list(memory.unchecked)
        except (TypeError, ValueError):
            return cls()
        numbers = [memory.oid, memory.block, *(number for key in memory.truncated for number in key)]
        numbers += [number for spot in memory.damaged for number in (*spot.key, spot.first, spot.after)]
        numbers += [*memory.checked, *memory.unchecked, *(number for index in memory.bad for number in index.key)]
        moments = [
            moment for moment in (memory.started, memory.begun, memory.completed, memory.clean) if moment is not None
        ]
        sound = (
            isinstance(memory.place, str)
            and all(type(number) is int and 0 <= number < 1 << 33 for number in numbers)
            and all(type(moment) in (int, float) for moment in moments)
        )
        return memory if sound else cls()


class PagePatrol:
    """Looks at the catalogue every five minutes, and reads pages in between where that is wanted.

    `failure` is why it cannot at present. `pages` and `found` count since the exporter began, and so do `checks` of
    indexes and the `condemned` among them; `progress` is how much of the pass under way is done, None when none is.
    """

    def __init__(
        self,
        reader: Patroller,
        looker: Database,
        config: PatrolConfig,
        folder: Path | None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader = reader
        self._looker = looker
        self._config = config
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._suspects: dict[Key, int] = {}
        self._singly_to = 0
        self._tried: tuple[int, int, int] = (0, 0, 0)
        self.state = State(folder, "postgres_patrol")
        self.memory = Memory.of(self.state.read())
        self._known_before = bool(self.memory.place)
        self._told_before = self.memory.told
        self._written = asdict(self.memory)
        self.survey: Survey | None = None
        self.failure: CollectorFailure | None = None
        self.pages = 0
        self.found = 0
        self.checks = 0
        self.condemned = 0
        self.progress: float | None = None

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    @property
    def damaged(self) -> int | None:
        """Damaged spots known at present; None before a first pass has told anything of this database."""
        told = self.memory.damaged or self.memory.completed is not None or self._known_before
        return len(self.memory.damaged) if told else None

    @property
    def amcheck(self) -> bool:
        """Whether indexes are to be checked, be it without effect since no pages are read."""
        return self._config.amcheck

    @property
    def bad_indexes(self) -> int | None:
        """Indexes known at present to be damaged; None before all have been tried once."""
        told = self.memory.bad or self.memory.told or self._told_before
        return len(self.memory.bad) if told else None

    @property
    def suspects(self) -> int:
        """Files that the last look saw shorter than recorded; one look proves nothing."""
        return len(self._suspects)

    def close(self) -> None:
        self._reader.close()
        self._looker.close()

    # -- looking

    def check(self, deadline: Deadline) -> None:
        """Look at the catalogue beside the reading, when nobody has yet, or the last attempt failed.

        Raises what `Database.ask` raises.
        """
        try:
            found = survey(self._looker, deadline)
        finally:
            self._looker.close()
        if self.survey is None:
            self._settle(found)
        self.failure = None

    def _settle(self, found: Survey) -> None:
        """Take over what was seen, and forget what is not there any more."""
        with self._lock:
            memory = self.memory
            if memory.place != found.place:
                self._known_before = self._known_before or bool(memory.place)
                self._told_before = self._told_before or memory.told or bool(memory.bad)
                memory = self.memory = Memory(found.place)
                self._suspects = {}
            # A pass before a restart met pages in the cache of Postgres that are read from the disk only now.
            elif memory.started != found.started and not memory.under_way:
                memory.begun = None
            memory.started = found.started
            there = {relation.key for relation in found.relations}
            memory.damaged = [spot for spot in memory.damaged if spot.key in there]
            memory.truncated = [key for key in memory.truncated if key in there]
            memory.bad = [index for index in memory.bad if index.key in there]
            short = {(oid, filenode): recorded for oid, filenode, recorded in truncated(found.relations)}
            for key, recorded in short.items():
                # VACUUM cuts a file before it records so: only what two looks show alike is damage.
                if self._suspects.get(key) == recorded and key not in memory.truncated:
                    memory.truncated.append(key)
            self._suspects = short
            self.survey = found

    # -- reading

    def follow(self, stop: Stop) -> None:
        """Look and read until `stop()`."""
        while not stop():
            rest = self._round(stop)
            self._write()
            if rest >= 60.0:
                self._reader.close()
            self._rest(rest, stop)

    def _round(self, stop: Stop) -> float:
        """One look, and up to five minutes of reading; seconds to rest afterwards."""
        try:
            found = survey(self._reader, self._deadline())
            self._settle(found)
            if not self.enabled:
                self.failure = None
                return min(ROUND_SECONDS, self._config.interval)
            self.failure = None
            if found.unsafe:
                self._reader.close()  # a session keeps the settings it began with
                return self._retry()
            if self.memory.under_way or (not self._checking and self._begin()):
                self._read(found, stop)
            if self._checking and not self.memory.under_way:
                self._check_indexes(found, stop)
        except Unsafe:
            return 0.0
        except CollectorFailure as failure:
            self.failure = failure.to_keep()
            return self._retry()
        return 0.0 if self.memory.under_way or self._checking else self._until_due()

    def _begin(self) -> bool:
        memory, now = self.memory, self._clock.time()
        if memory.begun is not None and memory.begun <= now < memory.begun + self._config.interval:
            return False
        memory.begun, memory.under_way, memory.whole, memory.oid, memory.block = now, True, True, 0, 0
        return True

    def _retry(self) -> float:
        return min(RETRY_SECONDS, self._config.interval)

    def _until_due(self) -> float:
        begun = self.memory.begun
        left = 0.0 if begun is None else begun + self._config.interval - self._clock.time()
        return min(ROUND_SECONDS, max(1.0, left))

    def _read(self, found: Survey, stop: Stop) -> None:
        """Read on from the cursor, for five minutes or to the end of the pass."""
        memory = self.memory
        until = self._clock.monotonic() + ROUND_SECONDS
        total = max(1, sum(relation.pages for relation in found.relations if relation.readable))
        before = 0
        for relation in found.relations:
            if not relation.readable:
                continue
            before += relation.pages
            if relation.oid < memory.oid:
                continue
            if relation.oid > memory.oid:
                memory.oid, memory.block = relation.oid, 0
            self._singly_to = 0
            memory.whole = memory.whole and not relation.locked
            more = not relation.locked
            while more:
                self.progress = min(1.0, (before - max(0, relation.pages - memory.block)) / total)
                if stop() or self._clock.monotonic() >= until:
                    return
                more = self._step(found, relation, stop)
            if len(memory.damaged) >= MOST_DAMAGED:
                memory.whole = False
                break
            memory.oid, memory.block = relation.oid + 1, 0
        memory.under_way, self.progress = False, None
        memory.checking = self._config.amcheck and len(memory.damaged) < MOST_DAMAGED
        if memory.whole:
            memory.completed = self._clock.time()
            damaged = memory.damaged or memory.truncated or self._suspects or (self.amcheck and memory.bad)
            if not damaged and all(relation.readable for relation in found.relations):
                memory.clean = memory.begun

    def _step(self, found: Survey, relation: Relation, stop: Stop) -> bool:
        """Read a few pages at the cursor; False when the relation is at its end."""
        memory, first = self.memory, self.memory.block
        spots = [spot for spot in memory.damaged if spot.key == relation.key]
        here = next((spot for spot in spots if spot.first <= first < spot.after), None)
        if here is not None and here.crashed:
            memory.block = here.after
            return here.after < relation.pages
        after = first + min(STEP, self._config.rate)
        if here is not None or first < self._singly_to:
            after = first + 1
        after = min([after, *(spot.first for spot in spots if spot.first > first)])
        self._take(max(1, min(after, relation.pages) - first), stop)
        if stop():
            return True
        try:
            read, size = read_pages(self._reader, found, relation, first, after, self._deadline())
        except Unsafe:
            raise
        except Gone:
            return False
        except Damaged:
            if after - first > 1:
                self._singly_to = after
                return True
            self._remember(Spot(*relation.key, first, after))
            size = relation.pages
        except CollectorFailure as failure:
            self._broken(failure, found, Spot(*relation.key, first, after, crashed=True), stop)
            raise
        else:
            self.pages += read
            # What lies behind the end was cut off, by VACUUM most often.
            memory.damaged = [
                spot for spot in memory.damaged if spot is not here and (spot not in spots or spot.first < size)
            ]
        memory.block = after
        return after < size and len(memory.damaged) < MOST_DAMAGED

    def _broken(self, failure: CollectorFailure, found: Survey, spot: Spot, stop: Stop) -> None:
        """Something other than damage came in between: move on when it was the page that did it, or was tried often."""
        verdict = self._verdict(failure, found, (spot.oid, spot.first), stop)
        if verdict == "crashed":
            self._remember(spot)
            self.memory.block = spot.after
        elif verdict == "leave":
            self.memory.whole = False
            if isinstance(failure, TimedOut):  # most likely a lock: the rest of it would be no better
                self.memory.oid, self.memory.block = spot.oid + 1, 0
            else:
                self.memory.block = spot.after

    def _verdict(self, failure: CollectorFailure, found: Survey, at: tuple[int, int], stop: Stop) -> Verdict:
        """What this failure, of which there may have been more at the same place, says of the place."""
        another = self._reader.crash_of_another
        now = self._see_again(failure, stop)
        if now is None or now.place != found.place:
            return "again"
        times = self._tried[2] + 1 if self._tried[:2] == at else 1
        self._tried = (*at, times)
        lost = isinstance(failure, Down) and not another and now.started == found.started
        blind = now.checkpointer_started is None
        if broke(failure, found, now, another) or (lost and blind and times > 1):
            return "crashed"
        return "leave" if times >= TRIES else "again"

    def _see_again(self, failure: CollectorFailure, stop: Stop) -> Survey | None:
        """The survey once the server answers again; None when we are to stop first."""
        self.failure = failure.to_keep()
        while not stop():
            try:
                return survey(self._reader, self._deadline())
            except CollectorFailure as still:
                self.failure = still.to_keep()
                self._rest(RETRY_SECONDS / 10, stop)
        return None

    def _remember(self, spot: Spot) -> None:
        damaged = self.memory.damaged
        if not any(each.key == spot.key and each.first == spot.first for each in damaged):
            damaged.append(spot)
            self.found += 1
            self._write()

    # -- checking

    @property
    def _checking(self) -> bool:
        return self._config.amcheck and self.memory.checking

    def _check_indexes(self, found: Survey, stop: Stop) -> None:
        """Check the indexes that are left, the smallest first, for five minutes or to the end of them."""
        memory = self.memory
        until = self._clock.monotonic() + ROUND_SECONDS
        indexes = [relation for relation in found.relations if relation.checkable] if found.may_check else []
        for index in sorted(indexes, key=lambda each: (each.pages, each.oid)):
            if index.oid in memory.checked:
                continue
            if stop() or self._clock.monotonic() >= until:
                return
            self._check_index(found, index, stop)
            self._write()
            self._take(index.pages, stop)
        memory.told = memory.told or found.may_check
        memory.checking, memory.checked = False, []
        memory.unchecked = [index.oid for index in indexes if index.oid in memory.unchecked]

    def _check_index(self, found: Survey, index: Relation, stop: Stop) -> None:
        memory = self.memory
        known = next((bad for bad in memory.bad if bad.key == index.key), None)
        through = True
        try:
            if known is None or not known.crashed:
                check_index(self._reader, found, index, Deadline.after(CHECK_SECONDS, self._clock))
                memory.bad = [bad for bad in memory.bad if bad is not known]
                self.checks += 1
        except Unsafe:
            raise
        except Gone:
            pass
        except Damaged:
            self._condemn(BadIndex(*index.key))
            self.checks += 1
        except (Slow, Answered):
            through = False
        except CollectorFailure as failure:
            verdict = self._verdict(failure, found, (index.oid, -1), stop)
            if verdict == "crashed":
                self._condemn(BadIndex(*index.key, crashed=True))
            if verdict != "again":
                self._checked(index, through=verdict == "crashed")
            raise
        self._checked(index, through)

    def _checked(self, index: Relation, through: bool) -> None:
        memory = self.memory
        memory.checked.append(index.oid)
        memory.unchecked = [oid for oid in memory.unchecked if oid != index.oid] + ([] if through else [index.oid])

    def _condemn(self, index: BadIndex) -> None:
        if not any(bad.key == index.key for bad in self.memory.bad):
            self.memory.bad.append(index)
            self.condemned += 1

    # -- time and memory

    def _deadline(self) -> Deadline:
        return Deadline.after(ANSWER_SECONDS, self._clock)

    def _take(self, pages: int, stop: Stop) -> None:
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now - 1.0) + pages / self._config.rate
        self._rest(self._free_at - now, stop)

    def _rest(self, seconds: float, stop: Stop) -> None:
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0 and not stop():
            self._sleep(min(left, STOP_SECONDS))

    def _write(self) -> None:
        now = asdict(self.memory)
        if now != self._written:
            self.state.write(now)
            self._written = now
