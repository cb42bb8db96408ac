"""Reading the pages of Immich's database a few at a time, only so that Postgres verifies them; no content comes out.

A table, or the TOAST table with its long values, is read by ranges of ctid: that goes through Postgres' cache, which
verifies each page that comes from the disk. pg_prewarm in its mode `buffer` does the same for an index. (Its mode
`read` verifies nothing.) A page that is in the cache already hides what the disk has instead of it.

What is read so passes through that cache without a ring of its own. Measured with a cache of 32 MB and a cold table of
54 MB: pages that Immich read every 16 steps in the meantime, ten seconds at 100 pages a second, all stayed in it; of
those that nobody read for that long, a fifth gave way.

What is whole by its checksum may still be wrong: an index whose entries are not in order, as after an update of the C
library, finds only some of its rows. The extension amcheck reads an index as a whole and says so.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from immich_vitals.collector import CollectorFailure, Deadline
from immich_vitals.sources.immich_schema import SWITCHES_SCHEMA, quoted
from immich_vitals.sources.kept import Down
from immich_vitals.sources.postgres import Answered, Database, Hello, Queries, Results, Row, _Connection

PATROL_SCHEMA, PATROL_FUNCTION = SWITCHES_SCHEMA, "read_pages"
PREWARM = "pg_prewarm"
CHECK_FUNCTION, AMCHECK = "check_index", "amcheck"

# Damage: data or index corrupted, I/O error, a file that is gone.
_DAMAGE = ("XX001", "XX002", "58030", "58P01")
_GONE = ("42P01", "3F000")  # the table, or its schema, was dropped or renamed since we saw it
_CRASH_OF_ANOTHER = "57P02"


class Damaged(CollectorFailure):
    """Postgres could not read a page, or what is on it is wrong."""

    reason = "unavailable"


class Unsafe(CollectorFailure):
    """Postgres is told to pass over damage, or to wipe it out: nothing may be read for the sake of finding it."""

    reason = "unavailable"


class Gone(CollectorFailure):
    """The table is not there any more."""

    reason = "absent"


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, TOAST table or index as the catalogue has it. Sizes are in pages.

    `recorded` is the size that VACUUM or ANALYZE last saw, None where it may be from elsewhere; `filenode` changes
    when all of it is written anew. One that is locked has no sizes. `checkable` is a B-tree in use that is
    not of the catalogue.
    """

    oid: int
    filenode: int
    name: str
    index: bool
    pages: int
    recorded: int | None
    readable: bool
    locked: bool = False
    checkable: bool = False

    @property
    def key(self) -> tuple[int, int]:
        return self.oid, self.filenode


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to read, in the order of the catalogue's numbers, and in which run of which server.

    `place` is another one when the data directory or the database is. Moments are seconds since the epoch, None is
    unknown. `unreadable` counts tables that our role may not read. `amcheck` is the schema of that extension, None
    without it, and `may_check` whether our role may have it check an index.
    """

    place: str
    started: float
    checkpointer_started: float | None
    unsafe: str
    by_function: bool
    prewarm: str | None
    relations: tuple[Relation, ...]
    amcheck: str | None = None
    check_by_function: bool = False
    may_check: bool = False

    @property
    def unreadable(self) -> int:
        return sum(not relation.readable and not relation.index and relation.pages > 0 for relation in self.relations)


class Patroller(Database):
    """A connection that asks once only: the second of two attempts to read a page could be the second crash."""

    crash_of_another = False

    def ask(self, question: Queries, deadline: Deadline) -> Results:
        with self._in_use:
            return self._ask_or_drop(question, deadline)

    def _connect(self, question: Queries, deadline: Deadline) -> _Connection:
        connection = super()._connect(question, deadline)
        self.crash_of_another = False
        connection.add_notice_handler(self._notice)
        return connection

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.crash_of_another = self.crash_of_another or diagnostic.sqlstate == _CRASH_OF_ANOTHER


def survey(database: Database, deadline: Deadline) -> Survey:
    """What there is to read. Raises what `Database.ask` raises."""
    return survey_from(database.ask(_survey_queries, deadline))


def survey_from(results: Results) -> Survey:
    """The survey in the answers to the two queries below."""
    server, relations = results
    system, oid, started, checkpointer, unsafe, superuser, by_function, prewarm, check_by_function, amcheck = server[0]
    indexes = prewarm is not None and bool(superuser or by_function)
    return Survey(
        place=f"{system}/{oid}",
        started=_number(started) or 0.0,
        checkpointer_started=_number(checkpointer),
        unsafe=str(unsafe or ""),
        by_function=bool(by_function),
        prewarm=None if prewarm is None else str(prewarm),
        relations=tuple(_relation(row, bool(by_function), indexes) for row in relations),
        amcheck=None if amcheck is None else str(amcheck),
        check_by_function=bool(check_by_function),
        may_check=amcheck is not None and bool(superuser or check_by_function),
    )


def _relation(row: Row, by_function: bool, indexes: bool) -> Relation:
    oid, filenode, schema, name, index, pages, recorded, allowed, checkable = row
    return Relation(
        oid=_whole(oid),
        filenode=_whole(filenode),
        name=f"{quoted(str(schema))}.{quoted(str(name))}",
        index=bool(index),
        pages=_whole(pages),
        recorded=None if recorded is None or pages is None else _whole(recorded),
        readable=indexes if index else bool(by_function or allowed),
        locked=pages is None,
        checkable=bool(checkable),
    )


def read_pages(
    database: Database, found: Survey, relation: Relation, first: int, after: int, deadline: Deadline
) -> tuple[int, int]:
    """Read the pages from `first` to before `after`; how many were there, and how many the relation has now.

    Raises `Damaged`, `Gone`, `Unsafe`, or what `Database.ask` raises.
    """
    pages = _read(database, relation, _step(found, relation, first, after), deadline)
    return max(0, min(after, pages) - first), pages


def check_index(database: Database, found: Survey, index: Relation, deadline: Deadline) -> None:
    """Have amcheck read all of an index, with the lock of a SELECT on it and its table, and see that it is in order.

    Raises what `read_pages` raises.
    """
    _read(database, index, _check(found, index), deadline)


def _read(database: Database, relation: Relation, queries: str, deadline: Deadline) -> int:
    """How many pages the relation has, after these queries, the first of which asks for that and for `_UNSAFE`."""
    try:
        results = database.ask(lambda hello: queries, deadline)
    except Answered as answer:
        if answer.sqlstate in _GONE:
            raise Gone(answer.message) from None
        # A library that is gone is no page.
        if answer.sqlstate in _DAMAGE and "$libdir" not in answer.message:
            raise Damaged(answer.message, mend=answer.mend) from None
        raise
    pages, unsafe = results[0][0]
    if unsafe:
        raise Unsafe(f"{unsafe} is on")
    if pages is None:
        raise Gone(f"{relation.name} is gone")
    return _whole(pages)


def broke(failure: CollectorFailure, before: Survey, after: Survey, another: bool) -> bool:
    """Whether the loss of our connection was a crash of the very process that read for us.

    Postgres itself went on, and had to start its processes anew. Whoever is only caught up in the crash of another
    is told so before the connection ends.
    """
    return (
        isinstance(failure, Down)
        and not another
        and before.place == after.place
        and before.started == after.started
        and before.checkpointer_started is not None
        and before.checkpointer_started != after.checkpointer_started
    )


_UNSAFE = """(SELECT min(name) FROM unnest('{zero_damaged_pages,ignore_checksum_failure}'::text[]) AS name
        WHERE current_setting(name) = 'on')"""
_PAGES = "pg_relation_size({}::oid::regclass) / current_setting('block_size')::int"


def _survey_queries(hello: Hello) -> str:
    system = "(SELECT system_identifier FROM pg_control_system())" if hello.may_read_control else "NULL"
    # From 18 on a restored dump may bring the sizes of the old tables along; what VACUUM or ANALYZE saw here counts.
    trusted = "true" if hello.version < 180000 else _SEEN_HERE
    return f"{_SERVER % system}; {_RELATIONS % trusted}"


_FUNCTION = f"""(SELECT coalesce(bool_or(has_function_privilege(p.oid, 'execute')
                                         AND has_schema_privilege(n.oid, 'usage')), false)
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = '{PATROL_SCHEMA}' AND p.proname = '{{}}' AND p.pronargs = {{}})"""
_EXTENSION = """(SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        JOIN pg_available_extensions() a ON a.name = e.extname WHERE e.extname = '{}')"""

_SERVER = f"""
SELECT %s, (SELECT oid FROM pg_database WHERE datname = current_database()),
       extract(epoch FROM pg_postmaster_start_time())::float8,
       (SELECT extract(epoch FROM max(backend_start))::float8 FROM pg_stat_activity
           WHERE backend_type = 'checkpointer'),
       {_UNSAFE}, current_setting('is_superuser') = 'on',
       {_FUNCTION.format(PATROL_FUNCTION, 3)}, {_EXTENSION.format(PREWARM)},
       {_FUNCTION.format(CHECK_FUNCTION, 1)}, {_EXTENSION.format(AMCHECK)}"""

_SEEN_HERE = """coalesce(pg_stat_get_vacuum_count(c.oid) + pg_stat_get_autovacuum_count(c.oid)
            + pg_stat_get_analyze_count(c.oid) + pg_stat_get_autoanalyze_count(c.oid), 0) > 0"""

# Asking for the size of a table that somebody has locked exclusively would wait for the lock. A table that is not
# logged is empty after a crash, whatever was recorded of it. Only kinds of indexes that record their true size are
# taken at their word.
_RELATIONS = f"""
SELECT c.oid, pg_relation_filenode(c.oid), n.nspname, c.relname, c.relkind = 'i',
       CASE WHEN l.relation IS NULL THEN {_PAGES.format("c.oid")} END,
       CASE WHEN c.relpersistence = 'p' AND coalesce(a.amname, '') IN ('heap', 'btree', 'gin', 'hash') AND %s
            THEN c.relpages END,
       c.relkind <> 'i' AND has_column_privilege(c.oid, 'ctid', 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
       coalesce(a.amname = 'btree' AND i.indisvalid AND i.indisready, false)
       AND n.nspname NOT IN ('pg_catalog', 'information_schema')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam
     LEFT JOIN pg_index i ON i.indexrelid = c.oid
     LEFT JOIN (SELECT DISTINCT relation FROM pg_locks WHERE mode = 'AccessExclusiveLock'
                AND database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) l
     ON l.relation = c.oid
WHERE c.relkind IN ('r', 'm', 't', 'i') AND c.relpersistence <> 't'
ORDER BY c.oid"""

# The plan must be the range of ctid; a parallel one would cost Immich a worker.
_PLAN = """SET LOCAL enable_seqscan = off; SET LOCAL enable_tidscan = on;
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off"""


def _step(found: Survey, relation: Relation, first: int, after: int) -> str:
    look = f"SELECT {_PAGES.format(relation.oid)}, {_UNSAFE}"
    guard = f"{_UNSAFE} IS NULL"
    if found.by_function:
        read = f"SELECT {PATROL_SCHEMA}.{PATROL_FUNCTION}({relation.oid}::oid, {first}, {after}) WHERE {guard}"
    elif relation.index:
        read = (
            f"SELECT {found.prewarm}.{PREWARM}({relation.oid}::regclass, 'buffer', 'main', {first},"
            f" least({after}, {_PAGES.format(relation.oid)}) - 1)"
            f" WHERE {guard} AND {_PAGES.format(relation.oid)} > {first}"
        )
    else:
        read = f"SELECT count(*) FROM {relation.name} WHERE ctid >= '({first},0)' AND ctid < '({after},0)' AND {guard}"
    return f"{_PLAN}; {look}; {read}"


def _check(found: Survey, index: Relation) -> str:
    check = f"{found.amcheck}.bt_index_check(oid::regclass)"
    if found.check_by_function:
        check = f"{PATROL_SCHEMA}.{CHECK_FUNCTION}(oid)"
    same = f"pg_relation_filenode({index.oid}) = {index.filenode}"
    look = f"SELECT CASE WHEN {same} THEN {_PAGES.format(index.oid)} END, {_UNSAFE}"
    return f"{look}; SELECT {check} FROM pg_class WHERE oid = {index.oid} AND {same} AND {_UNSAFE} IS NULL"


def truncated(relations: Sequence[Relation]) -> frozenset[tuple[int, int, int]]:
    """The tables and indexes whose file is shorter than Postgres recorded it: oid, filenode, recorded pages."""
    return frozenset(
        (*relation.key, relation.recorded)
        for relation in relations
        if relation.recorded is not None and relation.recorded > relation.pages
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int:
    return int(str(value or 0))


def plain(name: str) -> str:
    """A qualified name as people write it."""
    return re.sub(r'"([a-z_][a-z0-9_]*)"', r"\1", name).removeprefix("public.")
