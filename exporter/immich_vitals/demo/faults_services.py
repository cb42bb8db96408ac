"""Faults of Postgres, Redis, the queues, the library and the disks."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg
import redis

from immich_vitals.demo.fault import Fault, Sign, may_mount, until
from immich_vitals.demo.queues import PREFIX, add_event, add_jobs, make_job
from immich_vitals.demo.world import MAX_CONNECTIONS, World

QUEUE = "thumbnailGeneration"
JOB = "AssetGenerateThumbnails"
PAGE_BYTES = 8192
SMALL_DISK_BYTES = 64 << 20
LEFT_BYTES = 1 << 20


@contextmanager
def thumbnails_pending(world: World) -> Iterator[None]:
    """Rows, thumbhashes and files of sixty thumbnails are lost, and so are the jobs that would make them anew."""
    with world.connect() as connection:
        lost = connection.execute(
            "WITH chosen AS (SELECT a.id FROM asset a JOIN asset_file f ON f.\"assetId\" = a.id AND f.type = 'preview'"
            ' WHERE a."deletedAt" IS NULL AND a."libraryId" IS NULL LIMIT 60),'
            " blank AS (UPDATE asset SET thumbhash = NULL WHERE id IN (SELECT id FROM chosen))"
            " DELETE FROM asset_file WHERE \"assetId\" IN (SELECT id FROM chosen) AND type IN ('preview', 'thumbnail')"
            " RETURNING path"
        ).fetchall()
    kept = {Path(str(path)): Path(str(path)).read_bytes() for (path,) in lost}
    for path in kept:
        path.unlink()
    yield
    for path, content in kept.items():
        path.write_bytes(content)
    world.fill_database()


@contextmanager
def unprocessed_assets(world: World) -> Iterator[None]:
    """As after uploads while Redis refused jobs: the rows are there, nothing has looked at them."""
    with world.connect() as connection:
        connection.execute(
            'DELETE FROM asset_job_status WHERE "assetId" IN'
            " (SELECT id FROM asset WHERE \"deletedAt\" IS NULL AND visibility = 'timeline' LIMIT 25)"
        )
    yield
    world.fill_database()


@contextmanager
def database_empty(world: World) -> Iterator[None]:
    """As after a start with a wrong data directory: everything is fine, and nothing is there."""
    world.empty_database()
    yield
    world.fill_database()


@contextmanager
def external_library_offline(world: World) -> Iterator[None]:
    """The disk of the external library is away, and Immich has scanned it."""
    away = world.folder / "old-disk-away"
    world.external.rename(away)
    with world.connect() as connection:
        connection.execute('UPDATE asset SET "isOffline" = true, "deletedAt" = now() WHERE "isExternal"')
    yield
    away.rename(world.external)
    world.fill_database()


@contextmanager
def queue_paused(world: World) -> Iterator[None]:
    """Somebody pressed pause, and forgot it."""
    with world.redis.client() as client:
        client.hset(f"{PREFIX}:{QUEUE}:meta", "paused", "1")
        add_event(client, QUEUE, "paused")
        add_jobs(client, QUEUE, JOB, 40)
    yield
    with world.redis.client() as client:
        client.hdel(f"{PREFIX}:{QUEUE}:meta", "paused")
        client.delete(f"{PREFIX}:{QUEUE}:paused")


@contextmanager
def queue_stalled(world: World) -> Iterator[None]:
    """The workers hang: their connections are there, and no job moves."""
    world.freeze_workers()
    with _waiting_jobs(world):
        yield
    world.thaw_workers()


@contextmanager
def queue_no_workers(world: World) -> Iterator[None]:
    """The workers crashed: jobs wait, and nobody takes them."""
    world.stop_workers()
    with _waiting_jobs(world):
        yield
    world.start_workers()


@contextmanager
def queue_orphaned(world: World) -> Iterator[None]:
    """A worker died with a job in its hands: the job is active, its lock has run out."""
    with world.redis.client() as client:
        job = make_job(client, QUEUE, JOB)
        client.lpush(f"{PREFIX}:{QUEUE}:active", job)
        yield
        client.lrem(f"{PREFIX}:{QUEUE}:active", 0, job)


@contextmanager
def redis_down(world: World) -> Iterator[None]:
    world.redis.stop()
    yield
    world.redis.start()


@contextmanager
def redis_not_writable(world: World) -> Iterator[None]:
    """Redis cannot save its data, as on a full disk, and so refuses writes with MISCONF."""
    gone = world.folder / "redis" / "gone"
    gone.mkdir()
    with world.redis.client() as client:
        client.config_set("dir", str(gone))
        gone.rmdir()
        client.bgsave()
        until("Redis notices that it cannot save", lambda: _persistence(client, "rdb_last_bgsave_status") == "err")
        yield
        client.config_set("dir", str(world.folder / "redis"))
        client.bgsave()
        until("Redis has saved", lambda: _persistence(client, "rdb_last_bgsave_status") == "ok")


@contextmanager
def redis_memory_full(world: World) -> Iterator[None]:
    """Redis may not use more memory than it uses already, and so refuses writes with OOM."""
    with world.redis.client() as client:
        used: int = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used // 2)
        yield
        client.config_set("maxmemory", 0)


@contextmanager
def redis_evicting_policy(world: World) -> Iterator[None]:
    """Redis is set up as a cache: when memory gets short it throws away jobs."""
    with world.redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        yield
        client.config_set("maxmemory-policy", "noeviction")


@contextmanager
def postgres_down(world: World) -> Iterator[None]:
    world.postgres.stop()
    yield
    world.postgres.start()


@contextmanager
def postgres_hung(world: World) -> Iterator[None]:
    """Every process of Postgres stands still, as on a disk that does not answer: it accepts and says nothing."""
    postmaster = psutil.Process(world.postgres.postmaster_pid())
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    yield
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def postgres_connections(world: World) -> Iterator[None]:
    """A program took nearly all connections and does nothing with them."""
    with ExitStack() as held:
        for _ in range(MAX_CONNECTIONS - 5):
            held.enter_context(world.connect())
        yield


@contextmanager
def postgres_blocked(world: World) -> Iterator[None]:
    """A session holds a lock and does not let go; another one waits for it."""
    with world.connect() as holder, world.connect() as waiter:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE album IN ACCESS EXCLUSIVE MODE")
        waiter.pgconn.send_query(b"SELECT count(*) FROM album")
        yield
        holder.execute("COMMIT")
        while waiter.pgconn.get_result() is not None:
            pass


@contextmanager
def postgres_unsafe_setting(world: World) -> Iterator[None]:
    """Somebody followed a bad advice after a damaged page: Postgres now replaces damaged pages by empty ones."""
    with world.connect() as connection:
        connection.execute("ALTER SYSTEM SET zero_damaged_pages = on")
        connection.execute("SELECT pg_reload_conf()")
        yield
        connection.execute("ALTER SYSTEM RESET zero_damaged_pages")
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def invalid_index(world: World) -> Iterator[None]:
    """An index could not be built, and was left behind."""
    with world.connect() as connection:
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY demo_broken ON asset (type)")
        yield
        connection.execute("DROP INDEX demo_broken")


@contextmanager
def damaged_page(world: World) -> Iterator[None]:
    """A disk changed some bytes in a page of a table, and somebody read it."""
    with world.connect() as connection:
        row = connection.execute("SELECT pg_relation_filepath('asset_exif')").fetchone()
    if row is None:
        raise AssertionError("a query without FROM gives one row")
    world.postgres.stop()
    with (world.postgres.data / str(row[0])).open("r+b") as table:
        table.seek(PAGE_BYTES // 2)
        table.write(b"demo")
    world.postgres.start()
    with world.connect() as connection, contextlib.suppress(psycopg.errors.DataCorrupted):
        connection.execute("SELECT count(*) FROM asset_exif")
    yield
    world.fill_database()


@contextmanager
def disk_nearly_full(world: World) -> Iterator[None]:
    """The media folder lies on a small disk of its own, a real file system, and that is nearly full."""
    moved = world.folder / "media-moved"
    world.media.rename(moved)
    world.media.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "immich-vitals-demo", str(world.media)], check=True
    )
    shutil.copytree(moved, world.media, dirs_exist_ok=True)
    room = os.statvfs(world.media)
    (world.media / "upload" / "much.bin").write_bytes(bytes(room.f_bavail * room.f_frsize - LEFT_BYTES))
    yield
    subprocess.run(["umount", str(world.media)], check=True)
    world.media.rmdir()
    moved.rename(world.media)


@contextmanager
def media_missing(world: World) -> Iterator[None]:
    """The media folder is not where it was: the disk is not mounted."""
    away = world.folder / "media-away"
    world.media.rename(away)
    yield
    away.rename(world.media)


FAULTS_SERVICES: dict[str, Fault] = {
    "thumbnails-pending": Fault(
        "60 assets have lost their thumbnails, and no job is left to make them.",
        thumbnails_pending,
        Sign("library_pending", at_least=62, labels={"stage": "thumbnail"}),
        "ImmichThumbnailCoverageDropped",
    ),
    "unprocessed-assets": Fault(
        "25 assets were never processed, and Immich's own run for missing thumbnails does not see them.",
        unprocessed_assets,
        Sign("library_unprocessed_assets", at_least=25),
        "ImmichAssetsNeverProcessed",
    ),
    "database-empty": Fault(
        "Postgres runs on a fresh, empty database.",
        database_empty,
        Sign("library_users", at_most=0),
        "ImmichDatabaseEmpty",
    ),
    "external-library-offline": Fault(
        "The disk of the external library is away.",
        external_library_offline,
        Sign("library_external_offline_assets", at_least=24),
        "ImmichMediaMountMissing",
    ),
    "queue-paused": Fault(
        "The thumbnail queue is paused with 40 jobs in it.",
        queue_paused,
        Sign("queue_paused", at_least=1, labels={"queue": QUEUE}),
        "ImmichQueuePaused",
    ),
    "queue-stalled": Fault(
        "40 jobs wait, and the workers hang.",
        queue_stalled,
        Sign("queue_jobs", at_least=40, labels={"queue": QUEUE, "state": "waiting"}),
        "ImmichQueueStalled",
    ),
    "queue-no-workers": Fault(
        "40 jobs wait, and there is no worker.",
        queue_no_workers,
        Sign("queue_workers", at_most=0, labels={"queue": QUEUE}),
        "ImmichQueueNoWorkers",
    ),
    "queue-orphaned": Fault(
        "A job is active, and nobody holds its lock.",
        queue_orphaned,
        Sign("queue_orphaned_jobs", at_least=1, labels={"queue": QUEUE}),
        "ImmichQueueOrphanedJobs",
    ),
    "redis-down": Fault("Redis is stopped.", redis_down, Sign("redis_up", at_most=0), "ImmichRedisDown"),
    "redis-not-writable": Fault(
        "Redis cannot save its data and refuses writes.",
        redis_not_writable,
        Sign("redis_writable", at_most=0),
        "ImmichRedisNotWritable",
    ),
    "redis-memory-full": Fault(
        "Redis has used up the memory it may use and refuses writes.",
        redis_memory_full,
        Sign("redis_writable", at_most=0),
        "ImmichRedisNotWritable",
    ),
    "redis-evicting-policy": Fault(
        "Redis may throw away jobs when memory gets short.",
        redis_evicting_policy,
        Sign("redis_eviction_policy_safe", at_most=0),
        "ImmichRedisEvicting",
    ),
    "postgres-down": Fault("Postgres is stopped.", postgres_down, Sign("postgres_up", at_most=0), "ImmichPostgresDown"),
    "postgres-hung": Fault(
        "Postgres accepts connections and does not answer.",
        postgres_hung,
        Sign("postgres_up", at_most=0),
        "ImmichPostgresDown",
    ),
    "postgres-connections": Fault(
        f"{MAX_CONNECTIONS - 5} of {MAX_CONNECTIONS} connections of Postgres are taken by a program that idles.",
        postgres_connections,
        Sign("postgres_connections", at_least=MAX_CONNECTIONS - 5, labels={"state": "idle"}),
        "ImmichPostgresConnectionsNearLimit",
    ),
    "postgres-blocked": Fault(
        "A session of Postgres waits for a lock that another one keeps.",
        postgres_blocked,
        Sign("postgres_blocked_sessions", at_least=1),
        "ImmichPostgresBlocked",
    ),
    "postgres-unsafe-setting": Fault(
        "Postgres is set to replace damaged pages by empty ones.",
        postgres_unsafe_setting,
        Sign("postgres_unsafe_setting", at_least=1, labels={"setting": "zero_damaged_pages"}),
        "ImmichPostgresUnsafeSetting",
    ),
    "invalid-index": Fault(
        "An index of the database failed to build.",
        invalid_index,
        Sign("postgres_invalid_indexes", at_least=1),
        "ImmichPostgresInvalidIndex",
    ),
    "damaged-page": Fault(
        "A page of a table is damaged on disk, and was read.",
        damaged_page,
        Sign("postgres_checksum_failures_total", at_least=1, labels={"database": "immich"}),
        "ImmichPostgresCorruption",
    ),
    "disk-nearly-full": Fault(
        f"The disk of the media folder ({SMALL_DISK_BYTES >> 20} MiB) has {LEFT_BYTES >> 20} MiB left.",
        disk_nearly_full,
        Sign("filesystem_avail_bytes", at_most=2 * LEFT_BYTES, labels={"role": "media"}),
        "ImmichDiskFull",
        lambda: (
            None
            if may_mount()
            else "it mounts a small file system, and only root may (inside a container: not even root)"
        ),
    ),
    "media-missing": Fault(
        "The media folder is gone, as when its disk is not mounted.",
        media_missing,
        Sign("filesystem_found", at_most=0, labels={"role": "media"}),
        "ImmichMediaMountMissing",
    ),
}


@contextmanager
def _waiting_jobs(world: World) -> Iterator[None]:
    with world.redis.client() as client:
        add_jobs(client, QUEUE, JOB, 40)
        yield
        client.delete(f"{PREFIX}:{QUEUE}:wait", f"{PREFIX}:{QUEUE}:active", f"{PREFIX}:{QUEUE}:marker")


def _persistence(client: "redis.Redis", name: str) -> object:
    facts: dict[str, object] = client.info("persistence")
    return None if facts["rdb_bgsave_in_progress"] else facts[name]
