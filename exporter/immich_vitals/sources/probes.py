"""All probes of one round: each route and machine learning side by side, so that one that hangs delays no other."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from immich_vitals.collector import Deadline, Remark, TimedOut
from immich_vitals.config import PostgresConfig, ProbeConfig
from immich_vitals.flight import Flight
from immich_vitals.settings import OWN
from immich_vitals.sources.canary import Canaries
from immich_vitals.sources.certificate import Trust
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
        self._canaries = Canaries(postgres) if config.api_key and postgres else None
        self._routes = [
            Route(name, url, self._trust, config.api_key, self._canaries, http_port)
            for name, url in (("direct", config.server), ("external", config.external))
            if url
        ]
        self._machine_learning = (
            MachineLearning(config.machine_learning, self._trust) if config.machine_learning else None
        )
        self._route_flights = {route.name: Flight[RouteFacts](f"probe {route.name}") for route in self._routes}
        self._ml_flight: Flight[Found] = Flight("probe machine learning")
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
        found = [_result(future, deadline) for future in routes]
        for route, facts in zip(self._routes, found, strict=True):
            if route.name == "external" and facts.probes["ping"].success:
                self._ask_for_limit(route, inner)
        return ProbeFacts(
            found,
            None if learning is None else _result(learning, deadline),
            self._limit if deadline.clock.monotonic() < self._limit_until else None,
            self._remarks(),
        )

    def close(self) -> None:
        if self._canaries is not None:
            self._canaries.close()

    def _ask_for_limit(self, route: Route, deadline: Deadline) -> None:
        """Ask when it is time to, of a proxy that lets a ping through."""
        now = deadline.clock.monotonic()
        if now < self._limit_due:
            return
        found = route.upload_limit(deadline.within(LIMIT_SECONDS))
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
                    optional=True,
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


def _result(future: Future[T], deadline: Deadline) -> T:
    try:
        return future.result(deadline.limit("wait for the probes"))
    except TimeoutError:
        raise TimedOut(
            "the probes did not end in time", mend="this machine may be overloaded: look at its CPU"
        ) from None


def _bound(call: Callable[[Deadline], T], deadline: Deadline) -> Callable[[], T]:
    return lambda: call(deadline)
