"""The list of dashboards: a new one is a file and a line here."""

from collections.abc import Callable

from grafana.source import access, postgres, queues, services, storage, triage
from grafana.source.kit import Board

BOARDS: tuple[Callable[[], Board], ...] = (
    triage.board,
    services.board,
    storage.board,
    postgres.board,
    queues.board,
    access.board,
)


def files() -> dict[str, str]:
    """Each dashboard's JSON by the name of its file."""
    return {f"immich-vitals-{board.name}.json": board.json() for board in (make() for make in BOARDS)}
