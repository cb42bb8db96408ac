"""Whoever asks the exporter, and however: Prometheus is served in time, nobody holds it, and it ends when it should."""

import asyncio
import base64
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import bcrypt
import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from immich_vitals import server
from reliability.world import World, eventually, scrape, successes
from support.certificates import make_certificate
from support.exporter import Exporter
from support.fault_proxy import Hangs
from support.fuse import Trouble

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
        (("disk",), [REQUEST], ""),
        (("docker", "postgres", "redis", "probe", "disk"), [REQUEST] * 200, ""),
        ((), [REQUEST * 50] * 200, ""),
        ((), [b"GET"] * 500, ""),
        ((), [b"\x16\x03\x01\x02\x00\x01"] * 100, TLS),
        ((), [login(f"wrong{n}") for n in range(50)], USERS),
    ],
    ids=["scrape", "docker", "postgres", "redis", "disk", "all", "never read", "500 open", "handshakes", "passwords"],
)
def test_sigterm(world: World, tmp_path: Path, hung: Sequence[str], sent: Sequence[bytes], web: str) -> None:
    """SIGTERM ends it within two seconds, with exit code 0 and no traceback, whatever is under way."""
    make_certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text(web)
    with contextlib.ExitStack() as stack:
        for service in hung:
            if service in world.proxies:
                stack.enter_context(world.proxies[service].broken(Hangs()))
            elif service == "disk" and world.disk is not None:
                stack.enter_context(world.disk.in_trouble(Trouble(hangs=True)))
        running = stack.enter_context(world.another(f"--web.config.file={tmp_path / 'web.yml'}"))
        for words in sent:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            client.sendall(words)
        began = time.monotonic()
        said = running.stop()
        assert time.monotonic() - began < 2
        assert running.exit_code == 0
        assert "Traceback" not in said


def test_idle_and_slow_clients(world: World) -> None:
    """While 500 connections ask nothing, a part of a question or nothing more, and 50 take their answer byte by byte,
    Prometheus is served in time; they cost no thread, and when they are gone nothing of them is left."""
    with world.another() as running, contextlib.ExitStack() as clients:
        eventually(lambda: all(successes(scrape(running, 5)).values()))
        threads, opened, megabytes = running.threads(), running.descriptors(), running.memory()
        for number in range(500):
            idle = clients.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            idle.sendall((b"", b"GET /met", REQUEST)[number % 3])
        with slow_clients(running.port, 50):
            for _ in range(20):
                assert all(successes(scrape(running)).values())
            assert running.descriptors() >= opened + 500
            eventually(lambda: running.threads() <= threads + 2, running.threads)
        clients.close()
        eventually(lambda: running.descriptors() <= opened + 4, running.descriptors)
        assert running.memory() <= megabytes + 30


@contextlib.contextmanager
def slow_clients(port: int, count: int) -> Iterator[None]:
    """So many that ask, and take a byte of the answer every 10 ms."""
    ended = threading.Event()
    taken = [0] * count

    def take(asked: list[socket.socket]) -> None:
        while not ended.wait(0.01):
            for number, each in enumerate(asked):
                taken[number] += len(each.recv(1))

    with contextlib.ExitStack() as stack:
        asked = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            client.sendall(REQUEST)
            asked.append(client)
        taker = threading.Thread(target=take, args=(asked,))
        taker.start()
        try:
            yield
        finally:
            ended.set()
            taker.join()
    assert all(taken)


def test_wrong_passwords_in_masses(tmp_path: Path) -> None:
    """A login that is known is served at once while thousands of wrong ones are tried, and they take no memory."""
    (tmp_path / "web.yml").write_text(USERS)
    with Exporter({}, f"--web.config.file={tmp_path / 'web.yml'}") as running:

        def status() -> int:
            return httpx.get(running.url("/metrics"), auth=("prometheus", "right"), timeout=2).status_code

        assert status() == 200
        before = running.memory()
        for number in range(2000):
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(login(f"wrong{number}"))
            if number % 200 == 0:
                assert status() == 200
        assert status() == 200
        assert running.memory() <= before + 10


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
