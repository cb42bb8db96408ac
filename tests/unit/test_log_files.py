"""Log files: each line once, however the file is rotated and whoever is restarted."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from immich_vitals.collector import Deadline
from immich_vitals.signatures import LONGEST_LINE
from immich_vitals.sources.log_files import DRAIN_LOOKS, FileLogs
from immich_vitals.sources.log_lines import Batch, Budget, Place


class Intake:
    """Takes all lines, and keeps the last place."""

    def __init__(self, before: "Intake | None" = None) -> None:
        self.since = 1.0 if before else None
        self.lines: list[bytes] = []
        self.kept: dict[str, Place] = dict(before.kept) if before else {}

    def place(self, key: str) -> Place | None:
        return self.kept.get(key)

    def open(self, key: str, component: str) -> Callable[[Batch], None]:
        def take(batch: Batch) -> None:
            assert batch.moments is None
            self.lines += batch.lines
            self.kept[key] = batch.place

        return take

    def retain(self, kind: str, keys: object) -> None:
        """All are kept."""


class Following:
    """The log `server.log` of a folder; `look` reads what is there now."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "server.log"
        self.intake = Intake()
        self._open()

    def _open(self) -> None:
        self.logs = FileLogs({"server": str(self.path)}, self.intake, Budget(1.0))
        self._log = self.logs._logs[0]

    def look(self) -> list[bytes]:
        """The lines that are new."""
        had = len(self.intake.lines)
        try:
            self._log._step(lambda: False)
        except OSError as error:
            self._log._lost(error)
            self._log._close()
        return self.intake.lines[had:]

    def restart(self, *, killed: bool = False) -> None:
        """A new process takes over what was kept."""
        if not killed:
            self._log._close()
        self.intake = Intake(self.intake)
        self._open()

    def say(self, *lines: str, end: str = "\n") -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines[:-1]) + lines[-1] + end)


@pytest.fixture
def following(tmp_path: Path) -> Following:
    following = Following(tmp_path)
    following.say("old")
    assert following.look() == []  # what was there before us is no news
    return following


def test_lines_as_they_come(following: Following) -> None:
    """Whole lines are read, and one without an end when it ends."""
    following.say("one", "two", "thr", end="")
    assert following.look() == [b"one", b"two"]
    assert following.look() == []
    following.say("ee")
    assert following.look() == [b"three"]


def test_begun_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """A line that is being written as we start is read as a whole."""
    following = Following(tmp_path)
    following.say("old", "ne", end="")
    assert following.look() == []
    following.say("w")
    assert following.look() == [b"new"]


def test_renamed(following: Following) -> None:
    """The rest of the old file is read before the new one, and the old one as long as a program writes to it."""
    with following.path.open("a", encoding="utf-8") as writer:
        following.say("one")
        assert following.look() == [b"one"]
        following.say("two")
        following.path.rename(following.path.with_name("server.log.1"))
        assert following.look() == [b"two"]
        writer.write("three\n")
        writer.flush()
        assert following.look() == [b"three"]
        following.say("five")
        writer.write("four\n")
        writer.flush()
        assert following.look() == [b"four", b"five"]
        writer.write("six\n")
        writer.flush()
        following.say("seven")
        assert sorted(following.look()) == [b"seven", b"six"]


