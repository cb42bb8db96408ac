"""The collector `postgres_patrol`: is what lies on the disk of Postgres still what Postgres wrote there?"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from immich_vitals.collector import Collector, CollectorFailure, Context, OnScrape
from immich_vitals.config import Config, PatrolConfig, PostgresConfig
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.page_pass import CHECK_SECONDS, PagePatrol
from immich_vitals.sources.page_patrol import Patroller, Relation, Survey, plain
from immich_vitals.sources.postgres import Database

TRUNCATED = Metric(
    "postgres_truncated_relations",
    "Tables and indexes whose file is shorter than Postgres recorded it, until they are written anew; refreshed every"
    " 5 minutes.",
)
PAGES = Metric("postgres_patrol_pages_total", "Pages of 8 kB that the page patrol read.")
ERRORS = Metric(
    "postgres_patrol_errors_total", "Pages that the page patrol found damaged, each counted once as long as it is."
)
DAMAGED = Metric(
    "postgres_patrol_damaged_pages",
    "Pages that the page patrol found damaged and has not met whole since; no sample before a first pass ends.",
)
COMPLETED = Metric(
    "postgres_patrol_completed_timestamp_seconds",
    "When the page patrol last ended a pass in which it could read every table.",
)
CLEAN = Metric(
    "postgres_patrol_clean_timestamp_seconds",
    "When the last pass began that read every page, those of indexes too, and left none damaged: what was met before is"
    " mended.",
    ("database",),
)
PROGRESS = Metric(
    "postgres_patrol_progress_ratio", "How much of its present pass the page patrol has done; no sample between passes."
)
CHECKED = Metric("postgres_amcheck_indexes_total", "Indexes that amcheck read to their end or to an error in them.")
CONDEMNED = Metric(
    "postgres_amcheck_errors_total", "Indexes that amcheck found damaged, each counted once as long as it is."
)
BAD_INDEXES = Metric(
    "postgres_amcheck_damaged_indexes",
    "Indexes that amcheck found damaged, until they are built anew; no sample before all have been checked once.",
)
NAMED = 3  # of the damaged tables, for people; the others are no better


@dataclass(frozen=True, slots=True)
class PatrolFacts:
    """What the patrol knows at present; None is unknown. Without a patrol, only `truncated` is."""

    truncated: int
    database: str = ""
    enabled: bool = False
    pages: int = 0
    found: int = 0
    damaged: int | None = None
    completed: float | None = None
    clean: float | None = None
    progress: float | None = None
    amcheck: bool = False
    checks: int = 0
    condemned: int = 0
    bad_indexes: int | None = None


class PostgresPatrolCollector(Collector):
    """Damage on the disk of Postgres: files cut short; with the page patrol, damaged pages and indexes.

    immich_vitals_postgres_truncated_relations 0
    immich_vitals_postgres_patrol_pages_total 41873
    immich_vitals_postgres_patrol_damaged_pages 0
    """

    name = "postgres_patrol"
    metrics = (TRUNCATED, PAGES, ERRORS, DAMAGED, COMPLETED, CLEAN, PROGRESS, CHECKED, CONDEMNED, BAD_INDEXES)
    trigger = OnScrape()
    timeout = 3.0

    def __init__(self, database: PostgresConfig, patrol: PatrolConfig, state: Path | None = None) -> None:
        self._name = database.database
        self._patrol = PagePatrol(Patroller(database), Database(database), patrol, state)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(config.postgres, config.patrol, config.state) if config.postgres else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "no database is configured; set DB_HOSTNAME and DB_PASSWORD (or DB_URL), as Immich's .env has them"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        patrol = self._patrol
        if patrol.survey is None or patrol.failure is not None:
            try:
                patrol.check(ctx.deadline)
            except CollectorFailure as failure:
                failure.known = tuple(patrol_samples(facts_of(patrol, self._name))) if patrol.survey else ()
                raise
        _tell(patrol, ctx)
        return patrol_samples(facts_of(patrol, self._name))

    def follow(self, stop: Callable[[], bool]) -> None:
        self._patrol.follow(stop)

    def close(self) -> None:
        self._patrol.close()


def facts_of(patrol: PagePatrol, database: str) -> PatrolFacts:
    memory = patrol.memory
    if not patrol.enabled:
        return PatrolFacts(len(memory.truncated))
    return PatrolFacts(
        truncated=len(memory.truncated),
        database=database,
        enabled=True,
        pages=patrol.pages,
        found=patrol.found,
        damaged=patrol.damaged,
        completed=memory.completed,
        clean=memory.clean,
        progress=patrol.progress,
        amcheck=patrol.amcheck,
        checks=patrol.checks,
        condemned=patrol.condemned,
        bad_indexes=patrol.bad_indexes,
    )


def patrol_samples(facts: PatrolFacts) -> Iterator[Sample]:
    yield TRUNCATED.sample(facts.truncated)
    if facts.enabled:
        yield PAGES.sample(facts.pages)
        yield ERRORS.sample(facts.found)
        yield from DAMAGED.known(facts.damaged)
        yield from COMPLETED.known(facts.completed)
        yield from CLEAN.known(facts.clean, database=facts.database)
        yield from PROGRESS.known(facts.progress)
    if facts.enabled and facts.amcheck:
        yield CHECKED.sample(facts.checks)
        yield CONDEMNED.sample(facts.condemned)
        yield from BAD_INDEXES.known(facts.bad_indexes)


def _tell(patrol: PagePatrol, ctx: Context) -> None:
    """Names of tables are for people: no label has them."""
    found, memory = patrol.survey, patrol.memory
    if found is None:
        return
    if patrol.suspects and not memory.truncated:
        ctx.remark(
            f"{patrol.suspects} files of Postgres are shorter than it recorded; a VACUUM may do that for moments",
            "look again in five minutes; if it stands, follow the runbook of ImmichPostgresCorruption",
        )
    if patrol.amcheck:
        _tell_of_amcheck(patrol, found, ctx)
    if not (patrol.enabled or memory.truncated):
        return
    if patrol.state.problem:
        ctx.remark(patrol.state.problem, "look at IMMICH_VITALS_STATE_PATH, and at the disk it is on")
    if patrol.enabled and found.unsafe:
        ctx.remark(
            f"{found.unsafe} is on: reading would pass over damage or wipe it out, so the page patrol pauses",
            f"set {found.unsafe} to off; the runbook of ImmichPostgresUnsafeSetting says how",
        )
    if patrol.enabled and found.unreadable:
        ctx.remark(
            f"our role may not read {found.unreadable} of the tables, so the page patrol leaves them out",
            "run the SQL that `immich-vitals grants` prints, as a superuser",
        )
    spots = memory.damaged if patrol.enabled else []
    if not (spots or memory.truncated):
        return
    names = {relation.key: _name(relation) for relation in found.relations}
    said = [f"pages {spot.first} to {spot.after - 1} of {names.get(spot.key, 'a table')}" for spot in spots[:NAMED]]
    cut = [names.get(key, "a table") for key in memory.truncated[:NAMED]]
    mend = "follow the runbook of ImmichPostgresCorruption; change nothing before a copy of the data directory"
    if said:
        ctx.remark(f"damaged on the disk of Postgres, {len(spots)} in all: {', '.join(said)}", mend)
    if cut:
        ctx.remark(f"cut short on the disk of Postgres, {len(memory.truncated)} in all: {', '.join(cut)}", mend)


def _tell_of_amcheck(patrol: PagePatrol, found: Survey, ctx: Context) -> None:
    if not patrol.enabled:
        ctx.remark(
            "IMMICH_VITALS_AMCHECK is on without effect: indexes are checked after each reading of all pages",
            "set IMMICH_VITALS_PAGE_PATROL too",
        )
        return
    if found.amcheck is None:
        ctx.remark(
            "IMMICH_VITALS_AMCHECK is on, and Immich's database does not have the extension amcheck",
            "run CREATE EXTENSION amcheck in that database, as a superuser",
        )
    elif not found.may_check:
        ctx.remark(
            "IMMICH_VITALS_AMCHECK is on, and our role may not have indexes checked",
            "run the SQL that `immich-vitals grants` prints, as a superuser",
        )
    names = {relation.oid: plain(relation.name) for relation in found.relations}
    left = [names.get(oid, "one that is gone") for oid in patrol.memory.unchecked]
    if left:
        ctx.remark(
            f"amcheck did not get through {len(left)} indexes, such as {', '.join(left[:NAMED])}: locked, or they need"
            f" more than {CHECK_SECONDS:.0f} seconds",
            "check such an index in a quiet hour: SELECT bt_index_check('its name')",
            optional=True,
        )
    bad = [names.get(index.oid, "one that is gone") for index in patrol.memory.bad]
    if bad:
        ctx.remark(
            f"damaged indexes, {len(bad)} in all: {', '.join(bad[:NAMED])}",
            "follow the runbook of ImmichPostgresCorruption; no REINDEX before a dump that ended well",
        )


def _name(relation: Relation) -> str:
    return ("index " if relation.index else "") + plain(relation.name)
