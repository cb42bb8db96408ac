"""All that an exporter can watch, each part real, and between it and the exporter what writes down or breaks."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from immich_vitals.demo.world import DATABASE, World
from support.docker_engine import IMAGE, Engine, why_not
from support.fault_proxy import Address
from support.granted import CHOSEN, ROLE, grant
from support.recorder import Recorder

PARTS = {
    "immich-server": "immich_server", "immich-machine-learning": "immich_machine_learning",
    "redis": "immich_redis", "database": "immich_postgres",
}  # fmt: skip
IN_FILES = ("database", "redis", "proxy")


@dataclass(frozen=True, slots=True)
class Everything:
    """A world, an engine, the settings with which an exporter watches them all, and `between`: what stands before
    `docker`, `postgres`, `redis`, `immich`, `proxy` and `machine_learning`, writes down and can break."""

    world: World
    engine: Engine
    between: Mapping[str, Recorder]
    environment: Mapping[str, str]


@contextmanager
def everything(world: World, engine: Engine, *options: str, command: str) -> Iterator[Everything]:
    """The world with the logins that `grants` prints, and a container for each part of a stock Immich, made with these
    further options and running this shell command."""
    granted = grant(world)
    for service, name in PARTS.items():
        kind = f"ghcr.io/immich-app/{service}:v2.7.5"
        engine.run("tag", IMAGE, kind)
        engine.start_container(
            name, "--label=com.docker.compose.project=immich", f"--label=com.docker.compose.service={service}",
            "--label=com.docker.compose.oneoff=False", f"--volume={world.media}:{world.media}",
            f"--volume={world.external}:{world.external}", *options, image=kind, command=command,
        )  # fmt: skip
    servers: Mapping[str, Address] = {
        "docker": str(engine.socket),
        "postgres": ("127.0.0.1", world.postgres.port),
        "redis": ("127.0.0.1", world.redis.port),
        "immich": world.web.immich.address,
        "proxy": world.web.proxy.address,
        "machine_learning": world.web.machine_learning.address,
    }
    with ExitStack() as ends:
        between = {name: ends.enter_context(Recorder(server)) for name, server in servers.items()}
        at = {name: f"127.0.0.1:{proxy.port}" for name, proxy in between.items()}
        settings = {
            **granted.environment,
            "DB_URL": f"postgresql://{ROLE}:{CHOSEN}@{at['postgres']}/{DATABASE}",
            "REDIS_URL": f"redis://{ROLE}:{CHOSEN}@{at['redis']}/0",
            "DOCKER_HOST": f"tcp://{at['docker']}",
            "IMMICH_VITALS_SERVER_URL": f"http://{at['immich']}",
            "IMMICH_VITALS_EXTERNAL_URL": f"http://{at['proxy']}",
            "IMMICH_VITALS_MACHINE_LEARNING_URL": f"http://{at['machine_learning']}",
            "IMMICH_VITALS_CONTAINER_USAGE_INTERVAL": "2s",
            # The logs of the others are read through Docker.
            "IMMICH_VITALS_LOG_FILES": ", ".join(f"{name}={world.logs.path(name)}" for name in IN_FILES),
            "PYTHONDONTWRITEBYTECODE": "1",  # as in the image, where all is compiled already
        }
        yield Everything(world, engine, between, settings)


def need_engine() -> None:
    """Skip the test where no Docker engine can be started."""
    if reason := why_not():
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
