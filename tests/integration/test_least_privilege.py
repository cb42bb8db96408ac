"""The logins that `immich-vitals grants` prints, in a real Postgres and Redis: enough for every collector that needs a
login, and for nothing more. What single numbers they give is asked in the tests of each collector."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import psycopg
import pytest
import redis

from immich_vitals import config
from immich_vitals.cli import build
from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.world import DATABASE, World
from immich_vitals.grants import REDIS_COMMANDS
from immich_vitals.page import describe
from immich_vitals.runner import Status
from immich_vitals.sources.immich_schema import COLUMNS, FILE_COLUMNS, NAMES
from immich_vitals.sources.page_patrol import CHECK_FUNCTION, PATROL_FUNCTION
from support.granted import ROLE, Granted, grant

LEAST = "only_statistics"
DOCKERS = ("container", "container_usage")  # who asks Docker alone, and has no login
TELLING = ("machine_learning_switches", "database_backups", "storage_template", "versions")
REFUSED = (redis.exceptions.NoPermissionError, redis.exceptions.ExecAbortError)
PRIVILEGES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
TREE = """
    SELECT c.oid::regclass::text AS name, c.oid, c.relkind, n.nspname, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname NOT LIKE 'pg\\_toast%%'
"""


@pytest.fixture(scope="module", params=[16, 18], ids=["postgres16", "postgres18"])
def granted(request: pytest.FixtureRequest) -> Iterator[Granted]:
    with World(major=request.param) as world:
        made = grant(world)
        with world.postgres.connect(DATABASE) as admin:
            admin.execute(f"CREATE ROLE {LEAST} LOGIN; GRANT pg_read_all_stats TO {LEAST}".encode())
        yield replace(made, environment={**made.environment, "IMMICH_VITALS_DISABLE": ",".join(DOCKERS)})


def checked(environment: Mapping[str, str]) -> tuple[list[Status], set[str]]:
    """What each collector says after one run of all, as `immich-vitals check` does it, and the metrics that it gave."""
    runner = build(config.load(environment))
    try:
        samples = runner.scrape(60.0, everything=True)
        return list(runner.statuses()), {sample.metric.name for sample in samples}
    finally:
        runner.stop()


def test_enough_for_every_collector(granted: Granted) -> None:
    """Each answers, none remarks that a right is lacking, and there are the metrics that a superuser gets."""
    statuses, names = checked(granted.environment)
    said = {status.name: describe(status) for status in statuses}
    assert set(said) == {kind.name for kind in COLLECTORS}
    assert {name: says for name, (state, says) in said.items() if state != "ok"} == dict.fromkeys(
        DOCKERS, "Switched off by IMMICH_VITALS_DISABLE."
    )
    assert not [says for _, says in said.values() if "grants" in says]
    full = {key: granted.world.environment()[key] for key in ("DB_URL", "REDIS_URL")}
    _, all_names = checked({**granted.environment, **full})
    assert names == all_names


def beyond(granted: Granted, query: str) -> set[tuple[object, ...]]:
    """What the query, with %(role)s in it, finds for our role, and not for one that has `pg_read_all_stats` alone."""
    with granted.world.connect() as admin:
        ours, least = (
            set(admin.execute(query.encode(), {"role": role}).fetchall()) for role in (ROLE, LEAST)
        )  # fmt: skip
    return ours - least


def test_reads_the_columns_it_needs_and_no_other(granted: Granted) -> None:
    """Of every column of every table, those of our mapping can be read, and no e-mail, name or place."""
    may = beyond(
        granted,
        f"""
        SELECT relname, a.attname FROM ({TREE}) AS t JOIN pg_attribute a ON a.attrelid = t.oid AND NOT a.attisdropped
        WHERE has_column_privilege(%(role)s, t.oid, a.attnum, 'SELECT')
        """,
    )
    with granted.world.connect() as admin:
        there = set(
            admin.execute(
                "SELECT relname, attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND relkind = 'r' "
                "WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped"
            ).fetchall()
        )
    mapped = {
        (name, column)
        for columns in (COLUMNS, FILE_COLUMNS)
        for use, wanted in columns.items()
        for name in NAMES[use]
        for column in wanted
    }
    assert may == mapped & there
    assert ("user", "email") in there - may
    assert {("asset", "originalFileName"), ("person", "name"), ("asset_exif", "city")} <= there - may
    assert len(may) * 4 < len(there)


def test_writes_nothing_in_postgres(granted: Granted) -> None:
    """Nothing in the database or the server can be changed, made or called that anybody else could not."""
    assert not beyond(
        granted,
        f"""
        SELECT name, privilege FROM ({TREE}) AS t CROSS JOIN unnest(ARRAY{list(PRIVILEGES)}) AS privilege
        WHERE relkind <> 'S' AND has_table_privilege(%(role)s, t.oid, privilege)
        UNION ALL
        SELECT name || '.' || a.attname, privilege
        FROM ({TREE}) AS t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
          CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'REFERENCES']) AS privilege
        WHERE relkind <> 'S' AND has_column_privilege(%(role)s, t.oid, a.attnum, privilege)
        UNION ALL
        SELECT name, privilege FROM ({TREE}) AS t CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
        WHERE relkind = 'S' AND has_sequence_privilege(%(role)s, t.oid, privilege)
        UNION ALL
        SELECT nspname::text, 'CREATE' FROM pg_namespace WHERE has_schema_privilege(%(role)s, oid, 'CREATE')
        UNION ALL
        SELECT datname::text, 'CREATE' FROM pg_database WHERE has_database_privilege(%(role)s, oid, 'CREATE')
        UNION ALL
        SELECT name, privilege FROM pg_settings CROSS JOIN unnest(ARRAY['SET', 'ALTER SYSTEM']) AS privilege
        WHERE has_parameter_privilege(%(role)s, name, privilege)
        """,
    )
    functions = beyond(
        granted, "SELECT oid::regproc::text FROM pg_proc WHERE has_function_privilege(%(role)s, oid, 'EXECUTE')"
    )
    assert {str(name).removeprefix("immich_vitals.") for (name,) in functions} == {
        *TELLING,
        PATROL_FUNCTION,
        CHECK_FUNCTION,
    }
    with granted.world.connect() as admin:
        assert (
            admin.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls "
                "FROM pg_roles WHERE rolname = %s",
                (ROLE,),
            ).fetchone()
            == (False,) * 5
        )
        assert admin.execute(
            "SELECT array_agg(roleid::regrole::text) FROM pg_auth_members WHERE member = %s::regrole", (ROLE,)
        ).fetchone() == (["pg_read_all_stats"],)
        assert admin.execute("SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = %s::regrole",
                             (ROLE,)).fetchone() == (0,)  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        'SELECT email FROM "user"',
        'SELECT * FROM "user"',
        'SELECT "originalFileName" FROM asset',
        "SELECT name FROM person",
        "SELECT city FROM asset_exif",
        "SELECT embedding FROM smart_search",
        "SELECT value FROM system_metadata",
        'UPDATE asset SET "isOffline" = true',
        "DELETE FROM asset_job_status",
        'INSERT INTO "user" (id) VALUES (gen_random_uuid())',
        "TRUNCATE asset",
        "BEGIN; LOCK TABLE asset IN EXCLUSIVE MODE",
        "SELECT id FROM asset FOR UPDATE",
        "CREATE TABLE mine (id int)",
        "CREATE TABLE immich_vitals.mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "DROP EXTENSION vector",
        "SET ROLE postgres",
        "ALTER SYSTEM SET fsync = off",
        "SET zero_damaged_pages = on",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT lo_import('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/x'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_reload_conf()",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        "SELECT rolpassword FROM pg_authid",
        "CREATE OR REPLACE FUNCTION immich_vitals.versions() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
def test_refused_by_postgres(granted: Granted, statement: str) -> None:
    """What somebody who got hold of the password would try."""
    with granted.world.connect() as other, granted.postgres() as connection:
        other.execute("SELECT 1")  # a session of the superuser to be ended
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode()).fetchall()


def test_the_functions_give_no_secrets(granted: Granted) -> None:
    """They read tables of which the role may read nothing, and give none of the passwords that lie there."""
    with granted.world.connect() as admin:
        admin.execute("""
            INSERT INTO system_metadata (key, value)
            VALUES ('system-config', '{"oauth": {"clientSecret": "hidden"}, "notifications": {"smtp": {"transport":
                {"password": "hidden"}}}, "machineLearning": {"clip": {"enabled": true}}}')
            ON CONFLICT (key) DO UPDATE SET value = excluded.value
        """)
    with granted.postgres() as connection:
        for function in TELLING:
            told = connection.execute(f"SELECT * FROM immich_vitals.{function}()".encode()).fetchall()
            assert "hidden" not in str(told)
        for function, arguments in ((PATROL_FUNCTION, "'asset'::regclass, 0, 1"), (CHECK_FUNCTION, "0")):
            assert connection.execute(f"SELECT immich_vitals.{function}({arguments})".encode()).fetchall() == [("",)]


def test_redis_refuses_every_other_command(granted: Granted) -> None:
    """Of all commands that this Redis has, the login runs those of the ACL line and what needs no login; each other,
    FLUSHALL, CONFIG, KEYS, EVAL and SHUTDOWN among them, is refused before it is looked at."""
    with granted.world.redis.client() as admin:
        arities = {str(name): abs(int(about["arity"])) for name, about in admin.command().items()}
        before = admin.dbsize()
    allowed = {command.split("|")[0] for command in REDIS_COMMANDS}
    open_to_all = {"auth", "hello", "quit", "reset"}
    assert allowed <= set(arities) and {"flushall", "config", "keys", "eval", "shutdown", "set"} <= set(arities)
    for name in set(arities) - allowed - open_to_all:
        with granted.redis() as client, pytest.raises(REFUSED, match=r"(?i)no permissions"):
            client.execute_command(name, *["1"] * (arities[name] - 1))  # type: ignore[no-untyped-call]
    with granted.world.redis.client() as admin:
        assert admin.dbsize() == before


@pytest.mark.parametrize(
    "command",
    [
        "CLIENT KILL TYPE normal", "CLIENT PAUSE 1", "CLIENT NO-EVICT on", "XINFO GROUPS immich_bull:ocr:events",
        "GET secret", "LRANGE other:wait 0 -1", "HGETALL immich_bull:ocr:1", "XREAD STREAMS other 0",
        "DEL immich_bull:ocr:wait", "LPUSH immich_bull:ocr:wait 1",
    ],
)  # fmt: skip
def test_redis_refuses_other_keys_and_subcommands(granted: Granted, command: str) -> None:
    """Commands that only read are for the keys of Immich's queues; of those with subcommands, only ours can be run."""
    with granted.redis() as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
