"""What breaks in the nightly dump."""

import gzip
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from drills.drill import Drill, Injection
from support.machine import PG_BIN, Machine

DAY = 86400.0
MOMENT = "%Y%m%dT%H%M%S"


def dumped(change: Callable[[bytes], bytes]) -> Injection:
    """The newest dump with another content, and the same time; afterwards as it was."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        newest = machine.dumps()[-1]
        content, told = newest.read_bytes(), newest.stat()
        newest.write_bytes(change(content))
        os.utime(newest, (told.st_atime, told.st_mtime))
        yield
        newest.write_bytes(content)
        os.utime(newest, (told.st_atime, told.st_mtime))

    return inject


@contextmanager
def another(machine: Machine) -> Iterator[None]:
    """There are two dumps."""
    time.sleep(1)  # a dump's name says the second of it
    machine.back_up()
    yield


def without_rows(dump: bytes) -> bytes:
    """The first and the last lines of a dump, as of an empty database."""
    lines = gzip.decompress(dump).splitlines(keepends=True)
    return gzip.compress(b"".join(lines[:30] + lines[-10:]))


@contextmanager
def program_missing(machine: Machine) -> Iterator[None]:
    """The image lacks the program that dumps this version of Postgres, and the night comes."""
    machine.docker(f"exec immich_server mv {PG_BIN}/pg_dump {PG_BIN}/gone")
    machine.add_job("backupDatabase", "DatabaseBackup")
    yield
    machine.docker(f"exec immich_server mv {PG_BIN}/gone {PG_BIN}/pg_dump")
    machine.sql("DELETE FROM notification")
    time.sleep(1)  # a dump's name says the second of it
    machine.back_up()


@contextmanager
def none_for_days(machine: Machine) -> Iterator[None]:
    """All dumps are three days older than they were."""
    older = {path: path.rename(renamed(path, 3 * DAY)) for path in machine.dumps()}
    for path in older.values():
        told = path.stat()
        os.utime(path, (told.st_atime - 3 * DAY, told.st_mtime - 3 * DAY))
    yield
    for path, moved in older.items():
        told = moved.rename(path).stat()
        os.utime(path, (told.st_atime + 3 * DAY, told.st_mtime + 3 * DAY))


def renamed(path: Path, seconds: float) -> Path:
    """The name that the dump would have, had it been made so much earlier."""
    began = datetime.strptime(path.name.split("-")[3], MOMENT)
    earlier = datetime.fromtimestamp(began.timestamp() - seconds)
    return path.with_name(path.name.replace(f"{began:{MOMENT}}", f"{earlier:{MOMENT}}"))


@contextmanager
def night(machine: Machine) -> Iterator[None]:
    """The nightly dump is made by the real pg_dump, twice."""
    for _ in range(2):
        time.sleep(1)  # a dump's name says the second of it
        machine.back_up()
    yield


DRILLS = {
    "dump-program-missing": Drill(
        "pg_dump is not where Immich looks for it, in the night of the dump.",
        program_missing,
        ("ImmichBackupFailed",),
        changes=True,
    ),
    "dump-cut-short": Drill(
        "The last quarter of the newest dump is lost.",
        dumped(lambda content: content[: len(content) * 3 // 4]),
        ("ImmichBackupIncomplete",),
    ),
    "dump-shrunk": Drill(
        "The newest dump is whole, and next to nothing is in it.",
        dumped(without_rows),
        ("ImmichBackupShrunk",),
        prepare=another,
    ),
    "no-dump-for-days": Drill("The newest dump is three days old.", none_for_days, ("ImmichBackupStale",)),
    "nightly-dump": Drill("The nightly dump, two nights in a row.", night, (), changes=True),
}
