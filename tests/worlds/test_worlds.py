"""Whole systems: a healthy one is silent, each broken one says what is wrong with it, and that alone."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support import alertmanager, promtool
from tests.support.inhibition import inhibitions, told
from tests.support.promtool import Alert
from tests.support.worlds import MINUTES, World, worlds

WORLDS = {world.name: world for world in worlds()}
HEARTBEAT = "ImmichVitalsHeartbeat"

Timeline = Mapping[int, list[Alert]]


@pytest.fixture(scope="session", params=promtool.programs() or ["promtool"])
def timelines(request: pytest.FixtureRequest) -> Mapping[str, Timeline]:
    """What fires in each world in each minute. All worlds are instances of one Prometheus: none disturbs another."""
    promtool.promtool()
    series: dict[str, str] = {}
    for world in WORLDS.values():
        series.update(world.series)
    found = promtool.firing(series, range(MINUTES + 1), program=request.param)
    return {
        name: {minute: [alert for alert in alerts if alert.get("instance") == name] for minute, alerts in found.items()}
        for name in WORLDS
    }


@pytest.mark.promtool
@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_world_fires_exactly_its_alerts(timelines: Mapping[str, Timeline], world: World) -> None:
    """Over all its hours, a world fires the alerts it names and no other."""
    fired = {alert["alertname"] for alerts in timelines[world.name].values() for alert in alerts}
    assert sorted(fired - {HEARTBEAT}) == sorted(world.alerts)


@pytest.mark.promtool
@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_world_notifies_exactly_what_it_names(timelines: Mapping[str, Timeline], world: World) -> None:
    """After inhibition, nothing is told in any minute but what the world names, in this order."""
    rules = inhibitions()
    order: list[str] = []
    for minute in range(MINUTES + 1):
        for alert in sorted(told(timelines[world.name][minute], rules), key=lambda alert: alert["rank"]):
            if alert["alertname"] not in (HEARTBEAT, *order):
                order.append(alert["alertname"])
    assert order == list(world.notifications)


@pytest.mark.promtool
def test_heartbeat_beats_in_every_world(timelines: Mapping[str, Timeline]) -> None:
    """The dead-man's switch is held as long as data of the exporter arrives, whatever is broken."""
    for name, timeline in timelines.items():
        if name != "exporter-down":
            silent = [
                minute
                for minute, alerts in timeline.items()
                if not any(alert["alertname"] == HEARTBEAT for alert in alerts)
            ]
            assert silent == [], name


@pytest.mark.promtool
def test_real_alertmanager_notifies_the_same(timelines: Mapping[str, Timeline], tmp_path: Path) -> None:
    """In the minute in which most is firing, a real Alertmanager tells of each world what we read from its rules."""
    rules = inhibitions()
    worst = {name: max(timeline.values(), key=len) for name, timeline in timelines.items()}
    found = alertmanager.notified(tmp_path, [alert for alerts in worst.values() for alert in alerts])
    expected = [alert for alerts in worst.values() for alert in told(alerts, rules)]
    assert found == {tuple(sorted(alert.items())) for alert in expected}
