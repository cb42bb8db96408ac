"""One HTTP request over a connection of its own, bounded in time and in bytes, whatever answers.

The protocol is h11's, which the web server brings along; the sockets are ours. An HTTP client such as httpx limits
each read and not the whole answer, chooses the address itself, shows neither certificates nor `100 Continue`, and costs
4 MB of memory. Nothing is decompressed, no redirect is followed, no cookie is kept.
"""

import base64
import hashlib
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import h11

from immich_vitals import __version__
from immich_vitals.collector import Deadline, TimedOut
from immich_vitals.sources.names import NAMES, Address, Family, Unknown

CONNECT_SECONDS = 2.0  # per address: a host name may stand for two, and one of them may be dead
MOST_HEAD_BYTES = 32 * 1024
MOST_BODY_BYTES = 4096
PIECE_BYTES = 16 * 1024
AGENT = f"immich-vitals/{__version__}"


class NoAnswer(Exception):
    """There was no answer of HTTP; the text completes "it did not work: ..." and holds no secret.

    `local` says that this machine has no way to such an address, so that nothing is known of the other side.
    """

    def __init__(self, text: str, *, local: bool = False) -> None:
        super().__init__(text)
        self.local = local


class Untrusted(NoAnswer):
    """The certificate is not one to trust."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: `https`, `photos.example.org`, 443."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """The origin of an address. Raises `ValueError` when it has none."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("no http or https address")
        return cls(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def loopback(self) -> bool:
        """Whether it is an address of this machine itself, on the way to which nobody can listen."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `body` is its beginning; `first_byte` and `seconds` count from when the request had been sent,
    and from when the connection was begun."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first_byte: float
    seconds: float


def addresses(origin: Origin, deadline: Deadline) -> Sequence[Address]:
    """The addresses of a server. Raises `NoAnswer` when there are none, or not in time."""
    try:
        return [each.at(origin.port) for each in NAMES.addresses(origin.host, deadline)]
    except TimedOut:
        raise NoAnswer("the host name was not resolved in time") from None
    except Unknown:
        raise NoAnswer("the host name is not known here") from None


@dataclass(frozen=True, slots=True)
class Way:
    """How to get to a server: its origin, its addresses, and for https what to trust."""

    origin: Origin
    addresses: Sequence[Address]
    tls: ssl.SSLContext | None = None

    def by(self, family: Family) -> "Way":
        """The same by addresses of one family only."""
        return Way(self.origin, [each for each in self.addresses if each.family == family], self.tls)

    @contextmanager
    def connected(self, deadline: Deadline) -> Iterator[socket.socket]:
        """A connection, with TLS where the origin has it. Raises `NoAnswer`, also for an error inside the block."""
        sock: socket.socket | None = None
        try:
            sock = self._dial(deadline)
            if self.origin.secure and self.tls is not None:
                sock.settimeout(_left(deadline))
                sock = self.tls.wrap_socket(sock, server_hostname=self.origin.host)
            yield sock
        except TimedOut:
            raise NoAnswer("there was no answer in time") from None
        except OSError as error:
            raise _meaning(error) from None
        finally:
            if sock is not None:
                sock.close()

    def _dial(self, deadline: Deadline) -> socket.socket:
        if not self.addresses:
            raise NoAnswer("the host name has no address")
        for tried, address in enumerate(self.addresses, 1):
            last = tried == len(self.addresses)
            left = _left(deadline)
            sock = socket.socket(address.kind, socket.SOCK_STREAM)
            try:
                sock.settimeout(min(CONNECT_SECONDS, left if last else left / 2))
                sock.connect(address.socket_address)
                return sock
            except OSError:
                sock.close()
                if last:
                    raise
        raise AssertionError("the loop returns or raises")


def reaches(address: Address) -> bool:
    """Whether this machine has a route to it at all. Nothing is sent."""
    with socket.socket(address.kind, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address.socket_address)
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask. With `expects` the body is only announced, and never sent; with `most` the answer is read so far."""

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    expects: bool = False
    most: int = MOST_BODY_BYTES


def ask(way: Way, request: Request, deadline: Deadline) -> Answer:
    """The answer, or its beginning where it is longer than `request.most`. With `request.expects` status 100 is an
    answer, too. Raises `NoAnswer`."""
    began = deadline.clock.monotonic()
    with way.connected(deadline) as sock:
        return _Exchange(way.origin, sock, deadline).answer(request, began)


def open_websocket(way: Way, path: str, deadline: Deadline) -> Answer:
    """The answer to an upgrade; with status 101 its body is the payload of the first frame. Raises `NoAnswer`."""
    began = deadline.clock.monotonic()
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key,
    }  # fmt: skip
    with way.connected(deadline) as sock:
        exchange = _Exchange(way.origin, sock, deadline)
        answer = exchange.answer(Request(path, headers=upgrade), began)
        if answer.status != 101:
            return answer
        if answer.headers.get("sec-websocket-accept") != _accept(key):
            raise NoAnswer("the upgrade was answered, but not as a websocket is")
        payload = exchange.frame()
        sock.settimeout(_left(deadline))
        sock.sendall(_GOODBYE)
        return Answer(101, answer.headers, payload, answer.first_byte, deadline.clock.monotonic() - began)


