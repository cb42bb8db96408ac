"""Logs hold anything: no bytes are an error of ours, take long, or count twice."""

import io
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals import log_match
from immich_vitals.collector import Unavailable
from immich_vitals.log_text import body, core, taken_apart
from immich_vitals.signatures import COMPONENTS, LONGEST_LINE, NOTHING, Catalogue, CatalogueError, Reader
from immich_vitals.sources.docker_logs import Frames, Mark
from immich_vitals.sources.http_within import _Chunks
from immich_vitals.sources.log_files import FileLogs
from immich_vitals.sources.log_journal import Export
from immich_vitals.sources.log_lines import Batch, Budget, Splitter
from support.fuzz import JSON, fuzzed

CATALOGUE = Catalogue.load()
EXAMPLES = sorted({line.encode() for entry in CATALOGUE.entries for line in (*entry.matches, *entry.misses)})
HEADS = (
    b"", b"immich_server  | ", b"[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~jsbd6sja] ", b"\t", b"Error: ",
    b"2026-11-20T19:04:42Z ", b'{"log":"', b"[pod/immich/server] ", b"Nov 20 19:04:42 host immich[7]: ", b"\x1b[32m",
    b"   at ", b"[11/20/26 19:04:42] ERROR ",
    b"1:M 20 Nov 2026 19:04:42.000 # ", b"cause: ", b"DETAIL:  ", b"\xe2\x94\x82 ",
)  # fmt: skip
BITS = (b" ", b"\0", b"[", b"]", b"(", b")", b"{", b'"', b"\\", b":", b"a", b"0", b"-", b"at ", b"Error: ", b"\xff")
TEXT = st.one_of(
    st.sampled_from(EXAMPLES),
    st.binary(max_size=200),
    st.builds(lambda bit, many: (bit * many)[:LONGEST_LINE], st.sampled_from(BITS), st.integers(1, LONGEST_LINE)),
    st.builds(
        lambda line, at, bit: line[: at % (len(line) + 1)] + bit + line[at % (len(line) + 1) :],
        st.sampled_from(EXAMPLES), st.integers(0, 500), st.sampled_from(BITS) | st.binary(max_size=5),
    ),
)  # fmt: skip
LINES = st.builds(
    lambda heads, text: (b"".join(heads) + text).replace(b"\n", b"")[:LONGEST_LINE],
    st.lists(st.sampled_from(HEADS), max_size=3),
    TEXT,
)
SECONDS = 1.0  # for what takes milliseconds on a machine at rest


@fuzzed
@given(LINES, st.sampled_from(COMPONENTS))
def test_a_line_taken_apart(line: bytes, component: str) -> None:
    """The text of a line is found in whatever stands before it, in a time that does not grow with what it holds."""
    began = time.thread_time()
    text = body(line)
    found = taken_apart(text, component)
    assert len(core(found.said or found.text)) <= 300
    assert time.thread_time() - began < SECONDS


@fuzzed
@given(st.lists(LINES, max_size=20), st.sampled_from(COMPONENTS), st.booleans(), st.floats())
def test_signatures_of_any_lines(lines: list[bytes], component: str, timed: bool, moment: float) -> None:
    """Each line counts as one signature at most, of those the component has; the same lines a second time are found
    again in time, too."""
    reader = Reader(CATALOGUE, component)
    began = time.thread_time()
    for _ in range(2):
        found = reader.feed(lines, [moment] * len(lines) if timed else None)
        indexes = [index for index, _ in found]
        assert indexes == sorted(set(indexes))
        assert {signature for _, signature in found} <= set(CATALOGUE.signatures(component))
        assert all(0 <= index < len(lines) for index in indexes)
    assert time.thread_time() - began < SECONDS * (1 + len(lines))


@fuzzed
@given(st.lists(LINES, max_size=20), st.sampled_from(COMPONENTS), st.lists(st.integers(0, 20), max_size=4))
def test_how_lines_are_fed_says_nothing(lines: list[bytes], component: str, cuts: list[int]) -> None:
    """The same lines give the same events whether they come at once or in parts."""
    whole = Reader(CATALOGUE, component).feed(lines, None)
    reader, found, at = Reader(CATALOGUE, component), [], 0
    for cut in [*sorted(min(cut, len(lines)) for cut in cuts), len(lines)]:
        found += [(index + at, signature) for index, signature in reader.feed(lines[at:cut], None)]
        at = cut
    assert found == whole


