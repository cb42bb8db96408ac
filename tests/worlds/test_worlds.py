"""Whole systems: a healthy one is silent, each broken one says what is wrong with it, and that alone."""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from support import alertmanager, promtool
from support.inhibition import inhibitions, told
from support.promtool import Alert
from support.worlds import MINUTES, World, worlds

WORLDS = {world.name: world for world in worlds()}
TOGETHER = 4
"""Worlds in one run of promtool, which reads 10,000 samples in a query at most."""
HEARTBEAT = "ImmichVitalsHeartbeat"

Timeline = Mapping[int, list[Alert]]


@pytest.fixture(scope="session")
def timelines() -> Mapping[str, Timeline]:
    """What fires in each world in each minute, in the newest Prometheus there is: 3 takes an eighth of 2.42's time."""
    promtool.promtool()
    return _lives(list(WORLDS.values()), promtool.programs()[-1])


def _lives(chosen: Sequence[World], program: str) -> Mapping[str, Timeline]:
    """Several worlds are instances of one Prometheus: none disturbs another."""
    batches = [chosen[start : start + TOGETHER] for start in range(0, len(chosen), TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(itertools.chain.from_iterable(pool.map(partial(_lived, program=program), batches)))


def _lived(batch: Sequence[World], program: str) -> list[tuple[str, Timeline]]:
    series = {name: values for world in batch for name, values in world.series().items()}
    found = promtool.firing(series, range(MINUTES + 1), program=program)
    return [(world.name, {minute: _of(world, alerts) for minute, alerts in found.items()}) for world in batch]


def _of(world: World, alerts: Sequence[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.get("instance") == world.name]


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
def test_a_quiet_world_is_quiet_in_the_oldest_prometheus() -> None:
    """Silence means health there, too: its windows hold one sample more. What fires in it the rules' own tests tell."""
    quiet = [world for world in WORLDS.values() if not world.notifications]
    for name, timeline in _lives(quiet, promtool.promtool()).items():
        fired = {alert["alertname"] for alerts in timeline.values() for alert in alerts}
        assert sorted(fired - {HEARTBEAT}) == sorted(WORLDS[name].alerts)


@pytest.mark.promtool
def test_heartbeat_beats_in_every_world(timelines: Mapping[str, Timeline]) -> None:
    """The dead-man's switch is held as long as the exporter answers, whatever is broken."""
    for name, timeline in timelines.items():
        if set(WORLDS[name].values("up")) == {1.0}:
            beats = [any(alert["alertname"] == HEARTBEAT for alert in alerts) for alerts in timeline.values()]
            assert all(beats), name


@pytest.mark.promtool
def test_real_alertmanager_notifies_the_same(timelines: Mapping[str, Timeline], tmp_path: Path) -> None:
    """In the minute in which most is firing, a real Alertmanager tells of each world what we read from its rules."""
    rules = inhibitions()
    worst = {name: max(timeline.values(), key=len) for name, timeline in timelines.items()}
    found = alertmanager.notified(tmp_path, [alert for alerts in worst.values() for alert in alerts])
    expected = [alert for alerts in worst.values() for alert in told(alerts, rules)]
    assert found == {tuple(sorted(alert.items())) for alert in expected}
