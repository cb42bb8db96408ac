"""Real faults in a real Postgres, as the collector `postgres` sees them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.postgres import UP, PostgresCollector
from immich_vitals.demo.servers import Postgres
from immich_vitals.grants import grants_sql
from immich_vitals.metrics import Sample
from support.immich_database import config, immich_database
from support.installed_postgres import InstalledPostgres, folders

_numbers = count(1)
Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(params=[16, 18])
def own(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[Postgres]:
    """A server that the test may damage, of each embedded version."""
    with Postgres(server_folder / f"faults{next(_numbers)}", request.param) as server:
        yield server


def run(collector: PostgresCollector, seconds: float = 5.0) -> dict[tuple[str, ...], float]:
    """One run: the values by name without prefix, then labels."""
    samples: list[Sample] = list(collector.collect(Context(Deadline.after(seconds), SystemClock())))
    return {(sample.metric.name.removeprefix("postgres_"), *sample.labels): sample.value for sample in samples}


def failure_of(collector: PostgresCollector, seconds: float = 5.0) -> CollectorFailure:
    with pytest.raises(CollectorFailure) as caught:
        run(collector, seconds)
    return caught.value


def up(failure: CollectorFailure) -> float | None:
    """What the failure still knows of postgres_up; None when it does not."""
    return next((sample.value for sample in failure.known if sample.metric is UP), None)


@contextlib.contextmanager
def watching(server: Postgres, database: str = "postgres", user: str = "postgres", password: str | None = None):  # type: ignore[no-untyped-def]
    """A collector, closed at the end."""
    collector = PostgresCollector(config(server, database, user, password))
    try:
        yield collector
    finally:
        collector.close()


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it is true; fails after `seconds`."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "did not become true"
        time.sleep(0.01)


def test_a_damaged_page(own: Postgres) -> None:
    """Four bytes overwritten in a table are counted once the page is read, for that database only."""
    with own.connect() as connection:
        connection.execute("CREATE TABLE asset AS SELECT repeat('x', 100) AS filling FROM generate_series(1, 1000)")
        row = connection.execute("SELECT pg_relation_filepath('asset')").fetchone()
    own.stop()
    assert row is not None
    with (own.data / str(row[0])).open("r+b") as file:
        file.seek(8192 + 4000)
        file.write(b"\xde\xad\xbe\xef")
    own.start()
    with watching(own) as collector:
        assert run(collector)["checksum_failures_total", "postgres"] == 0
        with own.connect() as connection, pytest.raises(psycopg.errors.DataCorrupted):
            connection.execute("SELECT count(*) FROM asset")
        eventually(lambda: run(collector)["checksum_failures_total", "postgres"] == 1)
        seen = run(collector)
        assert abs(seen["checksum_last_failure_timestamp_seconds", "postgres"] - time.time()) < 60
        assert seen["checksum_failures_total", "template1"] == 0


@pytest.mark.parametrize("major", [16, 18])
def test_checksums_off(major: int, server_folder: Path) -> None:
    """Without data checksums there is no count of failures at all, rather than 0."""
    with (
        Postgres(server_folder / f"faults{next(_numbers)}", major, checksums=False) as server,
        watching(server) as collector,
    ):
        seen = run(collector)
    assert seen["checksums_enabled",] == 0
    assert not [key for key in seen if key[0].startswith("checksum_")]


def test_a_deadlock(own: Postgres) -> None:
    """Two sessions that lock each other out raise the count of deadlocks."""
    with own.connect() as first, own.connect() as second, watching(own) as collector:
        first.execute("CREATE TABLE a (id int); CREATE TABLE b (id int)")
        assert run(collector)["deadlocks_total",] == 0
        first.execute("BEGIN; LOCK TABLE a")
        second.execute("BEGIN; LOCK TABLE b")
        errors: list[type[Exception]] = []

        def cross(connection: Connection, table: str) -> None:
            try:
                connection.execute(f"LOCK TABLE {table}".encode())
            except psycopg.errors.DeadlockDetected as error:
                errors.append(type(error))
            connection.execute("ROLLBACK")

        threads = [
            threading.Thread(target=cross, args=(first, "b")),
            threading.Thread(target=cross, args=(second, "a")),
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: run(collector)["blocked_sessions",] > 0)
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        eventually(lambda: run(collector)["deadlocks_total",] == 1)


def test_a_blocked_session(own: Postgres) -> None:
    """A session that waits for a table counts as blocked; one that waits for an advisory lock, as Immich's do, not."""
    with own.connect() as holder, own.connect() as waiter, watching(own) as collector:
        holder.execute("CREATE TABLE asset (id int)")
        holder.execute("BEGIN; LOCK TABLE asset; SELECT pg_advisory_lock(200)")

        def waits_for(statement: str, blocked: int) -> None:
            thread = threading.Thread(target=waiter.execute, args=(statement.encode(),))
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: holder.execute(waiting).fetchone() == (1,))
            assert run(collector)["blocked_sessions",] == blocked
            holder.execute("COMMIT; SELECT pg_advisory_unlock_all()")
            thread.join()
            assert run(collector)["blocked_sessions",] == 0

        waits_for("SELECT count(*) FROM asset", 1)
        holder.execute("SELECT pg_advisory_lock(200)")
        waits_for("SELECT pg_advisory_lock(200)", 0)


