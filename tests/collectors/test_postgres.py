"""The collector `postgres`: facts to samples, and every way to be refused."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.postgres import CONNECTIONS, STATES, UP, PostgresCollector, postgres_samples
from immich_vitals.config import PostgresConfig, Secret, load
from immich_vitals.demo.servers import Postgres, free_port
from immich_vitals.metrics import Sample
from immich_vitals.sources import kept
from immich_vitals.sources.postgres import Database
from immich_vitals.sources.postgres_facts import facts_from
from support.golden import cases, check

ANSWERS = ("activity", "settings", "databases", "extensions")


@pytest.mark.parametrize("case", cases("postgres"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """The answers of the case give exactly its expected samples."""
    answers = json.loads((case / "answers.json").read_text(encoding="utf-8"))
    facts = facts_from([[answers["server"]], *(answers[name] for name in ANSWERS)])
    check(case, PostgresCollector.metrics, postgres_samples(facts), update_golden)


def within(seconds: float) -> Context:
    return Context(Deadline.after(seconds), SystemClock())


def at(host: str, port: int, password: str | None = None) -> PostgresCollector:
    secret = Secret(password) if password else None
    return PostgresCollector(PostgresConfig(host, port, "postgres", secret, "postgres", {}))


def failure_of(collector: PostgresCollector, seconds: float = 5.0) -> CollectorFailure:
    """The failure of one run, which must end at its deadline."""
    began = time.monotonic()
    with pytest.raises(CollectorFailure) as caught:
        tuple(collector.collect(within(seconds)))
    assert time.monotonic() - began < seconds + 0.2
    return caught.value


def up(failure: CollectorFailure) -> float | None:
    """What the failure still knows of postgres_up; None when it does not."""
    assert len(failure.known) <= 1
    return next((sample.value for sample in failure.known if sample.metric is UP), None)


def value(samples: tuple[Sample, ...], name: str, *labels: str) -> float | None:
    return next((s.value for s in samples if s.metric.name == name and s.labels == labels), None)


def test_a_real_server(postgres: Postgres, context: Context) -> None:
    """A healthy server is up and writable, with every known state counted from 0 and our own connection among them."""
    collector = at("127.0.0.1", postgres.port)
    samples = tuple(collector.collect(context))
    collector.close()
    assert value(samples, "postgres_up") == 1
    assert value(samples, "postgres_writable") == 1
    assert value(samples, "postgres_checksums_enabled") == 1
    assert value(samples, "postgres_checksum_failures_total", "(shared)") == 0
    assert value(samples, "postgres_connections_max") == 50
    assert {sample.labels[0] for sample in samples if sample.metric is CONNECTIONS} == set(STATES)
    assert (value(samples, "postgres_connections", "active") or 0) >= 1


def test_role_without_rights(postgres: Postgres, context: Context) -> None:
    """What a role may not see of other people's sessions is said, not passed over; with the right nothing is said."""
    with postgres.connect() as admin:
        admin.execute("CREATE ROLE low LOGIN")
        collector = PostgresCollector(PostgresConfig("127.0.0.1", postgres.port, "low", None, "postgres", {}))
        try:
            hidden = tuple(collector.collect(context))
            assert value(hidden, "postgres_connections", "unknown") == 1
            assert value(hidden, "postgres_checkpointer_start_timestamp_seconds") is None
            assert "pg_read_all_stats" in context.remarks.pop().mend
            admin.execute("GRANT pg_read_all_stats TO low")
            seen = tuple(collector.collect(context))
            assert value(seen, "postgres_connections", "unknown") == 0
            assert value(seen, "postgres_checkpointer_start_timestamp_seconds") is not None
            assert not context.remarks
        finally:
            collector.close()
            admin.execute("DROP ROLE low")


def test_a_session_that_is_starting(postgres: Postgres, context: Context) -> None:
    """One that has no state yet is active, and not hidden from us. It has none for so short a time that a table stands
    in for the view."""
    with postgres.connect() as admin:
        admin.execute("CREATE SCHEMA stands_in")
        admin.execute("CREATE TABLE stands_in.pg_stat_activity AS TABLE pg_catalog.pg_stat_activity WITH NO DATA")
        row = "INSERT INTO stands_in.pg_stat_activity (datid, usesysid, backend_type, state) VALUES (1, 10, %s, %s)"
        for state in ("idle", "starting", None):
            admin.execute(row, ("client backend", state))
        admin.execute("CREATE ROLE starter LOGIN")
        admin.execute("GRANT USAGE ON SCHEMA stands_in TO starter")
        admin.execute("GRANT SELECT ON stands_in.pg_stat_activity TO starter")
        admin.execute("ALTER ROLE starter SET search_path = stands_in, pg_catalog")
        collector = PostgresCollector(PostgresConfig("127.0.0.1", postgres.port, "starter", None, "postgres", {}))
        try:
            samples = tuple(collector.collect(context))
        finally:
            collector.close()
            admin.execute("DROP SCHEMA stands_in CASCADE")
            admin.execute("DROP ROLE starter")
    assert value(samples, "postgres_connections", "active") == 2
    assert value(samples, "postgres_connections", "idle") == 1
    assert value(samples, "postgres_connections", "unknown") == 0
    assert not context.remarks


def test_a_unix_socket(postgres18: Postgres, context: Context) -> None:
    """The folder of a unix socket is a host."""
    collector = at(str(postgres18.folder), postgres18.port)
    assert value(tuple(collector.collect(context)), "postgres_up") == 1
    collector.close()


