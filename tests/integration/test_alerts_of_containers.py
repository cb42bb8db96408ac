"""End to end: what really happens to containers of a real Docker engine, and the alert that names it.

Each drill has a Compose project of its own with the four parts of a stock Immich, and an exporter that looks at that
project alone; all are broken at the same time. The rules are the shipped ones with shorter durations.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from support import alertmanager
from support.alertmanager import Alertmanager, Webhook
from support.docker_engine import IMAGE, Engine, EngineError, why_not
from support.exporter import Exporter
from support.inhibition import EXAMPLE
from support.prometheus import FAST, Prometheus, hurried_rules

pytestmark = pytest.mark.docker

IMAGES = {
    "immich-server": "ghcr.io/immich-app/immich-server:v2.7.5",
    "immich-machine-learning": "ghcr.io/immich-app/immich-machine-learning:v2.7.5",
    "database": "ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0",
    "redis": "valkey/valkey:9",
}
RUNS = "trap 'exit 0' TERM; while :; do sleep 5 & wait $!; done"
PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Project:
    """The containers of one Immich."""

    engine: Engine
    name: str

    def container(self, service: str) -> str:
        return f"{self.name}-{service}"

    def up(self, service: str, *options: str, command: str = RUNS, media: bool = True) -> None:
        """Make the container anew, and start it as far as it starts."""
        container = self.container(service)
        with suppress(EngineError):
            self.engine.run("rm", "-f", container)
        labels = (
            f"--label=com.docker.compose.project={self.name}",
            f"--label=com.docker.compose.service={service}",
            "--label=com.docker.compose.oneoff=False",
        )
        mount = (f"--volume={self.engine.folder}/photos:/data",) if service == "immich-server" and media else ()
        self.engine.create(
            container, *labels, "--restart=always", *mount, *options, command=command, image=IMAGES[service]
        )
        with suppress(EngineError):
            self.engine.run("start", container)

    def do(self, what: str, service: str) -> None:
        """`docker stop`, `pause`, ... of one container."""
        self.engine.run(*what.split(), self.container(service))

    def each(self, action: Callable[[str], None]) -> None:
        """The same to every service, one after the other."""
        for service in IMAGES:
            action(service)


@dataclass(frozen=True, slots=True)
class Drill:
    """What is done, and all that must be told of it."""

    inject: Callable[[Project], None]
    told: tuple[str, ...]


DRILLS = {
    "stopped": Drill(lambda project: project.do("stop", "redis"), ("ImmichContainerStopped",)),
    "paused": Drill(lambda project: project.do("pause", "database"), ("ImmichContainerPaused",)),
    "removed": Drill(lambda project: project.do("rm -f", "immich-server"), ("ImmichServiceMissing",)),
    "out-of-memory": Drill(
        lambda project: project.up(
            "immich-machine-learning", "--memory=16m", "--memory-swap=16m", command="sleep 2; tail /dev/zero; exit $?"
        ),
        ("ImmichContainerOOMKilled",),
    ),
    "illegal-instruction": Drill(
        lambda project: project.up("immich-machine-learning", command="sleep 1; sh -c 'kill -ILL $$'; exit $?"),
        ("ImmichIllegalInstruction",),
    ),
    "crashes": Drill(
        lambda project: project.up("immich-server", command="sleep 1; exit 1"),
        ("ImmichRestartLoop",),
    ),
    "gives-up": Drill(
        lambda project: project.up("immich-server", "--restart=no", command="sleep 2; exit 1"),
        ("ImmichContainerDown",),
    ),
    "cannot-start": Drill(
        lambda project: project.up("redis", "--device=/dev/not-there"),
        ("ImmichContainerDown",),
    ),
    "unhealthy": Drill(
        lambda project: project.up("immich-server", "--health-cmd=false", "--health-interval=1s", "--health-retries=1"),
        ("ImmichContainerUnhealthy",),
    ),
    "photos-inside": Drill(lambda project: project.up("immich-server", media=False), ("ImmichMediaNotMounted",)),
    "made-anew": Drill(lambda project: project.each(project.up), ()),
    "restarted": Drill(lambda project: project.each(partial(project.do, "restart")), ()),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, list[str]]]:
    """What was notified of each drill, first thing first."""
    reason = why_not()
    if reason is not None:
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("alerts-of-containers")
    rules = hurried_rules(folder / "rules")
    with ExitStack() as ends:
        webhook = ends.enter_context(Webhook())
        config = alertmanager.hurried(EXAMPLE.read_text(), webhook.url, group_wait="2s")
        server = ends.enter_context(Alertmanager(folder / "alertmanager", config))
        engine = ends.enter_context(Engine())
        for image in IMAGES.values():
            engine.run("tag", IMAGE, image)
        projects = {name: Project(engine, f"drill-{name}") for name in DRILLS}
        for project in projects.values():
            for service in IMAGES:
                project.up(service)
        instances = {}
        for name, project in projects.items():
            settings = {"DOCKER_HOST": engine.host, "IMMICH_VITALS_COMPOSE_PROJECT": project.name}
            exporter = ends.enter_context(Exporter({**settings, "IMMICH_VITALS_DISABLE": "host"}))
            instances[f"127.0.0.1:{exporter.port}"] = name
        prometheus = ends.enter_context(Prometheus(folder / "prometheus", rules, list(instances), server.address))
        _wait_until_calm(prometheus)
        before = len(webhook.heard())
        for name, drill in DRILLS.items():
            drill.inject(projects[name])

        def of(heard: list[tuple[str, Mapping[str, str]]]) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {name: [] for name in DRILLS}
            for receiver, alert in heard[before:]:
                if receiver != "dead-mans-switch":
                    found[instances[alert["instance"]]].append(alert["alertname"])
            return found

        webhook.wait_for(lambda heard: all(of(heard)[name] for name, drill in DRILLS.items() if drill.told), PATIENCE)
        webhook.wait_for(lambda heard: any(of(heard)[name] for name in ("made-anew", "restarted")), FAST.symptoms)
        yield of(webhook.heard())


def _wait_until_calm(prometheus: Prometheus) -> None:
    """Until everything is found and past its grace, and nothing fires or is about to. Raises `AssertionError`."""
    until = time.monotonic() + PATIENCE
    while (
        len(prometheus.query("immich_vitals_container_found == 1")) < len(DRILLS) * len(IMAGES)
        or prometheus.query("component:immich_vitals_container_grace:bool")
        or prometheus.query('ALERTS{alertname!="ImmichVitalsHeartbeat"}')
    ):
        assert time.monotonic() < until, prometheus.query('ALERTS{alertname!="ImmichVitalsHeartbeat"}')
        time.sleep(0.5)


@pytest.mark.parametrize("name", DRILLS)
def test_drill_is_told_by_its_alert_alone(told: Mapping[str, list[str]], name: str) -> None:
    """The first and only notification names what happened; what is no fault is not told at all."""
    assert told[name] == list(DRILLS[name].told)