def test_the_oldest_transaction(own: Postgres) -> None:
    """The oldest open transaction of others is seen, our own is not."""
    with own.connect() as other, watching(own) as collector, watching(own) as library:
        assert ("oldest_transaction_timestamp_seconds",) not in run(collector)
        run(library)
        row = other.execute("BEGIN; SELECT extract(epoch FROM now())::float8")
        row.nextset()
        began = row.fetchone()
        assert began is not None
        seen = run(collector)
        assert seen["oldest_transaction_timestamp_seconds",] == pytest.approx(float(str(began[0])))
        assert seen["connections", "idle_in_transaction"] == 1
        other.execute("COMMIT")
        assert ("oldest_transaction_timestamp_seconds",) not in run(collector)


def test_an_invalid_index(own: Postgres) -> None:
    """An index whose concurrent build failed is counted; one that is just being built is not."""
    with own.connect() as connection, own.connect() as other, watching(own) as collector:
        connection.execute("CREATE TABLE asset (checksum int); INSERT INTO asset VALUES (1), (1)")
        assert run(collector)["invalid_indexes",] == 0
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY checksums ON asset (checksum)")
        assert run(collector)["invalid_indexes",] == 1
        connection.execute("DROP INDEX checksums")
        other.execute("BEGIN; INSERT INTO asset VALUES (2)")
        statement = b"CREATE INDEX CONCURRENTLY slow ON asset (checksum)"
        thread = threading.Thread(target=connection.execute, args=(statement,))
        thread.start()
        eventually(lambda: other.execute("SELECT FROM pg_index WHERE NOT indisvalid").fetchone() is not None)
        assert run(collector)["invalid_indexes",] == 0
        other.execute("COMMIT")
        thread.join()


UNSAFE = {"zero_damaged_pages": "on", "ignore_checksum_failure": "on", "fsync": "off", "full_page_writes": "off"}


def test_unsafe_settings(own: Postgres) -> None:
    """A setting made unsafe shows as 1, be it for everybody, for a role or for Immich's database; one that a role has
    for another database does not."""
    with own.connect() as admin, watching(own) as collector:
        assert [run(collector)["unsafe_setting", name] for name in UNSAFE] == [0, 0, 0, 0]
        for name, unsafe in UNSAFE.items():
            admin.execute(f"ALTER SYSTEM SET {name} = {unsafe}".encode())
        admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: [run(collector)["unsafe_setting", name] for name in UNSAFE] == [1, 1, 1, 1])
        admin.execute("ALTER SYSTEM RESET ALL")
        admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: [run(collector)["unsafe_setting", name] for name in UNSAFE] == [0, 0, 0, 0])
        admin.execute("CREATE ROLE immich; ALTER ROLE immich IN DATABASE template1 SET zero_damaged_pages = on")
        assert run(collector)["unsafe_setting", "zero_damaged_pages"] == 0
        for role, value in (("immich", "true"), ("postgres", "1")):  # that of Immich, and our own
            admin.execute(f"ALTER ROLE {role} SET zero_damaged_pages = {value}".encode())
            collector.close()
            assert run(collector)["unsafe_setting", "zero_damaged_pages"] == 1
            admin.execute(f"ALTER ROLE {role} RESET ALL".encode())
        collector.close()
        admin.execute("DROP ROLE immich; ALTER DATABASE postgres SET zero_damaged_pages = on")
        assert run(collector)["unsafe_setting", "zero_damaged_pages"] == 1


