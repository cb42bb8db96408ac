"""Damage on the disk of Postgres that nobody has met yet: what only looking for it finds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.world import World

COLD = "asset_exif"
PAGE_BYTES = 8192


@contextmanager
def cold_page_damaged(world: World) -> Iterator[None]:
    """A disk changed some bytes in a page of a table that nobody reads; nobody read it since."""
    path = _file(world)
    world.postgres.stop()
    with path.open("r+b") as table:
        table.seek(PAGE_BYTES // 2)
        table.write(b"demo")
    world.postgres.start()
    yield
    world.fill_database()


@contextmanager
def table_cut_short(world: World) -> Iterator[None]:
    """A power failure took the end of a table's file along; Postgres reads what is left without an error."""
    path = _file(world)
    world.postgres.stop()
    with path.open("r+b") as table:
        table.truncate(PAGE_BYTES)
    world.postgres.start()
    yield
    world.fill_database()


def _file(world: World) -> Path:
    with world.connect() as connection:
        connection.execute(f"VACUUM ANALYZE {COLD}".encode())
        row = connection.execute("SELECT pg_relation_filepath(%s)", (COLD,)).fetchone()
    if row is None:
        raise AssertionError("a query without FROM gives one row")
    return world.postgres.data / str(row[0])


FAULTS_PATROL: Mapping[str, Fault] = {
    "cold-page-damaged": Fault(
        "A page of a table that nobody reads is damaged on disk.",
        cold_page_damaged,
        Sign("postgres_patrol_damaged_pages", at_least=1),
        "ImmichPostgresCorruption",
    ),
    "table-cut-short": Fault(
        "The file of a table is cut short, which Postgres reads without an error.",
        table_cut_short,
        Sign("postgres_truncated_relations", at_least=1),
        "ImmichPostgresCorruption",
    ),
}
