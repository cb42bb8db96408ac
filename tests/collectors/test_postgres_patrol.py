"""The collector `postgres_patrol`: facts to samples, what it remembers, and what it may not do."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.collectors.postgres_patrol import (
    CHECKED,
    CONDEMNED,
    DAMAGED,
    TRUNCATED,
    PatrolFacts,
    PostgresPatrolCollector,
    patrol_samples,
)
from immich_vitals.config import PatrolConfig, PostgresConfig, load
from immich_vitals.demo.servers import Postgres, free_port
from immich_vitals.grants import PASSWORD, grants_sql
from immich_vitals.sources import page_pass, page_patrol
from immich_vitals.sources.page_pass import BadIndex, Memory, PagePatrol, Spot
from immich_vitals.sources.page_patrol import Patroller, plain
from immich_vitals.sources.postgres import Database
from support.clock import FakeClock
from support.golden import cases, check
from support.immich_database import config, immich_database

ON = PatrolConfig(enabled=True, rate=1000, interval=43200.0)
OFF = PatrolConfig(enabled=False, rate=1000, interval=43200.0)
ROLE = "patrol_reader"


@pytest.mark.parametrize("case", cases("postgres_patrol"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """What is known gives exactly the expected samples."""
    facts = PatrolFacts(**json.loads((case / "facts.json").read_text(encoding="utf-8")))
    check(case, PostgresPatrolCollector.metrics, patrol_samples(facts), update_golden)


@contextmanager
def patrol_of(
    database: PostgresConfig, patrol: PatrolConfig = ON, folder: Path | None = None, clock: FakeClock | None = None
) -> Iterator[PagePatrol]:
    """A patrol for which time passes only while it waits."""
    clock = clock or FakeClock()
    made = PagePatrol(Patroller(database), Database(database), patrol, folder, clock, clock.advance)
    try:
        yield made
    finally:
        made.close()


def walk(patrol: PagePatrol, until: Callable[[], bool], most: int = 200_000) -> None:
    """Let it follow until this is true; fails after it asked `most` times whether to stop."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        assert asked < most, "did not come true"
        return until()

    patrol.follow(stop)


def one_pass(patrol: PagePatrol) -> None:
    """Let it do what is left of a pass."""
    before = patrol.memory.completed
    walk(patrol, lambda: patrol.memory.completed != before)


@pytest.fixture(scope="module")
def immich(postgres18: Postgres) -> Iterator[str]:
    """Immich's database with a table of some pages, and a role with the rights of `immich-vitals grants`."""
    filling = "INSERT INTO asset (id) SELECT gen_random_uuid() FROM generate_series(1, 20000)"
    with immich_database(postgres18, "2.7.5", setup=filling) as name:
        with postgres18.connect(name) as admin:
            admin.execute(grants_sql(name, ROLE).encode())
        yield name
    with postgres18.connect() as admin:
        admin.execute(f"DROP ROLE {ROLE}")


@pytest.fixture
def reader(postgres18: Postgres, immich: str) -> PostgresConfig:
    return config(postgres18, immich, ROLE, PASSWORD)


def test_reads_everything_at_its_rate(postgres18: Postgres, immich: str, reader: PostgresConfig) -> None:
    """A pass with the rights of `grants` reads each page of each table once, in as many seconds as its rate allows."""
    with postgres18.connect(immich) as admin:
        row = admin.execute(
            "SELECT sum(pg_relation_size(oid)) / 8192 FROM pg_class WHERE relkind IN ('r', 'm', 't')"
        ).fetchone()
    assert row is not None
    clock = FakeClock()
    began = clock.time()
    with patrol_of(reader, clock=clock) as patrol:
        one_pass(patrol)
        assert patrol.survey is not None
        assert patrol.survey.by_function and not patrol.survey.unreadable
        assert abs(patrol.pages - int(float(str(row[0])))) <= 5
        assert patrol.pages / ON.rate - 2 < clock.time() - began < 3 * patrol.pages / ON.rate + 2
        assert (patrol.damaged, patrol.found, patrol.progress) == (0, 0, None)


