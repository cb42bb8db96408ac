"""Units of the journal: the export format, and a real journald and journalctl of the tests' own."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.signatures import LONGEST_LINE
from immich_vitals.sources import log_journal
from immich_vitals.sources.log_journal import Export, JournalLogs, key_of
from immich_vitals.sources.log_lines import Batch, Budget, Place

JOURNALD = Path("/lib/systemd/systemd-journald")
UNIT = "immich-server.service"


class Intake:
    """Takes all lines, and keeps the last place of each unit."""

    def __init__(self, before: "Intake | None" = None) -> None:
        self.since = time.time() if before else None
        self.lines: list[bytes] = []
        self.moments: list[float] = []
        self.kept: dict[str, Place] = dict(before.kept) if before else {}

    def place(self, key: str) -> Place | None:
        return self.kept.get(key)

    def open(self, key: str, component: str) -> Callable[[Batch], None]:
        def take(batch: Batch) -> None:
            assert batch.moments is not None
            self.lines += batch.lines
            self.moments += batch.moments
            self.kept[key] = batch.place

        return take

    def retain(self, kind: str, keys: object) -> None:
        """All are kept."""


def entry(number: int, message: bytes | None) -> bytes:
    head = b"__CURSOR=c%d\n__REALTIME_TIMESTAMP=180000000000000%d\n_BOOT_ID=b\n" % (number, number)
    if message is None:
        return head + b"\n"
    if b"\n" in message or not message.isascii():
        return head + b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n\n"
    return head + b"MESSAGE=" + message + b"\n\n"


@pytest.mark.parametrize("size", [1, 3, 100, 100_000])
def test_export_format(size: int) -> None:
    """Text, binary messages, several lines in one, none at all: the same however the bytes are cut."""
    data = entry(1, b"one") + entry(2, b"two\nthree \xff\x00") + entry(3, None) + entry(4, b"") + entry(5, b"a=b")
    export = Export()
    found = [export.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert [line for lines, _ in found for line in lines] == [b"one", b"two", b"three \xff\x00", b"", b"a=b"]
    assert [moment for _, moments in found for moment in moments][-1] == 1_800_000_000.000005
    assert export.cursor == "c5"


def test_messages_of_any_length() -> None:
    """Of a message of gigabytes the beginning is kept, and what is no journal is refused."""
    export = Export()
    size = 3_000_000_000
    export.feed(entry(1, b"x")[:-11] + b"MESSAGE\n" + size.to_bytes(8, "little"))
    for _ in range(20):
        assert export.feed(b"y" * 100_000) == ([], [])
        assert len(export._rest) <= 2 * log_journal.LONGEST_FIELD
    export._skip = 0  # as if the rest had come
    assert export.feed(b"\n" + entry(2, b"next"))[0] == [b"y" * LONGEST_LINE, b"next"]
    with pytest.raises(Unavailable):
        for _ in range(100):
            Export.feed(export, b"z" * 100_000)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "No such file or directory"),
        (
            "echo no right to read >&2; exit 1",
            "journalctl ended while it followed immich-server.service: no right to read",
        ),
        ("head -c 3000000 /dev/zero; sleep 100", "journalctl writes something else than a journal"),
    ],
    ids=["missing", "refused", "garbage"],
)
def test_journalctl_that_does_not_do_its_work(tmp_path: Path, script: str | None, says: str) -> None:
    """The log is not up, and a person is told why; told to stop, it ends."""
    program = tmp_path / "journalctl"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        program.chmod(0o755)
    logs = JournalLogs({"server": UNIT}, Intake(), Budget(1.0), command=(str(program),))
    running = Running(logs)
    running.until(lambda: logs.followed()[0].problem is not None)
    (told,) = logs.followed()
    assert not told.up
    assert told.problem is not None
    assert says in told.problem.message
    running.stop()


class Running:
    """Follows in a thread until told to stop."""

    def __init__(self, logs: JournalLogs) -> None:
        self.logs = logs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: logs.run(self._stop.is_set), daemon=True)
        self._thread.start()

    def until(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not look():
            assert time.monotonic() < deadline, self.logs.followed()
            self._thread.join(0.02)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


class Journal:
    """A journald with a name space of its own."""

    def __init__(self) -> None:
        self.name = f"ivt{os.getpid()}"
        self._folder = Path("/run/systemd") / f"journal.{self.name}"
        self._folder.mkdir(parents=True)
        self._process = subprocess.Popen(
            [str(JOURNALD), self.name],
            env={"RUNTIME_DIRECTORY": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.command = tuple(
            word if word != "--merge" else f"--namespace={self.name}" for word in log_journal.JOURNALCTL
        )

    def say(self, message: bytes) -> None:
        """As a unit that is not this process: root may say so."""
        field = b"MESSAGE\n" + len(message).to_bytes(8, "little") + message
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            deadline = time.monotonic() + 20
            while True:
                try:
                    sock.connect(str(self._folder / "socket"))
                    break
                except OSError:
                    assert self._process.poll() is None, "journald ended"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            sock.send(field + b"\nOBJECT_SYSTEMD_UNIT=" + UNIT.encode() + b"\n")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)
        for root in (Path("/run/log/journal"), Path("/var/log/journal")):
            for folder in root.glob(f"*.{self.name}"):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def journal() -> Iterator[Journal]:
    if not JOURNALD.exists() or os.geteuid() != 0:
        pytest.skip("no journald here (apt-get install systemd), or not root")
    journal = Journal()
    yield journal
    journal.close()


def test_real_journal(journal: Journal) -> None:
    """From now on, each line once, binary and of several lines too; also over our own restart."""
    journal.say(b"old")
    intake = Intake()

    def follow(intake: Intake) -> Running:
        return Running(JournalLogs({"server": UNIT}, intake, Budget(1.0), command=journal.command))

    running = follow(intake)
    running.until(lambda: running.logs.followed()[0].up)
    # journalctl says nothing when it begins: what is said until it answers may be old.
    said = 0
    while not intake.lines:
        said += 1
        journal.say(b"knock %d" % said)
        running._thread.join(0.05)
    running.until(lambda: intake.lines[-1] == b"knock %d" % said)
    del intake.lines[:]
    journal.say(b"one")
    journal.say(b"two\nthree \xff\xfe")
    journal.say(b"x" * 100_000)
    running.until(lambda: len(intake.lines) == 4)
    assert intake.lines == [b"one", b"two", b"three \xff\xfe", b"x" * LONGEST_LINE]
    assert abs(intake.moments[-1] - time.time()) < 60
    running.stop()
    journal.say(b"meanwhile")
    later = Intake(intake)
    running = follow(later)
    running.until(lambda: bool(later.lines))
    journal.say(b"after")
    running.until(lambda: len(later.lines) == 2)
    assert later.lines == [b"meanwhile", b"after"]
    running.stop()
    # A cursor of a journal that is gone.
    lost = Intake(later)
    lost.kept[key_of("server", UNIT)] = {"cursor": "s=nonsense"}
    running = follow(lost)
    running.until(lambda: not running.logs.followed()[0].up or bool(lost.lines))
    running.stop()


def test_look(journal: Journal) -> None:
    """`check` tells whether journalctl answers, and reads nothing."""
    intake = Intake()
    logs = JournalLogs({"server": UNIT}, intake, Budget(1.0), command=journal.command)
    logs.look(Deadline.after(10.0))
    assert [(each.component, each.up) for each in logs.followed()] == [("server", True)]
    assert intake.lines == []
    logs.close()
