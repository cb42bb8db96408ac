"""Really damaged files of real servers, and what the page patrol makes of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest

from immich_vitals.collector import Context, Deadline, SystemClock
from immich_vitals.collectors.postgres_patrol import PostgresPatrolCollector
from immich_vitals.config import PatrolConfig
from immich_vitals.demo.servers import Postgres
from immich_vitals.grants import grants_sql
from immich_vitals.sources import page_pass, page_patrol, postgres
from immich_vitals.sources.page_pass import PagePatrol, Spot
from immich_vitals.sources.page_patrol import Patroller, plain
from immich_vitals.sources.postgres import Database
from support.clock import FakeClock
from support.immich_database import Connection, config, create_tables
from support.installed_postgres import InstalledPostgres, folders

PAGE = 8192
ON = PatrolConfig(enabled=True, rate=100_000, interval=43200.0)
CHECKING = replace(ON, amcheck=True)
VERSION = "2.7.5"
_numbers = count(1)


class Own:
    """A database of its own in a server that the tests of this file share, and may damage and restart."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.name = f"immich{next(_numbers)}"
        with server.connect() as admin:
            admin.execute(f'CREATE DATABASE "{self.name}"'.encode())

    def connect(self) -> Connection:
        return self.server.connect(self.name)

    def crashes(self) -> int:
        return self.server.log.read_text(encoding="utf-8").count("was terminated by signal 11")

    def drop(self) -> None:
        with self.server.connect() as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)'.encode())


@pytest.fixture(scope="module")
def servers(server_folder: Path) -> Iterator[Callable[[int], Postgres]]:
    """The server of a major version, started when first asked for."""
    with ExitStack() as started:
        found: dict[int, Postgres] = {}

        def server(major: int) -> Postgres:
            if major not in found:
                kind = Postgres if major in (16, 18) else InstalledPostgres
                found[major] = started.enter_context(kind(server_folder / f"patrol{major}", major))
            return found[major]

        yield server


@pytest.fixture(params=[16, 18])
def own(request: pytest.FixtureRequest, servers: Callable[[int], Postgres]) -> Iterator[Own]:
    """For each embedded version."""
    made = Own(servers(request.param))
    yield made
    made.drop()


@pytest.fixture
def own18(servers: Callable[[int], Postgres]) -> Iterator[Own]:
    made = Own(servers(18))
    yield made
    made.drop()


def fill(own: Own) -> None:
    """Immich's tables with photos in long TOAST, all of it vacuumed and then cold."""
    with own.connect() as admin:
        create_tables(admin, VERSION)
        admin.execute('ALTER TABLE asset_exif ALTER "description" SET STORAGE EXTERNAL')
        admin.execute("INSERT INTO asset (id) SELECT gen_random_uuid() FROM generate_series(1, 3000)")
        admin.execute(
            'INSERT INTO asset_exif ("assetId", description) SELECT id, repeat(md5(id::text), 100) FROM asset LIMIT 200'
        )
        admin.execute("VACUUM ANALYZE")


def file_of(own: Own, relation: str) -> Path:
    with own.connect() as admin:
        row = admin.execute("SELECT pg_relation_filepath(%s)", (relation,)).fetchone()
    assert row is not None
    return own.server.data / str(row[0])


def one(own: Own, query: str) -> object:
    with own.connect() as admin:
        row = admin.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def toast_of(own: Own, table: str) -> str:
    return str(one(own, f"SELECT reltoastrelid::regclass FROM pg_class WHERE oid = '{table}'::regclass"))


def damage(path: Path, block: int, at: int = 4000, content: bytes = b"\xde\xad\xbe\xef") -> bytes:
    """Overwrite a few bytes of a page; what was there."""
    with path.open("r+b") as file:
        file.seek(PAGE * block + at)
        before = file.read(len(content))
        file.seek(PAGE * block + at)
        file.write(content)
    return before


