"""Whether a dump of Postgres is whole. Reads it from end to end, slowly and once."""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import BinaryIO

from immich_vitals.sources.pace import Pace

READ_BYTES = 256 * 1024
MOST_UNPACKED = 1024 * 1024  # at a time: a few bytes of gzip can stand for gigabytes
# The closing line of a dump is followed by a comment sign and, since 2025, by `\unrestrict` with a key.
END_BYTES = 4096
END_LINES = 10
_GZIP = b"\x1f\x8b"
# Each kind of dump by its first lines, and the line that ends it.
_KINDS = (
    (b"-- PostgreSQL database cluster dump", b"-- PostgreSQL database cluster dump complete"),
    (b"-- PostgreSQL database dump", b"-- PostgreSQL database dump complete"),
)


class Verdict(StrEnum):
    """What was found out about a dump."""

    WHOLE = "whole"
    EMPTY = "empty"
    DAMAGED = "damaged"  # its compression does not check out
    CUT = "cut"  # it ends before its closing line
    UNKNOWN = "unknown"  # neither SQL of pg_dump nor gzip of it, so nothing tells


def verify(path: str, packed: bool, pace: Pace, stop: Callable[[], bool]) -> Verdict | None:
    """Read the dump to its end. `packed`: it must be gzip of SQL, as Immich's own dumps are.

    None when `stop()` became true or somebody wrote to the file meanwhile. Raises `OSError`.
    """
    # Not blocking: a FIFO that somebody put there would hang.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            return Verdict.UNKNOWN
        verdict = _verdict(_raw(file, pace, stop), packed, pace, stop)
        after = os.fstat(file.fileno())
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    return None if changed or stop() else verdict


def _verdict(raw: Iterator[bytes], packed: bool, pace: Pace, stop: Callable[[], bool]) -> Verdict:
    first = next(raw, b"")
    if not first:
        return Verdict.EMPTY
    gzip = first.startswith(_GZIP)
    if packed and not gzip:
        return Verdict.DAMAGED
    head = tail = b""
    try:
        for piece in _unpacked(first, raw, pace, stop) if gzip else _again(first, raw):
            if len(head) < END_BYTES:
                head += piece[:END_BYTES]
                if not packed and not gzip and _closing(head) is None:
                    return Verdict.UNKNOWN  # not worth reading on
            tail = (tail + piece[-END_BYTES:])[-END_BYTES:]
    except (zlib.error, EOFError):
        return Verdict.DAMAGED
    closing = _closing(head)
    if closing is None:
        return Verdict.CUT if packed else Verdict.UNKNOWN
    lines = [line.rstrip() for line in tail.split(b"\n") if line.strip()]
    return Verdict.WHOLE if closing in lines[-END_LINES:] else Verdict.CUT


def _closing(head: bytes) -> bytes | None:
    lines = head.split(b"\n", 5)[:5]
    return next((closing for opening, closing in _KINDS if any(line.rstrip() == opening for line in lines)), None)


def _raw(file: BinaryIO, pace: Pace, stop: Callable[[], bool]) -> Iterator[bytes]:
    """The file in pieces, at its pace, and not kept in the page cache, where Immich's own files are of more use."""
    while not stop():
        piece = file.read(READ_BYTES)
        if not piece:
            return
        pace.take(len(piece), stop)
        os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
        yield piece


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _unpacked(first: bytes, rest: Iterator[bytes], pace: Pace, stop: Callable[[], bool]) -> Iterator[bytes]:
    """What is in a gzip file of one or more members. Raises `zlib.error` or `EOFError` when it is damaged or cut."""
    member = zlib.decompressobj(wbits=31)
    for piece in _again(first, rest):
        left = piece
        while left and not stop():
            if member.eof:
                if not left.strip(b"\0"):
                    break  # padding, as some tools add it
                member = zlib.decompressobj(wbits=31)
            content = member.decompress(left, MOST_UNPACKED)
            left = member.unused_data if member.eof else member.unconsumed_tail
            pace.take(
                len(content) / 100, stop
            )  # SQL packs to a tenth; what packs to nothing shall not cost a processor
            yield content
    if not member.eof and not stop():
        raise EOFError
