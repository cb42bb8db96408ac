"""Immich's six folders. The only place that touches them for the collector `storage`.

Any of them may be a dead mount, where every call hangs for ever. So each is looked at in a flight of its own: a dead
one costs one thread, however often it is asked for, and the others answer as usual.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from immich_vitals.collector import Deadline
from immich_vitals.config import WatchedPath
from immich_vitals.flight import Flight
from immich_vitals.settings import FOLDERS
from immich_vitals.sources.files import MOUNTINFO, Mount, mount_of, read_mounts
from immich_vitals.sources.rights import Rights

MARKER = ".immich"
PROBE_NAME = ".immich-vitals-write-probe"
PATIENCE_SECONDS = 2.0
# Entries of a folder that are looked at: it has one for each user.
ENTRIES = 200
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

NAMES = {folder: folder.replace("_", "-") for folder in FOLDERS}
_USER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FIRST_LABEL = "admin"  # what Immich calls the first user's folder in `library`

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NOT_FOR_US = (errno.EACCES, errno.EPERM)
_NO_LIST = (errno.ENODATA, errno.EOPNOTSUPP)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FolderLook:
    """What one folder answered. None is "not known": we may not look, or it met an error.

    `error` is the file system's own error on the way, such as "Input/output error". `inode` and `filesystem` (from
    statvfs, 0 where there is none) say which folder it is. `rights` are those of the folder and of its users' folders,
    `marker_rights` those of the marker. `nested`: Immich's folders lie in it once more.
    """

    responding: bool = True
    present: bool | None = None
    marker: bool | None = None
    nested: bool | None = None
    error: str = ""
    real: str = ""
    inode: int = 0
    filesystem: int = 0
    rights: tuple[Rights, ...] = ()
    marker_rights: Rights | None = None


SILENT = FolderLook(responding=False)


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder, what it answered, and what is mounted there as far as is known."""

    watched: WatchedPath
    look: FolderLook
    mount: Mount | None


@dataclass(frozen=True, slots=True)
class WriteProbe:
    """How writing one small file went. `ours`: we may not, which says nothing of Immich."""

    worked: bool
    problem: str = ""
    ours: bool = False


