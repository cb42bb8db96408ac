"""What is more than one backend that breaks: a full disk below our own state, clocks that jump, another server at an
address, and everything at once."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from immich_vitals.demo.servers import Postgres
from immich_vitals.vitals import Readings
from reliability.world import World, eventually, scrape, successes
from support import fuse
from support.exporter import Exporter
from support.fault_proxy import FaultProxy, Hangs
from support.fuse import Trouble

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@contextlib.contextmanager
def small_disk(point: Path) -> Iterator[Path]:
    """A disk of 256 kB of its own."""
    if reason := fuse.why_not():
        pytest.skip(f"no disk can be mounted: {reason}")
    point.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"small", os.fsencode(point), b"tmpfs", 0, b"size=256k,mode=755") == 0
    try:
        yield point
    finally:
        libc.umount2(os.fsencode(point), 2)


def test_the_disk_of_our_state_fills(tmp_path: Path) -> None:
    """A disk that fills while we write our place in a log costs nothing that is watched, leaves the old place whole,
    and, once there is room, what was counted is kept; over a kill each line counts once."""
    log = tmp_path / "server.log"
    log.write_text("")
    with small_disk(tmp_path / "state") as state:
        environ = {"IMMICH_VITALS_LOG_FILES": f"server={log}", "IMMICH_VITALS_STATE_PATH": str(state)}
        kept = state / "log.json"

        def write(count: int) -> None:
            with log.open("a") as lines:
                lines.writelines(f"line {number}\n" for number in range(count))

        def until_counted(exporter: Exporter, count: int) -> None:
            eventually(lambda: scrape(exporter).one("log_lines_total", component="server") == count)

        def kept_lines() -> int | None:
            found: dict[str, dict[str, int]] = json.loads(kept.read_text()) if kept.exists() else {"lines": {}}
            return found["lines"].get("server")

        with Exporter(environ) as first:
            eventually(lambda: scrape(first).one("log_stream_up", component="server") == 1)
            write(10)
            until_counted(first, 10)
            eventually(lambda: kept_lines() == 10)
            with contextlib.suppress(OSError), (state / "others").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
            write(10)
            until_counted(first, 20)
            eventually(lambda: "No space left on device" in page(first))
            assert all(successes(scrape(first)).values())
            assert kept_lines() == 10
            first.stop(signal.SIGKILL)
        with Exporter(environ) as second:
            until_counted(second, 20)
            (state / "others").unlink()
            write(10)
            until_counted(second, 30)
            eventually(lambda: kept_lines() == 30)
            assert "No space left on device" not in page(second)
            second.stop(signal.SIGKILL)
        with Exporter(environ) as third:
            eventually(lambda: scrape(third).one("log_stream_up", component="server") == 1)
            until_counted(third, 30)
        assert not [each.name for each in state.iterdir() if each.suffix != ".json"]


def page(exporter: Exporter) -> str:
    """What the landing page tells people."""
    return httpx.get(exporter.url("/"), timeout=5).text


def test_the_clock_jumps(world: World, tmp_path: Path) -> None:
    """A machine whose clock is set by hours, forward and back, as one without a battery does when it finds the network:
    nothing fails, nothing is called old, and what is done on a timer goes on."""
    if FAKETIME is None:
        pytest.skip("libfaketime is missing (apt-get install faketime)")
    offset = tmp_path / "offset"

    def turn(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        new.rename(offset)

    turn("+0")
    settings = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "IMMICH_VITALS_STATE_PATH": str(tmp_path),
        "IMMICH_VITALS_VERSION_INTERVAL": "1h",
    }
    with world.another(**settings) as exporter:
        eventually(lambda: all(successes(scrape(exporter, 20)).values()))
        for hours in (3, -3, 24 * 400):
            turn(f"{hours:+}h")
            eventually(partial(has_run_since, exporter, time.time() + hours * 3600))


def has_run_since(exporter: Exporter, moment: float) -> bool:
    """Whether the timers ran after this moment, and not more than a minute after it; nothing may fail meanwhile."""
    found = scrape(exporter, 20)  # every call of a clock costs under libfaketime
    assert {name for name, ok in successes(found).items() if not ok} == set()
    seen = last_successes(found)
    return all(0 <= seen.get(name, 0.0) - moment < 60 for name in ("probe", "storage", "file"))


def test_another_postgres_at_the_address(server_folder: Path, tmp_path: Path) -> None:
    """A fail-over: a standby answers at the address, is up and not writable, and is after its promotion; a server that
    is another cluster shows by its system identifier."""
    with (
        Postgres(server_folder / "failover-first") as first,
        Postgres(server_folder / "failover-other") as other,
        FaultProxy(("127.0.0.1", first.port)) as proxy,
    ):
        second = standby_of(first, server_folder / "failover-second")
        environ = {
            "DB_HOSTNAME": "127.0.0.1", "DB_PORT": str(proxy.port), "DB_DATABASE_NAME": "postgres",
            "IMMICH_VITALS_DISABLE": "library, version, backup, host",
        }  # fmt: skip
        with second, Exporter(environ) as exporter:

            def identifier() -> str:
                return next(str(labels["system_identifier"]) for labels, _ in scrape(exporter).of("postgres_info"))

            own = identifier()
            assert writable(exporter) == (1, 1)
            with proxy.leading_to(("127.0.0.1", second.port)):
                assert writable(exporter) == (1, 0)
                assert identifier() == own
                with second.connect() as admin:
                    admin.execute("SELECT pg_promote()")
                assert writable(exporter) == (1, 1)
            with proxy.leading_to(("127.0.0.1", other.port)):
                assert writable(exporter) == (1, 1)
                assert identifier() != own
            assert identifier() == own


def writable(exporter: Exporter) -> tuple[float | None, float | None]:
    """Whether Postgres is up, and whether it is writable, as the next scrape has it."""
    seen = scrape(exporter)
    return seen.one("postgres_up"), seen.one("postgres_writable")


def standby_of(first: Postgres, folder: Path) -> Postgres:
    """A server of its own on a copy of another one's data, which waits to be promoted."""
    second = Postgres(folder)
    for server in (first, second):
        server.stop()
    settings = (second.data / "postgresql.conf").read_text()
    shutil.rmtree(second.data)
    subprocess.run(["cp", "-a", str(first.data), str(second.data)], check=True)
    (second.data / "postgresql.conf").write_text(settings)
    (second.data / "standby.signal").touch()
    for server in (first, second):
        server.start()
    return second


