"""Immich's queues as BullMQ keeps them in Redis, and what puts jobs into them."""

import base64
import json
import time
from importlib import resources

import redis

PREFIX = "immich_bull"
LOCK_SECONDS = 30  # how long a worker may hold a job without saying so again; also between two checks for stalled ones
JOB_OPTIONS = '{"removeOnComplete":true,"removeOnFail":false,"attempts":1}'
MAX_EVENTS = 10_000
NOBODYS = "871a1201-6341-4ec0-91ad-ad53f520c0e0"
"""An asset that there is not: in the demo nobody looks which one a job is for."""


def queue_names() -> tuple[str, ...]:
    """The queues of Immich 2.7.5."""
    return tuple(_facts()["queues"])


def worker_name(queue: str) -> str:
    """What BullMQ names the connection on which the queue's worker waits."""
    return f"{PREFIX}:{base64.b64encode(queue.encode()).decode()}"


def create_queues(client: "redis.Redis") -> None:
    """What Immich's queue objects write when they are made, and the traces of some work long done."""
    version = _facts()["bullmq"]
    for queue in queue_names():
        client.hset(f"{PREFIX}:{queue}:meta", mapping={"opts.maxLenEvents": MAX_EVENTS, "version": f"bullmq:{version}"})
    for queue in ("thumbnailGeneration", "metadataExtraction", "smartSearch", "faceDetection", "backgroundTask"):
        for _ in range(3):
            job = str(client.incr(f"{PREFIX}:{queue}:id"))
            for event in ("added", "waiting", "active", "completed"):
                add_event(client, queue, event, jobId=job)
            add_event(client, queue, "drained")


def add_jobs(client: "redis.Redis", queue: str, name: str, count: int, asset: str = NOBODYS) -> None:
    """Add jobs for an asset as Immich does: into `wait`, or into `paused` while the queue is paused."""
    paused = client.hget(f"{PREFIX}:{queue}:meta", "paused") == "1"
    for _ in range(count):
        job = make_job(client, queue, name, asset)
        with client.pipeline() as step:  # all at once, as BullMQ's own scripts: no worker comes in between
            step.lpush(f"{PREFIX}:{queue}:{'paused' if paused else 'wait'}", job)
            if not paused:
                step.zadd(f"{PREFIX}:{queue}:marker", {"0": 0})
            add_event(step, queue, "added", jobId=job, name=name)
            add_event(step, queue, "waiting", jobId=job)
            step.execute()


def make_job(client: "redis.Redis", queue: str, name: str, asset: str = NOBODYS) -> str:
    """A job's hash, in no list yet; returns the job's id."""
    job = str(client.incr(f"{PREFIX}:{queue}:id"))
    client.hset(
        f"{PREFIX}:{queue}:{job}",
        mapping={
            "name": name, "data": json.dumps({"id": asset}, separators=(",", ":")), "opts": JOB_OPTIONS,
            "timestamp": milliseconds(), "delay": 0, "priority": 0,
        },
    )  # fmt: skip
    return job


def add_event(client: "redis.Redis", queue: str, event: str, **fields: str) -> None:
    client.xadd(f"{PREFIX}:{queue}:events", dict(fields, event=event), maxlen=MAX_EVENTS)  # type: ignore[arg-type]


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _facts() -> dict[str, list[str]]:
    text = resources.files(__package__).joinpath("data/queues-2.7.5.json").read_text(encoding="utf-8")
    facts: dict[str, list[str]] = json.loads(text)
    return facts
