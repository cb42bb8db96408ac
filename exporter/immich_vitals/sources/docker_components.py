"""Which container is which part of Immich.

What tells, from the surest to the weakest: the patterns in the settings; the image; Immich's own words in the compose
service or the container's name; and, inside a compose project that holds Immich, the plain words (`redis`,
`database`, `nginx`) and images that anybody may use. Of the plain ones only those are taken whose part of Immich
nothing surer in the same project stands for, so that the Redis of another application beside it is left alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from immich_vitals.collector import Deadline
from immich_vitals.config import DockerConfig
from immich_vitals.sources.docker import ContainerFacts, Engine, Event, Listed

_IMAGES = {
    "server": r"(?:.*/)?(?:immich-server|(?:imagegenius|alexbelgium)/immich(?:-(?!machine-learning).*)?)",
    "machine_learning": r"(?:.*/)?immich-machine-learning(?:-[a-z0-9]+)?",
    "database": r"(?:.*/)?(?:immich-app/postgres|immich-postgres(?:ql)?"
    r"|pgvecto[.-]rs|vchord-postgres|vchord-suite|cloudnative-pgvecto\.rs)",
    "proxy": r"(?:.*/)?altran1502/immich-proxy",
}
_NAMES = {
    "server": r"immich|immich-server|immich-app",
    "microservices": r"immich-microservices",
    "machine_learning": r"immich-machine-learning|immich-ml",
    "database": r"immich-(?:postgres|postgresql|database|db|pg|pgvecto|pgvectors)|(?:postgres|postgresql|db)-immich",
    "redis": r"immich-(?:redis|valkey|keydb|dragonfly)|(?:redis|valkey)-immich",
    "proxy": r"immich-(?:proxy|nginx|caddy|traefik|swag)",
}
_PLAIN_SERVICES = {
    "microservices": r"microservices",
    "machine_learning": r"machine-learning|ml",
    "database": r"database|db|postgres|postgresql|pg|pgvecto|pgvecto-rs|pgvectors",
    "redis": r"redis|valkey|keydb|dragonfly",
    "proxy": r"proxy|reverse-proxy|nginx|caddy|traefik|haproxy|swag",
}
_PLAIN_IMAGES = {
    "database": r"(?:.*/)?(?:postgres|postgresql|pgvector|cloudnative-vectorchord)",
    "redis": r"(?:.*/)?(?:redis|valkey|keydb|dragonfly)",
    "proxy": r"(?:.*/)?(?:nginx|nginx-unprivileged|caddy|traefik|haproxy|swag|nginx-proxy-manager)",
}
# A name does not make an exporter, or the database of another application, a part of Immich.
_NEVER = re.compile(r"exporter|backup|vitals|adminer|pgadmin|mysql|maria|mongo")
_IMMICH_PROJECTS = ("immich", "ix-immich")

# Images that show only as an id are looked up; this bounds how many at a time.
LOOK_UPS = 10


@dataclass(frozen=True, slots=True)
class Part:
    """A container of Immich, and which component it is."""

    component: str
    container: Listed


@dataclass(frozen=True, slots=True)
class _Guess:
    """What a container may be. Of the guesses for one component in one project, those of the lowest rank hold."""

    component: str
    rank: int


@dataclass(frozen=True, slots=True)
class Matching:
    """What the settings say: a pattern of container names per component, and the one compose project to look at."""

    overrides: Mapping[str, str]
    project: str | None

    @classmethod
    def of(cls, config: DockerConfig) -> "Matching":
        return cls(config.overrides, config.project)

    def parts(self, containers: Iterable[Listed]) -> list[Part]:
        """Immich's containers among all of an engine, in the order of the list."""
        containers = list(containers)
        guesses = [self._surely(each) for each in containers]
        projects = {_project(each) for each, guess in zip(containers, guesses, strict=True) if guess and guess.rank}
        projects = (projects | {self.project or "", *_IMMICH_PROJECTS}) - {""}
        guesses = [guess or self._plainly(each, projects) for each, guess in zip(containers, guesses, strict=True)]
        best: dict[tuple[str, str], int] = {}
        for each, guess in zip(containers, guesses, strict=True):
            if guess:
                key = _project(each), guess.component
                best[key] = min(guess.rank, best.get(key, guess.rank))
        return [
            Part(guess.component, each)
            for each, guess in zip(containers, guesses, strict=True)
            if guess and guess.rank == best[_project(each), guess.component]
        ]

    def _surely(self, container: Listed) -> _Guess | None:
        for component, pattern in self.overrides.items():
            if fnmatchcase(container.name, pattern):
                return _Guess(component, 0)
        if not self._eligible(container):
            return None
        image = repository(container.image)
        by_name = _first(_service(container), "names") or _first(container.name.removeprefix("systemd-"), "names")
        found = _first(image, "images") or (by_name if not _NEVER.search(image) else None)
        if found == "server" and (by_name == "microservices" or "microservices" in container.command.split()):
            found = "microservices"
        return self._free(found, 1)

    def _plainly(self, container: Listed, projects: set[str]) -> _Guess | None:
        if not self._eligible(container) or _project(container) not in projects:
            return None
        image = repository(container.image)
        by_image, by_service = _first(image, "plain_images"), _first(_service(container), "plain_services")
        if by_service and by_image in (None, by_service) and not _NEVER.search(image):
            return self._free(by_service, 2)
        return self._free(by_image, 3)

    def _free(self, component: str | None, rank: int) -> _Guess | None:
        """The guess, unless the settings tie the component to a pattern: then nothing else is it."""
        return None if component is None or component in self.overrides else _Guess(component, rank)

    def _eligible(self, container: Listed) -> bool:
        """False for `docker compose run` and, where one project is chosen, for all others."""
        if container.labels.get("com.docker.compose.oneoff", "").lower() == "true":
            return False
        return self.project is None or _project(container) == self.project


