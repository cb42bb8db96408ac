"""The collector `version`: what runs, whether its parts fit together, and whether there is something newer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from immich_vitals.collector import Collector, CollectorFailure, Context, Every
from immich_vitals.config import Config, PostgresConfig, RedisConfig
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.docker import Engine
from immich_vitals.sources.docker_components import Finder, Matching
from immich_vitals.sources.docker_immich import version_of
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.immich_facts import VERSION_FACTS, Told, read_facts
from immich_vitals.sources.postgres import Database
from immich_vitals.sources.redis import RedisServer
from immich_vitals.sources.versions import Release, differ, mixed_workers, releases, shown

INFO = Metric(
    "version_info",
    "Version of Immich that a running container has, or, without Docker, that last started on the database; refreshed"
    " every 10 minutes.",
    ("component", "version"),
)
SKEW = Metric(
    "version_skew",
    "1 when running parts of Immich are of different versions, or servers of two generations take jobs from one queue;"
    " no sample when fewer than two versions are known.",
)
LATEST = Metric(
    "version_latest_info",
    "Newest release that Immich's own check knows of; no sample before it found one.",
    ("version",),
)
UPDATE = Metric("version_update_available", "1 when that release is newer than the server that runs.")
CHANGED = Metric("version_changed_timestamp_seconds", "When Immich first started in its present version.")

SERVER = "server"
PARTS = (SERVER, "microservices", "machine_learning")
PART_SECONDS = 3.0  # for the database, and for Redis: one that hangs leaves time for what the others know


@dataclass(frozen=True, slots=True)
class Installed:
    """A running container of Immich and the version in it, as the image tells it."""

    component: str
    version: str


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """All that is known. `installed` is what runs here in containers; `started` is the version that last started on
    the database, `changed` since when, in seconds since the epoch; `latest` is what Immich's own check found."""

    installed: Sequence[Installed] = ()
    mixed: bool = False
    started: str | None = None
    changed: float | None = None
    latest: str | None = None


class VersionCollector(Collector):
    """Immich's versions: what runs, whether its parts fit together, whether there is a newer one.

    immich_vitals_version_info{component="server",version="2.7.5"} 1
    immich_vitals_version_skew 0
    immich_vitals_version_update_available 0
    """

    name = "version"
    metrics = (INFO, SKEW, LATEST, UPDATE, CHANGED)
    timeout = 10.0

    def __init__(
        self,
        interval: float,
        docker: tuple[Engine, Finder] | None,
        postgres: PostgresConfig | None,
        redis: RedisConfig | None,
    ) -> None:
        self._docker = docker
        self._database = (Database(postgres), postgres.database) if postgres else None
        self._redis = RedisServer(redis) if redis else None
        self.trigger = Every(interval, stretch=False)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        docker = find_engine(config.docker)
        if docker is None and config.postgres is None:
            return None
        found = (docker, Finder(docker, Matching.of(config.docker))) if docker else None
        return cls(config.version_interval, found, config.postgres, config.redis)

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return (
            "neither Docker nor a database is known: mount Docker's socket, or set DB_HOSTNAME as Immich's .env has it"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        failures: list[CollectorFailure] = []
        installed: Sequence[Installed] = ()
        told: Told | None = None
        mixed = False
        if self._docker is not None:
            try:
                installed = _installed(*self._docker, ctx)
            except CollectorFailure as failure:
                failures.append(failure.to_keep())
        if self._database is not None:
            try:
                told = read_facts(*self._database, VERSION_FACTS, ctx.deadline.within(PART_SECONDS))
            except CollectorFailure as failure:
                failures.append(failure.to_keep())
            finally:
                self._database[0].close()  # the next run is minutes away
        asked = (self._docker is not None) + (self._database is not None)
        if failures and len(failures) == asked:
            raise failures[0]
        if self._redis is not None:
            try:
                mixed = mixed_workers(self._redis, ctx.deadline.within(PART_SECONDS))
            except CollectorFailure as failure:
                failures.append(failure.to_keep())
            finally:
                self._redis.close()
        for each in failures:
            ctx.remark(f"part of the versions is not known: {each.message}", each.mend)
        return version_samples(_facts(installed, told, mixed))

    def close(self) -> None:
        if self._docker is not None:
            self._docker[0].close()


def _installed(docker: Engine, finder: Finder, ctx: Context) -> Sequence[Installed]:
    """What the running containers have in them; a container that cannot be read is a remark."""
    parts = [
        part for part in finder.parts(ctx.deadline) if part.component in PARTS and part.container.state == "running"
    ]
    read = docker.inspect_all([part.container.id for part in parts], ctx.deadline)
    if read.failure is not None:
        ctx.remark(f"part of the versions is not known: {read.failure.message}", read.failure.mend)
    found = [(part.component, read.facts.get(part.container.id)) for part in parts]
    return [
        Installed(component, version)
        for component, facts in found
        if facts and (version := version_of(component, facts))
    ]


def _facts(installed: Sequence[Installed], told: Told | None, mixed: bool) -> VersionFacts:
    values = told.values if told else {}
    changed = values.get("changed")
    return VersionFacts(
        installed,
        mixed,
        started=values.get("version"),
        changed=float(changed) if changed else None,
        latest=values.get("releaseVersion"),
    )


def version_samples(facts: VersionFacts) -> Iterator[Sample]:
    """The samples of all parts. The database speaks for the server where no container does."""
    running = list(facts.installed)
    if facts.started and not any(each.component == SERVER for each in running):
        running.append(Installed(SERVER, facts.started))
    for component, version in dict.fromkeys((each.component, shown(each.version)) for each in running):
        if version:
            yield INFO.sample(1, component=component, version=version)
    yield from SKEW.known(_skew(running, facts.mixed))
    latest = Release.of(facts.latest) if facts.latest else None
    servers = releases(each.version for each in running if each.component == SERVER)
    if latest is not None:
        yield LATEST.sample(1, version=str(latest))
        if servers:
            yield UPDATE.sample(min(servers) < latest and min(servers).differs(latest))
    yield from CHANGED.known(facts.changed)


def _skew(running: Sequence[Installed], mixed: bool) -> bool | None:
    found = releases(each.version for each in running)
    if mixed:
        return True
    return differ(found) if len(found) > 1 else None
