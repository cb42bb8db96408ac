"""Faults of backups: no dump, half a dump, a small dump, a dump that failed."""

import gzip
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.scratch import environment
from immich_vitals.demo.world import DATABASE, World

DAY = 86400.0
MOMENT = "%Y%m%dT%H%M%S"
FAILURE = (
    "Job DatabaseBackup failed with error: spawn /usr/lib/postgresql/18/bin/pg_dump ENOENT: the program that dumps this"
    " version of Postgres is not in the image"
)


def dumps(world: World) -> list[Path]:
    """Immich's dumps, the newest last."""
    return sorted((world.media / "backups").glob("immich-db-backup-*.sql.gz"))


@contextmanager
def dump_missing(world: World) -> Iterator[None]:
    """As after three nights without a dump: all that there are are three days older."""
    older = [(path, _moved(path, -3 * DAY)) for path in dumps(world)]
    yield
    for path, moved in older:
        told = moved.stat()
        moved.rename(path)
        os.utime(path, (told.st_atime + 3 * DAY, told.st_mtime + 3 * DAY))


@contextmanager
def dump_truncated(world: World) -> Iterator[None]:
    """The last part of the newest dump is lost, as when the disk was full in between."""
    with _rewritten(dumps(world)[-1], lambda content: content[: len(content) * 3 // 4]):
        yield


@contextmanager
def dump_shrunk(world: World) -> Iterator[None]:
    """The newest dump is whole, and nearly everything is missing in it."""
    done = subprocess.run(
        [str(world.postgres.binaries / "pg_dump"), "--dbname", world.postgres.dsn(DATABASE), "--table=version_history"],
        stdout=subprocess.PIPE, check=True, env={**environment(), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    with _rewritten(dumps(world)[-1], lambda _: gzip.compress(done.stdout, 6)):
        yield


@contextmanager
def dump_failed(world: World) -> Iterator[None]:
    """Immich could not dump its database, and left a notice for its admin."""
    with world.connect() as connection:
        connection.execute(
            'INSERT INTO notification (id, "createdAt", "updatedAt", "updateId", "userId", level, type, title,'
            " description) SELECT gen_random_uuid(), now(), now(), gen_random_uuid(), id, %s, %s, %s, %s"
            ' FROM "user" WHERE "isAdmin" LIMIT 1',
            ("error", "JobFailed", "Job Failed", FAILURE),
        )
    yield
    with world.connect() as connection:
        connection.execute("DELETE FROM notification WHERE description = %s", (FAILURE,))


def _moved(path: Path, seconds: float) -> Path:
    """The dump under the name and with the time that it would have had this much later."""
    told = path.stat()
    began = datetime.strptime(path.name.split("-")[3], MOMENT)
    name = path.name.replace(f"{began:{MOMENT}}", f"{datetime.fromtimestamp(began.timestamp() + seconds):{MOMENT}}")
    os.utime(path, (told.st_atime + seconds, told.st_mtime + seconds))
    return path.rename(path.with_name(name))


@contextmanager
def _rewritten(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """The file with another content and the same time; afterwards with its own again."""
    content, told = path.read_bytes(), path.stat()
    path.write_bytes(change(content))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    yield
    path.write_bytes(content)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


_DATABASE = {"kind": "database"}
FAULTS_BACKUP: dict[str, Fault] = {
    "dump-missing": Fault(
        "For three nights no dump of the database was made.",
        dump_missing,
        Sign("backup_newest_timestamp_seconds", at_most=time.time() - 2 * DAY, labels=_DATABASE),
        "ImmichBackupStale",
    ),
    "dump-truncated": Fault(
        "The newest dump of the database is cut off.",
        dump_truncated,
        Sign("backup_intact", at_most=0, labels=_DATABASE),
        "ImmichBackupIncomplete",
    ),
    "dump-shrunk": Fault(
        "The newest dump of the database holds next to nothing.",
        dump_shrunk,
        Sign("backup_newest_size_bytes", at_most=2000, labels=_DATABASE),
        "ImmichBackupShrunk",
    ),
    "dump-failed": Fault(
        "Immich failed to dump its database and left a notice.",
        dump_failed,
        Sign("backup_failure_timestamp_seconds", at_least=1),
        "ImmichBackupFailed",
    ),
}
