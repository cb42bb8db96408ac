"""The collector `probe`: facts to samples, what Immich says in its various states, and what others say in its place."""

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from immich_vitals.collector import Absent, Clock, CollectorFailure, Deadline, Unavailable
from immich_vitals.collectors.probe import ProbeCollector, probe_samples, remarks_on
from immich_vitals.config import PostgresConfig, ProbeConfig, Secret, load
from immich_vitals.demo.servers import Postgres, free_port
from immich_vitals.demo.web import KEY
from immich_vitals.grants import grants_sql
from immich_vitals.sources import http_probe, immich_http, names
from immich_vitals.sources.canary import Canaries
from immich_vitals.sources.certificate import CertificateFacts, validity
from immich_vitals.sources.immich_http import Found, RouteFacts
from immich_vitals.sources.probes import ProbeFacts, Probes
from support.certificates import make_certificate
from support.golden import cases, check
from support.immich_database import VERSIONS, immich_database
from support.immich_database import config as at
from support.stand_in import StandIn
from support.tcp_proxy import Answer, TcpServer, closes, drips, says, silent

Values = Mapping[tuple[str, ...], float]
with tempfile.TemporaryDirectory() as _folder:
    SOME_DER = make_certificate(Path(_folder), "some").certificate.public_bytes(Encoding.DER)
NOTHING = ProbeConfig(None, None, None, None, 60, 3600, None)


