"""A few facts in tables of Immich that hold secrets or texts for people beside them.

Immich's own role reads them where they are. A role of `immich-vitals grants` cannot, and gets functions that give
these facts and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.sources.immich_schema import SWITCHES_SCHEMA, ImmichSchema, schema_from, schema_queries
from immich_vitals.sources.postgres import Database, Hello


@dataclass(frozen=True, slots=True)
class Facts:
    """A function of grants.py, and the queries behind it: for each table, by its use in `immich_schema.NAMES`, SQL
    that gives rows (name, value) of text, with `{table}` in the place of the table, and the columns that it reads."""

    function: str
    queries: Mapping[str, str]
    columns: Mapping[str, tuple[str, ...]]


BACKUP_FACTS = Facts(
    "database_backups",
    {
        "metadata": """SELECT n.name, m.value::text::jsonb #>> string_to_array(n.name, '.')
FROM {table} m, unnest(ARRAY['backup.database.enabled', 'backup.database.cronExpression']) AS n(name)
WHERE m.key = 'system-config'""",
        # The text tells the job: DatabaseBackup, before 1.136 database-backup.
        "notification": """SELECT 'failed', extract(epoch FROM max("createdAt"))::text
FROM {table} WHERE type = 'JobFailed' AND level = 'error' AND description ~* '^Job database-?backup '""",
    },
    {"metadata": ("key", "value"), "notification": ("type", "level", "description", "createdAt")},
)
VERSION_FACTS = Facts(
    "versions",
    {
        "metadata": """SELECT n.name, m.value::text::jsonb ->> n.name
FROM {table} m, unnest(ARRAY['releaseVersion', 'checkedAt']) AS n(name)
WHERE m.key = 'version-check-state'""",
        "version_history": """SELECT n.name, CASE n.name WHEN 'version' THEN newest.version::text ELSE newest.at END
FROM (
  SELECT version, extract(epoch FROM "createdAt")::text AS at FROM {table} ORDER BY "createdAt" DESC LIMIT 1
) newest, unnest(ARRAY['version', 'changed']) AS n(name)""",
    },
    {"metadata": ("key", "value"), "version_history": ("version", "createdAt")},
)
# Before 1.106 the settings were rows of their own; a later Immich may still have that table, and does not read it.
TEMPLATE_FACTS = Facts(
    "storage_template",
    {
        "metadata": """SELECT 'enabled', coalesce(value::text::jsonb #>> '{{storageTemplate,enabled}}', 'false')
FROM {table} WHERE key = 'system-config'""",
        "config": "SELECT 'once', value::text FROM {table} WHERE key = 'storageTemplate.enabled'",
    },
    {"metadata": ("key", "value"), "config": ("key", "value")},
)
ALL_FACTS = (BACKUP_FACTS, VERSION_FACTS, TEMPLATE_FACTS)


@dataclass(frozen=True, slots=True)
class Told:
    """What the database told. `tables` are the uses that this Immich has a table for: where one is missing, its facts
    are no secret but not there in this version."""

    values: Mapping[str, str]
    tables: frozenset[str]


def read_facts(database: Database, name: str, facts: Facts, deadline: Deadline) -> Told:
    """The values by name, without those that nobody has set. Raises what `Database.ask` raises, `Absent` without any
    table of Immich, `Unavailable` when our role may neither read the tables nor call the function."""
    columns, functions, ours = database.ask(lambda hello: _look(hello, facts), deadline)
    schema = schema_from(columns, functions, name)
    there = frozenset(use for use, needed in facts.columns.items() if schema.has(use, *needed))
    if ours and ours[0][0]:
        query = f"SELECT name, value FROM {SWITCHES_SCHEMA}.{facts.function}()"
    else:
        query = _direct(schema, facts, there)
    (rows,) = database.ask(lambda hello: query, deadline)
    return Told({str(key): str(value) for key, value in rows if value is not None}, there)


def _direct(schema: ImmichSchema, facts: Facts, there: frozenset[str]) -> str:
    closed = [use for use in there if schema.tables[use].closed.intersection(facts.columns[use])]
    if closed:
        raise Unavailable(
            f"our role lacks the right to read {' and '.join(sorted(schema.tables[use].name for use in closed))}",
            mend="run the SQL that `immich-vitals grants` prints, again after upgrades of Immich or of the exporter",
        )
    parts = [facts.queries[use].format(table=schema.tables[use].sql) for use in facts.queries if use in there]
    return "\nUNION ALL\n".join(parts) or "SELECT NULL, NULL LIMIT 0"


def _look(hello: Hello, facts: Facts) -> str:
    return f"""{schema_queries(hello)};
SELECT coalesce(bool_or(has_function_privilege(p.oid, 'execute') AND has_schema_privilege(n.oid, 'usage')), false)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = '{SWITCHES_SCHEMA}' AND p.proname = '{facts.function}' AND p.pronargs = 0"""