def last_successes(seen: Readings) -> dict[str, float]:
    return {labels["collector"]: value for labels, value in seen.of("collector_last_success_timestamp_seconds")}


def test_timers_beside_servers_that_hang(world: World) -> None:
    """While every server hangs, what asks none of them, or can do without, goes on at its pace."""
    free = {"storage", "probe", "host", "filesystem"}
    world.settle()
    with contextlib.ExitStack() as hanging:
        for name in ("docker", "postgres", "redis"):
            if name in world.proxies:
                hanging.enter_context(world.proxies[name].broken(Hangs()))
        until_gone_on(world, free)
    world.settle()


def test_timers_beside_a_disk_that_hangs(world: World) -> None:
    """While the disk of the photos hangs, everything that is not about it goes on at its pace."""
    if world.disk is None:
        pytest.skip(f"no file system of our own: {fuse.why_not()}")
    # Not the library: its pace is that of a slow database where this machine is busy.
    free = {"probe", "version", "host", "postgres", "redis", "queue"}
    if world.docker is not None:
        free |= {"container", "container_usage", "log"}
    world.settle()
    with world.disk.in_trouble(Trouble(hangs=True)):
        until_gone_on(world, free)
    world.settle()


def until_gone_on(world: World, free: set[str]) -> None:
    """Wait until these collectors have succeeded once more, and then once more."""
    for _ in range(2):
        before = last_successes(world.scrape())

        def late(before: dict[str, float] = before) -> set[str]:
            now = last_successes(world.scrape())
            return {name for name in free if now.get(name, 0) <= before.get(name, 0)}

        eventually(lambda late=late: not late(), late)  # type: ignore[misc]
