"""The collector `queue`: what is in a real Redis gives exactly the expected samples."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from immich_vitals.collector import Context, Deadline, SystemClock, Unavailable
from immich_vitals.collectors.queue import QueueCollector
from immich_vitals.config import RedisConfig, Secret, load
from immich_vitals.demo.servers import Redis
from immich_vitals.grants import PASSWORD, redis_acl
from immich_vitals.sources.bullmq import ACTIVE_LOOKED_AT, EVENTS_AT_ONCE
from immich_vitals.sources.redis import RedisServer
from support.golden import cases, check
from support.tcp_proxy import Forward, TcpServer

LOAD: dict[str, Callable[["redis.Redis", str, object], object]] = {
    "string": lambda client, key, value: client.set(key, value),  # type: ignore[arg-type]
    "hash": lambda client, key, value: client.hset(key, mapping=value),  # type: ignore[arg-type]
    "list": lambda client, key, value: client.rpush(key, *value),  # type: ignore[misc]
    "set": lambda client, key, value: client.sadd(key, *value),  # type: ignore[misc]
    "zset": lambda client, key, value: client.zadd(key, dict(value)),  # type: ignore[call-overload]
    "stream": lambda client, key, value: [
        client.xadd(key, fields, id=entry)
        for entry, fields in reversed(value["last"])  # type: ignore[index]
    ],
}


def fill(client: "redis.Redis", file: Path) -> None:
    """Write the keys of a file, in the form of a dump: key, type and value; a stream's newest entries come first."""
    for key, content in json.loads(file.read_text(encoding="utf-8")).items():
        LOAD[content["type"]](client, key, content["value"])


