"""Host names: a resolver that hangs keeps nobody waiting, and what cannot be looked up cannot be reached."""

import threading
from collections.abc import Iterator

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock, TimedOut
from immich_vitals.collectors.postgres import PostgresCollector
from immich_vitals.collectors.redis import RedisCollector
from immich_vitals.config import PostgresConfig, RedisConfig
from immich_vitals.sources import names
from immich_vitals.sources.names import Names
from immich_vitals.sources.redis import RedisServer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whom a resolver that never answers was asked for."""
    found: list[str] = []
    end = threading.Event()

    def hangs(host: str) -> list[names.Address]:
        found.append(host)
        end.wait(20)
        return []

    monkeypatch.setattr(names, "_resolved", hangs)
    monkeypatch.setattr(names.NAMES, "_flights", {})
    yield found
    end.set()


def test_one_thread_for_a_name(asked: list[str]) -> None:
    """However often somebody asks, the resolver is asked once for a name, and nobody waits longer than he said."""
    for _ in range(3):
        with pytest.raises(TimedOut, match="redis was not looked up in time"):
            Names.addresses(names.NAMES, "redis", Deadline.after(0.05))
    with pytest.raises(TimedOut):
        names.NAMES.addresses("database", Deadline.after(0.05))
    assert asked == ["redis", "database"]


def test_redis_and_postgres_cannot_be_reached(asked: list[str]) -> None:
    """As with a stopped container, whose name Docker asks somebody outside for: both are down, and it is said why."""
    config = PostgresConfig("database", 5432, "postgres", None, "immich", {})
    for collector, metric in (
        (RedisCollector(RedisServer(RedisConfig("redis"))), "redis_up"),
        (PostgresCollector(config), "postgres_up"),
    ):
        with pytest.raises(CollectorFailure, match="could not be looked up in time") as raised:
            list(collector.collect(Context(Deadline.after(0.05), SystemClock())))
        assert raised.value.reason == "timeout"
        assert [(sample.metric.name, sample.value) for sample in raised.value.known] == [(metric, 0.0)]
