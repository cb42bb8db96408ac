"""The logs of Immich's containers, followed through the API of Docker or Podman.

One answer that does not end is read for each container. It ends with the container, is begun anew after some silence
(that is how an engine that has vanished without a word is noticed), and goes on where it was left: each line has its
moment in nanoseconds, and the moment of the last line, how often it came, and the newest moment of all say which lines
are known when some are told again.
"""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from immich_vitals.collector import Clock, CollectorFailure, Deadline, Remark, SystemClock, Unavailable
from immich_vitals.flight import Flight
from immich_vitals.signatures import LONGEST_LINE
from immich_vitals.sources.docker import Engine, on_its_clock
from immich_vitals.sources.docker_components import Finder, Matching, Part
from immich_vitals.sources.log_lines import Batch, Budget, Followed, Intake, Place, Splitter

if TYPE_CHECKING:
    from immich_vitals.sources.http_within import Bytes

CONNECT_SECONDS = 10.0
LOOK_SECONDS = 1.0  # for one container that hangs, in a look at all
LIST_SECONDS = 15.0  # from one look at which containers there are to the next
QUIET_SECONDS = 600.0
AGAIN_SECONDS, AGAIN_LONGEST = 1.0, 60.0
MOST_STREAMS = 20
CLOCKS_DIFFER = 5.0  # the engine's clock and ours
# A log that goes on is asked for by its last lines, since the engine reads all of it to find a moment in it.
TAIL = 1000
# Two lines may be told in another order than that of their moments, and Podman reads a moment as a floating number.
OVERLAP = 10_000_000
# Docker cuts lines into pieces of this many bytes; a shorter one without an end is the last of a run.
DOCKER_PIECE = 16 * 1024
SAME_LINE = 100_000_000  # Podman cuts sooner, and tells the pieces at once
LARGEST_FRAME = 256 * 1024
LIVE = 5_000_000_000
FAR_BACK = 1_000_000_000
# After so much silence it is asked whether the engine reads on at all; the longer the silence, the more seldom.
STALL_SECONDS = 10.0
KIND = "docker"

_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")

