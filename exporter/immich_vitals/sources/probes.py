"""All probes of one round: each route and machine learning side by side, so that one that hangs delays no other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from immich_vitals.collector import Deadline, Remark
from immich_vitals.config import PostgresConfig, ProbeConfig
from immich_vitals.flight import Flight
from immich_vitals.settings import OWN
from immich_vitals.sources.canary import Canaries
from immich_vitals.sources.certificate import Trust
from immich_vitals.sources.http_probe import Names
from immich_vitals.sources.immich_http import (
    LIMIT_SECONDS,
    Found,
    MachineLearning,
    Route,
    RouteFacts,
)

CHOOSE_SECONDS = 3.0  # for the database to give photos to try
MARGIN_SECONDS = 1.0  # before our own deadline, so that what the other probes found is still told
LIMIT_RETRY_SECONDS = 300.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What a round found. `upload_limit` is in bytes, of the external route; None: not known."""

    routes: Sequence[RouteFacts]
    machine_learning: Found | None
    upload_limit: float | None
    remarks: Sequence[Remark] = ()


class Probes:
    """The routes that are configured."""

    def __init__(self, config: ProbeConfig, postgres: PostgresConfig | None, http_port: int = 80) -> None:
        self._config = config
        self._trust = Trust(config.ca_file)
        names = Names()
        self._canaries = Canaries(postgres) if config.api_key and postgres else None
        self._routes = [
            Route(name, url, self._trust, names, config.api_key, self._canaries, http_port)
            for name, url in (("direct", config.server), ("external", config.external))
            if url
        ]
        self._machine_learning = (
            MachineLearning(config.machine_learning, self._trust, names) if config.machine_learning else None
        )
        self._route_flights = {route.name: Flight[RouteFacts](f"probe {route.name}") for route in self._routes}
        self._ml_flight: Flight[Found] = Flight("probe machine learning")
        self._limit_flight: Flight[float | None] = Flight("probe upload limit")
        self._limit: float | None = None
        self._limit_until = self._limit_due = float("-inf")

    def look(self, deadline: Deadline) -> ProbeFacts:
        """One round. Raises `Absent` or `Unavailable` when the file with authorities cannot be used."""
        self._trust.strict()
        if self._canaries is not None:
            self._canaries.refresh(Deadline.after(min(CHOOSE_SECONDS, deadline.limit("begin")), deadline.clock))
        inner = Deadline(deadline.at - MARGIN_SECONDS, deadline.clock)
        routes = [self._route_flights[route.name].join_or_start(_bound(route.look, inner)) for route in self._routes]
        learning = None
        if self._machine_learning is not None:
            learning = self._ml_flight.join_or_start(_bound(self._machine_learning.look, inner))
        self._ask_for_limit(inner)
        return ProbeFacts(
            [future.result(deadline.limit("wait for the probes")) for future in routes],
            None if learning is None else learning.result(deadline.limit("wait for the probes")),
            self._limit if deadline.clock.monotonic() < self._limit_until else None,
            self._remarks(),
        )

    def close(self) -> None:
        if self._canaries is not None:
            self._canaries.close()

    def _ask_for_limit(self, deadline: Deadline) -> None:
        now = deadline.clock.monotonic()
        route = next((route for route in self._routes if route.name == "external"), None)
        if route is None or now < self._limit_due:
            return
        until = Deadline(min(deadline.at, now + LIMIT_SECONDS), deadline.clock)
        found = self._limit_flight.join_or_start(_bound(route.upload_limit, until)).result(
            deadline.limit("wait for the probes")
        )
        interval = self._config.upload_limit_interval
        self._limit_due = now + (min(LIMIT_RETRY_SECONDS, interval) if found is None else interval)
        if found is not None:
            self._limit, self._limit_until = found, now + 3 * interval

    def _remarks(self) -> Sequence[Remark]:
        if not self._routes:
            return ()
        if self._config.api_key is None:
            return (
                Remark(
                    "without an API key no photo is tried",
                    f"set {OWN}API_KEY to a key with the permissions asset.view and asset.download",
                ),
            )
        if self._canaries is None:
            return (
                Remark(
                    "without Immich's database no photo to try is known",
                    "set DB_HOSTNAME and DB_PASSWORD (or DB_URL), as Immich's .env has them",
                ),
            )
        if self._canaries.choose():
            return ()
        why = self._canaries.problem or "the database has no photo with a thumbnail"
        return (Remark(f"no photo is tried: {why}", "see what the collectors postgres and library say"),)


def _bound(call: Callable[[Deadline], T], deadline: Deadline) -> Callable[[], T]:
    return lambda: call(deadline)
