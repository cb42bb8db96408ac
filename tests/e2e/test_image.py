"""The image, built by the Dockerfile and started by a real Docker engine.

Its base cannot be pulled here, and is a stand-in: Debian 13 as in python:3.13-slim, with Debian's own Python 3.13 in
/usr/bin where the other has one in /usr/local/bin; see `images.import_base`. All above the base is as people get it.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import immich_vitals
from immich_vitals.collectors import COLLECTORS
from immich_vitals.demo.servers import free_port
from immich_vitals.demo.world import World
from support.docker_engine import IMAGE as BUSYBOX
from support.docker_engine import Engine, EngineError

ROOT = Path(__file__).parents[2]
IMAGE = "immich-vitals"
LIMIT = 96 * 2**20
# What `docker stop` of a container with this option does not end in 2 s is killed, with exit code 137.
STOPS = "--stop-timeout=2"
QUICK = "--health-interval=1s"  # the command, the retries and the time-out are the image's own
FETCH = "import urllib.request as u; print(u.urlopen('http://localhost:12283{}').read().decode())"
PARTS = {
    "immich-server": "immich_server", "immich-machine-learning": "immich_machine_learning",
    "redis": "immich_redis", "database": "immich_postgres",
}  # fmt: skip
PATIENCE = 60.0

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine(image: Path) -> Iterator[Engine]:
    with Engine() as started:
        started.run("load", "--input", str(image))
        yield started
        started.remove_containers()


@pytest.fixture(scope="module")
def bare(engine: Engine) -> Engine:
    """With a container `bare` for which nothing at all is configured."""
    engine.run("run", "--detach", "--name=bare", "--network=none", STOPS, QUICK, IMAGE)
    engine.wait_until("bare", "{{.State.Health.Status}}", "healthy")
    return engine


def fetch(engine: Engine, path: str) -> str:
    return engine.run("exec", "bare", "python3", "-c", FETCH.format(path))


def test_serves_with_nothing_configured(bare: Engine) -> None:
    """It starts, is healthy by its own health check, has metrics of the machine, and a page that says what to set."""
    assert "immich_vitals_collector_enabled" in fetch(bare, "/metrics")
    page = fetch(bare, "/")
    assert "Set DB_HOSTNAME" in page or "set DB_HOSTNAME" in page
    assert "host" in bare.run("exec", "bare", "immich-vitals", "check")
    assert bare.value("bare", "{{.RestartCount}} {{.State.OOMKilled}}") == "0 false"


def test_stops_at_once(bare: Engine) -> None:
    """`docker stop` ends it in less than two seconds, with exit code 0. One that lost its listener is unhealthy."""
    bare.run("run", "--detach", "--name=short", "--network=none", STOPS, QUICK, IMAGE)
    bare.wait_until("short", "{{.State.Health.Status}}", "healthy")
    bare.run("stop", "short")
    assert bare.value("short", "{{.State.ExitCode}}") == "0"
    with pytest.raises(EngineError, match="unhealthy"):
        bare.run("run", "--rm", "--network=none", IMAGE, "healthcheck")


def test_says_what_it_is(engine: Engine) -> None:
    """Labels, user, port and health check are in the image; the version is the package's."""
    config = json.loads(engine.run("image", "inspect", IMAGE))[0]["Config"]
    assert config["Labels"] == {
        "org.opencontainers.image.title": "immich-vitals",
        "org.opencontainers.image.description": "Vital signs for Immich, for Prometheus",
        "org.opencontainers.image.source": "https://github.com/immich-vitals/immich-vitals",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": immich_vitals.__version__,
    }
    assert (config["User"], list(config["ExposedPorts"])) == ("65532:65532", ["12283/tcp"])
    assert config["Healthcheck"]["Test"] == ["CMD", "immich-vitals", "healthcheck"]
    said = engine.run("run", "--rm", "--network=none", IMAGE, "--version")
    assert said == f"immich-vitals {immich_vitals.__version__}"


