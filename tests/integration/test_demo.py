"""The demo: its world is healthy, each of its faults shows, and nothing of it is left behind."""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from immich_vitals import config
from immich_vitals.cli import build
from immich_vitals.demo import FAULTS, run
from immich_vitals.demo.fault import Fault
from immich_vitals.demo.scratch import Scratch, environment, inhabitants
from immich_vitals.demo.servers import free_port
from immich_vitals.demo.show import Exporter, readings
from immich_vitals.demo.worker import BLOCK_SECONDS
from immich_vitals.demo.world import World
from immich_vitals.server import exposition
from immich_vitals.vitals import Readings

PATIENCE = 60.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as built:
        yield built


@pytest.fixture(scope="module")
def watching(world: World) -> Iterator[Exporter]:
    """The exporter as the demo runs it, a process with streams and timers."""
    with Exporter(world, f"127.0.0.1:{free_port()}") as exporter:
        exporter.wait_until_ready()
        assert eventually(lambda: streams_stand(Readings(exporter.metrics())))
        yield exporter


def streams_stand(found: Readings) -> bool:
    """Whether every log is followed from here on."""
    return all(value == 1 for _, value in found.of("log_stream_up"))


def look(world: World) -> Readings:
    """What a fresh exporter says about the world in its first scrape."""
    runner = build(config.load({**world.environment(), "IMMICH_VITALS_DISABLE": "container,container_usage"}))
    try:
        body, _ = exposition(runner.metrics, runner.scrape(10.0))
    finally:
        runner.stop()
    return Readings(readings(body.decode()))


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("name", FAULTS)
def test_fault_shows_and_goes(world: World, watching: Exporter, name: str) -> None:
    """Each fault shows in the series it names while it is there, and neither before nor after; a counter then grows."""
    fault = FAULTS[name]
    why_not = fault.impossible()
    if why_not:
        pytest.skip(why_not)
    if fault.sign.metric.endswith("_total"):
        before = value(watching, fault)
        with fault.inject(world):
            shown = eventually(lambda: value(watching, fault) >= before + fault.sign.at_least)
        assert shown
        return
    assert not fault.sign.seen(Readings(watching.metrics()))
    with fault.inject(world):
        # A fresh exporter sees most of it at once; slow timers belong to the one that watches.
        # Asserted later, so that what was broken is mended in any case.
        shown = eventually(lambda: fault.sign.seen(look(world)) or fault.sign.seen(Readings(watching.metrics())))
    assert shown
    assert eventually(lambda: not fault.sign.seen(Readings(watching.metrics())))


def value(watching: Exporter, fault: Fault) -> float:
    return Readings(watching.metrics()).one(fault.sign.metric, **fault.sign.labels) or 0.0


def test_healthy_world_is_the_library_it_says(world: World) -> None:
    """Two old corrupt photos are all that is pending in the sample library."""
    found = look(world)
    assert found.one("library_users") == 3
    assert found.one("library_pending", stage="thumbnail") == 2
    assert found.one("library_required", stage="thumbnail") == 186
    assert found.one("library_unprocessed_assets") == 0
    assert found.one("library_external_offline_assets") == 4
    assert found.one("queue_workers", queue="thumbnailGeneration") == 1
    assert found.one("postgres_checksums_enabled") == 1


def test_workers_stay_connected(world: World) -> None:
    """A worker that waits for a job is connected all the time, also when its wait ends without one."""
    with world.redis.client() as client:
        named = {each["id"] for each in client.client_list() if each["name"].startswith("immich_bull:")}
        assert len(named) == 18
        time.sleep(BLOCK_SECONDS + 1.5)
        assert named <= {each["id"] for each in client.client_list()}


def test_every_file_of_the_library_is_there(world: World) -> None:
    """Every path in the database leads to a file with something in it, except for assets that are offline."""
    with world.connect() as connection:
        rows = connection.execute(
            'SELECT "originalPath" FROM asset WHERE NOT "isOffline" UNION ALL SELECT path FROM asset_file'
        ).fetchall()
    paths = [Path(str(path)) for (path,) in rows]
    assert len(paths) > 500
    assert [path for path in paths if not path.stat().st_size] == []


def test_workers_finish_jobs(world: World) -> None:
    """The demo's workers take a waiting job, finish it and say so in the events."""
    from immich_vitals.demo.queues import add_jobs

    with world.redis.client() as client:
        before = client.xlen("immich_bull:sidecar:events")
        add_jobs(client, "sidecar", "SidecarCheck", 1)
        assert eventually(lambda: client.xlen("immich_bull:sidecar:events") >= before + 5)
        events = [fields["event"] for _, fields in client.xrange("immich_bull:sidecar:events")]
        assert events[-5:] == ["added", "waiting", "active", "completed", "drained"]
        assert not client.exists("immich_bull:sidecar:wait", "immich_bull:sidecar:active", "immich_bull:sidecar:1")


def test_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault that does not exist is a usage error that lists the ones there are."""
    assert run("gremlins") == 2
    assert "redis-down" in capsys.readouterr().err


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short name (a unix socket's path has at most 107 bytes) that others may enter."""
    with tempfile.TemporaryDirectory(prefix="test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo in a process of its own, which puts its files into `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "immich_vitals", "demo", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**environment(), "TMPDIR": str(folder)},
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_vital_signs(process: subprocess.Popen[str]) -> str:
    """What the demo said, up to the last of its vital signs."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if line.startswith("  Thumbnails"):
            break
    return said


def nothing_left(folder: Path) -> bool:
    return not list(folder.glob("immich-vitals-demo-*")) and not inhabitants(folder)


def test_once_says_the_vital_signs(folder: Path) -> None:
    """`demo --once` prints vital signs that are all known but for the containers, ends with 0, leaves nothing."""
    with demo(folder, "--once") as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "98.92 % of 186 assets have one, 2 pending" in said
    assert "up, 0 checksum failures" in said
    assert nothing_left(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_signal_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    """Whatever signal ends the demo, its folder, its processes and its servers end with it."""
    with demo(folder) as process:
        said = wait_for_vital_signs(process)
        there = inhabitants(folder)
        assert {"postgres", "redis-server"} <= {found.name() for found in there}, said
        process.send_signal(number)
        process.wait(PATIENCE)
    assert process.returncode == (-9 if number == signal.SIGKILL else 0)
    assert eventually(lambda: nothing_left(folder))
    assert not any(found.is_running() and found.status() != psutil.STATUS_ZOMBIE for found in there)


def test_second_demo_takes_another_port(folder: Path) -> None:
    """With the usual port taken the demo runs on a free one, and says so."""
    with contextlib.ExitStack() as ends:
        with contextlib.suppress(OSError):  # then somebody else has it, which will do
            ends.enter_context(socket.create_server(("127.0.0.1", 12283)))
        process = ends.enter_context(demo(folder, "--once"))
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "Port 12283 is taken" in said


def test_scratch_ends_a_frozen_process() -> None:
    """A process that stands still in the folder does not outlive it."""
    with Scratch() as scratch:
        frozen = subprocess.Popen([sys.executable, "-c", "input()"], cwd=scratch.path, stdin=subprocess.PIPE)
        frozen.send_signal(signal.SIGSTOP)
    with frozen:
        assert frozen.wait(PATIENCE) != 0
    assert not scratch.path.exists()
