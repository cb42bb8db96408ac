"""A fault of versions: an Immich that nobody has updated."""

from collections.abc import Iterator
from contextlib import contextmanager

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.world import World

NEWER = "v9.0.0"
STATE = "UPDATE system_metadata SET value = jsonb_set(value, '{releaseVersion}', to_jsonb(%s::text)) WHERE key = %s"
AGE = (
    'UPDATE version_history SET "createdAt" = "createdAt" + %s * interval \'1 day\''
    ' WHERE "createdAt" = (SELECT max("createdAt") FROM version_history)'
)
KEY = "version-check-state"


@contextmanager
def update_available(world: World) -> Iterator[None]:
    """Immich's own check found a newer release, and the last upgrade was two months ago."""
    with world.connect() as connection:
        row = connection.execute(
            "SELECT value ->> 'releaseVersion' FROM system_metadata WHERE key = %s", (KEY,)
        ).fetchone()
        if row is None:
            raise AssertionError("the demo's Immich has checked for releases")
        connection.execute(STATE, (NEWER, KEY))
        connection.execute(AGE, (-50,))
    yield
    with world.connect() as connection:
        connection.execute(STATE, (row[0], KEY))
        connection.execute(AGE, (50,))


FAULTS_VERSION: dict[str, Fault] = {
    "update-available": Fault(
        "There is a newer Immich, and the last upgrade was two months ago.",
        update_available,
        Sign("version_update_available", at_least=1),
        "ImmichUpdateAvailable",
    ),
}
