"""Containers that are stopped, killed, crash, or are not there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import PING, Instead, Machine

SERVER, LEARNING = "immich-server", "immich-machine-learning"


def stopped(container: str) -> Injection:
    """`docker stop`, as somebody does who forgets about it."""
    return done(f"stop {container}", f"start {container}")


def done(does: str, undoes: str) -> Injection:
    """`docker` with these words, and with those to undo it."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.docker(does)
        yield
        machine.docker(undoes)
        machine.wait_until_up()

    return inject


def paused(container: str) -> Injection:
    """`docker pause`, as a backup that was cut off leaves it."""
    return done(f"pause {container}", f"unpause {container}")


def changed(service: str, change: Mapping[str, object]) -> Injection:
    """The service made anew with this in its part of the Compose file."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        with machine.changed(service, change):
            yield

    return inject


def runs(service: str, script: str, **more: object) -> Injection:
    """The container runs this in place of its program."""
    return changed(service, {"entrypoint": ["/bin/sh", "-c", script.replace("$", "$$")], **more})


@contextmanager
def removed(machine: Machine) -> Iterator[None]:
    """`docker compose rm`, as after a typing error in the Compose file."""
    machine.immich(f"rm --stop --force {SERVER}")
    yield
    machine.immich(f"up -d --no-deps {SERVER}")
    machine.wait_until_up()


@contextmanager
def vitals_without_docker(machine: Machine) -> Iterator[None]:
    """The filtering proxy before Docker's socket is gone."""
    machine.vitals("stop docker-proxy")
    yield
    machine.vitals("start docker-proxy")


@contextmanager
def vitals_stopped(machine: Machine) -> Iterator[None]:
    machine.vitals("stop exporter")
    yield
    machine.vitals("start exporter")


DRILLS = {
    "redis-stopped": Drill(
        "`docker stop immich_redis`.", stopped("immich_redis"), ("ImmichRedisDown",), ("ImmichContainerStopped",)
    ),
    "database-stopped": Drill(
        "`docker stop immich_postgres`.",
        stopped("immich_postgres"),
        ("ImmichPostgresDown",),
        ("ImmichContainerStopped", "ImmichImageLoadFailing"),
    ),
    "server-stopped": Drill(
        "`docker stop immich_server`.",
        stopped("immich_server"),
        ("ImmichContainerStopped",),
    ),
    "machine-learning-stopped": Drill(
        "`docker stop immich_machine_learning`.",
        stopped("immich_machine_learning"),
        ("ImmichContainerStopped",),
        ("ImmichMachineLearningUnreachable",),
    ),
    "server-removed": Drill("The server's container is removed.", removed, ("ImmichServiceMissing",)),
    "server-paused": Drill(
        "`docker pause immich_server`.",
        paused("immich_server"),
        ("ImmichContainerPaused",),
        # Docker says of what was paused that it is unhealthy, until its next check: soon, as all is here.
        prepare=changed(
            SERVER,
            {"healthcheck": {"test": ["CMD", "python3", "-c", PING], "interval": "2s", "timeout": "20s"}},
        ),
    ),
    "server-crashes": Drill(
        "The server ends with code 1 a second after each start.",
        runs(SERVER, "sleep 1; exit 1"),
        ("ImmichRestartLoop",),
    ),
    "server-gives-up": Drill(
        "The server ends with code 1, and nothing restarts it.",
        runs(SERVER, "sleep 2; exit 1", restart="no"),
        ("ImmichContainerDown",),
    ),
    "redis-cannot-start": Drill(
        "The container of Redis names a device that is not there, and cannot start.",
        changed("redis", {"devices": ["/dev/not-there"]}),
        ("ImmichRedisDown",),
        ("ImmichContainerDown",),
    ),
    "server-unhealthy": Drill(
        "The server's health check fails, and everything else is well.",
        changed(SERVER, {"healthcheck": {"test": ["CMD", "false"], "interval": "1s", "retries": 1}}),
        ("ImmichContainerUnhealthy",),
    ),
    "photos-inside": Drill(
        "The server is made anew without the mount of the photos.",
        changed(SERVER, {"volumes": Instead()}),
        ("ImmichMediaNotMounted",),
    ),
    "machine-learning-out-of-memory": Drill(
        "Machine learning may use less memory than its model takes, and somebody searches.",
        changed(LEARNING, {"mem_limit": "48m", "memswap_limit": "48m", "environment": {"STAND_IN_MODEL_COPIES": "16"}}),
        ("ImmichContainerOOMKilled",),
        host=True,
    ),
    "machine-learning-old-cpu": Drill(
        "Machine learning ends with an illegal instruction, as on an old CPU.",
        runs(LEARNING, "sleep 1; sh -c 'kill -ILL $$'; exit $?"),
        ("ImmichIllegalInstruction",),
        ("ImmichRestartLoop",),
    ),
    "exporter-stopped": Drill("The exporter itself is stopped.", vitals_stopped, ("ImmichExporterDown",)),
    "docker-out-of-reach": Drill(
        "The proxy before Docker's socket is stopped.", vitals_without_docker, ("ImmichCollectorFailing",)
    ),
}
