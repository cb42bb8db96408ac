"""What breaks at an upgrade: migrations, and parts of different versions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import Machine

MIGRATIONS = "SELECT name FROM kysely_migrations ORDER BY name DESC LIMIT 1"


@contextmanager
def downgraded(machine: Machine) -> Iterator[None]:
    """The server is older than the database, as after a step back: it knows nothing of the newest migration."""
    machine.sql("INSERT INTO kysely_migrations VALUES ('1999999999999-OfTomorrow', '2026-11-28T00:00:00.000Z')")
    machine.docker("restart immich_server")
    yield
    machine.sql("DELETE FROM kysely_migrations WHERE name = '1999999999999-OfTomorrow'")
    machine.docker("restart immich_server")
    machine.wait_until_up()


def tagged(tags: Mapping[str, str]) -> Injection:
    """Containers made anew of images with other tags."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        for service, tag in tags.items():
            name = f"ghcr.io/immich-app/{service}"
            machine.docker(f"tag {name}:v2.7.5 {name}:{tag}")
            with machine.changed(service, {"image": f"{name}:{tag}"}):
                yield

    return inject


@contextmanager
def upgraded(machine: Machine) -> Iterator[None]:
    """Server and machine learning are made anew of a newer image, as by `docker compose pull` and `up -d`."""
    for service in ("immich-server", "immich-machine-learning"):
        name = f"ghcr.io/immich-app/{service}"
        machine.docker(f"tag {name}:v2.7.5 {name}:v2.7.6")
    machine.set_environment(IMMICH_VERSION="v2.7.6")
    machine.immich("up -d")
    machine.wait_until_up()
    yield
    machine.set_environment(IMMICH_VERSION="v2.7.5")
    machine.immich("up -d")
    machine.wait_until_up()


DRILLS = {
    "server-older-than-database": Drill(
        "The database has a migration that the server does not know, as after a step back to an older version.",
        downgraded,
        ("ImmichMigrationFailed",),
    ),
    "version-skew": Drill(
        "Machine learning is of another version than the server.",
        tagged({"immich-machine-learning": "v2.6.3"}),
        ("ImmichVersionSkew",),
    ),
    "upgraded": Drill("An upgrade: the containers are made anew of a newer image.", upgraded, (), slow=True),
}
