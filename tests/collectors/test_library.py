"""The collector `library`, against databases with the tables of ten versions of Immich."""

import csv
import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from immich_vitals.collector import CollectorFailure, Context, Deadline, Every, SystemClock
from immich_vitals.collectors.library import LibraryCollector
from immich_vitals.config import PostgresConfig, load
from immich_vitals.demo.servers import Postgres, Redis, free_port
from immich_vitals.grants import PASSWORD, grants_sql, redis_acl
from immich_vitals.metrics import Sample
from immich_vitals.sources.immich_schema import ImmichSchema, schema_from, schema_queries
from immich_vitals.sources.library import LIMITS, groups_query, mark_expressions
from immich_vitals.sources.postgres import Hello
from support.golden import cases, check
from support.immich_database import FACTS, VERSIONS, config, immich_database, schema


def library(server: Postgres, database: str, context: Context, user: str = "postgres") -> tuple[Sample, ...]:
    """What one run gives."""
    return tuple(LibraryCollector(config(server, database, user), 300.0).collect(context))


@pytest.mark.parametrize("case", cases("library"), ids=lambda path: path.name)
def test_golden(case: Path, postgres: Postgres, context: Context, update_golden: bool) -> None:
    """The rows of the case give exactly its expected samples, on every Postgres."""
    facts = json.loads((case / "case.json").read_text(encoding="utf-8"))
    script = case / "setup.sql"
    setup = script.read_text(encoding="utf-8") if script.exists() else ""
    with immich_database(postgres, facts["schema"], rows=facts.get("rows", False), setup=setup) as database:
        samples = library(postgres, database, context)
    check(case, LibraryCollector.metrics, samples, update_golden)


STAGES = {"thumbnail", "preview", "thumbhash", "metadata", "encoded_video", "smart_search", "face_detection"}


def failing(server: Postgres, database: str, context: Context, user: str = "postgres") -> CollectorFailure:
    """The failure of one run."""
    with pytest.raises(CollectorFailure) as caught:
        tuple(LibraryCollector(config(server, database, user), 300.0).collect(context))
    return caught.value


