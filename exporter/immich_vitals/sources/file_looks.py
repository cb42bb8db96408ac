"""Whether single files are there. Only asks for their size: no file is opened, so none is read, and none changes.

One thread looks. A mount that hangs holds that one; until it comes back, everybody is told that nothing answers.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar, cast

from immich_vitals.collector import TimedOut
from immich_vitals.flight import Flight
from immich_vitals.sources.media_map import Found

T = TypeVar("T")

OK, MISSING, EMPTY, UNREADABLE, UNMAPPED = "ok", "missing", "empty", "unreadable", "unmapped"
RESULTS = (OK, MISSING, EMPTY, UNREADABLE, UNMAPPED)
PATIENCE_SECONDS = 5.0
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


class Looker:
    """Looks at files in a thread of its own, one call at a time, whoever asks."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._flight: Flight[object] = Flight("files")
        self._turn = threading.Lock()
        self._last: Future[object] | None = None

    def another(self) -> "Looker":
        """One as patient as this, for a folder that may hang without holding what is asked of this one."""
        return Looker(self._patience)

    def alive(self, roots: Sequence[str]) -> Mapping[str, bool]:
        """For each folder, whether something is in it. Raises `TimedOut`."""
        return self._ask(lambda: {root: _has_something(root) for root in roots})

    def results(self, files: Sequence[Found | None], alive: Mapping[str, bool]) -> list[str]:
        """One of `RESULTS` for each file, None standing for one whose place is not known. Raises `TimedOut`."""
        return self._ask(lambda: [look_at(each, alive) for each in files])

    def device(self, path: str) -> int | None:
        """The number of the device that holds the path. Raises `TimedOut`."""
        return self._ask(lambda: _device(path))

    def _ask(self, call: Callable[[], T]) -> T:
        with self._turn:
            if self._last is None or self._last.done():
                self._last = self._flight.join_or_start(call)
                wait([self._last], timeout=self._patience)
                if self._last.done():
                    return cast(T, self._last.result())
            raise TimedOut(
                "the disk of the photos does not answer",
                mend="see whether its disk or file server is there: `dmesg`, `mount`, and `df` on the host",
            )


def look_at(file: Found | None, alive: Mapping[str, bool]) -> str:
    """What became of one file.

    `unmapped` is also a file below a folder that is not there for us, or empty: that is our own view, and the other
    collectors say what is wrong with the folder. `unreadable`: we may not enter a folder above it, or the file system
    reports an error; that says nothing about the file either, so no alert counts it as lost. A folder, a pipe or the
    like in its place is `missing`.
    """
    if file is None or not alive.get(file.root, False):
        return UNMAPPED
    try:
        found = Path(file.path).stat()
    except ValueError:  # a text that cannot be a path on this system
        return UNMAPPED
    except OSError as error:
        if error.errno not in _NOT_THERE:
            return UNREADABLE
        return UNMAPPED if _behind_a_link(file) else MISSING
    if not stat.S_ISREG(found.st_mode):
        return MISSING
    return OK if found.st_size else EMPTY


def _behind_a_link(file: Found) -> bool:
    """Whether a symbolic link on the way leads to where only the server's container has something."""
    path = Path(file.root)
    for part in Path(file.path).relative_to(file.root).parts:
        path /= part
        try:
            if stat.S_ISLNK(path.lstat().st_mode) and not path.exists():
                return True
        except OSError:
            return False
    return False


def _has_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except PermissionError:
        return True  # there, and not for us to list; a file in it may still be found
    except OSError:
        return False


def _device(path: str) -> int | None:
    try:
        return Path(path).stat().st_dev
    except OSError:
        return None


def chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """The items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
