"""A small Immich without Immich: its database, its queues with workers, its media folder, all of them real."""

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg import sql

from immich_vitals.demo.logs import Logs
from immich_vitals.demo.photos import VERSION, Library, make_library
from immich_vitals.demo.queues import create_queues, queue_names, worker_name
from immich_vitals.demo.schema import Connection, create_schema
from immich_vitals.demo.scratch import Scratch, environment
from immich_vitals.demo.servers import START_SECONDS, Postgres, Redis, ServerError
from immich_vitals.demo.web import Web

DATABASE = "immich"
MAX_CONNECTIONS = 40
# What is looked at now and then is looked at every two seconds here.
TIMERS = ("LIBRARY", "STORAGE", "FILE", "BACKUP", "VERSION", "PAGE_PATROL")
NIGHTS = 3
IMMICH_USER = 1000


class World:
    """Everything an exporter watches, healthy, in a temporary folder that ends with the `with` block.

    `feed_every` is the number of seconds between two jobs that come in, 0 for none; `major` the version of Postgres.
    """

    folder: Path
    postgres: Postgres
    redis: Redis
    library: Library
    logs: Logs
    web: Web

    def __init__(self, feed_every: float = 0.0, major: int = 18) -> None:
        self._feed_every = feed_every
        self._major = major
        self._ends = ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            self.folder = ends.enter_context(Scratch()).path
            self.postgres = Postgres(
                self.folder / "postgres", self._major, settings={"max_connections": str(MAX_CONNECTIONS)}
            )
            self.redis = Redis(self.folder / "redis")
            self.library = make_library(self.media, self.external)
            self._give_media_away()
            self.fill_database()
            self.back_up()
            self.logs = Logs(self.folder / "logs", self.postgres.log, self.redis.log)
            self.state.mkdir()
            owner = str(self.library.rows["user"][0]["id"])
            self.web = ends.enter_context(Web(self.connect, owner, self.logs.path("proxy")))
            with self.redis.client() as client:
                create_queues(client)
            ends.callback(self._forget_children)
            self.start_workers()
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def media(self) -> Path:
        return self.folder / "media"

    @property
    def external(self) -> Path:
        return self.folder / "old-disk"

    @property
    def state(self) -> Path:
        """Where an exporter keeps what it must know after a restart."""
        return self.folder / "state"

    @property
    def photos_backed_up(self) -> Path:
        """The file that another tool touches when it has copied the media folder."""
        return self.folder / "photos-backed-up"

    @property
    def restore_tried(self) -> Path:
        """The file that a person touches when a restore has been tried."""
        return self.folder / "restore-tried"

    def environment(self) -> Mapping[str, str]:
        """The settings with which an exporter watches this world."""
        return {
            "DB_URL": f"postgresql://postgres@127.0.0.1:{self.postgres.port}/{DATABASE}",
            "REDIS_URL": f"redis://127.0.0.1:{self.redis.port}/0",
            "IMMICH_MEDIA_LOCATION": str(self.media),
            "IMMICH_VITALS_DATABASE_PATH": str(self.postgres.data),
            "IMMICH_VITALS_EXTERNAL_PATHS": str(self.external),
            "IMMICH_VITALS_MEDIA_USER": f"{self._owner.st_uid}:{self._owner.st_gid}",
            "IMMICH_VITALS_STATE_PATH": str(self.state),
            "IMMICH_VITALS_LOG_FILES": self.logs.setting(),
            "IMMICH_VITALS_MEDIA_BACKUPS": str(self.photos_backed_up),
            "IMMICH_VITALS_RESTORE_TEST_FILE": str(self.restore_tried),
            "IMMICH_VITALS_FILE_RATE": "1000",
            "IMMICH_VITALS_FILE_WAKES_DISKS": "true",
            "IMMICH_VITALS_PAGE_PATROL": "true",
            "IMMICH_VITALS_PAGE_PATROL_RATE": "2000",
            **self.web.environment(),
            **{f"IMMICH_VITALS_{what}_INTERVAL": "2s" for what in TIMERS},
        }

    def connect(self) -> Connection:
        """A connection to Immich's database, as its superuser, in autocommit mode."""
        return self.postgres.connect(DATABASE)

    def empty_database(self) -> None:
        """Put a fresh database, as Immich makes it at its first start, in the place of the old one."""
        with self.postgres.connect() as server:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(DATABASE)))
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with self.connect() as connection:
            create_schema(connection)

    def fill_database(self) -> None:
        """Put a fresh database with the whole library in the place of the old one."""
        self.empty_database()
        with self.connect() as connection:
            self.library.insert(connection)
            connection.execute("ANALYZE")

    def start_workers(self) -> None:
        """Start the workers of all queues, and wait until each is there. Raises `ServerError`."""
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "immich_vitals.demo.worker", str(self.redis.socket), str(self._feed_every)],
            stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True, env=environment(),
        )  # fmt: skip
        wanted = {worker_name(queue) for queue in queue_names()}
        until = time.monotonic() + START_SECONDS
        with self.redis.client() as client:
            while not wanted <= {each["name"] for each in client.client_list()}:
                if time.monotonic() > until or self._worker.poll() is not None:
                    raise ServerError("the demo's workers did not start")
                time.sleep(0.02)

    def stop_workers(self) -> None:
        """End the workers at once, as a crash does."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def freeze_workers(self) -> None:
        if self._worker is not None:
            self._worker.send_signal(signal.SIGSTOP)

    def thaw_workers(self) -> None:
        if self._worker is not None:
            self._worker.send_signal(signal.SIGCONT)

    def _give_media_away(self) -> None:
        """The media folder to a user without privileges, as Immich is best run; root may do everything anywhere."""
        if os.geteuid() == 0:
            for path in (self.media, *self.media.rglob("*")):
                os.chown(path, IMMICH_USER, IMMICH_USER, follow_symlinks=False)
        self._owner = self.media.stat()

    def _forget_children(self) -> None:
        self.stop_workers()
        self.redis.stop()

    def back_up(self) -> None:
        """The dumps of the last nights, made by the real pg_dump and named as Immich names them."""
        with self.connect() as connection:
            server = connection.info.parameter_status("server_version")
        dump = subprocess.run(
            [str(self.postgres.binaries / "pg_dump"), "--dbname", self.postgres.dsn(DATABASE)],
            stdout=subprocess.PIPE, check=True, env={**environment(), "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        packed = gzip.compress(dump.stdout, 6)
        night = datetime.now().replace(hour=2, minute=0, second=0, microsecond=0)
        if night > datetime.now():
            night -= timedelta(days=1)
        for each in (night - timedelta(days=days) for days in range(NIGHTS)):
            path = self.media / "backups" / f"immich-db-backup-{each:%Y%m%dT%H%M%S}-v{VERSION}-pg{server}.sql.gz"
            path.write_bytes(packed)
            os.utime(path, (each.timestamp(), each.timestamp()))
        for touched in (self.photos_backed_up, self.restore_tried):
            touched.touch()