@pytest.mark.parametrize("case", cases("probe"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """What a round found gives exactly its expected samples."""
    told = json.loads((case / "facts.json").read_text(encoding="utf-8"))
    routes = [
        RouteFacts(
            **{
                **route,
                "probes": {name: Found(**found) for name, found in route["probes"].items()},
                "certificate": CertificateFacts(**route["certificate"]) if "certificate" in route else None,
            }
        )
        for route in told["routes"]
    ]
    learning = told["machine_learning"]
    facts = ProbeFacts(routes, Found(**learning) if learning else None, told["upload_limit"])
    check(case, ProbeCollector.metrics, probe_samples(facts), update_golden)


def test_nothing_configured() -> None:
    """Without an address the collector is disabled, and says which setting to give."""
    config = load({"IMMICH_VITALS_API_KEY": "x"})
    assert ProbeCollector.from_config(config) is None
    assert "IMMICH_VITALS_SERVER_URL" in ProbeCollector.disabled_because(config)


def test_nobody_waits_for_it() -> None:
    """A scrape is never held up by a probe that hangs."""
    collector = ProbeCollector.from_config(load({"IMMICH_VITALS_SERVER_URL": "http://immich:2283"}))
    assert collector is not None
    assert not getattr(collector.trigger, "awaited", True)


def look(
    config: ProbeConfig, postgres: PostgresConfig | None = None, probes: Probes | None = None
) -> tuple[Values, list[str]]:
    """Samples and remarks of one round."""
    probes = probes or Probes(config, postgres, http_port=1)
    facts = probes.look(Deadline.after(20))
    probes.close()
    values = {(sample.metric.name, *sample.labels): sample.value for sample in probe_samples(facts)}
    return values, [f"{remark.message}; {remark.mend}" for remark in remarks_on(facts)]


@pytest.fixture
def config(stand_in: StandIn) -> ProbeConfig:
    web = stand_in.web
    return replace(NOTHING, server=web.immich.url, machine_learning=web.machine_learning.url, api_key=Secret(KEY))


def test_healthy(stand_in: StandIn, config: ProbeConfig) -> None:
    """A photo of the key's user is found among all users', and everything works."""
    values, said = look(config, stand_in.postgres)
    assert {name[1:]: value for name, value in values.items() if name[0] == "probe_success"} == {
        ("ping", "direct"): 1, ("websocket", "direct"): 1, ("image", "direct"): 1, ("machine_learning", "direct"): 1,
    }  # fmt: skip
    assert values["probe_maintenance_mode",] == 0
    assert said == []


def test_remembers_whose_photos_the_key_sees(stand_in: StandIn, config: ProbeConfig) -> None:
    """Once a photo has loaded, each further round asks for three files and no more."""
    probes = Probes(config, stand_in.postgres)
    look(config, probes=probes)
    for _ in range(5):
        before = stand_in.web.immich.keys_seen
        look(config, probes=probes)
        assert stand_in.web.immich.keys_seen == before + 3


@pytest.mark.parametrize(
    ("key", "permissions", "said"),
    [
        ("wrong", {"asset.view", "asset.download"}, "401"),
        (KEY, {"asset.download"}, "asset.view"),
        (KEY, {"asset.view"}, "asset.download"),
    ],
)
def test_key_is_refused(stand_in: StandIn, config: ProbeConfig, key: str, permissions: set[str], said: str) -> None:
    """A wrong key is no broken photo: nothing is known, and people are told. Without leave to download, all else is
    tried."""
    web = stand_in.web
    before = web.immich.keys_seen
    web.immich.permissions = frozenset(permissions)
    try:
        values, remarks = look(replace(config, api_key=Secret(key)), stand_in.postgres)
    finally:
        web.immich.permissions = frozenset(("asset.view", "asset.download"))
    assert values.get(("probe_success", "image", "direct")) == (1 if said == "asset.download" else None)
    assert [text for text in remarks if said in text]
    assert key not in str(remarks)
    if said != "asset.download":
        assert web.immich.keys_seen == before + 1  # and it is not tried again with the next photo


def test_without_key_or_database(config: ProbeConfig) -> None:
    """Photos are not tried, and it is said what is missing."""
    values, said = look(replace(config, api_key=None))
    assert ("probe_success", "image", "direct") not in values
    assert "IMMICH_VITALS_API_KEY" in said[0]
    values, said = look(config)
    assert ("probe_success", "image", "direct") not in values
    assert "DB_HOSTNAME" in said[0]


def test_database_is_down(config: ProbeConfig) -> None:
    """No photo can be chosen: nothing is known of photos, the other probes go on."""
    nowhere = PostgresConfig("127.0.0.1", free_port(), "postgres", None, "immich", {})
    values, said = look(config, nowhere)
    assert values["probe_success", "ping", "direct"] == 1
    assert ("probe_success", "image", "direct") not in values
    assert any("no photo is tried" in text for text in said)


def test_files_are_gone(stand_in: StandIn, config: ProbeConfig) -> None:
    """Rows without files: the ping is fine, photos do not load."""
    away = stand_in.media.with_name("away")
    (stand_in.media / "thumbs").rename(away)
    try:
        values, said = look(config, stand_in.postgres)
    finally:
        away.rename(stand_in.media / "thumbs")
    assert values["probe_success", "ping", "direct"] == 1
    assert values["probe_success", "image", "direct"] == 0
    assert values["probe_http_status", "image", "direct"] == 500
    assert any("thumbnail: status 500" in text for text in said)


def test_maintenance(stand_in: StandIn, config: ProbeConfig) -> None:
    """In maintenance mode Immich answers to ping and to little else, and means it."""
    stand_in.web.immich.maintenance = True
    try:
        values, said = look(config, stand_in.postgres)
    finally:
        stand_in.web.immich.maintenance = False
    assert values["probe_maintenance_mode",] == 1
    assert values["probe_success", "ping", "direct"] == 1
    assert ("probe_success", "image", "direct") not in values
    assert said == []


def test_old_paths(stand_in: StandIn, config: ProbeConfig) -> None:
    """Immich up to 1.106 has its ping elsewhere."""
    stand_in.web.immich.legacy = True
    try:
        values, _ = look(config, stand_in.postgres)
    finally:
        stand_in.web.immich.legacy = False
    assert values["probe_success", "ping", "direct"] == 1
    assert values["probe_success", "image", "direct"] == 1


def test_nothing_there() -> None:
    """Refused: everything that needs the server fails, without a status, and quickly."""
    url = f"http://127.0.0.1:{free_port()}"
    values, said = look(replace(NOTHING, server=url, machine_learning=url))
    for probe in ("ping", "websocket", "machine_learning"):
        assert values["probe_success", probe, "direct"] == 0
        assert ("probe_http_status", probe, "direct") not in values
    assert [text for text in said if "refused" in text]


def endless(start: bytes, again: bytes) -> Answer:
    def answer(connection: "http_probe.socket.socket") -> None:
        connection.recv(65536)
        connection.sendall(start)
        while True:
            connection.sendall(again)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE: Mapping[str, Answer] = {
    "silent": silent,
    "closes": closes,
    "garbage": says(b"\x00\xff\x13garbage\r\n\r\n"),
    "not-http": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "drips-head": drips(OK * 500, 0.005),
    "drips-body": drips(OK + b"Content-Length: 100000\r\n\r\n" + b" " * 1000, 0.002),
    "endless-head": endless(OK, b"X-More: " + b"x" * 1000 + b"\r\n"),
    "endless-body": endless(OK + b"\r\n", b"x" * 65536),
    "endless-early-hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "bomb": says(OK + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + b"\x1f\x8b\x08" + b"\0" * 17),
    "cut-off": says(OK + b"Content-Length: 16\r\n\r\n{"),
    "not-json": says(OK + b"Content-Length: 4\r\n\r\npong"),
    "nested": says(OK + b"Content-Length: 3000\r\n\r\n" + b"[" * 3000),
    "bad-upgrade": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers in Immich's place: the probes fail, in time and in little memory, and the collector does not."""
    for limit in ("PROBE_SECONDS", "EXTRA_SECONDS", "IMAGE_SECONDS", "LIMIT_SECONDS"):
        monkeypatch.setattr(immich_http, limit, 0.15)
    with TcpServer(HOSTILE[name]) as server:
        url = f"http://127.0.0.1:{server.port}"
        values, said = look(replace(NOTHING, server=url, external=url, machine_learning=url))
    assert values["probe_success", "ping", "direct"] == 0
    assert values["probe_success", "websocket", "direct"] == 0
    assert values["probe_success", "ping", "external"] == 0
    assert ("probe_upload_limit_bytes", "external") not in values
    assert values["probe_success", "machine_learning", "direct"] == (1 if name == "not-json" else 0)
    assert all("0x" not in text for text in said)


@pytest.mark.parametrize("name", ["silent", "garbage", "closes"])
def test_hostile_to_tls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not speak TLS has no certificate, and so none that could be trusted or not."""
    for limit in ("PROBE_SECONDS", "EXTRA_SECONDS"):
        monkeypatch.setattr(immich_http, limit, 0.15)
    with TcpServer(HOSTILE[name]) as server:
        values, _ = look(replace(NOTHING, external=f"https://127.0.0.1:{server.port}"))
    assert values["probe_success", "ping", "external"] == 0
    assert ("probe_certificate_trusted", "external") not in values


def test_names_that_do_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs costs one thread, however often it is asked, and the other probes nothing."""
    monkeypatch.setattr(immich_http, "PROBE_SECONDS", 0.1)
    asked, answer = [], threading.Event()

    def hangs(host: str) -> list[names.Address]:
        asked.append(host)
        answer.wait(20)
        return []

    monkeypatch.setattr(names, "_resolved", hangs)
    config = replace(NOTHING, server="http://immich:2283")
    probes = Probes(config, None)
    for _ in range(3):
        values, said = look(config, probes=probes)
        assert values["probe_success", "ping", "direct"] == 0
        assert any("not resolved in time" in text for text in said)
    assert asked == ["immich"]
    answer.set()


def test_unknown_name() -> None:
    """A name that nobody knows, as of a container that does not run."""
    values, said = look(replace(NOTHING, server="http://immich-server.invalid:2283"))
    assert values["probe_success", "ping", "direct"] == 0
    assert any("is not known here" in text for text in said)


def test_first_address_is_dead(stand_in: StandIn, config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a dead address beside a good one still answers."""
    good = names.Address("ipv4", http_probe.socket.AF_INET, ("127.0.0.1", 0))
    dead = names.Address("ipv6", http_probe.socket.AF_INET6, ("::1", 0, 0, 0))
    monkeypatch.setattr(names, "_resolved", lambda host: [dead, good])
    values, _ = look(replace(config, machine_learning=None))
    assert values["probe_success", "ping", "direct"] == 1


def test_authorities_unreadable(tmp_path: Path) -> None:
    """A file with authorities that is not there, or holds none, is the collector's own trouble."""
    missing = Probes(replace(NOTHING, server="http://127.0.0.1:1", ca_file=tmp_path / "none.pem"), None)
    with pytest.raises(Absent, match=r"PROBE_CA_FILE.*none\.pem"):
        missing.look(Deadline.after(5))
    empty = tmp_path / "empty.pem"
    empty.write_text("hello")
    with pytest.raises(Unavailable, match="no certificate") as caught:
        Probes(replace(NOTHING, server="http://127.0.0.1:1", ca_file=empty), None).look(Deadline.after(5))
    assert isinstance(caught.value, CollectorFailure) and "PEM" in caught.value.mend


class Hours:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def time(self) -> float:
        return time.time() + self.ahead


def test_upload_limit_is_asked_hourly(stand_in: StandIn, config: ProbeConfig) -> None:
    """At most six requests an hour; what was found is kept while it cannot be asked anew, for three hours."""
    clock, proxy = Hours(), stand_in.web.proxy
    config = replace(config, server=None, external=proxy.url, api_key=None, machine_learning=None)
    probes = Probes(config, None)

    def limit(clock: Clock) -> float | None:
        return probes.look(Deadline.after(20, clock)).upload_limit

    with limited(stand_in, 100 << 20):
        assert limit(clock) == 100 << 20
        asked = proxy.refused
        assert 1 <= asked <= 6
        assert limit(clock) == 100 << 20
        assert proxy.refused == asked
        clock.ahead += 3601
        assert limit(clock) == 100 << 20
        assert proxy.refused > asked
    clock.ahead += 3601
    proxy.answers = 502
    try:
        assert limit(clock) == 100 << 20
        clock.ahead += 2.1 * 3600
        assert limit(clock) is None
    finally:
        proxy.answers = None


@contextmanager
def limited(stand_in: StandIn, size: int) -> Iterator[None]:
    stand_in.web.proxy.body_limit = size
    try:
        yield
    finally:
        stand_in.web.proxy.body_limit = None


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in ("1.91.4", "1.99.0")])
def test_photos_are_chosen_on_every_schema(postgres18: Postgres, version: str) -> None:
    """From 1.106 on: the question fits the tables, before anything is in them."""
    with immich_database(postgres18, version, analyze=False) as name:
        canaries = Canaries(at(postgres18, name))
        canaries.refresh(Deadline.after(5))
        assert canaries.problem == ""
        assert canaries.choose() == []


def test_photos_are_those_that_people_see(stand_in: StandIn, postgres16: Postgres) -> None:
    """Live photos with their thumbnails, of every user, with the rights that `immich-vitals grants` prints."""
    with postgres16.connect(stand_in.postgres.database) as connection:
        connection.execute(grants_sql(stand_in.postgres.database, "prober"))
        canaries = Canaries(at(postgres16, stand_in.postgres.database, "prober"))
        canaries.refresh(Deadline.after(5))
        assert canaries.problem == ""
        chosen = {asset for _ in range(50) for asset in canaries.choose()}
        assert len({asset.owner for asset in chosen}) == 3
        bad = connection.execute(
            "SELECT count(*) FROM asset WHERE id = ANY(%s) AND (type <> 'IMAGE' OR \"deletedAt\" IS NOT NULL"
            " OR visibility NOT IN ('timeline', 'archive') OR thumbhash IS NULL)",
            ([asset.id for asset in chosen],),
        ).fetchone()
    assert bad == (0,)


def test_photos_without_rights(stand_in: StandIn, postgres16: Postgres, config: ProbeConfig) -> None:
    """A role without the rights: no photo is tried, and it is said what to do."""
    with postgres16.connect(stand_in.postgres.database) as connection:
        connection.execute("CREATE ROLE nobody_prober LOGIN")
    values, said = look(config, replace(stand_in.postgres, user="nobody_prober"))
    assert ("probe_success", "image", "direct") not in values
    assert any("no photo is tried" in text and "right" in text for text in said)


@pytest.mark.parametrize("days", [-400, -2, 30, 900, 10_950])
def test_validity_of_any_certificate(tmp_path: Path, days: float) -> None:
    """Read as the library of the tests reads it, also beyond 2050, where the form of the date is another."""
    made = make_certificate(tmp_path, "any", days=days)
    der = made.certificate.public_bytes(Encoding.DER)
    good = made.certificate.not_valid_before_utc, made.certificate.not_valid_after_utc
    assert validity(der) == (good[0].timestamp(), good[1].timestamp())


@given(st.binary(max_size=60) | st.integers(0, 400).map(lambda cut: SOME_DER[:cut]))
def test_validity_of_no_certificate(der: bytes) -> None:
    """Whatever is sent in place of a certificate has no end, and does no harm."""
    assert validity(der) is None or len(der) > 60
