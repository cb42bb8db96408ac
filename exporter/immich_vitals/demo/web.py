"""A stand-in for Immich's server and for machine learning, and a small proxy before it that can break.

Immich's own server cannot run here: it needs its image, or a build of it with ffmpeg, libvips and Node. This speaks the
part of its public API that a health check meets, as 2.7.5 answers it: the same paths, statuses, errors and headers, the
same checks of key and owner, the real rows of the demo's database and the real files of its media folder. It takes no
uploads. HTTP is the standard library's, since a websocket's first message is all that is needed of that protocol.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg

from immich_vitals.demo.schema import Connection

KEY = "demo-key-of-immich-vitals"
PERMISSIONS = frozenset(("asset.view", "asset.download"))
VERSION = {"major": 2, "minor": 7, "patch": 5}
CONFIG = {
    "loginPageMessage": "", "trashDays": 30, "userDeleteDelay": 7, "oauthButtonText": "Login with OAuth",
    "isInitialized": True, "isOnboarded": True, "externalDomain": "", "publicUsers": True, "mapDarkStyleUrl": "",
    "mapLightStyleUrl": "", "maintenanceMode": False,
}  # fmt: skip
UPSTREAM_SECONDS = 60.0  # nginx waits so long for an answer
ROUND_SECONDS, QUIET_SECONDS = 10.0, 0.5  # of probes: how long one takes at most, and how long nobody asks between two
PIECE = 64 * 1024

Headers = Mapping[str, str]


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 without a line on standard error for each request."""

    protocol_version = "HTTP/1.1"
    timeout = 120.0

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def say(self, status: int, body: bytes, kind: str, headers: Headers | None = None) -> None:
        """A whole answer, after which the connection ends."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever hangs up early is no error."""


