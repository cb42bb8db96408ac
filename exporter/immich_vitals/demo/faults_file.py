"""Files that vanish from the disk while the database still names them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.world import World

ORIGINALS, PREVIEWS, THUMBNAILS = 3, 10, 12


@contextmanager
def originals_deleted(world: World) -> Iterator[None]:
    """Somebody tidied up in the media folder."""
    files = _paths(
        world,
        'SELECT "originalPath" FROM asset WHERE "deletedAt" IS NULL AND NOT "isExternal" AND type = \'IMAGE\''
        f" ORDER BY id LIMIT {ORIGINALS}",
    )
    with _without(files):
        yield


@contextmanager
def previews_deleted(world: World) -> Iterator[None]:
    """As after a restore without the folder of the thumbnails: rows are there, so Immich thinks that all is well."""
    with _without(_of_kind(world, "preview", PREVIEWS)):
        yield


@contextmanager
def thumbnails_emptied(world: World) -> Iterator[None]:
    """As after a run for thumbnails on a full disk: the files are there, with nothing in them."""
    kept = {path: path.read_bytes() for path in _of_kind(world, "thumbnail", THUMBNAILS)}
    for path in kept:
        path.write_bytes(b"")
    yield
    for path, content in kept.items():
        path.write_bytes(content)


@contextmanager
def _without(files: Sequence[Path]) -> Iterator[None]:
    kept = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    yield
    for path, content in kept.items():
        path.write_bytes(content)


def _of_kind(world: World, kind: str, count: int) -> list[Path]:
    return _paths(
        world,
        'SELECT f.path FROM asset_file f JOIN asset a ON a.id = f."assetId"'
        f" WHERE f.type = '{kind}' AND a.\"deletedAt\" IS NULL ORDER BY f.id LIMIT {count}",
    )


def _paths(world: World, query: str) -> list[Path]:
    with world.connect() as connection:
        return [Path(str(path)) for (path,) in connection.execute(query.encode())]


FAULTS_FILE: dict[str, Fault] = {
    "originals-deleted": Fault(
        f"{ORIGINALS} originals were deleted from the disk; the database still names them.",
        originals_deleted,
        Sign("file_lost", at_least=ORIGINALS, labels={"kind": "original"}),
        "ImmichOriginalsMissing",
    ),
    "previews-deleted": Fault(
        f"{PREVIEWS} previews were deleted from the disk, and Immich's run for missing thumbnails does not see it.",
        previews_deleted,
        Sign("file_lost", at_least=PREVIEWS, labels={"kind": "preview"}),
        "ImmichThumbnailFilesMissing",
    ),
    "thumbnails-emptied": Fault(
        f"{THUMBNAILS} thumbnails have nothing in them any more, as after a disk that was full.",
        thumbnails_emptied,
        Sign("file_lost", at_least=THUMBNAILS, labels={"kind": "thumbnail"}),
        "ImmichThumbnailFilesMissing",
    ),
}
