"""No secret and no personal datum leaves: words that are nowhere else are put wherever Immich, its servers, its
containers and the exporter's own settings keep such things, and then looked for in all that the exporter gives away.

It runs as a real process at the most talkative log level, first with everything healthy, then with every server broken
in several ways at once, and a real Prometheus evaluates the shipped rules on what it serves.
"""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.world import DATABASE, World
from support.docker_engine import Engine
from support.everything import Everything, everything, need_engine
from support.exporter import Exporter
from support.fault_proxy import Fault, Hangs, Resets, Says
from support.granted import ROLE
from support.markers import LINES, chatter, container_options, found_in, marker, seed_database, seed_redis
from support.prometheus import Prometheus, hurried_rules

PATIENCE = 60.0
PATHS = ("/", "/metrics", "/healthz", "/readyz", "/favicon.ico", f"/{marker('path')}?{marker('query')}")
HEADERS = {"Authorization": f"Bearer {marker('bearer')}", "X-Forwarded-For": marker("forwarded")}
# What a server in trouble, or somebody in its place, may say; each in the words of its protocol.
WORDS = marker("saidbyserver")
POSTGRES_ERROR = b"SERROR\0VERROR\0C22P02\0M" + f'invalid input syntax for type json: "{WORDS}"'.encode() + b"\0\0"
READY = b"Z\0\0\0\5I"
BODY = json.dumps({"message": WORDS}).encode()
SAYS: Mapping[str, Fault] = {
    "docker": Says(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY),
    "postgres": Says(b"E" + (4 + len(POSTGRES_ERROR)).to_bytes(4, "big") + POSTGRES_ERROR + READY),
    "redis": Says(b"+" + WORDS.encode() + b"\r\n"),
    "immich": Says(f"HTTP/1.1 302 Found\r\nLocation: https://{WORDS}.example/\r\n\r\n".encode()),
    "proxy": Says(f"HTTP/1.1 200 {WORDS}\r\n{WORDS}: {WORDS}\r\n\r\n{WORDS}".encode()),
    "machine_learning": Says(WORDS.encode()),
}
QUESTION = b"BEGIN READ ONLY"  # the login goes well
FAULTS: Mapping[str, Mapping[str, Fault]] = {
    "hangs": {name: Hangs() for name in SAYS},
    "resets": {name: Resets() for name in SAYS},
    "says something else": SAYS,
}
SECRET = marker("secret")
SECRETS = {
    "IMMICH_VITALS_API_KEY": marker("apikey"),
    "IMMICH_VITALS_DB_PASSWORD": marker("databasepassword"),
    "IMMICH_VITALS_REDIS_USERNAME": ROLE,
    "IMMICH_VITALS_REDIS_PASSWORD": marker("redispassword"),
}

# Of what is full of markers, and was read.
READ = [
    re.compile(rf'log_matches_total{{component="{component}",signature="{signature}"}} [1-9]')
    for component, signature in (("server", "file_missing"), ("server", "permission_denied"))
]
# Who asks a server at each scrape; all others are asked by `check`.
ASKING = frozenset(("postgres", "redis", "queue", "container"))

pytestmark = pytest.mark.docker