def test_old_files_are_closed(following: Following) -> None:
    """After many rotations not more files are open than before."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        following.path.rename(following.path.with_name(f"server.log.{number}"))
        following.say("line")
        assert following.look() == [b"line"]
    for _ in range(DRAIN_LOOKS + 2):
        following.look()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_copied_and_cut_short(following: Following) -> None:
    """What is written after the cut is read from the beginning, be it shorter or longer than before."""
    for lines in (["one"], ["two", "a longer text than before", "and more"], ["three"]):
        following.say(*lines)
        assert following.look() == [line.encode() for line in lines]
        os.truncate(following.path, 0)
    following.say("a first line", "that is longer than all that was there before, without a look between")
    assert len(following.look()) == 2


def test_removed_and_made_anew(following: Following) -> None:
    """A new file is read from its beginning, also where the file system uses the same number for it again."""
    for number in range(5):
        following.path.unlink()
        assert following.look() == []
        following.say(f"line {number}", "and another")
        assert following.look() == [f"line {number}".encode(), b"and another"]


def test_missing_at_first(tmp_path: Path) -> None:
    """A file that comes after us is read from its beginning; until then a person is told, with the mend."""
    following = Following(tmp_path)
    assert following.look() == []
    (told,) = following.logs.followed()
    assert not told.up
    assert told.problem is not None
    assert told.problem.message == f"the log of server, {following.path}, is not there"
    assert "IMMICH_VITALS_LOG_FILES" in told.problem.mend
    following.say("one")
    assert following.look() == [b"one"]
    (told,) = following.logs.followed()
    assert (told.up, told.problem) == (True, None)


@pytest.mark.parametrize("killed", [False, True])
def test_own_restart(following: Following, *, killed: bool) -> None:
    """Over a restart each line counts once: those before, one half read, and those that came meanwhile."""
    following.say("one", "tw", end="")
    assert following.look() == [b"one"]
    following.restart(killed=killed)
    assert following.look() == []
    following.say("o", "three")
    assert following.look() == [b"two", b"three"]
    following.say("four")
    following.restart(killed=killed)
    assert following.look() == [b"four"]


def test_rotated_while_we_were_away(following: Following) -> None:
    """The rest of the file that was renamed is found beside the new one."""
    following.say("one")
    assert following.look() == [b"one"]
    following.say("two")
    following.restart()
    following.path.rename(following.path.with_name("server.log-20261120"))
    following.say("three")
    assert following.look() == [b"two", b"three"]
    following.restart()
    os.truncate(following.path, 0)
    following.say("a new beginning, longer than three")
    assert following.look() == [b"a new beginning, longer than three"]


def test_a_line_of_megabytes(following: Following) -> None:
    """It is cut, costs no memory to speak of, and its rest is no line; also over a restart."""
    following.say("x" * 5_000_000, "next", "y" * 1_000_000, end="")
    assert following.look() == [b"x" * LONGEST_LINE, b"next"]
    following.restart()
    following.say("z" * 1000, "last")
    assert following.look()[1:] == [b"last"]


def test_no_plain_file(tmp_path: Path) -> None:
    """A pipe that nobody writes to is not waited for, and a folder is no log."""
    following = Following(tmp_path)
    os.mkfifo(following.path)
    following.look()
    (told,) = following.logs.followed()
    assert told.problem is not None
    assert "it is not a plain file" in told.problem.message
    following.path.unlink()
    following.path.mkdir()
    following.look()
    assert not following.logs.followed()[0].up


def test_away_and_back(following: Following) -> None:
    """A file that cannot be read for a while is gone on with where it was left."""
    following.say("one")
    assert following.look() == [b"one"]
    following._log._lost(PermissionError(13, "Permission denied"))
    following._log._close()
    assert not following.logs.followed()[0].up
    following.say("two")
    assert following.look() == [b"two"]
    assert following.logs.followed()[0].up


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events(tmp_path: Path, seed: int) -> None:
    """Whatever is done in whatever order, each line that was written is read once."""
    chance = random.Random(seed)
    following = Following(tmp_path)
    following.look()
    written: list[bytes] = []
    read: list[bytes] = []
    rotated = 0
    for number in range(400):
        what = chance.choice(["say", "say", "say", "part", "look", "look", "rename", "restart", "kill", "cut"])
        if what in ("say", "part"):
            text = f"line {number} {'x' * chance.randrange(200)}"
            whole = what == "say"
            following.say(text if whole else text + "|", end="\n" if whole else "")
            written.append(text.encode()) if whole else written.append(text.encode() + b"|")
        elif what == "look":
            read += following.look()
        elif what == "rename" and following.path.exists():
            read += following.look()
            with following.path.open("ab") as file:  # programs end their lines before their log is rotated
                file.write(b"\n")
            written.append(b"")
            rotated += 1
            following.path.rename(following.path.with_name(f"server.log.{rotated}"))
        elif what == "cut" and following.path.exists():
            with following.path.open("ab") as file:
                file.write(b"\n")
            written.append(b"")
            read += following.look()  # what comes between our look and the cut is lost to everybody
            os.truncate(following.path, 0)
        elif what in ("restart", "kill"):
            following.restart(killed=what == "kill")
    following.say("end")
    read += following.look()
    assert b"".join(read) == b"".join(written) + b"end"


def test_look_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """`check` tells which logs could be followed, and reads none of them."""
    (tmp_path / "redis.log").write_text("old\n", encoding="utf-8")
    intake = Intake()
    files = {"redis": str(tmp_path / "redis.log"), "server": str(tmp_path / "none.log")}
    logs = FileLogs(files, intake, Budget(1.0))
    logs.look(Deadline.after(5.0))
    assert [(each.component, each.up) for each in logs.followed()] == [("redis", True), ("server", False)]
    assert intake.lines == []
    logs.close()


def test_runs_until_told_to_stop(tmp_path: Path) -> None:
    """Each file has a thread, and all end together."""
    intake = Intake()
    files = {each: str(tmp_path / f"{each}.log") for each in ("server", "redis")}
    logs = FileLogs(files, intake, Budget(1.0), look_seconds=0.01)
    looks = iter(range(1_000_000))

    def stop() -> bool:
        if next(looks) == 20:
            for each in files.values():
                Path(each).write_text("one\n", encoding="utf-8")
        return len(intake.lines) == 2

    logs.run(stop)
    assert intake.lines == [b"one", b"one"]
