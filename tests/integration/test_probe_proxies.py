"""The probe through a real nginx and a real Caddy, set up as people do, well and badly.

Behind them is the demo's stand-in for Immich, whose server cannot run here; it answers from a real database and real
files.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from immich_vitals.collector import Deadline
from immich_vitals.collectors.probe import probe_samples, remarks_on
from immich_vitals.config import PostgresConfig, ProbeConfig, Secret
from immich_vitals.demo.servers import free_port
from immich_vitals.demo.web import KEY, Proxy, Web
from immich_vitals.sources import names
from immich_vitals.sources.immich_http import MIB, UPLOAD_SIZES
from immich_vitals.sources.names import Address
from immich_vitals.sources.probes import Probes
from support.certificates import Signed, make_certificate
from support.stand_in import StandIn
from support.tcp_proxy import TcpServer, silent

DAY = 86400.0
NO_LIMIT = float(UPLOAD_SIZES[-1])
UPGRADE = (
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
)
PASS = "proxy_pass {immich};"
# What differs from a server that is set up well: its limit of uploads, where it passes requests to, its certificate.
NGINX: Mapping[str, Mapping[str, str]] = {
    "good": {},
    "limit-1m": {"limit": ""},  # as nginx has it where nobody says
    "limit-100m": {"limit": "client_max_body_size 100m;"},
    "limit-100k": {"limit": "client_max_body_size 100k;"},
    "streams": {"does": PASS + UPGRADE + "proxy_request_buffering off;"},
    "upgrade-dropped": {"does": PASS},
    "upstream-down": {"does": "proxy_pass http://127.0.0.1:1;"},
    "upstream-stalled": {"does": "proxy_pass {stalled}; proxy_read_timeout 100ms;"},
    "slow": {"does": "proxy_pass {slow};" + UPGRADE},
    "expired": {"certificate": "expired"},
    "soon": {"certificate": "soon"},
    "self-signed": {"certificate": "self-signed"},
    "incomplete-chain": {"certificate": "incomplete-chain"},
    "wrong-host": {"certificate": "wrong-host"},
    "ipv4-only": {"listen": "127.0.0.1:{port} ssl"},
    "login": {"does": "return 302 https://login.example.org/;"},
    "key-dropped": {"does": PASS + UPGRADE + 'proxy_set_header x-api-key "";'},
    "other-page": {"does": 'default_type text/html; return 200 "<!doctype html>";'},
    "plain": {"listen": "127.0.0.1:{port}"},
    "plain-redirects": {"listen": "127.0.0.1:{port}", "does": "return 301 https://$host:{good}$request_uri;"},
    "loops": {"listen": "127.0.0.1:{port}", "does": "return 301 http://$host:{port}$request_uri;"},
}
CADDY = {
    "good": "reverse_proxy {immich}",
    "limit-1m": "request_body {{\nmax_size 1MiB\n}}\nreverse_proxy {immich}",
    "upstream-down": "reverse_proxy 127.0.0.1:1",
    "incomplete-chain": "reverse_proxy {immich}",
}

Ports = Mapping[str, int]
Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files `<name>.chain` and `<name>.key` for servers, and the authority that they come from."""

    folder: Path
    root: Signed

    def settings(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.chain", self.folder / f"{name}.key"


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind the proxies."""

    web: Web
    slow: Proxy
    stalled: TcpServer
    postgres: PostgresConfig


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of probes gave."""

    values: Values
    said: Sequence[str]

    def probe(self, probe: str, route: str = "external") -> tuple[float | None, float | None]:
        """Success and status."""
        return self.values.get(("probe_success", probe, route)), self.values.get(("probe_http_status", probe, route))


@pytest.fixture(scope="module")
def certificates(server_folder: Path) -> Certificates:
    folder = server_folder / "certificates"
    folder.mkdir()
    root = make_certificate(folder, "root", days=3650)
    between = make_certificate(folder, "between", root, days=900, authority=True)
    chain = between.public.read_bytes()
    for name, issuer, days, sent in (
        ("good", between, 60, chain),
        ("soon", between, 10, chain),
        ("expired", between, -2, chain),
        ("wrong-host", between, 60, chain),
        ("incomplete-chain", between, 60, b""),
        ("self-signed", None, 60, b""),
    ):
        made = make_certificate(folder, name, issuer, days=days, local=name != "wrong-host")
        (folder / f"{name}.chain").write_bytes(made.public.read_bytes() + sent)
    return Certificates(folder, root)


@pytest.fixture(scope="module")
def behind(stand_in: StandIn) -> Iterator[Behind]:
    with TcpServer(silent) as stalled:
        slow = Proxy(stand_in.web.immich)
        slow.delay = 0.2
        yield Behind(stand_in.web, slow, stalled, stand_in.postgres)
        slow.stop()


@pytest.fixture(scope="module")
def nginx(server_folder: Path, certificates: Certificates, behind: Behind) -> Iterator[Ports]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    folder = server_folder / "nginx"
    folder.mkdir()
    ports = {name: free_port() for name in NGINX}
    (folder / "nginx.conf").write_text(nginx_config(folder, ports, certificates, behind))
    with running([program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"], folder, ports.values()):
        yield ports


def nginx_config(folder: Path, ports: Ports, certificates: Certificates, behind: Behind) -> str:
    place = {
        "immich": behind.web.immich.url, "slow": behind.slow.url, "stalled": f"http://127.0.0.1:{behind.stalled.port}",
        "good": ports["good"],
    }  # fmt: skip
    blocks = []
    for name, port in ports.items():
        told = NGINX[name]
        chain, key = certificates.settings(told.get("certificate", "good"))
        listen = told.get("listen", "127.0.0.1:{port} ssl; listen [::1]:{port} ssl").format(port=port)
        does = told.get("does", PASS + UPGRADE).format(port=port, **place)
        limit = told.get("limit", "client_max_body_size 0;")
        blocks.append(
            f"server {{ listen {listen}; ssl_certificate {chain}; ssl_certificate_key {key}; {limit}"
            f" location / {{ {does} }} }}"
        )
    temporary = " ".join(f"{what}_temp_path {folder / what};" for what in ("client_body", "proxy", "fastcgi"))
    return (
        "daemon off; master_process off; pid nginx.pid; events { worker_connections 256; }\n"
        f"http {{ access_log off; {temporary} uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        "map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n" + "\n".join(blocks) + "\n}\n"
    )


@pytest.fixture(scope="module")
def caddy(server_folder: Path, certificates: Certificates, behind: Behind) -> Iterator[Ports]:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("needs caddy: apt-get install caddy")
    folder = server_folder / "caddy"
    folder.mkdir()
    ports = {name: free_port() for name in CADDY}
    sites = []
    for name, does in CADDY.items():
        chain, key = certificates.settings("incomplete-chain" if name == "incomplete-chain" else "good")
        told = does.format(immich=behind.web.immich.url)
        sites.append(f"https://localhost:{ports[name]} {{\ntls {chain} {key}\n{told}\n}}")
    start = "{\nadmin off\nauto_https disable_redirects\nstorage file_system " + str(folder) + "\n}\n"
    (folder / "Caddyfile").write_text(start + "\n".join(sites) + "\n")
    with running([program, "run", "--config", "Caddyfile"], folder, ports.values()):
        yield ports


@contextmanager
def running(command: Sequence[str], folder: Path, ports: Iterable[int]) -> Iterator[None]:
    """The program, from when it listens on all ports to the end of the block."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"},
        )  # fmt: skip
    try:
        until = time.monotonic() + 30
        for port in ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    said = (folder / "log").read_text(errors="replace")
                    assert process.poll() is None and time.monotonic() < until, f"{command[0]} did not start: {said}"
                    time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def probe_config(certificates: Certificates, behind: Behind) -> ProbeConfig:
    """The direct route, and the authority of the tests."""
    return ProbeConfig(behind.web.immich.url, None, None, Secret(KEY), 60, 3600, certificates.root.public)


def look(config: ProbeConfig, behind: Behind, url: str | None, http_port: int = 1) -> Round:
    """One round with this external address; nothing answers on `http_port` unless the test says so."""
    probes = Probes(replace(config, external=url), behind.postgres, http_port)
    facts = probes.look(Deadline.after(30))
    probes.close()
    values = {(sample.metric.name, *sample.labels): sample.value for sample in probe_samples(facts)}
    return Round(values, [f"{remark.message}; {remark.mend}" for remark in remarks_on(facts)])


def test_well_behind_nginx(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Everything works, by both routes, and there is nothing to remark."""
    found = look(probe_config, behind, f"https://localhost:{nginx['good']}", nginx["plain-redirects"])
    for route in ("direct", "external"):
        assert found.probe("ping", route) == (1, 200)
        assert found.probe("websocket", route) == (1, 101)
        assert found.probe("image", route) == (1, 206)
    assert found.values["probe_certificate_trusted", "external"] == 1
    assert found.values["probe_certificate_expiry_timestamp_seconds", "external"] == pytest.approx(
        time.time() + 60 * DAY, abs=600
    )
    assert found.values["probe_upload_limit_bytes", "external"] == NO_LIMIT
    assert found.values["probe_redirects_to_https",] == 1
    assert found.values["probe_maintenance_mode",] == 0
    assert found.said == []


@pytest.mark.parametrize(
    ("server", "limit"),
    [("limit-1m", 1 * MIB), ("limit-100m", 100 * MIB), ("limit-100k", 0), ("good", NO_LIMIT), ("streams", NO_LIMIT)],
)
def test_upload_limit_of_nginx(
    nginx: Ports, probe_config: ProbeConfig, behind: Behind, server: str, limit: float
) -> None:
    """`client_max_body_size` is found without a byte sent, by few requests; all else works."""
    found = look(probe_config, behind, f"https://localhost:{nginx[server]}")
    assert found.values["probe_upload_limit_bytes", "external"] == limit
    assert found.probe("image") == (1, 206)


def test_upgrade_dropped(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """The headers Upgrade and Connection are not passed on: the websocket alone fails, and by this route alone."""
    found = look(probe_config, behind, f"https://localhost:{nginx['upgrade-dropped']}")
    assert found.probe("websocket") == (0, 400)
    assert found.probe("websocket", "direct") == (1, 101)
    assert found.probe("ping") == (1, 200)
    assert found.probe("image") == (1, 206)
    assert any("Upgrade" in said for said in found.said)


@pytest.mark.parametrize(("server", "status"), [("upstream-down", 502), ("upstream-stalled", 504), ("login", 302)])
def test_nothing_behind(nginx: Ports, probe_config: ProbeConfig, behind: Behind, server: str, status: float) -> None:
    """The proxy answers for itself: nothing works by this route, and its status says why."""
    found = look(probe_config, behind, f"https://localhost:{nginx[server]}")
    assert found.probe("ping") == (0, status)
    assert found.probe("websocket") == (0, status)
    assert found.probe("ping", "direct") == (1, 200)
    assert found.values["probe_certificate_trusted", "external"] == 1
    assert any(f"ping fails by the external route: answered with status {status}" in said for said in found.said)


def test_another_page(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Status 200 is not enough: what answers must be Immich."""
    found = look(probe_config, behind, f"https://localhost:{nginx['other-page']}")
    assert found.probe("ping") == (0, 200)
    assert found.probe("websocket") == (0, 200)
    assert found.probe("image") == (0, 200)


def test_slow(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """A proxy that takes its time works, and the time until the first byte shows it."""
    found = look(probe_config, behind, f"https://localhost:{nginx['slow']}")
    assert found.probe("ping") == (1, 200)
    assert found.values["probe_first_byte_seconds", "external"] >= behind.slow.delay
    assert found.values["probe_duration_seconds", "image", "external"] >= 3 * behind.slow.delay


@pytest.mark.parametrize(
    ("server", "days", "problem"),
    [
        ("expired", -2, "has expired"),
        ("self-signed", 60, "self-signed"),
        ("incomplete-chain", 60, "unable to get local issuer"),
        ("wrong-host", 60, "Hostname mismatch"),
    ],
)
def test_certificate_not_to_be_trusted(
    nginx: Ports, probe_config: ProbeConfig, behind: Behind, server: str, days: float, problem: str
) -> None:
    """It is told why, and until when; the proxy is there all the same, and the key is not shown to it."""
    asked = behind.web.immich.keys_seen
    found = look(replace(probe_config, server=None), behind, f"https://localhost:{nginx[server]}")
    assert found.values["probe_certificate_trusted", "external"] == 0
    assert found.values["probe_certificate_expiry_timestamp_seconds", "external"] == pytest.approx(
        time.time() + days * DAY, abs=600
    )
    assert found.probe("ping") == (1, 200)
    assert found.probe("websocket") == (1, 101)
    assert found.probe("image") == (None, None)
    assert [said for said in found.said if problem in said]
    assert behind.web.immich.keys_seen == asked


def test_certificate_ends_soon(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """The end that is told is the first in the chain."""
    found = look(probe_config, behind, f"https://localhost:{nginx['soon']}")
    assert found.values["probe_certificate_trusted", "external"] == 1
    assert found.values["probe_certificate_expiry_timestamp_seconds", "external"] == pytest.approx(
        time.time() + 10 * DAY, abs=600
    )


def test_own_authority_ends_first(
    nginx: Ports, probe_config: ProbeConfig, behind: Behind, certificates: Certificates
) -> None:
    """Trusted is also what one's own file holds, here without the root; without the file nothing is."""
    config = replace(probe_config, ca_file=certificates.settings("self-signed")[0])
    assert look(config, behind, f"https://localhost:{nginx['self-signed']}").values[
        "probe_certificate_trusted", "external"
    ]
    config = replace(probe_config, ca_file=None)
    found = look(config, behind, f"https://localhost:{nginx['good']}")
    assert found.values["probe_certificate_trusted", "external"] == 0


def test_redirect_to_https_missing(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Immich answers over http:// as well, where a redirect should be."""
    found = look(probe_config, behind, f"https://localhost:{nginx['good']}", nginx["plain"])
    assert found.values["probe_redirects_to_https",] == 0


def test_http_address(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """An external address without TLS is probed, without the key; where it leads to https://, that is probed."""
    found = look(probe_config, behind, f"http://localhost:{nginx['plain']}")
    assert found.probe("ping") == (1, 200)
    assert found.probe("image") == (None, None)
    assert found.values["probe_redirects_to_https",] == 0
    assert any("without TLS" in said for said in found.said)
    found = look(probe_config, behind, f"http://localhost:{nginx['plain-redirects']}")
    assert found.probe("ping") == found.probe("ping", "direct") == (1, 200)
    assert found.probe("image") == (1, 206)
    assert found.values["probe_redirects_to_https",] == 1


def test_redirect_loop(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """It is no answer, and is not walked."""
    assert look(probe_config, behind, f"http://localhost:{nginx['loops']}").probe("ping") == (0, 301)


def test_key_taken_away(nginx: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Where the proxy drops the key, nothing is known of photos by this route, and it is said."""
    found = look(probe_config, behind, f"https://localhost:{nginx['key-dropped']}")
    assert found.probe("image") == (None, None)
    assert found.probe("image", "direct") == (1, 206)
    assert any("x-api-key" in said for said in found.said)


@pytest.mark.parametrize(("server", "ipv6"), [("good", 1), ("ipv4-only", 0)])
def test_each_family_of_addresses(
    nginx: Ports, probe_config: ProbeConfig, behind: Behind, server: str, ipv6: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with both is probed by both; one that is dead does not make Immich unreachable."""
    both = [
        Address("ipv6", socket.AF_INET6, ("::1", 0, 0, 0)),
        Address("ipv4", socket.AF_INET, ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(names, "_resolved", lambda host: both)
    found = look(replace(probe_config, server=None), behind, f"https://localhost:{nginx[server]}")
    assert found.values["probe_address_family_success", "external", "ipv4"] == 1
    assert found.values["probe_address_family_success", "external", "ipv6"] == ipv6
    assert found.probe("ping") == (1, 200)


def test_well_behind_caddy(caddy: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Everything works behind Caddy, too."""
    found = look(probe_config, behind, f"https://localhost:{caddy['good']}")
    assert [found.probe(probe) for probe in ("ping", "websocket", "image")] == [(1, 200), (1, 101), (1, 206)]
    assert found.values["probe_certificate_trusted", "external"] == 1
    assert found.values["probe_upload_limit_bytes", "external"] == NO_LIMIT
    assert found.said == []


def test_broken_behind_caddy(caddy: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """A missing upstream and a missing intermediate certificate show as with nginx."""
    found = look(probe_config, behind, f"https://localhost:{caddy['upstream-down']}")
    assert found.probe("ping") == (0, 502)
    found = look(probe_config, behind, f"https://localhost:{caddy['incomplete-chain']}")
    assert found.values["probe_certificate_trusted", "external"] == 0


def test_upload_limit_of_caddy(caddy: Ports, probe_config: ProbeConfig, behind: Behind) -> None:
    """Caddy counts what it has received, not what is announced: its limit is not seen without sending it."""
    found = look(probe_config, behind, f"https://localhost:{caddy['limit-1m']}")
    assert found.values.get(("probe_upload_limit_bytes", "external")) == NO_LIMIT
