"""How many queries and commands the exporter sends, as the servers themselves count them."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from immich_vitals.demo.servers import Postgres, Redis
from immich_vitals.demo.world import DATABASE

APPLICATION = "immich-vitals"
_MESSAGE = re.compile(rf"^app={APPLICATION}\|LOG:  (?:statement|execute [^:]+): (.*(?:\n\t.*)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counted:
    """What one scrape asks for. `messages` are round trips to Postgres, each with one statement or several;
    `requests` is None without Docker."""

    messages: float
    statements: float
    commands: float
    requests: float | None
    series: int
    bytes_sent: int


class PostgresLog:
    """The statements of the exporter in the log of a Postgres whose `log_line_prefix` is `app=%a|`."""

    def __init__(self, server: Postgres) -> None:
        self._server = server

    @contextmanager
    def all_statements(self) -> Iterator[None]:
        """Have every statement of new sessions logged."""
        with self._server.connect() as connection:
            database = sql.Identifier(DATABASE)
            connection.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(database))
            yield
            connection.execute(sql.SQL("ALTER DATABASE {} RESET log_statement").format(database))

    def mark(self) -> int:
        """A position in the log, for `since`."""
        return self._server.log.stat().st_size

    def since(self, mark: int) -> list[list[str]]:
        """The messages logged since, each as the statements in it."""
        time.sleep(0.2)  # a backend writes its line before it answers, yet on another file descriptor than we read
        with self._server.log.open("rb") as log:
            log.seek(mark)
            text = log.read().decode()
        return [_statements(found[1]) for found in _MESSAGE.finditer(text)]


def _statements(message: str) -> list[str]:
    return [part.strip() for part in message.replace("\n\t", "\n").split(";") if part.strip()]


def redis_commands(server: Redis) -> int:
    """How many commands the server has processed; asking is one, too."""
    with server.client() as client:
        found: int = client.info("stats")["total_commands_processed"]
        return found
