"""The collector `filesystem`: what the watched paths answer, and that a dead one harms no other."""

import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Deadline, SystemClock, TimedOut
from immich_vitals.collectors.filesystem import FilesystemCollector, filesystem_samples, remarks_on
from immich_vitals.config import WatchedPath, load
from immich_vitals.sources import files
from immich_vitals.sources.files import Look, PathFacts, Space, WatchedPaths, look_at, read_mounts
from support.golden import cases, check, exposition

Found = dict[tuple[str, ...], float]


@pytest.mark.parametrize("case", cases("filesystem"), ids=lambda path: path.name)
def test_golden(case: Path, context: Context, update_golden: bool) -> None:
    """The answers of the paths and the mounts of the case give exactly its expected samples."""
    answers = json.loads((case / "paths.json").read_text(encoding="utf-8"))
    looks = {
        answer["path"]: Look(
            answer["responding"],
            answer["found"],
            answer.get("real") or (answer["path"] if answer["found"] else None),
            Space(**answer["space"]) if "space" in answer else None,
        )
        for answer in answers
    }
    watched = [WatchedPath(answer["role"], Path(answer["path"])) for answer in answers]
    collector = FilesystemCollector(WatchedPaths(watched, probe=looks.__getitem__, mountinfo=case / "mountinfo"))
    check(case, FilesystemCollector.metrics, collector.collect(context), update_golden)
    assert [remark.message for remark in context.remarks] == (
        [
            "not found: /srv/nowhere (database)",
            "this user may not look at /closed/cache (model_cache)",
            "does not respond: /mnt/nas/immich (media), /mnt/ssh (external)",
        ]
        if case.name == "bad-paths"
        else []
    )


def run(collector: FilesystemCollector, seconds: float = 10.0) -> Found:
    """The samples of one run, by metric and labels."""
    context = Context(Deadline.after(seconds), SystemClock())
    return {(sample.metric.name, *sample.labels): sample.value for sample in collector.collect(context)}


def of(paths: dict[str, Path], **options: object) -> FilesystemCollector:
    """A collector of paths by role."""
    watched = [WatchedPath(role, path) for role, path in paths.items()]
    return FilesystemCollector(WatchedPaths(watched, **options))  # type: ignore[arg-type]


def test_nothing_configured() -> None:
    """Without any path the collector is disabled, and says which setting to give."""
    config = load({})
    assert FilesystemCollector.from_config(config) is None
    assert "IMMICH_MEDIA_LOCATION" in FilesystemCollector.disabled_because(config)


def test_real_folder(tmp_path: Path) -> None:
    """A real folder has the figures that `df` shows, and a mount."""
    found = run(of({"media": tmp_path}))
    stat = os.statvfs(tmp_path)
    labels = ("media", str(tmp_path))
    assert found["filesystem_responding", *labels] == found["filesystem_found", *labels] == 1
    assert found["filesystem_size_bytes", *labels] == stat.f_blocks * stat.f_frsize
    assert found["filesystem_readonly", *labels] == 0
    (info,) = [key for key in found if key[0] == "filesystem_info"]
    assert re.fullmatch(r"\d+:\d+", info[-1])


def test_symbolic_link(tmp_path: Path) -> None:
    """A link is counted to the file system it leads to, not to the one it lies on."""
    link = tmp_path / "link"
    link.symlink_to("/proc")
    (info,) = [key for key in run(of({"tmp": link})) if key[0] == "filesystem_info"]
    assert info[3] == "proc"


def test_one_path_listed_twice(tmp_path: Path) -> None:
    """A path written in two ways is watched once per role."""
    watched = [WatchedPath("external", Path(text)) for text in (str(tmp_path), f"{tmp_path}/")]
    found = list(FilesystemCollector(WatchedPaths(watched)).collect(Context(Deadline.after(5), SystemClock())))
    assert [sample.metric.name for sample in found].count("filesystem_responding") == 1


