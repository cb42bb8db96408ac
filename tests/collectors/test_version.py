"""The collector `version`: what runs, whether its parts fit together, and whether there is something newer."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_vitals.collector import Context
from immich_vitals.collectors.version import Installed, VersionCollector, VersionFacts, version_samples
from immich_vitals.config import load
from immich_vitals.demo.servers import Postgres, Redis, free_port
from immich_vitals.sources.versions import Release, differ, mixed, shown
from support.fake_docker import FakeDocker
from support.golden import ROOT, cases, check
from support.immich_database import immich_database

STATE = """
    INSERT INTO system_metadata (key, value)
    VALUES ('version-check-state', '{"checkedAt": "2026-11-20T17:17:49.588Z", "releaseVersion": "v2.8.0"}')
"""


@pytest.mark.parametrize("case", cases("version"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """The facts of the case give exactly its expected samples."""
    told = json.loads((case / "facts.json").read_text())
    installed = [Installed(*each) for each in told.pop("installed", [])]
    check(case, VersionCollector.metrics, version_samples(VersionFacts(installed, **told)), update_golden)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.99.0", "1.100.0"),
        ("v1.144.1", "2.0.0"),
        ("2.7.5", "v2.7.10"),
        ("v3.0.0-rc.1", "v3.0.0"),
        ("v3.0.0-rc.9", "v3.0.0-rc.10"),
        ("v3.0.0-beta.2", "v3.0.0-rc.1"),
        ("2.7.5", "3.0.0-rc.1"),
        ("2.7.5-cuda", "2.7.6-openvino"),
    ],
)
def test_newer(older: str, newer: str) -> None:
    """Versions are compared by number, not by letter, and a candidate comes before its release."""
    one, other = Release.of(older), Release.of(newer)
    assert one is not None and other is not None
    assert one < other and not other < one and one.differs(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2.7.5", "v2.7.5"), ("v2.7.5-cuda", "v2.7.5"), ("v2.7", "2.7.5"), ("3.0.0-rc.1", "v3.0.0-rc.1-rocm")],
)
def test_the_same(one: str, other: str) -> None:
    """A leading v, the variant of machine learning and a tag of two numbers make no other version."""
    found = [Release.of(one), Release.of(other)]
    assert not differ([each for each in found if each])
    assert None not in found


@pytest.mark.parametrize(
    "text", ["", "release", "main", "pr-123", "commit-0a1b", "2", "v2", "x1.2.3", "1.2.3.4.5x", "99999.1.1"]
)
def test_no_version(text: str) -> None:
    """What moves, or is no version, is not compared."""
    assert Release.of(text) is None


@given(st.text(max_size=60))
def test_any_text_as_version(text: str) -> None:
    """Whatever an image or a table says, a label stays short and plain."""
    label = shown(text)
    assert label is None or (len(label) <= 40 and label.isascii() and label.isprintable())


def test_mixed_workers() -> None:
    """Two generations of workers on one queue are found, busy ones and other clients tell nothing."""
    new = b"id=3 addr=172.18.0.5:1 name=immich_bull:b2Ny fd=8 cmd=bzpopmin user=default\n"
    old = new.replace(b"bzpopmin", b"brpoplpush")
    busy = new.replace(b"bzpopmin", b"evalsha")
    elsewhere = old.replace(b"b2Ny", b"d29ya2Zsb3c=")
    stranger = old.replace(b"immich_bull", b"bull")
    assert mixed(new + old)
    assert not mixed(new + new + busy + elsewhere + stranger)
    assert not mixed(b"\xff garbage = = name=\n\n")


def collector(environ: dict[str, str]) -> VersionCollector:
    nowhere = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "REDIS_SOCKET": "/nowhere/redis.sock"}
    config = load({**nowhere, **environ})
    made = VersionCollector.from_config(config)
    assert made is not None
    return made


def run(environ: dict[str, str], context: Context) -> dict[tuple[str, ...], float]:
    made = collector(environ)
    try:
        return {(sample.metric.name, *sample.labels): sample.value for sample in made.collect(context)}
    finally:
        made.close()


def url(server: Postgres, database: str) -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/{database}"


def test_from_the_database(postgres: Postgres, context: Context) -> None:
    """Without Docker the history of versions speaks for the server; what Docker and Redis would tell are remarks."""
    with immich_database(postgres, "2.7.5", rows=True, setup=STATE) as database:
        found = run({"DB_URL": url(postgres, database)}, context)
    assert found == {
        ("version_info", "server", "2.7.5"): 1,
        ("version_latest_info", "2.8.0"): 1,
        ("version_update_available",): 1,
        ("version_changed_timestamp_seconds",): pytest.approx(1795195069.588),
    }
    assert len(context.remarks) == 2


@pytest.mark.parametrize("version", ["1.91.4", "1.106.4"])
def test_an_immich_without_history(version: str, postgres18: Postgres, context: Context) -> None:
    """Before 1.117 there is no history, and nothing to say."""
    with immich_database(postgres18, version, rows=version == "1.106.4") as database:
        assert run({"DB_URL": url(postgres18, database)}, context) == {}


@pytest.mark.parametrize("value", ["null", "[]", '"x"', '{"releaseVersion": null}', '{"releaseVersion": {"a": 1}}'])
def test_malformed_state(value: str, postgres18: Postgres, context: Context) -> None:
    """Whatever stands where the last check was noted, the other facts are there."""
    setup = f"INSERT INTO system_metadata (key, value) VALUES ('version-check-state', '{value}')"
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        found = run({"DB_URL": url(postgres18, database)}, context)
    assert found["version_info", "server", "2.7.5"] == 1
    assert ("version_update_available",) not in found


def test_from_containers(context: Context) -> None:
    """What the running containers have in them; Postgres, Redis and a proxy are not asked."""
    with FakeDocker(ROOT / "container" / "healthy") as fake:
        found = run({"DOCKER_HOST": fake.host}, context)
    assert found["version_skew",] == 0
    assert {labels[1] for labels in found if labels[0] == "version_info"} == {"server", "machine_learning"}


def test_all_refused(context: Context) -> None:
    """With neither Docker nor database there is nothing true to say."""
    with pytest.raises(Exception, match=r"[Dd]ocker"):
        run({"DB_URL": f"postgresql://postgres@127.0.0.1:{free_port()}/immich"}, context)


def test_old_worker_on_a_real_redis(redis_server: Redis, postgres18: Postgres, context: Context) -> None:
    """A worker of an old Immich beside a new one, on a real Redis, is skew."""
    with immich_database(postgres18, "2.7.5", rows=True) as database, redis_server.client() as admin:
        environ = {"DB_URL": url(postgres18, database), "REDIS_URL": f"redis://127.0.0.1:{redis_server.port}/0"}
        assert ("version_skew",) not in run(environ, context)
        clients = []
        for command in (
            ["BZPOPMIN", "immich_bull:x:marker", "20"],
            ["BRPOPLPUSH", "immich_bull:x:wait", "immich_bull:x:active", "20"],
        ):
            connection = redis_server.client().connection_pool.get_connection()
            connection.connect()
            for words in (["CLIENT", "SETNAME", "immich_bull:b2Ny"], command):
                connection.send_command(*words)
            clients.append(connection)
        while admin.info("clients")["blocked_clients"] < 2:
            os.sched_yield()
        assert run(environ, context)["version_skew",] == 1
        for connection in clients:
            connection.disconnect()


def test_nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Docker and database the collector is off, and says what to do."""
    monkeypatch.setattr("immich_vitals.collectors.version.find_engine", lambda config: None)
    assert VersionCollector.from_config(load({})) is None
    assert "DB_HOSTNAME" in VersionCollector.disabled_because(load({}))


def test_interval_is_a_setting() -> None:
    """It runs as often as the setting says."""
    trigger: Any = collector({"IMMICH_VITALS_VERSION_INTERVAL": "1h"}).trigger
    assert trigger.interval(1.0) == 3600.0
