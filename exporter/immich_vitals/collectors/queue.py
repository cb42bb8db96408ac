"""Immich's background queues: how much waits, since when, and whether anybody works on it."""

from collections.abc import Iterable, Iterator
from typing import Self

from immich_vitals.collector import Collector, Context
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.bullmq import ACTIVE_LOOKED_AT, QueueFacts, Queues
from immich_vitals.sources.redis import RedisServer

JOBS = Metric(
    "queue_jobs",
    "Jobs in a queue, by state: waiting, active, failed; delayed, prioritized and paused (waiting in a paused queue)"
    " once there was such a job.",
    ("queue", "state"),
)
PAUSED = Metric("queue_paused", "1 when the queue is paused: its jobs wait until somebody resumes it.", ("queue",))
OLDEST_WAITING = Metric(
    "queue_oldest_waiting_timestamp_seconds",
    "When the longest waiting job was added; no sample when nothing waits.",
    ("queue",),
)
OLDEST_ACTIVE = Metric(
    "queue_oldest_active_timestamp_seconds",
    "When the longest running job was started; no sample when nothing runs.",
    ("queue",),
)
ORPHANED = Metric(
    "queue_orphaned_jobs",
    "Active jobs that no worker holds a lock on: their worker died or hangs."
    f" Looks at the {ACTIVE_LOOKED_AT} oldest active jobs of the queue.",
    ("queue",),
)
WORKERS = Metric("queue_workers", "Workers connected to Redis that take jobs from the queue.", ("queue",))
EVENTS = Metric(
    "queue_events_total",
    "What happened to jobs since the exporter started, by BullMQ's name of the event: active (begun) and"
    " completed; failed, stalled and progress once they happen."
    " Immich catches errors of its jobs, so most jobs that fail count as completed.",
    ("queue", "event"),
)


class QueueCollector(Collector):
    """Immich's background queues, read straight from Redis.

    immich_vitals_queue_jobs{queue="thumbnailGeneration",state="waiting"} 12
    immich_vitals_queue_oldest_waiting_timestamp_seconds{queue="thumbnailGeneration"} 1.7952e+09
    immich_vitals_queue_workers{queue="thumbnailGeneration"} 1
    immich_vitals_queue_events_total{queue="thumbnailGeneration",event="completed"} 3072
    """

    name = "queue"
    metrics = (JOBS, PAUSED, OLDEST_WAITING, OLDEST_ACTIVE, ORPHANED, WORKERS, EVENTS)
    timeout = 3.0

    def __init__(self, server: RedisServer, db: int) -> None:
        self._server = server
        self._queues = Queues(server, db)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(RedisServer(config.redis), config.redis.db) if config.redis else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "no Redis is configured: set REDIS_HOSTNAME, REDIS_SOCKET or REDIS_URL as Immich has it"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        facts = self._queues.read(ctx.deadline)
        if facts.workers_refused is not None:
            refusal = self._server.refused("CLIENT LIST", facts.workers_refused)
            ctx.remark(f"workers cannot be counted: {refusal.message}", refusal.mend)
        if facts.foreign:
            ctx.remark(
                f"the keys of {', '.join(facts.foreign)} in Redis hold something else than Immich's queues",
                "look at REDIS_DBINDEX, and at what else writes keys that start with immich_bull",
            )
        if not facts.queues and not facts.foreign:
            ctx.remark(
                "this Redis holds no queue of Immich",
                "look at REDIS_HOSTNAME and REDIS_DBINDEX; if they are right, Immich has not started yet, or Redis lost"
                " its data while Immich was down",
            )
        return queue_samples(facts.queues)

    def close(self) -> None:
        self._server.close()


def queue_samples(queues: Iterable[QueueFacts]) -> Iterator[Sample]:
    """The samples of all queues."""
    for queue in queues:
        for state, count in queue.jobs.items():
            yield JOBS.sample(count, queue=queue.name, state=state)
        yield PAUSED.sample(queue.paused, queue=queue.name)
        yield from OLDEST_WAITING.known(queue.oldest_waiting, queue=queue.name)
        yield from OLDEST_ACTIVE.known(queue.oldest_active, queue=queue.name)
        yield ORPHANED.sample(queue.orphaned, queue=queue.name)
        yield from WORKERS.known(queue.workers, queue=queue.name)
        for event, count in queue.events.items():
            yield EVENTS.sample(count, queue=queue.name, event=event)
