"""What is broken in a soak, as data: the part, what happens to it, and how that is begun and ended."""

import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from bench.soak_rig import LOGIN, Rig
from support.fault_proxy import Drips, Fault, Hangs, Resets, Says

NOISE = bytes(range(256)) * 64
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

Breaks = Callable[[Rig], AbstractContextManager[None]]


def _proxy(name: str, fault: Fault) -> Breaks:
    return lambda rig: rig.proxies[name].broken(fault)


def _services() -> Iterator[tuple[str, str, Breaks]]:
    """What can happen on the way to each service."""
    for name in ("docker", "postgres", "redis", "server", "machine learning"):
        yield name, "refuses", lambda rig, name=name: rig.proxies[name].refusing()  # type: ignore[misc]
        yield name, "resets", lambda rig, name=name: _once(rig.proxies[name].reset)  # type: ignore[misc]
        yield name, "resets in its answer", _proxy(name, Resets())
        yield name, "hangs", _proxy(name, Hangs())
        yield name, "drips", _proxy(name, Drips())
        yield name, "talks garbage", _proxy(name, Says(NOISE))
        yield name, "never ends its garbage", _proxy(name, Says(NOISE, NOISE))


@contextmanager
def _once(act: Callable[[], object]) -> Iterator[None]:
    act()
    yield


@contextmanager
def _login_revoked(rig: Rig) -> Iterator[None]:
    with rig.world.postgres.connect() as admin:
        admin.execute(f"ALTER ROLE {LOGIN} NOLOGIN".encode())
        _end_sessions(rig)
        try:
            yield
        finally:
            admin.execute(f"ALTER ROLE {LOGIN} LOGIN".encode())


def _end_sessions(rig: Rig) -> None:
    with rig.world.postgres.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (LOGIN,))


@contextmanager
def _user_disabled(rig: Rig) -> Iterator[None]:
    with rig.world.redis.client() as keeper:
        keeper.execute_command("ACL", "SETUSER", LOGIN, "off")
        keeper.execute_command("CLIENT", "KILL", "USER", LOGIN)
        try:
            yield
        finally:
            keeper.execute_command("ACL", "SETUSER", LOGIN, "on")


@contextmanager
def _media_away(rig: Rig) -> Iterator[None]:
    away = rig.world.folder / "media-away"
    rig.world.media.rename(away)
    try:
        yield
    finally:
        away.rename(rig.world.media)


@contextmanager
def _media_empty(rig: Rig) -> Iterator[None]:
    """As when the mount is not there, and its mount point is."""
    with _media_away(rig):
        rig.world.media.mkdir()
        try:
            yield
        finally:
            rig.world.media.rmdir()


def _burst(rig: Rig) -> None:
    with rig.server_log.open("a", encoding="utf-8") as log:
        log.writelines(f"{line}\n" for line in random.choices(rig.lines, k=2000))


def _rotated(rig: Rig) -> None:
    _burst(rig)
    rig.server_log.rename(rig.server_log.with_suffix(".log.1"))
    _burst(rig)


def _truncated(rig: Rig) -> None:
    _burst(rig)
    os.truncate(rig.server_log, 0)


@contextmanager
def _log_gone(rig: Rig) -> Iterator[None]:
    rig.server_log.unlink(missing_ok=True)
    yield
    rig.server_log.touch()


@contextmanager
def _killed(rig: Rig) -> Iterator[None]:
    rig.engine.run("kill", "immich_machine_learning")
    yield
    rig.engine.run("start", "immich_machine_learning")


@contextmanager
def _asked(rig: Rig, words: bytes, many: int = 1) -> Iterator[None]:
    """Clients that say this and take no answer."""
    with ExitStack() as ends:
        for _ in range(many):
            client = ends.enter_context(socket.create_connection(("127.0.0.1", rig.exporter.port)))
            with contextlib.suppress(ConnectionError):  # it may have hung up already
                client.sendall(words)
        yield


FAULTS: tuple[tuple[str, str, Breaks], ...] = (
    *_services(),
    ("docker", "a container dies", _killed),
    ("postgres", "ends all sessions", lambda rig: _once(lambda: _end_sessions(rig))),
    ("postgres", "revokes the login", _login_revoked),
    ("redis", "revokes the login", _user_disabled),
    ("media folder", "is gone", _media_away),
    ("media folder", "is an empty one", _media_empty),
    ("log", "2,000 lines at once", lambda rig: _once(lambda: _burst(rig))),
    ("log", "rotated in a burst", lambda rig: _once(lambda: _rotated(rig))),
    ("log", "truncated in a burst", lambda rig: _once(lambda: _truncated(rig))),
    ("log", "gone", _log_gone),
    ("client", "hangs up", lambda rig: _asked(rig, REQUEST)),
    ("client", "never reads", lambda rig: _asked(rig, REQUEST * 20)),
    ("client", "50 that say nothing", lambda rig: _asked(rig, b"", 50)),
    ("client", "half a request", lambda rig: _asked(rig, REQUEST[:20])),
    ("client", "talks garbage", lambda rig: _asked(rig, NOISE)),
)