class Finder:
    """Finds Immich's containers, and remembers what the list does not show and cannot change while they exist.

    Not to be shared between threads.
    """

    def __init__(self, docker: Engine, matching: Matching) -> None:
        self._docker = docker
        self._matching = matching
        self._looked_up: dict[str, ContainerFacts | None] = {}

    def parts(self, deadline: Deadline) -> list[Part]:
        """Immich's containers as of now: one request, and one more for each container not seen before."""
        containers = self._docker.containers(deadline)
        there = {each.id for each in containers}
        self._looked_up = {known: facts for known, facts in self._looked_up.items() if known in there}
        found = self._matching.parts(self._named(containers, deadline))
        return [self._told_apart(part, deadline) for part in found]

    def _named(self, containers: list[Listed], deadline: Deadline) -> list[Listed]:
        """The containers, with the name of the image also where the list shows only an id.

        That is so once a newer image has been pulled under the same tag. What other signs tell is not looked up.
        """
        if not any(is_id(each.image) for each in containers):
            return containers
        known = {part.container.id for part in self._matching.parts(containers)}
        left = LOOK_UPS
        named = []
        for each in containers:
            if is_id(each.image) and each.id not in known:
                left -= each.id not in self._looked_up
                facts = self._look_up(each.id, deadline) if left >= 0 else None
                each = replace_image(each, facts.image) if facts else each
            named.append(each)
        return named

    def _told_apart(self, part: Part, deadline: Deadline) -> Part:
        """The server image does the work of microservices alone when its environment says so."""
        if part.component != "server" or part.component in self._matching.overrides:
            return part
        facts = self._look_up(part.container.id, deadline)
        return Part("microservices", part.container) if facts and only_microservices(facts.env) else part

    def _look_up(self, container: str, deadline: Deadline) -> ContainerFacts | None:
        if container not in self._looked_up:
            read = self._docker.inspect_all([container], deadline)
            if read.failure is not None:
                return None
            self._looked_up[container] = read.facts.get(container)
        return self._looked_up[container]


def component_of(event: Event, matching: Matching, parts: Iterable[Part]) -> str | None:
    """The component that an event is about: as it was last seen, else as its name, image and labels tell."""
    parts = list(parts)
    for part in parts:
        if part.container.id == event.id:
            return part.component
    newcomer = Listed(event.id, event.name, event.image, "", "", event.labels)
    found = matching.parts([*(part.container for part in parts if part.container.name != event.name), newcomer])
    return next((part.component for part in found if part.container.id == event.id), None)


def only_microservices(env: Mapping[str, str]) -> bool:
    """Whether a server with this environment runs jobs and no API."""
    workers = {"api", "microservices"}
    include, exclude = (_words(env.get(f"IMMICH_WORKERS_{what}", "")) for what in ("INCLUDE", "EXCLUDE"))
    return ((include & workers) or workers) - exclude == {"microservices"}


def is_word(text: str) -> bool:
    """Whether a text is one of the words that parts of Immich are called by."""
    return _first(text, "names") is not None or _first(text, "plain_services") is not None


def repository(image: str) -> str:
    """`registry:5000/immich-app/postgres` of `registry:5000/immich-app/postgres:14@sha256:...`, in lower case."""
    path = image.split("@", 1)[0].lower()
    head, slash, last = path.rpartition("/")
    return head + slash + last.split(":", 1)[0]


def tag(image: str) -> str:
    """`14` of `registry:5000/immich-app/postgres:14@sha256:...`; empty when there is none."""
    return image.split("@", 1)[0].rpartition("/")[2].partition(":")[2]


def is_id(image: str) -> bool:
    """Whether an image is named by nothing but its id."""
    return re.fullmatch(r"sha256:[0-9a-f]{64}|[0-9a-f]{12}|[0-9a-f]{64}", image) is not None


def replace_image(container: Listed, image: str) -> Listed:
    return Listed(container.id, container.name, image, container.command, container.state, container.labels)


def _project(container: Listed) -> str:
    labels = container.labels
    names = ("com.docker.compose.project", "io.podman.compose.project", "com.docker.stack.namespace")
    return next((labels[name] for name in names if labels.get(name)), "")


def _service(container: Listed) -> str:
    labels = container.labels
    swarm = labels.get("com.docker.swarm.service.name", "").removeprefix(f"{_project(container)}_")
    return labels.get("com.docker.compose.service") or labels.get("io.podman.compose.service") or swarm


def _compiled(table: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{component}>{pattern})" for component, pattern in table.items()))


_TABLES = {
    "images": _compiled(_IMAGES),
    "names": _compiled(_NAMES),
    "plain_services": _compiled(_PLAIN_SERVICES),
    "plain_images": _compiled(_PLAIN_IMAGES),
}


@lru_cache(maxsize=4096)
def _first(text: str, table: str) -> str | None:
    """The component that a table has for a text. Remembered: each scrape asks the same of all containers."""
    found = _TABLES[table].fullmatch(text.lower().replace("_", "-"))
    return found.lastgroup if found else None


def _words(text: str) -> set[str]:
    return {word.strip() for word in text.split(",")} - {""}
