"""A file system that shows a folder and can be made slow, closed, broken or dead, over FUSE's own protocol.

It speaks to /dev/fuse itself, since the libraries hide when a question is taken and when it is answered. The numbers
of questions and the layouts of answers are those of the kernel's header linux/fuse.h.
"""

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from immich_vitals.demo.fault import may_mount


class Ask(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    BATCH_FORGET = 42


UNANSWERED = (Ask.FORGET, Ask.BATCH_FORGET, Ask.INTERRUPT)
_QUESTION = struct.Struct("<IIQQIIII")
_LARGEST_QUESTION = 1 << 20
_ROOT = 1
_DETACH = 2  # MNT_DETACH


def why_not() -> str | None:
    """Why no such file system can be mounted here, or None when one can."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    return None if os.geteuid() == 0 and may_mount() else "only root may mount, and in a container not even it"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a file system; as it is made, nothing.

    `error` is the answer to every question, `broken_lists` that to a list after its first part. `pause` are seconds
    before each answer. `hangs`: no question is taken. `more` is how many files each list has beside the real ones.
    """

    error: int = 0
    broken_lists: int = 0
    pause: float = 0.0
    hangs: bool = False
    more: int = 0


class SlowFolder:
    """`folder`, to be looked at through `point`. Reads only; one question is answered after the other.

    `listed` counts the names that were given in lists.
    """

    def __init__(self, folder: Path, point: Path) -> None:
        self._point = point
        self._trouble = Trouble()
        self._nodes = {_ROOT: folder}
        self._numbers = {folder: _ROOT}
        self._open: dict[int, int] = {}
        self._lists: dict[int, list[str]] = {}
        self._ended = threading.Event()
        self._changed, self._change = os.pipe()
        self.listed = 0
        point.mkdir(exist_ok=True)
        self._kernel = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._kernel},rootmode=40000,user_id=0,group_id=0,allow_other"
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.mount(b"slow", os.fsencode(point), b"fuse.slow", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def in_trouble(self, trouble: Trouble) -> Iterator[None]:
        self._set(trouble)
        try:
            yield
        finally:
            self._set(Trouble())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._libc.umount2(os.fsencode(self._point), _DETACH)
        self._ended.set()
        self._set(Trouble())
        self._thread.join(10)
        for each in (self._kernel, self._changed, self._change, *self._open.values()):
            os.close(each)

    def _set(self, trouble: Trouble) -> None:
        self._trouble = trouble
        os.write(self._change, b".")

    def _serve(self) -> None:
        while not self._ended.is_set():
            wanted = [self._changed] if self._trouble.hangs else [self._changed, self._kernel]
            ready, _, _ = select.select(wanted, [], [])
            if self._changed in ready:
                os.read(self._changed, 1)
            elif self._kernel in ready:
                try:
                    question = os.read(self._kernel, _LARGEST_QUESTION)
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        return
                    if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # taken back meanwhile
                        raise
                    continue
                self._answer(question)

    def _answer(self, question: bytes) -> None:
        _, asked, unique, node, *_ = _QUESTION.unpack_from(question)
        if asked in UNANSWERED:
            return
        trouble, body, problem = self._trouble, b"", 0
        if trouble.pause:
            self._ended.wait(trouble.pause)
        if trouble.error and asked not in (Ask.INIT, Ask.RELEASE, Ask.RELEASEDIR):
            problem = trouble.error
        else:
            try:
                body = self._done(asked, node, question[_QUESTION.size :], trouble)
            except OSError as error:
                problem = error.errno or errno.EIO
        with contextlib.suppress(FileNotFoundError):  # whoever asked has gone
            os.write(self._kernel, struct.pack("<IiQ", 16 + len(body), -problem, unique) + body)

    def _done(self, asked: int, node: int, rest: bytes, trouble: Trouble) -> bytes:
        """The answer. Raises `OSError`."""
        if asked == Ask.INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 1, 0, 0)
        path = self._nodes[node]
        match asked:
            case Ask.LOOKUP:
                path = path / os.fsdecode(rest.rstrip(b"\0"))
                attributes = _attributes(path)
                number = self._numbers.setdefault(path, len(self._numbers) + 1)
                self._nodes[number] = path
                return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + attributes
            case Ask.GETATTR:
                return struct.pack("<QII", 0, 0, 0) + _attributes(path)
            case Ask.READLINK:
                return os.fsencode(path.readlink())
            case Ask.STATFS:
                room = os.statvfs(path)
                return struct.pack(
                    "<QQQQQIII28x", room.f_blocks, room.f_bfree, room.f_bavail, room.f_files, room.f_ffree,
                    room.f_bsize, room.f_namemax, room.f_frsize,
                )  # fmt: skip
            case Ask.OPEN:
                handle = os.open(path, os.O_RDONLY)
                self._open[handle] = handle
                return struct.pack("<QII", handle, 0, 0)
            case Ask.READ:
                handle, offset, size = struct.unpack_from("<QQI", rest)
                return os.pread(handle, size, offset)
            case Ask.RELEASE:
                os.close(self._open.pop(struct.unpack_from("<Q", rest)[0]))
                return b""
            case Ask.FLUSH:
                return b""
            case Ask.OPENDIR:
                self._lists[node] = [".", "..", *sorted(each.name for each in path.iterdir())]
                self._lists[node] += [f"more-{number:07}" for number in range(trouble.more)]
                return struct.pack("<QII", node, 0, 0)
            case Ask.READDIR:
                _, offset, size = struct.unpack_from("<QQI", rest)
                if offset and trouble.broken_lists:
                    raise OSError(trouble.broken_lists, "broken")
                return self._part(self._lists[node], path, offset, size if not trouble.broken_lists else 64)
            case Ask.RELEASEDIR:
                return b""
        raise OSError(errno.ENOSYS, "not known")

    def _part(self, names: list[str], path: Path, offset: int, size: int) -> bytes:
        """The entries of a list from `offset` that have room in `size` bytes."""
        found = bytearray()
        for at, name in enumerate(names[offset : offset + size // 24], offset + 1):
            encoded = os.fsencode(name)
            kind = stat.S_IFMT((path / name).lstat().st_mode) >> 12 if not name.startswith("more-") else 8
            entry = struct.pack("<QQII", at + 1000, at, len(encoded), kind) + encoded
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
            self.listed += 1
        return bytes(found)


def _attributes(path: Path) -> bytes:
    found = path.lstat()
    moments = [int(moment) for moment in (found.st_atime, found.st_mtime, found.st_ctime)]
    return struct.pack(
        "<QQQQQQIIIIIIIIII", found.st_ino, found.st_size, found.st_blocks, *moments, 0, 0, 0, found.st_mode,
        found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, 4096, 0,
    )  # fmt: skip
