"""`python -m bench [--assets N] [--scrapes N]`: measure, print, and write docs/benchmarks.md."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from psycopg import sql

from bench import engine, logs, peers, report
from bench.counters import Counted, PostgresLog, redis_commands
from bench.library import TABLES, add_assets, add_users
from bench.measure import Scraped, cpu_seconds, memory, wait_for_port
from bench.report import Cost, Part, Refresh, Result
from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.photos import FOLDERS
from immich_vitals.demo.queues import PREFIX, create_queues, queue_names
from immich_vitals.demo.schema import Connection, create_schema
from immich_vitals.demo.scratch import Scratch, environment
from immich_vitals.demo.servers import Postgres, Redis, free_port
from immich_vitals.demo.web import Web
from immich_vitals.demo.world import DATABASE
from immich_vitals.settings import SETTINGS
from immich_vitals.sources.library import LIMITS

WARM_UP = 5
COUNTED_SCRAPES = 10
START_SECONDS = 120.0
REFRESHES = 3  # of the library, which are waited for to be counted
DURATION = 'immich_vitals_collector_duration_seconds{collector="library"}'
LINE = 150  # characters of a line of the plan that are shown
PAUSE = 0.1  # seconds between two rounds of scrapes


def main() -> int:
    options = _parser().parse_args()
    with Scratch("bench-") as scratch, ExitStack() as ends:
        servers = Servers(scratch.path, ends)
        result = Result(machine=report.machine(), versions=servers.versions(), missing=peers.missing())
        result.no_docker = engine.why_not() if servers.docker is None else None
        previous = 0
        for assets in (options.assets // 10, options.assets):
            _say(f"making a library of {assets:,} assets")
            with servers.postgres.connect(DATABASE) as connection:
                add_assets(connection, previous + 1, assets)
            previous = assets
            _say(f"counting queries, commands and requests with {assets:,} assets")
            result.counted[assets], result.refreshes[assets] = count(servers)
        _say(f"scraping {options.scrapes} times, then {options.idle} s without scrapes")
        measure(servers, result, options.scrapes, options.idle)
        if options.lines:
            _say(f"following a log of {options.lines:,} lines")
            result.logs = logs.measure(servers.folder / "logs", options.lines)
        if options.largest > options.assets:
            _say(f"making it {options.largest:,} assets and waiting for a refresh; this takes some minutes")
            with servers.postgres.connect(DATABASE) as connection:
                add_assets(connection, options.assets + 1, options.largest)
            result.counted[options.largest], result.refreshes[options.largest] = count(servers)
    text = report.markdown(result, options.assets, options.scrapes, options.idle)
    sys.stdout.write(text)
    if not options.dry_run:
        soak = report.keep(report.SOAK)
        report.PAGE.write_text(f"{text}\n{soak}" if soak else text, encoding="utf-8")
    return 0


class Servers:
    """Postgres with an empty Immich database, Redis with the queues and their workers, Docker where it can be."""

    def __init__(self, folder: Path, ends: ExitStack) -> None:
        self.folder = folder
        self.postgres = ends.enter_context(
            Postgres(
                folder / "postgres",
                settings={
                    "fsync": "off", "shared_buffers": "'512MB'", "max_wal_size": "'2GB'", "autovacuum": "off",
                    "log_line_prefix": "'app=%a|'",
                },
            )
        )  # fmt: skip
        with self.postgres.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with self.postgres.connect(DATABASE) as connection:
            create_schema(connection, vector_indexes=False)
            add_users(connection)
        self.redis = ends.enter_context(Redis(folder / "redis"))
        with self.redis.client() as client:
            create_queues(client)
        for queue in queue_names():
            self._worker(queue, ends)
        self.media = folder / "media"
        for name in FOLDERS:
            (self.media / name).mkdir(parents=True)
            (self.media / name / ".immich").touch()
        self.state = folder / "state"
        self.state.mkdir()
        with self.postgres.connect(DATABASE) as connection:
            owner = connection.execute('SELECT id FROM "user" ORDER BY id LIMIT 1').fetchone()
        self.web = ends.enter_context(Web(lambda: self.postgres.connect(DATABASE), str(owner and owner[0])))
        self.docker: Path | None = None
        if engine.why_not() is None:
            self.docker = ends.enter_context(engine.engine(folder / "docker"))

    def _worker(self, queue: str, ends: ExitStack) -> None:
        """A named connection that blocks for ever, so that it adds nothing to what we count."""
        client = ends.enter_context(self.redis.client(single_connection_client=True))
        client.client_setname(f"{PREFIX}:{report.base64(queue)}")
        client.connection.send_command("BZPOPMIN", f"{PREFIX}:{queue}:marker", 0)

    def versions(self) -> dict[str, str]:
        with self.postgres.connect() as connection, self.redis.client() as client:
            found = {
                "Postgres": str(connection.info.parameter_status("server_version")),
                "Redis": str(client.info("server")["redis_version"]),
            }
        if self.docker is not None:
            asked = subprocess.run(["dockerd", "--version"], capture_output=True, text=True, check=True)
            found["Docker"] = asked.stdout.split()[2].rstrip(",")
        return {**found, **peers.versions()}


@contextmanager
def exporter(servers: Servers, docker: Path | None, **settings: str) -> Iterator[Scraped]:
    """`immich-vitals serve` with everything switched on, in a process of its own, ready."""
    port = free_port()
    environ = {
        **environment(),
        "DB_URL": f"postgresql://postgres@127.0.0.1:{servers.postgres.port}/{DATABASE}",
        "REDIS_URL": f"redis://127.0.0.1:{servers.redis.port}/0",
        "IMMICH_MEDIA_LOCATION": str(servers.media),
        "IMMICH_VITALS_DATABASE_PATH": str(servers.postgres.data),
        "IMMICH_VITALS_STATE_PATH": str(servers.state),
        **{name: value for name, value in servers.web.environment().items() if not name.endswith("_INTERVAL")},
        "DOCKER_HOST": f"unix://{docker or servers.folder / 'no-docker.sock'}",
        "IMMICH_VITALS_LOG_LEVEL": "error",
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "immich_vitals", "serve", f"--web.listen-address=127.0.0.1:{port}"],
        cwd=servers.folder, env=environ, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_port(port)
        ours = Scraped("immich-vitals", process.pid, port)
        wait_for_all(ours)
        for _ in range(WARM_UP):
            ours.scrape()
        yield ours
    finally:
        process.terminate()
        process.wait()


def wait_for_all(ours: Scraped) -> None:
    """Until every collector that is enabled has had its first run. Raises `TimeoutError`."""
    until = time.monotonic() + START_SECONDS
    while True:
        ours.scrape()
        names = re.findall(r'immich_vitals_collector_enabled\{collector="(\w+)"\} 1', ours.text)
        if all(ours.value(f'immich_vitals_collector_success{{collector="{name}"}}') is not None for name in names):
            return
        if time.monotonic() > until:
            raise TimeoutError("a collector did not end its first run; `immich-vitals check` says which")
        time.sleep(0.5)


def count(servers: Servers) -> tuple[Counted, Refresh]:
    """What one scrape and one refresh of the library ask for."""
    log = PostgresLog(servers.postgres)
    with ExitStack() as inner:
        proxy = None
        if servers.docker is not None:
            path = servers.folder / f"proxy-{time.monotonic_ns()}.sock"
            proxy = inner.enter_context(engine.CountingProxy(path, servers.docker))
        inner.enter_context(log.all_statements())
        timers = [setting.name for setting in SETTINGS if setting.name.endswith("_INTERVAL")]
        rare = dict.fromkeys(timers, "1h")  # what runs beside a scrape is not part of it
        with exporter(servers, proxy.path if proxy else None, **rare) as ours:
            statements, commands, requests = (
                log.mark(),
                redis_commands(servers.redis),
                len(proxy.requests) if proxy else 0,
            )
            for _ in range(COUNTED_SCRAPES):
                ours.scrape()
            asked = log.since(statements)
            counted = Counted(
                messages=len(asked) / COUNTED_SCRAPES,
                statements=sum(len(message) for message in asked) / COUNTED_SCRAPES,
                commands=(redis_commands(servers.redis) - commands - 1) / COUNTED_SCRAPES,  # the look itself is one
                requests=(len(proxy.requests) - requests) / COUNTED_SCRAPES if proxy else None,
                series=ours.series,
                bytes_sent=ours.bytes_sent,
            )
        others = ",".join(collector.name for collector in COLLECTORS if collector.name != "library")
        often = {"IMMICH_VITALS_LIBRARY_INTERVAL": "1s", "IMMICH_VITALS_DISABLE": others}
        with exporter(servers, None, **often) as ours:
            took = ours.value(DURATION) or 0.0
            pause = (REFRESHES if took < 1 else 1) * 50 * took  # the collector's interval stretches itself
            position, began = log.mark(), cpu_seconds(ours.pid)
            time.sleep(max(REFRESHES, pause))
            asked, spent = log.since(position), cpu_seconds(ours.pid) - began
            ours.scrape()
            seconds = ours.value(DURATION)
    passes = [statement for message in asked for statement in message if "GROUP BY" in statement.upper()]
    if not passes or seconds is None:
        raise RuntimeError("the library was not refreshed; its collector says why: immich-vitals check")
    with servers.postgres.connect(DATABASE) as connection:
        plan, blocks = _explained(connection, passes[-1])
        pages = _pages(connection)
    return counted, Refresh(
        statements=sum(len(message) for message in asked) / len(passes),
        seconds=seconds, cpu=spent / len(passes), blocks=blocks, pages=pages, plan=plan,
    )  # fmt: skip


def _explained(connection: Connection, statement: str) -> tuple[str, int]:
    """The plan as people read it, and how many blocks its run touched."""
    with connection.transaction():
        connection.execute(LIMITS)
        rows = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}").fetchall()
        found = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").fetchone()
    if found is None or not isinstance(found[0], list):
        raise RuntimeError("EXPLAIN gave no plan")
    top = found[0][0]["Plan"]
    return "\n".join(str(row[0])[:LINE] for row in rows), top["Shared Hit Blocks"] + top["Shared Read Blocks"]


def _pages(connection: Connection) -> dict[str, int]:
    """Blocks of each table that the refresh could read."""
    rows = connection.execute(
        "SELECT relname, pg_relation_size(oid) / 8192 FROM pg_class WHERE relname = ANY(%s) AND relkind = 'r'",
        (list(TABLES),),
    ).fetchall()
    return {str(name): int(str(pages)) for name, pages in rows}


def measure(servers: Servers, result: Result, scrapes: int, idle: float) -> None:
    """Scrape the exporter and its peers in turn, equally often; then let all of them be for a while."""
    with (
        exporter(servers, servers.docker) as ours,
        peers.running(servers.folder / "peers", servers.postgres, servers.redis) as others,
    ):
        everyone = [ours, *others]
        for _ in range(WARM_UP):
            for one in everyone:
                one.scrape()
        began = time.monotonic()
        for one in everyone:
            one.begin()
        for _ in range(scrapes):
            for one in everyone:
                one.scrape()
            time.sleep(PAUSE)
        scraping, took = {one.name: cpu_seconds(one.pid) for one in everyone}, time.monotonic() - began
        per_scrape = {one.name: one.cpu_per_scrape for one in everyone}
        time.sleep(idle)
        for one in everyone:
            at_rest = (cpu_seconds(one.pid) - scraping[one.name]) / idle
            result.costs.append(
                Cost(
                    name=one.name,
                    scrape=max(0.0, per_scrape[one.name] - at_rest * took / scrapes),
                    at_rest=at_rest,
                    memory=memory(one.pid),
                    median=one.quantile(0.5),
                    p95=one.quantile(0.95),
                    longest=one.quantile(1.0),
                    series=one.series,
                    bytes_sent=one.bytes_sent,
                )
            )
        result.parts = [
            Part(name, ours.value(f'immich_vitals_collector_duration_seconds{{collector="{name}"}}'))
            for name in _collectors(ours.text)
        ]


def _collectors(text: str) -> list[str]:
    start = 'immich_vitals_collector_duration_seconds{collector="'
    return [line[len(start) :].split('"')[0] for line in text.splitlines() if line.startswith(start)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--assets", type=int, default=100_000, help="size of the library; a tenth is measured, too")
    parser.add_argument(
        "--largest", type=int, default=1_000_000, help="a library whose refresh is measured as well; 0 for none"
    )
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to measure without scrapes")
    parser.add_argument("--lines", type=int, default=logs.LINES, help="lines of a log to follow; 0 for none")
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/benchmarks.md")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