class MediaFolders:
    """Looks at the media folder and the six in it, each in its own flight.

    One that has hung once is not waited for again before its call has come back.
    """

    def __init__(
        self, watched: Iterable[WatchedPath], mountinfo: Path = MOUNTINFO, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._watched = tuple(dict.fromkeys(watched))
        self._mountinfo = mountinfo
        self._patience = patience
        self._flights: dict[WatchedPath, Flight[FolderLook]] = {item: Flight("folder") for item in self._watched}
        self._stuck: set[Future[FolderLook]] = set()
        self._writing: Flight[WriteProbe] = Flight("write-probe")

    def read(self, deadline: Deadline) -> dict[str, FolderFacts]:
        """All folders by role. Takes no longer than the patience, or the deadline."""
        patience = deadline.limit("look at Immich's folders", self._patience)
        futures = {item: flight.join_or_start(partial(look_into, item)) for item, flight in self._flights.items()}
        wait([future for future in futures.values() if future not in self._stuck], timeout=patience)
        self._stuck = {future for future in futures.values() if not future.done()}
        mounts = read_mounts(self._mountinfo)
        found = {}
        for item, future in futures.items():
            look = SILENT if future in self._stuck else future.result()
            mount = None if look.present is False else mount_of(look.real or str(item.path.absolute()), mounts)
            found[item.role] = FolderFacts(item, look, mount)
        return found

    def write_probe(self, deadline: Deadline) -> WriteProbe:
        """Write, sync, read back and remove one small file in the media folder, or in the first folder there is."""
        folder = next((item.path for item in self._watched if item.role == "media"), self._watched[0].path)
        future = self._writing.join_or_start(partial(write_and_remove, folder))
        wait([future], timeout=max(0.0, min(self._patience, deadline.remaining())))
        return future.result() if future.done() else WriteProbe(worked=False, problem="it hangs")


def look_into(item: WatchedPath) -> FolderLook:
    """Look into a folder; hangs as long as the file system below it does."""
    seen = _Seen(item.path)
    here = seen.ask(os.stat, "", missing=None)
    if here is None or not stat.S_ISDIR(here.st_mode):
        return FolderLook(present=None if seen.unknown else False, error=seen.error)
    filesystem = seen.ask(os.statvfs, "", missing=None)
    name = NAMES.get(item.role)
    marker = None if name is None else seen.exists(MARKER)
    own = seen.rights("")
    listed = [] if name is None else seen.directories("")
    users = [seen.rights(each) for each in listed if _USER_ID.fullmatch(each) or each == _FIRST_LABEL]
    return FolderLook(
        present=True,
        marker=marker,
        nested=None if name in (None, "backups") else _nested(seen, name or "", listed),
        real=os.path.realpath(item.path),
        inode=here.st_ino,
        filesystem=filesystem.f_fsid if filesystem else 0,
        rights=tuple(rights for rights in (own, *users) if rights),
        marker_rights=seen.rights(MARKER) if marker else None,
        error=seen.error,
    )


class _Seen:
    """Questions about one folder, and the first error of its file system that they met."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.error = ""
        self.unknown = False

    def ask(self, call: Callable[[Path], T], name: str, missing: T) -> T:
        """The answer, or `missing` when there is none; `unknown` is then set unless there is no such file."""
        self.unknown = False
        try:
            return call(self._folder / name)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                self.unknown = True
                if error.errno not in _NOT_FOR_US:
                    self.error = self.error or os.strerror(error.errno or 0)
            return missing

    def exists(self, name: str) -> bool | None:
        """Whether something of this name is in the folder."""
        found = self.ask(os.stat, name, missing=None)
        return None if self.unknown else found is not None

    def directories(self, name: str) -> list[str]:
        """The names of real directories in it, of the first entries there are; none when we may not list it."""
        return self.ask(_directories, name, missing=[])

    def rights(self, name: str) -> Rights | None:
        found = self.ask(os.stat, name, missing=None)
        if found is None:
            return None
        acl, hidden = _acl(self._folder / name)
        return Rights(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, acl, hidden)


def _directories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in islice(entries, ENTRIES) if entry.is_dir(follow_symlinks=False)]


def _has_entries(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(True for _ in entries)


def _acl(path: Path) -> tuple[bytes, bool]:
    """The access list, and whether there is one that we cannot read."""
    try:
        return os.getxattr(path, "system.posix_acl_access"), False
    except OSError as error:
        if error.errno not in _NO_LIST:
            return b"", True
    for other in ("system.nfs4_acl", "system.nfs4_acl_xdr"):
        try:
            os.getxattr(path, other)
        except OSError as error:
            if error.errno in _NO_LIST:
                continue
        return b"", True
    return b"", False


def _nested(seen: _Seen, name: str, listed: list[str]) -> bool | None:
    """Whether a restore went one level too deep: `upload/upload`, or the whole tree as `upload/library`, ...

    Immich itself keeps nothing but the folders of users there. An empty directory is what a mend or a mount leaves.
    In `library` a user's label may be one of these names: there it takes a sign that it is no user's.
    """
    suspects = []
    for other in NAMES.values():
        found = seen.ask(os.lstat, other, missing=None)
        if seen.unknown:
            return None
        if found is not None and stat.S_ISDIR(found.st_mode):
            suspects.append(other)
    if name == "library":
        return len(suspects) > 1 or any(_is_no_user(seen, each, listed) for each in suspects)
    return any(_holds_something(seen, each) for each in suspects)


def _holds_something(seen: _Seen, name: str) -> bool:
    """True also for one that we may not list."""
    return seen.ask(_has_entries, name, missing=True)


def _is_no_user(seen: _Seen, name: str, users: list[str]) -> bool:
    """Whether `library/<name>` holds a marker of Immich, the folder of a user's id, or the same users as `library`."""
    inside = seen.directories(name)
    known = set(users) - set(NAMES.values())
    return bool(seen.exists(f"{name}/{MARKER}")) or any(_USER_ID.fullmatch(each) or each in known for each in inside)


def write_and_remove(folder: Path) -> WriteProbe:
    """Write one small file, sync, read it back, remove it; hangs as long as the file system below it does."""
    path = folder / PROBE_NAME
    content = os.urandom(64)
    try:
        path.unlink(missing_ok=True)  # of one that was cut short
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            same = path.read_bytes() == content
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        ours = error.errno in (*_NOT_FOR_US, errno.EROFS, *_NOT_THERE)
        return WriteProbe(worked=False, problem=os.strerror(error.errno or 0), ours=ours)
    return WriteProbe(worked=same, problem="" if same else "what was read is not what was written")


# Their inode numbers are made up as they go, and change when the kernel forgets a file.
_MADE_UP_INODES = frozenset(("fuse", "fuseblk", "osxfs", "grpcfuse", "fakeowner"))


@dataclass(frozen=True, slots=True)
class Identity:
    """Which folder it is. An inode of 0 is not known. `boot` is the machine's start in which it was seen."""

    inode: int
    filesystem: int
    fstype: str
    source: str
    boot: str

    @classmethod
    def of(cls, facts: FolderFacts, boot: str) -> "Identity | None":
        """None for a folder that is not there or does not answer: nothing is known of it then."""
        look, mount = facts.look, facts.mount
        if not look.present or not look.inode:
            return None
        fstype = mount.fstype if mount else ""
        made_up = fstype in _MADE_UP_INODES or fstype.startswith("fuse.")
        if mount and fstype in ("cifs", "smb3"):
            made_up = "serverino" not in mount.options
        return cls(
            inode=0 if made_up else look.inode,
            filesystem=look.filesystem,
            fstype=fstype,
            source=mount.source if mount else "",
            boot=boot,
        )

    @classmethod
    def read(cls, kept: object) -> "Identity | None":
        """From what `State` kept; None when it is not one."""
        if not isinstance(kept, dict):
            return None
        numbers = [kept.get(name) for name in ("inode", "filesystem")]
        texts = [kept.get(name) for name in ("fstype", "source", "boot")]
        if not all(isinstance(each, int) for each in numbers) or not all(isinstance(each, str) for each in texts):
            return None
        return cls(int(kept["inode"]), int(kept["filesystem"]), *(str(each) for each in texts))

    def kept(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def same_folder(self, other: "Identity") -> bool:
        return (not self.inode or not other.inode or self.inode == other.inode) and self.same_filesystem(other)

    def same_filesystem(self, other: "Identity") -> bool:
        """Whether both are on one file system, be it mounted anew or, after a boot, under another device's name."""
        if not (self.fstype and other.fstype):
            return self.filesystem == other.filesystem
        if self.fstype != other.fstype:
            return False
        if not (self.filesystem and other.filesystem):
            return self.source == other.source
        # The number of XFS and others follows the device's name, which a boot may change.
        renamed = self.boot != other.boot and self.source.startswith("/dev/") and other.source.startswith("/dev/")
        return self.filesystem == other.filesystem or renamed


@dataclass
class Changes:
    """How often the media folder, or the file system of one of the six, was another one than at the look before."""

    count: int = 0
    at: float | None = None
    seen: dict[str, Identity] = field(default_factory=dict)

    @classmethod
    def read(cls, kept: Mapping[str, object]) -> "Changes":
        count, at, seen = kept.get("count"), kept.get("at"), kept.get("seen")
        known = {
            role: identity
            for role, each in (seen.items() if isinstance(seen, dict) else ())
            if (identity := Identity.read(each))
        }
        return cls(
            count=count if isinstance(count, int) and count >= 0 else 0,
            at=float(at) if isinstance(at, int | float) else None,
            seen=known,
        )

    def kept(self) -> dict[str, object]:
        return {
            "count": self.count,
            "at": self.at,
            "seen": {role: identity.kept() for role, identity in self.seen.items()},
        }

    def note(self, found: Mapping[str, Identity | None], now: float) -> bool:
        """Compare with what was seen before; True when there is something new to keep.

        What is gone keeps its place: a disk that comes back is the same. One change of the root counts once, however
        many folders change with it.
        """
        changed = [role for role, new in found.items() if new and self._is_another(role, new)]
        fresh = {role: new for role, new in found.items() if new and self.seen.get(role) != new}
        if changed:
            self.count += 1
            self.at = now
        self.seen.update(fresh)
        return bool(fresh)

    def _is_another(self, role: str, new: Identity) -> bool:
        old = self.seen.get(role)
        if old is None:
            return False
        # Immich's own folders may be made anew by people; only another file system is another disk.
        return not (old.same_folder(new) if role == "media" else old.same_filesystem(new))


def boot_id(path: Path = BOOT_ID) -> str:
    """The machine's start, as the kernel names it; empty when it does not tell."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