def test_one_connection_is_kept(postgres18: Postgres, context: Context) -> None:
    """Many runs use one connection, and closing the collector ends it."""
    collector = at("127.0.0.1", postgres18.port)
    own = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'immich-vitals'"
    with postgres18.connect() as admin:
        for _ in range(5):
            tuple(collector.collect(context))
        assert admin.execute(own).fetchone() == (1,)
        collector.close()
        until = time.monotonic() + 5
        while admin.execute(own).fetchone() != (0,):
            assert time.monotonic() < until


def test_refused() -> None:
    """A port on which nobody listens is a server that is down."""
    failure = failure_of(at("127.0.0.1", free_port()))
    assert failure.reason == "unavailable"
    assert "refuses the connection" in failure.message
    assert up(failure) == 0


def test_unknown_host() -> None:
    """A host name that does not resolve is absent, and down."""
    failure = failure_of(at("no-such-host.invalid", 5432), 20.0)
    assert failure.reason == "absent"
    assert "'no-such-host.invalid'" in failure.message
    assert up(failure) == 0


def test_socket_gone(tmp_path: Path) -> None:
    """A folder without the socket is absent, and down."""
    failure = failure_of(at(str(tmp_path), 5432))
    assert failure.reason == "absent"
    assert up(failure) == 0


@contextmanager
def server_that(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a TCP server that does this with each connection, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(connection)
            try:
                answer(connection)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in accepted:
            connection.close()
        thread.join()


@pytest.mark.parametrize("seconds", [0.3, 2.5])
def test_accepts_and_says_nothing(seconds: float) -> None:
    """A server that accepts and hangs costs exactly the deadline, also one shorter than libpq's two seconds."""
    with server_that(lambda connection: None) as port:
        began = time.monotonic()
        failure = failure_of(at("127.0.0.1", port), seconds)
        assert time.monotonic() - began >= seconds - 0.05
    assert failure.reason == "timeout"
    assert "does not answer" in failure.message
    assert up(failure) == 0


def test_a_long_run_does_not_wait_long_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has minutes for its work gives a server that hangs no more time than others, and has asked nothing."""
    monkeypatch.setattr(kept, "CONNECT_SECONDS", 0.2)
    with server_that(lambda connection: None) as port:
        failure = failure_of(at("127.0.0.1", port), 60.0)
    assert failure.reason == "timeout"
    assert not failure.asked
    assert up(failure) == 0


def test_drips() -> None:
    """A server that keeps sending, but never enough, does not stretch the deadline."""

    def drip(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"N")  # no TLS
        connection.recv(1000)
        connection.sendall(b"E\x00\x00\x70\x00")  # an error of 28 kB, byte by byte
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    with server_that(drip) as port:
        failure = failure_of(at("127.0.0.1", port), 0.5)
    assert failure.reason == "timeout"
    assert up(failure) == 0


def test_something_else_answers() -> None:
    """What is not Postgres is named as such, and Postgres is down."""

    def http(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    with server_that(http) as port:
        failure = failure_of(at("127.0.0.1", port))
    assert "not Postgres" in failure.message
    assert up(failure) == 0


def test_hangs_up() -> None:
    """A server that closes the connection at once is down."""
    with server_that(lambda connection: connection.close()) as port:
        failure = failure_of(at("127.0.0.1", port))
    assert failure.reason == "unavailable"
    assert up(failure) == 0


def test_no_time_left(postgres18: Postgres) -> None:
    """A run that starts after its deadline is a time-out and says nothing of Postgres."""
    failure = failure_of(at("127.0.0.1", postgres18.port), 0.0)
    assert failure.reason == "timeout"
    assert up(failure) is None


def test_nothing_of_ours_is_left(postgres18: Postgres, context: Context) -> None:
    """The limits and the read-only mode hold inside our transaction and not after it, for PgBouncer's sake."""
    names = "'statement_timeout', 'lock_timeout', 'transaction_read_only', 'idle_in_transaction_session_timeout'"
    asked = f"SELECT setting FROM pg_settings WHERE name IN ({names}) ORDER BY name"
    database = Database(PostgresConfig("127.0.0.1", postgres18.port, "postgres", None, "postgres", {}))
    inside = database.ask(lambda hello: asked, context.deadline)[0]
    outside = database.ask(lambda hello: "COMMIT; " + asked, context.deadline)[0]
    database.close()
    assert [row[0] for row in inside][::3] == ["10000", "on"]
    assert [row[0] for row in outside] == ["0", "0", "0", "off"]


def test_our_transaction_cannot_write(postgres18: Postgres, context: Context) -> None:
    """Even as superuser, nothing that we send can change the database."""
    database = Database(PostgresConfig("127.0.0.1", postgres18.port, "postgres", None, "postgres", {}))
    with pytest.raises(CollectorFailure, match="25006"):
        database.ask(lambda hello: "CREATE TABLE written (id int)", context.deadline)
    database.close()


def test_no_secret_in_failures() -> None:
    """Neither the password nor a connection string is in what a person sees."""
    failure = failure_of(at("127.0.0.1", free_port(), "hunter2"))
    assert "hunter2" not in failure.message + failure.mend
    assert failure.__cause__ is None


def test_not_configured() -> None:
    """Without a database there is no collector, and the reason names the settings."""
    nothing = load({})
    assert PostgresCollector.from_config(nothing) is None
    assert "DB_HOSTNAME" in PostgresCollector.disabled_because(nothing)
