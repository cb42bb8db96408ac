"""What stands behind the exporter breaks in every way, and everything else goes on: with the real process, real
Postgres and Redis, and a proxy before each that breaks it."""

import asyncio
import base64
import contextlib
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families as parse_text
from uvicorn.server import ServerState

from immich_vitals import server
from immich_vitals.demo.servers import Postgres, Redis
from support.certificates import make_certificate
from support.exporter import Exporter
from support.fake_docker import FakeDocker
from support.fault_proxy import Drips, Fault, FaultProxy, Hangs, Resets, Says

CONTAINERS = Path(__file__).parent.parent / "collectors" / "golden" / "container" / "healthy"
SECONDS = 1.5  # Prometheus' time-out; the exporter takes half a second off
# The collectors that ask each service at a scrape, and what is still said of it when it does not answer.
COLLECTORS = {"docker": ("container",), "postgres": ("postgres",), "redis": ("redis", "queue")}
STILL_SAID = {
    "immich_vitals_postgres_up",
    "immich_vitals_redis_up",
    "immich_vitals_container_exits_total",
    "immich_vitals_container_oom_events_total",
    "immich_vitals_container_event_stream_up",
}
Series = dict[tuple[str, ...], float]


@dataclass
class World:
    """The exporter, and a proxy before each service."""

    exporter: Exporter
    proxies: dict[str, FaultProxy]
    postgres: Postgres
    redis: Redis
    environ: dict[str, str]
    client: httpx.Client

    def scrape(self, seconds: float = SECONDS) -> Series:
        """The samples by name, then values of the labels. It must answer in the time it was given."""
        began = time.monotonic()
        header = {"x-prometheus-scrape-timeout-seconds": str(seconds)}
        answer = self.client.get(self.exporter.url("/metrics"), headers=header, timeout=seconds + 5)
        assert time.monotonic() - began < seconds, "Prometheus would have given up"
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in parse_text(answer.text)
            for sample in family.samples
        }

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.exporter.pid}/task").iterdir()))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.exporter.pid}/fd").iterdir()))

    def memory(self, word: str = "VmRSS") -> int:
        return memory(self.exporter, word)