def values(samples: tuple[Sample, ...], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_understood(version: str, postgres18: Postgres, context: Context) -> None:
    """Each of the ten schemas is supported, with the stages that this version has and no others."""
    columns = schema(version)["asset_job_status"]
    expected = STAGES | {"ocr"} if "ocrAt" in columns else set(STAGES)
    if "duplicatesDetectedAt" in columns:
        expected.add("duplicate_detection")
    with immich_database(postgres18, version) as database:
        samples = library(postgres18, database, context)
    assert values(samples, "library_schema_supported") == {(): 1}
    assert {stage for (stage,) in values(samples, "library_required")} == expected
    assert len(values(samples, "library_assets")) == 12


@pytest.mark.parametrize("version", VERSIONS)
def test_pending_never_exceeds_required(version: str, postgres18: Postgres, context: Context) -> None:
    """Whatever an asset's rows look like, no stage has more pending than required, and states add up to all assets."""
    asset = "asset" if "asset" in schema(version) else "assets"
    columns = schema(version)[asset]
    visibility = "visibility" if "visibility" in columns else '"isVisible"'
    kind = """(ARRAY['timeline', 'archive', 'hidden', 'locked'])[1 + n % 4]::asset_visibility_enum"""
    kind = kind if "visibility" in columns else "n % 4 <> 2"
    setup = f"""
        INSERT INTO {asset} (id, type, "createdAt", {visibility}, "isOffline", "deletedAt", thumbhash)
        SELECT gen_random_uuid(), (ARRAY['IMAGE', 'VIDEO', 'AUDIO', 'OTHER', 'X'])[1 + n % 5], to_timestamp(n), {kind},
               n % 7 = 0, CASE WHEN n % 11 = 0 THEN now() END, CASE WHEN n % 3 = 0 THEN '\\x01'::bytea END
        FROM generate_series(1, 500) n;
        INSERT INTO asset_job_status ("assetId", "facesRecognizedAt")
        SELECT id, CASE WHEN get_byte(uuid_send(id), 1) < 128 THEN now() END FROM {asset}
        WHERE get_byte(uuid_send(id), 0) < 200;
        INSERT INTO smart_search ("assetId") SELECT id FROM {asset} WHERE get_byte(uuid_send(id), 2) < 128;
    """
    with immich_database(postgres18, version, setup=setup) as database:
        samples = library(postgres18, database, context)
    required, pending = values(samples, "library_required"), values(samples, "library_pending")
    assert sum(values(samples, "library_assets").values()) == 500
    assert required.keys() == pending.keys()
    assert all(0 <= pending[stage] <= required[stage] for stage in required)
    assert pending[("face_detection",)] > 0 or version == "1.91.4"


def test_real_rows_counted_another_way(postgres18: Postgres, context: Context) -> None:
    """Counts and oldest moments of the real 2.7.5 agree with the CSV files, read in Python."""
    folder = FACTS / "rows" / "2.7.5"

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    thumbnails = {row["assetId"] for row in rows("asset_file") if row["type"] == "thumbnail"}
    processed = {row["assetId"] for row in rows("asset_job_status")}
    shown = [row for row in rows("asset") if not row["deletedAt"] and row["visibility"] != "hidden"]
    waiting = [row for row in shown if row["id"] not in thumbnails or row["id"] not in processed]
    oldest = min(datetime.fromisoformat(row["createdAt"] + ":00").timestamp() for row in waiting)
    with immich_database(postgres18, "2.7.5", rows=True) as database:
        samples = library(postgres18, database, context)
    assert values(samples, "library_required")[("thumbnail",)] == len(shown)
    assert values(samples, "library_pending")[("thumbnail",)] == len(waiting)
    assert values(samples, "library_pending_oldest_timestamp_seconds")[("thumbnail",)] == pytest.approx(oldest)


def test_versions_in_between_and_after(postgres18: Postgres, context: Context) -> None:
    """Columns and tables that we have never seen change nothing, nor does a missing optional column."""
    setup = """
        ALTER TABLE asset ADD COLUMN "aiScore" real;
        ALTER TABLE asset_file ADD COLUMN codec text;
        CREATE TABLE asset_hologram ("assetId" uuid);
        ALTER TABLE asset_job_status DROP COLUMN "ocrAt";
    """
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        changed = library(postgres18, database, context)
    with immich_database(postgres18, "2.7.5", rows=True) as database:
        usual = library(postgres18, database, context)
    assert set(changed) == {sample for sample in usual if sample.labels != ("ocr",)}


def test_another_schema_than_public(postgres18: Postgres, context: Context) -> None:
    """Immich's tables are found in a schema outside the search path, beside another program's table `user`."""
    setup = 'CREATE TABLE public."user" (id int, "deletedAt" date); INSERT INTO public."user" VALUES (1), (2)'
    with immich_database(postgres18, "2.7.5", rows=True, schema_name="Photo Box", setup=setup) as database:
        samples = library(postgres18, database, context)
    assert values(samples, "library_users") == {(): 1}
    assert values(samples, "library_assets")[("image", "live")] == 64


def test_an_old_copy_beside_it(postgres18: Postgres, context: Context) -> None:
    """A copy of some tables in another schema is not mistaken for Immich."""
    setup = "CREATE SCHEMA a_backup; CREATE TABLE a_backup.asset AS SELECT * FROM asset LIMIT 1"
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        assert values(library(postgres18, database, context), "library_assets")[("image", "live")] == 64


def test_a_changed_schema_says_what_is_missing(postgres18: Postgres, context: Context) -> None:
    """A table that is gone is named in one sentence, and what is known is given all the same."""
    with immich_database(postgres18, "2.7.5", rows=True, setup="DROP TABLE smart_search") as database:
        found = library(postgres18, database, context)
    assert ["not found: the table smart_search" in remark.message for remark in context.remarks] == [True]
    assert values(found, "library_schema_supported") == {(): 0}
    assert values(found, "library_pending")[("thumbnail",)] == 7


@pytest.mark.parametrize(
    ("setup", "unprocessed"),
    [('ALTER TABLE asset_job_status DROP COLUMN "metadataExtractedAt"', {(): 2}), ("DROP TABLE asset_job_status", {})],
    ids=["column", "table"],
)
def test_a_newer_schema_is_not_taken_for_an_old_one(
    postgres18: Postgres, context: Context, setup: str, unprocessed: dict[tuple[str, ...], float]
) -> None:
    """Only in very old releases a row in `exif` stands for extracted metadata; elsewhere it is not known, and said."""
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        found = library(postgres18, database, context)
    assert values(found, "library_schema_supported") == {(): 0}
    assert ("metadata",) not in values(found, "library_pending")
    assert values(found, "library_unprocessed_assets") == unprocessed
    assert "where extracted metadata is recorded" in context.remarks[0].message


def test_no_immich_here(postgres18: Postgres, context: Context) -> None:
    """A database without any table of Immich is absent, with the setting to look at."""
    failure = failing(postgres18, "postgres", context)
    assert failure.reason == "absent"
    assert "DB_DATABASE_NAME" in failure.mend
    assert failure.known == ()


def test_refused(context: Context) -> None:
    """Where no Postgres listens, the collector says so and gives no values."""
    collector = LibraryCollector(PostgresConfig("127.0.0.1", free_port(), "postgres", None, "immich", {}), 300.0)
    with pytest.raises(CollectorFailure) as caught:
        tuple(collector.collect(context))
    assert caught.value.reason == "unavailable"
    assert caught.value.known == ()


def test_slower_than_the_deadline(postgres18: Postgres) -> None:
    """A migration that holds the asset table costs the deadline at most, and leaves nothing running behind."""
    with immich_database(postgres18, "2.7.5") as database, postgres18.connect(database) as migration:
        with migration.transaction():
            migration.execute("LOCK TABLE asset IN ACCESS EXCLUSIVE MODE")
            began = time.monotonic()
            failure = failing(postgres18, database, Context(Deadline.after(0.6), SystemClock()))
            assert time.monotonic() - began < 0.8
        assert failure.reason == "timeout"
        assert "alive" in failure.message
        own = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'immich-vitals' AND state = 'active'"
        assert migration.execute(own).fetchone() == (0,)


MALFORMED = ('"text"', "[]", "null", '{"machineLearning": 1}', '{"machineLearning": {"clip": []}}')


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed_settings(value: str, postgres18: Postgres, context: Context) -> None:
    """Settings of an unexpected form switch nothing off."""
    setup = f"INSERT INTO system_metadata (key, value) VALUES ('system-config', '{value}')"
    setup = "DELETE FROM system_metadata WHERE key = 'system-config';" + setup
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        samples = library(postgres18, database, context)
    assert values(samples, "library_required")[("smart_search",)] == 63


def test_machine_learning_switched_off(postgres18: Postgres, context: Context) -> None:
    """With machine learning off altogether its four stages require nothing, and the others go on."""
    off = '{"machineLearning": {"enabled": false, "ocr": {"enabled": true}}}'
    setup = f"UPDATE system_metadata SET value = '{off}' WHERE key = 'system-config'"
    with immich_database(postgres18, "2.7.5", rows=True, setup=setup) as database:
        required = values(library(postgres18, database, context), "library_required")
    stages = ("smart_search", "face_detection", "ocr", "duplicate_detection")
    assert [required[(stage,)] for stage in stages] == [0, 0, 0, 0]
    assert required[("thumbnail",)] == 68


@pytest.mark.parametrize("version", ["1.91.4", "1.118.2", "2.7.5"])
@pytest.mark.parametrize("statistics", ["none", "fresh", "stale"])
def test_one_pass(version: str, statistics: str, postgres: Postgres) -> None:
    """The plan reads each table once at most and has no nested loop, whatever the planner knows of the tables."""
    asset = "asset" if "asset" in schema(version) else "assets"
    files = sorted({"asset_file", "asset_files"} & schema(version).keys())
    one = f"INSERT INTO {asset} (id, type) VALUES (gen_random_uuid(), 'IMAGE'); {dependents(asset, files)} ANALYZE;"
    many = f"""
        INSERT INTO {asset} (id, type) SELECT gen_random_uuid(), 'IMAGE' FROM generate_series(1, 20000);
        {dependents(asset, files)}
    """
    setup = {"none": many, "fresh": many + "ANALYZE;", "stale": one + many}[statistics]
    with immich_database(postgres, version, analyze=False) as database, postgres.connect(database) as connection:
        connection.execute(setup.encode())
        found = immich_schema(connection, database)
        query = groups_query(found, mark_expressions(found) or {})
        with connection.transaction():
            connection.execute(LIMITS.encode())
            plan = connection.execute(b"EXPLAIN (FORMAT JSON) " + query.encode()).fetchone()
    nodes = list(plan_nodes(plan[0][0]["Plan"]))  # type: ignore[index]
    read = [node["Relation Name"] for node in nodes if "Relation Name" in node]
    expected = [asset, "asset_job_status", "smart_search", *files, *(["exif"] if version == "1.91.4" else [])]
    assert sorted(read) == sorted(expected)
    assert not [node for node in nodes if node["Node Type"] == "Nested Loop"]


def dependents(asset: str, files: list[str]) -> str:
    """SQL that gives each asset without them a job-status row, a smart-search row and two files."""
    statements = [
        f'INSERT INTO {table} ("assetId") SELECT id FROM {asset} ON CONFLICT DO NOTHING;'
        for table in ("asset_job_status", "smart_search")
    ]
    statements += [
        f"""INSERT INTO {table} (id, "assetId", type) SELECT gen_random_uuid(), id, kind
            FROM {asset}, unnest(ARRAY['preview', 'thumbnail']) kind ON CONFLICT DO NOTHING;"""
        for table in files
    ]
    return "".join(statements)


def plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from plan_nodes(child)


def immich_schema(connection: psycopg.Connection[tuple[object, ...]], database: str) -> ImmichSchema:
    columns, function = schema_queries(Hello(0, False)).split(";")
    return schema_from(
        connection.execute(columns.encode()).fetchall(), connection.execute(function.encode()).fetchall(), database
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_grants_are_enough(version: str, postgres: Postgres, context: Context) -> None:
    """The role of `grants` gives every number that a superuser gives, in every version, and may not read secrets."""
    with immich_database(postgres, version, rows=version in ("1.106.4", "2.7.5"), setup=SECRETS) as database:
        role = f"vitals-{version}"
        with postgres.connect(database) as admin:
            admin.execute(grants_sql(database, role).encode())
            admin.execute(grants_sql(database, role).encode())  # may be run again
        try:
            assert library(postgres, database, context, role) == library(postgres, database, context)
            with postgres.connect(database, user=role) as connection:
                for forbidden in ("SELECT value FROM system_metadata", "SELECT email FROM " + users(version)):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(forbidden.encode())
        finally:
            with postgres.connect(database) as admin:
                admin.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())


SECRETS = """
    INSERT INTO system_metadata (key, value)
    VALUES ('system-config', '{"machineLearning": {"clip": {"enabled": false}}, "oauth": {"clientSecret": "s"}}')
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""


def users(version: str) -> str:
    return '"user"' if "user" in schema(version) else "users"


def test_a_missing_grant(postgres18: Postgres, context: Context) -> None:
    """A role that may not read a column is told which one, and how to mend it."""
    with immich_database(postgres18, "2.7.5", rows=True) as database, postgres18.connect(database) as admin:
        admin.execute(grants_sql(database, "poor").encode())
        admin.execute('REVOKE SELECT ("thumbhash") ON asset FROM poor')
        failure = failing(postgres18, database, context, "poor")
        admin.execute("DROP OWNED BY poor; DROP ROLE poor")
    assert failure.reason == "unavailable"
    assert "asset.thumbhash" in failure.message
    assert "immich-vitals grants" in failure.mend


def test_grants_refuse_another_database(postgres18: Postgres) -> None:
    """The SQL run in the wrong database changes nothing and says where to go."""
    with postgres18.connect() as admin:
        with pytest.raises(psycopg.errors.RaiseException, match="connect to immich"):
            admin.execute(grants_sql("immich", "stray").encode())
        assert admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'stray'").fetchone() == (0,)


def test_redis_acl(tmp_path: Path) -> None:
    """Redis takes the ACL line, and the user may read Immich's queues and nothing else: no settings either, which
    hold the password of Immich's own login."""
    with Redis(tmp_path / "redis") as server, server.client() as admin:
        admin.execute_command(*redis_acl("vitals").split())  # type: ignore[no-untyped-call]
        admin.rpush("immich_bull:ocr:wait", "1")
        with server.client(username="vitals", password=PASSWORD) as client:
            assert client.llen("immich_bull:ocr:wait") == 1
            assert client.info("server")["redis_version"]
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.config_get("requirepass")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.get("session:1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.delete("immich_bull:ocr:wait")


def test_not_configured() -> None:
    """Without a database there is no collector, and the reason names the settings."""
    nothing = load({})
    assert LibraryCollector.from_config(nothing) is None
    assert "DB_HOSTNAME" in LibraryCollector.disabled_because(nothing)


def test_interval_is_a_setting() -> None:
    """The configured interval is the trigger's."""
    collector = LibraryCollector.from_config(load({"DB_HOSTNAME": "db", "IMMICH_VITALS_LIBRARY_INTERVAL": "90s"}))
    assert collector is not None
    assert collector.trigger == Every(90.0)
