"""Stands in for Immich's server 2.7.5 in the drills, since its image cannot be pulled: one process in a container.

It does what a fault shows itself by: it looks for the markers and makes the tables at its start, and ends with the real
one's words and exit code where it may not go on; it answers the API paths that phones and probes ask, from the real
rows and files; it takes uploads; and it works off BullMQ's queues in Redis: thumbnails, vectors, dumps, scans of the
external library. Its log lines are those of the real server. What it makes of a photo are copies, not thumbnails.
"""

import asyncio
import errno
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import NoReturn

import psycopg
import redis
from redis.exceptions import RedisError

from immich_vitals.demo.queues import add_jobs, create_queues, milliseconds
from immich_vitals.demo.schema import Connection, create_schema, immich_schema
from immich_vitals.demo.web import Immich, ImmichHandler
from immich_vitals.demo.worker import Duty, serve

VERSION = os.environ.get("IMMICH_VERSION", "v2.7.5").removeprefix("v")
MEDIA = Path(os.environ.get("IMMICH_MEDIA_LOCATION", "/data"))
FOLDERS = ("upload", "library", "thumbs", "encoded-video", "profile", "backups")
LEARNING = "http://immich-machine-learning:3003"
PG_BIN = Path("/usr/lib/postgresql/17/bin")
FEED_SECONDS, LOOK_SECONDS = 5.0, 5.0
# The smallest picture there is of this kind, for photos whose siblings have none to copy.
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
ERRORS = {
    errno.ENOENT: ("ENOENT", "no such file or directory"), errno.EACCES: ("EACCES", "permission denied"),
    errno.ENOSPC: ("ENOSPC", "no space left on device"), errno.EROFS: ("EROFS", "read-only file system"),
    errno.EIO: ("EIO", "i/o error"), errno.ESTALE: ("ESTALE", "stale file handle"),
}  # fmt: skip
Words = Mapping[str, str]


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def nest(level: str, context: str, message: str) -> None:
    """A line as Nest writes it."""
    now = datetime.now()
    moment = f"{now:%m/%d/%Y}, {now.hour % 12 or 12}:{now:%M:%S %p}"
    say(f"[Nest] 7  - {moment} {level:>7} [{context}] {message}")


def words_of(error: psycopg.Error | OSError | RedisError) -> str:
    """The error as Node and its clients have it."""
    said = str(error)
    if isinstance(error, OSError):
        name, meaning = ERRORS.get(error.errno or 0, ("EIO", "i/o error"))
        return f"Error: {name}: {meaning}, {getattr(error, 'call', 'open')} '{error.filename}'"
    if "resolve" in said or "Name or service" in said:
        return f"Error: getaddrinfo ENOTFOUND {'database' if isinstance(error, psycopg.Error) else 'redis'}"
    if found := re.search(r'"([\d.]+)", port (\d+) failed: (Connection refused|No route)', said):
        return f"Error: connect {'ECONNREFUSED' if 'refused' in found[3] else 'EHOSTUNREACH'} {found[1]}:{found[2]}"
    if found := re.search(r"FATAL:\s+(.*)", said):
        return f"PostgresError: {found[1]}"
    if isinstance(error, psycopg.Error):
        return f"PostgresError: {said.splitlines()[0]}"
    if re.match(r"(MISCONF|OOM|NOAUTH|WRONGPASS|READONLY|LOADING)", said):
        return f"ReplyError: {said}"
    if isinstance(error, redis.AuthenticationError):
        code = "NOAUTH" if "required" in said else "WRONGPASS"
        return f"ReplyError: {code} {said}"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return f"ReplyError: OOM {said}"
    if isinstance(error, redis.ConnectionError):
        return "Error: connect ECONNREFUSED 172.18.0.2:6379"
    return f"ReplyError: {said}"


def give_up(*lines: str) -> NoReturn:
    """End as Immich does, after these lines."""
    say(*lines, "microservices worker exited with code 1", "Killing api process")
    os._exit(1)


def database() -> Connection:
    told = os.environ
    return psycopg.connect(
        host=told.get("DB_HOSTNAME", "database"), port=told.get("DB_PORT", "5432"), user=told["DB_USERNAME"],
        password=told["DB_PASSWORD"], dbname=told["DB_DATABASE_NAME"], autocommit=True, connect_timeout=5,
        application_name="postgres.js",
    )  # fmt: skip