@contextmanager
def connections(server: Redis, names: list[str]) -> Iterator[None]:
    """Connections to the server under these names, as workers have them."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(server.client(client_name=name)).ping()
        yield


def worker(queue: str) -> str:
    return "immich_bull:" + base64.b64encode(queue.encode()).decode()


def at(port: int, db: int = 0, **options: object) -> QueueCollector:
    return QueueCollector(RedisServer(RedisConfig("127.0.0.1", port, db, **options)), db)  # type: ignore[arg-type]


@pytest.fixture
def collector(redis_server: Redis) -> Iterator[QueueCollector]:
    collector = at(redis_server.port)
    yield collector
    collector.close()


@pytest.fixture
def client(redis_server: Redis) -> Iterator["redis.Redis"]:
    with redis_server.client() as client:
        yield client


def run(collector: QueueCollector, context: Context | None = None) -> dict[tuple[str, ...], float]:
    """The samples of one run, by metric and labels."""
    context = context or Context(Deadline.after(10), SystemClock())
    return {(sample.metric.name, *sample.labels): sample.value for sample in collector.collect(context)}


def events(found: dict[tuple[str, ...], float], queue: str) -> dict[str, float]:
    """The events of a queue that were counted, without those that never happened."""
    name = "queue_events_total"
    return {key[2]: value for key, value in found.items() if key[:2] == (name, queue) and value}


@pytest.mark.parametrize("case", cases("queue"), ids=lambda path: path.name)
def test_golden(
    case: Path,
    redis_server: Redis,
    client: "redis.Redis",
    collector: QueueCollector,
    update_golden: bool,
    context: Context,
) -> None:
    """The keys and connections of the case give exactly its expected samples."""
    fill(client, case / "redis.json")
    if (case / "then.json").exists():
        run(collector)
        fill(client, case / "then.json")
    names = case / "connections.json"
    with connections(redis_server, json.loads(names.read_text(encoding="utf-8")) if names.exists() else []):
        samples = list(collector.collect(context))
    check(case, QueueCollector.metrics, samples, update_golden)
    assert bool(context.remarks) == (case.name == "foreign-keys")


def test_nothing_configured() -> None:
    """Without any setting of Redis or Postgres the collector is disabled, and says which setting to give."""
    config = load({})
    assert QueueCollector.from_config(config) is None
    assert "REDIS_HOSTNAME" in QueueCollector.disabled_because(config)


def test_empty_redis(collector: QueueCollector, context: Context) -> None:
    """An empty Redis has no queues, and that is no failure, but may be the wrong Redis."""
    assert run(collector, context) == {}
    (remark,) = context.remarks
    assert "no queue of Immich" in remark.message
    assert "REDIS_DBINDEX" in remark.mend


def test_foreign_keys_are_named(client: "redis.Redis", collector: QueueCollector, context: Context) -> None:
    """Queues whose keys hold something else are named to the person at the keyboard."""
    client.set("immich_bull:ocr:wait", "no list")
    run(collector, context)
    (remark,) = context.remarks
    assert "keys of ocr in Redis" in remark.message
    assert "REDIS_DBINDEX" in remark.mend


def test_other_database(redis_server: Redis, client: "redis.Redis") -> None:
    """Queues and workers of another database, such as those of a second Immich, are not ours."""
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    collector = at(redis_server.port, db=2)
    with connections(redis_server, [worker("ocr"), worker("library")]):
        assert run(collector) == {}
        with redis_server.client(db=2, client_name=worker("library")) as other:
            other.ping()
            assert run(collector)["queue_workers", "library"] == 1
    collector.close()


def test_rare_states_are_told_from_their_first_job_on(client: "redis.Redis", collector: QueueCollector) -> None:
    """A state that few queues know is no series until a job is in it, and 0 once that is gone."""
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    assert {each[2] for each in run(collector) if each[0] == "queue_jobs"} == {"waiting", "active", "failed"}
    client.zadd("immich_bull:ocr:delayed", {"1": 1})
    assert run(collector)["queue_jobs", "ocr", "delayed"] == 1
    client.zrem("immich_bull:ocr:delayed", "1")
    assert run(collector)["queue_jobs", "ocr", "delayed"] == 0


def test_queue_found_by_its_worker_stays(redis_server: Redis, client: "redis.Redis", collector: QueueCollector) -> None:
    """A queue that only its worker told us of is still watched when the worker is gone."""
    client.hset("immich_bull:futureQueue:meta", "version", "bullmq:9")
    assert run(collector) == {}
    with connections(redis_server, [worker("futureQueue")]):
        assert run(collector)["queue_workers", "futureQueue"] == 1
    client.lpush("immich_bull:futureQueue:wait", "1")
    found = run(collector)
    assert found["queue_jobs", "futureQueue", "waiting"] == 1
    assert found["queue_workers", "futureQueue"] == 0


def test_same_cost_for_any_number_of_jobs(client: "redis.Redis", collector: QueueCollector) -> None:
    """A run sends as many commands for 10,000 waiting jobs as for one."""

    def commands() -> int:
        before = client.info("stats")["total_commands_processed"]
        run(collector)
        return int(client.info("stats")["total_commands_processed"]) - before

    client.lpush("immich_bull:library:wait", "1")
    client.lpush("immich_bull:library:active", "a1")
    run(collector)
    few = commands()
    client.lpush("immich_bull:library:wait", *range(2, 10_001))
    assert commands() == few


def test_orphans_are_looked_for_among_the_oldest(client: "redis.Redis", collector: QueueCollector) -> None:
    """However many jobs are active, the look for orphans is bounded and begins with the oldest."""
    client.lpush("immich_bull:library:active", *range(2 * ACTIVE_LOOKED_AT))
    assert run(collector)["queue_orphaned_jobs", "library"] == ACTIVE_LOOKED_AT
    for job in range(ACTIVE_LOOKED_AT):
        client.set(f"immich_bull:library:{job}:lock", "t")
    assert run(collector)["queue_orphaned_jobs", "library"] == 0


def add_events(client: "redis.Redis", queue: str, event: str, count: int, **options: object) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for number in range(count):
            pipeline.xadd(f"immich_bull:{queue}:events", {"event": event, "jobId": str(number)}, **options)  # type: ignore[arg-type]
        pipeline.execute()


def test_many_events(client: "redis.Redis", collector: QueueCollector) -> None:
    """More events than are read at once are all counted, each once."""
    run(collector)
    add_events(client, "ocr", "completed", 2 * EVENTS_AT_ONCE + 7)
    add_events(client, "library", "stalled", EVENTS_AT_ONCE)
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    client.hset("immich_bull:library:meta", "version", "bullmq:5.71.0")
    for _ in range(2):
        found = run(collector)
        assert events(found, "ocr") == {"completed": 2 * EVENTS_AT_ONCE + 7}
        assert events(found, "library") == {"stalled": EVENTS_AT_ONCE}


def test_trimmed_events(client: "redis.Redis", collector: QueueCollector) -> None:
    """Events that were trimmed before they were read are lost; those still there are counted."""
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    add_events(client, "ocr", "stalled", 5)
    run(collector)
    add_events(client, "ocr", "completed", 50, maxlen=20, approximate=False)
    assert events(run(collector), "ocr") == {"completed": 20}


@pytest.mark.parametrize("clock", ["goes on", "went back"])
def test_emptied_redis(client: "redis.Redis", collector: QueueCollector, clock: str) -> None:
    """After FLUSHALL counting goes on, also when the ids of new events are lower than those already read."""
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    run(collector)
    add_events(client, "ocr", "stalled", 3)
    assert events(run(collector), "ocr") == {"stalled": 3}
    client.flushall()
    assert run(collector) == {}
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    client.xadd("immich_bull:ocr:events", {"event": "stalled"}, id="*" if clock == "goes on" else "5-1")
    client.xadd("immich_bull:ocr:events", {"event": "active"}, id="*" if clock == "goes on" else "5-2")
    assert events(run(collector), "ocr") == {"stalled": 4, "active": 1}
    assert events(run(collector), "ocr") == {"stalled": 4, "active": 1}


def test_interrupted_reading_counts_nothing_twice(redis_server: Redis, client: "redis.Redis") -> None:
    """Wherever an answer is cut off, each event is counted once in the end."""
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    forward = Forward(redis_server.port)
    with TcpServer(forward) as server:
        collector = at(server.port)
        run(collector)
        total = cuts = 0
        for allowed in range(0, 20_000, 997):
            add_events(client, "ocr", "completed", 40)
            total += 40
            forward.cut_after = allowed
            try:
                run(collector)
            except Unavailable:
                cuts += 1
            forward.cut_after = None
            assert events(run(collector), "ocr") == {"completed": total}
        collector.close()
    assert 0 < cuts < 21


def test_least_rights(redis_server: Redis, client: "redis.Redis", context: Context) -> None:
    """The rights that `immich-vitals grants` prints are enough for everything the collector asks."""
    client.execute_command(*redis_acl("vitals").split())
    fill(client, cases("queue")[0].parent / "orphaned" / "redis.json")
    collector = at(redis_server.port, username="vitals", password=Secret(PASSWORD))
    run(collector)
    add_events(client, "sidecar", "stalled", 1)
    found = run(collector, context)
    collector.close()
    assert found["queue_orphaned_jobs", "metadataExtraction"] == 2
    assert found["queue_workers", "sidecar"] == 0
    assert events(found, "sidecar") == {"stalled": 1}
    assert context.remarks == []


def test_without_right_to_list_clients(redis_server: Redis, client: "redis.Redis", context: Context) -> None:
    """Where clients may not be listed, workers are unknown and everything else is as usual."""
    client.execute_command("ACL", "SETUSER", "poor", *["reset", "on", ">pw", "~*", "+@read"])
    client.hset("immich_bull:ocr:meta", "version", "bullmq:5.71.0")
    collector = at(redis_server.port, username="poor", password=Secret("pw"))
    found = run(collector, context)
    collector.close()
    assert found["queue_jobs", "ocr", "waiting"] == 0
    assert ("queue_workers", "ocr") not in found
    (remark,) = context.remarks
    assert remark.message.startswith("workers cannot be counted")
    assert "immich-vitals grants" in remark.mend


@pytest.mark.parametrize("missing", ["llen", "xread", "hget", "exists"])
def test_missing_right(redis_server: Redis, client: "redis.Redis", missing: str) -> None:
    """A right that is missing is named, and never taken for an empty queue."""
    client.execute_command("ACL", "SETUSER", "poor", *f"reset on >pw ~* +@read +client|list -{missing}".split())
    collector = at(redis_server.port, username="poor", password=Secret("pw"))
    with pytest.raises(Unavailable, match=f"run {missing.upper()}$") as caught:
        run(collector)
        client.lpush("immich_bull:ocr:active", "1")
        add_events(client, "ocr", "stalled", 1)
        run(collector)
    assert "immich-vitals grants" in caught.value.mend
