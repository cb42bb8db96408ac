"""What a collector is, and how it says that something is missing, refused or late.

A collector is a class with a name, its metrics, a trigger and a time-out. It reads facts through a source and
turns them into samples. It does not cache, retry, sleep, time itself, start threads, catch broadly or log its own
failure: the runner does that once for all.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample


class CollectorFailure(Exception):
    """A collector could not say what it should.

    `message` says what was tried and what happened, `mend` what the person at the keyboard can do about it.
    Neither may hold a password, a token or a DSN. `known` are samples that are true all the same, such as
    `postgres_up 0`. `asked` is False where nothing was begun that costs what is watched anything: there was no
    connection, or a server that hangs.
    """

    reason: ClassVar[str] = "error"
    asked: bool = True

    def __init__(self, message: str, *, mend: str = "", known: Iterable[Sample] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.known = tuple(known)

    def to_keep(self) -> Self:
        """Itself without the frames that it came through: they hold all that was read, and where one of them holds the
        failure in turn, that stays until Python's next full search for garbage."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class Absent(CollectorFailure):
    """The thing should be there and is not: the socket file is gone."""

    reason = "absent"


class Unavailable(CollectorFailure):
    """The thing is there and refuses, or we lack the right to read it."""

    reason = "unavailable"


class TimedOut(CollectorFailure):
    """The thing did not answer before the deadline."""

    reason = "timeout"


REASONS: tuple[str, ...] = ("absent", "unavailable", "timeout", "error")


class Clock(Protocol):
    """Where moments and durations come from, so that tests own them."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...


class SystemClock:
    """The machine's own clocks: `monotonic` for durations and deadlines, `time` for moments."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # what was known before the machine slept is old when it wakes

    def time(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which an answer must be there."""

    at: float
    clock: Clock = field(default_factory=SystemClock)

    @classmethod
    def after(cls, seconds: float, clock: Clock | None = None) -> "Deadline":
        clock = clock or SystemClock()
        return cls(clock.monotonic() + seconds, clock)

    def remaining(self) -> float:
        """Seconds left; negative when the deadline has passed."""
        return self.at - self.clock.monotonic()

    def limit(self, what: str, longest: float | None = None) -> float:
        """Seconds that one blocking call may take. Raises `TimedOut` when no time is left.

        `what` completes the sentence "no time left to ...".
        """
        left = self.remaining()
        if left <= 0:
            raise TimedOut(f"no time left to {what}")
        return left if longest is None else min(left, longest)

    def within(self, seconds: float) -> "Deadline":
        """The same, or so many seconds from now where that is sooner."""
        return Deadline(min(self.at, self.clock.monotonic() + seconds), self.clock)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a person should mend although the collector could answer: one of several items is bad.

    `optional`: nothing is wrong, there could be more.
    """

    message: str
    mend: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What one run of a collector receives: how long it has, and what time it is."""

    deadline: Deadline
    clock: Clock
    remarks: list[Remark] = field(default_factory=list)

    def remark(self, message: str, mend: str, *, optional: bool = False) -> None:
        """Tell the person at the keyboard of an item that is bad, or `optional`, where the others are as usual."""
        self.remarks.append(Remark(message, mend, optional))


@dataclass(frozen=True, slots=True)
class OnScrape:
    """Run at each scrape; its samples are as fresh as the scrape."""


@dataclass(frozen=True, slots=True)
class Every:
    """Run on a timer and serve the last result.

    `seconds` is the configured interval. With `stretch` the real one is at least 50 times the duration of the
    last run, so that the collector uses no more than 2 % of one database or disk. A result older than three
    intervals is not served. The very first scrape waits for the first result, unless the work is so slow that
    `awaited` is False.
    """

    seconds: float
    stretch: bool = True
    awaited: bool = True

    def interval(self, last_duration: float) -> float:
        """Seconds from one run to the next."""
        return max(self.seconds, 50 * last_duration) if self.stretch else self.seconds


Trigger = OnScrape | Every


class Collector(ABC):
    """One thing watched. Subclasses set the class attributes and write `from_config` and `collect`.

    `trigger` may be set per instance, where the interval is a setting.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    timeout: ClassVar[float] = 3.0
    trigger: Trigger = OnScrape()

    @classmethod
    @abstractmethod
    def from_config(cls, config: Config) -> Self | None:
        """The collector, or None when nothing is configured for it: then it is disabled, not failing."""

    @classmethod
    @abstractmethod
    def disabled_because(cls, config: Config) -> str:
        """Why `from_config` returned None, with the mend, for people."""

    @abstractmethod
    def collect(self, ctx: Context) -> Iterable[Sample]:
        """The samples as of now.

        Raises `Absent`, `Unavailable` or `TimedOut` when there is nothing true to say; anything else that
        leaves this method is a bug, and is shown as one.
        """

    def follow(self, stop: Callable[[], bool]) -> None:
        """Follow a stream of events until `stop()` is true or the stream ends.

        Collectors that have one override this; the runner calls it in a thread of its own, and again, after a
        pause, when it returns or raises `CollectorFailure`.
        """

    def close(self) -> None:
        """Let go of connections. Called once, when the exporter ends; must not block."""
