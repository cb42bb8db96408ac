"""Disks that are full, away, read-only, broken or dead, and files that are not where the database has them."""

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from drills.drill import Drill, Injection
from drills.services import changed
from support.docker_engine import EngineError
from support.machine import COMPOSE_VITALS, MIB, Instead, Machine, make_disk

SERVER = "immich_server"
EXPORTER = "immich-vitals-exporter-1"
PHOTO = b"\xff\xd8\xff\xe0" + bytes(200_000) + b"\xff\xd9"
# What the smallest step of a disk is; EXT4_IOC_SHUTDOWN and its way without a last write of the journal.
BLOCK = 4096
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
FILLED_WITH = "ballast"
HOUR = 60.0  # with rules that do not wait as long as they are shipped


def fill(ballast: Path, *, leave: float = 0.0) -> None:
    """A file that takes all room of its disk but such a part of it."""
    with ballast.open("wb") as file:
        room = os.statvfs(file.fileno())
        left, step, size = int((room.f_bavail - leave * room.f_blocks) * room.f_frsize), 64 * MIB, 0
        while step >= BLOCK and (not leave or left > 0):
            try:
                os.posix_fallocate(file.fileno(), size, min(step, left) if leave else step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 4
            else:
                size, left = size + step, left - step


@contextmanager
def full(folder: Path, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Not a block is left on the disk of the folder. Who mends it makes a little room first, then does `then`."""
    ballast = folder / FILLED_WITH
    fill(ballast)
    yield
    fill(ballast, leave=0.04)
    then()
    ballast.unlink()


@contextmanager
def crowded(folder: Path) -> Iterator[None]:
    """There is room on the disk of the folder, and it can hold no more files."""
    crowd = folder / FILLED_WITH
    crowd.mkdir()
    with suppress(OSError):
        for number in range(1_000_000):
            (crowd / f"{number}").touch()
    yield
    shutil.rmtree(crowd)


def photos_take_no_more(trouble: Callable[[Path], AbstractContextManager[None]]) -> Injection:
    """The disk of the photos is in trouble: an upload is refused. What came of it and of jobs is tidied up after."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        library = machine.on_disk("library")
        known = set(files(library / "upload"))
        with trouble(library):
            assert machine.upload(PHOTO) == 500
            yield
        for stray in set(files(library / "upload")) - known:
            stray.unlink()
        for emptied in (path for path in files(library / "thumbs") if not path.stat().st_size):
            machine.add_job("thumbnailGeneration", "AssetGenerateThumbnails", asset_of(emptied))
        machine.wait_for("thumbnails are made", lambda: all(path.stat().st_size for path in files(library / "thumbs")))

    return inject


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".immich")


def asset_of(path: Path) -> str:
    """Whose thumbnail or preview it is."""
    return path.name.partition("_")[0]


@contextmanager
def database_disk_full(machine: Machine) -> Iterator[None]:
    """Only the disk of the database is full, and Postgres needs room for its log of writes."""
    with full(machine.on_disk("postgres"), lambda: started_again(machine)):
        write_until_it_ends(machine)
        yield


def started_again(machine: Machine) -> None:
    """Postgres, which needs some room to do so."""
    machine.docker("restart immich_postgres")
    machine.wait_for("Postgres takes writes", lambda: machine.sql("SELECT pg_switch_wal()"))
    machine.wait_until_up()


def saved(machine: Machine) -> None:
    """What Redis keeps, so that it takes writes again."""
    machine.redis("bgsave")
    machine.wait_for("Redis saves", lambda: "rdb_last_bgsave_status:ok" in machine.redis("info", "persistence"))


def write_until_it_ends(machine: Machine) -> None:
    """Write, without leaving anything in the database, until Postgres has no room for it and gives up."""
    write = "SELECT count(pg_logical_emit_message(false, 'drill', repeat('x', 1000000))) FROM generate_series(1, 600)"
    with suppress(EngineError):
        machine.sql(write)
        raise AssertionError("Postgres found room")


@contextmanager
def docker_disk_full(machine: Machine) -> Iterator[None]:
    """Only the disk of Docker's data is full, where Redis has its own, too."""
    with full(machine.engine.folder / "r", lambda: saved(machine)):
        machine.redis("bgsave")
        yield


@contextmanager
def watched_for_an_hour(_: Machine) -> Iterator[None]:
    """As the rules have it, which see no trend in less."""
    time.sleep(HOUR)
    yield


@contextmanager
def filling(machine: Machine) -> Iterator[None]:
    """The disk of the photos has less than a fifth left, and something writes and writes."""
    library = machine.on_disk("library")
    fill(library / FILLED_WITH, leave=0.19)
    ended = threading.Event()

    def write() -> None:
        with (library / FILLED_WITH).open("ab") as file:
            while not ended.wait(0.5):
                file.write(bytes(8 * BLOCK))
                file.flush()
                os.fsync(file.fileno())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
    (library / FILLED_WITH).unlink()


@contextmanager
def unmounted_until_restart(machine: Machine) -> Iterator[None]:
    """The disk of the photos is unmounted under a server that holds on to it, until it is started again."""
    machine.unmount("library")
    assert machine.upload(PHOTO) == 201
    machine.docker(f"restart {SERVER}")
    yield
    machine.docker(f"stop {SERVER}")
    machine.mount("library")
    machine.docker(f"start {SERVER}")
    machine.wait_until_up()
    forget_uploads(machine)


def forget_uploads(machine: Machine) -> None:
    """Nothing is left of what a drill has uploaded, but that a photo came in then."""
    newest = 'SELECT id FROM asset WHERE "deviceId" <> \'phone\' ORDER BY "createdAt" DESC LIMIT 1'
    machine.sql(f'UPDATE asset SET "createdAt" = (SELECT max("createdAt") FROM asset) WHERE id = ({newest})')
    for path in machine.sql('DELETE FROM asset WHERE "deviceId" = \'phone\' RETURNING id, "originalPath"').split():
        asset, _, original = path.partition("|")
        library = machine.on_disk("library")
        for each in (library / Path(original).relative_to("/data"), *library.glob(f"thumbs/*/*/*/{asset}_*")):
            each.unlink(missing_ok=True)


@contextmanager
def photos_mounted_late(machine: Machine) -> Iterator[None]:
    """Immich and the exporter take part in the machine's mounts, and started before the disk of the photos came."""
    machine.docker(f"stop {SERVER} {EXPORTER}")
    machine.unmount("library")
    with (
        machine.changed("immich-server", {"volumes": ["./library:/data:rslave"]}),
        machine.changed("exporter", {"volumes": ["./library:/data:ro,rslave"]}, COMPOSE_VITALS),
    ):
        machine.mount("library")
        machine.wait_until_up()
        yield


@contextmanager
def unmounted(machine: Machine) -> Iterator[None]:
    """The disk of the photos is unmounted for all, and somebody uploads into the empty folder below."""
    machine.unmount("library")
    assert machine.upload(PHOTO) == 201
    yield
    shadow = machine.on_disk("library")
    assert files(shadow / "upload")
    for each in shadow.iterdir():
        shutil.rmtree(each)
    machine.mount("library")
    forget_uploads(machine)


@contextmanager
def marker_gone(machine: Machine) -> Iterator[None]:
    """`thumbs/.immich` is removed, and the server is restarted."""
    marker = machine.on_disk("library") / "thumbs" / ".immich"
    text = marker.read_bytes()
    marker.unlink()
    machine.docker(f"restart {SERVER}")
    yield
    marker.write_bytes(text)
    machine.docker(f"restart {SERVER}")
    machine.wait_until_up()


@contextmanager
def restored_too_deep(machine: Machine) -> Iterator[None]:
    """A restore put the photos in upload/upload."""
    upload = machine.on_disk("library") / "upload"
    moved = [path for path in upload.iterdir() if path.name != ".immich"]
    (upload / "upload").mkdir()
    for path in moved:
        path.rename(upload / "upload" / path.name)
    yield
    for path in moved:
        (upload / "upload" / path.name).rename(path)
    (upload / "upload").rmdir()


@contextmanager
def read_only(machine: Machine) -> Iterator[None]:
    """The file system of the photos is made read-only, and the server is restarted."""
    library = machine.on_disk("library")
    sh("mount", "-o", "remount,ro", library)
    assert machine.upload(PHOTO) == 500
    machine.docker(f"restart {SERVER}")
    yield
    sh("mount", "-o", "remount,rw", library)
    machine.docker(f"restart {SERVER}")
    machine.wait_until_up()


@contextmanager
def broken(machine: Machine) -> Iterator[None]:
    """The file system of the photos answers with I/O errors, as over a disk that was pulled: ext4 is told to stop."""
    handle = os.open(machine.on_disk("library"), os.O_RDONLY)
    fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(handle)
    assert machine.upload(PHOTO) == 500
    yield
    machine.docker(f"stop {SERVER}")
    # Only for a moment, since nobody watches meanwhile; but it holds on to the broken file system, too.
    machine.docker(f"kill {EXPORTER}")
    machine.unmount("library")
    machine.mount("library")
    machine.docker(f"start {EXPORTER}")
    machine.docker(f"start {SERVER}")
    machine.wait_until_up()


def over_fuse(name: str) -> Injection:
    """A disk that is reached through a FUSE file system, as mergerfs or a share is."""

    @contextmanager
    def prepare(machine: Machine) -> Iterator[None]:
        point, below = machine.on_disk(name), machine.engine.folder / f"{name}-below"
        machine.docker(f"stop {SERVER} {EXPORTER}")
        machine.unmount(name)
        below.mkdir()
        sh("mount", "-o", "loop", machine.engine.folder / f"{name}.img", below)
        sh("bindfs", below, point)
        machine.docker(f"start {SERVER} {EXPORTER}")
        machine.wait_until_up()
        yield
        machine.docker(f"stop {SERVER} {EXPORTER}")
        sh("umount", point)
        sh("umount", below)
        below.rmdir()
        machine.mount(name)
        machine.docker(f"start {SERVER} {EXPORTER}")
        machine.wait_until_up()

    return prepare


def dead(name: str) -> Injection:
    """The program behind that file system stops answering."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        mounts = Path("/proc").glob("[0-9]*/cmdline")
        point = os.fsencode(machine.on_disk(name))
        (program,) = (
            int(each.parent.name) for each in mounts if words(each)[:1] == [b"bindfs"] and point in words(each)
        )
        os.kill(program, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(program, signal.SIGCONT)

    return inject


def words(cmdline: Path) -> list[bytes]:
    """The words of a process; none of one that has ended."""
    with suppress(OSError):
        return cmdline.read_bytes().split(b"\0")
    return []


def sh(*told: object) -> None:
    done = subprocess.run([str(word) for word in told], capture_output=True, text=True)
    assert done.returncode == 0, f"{told}: {done.stderr}"


def lost(*kinds: str, count: int | None = None, emptied: bool = False, then: str = "") -> Injection:
    """So many files of these kinds are deleted, or emptied, their rows kept. `then`: a job that is run after."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        taken = {}
        for path in some_files(machine, kinds, count):
            taken[path] = path.read_bytes()
            if emptied:
                os.truncate(path, 0)
            else:
                path.unlink()
        if then:
            machine.add_job("thumbnailGeneration", then)
        yield
        for path, content in taken.items():
            path.write_bytes(content)

    return inject


def some_files(machine: Machine, kinds: tuple[str, ...], count: int | None) -> list[Path]:
    """Files of assets that nothing is wrong with, `original` or as `asset_file` calls them."""
    known = ",".join(f"'{kind}'" for kind in kinds)
    rows = machine.sql(
        "SELECT path FROM (SELECT 'original' AS type, \"originalPath\" AS path, id AS asset FROM asset"
        ' UNION SELECT type::text, path, "assetId" FROM asset_file) AS file JOIN asset ON asset.id = file.asset'
        f' WHERE file.type IN ({known}) AND status = \'active\' AND "deletedAt" IS NULL AND NOT "isExternal"'
        f" AND visibility = 'timeline' AND thumbhash IS NOT NULL ORDER BY path LIMIT {count or 'ALL'}"
    )
    return [machine.on_disk("library") / Path(path).relative_to("/data") for path in rows.split()]


@contextmanager
def external_mounted_late(machine: Machine) -> Iterator[None]:
    """As photos_mounted_late, with the disk of the external library."""
    machine.docker(f"stop {SERVER} {EXPORTER}")
    machine.unmount("old-disk")
    machine.docker(f"start {SERVER} {EXPORTER}")
    machine.mount("old-disk")
    machine.wait_until_up()
    yield


@contextmanager
def external_gone(machine: Machine) -> Iterator[None]:
    """The disk of the external library is unmounted, and the library is scanned."""
    machine.unmount("old-disk")
    machine.add_job("library", "LibrarySyncAssets")
    yield
    machine.mount("old-disk")
    machine.add_job("library", "LibrarySyncAssets")


@contextmanager
def half_deleted(machine: Machine) -> Iterator[None]:
    """More than half of the photos are put in the trash."""
    chosen = 'SELECT id FROM asset WHERE "deletedAt" IS NULL AND NOT "isExternal" ORDER BY id LIMIT 120'
    machine.sql(
        f"CREATE TABLE drill AS {chosen}",
        "UPDATE asset SET status = 'trashed', \"deletedAt\" = now() WHERE id IN (SELECT id FROM drill)",
    )
    yield
    machine.sql(
        "UPDATE asset SET status = 'active', \"deletedAt\" = NULL WHERE id IN (SELECT id FROM drill)",
        "DROP TABLE drill",
    )


@contextmanager
def backups_on_own_disk(machine: Machine) -> Iterator[None]:
    """The folder of the dumps has a disk of its own, which Immich and the exporter both see."""
    image, point = machine.engine.folder / "backups.img", machine.on_disk("library") / "backups"
    machine.docker(f"stop {SERVER} {EXPORTER}")
    kept = {path.name: path.read_bytes() for path in point.iterdir() if path.is_file()}
    make_disk(image, 16 * MIB)
    sh("mount", "-o", "loop", image, point)
    for name, content in kept.items():
        (point / name).write_bytes(content)
    machine.docker(f"start {SERVER} {EXPORTER}")
    machine.wait_until_up()
    yield
    machine.docker(f"stop {SERVER} {EXPORTER}")
    sh("umount", point)
    image.unlink()
    machine.docker(f"start {SERVER} {EXPORTER}")
    machine.wait_until_up()
    machine.back_up()  # the newest were on that disk


@contextmanager
def dump_without_room(machine: Machine) -> Iterator[None]:
    """The disk of the dumps is full when it is time for one. Later there is room again, and the dump is made."""
    with full(machine.on_disk("library") / "backups", machine.back_up):
        machine.add_job("backupDatabase", "DatabaseBackup")
        yield


@contextmanager
def thumbnails_on_unseen_disk(machine: Machine) -> Iterator[None]:
    """The server alone has the thumbnails on a disk of their own."""
    image, point = machine.engine.folder / "thumbs.img", machine.on_disk("thumbs-disk")
    thumbs = machine.on_disk("library") / "thumbs"
    make_disk(image, 24 * MIB)
    point.mkdir()
    sh("mount", "-o", "loop", image, point)
    sh("cp", "-a", f"{thumbs}/.", point)
    with machine.changed("immich-server", {"volumes": ["./thumbs-disk:/data/thumbs"]}):
        machine.wait_until_up()
        yield
    sh("umount", point)
    point.rmdir()
    image.unlink()


@contextmanager
def unseen_disk_full(machine: Machine) -> Iterator[None]:
    """That disk is full, and there are new photos."""
    with full(machine.on_disk("thumbs-disk")):
        assert machine.upload(PHOTO) == 201
        yield
    forget_uploads(machine)


@contextmanager
def everything_on_one_disk(machine: Machine) -> Iterator[None]:
    """The database lies on the disk of Docker's data, as in a named volume, and so does what Redis keeps."""
    point, inside = machine.on_disk("postgres"), machine.engine.folder / "r" / "one-disk"
    machine.docker(f"stop {SERVER} {EXPORTER} immich_postgres")
    sh("cp", "-a", point, inside)
    sh("mount", "--bind", inside, point)
    machine.docker(f"start immich_postgres {SERVER} {EXPORTER}")
    machine.wait_until_up()
    yield
    machine.docker(f"stop {SERVER} {EXPORTER} immich_postgres")
    sh("umount", point)
    for each in point.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    sh("cp", "-a", f"{inside}/.", point)
    shutil.rmtree(inside)
    machine.docker(f"start immich_postgres {SERVER} {EXPORTER}")
    machine.wait_until_up()


@contextmanager
def one_disk_full(machine: Machine) -> Iterator[None]:
    """It is full: Postgres ends, and Redis cannot save and takes no more writes."""

    def mend() -> None:
        saved(machine)
        started_again(machine)

    with full(machine.engine.folder / "r", mend):
        machine.redis("bgsave")
        write_until_it_ends(machine)
        yield


@contextmanager
def rootless(machine: Machine) -> Iterator[None]:
    """The server is user 1000, whose the folders are."""
    library = machine.on_disk("library")
    sh("chown", "-R", "1000:1000", library)
    with machine.changed("immich-server", {"user": "1000:1000"}):
        machine.wait_until_up()
        yield
        sh("chown", "-R", "0:0", library)


def owned_by_root(*, mode: str) -> Injection:
    """`thumbs` and all in it is root's with these rights, as after a restore, and the server is restarted."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        thumbs = machine.on_disk("library") / "thumbs"
        sh("chown", "-R", "0:0", thumbs)
        thumbs.chmod(int(mode, 8))
        machine.docker(f"restart {SERVER}")
        yield
        thumbs.chmod(0o755)
        sh("chown", "-R", "1000:1000", thumbs)
        machine.docker(f"restart {SERVER}")
        machine.wait_until_up()

    return inject


READ_ONLY = changed("immich-server", {"volumes": ["./library:/data:ro"]})
RENAMED = changed("immich-server", {"volumes": Instead(["./library:/data", "./old-disk:/mnt/old-disk-2:ro"])})
MEDIA_RENAMED = changed("immich-server", {"volumes": Instead(["./library:/photos", "./old-disk:/mnt/old-disk:ro"])})
MOVED = changed(
    "immich-server",
    {
        "volumes": Instead(["./library:/photos", "./old-disk:/mnt/old-disk:ro"]),
        "environment": {"IMMICH_MEDIA_LOCATION": "/photos"},
    },
)

DRILLS = {
    "media-disk-full": Drill("Disk of the photos: no byte left.", photos_take_no_more(full), ("ImmichDiskFull",)),
    "media-disk-crowded": Drill(
        "Disk of the photos: no inode left.", photos_take_no_more(crowded), ("ImmichInodesLow",)
    ),
    "database-disk-full": Drill("Disk of the database: no byte left.", database_disk_full, ("ImmichDiskFull",)),
    "docker-disk-full": Drill("Docker's data root: no byte left.", docker_disk_full, ("ImmichDiskFull",)),
    "one-disk-full": Drill(
        "One disk for Postgres and Docker's data: no byte left.", one_disk_full, ("ImmichDiskFull",),
        prepare=everything_on_one_disk,
    ),
    "backups-disk-full": Drill(
        "Disk of the dumps: no byte left, then a dump.", dump_without_room, ("ImmichDiskFull",), changes=True,
        prepare=backups_on_own_disk,
    ),
    "unseen-disk-full": Drill(
        "A disk that only the server has: no byte left, then an upload.", unseen_disk_full, ("ImmichNoSpaceReported",),
        prepare=thumbnails_on_unseen_disk,
    ),
    "media-disk-filling": Drill(
        "Something fills the disk of the photos.", filling, ("ImmichDiskWillFill",), prepare=watched_for_an_hour
    ),
    "media-unmounted-until-restart": Drill(
        "Media disk unmounted under the server, which is restarted.", unmounted_until_restart, ("ImmichMarkerMissing",)
    ),
    "media-unmounted-upload": Drill(
        "Media disk unmounted under all that have it as rslave, then one upload.", unmounted,
        ("ImmichMediaMountMissing",), prepare=photos_mounted_late,
    ),
    "marker-gone": Drill("`rm thumbs/.immich`, restart.", marker_gone, ("ImmichMarkerMissing",)),
    # Two are wanted: a folder too much alone can wait, photos that do not open cannot.
    "restored-too-deep": Drill(
        "The photos in upload/upload.", restored_too_deep, ("ImmichNestedMedia", "ImmichOriginalsMissing")
    ),
    "media-read-only-bind": Drill("Media folder bound `:ro` for the server.", READ_ONLY, ("ImmichMediaNotWritable",)),
    "thumbs-not-writable": Drill(
        "Rootless; thumbs is root's, restart.", owned_by_root(mode="755"), ("ImmichMediaNotWritable",),
        prepare=rootless,
    ),
    "thumbs-not-readable": Drill(
        "Rootless; thumbs is root's with 0700, restart.", owned_by_root(mode="700"), ("ImmichMediaNotReadable",),
        prepare=rootless,
    ),
    "media-read-only": Drill("`mount -o remount,ro` of the media disk.", read_only, ("ImmichFilesystemReadOnly",)),
    "media-io-errors": Drill("The media disk answers EIO.", broken, ("ImmichStorageIOErrors",)),
    "media-dead": Drill(
        "The media folder's FUSE file system stops answering.", dead("library"), ("ImmichStorageNotResponding",),
        prepare=over_fuse("library"),
    ),
    "external-dead": Drill(
        "The external library's FUSE file system stops answering.", dead("old-disk"), ("ImmichStorageNotResponding",),
        prepare=over_fuse("old-disk"),
    ),
    "previews-deleted": Drill("`rm` of 10 previews.", lost("preview", count=10), ("ImmichThumbnailFilesMissing",)),
    "thumbnails-empty": Drill(
        "All thumbnails and previews have 0 bytes.", lost("preview", "thumbnail", emptied=True),
        ("ImmichThumbnailFilesMissing",),
    ),
    "previews-deleted-then-missing": Drill(
        "The same, then Missing at Generate Thumbnails.",
        lost("preview", count=10, then="AssetGenerateThumbnailsQueueAll"), ("ImmichThumbnailFilesMissing",),
    ),
    "originals-deleted": Drill("`rm` of 3 originals.", lost("original", count=3), ("ImmichOriginalsMissing",)),
    "external-unmounted": Drill(
        "External library unmounted, then a scan.", external_gone, ("ImmichExternalLibraryOffline",),
        prepare=external_mounted_late,
    ),
    "media-renamed": Drill(
        "The media folder mounted elsewhere.", MEDIA_RENAMED, ("ImmichMediaNotMounted",), ("ImmichRestartLoop",)
    ),
    # Immich itself writes the new paths into the database.
    "media-moved": Drill("IMMICH_MEDIA_LOCATION changed with its mount.", MOVED, ()),
    "external-renamed": Drill("External library mounted elsewhere.", RENAMED, ("ImmichMediaPathMoved",)),
    "half-deleted": Drill("120 photos in the trash.", half_deleted, ("ImmichMassDeletion",)),
}  # fmt: skip