def memory(exporter: Exporter, word: str = "VmRSS") -> int:
    """Memory of the process in MiB: now, or with `VmHWM` at its highest."""
    lines = Path(f"/proc/{exporter.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(word + ":"))


@pytest.fixture(scope="module")
def world(server_folder: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(Postgres(server_folder / "reliability"))
        redis = stack.enter_context(Redis(server_folder / "reliability-redis"))
        with postgres.connect() as admin, redis.client() as keeper:
            admin.execute("CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher")
            keeper.acl_setuser("watcher", enabled=True, passwords=["+x"], categories=["+@all"], keys=["*"])
        docker = stack.enter_context(FakeDocker(CONTAINERS))
        proxies = {
            "docker": FaultProxy(str(docker.socket), docker.socket.with_name("proxy.sock")),
            "postgres": FaultProxy(("127.0.0.1", postgres.port)),
            "redis": FaultProxy(("127.0.0.1", redis.port)),
        }
        for proxy in proxies.values():
            stack.enter_context(proxy)
        environ = {
            "DOCKER_HOST": f"unix://{docker.socket.with_name('proxy.sock')}",
            "DB_HOSTNAME": "127.0.0.1",
            "DB_PORT": str(proxies["postgres"].port),
            "DB_DATABASE_NAME": "postgres",
            "DB_USERNAME": "watcher",
            "REDIS_HOSTNAME": "127.0.0.1",
            "REDIS_PORT": str(proxies["redis"].port),
            "REDIS_USERNAME": "watcher",
            "REDIS_PASSWORD": "x",
            # What runs beside the scrapes has tests of its own.
            "IMMICH_VITALS_DISABLE": "library, container_usage, log, storage, file, backup, version, postgres_patrol",
            "IMMICH_MEDIA_LOCATION": str(server_folder),
        }
        client = stack.enter_context(httpx.Client())
        yield World(stack.enter_context(Exporter(environ)), proxies, postgres, redis, environ, client)


def eventually(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until it is true; fails after `seconds`."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "did not become true"
        time.sleep(0.02)


def successes(seen: Series) -> dict[str, float]:
    return {key[1]: value for key, value in seen.items() if key[0] == "immich_vitals_collector_success"}


def failed(seen: Series, before: Series) -> dict[str, set[str]]:
    """The reasons for which each collector failed between two scrapes."""
    found: dict[str, set[str]] = {}
    for key, value in seen.items():
        if key[0] == "immich_vitals_collector_failures_total" and value > before.get(key, 0):
            found.setdefault(key[1], set()).add(key[2])
    return found


def values_of(seen: Series, service: str) -> set[str]:
    """The metrics of the collectors of a service that are there."""
    prefixes = {f"immich_vitals_{name}_" for name in COLLECTORS[service]}
    return {key[0] for key in seen if key[0].startswith(tuple(prefixes))}


HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NOISE = bytes(range(256)) * 64
ZEROS = b"0" * 65536
# Postgres' messages: one column of text, a row of it, and a notice.
COLUMN = b"T" + struct.pack("!IH2sIhIhih", 26, 1, b"x\0", 0, 0, 25, -1, -1, 0)
ROW = b"D" + struct.pack("!IHI", 60_010, 1, 60_000) + b"x" * 60_000
NOTICE = b"N\x00\x00\x00\x0bSINFO\x00\x00"
FAULTS: dict[str, dict[str, tuple[Fault, str]]] = {
    "docker": {
        "hangs": (Hangs(), "timeout"),
        "drips": (Drips(), "timeout"),
        "resets": (Resets(), "unavailable"),
        "garbage": (Says(NOISE), "unavailable"),
        "endless garbage": (Says(NOISE, NOISE), "unavailable"),
        "endless head": (Says(HTTP, b"X: y\r\n" * 1000), "unavailable"),
        "endless body": (Says(HTTP + b"\r\n[", b" " * 65536), "unavailable|timeout"),
        "endless size of a chunk": (Says(HTTP + b"Transfer-Encoding: chunked\r\n\r\n", ZEROS), "unavailable|timeout"),
        "deep": (Says(HTTP + b"Connection: close\r\n\r\n" + b"[" * 1_000_000), "unavailable"),
        "forbidden": (Says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), "unavailable"),
    },
    "postgres": {
        "hangs": (Hangs(), "timeout"),
        "drips": (Drips(), "timeout"),
        "resets": (Resets(), "unavailable"),
        "garbage": (Says(NOISE), "unavailable"),
        "endless garbage": (Says(NOISE, NOISE), "unavailable"),
        "endless rows": (Says(COLUMN, ROW), "unavailable|timeout"),
        "endless notices": (Says(NOTICE, NOTICE * 5000), "unavailable|timeout"),
        "endless word": (Says(b"E\x7f\xff\xff\xff", b"S" * 65536), "unavailable|timeout"),
    },
    "redis": {
        "hangs": (Hangs(), "timeout"),
        "drips": (Drips(), "timeout"),
        "resets": (Resets(), "unavailable"),
        "garbage": (Says(NOISE), "unavailable"),
        "endless garbage": (Says(NOISE, NOISE), "unavailable"),
        "endless line": (Says(b"+", b"x" * 65536), "unavailable|timeout"),
        "endless string": (Says(b"$2147483647\r\n", b"x" * 65536), "unavailable|timeout"),
        "endless list": (Says(b"*2147483647\r\n", b":1\r\n" * 10000), "unavailable|timeout"),
        "wide": (Says(b"*1000000000\r\n" * 6, b""), "unavailable|timeout"),
        "deep": (Says(b"*1\r\n" * 1000), "unavailable"),
        "forbidden": (Says(b"-NOPERM no permissions to run the 'info' command\r\n" * 50), "unavailable"),
    },
}  # fmt: skip
CASES = [(service, name) for service, faults in FAULTS.items() for name in faults]


@pytest.mark.parametrize(("service", "name"), CASES, ids=lambda part: part.replace(" ", "_"))
def test_fault(world: World, service: str, name: str) -> None:
    """A fault is told of the collectors that meet it, in time and with its reason; they give no values, the others
    go on, no memory is lost to it, and all is well at the first scrape after it."""
    fault, reasons = FAULTS[service][name]
    before = world.scrape(5)
    assert set(successes(before).values()) == {1}, successes(before)
    with world.proxies[service].broken(fault):
        first = world.scrape()
        broken = world.scrape()
    assert_only(service, set(reasons.split("|")), first, broken, before)
    after = world.scrape(5)
    assert set(successes(after).values()) == {1}, successes(after)
    assert world.memory("VmHWM") < 400


@pytest.mark.parametrize(
    ("service", "how", "reason"),
    [
        ("docker", FaultProxy.absent, "absent"),
        ("docker", FaultProxy.refusing, "unavailable"),
        ("postgres", FaultProxy.refusing, "unavailable"),
        ("redis", FaultProxy.refusing, "unavailable"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_nobody_there(
    world: World, service: str, how: Callable[[FaultProxy], AbstractContextManager[None]], reason: str
) -> None:
    """A service that is gone is told of its collectors only, and the first scrape after its return has its values."""
    before = world.scrape(5)
    with how(world.proxies[service]):
        first = world.scrape()
        broken = world.scrape()
    assert_only(service, {reason}, first, broken, before)
    assert set(successes(world.scrape(5)).values()) == {1}


def test_login_revoked(world: World) -> None:
    """A login that is taken away while connected fails its collectors as unavailable; `up` is then not known."""
    before = world.scrape(5)
    with world.postgres.connect() as admin, world.redis.client() as redis:
        admin.execute("ALTER ROLE watcher NOLOGIN")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watcher'")
        redis.acl_setuser("watcher", enabled=False)
        redis.execute_command("CLIENT", "KILL", "USER", "watcher")
        broken = world.scrape(5)
        admin.execute("ALTER ROLE watcher LOGIN")
        redis.acl_setuser("watcher", enabled=True)
    assert failed(broken, before) == {name: {"unavailable"} for name in ("postgres", "redis", "queue")}
    assert not values_of(broken, "postgres") | values_of(broken, "redis")
    assert set(successes(world.scrape(5)).values()) == {1}


def test_flapping_leaks_nothing(world: World) -> None:
    """After 200 scrapes of services that come and go there are no more threads, descriptors, connections or memory."""
    for _ in range(3):
        world.scrape(5)
    threads, descriptors, megabytes = world.threads(), world.descriptors(), world.memory()
    for number in range(200):
        proxy = list(world.proxies.values())[number % 3]
        with proxy.refusing() if number % 2 else proxy.broken(Resets()):
            world.scrape(5)
    assert set(successes(world.scrape(5)).values()) == {1}
    # The event stream of Docker is begun anew after a pause, and may not stand yet.
    eventually(lambda: world.threads() <= threads and world.descriptors() <= descriptors)
    assert world.memory() <= megabytes + 20
    assert sum(proxy.connections for proxy in world.proxies.values()) <= 5
    with world.postgres.connect() as admin:
        told = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'watcher'").fetchone()
    with world.redis.client() as redis:
        assert (told, len([each for each in redis.client_list() if each["user"] == "watcher"])) == ((1,), 2)


def assert_only(service: str, reasons: set[str], first: Series, broken: Series, before: Series) -> None:
    """The collectors of the service failed for one of the reasons, and no others did."""
    affected = set(COLLECTORS[service])
    assert {name for name, ok in successes(broken).items() if not ok} == affected
    told = failed(broken, before)
    assert told.keys() == affected
    assert all(found <= reasons for found in told.values()), told
    for seen in (first, broken):
        assert values_of(seen, service) <= STILL_SAID
        assert all(seen.get((f"immich_vitals_{name}_up",), 0) == 0 for name in affected)


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
USERS = f"basic_auth_users:\n  prometheus: {bcrypt.hashpw(b'right', bcrypt.gensalt(11)).decode()}\n"


def login(password: str) -> bytes:
    encoded = base64.b64encode(f"prometheus:{password}".encode())
    return REQUEST[:-2] + b"Authorization: Basic " + encoded + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("hung", "sent", "web"),
    [
        ((), [REQUEST], ""),
        (("docker",), [REQUEST], ""),
        (("postgres",), [REQUEST], ""),
        (("redis",), [REQUEST], ""),
        (("docker", "postgres", "redis"), [REQUEST] * 200, ""),
        ((), [REQUEST * 50] * 200, ""),
        ((), [b"GET"] * 500, ""),
        ((), [b"\x16\x03\x01\x02\x00\x01"] * 100, TLS),
        ((), [login(f"wrong{n}") for n in range(50)], USERS),
    ],
    ids=["scrape", "docker", "postgres", "redis", "all", "never read", "500 open", "handshakes", "passwords"],
)
def test_sigterm(world: World, tmp_path: Path, hung: Sequence[str], sent: Sequence[bytes], web: str) -> None:
    """SIGTERM ends it within two seconds, with exit code 0 and no traceback, whatever is under way."""
    make_certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text(web)
    with contextlib.ExitStack() as stack:
        for service in hung:
            stack.enter_context(world.proxies[service].broken(Hangs()))
        running = stack.enter_context(Exporter(world.environ, f"--web.config.file={tmp_path / 'web.yml'}"))
        for words in sent:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            client.sendall(words)
        began = time.monotonic()
        said = running.stop()
        assert time.monotonic() - began < 2
        assert running.exit_code == 0
        assert "Traceback" not in said


def test_wrong_passwords_in_masses(tmp_path: Path) -> None:
    """A login that is known is served at once while thousands of wrong ones are tried, and they take no memory."""
    (tmp_path / "web.yml").write_text(USERS)
    with Exporter({}, f"--web.config.file={tmp_path / 'web.yml'}") as running:

        def status() -> int:
            return httpx.get(running.url("/metrics"), auth=("prometheus", "right"), timeout=2).status_code

        assert status() == 200
        before = memory(running)
        for number in range(2000):
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(login(f"wrong{number}"))
            if number % 200 == 0:
                assert status() == 200
        assert status() == 200
        assert memory(running) <= before + 10


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        REQUEST + b"G",
        REQUEST[:-2] + b"Content-Length: 9\r\n\r\n",
        REQUEST[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
    ids=["nothing", "part of the first", "part of the second", "no body", "part of a body"],
)
def test_no_client_holds_a_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is closed in time when the next request, or the rest of one, does not come."""
    monkeypatch.setattr(server, "FIRST_REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.3)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    asyncio.run(_serve(talk))


def test_no_client_holds_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is closed in time when its client sends requests and takes no answer."""
    monkeypatch.setattr(server, "TAKE_ANSWER_SECONDS", 0.3)

    async def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                while True:
                    await asyncio.get_running_loop().sock_sendall(client, REQUEST)

    asyncio.run(_serve(talk))


def test_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many connections the one that has waited longest is closed, and the newest is served."""
    monkeypatch.setattr(server._Protocol, "most", 3)

    async def talk(port: int) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        with contextlib.suppress(ConnectionResetError):
            assert await held[0][0].read() == b""
        held[-1][1].write(REQUEST)
        assert await held[-1][0].readexactly(15) == b"HTTP/1.1 200 OK"
        for _, writer in held:
            writer.close()

    asyncio.run(_serve(talk))


async def _serve(talk: Callable[[int], Awaitable[None]]) -> None:
    """Serve large answers with the exporter's own protocol while `talk` talks to the port."""

    async def app(scope: server.Message, receive: object, send: server.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    config = uvicorn.Config(app, http=server._Protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    listening = await asyncio.get_running_loop().create_server(
        lambda: server._Protocol(config, state, {}), "127.0.0.1", 0
    )
    async with listening:
        await asyncio.wait_for(talk(listening.sockets[0].getsockname()[1]), 10)
