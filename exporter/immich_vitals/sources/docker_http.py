"""GET requests to a Docker API within a deadline, and what its refusals mean.

urllib3 gives the connections, their pool and TLS. The Docker SDK is not used: it sends without a deadline for the whole
answer, follows events without a time-out, leaves sockets open that it could not connect, and takes half a millisecond
more for each request and 6 MB of memory. Nothing but GET is ever sent.

The module is imported when the first request is made, for those who have no Docker.
"""

import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from immich_vitals import __version__
from immich_vitals.collector import Absent, CollectorFailure, Deadline, TimedOut, Unavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Docker 25 to 29 speak this version; older and newer ones say which they speak instead.
API_VERSION = "1.44"
# Far more than a list of thousands of containers; only something that is no Docker API says more.
LONGEST_ANSWER = 64 * 1024 * 1024
LONGEST_LINE = 1024 * 1024
READ_BYTES = 32 * 1024
POOL_SIZE = 10  # connections kept open; more are opened when more threads ask

_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"immich-vitals/{__version__}"}

Params = Mapping[str, str]


class _PatientReader(io.RawIOBase):
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
        self.reader = _PatientReader(sock)
        self.fp = io.BufferedReader(self.reader)


class _TcpConnection(HTTPConnection):
    response_class = _Answer


class _TlsConnection(HTTPSConnection):
    response_class = _Answer


class _TcpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _TcpConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
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


class _UnixPool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", maxsize=POOL_SIZE)
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        return _UnixConnection(self._path)


