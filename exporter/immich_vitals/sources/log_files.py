"""Log files, followed over each way in which they are rotated: renamed, copied and cut short, removed and made anew.

A file may lie on a dead mount, where every call hangs for ever, so each is read in a thread of its own. It is looked at
once a second: change notifications do not cross network file systems and containers.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from immich_vitals.collector import CollectorFailure, Deadline, Remark
from immich_vitals.flight import Flight
from immich_vitals.sources.log_lines import PIECE, Batch, Budget, Followed, Intake, Place, Splitter

KIND = "file"
LOOK_SECONDS = 1.0
END_SECONDS = 5.0  # those who follow notice sooner that they are to end
# A program goes on writing to a file that was renamed until it is told to open its log anew.
DRAIN_LOOKS = 30
HEAD = 256  # bytes at the beginning of a file by which it is known again


@dataclass(frozen=True, slots=True)
class _Left:
    """Where a file was left. `head` is of its first `head_size` bytes."""

    device: int
    inode: int
    offset: int
    skipping: bool
    head: str
    head_size: int

    @classmethod
    def of(cls, place: Place | None) -> "_Left | None":
        """From what was kept, or None when it is not ours."""
        told = place or {}
        numbers = [told.get(key) for key in ("device", "inode", "offset", "head_size")]
        whole = [number for number in numbers if isinstance(number, int) and number >= 0]
        head = told.get("head")
        if len(whole) != 4 or not isinstance(head, str):
            return None
        return cls(whole[0], whole[1], whole[2], told.get("skipping") is True, head, whole[3])


class _File:
    """One open file, which may no longer have the name it was opened by."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._handle)
            raise OSError(0, "it is not a plain file")
        self.identity = (found.st_dev, found.st_ino)
        self._splitter = Splitter()
        self._offset = 0
        self._head = b""

    def go_to(self, left: _Left) -> bool:
        """Go on where it was left, unless what is there now is another file."""
        head = os.pread(self._handle, min(left.head_size, HEAD), 0)
        size = os.fstat(self._handle).st_size
        if self.identity != (left.device, left.inode) or size < left.offset or _digest(head) != left.head:
            return False
        self._offset, self._head = left.offset, head
        self._splitter = Splitter(left.skipping)
        return True

    def go_to_end(self) -> None:
        """Leave out what is there already, up to the end of its last whole line."""
        self._head = os.pread(self._handle, HEAD, 0)
        size = os.fstat(self._handle).st_size
        last = os.pread(self._handle, PIECE, max(0, size - PIECE))
        self._offset = size - len(last) + last.rfind(b"\n") + 1 if b"\n" in last else size

    def lines(self) -> list[bytes] | None:
        """The next lines, or None when there is nothing more to read."""
        piece = os.pread(self._handle, PIECE, self._offset)
        if not piece:
            return None
        if len(self._head) < HEAD:
            self._head = os.pread(self._handle, HEAD, 0)
        self._offset += len(piece)
        return self._splitter.lines(piece)

    def begin_anew_if_cut(self) -> None:
        """Go to the beginning when it was cut short, even if it has grown beyond where we were since."""
        cut = os.fstat(self._handle).st_size < self._offset
        if cut or os.pread(self._handle, len(self._head), 0) != self._head:
            self._offset, self._head, self._splitter = 0, b"", Splitter()

    @property
    def place(self) -> Place:
        kept = 0 if self._splitter.skipping else self._splitter.kept
        return {
            "device": self.identity[0],
            "inode": self.identity[1],
            "offset": self._offset - kept,
            "skipping": self._splitter.skipping,
            "head": _digest(self._head),
            "head_size": len(self._head),
        }

    def close(self) -> None:
        os.close(self._handle)


def _digest(head: bytes) -> str:
    """Of the first bytes of a log, which are not to be kept themselves."""
    return hashlib.blake2b(head, digest_size=16).hexdigest()


