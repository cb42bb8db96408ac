"""Containers that are stopped, killed, crash, or are not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import Machine


def stopped(container: str) -> Injection:
    """`docker stop`, as somebody does who forgets about it."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.docker(f"stop {container}")
        yield
        machine.docker(f"start {container}")
        machine.wait_until_up()

    return inject


DRILLS = {
    "redis-stopped": Drill("`docker stop immich_redis`.", stopped("immich_redis"), ("ImmichRedisDown",)),
    "database-stopped": Drill("`docker stop immich_postgres`.", stopped("immich_postgres"), ("ImmichPostgresDown",)),
}