def test_names_that_are_not_utf8(tmp_path: Path, context: Context) -> None:
    """Paths that are not UTF-8 are shown with their strange bytes by number, are told apart, and spoil no scrape."""
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/caf\xe9", b"/caf\xea")]
    for path in paths:
        path.mkdir()
    text = exposition(FilesystemCollector.metrics, of({"external": paths[0], "tmp": paths[1]}).collect(context))
    assert f'filesystem_found{{path="{tmp_path}/caf\\\\udce9",role="external"}} 1.0' in text
    assert f'filesystem_found{{path="{tmp_path}/caf\\\\udcea",role="tmp"}} 1.0' in text


def test_missing_paths(tmp_path: Path, context: Context) -> None:
    """A path that does not exist is found 0 and named with its setting; the others are as usual."""
    (tmp_path / "media" / "upload").mkdir(parents=True)
    (tmp_path / "file").touch()
    paths = {
        "media": tmp_path / "media",
        "upload": tmp_path / "media" / "upload",
        "backups": tmp_path / "media" / "backups",  # a folder of Immich's that this version has not made yet
        "database": tmp_path / "no-database",
        "external": tmp_path / "file" / "below",
        "tmp": tmp_path / ("x" * 300),
    }
    collector = of(paths)
    found = {(sample.metric.name, *sample.labels): sample.value for sample in collector.collect(context)}
    exists = {role: found["filesystem_found", role, str(path)] for role, path in paths.items()}
    assert exists == {"media": 1, "upload": 1, "backups": 0, "database": 0, "external": 0, "tmp": 0}
    assert all(value == 1 for key, value in found.items() if key[0] == "filesystem_responding")
    assert ("filesystem_size_bytes", "media", str(paths["media"])) in found
    assert ("filesystem_size_bytes", "database", str(paths["database"])) not in found
    (remark,) = context.remarks
    assert remark.message.startswith(f"not found: {paths['database']} (database), {paths['external']} (external)")
    assert "backups" not in remark.message
    assert "IMMICH_VITALS_DATABASE_PATH and IMMICH_VITALS_EXTERNAL_PATHS" in remark.mend


def test_missing_media_folder(tmp_path: Path, context: Context) -> None:
    """When the media folder is missing, one sentence names it, and not its six folders as well."""
    config = load({"IMMICH_MEDIA_LOCATION": str(tmp_path / "nowhere")})
    collector = FilesystemCollector.from_config(config)
    assert collector is not None
    found = list(collector.collect(context))
    assert sum(sample.metric.name == "filesystem_found" and sample.value == 0 for sample in found) == 7
    (remark,) = context.remarks
    assert remark.message == f"not found: {tmp_path / 'nowhere'} (media)"
    assert "IMMICH_VITALS_MEDIA_PATH" in remark.mend


