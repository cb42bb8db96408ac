"""What can be wrong with Immich's folders themselves."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.world import World

# Of no use to other faults: nothing reads it while the demo runs.
LOCKED = "encoded-video"


@contextmanager
def marker_missing(world: World) -> Iterator[None]:
    """One of the files that Immich looks for at its start is gone, as where another disk is mounted."""
    marker, aside = world.media / "thumbs" / ".immich", world.folder / "marker-aside"
    marker.rename(aside)
    yield
    aside.rename(marker)


@contextmanager
def media_not_writable(world: World) -> Iterator[None]:
    """Somebody took the right to write away from the user that Immich runs as."""
    folder = world.media / LOCKED
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    yield
    folder.chmod(mode)


@contextmanager
def restored_too_deep(world: World) -> Iterator[None]:
    """A backup of `upload` was restored into `upload`."""
    inner = world.media / "upload" / "upload"
    shutil.copytree(world.media / "upload", world.media / "restored")
    (world.media / "restored").rename(inner)
    yield
    shutil.rmtree(inner)


@contextmanager
def media_replaced(world: World) -> Iterator[None]:
    """The disk was unmounted under everybody: what is left is the empty folder that it was mounted on."""
    away = world.folder / "disk-unmounted"
    world.media.rename(away)
    world.media.mkdir()
    yield
    world.media.rmdir()
    away.rename(world.media)


FAULTS_STORAGE: dict[str, Fault] = {
    "marker-missing": Fault(
        "The file .immich is missing in the folder of the thumbnails.",
        marker_missing,
        Sign("storage_marker_present", at_most=0, labels={"folder": "thumbs"}),
        "ImmichMarkerMissing",
    ),
    "media-not-writable": Fault(
        f"Immich's user may not write to the folder {LOCKED}.",
        media_not_writable,
        Sign("storage_access", at_most=0, labels={"folder": LOCKED.replace("-", "_"), "access": "write"}),
        "ImmichMediaNotWritable",
    ),
    "restored-too-deep": Fault(
        "A backup of the folder upload was restored into the folder upload.",
        restored_too_deep,
        Sign("storage_nested", at_least=1, labels={"folder": "upload"}),
        "ImmichNestedMedia",
    ),
    "media-replaced": Fault(
        "The disk of the media folder was unmounted, and an empty folder is in its place.",
        media_replaced,
        Sign("storage_folder_present", at_most=0, labels={"folder": "library"}),
        "ImmichMediaMountMissing",
    ),
}
