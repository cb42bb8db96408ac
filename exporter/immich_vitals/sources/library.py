"""Immich's library, counted: one pass over the tables, whatever the version and however many assets."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.sources.immich_schema import (
    SWITCHES_FUNCTION,
    SWITCHES_SCHEMA,
    ImmichSchema,
    quoted,
    schema_from,
    schema_queries,
)
from immich_vitals.sources.postgres import Database, Row


class Mark(IntFlag):
    """What the database records of one asset. The numbers are those that the query gives."""

    OFFLINE = 1
    TRASHED = 2
    EXTERNAL = 4
    JOB_STATUS = 8  # it has a job-status row
    PREVIEW = 16
    THUMBNAIL = 32
    THUMBHASH = 64
    METADATA = 128
    ENCODED_VIDEO = 256
    SMART_SEARCH = 512
    FACES = 1024
    OCR = 2048
    DUPLICATES = 4096


@dataclass(frozen=True, slots=True)
class Group:
    """Assets that are alike in all we look at: how many, and when the first and the last came into Immich.

    `type` is Immich's (`IMAGE`, ...), `visibility` too (`timeline`, `archive`, `hidden`, `locked`), also for versions
    that have two flags in its place. Moments are seconds since the epoch.
    """

    type: str
    visibility: str
    marks: Mark
    count: int
    oldest: float
    newest: float


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """The library as of now.

    `groups` is None when the asset table is not understood. `known` are the marks this schema records at all: a mark
    outside it means nothing where it is absent. `switched_off` are the stages that somebody switched off in Immich's
    settings. `missing` names what was looked for and not found, and leaves out what older versions never had.
    """

    groups: tuple[Group, ...] | None
    known: Mark
    switched_off: frozenset[str]
    users: int | None
    migrations: int | None
    missing: tuple[str, ...]


# Immich's switches, each on unless it says false, and the stages that rest on it.
SWITCHES = {
    "machineLearning.enabled": ("smart_search", "face_detection", "ocr", "duplicate_detection"),
    "machineLearning.clip.enabled": ("smart_search", "duplicate_detection"),
    "machineLearning.facialRecognition.enabled": ("face_detection",),
    "machineLearning.ocr.enabled": ("ocr",),
    "machineLearning.duplicateDetection.enabled": ("duplicate_detection",),
}

_ASSET_COLUMNS = ("id", "type", "createdAt", "deletedAt", "isOffline")
_WHAT = {
    Mark.PREVIEW: "where previews are recorded",
    Mark.THUMBNAIL: "where thumbnails are recorded",
    Mark.THUMBHASH: "the thumbhash of an asset",
    Mark.METADATA: "where extracted metadata is recorded",
    Mark.ENCODED_VIDEO: "where encoded videos are recorded",
    Mark.SMART_SEARCH: "the table smart_search",
    Mark.FACES: "where face detection is recorded",
}


def read_library(database: Database, database_name: str, deadline: Deadline) -> LibraryFacts:
    """The facts as of now. Raises what `Database.ask` raises, `Absent` without any table of Immich, `Unavailable`
    when our role may not read a column that is needed."""
    columns, function = database.ask(schema_queries, deadline)
    schema = schema_from(columns, function, database_name)
    closed = schema.unreadable()
    if closed:
        shown = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more columns" if len(closed) > 3 else "")
        raise Unavailable(
            f"our role lacks the right to read {shown}",
            mend="run the SQL that `immich-vitals grants` prints, again after each upgrade of Immich",
        )
    marks = mark_expressions(schema)
    queries = [LIMITS, switches_query(schema), totals_query(schema)]
    if marks is not None:
        queries.append(groups_query(schema, marks))
    switches, totals, *groups = database.ask(lambda hello: ";\n".join(queries), deadline)
    users, migrations = (value if isinstance(value, int) else None for value in totals[0])
    known = Mark(0)
    for mark in marks or ():
        known |= mark
    return LibraryFacts(
        groups=tuple(_group(row) for row in groups[0]) if groups else None,
        known=known,
        switched_off=switched_off(switches),
        users=users,
        migrations=migrations,
        missing=_missing(schema, marks),
    )


def switched_off(rows: Iterable[Row]) -> frozenset[str]:
    """The stages that the settings (name, value) switch off."""
    return frozenset(stage for name, value in rows if value == "false" for stage in SWITCHES.get(str(name), ()))


def _group(row: Row) -> Group:
    kind, visibility, marks, count, oldest, newest = row
    if not (isinstance(marks, int) and isinstance(count, int)):
        raise TypeError("the library query gives marks and count as whole numbers")
    return Group(str(kind), str(visibility), Mark(marks), count, float(str(oldest)), float(str(newest)))


def _missing(schema: ImmichSchema, marks: dict[Mark, str] | None) -> tuple[str, ...]:
    missing = []
    if marks is None:
        missing.append("the columns of the asset table that say what is live")
    else:
        missing = [what for mark, what in _WHAT.items() if mark not in marks]
    if not schema.has("user", "deletedAt"):
        missing.append("the users")
    if not (schema.has("kysely_migrations") or schema.has("migrations")):
        missing.append("the migrations")
    return tuple(missing)


# Every table is read once from end to end, whatever its statistics and its last vacuum say: with stale ones the planner
# takes a nested loop over a million rows, and an index scan of a table that was not vacuumed looks at each of its rows
# again (at a million assets five times the blocks). No parallel workers: they need /dev/shm, which is 64 MB in a
# container, and the processors that Immich wants. work_mem stays as it is: more of it made no difference.
LIMITS = """SET LOCAL enable_nestloop = off;
SET LOCAL enable_indexscan = off;
SET LOCAL enable_indexonlyscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL max_parallel_workers_per_gather = 0;
SET LOCAL jit = off"""


def switches_query(schema: ImmichSchema) -> str:
    """Rows (name, value) of those of `SWITCHES` that somebody has set; only these, since secrets are beside them."""
    if schema.switches_function:
        return f"SELECT name, value FROM {SWITCHES_SCHEMA}.{SWITCHES_FUNCTION}()"
    return switches_sql(
        schema.tables["metadata"].sql if schema.has("metadata", "key", "value") else None,
        schema.tables["config"].sql if schema.has("config", "key", "value") else None,
    )


def switches_sql(metadata: str | None, config: str | None) -> str:
    """The query behind `switches_query`, for the tables there are: one JSON document in `metadata`, or, before
    1.106, a row for each setting in `config`."""
    names = ", ".join(f"'{name}'" for name in SWITCHES)
    parts = []
    if metadata:
        parts.append(
            f"SELECT n.name, m.value::text::jsonb #>> string_to_array(n.name, '.') AS value\n"
            f"FROM {metadata} m, unnest(ARRAY[{names}]) AS n(name) WHERE m.key = 'system-config'"
        )
    if config:
        parts.append(f"SELECT c.key::text, c.value::text FROM {config} c WHERE c.key IN ({names})")
    return "\nUNION ALL\n".join(parts) or "SELECT NULL, NULL LIMIT 0"


def totals_query(schema: ImmichSchema) -> str:
    """One row: users that are not deleted, and migrations applied; an upgraded database has two tables of them."""
    users = "NULL::bigint"
    if schema.has("user", "deletedAt"):
        users = f'(SELECT count(*) FROM {schema.tables["user"].sql} WHERE "deletedAt" IS NULL)'
    tables = [schema.tables[use].sql for use in ("kysely_migrations", "migrations") if use in schema.tables]
    migrations = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables) or "NULL::bigint"
    return f"SELECT {users}, {migrations}"


def mark_expressions(schema: ImmichSchema) -> dict[Mark, str] | None:
    """For each mark that this schema records, the SQL condition on `a` (asset), `f` (its files), `j` (job status),
    `s` (smart search), `e` (exif); None when the asset table cannot be understood."""
    if not schema.has("asset", *_ASSET_COLUMNS):
        return None
    if not (schema.has("asset", "visibility") or schema.has("asset", "isVisible")):
        return None
    found: dict[Mark, str | None] = {
        Mark.OFFLINE: 'a."isOffline"',
        Mark.TRASHED: 'a."deletedAt" IS NOT NULL',
        Mark.EXTERNAL: 'a."isExternal"' if schema.has("asset", "isExternal") else None,
        Mark.JOB_STATUS: _job_status(schema, "assetId") if not schema.metadata_in_exif else None,
        Mark.PREVIEW: _image(schema, 1, ("previewPath", "resizePath"), "previewAt"),
        Mark.THUMBNAIL: _thumbnail(schema),
        Mark.THUMBHASH: "a.thumbhash IS NOT NULL" if schema.has("asset", "thumbhash") else None,
        Mark.METADATA: _metadata(schema),
        Mark.ENCODED_VIDEO: _image(schema, 4, ("encodedVideoPath",)),
        Mark.SMART_SEARCH: 's."assetId" IS NOT NULL' if schema.has("smart_search", "assetId") else None,
        Mark.FACES: _job_status(schema, "facesRecognizedAt"),
        Mark.OCR: _job_status(schema, "ocrAt"),
        Mark.DUPLICATES: _job_status(schema, "duplicatesDetectedAt"),
    }
    return {mark: condition for mark, condition in found.items() if condition is not None}


def _image(schema: ImmichSchema, kind: int, paths: tuple[str, ...], moment: str | None = None) -> str | None:
    """Made when its path is recorded - on the asset, or as a row of `kind` in the file table - and, in the versions
    that have it, the moment too, without which Immich makes it again."""
    path = next((path for path in paths if schema.has("asset", path)), None)
    if path is not None:
        made = f"coalesce(a.{quoted(path)}, '') <> ''"
    elif schema.has("file", "assetId", "type"):
        made = f"coalesce(f.kinds, 0) & {kind} > 0"
    else:
        return None
    at = _job_status(schema, moment) if moment else None
    return f"({made} AND {at})" if at else made


def _thumbnail(schema: ImmichSchema) -> str | None:
    made = _image(schema, 2, ("thumbnailPath", "webpPath"), "thumbnailAt")
    if made is None or not (schema.has("asset", "isEdited") and schema.has("file", "isEdited")):
        return made
    # From 2.5 Immich makes the thumbnails of an edited asset again while its edited full size is missing.
    return f'({made} AND (NOT a."isEdited" OR coalesce(f.kinds, 0) & 8 > 0))'


def _metadata(schema: ImmichSchema) -> str | None:
    if schema.metadata_in_exif:
        return 'e."assetId" IS NOT NULL' if schema.has("exif", "assetId") else None
    return _job_status(schema, "metadataExtractedAt")


def _job_status(schema: ImmichSchema, moment: str) -> str | None:
    return f"j.{quoted(moment)} IS NOT NULL" if schema.has("job_status", "assetId", moment) else None


def groups_query(schema: ImmichSchema, marks: dict[Mark, str]) -> str:
    """The one pass: every table at most once, hashed or merged onto the assets, a row for each kind of asset."""
    bits = "\n         + ".join(f"({condition})::int * {mark.value}" for mark, condition in marks.items())
    visibility = 'a."visibility"'
    if not schema.has("asset", "visibility"):
        archived = """WHEN a."isArchived" THEN 'archive'""" if schema.has("asset", "isArchived") else ""
        visibility = f"""CASE WHEN NOT a."isVisible" THEN 'hidden' {archived} ELSE 'timeline' END"""
    return f"""SELECT type::text, visibility::text, marks, count(*),
       extract(epoch FROM min(created))::float8, extract(epoch FROM max(created))::float8
FROM (
  SELECT a.type, {visibility} AS visibility, a."createdAt" AS created,
         {bits} AS marks
  FROM {schema.tables["asset"].sql} a{_joins(schema, marks)}
) AS asset GROUP BY type, visibility, marks"""


def _joins(schema: ImmichSchema, marks: dict[Mark, str]) -> str:
    """The joins that the conditions need, each with at most one row for an asset."""
    used = " ".join(marks.values())
    joins = ""
    if "f.kinds" in used:
        edited = '"isEdited"' if schema.has("file", "isEdited") else "false"
        joins += f"""
  LEFT JOIN (
    SELECT "assetId", bit_or(CASE type WHEN 'preview' THEN 1 WHEN 'thumbnail' THEN 2 WHEN 'encoded_video' THEN 4
                                       WHEN 'fullsize' THEN ({edited})::int * 8 ELSE 0 END) AS kinds
    FROM {schema.tables["file"].sql} GROUP BY "assetId"
  ) f ON f."assetId" = a.id"""
    for alias, use in (("j", "job_status"), ("s", "smart_search"), ("e", "exif")):
        if f"{alias}." in used:
            joins += f'\n  LEFT JOIN {schema.tables[use].sql} {alias} ON {alias}."assetId" = a.id'
    return joins