class Watch:
    """A patrol over one server, for which time passes only while it waits."""

    def __init__(self, own: Own, folder: Path | None = None, user: str = "postgres", patrol: PatrolConfig = ON) -> None:
        self.clock = FakeClock()
        database = config(own.server, own.name, user)
        self.reader = Patroller(database)
        self.patrol = PagePatrol(self.reader, Database(database), patrol, folder, self.clock, self.clock.advance)

    def walk(self, until: Callable[[], bool]) -> None:
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            assert asked < 200_000, "did not come true"
            return until()

        self.patrol.follow(stop)

    def one_pass(self) -> None:
        """From here to the end of the next pass, whole or not."""
        if not self.patrol.memory.under_way:
            self.clock.advance(ON.interval)
        begun = self.patrol.memory.begun
        self.walk(lambda: self.patrol.memory.begun != begun or self.patrol.memory.under_way)
        self.walk(lambda: not (self.patrol.memory.under_way or self.patrol.memory.checking))

    def spots(self) -> set[tuple[str, int, int]]:
        """The damaged pages that it knows, by table."""
        found = self.patrol.survey
        assert found is not None
        names = {each.key: plain(each.name) for each in found.relations}
        return {(names[spot.key], spot.first, spot.after) for spot in self.patrol.memory.damaged}


@pytest.fixture
def watch() -> Iterator[Callable[..., Watch]]:
    """Makes patrols, and closes them at the end."""
    made: list[Watch] = []

    def make(own: Own, folder: Path | None = None, user: str = "postgres", patrol: PatrolConfig = ON) -> Watch:
        made.append(Watch(own, folder, user, patrol))
        return made[-1]

    yield make
    for each in made:
        each.patrol.close()


def test_damaged_pages_of_cold_tables(own: Own, watch: Callable[..., Watch], tmp_path: Path) -> None:
    """A page of a table and one of its TOAST are found before anybody reads them, told once, kept over a restart of the
    exporter, and forgotten in the pass after the disk is whole again. The role has the rights of `grants`."""
    fill(own)
    toast = toast_of(own, "asset_exif")
    with own.connect() as admin:
        admin.execute(grants_sql(own.name, "vitals").encode())
    first = watch(own, tmp_path, "vitals")
    first.one_pass()
    assert first.patrol.damaged == 0 and first.patrol.memory.completed is not None
    files = {file_of(own, "asset"): 7, file_of(own, toast): 3}
    own.server.stop()
    before = {path: damage(path, block) for path, block in files.items()}
    own.server.start()
    assert one(own, "SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()") == 0
    first.one_pass()
    assert first.spots() == {("asset", 7, 8), (toast, 3, 4)}
    assert (first.patrol.found, first.patrol.memory.completed) == (2, first.patrol.memory.completed)
    context = Context(Deadline.after(5), SystemClock())
    shown = PostgresPatrolCollector(config(own.server, own.name, "vitals"), ON, tmp_path)
    shown._patrol.state = first.patrol.state
    values = {sample.metric.name: sample.value for sample in shown.collect(context)}
    shown.close()
    assert (values["postgres_patrol_damaged_pages"], values["postgres_truncated_relations"]) == (2, 0)
    assert "pages 7 to 7 of asset" in context.remarks[0].message
    again = watch(own, tmp_path, "vitals")
    assert again.patrol.damaged == 2
    again.one_pass()
    assert (len(again.spots()), again.patrol.found) == (2, 0)
    own.server.stop()
    for path, content in before.items():
        damage(path, files[path], content=content)
    own.server.start()
    again.one_pass()
    assert (again.spots(), again.patrol.damaged, again.patrol.found) == (set(), 0, 0)
    assert again.patrol.memory.clean is None, "nobody looked at the indexes"


def test_a_rewritten_table_is_forgotten_at_the_next_look(own18: Own, watch: Callable[..., Watch]) -> None:
    """What was damaged and is no more, since its table was restored, is not told until the next pass."""
    fill(own18)
    path = file_of(own18, "asset")
    own18.server.stop()
    damage(path, 7)
    own18.server.start()
    patrol = watch(own18)
    patrol.one_pass()
    assert patrol.patrol.damaged == 1
    with own18.connect() as admin:
        admin.execute("TRUNCATE asset")
    patrol.walk(lambda: patrol.patrol.damaged == 0)
    assert patrol.clock.time() < (patrol.patrol.memory.begun or 0) + 400