@dataclass(frozen=True, slots=True)
class Given:
    """All that left the exporter, by where it left and in which state of the servers."""

    texts: Mapping[tuple[str, str], str]
    alerts: str
    failing: Mapping[str, frozenset[str]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    need_engine()
    folder = tmp_path_factory.mktemp("leaks")
    with ExitStack() as ends:
        engine = ends.enter_context(Engine())
        world = ends.enter_context(World(feed_every=1.0))
        seed_database(world)
        seed_redis(ends.enter_context(redis.Redis(unix_socket_path=str(world.redis.socket))))
        engine.start_container(f"other-{marker('othername')}", *container_options(), command=chatter())
        hidden = world.folder / marker("folderofthehost")
        hidden.mkdir()
        options = [*container_options(), f"--volume={hidden}:/{marker('folderinside')}"]
        parts = ends.enter_context(everything(world, engine, *options, command=chatter()))
        ends.enter_context(_busy_postgres(world))
        for component in ("database", "redis", "proxy"):
            with world.logs.path(component).open("a") as log:
                log.writelines(f"{line}\n" for line in LINES)
        yield _all_given(parts, folder)


def _busy_postgres(world: World) -> psycopg.Connection[tuple[object, ...]]:
    """A session of somebody else, in the middle of a transaction, with a text in its query and its name."""
    busy = psycopg.connect(world.postgres.dsn(DATABASE), application_name=marker("applicationname"))
    busy.execute(f"SELECT '{marker('otherquery')}'".encode())
    return busy


def _all_given(parts: Everything, folder: Path) -> Given:
    texts: dict[tuple[str, str], str] = {}
    failing: dict[str, frozenset[str]] = {}
    with ExitStack() as ends:
        exporter = ends.enter_context(Exporter(parts.environment, "--log.level=debug"))
        rules = hurried_rules(folder / "rules")
        prometheus = ends.enter_context(
            Prometheus(folder / "prometheus", rules, [f"127.0.0.1:{exporter.port}"], "127.0.0.1:1")
        )

        def note(state: str, *, until_broken: bool = True) -> None:
            failing[state] = _ask_for_all(exporter, state, texts, broken=until_broken)
            # These wait two minutes for the first sample of files.
            asked = {**parts.environment, "IMMICH_VITALS_DISABLE": "file" if state == "hangs" else ""}
            for command in ("check", "scrape"):
                texts[state, command] = _program(asked, command)

        note("healthy", until_broken=False)
        for state, faults in FAULTS.items():
            with ExitStack() as broken:
                for name, proxy in parts.between.items():
                    about = QUESTION if faults is SAYS and name == "postgres" else b""
                    broken.enter_context(proxy.broken(faults[name], about))
                    proxy.reset()
                note(state)
        with ExitStack() as broken:
            for proxy in parts.between.values():
                broken.enter_context(proxy.refusing())
            note("refuses")
        alerts = "".join(
            httpx.get(f"http://{prometheus.address}/api/v1/{what}", timeout=10).text for what in ("rules", "alerts")
        )
        texts["healthy again", "check with wrong secrets"] = _program({**parts.environment, **SECRETS}, "check")
        texts["any", "command line"] = Path(f"/proc/{exporter.pid}/cmdline").read_text()
        texts["any", "log"] = exporter.stop()
    texts["any", "state"] = "".join(path.read_text() for path in parts.world.state.rglob("*") if path.is_file())
    return Given(texts, alerts, failing)


def _ask_for_all(exporter: Exporter, state: str, texts: dict[tuple[str, str], str], *, broken: bool) -> frozenset[str]:
    """Ask for every page until all who ask a server fail, or succeeds; returns what fails."""
    until = time.monotonic() + PATIENCE
    while True:
        for path in PATHS:
            answer = httpx.get(exporter.url(path), headers=HEADERS, timeout=30)
            texts[state, path] = texts.get((state, path), "") + str(answer.headers) + answer.text
        last = texts[state, "/metrics"].rpartition("# HELP immich_vitals_build_info")[2]
        told = {line.split('"')[1]: line.split()[-1] for line in last.splitlines() if "collector_success{" in line}
        failing = frozenset(name for name, value in told.items() if float(value) == 0)
        well = len(told) == len(COLLECTORS) and not failing and all(each.search(last) for each in READ)
        if failing >= ASKING if broken else well:
            return failing
        assert time.monotonic() < until, (state, failing)
        threading.Event().wait(0.3)


def _program(environment: Mapping[str, str], *arguments: str, given: str = "") -> str:
    """What it says, on both ways out."""
    done = subprocess.run(
        [sys.executable, "-m", "immich_vitals", *arguments, "--log.level=debug"],
        env={"PATH": os.environ["PATH"], **environment}, input=given, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    return f"{done.stdout}{done.stderr}"


def test_servers_were_really_broken(given: Given) -> None:
    """In each state but the first everybody who asks a server at each scrape fails, and alerts fire of it. In the first
    one everybody was content, and the lines full of markers had been read."""
    assert set(given.failing) == {"healthy", *FAULTS, "refuses"}
    assert not given.failing["healthy"]
    assert '"state":"firing"' in given.alerts
    assert "rejects the password" in given.texts["healthy again", "check with wrong secrets"]
    assert "rejects the user name or password" in given.texts["healthy again", "check with wrong secrets"]
    assert given.texts["any", "state"]
    assert "level=" in given.texts["any", "log"]


def test_no_marker_in_anything(given: Given) -> None:
    """Not in a metric, a label, a page, a header, the log, the table of `check`, the command line or the kept state."""
    assert {where: found for where, text in given.texts.items() if (found := found_in(text))} == {}


def test_no_marker_in_alerts(given: Given) -> None:
    """Nor in what Prometheus makes of the labels: names, annotations and links of every alert."""
    assert found_in(given.alerts) == set()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DB_URL", "mysql://immich:{}@database/immich"),
        ("DB_URL", "postgresql://immich:{}@database:99999/immich"),
        ("DB_URL", "postgresql://immich:{}/x@[database/immich"),
        ("DB_HOSTNAME", "postgresql://immich:{}@database/immich"),
        ("DB_PASSWORD_FILE", "{}"),
        ("REDIS_URL", "http://:{}@redis:6379/0"),
        ("REDIS_URL", "redis://:{}@redis:6379/zero"),
        ("REDIS_URL", "redis://:{}@redis:port"),
        ("REDIS_URL", "ioredis://{}!"),
        ("REDIS_URL", "ioredis://" + base64.b64encode(b'["password", "{}"]'.replace(b"{}", SECRET.encode())).decode()),
        ("REDIS_HOSTNAME", "redis://:{}@redis:6379"),
        ("DOCKER_HOST", "ssh://somebody:{}@host"),
        ("DOCKER_HOST", "tcp://somebody:{}@host:2375"),
        ("IMMICH_VITALS_SERVER_URL", "http://admin:{}@immich-server:2283"),
        ("IMMICH_VITALS_EXTERNAL_URL", "https://photos.example.org/?key={}"),
        ("IMMICH_VITALS_MACHINE_LEARNING_URL", "http://ml:{}"),
        ("IMMICH_VITALS_KUBERNETES_API", "https://token:{}@10.0.0.1"),
        ("IMMICH_VITALS_API_KEY_FILE", "{}/{}"),
    ],
)
def test_bad_settings_show_no_secret(setting: str, value: str) -> None:
    """A mistake in a setting that may have a secret in it is told by the setting's name."""
    said = _program({setting: value.replace("{}", SECRET)}, "check")
    assert f"immich-vitals: {setting}: " in said
    assert found_in(said) == set()


