"""Immich's database of any version we have facts of, made in a running Postgres."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import psycopg

from immich_vitals.config import PostgresConfig, Secret
from immich_vitals.demo.servers import Postgres

FACTS = Path(__file__).parent.parent / "facts"
VERSIONS = tuple(json.loads((FACTS / "schema" / "index.json").read_text(encoding="utf-8")))

Columns = dict[str, dict[str, str | bool]]
Connection = psycopg.Connection[tuple[object, ...]]

_KEYS = {
    "asset_job_status": ("assetId",),
    "smart_search": ("assetId",),
    "exif": ("assetId",),
    "asset_exif": ("assetId",),
    "system_metadata": ("key",),
    "system_config": ("key",),
    "kysely_migrations": ("name",),
}
_STAND_IN = {"cube": "text"}  # an extension that the embedded Postgres lacks and we do not read
_FILES = ("asset_file", "asset_files")
_numbers = count(1)


@cache
def schema(version: str) -> dict[str, Columns]:
    """Tables and columns of that Immich, as its own migrations made them."""
    found: dict[str, Columns] = json.loads((FACTS / "schema" / f"{version}.json").read_text(encoding="utf-8"))
    return found


@contextmanager
def immich_database(
    server: Postgres,
    version: str,
    *,
    rows: bool = False,
    schema_name: str = "public",
    setup: str = "",
    analyze: bool = True,
) -> Iterator[str]:
    """The name of a new database with that version's tables in `schema_name`; it is dropped at the end.

    `rows` loads what a real server of the version wrote, `setup` is SQL that runs last.
    """
    name = f"immich_{version.replace('.', '_')}_{next(_numbers)}"
    with server.connect() as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        with server.connect(name) as connection:
            create_tables(connection, version, schema_name)
            if rows:
                load_rows(connection, version)
            if setup:
                connection.execute(setup.encode())
            if analyze:
                connection.execute("ANALYZE")
        yield name
    finally:
        with server.connect() as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def create_tables(connection: Connection, version: str, schema_name: str = "public") -> None:
    """All tables with the keys and indexes that matter for reading.

    NOT NULL is left out and booleans default to false, so that a test names only the columns it is about.
    """
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema_name}"')
    connection.execute(f'SET search_path = "{schema_name}", public')
    index = json.loads((FACTS / "schema" / "index.json").read_text(encoding="utf-8"))
    for enum, labels in index[version]["enums"].items():
        connection.execute(f"CREATE TYPE {enum} AS ENUM ({', '.join(repr(label) for label in labels)})".encode())
    for table, columns in schema(version).items():
        connection.execute(_table_ddl(table, columns).encode())
        if table in _FILES:
            edited = ', "isEdited"' if "isEdited" in columns else ""
            connection.execute(f'CREATE UNIQUE INDEX ON "{table}" ("assetId", type{edited})'.encode())


def load_rows(connection: Connection, version: str) -> None:
    """Copy the CSV files, each named after its table, and add the one user they belong to."""
    for path in sorted((FACTS / "rows" / version).glob("*.csv")):
        text = path.read_text(encoding="utf-8")
        columns = ", ".join(f'"{column}"' for column in text.split("\n", 1)[0].split(","))
        statement = f'COPY "{path.stem}" ({columns}) FROM STDIN WITH (FORMAT csv, HEADER)'
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            copy.write(text)
    assets, users = ("asset", "user") if "asset" in schema(version) else ("assets", "users")
    connection.execute(f'INSERT INTO "{users}" (id) SELECT DISTINCT "ownerId" FROM {assets}'.encode())


def config(server: Postgres, database: str, user: str = "postgres", password: str | None = None) -> PostgresConfig:
    """Settings that lead to a database of an embedded server."""
    secret = Secret(password) if password else None
    return PostgresConfig("127.0.0.1", server.port, user, secret, database, {})


def _table_ddl(table: str, columns: Columns) -> str:
    lines = []
    for name, column in columns.items():
        kind = str(column["type"])
        default = " DEFAULT false" if kind == "boolean" else ""
        lines.append(f'"{name}" {_STAND_IN.get(kind, kind)}{default}')
    key = _KEYS.get(table, ("id",) if "id" in columns else ())
    if key:
        lines.append(f"PRIMARY KEY ({', '.join(chr(34) + name + chr(34) for name in key)})")
    return f'CREATE TABLE "{table}" ({", ".join(lines)})'