def test_without_checksums(server_folder: Path, watch: Callable[..., Watch]) -> None:
    """Without checksums only a page whose head makes no sense is seen."""
    with Postgres(server_folder / f"patrol{next(_numbers)}", 16, checksums=False) as server:
        own = Own(server)
        fill(own)
        path = file_of(own, "asset")
        own.server.stop()
        damage(path, 7)
        damage(path, 9, at=12, content=b"\xff\xff\xff\xff")
        own.server.start()
        patrol = watch(own)
        patrol.one_pass()
        assert patrol.spots() == {("asset", 9, 10)}


def test_a_file_that_is_gone(own18: Own, watch: Callable[..., Watch]) -> None:
    """A table whose file is missing is damaged, and cut short."""
    fill(own18)
    path = file_of(own18, "asset")
    own18.server.stop()
    path.unlink()
    own18.server.start()
    patrol = watch(own18)
    patrol.one_pass()
    assert patrol.spots() == {("asset", 0, 1)}
    patrol.one_pass()
    assert len(patrol.patrol.memory.truncated) == 1


def test_a_file_cut_short(own: Own, watch: Callable[..., Watch], tmp_path: Path) -> None:
    """A table cut to two pages reads without an error, yet it is seen at the second look, stays seen after ANALYZE has
    recorded the short length, and is forgotten when the table is written anew."""
    fill(own)
    path = file_of(own, "asset")
    own.server.stop()
    with path.open("r+b") as file:
        file.truncate(2 * PAGE)
    own.server.start()
    assert int(str(one(own, "SELECT count(*) FROM asset"))) < 300
    first = watch(own, tmp_path)
    first.patrol.check(Deadline.after(5))
    assert (first.patrol.suspects, first.patrol.memory.truncated) == (1, [])
    first.walk(lambda: bool(first.patrol.memory.truncated))
    assert first.patrol.damaged in (None, 0)
    with own.connect() as admin:
        admin.execute("ANALYZE")
    again = watch(own, tmp_path)
    again.one_pass()
    assert (again.patrol.suspects, len(again.patrol.memory.truncated)) == (0, 1)
    with own.connect() as admin:
        admin.execute("TRUNCATE asset")
    again.walk(lambda: not again.patrol.memory.truncated)


def test_cut_short_at_a_crash(servers: Callable[[int], Postgres], watch: Callable[..., Watch]) -> None:
    """After a crash, which wipes the statistics, a file cut short is seen up to version 17."""
    own = Own(servers(16))
    fill(own)
    path = file_of(own, "asset")
    with own.connect() as admin:
        admin.execute("CHECKPOINT")
    own.server.stop("immediate")
    with path.open("r+b") as file:
        file.truncate(2 * PAGE)
    own.server.start()
    patrol = watch(own)
    patrol.walk(lambda: bool(patrol.patrol.memory.truncated))
    own.drop()


def test_sizes_that_a_restored_dump_brought(own18: Own, watch: Callable[..., Watch]) -> None:
    """From version 18 on a dump may bring the sizes of the old tables along; that is no file cut short."""
    with own18.connect() as admin:
        admin.execute("CREATE TABLE asset AS SELECT 1 AS id")
        admin.execute(
            "SELECT pg_restore_relation_stats('schemaname', 'public', 'relname', 'asset', 'relpages', 900::int)"
        )
        assert one(own18, "SELECT relpages FROM pg_class WHERE relname = 'asset'") == 900
    patrol = watch(own18)
    patrol.one_pass()
    patrol.one_pass()
    assert (patrol.patrol.suspects, patrol.patrol.memory.truncated) == (0, [])


