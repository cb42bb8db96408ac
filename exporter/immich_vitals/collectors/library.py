"""The collector `library`: what is in Immich, and how much of it is still unprocessed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from immich_vitals.collector import Collector, Context, Every
from immich_vitals.config import Config, PostgresConfig
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.library import Group, LibraryFacts, Mark, read_library
from immich_vitals.sources.postgres import Database

ASSETS = Metric(
    "library_assets",
    "Assets by type and state, each in one state: offline (external, its file was not found), else trashed, else "
    "hidden (motion part of a live photo), locked, archived, else live; refreshed every 5 minutes.",
    ("type", "state"),
)
USERS = Metric("library_users", "Users that are not deleted.")
NEWEST = Metric(
    "library_newest_asset_timestamp_seconds", "When the newest asset came into Immich, in whatever state it is now."
)
REQUIRED = Metric(
    "library_required",
    "Assets that need the stage: live, archived or locked, of a type that has it, with what the stage builds on; "
    "0 when it is switched off in Immich, no sample when the version has no such stage.",
    ("stage",),
)
PENDING = Metric(
    "library_pending",
    "Those of the required assets whose result is not recorded; most pending encoded_video need none.",
    ("stage",),
)
PENDING_OLDEST = Metric(
    "library_pending_oldest_timestamp_seconds",
    "When the oldest pending asset came into Immich; no sample when nothing is pending.",
    ("stage",),
)
UNPROCESSED = Metric(
    "library_unprocessed_assets",
    "Live, archived or locked assets without a job-status row, which Immich's own runs for missing work never see.",
)
OFFLINE = Metric(
    "library_external_offline_assets", "Assets of external libraries whose file the last scan did not find."
)
SCHEMA = Metric(
    "library_schema_supported",
    "1 when all was understood that the counts need, 0 when this Immich has changed its tables.",
)
MIGRATIONS = Metric("library_migrations_applied", "Migrations that Immich has applied to its database.")

TYPES = ("image", "video", "audio", "other")
RARE_TYPES = ("audio", "other")  # Immich has them in its schema and takes no such files: shown where there are any
NOTHING = Mark(0)
STATES = ("live", "archived", "locked", "hidden", "trashed", "offline")
SHOWN = ("live", "archived", "locked")
_STATE_OF = {"archive": "archived", "hidden": "hidden", "locked": "locked"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of Immich's processing: the mark it leaves, the mark it builds on, whom it is for."""

    name: str
    done: Mark
    builds_on: Mark = NOTHING
    types: tuple[str, ...] = ("image", "video")
    states: tuple[str, ...] = SHOWN


STAGES = (
    Stage("thumbnail", Mark.THUMBNAIL),
    Stage("preview", Mark.PREVIEW),
    Stage("thumbhash", Mark.THUMBHASH),
    Stage("metadata", Mark.METADATA, types=TYPES),
    Stage("encoded_video", Mark.ENCODED_VIDEO, types=("video",)),
    Stage("smart_search", Mark.SMART_SEARCH, Mark.PREVIEW),
    Stage("face_detection", Mark.FACES, Mark.PREVIEW),
    Stage("ocr", Mark.OCR, Mark.PREVIEW),
    Stage("duplicate_detection", Mark.DUPLICATES, Mark.SMART_SEARCH, states=("live", "archived")),
)


class LibraryCollector(Collector):
    """Immich's library in its database: assets by state, and what each stage still has to do.

    immich_vitals_library_assets{type="image",state="live"} 48211
    immich_vitals_library_required{stage="thumbnail"} 50702
    immich_vitals_library_pending{stage="thumbnail"} 3
    """

    name = "library"
    metrics = (
        ASSETS, USERS, NEWEST, REQUIRED, PENDING, PENDING_OLDEST, UNPROCESSED, OFFLINE, SCHEMA, MIGRATIONS,
    )  # fmt: skip
    timeout = 120.0

    def __init__(self, config: PostgresConfig, interval: float) -> None:
        self._database = Database(config)
        self._name = config.database
        self.trigger = Every(interval)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(config.postgres, config.library_interval) if config.postgres else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "no database is configured; set DB_HOSTNAME and DB_PASSWORD (or DB_URL), as Immich's .env has them"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        try:
            facts = read_library(self._database, self._name, ctx.deadline)
        finally:
            self._database.close()  # the next run is minutes away
        if facts.missing:
            ctx.remark(
                f"Immich's tables are not as we know them; not found: {', '.join(facts.missing)}",
                mend="if a migration is under way, wait for it; else update immich-vitals to fit this Immich",
            )
        return library_samples(facts)

    def close(self) -> None:
        self._database.close()


def library_samples(facts: LibraryFacts) -> Iterator[Sample]:
    yield SCHEMA.sample(not facts.missing)
    yield from USERS.known(facts.users)
    yield from MIGRATIONS.known(facts.migrations)
    if facts.groups is None:
        return
    yield from _asset_samples(facts.groups)
    for stage in STAGES:
        if (stage.done | stage.builds_on) in facts.known:
            yield from _stage_samples(stage, facts)
    if Mark.JOB_STATUS in facts.known:
        yield UNPROCESSED.sample(_count(facts.groups, lambda group: _shown(group) and _unprocessed(group, facts)))
    if Mark.EXTERNAL in facts.known:
        yield OFFLINE.sample(_count(facts.groups, lambda group: Mark.OFFLINE | Mark.EXTERNAL in group.marks))


def _asset_samples(groups: tuple[Group, ...]) -> Iterator[Sample]:
    counts: Counter[tuple[str, str]] = Counter()
    for group in groups:
        counts[_type(group), _state(group)] += group.count
    for kind in TYPES:
        if kind in RARE_TYPES and not any(counts[kind, state] for state in STATES):
            continue
        for state in STATES:
            yield ASSETS.sample(counts[kind, state], type=kind, state=state)
    yield from NEWEST.known(max((group.newest for group in groups), default=None))


def _stage_samples(stage: Stage, facts: LibraryFacts) -> Iterator[Sample]:
    required = [group for group in facts.groups or () if _requires(stage, group, facts)]
    pending = [group for group in required if stage.done not in group.marks or _unprocessed(group, facts)]
    yield REQUIRED.sample(sum(group.count for group in required), stage=stage.name)
    yield PENDING.sample(sum(group.count for group in pending), stage=stage.name)
    yield from PENDING_OLDEST.known(min((group.oldest for group in pending), default=None), stage=stage.name)


def _requires(stage: Stage, group: Group, facts: LibraryFacts) -> bool:
    """An asset whose earlier stage failed does not wait for this one; one without a job-status row needs them all."""
    return (
        stage.name not in facts.switched_off
        and _type(group) in stage.types
        and _state(group) in stage.states
        and (stage.builds_on in group.marks or _unprocessed(group, facts))
    )


def _unprocessed(group: Group, facts: LibraryFacts) -> bool:
    return Mark.JOB_STATUS in facts.known and Mark.JOB_STATUS not in group.marks


def _shown(group: Group) -> bool:
    return _state(group) in SHOWN


def _type(group: Group) -> str:
    kind = group.type.lower()
    return kind if kind in TYPES else "other"


def _state(group: Group) -> str:
    """One of `STATES`, the first that fits in the order that the metric's help gives."""
    if Mark.OFFLINE in group.marks:
        return "offline"
    if Mark.TRASHED in group.marks:
        return "trashed"
    return _STATE_OF.get(group.visibility, "live")


def _count(groups: Iterable[Group], wanted: Callable[[Group], bool]) -> int:
    return sum(group.count for group in groups if wanted(group))
