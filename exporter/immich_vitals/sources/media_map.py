"""Where this process sees a file that Immich has recorded under the path of its own container.

Immich records paths in three ways: from 1.136 absolute below its media location; before that relative to its working
directory, as `upload/thumbs/...`; those of external libraries always absolute. Its media location was
`/usr/src/app/upload`, is `/data` since 1.137, and may be set. Our media folder is the same one, mounted elsewhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from immich_vitals.config import Config
from immich_vitals.settings import FOLDERS
from immich_vitals.sources.docker import ContainerFacts, Mount
from immich_vitals.sources.docker_immich import NEW_LOCATION, OLD_LOCATION, WORKING_DIRECTORY, media_location

OTHER = "other"
_FOLDER_OF = {folder.replace("_", "-"): folder for folder in FOLDERS}


class Reach(Enum):
    """Whether files below a recorded prefix can be found; the values are those of the label `reachable`.

    NOWHERE is known for sure: the server's container has nothing mounted there, so Immich cannot find them either.
    Where only this process does not see them, it is UNKNOWN.
    """

    HERE = "1"
    NOWHERE = "0"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a recorded file is here. `root` is the folder above it that must have something in it before the absence
    of the file says anything: an empty one is a mount point whose disk is away, or was not given to us."""

    root: str
    path: str


@dataclass(frozen=True, slots=True)
class Route:
    """What is recorded below `inside` lies below `here`. None: the server has nothing there.

    `media`: it is a media location, whose six folders may lie elsewhere. `shown`: its label is `inside`.
    """

    inside: PurePosixPath
    here: Path | None
    media: bool = False
    shown: bool = True


class MediaMap:
    """Maps recorded paths to paths here by the longest prefix. Looks at no disk.

    Several routes may begin at one place: the first with something in it counts, as `settled` is told.
    """

    def __init__(self, routes: Iterable[Route], folders: Mapping[str, Path], *, complete: bool = False) -> None:
        """`folders` are Immich's six, by their names. `complete`: the routes are all that the server has mounted, so a
        path that none of them holds is nowhere."""
        self._routes = tuple(sorted(routes, key=lambda route: -len(route.inside.parts)))
        self._folders = folders
        self._complete = complete

    def settled(self, alive: Mapping[str, bool]) -> "MediaMap":
        """The map without those routes whose folder is empty while another from the same place is not."""
        best: dict[PurePosixPath, Route] = {}
        for route in self._routes:
            known = best.setdefault(route.inside, route)
            if not self._lives(known, alive) and self._lives(route, alive):
                best[route.inside] = route
        return MediaMap(best.values(), self._folders, complete=self._complete)

    def find(self, recorded: str) -> Found | None:
        """Where the file is here, or None where that is not known.

        Immich writes no path with `..` or an empty part in it: what has one is not followed.
        """
        parts = recorded.removeprefix("/").split("/")
        if "\0" in recorded or any(part in ("", ".", "..") for part in parts):
            return None
        path = WORKING_DIRECTORY / recorded
        route = self._route(path)
        if route is None or route.here is None:
            return None
        root, rest = route.here, path.relative_to(route.inside).parts
        if route.media and rest and rest[0] in self._folders:
            root, rest = self._folders[rest[0]], rest[1:]
        return Found(str(root), str(root.joinpath(*rest))) if rest else None

    @property
    def prefixes(self) -> Mapping[str, str]:
        """What recorded paths may begin with, each with the label to count it under, the longest first."""
        found: dict[str, str] = {}
        for route in self._routes:
            if route.shown:
                found[f"{str(route.inside).rstrip('/')}/"] = str(route.inside)
                if (route.media or route.here is None) and route.inside.is_relative_to(WORKING_DIRECTORY):
                    relative = str(route.inside.relative_to(WORKING_DIRECTORY))
                    found[f"{relative}/"] = relative
        return found

    def reach(self, label: str, alive: Mapping[str, bool]) -> Reach:
        """Whether files below the prefix can be found. `alive` says of each of `roots` whether something is in it."""
        route = None if label == OTHER else self._route(WORKING_DIRECTORY / label)
        if route is None:
            return Reach.NOWHERE if self._complete else Reach.UNKNOWN
        if route.here is None:
            return Reach.NOWHERE
        return Reach.HERE if self._lives(route, alive) else Reach.UNKNOWN

    def is_media(self, label: str) -> bool:
        """Whether the label is a place of Immich's own files, be it an old one."""
        inside = WORKING_DIRECTORY / label
        return any(route.media or route.here is None for route in self._routes if route.inside == inside)

    @property
    def roots(self) -> tuple[str, ...]:
        """Every folder here that something is mapped to."""
        return tuple(dict.fromkeys(root for route in self._routes for root in self._roots_of(route)))

    @property
    def own_roots(self) -> tuple[str, ...]:
        """Immich's six folders."""
        return tuple(map(str, self._folders.values()))

    def _route(self, path: PurePosixPath) -> Route | None:
        return next((route for route in self._routes if path.is_relative_to(route.inside)), None)

    def _roots_of(self, route: Route) -> tuple[str, ...]:
        if route.here is None:
            return ()
        return self.own_roots if route.media else (str(route.here),)

    def _lives(self, route: Route, alive: Mapping[str, bool]) -> bool:
        return any(alive.get(root, False) for root in self._roots_of(route))


