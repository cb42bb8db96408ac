"""What the facts of a container mean for Immich: its version, and whether its photos outlive it."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from immich_vitals.sources.docker import ContainerFacts, Mount
from immich_vitals.sources.docker_components import repository, tag

OLD_LOCATION, NEW_LOCATION = PurePosixPath("/usr/src/app/upload"), PurePosixPath("/data")
NEW_SINCE = (1, 137)
# Where a relative IMMICH_MEDIA_LOCATION, as releases before 1.136 had it, starts from.
WORKING_DIRECTORY = PurePosixPath("/usr/src/app")
ORIGINALS = ("upload", "library")

_VERSION_ENV = {
    "server": ("IMMICH_SOURCE_REF",),
    "microservices": ("IMMICH_SOURCE_REF",),
    "machine_learning": ("IMMICH_SOURCE_REF",),
    "database": ("PG_VERSION",),
    "redis": ("VALKEY_VERSION", "REDIS_VERSION"),
    "proxy": ("NGINX_VERSION",),
}


def version_of(component: str, facts: ContainerFacts) -> str | None:
    """The version that a container runs, from its environment, the label of its image, or the image's tag.

    A tag that moves, such as `release`, is no version: then None.
    """
    told = (facts.env.get(name, "") for name in _VERSION_ENV[component])
    marks = facts.labels.get("org.opencontainers.image.version", ""), tag(facts.image)
    exact = (mark for mark in marks if re.search(r"\d+\.\d+", mark))
    return next((word for word in (*told, *exact) if re.fullmatch(r"[-+.:~/\w]{1,80}", word)), None)


def media_mounted(facts: ContainerFacts) -> bool | None:
    """Whether the photos are on a bind mount or a named volume, and not in what is lost with the container.

    A volume without a name counts as lost: the next container does not get it again. None when the mounts or
    the media location are not known.
    """
    if facts.mounts is None:
        return None
    location = media_location(facts)
    if location is None:
        return None
    folders = [location / folder for folder in ORIGINALS]
    return _kept(location, facts.mounts) or all(_kept(folder, facts.mounts) for folder in folders)


def media_location(facts: ContainerFacts) -> PurePosixPath | None:
    """Where Immich keeps its files inside the container, as it decides by itself."""
    own = facts.env.get("IMMICH_MEDIA_LOCATION")
    if own:
        return WORKING_DIRECTORY / own
    if not repository(facts.image).endswith("immich-server"):
        return None  # other builds have a default of their own
    if any(PurePosixPath(mount.target).is_relative_to(OLD_LOCATION) for mount in facts.mounts or ()):
        return OLD_LOCATION  # if it exists, new releases use it, too
    version = _numbers(version_of("server", facts))
    return OLD_LOCATION if version is not None and version < NEW_SINCE else NEW_LOCATION


def _kept(path: PurePosixPath, mounts: Iterable[Mount]) -> bool:
    """Whether the mount that a path lies on outlives the container."""
    over = [mount for mount in mounts if mount.target and path.is_relative_to(mount.target)]
    if not over:
        return False
    nearest = max(over, key=lambda mount: len(PurePosixPath(mount.target).parts))
    anonymous = nearest.kind == "volume" and re.fullmatch(r"[0-9a-f]{64}", nearest.name) is not None
    return nearest.kind != "tmpfs" and not anonymous


def _numbers(version: str | None) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else None
