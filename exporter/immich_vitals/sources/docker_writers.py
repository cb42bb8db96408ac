"""Whom the containers of Immich's server write as, and how they mount the media folder."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from immich_vitals.collector import CollectorFailure, Deadline
from immich_vitals.sources.docker import ContainerFacts, Engine, Mount
from immich_vitals.sources.docker_components import Finder, Matching, Part, repository
from immich_vitals.sources.docker_immich import media_location
from immich_vitals.sources.rights import User
from immich_vitals.sources.storage import NAMES

_WRITERS = ("server", "microservices")


@dataclass(frozen=True, slots=True)
class FolderMount:
    """How a container sees one of the folders. `elsewhere`: it is not the folder of this name in the media folder, but
    another one of the host that is mounted over it."""

    writable: bool
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Writer:
    """A container that writes to the folders. `user` is None when it cannot be known as the host's."""

    user: User | None
    folders: Mapping[str, FolderMount]


@dataclass(frozen=True, slots=True)
class Writers:
    """All of them; `problem` says why one's user is not known, where a person can mend it."""

    found: tuple[Writer, ...] = ()
    problem: str = ""
    mend: str = ""


class WritersOfDocker:
    """Asks for them. Not to be shared between threads."""

    def __init__(self, engine: Engine, matching: Matching) -> None:
        self._docker = engine
        self._finder = Finder(engine, matching)
        self._maps_users: bool | None = None

    def read(self, deadline: Deadline) -> Writers:
        """Raises nothing: without an answer there are no writers, and a problem."""
        try:
            parts = [part for part in self._finder.parts(deadline) if part.component in _WRITERS]
            read = self._docker.inspect_all([part.container.id for part in _at_work(parts)], deadline)
            if self._maps_users is None and read.facts:
                self._maps_users = self._docker.maps_users(deadline)
        except CollectorFailure as failure:
            return Writers((), failure.message, failure.mend)
        found = tuple(Writer(user_of(facts, self._maps_users), folder_mounts(facts)) for facts in read.facts.values())
        if read.failure:
            return Writers(found, read.failure.message, read.failure.mend)
        if found and self._maps_users is None:
            mend = "let the proxy before the Docker API pass GET /info, or set IMMICH_VITALS_MEDIA_USER"
            return Writers(found, "Docker does not say whether it gives containers other user numbers", mend)
        return Writers(found)

    def close(self) -> None:
        self._docker.close()


def _at_work(parts: list[Part]) -> list[Part]:
    """Those that run or try to; all where none does. One of old that was left behind may have another user."""
    return [part for part in parts if part.container.state in ("running", "paused", "restarting")] or parts


def user_of(facts: ContainerFacts, maps_users: bool | None) -> User | None:
    """The user of a container as the host sees it; None when its numbers are not the host's, or not told."""
    if maps_users is not False and not facts.own_users:
        return None
    text = facts.user
    if not repository(facts.image).endswith("immich-server"):
        # Other builds start as root and become the user that these two name.
        puid, pgid = facts.env.get("PUID", ""), facts.env.get("PGID", "")
        if _number(puid) is None and text in ("", "0", "root"):
            return None
        text = text if text not in ("", "0", "root") else f"{puid}:{pgid}".rstrip(":")
    name, _, group = text.partition(":")
    uid = 0 if name == "" else _number(name)
    if uid is None:
        return None
    groups = [_number(each) for each in facts.groups]
    return User(
        uid=uid,
        gids=_first_groups(uid, group),
        groups=frozenset(each for each in groups if each is not None),
        more_groups=None in groups,
        overrides=uid == 0 and facts.root_overrides,
    )


def _first_groups(uid: int, group: str) -> tuple[int, ...]:
    """The image's list of users decides when no group is given: as a rule the same number, 0 for one not on it."""
    if group:
        number = _number(group)
        return () if number is None else (number,)
    return tuple(dict.fromkeys((uid, 0)))


def _number(word: str) -> int | None:
    if word == "root":
        return 0
    return int(word) if re.fullmatch(r"\d{1,10}", word) else None


def folder_mounts(facts: ContainerFacts) -> dict[str, FolderMount]:
    """How a container sees the six folders; none of those whose place or mount is not known."""
    location = media_location(facts)
    if location is None or facts.mounts is None:
        return {}
    over = {folder: _nearest(location / name, facts.mounts) for folder, name in NAMES.items()}
    sources = {
        folder: _source(mount, location / NAMES[folder]) for folder, mount in over.items() if mount and mount.source
    }
    # Where nothing is mounted at the media folder itself, most folders lie together all the same.
    media = _nearest(location, facts.mounts)
    if media is not None and media.source:
        base: PurePosixPath | None = _source(media, location)
    else:
        parents = Counter(source.parent for folder, source in sources.items() if source.name == NAMES[folder])
        base = max(parents, key=lambda parent: parents[parent], default=None)
    return {
        folder: FolderMount(
            writable=mount.writable,
            elsewhere=folder in sources and base is not None and sources[folder] != base / NAMES[folder],
        )
        for folder, mount in over.items()
        if mount is not None
    }


def _nearest(path: PurePosixPath, mounts: tuple[Mount, ...]) -> Mount | None:
    over = [mount for mount in mounts if mount.target and path.is_relative_to(mount.target)]
    return max(over, key=lambda mount: len(PurePosixPath(mount.target).parts), default=None)


def _source(mount: Mount, path: PurePosixPath) -> PurePosixPath:
    """Where a path of the container lies on the host."""
    return PurePosixPath(mount.source) / path.relative_to(mount.target)
