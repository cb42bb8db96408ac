"""Serves the metrics and the pages over HTTP.

uvicorn does the serving: one event loop holds any number of idle or slow connections without a thread for each,
it brings TLS, and h11 reads hostile requests strictly. (waitress has no TLS; the threads of http.server and
cheroot can be held by slow clients; aiohttp costs three times the memory.)
"""

import asyncio
import asyncio.sslproto
import contextlib
import gzip
import logging
import math
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from urllib.parse import parse_qs

import h11
import uvicorn
from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as PrometheusCollector
from prometheus_client.registry import CollectorRegistry
from uvicorn.protocols.http.h11_impl import H11Protocol

from immich_vitals.config import Config, ConfigError, Mistake
from immich_vitals.metrics import Metric, Sample, families
from immich_vitals.page import render
from immich_vitals.runner import Runner
from immich_vitals.settings import OWN
from immich_vitals.web import ReloadingContext, TooManyLogins, Web, san_allowed

log = logging.getLogger(__name__)

DEFAULT_DEADLINE = 9.0  # seconds; Prometheus' own default is 10 s, less what the way back takes
DEADLINE_MARGIN = 0.5
PAGE_DEADLINE = 3.0
FIRST_REQUEST_SECONDS = 30.0  # a connection that has not asked for anything by then is closed
KEEP_ALIVE_SECONDS = 90.0  # longer than any usual scrape interval, so that Prometheus keeps its connection
TAKE_ANSWER_SECONDS = 30.0  # who does not take an answer that long is gone
MOST_CONNECTIONS = 1000
LARGEST_HEAD = 16 * 1024
FILES_WANTED = 4096

_ENDING = (signal.SIGTERM, signal.SIGINT)

Message = MutableMapping[str, Any]  # as ASGI defines it
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class BadRequest(Exception):
    """The request cannot be understood; the message says why."""


class _Families(PrometheusCollector):
    """A ready list of families, in the form in which prometheus_client's encoders take them."""

    def __init__(self, found: list[Family]) -> None:
        self._found = found

    def collect(self) -> Iterable[Family]:
        return self._found


_PROCESS = CollectorRegistry()
ProcessCollector(registry=_PROCESS)
PlatformCollector(registry=_PROCESS)


def exposition(
    metrics: Iterable[Metric], samples: Iterable[Sample], accept: str = "", names: Iterable[str] = ()
) -> tuple[bytes, str]:
    """The samples, and the process's own metrics, in the format that `accept` asks for, with its content type.

    `names` keeps only the families with one of these names, or with a sample of that name.
    """
    found = families(metrics, samples)
    found.extend(_PROCESS.collect())
    wanted = set(names)
    if wanted:
        found = [family for family in found if _wanted(family, wanted)]
    encode, content_type = choose_encoder(accept)
    return encode(_Families(found)), content_type


def _wanted(family: Family, names: set[str]) -> bool:
    return family.name in names or any(sample.name in names for sample in family.samples)


def deadline_from(header: str | None) -> float:
    """Seconds a scrape may take, from Prometheus' X-Prometheus-Scrape-Timeout-Seconds. Raises `BadRequest`."""
    if header is None:
        return DEFAULT_DEADLINE
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise BadRequest("X-Prometheus-Scrape-Timeout-Seconds is not a number of seconds")
    return min(max(seconds - DEADLINE_MARGIN, seconds / 2), 600.0)


