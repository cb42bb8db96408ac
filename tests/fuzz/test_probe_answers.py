"""What answers in Immich's place may say anything: the probes tell what they found, in time."""

import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.collector import Deadline
from immich_vitals.collectors.probe import ProbeCollector, probe_samples, remarks_on
from immich_vitals.config import ProbeConfig, Secret
from immich_vitals.sources.certificate import CertificateFacts, validity
from immich_vitals.sources.http_probe import NoAnswer, Origin, Request, Way, ask, open_websocket
from immich_vitals.sources.immich_http import Found, RouteFacts
from immich_vitals.sources.names import NAMES
from immich_vitals.sources.probes import ProbeFacts, Probes
from support.certificates import make_certificate
from support.fuzz import JSON, WORDS, fuzzed, seldom, shown, told
from support.tcp_proxy import TcpServer

with tempfile.TemporaryDirectory() as _folder:
    DER = make_certificate(Path(_folder), "some").certificate.public_bytes(Encoding.DER)
HEADS = st.sampled_from(
    (b"HTTP/1.1 200 OK", b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 100 Continue", b"HTTP/1.0 301 Moved",
     b"HTTP/1.1 999 ", b"HTTP/1.1 000 No", b"HTTP/1.1 204 No Content", b"HTTP/9.9 200 OK", b"HTTP/1.1 2x0 OK",
     b"ICY 200", b"")
)  # fmt: skip
FIELDS = st.sampled_from(
    (b"Content-Length: 5", b"Content-Length: -1",
     b"Content-Length: 99999999999999999999", b"Content-Length: 5, 6",
     b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Location: https://[::1", b"Location: //",
     b"Location: https://127.0.0.1:x/", b"Location: https://127.0.0.1:0/", b"Connection: Upgrade",
     b"Upgrade: websocket",
     b"Sec-WebSocket-Accept: x", b"Content-Type: image/webp", b"Content-Type: \xff", b"x" * 70_000, b": x", b" y",
     b"a: b\0")
)  # fmt: skip
BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        (b"pong", b'{"res":"pong"}', b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"\x81\x7f\xff\xff", b"[" * 5000)
    ),
    JSON.map(repr).map(lambda text: text.encode(errors="replace")),
)
ANSWERS = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda head, fields, body: b"\r\n".join([head, *fields, b"", b""]) + body,
        HEADS,
        st.lists(FIELDS, max_size=4),
        BODIES,
    ),
)  # fmt: skip


SECONDS = st.none() | st.floats()


class Says:
    """Answers each connection with the words of the moment, and hangs up."""

    words = b""

    def __call__(self, connection: object) -> None:
        connection.settimeout(5)  # type: ignore[attr-defined]
        connection.recv(65536)  # type: ignore[attr-defined]
        connection.sendall(self.words)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def said() -> Iterator[tuple[Says, int]]:
    says = Says()
    with TcpServer(says) as server:
        yield says, server.port


def _way(port: int) -> Way:
    found = NAMES.addresses("127.0.0.1", Deadline.after(5))
    return Way(Origin("http", "127.0.0.1", port), [each.at(port) for each in found])


@fuzzed
@given(ANSWERS, st.sampled_from(("GET", "HEAD", "POST")))
def test_one_answer(said: tuple[Says, int], answer: bytes, method: str) -> None:
    """An answer of HTTP, or none."""
    says, port = said
    says.words = answer
    for expects in (False, True):
        length = {"Content-Length": "5", "Expect": "100-continue"} if expects else {}
        try:
            found = ask(_way(port), Request("/x", method, length, expects=expects), Deadline.after(5))
            assert 100 <= found.status <= 999
        except NoAnswer as none:
            assert str(none)
    try:
        open_websocket(_way(port), "/x", Deadline.after(5))
    except NoAnswer as none:
        assert str(none)


@seldom
@given(ANSWERS)
@example(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:99999/\r\nContent-Length: 0\r\n\r\n")
@example(b"HTTP/1.1 302 Found\r\nLocation: https://[::1\r\nContent-Length: 0\r\n\r\n")
def test_a_round(said: tuple[Says, int], answer: bytes) -> None:
    """All probes of all routes, where everything answers the same."""
    says, port = said
    says.words = answer
    url = f"http://127.0.0.1:{port}"
    probes = Probes(ProbeConfig(url, url, url, Secret("c0rrect-h0rse"), 60, 60, None), None, http_port=port)
    facts = told(lambda: probes.look(Deadline.after(20)))
    probes.close()
    assert facts is not None
    shown(ProbeCollector, probe_samples(facts))
    assert "c0rrect-h0rse" not in repr(facts)


@fuzzed
@given(
    st.builds(
        Found, st.none() | st.booleans(), st.none() | st.integers(100, 999), st.none() | st.floats(), WORDS, WORDS
    ),
    st.none() | st.builds(CertificateFacts, st.none() | st.floats(), st.none() | st.floats(), WORDS),
    st.none() | st.floats(),
)
def test_what_was_found(found: Found, certificate: CertificateFacts | None, limit: float | None) -> None:
    route = RouteFacts("external", {"ping": found, "image": found}, None, certificate)
    facts = ProbeFacts([route], found, limit)
    shown(ProbeCollector, probe_samples(facts))
    assert all(remark.message and remark.mend for remark in remarks_on(facts) if not remark.optional)


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(
            lambda at, bits: DER[: at % len(DER)] + bits + DER[at % len(DER) + 1 :],
            st.integers(0),
            st.binary(max_size=3),
        ),
        st.builds(lambda at, more: DER[: at % len(DER)] + more, st.integers(0), st.binary(max_size=20)),
    )
)
@example(b"\x30\xff" + b"\xff" * 127)
@example(b"\x30\x80")
def test_any_certificate(der: bytes) -> None:
    """A certificate has two moments, or is none."""
    found = validity(der)
    assert found is None or all(isinstance(moment, float) for moment in found)


@seldom
@given(st.one_of(st.binary(max_size=60), WORDS.map(lambda word: word.encode(errors="replace"))))
@example(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
@example(ssl.DER_cert_to_PEM_cert(DER).encode()[:-40])
def test_any_authorities(folder: Path, text: bytes) -> None:
    """A file of authorities is used, or told to be none."""
    file = folder / "ca.pem"
    file.write_bytes(text)
    probes = Probes(ProbeConfig(None, None, None, None, 60, 60, file), None)
    told(lambda: probes.look(Deadline.after(5)))
