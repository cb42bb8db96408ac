"""What the fakes of APIs share: a quiet HTTP server, whose handlers answer at once, byte by byte or in chunks."""

import socketserver
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol


class Fake(Protocol):
    """Whose server it is. What drips stops when `ended` is set."""

    @property
    def ended(self) -> threading.Event: ...


class Handler(BaseHTTPRequestHandler):
    """`finished` is for streams: whoever sets it ends the one that waits."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.finished = threading.Event()
        self._writing = threading.Lock()

    def say(self, fake: Fake, status: int, body: bytes, *, kind: str = "application/json", drip: bool = False) -> None:
        """A whole answer, with `drip` one byte after the other."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for piece in [body[n : n + 1] for n in range(len(body))] if drip else [body]:
            self.wfile.write(piece)
            if drip and fake.ended.wait(0.05):
                return

    def chunk(self, data: bytes) -> None:
        """One chunk; may be called from several threads. An empty one ends the answer."""
        with self._writing:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: the base class writes to stderr."""


class Quiet(socketserver.ThreadingMixIn):
    """Mixed into a server: each connection in a thread of its own that nobody waits for."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: a client that went away is what some tests are about."""


class TlsServer(Quiet, socketserver.TCPServer):
    """On a free loopback port; the handshake is the connection's own business."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__(("127.0.0.1", 0), handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self._tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)
