"""Backups as files: which there are, and on which disks they lie.

Any of the folders may be a dead mount, so each question to one is a flight of its own; see `files.py`.
"""

import contextlib
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

from immich_vitals.collector import Deadline
from immich_vitals.flight import Flight
from immich_vitals.sources.files import MOUNTINFO, Mount, mount_of, read_mounts

# A disk that sleeps needs about as long to wake up.
PATIENCE_SECONDS = 10.0
# Another tool's file that changed this recently may still be written.
SETTLED_SECONDS = 600.0
# What a clock that was wrong gave a date in the future would be the newest for ever.
FUTURE_SECONDS = 86400.0
# Further apart than time zones and a long dump explain: the file was copied, and its own time says nothing.
COPIED_SECONDS = 26 * 3600.0
MARKER_BYTES = 4096
LARGEST_FOLDER = 100_000
SYS = Path("/sys")

# Immich 1.136 and newer: when, in the local time of its container, and of which Immich and Postgres. Before: when, in
# milliseconds. What others put there (uploaded-*, restore-point-*) and what is being written (.tmp) does not count.
_OWN = re.compile(r"immich-db-backup-(?:(\d{8}T\d{6})(-v.+)?|(\d{13}))\.sql\.gz")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup. `moment` is when it was made, in seconds since the epoch; `size` in bytes, None for a folder or a
    marker file. Sizes can be compared between those of one `family`. `packed`: it must be gzip of SQL. `marker`: it
    only tells that a backup was made, elsewhere."""

    path: str
    moment: float
    size: int | None
    modified: int  # nanoseconds since the epoch
    family: str
    packed: bool = False
    marker: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies: names of its disks, as far as they can be seen. Two places that share one are lost
    together."""

    disks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Found:
    """The backups of one kind, the newest first, and where the newest lies (None for a marker file, which says
    nothing of that). `readable` is False when a folder may not be looked into, `there` when it does not exist."""

    backups: tuple[Backup, ...] = ()
    place: Place | None = None
    readable: bool = True
    there: bool = True