def media_map(config: Config, media: Path, server: ContainerFacts | None, stored: str | None) -> MediaMap:
    """The map for these settings. `server` is the server's container, where Docker shows it; `stored` the media
    location that Immich has noted in its database, where we may read it."""
    by_role = {watched.role: watched.path for watched in config.paths}
    folders = {name: by_role.get(role, media / name) for name, role in _FOLDER_OF.items()}
    external = [watched.path for watched in config.paths if watched.role == "external" and watched.path.is_absolute()]
    mounts = server.mounts if server is not None else None
    own = WORKING_DIRECTORY / stored if stored else media_location(server) if server is not None else None
    routes = [Route(PurePosixPath(inside), here) for inside, here in config.path_map.items()]
    if mounts is None or own is None:
        known = [own, media if media.is_absolute() else None, OLD_LOCATION, NEW_LOCATION]
        routes += [Route(PurePosixPath(each), media, media=True) for each in known if each is not None]
        routes += [Route(PurePosixPath(path), path) for path in external]
    else:
        routes += [Route(PurePosixPath(path), path) for path in external if _over(PurePosixPath(path), mounts)]
        routes += _server_routes(own, media, folders, mounts)
    return MediaMap(routes, folders, complete=mounts is not None and own is not None)


def _server_routes(
    own: PurePosixPath, media: Path, folders: Mapping[str, Path], mounts: Sequence[Mount]
) -> Iterator[Route]:
    """What the mounts of the server's container tell: where its own files are, what else it sees, and that it has
    nothing at the other place where releases of Immich keep their files."""
    yield Route(own, media, media=True)
    for other in (OLD_LOCATION, NEW_LOCATION):
        if other != own and not _over(other, mounts):
            yield Route(other, None)
    source = _source_of(own, mounts)
    for mount in mounts:
        target = PurePosixPath(mount.target)
        if not target.is_absolute() or target == own:
            continue
        if target.is_relative_to(own):  # a folder of its own disk: we may have it at the same place, or as the host
            first, *rest = target.relative_to(own).parts
            yield Route(target, folders.get(first, media / first).joinpath(*rest), shown=False)
            yield from _as_the_host(target, mount, shown=False)
        elif source is not None and mount.source and PurePosixPath(mount.source).is_relative_to(source):
            below = PurePosixPath(mount.source).relative_to(source).parts
            yield Route(target, media.joinpath(*below), media=not below)  # the same folder, mounted twice
        else:
            yield from _as_the_host(target, mount, shown=True)
            yield Route(target, Path(target))


def _as_the_host(target: PurePosixPath, mount: Mount, *, shown: bool) -> Iterator[Route]:
    """Beside Docker without a container, or with the folder mounted under its own name, its path is the host's."""
    if mount.source.startswith("/"):
        yield Route(target, Path(mount.source), shown=shown)


def _over(path: PurePosixPath, mounts: Iterable[Mount]) -> Mount | None:
    """The nearest mount that holds the path."""
    over = [mount for mount in mounts if mount.target.startswith("/") and path.is_relative_to(mount.target)]
    return max(over, key=lambda mount: len(PurePosixPath(mount.target).parts), default=None)


def _source_of(path: PurePosixPath, mounts: Iterable[Mount]) -> PurePosixPath | None:
    """The path on the host."""
    mount = _over(path, mounts)
    if mount is None or not mount.source.startswith("/"):
        return None
    return PurePosixPath(mount.source) / path.relative_to(mount.target)