class Connection:
    """The way to one Docker API. Any error but a plain refusal drops its sockets; the next request starts anew.

    `address` is `unix:///path`, `tcp://host:port` or `http(s)://host:port`; with `certificates`, the folder of
    `ca.pem`, `cert.pem` and `key.pem`, TLS is used. May be shared between threads.
    """

    def __init__(self, address: str, certificates: Path | None) -> None:
        self._address = address
        self._socket = Path(address.removeprefix("unix://")) if address.startswith("unix://") else None
        self._prefix = ""
        self._certificates = certificates
        self._version: str | None = None
        if self._socket is None:
            self._prefix = _server(address)[1]
        self._pool = self._new_pool()

    def get(self, path: str, deadline: Deadline, params: Params | None = None, longest: float | None = None) -> object:
        """The JSON that answers `GET path`, or None when there is no such thing (404, or 409 "is not running").

        `longest` is how many seconds it may take, besides the deadline. Raises `Absent`, `Unavailable`, `TimedOut`.
        """
        if longest is not None:
            deadline = Deadline(min(deadline.at, deadline.clock.monotonic() + longest), deadline.clock)
        with self._explained(path), self._open(path, params, deadline) as response:
            body = _body(response, deadline)
        if response.status in (404, 409):
            return None
        if response.status != 200:
            raise _refused(response, body)
        return _parsed(body, path)

    def stream(self, path: str, params: Params, deadline: Deadline, quiet: float) -> "Stream":
        """An answer that does not end; the deadline is for its beginning. Errors as of `get`.

        `quiet` is how many seconds of silence are waited for.
        """
        with self._explained(path):
            response = self._open(path, params, deadline)
            if response.status != 200:
                with response:
                    raise _refused(response, _body(response, deadline))
        return Stream(response, quiet)

    def bytes_of(self, path: str, params: Params, deadline: Deadline) -> "Bytes | None":
        """An answer of bytes that does not end, or None when there is no such thing; else as `stream`."""
        with self._explained(path):
            response = self._open(path, params, deadline)
            if response.status != 200:
                with response:
                    body = _body(response, deadline)
                if response.status in (404, 409):
                    return None
                raise _not_readable(path) if b"does not support reading" in body else _refused(response, body)
        return Bytes(response)

    def close(self) -> None:
        """Close the sockets; those in use end with their answer, and the next request makes a new one."""
        self._pool, dropped = self._new_pool(), self._pool
        dropped.close()

    def _new_pool(self) -> urllib3.HTTPConnectionPool:
        if self._socket is not None:
            return _UnixPool(self._socket)
        (host, port), _ = _server(self._address)
        scheme = urlsplit(self._address).scheme
        if scheme == "http" or (scheme == "tcp" and self._certificates is None):
            return _TcpPool(host, port, maxsize=POOL_SIZE)
        return _TlsPool(host, port, maxsize=POOL_SIZE, **(_tls(self._certificates) if self._certificates else {}))

    def _open(self, path: str, params: Params | None, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        """The beginning of the answer, asked for in a version of the API that the daemon speaks."""
        if self._version is None:
            self._version = self._negotiate(deadline)
        response = self._send(f"/v{self._version}{path}", params, deadline)
        if response.status == 400 and (spoken := _version_in(_body(response, deadline))):
            self._version = spoken
            response = self._send(f"/v{spoken}{path}", params, deadline)
        return response

    def _negotiate(self, deadline: Deadline) -> str:
        """The version to speak. Where a filtering proxy forbids the question: ours, and the daemon will correct us."""
        with self._send("/version", None, deadline) as response:
            body = _body(response, deadline)
        spoken = _parsed(body, "/version") if response.status == 200 else None
        facts = spoken if isinstance(spoken, dict) else {}
        newest, oldest = _number(facts.get("ApiVersion")), _number(facts.get("MinAPIVersion"))
        ours = _number(API_VERSION) or (0, 0)
        version = max(min(ours, newest or ours), oldest or (0, 0))
        return f"{version[0]}.{version[1]}"

    def _send(self, path: str, params: Params | None, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        limit = deadline.limit(f"ask Docker for {path}")
        url = self._prefix + path + (f"?{urlencode(params)}" if params else "")
        return self._pool.urlopen(
            "GET", url, headers=_HEADERS, timeout=limit, retries=False, redirect=False, preload_content=False,
            decode_content=False,
        )  # fmt: skip

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Turn what the transport raises into a sentence with a mend."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            self._version = None  # whoever answers next time may be another Docker
            raise self._explanation(error, path) from error

    def _explanation(self, error: Exception, path: str) -> CollectorFailure:
        causes = list(_causes(error))
        if any(_is_timeout(cause) for cause in causes):
            return TimedOut(
                f"Docker did not answer GET {path} in time",
                mend="look whether `docker ps` hangs, too; if it does, restart the Docker daemon",
            )
        if any(isinstance(cause, urllib3.exceptions.SSLError | ssl.SSLError) for cause in causes):
            return Unavailable(
                f"no TLS with Docker at {self._address}",
                mend="look whether DOCKER_TLS_VERIFY and the certificates in DOCKER_CERT_PATH fit the daemon's",
            )
        about_socket = _about_socket(self._socket, causes) if self._socket is not None else None
        return about_socket or Unavailable(
            f"Docker at {self._address} refused or broke the connection ({_name(causes)})",
            mend="look whether the Docker daemon, or the proxy that DOCKER_HOST names, is running",
        )


class Stream:
    """JSON objects that arrive one by one, each on a line. Close it after use."""

    def __init__(self, response: urllib3.BaseHTTPResponse, quiet: float) -> None:
        self._response = response
        self._quiet = quiet

    @property
    def began(self) -> float | None:
        """When the answer began by the daemon's own clock, in seconds since the epoch, or None if it did not say."""
        return _began(self._response)

    def objects(self) -> Iterator[object]:
        """The objects; ends when nothing came for `quiet` seconds. Raises `Unavailable` when the stream breaks."""
        buffer = b""
        _set_timeout(self._response, self._quiet)
        while True:
            try:
                data = self._response.read1(65536)
            except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
                return
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _broken(type(error).__name__) from error
            if not data:
                raise _broken("it ended")
            *lines, buffer = (buffer + data).split(b"\n")
            if len(buffer) > LONGEST_LINE:
                raise _broken("it is no list of events")
            for line in lines:
                if line.strip():
                    yield _parsed(line, "/events")

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

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        answer = _answer(response)
        assert answer is not None
        self._answer = answer
        self._decode = _Chunks() if self._answer.chunked else None

    @property
    def began(self) -> float | None:
        """As of `Stream`."""
        return _began(self._response)

    def read(self, quiet: float) -> bytes | None:
        """The next bytes; empty at the end, None when nothing came for `quiet` seconds: then read on, or close.

        Raises `Unavailable` when it is no answer of HTTP.
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

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes that the chunk at hand still has
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """What these bytes hold of it. Raises `Unavailable` when they are no chunks."""
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
                raise _broken("it is not made of chunks") from None
            at = head + 2
            self.ended = size == 0
            self._left = size + 2
        self._rest = data[at:]
        if len(self._rest) > LONGEST_LINE:
            raise _broken("it is not made of chunks")
        return b"".join(found)


def _body(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """The whole body, however slowly it drips, unless the deadline passes."""
    body = bytearray()
    while True:
        _set_timeout(response, deadline.limit("read Docker's answer"))
        data = response.read1(1024 * 1024)
        if not data:
            return bytes(body)
        body += data
        if len(body) > LONGEST_ANSWER:
            raise Unavailable("Docker's answer is too long to be one", mend="look what it is that DOCKER_HOST names")


def _set_timeout(response: urllib3.BaseHTTPResponse, seconds: float) -> None:
    """Limit the next read of an answer."""
    answer = _answer(response)
    if answer is not None:
        answer.reader.allow(seconds)


def _answer(response: urllib3.BaseHTTPResponse) -> _Answer | None:
    """What urllib3 reads from, as it has no way to it itself; None once it is read to its end."""
    answer = getattr(response, "_fp", None)
    return answer if isinstance(answer, _Answer) else None


def _parsed(body: bytes, path: str) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable(
            f"the answer to GET {path} is not JSON",
            mend="look whether it is a Docker API that DOCKER_HOST names",
        ) from error
    return found


def _refused(response: urllib3.BaseHTTPResponse, body: bytes) -> CollectorFailure:
    path = urlsplit(response.url or "").path
    status = response.status
    if status in (401, 403, 405, 501):
        return Unavailable(
            f"GET {path} is forbidden (status {status})",
            mend="let the proxy of the Docker socket allow GET on containers and events "
            f"(CONTAINERS=1 and EVENTS=1); it refused {path}",
        )
    return Unavailable(
        f"Docker answered GET {path} with status {status}{_said(body)}",
        mend="look into the log of the Docker daemon, or of the proxy that DOCKER_HOST names",
    )


def _said(body: bytes) -> str:
    """The daemon's own words, if it is a daemon that speaks."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return f": {' '.join(str(message).split())[:200]}"


def _version_in(body: bytes) -> str | None:
    """The version to speak, from "client version 1.44 is too new. Maximum supported API version is 1.41"."""
    found = re.search(rb"(?:Maximum|Minimum) supported API version is (\d{1,3}\.\d{1,3})", body)
    return found[1].decode() if found else None


def _number(version: object) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(?:\.\d+)*", version) if isinstance(version, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _server(address: str) -> tuple[tuple[str, int], str]:
    """Host and port, and the path before that of each request. Raises `Unavailable` when there is no port."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError:
        port = None
    if not port or parts.query or parts.fragment or parts.username:
        raise Unavailable(
            "the address in DOCKER_HOST is none of a Docker API: it has no port, or more than host and port",
            mend="write DOCKER_HOST as unix:///path or tcp://host:port",
        )
    return (host, port), parts.path.rstrip("/")


def _tls(folder: Path) -> dict[str, Any]:
    certificate, key, authority = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    own = {"cert_file": str(certificate), "key_file": str(key)} if certificate.exists() else {}
    return {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(authority) if authority.exists() else None, **own}


def _began(response: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except ValueError:
        return None


def _not_readable(path: str) -> Unavailable:
    return Unavailable(
        f"the logging driver of container {path.split('/')[2]} keeps no log that can be read",
        mend="give it the logging driver local or json-file in its compose file (`logging: {driver: local}`), or name"
        " its log in IMMICH_VITALS_LOG_FILES",
    )


def _broken(how: str) -> Unavailable:
    return Unavailable(
        f"the stream of Docker's events broke ({how})",
        mend="look whether the Docker daemon is running, and whether a proxy before it ends long answers",
    )


def _about_socket(path: Path, causes: list[BaseException]) -> CollectorFailure | None:
    """The failure, when it is the socket's file and not who listens there."""
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return Absent(
            f"the Docker socket {path} is not there",
            mend="start Docker, mount the socket into this container, or set DOCKER_HOST to where it answers",
        )
    if any(isinstance(cause, PermissionError) for cause in causes):
        return Unavailable(
            f"no right to connect to the Docker socket {path}",
            mend="run with the socket's group (group_add in compose, group docker on the host), "
            "or set DOCKER_HOST to a filtering proxy of the socket",
        )
    if path.exists() and not path.is_socket():
        return Absent(
            f"{path} is not a socket",
            mend="if it is an empty folder, Docker made it because the socket was not there to be mounted: "
            "remove it, start Docker or correct the mount",
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those it wraps: urllib3 wraps the operating system."""
    seen: list[BaseException] = [error]
    for cause in seen:
        yield cause
        wrapped = [cause.__cause__, cause.__context__, *cause.args]
        seen.extend(each for each in wrapped if isinstance(each, BaseException) and each not in seen)


def _is_timeout(cause: BaseException) -> bool:
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        return False  # urllib3 counts a refused connection among the time-outs
    return isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError)


def _name(causes: list[BaseException]) -> str:
    """The operating system's word for it, if it said one."""
    return next(
        (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "no reason given"
    )