def open_database() -> Connection:
    """The database with its tables, made or brought up to date; ends the process as Immich does where it cannot."""
    try:
        connection = database()
    except psycopg.Error as error:
        give_up(
            "node:internal/process/promises:394", "    triggerUncaughtException(err, true /* fromPromise */);", "",
            words_of(error), "    at process.processTicksAndRejections (node:internal/process/task_queues:104:5)",
            "Node.js v24.14.1",
        )  # fmt: skip
    if not connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
        give_up(
            "Error: The VectorChord extension is not available in this Postgres instance.",
            "    If using a container image, ensure the image has the extension installed.",
        )
    nest("LOG", "Microservices:DatabaseRepository", "Running migrations")
    known = immich_schema()["migrations"]
    if not connection.execute("SELECT to_regclass('kysely_migrations')").fetchone()[0]:  # type: ignore[index]
        create_schema(connection)
        for name in known:
            nest("LOG", "Microservices:DatabaseRepository", f'Migration "{name}" succeeded')
    else:
        done = [str(name) for (name,) in connection.execute("SELECT name FROM kysely_migrations ORDER BY name")]
        if strange := [name for name in done if name not in known]:
            problem = f"corrupted migrations: previously executed migration {strange[0]} is missing"
            nest("ERROR", "Microservices:DatabaseRepository", f"Migrations failed: Error: {problem}")
            give_up(f"Error: {problem}")
        for name in (name for name in known if name not in done):
            migrate(connection, name)
    nest("LOG", "Microservices:DatabaseRepository", "Finished running migrations")
    row = connection.execute('SELECT version FROM version_history ORDER BY "createdAt" DESC LIMIT 1').fetchone()
    if row is None or row[0] != VERSION:
        nest("LOG", "Microservices:VersionService", f"Adding {VERSION} to upgrade history")
        connection.execute("INSERT INTO version_history (id, version) VALUES (gen_random_uuid(), %s)", (VERSION,))
    return connection


def migrate(connection: Connection, name: str) -> None:
    """A migration that was not done yet: reads every asset, as those that fill a new column do."""
    try:
        connection.execute('SELECT sum(length("originalPath")), max("updatedAt") FROM asset')
        connection.execute("SELECT max(description) FROM asset_exif")
        connection.execute(
            "INSERT INTO kysely_migrations (name, timestamp) VALUES (%s, '2026-11-20T17:17:48.000Z')", (name,)
        )
    except psycopg.Error as error:
        nest("WARN", "Microservices:DatabaseRepository", f'Migration "{name}" failed')
        nest("ERROR", "Microservices:DatabaseRepository", f"Migrations failed: {words_of(error)}")
        give_up(words_of(error))
    nest("LOG", "Microservices:DatabaseRepository", f'Migration "{name}" succeeded')


def check_mounts(connection: Connection) -> None:
    """The six folders with their markers, written at the first start and looked for at every other."""
    nest("LOG", "Microservices:StorageService", "Verifying system mount folder checks, current state")
    row = connection.execute("SELECT value FROM system_metadata WHERE key = 'system-flags'").fetchone()
    for folder in FOLDERS:
        marker = MEDIA / folder / ".immich"
        try:
            if row is None:
                nest("LOG", "Microservices:StorageService", f"Writing initial mount file for the {folder} folder")
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.write_text(str(milliseconds()))
        except OSError as error:
            failed_mount("write", marker, error)
        for word, touch in (("read", marker.read_text), ("write", lambda marker=marker: overwrite(marker))):
            try:
                touch()  # type: ignore[operator]
            except OSError as error:
                failed_mount(word, marker, error)
    if row is None:
        flags = json.dumps({"mountChecks": dict.fromkeys(FOLDERS, True)})
        connection.execute("INSERT INTO system_metadata (key, value) VALUES ('system-flags', %s)", (flags,))
        place = json.dumps({"location": str(MEDIA)})
        connection.execute("INSERT INTO system_metadata (key, value) VALUES ('MediaLocation', %s)", (place,))
    nest("LOG", "Microservices:StorageService", "Successfully verified system mount folder checks")


