"""Immich's Redis or Valkey: is it there, and does it take writes?"""

from collections.abc import Iterable, Iterator
from typing import Self

from immich_vitals.collector import Collector, Context, Unavailable
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.kept import Down, NoServer, Silent
from immich_vitals.sources.redis import RedisServer, ServerFacts, read_server

UP = Metric(
    "redis_up",
    "1 when Redis answers commands; 0 when it cannot be reached, hangs or goes away; no sample when it turns us away.",
)
INFO = Metric(
    "redis_info",
    "The server: redis or valkey, its version, and whether it is master or replica.",
    ("version", "server", "role"),
)
STARTED = Metric("redis_start_timestamp_seconds", "When Redis started.")
LOADING = Metric("redis_loading", "1 while Redis loads its data after a start and answers no command about keys.")
WRITABLE = Metric(
    "redis_writable",
    "1 when Redis takes writes; 0 when it is loading, a read-only replica, full without leave to evict, or stops"
    " writes because it could not save.",
)
SAVE_OK = Metric("redis_last_save_ok", "1 when the last save of the data to disk went well, or none was tried.")
SAVED = Metric("redis_last_save_timestamp_seconds", "When the data was last saved to disk; the start when never.")
LOG_OK = Metric("redis_append_log_ok", "1 when the last write to the append-only file went well, or there is none.")
MEMORY_USED = Metric("redis_memory_used_bytes", "Memory that Redis has allocated.")
MEMORY_MAX = Metric("redis_memory_max_bytes", "The setting maxmemory; no sample without a limit.")
POLICY_SAFE = Metric(
    "redis_eviction_policy_safe",
    "1 when maxmemory-policy is noeviction; with any other one Redis may throw away queued jobs.",
)
EVICTED = Metric("redis_evicted_keys_total", "Keys that Redis threw away for lack of memory since its start.")
CLIENTS = Metric("redis_clients", "Connections to Redis, ours included.")
CLIENTS_MAX = Metric("redis_clients_max", "The setting maxclients.")
REJECTED = Metric("redis_rejected_connections_total", "Connections refused because of maxclients since its start.")


class RedisCollector(Collector):
    """Immich's Redis or Valkey, where its background queues live.

    immich_vitals_redis_up 1
    immich_vitals_redis_info{version="8.1.4",server="valkey",role="master"} 1
    immich_vitals_redis_writable 1
    """

    name = "redis"
    metrics = (
        UP, INFO, STARTED, LOADING, WRITABLE, SAVE_OK, SAVED, LOG_OK, MEMORY_USED, MEMORY_MAX, POLICY_SAFE, EVICTED,
        CLIENTS, CLIENTS_MAX, REJECTED,
    )  # fmt: skip
    timeout = 3.0

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(RedisServer(config.redis)) if config.redis else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "no Redis is configured: set REDIS_HOSTNAME, REDIS_SOCKET or REDIS_URL as Immich has it"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        ctx.deadline.limit("ask Redis")
        try:
            facts = read_server(self._server, ctx.deadline)
        except (NoServer, Down, Silent) as failure:
            failure.known = (UP.sample(0),)
            raise
        if facts.mode == "sentinel":
            raise Unavailable(
                f"what answers at {self._server.where} is a Sentinel, not Redis itself",
                mend="set REDIS_URL to Immich's ioredis:// form, with `sentinels` and `name`",
            )
        return redis_samples(facts)

    def close(self) -> None:
        self._server.close()


def redis_samples(facts: ServerFacts) -> Iterator[Sample]:
    """The samples of a server that answers."""
    yield UP.sample(1)
    yield INFO.sample(1, version=facts.version, server=facts.product, role=facts.role)
    yield from STARTED.known(facts.started)
    yield from LOADING.known(facts.loading)
    yield from WRITABLE.known(takes_writes(facts))
    yield from SAVE_OK.known(facts.last_save_ok)
    yield from SAVED.known(facts.last_save)
    yield from LOG_OK.known(facts.log_write_ok)
    yield from MEMORY_USED.known(facts.memory_used)
    yield from MEMORY_MAX.known(facts.memory_max or None)
    if facts.eviction_policy:
        yield POLICY_SAFE.sample(facts.eviction_policy == "noeviction")
    yield from EVICTED.known(facts.evicted)
    yield from CLIENTS.known(facts.clients)
    yield from CLIENTS_MAX.known(facts.clients_max)
    yield from REJECTED.known(facts.rejected)


def takes_writes(facts: ServerFacts) -> bool | None:
    """Whether a write would be taken, by the conditions under which Redis answers LOADING, READONLY, MISCONF or OOM.

    None when the server does not speak of any. With a policy other than noeviction Redis makes room when it is full,
    so being full stops nothing.
    """
    stopped_by_save = facts.saves and facts.stops_when_save_fails and facts.last_save_ok is False
    counted = (facts.memory_used or 0.0) - facts.memory_uncounted
    full = bool(facts.memory_max) and counted >= (facts.memory_max or 0.0) and facts.eviction_policy == "noeviction"
    if facts.loading or facts.read_only or stopped_by_save or facts.log_write_ok is False or full:
        return False
    return None if facts.last_save_ok is None and facts.memory_max is None else True