@pytest.mark.skipif(15 not in folders(), reason="needs Postgres 15 with its extensions; apt-get install postgresql-15")
@pytest.mark.parametrize("user", ["postgres", "vitals"])
def test_indexes_where_pg_prewarm_is(
    servers: Callable[[int], Postgres], watch: Callable[..., Watch], user: str
) -> None:
    """With pg_prewarm the pages of indexes are read too, of any kind, with the rights of `grants`."""
    own = Own(servers(15))
    with own.connect() as admin:
        admin.execute("CREATE TABLE asset (id int PRIMARY KEY, checksum text)")
        admin.execute("INSERT INTO asset SELECT i, md5(i::text) FROM generate_series(1, 3000) AS i")
        admin.execute("CREATE INDEX checksum ON asset USING gin ((ARRAY[checksum]))")
        admin.execute("CREATE TABLE assets (id int); CREATE EXTENSION pg_prewarm")
        admin.execute(grants_sql(own.name, "vitals").encode())
    files = {file_of(own, "asset_pkey"): 2, file_of(own, "checksum"): 4}
    own.server.stop()
    for path, block in files.items():
        damage(path, block)
    own.server.start()
    patrol = watch(own, user=user)
    patrol.one_pass()
    assert patrol.spots() == {("asset_pkey", 2, 3), ("checksum", 4, 5)}
    assert (patrol.patrol.memory.completed is not None, patrol.patrol.memory.clean) == (True, None)
    with own.connect() as admin:
        admin.execute("REINDEX TABLE asset")
    patrol.walk(lambda: patrol.patrol.damaged == 0)
    patrol.one_pass()
    assert patrol.patrol.memory.clean == patrol.patrol.memory.begun
    own.drop()


CRASH = """
CREATE OR REPLACE FUNCTION immich_vitals.read_pages(relation oid, first bigint, after bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF relation = 'asset'::regclass AND first <= 7 AND after > 7 THEN
    COPY (SELECT 1) TO PROGRAM 'kill -SEGV $PPID';
    PERFORM pg_sleep(5);
  END IF;
END $$"""


def checkpointer(own: Own) -> object:
    return one(own, "SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'")


def test_a_page_that_crashes_postgres(own18: Own, watch: Callable[..., Watch], tmp_path: Path) -> None:
    """A page that ends the process that reads it costs one crash: it is remembered, gone round, and not read again in
    the next pass or after a restart of the exporter, until its table is written anew."""
    fill(own18)
    with own18.connect() as admin:
        admin.execute(grants_sql(own18.name, "vitals").encode())
        admin.execute(CRASH.encode())
    before = own18.crashes()
    first = watch(own18, tmp_path)
    first.one_pass()
    assert {name for name, _, _ in first.spots()} == {"asset"}
    assert (first.patrol.damaged, first.patrol.found, first.patrol.failure) == (1, 1, None)
    assert own18.crashes() == before + 1
    first.one_pass()
    again = watch(own18, tmp_path)
    again.one_pass()
    assert own18.crashes() == before + 1
    assert (again.patrol.damaged, again.patrol.memory.completed is not None) == (1, True)
    with own18.connect() as admin:
        admin.execute("TRUNCATE asset")
    again.walk(lambda: again.patrol.damaged == 0)


@pytest.mark.parametrize("by", ["terminated", "crash"])
def test_what_another_did_is_not_ours(own18: Own, watch: Callable[..., Watch], by: str) -> None:
    """A connection lost because another process crashed, or because somebody ended it, accuses no page."""
    fill(own18)
    with own18.connect() as other, own18.connect() as admin:
        admin.execute(grants_sql(own18.name, "vitals").encode())
        what = "PERFORM pg_terminate_backend(pg_backend_pid())"
        if by == "crash":
            what = f"COPY (SELECT 1) TO PROGRAM 'kill -SEGV {other.info.backend_pid}'"
        admin.execute(CRASH.replace("COPY (SELECT 1) TO PROGRAM 'kill -SEGV $PPID'", what).encode())
        patrol = watch(own18)
        started = checkpointer(own18)
        patrol.walk(lambda: patrol.patrol.memory.begun is not None and not patrol.patrol.memory.under_way)
        assert (checkpointer(own18) != started) is (by == "crash")
        assert (patrol.patrol.memory.damaged, patrol.patrol.memory.whole) == ([], False)