def move_paths(connection: Connection) -> None:
    """Where the media folder has another name than at the last start, every path in the database gets it, too."""
    row = connection.execute("SELECT value ->> 'location' FROM system_metadata WHERE key = 'MediaLocation'").fetchone()
    before = str(row[0]) if row else str(MEDIA)
    if before == str(MEDIA):
        return
    said = f"Detected a change to media location, performing an automatic migration of file paths from {before}"
    nest("WARN", "Microservices:StorageService", f"{said} to {MEDIA}, this may take awhile")
    with connection.transaction():
        for table, column in (("asset", '"originalPath"'), ("asset_file", "path"), ("person", '"thumbnailPath"'),
                              ("user", '"profileImagePath"')):  # fmt: skip
            connection.execute(
                f'UPDATE "{table}" SET {column} = %s || substr({column}, %s) WHERE {column} LIKE %s',  # type: ignore[arg-type]
                (str(MEDIA), len(before) + 1, f"{before}/%"),
            )
        place = json.dumps({"location": str(MEDIA)})
        connection.execute("UPDATE system_metadata SET value = %s WHERE key = 'MediaLocation'", (place,))


def overwrite(marker: Path) -> None:
    with marker.open("r+") as file:
        file.write(str(milliseconds()))


def failed_mount(word: str, marker: Path, error: OSError) -> NoReturn:
    said = f"Failed to {word} ({marker}): {words_of(error)}"
    nest("ERROR", "Microservices:StorageService", said)
    give_up(
        f'ImmichStartupError: Failed to validate folder mount (error: "{said}")',
        "    at StorageService.verifyReadAccess (/usr/src/app/server/dist/services/storage.service.js:141:19)",
    )


class Handler(ImmichHandler):
    """Answers, and writes down what Immich writes down."""

    def failed(self, error: psycopg.Error | OSError) -> None:
        if isinstance(error, OSError):
            said = words_of(error).replace(", open ", ", access ")
            nest("ERROR", f"Api:LoggingRepository~{self.correlation}", f"Unable to send file: {said}")
            say(said, "    at async access (node:internal/fs/promises:607:10)")
            nest("ERROR", f"Api:GlobalExceptionFilter~{self.correlation}", f"Unknown error: {said}")
            say(said, "    at async access (node:internal/fs/promises:607:10)")
        else:
            said = words_of(error)
            nest("ERROR", f"Api:GlobalExceptionFilter~{self.correlation}", f"Unknown error: {said}")

    def do_POST(self) -> None:
        if self.path == "/api/auth/login":
            said = f"Failed login attempt for user ada@example.org from ip address {self.client_address[0]}"
            nest("WARN", f"Api:AuthService~{self.correlation}", said)
            self._error(401, "Incorrect email or password")
            return
        if self.path != "/api/assets":
            super().do_POST()
            return
        left = int(self.headers.get("Content-Length") or 0)
        head = f"Content-Type: {self.headers.get('Content-Type')}\r\n\r\n".encode()
        body = b""
        while left > 0:
            piece = self.rfile.read1(min(left, 1 << 16))
            if not piece:
                nest("ERROR", f"Api:Error: Request aborted~{self.correlation}", "Unknown error: Error: Request aborted")
                self.close_connection = True
                return
            body += piece
            left -= len(piece)
        if not self._may("asset.view"):
            return
        for part in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts():  # type: ignore[attr-defined]
            if part.get_param("name", header="content-disposition") == "assetData":
                self._keep(part.get_filename(), part.get_payload(decode=True))

    def _keep(self, name: str, content: bytes) -> None:
        asset = str(uuid.uuid4())
        path = MEDIA / "upload" / self.immich.user / asset[:2] / asset[2:4] / f"{asset}{Path(name).suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            said = words_of(error).replace(", open ", ", mkdir " if error.errno != errno.ENOSPC else ", write ")
            nest("ERROR", f"Api:GlobalExceptionFilter~{self.correlation}", f"Unknown error: {said}")
            self._error(500, "Failed to upload asset")
            return
        try:
            with self.immich.connect() as connection:
                add_asset(connection, asset, self.immich.user, path, content)
        except psycopg.errors.UniqueViolation:
            path.unlink()
            self._json(200, {"id": asset, "status": "duplicate"})
            return
        except psycopg.Error as error:
            self.failed(error)
            self._error(500, "Internal server error")
            return
        try:
            with queues() as client:
                add_jobs(client, "metadataExtraction", "AssetExtractMetadata", 1, asset)
        except RedisError as error:
            nest("ERROR", f"Api:GlobalExceptionFilter~{self.correlation}", f"Unknown error: {words_of(error)}")
            self._error(500, "Internal server error")
            return
        self._json(201, {"id": asset, "status": "created"})


