"""The collector `postgres`: is Immich's database there, safe, and free to work?"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Self

from immich_vitals.collector import Collector, Context, OnScrape
from immich_vitals.config import Config, PostgresConfig
from immich_vitals.metrics import Metric, Sample, info
from immich_vitals.sources.kept import Down, NoServer, Silent
from immich_vitals.sources.postgres import Database, Full, Slow
from immich_vitals.sources.postgres_facts import READ_ONLY, UNSAFE, DatabaseFacts, PostgresFacts, read_facts

UP = Metric(
    "postgres_up",
    "1 when Postgres answered, 0 when nothing there takes connections; no sample when it rejects our own login.",
)
INFO = Metric(
    "postgres_info",
    "Version of the server, and the identifier that its data directory received when it was created.",
    ("version", "system_identifier"),
)
START = Metric("postgres_start_timestamp_seconds", "When Postgres was started; a crash it mends itself does not show.")
CHECKPOINTER_START = Metric(
    "postgres_checkpointer_start_timestamp_seconds",
    "When the checkpointer of Postgres was started: anew, after a crash that Postgres mended itself; no sample when our"
    " role may not see it.",
)
WRITABLE = Metric("postgres_writable", "1 when the server is not in recovery and not set to read-only by default.")
CONNECTIONS = Metric(
    "postgres_connections",
    "Client connections by state, the exporter's own among them; unknown when our role may not see the state.",
    ("state",),
)
CONNECTIONS_MAX = Metric("postgres_connections_max", "How many connections Postgres allows (max_connections).")
OLDEST_TRANSACTION = Metric(
    "postgres_oldest_transaction_timestamp_seconds",
    "When the oldest open transaction of a client began, prepared ones included; no sample when none is open, or none"
    " that our role may see.",
)
BLOCKED = Metric("postgres_blocked_sessions", "Sessions that wait for a lock, other than an advisory one.")
DEADLOCKS = Metric("postgres_deadlocks_total", "Deadlocks that Postgres resolved in Immich's database.")
CHECKSUMS = Metric("postgres_checksums_enabled", "1 when data checksums are on, so that damaged pages are noticed.")
CHECKSUM_FAILURES = Metric(
    "postgres_checksum_failures_total",
    "Damaged pages met while reading; no sample without checksums, 0 again after a crash.",
    ("database",),
)
CHECKSUM_LAST = Metric(
    "postgres_checksum_last_failure_timestamp_seconds", "When a damaged page was last met.", ("database",)
)
STATS_RESET = Metric(
    "postgres_stats_reset_timestamp_seconds", "When the statistics of the database were last reset.", ("database",)
)
COLLATION = Metric(
    "postgres_collation_mismatch",
    "1 when the database was made with another version of its collation than the one in use: indexes may be wrong.",
    ("database",),
)
INVALID_INDEXES = Metric(
    "postgres_invalid_indexes", "Indexes of Immich's database that failed to build and are not used."
)
XID_AGE = Metric(
    "postgres_xid_age_ratio", "How much of the transaction numbers is used up; at 1 Postgres stops taking writes."
)
UNSAFE_SETTING = Metric(
    "postgres_unsafe_setting",
    "1 when the setting stands, for everybody or for a role in Immich's database, at its value that risks data.",
    ("setting",),
)
EXTENSION = Metric(
    "postgres_extension_info",
    "Extensions that Immich uses: the version installed in its database, and the one whose files are there.",
    ("extension", "installed", "available"),
)
SIZE = Metric("postgres_database_size_bytes", "Size of Immich's database on disk.")

STATES = ("active", "idle", "idle_in_transaction", "idle_in_transaction_aborted", "fastpath", "disabled", "unknown")
_STATE_OF = {
    "active": "active",
    "starting": "active",
    "idle": "idle",
    "idle in transaction": "idle_in_transaction",
    "idle in transaction (aborted)": "idle_in_transaction_aborted",
    "fastpath function call": "fastpath",
    "disabled": "disabled",
}


class PostgresCollector(Collector):
    """Immich's Postgres: connections, locks, checksums, collation, extensions, unsafe settings.

    immich_vitals_postgres_up 1
    immich_vitals_postgres_connections{state="idle"} 18
    immich_vitals_postgres_checksum_failures_total{database="immich"} 0
    """

    name = "postgres"
    metrics = (
        UP, INFO, START, CHECKPOINTER_START, WRITABLE, CONNECTIONS, CONNECTIONS_MAX, OLDEST_TRANSACTION, BLOCKED,
        DEADLOCKS, CHECKSUMS, CHECKSUM_FAILURES, CHECKSUM_LAST, STATS_RESET, COLLATION, INVALID_INDEXES, XID_AGE,
        UNSAFE_SETTING, EXTENSION, SIZE,
    )  # fmt: skip
    trigger = OnScrape()
    timeout = 3.0

    def __init__(self, config: PostgresConfig) -> None:
        self._database = Database(config)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(config.postgres) if config.postgres else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "no database is configured; set DB_HOSTNAME and DB_PASSWORD (or DB_URL), as Immich's .env has them"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        try:
            facts = read_facts(self._database, ctx.deadline)
        except (NoServer, Down, Silent) as failure:
            failure.known = (UP.sample(0),)
            raise
        except (Full, Slow) as failure:
            failure.known = (UP.sample(1),)
            raise
        if None in facts.connections:
            ctx.remark(
                "our role may not see what the sessions of others do: a long transaction of theirs stays unseen",
                "run the SQL that `immich-vitals grants` prints, or grant pg_read_all_stats to the role",
            )
        return postgres_samples(facts)

    def close(self) -> None:
        self._database.close()


def postgres_samples(facts: PostgresFacts) -> Iterator[Sample]:
    yield UP.sample(1)
    yield INFO.sample(1, **info(version=facts.version, system_identifier=facts.system_identifier))
    yield START.sample(facts.started)
    yield from CHECKPOINTER_START.known(facts.checkpointer_started)
    yield WRITABLE.sample(not facts.in_recovery and facts.settings.get(READ_ONLY) != "on")
    yield from _connection_samples(facts)
    yield from OLDEST_TRANSACTION.known(facts.oldest_transaction)
    yield BLOCKED.sample(facts.blocked_sessions)
    yield CHECKSUMS.sample(facts.checksums)
    for database in facts.databases:
        yield from _database_samples(database)
    yield INVALID_INDEXES.sample(facts.invalid_indexes)
    yield XID_AGE.sample(facts.xid_age_ratio)
    for setting, unsafe in UNSAFE.items():
        if setting in facts.settings:
            yield UNSAFE_SETTING.sample(facts.settings[setting] == unsafe, setting=setting)
    for found in facts.extensions:
        labels = info(extension=found.name, installed=found.installed, available=found.available)
        yield EXTENSION.sample(1, **labels)
    yield SIZE.sample(facts.database_size)


def _connection_samples(facts: PostgresFacts) -> Iterator[Sample]:
    counts: Counter[str] = Counter()
    for state, count in facts.connections.items():
        counts[_STATE_OF.get(state or "", "unknown")] += count
    for state in STATES:
        yield CONNECTIONS.sample(counts[state], state=state)
    yield CONNECTIONS_MAX.sample(facts.connections_max)


def _database_samples(database: DatabaseFacts) -> Iterator[Sample]:
    if database.ours:
        yield from DEADLOCKS.known(database.deadlocks)
    yield from CHECKSUM_FAILURES.known(database.checksum_failures, database=database.name)
    yield from CHECKSUM_LAST.known(database.checksum_last_failure, database=database.name)
    yield from STATS_RESET.known(database.stats_reset, database=database.name)
    yield from COLLATION.known(database.collation_mismatch, database=database.name)
