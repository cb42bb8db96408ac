"""Files that really vanish from a whole library on disk, with a real Postgres, as the faults of the demo make them; and
where a real Docker engine says that they are."""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Deadline, TimedOut
from immich_vitals.collectors.file import FileCollector
from immich_vitals.config import load
from immich_vitals.demo.faults_file import FAULTS_FILE
from immich_vitals.demo.world import World
from immich_vitals.metrics import Sample
from immich_vitals.sources.file_looks import Looker
from support.clock import FakeClock


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


class Watch:
    """A collector beside the world, whose waiting costs no time."""

    def __init__(self, world: World, looker: Looker | None = None, **own: str) -> None:
        settings = {**world.environment(), "DOCKER_HOST": "unix:///nowhere/docker.sock", "IMMICH_VITALS_STATE_PATH": ""}
        config = load({**settings, **own})
        assert config.postgres is not None
        self.clock = FakeClock()
        self.collector = FileCollector(
            config, config.postgres, world.media, clock=self.clock, pause=self.clock.advance, looker=looker
        )
        self.context = Context(Deadline.after(600.0, self.clock), self.clock)

    def lost(self) -> dict[str, float]:
        """What is lost now, by kind, after the next whole sample."""
        for _ in range(2):
            self.clock.advance(5.0)
            samples = self._collect()
        return {kind: value for (kind,), value in _values(samples, "file_lost").items() if value}

    def sampled(self) -> dict[tuple[str, ...], float]:
        self.clock.advance(5.0)
        return _values(self._collect(), "file_sampled")

    def _collect(self) -> list[Sample]:
        self.context = Context(Deadline.after(600.0, self.clock), self.clock)
        return list(self.collector.collect(self.context))


def _values(samples: list[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


@pytest.mark.parametrize("name", FAULTS_FILE)
def test_fault_is_seen_and_mended(world: World, name: str) -> None:
    """Each fault is seen in full by the sample of a small library, alone, and is gone after the mend."""
    fault, watch = FAULTS_FILE[name], Watch(world)
    assert watch.lost() == {}
    with fault.inject(world):
        assert watch.lost() == {fault.sign.labels["kind"]: fault.sign.at_least}
    assert watch.lost() == {}
    assert not watch.context.remarks


def test_a_media_folder_that_vanishes_loses_nothing(world: World) -> None:
    """Neither a folder that is gone, nor an empty one in its place, nor an external disk that is away, is a loss."""
    watch, away = Watch(world), world.folder / "away"
    assert watch.lost() == {}
    world.media.rename(away)
    try:
        assert watch.lost() == {}
        world.media.mkdir()
        assert watch.lost() == {}
    finally:
        shutil.rmtree(world.media, ignore_errors=True)
        away.rename(world.media)
    world.external.rename(away)
    try:
        assert watch.lost() == {}
    finally:
        away.rename(world.external)
    assert watch.lost() == {}


def test_state_names_no_file(world: World, tmp_path: Path) -> None:
    """What is kept over a restart are ids of rows: no path, no name."""
    with FAULTS_FILE["originals-deleted"].inject(world):
        watch = Watch(world, IMMICH_VITALS_STATE_PATH=str(tmp_path))
        assert watch.lost() == {"original": 3}
        kept = json.loads((tmp_path / "file.json").read_text())
        assert [kind for _, _, kind in kept["lost"]] == ["original"] * 3
        assert "/" not in json.dumps(kept)
    again = Watch(world, IMMICH_VITALS_STATE_PATH=str(tmp_path))
    assert again.collector._lost.by_kind() == {"original": 3}
    assert again.lost() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_that_is_dead(world: World) -> None:
    """A file system that never answers stops the work; one whose server died has no files to lose; then it goes on."""
    watch = Watch(world, Looker(patience=0.3))
    assert watch.lost() == {}
    libc = ctypes.CDLL(None, use_errno=True)
    point, server = world.media / "thumbs", os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
        assert libc.mount(b"dead", os.fsencode(point), b"fuse.dead", 0, options.encode()) == 0
        for _ in range(2):
            with pytest.raises(TimedOut):
                watch.sampled()
        os.close(server)
        server = -1
        watch.collector._looker._patience = 5.0
        flying = watch.collector._looker._last
        assert flying is not None
        flying.result(timeout=10)
        assert watch.lost() == {}
        assert watch.sampled()["thumbnail", "unmapped"] > 0
    finally:
        if server >= 0:
            os.close(server)
        subprocess.run(["umount", "-l", str(point)], check=False)
    assert watch.lost() == {}
    assert watch.sampled()["thumbnail", "ok"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_folders_that_are_closed_to_us(world: World) -> None:
    """A user that may not enter Immich's folders finds nothing lost, and says why."""
    for path in world.folder.rglob("*"):
        if path.is_relative_to(world.media / "upload") and path.is_dir():
            path.chmod(0o700)
    watch = Watch(world)
    world.folder.chmod(0o755)
    os.seteuid(65532)
    try:
        assert watch.lost() == {}
        assert watch.sampled()["original", "unreadable"] > 100
    finally:
        os.seteuid(0)
    assert "may not enter" in watch.context.remarks[0].message
    assert str(world.media) not in watch.context.remarks[0].message
