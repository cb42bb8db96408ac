"""GET requests within a deadline, for sources that talk to an API of HTTP: time-outs that hold for whole answers.

urllib3 gives the connections, their pool and TLS; its own time-outs are for each read. What an API refuses, and what
that means, is its source's own business.
"""

import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from immich_vitals import __version__
from immich_vitals.collector import CollectorFailure, Deadline, Unavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Far more than a list of thousands of containers; only something that is no such API says more.
LONGEST_ANSWER = 64 * 1024 * 1024
LONGEST_LINE = 1024 * 1024
READ_BYTES = 32 * 1024
POOL_SIZE = 10  # connections kept open; more are opened when more threads ask

Broken = Callable[[str], CollectorFailure]
Params = Mapping[str, str]

HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"immich-vitals/{__version__}"}


class PatientReader(io.RawIOBase):
    """Reads a socket until a moment: the time-out of a socket is for each of its reads, and an answer whose head
    drips has many. After a time-out it can be read on, unlike what `makefile` gives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = sock.makefile("rb", buffering=0)  # http.client closes the socket, and this keeps it open
        self.allow(sock.gettimeout() or 0.0)

    def allow(self, seconds: float) -> None:
        """Read on for so many seconds from now."""
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time left")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)

    def cut(self) -> None:
        """End the read that is under way, and all after it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._held.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that ends when its time is up, its head included."""

    def __init__(self, sock: socket.socket, *options: Any, **named: Any) -> None:
        super().__init__(sock, *options, **named)
        self.fp.close()
        self.reader = PatientReader(sock)
        self.fp = io.BufferedReader(self.reader)


class _TcpConnection(HTTPConnection):
    response_class = _Answer


class _TlsConnection(HTTPSConnection):
    response_class = _Answer


class TcpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _TcpConnection


class TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _UnixConnection(HTTPConnection):
    """A connection to a unix socket."""

    response_class = _Answer

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        self.sock = sock


class UnixPool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", maxsize=POOL_SIZE)
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        return _UnixConnection(self._path)


class Stream:
    """JSON objects that arrive one by one, each on a line. Close it after use.

    `broken` makes the failure out of how the stream broke, `parsed` the object out of a line. `ends`: it may end.
    """

    def __init__(
        self, response: urllib3.BaseHTTPResponse, quiet: float, broken: "Broken", parsed: Callable[[bytes], object],
        *, ends: bool = False,
    ) -> None:  # fmt: skip
        self._response = response
        self._quiet = quiet
        self._broken = broken
        self._parsed = parsed
        self._ends = ends

    @property
    def began(self) -> float | None:
        """When the answer began by the daemon's own clock, in seconds since the epoch, or None if it did not say."""
        return began_of(self._response)

    def objects(self) -> Iterator[object]:
        """The objects; ends when nothing came for `quiet` seconds. Raises the failure when the stream breaks."""
        buffer = b""
        set_timeout(self._response, self._quiet)
        while True:
            try:
                data = self._response.read1(65536)
            except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
                return
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._broken(type(error).__name__) from error
            if not data and self._ends:
                return
            if not data:
                raise self._broken("it ended")
            *lines, buffer = (buffer + data).split(b"\n")
            if len(buffer) > LONGEST_LINE:
                raise self._broken("it is no list of events")
            for line in lines:
                if line.strip():
                    yield self._parsed(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


class Bytes:
    """The bytes of an answer as they arrive. Close it after use.

    Read here, past http.client, since that gives each chunk on its own, and an engine makes one for each line.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, broken: "Broken") -> None:
        self._response = response
        answer = _answer(response)
        assert answer is not None
        self._answer = answer
        self._decode = _Chunks(broken) if self._answer.chunked else None

    @property
    def began(self) -> float | None:
        """As of `Stream`."""
        return began_of(self._response)

    def read(self, quiet: float) -> bytes | None:
        """The next bytes; empty at the end, None when nothing came for `quiet` seconds: then read on, or close.

        Raises the failure when it is no answer of HTTP.
        """
        until = time.monotonic() + quiet
        while self._decode is None or not self._decode.ended:
            try:
                self._answer.reader.allow(until - time.monotonic())
                data = self._answer.fp.read1(READ_BYTES)
            except TimeoutError:
                return None
            except (OSError, ValueError):
                return b""  # cut off: what is missing is asked for with the next question
            if not data:
                return b""
            if self._decode is None:
                return bytes(data)
            if data := self._decode.feed(data):
                return data
        return b""

    @property
    def complete(self) -> bool:
        """Whether the other side said that this is its end, and was not cut off."""
        return self._decode is not None and self._decode.ended

    def cut(self) -> None:
        """End a read that is under way in another thread."""
        self._answer.reader.cut()

    def close(self) -> None:
        self._answer.reader.cut()  # else closing would read on, to use the connection again
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Chunks:
    """What is inside the chunks of an answer."""

    def __init__(self, broken: "Broken") -> None:
        self._broken = broken
        self._rest = b""
        self._left = 0  # bytes that the chunk at hand still has
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """What these bytes hold of it. Raises the failure when they are no chunks."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        found = []
        while at < end and not self.ended:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                found.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left > 2:
                    break
            if self._left:
                if end - at < 2:
                    break
                at += 2
                self._left = 0
            head = data.find(b"\r\n", at)
            if head < 0:
                break
            try:
                size = int(data[at:head].partition(b";")[0], 16)
            except ValueError:
                raise self._broken("it is not made of chunks") from None
            at = head + 2
            self.ended = size == 0
            self._left = size + 2
        self._rest = data[at:]
        if len(self._rest) > LONGEST_LINE:
            raise self._broken("it is not made of chunks")
        return b"".join(found)


def asked(
    pool: urllib3.HTTPConnectionPool, path: str, params: Params | None, limit: float, headers: Mapping[str, str]
) -> urllib3.BaseHTTPResponse:
    """The head of the answer to GET; its body is still to be read. Raises urllib3's errors, without a second try."""
    url = path + (f"?{urlencode(params)}" if params else "")
    return pool.urlopen(
        "GET", url, headers=headers, timeout=limit, retries=False, redirect=False, preload_content=False,
        decode_content=False,
    )  # fmt: skip


def body_of(response: urllib3.BaseHTTPResponse, deadline: Deadline, whose: str, setting: str) -> bytes:
    """The whole body, however slowly it drips, unless the deadline passes."""
    body = bytearray()
    while True:
        set_timeout(response, deadline.limit(f"read {whose}'s answer"))
        data = response.read1(1024 * 1024)
        if not data:
            return bytes(body)
        body += data
        if len(body) > LONGEST_ANSWER:
            raise Unavailable(f"{whose}'s answer is too long to be one", mend=f"look what it is that {setting} names")


def set_timeout(response: urllib3.BaseHTTPResponse, seconds: float) -> None:
    """Limit the next read of an answer."""
    answer = _answer(response)
    if answer is not None:
        answer.reader.allow(seconds)


def _answer(response: urllib3.BaseHTTPResponse) -> _Answer | None:
    """What urllib3 reads from, as it has no way to it itself; None once it is read to its end."""
    answer = getattr(response, "_fp", None)
    return answer if isinstance(answer, _Answer) else None


def began_of(response: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except ValueError:
        return None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The exception and those it wraps: urllib3 wraps the operating system."""
    seen: list[BaseException] = [error]
    for cause in seen:
        yield cause
        wrapped = [cause.__cause__, cause.__context__, *cause.args]
        seen.extend(each for each in wrapped if isinstance(each, BaseException) and each not in seen)


def is_timeout(cause: BaseException) -> bool:
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        return False  # urllib3 counts a refused connection among the time-outs
    return isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError)


def name_of(causes: list[BaseException]) -> str:
    """The operating system's word for it, if it said one."""
    return next(
        (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "no reason given"
    )
