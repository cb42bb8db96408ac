"""Nothing is ever written, as the watched parts themselves tell it: Postgres' log of statements, Redis' MONITOR, the
requests to Docker and to Immich as they came over the wire, and the kernel's word on every file.

The exporter is the real process, as root, so that nothing but itself keeps it from writing, with every collector
enabled and every timer at two seconds; `check` and `scrape` are run beside it.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families

from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.queues import add_jobs
from immich_vitals.demo.world import World
from immich_vitals.grants import REDIS_COMMANDS
from support.docker_engine import Engine
from support.everything import Everything, everything, need_engine
from support.exporter import Exporter
from support.granted import ROLE
from support.watch import Change, Watch

ROOT = Path(__file__).parents[2]
SCRAPES = 60
ROUNDS = 2  # of each timer, at least
PATIENCE = 240.0
ALIVE = "while :; do echo alive; sleep 1; done"
POSTGRES = {
    "logging_collector": "on", "log_destination": "jsonlog", "log_rotation_size": "0", "log_rotation_age": "0",
    "log_statement": "all", "log_connections": "on", "autovacuum": "off", "checkpoint_timeout": "1h",
    # Else the background writer notes now and then which transactions run, for standbys that are not there.
    "wal_level": "minimal", "max_wal_senders": "0",
}  # fmt: skip
MOVES = """
SELECT pg_current_wal_lsn()::text, pg_snapshot_xmax(pg_current_snapshot())::text, sum(tup_inserted), sum(tup_updated),
    sum(tup_deleted), sum(temp_files)