def test_read_only(own: Postgres) -> None:
    """Read-only by default for everybody is not writable; for our own role alone it is."""
    with own.connect() as admin, watching(own) as collector:
        admin.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
        assert run(collector)["writable",] == 1
        collector.close()
    own.restart()
    with own.connect() as admin, watching(own) as collector:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute("ALTER ROLE postgres RESET ALL")
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: run(collector)["writable",] == 0)


def test_a_standby(own: Postgres) -> None:
    """A server in recovery is up and not writable."""
    own.stop()
    (own.data / "standby.signal").touch()
    own.start()
    with watching(own) as collector:
        seen = run(collector)
    assert seen["up",] == 1
    assert seen["writable",] == 0


def test_a_frozen_server(own: Postgres) -> None:
    """A stopped postmaster is answered for within the deadline, as down, and the next run after it goes on is fine."""
    postmaster = own.postmaster_pid()
    with watching(own) as collector:
        os.kill(postmaster, signal.SIGSTOP)
        try:
            began = time.monotonic()
            failure = failure_of(collector, 0.7)
            assert 0.6 < time.monotonic() - began < 0.9
        finally:
            os.kill(postmaster, signal.SIGCONT)
        assert failure.reason == "timeout"
        assert up(failure) == 0
        assert run(collector)["up",] == 1


def test_a_frozen_session(own: Postgres) -> None:
    """When only the process behind our kept connection hangs, the run ends in time and the next one is fine."""
    with own.connect() as admin, watching(own) as collector:
        run(collector)
        pid = our_session(admin)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            failure = failure_of(collector, 0.7)
            assert 0.6 < time.monotonic() - began < 0.9
            assert failure.reason == "timeout"
            assert run(collector)["up",] == 1
        finally:
            os.kill(pid, signal.SIGCONT)


def our_session(admin: Connection) -> int:
    """The process of our connection."""
    row = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'immich-vitals'").fetchone()
    assert row is not None
    return int(str(row[0]))


def test_a_killed_session(own: Postgres) -> None:
    """A connection ended between two runs costs nothing: the next run connects again and succeeds."""
    with own.connect() as admin, watching(own) as collector:
        run(collector)
        pid = our_session(admin)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert run(collector)["up",] == 1
        assert our_session(admin) != pid


def test_restarted_between_runs(own: Postgres) -> None:
    """Down while it is stopped, up as soon as it is back, with a later start; no connection of ours is left over."""
    with watching(own) as collector:
        first = run(collector)
        own.stop()
        failure = failure_of(collector)
        assert "refuses the connection" in failure.message
        assert up(failure) == 0
        own.start()
        second = run(collector)
        assert second["start_timestamp_seconds",] > first["start_timestamp_seconds",]
        assert second["info", own_version(second), system_identifier(first)] == 1
        assert sum(value for key, value in second.items() if key[0] == "connections") == 1


def own_version(seen: dict[tuple[str, ...], float]) -> str:
    return next(key[1] for key in seen if key[0] == "info")


def system_identifier(seen: dict[tuple[str, ...], float]) -> str:
    return next(key[2] for key in seen if key[0] == "info")


def test_shutting_down(own: Postgres) -> None:
    """A server that waits for its last session to leave takes no logins: down."""
    with own.connect() as last, watching(own) as collector:
        os.kill(own.postmaster_pid(), signal.SIGTERM)
        eventually(lambda: "shutting down" in failure_of(collector).message)
        assert up(failure_of(collector)) == 0
        last.close()


