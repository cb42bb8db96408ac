"""Which dumps have been read to their end, and what was found: each new one once, also over a restart."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import wait

from immich_vitals.flight import Flight
from immich_vitals.sources.backups import Backup
from immich_vitals.sources.dumps import Verdict, verify
from immich_vitals.sources.pace import Pace
from immich_vitals.sources.state import State

REMEMBERED = 8
LOOK_SECONDS = 0.5
REST_LOOKS = 20  # while nothing is wanted; being wanted ends the rest


class DumpChecks:
    """Reads the dump that is wanted, in `run`, and remembers the verdicts by a hash of its name, its size and time.

    May be shared between the thread that runs it and the one that asks.
    """

    def __init__(
        self,
        state: State,
        pace: Pace,
        check: Callable[..., Verdict | None] = verify,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._state = state
        self._pace = pace
        self._check = check
        self._look_seconds = look_seconds
        self._flight: Flight[tuple[Backup, Verdict | None]] = Flight("dump")
        self._changed = threading.Condition()
        self._wanted: Backup | None = None
        self._verdicts = _remembered(state.read())
        self.problem = ""

    @property
    def state_problem(self) -> str:
        """Why the verdicts are not kept over a restart, where they should be."""
        return self._state.problem

    def verdict(self, dump: Backup) -> Verdict | None:
        """What was found, None while that is not known; then it is the next to be read, in the place of any other."""
        with self._changed:
            found = self._verdicts.get(_key(dump))
            self._wanted = dump if found is None else None
            self._changed.notify_all()
            return found

    def run(self, stop: Callable[[], bool]) -> None:
        """Read what is wanted until `stop()`. A disk that hangs costs one thread, and keeps this from nothing but
        the next dump."""
        while not stop():
            with self._changed:
                if self._wanted is None:
                    self._changed.wait(REST_LOOKS * self._look_seconds)
                dump = self._wanted
            if dump is not None:
                self._read(dump, stop)

    def _read(self, dump: Backup, stop: Callable[[], bool]) -> None:
        given_up = threading.Event()

        def check() -> tuple[Backup, Verdict | None]:
            return dump, self._check(dump.path, dump.packed, self._pace, lambda: stop() or given_up.is_set())

        future = self._flight.join_or_start(check)
        while not wait([future], timeout=self._look_seconds).done:
            if stop() or self._moved_on(dump):
                given_up.set()
                return
        with self._changed:
            try:
                read, found = future.result()
            except OSError as error:
                read, found = dump, None
                self.problem = error.strerror or type(error).__name__
            else:
                self.problem = ""
            if found is not None:
                self._remember(_key(read), found)
            if self._wanted == read:
                self._wanted = None  # what could not be told is asked again at the next look at the folder

    def _moved_on(self, dump: Backup) -> bool:
        with self._changed:
            return self._wanted != dump

    def _remember(self, key: str, found: Verdict) -> None:
        self._verdicts[key] = found
        for old in list(self._verdicts)[:-REMEMBERED]:
            del self._verdicts[old]
        self._state.write({"dumps": self._verdicts})


def _key(dump: Backup) -> str:
    name = hashlib.sha256(dump.path.encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{name}-{dump.size}-{dump.modified}"


def _remembered(state: dict[str, object]) -> dict[str, Verdict]:
    kept = state.get("dumps")
    known = {str(verdict) for verdict in Verdict}
    return {str(key): Verdict(value) for key, value in kept.items() if value in known} if isinstance(kept, dict) else {}
