"""What the three ways to follow a log share: lines out of bytes, whom they are given to, how much CPU they cost."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from immich_vitals.collector import Clock, CollectorFailure, Deadline, Remark, SystemClock
from immich_vitals.signatures import LONGEST_LINE

# Bytes taken from a log at a time: a batch of lines is short enough that a scrape never waits long for its turn.
PIECE = 32 * 1024
# The part of one CPU that all logs together may use: in a flood the log waits, and not the scrape.
SHARE = 0.25

Place = Mapping[str, object]
"""Where to go on in a log, as JSON. Each kind of source has its own form."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines that are new, without their ends and cut at LONGEST_LINE, and the place behind them.

    `moments` are seconds since the epoch, None where the log does not tell them apart from its text.
    """

    lines: Sequence[bytes]
    moments: Sequence[float] | None
    place: Place


@dataclass(frozen=True, slots=True)
class Followed:
    """A log, and whether it can be followed; `problem` says why not, or what else is wrong with it."""

    component: str
    up: bool
    problem: Remark | None = None


class Intake(Protocol):
    """Who counts the lines. `place` is where a log was left, by this process or the one before it."""

    @property
    def since(self) -> float | None:
        """When the process before this one last kept its places, in seconds since the epoch; None: there was none."""

    def place(self, key: str) -> Place | None: ...

    def open(self, key: str, component: str) -> Callable[[Batch], None]:
        """Whom to give the lines of one log to, in their order."""

    def retain(self, kind: str, keys: Collection[str]) -> None:
        """Forget the places of all other logs of this kind; a key is the kind, a colon and a name."""


class Source(Protocol):
    """Logs of one kind.

    `run` follows them until `stop()`, and may be called again; `look` finds out once what can be followed. What is
    wrong with one of them is told by `followed`, what is wrong with all by `failure`.
    """

    failure: CollectorFailure | None

    def run(self, stop: Callable[[], bool]) -> None: ...
    def look(self, deadline: Deadline) -> None: ...
    def followed(self) -> Sequence[Followed]: ...
    def close(self) -> None: ...


class Budget:
    """Lets all logs together use no more than a share of one CPU. May be shared between threads."""

    def __init__(
        self, share: float = SHARE, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._share = share
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Wait until `seconds` of CPU time just used are within the share; returns early once `stop()` is true."""
        with self._lock:
            now = self._clock.monotonic()
            self._free_at = until = max(self._free_at, now) + seconds * (1 / self._share - 1)
        while (wait := until - self._clock.monotonic()) > 0 and not stop():
            self._sleep(min(wait, 0.2))


class Splitter:
    """Lines out of pieces of a log. A line without an end keeps no more than LONGEST_LINE bytes of memory."""

    def __init__(self, skipping: bool = False) -> None:
        self._head = b""
        self._skipping = skipping

    @property
    def kept(self) -> int:
        """Bytes of the line whose end has not come."""
        return len(self._head)

    @property
    def skipping(self) -> bool:
        """Whether the line whose end has not come is longer than LONGEST_LINE, so that its rest is thrown away."""
        return self._skipping

    def lines(self, piece: bytes) -> list[bytes]:
        """The lines that end in this piece."""
        *found, rest = piece.split(b"\n")
        if found:
            found[0] = self._head + found[0]
            self._head, self._skipping = b"", False
        if not self._skipping:
            self._head = (self._head + rest)[:LONGEST_LINE]
            self._skipping = len(self._head) == LONGEST_LINE
        return [line[:LONGEST_LINE].removesuffix(b"\r") for line in found]

    def rest(self) -> list[bytes]:
        """The line whose end will not come any more, if there is one."""
        found = [self._head] if self._head else []
        self._head, self._skipping = b"", False
        return found