def test_recovering_after_a_crash(own: Postgres) -> None:
    """Killed sessions throw away the statistics and not the start time, and no run breaks for good. What tells of the
    crash is the checkpointer, which a reset of the statistics by hand does not touch."""
    with watching(own) as collector:
        before = run(collector)
        with own.connect() as admin:
            os.kill(our_session(admin), signal.SIGKILL)

        def back() -> bool:
            try:
                return run(collector)["up",] == 1
            except CollectorFailure as failure:
                assert up(failure) == 0
                return False

        eventually(back)
        after = run(collector)
        assert after["start_timestamp_seconds",] == before["start_timestamp_seconds",]
        assert after["checkpointer_start_timestamp_seconds",] > before["checkpointer_start_timestamp_seconds",]
        with own.connect() as admin:
            admin.execute("SELECT pg_stat_reset(), pg_reload_conf()")
        later = run(collector)
        assert later["checkpointer_start_timestamp_seconds",] == after["checkpointer_start_timestamp_seconds",]


def test_full(server_folder: Path) -> None:
    """No connection left: the collector fails, and Postgres is up all the same."""
    settings = {"max_connections": "3", "superuser_reserved_connections": "0"}
    with (
        Postgres(server_folder / f"faults{next(_numbers)}", 16, settings=settings) as server,
        watching(server) as collector,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(server.connect()) for _ in range(3)]
        failure = failure_of(collector)
        assert failure.reason == "unavailable"
        assert "no connection left" in failure.message
        assert up(failure) == 1
        held.pop().close()
        eventually(lambda: answers(collector))


def answers(collector: PostgresCollector) -> bool:
    with contextlib.suppress(CollectorFailure):
        return run(collector)["up",] == 1
    return False


def test_rejected_logins(own: Postgres) -> None:
    """Each way to be turned away has its own words and mend, and none of them says that Postgres is down."""
    with own.connect() as admin:
        admin.execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE vitals LOGIN PASSWORD 'right'")
        admin.execute("CREATE ROLE nologin NOLOGIN; CREATE ROLE outside LOGIN")
        admin.execute("CREATE DATABASE closed")
        admin.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    rules = (
        "host all outside 127.0.0.1/32 reject\nhost nowhere vitals 127.0.0.1/32 trust\n"
        "host postgres,closed vitals 127.0.0.1/32 scram-sha-256\nhost all postgres,nobody,nologin 127.0.0.1/32 trust\n"
        "local all all trust\n"
    )
    (own.data / "pg_hba.conf").write_text(rules, encoding="utf-8")
    own.restart()
    attempts = [
        ("postgres", "vitals", "wrong", "rejects the password of role 'vitals'", "DB_PASSWORD"),
        ("postgres", "vitals", None, "rejects the password of role 'vitals'", "DB_PASSWORD"),
        ("postgres", "nobody", None, "has no role 'nobody'", "DB_USERNAME"),
        ("postgres", "nologin", None, "has no role 'nologin'", "DB_USERNAME"),
        ("missing", "postgres", None, "has no database 'missing'", "DB_DATABASE_NAME"),
        ("template1", "vitals", "right", "no rule in pg_hba.conf", "pg_hba.conf"),
        ("postgres", "outside", None, "no rule in pg_hba.conf", "pg_hba.conf"),
        ("closed", "vitals", "right", "may not connect to database 'closed'", "immich-vitals grants"),
    ]
    for database, user, password, words, mend in attempts:
        with watching(own, database, user, password) as collector:
            failure = failure_of(collector)
        assert failure.reason == "unavailable"
        assert words in failure.message
        assert mend in failure.mend
        assert up(failure) is None
    with watching(own, "postgres", "vitals", "right") as collector:
        assert run(collector)["up",] == 1


def test_tls_that_does_not_fit(own: Postgres) -> None:
    """A server without TLS, asked for TLS, is a matter of settings and not down."""
    settings = config(own, "postgres")
    collector = PostgresCollector(
        type(settings)(settings.host, settings.port, settings.user, None, "postgres", {"sslmode": "require"})
    )
    failure = failure_of(collector)
    assert "TLS" in failure.message
    assert "DB_SSL_MODE" in failure.mend
    assert up(failure) is None


