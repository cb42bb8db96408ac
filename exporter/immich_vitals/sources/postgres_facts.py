"""What Postgres says of itself: one round trip, a handful of catalogue queries, the same however large the library."""

from collections.abc import Iterable
from dataclasses import dataclass

from immich_vitals.collector import Deadline
from immich_vitals.sources.postgres import APPLICATION, Database, Hello, Results, Row

SHARED = "(shared)"  # the catalogues that all databases share; no database can be meant by it
EXTENSIONS = ("vectors", "vector", "vchord", "cube", "earthdistance", "pg_trgm", "unaccent", "uuid-ossp")
UNSAFE = {"zero_damaged_pages": "on", "ignore_checksum_failure": "on", "fsync": "off", "full_page_writes": "off"}
SET_FOR_ROLES = ("zero_damaged_pages", "ignore_checksum_failure")  # those of them that a role or database may have
READ_ONLY = "default_transaction_read_only"
DATABASES = 100  # no server that also keeps photos has more; it bounds the number of series


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One database of the server, or what they share. Moments are seconds since the epoch, None is unknown.

    `checksum_failures` is None when checksums are off; `collation_mismatch` is None when no version is recorded.
    """

    name: str
    ours: bool
    checksum_failures: int | None
    checksum_last_failure: float | None
    stats_reset: float | None
    deadlocks: int | None
    collation_mismatch: bool | None


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension that Immich uses: the version created in the database and the one whose files are there."""

    name: str
    installed: str | None
    available: str | None


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """The server as seen from Immich's database. Moments are seconds since the epoch, None is unknown.

    `connections` counts by Postgres' own word for the state; `settings` maps a setting to its value for every
    login, without those that only our own role or session has changed; one that risks data counts for any role.
    """

    version: str
    system_identifier: str | None
    started: float
    checkpointer_started: float | None
    in_recovery: bool
    connections: dict[str | None, int]
    connections_max: int
    oldest_transaction: float | None
    blocked_sessions: int
    checksums: bool
    invalid_indexes: int
    xid_age_ratio: float
    database_size: int
    settings: dict[str, str]
    databases: tuple[DatabaseFacts, ...]
    extensions: tuple[Extension, ...]


def read_facts(database: Database, deadline: Deadline) -> PostgresFacts:
    """The facts as of now. Raises what `Database.ask` raises."""
    return facts_from(database.ask(_queries, deadline))


def facts_from(results: Results) -> PostgresFacts:
    """The facts in the answers to the five queries below."""
    server, activity, settings, databases, extensions = results
    version, system, started, checkpointer, recovery, most, checksums, prepared, blocked, invalid, age, size = server[0]
    return PostgresFacts(
        version=str(version),
        system_identifier=_text(system),
        started=_number(started) or 0.0,
        checkpointer_started=_number(checkpointer),
        in_recovery=bool(recovery),
        connections={_text(state): _whole(count) or 0 for state, count, _ in activity},
        connections_max=_whole(most) or 0,
        oldest_transaction=_earliest([prepared, *(since for _, _, since in activity)]),
        blocked_sessions=_whole(blocked) or 0,
        checksums=checksums == "on",
        invalid_indexes=_whole(invalid) or 0,
        xid_age_ratio=_number(age) or 0.0,
        database_size=_whole(size) or 0,
        settings={str(name): str(value) for name, value in settings},
        databases=tuple(_database(row) for row in databases),
        extensions=tuple(Extension(str(name), _text(have), _text(files)) for name, have, files in extensions),
    )


def _database(row: Row) -> DatabaseFacts:
    name, ours, failures, last, reset, deadlocks, mismatch = row
    return DatabaseFacts(
        name=SHARED if name is None else str(name),
        ours=bool(ours),
        checksum_failures=_whole(failures),
        checksum_last_failure=_number(last),
        stats_reset=_number(reset),
        deadlocks=_whole(deadlocks),
        collation_mismatch=None if mismatch is None else bool(mismatch),
    )


def _queries(hello: Hello) -> str:
    system = "(SELECT system_identifier::text FROM pg_control_system())" if hello.may_read_control else "NULL"
    mismatch = _MISMATCH_15 if hello.version >= 150000 else _MISMATCH_14
    return ";\n".join((_SERVER % system, _ACTIVITY, _SETTINGS, _DATABASES % mismatch, _EXTENSIONS))


