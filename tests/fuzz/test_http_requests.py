"""Anybody who can reach the port may send anything: it is answered or hung up on, and the next one is served."""

import contextlib
import re
import socket
from collections.abc import Iterator
from itertools import pairwise

import bcrypt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.collectors import COLLECTORS
from immich_vitals.server import BadRequest, Request, deadline_from
from support.exporter import Exporter
from support.fuzz import WORDS, fuzzed

SECONDS = 20.0  # far more than an answer takes here
GOOD = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cHJvbWV0aGV1czpyaWdodA==\r\n\r\n"
LAST = GOOD[:-2] + b"Connection: close\r\n\r\n"
LISTENS = 0.2  # seconds for answers to what may be the beginning of a request, which is waited for much longer
USERS = f"basic_auth_users:\n  prometheus: {bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n"

METHODS = st.sampled_from(
    (b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT", b"PRI", b"get", b"G ET", b"", b"\0", b"\xff" * 9)
)
TARGETS = st.one_of(
    st.sampled_from(
        (b"/metrics", b"/", b"/healthz", b"/readyz", b"*", b"", b"//", b"/../metrics", b"/%00", b"/%ff", b"/%",
         b"/\xff",
         b"http://x/metrics", b"http://x", b"http://", b"https://[::1/metrics", b"x:443",
         b"/metrics?" + b"name[]=a&" * 2000,
         b"/metrics?name[]=%ff", b"/metrics?name%5B%5D=\xe9", b"/metrics?;=&&&", b"/" + b"a" * 20_000, b"/ HTTP/1.1 x")
    ),
    st.binary(max_size=20).map(lambda path: b"/" + path),
)  # fmt: skip
PROTOCOLS = st.sampled_from(
    (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.", b"HTTP/11", b"", b"http/1.1")
)
NAMES = st.sampled_from(
    (b"Host", b"Accept", b"Accept-Encoding", b"Authorization", b"X-Prometheus-Scrape-Timeout-Seconds", b"Connection",
     b"Content-Length", b"Transfer-Encoding", b"Expect", b"Upgrade", b"Cookie", b"", b" X", b"X ", b"\0",
     b"\xc3\xbc", b"X" * 9999)
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        (b"", b"0", b"-1", b"1", b"1e-300", b"1e300", b"nan", b"inf", b"9" * 5000, b"5, 5", b"5, 6", b"0x5", b"+5",
         b"\xb2", b"chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"100-continue", b"close",
         b"keep-alive, Upgrade",
         b"websocket", b"h2c", b"Basic", b"Basic !!!", b"Basic Og==", b"Basic " + b"A" * 9000, b"Bearer x",
         b"gzip;q=nan",
         b"gzip;q=", b"*;q=0", b"application/openmetrics-text;version=9.9;escaping=x", b"text/plain;;;=", b"a\0b",
         b"a\rb",
         b"a\nb", b"\xff", b"x" * 20_000)
    ),
    st.binary(max_size=20),
)  # fmt: skip
BODIES = st.sampled_from(
    (b"", b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n", b"-5\r\n", b"ffffffffffffffffffff\r\n",
     b"5;" + b"x" * 9999, b"0\r\nX: y\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 3000 + b"\r\n", b"5\nhello\n0\n\n", GOOD)
)  # fmt: skip
ENDS = st.sampled_from((b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n\t", b""))
REQUESTS = st.builds(
    lambda method, target, protocol, fields, end, body: (
        b" ".join([method, target, protocol]) + end
        + b"".join(name + b": " + value + end for name, value in fields) + end + body
    ),
    METHODS, TARGETS, PROTOCOLS, st.lists(st.tuples(NAMES, VALUES), max_size=5), ENDS, BODIES,
)  # fmt: skip
PLAIN = st.builds(
    lambda target, fields, body: (
        b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"%b: %b\r\n" % each for each in fields) + b"\r\n" + body
    ),
    TARGETS, st.lists(st.tuples(NAMES, VALUES), max_size=2), BODIES,
)  # fmt: skip
SENT = st.lists(st.one_of(REQUESTS, PLAIN, PLAIN, st.just(GOOD), st.binary(max_size=50)), min_size=1, max_size=4).map(
    b"".join
)
STATUSES = {200, 400, 401, 404, 405, 408, 413, 414, 431, 503}


@pytest.fixture(scope="module", params=["open", "closed"])
def exporter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """The process, with or without a password; at its end it must have said nothing of any of it."""
    web = tmp_path_factory.mktemp("web") / "web.yml"
    web.write_text(USERS if request.param == "closed" else "")
    environ = {"IMMICH_VITALS_DISABLE": ",".join(collector.name for collector in COLLECTORS)}
    with Exporter(environ, f"--web.config.file={web}") as running:
        yield running
        said = running.stop()
    assert running.exit_code == 0
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2, said


@fuzzed
@given(SENT, st.lists(st.integers(0, 200), max_size=3), st.booleans())
@example(GOOD * 30, [], True)
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, [], True)
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50, [], True)
@example(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [], True)
@example(b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-\r\n", [40], True)
@example(b"GET / HTTP/1.1\r\n\r\n" + b"\r\n" * 40_000, [], True)
def test_anything_sent(exporter: Exporter, sent: bytes, cuts: list[int], listens: bool) -> None:
    """However it comes, what is answered is an answer, and a good request after it is served."""
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=LISTENS) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = _told(client, [sent[i:j] for i, j in pairwise([0, *sorted(cuts), len(sent) + 200])], listens)
    if said:
        assert re.match(rb"HTTP/1\.1 \d{3} ", said), said[:80]
        assert int(said[9:12]) in STATUSES
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=SECONDS) as client:
        assert _told(client, [LAST], True).startswith(b"HTTP/1.1 200 OK\r\n")


def _told(client: socket.socket, pieces: list[bytes], listens: bool) -> bytes:
    """What comes back until it hangs up, or is silent; nothing when nobody listens."""
    said = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        for piece in pieces:
            client.sendall(piece)
        while listens and (piece := client.recv(65536)):
            said += piece
    return said


@fuzzed
@given(st.none() | WORDS | st.sampled_from(("1", "0.1", "1e9", "-0", "1_0", " 5 ", "٣", "infinity")))
def test_any_time_out(header: str | None) -> None:
    """Prometheus' time-out is taken as it is, or refused; what is allowed is less, and no more than ten minutes."""
    try:
        allowed = deadline_from(header)
    except BadRequest:
        return
    assert 0 < allowed <= 600
    assert header is None or allowed <= float(header)


@fuzzed
@given(TARGETS, st.binary(max_size=50), st.lists(st.tuples(st.just(b"accept"), VALUES), max_size=3))
def test_any_scope(path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """What the application takes out of a request."""
    request = Request(
        {"method": "GET", "path": path.decode("latin-1"), "client": None, "headers": headers, "query_string": query}
    )
    assert request.path == "" or isinstance(request.path, str)
    assert request.header(b"accept") is None or headers
    with contextlib.suppress(BadRequest):
        request.query("name[]")
