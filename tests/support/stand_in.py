"""The demo's stand-in for Immich, whose server cannot run here, before a real database and real files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from immich_vitals.config import PostgresConfig
from immich_vitals.demo.photos import make_library
from immich_vitals.demo.schema import create_schema
from immich_vitals.demo.servers import Postgres
from immich_vitals.demo.web import Web

DATABASE = "probed"


@dataclass(frozen=True, slots=True)
class StandIn:
    """What answers in Immich's place, its database, and its media folder."""

    web: Web
    postgres: PostgresConfig
    media: Path


@contextmanager
def standing_in(server: Postgres, folder: Path) -> Iterator[StandIn]:
    """One in a database of its own on this server. The key is the second user's, who has a third of the photos."""
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    media = folder / "probed-media"
    library = make_library(media, folder / "probed-disk")
    with server.connect(DATABASE) as connection:
        create_schema(connection)
        library.insert(connection)
        connection.execute("ANALYZE")
    user = str(library.rows["user"][1]["id"])
    with Web(lambda: server.connect(DATABASE), user) as web:
        yield StandIn(web, PostgresConfig("127.0.0.1", server.port, "postgres", None, DATABASE, {}), media)