class _Service:
    """An HTTP server on a free loopback port that can be stopped, started again on the same, and made to hang."""

    def __init__(self, handler: type[_Handler], tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._tls = tls
        self._listener: _Listener | None = None
        self._port = 0
        self._going = threading.Event()
        self._going.set()
        self._asked = 0.0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def start(self) -> None:
        """Listen, on the port of before if there was one."""
        listener = _Listener(self.address, self._handler)
        listener.service = self  # type: ignore[attr-defined]
        self._port = listener.server_address[1]
        if self._tls is not None:
            listener.socket = self._tls.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
        self._listener = listener
        threading.Thread(target=listener.serve_forever, args=(0.05,), name="demo web", daemon=True).start()

    def stop(self) -> None:
        """Listen no more: connections are refused."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def hang(self) -> None:
        """Take requests, and answer them when `go_on` is called.

        Begins between two rounds of the probes: one that met half of it would be told as a fault of its own.
        """
        until = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < min(self._asked + QUIET_SECONDS, until):
            time.sleep(0.02)
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def wait(self) -> None:
        """For handlers: until nobody makes it hang."""
        self._asked = time.monotonic()
        self._going.wait(UPSTREAM_SECONDS)


class Immich(_Service):
    """The stand-in. Its answers about assets come from the database and the files.

    `user` is whose the key is, `permissions` what it may. `maintenance`, `legacy` (the paths before 1.107) and
    `may_read` (whether the server may read the files) may be set while it runs. `keys_seen` counts the requests that
    showed a key.
    """

    def __init__(
        self, connect: Callable[[], Connection], user: str, handler: "type[ImmichHandler] | None" = None
    ) -> None:
        self.connect = connect
        self.user = user
        self.permissions = PERMISSIONS
        self.maintenance = False
        self.legacy = False
        self.may_read = True
        self.keys_seen = 0
        super().__init__(handler or ImmichHandler)


class ImmichHandler(_Handler):
    """One request."""

    def setup(self) -> None:
        super().setup()
        self.immich: Immich = self.server.service  # type: ignore[attr-defined]
        self.correlation = uuid.uuid4().hex[:8]

    def do_GET(self) -> None:
        self.immich.wait()
        path, _, query = self.path.partition("?")
        options = {name: found[-1] for name, found in parse_qs(query).items()}
        place = "/api/server-info" if self.immich.legacy else "/api/server"
        if path == "/api/socket.io/":
            self._socket(options)
        elif path in (f"{place}/ping", f"{place}/config"):
            config = {**CONFIG, "maintenanceMode": self.immich.maintenance}
            self._json(200, {"res": "pong"} if path.endswith("ping") else config)
        elif self.immich.maintenance:
            self._error(404, f"Cannot GET {path}")
        elif path == f"{place}/version":
            self._json(200, VERSION)
        elif path == "/.well-known/immich":
            self._json(200, {"api": {"endpoint": "/api"}})
        elif found := re.fullmatch(r"/api/assets/([^/]+)/(thumbnail|original)", path):
            self._file(found[1], found[2], options)
        elif path.startswith("/api/"):
            self._error(404, f"Cannot GET {path}")
        else:
            self.say(200, b"<!doctype html><title>Immich</title>", "text/html; charset=utf-8", self._cid())

    def do_POST(self) -> None:
        self.immich.wait()
        if self.path == "/api/assets":
            if self._may("asset.upload"):
                self._error(400, "this stand-in takes no uploads")
        else:
            self._error(404, f"Cannot POST {self.path}")

    def _socket(self, options: Mapping[str, str]) -> None:
        key = self.headers.get("Sec-WebSocket-Key")
        if self.headers.get("Upgrade", "").lower() != "websocket" or options.get("transport") != "websocket" or not key:
            self._json(400, {"code": 0, "message": "Transport unknown"})
            return
        accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        self.send_response(HTTPStatus.SWITCHING_PROTOCOLS)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", base64.b64encode(accept).decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        opened = {"sid": uuid.uuid4().hex[:20], "upgrades": [], "pingInterval": 25000, "pingTimeout": 20000}
        packet = b"0" + json.dumps({**opened, "maxPayload": 1000000}).encode()
        self.wfile.write(b"\x81" + bytes([len(packet)] if len(packet) < 126 else [126, 0, len(packet)]) + packet)
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.recv(1024)
        self.close_connection = True

    def _file(self, asset: str, what: str, options: Mapping[str, str]) -> None:
        permission = "asset.view" if what == "thumbnail" else "asset.download"
        if not self._may(permission):
            return
        size = options.get("size", "thumbnail")
        try:
            uuid.UUID(asset)
            with self.immich.connect() as connection:
                owned = connection.execute(
                    'SELECT "originalPath" FROM asset WHERE id = %s AND "ownerId" = %s', (asset, self.immich.user)
                ).fetchone()
                row = connection.execute(
                    'SELECT path FROM asset_file WHERE "assetId" = %s AND type = %s', (asset, size)
                ).fetchone()
        except ValueError:
            self._error(400, "id must be a UUID")
            return
        except psycopg.Error as error:
            self.failed(error)
            self._error(500, "Internal server error")
            return
        found = owned if what == "original" else row
        if owned is None:
            self._error(400, f"Not found or no {permission} access")
        elif found is None:
            self._error(404, "Asset media not found")
        else:
            self._send_file(Path(str(found[0])))

    def _send_file(self, path: Path) -> None:
        kinds = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
        try:
            if not self.immich.may_read:
                raise PermissionError
            content = path.read_bytes()
        except OSError as error:
            self.failed(error)
            self._error(500, "Internal server error")
            return
        headers = {**self._cid(), "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=86400, no-transform"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if wanted and int(wanted[1]) < len(content):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.say(status, content, kinds.get(path.suffix.lower(), "video/mp4"), headers)

    def failed(self, error: psycopg.Error | OSError) -> None:
        """Immich writes this into its log; the demo's faults have their own lines."""

    def _may(self, permission: str) -> bool:
        key = self.headers.get("x-api-key")
        self.immich.keys_seen += key is not None
        if key == KEY and permission in self.immich.permissions:
            return True
        if key is None:
            self._error(401, "Authentication required")
        elif key != KEY:
            self._error(401, "Invalid API key")
        else:
            self._error(403, f"Missing required permission: {permission}")
        return False

    def _error(self, status: int, message: str) -> None:
        error = {"message": message, "error": HTTPStatus(status).phrase, "statusCode": status}
        self._json(status, {**error, "correlationId": self.correlation})

    def _json(self, status: int, body: object) -> None:
        self.say(status, json.dumps(body).encode(), "application/json; charset=utf-8", self._cid())

    def _cid(self) -> Headers:
        return {"x-immich-cid": self.correlation}


class MachineLearning(_Service):
    """Its two answers that need no model."""

    def __init__(self) -> None:
        super().__init__(_LearningHandler)


class _LearningHandler(_Handler):
    def do_GET(self) -> None:
        self.server.service.wait()  # type: ignore[attr-defined]
        if self.path == "/ping":
            self.say(200, b"pong", "text/plain; charset=utf-8")
        elif self.path == "/":
            self.say(200, b'{"message":"Immich ML"}', "application/json")
        else:
            self.say(404, b'{"detail":"Not Found"}', "application/json")


class Proxy(_Service):
    """Passes everything on to the stand-in, as people set up nginx, and can be set up wrongly while it runs.

    `target` is where it passes requests to, `body_limit` is in bytes (client_max_body_size), `delay` in seconds before
    each answer; `answers` is a status for everything. `refused` counts what was too large. With `log` it writes what
    nginx would into that file. The proxies that the collector is tested with are real: tests/integration.
    """

    def __init__(self, upstream: _Service, log: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.target = upstream.address
        self.passes_upgrade = True
        self.body_limit: int | None = None
        self.delay = 0.0
        self.answers: int | None = None
        self.refused = 0
        self._log = log
        super().__init__(_ProxyHandler, tls)

    def write(self, level: str, message: str) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y/%m/%d %H:%M:%S} [{level}] 29#29: *{time.monotonic_ns()} {message}\n")


class _ProxyHandler(_Handler):
    def setup(self) -> None:
        super().setup()
        self.proxy: Proxy = self.server.service  # type: ignore[attr-defined]

    def handle_expect_100(self) -> bool:
        """nginx refuses what is too large before it asks for it."""
        return not self._too_large() and super().handle_expect_100()

    def do_GET(self) -> None:
        self.proxy.wait()
        if self._too_large():
            return
        threading.Event().wait(self.proxy.delay)
        if self.proxy.answers is not None:
            self._fail(self.proxy.answers)
            return
        try:
            upstream = socket.create_connection(self.proxy.target, timeout=UPSTREAM_SECONDS)
        except OSError:
            self._note("error", "connect() failed (111: Connection refused) while connecting to")
            self._fail(502)
            return
        try:
            with upstream:
                self._pass(upstream)
        except TimeoutError:
            self._note("error", "upstream timed out (110: Connection timed out) while reading response header from")
            self._fail(504)
        except OSError:  # somebody hung up early: of no interest to nginx, either
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _pass(self, upstream: socket.socket) -> None:
        upgrades = self.proxy.passes_upgrade and "upgrade" in self.headers.get("Connection", "").lower()
        dropped = {"connection", "expect"} | (set() if upgrades else {"upgrade"})
        lines = [f"{name}: {value}" for name, value in self.headers.items() if name.lower() not in dropped]
        lines += [
            "Connection: upgrade" if upgrades else "Connection: close",
            f"X-Forwarded-For: {self.client_address[0]}",
        ]
        upstream.sendall("\r\n".join([self.requestline, *lines, "", ""]).encode("latin-1"))
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (piece := self.rfile.read1(min(left, PIECE))):
            upstream.sendall(piece)
            left -= len(piece)
        if upgrades:
            threading.Thread(target=self._back, args=(upstream,), daemon=True).start()
        while piece := upstream.recv(PIECE):
            self.wfile.write(piece)
        self.close_connection = True

    def _back(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := self.rfile.read1(PIECE):
                upstream.sendall(piece)
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_WR)

    def _too_large(self) -> bool:
        limit, length = self.proxy.body_limit, int(self.headers.get("Content-Length") or 0)
        if limit is None or length <= limit:
            return False
        self.proxy.refused += 1
        self.proxy.write("error", f"client intended to send too large body: {length} bytes, {self._about()}")
        self._fail(413)
        return True

    def _fail(self, status: int) -> None:
        phrase = HTTPStatus(status).phrase
        self.say(status, f"<html><head><title>{status} {phrase}</title></head></html>".encode(), "text/html")

    def _note(self, level: str, message: str) -> None:
        host, port = self.proxy.target
        self.proxy.write(level, f'{message} upstream, {self._about()}, upstream: "http://{host}:{port}{self.path}"')

    def _about(self) -> str:
        return (
            f'client: {self.client_address[0]}, server: photos.example.org, request: "{self.requestline}",'
            f' host: "{urlsplit(self.proxy.url).netloc}"'
        )


class Web:
    """The server, machine learning, and a proxy before the server. Ends with the block."""

    def __init__(
        self, connect: Callable[[], Connection], user: str, log: Path | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.immich = Immich(connect, user)
        self.machine_learning = MachineLearning()
        self.proxy = Proxy(self.immich, log, tls)

    def environment(self) -> Mapping[str, str]:
        """The settings with which the exporter probes them."""
        return {
            "IMMICH_VITALS_SERVER_URL": self.immich.url,
            "IMMICH_VITALS_EXTERNAL_URL": self.proxy.url,
            "IMMICH_VITALS_MACHINE_LEARNING_URL": self.machine_learning.url,
            "IMMICH_VITALS_API_KEY": KEY,
            "IMMICH_VITALS_PROBE_INTERVAL": "2s",
            "IMMICH_VITALS_UPLOAD_LIMIT_INTERVAL": "2s",
        }

    def stop(self) -> None:
        for service in (self.proxy, self.machine_learning, self.immich):
            service.go_on()
            service.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