@fuzzed
@given(st.binary() | st.lists(LINES).map(b"\n".join), st.lists(st.integers(1, 100), max_size=5))
@example(b"a" * 40_000 + b"\nENOSPC: no space left on device\n", [])
def test_log_match(said: bytes, pieces: list[int]) -> None:
    """`log-match` gives back every line as it came, behind one signature."""
    source, sizes, target = io.BytesIO(said), iter(pieces), io.BytesIO()
    log_match.run("server", None, lambda size: source.read(min(size, next(sizes, size))), target)
    answers = target.getvalue().split(b"\n")[:-1]
    lines = said.split(b"\n")
    assert [answer.partition(b"\t")[2] for answer in answers] == (lines if lines[-1] else lines[:-1])
    known = {NOTHING, *CATALOGUE.signatures("server")}
    assert {answer.partition(b"\t")[0].decode() for answer in answers} <= known


STAMPS = st.sampled_from(
    (b"2026-11-20T19:04:42.459134483Z ", b"2026-11-20T19:04:42.459134484Z ", b"0000-00-00T00:00:00.000000000Z ",
     b"0001-01-01T00:00:00.000000000Z ", b"9999-12-31T23:59:59.999999999Z ", b"2026-11-20T19:04:42.4591344  Z ",
     b"2026-11-20T19:04:42+01:00 ", b"2026-11-20T19:04:42-23:59 ", b"2026-11-20T19:04:42+99:99 ", b"", b" ")
)  # fmt: skip
ENDS = st.sampled_from((b"\n", b"\r\n", b"", b"\n\n"))
TOLD = st.builds(lambda stamp, text, end: stamp + text + end, STAMPS, st.binary(max_size=30) | LINES, ENDS)
FRAMES = st.builds(
    lambda kind, told, lie: bytes([kind]) + b"\0\0\0" + max(0, len(told) + lie).to_bytes(4, "big") + told,
    st.integers(0, 4), TOLD, st.sampled_from((0, 0, 0, 0, 1, -1, 2**31)),
)  # fmt: skip
STREAMS = st.one_of(
    st.binary(max_size=300), st.lists(FRAMES, max_size=8).map(b"".join), st.lists(TOLD, max_size=8).map(b"".join)
)


@fuzzed
@given(STREAMS, st.lists(st.integers(1, 60), max_size=10), st.integers(-(10**18), 10**19), st.integers(0, 3))
@example(b"\x01\0\0\0\0\0\0\0", [], 0, 0)
def test_docker_frames(stream: bytes, sizes: list[int], last: int, repeats: int) -> None:
    """A container's log gives lines and their moments, or is told to be none."""
    frames = Frames(Mark(last, repeats, last))
    frames.begin(last)
    try:
        for piece in _pieces(stream, sizes):
            lines, moments = frames.feed(piece)
            assert len(lines) == len(moments)
            assert all(len(line) <= LONGEST_LINE for line in lines)
        lines, moments = frames.rest(complete=True)
        assert len(lines) == len(moments)
    except Unavailable:
        pass
    assert frames.mark.since
    assert Mark.of(frames.mark.place) == frames.mark


@fuzzed
@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line), max_size=8), st.data())
def test_docker_frames_of_a_sound_log(texts: list[bytes], data: st.DataObject) -> None:
    """However the bytes of a sound log arrive, each line comes once."""
    told = [b"2026-11-20T19:04:42.%09dZ " % number + text + b"\n" for number, text in enumerate(texts)]
    stream = b"".join(b"\x01\0\0\0" + len(line).to_bytes(4, "big") + line for line in told)
    frames = Frames(Mark(0, 0, 0))
    found: list[bytes] = []
    for piece in _pieces(stream, data.draw(st.lists(st.integers(1, 40), max_size=20))):
        found += frames.feed(piece)[0]
    assert found == [text.removesuffix(b"\r") for text in texts]


@fuzzed
@given(STREAMS, st.lists(st.integers(1, 60), max_size=10))
@example(b"-5\r\nabc\r\n0\r\n\r\n", [])
def test_chunks(stream: bytes, sizes: list[int]) -> None:
    """What is in the chunks of an answer, or that there are none; sound ones come through whole."""
    chunks = _Chunks(Unavailable)
    try:
        for piece in _pieces(stream, sizes):
            chunks.feed(piece)
    except Unavailable:
        pass
    sound = _Chunks(Unavailable)
    wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(stream, sizes)) + b"0\r\n\r\n"
    assert b"".join(sound.feed(piece) for piece in _pieces(wire, sizes)) == stream
    assert sound.ended


