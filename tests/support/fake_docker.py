"""A Docker API on a unix socket, or on a loopback port with TLS, that answers from files named after the path."""

import json
import shutil
import socketserver
import ssl
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


class FakeDocker:
    """`GET /v1.41/containers/json` is answered with the file `containers.json` of `folder`, `/containers/<id>/json`
    with `<id>.json`, `/containers/<id>/stats` with `<id>.stats.json`; what has no file is not there (404).

    `requests` are the (method, path with query) that came. `versions` are the oldest and newest API it speaks.
    `statuses` maps the beginning of an unversioned path to a status that it answers with; `before` is called with each
    unversioned path before it is answered, and may block. `event_lines` are what each new event stream begins with,
    `say` adds one to those that stand.
    """

    def __init__(
        self, folder: Path, *, versions: tuple[str, str] = ("1.12", "1.41"), tls: ssl.SSLContext | None = None
    ) -> None:
        self.folder = folder
        self.versions = versions
        self.requests: list[tuple[str, str]] = []
        self.statuses: dict[str, int] = {}
        self.bodies: dict[str, bytes] = {}
        self.dripping: set[str] = set()
        self.before: Callable[[str], None] = lambda path: None
        self.event_lines: list[bytes] = []
        self.streams_started = threading.Semaphore(0)
        self._streams: list[_Handler] = []
        # A unix socket's path may have no more than 107 characters, and pytest's folders have.
        self._home = Path(tempfile.mkdtemp(prefix="fd-"))
        self.socket = self._home / "docker.sock"
        self.ended = threading.Event()
        self._server: _Server | _TlsServer = _Server(self) if tls is None else _TlsServer(self, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        if isinstance(self._server, _TlsServer):
            return f"tcp://127.0.0.1:{self._server.server_address[1]}"
        return f"unix://{self.socket}"

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for, without version and query."""
        return [_unversioned(path)[0] for _, path in self.requests]

    def say(self, line: bytes) -> None:
        """Send a line to every event stream that stands."""
        for stream in list(self._streams):
            stream.chunk(line)

    def drop_streams(self) -> None:
        """End every event stream, as a daemon that is stopped does."""
        for stream in list(self._streams):
            stream.finish_stream.set()

    def close(self) -> None:
        self.ended.set()
        self.drop_streams()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._home)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and body for an unversioned path."""
        for beginning, status in self.statuses.items():
            if path.startswith(beginning):
                return status, b'{"message":"said the fake"}'
        if path in self.bodies:
            return 200, self.bodies[path]
        if path == "/version":
            oldest, newest = self.versions
            return 200, json.dumps({"ApiVersion": newest, "MinAPIVersion": oldest}).encode()
        words = path.removeprefix("/containers/").split("/")
        name = "containers" if words == ["json"] else f"{words[0]}{'.stats' if words[-1] == 'stats' else ''}"
        file = self.folder / f"{name}.json"
        return (200, file.read_bytes()) if file.exists() else (404, b'{"message":"No such container"}')


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server | _TlsServer"

    def setup(self) -> None:
        super().setup()
        self.finish_stream = threading.Event()
        self._writing = threading.Lock()

    def do_GET(self) -> None:
        fake = self.server.fake
        path, version = _unversioned(self.path)
        fake.requests.append((self.command, self.path))
        fake.before(path)
        if version is not None and not _number(fake.versions[0]) <= _number(version) <= _number(fake.versions[1]):
            newest = _number(version) > _number(fake.versions[1])
            word = f"Maximum supported API version is {fake.versions[1]}"
            word = word if newest else f"Minimum supported API version is {fake.versions[0]}"
            self._send(400, json.dumps({"message": f"client version {version} does not fit. {word}"}).encode())
        elif path == "/events" and not any(path.startswith(each) for each in fake.statuses):
            self._stream()
        else:
            self._send(*fake.answer(path), drip=path in fake.dripping)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

    def _send(self, status: int, body: bytes, *, drip: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for piece in [body[n : n + 1] for n in range(len(body))] if drip else [body]:
            self.wfile.write(piece)
            if drip and self.server.fake.ended.wait(0.05):
                return

    def _stream(self) -> None:
        fake = self.server.fake
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in fake.event_lines:
            self.chunk(line)
        fake._streams.append(self)
        fake.streams_started.release()
        self.finish_stream.wait(30)
        fake._streams.remove(self)
        self.close_connection = True

    def chunk(self, data: bytes) -> None:
        with self._writing:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: the base class writes to stderr."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, fake: FakeDocker) -> None:
        self.fake = fake
        super().__init__(str(fake.socket), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client that went away is what some tests are about."""


class _TlsServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, fake: FakeDocker, tls: ssl.SSLContext) -> None:
        self.fake = fake
        self._tls = tls
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[ssl.SSLSocket, object]:
        connection, address = super().get_request()
        return self._tls.wrap_socket(connection, server_side=True), address

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client that went away is what some tests are about."""


def _unversioned(path: str) -> tuple[str, str | None]:
    """The path without version and query, and the version."""
    plain = unquote(urlsplit(path).path)
    if not plain.startswith("/v1."):
        return plain, None
    version, _, rest = plain[2:].partition("/")
    return f"/{rest}", version


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