def add_asset(connection: Connection, asset: str, owner: str, path: Path, content: bytes) -> None:
    kind = "VIDEO" if path.suffix == ".mp4" else "IMAGE"
    connection.execute(
        'INSERT INTO asset (id, "deviceAssetId", "ownerId", "deviceId", "originalFileName", type, "originalPath",'
        ' "fileCreatedAt", "fileModifiedAt", "localDateTime", checksum, "checksumAlgorithm", status, visibility)'
        " VALUES (%s, %s, %s, 'phone', %s, %s, %s, now(), now(), now(), %s, 'sha1', 'active', 'timeline')",
        (asset, path.name, owner, path.name, kind, str(path), hashlib.sha1(content).digest()),
    )


class Server(Immich):
    """Listens where the real one does."""

    @property
    def address(self) -> tuple[str, int]:
        return "", 2283


def redis_url() -> str:
    password = os.environ.get("REDIS_PASSWORD")
    return f"redis://{f':{password}@' if password else ''}{os.environ.get('REDIS_HOSTNAME', 'redis')}:6379/0"


def queues() -> "redis.Redis":
    client: redis.Redis = redis.Redis.from_url(redis_url(), decode_responses=True, socket_timeout=5)
    return client


class Handlers(Duty):
    """The handlers of the jobs. As in the real one, an error is logged and the job counts as completed."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, Callable[[Connection, str], None]] = {
            "AssetGenerateThumbnails": self.thumbnails, "AssetExtractMetadata": self.metadata,
            "AssetGenerateThumbnailsQueueAll": self.missing_thumbnails,
            "SmartSearch": self.vectors, "DatabaseBackup": self.dump, "LibrarySyncAssets": self.scan,
        }  # fmt: skip
        self._local = threading.local()

    async def work(self, queue: str, job: Words) -> None:
        await asyncio.to_thread(self._run, job.get("name", ""), json.loads(job.get("data") or "{}").get("id", ""))

    def lost(self, error: RedisError) -> None:
        say(words_of(error), "    at TCPConnectWrap.afterConnect [as oncomplete] (node:net:1637:16) {",
            "  errno: -111,", "  syscall: 'connect'", "}")  # fmt: skip

    def _run(self, name: str, asset: str) -> None:
        handler = self._jobs.get(name)
        if handler is None:
            return
        connection: Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None or connection.closed:
                connection = self._local.connection = database()
            handler(connection, asset)
        except psycopg.OperationalError:
            pass  # the real one's error handler asks the database first, and says nothing
        except psycopg.Error as error:
            self._failed(name, asset, words_of(error))
        except JobError as error:
            self._failed(name, asset, *map(str, error.args))

    def _failed(self, name: str, asset: str, *said: str) -> None:
        nest("ERROR", f'Microservices:{{"id":"{asset}"}}', f"Unable to run job handler ({name}): {said[0]}")
        say(*said, "    at process.processTicksAndRejections (node:internal/process/task_queues:104:5)")

    def metadata(self, connection: Connection, asset: str) -> None:
        connection.execute(
            'INSERT INTO asset_job_status ("assetId", "metadataExtractedAt") VALUES (%s, now())'
            ' ON CONFLICT ("assetId") DO UPDATE SET "metadataExtractedAt" = now()',
            (asset,),
        )
        with suppress(RedisError), queues() as client:
            add_jobs(client, "thumbnailGeneration", "AssetGenerateThumbnails", 1, asset)

    def missing_thumbnails(self, connection: Connection, asset: str) -> None:
        """`Missing`: what rows say is missing. Nobody looks at the disk."""
        rows = connection.execute(
            "SELECT id::text FROM asset WHERE \"deletedAt\" IS NULL AND visibility <> 'hidden' AND (thumbhash IS NULL"
            " OR NOT EXISTS (SELECT FROM asset_file WHERE \"assetId\" = asset.id AND type = 'preview')"
            " OR NOT EXISTS (SELECT FROM asset_file WHERE \"assetId\" = asset.id AND type = 'thumbnail'))"
        ).fetchall()
        with queues() as client:
            for (number,) in rows:
                add_jobs(client, "thumbnailGeneration", "AssetGenerateThumbnails", 1, str(number))

    def thumbnails(self, connection: Connection, asset: str) -> None:
        row = connection.execute(
            'SELECT "originalPath", "ownerId"::text, type FROM asset WHERE id = %s', (asset,)
        ).fetchone()
        if row is None:
            return
        original, owner = Path(str(row[0])), str(row[1])
        try:
            content = original.read_bytes()
        except FileNotFoundError:
            raise JobError(f"Error: Input file is missing: {original}") from None
        except PermissionError:
            raise JobError("Error: Input file contains unsupported image format") from None
        except OSError as error:
            raise JobError(words_of(error)) from None
        if not content or (original.suffix in (".jpg", ".jpeg") and not content.endswith(b"\xff\xd9")):
            cut, empty = "VipsJpeg: premature end of JPEG image", "Input file contains unsupported image format"
            raise JobError(f"Error: {cut if content else empty}")
        self._write(connection, asset, "preview", spread("thumbs", owner, asset, "_preview.jpeg"), self._small(content))
        self._write(connection, asset, "thumbnail", spread("thumbs", owner, asset, "_thumbnail.webp"), WEBP)
        connection.execute("UPDATE asset SET thumbhash = decode('00', 'hex') WHERE id = %s", (asset,))
        with suppress(RedisError), queues() as client:
            add_jobs(client, "smartSearch", "SmartSearch", 1, asset)

    def _small(self, content: bytes) -> bytes:
        return content if content.startswith(b"\xff\xd8") else b"\xff\xd8\xff\xe0" + content[:512] + b"\xff\xd9"

    def _write(self, connection: Connection, asset: str, kind: str, path: Path, content: bytes) -> None:
        row = connection.execute(
            'SELECT path FROM asset_file WHERE "assetId" = %s AND type = %s', (asset, kind)
        ).fetchone()
        path = Path(str(row[0])) if row else path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(words_of(error).replace(", open ", ", mkdir ")) from None
        try:
            path.write_bytes(content)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise JobError(f"Error: {path}: write error", "system error: No space left on device",
                               "VipsJpeg: unable to write to target") from None  # fmt: skip
            raise JobError(words_of(error)) from None
        if row is None:
            connection.execute(
                'INSERT INTO asset_file ("assetId", type, path) VALUES (%s, %s, %s)', (asset, kind, str(path))
            )

    def vectors(self, connection: Connection, asset: str) -> None:
        """Ask machine learning, and note its answer; faces and text are noted with it."""
        ask = urllib.request.Request(f"{LEARNING}/predict", data=b"entries=%7B%7D", method="POST")
        try:
            with urllib.request.urlopen(ask, timeout=30) as answer:
                answer.read()
        except OSError as error:
            why = "fetch failed" if not isinstance(error, urllib.error.HTTPError) else f"{error.code}"
            said = f'Machine learning request to "{LEARNING}" failed: {why}'
            nest("WARN", "Microservices:MachineLearningRepository", said)
            request = '{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}'
            raise JobError(f"Error: Machine learning request '{request}' failed for all URLs") from None
        vector = str([round(random.uniform(-1, 1), 4) for _ in range(512)])
        connection.execute(
            'INSERT INTO smart_search ("assetId", embedding) VALUES (%s, %s) ON CONFLICT DO NOTHING', (asset, vector)
        )
        connection.execute(
            "INSERT INTO ocr_search (\"assetId\", text) VALUES (%s, '') ON CONFLICT DO NOTHING", (asset,)
        )
        connection.execute(
            'UPDATE asset_job_status SET "facesRecognizedAt" = now(), "ocrAt" = now(), "duplicatesDetectedAt" = now()'
            ' WHERE "assetId" = %s',
            (asset,),
        )

    def dump(self, connection: Connection, asset: str) -> None:
        """The nightly dump: the real pg_dump, if it is there."""
        server = connection.info.parameter_status("server_version") or ""
        name = f"immich-db-backup-{datetime.now():%Y%m%dT%H%M%S}-v{VERSION}-pg{server.split()[0]}.sql.gz"
        part = MEDIA / "backups" / f"{name}.tmp"
        url = "postgresql://{DB_USERNAME}:{DB_PASSWORD}@database:5432/{DB_DATABASE_NAME}".format(**os.environ)
        try:
            done = subprocess.run([str(PG_BIN / "pg_dump"), url], capture_output=True, check=False)
            failure = f"pg_dump non-zero exit code (1)\n{done.stderr.decode()}" if done.returncode else None
            if failure is None:
                part.write_bytes(gzip.compress(done.stdout))
                part.rename(part.with_suffix(""))
        except OSError as error:
            missing = error.filename == str(PG_BIN / "pg_dump")
            failure = f"Error: spawn {PG_BIN}/pg_dump ENOENT" if missing else words_of(error)
        if failure is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            nest("ERROR", "Microservices:DatabaseBackupService", f"Database Backup Failure: {failure}")
            connection.execute(
                'INSERT INTO notification (id, "userId", level, type, title, description)'
                " SELECT gen_random_uuid(), id, 'error', 'JobFailed', 'Job Failed', %s FROM \"user\""
                ' WHERE "isAdmin" LIMIT 1',
                (f"Job DatabaseBackup failed with error: {failure}",),
            )
            raise JobError(failure)

    def scan(self, connection: Connection, asset: str) -> None:
        """The nightly scan of external libraries: what is not there is set offline, and put in the trash."""
        rows = connection.execute('SELECT id, "originalPath", "isOffline" FROM asset WHERE "isExternal"').fetchall()
        for number, path, offline in rows:
            there = Path(str(path)).exists()
            if there == bool(offline):
                connection.execute(
                    'UPDATE asset SET "isOffline" = %s, "deletedAt" = CASE WHEN %s THEN now() END WHERE id = %s',
                    (not there, not there, number),
                )


class JobError(Exception):
    """A handler failed; the arguments are lines as Immich logs them."""


def spread(folder: str, owner: str, asset: str, ending: str) -> Path:
    return MEDIA / folder / owner / asset[:2] / asset[2:4] / f"{asset}{ending}"


def feed() -> None:
    """Somebody uses Immich: now and then a photo is looked at anew. Machine learning is asked how it is."""
    healthy: bool | None = None
    while True:
        time.sleep(FEED_SECONDS)
        with suppress(psycopg.Error, RedisError), database() as connection, queues() as client:
            row = connection.execute(
                "SELECT id::text FROM asset WHERE \"deletedAt\" IS NULL AND type = 'IMAGE' AND thumbhash IS NOT NULL"
                " AND visibility <> 'hidden' ORDER BY random() LIMIT 1"
            ).fetchone()
            if row is not None:
                add_jobs(client, "thumbnailGeneration", "AssetGenerateThumbnails", 1, str(row[0]))
        try:
            urllib.request.urlopen(f"{LEARNING}/ping", timeout=2).close()
            found = True
        except OSError:
            found = False
        if found is not healthy:
            state = "healthy" if found else "unhealthy"
            nest("LOG", "Api:MachineLearningRepository", f"Machine learning server became {state} ({LEARNING}).")
            healthy = found


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    workers = os.environ.get("IMMICH_WORKERS_INCLUDE", "api,microservices").split(",")
    say(f"Initializing Immich v{VERSION}", *(f"Starting {worker} worker" for worker in workers))
    with open_database() as connection:
        check_mounts(connection)
        move_paths(connection)
        try:
            with queues() as client:
                create_queues(client)
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            give_up(words_of(error))
        except RedisError as error:
            say(words_of(error))  # the api comes up all the same
        row = connection.execute('SELECT id::text FROM "user" ORDER BY "isAdmin" DESC LIMIT 1').fetchone()
    server = Server(database, str(row[0]) if row else "", Handler)
    server.permissions = frozenset(("asset.view", "asset.download"))
    for each in ("Api", "Microservices"):
        nest("LOG", f"{each}:WebsocketRepository", "Initialized websocket server")
    nest("LOG", "Microservices:Bootstrap", f"Immich Microservices is running [v{VERSION}] [production] ")
    nest("LOG", "Api:Bootstrap", f"Immich Server is listening on http://[::1]:2283 [v{VERSION}] [production] ")
    threading.Thread(target=feed, daemon=True).start()
    if "microservices" in workers:
        asyncio.run(serve(redis_url(), Handlers()))
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