FIELDS = st.one_of(
    st.sampled_from(
        (b"__CURSOR=s=1;i=2\n", b"__REALTIME_TIMESTAMP=1795000000000000\n", b"MESSAGE=ENOSPC\n", b"\n",
         b"__REALTIME_TIMESTAMP=" + b"9" * 5000 + b"\n", b"__REALTIME_TIMESTAMP=" + b"9" * 400 + b"\n",
         b"__REALTIME_TIMESTAMP=\xb2\n", b"__REALTIME_TIMESTAMP=-1\n", b"__CURSOR=\xff\n")
    ),
    st.builds(
        lambda text, lie: b"MESSAGE\n" + max(0, len(text) + lie).to_bytes(8, "little") + text + b"\n",
        st.binary(max_size=50), st.sampled_from((0, 0, 1, -1, 2**40)),
    ),
    st.binary(max_size=20),
)  # fmt: skip


@fuzzed
@given(st.lists(FIELDS, max_size=12).map(b"".join), st.lists(st.integers(1, 60), max_size=10))
@example(b"__CURSOR=x\n__REALTIME_TIMESTAMP=" + b"9" * 5000 + b"\nMESSAGE=y\n\n", [])
@example(b"__CURSOR=x\n__REALTIME_TIMESTAMP=" + b"9" * 400 + b"\nMESSAGE=y\n\n", [])
def test_journal(stream: bytes, sizes: list[int]) -> None:
    """A journal's export gives lines and their moments, or is told to be none."""
    export = Export()
    try:
        for piece in _pieces(stream, sizes):
            lines, moments = export.feed(piece)
            assert len(lines) == len(moments)
            assert all(len(line) <= LONGEST_LINE for line in lines)
    except Unavailable:
        pass


@fuzzed
@given(st.binary() | st.lists(LINES).map(b"\n".join), st.lists(st.integers(1, 100), max_size=10))
def test_splitter(said: bytes, sizes: list[int]) -> None:
    """Lines are cut from any pieces as from the whole, each no longer than is looked at."""
    splitter = Splitter()
    found: list[bytes] = []
    for piece in _pieces(said, sizes):
        found += splitter.lines(piece)
    found += splitter.rest()
    *lines, last = said.split(b"\n")
    wanted = [line[:LONGEST_LINE].removesuffix(b"\r") for line in lines] + ([last[:LONGEST_LINE]] if last else [])
    assert found == wanted


PLACES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("device", "inode", "offset", "skipping", "head", "head_size"), JSON)
)


class _Intake:
    """Takes the lines and has any place kept."""

    def __init__(self, place: object) -> None:
        self.since = None
        self.lines: list[bytes] = []
        self._place = place

    def place(self, key: str) -> object:
        return self._place

    def retain(self, kind: str, keys: Sequence[str]) -> None:
        pass

    def open(self, key: str, component: str) -> object:
        return lambda batch: self._take(batch)

    def _take(self, batch: Batch) -> None:
        self.lines += batch.lines


@fuzzed
@given(st.dictionaries(st.just("files"), st.lists(PLACES, max_size=3) | JSON), st.binary(max_size=200))
@example({"files": [{"device": 2**70, "inode": 1, "offset": 2**70, "head": "", "head_size": 2**70}]}, b"a\n")
def test_log_file_and_any_place(folder: Path, kept: dict[str, object], said: bytes) -> None:
    """A file is followed whatever was kept as the place in it."""
    path = folder / "any.log"
    path.write_bytes(said)
    intake = _Intake(kept)
    logs = FileLogs({"server": str(path)}, intake, Budget(), look_seconds=0)  # type: ignore[arg-type]
    looks = iter((False, False))
    logs._logs[0].run(lambda: next(looks, True))
    assert logs._logs[0].up


@fuzzed
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(b"signatures: [{signature: 2001-99-99}]")
@example(b"signatures: " + b"[" * 3000)
@example(b"signatures:\n- {? {a: b} : c}")
def test_catalogue_of_ones_own(folder: Path, text: bytes) -> None:
    """A catalogue is accepted or told what is wrong with it."""
    path = folder / "own.yml"
    path.write_bytes(text)
    try:
        Catalogue.load(path)
    except CatalogueError as error:
        assert all(str(path) in mistake for mistake in error.mistakes)


def _pieces(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The stream in pieces of these sizes, the last as long as it is."""
    found, at = [], 0
    for size in sizes:
        if at < len(stream):
            found.append(stream[at : at + size])
            at += size
    return [*found, stream[at:]] if at < len(stream) else found