FROM pg_stat_database
"""
END = "the-day-is-over"
FOR_NOW = re.compile(
    r"SET LOCAL ((statement|lock|idle_in_transaction_session)_timeout = \d+"
    r"|(enable_\w+|jit) = (on|off)|max_parallel_workers_per_gather = 0)"
)
QUERY = re.compile(r"\(*(SELECT|WITH|SHOW)\b")
WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|TRUNCATE|INTO|LOCK|COPY|CALL|DO)\b", re.IGNORECASE)
GOODBYE = b"\x88\x82\0\0\0\0" + (1000).to_bytes(2, "big")  # a websocket's frame that closes it
ASKED_OF_IMMICH = {
    "/api/server/ping", "/api/server/config", "/api/socket.io/?EIO=4", "/api/assets/ID/thumbnail?size=thumbnail",
    "/api/assets/ID/thumbnail?size=preview", "/api/assets/ID/original", "/ping",
}  # fmt: skip

pytestmark = pytest.mark.docker


@dataclass(frozen=True, slots=True)
class Moved:
    """What would be another one after a write: Postgres' place in its WAL, next transaction and counts of rows and
    temporary files; Redis' number and digest of keys."""

    postgres: object
    redis: object


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a long day of the exporter, and of a `check` and a `scrape` beside it.

    `postgres` are what its log says of our role; `commands` what Redis heard by TCP; `changes` are by program, without
    its own standard output; `answers` their exit codes; `timers` how often each collector succeeded anew.
    """

    parts: Everything
    before: Moved
    after: Moved
    postgres: list[str]
    commands: list[str]
    denied: list[tuple[str, int]]
    changes: Mapping[str, set[Change]]
    answers: Mapping[str, int | None]
    timers: Mapping[str, int]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    need_engine()
    with Engine() as engine, World() as world, everything(world, engine, command=ALIVE) as parts:
        world.stop_workers()  # nobody but the exporter is there
        statements = world.folder / "statements"
        statements.mkdir()
        statements.chmod(0o777)
        _settle_postgres(world, statements)
        with (
            redis.Redis(unix_socket_path=str(world.redis.socket), decode_responses=True) as client,
            watched(world.folder, Path("/"), Path("/dev/shm")) as watch,
        ):
            _settle_redis(client)
            yield _a_day(parts, statements, client, watch)


@contextmanager
def watched(*paths: Path) -> Iterator[Watch]:
    """Every change on the file systems of these paths. Skips the test where the kernel does not tell."""
    with ExitStack() as ends:
        try:
            watch = ends.enter_context(Watch(*paths))
        except OSError as error:
            pytest.skip(f"the kernel does not tell who changes what ({error}): run as root on Linux 5.9 or newer")
        yield watch


def _settle_postgres(world: World, statements: Path) -> None:
    """Let Postgres write down every statement, and have it do at once what it would do some time by itself: now nothing
    moves that nobody moves."""
    with world.postgres.connect() as admin:
        for name, value in {**POSTGRES, "log_directory": str(statements)}.items():
            admin.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    world.postgres.restart()
    with world.postgres.connect() as admin:
        names = [str(row[0]) for row in admin.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    for work in ("VACUUM (FREEZE, ANALYZE)", "VACUUM (FREEZE, DISABLE_PAGE_SKIPPING)", "CHECKPOINT"):
        for name in names:
            with world.postgres.connect(name) as admin:
                admin.execute(work.encode())


def _settle_redis(client: redis.Redis) -> None:
    """Jobs that wait for ever, and no key that goes by itself."""
    add_jobs(client, "thumbnailGeneration", "AssetGenerateThumbnails", 5)
    for key in client.scan_iter():
        client.persist(key)


def _a_day(parts: Everything, statements: Path, client: redis.Redis, watch: Watch) -> Seen:
    world = parts.world
    before, commands = _moved(world, client), list[str]()
    listens = threading.Event()
    listener = threading.Thread(target=_listen, args=(world, commands, listens))
    listener.start()
    assert listens.wait(30)
    try:
        changes, answers, timers = _run(parts, watch)
    finally:
        client.echo(END)
        listener.join()
    after = _moved(world, client)
    denied = [(str(each["object"]), int(each["count"])) for each in client.acl_log()]
    rows = [json.loads(line) for file in statements.glob("*.json") for line in file.read_text().splitlines()]
    ours = [str(row["message"]) for row in rows if row.get("user") == ROLE]
    return Seen(parts, before, after, ours, commands, denied, changes, answers, timers)


def _run(parts: Everything, watch: Watch) -> tuple[dict[str, set[Change]], dict[str, int | None], dict[str, int]]:
    """The exporter scraped until every timer has had its rounds, and a `check` and a `scrape` beside it."""
    changes: dict[str, set[Change]] = {}
    answers: dict[str, int | None] = {}
    successes: dict[str, set[float]] = {kind.name: set() for kind in COLLECTORS}
    with Exporter(parts.environment) as exporter:
        for command in ("check", "scrape"):
            environment = {"PATH": os.environ["PATH"], **parts.environment}
            program = [sys.executable, "-m", "immich_vitals", command]
            with subprocess.Popen(
                program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as process:
                said, _ = process.communicate(timeout=120)
            changes[command], answers[command] = watch.by(process.pid), process.returncode
            assert said
        until, scrapes = time.monotonic() + PATIENCE, 0
        while scrapes < SCRAPES or any(len(each) < ROUNDS for each in successes.values()):
            assert time.monotonic() < until, {name: len(each) for name, each in successes.items()}
            for name, moment in _last_successes(httpx.get(exporter.url("/metrics"), timeout=30).text):
                successes[name].add(moment)
            scrapes += 1
            threading.Event().wait(0.1)
        said_into = f"#{Path(f'/proc/{exporter.pid}/fd/2').stat().st_ino}"
        exporter.stop()
        answers["serve"] = exporter.exit_code
        changes["serve"] = {each for each in watch.by(exporter.pid) if Path(each.path).name != said_into}
    return changes, answers, {name: len(each) for name, each in successes.items()}


def _last_successes(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "immich_vitals_collector_last_success_timestamp_seconds":
                yield sample.labels["collector"], sample.value


def _moved(world: World, client: redis.Redis) -> Moved:
    with world.postgres.connect() as admin:
        counted = admin.execute(MOVES.encode()).fetchall()
    return Moved(counted, (client.dbsize(), client.execute_command("DEBUG", "DIGEST")))  # type: ignore[no-untyped-call]


def _listen(world: World, commands: list[str], listens: threading.Event) -> None:
    """What Redis is told by TCP, which is the exporter; we ourselves come by the socket."""
    with world.redis.client(socket_timeout=None) as client, client.monitor() as monitor:
        listens.set()
        for each in monitor.listen():
            if each["command"] == f"ECHO {END}":
                return
            if each["client_type"] == "tcp":
                commands.append(each["command"])


def test_every_collector_was_at_work(seen: Seen) -> None:
    """What follows is about all of them: each succeeded again and again, `check` was content, and all ended well."""
    assert min(seen.timers.values()) >= ROUNDS
    assert seen.answers == {"check": 0, "scrape": 0, "serve": 0}


def test_postgres_hears_only_reading_transactions(seen: Seen) -> None:
    """Each message of ours is one transaction that Postgres itself keeps from writing, with limits and choices of the
    planner that end with it, and in it nothing but queries."""
    statements = [message.removeprefix("statement: ") for message in seen.postgres if message.startswith("statement: ")]
    assert len(statements) > SCRAPES
    for statement in statements:
        first, *middle, last = pieces(statement)
        assert (first, last) == ("BEGIN READ ONLY", "COMMIT"), statement
        for piece in middle:
            assert FOR_NOW.fullmatch(piece) or QUERY.match(piece), piece
            assert not WRITES.search(piece), piece
    others = {message.split(":")[0] for message in seen.postgres} - {"statement"}
    assert others <= {"connection authenticated", "connection authorized"}


def pieces(statement: str) -> list[str]:
    """The statements between semicolons, without what is quoted or a comment in them."""
    bare = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*", "''", statement)
    return [piece.strip() for piece in bare.split(";") if piece.strip()]


def test_postgres_is_as_before(seen: Seen) -> None:
    """Not a byte of WAL, no transaction with a number, no row, no temporary file."""
    assert seen.before.postgres == seen.after.postgres


def test_redis_hears_only_the_listed_commands(seen: Seen) -> None:
    """What MONITOR shows of us are the login and commands of `grants`. Settings, which those do not have, are asked for
    once by each program, and refused."""
    heard = {command.lower() for command in seen.commands} - {"auth (redacted) (redacted)"}
    assert any(command.startswith("llen") for command in heard)
    allowed = [command.replace("|", " ") for command in REDIS_COMMANDS]
    assert not [command for command in heard if not any(f"{command} ".startswith(f"{each} ") for each in allowed)]
    assert seen.denied == [("config", 2 * len(seen.answers))]


def test_redis_is_as_before(seen: Seen) -> None:
    assert seen.before.redis == seen.after.redis


def test_docker_hears_only_what_is_documented(seen: Seen) -> None:
    """GET without a body, on what the proxy of the Compose example lets through and docs/deployment.md says."""
    asked = seen.parts.between["docker"].asked
    assert {each.method for each in asked} == {"GET"}
    assert not [each for each in asked if each.body or each.told]
    shipped = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())["services"]["docker-proxy"]
    switches = {name.lower() for name, value in shipped["environment"].items() if value == 1}
    assert (switches, shipped["environment"]["POST"]) == ({"containers", "events", "info"}, 0)
    sections = {re.sub(r"^/v[\d.]+(?=/)", "", each.path).split("/")[1] for each in asked}
    assert sections == switches | {"version"}  # which that proxy passes unless told otherwise
    text = (ROOT / "docs" / "deployment.md").read_text()
    assert "Docker: the proxy passes GET on containers and their logs, events and info." in text
    of_containers = {found[1] for each in asked if (found := re.search(r"/containers/(?:\w{64}/)?(\w+)$", each.path))}
    assert of_containers == {"json", "logs", "stats"}


def test_immich_is_only_asked(seen: Seen) -> None:
    """GET without a body, and the question for the largest upload: no body, no key, so that nothing can come of it. The
    websocket is opened and closed, and nothing is said in between."""
    asked = [each for name in ("immich", "proxy", "machine_learning") for each in seen.parts.between[name].asked]
    uploads = [each for each in asked if each.method != "GET"]
    assert uploads
    for each in uploads:
        assert (each.method, each.target, each.headers["expect"]) == ("POST", "/api/assets", "100-continue")
        assert each.told and not each.body
        assert not {"x-api-key", "authorization", "cookie"} & set(each.headers)
    rest = [each for each in asked if each.method == "GET"]
    assert {each.body for each in rest if "upgrade" in each.headers} == {GOODBYE}
    assert not [each for each in rest if (each.body or each.told) and "upgrade" not in each.headers]
    assert {re.sub(r"[0-9a-f-]{36}", "ID", each.target.split("&")[0]) for each in rest} == ASKED_OF_IMMICH


def test_no_file_is_changed_but_our_own_state(seen: Seen) -> None:
    """By the kernel's word: no file of Immich, Postgres, Redis or the machine was made, written, renamed, removed or
    given other attributes; in the folder of IMMICH_VITALS_STATE_PATH there is what we keep."""
    state = seen.parts.world.state
    for program, changes in seen.changes.items():
        assert not [each for each in changes if not Path(each.path).is_relative_to(state)], program
    assert seen.changes["serve"]


def test_the_watch_sees_every_kind_of_change(tmp_path: Path) -> None:
    """What the test above stands on: a program that does all of it once is told in full."""
    script = (
        "import os; open('a', 'w').write('x'); os.chmod('a', 0o600); os.rename('a', 'b'); os.unlink('b');"
        "os.mkdir('c'); os.rmdir('c'); os.symlink('x', 'd')"
    )
    with watched(tmp_path) as watch:
        with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as process:
            process.wait()
        told = {(each.what, Path(each.path).name) for each in watch.by(process.pid)}
        assert {each.path.rpartition("/")[0] for each in watch.by(process.pid)} == {str(tmp_path)}
        assert watch.by(os.getpid()) and not watch.by(1)
    assert told == {
        ("created", "a"), ("modified", "a"), ("closed after writing", "a"), ("attributes", "a"), ("moved from", "a"),
        ("moved to", "b"), ("deleted", "b"), ("created", "c"), ("deleted", "c"), ("created", "d"),
    }  # fmt: skip