def test_nothing_is_read_where_damage_would_be_wiped_out(own18: Own, watch: Callable[..., Watch]) -> None:
    """With zero_damaged_pages on, reading a damaged page would empty it: the patrol says so and reads nothing, from
    the very moment on at which it is set; afterwards the page is still there to be found."""
    fill(own18)
    path = file_of(own18, "asset")
    own18.server.stop()
    damage(path, 7)
    own18.server.start()
    patrol = watch(own18)
    patrol.walk(lambda: patrol.patrol.pages > 20)
    with own18.connect() as admin:
        admin.execute(f"ALTER DATABASE {own18.name} SET zero_damaged_pages = on".encode())
    patrol.reader.close()
    read = patrol.patrol.pages
    rounds = iter(range(200))
    patrol.walk(lambda: next(rounds) > 150)
    assert patrol.patrol.survey is not None
    assert (patrol.patrol.survey.unsafe, patrol.patrol.pages) == ("zero_damaged_pages", read)
    context = Context(Deadline.after(5), SystemClock())
    collector = PostgresPatrolCollector(config(own18.server, own18.name), ON)
    assert len(list(collector.collect(context))) == 3
    collector.close()
    assert "zero_damaged_pages" in context.remarks[0].message
    with own18.connect() as admin:
        admin.execute(f"ALTER DATABASE {own18.name} RESET zero_damaged_pages".encode())
    patrol.one_pass()
    assert patrol.spots() == {("asset", 7, 8)}


def test_restarted_in_the_middle(own18: Own, watch: Callable[..., Watch]) -> None:
    """A restart of Postgres in the middle of a pass costs a pause: the pass goes on where it was and is whole."""
    fill(own18)
    patrol = watch(own18)
    patrol.walk(lambda: patrol.patrol.pages > 200)
    before = patrol.patrol.pages
    own18.server.stop("immediate")
    patrol.walk(lambda: patrol.patrol.failure is not None)
    assert patrol.patrol.memory.under_way
    own18.server.start()
    patrol.walk(lambda: not patrol.patrol.memory.under_way)
    assert patrol.patrol.failure is None and patrol.patrol.memory.completed is not None
    assert patrol.patrol.memory.damaged == []
    assert patrol.patrol.pages > before


def test_replaced_in_the_middle(own18: Own, server_folder: Path, watch: Callable[..., Watch]) -> None:
    """Another data directory behind the same address, of another major version, in the middle of a pass: nothing of
    the old one counts for the new one, and a pass over the new one is whole."""
    fill(own18)
    path = file_of(own18, "asset")
    own18.server.stop()
    damage(path, 7)
    own18.server.start()
    patrol = watch(own18)
    patrol.one_pass()
    assert patrol.patrol.damaged == 1
    patrol.clock.advance(ON.interval)
    patrol.walk(lambda: patrol.patrol.memory.under_way and patrol.patrol.memory.block > 0)
    place = patrol.patrol.memory.place
    own18.server.stop()
    try:
        port = {"port": str(own18.server.port)}
        with Postgres(server_folder / f"patrol{next(_numbers)}", 16, settings=port) as server:
            server.port = own18.server.port
            other = Own(server)
            with server.connect() as admin:
                admin.execute(f"ALTER DATABASE {other.name} RENAME TO {own18.name}".encode())
            other.name = own18.name
            fill(other)
            patrol.walk(lambda: patrol.patrol.memory.place != place)
            patrol.walk(lambda: patrol.patrol.memory.completed is not None)
            assert (patrol.patrol.damaged, patrol.patrol.found) == (0, 1)
    finally:
        own18.server.start()


def test_dropped_and_made_anew_in_the_middle(own18: Own, watch: Callable[..., Watch]) -> None:
    """A database that is dropped and restored under the patrol's feet is another one, read from its beginning."""
    patrol = watch(own18).patrol
    patrol.follow(lambda: patrol.pages > 100)
    patrol.memory.damaged.append(Spot(1259, 1, 0, 1))
    place = patrol.memory.place
    own18.drop()
    patrol.follow(lambda: patrol.failure is not None)
    with own18.server.connect() as admin:
        admin.execute(f"CREATE DATABASE {own18.name}".encode())
    patrol.follow(lambda: patrol.memory.place != place)
    patrol.follow(lambda: patrol.memory.completed is not None)
    assert (patrol.damaged, patrol.failure) == (0, None)


