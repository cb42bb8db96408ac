"""The least rights the exporter can do with: SQL for a Postgres role, one line for a Redis ACL user."""

from collections.abc import Sequence

from immich_vitals.sources.immich_facts import ALL_FACTS, Facts
from immich_vitals.sources.immich_schema import COLUMNS, FILE_COLUMNS, NAMES, SWITCHES_FUNCTION, SWITCHES_SCHEMA
from immich_vitals.sources.library import switches_sql
from immich_vitals.sources.page_patrol import AMCHECK, CHECK_FUNCTION, PATROL_FUNCTION, PREWARM

PASSWORD = "REPLACE-WITH-A-PASSWORD"

# Not `config|get`, which Redis cannot narrow: it gives away the password of Immich's own login (`requirepass`). What it
# would tell besides INFO are the settings `save` and `stop-writes-on-bgsave-error`; their defaults are then assumed.
REDIS_COMMANDS = (
    "info", "client|list", "llen", "lrange", "zcard", "zrange", "hget", "hmget", "exists", "get", "xread",
    "xrevrange", "xinfo|stream", "ping", "select", "role",
)  # fmt: skip


def grants_sql(database: str, role: str) -> str:
    """SQL that makes `role` and lets it read what the exporter reads in `database`, and nothing else.

    To be run in that database by a superuser; may be run again. It asks the catalogue for the tables and columns
    there are, so it fits every version of Immich.
    """
    uses = dict.fromkeys((*COLUMNS, *FILE_COLUMNS))
    columns = {use: list(dict.fromkeys((*COLUMNS.get(use, ()), *FILE_COLUMNS.get(use, ())))) for use in uses}
    wanted = ",\n      ".join(f"({_array(NAMES[use])}, {_array(columns[use])})" for use in uses)
    return _SQL.format(
        database=_literal(database),
        role=_literal(role),
        password=_literal(PASSWORD),
        names=_array([name for names in NAMES.values() for name in names]),
        wanted=wanted,
        schema=SWITCHES_SCHEMA,
        function=SWITCHES_FUNCTION,
        patrol=_PATROL.format(schema=SWITCHES_SCHEMA, read_pages=PATROL_FUNCTION, prewarm=PREWARM)
        + _CHECK.format(schema=SWITCHES_SCHEMA, check_index=CHECK_FUNCTION, amcheck=AMCHECK),
        metadata=switches_sql("%%1$I.system_metadata", None),
        config=switches_sql(None, "%%1$I.system_config"),  # %% for the format() around it
        facts="".join(_facts_sql(facts) for facts in ALL_FACTS),
    )


def _facts_sql(facts: Facts) -> str:
    """The function that gives a role `facts` and nothing beside them in the same tables."""
    queries = "".join(
        _ONE_QUERY.format(table=table, query=query.format(table=f"%%1$I.{table}"))
        for use, query in facts.queries.items()
        for table in NAMES[use]
    )
    return _ONE_FUNCTION.format(schema=SWITCHES_SCHEMA, function=facts.function, queries=queries)


def redis_acl(user: str) -> str:
    """The command that makes the ACL user `user` in Redis or Valkey; the same words fit a line of an ACL file after
    `user`."""
    commands = " ".join(f"+{command}" for command in REDIS_COMMANDS)
    return f"ACL SETUSER {user} reset on >{PASSWORD} ~immich_bull:* {commands}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _array(items: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(_literal(item) for item in items)}]"


