"""What is soaked: the exporter, all its collectors on, and what it reads behind the proxies of the tests."""

import contextlib
import http.client
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from prometheus_client.parser import text_string_to_metric_families

from bench.measure import memory
from immich_vitals.demo.world import DATABASE, World
from immich_vitals.grants import PASSWORD, grants_sql, redis_acl
from immich_vitals.settings import OWN
from immich_vitals.signatures import Catalogue
from support.docker_engine import Engine
from support.exporter import Exporter
from support.fault_proxy import FaultProxy

LOGIN = "watcher"
HEAL_SECONDS = 300.0
AT_SCRAPE = frozenset(("container", "log", "host", "filesystem", "postgres", "queue", "redis"))
IMAGES = {
    "immich_server": ("immich-server", "server"),
    "immich_machine_learning": ("immich-machine-learning", "machine_learning"),
    "immich_postgres": ("database", "database"),
    "immich_redis": ("redis", "redis"),
}
# A container whose log is written in bursts and rotated by the engine several times a minute.
BURSTS = """
while :; do
  i=0; while [ $i -lt 300 ]; do echo "INFO     Setting up the model, step $i"; i=$((i+1)); done
  sleep 1
done
"""
ROTATED = ("--log-driver=json-file", "--log-opt", "max-size=64k", "--log-opt", "max-file=2")


@dataclass(frozen=True, slots=True)
class Held:
    """What the exporter's process holds after so many scrapes; all faults rest at that moment."""

    scrapes: int
    resident: int
    threads: int
    descriptors: int
    connections: int
    sessions: int
    clients: int
    series: int


class Rig:
    """The exporter, all its collectors on, and what it reads behind proxies."""

    def __init__(self, ends: ExitStack) -> None:
        self.engine = ends.enter_context(Engine())
        for name, (service, _) in IMAGES.items():
            labels = ("com.docker.compose.project=immich", f"com.docker.compose.service={service}")
            self.engine.start_container(
                name, *(word for label in labels for word in ("--label", label)), *ROTATED,
                command=BURSTS if service == "immich-machine-learning" else "exec sleep 100000",
            )  # fmt: skip
        self.world = ends.enter_context(World(1.0))
        self._grant()
        web = self.world.web
        sockets = self.engine.folder / "proxy.sock"
        self.proxies = {
            "docker": FaultProxy(str(self.engine.socket), sockets),
            "postgres": FaultProxy(("127.0.0.1", self.world.postgres.port)),
            "redis": FaultProxy(("127.0.0.1", self.world.redis.port)),
            "server": FaultProxy(web.immich.address),
            "machine learning": FaultProxy(web.machine_learning.address),
        }
        for proxy in self.proxies.values():
            ends.enter_context(proxy)
        self.server_log = self.world.logs.path("server")
        self.lines = _lines()
        self.exporter = ends.enter_context(Exporter(self._environment(sockets)))

    def _grant(self) -> None:
        """Make the logins with the least rights; the demo's Postgres asks nobody for a password."""
        with self.world.connect() as admin:
            admin.execute(grants_sql(DATABASE, LOGIN).encode())
        with self.world.redis.client() as keeper:
            keeper.execute_command(*redis_acl(LOGIN).split())

    def _environment(self, docker: Path) -> dict[str, str]:
        def port(name: str) -> int:
            return self.proxies[name].port

        logs = self.world.environment()[OWN + "LOG_FILES"].split(", ")
        return {
            **self.world.environment(),
            "DB_URL": f"postgresql://{LOGIN}:{PASSWORD}@127.0.0.1:{port('postgres')}/{DATABASE}",
            "REDIS_URL": f"redis://{LOGIN}:{PASSWORD}@127.0.0.1:{port('redis')}/0",
            "DOCKER_HOST": f"unix://{docker}",
            OWN + "SERVER_URL": f"http://127.0.0.1:{port('server')}",
            OWN + "MACHINE_LEARNING_URL": f"http://127.0.0.1:{port('machine learning')}",
            OWN + "LOG_FILES": ", ".join(each for each in logs if not each.startswith("machine_learning=")),
            OWN + "CONTAINER_USAGE_INTERVAL": "2s",
            OWN + "FILE_AUDIT": "true",
        }

    def scrape(self, seconds: float = 10.0) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.exporter.port, timeout=seconds + 5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": str(seconds)})
            return connection.getresponse().read().decode()

    def healed(self, only: frozenset[str] | None = None) -> tuple[str, tuple[str, ...]]:
        """The first scrape in which all collectors, or only these, succeed; what still fails when none does in time."""
        until = time.monotonic() + HEAL_SECONDS
        while True:
            text = self.scrape()
            failing = _failing(text, only)
            if not failing or time.monotonic() > until:
                return text, failing
            time.sleep(0.1)

    def held(self, scrapes: int) -> Held:
        """What the process holds; the collectors of a scrape have answered just now."""
        text, failing = self.healed(AT_SCRAPE)
        if failing:
            raise TimeoutError(f"{', '.join(failing)} did not recover in {HEAL_SECONDS:.0f} s")
        process = Path(f"/proc/{self.exporter.pid}")
        descriptors = [_target(each) for each in (process / "fd").iterdir()]
        with self.world.postgres.connect() as admin, self.world.redis.client() as keeper:
            row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (LOGIN,)).fetchone()
            clients = sum(client["user"] == LOGIN for client in keeper.client_list())
        return Held(
            scrapes=scrapes,
            resident=memory(self.exporter.pid).resident,
            threads=len(list((process / "task").iterdir())),
            descriptors=len(descriptors),
            connections=sum(each.startswith("socket:") for each in descriptors),
            sessions=int(str(row and row[0])),
            clients=clients,
            series=sum(1 for line in text.splitlines() if line and not line.startswith("#")),
        )

    def runs(self) -> int:
        """How often the collector `redis` has asked, as Redis counts it."""
        with self.world.redis.client() as keeper:
            found: Mapping[str, Mapping[str, int]] = keeper.info("commandstats")
        return found.get("cmdstat_info", {}).get("calls", 0)


def _lines() -> tuple[str, ...]:
    """Lines of a server: most are healthy, every twentieth has a signature."""
    catalogue = Catalogue.load()
    bad = [line for entry in catalogue.entries if "server" in entry.components for line in entry.matches[:1]]
    healthy = [line for line in catalogue.healthy["server"] for _ in range(20)]
    return tuple(healthy + bad)


def _failing(text: str, only: frozenset[str] | None) -> tuple[str, ...]:
    """The collectors that are on and did not succeed; without `only` also the streams that do not stand."""
    found = []
    enabled: set[str] = set()
    succeeded: set[str] = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "immich_vitals_collector_enabled" and sample.value:
                enabled.add(sample.labels["collector"])
            elif sample.name == "immich_vitals_collector_success" and sample.value:
                succeeded.add(sample.labels["collector"])
            elif sample.name.endswith("_stream_up") and not sample.value and only is None:
                found.append(" ".join((sample.name, *sample.labels.values())))
    return (*sorted((enabled if only is None else only) - succeeded), *found)


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # closed since it was listed
        return ""
