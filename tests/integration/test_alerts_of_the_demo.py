"""End to end: each fault of the demo, a real Prometheus and Alertmanager, and the one notification that names it.

Several small worlds are watched at once by one Prometheus, each with its share of the faults, since most of the time is
waiting. The rules are the shipped ones with shorter durations.
"""

import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import pytest

from immich_vitals.demo import FAULTS
from immich_vitals.demo.world import World
from support import alertmanager, grafana, rulebook
from support.alertmanager import Alertmanager, Webhook
from support.exporter import Exporter
from support.grafana import BAD, NOTE, SOON, Panel
from support.inhibition import EXAMPLE
from support.prometheus import FAST, Prometheus, hurried_rules

LANES = 6
LATCHED = ("damaged-page", "database-empty")
"""Their alerts stay for a while after the mend, so they come last."""
PATIENCE = 90.0
STEADY = 'ALERTS{instance="%s",alertname!="ImmichVitalsHeartbeat"}'
OWN_LIMITS = """
groups:
  - name: own-limits
    rules:
      # Whether the disk of the machine that tests is filling up is none of our business here.
      - record: immich_vitals:own_limit:disk_will_fill_ratio
        expr: vector(0)
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the dashboards show of a fault."""

    steps: Mapping[str, float]
    """Of each step of Triage its state."""
    first: frozenset[str]
    """The alerts that share the first place of Triage's list."""
    coloured: Mapping[str, frozenset[str]]
    """The colours of each panel that speaks of the alert."""

    @classmethod
    def look(cls, prometheus: Prometheus, instance: str, alert: str) -> Self:
        def ask(panel: Panel) -> list[list[tuple[dict[str, str], float]]]:
            return [prometheus.ask(grafana.filled(query, instance=instance)) for query in panel.queries]

        triage = {panel.title: panel for panel in grafana.panels("triage")}
        states = {
            target["legendFormat"].partition(".")[0]: found[0][1]
            for target, found in zip(triage["Steps now"].json["targets"], ask(triage["Steps now"]), strict=True)
        }
        listed = [labels for labels, _ in ask(triage["Fix this first"])[0]]
        least = min(labels.get("rank", "") for labels in listed)
        speaking = [panel for panel in grafana.panels() if re.search(rf"\b{alert}\b", panel.about)]
        return cls(
            states,
            frozenset(labels["alertname"] for labels in listed if labels.get("rank", "") == least),
            {
                str(panel): frozenset(
                    color
                    for target, found in zip(panel.json["targets"], ask(panel), strict=True)
                    for color in panel.colors(target, found)
                )
                for panel in speaking
            },
        )


class Lane:
    """A world with its exporter; breaks it in one way after the other and writes down what was told."""

    def __init__(self, ends: ExitStack, faults: list[str]) -> None:
        self.faults = faults
        self.world = ends.enter_context(World(feed_every=5.0))
        settings = {**self.world.environment(), "IMMICH_VITALS_DISABLE": "container,container_usage,host"}
        exporter = ends.enter_context(Exporter(settings))
        self.instance = f"127.0.0.1:{exporter.port}"
        self.told: dict[str, list[str]] = {}
        self.seen: dict[str, Seen] = {}

    def run(self, prometheus: Prometheus, webhook: Webhook) -> None:
        for fault in self.faults:
            self._settle(prometheus, fault)
            before = len(self._heard(webhook))
            with FAULTS[fault].inject(self.world):
                webhook.wait_for(lambda _, count=before: len(self._heard(webhook)) > count, PATIENCE)
                webhook.wait_for(lambda _, count=before: len(self._heard(webhook)) > count + 1, FAST.symptoms)
                self.told[fault] = self._heard(webhook)[before:]
                self.seen[fault] = Seen.look(prometheus, self.instance, FAULTS[fault].alert)

    def _heard(self, webhook: Webhook) -> list[str]:
        return [
            alert["alertname"]
            for receiver, alert in webhook.heard()
            if alert.get("instance") == self.instance and receiver != "dead-mans-switch"
        ]

    def _settle(self, prometheus: Prometheus, fault: str) -> None:
        """Until the world is watched and nothing fires or is about to. Raises `AssertionError`."""
        until = time.monotonic() + PATIENCE
        healthy = f'immich_vitals_library_users{{instance="{self.instance}"}} > 0'
        while not prometheus.query(healthy) or prometheus.query(STEADY % self.instance):
            assert time.monotonic() < until, f"before {fault}: {prometheus.query(STEADY % self.instance)}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    """The worlds, each broken in all its ways and watched."""
    folder = tmp_path_factory.mktemp("alerts")
    own = folder / "own.rules.yml"
    own.write_text(OWN_LIMITS)
    rules = [*hurried_rules(folder / "rules"), own]
    possible = [name for name, fault in FAULTS.items() if fault.impossible() is None]
    ordered = sorted(possible, key=lambda name: name in LATCHED)
    with ExitStack() as ends:
        lanes = [Lane(ends, ordered[number::LANES]) for number in range(LANES)]
        webhook = ends.enter_context(Webhook())
        config = alertmanager.hurried(EXAMPLE.read_text(), webhook.url, group_wait="4s")
        server = ends.enter_context(Alertmanager(folder / "alertmanager", config))
        targets = [lane.instance for lane in lanes]
        prometheus = ends.enter_context(Prometheus(folder / "prometheus", rules, targets, server.address))
        with ThreadPoolExecutor(LANES) as pool:
            runs: list[Future[None]] = [pool.submit(lane.run, prometheus, webhook) for lane in lanes]
        for run in runs:
            run.result()
        yield lanes


@pytest.fixture(scope="module")
def told(lanes: list[Lane]) -> Mapping[str, list[str]]:
    """What was notified of each fault, first thing first."""
    return {fault: names for lane in lanes for fault, names in lane.told.items()}


@pytest.fixture(scope="module")
def seen(lanes: list[Lane]) -> Mapping[str, Seen]:
    """What the dashboards showed of each fault while it was notified."""
    return {fault: looked for lane in lanes for fault, looked in lane.seen.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_told_by_its_alert_alone(told: Mapping[str, list[str]], name: str) -> None:
    """The first and only notification of a fault names its cause."""
    if why_not := FAULTS[name].impossible():
        pytest.skip(why_not)
    assert told[name] == [FAULTS[name].alert]


@pytest.mark.parametrize("name", FAULTS)
def test_triage_shows_the_fault_first(seen: Mapping[str, Seen], name: str) -> None:
    """Triage lists the alert before all others, and its step is not fine."""
    if why_not := FAULTS[name].impossible():
        pytest.skip(why_not)
    alert = FAULTS[name].alert
    assert alert in seen[name].first
    step = next(rule.labels["step"] for rule in rulebook.alerts() if rule.name == alert)
    assert seen[name].steps[step] > 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_dashboard_shows_the_fault(seen: Mapping[str, Seen], name: str) -> None:
    """One of the panels that speak of the alert shows the fault itself in its colour."""
    if why_not := FAULTS[name].impossible():
        pytest.skip(why_not)
    assert any(colors & {BAD, SOON, NOTE} for colors in seen[name].coloured.values()), seen[name].coloured
