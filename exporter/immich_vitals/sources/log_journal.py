"""Units of the systemd journal, followed by `journalctl`, one process for each.

It is read in the export format: each field is `NAME=text` on a line or, where the text is binary or has several lines,
the name on a line, its length in eight bytes, and the text; an empty line ends an entry.
"""

import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial
from typing import IO

from immich_vitals.collector import CollectorFailure, Deadline, Remark, Unavailable
from immich_vitals.flight import Flight
from immich_vitals.signatures import LONGEST_LINE
from immich_vitals.sources.log_lines import PIECE, Batch, Budget, Followed, Intake

KIND = "unit"
JOURNALCTL = ("journalctl", "--merge", "--no-pager", "--quiet", "--output=export", "--output-fields=MESSAGE")
AGAIN_SECONDS, AGAIN_LONGEST = 2.0, 60.0
STOP_SECONDS = 1.0
END_SECONDS = 5.0  # those who follow notice sooner that they are to end
# Of a field that is longer, only the beginning is kept: a message may have several lines.
LONGEST_FIELD = 256 * 1024
LONGEST_MOMENT = 20  # digits that a number of 64 bits has
_WANTED = (b"MESSAGE", b"__CURSOR", b"__REALTIME_TIMESTAMP")


class Export:
    """Lines out of what `journalctl --output=export` writes. `cursor` and `moment` are of the last whole entry."""

    def __init__(self) -> None:
        self.cursor = ""
        self.moment = 0.0
        self._rest = b""
        self._skip = 0
        self._entry: dict[bytes, bytes] = {}

    def feed(self, piece: bytes) -> tuple[list[bytes], list[float]]:
        """The lines of the entries that end in this piece, and their moments. Raises `Unavailable` for nonsense."""
        lines: list[bytes] = []
        moments: list[float] = []
        if self._skip:
            piece, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
        data = self._rest + piece if self._rest else piece
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            if end == at:
                self._ended(lines, moments)
                at = end + 1
                continue
            name, equals, value = data[at:end].partition(b"=")
            after = end + 1
            if not equals:
                if len(data) - after < 8:
                    break
                size = int.from_bytes(data[after : after + 8], "little")
                text, after = after + 8, after + 8 + size + 1
                if after > len(data):
                    if size <= LONGEST_FIELD or len(data) - text <= LONGEST_FIELD:
                        break
                    self._skip = after - len(data)
                    after = len(data)
                value = data[text : after - (0 if self._skip else 1)][:LONGEST_FIELD]
            if name in _WANTED:
                self._entry[name] = value
            at = after
        self._rest = data[at:]
        if len(self._rest) > 4 * LONGEST_FIELD:
            raise Unavailable("journalctl writes something else than a journal", mend="look what `journalctl` is here")
        return lines, moments

    def _ended(self, lines: list[bytes], moments: list[float]) -> None:
        entry, self._entry = self._entry, {}
        cursor, told = entry.get(b"__CURSOR"), entry.get(b"__REALTIME_TIMESTAMP", b"")
        if cursor is None or not told.isdigit() or len(told) > LONGEST_MOMENT:
            return
        self.cursor, self.moment = cursor.decode("ascii", "replace"), int(told) / 1e6
        if b"MESSAGE" in entry:
            found = [line[:LONGEST_LINE] for line in entry[b"MESSAGE"].removesuffix(b"\n").split(b"\n")]
            lines += found
            moments += [self.moment] * len(found)


