"""Words that stand for what is nobody's business, put wherever Immich and its servers keep such things, so that one of
them is recognized wherever it should not be."""

import base64
import json
import re
from pathlib import Path
from urllib.parse import unquote

import redis
from psycopg import sql

from immich_vitals.demo.queues import PREFIX
from immich_vitals.demo.schema import Connection, immich_schema
from immich_vitals.demo.web import KEY
from immich_vitals.demo.world import World
from support.granted import CHOSEN

STEM = "qzx"
_MARKER = re.compile(STEM + r"[a-z0-9]*", re.IGNORECASE)
ADDRESS = "203.0.113.7"  # of a visitor, in logs
SECRETS = (ADDRESS, CHOSEN, KEY)

# What Immich, the demo or the exporter need as it is: kinds, keys and versions. Paths are seeded on disk as well.
KEPT = {
    ("asset", "originalPath"), ("asset", "type"), ("asset", "duration"), ("asset_file", "path"), ("asset_file", "type"),
    ("kysely_migrations", "name"), ("migration_overrides", "name"), ("system_metadata", "key"),
    ("system_metadata", "value"), ("user", "profileImagePath"), ("user", "status"), ("version_history", "version"),
    ("notification", "level"), ("notification", "type"), ("library", "importPaths"),
}  # fmt: skip
_TEXT = re.compile(r"character varying.*|text")
_CONFIG = {
    "oauth": {"clientId": f"{STEM}oauthid", "clientSecret": f"{STEM}oauthsecret"},
    "notifications": {"smtp": {"from": f"{STEM}from@example.org", "transport": {"password": f"{STEM}smtp"}}},
    "server": {"loginPageMessage": f"{STEM}welcome"},
    "backup": {"database": {"enabled": True, "cronExpression": f"0 2 * * * {STEM}cron"}},
}


def marker(about: str) -> str:
    """A word that is nowhere else, and says what it stands for."""
    return STEM + re.sub(r"[^a-z0-9]", "", about.lower())


def found_in(text: str) -> set[str]:
    """The markers, the address and the passwords of the demo in a text, in whatever case, also in percent-encoding or
    base64."""
    seen = _words_in(unquote(text))
    for chunk in re.findall(r"[A-Za-z0-9+/_-]{8,}", text):
        for start in range(4):
            part = chunk[start:].translate(str.maketrans("-_", "+/"))
            decoded = base64.b64decode(part[: len(part) // 4 * 4]).decode("latin-1")
            seen |= {f"{word} (base64)" for word in _words_in(decoded)}
    return seen


def _words_in(text: str) -> set[str]:
    return {word.lower() for word in _MARKER.findall(text)} | {word for word in SECRETS if word in text}


def seed_database(world: World) -> None:
    """Every text in every row becomes a marker named after its table and column, and a row is made where there was
    none; some photos get such names on disk, too, and some rows name files that are not there."""
    with world.connect() as connection:
        for table, columns in immich_schema()["tables"].items():
            if connection.execute(_sql("SELECT count(*) FROM {}", table)).fetchone() == (0,):
                connection.execute(_new_row(table))
            for column, facts in columns.items():
                if (table, column) not in KEPT:
                    _overwrite(connection, table, column, facts["type"])
        connection.execute(
            "INSERT INTO system_metadata (key, value) VALUES ('system-config', %s::text::jsonb)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (json.dumps(_CONFIG),),
        )
        connection.execute(
            "UPDATE notification SET type = 'JobFailed', level = 'error',"
            f" description = 'Job DatabaseBackup failed: {marker('dumperror')}'".encode()
        )
        for number, (asset, path) in enumerate(_some_originals(connection)):
            moved = world.media / "library" / marker("storagelabel") / f"{marker('photo')}{number}.jpg"
            moved.parent.mkdir(exist_ok=True)
            if number % 2:  # those of the others are lost
                Path(path).rename(moved)
            connection.execute('UPDATE asset SET "originalPath" = %s WHERE id = %s', (str(moved), asset))


def _some_originals(connection: Connection) -> list[tuple[str, str]]:
    found = connection.execute(
        'SELECT id, "originalPath" FROM asset WHERE type = \'IMAGE\' AND NOT "isExternal" ORDER BY id LIMIT 10'
    )
    return [(str(row[0]), str(row[1])) for row in found]


def _overwrite(connection: Connection, table: str, column: str, kind: str) -> None:
    word = marker(f"{table}{column}")
    if _TEXT.fullmatch(kind):
        most = re.search(r"\((\d+)\)", kind)
        value = f"left('{word}' || row_number, {most[1] if most else 200})::{kind}"
    elif kind in ("text[]", "varchar[]"):
        value = f"ARRAY['{word}']"
    elif kind == "jsonb":
        value = f"jsonb_build_object('{word}', '{word}')"
    elif kind == "bytea" and (table, column) not in (("asset", "checksum"), ("asset", "thumbhash")):
        value = f"convert_to('{word}', 'UTF8')"
    else:
        return
    connection.execute(
        _sql(
            f"UPDATE {{}} AS t SET {{}} = {value} FROM (SELECT ctid, row_number() OVER () FROM {{}}) AS n"
            " WHERE n.ctid = t.ctid",
            table, column, table,
        )
    )  # fmt: skip


def _new_row(table: str) -> sql.Composed:
    schema = immich_schema()
    wanted = {
        column: _filler(facts["type"], schema["enums"])
        for column, facts in schema["tables"][table].items()
        if not facts["nullable"]
    }
    return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, wanted)),
        sql.SQL(", ").join(sql.SQL(each) for each in wanted.values()),
    )


