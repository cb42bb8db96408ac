"""Immich's job workers, in a process of their own: `python -m immich_vitals.demo.worker SOCKET [SECONDS]`.

One named connection per queue blocks in Redis as BullMQ's does, takes jobs, locks them and finishes them after a
moment. Every SECONDS (0: never) a job is added, so that there is something to see.
"""

import asyncio
import contextlib
import sys
from collections.abc import Mapping

import redis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from immich_vitals.demo.queues import LOCK_SECONDS, MAX_EVENTS, PREFIX, add_jobs, milliseconds, queue_names, worker_name

BLOCK_SECONDS = 5  # of a call that waits for a job; BullMQ's own waits up to ten
WORK_SECONDS = 0.4
RETRY_SECONDS = 1.0


class Duty:
    """What is done with a job, and when Redis fails: here a moment passes, and nobody is told."""

    async def work(self, queue: str, job: Mapping[str, str]) -> None:
        """`job` is its hash as BullMQ keeps it."""
        await asyncio.sleep(WORK_SECONDS)

    def lost(self, error: RedisError) -> None:
        """Redis is down, or refuses to write."""


async def serve(url: str, duty: Duty) -> None:
    """Work on all queues until the process ends. `url` is that of Redis, as redis-py has it."""
    async with _connection(url) as client:
        await asyncio.gather(*(_for_ever(_Worker(client, url, queue, duty), duty) for queue in queue_names()))


def _connection(url: str, name: str | None = None) -> "Redis":
    # redis-py's own time-out, 5 s, would end the connection, and so the worker, during a call that waits for a job.
    client: Redis = Redis.from_url(url, client_name=name, decode_responses=True, socket_timeout=None)
    return client


class _Worker:
    """The worker of one queue. Works one job at a time."""

    def __init__(self, client: "Redis", url: str, queue: str, duty: Duty) -> None:
        self._client = client
        self._queue = queue
        self._duty = duty
        self._key = f"{PREFIX}:{queue}"
        self._blocking = _connection(url, worker_name(queue))
        self._next_check = 0
        self._begun = False
        self._in_hand: str | None = None

    async def turn(self) -> None:
        """Say that a worker lives when it is time to, then work off what waits, then wait for more.

        As with BullMQ, no job is lost: one that a worker before this one left active waits again, and one in hand
        while Redis did not answer is finished later.
        """
        while not self._begun and await self._client.rpoplpush(f"{self._key}:active", f"{self._key}:wait"):
            pass
        self._begun = True
        if milliseconds() >= self._next_check:
            await self._client.set(f"{self._key}:stalled-check", milliseconds(), ex=LOCK_SECONDS)
            self._next_check = milliseconds() + LOCK_SECONDS * 1000
        while job := self._in_hand or await self._take():
            told = await self._client.hgetall(f"{self._key}:{job}")
            await self._duty.work(self._queue, {str(name): str(value) for name, value in told.items()})
            await self._finish(job)
            self._in_hand = None
        await self._blocking.bzpopmin(f"{self._key}:marker", BLOCK_SECONDS)

    async def _take(self) -> str | None:
        job = await self._client.rpoplpush(f"{self._key}:wait", f"{self._key}:active")
        if not isinstance(job, str):
            return None
        self._in_hand = job
        await self._client.set(f"{self._key}:{job}:lock", "demo", ex=LOCK_SECONDS)
        await self._client.hset(f"{self._key}:{job}", mapping={"processedOn": milliseconds(), "ats": 1})
        await self._event("active", jobId=job, prev="waiting")
        return job

    async def _finish(self, job: str) -> None:
        await self._client.lrem(f"{self._key}:active", 0, job)
        await self._client.delete(f"{self._key}:{job}:lock", f"{self._key}:{job}")
        await self._event("completed", jobId=job, returnvalue="null", prev="active")
        if not await self._client.llen(f"{self._key}:wait"):
            await self._event("drained")

    async def _event(self, event: str, **fields: str) -> None:
        await self._client.xadd(f"{self._key}:events", dict(fields, event=event), maxlen=MAX_EVENTS)  # type: ignore[arg-type]


async def _for_ever(worker: _Worker, duty: Duty) -> None:
    while True:
        try:
            await worker.turn()
        except RedisError as error:
            duty.lost(error)
            await asyncio.sleep(RETRY_SECONDS)


async def _feed(url: str, every: float) -> None:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        while every:
            await asyncio.sleep(every)
            with contextlib.suppress(RedisError):
                add_jobs(client, "thumbnailGeneration", "AssetGenerateThumbnails", 1)


async def _demo(url: str, feed_every: float) -> None:
    await asyncio.gather(_feed(url, feed_every), serve(url, Duty()))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_demo(f"unix://{sys.argv[1]}", float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