class App:
    """The ASGI application: metrics, landing page, health and readiness."""

    def __init__(self, runner: Runner, web: Web, telemetry_path: str) -> None:
        self._runner = runner
        self._web = web
        self._routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
            telemetry_path: self._metrics,
            "/": self._page,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }
        self._telemetry_path = telemetry_path
        self._answers: dict[_Wanted, asyncio.Task[Response]] = {}

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        try:
            response = await self._respond(request)
        except asyncio.CancelledError:  # only ever because the exporter ends, and it has waited long enough
            response = Response.text("The exporter is ending.\n", 503)
        extra = self._web.current().headers
        headers: Headers = [(b"content-type", response.content_type.encode())]
        headers.extend((name.lower().encode(), value.encode("latin-1", "replace")) for name, value in extra.items())
        headers.extend(response.headers)
        headers.append((b"content-length", str(len(response.body)).encode()))
        body = b"" if request.method == "HEAD" else response.body
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, request: "Request") -> "Response":
        try:
            allowed = await self._web.allowed(request.header(b"authorization"), request.client)
        except TooManyLogins:
            return Response.text("Too many logins are being checked.\n", 503, [(b"retry-after", b"1")])
        if not allowed:
            return Response.text("Unauthorized\n", 401, [(b"www-authenticate", b'Basic realm="immich-vitals"')])
        route = self._routes.get(request.path)
        if route is None:
            return Response.text("Not found. The metrics are at " + self._telemetry_path + "\n", 404)
        if request.method not in ("GET", "HEAD"):
            return Response.text("Only GET is served here.\n", 405, [(b"allow", b"GET, HEAD")])
        try:
            return await route(request)
        except BadRequest as error:
            return Response.text(f"{error}\n", 400)

    async def _metrics(self, request: "Request") -> "Response":
        wanted = _Wanted(
            deadline_from(request.header(b"x-prometheus-scrape-timeout-seconds")),
            request.header(b"accept") or "",
            tuple(request.query("name[]")),
            gzip_accepted(request.header(b"accept-encoding") or ""),
        )
        # Requests for the same at the same time share the answer, as they share the runs behind it.
        answer = self._answers.get(wanted)
        if answer is None:
            answer = asyncio.create_task(self._answer(wanted))
            self._answers[wanted] = answer
            answer.add_done_callback(lambda _: self._answers.pop(wanted))
        return await asyncio.shield(answer)

    async def _answer(self, wanted: "_Wanted") -> "Response":
        samples = await self._scrape(wanted.deadline)
        body, content_type = exposition(self._runner.metrics, samples, wanted.accept, wanted.names)
        headers: Headers = [(b"vary", b"Accept, Accept-Encoding"), (b"cache-control", b"no-store")]
        if wanted.gzip:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers.append((b"content-encoding", b"gzip"))
        return Response(200, content_type, body, headers)

    async def _page(self, request: "Request") -> "Response":
        samples = await self._scrape(PAGE_DEADLINE)
        body = render(self._runner.statuses(), samples, self._telemetry_path)
        written = body.encode("utf-8", "backslashreplace")  # a path may be bytes that are no text
        return Response(200, "text/html; charset=utf-8", written, [(b"cache-control", b"no-store")])

    async def _healthz(self, request: "Request") -> "Response":
        return Response.text("ok\n")

    async def _readyz(self, request: "Request") -> "Response":
        if self._runner.ready:
            return Response.text("ready\n")
        return Response.text("not ready: the first count of the library is still under way\n", 503)

    async def _scrape(self, allowed: float) -> list[Sample]:
        scrape = self._runner.begin(allowed)
        while (pending := scrape.pending())[0]:
            await asyncio.wait([asyncio.wrap_future(future) for future in pending[0]], timeout=pending[1])
        return self._runner.finish(scrape)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request for the metrics asks for."""

    deadline: float
    accept: str
    names: tuple[str, ...]
    gzip: bool


class Request:
    """What the application needs of an ASGI scope."""

    def __init__(self, scope: Message) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        if self.path.startswith(("http://", "https://")):  # HTTP/1.1 lets a client name the whole address
            self.path = "/" + self.path.split("/", 3)[3] if self.path.count("/") > 2 else "/"
        self.client: str = (scope["client"] or ("",))[0]  # address
        self._headers: Headers = scope["headers"]
        self._query: bytes = scope["query_string"]

    def header(self, name: bytes) -> str | None:
        """The header's value; several lines of it are joined with commas, as HTTP says."""
        found = [value for key, value in self._headers if key == name]
        return b", ".join(found).decode("latin-1") if found else None

    def query(self, name: str) -> list[str]:
        try:
            return parse_qs(self._query.decode("ascii"), max_num_fields=1000).get(name, [])
        except (UnicodeError, ValueError):
            raise BadRequest("the query string cannot be read") from None