@pytest.mark.parametrize("flag", ["--config.file", "--web.config.file"])
@pytest.mark.parametrize(
    "text",
    [
        "db_password: *{}", "db_password: !{} x", "db_password: &{} x\nredis_password: &{} *x", "db_password: '{}",
        "db_password: %{}", "db_password: @{}", "db_password: a: {}", "db_password: \"\\{}\"", "db_url: {}",
        "- {}", "{}", "db_password: !{}!x y", "basic_auth_users: {prometheus: {}}", "basic_auth_users: [{}]",
        "basic_auth_users: {prometheus: '$2y$12${}'}", "tls_server_config: {}",
    ],
)  # fmt: skip
def test_bad_files_show_no_secret(tmp_path: Path, flag: str, text: str) -> None:
    """Nor does a file of settings, or of the web server's, that is no YAML or says something else than it should."""
    file = tmp_path / "settings.yml"
    file.write_text(text.replace("{}", SECRET))
    said = _program({}, "serve", "--web.listen-address=127.0.0.1:0", flag, str(file))
    assert str(file) in said or file.name in said or "DB_URL" in said, said
    assert found_in(said) == set()


def test_log_match_adds_nothing() -> None:
    """It repeats the lines that it was given, to whom gave them, and says nothing on standard error."""
    words = [sys.executable, "-m", "immich_vitals", "log-match", "--component", "server"]
    done = subprocess.run(words, input="\n".join(LINES), capture_output=True, text=True, check=True)
    assert [line.split("\t", 1)[1] for line in done.stdout.splitlines()] == list(LINES)
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["grants", "config", "metrics", "healthcheck"])
def test_other_commands_show_no_secret(command: str) -> None:
    """What is printed for the administrator to paste elsewhere has a placeholder where a password goes."""
    urls = {"DB_URL": f"postgresql://immich:{SECRET}@database/immich", "REDIS_URL": f"redis://:{SECRET}@redis"}
    said = _program({**SECRETS, **urls, "IMMICH_VITALS_LISTEN_ADDRESS": "127.0.0.1:1"}, command)
    assert said
    assert found_in(said) == set()
