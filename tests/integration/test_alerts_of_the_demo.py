"""End to end: each fault of the demo, a real Prometheus and Alertmanager, and the one notification that names it.

Several small worlds are watched at once by one Prometheus, each with its share of the faults, since most of the time is
waiting. The rules are the shipped ones with shorter durations.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from immich_vitals.demo import FAULTS
from immich_vitals.demo.world import World
from support import alertmanager
from support.alertmanager import Alertmanager, Webhook
from support.exporter import Exporter
from support.inhibition import EXAMPLE
from support.prometheus import SYMPTOMS, Prometheus, hurried_rules

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


class Lane:
    """A world with its exporter; breaks it in one way after the other and writes down what was told."""

    def __init__(self, ends: ExitStack, faults: list[str]) -> None:
        self.faults = faults
        self.world = ends.enter_context(World(feed_every=5.0))
        settings = {**self.world.environment(), "IMMICH_VITALS_DISABLE": "container,container_usage,host"}
        exporter = ends.enter_context(Exporter(settings))
        self.instance = f"127.0.0.1:{exporter.port}"
        self.told: dict[str, list[str]] = {}

    def run(self, prometheus: Prometheus, webhook: Webhook) -> None:
        for fault in self.faults:
            self._settle(prometheus, fault)
            before = len(self._heard(webhook))
            with FAULTS[fault].inject(self.world):
                webhook.wait_for(lambda _, count=before: len(self._heard(webhook)) > count, PATIENCE)
                webhook.wait_for(lambda _, count=before: len(self._heard(webhook)) > count + 1, SYMPTOMS)
                self.told[fault] = self._heard(webhook)[before:]

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
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, list[str]]]:
    """What was notified of each fault, first thing first."""
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
        yield {fault: names for lane in lanes for fault, names in lane.told.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_told_by_its_alert_alone(told: Mapping[str, list[str]], name: str) -> None:
    """The first and only notification of a fault names its cause."""
    why_not = FAULTS[name].impossible()
    if why_not:
        pytest.skip(why_not)
    assert told[name] == [FAULTS[name].alert]
