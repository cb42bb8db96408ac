"""What a process changes on disk, as the kernel tells it (fanotify), without a word from the process."""

import ctypes
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

CHANGES = {
    "modified": 0x2, "attributes": 0x4, "closed after writing": 0x8, "moved from": 0x40, "moved to": 0x80,
    "created": 0x100, "deleted": 0x200,
}  # fmt: skip
"""As in <linux/fanotify.h>. What was open for writing is told when it is closed, whether or not anybody wrote."""
_LOST = 0x4000  # events that the queue had no room for
_FOLDERS_TOO = 0x40000000
_INIT = 0x1 | 0x2 | 0x10 | 0x20 | 0xC00  # close on exec, never block, no limits; tell folder and name
_ADD, _WHOLE_FILE_SYSTEM, _HERE = 0x1, 0x100, -100
_EVENT, _INFO = struct.Struct("=IBBHQii"), struct.Struct("=BBH8sIi")


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a file or folder."""

    what: str
    path: str


class Watch:
    """Every change by any process on the file systems of these paths, from the beginning of the block on.

    Raises `OSError` where the kernel (before 5.9) or our user cannot watch.
    """

    def __init__(self, *paths: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._told: set[tuple[int, int, bytes, bytes, bytes]] = set()
        self._done = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._folders = {_identity(path): os.open(path, os.O_RDONLY) for path in paths}
        self._queue = -1
        self._paths = paths

    def __enter__(self) -> Self:
        self._queue = self._checked(self._libc.fanotify_init(_INIT, os.O_RDONLY | os.O_LARGEFILE))
        mask = ctypes.c_uint64(_FOLDERS_TOO | sum(CHANGES.values()))
        for path in self._paths:
            self._checked(
                self._libc.fanotify_mark(self._queue, _ADD | _WHOLE_FILE_SYSTEM, mask, _HERE, os.fsencode(path))
            )
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._reader.join()
        for descriptor in (self._queue, *self._folders.values()):
            os.close(descriptor)

    def by(self, pid: int) -> set[Change]:
        """All that this process has changed so far. Waits until what was done before has been told."""
        self._wait_for_now()
        return {
            Change(what, self._path(file_system, handle, name))
            for of, mask, file_system, handle, name in list(self._told)
            for what, bit in CHANGES.items()
            if of == pid and mask & bit
        }

    def _wait_for_now(self) -> None:
        """Events are told in order: one of our own comes after all that were before it."""
        ours = self._paths[0] / f"watch-{os.urandom(8).hex()}"
        ours.touch()
        ours.unlink()
        name = os.fsencode(ours.name)
        while not any(mask & CHANGES["deleted"] and name == last for _, mask, _, _, last in list(self._told)):
            self._done.wait(0.02)

    def _read(self) -> None:
        while not self._done.wait(0.02):
            try:
                while events := os.read(self._queue, 1 << 18):
                    self._take(events)
            except BlockingIOError:
                continue

    def _take(self, events: bytes) -> None:
        while events:
            length, _, _, head, mask, _, pid = _EVENT.unpack_from(events)
            event, events = events[:length], events[length:]
            assert not mask & _LOST
            if len(event) > head:
                _, _, _, file_system, size, _ = _INFO.unpack_from(event, head)
                start = head + _INFO.size - 8  # where the handle of the folder begins
                end = start + 8 + size
                self._told.add((pid, mask, file_system, event[start:end], event[end:].split(b"\0", 1)[0]))

    def _path(self, file_system: bytes, handle: bytes, name: bytes) -> str:
        folder = self._libc.open_by_handle_at(self._folders[file_system], handle, os.O_PATH)
        if folder < 0:
            return f"(a folder that is gone)/{os.fsdecode(name)}"
        try:
            return str(Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(name))
        finally:
            os.close(folder)

    def _checked(self, returned: int) -> int:
        if returned < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return returned


def _identity(path: Path) -> bytes:
    """The file system's number, as events have it."""
    return struct.pack("=Q", os.statvfs(path).f_fsid)