_LATER = re.compile(rb"(?<!^)(?=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z )")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a container's log was read: the moment of the last line in nanoseconds since the epoch, how many lines
    in a row had it, and the newest moment of all, which differs when the clock was set back."""

    last: int
    repeats: int
    high: int

    @classmethod
    def at(cls, seconds: float) -> "Mark":
        moment = int(seconds * 1e9)
        return cls(moment, 0, moment)

    @classmethod
    def of(cls, place: Place | None) -> "Mark | None":
        """From what was kept, or None when it is not ours."""
        numbers = [(place or {}).get(key) for key in ("last", "repeats", "high")]
        whole = [number for number in numbers if isinstance(number, int)]
        return cls(*whole) if len(whole) == 3 else None

    @property
    def place(self) -> Place:
        return {"last": self.last, "repeats": self.repeats, "high": self.high}

    @property
    def since(self) -> str:
        """The moment to ask for, as Docker writes it."""
        since = max(0, min(self.last, self.high) - OVERLAP)
        return f"{since // 1_000_000_000}.{since % 1_000_000_000:09d}"


@dataclass(frozen=True, slots=True)
class _Head:
    """The beginning of a line; `size` is that of its last piece."""

    text: bytes
    moment: int
    size: int


class Frames:
    """Lines out of the bytes of one container's log without those that are known. Kept from one answer to the next."""

    def __init__(self, mark: Mark, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._last, self._repeats, self._high = mark.last, mark.repeats, mark.high
        self._recent: deque[int] = deque(maxlen=1000)
        self._heads: dict[int, _Head] = {}
        self._second = b""
        self._second_began = 0
        self.begin(0)

    @property
    def mark(self) -> Mark:
        """The place behind all lines given."""
        return Mark(self._last, self._repeats, self._high)

    def begin(self, asked: int, *, limited: bool = False, anew: bool = False) -> None:
        """A new answer begins, to a question at the moment `asked` (nanoseconds, by the engine's clock).

        `limited`: not all lines since the mark were asked for. `anew`: only such as are still to come.
        """
        self._limited = limited
        self.broken = False  # the engine says in the stream that it cannot read on
        self._asked = asked
        self._began = self._clock.monotonic()
        self._known = not anew  # as long as lines are told again
        self._seen = self._repeated = 0
        self._raw: bool | None = None
        self._rest = b""
        self._skip = 0
        self._splitter = Splitter()

    def feed(self, piece: bytes) -> tuple[list[bytes], list[float]]:
        """New lines and their moments. Raises `Unavailable` when it is no log."""
        if self._raw is None:
            self._raw = piece[0] > 3  # with a terminal there are no frames: it begins with the year
        if self._raw:
            return self._plain(self._splitter.lines(piece))
        lines: list[bytes] = []
        moments: list[int] = []
        self._unpack(piece, lines, moments)
        return lines, [moment / 1e9 for moment in moments]

    def rest(self, complete: bool) -> tuple[list[bytes], list[float]]:
        """What the container wrote last, without ending the line. `complete`: this is really all it wrote."""
        if self._raw:
            return self._plain(self._splitter.rest() if complete else [])
        over = {kind: head for kind, head in self._heads.items() if head.size < DOCKER_PIECE}
        for kind in over:
            del self._heads[kind]
        return [head.text for head in over.values()], [head.moment / 1e9 for head in over.values()]

    def _plain(self, told: Iterable[bytes]) -> tuple[list[bytes], list[float]]:
        lines: list[bytes] = []
        moments: list[float] = []
        for line in self._taken_apart(told):
            moment, text = self._told(line)
            if (self._known and not self._is_new(moment)) or self._told_twice(moment, line):
                continue
            self._count(moment)
            lines.append(text)
            moments.append(moment / 1e9)
        return lines, moments

    def _taken_apart(self, told: Iterable[bytes]) -> Iterator[bytes]:
        """Without frames, the end of a run without a line end and the first line of the next run are one line."""
        for line in told:
            if line.count(b"Z ") > 1:
                first, *others = _LATER.split(line)
                for other in others:
                    if self._told(other)[0] > self._told(first)[0]:
                        yield first
                        first = other
                    else:  # a moment in the program's own words, or the next piece of a long line
                        first += other
                yield first
            else:
                yield line

    def _unpack(self, piece: bytes, lines: list[bytes], moments: list[int]) -> None:
        """Each frame is a byte for the stream, three zeros, four bytes of size, and one line or a piece of one."""
        if self._skip:
            piece, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
        data = self._rest + piece if self._rest else piece
        at, end = 0, len(data)
        while end - at >= 8:
            kind = data[at]
            size = int.from_bytes(data[at + 4 : at + 8], "big")
            if kind > 3 or data[at + 1] | data[at + 2] | data[at + 3]:
                raise Unavailable("what Docker sends as a log is none", mend="look what it is that DOCKER_HOST names")
            after = at + 8 + size
            if after > end:
                if size <= LARGEST_FRAME or end - at <= LARGEST_FRAME:
                    break
                self._skip = after - end  # no engine cuts so late: the beginning will do
                after = end
            payload = data[at + 8 : after] if not self._skip else data[at + 8 : after] + b"\n"
            at = after
            if kind == 3:
                self.broken = True
                continue
            moment, text = self._told(payload)
            if self._known and not self._is_new(moment):
                continue
            if not self._heads and text.endswith(b"\n"):
                if self._told_twice(moment, payload):
                    continue
                self._count(moment)
                lines.append(text[:-1].removesuffix(b"\r") if len(text) <= LONGEST_LINE else text[:LONGEST_LINE])
                moments.append(moment)
            else:
                self._count(moment)
                self._joined(kind, moment, text, lines, moments)
        self._rest = data[at:]

    def _joined(self, kind: int, moment: int, text: bytes, lines: list[bytes], moments: list[int]) -> None:
        """A piece of a line that has more than one."""
        size = len(text)
        head = self._heads.pop(kind, None)
        if head is not None:
            if head.size >= DOCKER_PIECE or 0 <= moment - head.moment <= SAME_LINE:
                text, moment = head.text + text, head.moment
            else:
                lines.append(head.text)
                moments.append(head.moment)
        if text.endswith(b"\n"):
            lines.append(text[:-1].removesuffix(b"\r")[:LONGEST_LINE])
            moments.append(moment)
        else:
            self._heads[kind] = _Head(text[:LONGEST_LINE], moment, size)

    def _is_new(self, moment: int) -> bool:
        """Whether a line is new, while known ones may still be told."""
        if moment > self._high or self._is_live(moment):
            if self._limited and self._seen == 0 and moment > self._high:
                raise _Gap
            self._known = False
            return True
        self._seen += 1
        if moment == self._last:
            self._repeated += 1
            self._known = self._repeated < self._repeats
        return False

    def _told_twice(self, moment: int, line: bytes) -> bool:
        """Whether a whole line, its moment included, was told just before: Docker up to 20.10 does so as it rotates."""
        told = hash(line)
        if moment <= self._high and told in self._recent:
            return True
        self._recent.append(told)
        return False

    def _is_live(self, moment: int) -> bool:
        """Whether a line was written while this answer was read, and is not one told again, whatever the clock did."""
        now = self._asked + int((self._clock.monotonic() - self._began) * 1e9)
        return self._asked + LIVE <= moment <= now + LIVE

    def _count(self, moment: int) -> None:
        self._repeats = self._repeats + 1 if moment == self._last else 1
        self._last = moment
        if moment > self._high:
            self._high = moment

    def _told(self, line: bytes) -> tuple[int, bytes]:
        """The moment in nanoseconds, and the line behind it."""
        if line[29:31] == b"Z " and line[19:20] == b".":
            if line[:19] != self._second:
                self._second_began = _second(line[:19], b"Z") or 0
                self._second = line[:19] if self._second_began else b""
            if self._second:
                try:
                    return self._second_began + int(line[20:29]), line[31:]
                except ValueError:
                    pass
        stamp, _, text = line.partition(b" ")
        found = _STAMP.fullmatch(stamp)
        began = _second(found[1], found[3]) if found else None
        if found is None or began is None:
            return self._last, line
        return began + int((found[2] or b"").ljust(9, b"0")), text


def _second(text: bytes, zone: bytes) -> int | None:
    """Nanoseconds since the epoch of `2026-11-20T19:04:42` and `Z` or `+01:00`."""
    try:
        return int(datetime.fromisoformat((text + zone).decode()).timestamp()) * 1_000_000_000
    except ValueError:
        return None


class DockerLogs:
    """Follows the containers of Immich, each in a thread of its own, however often they are made anew.

    Components in `without` are left alone. `failure` is why the engine cannot be asked, None while it can.
    """

    def __init__(
        self,
        engine: Engine,
        matching: Matching,
        intake: Intake,
        budget: Budget,
        *,
        without: Collection[str] = (),
        clock: Clock | None = None,
        quiet: float = QUIET_SECONDS,
        list_seconds: float = LIST_SECONDS,
    ) -> None:
        self._docker = engine
        self._finder = Finder(engine, matching)
        self._intake = intake
        self._budget = budget
        self._without = frozenset(without)
        self._clock = clock or SystemClock()
        self._quiet = quiet
        self._list_seconds = list_seconds
        self._since = None if intake.since is None else intake.since - CLOCKS_DIFFER
        self._finding = threading.Lock()
        self._streams: Mapping[str, _Stream] = {}
        self._seen: dict[str, None] = {}
        self._woken = threading.Event()
        self.failure: CollectorFailure | None = None

    def look(self, deadline: Deadline) -> None:
        """Find out what can be followed, without following it."""
        self._find(deadline)
        for stream in self._streams.values():
            stream.look(Deadline.after(min(LOOK_SECONDS, deadline.remaining()), deadline.clock))

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow until `stop()`."""
        due, pause = 0.0, self._list_seconds
        try:
            while not stop():
                self._woken.clear()
                if self._clock.monotonic() >= due:
                    self._find(Deadline.after(CONNECT_SECONDS, self._clock))
                    due = self._clock.monotonic() + pause
                    pause = min(2 * pause, self._list_seconds)
                moments = [stream.keep_going(stop, self._woken.set) for stream in self._streams.values()]
                if self._woken.wait(max(0.0, min([due, *moments]) - self._clock.monotonic())):
                    # An answer has ended: most often with its container, and another one will take its place soon.
                    pause = min(AGAIN_SECONDS, self._list_seconds)
                    due = min(due, self._clock.monotonic() + pause)
        finally:
            for stream in self._streams.values():
                stream.cut()

    def followed(self) -> Sequence[Followed]:
        """Each component's log; one of several containers that cannot be read counts as all of them."""
        streams = list(self._streams.values())
        found = []
        for component in tuple(self._seen):
            its = [stream for stream in streams if stream.part.component == component]
            problem = next((stream.problem for stream in its if stream.problem), None)
            up = bool(its) and self.failure is None and all(stream.up for stream in its)
            found.append(Followed(component, up, problem))
        return found

    def close(self) -> None:
        self._docker.close()
        self._woken.set()

    def _find(self, deadline: Deadline) -> None:
        with self._finding:  # `look` may be under way when `run` begins
            self._find_parts(deadline)

    def _find_parts(self, deadline: Deadline) -> None:
        asked = self._clock.time()
        try:
            parts = self._finder.parts(deadline)
        except CollectorFailure as failure:
            self.failure = failure.to_keep()
            return
        self.failure = None
        wanted = [part for part in parts if part.component not in self._without][:MOST_STREAMS]
        streams: dict[str, _Stream] = {}
        for part in wanted:
            identity = part.container.id
            known = self._streams.get(identity)
            if known is None or known.part.component != part.component:
                known = self._opened(part)
            else:
                known.part = part
            streams[identity] = known
        # The stream of one that is gone ends by itself, with its last lines.
        self._intake.retain(KIND, [_key(identity) for identity in streams])
        if self._since is None:
            self._since = asked - CLOCKS_DIFFER  # what is made later is read from its beginning
        self._streams = streams
        self._seen.update(dict.fromkeys(part.component for part in wanted))

    def _opened(self, part: Part) -> "_Stream":
        mark = Mark.of(self._intake.place(_key(part.container.id)))
        if mark is None and self._since is not None:
            mark = Mark.at(self._since)
        return _Stream(self._docker, part, mark, self._intake, self._budget, self._clock, self._quiet)


class _Stream:
    """One container's log: one answer after the other, each in the stream's own flight."""

    def __init__(
        self,
        docker: Engine,
        part: Part,
        mark: Mark | None,
        intake: Intake,
        budget: Budget,
        clock: Clock,
        quiet: float,
    ) -> None:
        self.part = part
        self.up = False
        self.problem: Remark | None = None
        self._docker = docker
        self._take = intake.open(_key(part.container.id), part.component)
        self._budget = budget
        self._clock = clock
        self._quiet = quiet
        self._frames = Frames(mark, clock) if mark else None
        self._flight: Flight[bool] = Flight("log-stream")
        self._future: Future[bool] | None = None
        self._answer: Bytes | None = None
        self._due = 0.0
        self._pause = AGAIN_SECONDS
        self._state = part.container.state
        self._jump = self._damaged = False

    def look(self, deadline: Deadline) -> None:
        """Find out whether the log can be read."""
        answer = self._asked(deadline, tail=0, follow=False)
        if answer is not None:
            answer.close()

    def keep_going(self, stop: Callable[[], bool], ended: Callable[[], None]) -> float:
        """Begin an answer when there is none and it is time for one.

        Gives the moment (monotonic) of the next look; `ended` is called when the answer has ended before.
        """
        if self._future is not None:
            if not self._future.done():
                return math.inf
            future, self._future = self._future, None
            brought = future.result()
            running = self.part.container.state not in ("exited", "created", "dead")
            quick = brought or (running and self.up)
            self._pause = AGAIN_SECONDS if quick else min(2 * self._pause, AGAIN_LONGEST)
            self._due = self._clock.monotonic() + self._pause
        if self.part.container.state != self._state:
            self._state = self.part.container.state
            self._due = 0.0
        if self._clock.monotonic() >= self._due:
            self._future = self._flight.join_or_start(lambda: self._attempt(stop))
            self._future.add_done_callback(lambda _: ended())
            return math.inf
        return self._due

    def cut(self) -> None:
        """End the answer that is being read."""
        if self._answer is not None:
            self._answer.cut()

    def _attempt(self, stop: Callable[[], bool]) -> bool:
        """Read one answer to its end; whether it brought lines."""
        if self._frames is not None and not self._jump:
            far_back = self._frames.mark.high - self._frames.mark.last > FAR_BACK
            try:
                return self._follow(None if far_back else TAIL, stop)
            except _Gap:
                return self._follow(None, stop)
        return self._follow(0, stop)

    def _follow(self, tail: int | None, stop: Callable[[], bool]) -> bool:
        asked = self._clock.time()
        answer = self._asked(Deadline.after(CONNECT_SECONDS, self._clock), tail)
        if answer is None:
            return False
        began = int(on_its_clock(asked, answer.began) * 1e9)
        if self._frames is None:
            self._frames = Frames(Mark(began, 0, began), self._clock)
        self._frames.begin(began, limited=bool(tail), anew=tail == 0)
        self._answer = answer
        self._jump = False
        with answer:
            try:
                return self._read(answer, self._frames, stop)
            except CollectorFailure as failure:
                self._failed(failure)
                return False

    def _failed(self, failure: CollectorFailure) -> None:
        message = failure.message.replace(self.part.container.id, self.part.container.name)
        self.up, self.problem = False, Remark(message, failure.mend)

    def _asked(self, deadline: Deadline, tail: int | None, *, follow: bool = True) -> "Bytes | None":
        since = self._frames.mark.since if self._frames and tail != 0 else None
        try:
            answer = self._docker.logs(self.part.container.id, deadline, since=since, tail=tail, follow=follow)
        except CollectorFailure as failure:
            self._failed(failure)
            return None
        self.up = answer is not None
        if not self._damaged:
            self.problem = None
        return answer

    def _read(self, answer: "Bytes", frames: Frames, stop: Callable[[], bool]) -> bool:
        brought = False
        quiet, silence = min(STALL_SECONDS, self._quiet), 0.0
        while not stop():
            used = time.thread_time()
            piece = answer.read(quiet)
            if piece is None:
                silence += quiet
                if silence >= self._quiet:
                    return True
                if self._stalls(frames):
                    # Later on, or after lines, it may as well be the connection that is dead: a new answer shows.
                    if silence == quiet and not brought:
                        self._skip_damage()
                    return True
                quiet = min(2 * quiet, self._quiet - silence)
                continue
            quiet, silence = min(STALL_SECONDS, self._quiet), 0.0
            lines, moments = frames.feed(piece) if piece else frames.rest(answer.complete)
            if lines:
                brought = True
                self._take(Batch(lines, moments, frames.mark.place))
            if frames.broken:
                self._skip_damage()
                return True
            if not piece:
                break
            self._budget.spend(time.thread_time() - used, stop)
        return brought

    def _stalls(self, frames: Frames) -> bool:
        """Whether the engine has had a newer line for a while and does not tell it: it cannot read on in its file."""
        try:
            answer = self._docker.logs(
                self.part.container.id, Deadline.after(CONNECT_SECONDS, self._clock), tail=1, follow=False
            )
        except CollectorFailure:
            return False
        if answer is None:
            return False
        with answer:
            peek = Frames(Mark(0, 0, 0))
            told = answer.began or self._clock.time()
            peek.begin(0)
            moments: list[float] = []
            while piece := answer.read(CONNECT_SECONDS):
                moments += peek.feed(piece)[1] + peek.rest(complete=False)[1]
        newest = max(moments, default=0.0)
        return newest * 1e9 > frames.mark.high + OVERLAP and told - newest > LIVE / 1e9

    def _skip_damage(self) -> None:
        self._jump = self._damaged = True
        self.problem = Remark(
            f"Docker cannot read on in the log of {self.part.container.name}: its file is damaged;"
            " it is followed from now on",
            mend="make the container anew (docker compose up -d --force-recreate <service>), so that it gets a new log",
        )


class _Gap(Exception):
    """Of the lines that were asked for, the first is newer than what is known: there may be others before it."""


def _key(container: str) -> str:
    return f"{KIND}:{container}"
