"""Whatever breaks, and however: the scrape is in time, what is affected says so, everything else goes on, all is well
at the first scrape after it, and nothing is left behind."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from immich_vitals.collectors import COLLECTORS
from immich_vitals.vitals import Readings
from reliability.matrix import BACKENDS, CASES, Case
from reliability.world import World, eventually, failed, successes
from support import docker_engine, fuse
from support.fault_proxy import Resets

METRICS = {collector.name: {metric.name for metric in collector.metrics} for collector in COLLECTORS}
FLAPPING_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Rest:
    """What the exporter has when nothing is wrong."""

    threads: int
    descriptors: int
    connections: int
    megabytes: int


@pytest.fixture(scope="session")
def rest(world: World) -> Rest:
    """After everything has been done once. Threads are those between two runs of the timers, which come and go."""
    world.settle()
    threads, opened, connections = [], [], []
    for _ in range(25):
        world.scrape(5)
        threads.append(world.exporter.threads())
        opened.append(world.exporter.descriptors())
        connections.append(world.connections)
    return Rest(min(threads), max(opened), max(connections), world.exporter.memory())


def assert_nothing_is_left(world: World, rest: Rest) -> None:
    """Wait until there is no more than at rest. One Docker connection may be open for each that asks at a time."""
    eventually(lambda: world.exporter.threads() <= rest.threads, world.exporter.threads)
    eventually(lambda: world.exporter.descriptors() <= rest.descriptors + 8, world.exporter.descriptors)
    eventually(lambda: world.connections <= rest.connections + 8, lambda: world.connections)
    assert world.exporter.memory() <= rest.megabytes + 30
    assert world.exporter.memory("VmHWM") < 400


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cell(world: World, rest: Rest, case: Case) -> None:
    """The promises of docs/reliability.md hold in each of its cells."""
    need(world, case)
    before = world.settle()
    backend = BACKENDS[case.backend]
    with case.inject(world):
        for seen in scrapes(world, case):
            check(case, seen, before)
        if case.fault != "flapping":
            assert failed(seen, before).keys() >= set(backend.scraped)
    after = world.scrape(5)
    assert {name: ok for name, ok in successes(after).items() if name in backend.scraped and not ok} == {}
    world.settle()
    assert_nothing_is_left(world, rest)


def test_flapping_leaks_nothing(world: World, rest: Rest) -> None:
    """After 100 scrapes of services that come and go there is no more of anything than before."""
    world.settle()
    for number in range(100):
        proxy = list(world.proxies.values())[number % len(world.proxies)]
        with proxy.refusing() if number % 2 else proxy.broken(Resets()):
            world.scrape(5)
    world.settle()
    assert_nothing_is_left(world, rest)
    with world.postgres.connect() as admin:
        told = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'watcher'").fetchone()
    with world.redis.client() as redis:
        users = [each for each in redis.client_list() if each["user"] == "watcher"]
    assert told is not None
    assert int(str(told[0])) <= 5
    assert len(users) <= 3


def need(world: World, case: Case) -> None:
    if case.backend in ("docker", "log") and world.docker is None:
        pytest.skip(f"no Docker engine: {docker_engine.why_not()}")
    if case.backend == "media" and world.disk is None:
        pytest.skip(f"no file system of our own: {fuse.why_not()}")
    if case.fault == "absent" and case.backend in ("postgres", "redis", "probe") and world.hosts is None:
        pytest.skip("the exporter cannot have names of its own: only root can give it some, with unshare and mount")


def scrapes(world: World, case: Case) -> Iterator[Readings]:
    """Two scrapes while the fault stands, and as many as it takes until all is shown; of one that comes and goes, those
    of some seconds."""
    began = time.monotonic()
    seconds = BACKENDS[case.backend].seconds
    yield world.scrape(seconds)
    seen = world.scrape(seconds)
    yield seen
    missing = list(case.shown)

    def all_shown(seen: Readings) -> bool:
        missing[:] = [each for each in missing if seen.one(each.metric, **each.labels) != each.value]
        return not missing

    def go_on() -> bool:
        if case.fault == "flapping":
            return bool(missing) or time.monotonic() - began < FLAPPING_SECONDS
        return bool(missing)

    all_shown(seen)
    while go_on():
        assert time.monotonic() - began < 40, f"not shown: {', '.join(each.text for each in missing)}"
        if case.fault != "flapping":
            missing[:] = case.shown
        seen = world.scrape(seconds)
        all_shown(seen)
        yield seen


def check(case: Case, seen: Readings, before: Readings) -> None:
    """The collectors of the backend failed for one of the reasons, and no others did."""
    backend = BACKENDS[case.backend]
    now_failing = {name for name, ok in successes(seen).items() if not ok}
    told = failed(seen, before)
    assert now_failing <= {*backend.scraped, *backend.timed}
    assert told.keys() <= {*backend.scraped, *backend.timed}
    assert {reason for reasons in told.values() for reason in reasons} <= case.reasons, told
    if case.fault != "flapping":
        assert now_failing >= set(backend.scraped)
    still = backend.still | backend.midway if case.fault == "flapping" else backend.still
    for name in now_failing & set(backend.scraped):
        said = {metric for metric in METRICS[name] if seen.of(metric)}
        assert said <= still
        assert (seen.one(f"{name}_up") or 0) == 0