def test_it_keeps_nobody_waiting_and_holds_nothing_back(own18: Own, watch: Callable[..., Watch]) -> None:
    """Between two steps no transaction of the patrol is open, and none of its locks is held."""
    fill(own18)
    patrol = watch(own18)
    patrol.walk(lambda: patrol.patrol.pages > 100)
    ours = "FROM pg_stat_activity WHERE application_name = 'immich-vitals' AND datname = current_database()"
    assert one(own18, f"SELECT count(*) {ours}") == 1
    assert one(own18, f"SELECT count(*) {ours} AND (state <> 'idle' OR backend_xmin IS NOT NULL)") == 0
    assert one(own18, f"SELECT count(*) FROM pg_locks WHERE pid IN (SELECT pid {ours})") == 0


needs15 = pytest.mark.skipif(15 not in folders(), reason="needs amcheck; apt-get install postgresql-15")


def fill_indexes(own: Own, *, amcheck: bool = True) -> None:
    """A table with three B-trees, and what is needed to check them."""
    with own.connect() as admin:
        admin.execute("CREATE TABLE asset (id int PRIMARY KEY, checksum text, note text)")
        admin.execute("INSERT INTO asset SELECT i, md5(i::text), 'x' FROM generate_series(1, 3000) AS i")
        admin.execute("CREATE INDEX by_checksum ON asset (checksum)")
        admin.execute("CREATE INDEX by_half ON asset (checksum, id) WHERE id % 2 = 0")
        admin.execute("CREATE TABLE assets (id int)")
        if amcheck:
            admin.execute("CREATE EXTENSION amcheck")
        admin.execute(grants_sql(own.name, "vitals").encode())


def indexes_of(own: Own) -> int:
    """How many there are to be checked, those of TOAST tables too."""
    return int(
        str(
            one(
                own,
                "SELECT count(*) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree'"
                " AND relnamespace <> 'pg_catalog'::regnamespace",
            )
        )
    )


@needs15
def test_an_index_out_of_order(servers: Callable[[int], Postgres], watch: Callable[..., Watch], tmp_path: Path) -> None:
    """Two entries that changed places in a leaf, on a page whose checksum is right: only amcheck sees it. It is told
    once, kept over a restart of the exporter, and forgotten at the look after REINDEX. The role has the rights of
    `grants`."""
    own = Own(servers(15))
    fill_indexes(own)
    first = watch(own, tmp_path, "vitals", CHECKING)
    assert first.patrol.bad_indexes is None
    first.one_pass()
    assert (first.patrol.bad_indexes, first.patrol.checks) == (0, indexes_of(own))
    path = file_of(own, "by_checksum")
    own.server.stop()
    second_entry = 24 + 4  # after the head of the page and the pointer to its high key
    pointers = damage(path, 1, second_entry, bytes(8))
    damage(path, 1, second_entry, pointers[4:] + pointers[:4])
    for how in ("--disable", "--enable"):
        own.server._run("pg_checksums", how, "--no-sync", "-D", str(own.server.data))
    own.server.start()
    first.one_pass()
    assert (first.patrol.bad_indexes, first.patrol.condemned, first.patrol.damaged) == (1, 1, 0)
    context = Context(Deadline.after(5), SystemClock())
    shown = PostgresPatrolCollector(config(own.server, own.name, "vitals"), CHECKING, tmp_path)
    values = {sample.metric.name: sample.value for sample in shown.collect(context)}
    shown.close()
    assert values["postgres_amcheck_damaged_indexes"] == 1
    assert [remark.message for remark in context.remarks] == ["damaged indexes, 1 in all: by_checksum"]
    again = watch(own, tmp_path, patrol=CHECKING)
    assert again.patrol.bad_indexes == 1
    again.one_pass()
    assert (again.patrol.bad_indexes, again.patrol.condemned) == (1, 0)
    with own.connect() as admin:
        admin.execute("REINDEX INDEX by_checksum")
    again.walk(lambda: again.patrol.bad_indexes == 0)
    again.one_pass()
    assert (again.patrol.bad_indexes, again.patrol.condemned) == (0, 0)
    own.drop()