class _Log:
    """One log by its path, over all files that bear its name one after the other."""

    def __init__(self, component: str, path: Path, intake: Intake, budget: Budget, look_seconds: float) -> None:
        self.component = component
        self.path = path
        self.up = False
        self.problem: Remark | None = None
        self._budget = budget
        self._look_seconds = look_seconds
        key = key_of(component, path)
        self._left = _lefts(intake.place(key))
        self._begun = bool(self._left) or intake.since is not None
        self._take = intake.open(key, component)
        self._file: _File | None = None
        self._older: list[tuple[_File, int]] = []

    def look(self) -> None:
        """Find out whether it can be read."""
        try:
            _File(self.path).close()
        except OSError as error:
            self._lost(error)
        else:
            self.up, self.problem = True, None

    def run(self, stop: Callable[[], bool]) -> None:
        try:
            while not stop():
                try:
                    self._step(stop)
                except OSError as error:
                    self._lost(error)
                    self._close()
                time.sleep(self._look_seconds)
        finally:
            self._close()

    def _step(self, stop: Callable[[], bool]) -> None:
        """Read all that is there now. Raises `OSError`."""
        if self._file is not None:
            self._file.begin_anew_if_cut()
            self._drain(self._file, stop)
        self._drain_older(stop)
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._begun = True  # when it comes, all of it is new
            if self._file is not None:
                return  # between being renamed and made anew
            raise
        if self._file is None or self._file.identity != (found.st_dev, found.st_ino):
            self._turn_to(_File(self.path), stop)
        self.up, self.problem = True, None

    def _turn_to(self, found: _File, stop: Callable[[], bool]) -> None:
        if self._file is not None:
            self._drain(self._file, stop)
            self._older.append((self._file, DRAIN_LOOKS))
        left, self._left = self._left, []
        known = next((each for each in left if found.go_to(each)), None)
        self._file = found
        self._older += self._renamed([each for each in left if each is not known])
        if known is None and not self._begun:
            found.go_to_end()
        self._begun = True
        self._drain_older(stop)
        self._drain(found, stop)

    def _renamed(self, left: Sequence[_Left]) -> Iterator[tuple[_File, int]]:
        """The files that were renamed while nobody followed them."""
        wanted = {(each.device, each.inode): each for each in left}
        for path in _siblings(self.path) if wanted else ():
            try:
                found = path.stat()
                file = _File(path) if (found.st_dev, found.st_ino) in wanted else None
            except OSError:
                continue
            if file is not None and file.go_to(wanted.pop(file.identity)):
                yield file, DRAIN_LOOKS
            elif file is not None:
                file.close()

    def _drain(self, file: _File, stop: Callable[[], bool]) -> None:
        while not stop():
            used = time.thread_time()
            lines = file.lines()
            if lines is None:
                return
            self._take(Batch(lines, None, self._place()))
            self._budget.spend(time.thread_time() - used, stop)

    def _drain_older(self, stop: Callable[[], bool]) -> None:
        """Read on in files that were renamed, until nobody writes to them any more."""
        for file, _ in self._older:
            self._drain(file, stop)
        for file, looks in self._older:
            if looks <= 0:
                file.close()
        self._older = [(file, looks - 1) for file, looks in self._older if looks > 0]

    def _place(self) -> Place:
        return {"files": [file.place for file in self._open()]}

    def _open(self) -> list[_File]:
        return [file for file, _ in self._older] + ([self._file] if self._file else [])

    def _lost(self, error: OSError) -> None:
        setting = "IMMICH_VITALS_LOG_FILES"
        missing = isinstance(error, FileNotFoundError)
        self.up = False
        self.problem = Remark(
            f"the log of {self.component}, {self.path}, {'is not there' if missing else 'cannot be read: '}"
            f"{'' if missing else error.strerror}",
            f"mount its folder into this container, or correct {setting}"
            if missing
            else f"let the user or group of this process read it and enter its folder, or correct {setting}",
        )

    def _close(self) -> None:
        if opened := self._open():
            self._left = _lefts(self._place())
            for file in opened:
                file.close()
        self._file, self._older = None, []


def key_of(component: str, path: Path) -> str:
    return f"{KIND}:{component}={path}"


def _lefts(place: Place | None) -> list[_Left]:
    files = (place or {}).get("files")
    found = [_Left.of(each) for each in files if isinstance(each, dict)] if isinstance(files, list) else []
    return [each for each in found if each is not None]


def _siblings(path: Path) -> Iterator[Path]:
    """The files beside one whose names begin with its own: `server.log.1`, `server.log-20261120`."""
    try:
        yield from sorted(each for each in path.parent.iterdir() if each.name.startswith(path.stem) and each != path)
    except OSError:
        return


class FileLogs:
    """Follows log files, by component, each in a thread of its own."""

    def __init__(
        self, files: Mapping[str, str], intake: Intake, budget: Budget, *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self.failure: CollectorFailure | None = None
        paths = {component: Path(path) for component, path in files.items()}
        intake.retain(KIND, [key_of(*each) for each in paths.items()])
        self._logs = [_Log(component, path, intake, budget, look_seconds) for component, path in paths.items()]
        self._flights = [(log, Flight[None]("log-look"), Flight[None]("log-file")) for log in self._logs]

    def look(self, deadline: Deadline) -> None:
        """Find out what can be followed, without following it; a file that hangs is not up."""
        looks = [flight.join_or_start(log.look) for log, flight, _ in self._flights]
        wait(looks, timeout=max(0.0, deadline.remaining()))

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow until `stop()`."""
        while not stop():
            runs = [flight.join_or_start(partial(log.run, stop)) for log, _, flight in self._flights]
            for run in wait(runs, timeout=END_SECONDS, return_when=FIRST_COMPLETED).done:
                run.result()

    def followed(self) -> Sequence[Followed]:
        return [Followed(log.component, log.up, log.problem) for log in self._logs]

    def close(self) -> None:
        """Nothing is kept open but by the threads that read."""