class _Unit:
    """One unit's log, over as many processes of journalctl as it takes."""

    def __init__(self, component: str, unit: str, intake: Intake, budget: Budget, command: Sequence[str]) -> None:
        self.component = component
        self.unit = unit
        self.up = False
        self.problem: Remark | None = None
        self._command = (*command, f"--unit={unit}")
        self._budget = budget
        key = key_of(component, unit)
        kept = intake.place(key) or {}
        self._take = intake.open(key, component)
        self._cursor = cursor if isinstance(cursor := kept.get("cursor"), str) else ""
        self._since = intake.since
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Find out whether journalctl answers."""
        with tempfile.TemporaryFile() as said:
            try:
                done = subprocess.run(
                    [*self._command, "--lines=0"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
                )
            except OSError as error:
                self._missing(error)
                return
            if done.returncode != 0:
                self._lost(said)
            else:
                self.up, self.problem = True, None

    def run(self, stop: Callable[[], bool]) -> None:
        pause = AGAIN_SECONDS
        while not stop():
            began = time.monotonic()
            self._follow(stop)
            pause = AGAIN_SECONDS if time.monotonic() - began > AGAIN_LONGEST else min(2 * pause, AGAIN_LONGEST)
            until = time.monotonic() + pause
            while not stop() and time.monotonic() < until:
                time.sleep(STOP_SECONDS)

    def end(self) -> None:
        """End the process that is read, so that it does not outlive this one."""
        if self._process is not None:
            self._process.kill()

    def _follow(self, stop: Callable[[], bool]) -> None:
        """One process, from its start to its end."""
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    [*self._command, "--follow", *self._from()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=said,
                )  # fmt: skip
            except OSError as error:
                self._missing(error)
                return
            self._process = process
            assert process.stdout is not None
            began = time.time()
            try:
                self.up, self.problem = True, None
                came = self._read(process.stdout, stop)
            except CollectorFailure as failure:
                self.up, self.problem = False, Remark(failure.message, failure.mend)
                return
            finally:
                process.kill()
                process.stdout.close()
                process.wait()
            if not stop():
                self._lost(said)
                if self._cursor and not came:
                    self._cursor, self._since = "", began  # a journal that is gone, and its cursors with it

    def _from(self) -> list[str]:
        if self._cursor:
            return ["--no-tail", f"--after-cursor={self._cursor}"]
        if self._since is not None:
            return ["--no-tail", f"--since=@{self._since:.6f}"]
        return ["--lines=0"]

    def _read(self, output: IO[bytes], stop: Callable[[], bool]) -> bool:
        """Whether there was anything."""
        export = Export()
        came = False
        if not self._cursor and self._since is None:
            self._since = time.time()
        ready = select.poll()  # select() takes no descriptor above 1023
        ready.register(output, select.POLLIN)
        while not stop():
            if not ready.poll(STOP_SECONDS * 1000):
                continue
            used = time.thread_time()
            piece = output.read1(PIECE)  # type: ignore[attr-defined]
            if not piece:
                break
            lines, moments = export.feed(piece)
            if export.cursor:
                came = True
                self._cursor = export.cursor
                self._take(Batch(lines, moments, {"cursor": export.cursor}))
            self._budget.spend(time.thread_time() - used, stop)
        return came

    def _missing(self, error: OSError) -> None:
        self.up = False
        self.problem = Remark(
            f"journalctl cannot be run to follow {self.unit}: {error.strerror}",
            "install systemd's journalctl beside the exporter, or have the log written to a file and name that in"
            " IMMICH_VITALS_LOG_FILES",
        )

    def _lost(self, said: IO[bytes]) -> None:
        said.seek(0)
        words = " ".join(said.read(300).decode("utf-8", "replace").split())
        self.up = False
        self.problem = Remark(
            f"journalctl ended while it followed {self.unit}{': ' if words else ''}{words}",
            "let the user of this process read the journal (group systemd-journal), and look whether"
            f" `journalctl --unit={self.unit}` answers",
        )


def key_of(component: str, unit: str) -> str:
    return f"{KIND}:{component}={unit}"


class JournalLogs:
    """Follows units of the journal, by component, each in a thread of its own."""

    def __init__(
        self, units: Mapping[str, str], intake: Intake, budget: Budget, *, command: Sequence[str] = JOURNALCTL
    ) -> None:
        self.failure: CollectorFailure | None = None
        intake.retain(KIND, [key_of(*each) for each in units.items()])
        self._units = [_Unit(component, unit, intake, budget, command) for component, unit in units.items()]
        self._flights = [(unit, Flight[None]("log-look"), Flight[None]("log-unit")) for unit in self._units]

    def look(self, deadline: Deadline) -> None:
        """Find out what can be followed, without following it."""
        looks = [flight.join_or_start(unit.look) for unit, flight, _ in self._flights]
        wait(looks, timeout=max(0.0, deadline.remaining()))

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow until `stop()`."""
        while not stop():
            runs = [flight.join_or_start(partial(unit.run, stop)) for unit, _, flight in self._flights]
            for run in wait(runs, timeout=END_SECONDS, return_when=FIRST_COMPLETED).done:
                run.result()

    def followed(self) -> Sequence[Followed]:
        return [Followed(unit.component, unit.up, unit.problem) for unit in self._units]

    def close(self) -> None:
        for unit in self._units:
            unit.end()