@needs15
def test_a_healthy_database_that_is_written(
    servers: Callable[[int], Postgres], watch: Callable[..., Watch], tmp_path: Path
) -> None:
    """While rows come, change and go, and VACUUM takes pages out of indexes, amcheck finds nothing and misses none."""
    own = Own(servers(15))
    fill_indexes(own)
    done, written = Event(), count(1)
    failed: list[Exception] = []

    def write(lane: int) -> None:
        try:
            with own.connect() as connection:
                while not done.is_set():
                    at = 10_000 * lane + 100 * (next(written) % 50)
                    connection.execute(
                        "INSERT INTO asset SELECT i, md5(random()::text) FROM generate_series(%s::int, %s::int) AS i"
                        " ON CONFLICT (id) DO UPDATE SET checksum = excluded.checksum",
                        (at, at + 150),
                    )
                    connection.execute("DELETE FROM asset WHERE id BETWEEN %s AND %s", (at - 1500, at - 300))
                    if lane == 1:
                        connection.execute("VACUUM asset")
        except Exception as error:
            failed.append(error)

    writers = [Thread(target=write, args=(lane,)) for lane in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        patrol = watch(own, tmp_path, "vitals", CHECKING)
        for _ in range(5):
            patrol.one_pass()
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert not failed and next(written) > 10
    assert (patrol.patrol.bad_indexes, patrol.patrol.condemned, patrol.patrol.memory.unchecked) == (0, 0, [])
    assert patrol.patrol.checks == 5 * indexes_of(own)
    own.drop()


@needs15
def test_checks_go_on_where_they_were(
    servers: Callable[[int], Postgres],
    watch: Callable[..., Watch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The smallest come first, none is checked twice in a pass over a restart, and a locked table costs a remark."""
    own = Own(servers(15))
    fill_indexes(own)
    monkeypatch.setattr(postgres, "LOCK_SECONDS", 0.05)
    first = watch(own, tmp_path, patrol=CHECKING)
    first.walk(lambda: first.patrol.checks > 0)
    assert first.patrol.survey is not None
    sizes = {each.oid: each.pages for each in first.patrol.survey.relations if each.checkable}
    assert [sizes[oid] for oid in first.patrol.memory.checked] == [min(sizes.values())]
    again = watch(own, tmp_path, patrol=CHECKING)
    assert again.patrol.memory.checking
    with own.connect() as admin:
        admin.execute("BEGIN; LOCK TABLE asset IN ACCESS EXCLUSIVE MODE")
        again.walk(lambda: not again.patrol.memory.checking)
        admin.execute("ROLLBACK")
    assert first.patrol.checks + again.patrol.checks + len(again.patrol.memory.unchecked) == len(sizes)
    assert again.patrol.bad_indexes == 0 and len(again.patrol.memory.unchecked) == 3
    context = Context(Deadline.after(5), SystemClock())
    shown = PostgresPatrolCollector(config(own.server, own.name), CHECKING, tmp_path)
    list(shown.collect(context))
    shown.close()
    assert [remark.optional for remark in context.remarks] == [True]
    assert "did not get through 3 indexes" in context.remarks[0].message
    again.one_pass()
    assert again.patrol.memory.unchecked == []
    own.drop()


def test_an_index_that_crashes_postgres(
    own18: Own, watch: Callable[..., Watch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index whose check ends the process costs one crash and counts as damaged until it is built anew."""
    monkeypatch.setattr(
        page_pass, "survey", lambda *asked: replace(page_patrol.survey(*asked), amcheck="public", may_check=True)
    )
    fill_indexes(own18, amcheck=False)
    with own18.connect() as admin:
        admin.execute(
            b"CREATE OR REPLACE FUNCTION immich_vitals.check_index(relation oid) RETURNS void LANGUAGE plpgsql AS $$"
            b" BEGIN IF relation = 'by_half'::regclass THEN COPY (SELECT 1) TO PROGRAM 'kill -SEGV $PPID';"
            b" PERFORM pg_sleep(5); END IF; END $$"
        )
        admin.execute("CHECKPOINT")
    before = own18.crashes()
    first = watch(own18, tmp_path, patrol=CHECKING)
    first.one_pass()
    again = watch(own18, tmp_path, patrol=CHECKING)
    again.one_pass()
    assert own18.crashes() == before + 1
    assert (again.patrol.bad_indexes, first.patrol.condemned, again.patrol.failure) == (1, 1, None)
    assert [bad.crashed for bad in again.patrol.memory.bad] == [True]
    with own18.connect() as admin:
        admin.execute("REINDEX INDEX by_half")
    again.walk(lambda: again.patrol.bad_indexes == 0)