class Response:
    """An answer, whole."""

    def __init__(self, status: int, content_type: str, body: bytes, headers: Headers) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.headers = headers

    @classmethod
    def text(cls, text: str, status: int = 200, headers: Headers | None = None) -> "Response":
        return cls(status, "text/plain; charset=utf-8", text.encode(), headers or [])


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 that no client can hold for ever, and that has room for the next one.

    The first request must be there whole before long, the next one within `KEEP_ALIVE_SECONDS` of the last answer,
    and an answer must be taken. Of too many connections the one that has waited longest for a request is closed. A
    client's certificate must carry an allowed name where the web configuration lists some.
    """

    web: Web
    most = MOST_CONNECTIONS
    _waiting: ClassVar[dict["_Protocol", None]] = {}  # for a request, longest first
    _patience: asyncio.TimerHandle | None = None  # with the next request
    _taking: asyncio.TimerHandle | None = None  # with an answer that is not taken

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(FIRST_REQUEST_SECONDS)
        if len(self.connections) > self.most:
            longest = next(iter(self._waiting))
            longest._stop_waiting()
            longest.transport.abort()
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, ssl.SSLObject) and not san_allowed(tls.getpeercert(), self.web.current().allowed_sans):
            transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if cast("object", self.cycle) is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        # Before the call, which may find the next request in what has come already.
        self._wait(KEEP_ALIVE_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """For what is not HTTP, also where a request's body ends in it: then nobody else may answer any more."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # its answer is under way or was sent
            return
        if cast("object", self.cycle) is not None:
            self.cycle.disconnected = True
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # the request was HEAD, whose answer has no body
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Does nothing: uvicorn's own timer ends with the first byte of a request, and closes only what is taken."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(TAKE_ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._taking is not None:
            self._taking.cancel()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._waiting[self] = None
        self._patience = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()


class _Server(uvicorn.Server):
    """uvicorn's server without its clock tick (ten wake-ups a second) and with our reading of signals."""

    def __init__(self, config: uvicorn.Config, asked_to_end: threading.Event) -> None:
        super().__init__(config)
        self._asked_to_end = asked_to_end
        self._over = asyncio.Event()

    async def main_loop(self) -> None:
        await self._over.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._end)
        if self._asked_to_end.is_set():
            self._end()
        yield

    def _end(self) -> None:
        self.should_exit = True
        self._over.set()


def listen(addresses: Iterable[str]) -> list[socket.socket]:
    """Listening sockets. Raises `ConfigError` that names each address that cannot be had."""
    sockets: list[socket.socket] = []
    mistakes: list[Mistake] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            opened = _listen(host.strip("[]"), int(port))
            # Each connection has it from here. asyncio sets it only where the protocol is named, which it is not: then
            # the end of an answer waits 40 ms for a client that kept its connection to confirm the beginning.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(opened)
        except OSError as error:
            mend = "free the port or choose another with --web.listen-address"
            mistakes.append(
                Mistake(OWN + "LISTEN_ADDRESS", f"cannot listen on {address!r}: {error.strerror or error}", mend)
            )
    if mistakes:
        for opened in sockets:
            opened.close()
        raise ConfigError(mistakes)
    return sockets


def _listen(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    family = socket.AF_INET
    if host:
        family = socket.AddressFamily(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0])
    return socket.create_server((host, port), family=family, backlog=1024)


def serve(config: Config, runner: Runner) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigError` when it cannot listen or the web file is wrong."""
    asked_to_end = threading.Event()
    for number in _ENDING:  # until the event loop takes them over
        signal.signal(number, lambda number, frame: asked_to_end.set())
    _Protocol.most = min(MOST_CONNECTIONS, _file_limit() // 2)
    web = Web(config.web.config_file)
    # asyncio sets aside so much for each TLS connection, from before its handshake on: by default 256 KiB, with which
    # 2000 that stall took 450 MiB. No TLS record is longer than this.
    asyncio.sslproto.SSLProtocol.max_size = 16 * 1024
    sockets = listen(config.web.listen)
    _Protocol.web = web
    server_config = uvicorn.Config(
        App(runner, web, config.web.telemetry_path),
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=round(KEEP_ALIVE_SECONDS),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        ssl_context_factory=(lambda _config, _default: ReloadingContext.of(web)) if web.tls else None,
    )
    for opened in sockets:
        where = opened.getsockname()
        log.info("listening", extra={"address": f"{where[0]}:{where[1]}", "tls": web.tls})
    runner.start()
    asyncio.run(_Server(server_config, asked_to_end).serve(sockets=sockets))
    runner.stop()


def _file_limit() -> int:
    """How many files may be open, after making room for many connections where the limit is the traditional 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILES_WANTED if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
