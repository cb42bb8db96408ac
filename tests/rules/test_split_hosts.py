"""One Immich on two machines, an exporter on each, as docs/deployment.md has it: one `instance`, and a label `host`.

The second machine has the database and Redis."""

import re
from collections.abc import Iterator

import pytest

from support import promtool
from support.inhibition import inhibitions, told
from support.promtool import Alert
from support.worlds import MINUTES, World, worlds

WORLDS = {world.name: world for world in worlds()}
HEARTBEAT = "ImmichVitalsHeartbeat"
BOTH = ("up", "immich_vitals_host_", "immich_vitals_build_info", "immich_vitals_container_event_stream_up")
SMALL = ("container", "container_usage", "log", "host", "filesystem")


def split(world: World) -> Iterator[tuple[str, str]]:
    """The series of a world, each from the machine that sees it: the database's own has its containers, their logs, its
    disk and its memory, the other one all the rest, the answers of Postgres and Redis too."""
    for series, values in world.series().items():
        series = series.replace(f'instance="{world.name}"', 'instance="immich"')
        component = re.search(r'component="(\w+)"', series)
        collector = re.search(r'collector="(\w+)"', series)
        if 'role="database"' in series or (component is not None and component[1] in ("database", "redis")):
            hosts = ["database"]
        elif series.startswith(BOTH) or (collector is not None and collector[1] in SMALL):
            hosts = ["photos", "database"]
        else:
            hosts = ["photos"]
        for host in hosts:
            yield series[:-1] + f',host="{host}"}}', values


def heard(name: str) -> tuple[set[str], set[str]]:
    """The alerts that fire in a world on two machines, and those that are told."""
    rules = inhibitions()
    fired: set[str] = set()
    notified: set[str] = set()
    timeline = promtool.firing(dict(split(WORLDS[name])), range(MINUTES + 1))
    for alerts in timeline.values():
        others: list[Alert] = [alert for alert in alerts if alert["alertname"] != HEARTBEAT]
        assert {alert["instance"] for alert in others} <= {"immich"}
        assert all(alert["host"] in ("photos", "database") for alert in others)
        fired |= {alert["alertname"] for alert in others}
        notified |= {alert["alertname"] for alert in told(others, rules)}
    return fired, notified


@pytest.mark.promtool
@pytest.mark.parametrize("name", ["disk-of-the-database-full", "postgres-stopped"])
def test_two_machines_tell_what_one_tells(name: str) -> None:
    """Causes on the machine of the database keep their symptoms on the other one quiet."""
    fired, notified = heard(name)
    assert fired == set(WORLDS[name].alerts)
    assert notified == set(WORLDS[name].notifications)


@pytest.mark.promtool
def test_what_two_machines_lose() -> None:
    """That the database was just started is not known where Postgres is asked: an upgrade is told. The page says so."""
    assert heard("upgrade")[1] == {"ImmichPostgresDown", "ImmichRedisDown"}
