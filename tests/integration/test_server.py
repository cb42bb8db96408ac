"""The HTTP side, with the real server as a process of its own."""

import gzip
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
from cryptography import x509
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.certificates import make_certificate
from support.exporter import Exporter


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with Exporter() as running:
        yield running


def test_text_format(exporter: Exporter) -> None:
    """Without an Accept header the metrics come in Prometheus' text format."""
    answer = httpx.get(exporter.url("/metrics"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in parse_text(answer.text)}
    assert {"immich_vitals_build_info", "process_resident_memory_bytes", "python_info"} <= names


def test_openmetrics(exporter: Exporter) -> None:
    """With Prometheus' Accept header they come as OpenMetrics, which its strict parser takes."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    answer = httpx.get(exporter.url("/metrics"), headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert list(parse_openmetrics(answer.text))


def test_gzip(exporter: Exporter) -> None:
    """Whoever takes gzip gets it, and only they."""
    with httpx.stream("GET", exporter.url("/metrics"), headers={"accept-encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert b"immich_vitals_build_info" in gzip.decompress(b"".join(answer.iter_raw()))
    plain = httpx.get(exporter.url("/metrics"), headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_name_filter(exporter: Exporter) -> None:
    """`name[]` keeps the families that are asked for, by the name of the family or of a sample."""
    query = {"name[]": ["immich_vitals_build_info", "process_cpu_seconds_total"]}
    answer = httpx.get(exporter.url("/metrics"), params=query)
    assert {family.name for family in parse_text(answer.text)} == {
        "immich_vitals_build_info",
        "process_cpu_seconds",
    }


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/", 200), ("/nothing", 404), ("/metrics/", 404)]
)
def test_paths(exporter: Exporter, path: str, status: int) -> None:
    """Health, readiness and the landing page answer; what is not there says where the metrics are."""
    assert httpx.get(exporter.url(path)).status_code == status


@pytest.mark.parametrize("header", ["abc", "-1", "nan", "inf", "0"])
def test_wrong_deadline(exporter: Exporter, header: str) -> None:
    """A scrape time-out that is no number of seconds is refused with a word on why."""
    answer = httpx.get(exporter.url("/metrics"), headers={"x-prometheus-scrape-timeout-seconds": header})
    assert (answer.status_code, "Scrape-Timeout" in answer.text) == (400, True)


def test_deadline_header(exporter: Exporter) -> None:
    """Prometheus' time-out less half a second is what the scrape may take."""
    answer = httpx.get(exporter.url("/metrics"), headers={"x-prometheus-scrape-timeout-seconds": "5"})
    assert "immich_vitals_scrape_deadline_seconds 4.5" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading(exporter: Exporter, method: str) -> None:
    """Nothing but GET and HEAD is served."""
    assert httpx.request(method, exporter.url("/metrics")).status_code == 405


def test_head_has_no_body(exporter: Exporter) -> None:
    """HEAD answers as GET, without the body."""
    assert httpx.head(exporter.url("/healthz")).text == ""


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/one\r\n\r\n", b"GET / HTTP/1.1\r\n\x00: x\r\n\r\n",
     b"A" * 70_000, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_garbage_is_refused_and_forgotten(exporter: Exporter, sent: bytes) -> None:
    """What is not HTTP is answered with an error or a closed connection, and the next request is served."""
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=10) as raw:
        try:
            raw.sendall(sent)
            answer = raw.recv(100)
        except ConnectionError:
            answer = b""
    assert answer == b"" or b" 400 " in answer or b" 431 " in answer
    assert httpx.get(exporter.url("/healthz")).status_code == 200


def test_500_idle_and_50_slow_connections(exporter: Exporter) -> None:
    """Prometheus is served while 500 connections say nothing and 50 stop in the middle of a request."""
    held = [socket.create_connection(("127.0.0.1", exporter.port)) for _ in range(550)]
    try:
        for slow in held[:50]:
            slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for _ in range(3):
            assert httpx.get(exporter.url("/metrics"), timeout=5).status_code == 200
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(number: signal.Signals) -> None:
    """It ends at once and without error, connections open or not."""
    with Exporter() as running, socket.create_connection(("127.0.0.1", running.port)) as idle:
        idle.sendall(b"GET /metrics HTTP/1.1\r\n")
        running.stop(number)
        assert running.exit_code == 0


