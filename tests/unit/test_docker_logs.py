"""What an engine sends as a log becomes lines, each once, whatever is told again, cut or set back."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast

import pytest

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.signatures import LONGEST_LINE
from immich_vitals.sources import docker_logs
from immich_vitals.sources.docker import Docker, Listed
from immich_vitals.sources.docker_components import Part
from immich_vitals.sources.docker_logs import Frames, Mark, _Gap, _Stream
from immich_vitals.sources.log_lines import Batch, Budget, Place
from support.clock import FakeClock

NOON = 1_800_000_000_000_000_000
SECOND = 1_000_000_000


def stamp(moment: int) -> bytes:
    second, rest = divmod(moment, SECOND)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z ".encode()


def frame(moment: int, text: bytes, kind: int = 1) -> bytes:
    payload = stamp(moment) + text
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def begun(mark: Mark, asked: int = NOON, *, limited: bool = False, anew: bool = False) -> Frames:
    frames = Frames(mark)
    frames.begin(asked, limited=limited, anew=anew)
    return frames


def new(frames: Frames, *told: bytes) -> list[bytes]:
    return frames.feed(b"".join(told))[0]


@pytest.mark.parametrize("size", [1, 5, 8, 100, 10_000])
def test_pieces(size: int) -> None:
    """The same lines and moments come out however the bytes are cut, with and without a terminal."""
    lines = [b"one", b"", b"three \xff\x00", b"four"]
    moments = [NOON + number for number in range(4)]
    framed = b"".join(frame(moment, line + b"\n", 2) for moment, line in zip(moments, lines, strict=True))
    plain = b"".join(stamp(moment) + line + b"\r\n" for moment, line in zip(moments, lines, strict=True))
    for data in (framed, plain):
        frames = begun(Mark(0, 0, 0), anew=True)
        found = [frames.feed(data[at : at + size]) for at in range(0, len(data), size)]
        assert [line for some, _ in found for line in some] == lines
        assert [moment for _, some in found for moment in some] == [moment / 1e9 for moment in moments]
        assert frames.mark == Mark(moments[-1], 1, moments[-1])


def test_a_line_in_pieces() -> None:
    """Docker cuts lines at 16 KiB under one moment, beside lines of the other stream; Podman at any length, at once."""
    piece = b"x" * 16384
    frames = begun(Mark(0, 0, 0), anew=True)
    told = [frame(NOON, piece), frame(NOON + 5, b"other\n", 2), frame(NOON, piece), frame(NOON, b"end\n")]
    assert new(frames, *told) == [b"other", piece[:LONGEST_LINE]]
    assert new(frames, frame(NOON + 10, b"pod"), frame(NOON + 20, b"man\n")) == [b"podman"]


def test_the_end_of_a_run_without_a_line_end() -> None:
    """It is a line of its own: when the stream ends, and when the next run begins."""
    frames = begun(Mark(0, 0, 0), anew=True)
    assert new(frames, frame(NOON, b"tail"), frame(NOON + SECOND, b"next run\n")) == [b"tail", b"next run"]
    assert new(frames, frame(NOON + 2 * SECOND, b"last")) == []
    assert frames.rest(complete=True) == ([b"last"], [(NOON + 2 * SECOND) / 1e9])
    assert frames.rest(complete=True) == ([], [])
    plain = begun(Mark(0, 0, 0), anew=True)
    assert new(plain, stamp(NOON) + b"tail") == []
    assert plain.rest(complete=True) == ([b"tail"], [NOON / 1e9])
    plain.begin(NOON)
    own = stamp(NOON - SECOND) + b"Z x"  # a moment that the program wrote is no beginning
    assert new(plain, stamp(NOON) + b"tail" + stamp(NOON + SECOND) + own + b"\r\n") == [own]
    plain = begun(Mark(NOON, 1, NOON))
    assert new(plain, stamp(NOON) + b"tail\r\n", stamp(NOON + 1) + b"ne") == []
    assert plain.rest(complete=False) == ([], [])  # cut off: it will be told again


def test_goes_on_behind_what_is_known() -> None:
    """Of lines with the same moment those that were counted are known and the others new."""
    frames = begun(Mark(NOON, 2, NOON))
    told = [frame(NOON - 5, b"a\n"), *[frame(NOON, each) for each in (b"b\n", b"c\n", b"d\n")], frame(NOON + 1, b"e\n")]
    assert new(frames, *told) == [b"d", b"e"]
    assert frames.mark == Mark(NOON + 1, 1, NOON + 1)


def test_clock_set_back() -> None:
    """Lines behind a step of the clock are counted once, live and when they are told again."""
    clock = FakeClock()
    frames = Frames(Mark(0, 0, 0), clock)
    frames.begin(NOON, anew=True)
    before = [frame(NOON, b"a\n"), frame(NOON + 1, b"b\n")]
    after = [frame(NOON - 3600 * SECOND, b"c\n"), frame(NOON - 3599 * SECOND, b"d\n")]
    assert new(frames, *before, *after) == [b"a", b"b", b"c", b"d"]
    assert frames.mark == Mark(NOON - 3599 * SECOND, 1, NOON + 1)
    frames.begin(NOON - 3598 * SECOND)
    assert new(frames, *before, *after, frame(NOON - 3597 * SECOND, b"e\n")) == [b"e"]
    # The last known line was rotated away: what comes live is new all the same.
    frames.begin(NOON - 3500 * SECOND)
    clock.advance(6)
    assert new(frames, *before, frame(NOON - 3494 * SECOND, b"f\n")) == [b"f"]


def test_lines_of_two_streams_in_another_order() -> None:
    """A line that follows one with a later moment is neither lost nor counted twice."""
    frames = begun(Mark(0, 0, 0), anew=True)
    assert new(frames, frame(NOON + 9, b"a\n")) == [b"a"]
    frames.begin(NOON)
    assert new(frames, frame(NOON + 9, b"a\n"), frame(NOON + 3, b"b\n", 2)) == [b"b"]
    frames.begin(NOON)
    assert new(frames, frame(NOON + 9, b"a\n"), frame(NOON + 3, b"b\n", 2), frame(NOON + 10, b"c\n")) == [b"c"]


def test_told_twice_by_an_engine_that_rotates() -> None:
    """Lines that come again with the very same moments, one or several in a row, count once."""
    frames = begun(Mark(0, 0, 0), anew=True)
    assert new(frames, frame(NOON, b"a\n"), frame(NOON, b"a\n"), frame(NOON + 1, b"a\n")) == [b"a", b"a"]
    group = [frame(NOON + number, b"b\n") for number in (2, 3, 4)]
    assert new(frames, *group, *group, frame(NOON + 5, b"c\n")) == [b"b", b"b", b"b", b"c"]
    plain = begun(Mark(0, 0, 0), anew=True)
    assert new(plain, stamp(NOON) + b"a\r\n", stamp(NOON) + b"a\r\n") == [b"a"]


def test_too_few_of_the_last_lines() -> None:
    """When the last lines begin behind what is known, the caller has to ask for more."""
    with pytest.raises(_Gap):
        new(begun(Mark(NOON, 1, NOON), limited=True), frame(NOON + 1, b"a\n"))
    assert new(begun(Mark(NOON, 1, NOON)), frame(NOON + 1, b"a\n")) == [b"a"]
    assert new(begun(Mark(NOON, 1, NOON), limited=True), frame(NOON, b"a\n"), frame(NOON + 1, b"b\n")) == [b"b"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (b"2027-01-15T08:00:00.5Z a", NOON + SECOND // 2),
        (b"2027-01-15T09:00:00.000000001+01:00 a", NOON + 1),
        (b"2027-01-15T08:00:00Z a", NOON),
        (b"2027-01-15T08:00:00.00000000xZ a", None),
        (b"2027-13-15T08:00:00.000000000Z a", None),
        (b"no moment", None),
        (b"", None),
    ],
)
def test_moments(text: bytes, moment: int | None) -> None:
    """Docker's and Podman's forms are read; what has none is a line all the same, as old as the one before."""
    frames = begun(Mark(7, 1, 7), anew=True)
    payload = text + b"\n"
    lines, moments = frames.feed(b"\x01\0\0\0" + len(payload).to_bytes(4, "big") + payload)
    assert (lines, moments) == (([b"a"], [moment / 1e9]) if moment else ([text], [7 / 1e9]))


def test_a_frame_of_gigabytes_costs_its_beginning() -> None:
    """Its rest is thrown away as it comes, and the next frame is read."""
    frames = begun(Mark(0, 0, 0), anew=True)
    size = 3_000_000_000
    data = frame(NOON, b"z")[:4] + size.to_bytes(4, "big") + stamp(NOON)
    assert frames.feed(data) == ([], [])
    sent = len(data) - 8
    found: list[bytes] = []
    while sent < 2_000_000:
        found += frames.feed(b"z" * 100_000)[0]
        sent += 100_000
        assert len(frames._rest) <= 2 * docker_logs.LARGEST_FRAME
    assert found == [b"z" * LONGEST_LINE]
    frames._skip -= size - sent  # as if the rest had come
    assert new(frames, frame(NOON + 1, b"next\n")) == [b"next"]


def test_a_flood_is_counted_to_the_line() -> None:
    """Of a quarter of a million lines none is lost, and nothing is kept but the piece at hand."""
    block = b"".join(frame(NOON + number, b"GET /api/assets 200\n") for number in range(1000))
    frames = begun(Mark(0, 0, 0), anew=True)
    count = 0
    for second in range(250):
        told = block.replace(b"08:00:00", b"08:%02d:%02d" % divmod(second, 60))
        for at in range(0, len(told), 32768):
            count += len(frames.feed(told[at : at + 32768])[0])
        assert len(frames._rest) < 100
    assert count == 250_000


@pytest.mark.parametrize("data", [b"\x01\x00\x00\x09garbage", b"\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_no_log(data: bytes) -> None:
    """What is neither framed nor text is refused."""
    with pytest.raises(Unavailable):
        begun(Mark(0, 0, 0), anew=True).feed(data)


def test_an_engine_that_cannot_read_on_says_so() -> None:
    frames = begun(Mark(0, 0, 0), anew=True)
    assert new(frames, frame(NOON, b"a\n"), b"\x03\0\0\0\0\0\0\x05error") == [b"a"]
    assert frames.broken


@pytest.mark.parametrize("place", [None, {}, {"last": "1", "repeats": 1, "high": 1}, {"last": 1}])
def test_place_that_is_not_ours(place: Place | None) -> None:
    assert Mark.of(place) is None
    assert Mark.of(Mark(1, 2, 3).place) == Mark(1, 2, 3)


def test_asks_from_a_little_before() -> None:
    """The moment to ask for is written as Docker reads it."""
    assert Mark(NOON, 1, NOON + SECOND).since == "1799999999.990000000"
    assert Mark(0, 0, 0).since == "0.000000000"


class Told:
    """An answer that brings these pieces, and then silence, or its end."""

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces = list(pieces)
        self.began: float | None = None
        self.complete = True

    def read(self, quiet: float) -> bytes | None:
        return self._pieces.pop(0) if self._pieces else None

    def cut(self) -> None:
        """Nobody waits."""

    close = cut

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""


class Engine:
    """Answers questions about a log, in order, and notes what was asked."""

    def __init__(self, *answers: Told | None) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[int | None, bool]] = []

    def logs(
        self, container: str, deadline: Deadline, *, since: str | None = None, tail: int | None, follow: bool = True
    ) -> Told | None:
        self.asked.append((tail, follow))
        return self._answers.pop(0)


class Taken:
    """Takes the lines of one log."""

    since: float | None = None

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def place(self, key: str) -> Place | None:
        return None

    def open(self, key: str, component: str) -> Callable[[Batch], None]:
        return lambda batch: self.lines.extend(batch.lines)

    def retain(self, kind: str, keys: object) -> None:
        """All are kept."""


def stream_of(engine: Engine, taken: Taken, mark: Mark | None) -> _Stream:
    part = Part("server", Listed("1" * 64, "immich_server", "", "", "running", {}))
    docker = cast(Docker, engine)
    return _Stream(docker, part, mark, taken, Budget(1.0), FakeClock(NOON / SECOND), quiet=60.0)


@pytest.mark.parametrize("how", ["silence", "error"])
def test_an_engine_that_cannot_read_on(how: str) -> None:
    """Whether it says so or falls silent before its newest line, the log is followed from there on, with a remark."""
    broken = Told(b"\x03\0\0\0\0\0\0\x05error") if how == "error" else Told(None, None)
    newest = [Told(frame(NOON - 60 * SECOND, b"newest\n"), b"")] if how == "silence" else []
    engine = Engine(broken, *newest, Told(frame(NOON, b"live\n"), b""))
    taken = Taken()
    stream = stream_of(engine, taken, Mark(NOON - 90 * SECOND, 1, NOON - 90 * SECOND))
    stream._attempt(lambda: False)
    assert stream.problem is not None
    assert "its file is damaged" in stream.problem.message
    stream._attempt(lambda: False)
    assert taken.lines == [b"live"]
    assert engine.asked[-1] == (0, True)
    assert stream.up
    assert stream.problem is not None


def test_a_dead_connection_is_no_damage() -> None:
    """When a stream that was whole falls silent before the newest line, that line is asked for and nothing is lost."""
    known, first, second = (frame(NOON - ago * SECOND, b"%d\n" % ago) for ago in (99, 90, 60))
    engine = Engine(Told(known, first, None), Told(second, b""), Told(first, second, b""))
    taken = Taken()
    stream = stream_of(engine, taken, Mark(NOON - 99 * SECOND, 1, NOON - 99 * SECOND))
    for _ in range(2):
        stream._attempt(lambda: False)
    assert taken.lines == [b"90", b"60"]
    assert stream.problem is None


def test_a_quiet_log_is_no_fault() -> None:
    """An engine whose newest line is the one that is known is asked again after a while, and nothing is said."""
    newest = Told(frame(NOON - 90 * SECOND, b"known\n"), b"")
    engine = Engine(Told(frame(NOON - 90 * SECOND, b"known\n"), None, None, None), newest, newest)
    taken = Taken()
    stream = stream_of(engine, taken, Mark(NOON - 90 * SECOND, 1, NOON - 90 * SECOND))
    assert stream._attempt(lambda: False)
    assert (taken.lines, stream.up, stream.problem) == ([], True, None)


def test_more_lines_than_were_asked_for() -> None:
    """When a thousand lines do not reach back to what is known, all are asked for."""
    told = [frame(NOON + number, b"%d\n" % number) for number in range(4)]
    engine = Engine(Told(*told[2:], b""), Told(*told, b""))
    taken = Taken()
    stream_of(engine, taken, Mark(NOON, 1, NOON))._attempt(lambda: False)
    assert engine.asked == [(docker_logs.TAIL, True), (None, True)]
    assert taken.lines == [b"1", b"2", b"3"]


def test_a_container_that_is_gone() -> None:
    """It is not up, and no fault."""
    stream = stream_of(Engine(None), Taken(), None)
    assert not stream._attempt(lambda: False)
    assert (stream.up, stream.problem) == (False, None)


def test_what_is_no_log_is_said_and_tried_again() -> None:
    """Garbage in place of a log is a remark; the next answer may be better."""
    engine = Engine(Told(b"\x01garbage!"), Told(frame(NOON + 1, b"a\n"), b""), Told(frame(NOON + 1, b"a\n"), b""))
    taken = Taken()
    stream = stream_of(engine, taken, Mark(NOON, 1, NOON))
    assert not stream._attempt(lambda: False)
    assert not stream.up
    assert stream.problem is not None
    assert stream._attempt(lambda: False)
    assert (taken.lines, stream.up, stream.problem) == ([b"a"], True, None)
