"""The collector `storage` on real mounts: vanished, remounted, read-only, damaged, and dead ones."""

import ctypes
import itertools
import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Deadline, SystemClock
from immich_vitals.collectors.storage import StorageCollector
from immich_vitals.config import StorageConfig, WatchedPath
from immich_vitals.demo.fault import may_mount
from immich_vitals.settings import FOLDERS
from immich_vitals.sources.files import Mount
from immich_vitals.sources.rights import User, may
from immich_vitals.sources.state import State
from immich_vitals.sources.storage import NAMES, MediaFolders, _Seen
from immich_vitals.vitals import Readings

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not may_mount(), reason="only root may mount, and in a container not even it"
    ),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is missing (apt-get install e2fsprogs)"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]

Run = Callable[..., Readings]


def sh(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own; what is mounted in it is unmounted at the end."""
    with tempfile.TemporaryDirectory(prefix="immich-vitals-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((point for point in mounts if point.startswith(f"{made}/")), reverse=True):
            sh("umount", "-l", point)


@contextmanager
def ext4(folder: Path, point: Path) -> Iterator[Path]:
    """A real ext4 of its own on a loop device; gives its image."""
    image = folder / "disk.img"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    sh("mkfs.ext4", "-q", "-m0", "-O", "metadata_csum", image)
    point.mkdir(exist_ok=True)
    sh("mount", "-o", "loop", image, point)
    yield image
    subprocess.run(["umount", "-l", str(point)], capture_output=True)


def fill(media: Path) -> None:
    """As Immich makes it at its first start."""
    for name in NAMES.values():
        (media / name).mkdir()
        (media / name / ".immich").write_text("1732152434000")


@pytest.fixture
def run(folder: Path) -> Run:
    """One look by an exporter that was just started; `media` is in the test's folder."""

    def looked(
        user: tuple[int, int] = (0, 0), *, write_probe: bool = False, remarks: list[str] | None = None
    ) -> Readings:
        media = folder / "media"
        watched = [WatchedPath("media", media), *(WatchedPath(role, media / name) for role, name in NAMES.items())]
        config = StorageConfig(300.0, user, write_probe)
        collector = StorageCollector(MediaFolders(watched, patience=0.5), config, State(folder, "storage"))
        context = Context(Deadline.after(5.0), SystemClock())
        samples = list(collector.collect(context))
        if remarks is not None:
            remarks.extend(remark.message for remark in context.remarks)
        return Readings(samples)

    return looked


def markers(found: Readings) -> dict[str, float | None]:
    return {role: found.one("storage_marker_present", folder=role) for role in FOLDERS}


def test_vanished_disk(folder: Path, run: Run) -> None:
    """A disk that is unmounted under everybody shows as another folder without Immich's, and coming back as the old."""
    media = folder / "media"
    with ext4(folder, media) as image:
        fill(media)
        assert set(markers(run()).values()) == {1}
        sh("umount", "-l", media)
        (media / "upload").mkdir()  # as by an Immich that goes on and writes into the empty folder below
        remarks: list[str] = []
        found = run(remarks=remarks)
        assert found.one("storage_root_changes_total") == 1
        assert any("replaced" in remark for remark in remarks)
        assert found.one("storage_folder_present", folder="thumbs") == 0
        assert found.one("storage_marker_present", folder="upload") == 0
        sh("mount", "-o", "loop", image, media)
        found = run()
        assert found.one("storage_root_changes_total") == 2
        assert set(markers(found).values()) == {1}


def test_mounted_anew(folder: Path, run: Run) -> None:
    """The same file system on another device's number is the same."""
    media = folder / "media"
    with ext4(folder, media) as image:
        fill(media)
        device = media.stat().st_dev
        run()
        sh("umount", media)
        other = folder / "other.img"
        other.write_bytes(bytes(1 << 20))
        sh("losetup", "-f", other)  # takes the loop device that was free
        try:
            sh("mount", "-o", "loop", image, media)
            changed = media.stat().st_dev != device
            assert run().one("storage_root_changes_total") == 0, f"another device: {changed}"
        finally:
            losetup = subprocess.run(["losetup", "-j", str(other)], capture_output=True, text=True).stdout
            sh("losetup", "-d", losetup.split(":")[0])


def test_disk_of_one_folder_vanishes(folder: Path, run: Run) -> None:
    """A library on several disks: each is looked at by itself, and one that vanishes is a change."""
    media = folder / "media"
    media.mkdir()
    (media / "thumbs").mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=1m", "fast", media / "thumbs")
    (media / "thumbs" / ".immich").touch()
    for name in set(NAMES.values()) - {"thumbs"}:
        (media / name).mkdir()
        (media / name / ".immich").touch()
    found = run()
    assert set(markers(found).values()) == {1}
    sh("umount", "-l", media / "thumbs")
    found = run()
    assert {role for role, marker in markers(found).items() if marker == 0} == {"thumbs"}
    assert found.one("storage_root_changes_total") == 1


def test_read_only(folder: Path, run: Run) -> None:
    """A read-only file system takes no writes from root; a read-only mount of it, such as ours, says nothing."""
    media = folder / "media"
    with ext4(folder, media):
        fill(media)
        sh("mount", "-o", "remount,ro,bind", media)
        found = run()
        assert found.one("storage_access", folder="thumbs", access="write") == 1
        sh("mount", "-o", "remount,rw,bind", media)
        sh("mount", "-o", "remount,ro", media)
        found = run()
        assert found.one("storage_access", folder="thumbs", access="write") == 0
        assert found.one("storage_access", folder="thumbs", access="read") == 1
        sh("mount", "-o", "remount,rw", media)
        assert run().one("storage_access", folder="thumbs", access="write") == 1


def test_write_probe_on_real_disks(folder: Path, run: Run) -> None:
    """It fails on a full disk and on one that became read-only, and leaves nothing behind."""
    media = folder / "media"
    with ext4(folder, media):
        fill(media)
        assert run(write_probe=True).one("storage_write_probe_success") == 1
        filler = media / "upload" / "much.bin"
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        remarks: list[str] = []
        assert run(write_probe=True, remarks=remarks).one("storage_write_probe_success") == 0
        assert "No space left" in remarks[0]
        filler.unlink()
        sh("mount", "-o", "remount,ro", media)
        assert run(write_probe=True).one("storage_write_probe_success") == 0
        sh("mount", "-o", "remount,rw", media)
        assert run(write_probe=True).one("storage_write_probe_success") == 1
        assert not [path for path in media.iterdir() if "probe" in path.name]


def test_damaged_disk(folder: Path, run: Run) -> None:
    """A folder whose block on disk is garbage is an error of the file system, and named."""
    media = folder / "media"
    with ext4(folder, media) as image:
        fill(media)
        (media / "thumbs" / ".immich").unlink()  # as the inode of a file would be cached by its name
        for number in range(40):
            (media / "thumbs" / f"sign-of-this-block-{number}").touch()
        sh("umount", media)
        data = bytearray(image.read_bytes())
        while (at := data.find(b"sign-of-this-block-")) >= 0:  # also where the journal has it
            data[at - at % 1024 : at - at % 1024 + 1024] = b"garbage " * 128
        image.write_bytes(bytes(data))
        sh("mount", "-o", "loop,errors=continue", image, media)
        remarks: list[str] = []
        found = run(remarks=remarks)
        assert found.one("storage_io_error") == 1
        assert any("reports errors: thumbs" in remark for remark in remarks)
        assert found.one("storage_marker_present", folder="upload") == 1


def test_dead_mount(folder: Path, run: Run) -> None:
    """A file system that never answers costs its own samples alone; one whose server died is an error."""
    media = folder / "media"
    media.mkdir()
    fill(media)
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    with ExitStack() as stack:
        stack.callback(os.close, server)
        assert libc.mount(b"dead", os.fsencode(media / "library"), b"fuse.dead", 0, options.encode()) == 0
        remarks: list[str] = []
        found = run(remarks=remarks)
        assert "does not respond: library" in remarks
        assert found.of("storage_folder_present", folder="library") == []
        assert {role for role, marker in markers(found).items() if marker == 1} == set(FOLDERS) - {"library"}
    remarks = []
    found = run(remarks=remarks)
    assert found.one("storage_io_error") == 1
    assert any("library (Transport endpoint is not connected)" in remark for remark in remarks)


def test_folders_closed_to_us(folder: Path, run: Run) -> None:
    """An exporter without the right to look says what it cannot know, and claims nothing."""
    media = folder / "media"
    media.mkdir()
    fill(media)
    for name in NAMES.values():
        (media / name).chmod(0o700)
        os.chown(media / name, 1000, 1000)
    os.chown(folder, 65532, 65532)
    remarks: list[str] = []
    with acting_as(65532, 65532):
        found = run((1000, 1000), remarks=remarks)
    assert found.one("storage_folder_present", folder="thumbs") == 1
    assert found.of("storage_marker_present") == found.of("storage_nested") == []
    assert found.one("storage_access", folder="thumbs", access="write") == 1
    assert remarks == [f"this user may not look into {', '.join(NAMES.values())}"]


@contextmanager
def acting_as(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """This process, all its threads, with the rights of a user."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


NOBODY = 0xFFFFFFFF


def test_rights_are_those_of_the_kernel(folder: Path) -> None:
    """For 300 folders of any owner, mode and access list, Linux itself says what we say."""
    own = folder / "own"
    own.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "rights", own)
    dice = random.Random(2)
    paths = []
    for number in range(300):
        path = own / str(number)
        path.mkdir()
        os.chown(path, dice.choice((0, 1000, 1001)), dice.choice((0, 1000, 44)))
        path.chmod(dice.randrange(0o1000))
        if number % 2:
            named = itertools.chain(
                [(2, dice.randrange(8), uid) for uid in (1000, 1001) if dice.random() < 0.5],
                [(4, dice.randrange(8), NOBODY)],
                [(8, dice.randrange(8), gid) for gid in (44, 1000) if dice.random() < 0.5],
            )
            entries = [(1, dice.randrange(8), NOBODY), *named]
            entries += [(16, dice.randrange(8), NOBODY), (32, dice.randrange(8), NOBODY)]
            os.setxattr(
                path,
                "system.posix_acl_access",
                struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries),
            )
        paths.append(path)
    mount = Mount(str(own), "tmpfs", "0:1", False)
    for uid, gid, groups in ((1000, 1000, ()), (1000, 44, (1000,)), (1001, 7, (44,)), (0, 0, ())):
        user = User(uid, (gid,), frozenset(groups), overrides=uid == 0)
        with acting_as(uid, gid, groups):
            told = [[os.access(path, bit, effective_ids=True) for bit in (4, 2, 1)] for path in paths]
        for path, allowed in zip(paths, told, strict=True):
            rights = _Seen(path).rights("")
            assert rights is not None
            assert [may(user, access, rights, mount) for access in ("read", "write", "enter")] == allowed, (
                rights,
                user,
            )
