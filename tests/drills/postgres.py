"""Postgres that does not start or refuses, and data that are damaged or somebody else's."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drills.drill import Drill, Injection
from drills.services import paused
from support.docker_engine import EngineError
from support.machine import PG_BIN, POSTGRES_USER, Machine

NAME = "immich_postgres"
DISK = "postgres"
PAGE = 8192
NOBODY = 65534
CONTROL = "/usr/share/postgresql/17/extension/vector.control"
# A tool that takes connections and keeps them; where there are no more it waits for the next.
LEAK = (
    "import sys, time; sys.path.insert(0, '/stand-ins')\n"
    "import psycopg, immich_server\n"
    "kept = []\n"
    "while len(kept) < {count}:\n"
    "    try:\n"
    "        kept.append(immich_server.database())\n"
    "    except psycopg.Error:\n"
    "        time.sleep(0.2)\n"
    "time.sleep(3600)\n"
)
JOIN = (
    "CREATE TABLE drill AS SELECT n, repeat('x', 100) AS x FROM generate_series(1, 100000) n",
    "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
    "SET enable_mergejoin = off; SET enable_nestloop = off; SET work_mem = '64MB'",
    "SELECT count(a.x || b.x) FROM drill a JOIN drill b USING (n)",
)


@contextmanager
def changed_while_stopped(machine: Machine, change: Callable[[Path], None]) -> Iterator[None]:
    """Postgres is stopped, something is done to the folder of its data, and it is started again; at the end the folder
    is as it was `copied`."""
    folder = machine.on_disk(DISK)
    machine.docker(f"stop {NAME}")
    change(folder)
    machine.docker(f"start {NAME}")
    yield
    machine.docker(f"stop {NAME}")
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    machine.sh(f"cp -a {copy_of(machine)}/. {folder}")
    machine.docker(f"start {NAME}")
    machine.wait_until_up()


@contextmanager
def copied(machine: Machine) -> Iterator[None]:
    """There is a copy of the folder of Postgres' data, since to make one takes as long as Postgres may be down."""
    machine.docker(f"stop {NAME}")
    machine.sh(f"cp -a {machine.on_disk(DISK)}/. {copy_of(machine)}")
    machine.docker(f"start {NAME}")
    machine.wait_until_up()
    yield
    shutil.rmtree(copy_of(machine))


def copy_of(machine: Machine) -> Path:
    return machine.engine.folder / "postgres-before"


@contextmanager
def refuses(machine: Machine, change: Callable[[Path], None], undo: Callable[[Path], None]) -> Iterator[None]:
    """Something is done to the folder of Postgres' data, and then Postgres ends and Docker starts it again."""
    folder = machine.on_disk(DISK)
    change(folder)
    os.kill(machine.host_pid(NAME), signal.SIGINT)
    yield
    undo(folder)
    machine.docker(f"restart {NAME}")
    machine.wait_until_up()