def test_sigterm_with_a_stuck_call() -> None:
    """A collector that hangs in a call that never returns does not keep the process from ending in two seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        port = silent.getsockname()[1]
        with Exporter({"REDIS_HOSTNAME": "127.0.0.1", "REDIS_PORT": str(port)}) as running:
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                connection, _ = silent.accept()
                with connection:  # the collector is connected now, and waits for an answer that will not come
                    began = time.monotonic()
                    running.stop()
                    assert time.monotonic() - began < 2
            assert running.exit_code == 0


def test_port_in_use(exporter: Exporter) -> None:
    """A port that is taken is one clear sentence and exit code 2."""
    taken = f"--web.listen-address=127.0.0.1:{exporter.port}"
    done = subprocess.run(
        [sys.executable, "-m", "immich_vitals", "serve", taken], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"cannot listen on '127.0.0.1:{exporter.port}': Address already in use" in done.stderr
    assert "--web.listen-address" in done.stderr


def trusting(folder: Path, client: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    return context


def test_tls_client_certificates_and_reload(tmp_path: Path) -> None:
    """TLS by the toolkit's file, a client certificate with an allowed name is needed, and new certificates are
    taken up without a restart."""
    authority = make_certificate(tmp_path, "ca")
    for name in ("server", "prometheus", "stranger"):
        make_certificate(tmp_path, name, authority)
    (tmp_path / "web.yml").write_text(
        "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
        "  client_allowed_sans: [prometheus]\n  min_version: TLS13\n"
    )
    with Exporter({}, f"--web.config.file={tmp_path / 'web.yml'}") as running:
        url = running.url("/metrics", "https").replace("127.0.0.1", "localhost")
        assert httpx.get(url, verify=trusting(tmp_path, "prometheus")).status_code == 200
        for refused in (None, "stranger"):
            with pytest.raises(httpx.TransportError):
                httpx.get(url, verify=trusting(tmp_path, refused))
        check = subprocess.run(
            [sys.executable, "-m", "immich_vitals", "healthcheck", f"--web.config.file={tmp_path / 'web.yml'}",
             f"--web.listen-address=127.0.0.1:{running.port}"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert check.returncode == 0, check.stderr
        second = make_certificate(tmp_path, "server", authority).certificate.serial_number
        with (
            socket.create_connection(("localhost", running.port)) as plain,
            trusting(tmp_path, "prometheus").wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            served = wrapped.getpeercert(binary_form=True)
        assert served is not None
        assert x509.load_der_x509_certificate(served).serial_number == second


def test_basic_auth_and_reload(tmp_path: Path) -> None:
    """A request needs a user's password; a changed file is taken up, and one that is broken changes nothing."""
    file = tmp_path / "web.yml"

    def write(password: str) -> None:
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        file.write_text(f"basic_auth_users:\n  prometheus: {hashed}\nhttp_server_config:\n  headers:\n"
                        "    X-Frame-Options: deny\n")  # fmt: skip

    write("first")
    with Exporter({}, f"--web.config.file={file}") as running:

        def status(user: str | None, password: str = "") -> int:
            auth = (user, password) if user else None
            return httpx.get(running.url("/metrics"), auth=auth).status_code

        assert httpx.get(running.url("/"), auth=("prometheus", "first")).headers["x-frame-options"] == "deny"
        assert (status("prometheus", "first"), status("prometheus", "second"), status(None)) == (200, 401, 401)
        assert (status("stranger", "first"), status("prometheus", "x" * 200)) == (401, 401)
        assert httpx.get(running.url("/metrics"), headers={"authorization": "Basic !!"}).status_code == 401
        write("second")
        assert (status("prometheus", "first"), status("prometheus", "second")) == (401, 200)
        file.write_text("basic_auth_user: {}")
        assert (status("prometheus", "second"), status(None)) == (200, 401)
        assert "keeping the last" in running.stop()
