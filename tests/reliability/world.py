"""The whole exporter, all its collectors at work, and real servers, a real disk and a real Docker engine behind it,
each with something before it that breaks."""

import contextlib
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from immich_vitals.demo.servers import Postgres, Redis
from immich_vitals.demo.show import readings
from immich_vitals.demo.web import KEY, PERMISSIONS, Web
from immich_vitals.grants import grants_sql
from immich_vitals.vitals import Readings
from support import docker_engine, fuse
from support.docker_engine import IMAGE, Engine
from support.exporter import Exporter
from support.fault_proxy import FaultProxy
from support.fuse import SlowFolder
from support.stand_in import DATABASE, standing_in

SECONDS = 2.0  # Prometheus' time-out; the exporter takes half a second off
PATIENCE = 40.0
PARTS = {
    "immich_server": "ghcr.io/immich-app/immich-server:v2.7.5",
    "immich_machine_learning": "ghcr.io/immich-app/immich-machine-learning:v2.7.5",
    "immich_postgres": "ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0",
    "immich_redis": "docker.io/valkey/valkey:9",
}
# Each a line in the exporter's own view of /etc/hosts, while its server is there.
NAMES = {"postgres": "database.test", "redis": "redis.test", "probe": "immich.test"}
TIMERS = ("LIBRARY", "CONTAINER_USAGE", "VERSION", "STORAGE", "FILE", "PROBE", "BACKUP")
# What is 1 where nothing is wrong.
WELL = (
    "collector_success", "probe_success", "filesystem_responding", "filesystem_found", "storage_folder_present",
    "log_stream_up",
)  # fmt: skip


@dataclass
class World:
    """`docker` and `disk` are None where this machine can have no Docker engine, or mount nothing; then the exporter
    knows of neither. `hosts` is None where it cannot have names of its own."""

    exporter: Exporter
    proxies: Mapping[str, FaultProxy]
    postgres: Postgres
    redis: Redis
    web: Web
    media: Path
    environ: Mapping[str, str]
    client: httpx.Client
    docker: Engine | None
    disk: SlowFolder | None
    hosts: Path | None
    through: Sequence[str]
    said: Counter[str] = field(default_factory=Counter)

    def scrape(self, seconds: float = SECONDS) -> Readings:
        """What it says. It must answer in the time it was given."""
        return scrape(self.exporter, seconds, self.client)

    def settle(self) -> Readings:
        """Wait until nothing is wrong, and each line that was written into a log was counted, once."""
        last: list[str] = []

        def well() -> bool:
            seen.append(self.scrape(5))
            last[:] = self._faults(seen[-1])
            return not last

        seen: list[Readings] = []
        eventually(well, lambda: last)
        return seen[-1]

    def _faults(self, seen: Readings) -> list[str]:
        found = [f"{name} {dict(labels)} is 0" for name in WELL for labels, value in seen.of(name) if value != 1]
        found += [f"{name} is not there" for name in WELL if self._expects(name) and not seen.of(name)]
        if not seen.of("probe_success", probe="image", route="direct"):
            found.append("no photo is tried")
        for component, lines in self.said.items():
            counted = seen.one("log_lines_total", component=component)
            if counted != lines:
                found.append(f"{counted} lines of {component}, not {lines}")
        return found

    def _expects(self, name: str) -> bool:
        return self.docker is not None or name != "log_stream_up"

    def another(self, *flags: str, **settings: str) -> Exporter:
        """One more exporter, which may have further settings and flags."""
        return Exporter({**self.environ, **settings}, *flags, through=self.through)

    @property
    def connections(self) -> int:
        """Those that stand to what is behind the proxies."""
        return sum(proxy.connections for proxy in self.proxies.values())

    def say(self, *lines: str, container: str = "immich_server") -> None:
        """Let a container write these lines into its log."""
        assert self.docker is not None
        with (self.docker.folder / container).open("w", encoding="utf-8") as mouth:
            mouth.writelines(f"{line}\n" for line in lines)
        self.said[container.removeprefix("immich_")] += len(lines)

    @contextlib.contextmanager
    def unknown(self, service: str) -> Iterator[None]:
        """The host of a service is gone, and its name with it, as that of a container that is stopped."""
        assert self.hosts is not None
        proxy, before = self.proxies[service], self.hosts.read_text(encoding="utf-8")
        kept = [line for line in before.splitlines(keepends=True) if NAMES[service] not in line]
        self.hosts.write_text("".join(kept), encoding="utf-8")
        try:
            with proxy.refusing():
                yield
        finally:
            self.hosts.write_text(before, encoding="utf-8")


def scrape(exporter: Exporter, seconds: float = SECONDS, client: httpx.Client | None = None) -> Readings:
    """What an exporter says. It must answer in the time it was given."""
    began = time.monotonic()
    header = {"x-prometheus-scrape-timeout-seconds": str(seconds)}
    get = client.get if client is not None else httpx.get
    answer = get(exporter.url("/metrics"), headers=header, timeout=seconds + 5)
    assert time.monotonic() - began < seconds, "Prometheus would have given up"
    return Readings(readings(answer.text))