def owned(user: int, mode: int) -> Injection:
    """The folder of the data belongs to somebody else, or others may look into it."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        with refused_folder(machine, user, mode):
            yield

    return inject


@contextmanager
def refused_folder(machine: Machine, user: int, mode: int) -> Iterator[None]:
    def own(folder: Path, user: int, mode: int) -> None:
        os.chown(folder, user, -1)
        folder.chmod(mode)

    with refuses(machine, lambda folder: own(folder, user, mode), lambda folder: own(folder, POSTGRES_USER, 0o700)):
        yield


@contextmanager
def refused_folder_without_redis(machine: Machine) -> Iterator[None]:
    with refused_folder(machine, NOBODY, 0o755):
        machine.wait_for("it gave up", lambda: int(machine.engine.value(NAME, "{{.RestartCount}}")) > 5)
        machine.docker("stop immich_redis")
        yield
        machine.docker("start immich_redis")


@contextmanager
def other_version(machine: Machine) -> Iterator[None]:
    """The files say that another major version made them."""

    def say(folder: Path, version: str) -> None:
        (folder / "PG_VERSION").write_text(f"{version}\n")

    with refuses(machine, lambda folder: say(folder, "16"), lambda folder: say(folder, "17")):
        yield


@contextmanager
def library_missing(machine: Machine) -> Iterator[None]:
    """The settings name a library to preload that the image does not have, as after an exchange of the image."""

    def forget(folder: Path) -> None:
        path = folder / "postgresql.auto.conf"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "shared_preload_libraries" not in line))

    machine.sql("ALTER SYSTEM SET shared_preload_libraries = 'vchord.so'")
    with refuses(machine, lambda _: None, forget):
        yield


def page_damaged(table: str, *, dump: bool = False) -> Injection:
    """A disk changes four bytes in a page of a table. With `dump` the nightly dump is made afterwards."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        path = table_file(machine, table)

        def change(folder: Path) -> None:
            with (folder / path).open("r+b") as file:
                file.seek(PAGE + PAGE // 2)
                file.write(b"\xde\xad\xbe\xef")

        with changed_while_stopped(machine, change):
            machine.wait_until_up()
            if dump:
                machine.add_job("backupDatabase", "DatabaseBackup")
            yield
        if dump:
            machine.back_up()

    return inject


@contextmanager
def table_cut_short(machine: Machine) -> Iterator[None]:
    """A power failure took the end of a table's file along; Postgres reads what is left without an error."""
    path = table_file(machine, "asset_exif")
    with changed_while_stopped(machine, lambda folder: os.truncate(folder / path, 2 * PAGE)):
        yield
    machine.sql("VACUUM FULL asset_exif")  # new rows may have made it as long as before; a new file is whole
    machine.vitals("restart exporter")  # it looks at the files at its start, and every five minutes


def table_file(machine: Machine, table: str) -> str:
    machine.sql(f"VACUUM ANALYZE {table}")
    return machine.sql(f"SELECT pg_relation_filepath('{table}')")


@contextmanager
def older_copy(machine: Machine) -> Iterator[None]:
    """The folder of the data is one of some days ago: without the newest photos."""

    image = machine.engine.value(NAME, "{{.Config.Image}}")

    def change(folder: Path) -> None:
        machine.sh(
            f"docker run --rm -i -v {folder}:/var/lib/postgresql/data --entrypoint {PG_BIN}/postgres {image}"
            " --single -D /var/lib/postgresql/data immich <<'END'\n"
            'DELETE FROM asset WHERE "createdAt" > (SELECT max("createdAt") - interval \'5 days\' FROM asset)\n'
            "END"
        )

    with changed_while_stopped(machine, change):
        yield


@contextmanager
def empty_folder(machine: Machine) -> Iterator[None]:
    """DB_DATA_LOCATION names a folder that is new; Immich starts as on its first day."""
    machine.set_environment(DB_DATA_LOCATION="./postgres-new")
    with new_folder(machine):
        machine.immich("up -d")
        machine.wait_until_up()
        yield
        machine.set_environment(DB_DATA_LOCATION="./postgres")
        machine.immich("up -d")
        machine.wait_until_up()


@contextmanager
def new_folder(machine: Machine) -> Iterator[None]:
    folder = machine.folder / "postgres-new"
    folder.mkdir(mode=0o700)
    os.chown(folder, POSTGRES_USER, POSTGRES_USER)
    yield
    shutil.rmtree(folder)


@contextmanager
def somebody_elses_folder(machine: Machine) -> Iterator[None]:
    """DB_DATA_LOCATION names a folder that is of another Immich, with a handful of photos."""
    dump = f"docker exec {NAME} {PG_BIN}/pg_dump -h /tmp -U postgres immich"
    with new_folder(machine):
        image = machine.engine.value(NAME, "{{.Config.Image}}")
        machine.docker(
            f"run --detach --name other -v {machine.folder}/postgres-new:/var/lib/postgresql/data"
            f" -e POSTGRES_PASSWORD=postgres -e POSTGRES_USER=postgres -e POSTGRES_DB=immich {image}"
        )
        psql = f"docker exec -i other {PG_BIN}/psql -h /tmp -U postgres -q -d immich"
        machine.wait_for("the other Postgres answers", lambda: machine.sh(f"{psql} -c 'SELECT 1'"))
        machine.sh(f"{dump} | {psql}")
        machine.sh(f'{psql} -c "DELETE FROM asset WHERE id NOT IN (SELECT id FROM asset LIMIT 5)"')
        machine.docker("stop other")
        machine.docker("rm other")
        machine.set_environment(DB_DATA_LOCATION="./postgres-new")
        machine.immich("up -d")
        machine.wait_until_up()
        yield
        machine.set_environment(DB_DATA_LOCATION="./postgres")
        machine.immich("up -d")
        machine.wait_until_up()


@contextmanager
def server_password_changed(machine: Machine) -> Iterator[None]:
    """DB_PASSWORD is changed in `.env`, and the server made anew."""
    machine.set_environment(DB_PASSWORD="new")
    machine.immich("up -d --no-deps immich-server")
    yield
    machine.set_environment(DB_PASSWORD="postgres")
    machine.immich("up -d --no-deps immich-server")
    machine.wait_until_up()


@contextmanager
def exporter_password_wrong(machine: Machine) -> Iterator[None]:
    """The exporter is started with a password that Postgres does not know."""
    machine.set_environment(DB_PASSWORD="new")
    machine.vitals("up -d --no-deps exporter")
    machine.set_environment(DB_PASSWORD="postgres")
    yield
    machine.vitals("up -d --no-deps exporter")


@contextmanager
def extension_missing(machine: Machine) -> Iterator[None]:
    """The image has no pgvector, and the server is started anew."""
    inside = f"exec --user 0 {NAME} mv"
    machine.docker(f"{inside} {CONTROL} {CONTROL}.gone")
    machine.docker("restart immich_server")
    yield
    machine.docker(f"{inside} {CONTROL}.gone {CONTROL}")
    machine.wait_until_up()


@contextmanager
def shared_memory_small(machine: Machine) -> Iterator[None]:
    """The container has 4 MiB in /dev/shm, and a query joins two tables with several workers. With 1 MiB Postgres does
    not start."""
    with machine.changed("database", {"shm_size": "4mb"}):
        machine.wait_for("Postgres answers", lambda: machine.sql("SELECT 1"))
        try:
            machine.sql(*JOIN, database="postgres")
        except EngineError as error:
            assert "could not resize shared memory" in str(error)
        else:
            raise AssertionError("the join had room")
        yield
        machine.sql("DROP TABLE drill", database="postgres")


@contextmanager
def session(machine: Machine, statements: str) -> Iterator[str]:
    """Somebody at psql runs these; its process number."""
    psql = f"{PG_BIN}/psql -h /tmp -U postgres -d immich -c"
    machine.engine.run("exec", "--detach", "--env", "PGAPPNAME=somebody", NAME, "sh", "-c", f'{psql} "{statements}"')
    found = "SELECT pid FROM pg_stat_activity WHERE application_name = 'somebody' AND wait_event = 'PgSleep'"
    machine.wait_for("the session sleeps", lambda: machine.sql(found))
    yield machine.sql(found)
    machine.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'somebody'")


@contextmanager
def backend_killed(machine: Machine) -> Iterator[None]:
    """The kernel kills one process of Postgres, whatever for."""
    with session(machine, "SELECT pg_sleep(3600)") as pid:
        machine.docker(f"exec {NAME} sh -c 'kill -9 {pid}'")
        machine.wait_for("Postgres recovered", lambda: machine.sql("SELECT 1"))
        yield


@contextmanager
def table_locked(machine: Machine) -> Iterator[None]:
    """Somebody locks the table of the assets, and goes for lunch."""
    with session(machine, "BEGIN; LOCK TABLE asset; SELECT pg_sleep(3600)"):
        yield
    machine.vitals("restart exporter")  # it counts again after fifty times as long as it waited; the rules do not wait


def connections_taken(count: int) -> Injection:
    """A tool in the server's network takes so many connections and keeps them."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.engine.run("exec", "--detach", "immich_server", "python3", "-c", LEAK.format(count=count))
        yield
        machine.docker("restart immich_server")  # with the tool in it
        machine.wait_until_up()

    return inject


def setting(name: str, value: str) -> Injection:
    """`ALTER SYSTEM SET`, and have it read."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.sql(f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
        yield
        machine.sql(f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")

    return inject


@contextmanager
def standby(machine: Machine) -> Iterator[None]:
    """Somebody's script made it a standby."""
    marker = machine.on_disk(DISK) / "standby.signal"
    machine.docker(f"stop {NAME}")
    marker.touch()
    os.chown(marker, POSTGRES_USER, POSTGRES_USER)
    machine.docker(f"start {NAME}")
    yield
    machine.docker(f"stop {NAME}")
    marker.unlink()
    machine.docker(f"start {NAME}")
    machine.wait_until_up()


@contextmanager
def collation_changed(machine: Machine) -> Iterator[None]:
    """The image brings another version of ICU than the one that the database was made with."""
    machine.sql("UPDATE pg_database SET datcollversion = '1.1' WHERE datname = 'immich'")
    yield
    machine.sql("ALTER DATABASE immich REFRESH COLLATION VERSION")


@contextmanager
def index_invalid(machine: Machine) -> Iterator[None]:
    """An index that somebody meant to build concurrently, and that failed."""
    try:
        machine.sql("CREATE UNIQUE INDEX CONCURRENTLY drill ON asset (type)")
    except EngineError as error:
        assert "could not create unique index" in str(error)
    yield
    machine.sql("DROP INDEX drill")


DOWN = ("ImmichPostgresDown",)
# ImmichRestartLoop is named nowhere: Docker's waits between two tries are not hurried, so it fires only now and then.

DRILLS: Mapping[str, Drill] = {
    "database-paused": Drill(
        "`docker pause immich_postgres`.", paused(NAME), DOWN, ("ImmichContainerPaused",)
    ),
    "database-password-changed": Drill(
        "DB_PASSWORD is changed in .env, and only the server made anew.",
        server_password_changed, ("ImmichPostgresAuthFailing",),
    ),
    "exporter-password-wrong": Drill(
        "The exporter has a password that Postgres does not know.",
        exporter_password_wrong, ("ImmichCollectorFailing",),
    ),
    "database-empty": Drill(
        "DB_DATA_LOCATION is a new folder; Immich makes its tables in it.",
        empty_folder, ("ImmichDatabaseEmpty",),
    ),
    "database-rolled-back": Drill(
        "The database is an older copy of itself.", older_copy, ("ImmichDatabaseRolledBack",), prepare=copied,
    ),
    "database-replaced": Drill(
        "DB_DATA_LOCATION is the folder of another Immich, with five photos.",
        somebody_elses_folder, ("ImmichDatabaseReplaced",),
    ),
    "database-owned-by-nobody": Drill(
        "The folder of the data belongs to nobody, mode 0755.",
        owned(NOBODY, 0o755), ("ImmichPostgresWrongOwnership",), DOWN,
    ),
    "database-open-to-all": Drill(
        "The folder of the data has mode 0777.",
        owned(POSTGRES_USER, 0o777), ("ImmichPostgresWrongOwnership",), DOWN,
    ),
    "database-closed": Drill(
        "The folder of the data belongs to nobody, mode 0700: Postgres does not even see what is in it.",
        owned(NOBODY, 0o700), ("ImmichPostgresWrongOwnership",), DOWN,
    ),
    "database-refused-and-redis-stopped": Drill(
        "The folder of the data belongs to nobody, and Redis is stopped.",
        refused_folder_without_redis, ("ImmichPostgresWrongOwnership", "ImmichRedisDown"), DOWN,
    ),
    "database-of-other-version": Drill(
        "PG_VERSION says 16.", other_version, ("ImmichPostgresVersionMismatch",), DOWN,
    ),
    "page-damaged": Drill(
        "Four bytes of a page of asset_exif are overwritten, which nobody reads.",
        page_damaged("asset_exif"), ("ImmichPostgresCorruption",), prepare=copied,
    ),
    "page-damaged-and-dumped": Drill(
        "Four bytes of a page of asset are overwritten; it is read, and the nightly dump is made.",
        page_damaged("asset", dump=True),
        ("ImmichPostgresCorruption",), ("ImmichBackupFailed", "ImmichCollectorFailing"),
        changes=True,  # a dump more, made after the mend
        prepare=copied,
    ),
    "table-cut-short": Drill(
        "The file of a table is truncated to two blocks.", table_cut_short, ("ImmichPostgresCorruption",),
        prepare=copied,
    ),
    "collation-changed": Drill(
        "The database was made with another version of ICU.", collation_changed, ("ImmichPostgresCollationMismatch",)
    ),
    "library-missing": Drill(
        "shared_preload_libraries names a library that is not there.",
        library_missing, ("ImmichVectorExtensionProblem",), DOWN,
    ),
    "extension-missing": Drill(
        "The image has no vector extension, and the server is restarted.",
        extension_missing, ("ImmichVectorExtensionProblem",),
    ),
    "shared-memory-small": Drill(
        "/dev/shm of Postgres has 4 MiB, and a parallel hash join is made.",
        shared_memory_small, ("ImmichSharedMemoryFull",),
    ),
    "backend-killed": Drill(
        "A process of Postgres is killed; the container goes on.", backend_killed, ("ImmichPostgresCrashed",)
    ),
    "table-locked": Drill(
        "A session holds a lock on the table of assets.",
        table_locked, ("ImmichPostgresBlocked",), ("ImmichCollectorFailing", "ImmichImageLoadFailing"),
    ),
    "connections-few": Drill(
        "90 of 100 connections are taken.", connections_taken(90), ("ImmichPostgresConnectionsNearLimit",)
    ),
    "connections-used-up": Drill(
        "No connection is left.", connections_taken(200), ("ImmichPostgresConnectionsNearLimit",)
    ),
    "database-read-only": Drill(
        "default_transaction_read_only is on.",
        setting("default_transaction_read_only", "on"), ("ImmichPostgresReadOnly",),
    ),
    "database-standby": Drill("Postgres is started as a standby.", standby, ("ImmichPostgresReadOnly",)),
    "zero-damaged-pages": Drill(
        "zero_damaged_pages is on.", setting("zero_damaged_pages", "on"), ("ImmichPostgresUnsafeSetting",)
    ),
    "index-invalid": Drill("A concurrent build of an index failed.", index_invalid, ("ImmichPostgresInvalidIndex",)),
}  # fmt: skip
