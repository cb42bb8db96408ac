"""The file systems below the watched paths. The only place that touches those paths.

Any of them may be a dead mount, where every call hangs for ever. So each path is looked at in a flight of its own: a
dead one costs one thread, however often it is asked for, and the others answer as usual.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from immich_vitals.collector import Deadline
from immich_vitals.config import WatchedPath
from immich_vitals.flight import Flight

PATIENCE_SECONDS = 2.0
MOUNTINFO = Path("/proc/self/mountinfo")

# Where the path is wrong, rather than the file system below it.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NOT_FOR_US = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Space:
    """Size and room in bytes, number of files possible and still free; None on file systems without that limit.

    From statvfs; `avail` is what an ordinary user can still write.
    """

    size: int
    avail: int
    files: int | None
    files_free: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """What a path answered. `found` is None when we may not look; `responding` is False for an error of the file
    system below it; `real` is the path without symbolic links."""

    responding: bool
    found: bool | None
    real: str | None = None
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is major:minor. `readonly` is of the file system as a whole: a read-only mount
    of a writable one, such as the one that we may have been given, does not count. `source` is what is mounted: a
    device, a ZFS dataset, an export of a file server; `options` are the file system's own."""

    point: str
    fstype: str
    device: str
    readonly: bool
    source: str = ""
    options: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A watched path: what it answered, and what is mounted there, as far as is known."""

    watched: WatchedPath
    look: Look
    mount: Mount | None


def look_at(path: str) -> Look:
    """Look at a path; hangs as long as the file system below it does."""
    try:
        found = os.statvfs(path)
        real = os.path.realpath(path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return Look(responding=True, found=False)
        if error.errno in _NOT_FOR_US:
            return Look(responding=True, found=None)
        return Look(responding=False, found=None)
    return Look(
        responding=True,
        found=True,
        real=real,
        space=Space(
            size=found.f_blocks * found.f_frsize,
            avail=found.f_bavail * found.f_frsize,
            files=found.f_files or None,
            files_free=found.f_ffree if found.f_files else None,
        ),
    )


SILENT = Look(responding=False, found=None)


class WatchedPaths:
    """Looks at the watched paths, each in its own flight.

    A path that has hung once is not waited for again before its call has come back.
    """

    def __init__(
        self,
        watched: Iterable[WatchedPath],
        probe: Callable[[str], Look] = look_at,
        mountinfo: Path = MOUNTINFO,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._watched = tuple(dict.fromkeys(watched))
        self._probe = probe
        self._mountinfo = mountinfo
        self._patience = patience
        self._flights: dict[str, Flight[Look]] = {str(item.path): Flight("path") for item in self._watched}
        self._stuck: set[Future[Look]] = set()

    def read(self, deadline: Deadline) -> list[PathFacts]:
        """All paths, in the order given. Takes no longer than the patience, or the deadline."""
        looks = self._looks(deadline.limit("look at the watched paths", self._patience))
        mounts = read_mounts(self._mountinfo)
        return [_facts(item, looks[str(item.path)], mounts) for item in self._watched]

    def _looks(self, patience: float) -> Mapping[str, Look]:
        futures = {path: flight.join_or_start(partial(self._probe, path)) for path, flight in self._flights.items()}
        wait([future for future in futures.values() if future not in self._stuck], timeout=patience)
        self._stuck = {future for future in futures.values() if not future.done()}
        return {path: SILENT if future in self._stuck else future.result() for path, future in futures.items()}


def _facts(watched: WatchedPath, look: Look, mounts: Sequence[Mount]) -> PathFacts:
    if look.found is False:
        return PathFacts(watched, look, None)
    # Of a path that does not answer, symbolic links are not known.
    return PathFacts(watched, look, mount_of(look.real or str(watched.path.absolute()), mounts))


def read_mounts(mountinfo: Path) -> list[Mount]:
    """The mounts this process sees; none when they cannot be read."""
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return []
    return [mount for mount in map(_mount, lines) if mount]


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that holds an absolute path. Of several on one point, the last covers the others."""
    best: Mount | None = None
    for mount in mounts:
        if _holds(mount.point, path) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _mount(line: str) -> Mount | None:
    """One mount, from `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`."""
    ours, _, theirs = line.partition(" - ")
    words, last = ours.split(" "), theirs.split(" ")
    if len(words) < 6 or len(last) < 3:
        return None
    options = frozenset(last[2].split(","))
    return Mount(
        point=_OCTAL.sub(lambda escape: chr(int(escape[1], 8)), words[4]),
        fstype=last[0],
        device=words[2],
        readonly="ro" in options or "emergency_ro" in options,  # the latter: ext4 after an error, Linux 6.15
        source=last[1],
        options=options,
    )


_OCTAL = re.compile(r"\\([0-7]{3})")  # blank, tab, newline and backslash in a mount point