# The checkpointer lives as long as Postgres does; when a process crashes, Postgres ends and starts all the others, this
# one among them, and keeps its own start time. An index that is just being built concurrently is not valid yet, and no
# fault.
_SERVER = """
SELECT split_part(current_setting('server_version'), ' ', 1), %s,
       extract(epoch FROM pg_postmaster_start_time())::float8,
       (SELECT extract(epoch FROM max(backend_start))::float8 FROM pg_stat_activity
           WHERE backend_type = 'checkpointer'),
       pg_is_in_recovery(),
       current_setting('max_connections')::int, current_setting('data_checksums'),
       (SELECT extract(epoch FROM min(prepared))::float8 FROM pg_prepared_xacts),
       (SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'),
       (SELECT count(*) FROM pg_index WHERE NOT indisvalid
           AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index
                                  WHERE index_relid IS NOT NULL)),
       (SELECT max(greatest(age(datfrozenxid), mxid_age(datminmxid)))::float8 / 2147483648 FROM pg_database),
       pg_database_size(current_database())"""

# Without pg_read_all_stats the type and state of other people's sessions are null; those that belong to a role and a
# database are clients. One that is seen and has no state yet is starting, as Postgres 18 calls it.
_ACTIVITY = f"""
SELECT CASE WHEN backend_type IS NOT NULL THEN coalesce(state, 'starting') END, count(*),
       extract(epoch FROM min(xact_start) FILTER (
           WHERE NOT (application_name = '{APPLICATION}' AND usename = current_user)))::float8
FROM pg_stat_activity
WHERE coalesce(backend_type, 'client backend') = 'client backend' AND datid IS NOT NULL AND usesysid IS NOT NULL
GROUP BY 1"""

# A role that was told to ignore damage ignores it for Immich too when Immich logs in with it, whoever we are. Its
# value stands as it was written: on, true, yes, 1.
_SETTINGS = f"""
WITH risky AS (
  SELECT DISTINCT split_part(word, '=', 1) AS name
  FROM pg_db_role_setting s, unnest(s.setconfig) AS word
  WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND split_part(word, '=', 1) IN ({", ".join(f"'{name}'" for name in SET_FOR_ROLES)})
    AND lower(split_part(word, '=', 2)) IN ('on', 'true', 'yes', '1')
)
SELECT name, CASE WHEN name IN (SELECT name FROM risky) THEN 'on' ELSE reset_val END FROM pg_settings
WHERE name IN ({", ".join(f"'{name}'" for name in (*UNSAFE, READ_ONLY))})
  AND (source NOT IN ('user', 'database user', 'client', 'session') OR name IN (SELECT name FROM risky))"""

_DATABASES = f"""
SELECT s.datname::text, coalesce(s.datname = current_database(), false), s.checksum_failures,
       extract(epoch FROM s.checksum_last_failure)::float8, extract(epoch FROM s.stats_reset)::float8, s.deadlocks,
       %s
FROM pg_stat_database s LEFT JOIN pg_database d ON d.oid = s.datid
ORDER BY coalesce(s.datname = current_database(), true) DESC, s.checksum_failures DESC NULLS LAST, s.datname
LIMIT {DATABASES}"""

_MISMATCH_15 = "CASE WHEN d.datallowconn THEN d.datcollversion <> pg_database_collation_actual_version(d.oid) END"

# Postgres 14 records no version for a database. The collation of the same name in the catalogue has had one since
# initdb; the locale's name may be written in two ways there (en_US.utf8, en_US.UTF-8).
_MISMATCH_14 = """CASE WHEN s.datname = current_database() THEN (
           SELECT bool_or(c.collversion <> pg_collation_actual_version(c.oid)) FROM pg_collation c
           WHERE c.collprovider = 'c' AND c.collencoding IN (-1, d.encoding)
             AND lower(replace(c.collcollate, '-', '')) = lower(replace(d.datcollate, '-', ''))) END"""

# An extension whose files are gone is not in pg_available_extensions, hence the full join.
_EXTENSIONS = f"""
SELECT coalesce(e.extname, a.name)::text, e.extversion, a.default_version
FROM pg_available_extensions() a FULL JOIN pg_extension e ON e.extname = a.name
WHERE coalesce(e.extname, a.name) IN ({", ".join(f"'{name}'" for name in EXTENSIONS)})
ORDER BY 1"""


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _earliest(moments: Iterable[object]) -> float | None:
    return min((found for moment in moments if (found := _number(moment)) is not None), default=None)
