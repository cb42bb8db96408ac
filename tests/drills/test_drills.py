"""Drills: what breaks on a real machine with Immich, and the one notification that names it.

Several machines are watched at once by one Prometheus, and are broken in one way after the other, since most of the
time is waiting. The rules are the shipped ones with shorter durations.
"""

import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from drills import report
from drills.catalogue import DRILLS
from drills.drill import Drill
from drills.report import HEARTBEAT, Result
from support import alertmanager, docker_engine, images
from support.alertmanager import Alertmanager, Webhook
from support.inhibition import EXAMPLE
from support.machine import Machine, Shared, described, free_address
from support.prometheus import CALM, CONTAINERS, Pace, Prometheus, hurried_rules

LANES = int(os.environ.get("DRILLS_LANES", "5"))
PATIENCE = 90.0
MENDED = 150.0

log = logging.getLogger(__name__)
pytestmark = pytest.mark.docker

Seen = Callable[[str, Result], None]
Drills = queue.Queue[str]


class Lane:
    """A machine that is broken in one way after the other."""

    def __init__(self, ends: ExitStack, shared: Shared, *, host: bool) -> None:
        self._ends, self._shared, self.host = ends, shared, host
        self.address = free_address()
        self.instance = f"{self.address}:12283"
        self._machine: Machine | None = None

    def run(self, drills: Drills, seen: Seen, watches: "Watches") -> None:
        while True:
            try:
                name = drills.get_nowait()
            except queue.Empty:
                return
            result = Result()
            try:
                self._drill(DRILLS[name], result, watches[DRILLS[name].slow])
            except Exception as error:
                log.exception("drill %s", name)
                result.problem = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
                self.give_up()
            if DRILLS[name].spoils:
                self.give_up()
            seen(name, result)

    def start(self) -> Machine:
        if self._machine is None:
            self._machine = self._ends.enter_context(Machine(self._shared, self.address, host=self.host))
        return self._machine

    def give_up(self) -> None:
        """Take another machine for the next drill."""
        if self._machine is not None:
            self._machine.__exit__(None, None, None)
            self._machine = None

    def _drill(self, drill: Drill, result: Result, watch: "Watch") -> None:
        machine = self.start()
        with drill.prepare(machine):
            self._broken(machine, drill, result, watch)

    def _broken(self, machine: Machine, drill: Drill, result: Result, watch: "Watch") -> None:
        watch.wait_until_calm(self.instance, "before")
        counts = machine.counts()
        before, began = len(watch.heard(self.instance)), time.monotonic()

        def told() -> list[str]:
            """The alerts that were notified, in order, each once: Alertmanager tells a group anew that grows."""
            return list(dict.fromkeys(alert["alertname"] for alert in watch.heard(self.instance)[before:]))

        with drill.inject(machine):
            if drill.told:
                watch.wait_for(lambda: bool(told()), PATIENCE)
                result.first_after = time.monotonic() - began
            watch.wait_for(lambda: len(told()) > len(drill.told), watch.pace.symptoms)
            result.fired = watch.fired(self.instance, time.monotonic() - began)
        mended = time.monotonic()
        try:
            watch.wait_until_calm(self.instance, "after")
        finally:
            result.told = told()
            heard = watch.heard(self.instance)[before:]
            result.severity = heard[0]["severity"] if heard else ""
        result.mended_after = time.monotonic() - mended
        result.counts = (counts, machine.counts())


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches all machines."""

    prometheus: Prometheus
    webhook: Webhook
    pace: Pace

    def heard(self, instance: str) -> list[Mapping[str, str]]:
        """The labels of what was notified of a machine."""
        return [
            alert
            for receiver, alert in self.webhook.heard()
            if alert.get("instance") == instance and receiver != "dead-mans-switch"
        ]

    def wait_for(self, holds: Callable[[], bool], seconds: float) -> None:
        self.webhook.wait_for(lambda _: holds(), seconds)

    def fired(self, instance: str, seconds: float) -> set[str]:
        """What fired within so many seconds, told or not."""
        expr = f'max_over_time(ALERTS{{instance="{instance}",alertstate="firing"}}[{seconds + 1:.0f}s])'
        return {labels["alertname"] for labels in self.prometheus.query(expr)} - {HEARTBEAT}

    def wait_until_calm(self, instance: str, when: str) -> None:
        """Until all is watched and past its grace, and nothing fires or is about to. Raises `AssertionError`."""
        of = f'{{instance="{instance}"}}'
        until = time.monotonic() + MENDED
        ask = self.prometheus.query
        while True:
            reasons = [
                f"{each['alertname']} {each['alertstate']}"
                for each in ask(f'ALERTS{{instance="{instance}",alertname!="{HEARTBEAT}"}}')
            ]
            reasons += [
                f"{each['component']} is new" for each in ask(f"component:immich_vitals_container_grace:bool{of}")
            ]
            reasons += [f"{each['collector']} fails" for each in ask(f"immich_vitals_collector_success{of} == 0")]
            if not ask(f"immich_vitals_library_users{of} > 0"):
                reasons.append("not watched")
            if not reasons:
                return
            assert time.monotonic() < until, f"{when} the drill: {reasons}"
            time.sleep(0.5)


Watches = Mapping[bool, Watch]
"""By whether the drill is slow."""


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Result]]:
    """Of each drill that is asked for."""
    for reason in (docker_engine.why_not(), images.why_not()):
        if reason is not None:
            assert not os.environ.get("FORBID_SKIPS"), reason
            pytest.skip(reason)
    folder = tmp_path_factory.mktemp("drills")
    wanted = [name for name in DRILLS if any(item.name == f"test_drill[{name}]" for item in request.session.items)]
    found: dict[str, Result] = {}
    lock = threading.Lock()

    def seen(name: str, result: Result) -> None:
        """Noted at once: it takes long until all have run."""
        with lock:
            found[name] = result
            if request.config.getoption("--drills-report"):
                report.note({name: result}, described())

    with ExitStack() as ends:
        shared = _shared(ends)
        spoiling = {name: Lane(ends, shared, host=False) for name in wanted if DRILLS[name].spoils}
        lanes = [Lane(ends, shared, host=number == 0) for number in range(min(LANES, len(wanted) - len(spoiling)))]
        targets = [lane.instance for lane in (*lanes, *spoiling.values())]
        watches = {
            slow: _watch(ends, folder / ("calm" if slow else "fast"), targets, CALM if slow else CONTAINERS)
            for slow in {DRILLS[name].slow for name in wanted}
        }
        slow, own, common = Drills(), Drills(), Drills()
        for name in wanted:
            if name not in spoiling:
                (slow if DRILLS[name].slow else own if DRILLS[name].host else common).put(name)
        with ThreadPoolExecutor(len(targets)) as pool:
            works = [pool.submit(lane.run, _only(name), seen, watches) for name, lane in spoiling.items()]
            works += [
                pool.submit(_work, lane, _turns(lane, slow, own, common, alone=len(lanes) == 1), seen, watches)
                for lane in lanes
            ]
            try:
                for work in works:
                    work.result()
            finally:
                for each in (slow, own, common):
                    each.queue.clear()  # who interrupts it waits for those under way only
        yield found


def _work(lane: Lane, drills: list[Drills], seen: Seen, watches: Watches) -> None:
    for each in drills:
        lane.run(each, seen, watches)


def _only(name: str) -> Drills:
    drills = Drills()
    drills.put(name)
    return drills


def _turns(lane: Lane, slow: Drills, own: Drills, common: Drills, *, alone: bool) -> list[Drills]:
    """The slow ones first: their rules take longest to forget what was broken before."""
    if alone:
        return [slow, own, common]
    return [own, common] if lane.host else [slow, common]


def _watch(ends: ExitStack, folder: Path, targets: list[str], pace: Pace) -> Watch:
    folder.mkdir()
    webhook = ends.enter_context(Webhook())
    config = alertmanager.hurried(EXAMPLE.read_text(), webhook.url, group_wait="6s")
    server = ends.enter_context(Alertmanager(folder / "alertmanager", config))
    rules = hurried_rules(folder / "rules", pace)
    return Watch(ends.enter_context(Prometheus(folder / "prometheus", rules, targets, server.address)), webhook, pace)


def _shared(ends: ExitStack) -> Shared:
    made = tempfile.TemporaryDirectory(prefix="immich-vitals-drills-", ignore_cleanup_errors=True)
    folder = Path(ends.enter_context(made))
    folder.chmod(0o755)  # not pytest's own, which nobody but root may enter
    return Shared.make(folder)


@pytest.mark.parametrize("name", DRILLS)
def test_drill(results: Mapping[str, Result], name: str) -> None:
    """The first notification names the cause, no other comes, what it explains fires and is not told; all that was
    told is over once the fault is mended, and nobody's photos or rows have changed."""
    assert results[name].why_failed(DRILLS[name]) is None
