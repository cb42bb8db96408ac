"""Which of Immich's tables and columns this database has.

Asked of the catalogue and never derived from a version number, so that every version in between, or after, that
keeps the columns works as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from immich_vitals.collector import Absent
from immich_vitals.sources.postgres import Hello, Row

# What each table has been called, the newest name first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "asset": ("asset", "assets"),
    "file": ("asset_file", "asset_files"),
    "job_status": ("asset_job_status",),
    "smart_search": ("smart_search",),
    "exif": ("asset_exif", "exif"),
    "user": ("user", "users"),
    "person": ("person",),
    "metadata": ("system_metadata",),
    "config": ("system_config",),
    "notification": ("notification", "notifications"),
    "version_history": ("version_history",),
    "kysely_migrations": ("kysely_migrations",),
    "migrations": ("migrations",),
}

# The columns that the library collector may read, which are also those that `immich-vitals grants` opens. The
# settings are not among them: they hold secrets, so they are read through a function (see grants.py).
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "asset": (
        "id", "type", "createdAt", "deletedAt", "isOffline", "isExternal", "visibility", "isVisible", "isArchived",
        "thumbhash", "thumbnailPath", "webpPath", "previewPath", "resizePath", "encodedVideoPath", "isEdited",
    ),
    "file": ("assetId", "type", "isEdited"),
    "job_status": (
        "assetId", "metadataExtractedAt", "facesRecognizedAt", "duplicatesDetectedAt", "ocrAt", "previewAt",
        "thumbnailAt",
    ),
    "smart_search": ("assetId",),
    "exif": ("assetId",),
    "user": ("id", "deletedAt"),
    "kysely_migrations": ("name",),
    "migrations": ("id",),
}  # fmt: skip

# The further columns that the file collector may read, which `immich-vitals grants` opens, too: where each file is. And
# for the probe whose an asset is: an API key sees the photos of one user only.
FILE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "asset": (
        "id", "deletedAt", "isOffline", "isExternal", "originalPath", "previewPath", "resizePath", "thumbnailPath",
        "webpPath", "encodedVideoPath", "sidecarPath", "ownerId",
    ),
    "file": ("id", "assetId", "type", "path"),
    "exif": ("assetId", "fileSizeInByte"),
    "person": ("id", "thumbnailPath"),
    "user": ("id", "deletedAt", "profileImagePath"),
}  # fmt: skip

# Where the switches are when the function of grants.py is not: readable by Immich's own role.
SETTINGS_COLUMNS: Mapping[str, tuple[str, ...]] = {"metadata": ("key", "value"), "config": ("key", "value")}


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the schema it is in, its name, its columns, and those of them that our role may not read."""

    schema: str
    name: str
    columns: frozenset[str]
    closed: frozenset[str] = frozenset()

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def has(self, *columns: str) -> bool:
        return self.columns.issuperset(columns)


@dataclass(frozen=True, slots=True)
class ImmichSchema:
    """The tables there are, by what they are for (the keys of `NAMES`).

    `switches_function` says that grants.py's function is there and ours to call.
    """

    tables: Mapping[str, Table]
    switches_function: bool = False

    def has(self, use: str, *columns: str) -> bool:
        """Whether the table is there with all these columns."""
        table = self.tables.get(use)
        return table is not None and table.has(*columns)

    @property
    def metadata_in_exif(self) -> bool:
        """Before 1.93 only the row in `exif` tells that metadata was extracted; later nothing needs that table.

        That old are only tables that also have `resizePath`: where a later Immich has moved the moment elsewhere, it
        is not known.
        """
        return self.has("asset", "resizePath") and not self.has("job_status", "assetId", "metadataExtractedAt")

    def unreadable(self) -> tuple[str, ...]:
        """The `table.column` that we need and our role may not read."""
        needed = dict(COLUMNS)
        if not self.switches_function:
            needed.update(SETTINGS_COLUMNS)
        if not self.metadata_in_exif:
            del needed["exif"]
        return self.closed(needed)

    def closed(self, needed: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Those of the needed columns, as `table.column`, that are there and that our role may not read."""
        return tuple(
            f"{table.name}.{column}"
            for use, table in self.tables.items()
            for column in needed.get(use, ())
            if column in table.closed
        )


SWITCHES_SCHEMA, SWITCHES_FUNCTION = "immich_vitals", "machine_learning_switches"


def quoted(identifier: str) -> str:
    """The identifier as SQL writes it."""
    return '"' + identifier.replace('"', '""') + '"'


def schema_queries(hello: Hello) -> str:
    """Two queries: every column of a table with one of the names, and whether the function is there."""
    return _COLUMNS + ";" + _FUNCTION


_TABLE_NAMES = ", ".join(f"'{name}'" for names in NAMES.values() for name in names)

# information_schema would hide the columns that our role may not read.
_COLUMNS = f"""
SELECT n.nspname::text, c.relname::text, a.attname::text, has_column_privilege(c.oid, a.attnum, 'SELECT')
       AND has_schema_privilege(n.oid, 'USAGE'),
       coalesce(array_position(current_schemas(false), n.nspname), 1000)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relkind IN ('r', 'p') AND c.relname IN ({_TABLE_NAMES}) AND a.attnum > 0 AND NOT a.attisdropped
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_t%'
ORDER BY 1, 2, a.attnum"""

_FUNCTION = f"""
SELECT coalesce(bool_or(has_function_privilege(p.oid, 'execute') AND has_schema_privilege(n.oid, 'usage')), false)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = '{SWITCHES_SCHEMA}' AND p.proname = '{SWITCHES_FUNCTION}' AND p.pronargs = 0"""


def schema_from(columns: Iterable[Row], function: Iterable[Row], database: str) -> ImmichSchema:
    """The schema in the answers to `schema_queries`. Raises `Absent` when nothing of Immich is there."""
    found: dict[str, dict[str, dict[str, bool]]] = {}
    places: dict[str, int] = {}
    for schema, table, column, readable, place in columns:
        found.setdefault(str(schema), {}).setdefault(str(table), {})[str(column)] = bool(readable)
        places[str(schema)] = place if isinstance(place, int) else 1000
    if not found:
        raise Absent(
            f"database {database!r} has no tables of Immich",
            mend="look at DB_DATABASE_NAME; if it is right, Immich has not started on this database yet, or Postgres "
            "runs on an empty data directory",
        )
    # Another schema may hold a copy or another program's table `user`: Immich's is the one with most of its tables.
    schema = min(found, key=lambda name: (-len(found[name]), places[name], name))
    tables: dict[str, Table] = {}
    for use, names in NAMES.items():
        name = next((name for name in names if name in found[schema]), None)
        if name is not None:
            tables[use] = _table(schema, name, found[schema][name])
    return ImmichSchema(tables, any(bool(row[0]) for row in function))


def _table(schema: str, name: str, columns: Mapping[str, bool]) -> Table:
    closed = frozenset(column for column, readable in columns.items() if not readable)
    return Table(schema, name, frozenset(columns), closed)
