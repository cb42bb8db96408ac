"""A Docker API on a unix socket, or on a loopback port with TLS, that answers from files named after the path."""

import json
import shutil
import socketserver
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from support.fake_api import Handler, Quiet, TlsServer


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
            stream.finished.set()

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


class _Handler(Handler):
    server: "_Server | _TlsServer"

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
        self.say(self.server.fake, status, body, drip=drip)

    def _stream(self) -> None:
        fake = self.server.fake
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in fake.event_lines:
            self.chunk(line)
        fake._streams.append(self)
        fake.streams_started.release()
        self.finished.wait(30)
        fake._streams.remove(self)
        self.close_connection = True


class _Server(Quiet, socketserver.UnixStreamServer):
    def __init__(self, fake: FakeDocker) -> None:
        self.fake = fake
        super().__init__(str(fake.socket), _Handler)


class _TlsServer(TlsServer):
    def __init__(self, fake: FakeDocker, tls: ssl.SSLContext) -> None:
        self.fake = fake
        super().__init__(_Handler, tls)


def _unversioned(path: str) -> tuple[str, str | None]:
    """The path without version and query, and the version."""
    plain = unquote(urlsplit(path).path)
    if not plain.startswith("/v1."):
        return plain, None
    version, _, rest = plain[2:].partition("/")
    return f"/{rest}", version


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
