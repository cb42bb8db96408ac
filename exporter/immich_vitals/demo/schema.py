"""The tables of Immich 2.7.5, made from facts read off a running one (`data/schema-2.7.5.json`)."""

import json
from importlib import resources
from typing import TypedDict

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[object, ...]]


class Column(TypedDict):
    """A column as information_schema names its type."""

    type: str
    nullable: bool


class Schema(TypedDict):
    """Everything needed to make an empty Immich database; `immich` is the version it belongs to."""

    immich: str
    enums: dict[str, list[str]]
    migrations: list[str]
    tables: dict[str, dict[str, Column]]


def immich_schema() -> Schema:
    """The facts as they stand in the package."""
    text = resources.files(__package__).joinpath("data/schema-2.7.5.json").read_text(encoding="utf-8")
    schema: Schema = json.loads(text)
    return schema


# Tables whose primary key is not `id`.
PRIMARY_KEYS = {
    "album_asset": ("albumId", "assetId"),
    "album_user": ("albumId", "userId"),
    "asset_exif": ("assetId",),
    "asset_job_status": ("assetId",),
    "asset_metadata": ("assetId", "key"),
    "face_search": ("faceId",),
    "kysely_migrations": ("name",),
    "memory_asset": ("memoriesId", "assetId"),
    "migration_overrides": ("name",),
    "ocr_search": ("assetId",),
    "partner": ("sharedById", "sharedWithId"),
    "session_sync_checkpoint": ("sessionId", "type"),
    "shared_link_asset": ("assetId", "sharedLinkId"),
    "smart_search": ("assetId",),
    "system_metadata": ("key",),
    "tag_asset": ("assetId", "tagId"),
    "tag_closure": ("id_ancestor", "id_descendant"),
    "user_metadata": ("userId", "key"),
}

# What a query over assets can use, and what makes a row too many an error.
INDEXES = (
    'CREATE UNIQUE INDEX "asset_ownerId_checksum_idx" ON asset ("ownerId", checksum) WHERE "libraryId" IS NULL',
    (
        'CREATE UNIQUE INDEX "asset_ownerId_libraryId_checksum_idx" ON asset ("ownerId", "libraryId", checksum)'
        ' WHERE "libraryId" IS NOT NULL'
    ),
    'CREATE INDEX "asset_originalPath_libraryId_idx" ON asset ("originalPath", "libraryId")',
    'CREATE INDEX "asset_fileCreatedAt_idx" ON asset ("fileCreatedAt")',
    'CREATE INDEX "asset_id_stackId_idx" ON asset (id, "stackId")',
    'CREATE INDEX "asset_libraryId_idx" ON asset ("libraryId")',
    'CREATE INDEX "asset_livePhotoVideoId_idx" ON asset ("livePhotoVideoId")',
    'CREATE INDEX "asset_duplicateId_idx" ON asset ("duplicateId")',
    'CREATE INDEX "asset_updateId_idx" ON asset ("updateId")',
    'CREATE UNIQUE INDEX "asset_file_assetId_type_isEdited_idx" ON asset_file ("assetId", type, "isEdited")',
    'CREATE INDEX "asset_file_updateId_idx" ON asset_file ("updateId")',
    'CREATE INDEX "asset_face_assetId_personId_idx" ON asset_face ("assetId", "personId")',
    'CREATE UNIQUE INDEX "user_email_idx" ON "user" (email)',
)
VECTOR_INDEXES = (
    "CREATE INDEX clip_index ON smart_search USING hnsw (embedding vector_cosine_ops)",
    "CREATE INDEX face_index ON face_search USING hnsw (embedding vector_cosine_ops)",
)

_DEFAULTS = {
    "id": {"uuid": "gen_random_uuid()"},
    "updateId": {"uuid": "gen_random_uuid()"},
    "createdAt": {"timestamp with time zone": "now()"},
    "updatedAt": {"timestamp with time zone": "now()"},
}
_DIMENSIONS = 512  # of the vectors, with the models that Immich uses unless told otherwise


def create_schema(connection: Connection, *, vector_indexes: bool = True) -> None:
    """Make Immich's extension, enums, tables and indexes in an empty database, with the migrations recorded.

    `connection` must be in autocommit mode and a superuser's. `vector_indexes=False` leaves out the two that take
    long to build on a large library.
    """
    schema = immich_schema()
    with connection.transaction():
        connection.execute("CREATE EXTENSION vector")
        for name, values in schema["enums"].items():
            wanted = sql.SQL(", ").join(sql.Literal(value) for value in values)
            connection.execute(sql.SQL("CREATE TYPE {} AS ENUM ({})").format(sql.Identifier(name), wanted))
        for name, columns in schema["tables"].items():
            connection.execute(_table(name, columns, schema["enums"]))
        for statement in (*INDEXES, *(VECTOR_INDEXES if vector_indexes else ())):
            connection.execute(sql.SQL(statement))
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO kysely_migrations (name, timestamp)"
                " VALUES (%s, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'))",
                [(name,) for name in schema["migrations"]],
            )


def _table(name: str, columns: dict[str, Column], enums: dict[str, list[str]]) -> sql.Composed:
    key = PRIMARY_KEYS.get(name, ("id",))
    parts = [_column(column, facts, enums) for column, facts in columns.items()]
    parts.append(sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, key))))
    return sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(parts))


def _column(name: str, facts: Column, enums: dict[str, list[str]]) -> sql.Composable:
    kind = facts["type"]
    parts: list[sql.Composable] = [sql.Identifier(name)]
    if kind in enums:
        parts.append(sql.Identifier(kind))
    else:
        parts.append(sql.SQL(f"vector({_DIMENSIONS})" if kind == "vector" else kind))
    default = "false" if kind == "boolean" else _DEFAULTS.get(name, {}).get(kind)
    if default and not facts["nullable"]:
        parts.append(sql.SQL(f"DEFAULT {default}"))
    if not facts["nullable"]:
        parts.append(sql.SQL("NOT NULL"))
    return sql.SQL(" ").join(parts)