def test_a_role_without_rights(own: Postgres) -> None:
    """A bare role sees every session, with its state unknown, and all the other numbers but the checkpointer's."""
    with own.connect() as admin, own.connect(), watching(own, user="bare") as collector:
        admin.execute("CREATE ROLE bare LOGIN")
        seen = run(collector)
        assert seen["connections", "unknown"] == 2
        assert seen["connections", "active"] == 1
        with watching(own) as full:
            assert run(full).keys() ^ seen.keys() == {("checkpointer_start_timestamp_seconds",)}


def test_the_role_of_grants(postgres: Postgres) -> None:
    """The role that `grants` makes gives the same series and numbers as a superuser, states included."""
    with immich_database(postgres, "2.7.5") as database, postgres.connect(database) as admin:
        admin.execute(grants_sql(database, "vitals").encode())
        admin.execute("BEGIN")
        with watching(postgres, database, "vitals") as least, watching(postgres, database) as full:
            run(least), run(full)
            mine, theirs = run(least), run(full)
        admin.execute("COMMIT")
        admin.execute("DROP OWNED BY vitals; DROP ROLE vitals")
    moving = ("connections", "active"), ("connections", "idle"), ("database_size_bytes",)
    assert {key: value for key, value in mine.items() if key not in moving} == {
        key: value for key, value in theirs.items() if key not in moving
    }
    assert mine["connections", "unknown"] == 0
    assert mine["connections", "idle_in_transaction"] == 1


def test_no_system_identifier(own: Postgres) -> None:
    """Where the control data is closed to our role, the identifier is left out and the rest is there."""
    with own.connect() as admin, watching(own, user="bare") as collector:
        admin.execute("CREATE ROLE bare LOGIN; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        seen = run(collector)
    assert system_identifier(seen) == ""
    assert seen["up",] == 1


def test_a_collation_of_another_version(own: Postgres) -> None:
    """A database whose recorded collation version is not the one in use shows as 1, its neighbours as 0."""
    with own.connect() as admin, watching(own) as collector:
        if own.binaries.parent.name != "pginstall18":
            # This build of Postgres 16 has no collation with a version: no sample rather than a guess.
            assert not [key for key in run(collector) if key[0] == "collation_mismatch"]
            return
        for name in ("stale", "fresh"):
            admin.execute(
                f"CREATE DATABASE {name} LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' TEMPLATE template0".encode()
            )
        admin.execute("UPDATE pg_database SET datcollversion = '0' WHERE datname = 'stale'")
        seen = run(collector)
    assert seen["collation_mismatch", "stale"] == 1
    assert seen["collation_mismatch", "fresh"] == 0
    assert ("collation_mismatch", "postgres") not in seen


@pytest.mark.parametrize("major", sorted(folders()) or [pytest.param(0, marks=pytest.mark.skip("no other Postgres"))])
def test_installed_versions(major: int, server_folder: Path) -> None:
    """Every Postgres that is installed here gives the same metrics; ICU collations are compared where there are any."""
    with InstalledPostgres(server_folder / f"faults{next(_numbers)}", major) as server, watching(server) as collector:
        seen = run(collector)
        assert seen["up",] == 1
        assert seen["checksum_failures_total", "postgres"] == 0
        assert system_identifier(seen)
        if major >= 15:
            with server.connect() as admin:
                admin.execute("CREATE DATABASE stale LOCALE_PROVIDER icu ICU_LOCALE 'en-US' TEMPLATE template0")
                assert run(collector)["collation_mismatch", "stale"] == 0
                admin.execute("UPDATE pg_database SET datcollversion = '1.1' WHERE datname = 'stale'")
            assert run(collector)["collation_mismatch", "stale"] == 1


def test_no_descriptor_or_connection_is_left(own: Postgres) -> None:
    """Fifty runs against a server that comes and goes leave no descriptor here and no session there."""
    folder = Path("/proc/self/fd")
    with watching(own) as collector, own.connect() as admin:
        run(collector)
        before = len(list(folder.iterdir()))
        for number in range(50):
            if number % 2:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", (our_session(admin),))
                run(collector)
            else:
                failure_of(collector, 0.0)
                run(collector)
        assert len(list(folder.iterdir())) <= before  # fewer when one of another test was let go meanwhile
        row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'immich-vitals'")
        assert row.fetchone() == (1,)
