"""`immich-vitals log-match`: says for each line on standard input what it would count as."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from immich_vitals.signatures import LONGEST_LINE, NOTHING, Catalogue, Reader

PIECE = 1 << 16


def run(component: str, own: Path | None, read: Callable[[int], bytes], target: BinaryIO) -> None:
    """Write `signature<TAB>line` for each line, `-` for one that counts as nothing.

    Lines pass through as they are, whatever their bytes. What is there is answered at once, and at most one piece is
    kept, however long a line is. `read` gives at most so many bytes, as soon as there are some, and none at the end.
    Raises `CatalogueError`.
    """
    answer = _Answer(Reader(Catalogue.load(own), component), target)
    kept, inside = b"", False  # inside: what comes belongs to a long line whose beginning was answered
    while piece := read(PIECE):
        if inside:
            rest, end, piece = piece.partition(b"\n")
            target.write(rest + end)
            inside = not end
        *lines, kept = (kept + piece).split(b"\n")
        answer.lines(lines)
        if len(kept) >= LONGEST_LINE:
            answer.lines([kept], end=b"")
            kept, inside = b"", True
        target.flush()
    if kept:
        answer.lines([kept])
    elif inside:
        target.write(b"\n")
    target.flush()


class _Answer:
    def __init__(self, reader: Reader, target: BinaryIO) -> None:
        self._reader = reader
        self._target = target

    def lines(self, lines: Sequence[bytes], end: bytes = b"\n") -> None:
        found = dict(self._reader.feed([line[:LONGEST_LINE].rstrip(b"\r") for line in lines], None))
        for number, line in enumerate(lines):
            self._target.write(b"%b\t%b%b" % (found.get(number, NOTHING).encode(), line, end))