def test_few_statements(reader: PostgresConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one round trip for each relation and one for every 64 pages, beside one look."""
    asked = 0

    def counted(self: Patroller, *arguments: object) -> object:
        nonlocal asked
        asked += 1
        return ask(self, *arguments)  # type: ignore[arg-type]

    ask = Patroller.ask
    monkeypatch.setattr(Patroller, "ask", counted)
    with patrol_of(reader) as patrol:
        one_pass(patrol)
        assert patrol.survey is not None
        assert asked <= len(patrol.survey.relations) + patrol.pages / page_pass.STEP + 2


@pytest.mark.parametrize("by_function", [True, False])
def test_takes_the_weakest_lock_for_a_moment(
    postgres18: Postgres, immich: str, reader: PostgresConfig, by_function: bool
) -> None:
    """A step locks its table as every SELECT does, never more, and its plan is a range of ctid."""
    database = Patroller(reader if by_function else config(postgres18, immich))
    found = page_patrol.survey(database, Deadline.after(5))
    database.close()
    asset = next(each for each in found.relations if plain(each.name) == "asset")
    assert found.by_function
    seen = page_patrol._step(replace(found, by_function=by_function), asset, 2, 5)
    with postgres18.connect(immich) as admin:
        admin.execute("BEGIN READ ONLY")
        admin.execute(seen.encode())
        modes = admin.execute(
            "SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'"
        ).fetchall()
        assert modes == [("AccessShareLock",)]
        if not by_function:
            plan = admin.execute(("EXPLAIN " + seen.split(";")[-1]).encode()).fetchall()
            assert any("Tid Range Scan" in str(line) for (line,) in plan)
        admin.execute("ROLLBACK")


def test_one_cannot_read_through_the_function(postgres18: Postgres, immich: str) -> None:
    """The function gives nothing back, takes what is no table or too much without a word, and is not for everybody."""
    calls = (
        "immich_vitals.read_pages('asset'::regclass, 0, 5)",
        "immich_vitals.read_pages('asset'::regclass, 0, 1000000)",
        "immich_vitals.read_pages('asset'::regclass, -5, 2)",
        "immich_vitals.read_pages('pg_stat_activity'::regclass, 0, 5)",
        "immich_vitals.read_pages(1, 0, 5)",
        "immich_vitals.check_index('asset'::regclass)",
        "immich_vitals.check_index(1)",
    )
    with postgres18.connect(immich) as admin:
        admin.execute("CREATE ROLE patrol_stranger")
        try:
            admin.execute(f"SET ROLE {ROLE}")
            for call in calls:
                assert admin.execute(f"SELECT {call}".encode()).fetchone() == ("",)
            admin.execute("RESET ROLE")
            row = admin.execute(
                "SELECT has_function_privilege('patrol_stranger', 'immich_vitals.read_pages(oid, bigint, bigint)',"
                " 'execute')"
            ).fetchone()
            assert row == (False,)
            row = admin.execute(
                "SELECT has_function_privilege('patrol_stranger', 'immich_vitals.check_index(oid)', 'execute')"
            ).fetchone()
            assert row == (False,)
        finally:
            admin.execute("DROP ROLE patrol_stranger")


def test_without_the_grants_it_says_what_is_left_out(postgres18: Postgres, context: Context) -> None:
    """A role that may not read tables reads what it may, and the person is told how many it may not."""
    with immich_database(postgres18, "2.7.5", rows=True) as name, postgres18.connect(name) as admin:
        admin.execute("CREATE ROLE patrol_low LOGIN")
        try:
            database = config(postgres18, name, "patrol_low")
            with patrol_of(database) as patrol:
                one_pass(patrol)
                assert patrol.pages > 100
            collector = PostgresPatrolCollector(database, ON)
            assert {sample.metric for sample in collector.collect(context)} >= {TRUNCATED}
            collector.close()
            assert "may not read" in context.remarks[0].message
            assert "immich-vitals grants" in context.remarks[0].mend
            admin.execute("GRANT SELECT (ctid) ON asset TO patrol_low; GRANT USAGE ON SCHEMA public TO patrol_low")
            with patrol_of(database) as patrol:
                patrol.check(Deadline.after(5))
                assert patrol.survey is not None
                assert any(plain(each.name) == "asset" and each.readable for each in patrol.survey.relations)
        finally:
            admin.execute("DROP OWNED BY patrol_low; DROP ROLE patrol_low")


def test_off_by_default(postgres18: Postgres, context: Context) -> None:
    """Without the switch, only the lengths of files are looked at, and no page is read."""
    database = config(postgres18, "postgres")
    collector = PostgresPatrolCollector(database, OFF)
    assert [(sample.metric, sample.value) for sample in collector.collect(context)] == [(TRUNCATED, 0)]
    assert context.remarks == []
    collector.close()
    with patrol_of(database, OFF) as patrol:
        rounds = iter(range(100))
        walk(patrol, lambda: next(rounds) > 50)
        assert (patrol.pages, patrol.memory.begun) == (0, None)


def test_amcheck_that_cannot_be(postgres18: Postgres, reader: PostgresConfig, context: Context) -> None:
    """Where the extension is missing, or no pages are read, the person is told, and the rest works as without."""
    wanted = replace(ON, amcheck=True)
    collector = PostgresPatrolCollector(reader, wanted)
    assert {CHECKED, CONDEMNED} < {sample.metric for sample in collector.collect(context)}
    assert "CREATE EXTENSION amcheck" in context.remarks[0].mend
    collector._patrol.survey = replace(collector._patrol.survey, amcheck="public")  # type: ignore[type-var]
    tuple(collector.collect(context))
    assert "immich-vitals grants" in context.remarks[1].mend
    collector.close()
    with patrol_of(reader, wanted) as patrol:
        one_pass(patrol)
        walk(patrol, lambda: not patrol.memory.checking)
        assert (patrol.checks, patrol.bad_indexes, patrol.failure) == (0, None, None)
    collector = PostgresPatrolCollector(reader, replace(OFF, amcheck=True))
    assert [sample.metric for sample in collector.collect(context)] == [TRUNCATED]
    assert "IMMICH_VITALS_PAGE_PATROL" in context.remarks[2].mend
    collector.close()


def test_a_scrape_asks_nothing(postgres18: Postgres, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once something is known, showing it takes no question to Postgres."""
    collector = PostgresPatrolCollector(config(postgres18, "postgres"), ON)
    before = list(collector.collect(context))
    monkeypatch.setattr(Database, "ask", lambda *_: pytest.fail("asked"))
    assert list(collector.collect(context)) == before
    collector.close()


def test_down_and_back(postgres18: Postgres, context: Context) -> None:
    """A Postgres that is down fails the collector, which keeps what it knows; the next run after it is well again."""
    collector = PostgresPatrolCollector(config(postgres18, "postgres"), ON)
    patrol = collector._patrol
    nowhere = PostgresConfig("127.0.0.1", free_port(), "postgres", None, "postgres", {})
    with patrol_of(nowhere) as other:
        rounds = iter(range(3))
        walk(other, lambda: next(rounds) > 0)
        assert other.failure is not None
        collector._patrol = other
        with pytest.raises(CollectorFailure) as caught:
            tuple(collector.collect(context))
        assert (caught.value.reason, caught.value.known) == ("unavailable", ())
    collector._patrol = patrol
    tuple(collector.collect(context))
    patrol.memory.damaged.append(Spot(1, 1, 0, 1))
    patrol.failure = caught.value
    assert DAMAGED in {sample.metric for sample in collector.collect(context)}
    assert patrol.failure is None
    collector.close()


def test_between_passes_it_rests(reader: PostgresConfig) -> None:
    """A pass begins twelve hours after the last one began, not earlier, and one after a restart of Postgres at once."""
    clock = FakeClock()
    began = clock.time()
    with patrol_of(reader, clock=clock) as patrol:
        one_pass(patrol)
        read = patrol.pages
        walk(patrol, lambda: clock.time() >= began + ON.interval - 1)
        assert patrol.pages == read
        walk(patrol, lambda: clock.time() >= began + ON.interval + 400)
        assert patrol.pages > 1.9 * read
        patrol.memory.started -= 1
        one_pass(patrol)
        assert clock.time() < began + ON.interval + 1500


def test_goes_on_where_it_was(reader: PostgresConfig, tmp_path: Path) -> None:
    """After a restart of the exporter a pass goes on; what was read is not read again."""
    with patrol_of(reader, folder=tmp_path) as patrol:
        walk(patrol, lambda: patrol.pages > 300)
        first = patrol.pages
        progress = patrol.progress
        assert progress is not None and 0 < progress < 1
    with patrol_of(reader, folder=tmp_path) as again:
        assert again.memory.block > 0 or again.memory.oid > 0
        one_pass(again)
        second = again.pages
    with patrol_of(reader) as whole:
        one_pass(whole)
        assert abs(whole.pages - first - second) <= 5


@pytest.mark.parametrize(
    "kept",
    [
        {"place": 7},
        {"place": "x", "oid": "1"},
        {"place": "x", "oid": -1},
        {"place": "x", "block": 1 << 40},
        {"damaged": "abc"},
        {"damaged": [{"oid": 1}]},
        {"damaged": [{"oid": 1, "filenode": 1, "first": None, "after": 1}]},
        {"truncated": [[1, 2, 3]]},
        {"truncated": [["a", "b"]]},
        {"begun": "yesterday"},
        {"unknown": 1},
        {"damaged": None},
        {"checked": "abc"},
        {"unchecked": None},
        {"bad": [{"oid": 1}]},
        {"bad": [{"oid": 1, "filenode": "x"}]},
    ],
    ids=str,
)
def test_a_memory_that_is_not_ours_is_none(kept: dict[str, object]) -> None:
    """Whatever lies in the folder, the worst is a new beginning."""
    assert Memory.of(kept) == Memory()


def test_a_memory_of_ours_is_kept(tmp_path: Path) -> None:
    """What was found stays found over a restart."""
    nowhere = PostgresConfig("127.0.0.1", 1, "postgres", None, "postgres", {})
    with patrol_of(nowhere, folder=tmp_path) as patrol:
        patrol.memory = Memory("1/5", 1.5, 2.0, 3.0, 2.5, True, False, 5, 64, [Spot(1, 2, 3, 4)], [(6, 7)])
        patrol.memory.checking, patrol.memory.checked, patrol.memory.bad = True, [3], [BadIndex(8, 9, True)]
        patrol._write()
    with patrol_of(nowhere, folder=tmp_path) as again:
        assert again.memory == patrol.memory
        assert (again.damaged, again.bad_indexes) == (1, 1)


def test_another_database_is_another_beginning(postgres18: Postgres, reader: PostgresConfig, tmp_path: Path) -> None:
    """What was known of another data directory or database is forgotten, and then known to be none."""
    with patrol_of(reader, folder=tmp_path) as patrol:
        one_pass(patrol)
        patrol.memory.damaged.append(Spot(patrol.memory.oid, 1, 3, 4))
        patrol._write()
    with patrol_of(config(postgres18, "postgres"), folder=tmp_path) as other:
        assert other.damaged == 1
        other.check(Deadline.after(5))
        assert (other.damaged, other.memory.completed, other.memory.under_way) == (0, None, False)


def test_a_new_beginning_says_nothing_yet(reader: PostgresConfig) -> None:
    """Without a memory nothing is known of damage before the first pass ends."""
    with patrol_of(reader) as patrol:
        walk(patrol, lambda: patrol.pages > 100)
        assert patrol.damaged is None


def test_a_locked_table_is_left_for_the_next_pass(postgres18: Postgres, immich: str, reader: PostgresConfig) -> None:
    """A table that somebody rewrites is not waited for; the pass then does not count as one."""
    with postgres18.connect(immich) as admin, patrol_of(reader) as patrol:
        admin.execute("BEGIN; LOCK TABLE asset IN ACCESS EXCLUSIVE MODE")
        walk(patrol, lambda: patrol.memory.begun is not None and not patrol.memory.under_way)
        assert patrol.memory.completed is None
        assert patrol.failure is None and patrol.pages > 100
        admin.execute("ROLLBACK")


def test_a_table_that_is_locked_later(
    postgres18: Postgres, immich: str, reader: PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is locked only after the look is tried three times, each time for a moment, and left out."""
    monkeypatch.setattr("immich_vitals.sources.postgres.LOCK_SECONDS", 0.05)
    with postgres18.connect(immich) as admin, patrol_of(reader) as patrol:
        patrol.check(Deadline.after(5))
        assert patrol.survey is not None
        oid = next(each.oid for each in patrol.survey.relations if plain(each.name) == "asset_exif")
        survey_as_before = patrol.survey
        monkeypatch.setattr(page_pass, "survey", lambda *_: survey_as_before)
        admin.execute("BEGIN; LOCK TABLE asset_exif IN ACCESS EXCLUSIVE MODE")
        walk(patrol, lambda: patrol.memory.begun is not None and not patrol.memory.under_way)
        assert patrol._tried == (oid, 0, 3)
        assert (patrol.memory.whole, patrol.memory.damaged) == (False, [])
        admin.execute("ROLLBACK")


def test_tables_that_come_and_go(postgres18: Postgres, immich: str, reader: PostgresConfig) -> None:
    """A table that is dropped or renamed between the look and the reading is no error."""
    with postgres18.connect(immich) as admin, patrol_of(reader) as patrol:
        admin.execute("CREATE TABLE short_lived AS SELECT 1 AS one; CREATE TABLE renamed AS SELECT 1 AS one")
        walk(patrol, lambda: patrol.pages > 0)
        patrol.memory.oid = patrol.memory.block = 0
        admin.execute("DROP TABLE short_lived; ALTER TABLE renamed RENAME TO renamed_indeed")
        one_pass(patrol)
        assert (patrol.damaged, patrol.failure) == (0, None)
        admin.execute("DROP TABLE renamed_indeed")


def test_what_shortens_files_by_right(postgres18: Postgres) -> None:
    """VACUUM, TRUNCATE, rewrites and new indexes leave nothing that looks cut short, however often one looks."""
    with (
        immich_database(postgres18, "2.7.5") as name,
        postgres18.connect(name) as admin,
        patrol_of(config(postgres18, name), OFF) as patrol,
    ):
        for statement in (
            "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 20) AS s FROM generate_series(1, 5000) AS i",
            "CREATE UNIQUE INDEX t_i ON t (i)",
            "VACUUM ANALYZE t",
            "DELETE FROM t WHERE i > 100",
            "VACUUM t",
            "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(101, 9000) AS i",
            "REINDEX INDEX t_i",
            "DELETE FROM t WHERE i > 50",
            "VACUUM FULL t",
            "CLUSTER t USING t_i",
            "TRUNCATE t",
            "CREATE UNLOGGED TABLE u AS SELECT * FROM generate_series(1, 9000)",
            "ANALYZE",
        ):
            admin.execute(statement.encode())
            patrol.check(Deadline.after(5))
            assert patrol.survey is not None
            patrol._settle(patrol.survey)
            patrol._settle(patrol.survey)
            assert (patrol.suspects, patrol.memory.truncated) == (0, []), statement


def test_settings() -> None:
    """Without a database it is disabled; with one it is there, and reads pages only when told."""
    assert PostgresPatrolCollector.from_config(load({})) is None
    assert "DB_HOSTNAME" in PostgresPatrolCollector.disabled_because(load({}))
    made = PostgresPatrolCollector.from_config(load({"DB_HOSTNAME": "x", "IMMICH_VITALS_PAGE_PATROL": "true"}))
    assert made is not None and made._patrol.enabled
    made = PostgresPatrolCollector.from_config(load({"DB_HOSTNAME": "x", "IMMICH_VITALS_AMCHECK": "true"}))
    assert made is not None and made._patrol.amcheck and not made._patrol.enabled
    made = PostgresPatrolCollector.from_config(load({"DB_HOSTNAME": "x"}))
    assert made is not None and not made._patrol.enabled and not made._patrol.amcheck


def test_names_for_people() -> None:
    """Quotes are only where a name needs them."""
    assert plain('"public"."asset"') == "asset"
    assert plain('"pg_toast"."pg_toast_16384"') == "pg_toast.pg_toast_16384"
    assert plain('"public"."IDX_asset"') == 'public."IDX_asset"'.removeprefix("public.")


def test_an_answer_within_the_deadline() -> None:
    """A server that accepts and says nothing costs the scrape its deadline and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        collector = PostgresPatrolCollector(PostgresConfig("127.0.0.1", port, "postgres", None, "postgres", {}), ON)
        began = time.monotonic()
        with pytest.raises(CollectorFailure):
            tuple(collector.collect(Context(Deadline.after(0.3), SystemClock())))
        assert time.monotonic() - began < 1
        collector.close()