_SQL = """\
-- A role for immich-vitals that can read only what it counts. Put a password in place of the placeholder, then run
-- this as a superuser in Immich's database, for example:
--   docker exec -i immich_postgres psql -U postgres -d immich < grants.sql
-- Run it again after an upgrade of Immich: new tables start without grants. It changes nothing that is right already.
--
-- What the role gets:
-- * pg_read_all_stats, to see the state and age of other people's sessions. Without it they count as `unknown` and
--   long transactions stay unseen. pg_monitor would do too, but also opens all settings and the list of WAL files.
-- * SELECT on single columns: types, states and dates of assets, which files they have; no names, titles or e-mail.
-- * Among them the paths and sizes of files, for the collector `file`, which looks whether each is still on disk. A
--   path may name a person, where a storage label or an external library does. It goes nowhere: not into a metric, a
--   log or a message. Who does not want that sets IMMICH_VITALS_DISABLE=file and runs, after this,
--   REVOKE SELECT ("originalPath") ON asset FROM the role; all else works.
-- * A function that gives the five switches of machine learning. Immich keeps its passwords for SMTP and OAuth in the
--   same column as those, so the column itself stays closed.
-- * For the same reason a function that gives the schedule of Immich's own dumps and when one last failed, one that
--   gives the versions that Immich has run and knows of, and one that tells whether its storage template is on.
-- * A function for the page patrol (IMMICH_VITALS_PAGE_PATROL): it makes Postgres read and verify pages of any table of
--   this database, and gives nothing of what is on them. Indexes can only be read so where the extension pg_prewarm is:
--   CREATE EXTENSION pg_prewarm; a dump then asks for it where it is restored.
-- * One for IMMICH_VITALS_AMCHECK, which has the extension amcheck look through a B-tree index and gives nothing of
--   what is in it. Where that is wanted: CREATE EXTENSION amcheck; a dump then asks for that one too.
--
-- A dump of this database names the role: create it first where you restore such a dump.
DO $immich_vitals$
DECLARE
  grantee constant text := {role};
  place text;
  found record;
BEGIN
  IF current_database() <> {database} THEN
    RAISE EXCEPTION 'this is database %, not Immich''s: connect to %', current_database(), {database};
  END IF;

  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = grantee) THEN
    EXECUTE format('CREATE ROLE %I LOGIN CONNECTION LIMIT 20 PASSWORD %L', grantee, {password});
  ELSIF (SELECT rolconnlimit FROM pg_roles WHERE rolname = grantee) = 8 THEN
    -- As it once stood here: too few for `check` beside the exporter.
    EXECUTE format('ALTER ROLE %I CONNECTION LIMIT 20', grantee);
  END IF;
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
  EXECUTE format('GRANT pg_read_all_stats TO %I', grantee);

  -- Immich's schema is the one with most of its tables.
  SELECT n.nspname INTO place
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND c.relname = ANY ({names})
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_t%'
  GROUP BY n.nspname
  ORDER BY count(*) DESC, coalesce(array_position(current_schemas(false), n.nspname), 1000), n.nspname LIMIT 1;
  IF place IS NULL THEN
    RAISE EXCEPTION 'there are no tables of Immich in database % yet', current_database();
  END IF;
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', place, grantee);

  FOR found IN
    WITH wanted (names, columns) AS (VALUES
      {wanted}
    ), tables AS (
      SELECT w.columns, (
        SELECT c.oid FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(place))
          AND c.relkind IN ('r', 'p') AND c.relname = ANY (w.names) ORDER BY array_position(w.names, c.relname::text)
        LIMIT 1) AS oid
      FROM wanted w
    )
    SELECT t.oid::regclass AS name, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS columns
    FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = ANY (t.columns) AND NOT a.attisdropped
    GROUP BY t.oid
  LOOP
    EXECUTE format('GRANT SELECT (%s) ON %s TO %I', found.columns, found.name, grantee);
  END LOOP;

  CREATE SCHEMA IF NOT EXISTS {schema};
  EXECUTE format($function$
    CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS TABLE (name text, value text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
      place constant text := %L;
    BEGIN
      IF to_regclass(format('%%I.system_metadata', place)) IS NOT NULL THEN
        RETURN QUERY EXECUTE format($query$
{metadata}
        $query$, place);
      END IF;
      IF to_regclass(format('%%I.system_config', place)) IS NOT NULL THEN
        RETURN QUERY EXECUTE format($query$
{config}
        $query$, place);
      END IF;
    END
    $body$ $function$, place);
  REVOKE ALL ON FUNCTION {schema}.{function}() FROM PUBLIC;
  EXECUTE format('GRANT USAGE ON SCHEMA {schema} TO %I', grantee);
  EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.{function}() TO %I', grantee);
{facts}{patrol}END
$immich_vitals$;
"""

_ONE_FUNCTION = """
  EXECUTE format($function$
    CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS TABLE (name text, value text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
      place constant text := %L;
    BEGIN{queries}
    END
    $body$ $function$, place);
  REVOKE ALL ON FUNCTION {schema}.{function}() FROM PUBLIC;
  EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.{function}() TO %I', grantee);
"""

_ONE_QUERY = """
      IF to_regclass(format('%%I.{table}', place)) IS NOT NULL THEN
        RETURN QUERY EXECUTE format($query$
{query}
        $query$, place);
      END IF;"""

_PATROL = """
  EXECUTE $function$
    CREATE OR REPLACE FUNCTION {schema}.{read_pages}(relation oid, first bigint, after bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET max_parallel_workers_per_gather = 0 SET jit = off AS $body$
    DECLARE
      found record;
      last bigint;
    BEGIN
      SELECT c.relkind, c.relname, n.nspname INTO found FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.oid = relation AND c.relkind IN ('r', 'm', 't', 'i') AND c.relpersistence <> 't';
      IF found IS NULL OR first < 0 OR after - first > 1000 THEN
        RETURN;
      END IF;
      -- With one of these on, reading would pass over damage or wipe it out.
      IF current_setting('zero_damaged_pages') = 'on' OR current_setting('ignore_checksum_failure') = 'on' THEN
        RETURN;
      END IF;
      IF found.relkind <> 'i' THEN
        EXECUTE format('SELECT count(*) FROM %I.%I WHERE ctid >= $1 AND ctid < $2', found.nspname, found.relname)
        USING format('(%s,0)', first)::tid, format('(%s,0)', after)::tid;
        RETURN;
      END IF;
      last := least(after, pg_relation_size(relation::regclass) / current_setting('block_size')::int) - 1;
      IF last >= first THEN
        EXECUTE (SELECT format('SELECT %I.{prewarm}($1, ''buffer''::text, ''main''::text, $2, $3)', n.nspname)
                 FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = '{prewarm}')
        USING relation::regclass, first, last;
      END IF;
    END
    $body$ $function$;
  REVOKE ALL ON FUNCTION {schema}.{read_pages}(oid, bigint, bigint) FROM PUBLIC;
  EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.{read_pages}(oid, bigint, bigint) TO %I', grantee);
"""

_CHECK = """
  EXECUTE $function$
    CREATE OR REPLACE FUNCTION {schema}.{check_index}(relation oid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
      -- With one of these on, reading would pass over damage or wipe it out.
      IF current_setting('zero_damaged_pages') = 'on' OR current_setting('ignore_checksum_failure') = 'on' OR NOT EXISTS
        (SELECT FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid
         WHERE c.oid = relation AND c.relkind = 'i' AND a.amname = 'btree' AND c.relpersistence <> 't'
           AND i.indisvalid AND i.indisready) THEN
        RETURN;
      END IF;
      EXECUTE (SELECT format('SELECT %I.bt_index_check($1)', n.nspname)
               FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = '{amcheck}')
      USING relation::regclass;
    END
    $body$ $function$;
  REVOKE ALL ON FUNCTION {schema}.{check_index}(oid) FROM PUBLIC;
  EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.{check_index}(oid) TO %I', grantee);
"""