@pytest.mark.parametrize(
    ("error", "look"),
    [
        (errno.EACCES, Look(responding=True, found=None)),
        (errno.ELOOP, Look(responding=True, found=False)),
        (errno.EIO, Look(responding=False, found=None)),
        (errno.ESTALE, Look(responding=False, found=None)),
        (errno.ENOTCONN, Look(responding=False, found=None)),
        (errno.EHOSTDOWN, Look(responding=False, found=None)),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_errors(monkeypatch: pytest.MonkeyPatch, error: int, look: Look) -> None:
    """A path we may not enter or that leads nowhere is our affair, an error of the file system means a dead mount."""

    def refuse(path: str) -> os.statvfs_result:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.os, "statvfs", refuse)
    assert look_at("/data") == look


def test_no_mountinfo(tmp_path: Path) -> None:
    """Without a list of mounts, what statvfs tells is still there."""
    found = run(of({"media": tmp_path}, mountinfo=tmp_path / "nothing"))
    assert found["filesystem_responding", "media", str(tmp_path)] == 1
    assert not [key for key in found if key[0] in ("filesystem_info", "filesystem_readonly")]
    assert read_mounts(tmp_path / "nothing") == []


class Mounts:
    """Mounts some of which are dead: looking at one opens a FIFO that nobody writes to, and so hangs for real."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dead: dict[str, Path] = {}
        self.looks: list[str] = []

    def look(self, path: str) -> Look:
        self.looks.append(path)
        if path in self._dead:
            self._dead[path].read_text()
        return look_at(path)

    def kill(self, path: Path) -> None:
        fifo = self._folder / path.name
        os.mkfifo(fifo)
        self._dead[str(path)] = fifo

    def heal(self, path: Path) -> None:
        fifo = self._dead.pop(str(path))
        with ExitStack() as stack:
            stack.callback(fifo.unlink)
            stack.enter_context(fifo.open("w"))


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    folder = tmp_path / "fifos"
    folder.mkdir()
    mounts = Mounts(folder)
    yield mounts
    for path in list(mounts._dead):
        mounts.heal(Path(path))


def folders(tmp_path: Path, *names: str) -> dict[str, Path]:
    made = {name: tmp_path / name for name in names}
    for path in made.values():
        path.mkdir()
    return made


def responding(found: Found) -> dict[str, float]:
    return {key[1]: value for key, value in found.items() if key[0] == "filesystem_responding"}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_dead_mount(tmp_path: Path, mounts: Mounts) -> None:
    """A mount that stops answering is one sample 0; the other paths answer as usual, and it heals by itself."""
    paths = folders(tmp_path, "media", "database", "docker")
    collector = of(paths, probe=mounts.look, patience=0.2)
    assert set(responding(run(collector)).values()) == {1}
    mounts.kill(paths["media"])
    threads = threading.active_count()
    for _ in range(3):
        with at_most(0.5):
            found = run(collector)
        assert responding(found) == {"media": 0, "database": 1, "docker": 1}
        assert [key[:2] for key in found if key[1] == "media"] == [
            ("filesystem_responding", "media"),
            ("filesystem_readonly", "media"),
            ("filesystem_info", "media"),
        ]
        assert threading.active_count() == threads + 1
    mounts.heal(paths["media"])
    until(lambda: threading.active_count() == threads)
    assert responding(run(collector)) == {"media": 1, "database": 1, "docker": 1}


def test_dead_mount_is_not_waited_for_again(tmp_path: Path, mounts: Mounts) -> None:
    """A scrape waits for a dead mount once; the next ones know that it hangs, and do not call it again."""
    paths = folders(tmp_path, "media", "database")
    mounts.kill(paths["media"])
    collector = of(paths, probe=mounts.look, patience=0.5)
    run(collector)
    with at_most(0.4):
        for _ in range(5):
            assert responding(run(collector)) == {"media": 0, "database": 1}
    assert mounts.looks.count(str(paths["media"])) == 1
    assert mounts.looks.count(str(paths["database"])) == 6


def test_all_mounts_dead(tmp_path: Path, mounts: Mounts) -> None:
    """Several dead mounts are waited for together, not one after the other."""
    paths = folders(tmp_path, "media", "database", "docker", "tmp")
    for path in paths.values():
        mounts.kill(path)
    with at_most(0.5):
        found = run(of(paths, probe=mounts.look, patience=0.2))
    assert set(responding(found).values()) == {0}


def test_slower_than_the_deadline(tmp_path: Path, mounts: Mounts) -> None:
    """A deadline that is shorter than the patience wins."""
    paths = folders(tmp_path, "media")
    mounts.kill(paths["media"])
    collector = of(paths, probe=mounts.look, patience=30)
    with at_most(0.5):
        assert responding(run(collector, 0.2)) == {"media": 0}
    with pytest.raises(TimedOut, match="no time left"):
        run(collector, -1)


def test_one_thread_for_one_path_of_two_roles(tmp_path: Path, mounts: Mounts) -> None:
    """Two roles on one path share one look at it."""
    path = folders(tmp_path, "media")["media"]
    found = run(of({"media": path, "external": path}, probe=mounts.look))
    assert responding(found) == {"media": 1, "external": 1}
    assert mounts.looks == [str(path)]


def test_bug_in_a_look_is_not_hidden(tmp_path: Path) -> None:
    """An error that is none of the operating system's is a bug, and shown as one."""

    def broken(path: str) -> Look:
        raise ValueError(path)

    with pytest.raises(ValueError, match=str(tmp_path)):
        run(of({"media": tmp_path}, probe=broken))


def test_remarks_on_nothing_wrong() -> None:
    """Where all is well there is nothing to remark."""
    fine = PathFacts(WatchedPath("media", Path("/data")), Look(responding=True, found=True), None)
    assert list(remarks_on([fine])) == []
    assert len(list(filesystem_samples([fine]))) == 2