def eventually(true: Callable[[], object], what: Callable[[], object] = str, seconds: float = PATIENCE) -> None:
    """Wait until it is true; fails after `seconds` and says `what` there is instead."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"did not become true: {what()}"
        time.sleep(0.05)


def successes(seen: Readings) -> dict[str, bool]:
    return {labels["collector"]: value == 1 for labels, value in seen.of("collector_success")}


def failed(seen: Readings, before: Readings) -> dict[str, set[str]]:
    """The reasons for which each collector failed between two scrapes."""
    found: dict[str, set[str]] = {}
    for labels, value in seen.of("collector_failures_total"):
        if value > (before.one("collector_failures_total", **labels) or 0):
            found.setdefault(labels["collector"], set()).add(labels["reason"])
    return found


@contextlib.contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """A world in an empty folder that Postgres' user may enter."""
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres", 16))
        redis = stack.enter_context(Redis(folder / "redis"))
        immich = stack.enter_context(standing_in(postgres, folder))
        immich.web.immich.permissions = PERMISSIONS
        with postgres.connect(DATABASE) as admin, redis.client() as keeper:
            admin.execute(grants_sql(DATABASE, "watcher").encode())
            admin.execute("ALTER ROLE watcher PASSWORD 'x'")
            keeper.acl_setuser("watcher", enabled=True, passwords=["+x"], categories=["+@all"], keys=["*"])
        point, disk = immich.media, None
        if fuse.why_not() is None:
            point = folder / "mounted"
            disk = stack.enter_context(SlowFolder(immich.media, point))
        proxies = {
            "postgres": FaultProxy(("127.0.0.1", postgres.port)),
            "redis": FaultProxy(("127.0.0.1", redis.port)),
            "probe": FaultProxy(immich.web.immich.address),
        }
        docker = None
        if docker_engine.why_not() is None:
            docker = stack.enter_context(Engine())
            start_parts(docker, immich.media)
            proxies["docker"] = FaultProxy(str(docker.socket), docker.folder / "p.sock")
        for proxy in proxies.values():
            stack.enter_context(proxy)
        through, hosts = names_of_its_own(folder)
        host = {service: name if hosts else "127.0.0.1" for service, name in NAMES.items()}
        environ = {
            "DB_HOSTNAME": host["postgres"],
            "DB_PORT": str(proxies["postgres"].port),
            "DB_DATABASE_NAME": DATABASE,
            "DB_USERNAME": "watcher",
            "DB_PASSWORD": "x",
            "REDIS_HOSTNAME": host["redis"],
            "REDIS_PORT": str(proxies["redis"].port),
            "REDIS_USERNAME": "watcher",
            "REDIS_PASSWORD": "x",
            "IMMICH_VITALS_MEDIA_PATH": str(point),
            "IMMICH_VITALS_TMP_PATH": str(folder),
            "IMMICH_VITALS_PATH_MAP": f"{immich.media}={point}",
            "IMMICH_VITALS_FILE_WAKES_DISKS": "true",
            "IMMICH_VITALS_FILE_RATE": "2000",
            "IMMICH_VITALS_SERVER_URL": f"http://{host['probe']}:{proxies['probe'].port}",
            "IMMICH_VITALS_EXTERNAL_URL": immich.web.proxy.url,
            "IMMICH_VITALS_MACHINE_LEARNING_URL": immich.web.machine_learning.url,
            "IMMICH_VITALS_API_KEY": KEY,
            "DOCKER_HOST": f"unix://{docker.folder / 'p.sock'}" if docker else "",
            "IMMICH_VITALS_DISABLE": "" if docker else "container, container_usage, log",
            **{f"IMMICH_VITALS_{timer}_INTERVAL": "1s" for timer in TIMERS},
        }
        exporter = stack.enter_context(Exporter(environ, through=through))
        client = stack.enter_context(httpx.Client())
        yield World(
            exporter, proxies, postgres, redis, immich.web, immich.media, environ, client, docker, disk, hosts, through
        )


def start_parts(engine: Engine, media: Path) -> None:
    """The containers of a stock Immich, each of which writes into its log what is written into its pipe."""
    for name, image in PARTS.items():
        os.mkfifo(engine.folder / name)
        engine.run("tag", IMAGE, image)
        engine.start_container(
            name, f"--volume={engine.folder / name}:/mouth", f"--volume={media}:{media}",
            f"--env=IMMICH_MEDIA_LOCATION={media}", command="exec cat 0<>/mouth", image=image,
        )  # fmt: skip


def names_of_its_own(folder: Path) -> tuple[Sequence[str], Path | None]:
    """A command that gives another one a view of /etc/hosts of its own, and that file; no file where it cannot."""
    if fuse.why_not() is not None or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return (), None
    hosts, order = folder / "hosts", folder / "nsswitch.conf"
    hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *NAMES.values())), encoding="utf-8")
    order.write_text("hosts: files\n", encoding="utf-8")
    script = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(hosts), str(order)), hosts


@contextlib.contextmanager
def each_second(fault: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """The fault, put in and taken out every second, beginning with it."""
    ended = threading.Event()

    def flap() -> None:
        while not ended.is_set():
            with fault():
                ended.wait(1.0)
            ended.wait(1.0)

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