# A masked close frame with code 1000, the mask all zeroes.
_GOODBYE = b"\x88\x82\0\0\0\0" + struct.pack("!H", 1000)


def _accept(key: str) -> str:
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode()


class _Exchange:
    """One request and its answer over a connection."""

    def __init__(self, origin: Origin, sock: socket.socket, deadline: Deadline) -> None:
        self._origin = origin
        self._sock = sock
        self._deadline = deadline
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD_BYTES)
        self._taken = 0
        self._first_byte = 0.0
        self._rest = b""

    def answer(self, request: Request, began: float) -> Answer:
        try:
            return self._answer(request, began)
        except h11.RemoteProtocolError:
            raise NoAnswer("what answers there does not speak HTTP, or hangs up in the middle") from None

    def _answer(self, request: Request, began: float) -> Answer:
        self._send(request)
        sent = self._deadline.clock.monotonic()
        head: h11.Response | h11.InformationalResponse | None = None
        body = bytearray()
        while True:
            event = self._next(MOST_HEAD_BYTES * 2 + request.most)
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101 or (event.status_code == 100 and request.expects):
                    head = event
                    self._rest = bytes(self._http.trailing_data[0])
                    break
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            if isinstance(event, h11.EndOfMessage) or len(body) >= request.most:
                break
            if isinstance(event, h11.ConnectionClosed):
                raise NoAnswer("it hung up without an answer")
        if head is None:
            raise NoAnswer("it hung up without an answer")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
        now = self._deadline.clock.monotonic()
        return Answer(head.status_code, headers, bytes(body[: request.most]), self._first_byte - sent, now - began)

    def frame(self) -> bytes:
        """The payload of the first websocket frame, which Immich's is short enough to be in one."""
        while True:
            if len(self._rest) >= 2:
                length, start = self._rest[1] & 0x7F, 2
                if length == 126:
                    length, start = int.from_bytes(self._rest[2:4], "big"), 4
                if len(self._rest) >= start + length:
                    return self._rest[start : start + length]
            if self._rest[1:2] == b"\x7f" or len(self._rest) > MOST_HEAD_BYTES:
                raise NoAnswer("the first message of the websocket is too long to be Immich's")
            piece = self._receive()
            if not piece:
                raise NoAnswer("the websocket was closed at once")
            self._rest += piece

    def _send(self, request: Request) -> None:
        headers = [
            ("Host", self._origin.authority),
            ("User-Agent", AGENT),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
        ]
        if "Connection" not in request.headers:
            headers.append(("Connection", "close"))
        wire = self._http.send(
            h11.Request(method=request.method, target=request.path, headers=[*headers, *request.headers.items()])
        )
        if not request.expects:
            wire = (wire or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(wire or b"")

    def _next(self, most: int) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._taken > most:
                raise NoAnswer("the answer is too long to be Immich's")
            self._http.receive_data(self._receive())
        return event  # type: ignore[return-value]

    def _receive(self) -> bytes:
        self._sock.settimeout(_left(self._deadline))
        piece = self._sock.recv(PIECE_BYTES)
        if not self._taken:
            self._first_byte = self._deadline.clock.monotonic()
        self._taken += len(piece)
        return piece


def _left(deadline: Deadline) -> float:
    """Seconds left. Raises `TimedOut`, never gives 0, which would mean "do not wait" to a socket."""
    return deadline.limit("wait for the answer")


def _meaning(error: OSError) -> NoAnswer:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Untrusted(error.verify_message or "not to be trusted")
    if isinstance(error, TimeoutError):
        return NoAnswer("there was no answer in time")
    if isinstance(error, ConnectionRefusedError):
        return NoAnswer("the connection was refused")
    if isinstance(error, ConnectionError):
        return NoAnswer("the connection was reset")
    if isinstance(error, ssl.SSLError):
        return NoAnswer(f"TLS failed: {(error.reason or 'it hung up').lower().replace('_', ' ')}")
    return NoAnswer((error.strerror or type(error).__name__).lower())