def own_dumps(folder: str, now: float) -> Found:
    """Immich's own dumps in its folder `backups`. Raises `OSError` as a failing disk gives it."""
    try:
        with os.scandir(folder) as entries:
            names = [(entry.path, found) for entry in _some(entries) if (found := _OWN.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return Found(there=False)
    except PermissionError:
        return Found(readable=False)
    files = [_own_dump(path, found, told) for path, found in names if (told := _stat(path)) and _is_file(told)]
    return _found(files, now)


def others_backups(patterns: Sequence[str], now: float, *, unsettled: float = 0.0, markers: bool = False) -> Found:
    """What matches the patterns: files, or folders with a backup in each. Those that changed in the last `unsettled`
    seconds are left out: they may still be written. With `markers`, a small file that is named without a wildcard only
    tells that a backup was made. Raises `OSError` as a failing disk gives it."""
    files = [backup for pattern in patterns for backup in _matching(pattern, markers)]
    return _found([each for each in files if not 0 <= now - each.modified / 1e9 < unsettled], now)


def touched(path: str) -> float | None:
    """When a file was last touched; None when there is none. Raises `OSError` as a failing disk gives it."""
    told = _stat(path)
    return told.st_mtime if told else None


def _found(backups: list[Backup], now: float) -> Found:
    """The newest first, and those from the future last."""
    ordered = sorted(backups, key=lambda each: (each.moment <= now + FUTURE_SECONDS, each.moment), reverse=True)
    place = place_of(ordered[0].path) if ordered and not ordered[0].marker else None
    return Found(tuple(ordered), place)


def _own_dump(path: str, found: re.Match[str], told: os.stat_result) -> Backup:
    """The file's time is when the dump ended, unless its name says that it was copied here later: names give the
    beginning, in a time zone that is not known."""
    began = told.st_mtime
    if found[3]:
        began = int(found[3]) / 1000
    else:
        with contextlib.suppress(ValueError, OverflowError):
            began = datetime.strptime(found[1], "%Y%m%dT%H%M%S").timestamp()
    copied = abs(told.st_mtime - began) > COPIED_SECONDS
    moment = began if copied else told.st_mtime
    return Backup(path, moment, told.st_size, told.st_mtime_ns, found[2] or "", packed=True)


def _matching(pattern: str, markers: bool) -> Iterator[Backup]:
    for path in _some(glob.iglob(pattern.replace("[", "[[]"))):  # noqa: PTH207 - pathlib takes no pattern from the root on
        told = _stat(path)
        if told is None:
            continue
        if stat.S_ISDIR(told.st_mode):
            # Tools that keep times give a folder that of its source.
            yield Backup(path, max(told.st_mtime, told.st_ctime), None, told.st_mtime_ns, pattern)
        elif _is_file(told):
            marker = markers and told.st_size < MARKER_BYTES and not {"*", "?"} & set(pattern)
            size = None if marker else told.st_size
            yield Backup(path, told.st_mtime, size, told.st_mtime_ns, pattern, marker=marker)


def _stat(path: str) -> os.stat_result | None:
    """None when it is gone, leads to nowhere, or is not for us."""
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _is_file(told: os.stat_result) -> bool:
    return stat.S_ISREG(told.st_mode)


def _some(items: Iterator[T]) -> Iterator[T]:
    return (item for _, item in zip(range(LARGEST_FOLDER), items, strict=False))


def place_of(path: str, mountinfo: Path = MOUNTINFO, sys: Path = SYS) -> Place | None:
    """Where a path lies; None when that cannot be told."""
    told = _stat(path)
    if told is None:
        return None
    mount = mount_of(os.path.realpath(path), read_mounts(mountinfo))
    return Place(disks_of(f"{os.major(told.st_dev)}:{os.minor(told.st_dev)}", mount, sys))


def disks_of(device: str, mount: Mount | None, sys: Path = SYS) -> frozenset[str]:
    """Names of what is below a file system: partitions and volumes of one disk, and subvolumes or datasets of one
    pool, have a name in common. What cannot be looked through, as a file server, is named by its device number."""
    disks = _block_devices(sys / "dev" / "block" / device)
    if not disks and mount is not None:
        if mount.fstype == "zfs":
            disks = {f"zfs {mount.source.split('/')[0]}"}
        elif mount.source.startswith("/dev/"):  # btrfs: each subvolume has a device number of its own
            disks = _block_devices(sys / "class" / "block" / Path(mount.source).name) or {mount.source}
    return frozenset(disks or {device})


def _block_devices(link: Path) -> set[str]:
    """The whole disks below a block device in sysfs; none when there is no such device."""
    try:
        device = link.resolve(strict=True)
        if (device / "partition").exists():
            device = device.parent
        slaves = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    except OSError:
        return set()
    found = {name for slave in slaves for name in _block_devices(slave)}
    return found or {device.name}


@dataclass(frozen=True, slots=True)
class Failed:
    """A folder gave no answer: `why` completes the sentence "it ...". `hangs`: it may still give one."""

    why: str
    hangs: bool = False


class Asked(Generic[T]):
    """Questions to folders that may hang, each in a flight of its own. One that has hung is not waited for again
    before its call has come back."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._flights: dict[str, Flight[T]] = {}
        self._stuck: set[Future[T]] = set()

    def ask(self, questions: Mapping[str, Callable[[], T]], deadline: Deadline) -> Mapping[str, T | Failed]:
        """The answers by name."""
        flights = {name: self._flights.setdefault(name, Flight("backup")) for name in questions}
        futures = {name: flights[name].join_or_start(question) for name, question in questions.items()}
        limit = deadline.limit("look at the backups", self._patience)
        wait([future for future in futures.values() if future not in self._stuck], timeout=limit)
        self._stuck = {future for future in futures.values() if not future.done()}
        return {name: self._answer(future) for name, future in futures.items()}

    def _answer(self, future: Future[T]) -> T | Failed:
        if future in self._stuck:
            return Failed("does not answer", hangs=True)
        try:
            return future.result()
        except OSError as error:
            return Failed(f"fails with {error.strerror or type(error).__name__!r}")