def _filler(kind: str, enums: dict[str, list[str]]) -> str:
    if kind in enums:
        return f"'{enums[kind][0]}'"
    fillers = {
        "uuid": "gen_random_uuid()", "boolean": "false", "timestamp with time zone": "now()", "date": "now()",
        "jsonb": "'{}'", "bytea": "''", "text[]": "'{}'", "varchar[]": "'{}'", "polygon": "'((0,0),(1,1))'",
        "vector": f"array_fill(0.5, ARRAY[{512}])::vector",
    }  # fmt: skip
    return fillers.get(kind, "''" if kind.startswith(("char", "text")) else "0")


def _sql(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*map(sql.Identifier, names))


def seed_redis(client: redis.Redis) -> None:
    """Payloads, errors and results of jobs in every state, a client's name, and keys of another program."""
    queue = f"{PREFIX}:thumbnailGeneration"
    word = marker("job")
    for state, add in (("wait", client.lpush), ("active", client.lpush), ("paused", client.lpush)):
        client.hset(f"{queue}:{word}{state}", mapping={"data": word, "failedReason": word, "name": word})
        add(f"{queue}:{state}", f"{word}{state}")
    for state in ("failed", "completed", "delayed", "prioritized"):
        client.zadd(f"{queue}:{state}", {f"{word}{state}": 1})
    client.xadd(f"{queue}:events", {"event": "failed", "failedReason": marker("reason"), "jobId": word})
    client.set(f"session:{marker('session')}", marker("token"))
    client.client_setname(marker("client"))


def container_options() -> list[str]:
    """Secrets where people put them: in variables, labels and the command that looks after health."""
    return [
        f"--env=DB_PASSWORD={marker('containerpassword')}",
        f"--env=PATH_OF_{marker('variable')}=/{marker('variablevalue')}",
        f"--label={marker('label')}={marker('labelvalue')}",
        f"--hostname={marker('hostname')}",
        f"--health-cmd=echo {marker('health')}; exit 1",
        "--health-interval=1s",
        "--health-retries=1",
    ]


_NEST = "[Nest] 7  - 11/28/2026, 2:00:00 PM"
LINES = (
    f"{_NEST}   ERROR [Api:ErrorInterceptor~a1b2c3d4] Unknown error: Error: ENOENT: no such file or directory, open"
    f" '/data/library/{STEM}logowner/{STEM}logfile.jpg'\n"
    f'{_NEST}   ERROR [Microservices:{{"id":"x"}}] Unable to run job handler (AssetGenerateThumbnails): Error:'
    f" {STEM}logjob: EACCES: permission denied, mkdir '/data/thumbs/{STEM}logmkdir'\n"
    f"{_NEST}    WARN [Api:AuthService] Failed login attempt for user {STEM}login@example.org from ip address"
    f" {ADDRESS}, x-api-key: {STEM}logtoken\n"
    f'FATAL:  password authentication failed for user "{STEM}loguser"\n'
    f'{ADDRESS} - - "GET /api/assets?key={STEM}sharedkey HTTP/1.1" 502 upstream {STEM}upstream: connect() failed (111:'
    " Connection refused) while connecting to upstream"
).splitlines()


def chatter() -> str:
    """A shell command that says all of `LINES` again and again."""
    words = "; ".join("echo '" + line.replace("'", "'\\''") + "'" for line in LINES)
    return f"# {marker('command')}\nwhile :; do {words}; sleep 1; done"