def test_nothing_to_build_or_install_with(engine: Engine) -> None:
    """Neither pip nor a compiler nor tests; in /app there is what the package needs, at the tested versions."""
    listing = engine.run("run", "--rm", "--user=0", "--network=none", "--entrypoint=find", IMAGE, "/", "-xdev")
    files = set(listing.splitlines())
    names = {path.rpartition("/")[2] for path in files}
    assert not names & {"pip", "pip3", "ensurepip", "gcc", "cc", "c++", "ld", "make", "pytest", "conftest.py", "tests"}
    assert not [name for name in names if name.startswith("pip-")]
    installed = {
        found[1].lower().replace("_", "-"): found[2]
        for path in files
        if (found := re.fullmatch(r"/app/lib/.*/site-packages/([^/]+)-([^/-]+)\.dist-info", path))
    }
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert installed.pop("immich-vitals") == immich_vitals.__version__
    assert installed.items() <= pins.items()
    assert {"psycopg-binary", "uvicorn", "redis"} <= set(installed)
    assert not {"mypy", "pillow", "httpx", "docker"} & set(installed)
    assert "/app/lib/python3.13/site-packages/immich_vitals/bundle/rules/queue.rules.yml" in files


def test_everything_enabled_within_96_mib(engine: Engine) -> None:
    """Without a writable root, capabilities, new privileges or a user that exists, and with 96 MiB, every collector
    answers and keeps answering; nothing is killed and nothing swapped out."""
    for service, name in PARTS.items():
        kind = f"ghcr.io/immich-app/{service}:v2.7.5"
        engine.run("tag", BUSYBOX, kind)
        engine.start_container(
            name, "--label=com.docker.compose.project=immich", f"--label=com.docker.compose.service={service}",
            "--label=com.docker.compose.oneoff=False", image=kind, command="while :; do echo alive; sleep 1; done",
        )  # fmt: skip
    engine.socket.chmod(0o666)  # elsewhere a proxy or a group of the host's gives the right
    port = free_port()
    with World(feed_every=1.0) as world:
        settings = {
            **world.environment(), "DOCKER_HOST": engine.host, "IMMICH_VITALS_LISTEN_ADDRESS": f"127.0.0.1:{port}",
            "IMMICH_VITALS_STATE_PATH": "/state", "IMMICH_VITALS_FILE_AUDIT": "true",
        }  # fmt: skip
        engine.run(
            "run", "--detach", "--name=full", "--network=host", STOPS, QUICK,
            "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=65532:65532",
            "--memory=96m", "--memory-swap=96m", "--volume=/state", f"--volume={world.folder}:{world.folder}:ro",
            f"--volume={engine.socket}:{engine.socket}",
            *(f"--env={name}={value}" for name, value in settings.items()), IMAGE,
        )  # fmt: skip
        succeeded = succeed(port)
        assert set(succeeded) == {kind.name for kind in COLLECTORS}
        assert set(succeeded.values()) == {1.0}, engine.run("exec", "full", "immich-vitals", "check")
        for _ in range(30):
            assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).status_code == 200
        status = Path(f"/proc/{engine.value('full', '{{.State.Pid}}')}/status").read_text()
        told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(told["VmHWM"].split()[0]) * 1024 < LIMIT
        assert (told["VmSwap"].split()[0], told["CapEff"], told["NoNewPrivs"]) == ("0", "0000000000000000", "1")
        assert told["Uid"].split() == ["65532"] * 4
        engine.wait_until("full", "{{.State.Health.Status}}", "healthy")
        assert engine.value("full", "{{.State.OOMKilled}} {{.RestartCount}} {{.State.Running}}") == "false 0 true"
        with pytest.raises(EngineError, match="Read-only file system"):
            engine.run("exec", "full", "touch", "/app/x")
        engine.run("stop", "full")
        assert engine.value("full", "{{.State.ExitCode}}") == "0"


def succeed(port: int) -> dict[str, float]:
    """Whether each enabled collector answered, once all have had their say and none complains, or after a while."""
    until = time.monotonic() + PATIENCE
    found: dict[str, float] = {}
    while time.monotonic() < until and (not found or set(found.values()) != {1.0} or len(found) < len(COLLECTORS)):
        time.sleep(0.2)
        try:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        except httpx.HTTPError:
            continue
        found = {
            sample.labels["collector"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "immich_vitals_collector_success"
        }
    return found


def test_the_script_of_sizes(engine: Engine) -> None:
    """`make image-size` finds our layer and what is in it."""
    done = subprocess.run(
        [str(ROOT / "scripts" / "image-size"), IMAGE, "--dry-run"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "DOCKER_HOST": engine.host},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| psycopg-binary +\|", done.stdout, re.MULTILINE)
