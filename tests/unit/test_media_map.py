"""Recorded paths and where they are here: by the server's mounts, the settings, or what Immich does by default."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from immich_vitals.config import load
from immich_vitals.sources.docker import ContainerFacts, container_facts
from immich_vitals.sources.media_map import MediaMap, Reach, media_map

HERE = Path("/media")


def server(*mounts: tuple[str, str], version: str = "v2.7.5", location: str = "") -> ContainerFacts:
    """A server's container with bind mounts (source, target)."""
    env = [f"IMMICH_SOURCE_REF={version}"] + ([f"IMMICH_MEDIA_LOCATION={location}"] if location else [])
    return container_facts(
        {
            "Name": "/immich_server",
            "State": {"Status": "running"},
            "Config": {"Image": "ghcr.io/immich-app/immich-server:release", "Env": env},
            "Mounts": [{"Type": "bind", "Source": source, "Destination": target} for source, target in mounts],
        }
    )


def mapped(facts: ContainerFacts | None, stored: str | None = None, **own: str) -> MediaMap:
    settings = {f"IMMICH_VITALS_{name}": value for name, value in own.items()}
    return media_map(load({"IMMICH_VITALS_MEDIA_PATH": str(HERE), **settings}), HERE, facts, stored)


def place(found: MediaMap, recorded: str) -> str | None:
    where = found.find(recorded)
    return where.path if where else None


STOCK = server(("/srv/photos", "/data"))


@pytest.mark.parametrize(
    ("facts", "stored", "recorded", "expected"),
    [
        (None, None, "/data/upload/u/a.jpg", "/media/upload/u/a.jpg"),
        (None, None, "/usr/src/app/upload/thumbs/u/a.webp", "/media/thumbs/u/a.webp"),
        (None, None, "upload/library/admin/a.jpg", "/media/library/admin/a.jpg"),
        (None, None, "/media/encoded-video/u/a.mp4", "/media/encoded-video/u/a.mp4"),
        (None, "/photos", "/photos/profile/u/a.png", "/media/profile/u/a.png"),
        (None, None, "/mnt/photos/a.jpg", None),
        (STOCK, None, "/data/upload/u/a.jpg", "/media/upload/u/a.jpg"),
        (STOCK, None, "/usr/src/app/upload/upload/u/a.jpg", None),
        (STOCK, None, "upload/upload/u/a.jpg", None),
        (server(("/srv/photos", "/usr/src/app/upload")), None, "upload/upload/u/a.jpg", "/media/upload/u/a.jpg"),
        (server(("/srv/photos", "/usr/src/app/upload")), None, "/data/upload/u/a.jpg", None),
        (server(("/srv/photos", "/photos"), location="/photos"), None, "/photos/upload/a.jpg", "/media/upload/a.jpg"),
        (server(("/s", "/usr/src/app/box"), location="box"), None, "box/upload/a.jpg", "/media/upload/a.jpg"),
        # The old folder mounted at both places, as people do who move.
        (server(("/s", "/data"), ("/s", "/usr/src/app/upload")), "/data", "upload/upload/a.jpg", "/media/upload/a.jpg"),
        # A folder of the media on a disk of its own: where we have it, or as the host has it.
        (server(("/s", "/data"), ("/ssd", "/data/thumbs")), None, "/data/thumbs/u/a.webp", "/media/thumbs/u/a.webp"),
        (server(("/s", "/data"), ("/nas", "/mnt/nas")), None, "/mnt/nas/2024/a.jpg", "/nas/2024/a.jpg"),
        # An external library inside the media folder.
        (server(("/s", "/data"), ("/s/old", "/old")), None, "/old/2024/a.jpg", "/media/old/2024/a.jpg"),
        (STOCK, None, "/data/../etc/passwd", None),
        (STOCK, None, "/data/upload//a.jpg", None),
        (STOCK, None, "/data/upload/a\0.jpg", None),
        (STOCK, None, "/data", None),
        (STOCK, None, "", None),
    ],
)  # fmt: skip
def test_find(facts: ContainerFacts | None, stored: str | None, recorded: str, expected: str | None) -> None:
    """Each form of path, in each kind of container."""
    assert place(mapped(facts, stored), recorded) == expected


def test_settings_come_first() -> None:
    """PATH_MAP wins over all, the longest prefix over the shorter; folders may lie elsewhere."""
    found = mapped(STOCK, PATH_MAP="/data/library/ada=/ada,/mnt=/here", THUMBS_PATH="/ssd/thumbs")
    assert place(found, "/data/library/ada/a.jpg") == "/ada/a.jpg"
    assert place(found, "/data/library/ben/a.jpg") == "/media/library/ben/a.jpg"
    assert place(found, "/data/thumbs/u/a.webp") == "/ssd/thumbs/u/a.webp"
    assert place(found, "/mnt/x/a.jpg") == "/here/x/a.jpg"


def test_the_folder_with_something_in_it_counts() -> None:
    """An external folder is tried as a setting, as the host has it, and under the server's own name."""
    facts = server(("/s", "/data"), ("/disks/7", "/mnt/photos"))
    wanted: Mapping[str, str] = {"/disks/7": "/disks/7/a.jpg", "/mnt/photos": "/mnt/photos/a.jpg"}
    for alive, expected in wanted.items():
        found = mapped(facts, EXTERNAL_PATHS="/mnt/photos")
        assert {"/disks/7", "/mnt/photos"} <= set(found.roots)
        assert place(found.settled({alive: True}), "/mnt/photos/a.jpg") == expected
    facts = server(("/s", "/data"), ("/ssd", "/data/thumbs"))
    assert place(mapped(facts).settled({"/ssd": True}), "/data/thumbs/u/a.webp") == "/ssd/u/a.webp"


def test_reach() -> None:
    """1 where we see it, 0 only where the server surely has nothing, unknown otherwise."""
    alive = {"/media/upload": True, "/nas": True}
    found = mapped(server(("/s", "/data"), ("/nas", "/mnt/nas"), ("/etc/localtime", "/etc/localtime")))
    labels = ("/data", "/mnt/nas", "/usr/src/app/upload", "upload", "other")
    assert {label: found.reach(label, alive) for label in labels} == {
        "/data": Reach.HERE, "/mnt/nas": Reach.HERE, "/usr/src/app/upload": Reach.NOWHERE, "upload": Reach.NOWHERE,
        "other": Reach.NOWHERE,
    }  # fmt: skip
    assert found.reach("/data", {}) is Reach.UNKNOWN
    assert found.reach("/mnt/nas", {}) is Reach.UNKNOWN
    assert found.is_media("/data") and found.is_media("upload") and not found.is_media("/mnt/nas")
    unseen = mapped(None)
    assert unseen.reach("other", alive) is Reach.UNKNOWN
    assert unseen.reach("upload", alive) is Reach.HERE


def test_a_build_with_defaults_of_its_own_proves_nothing() -> None:
    """Where the media location is not known, nothing is called nowhere."""
    facts = container_facts(
        {"Name": "/immich", "State": {"Status": "running"}, "Config": {"Image": "someone/immich:2"}, "Mounts": []}
    )
    found = mapped(facts)
    assert found.reach("other", {}) is Reach.UNKNOWN
    assert place(found, "/data/upload/a.jpg") == "/media/upload/a.jpg"


def test_prefixes_are_known_places_only() -> None:
    """Media locations, mounts and settings; longest first, so that a folder inside another is counted as its own."""
    found = mapped(server(("/s", "/data"), ("/nas", "/data-nas"), ("/ssd", "/data/thumbs")), PATH_MAP="/a/b=/c")
    prefixes = list(found.prefixes.items())
    assert dict(prefixes) == {
        "/usr/src/app/upload/": "/usr/src/app/upload", "upload/": "upload", "/a/b/": "/a/b", "/data/": "/data",
        "/data-nas/": "/data-nas",
    }  # fmt: skip
    assert [len(Path(prefix).parts) for prefix, _ in prefixes if prefix != "upload/"] == [5, 3, 2, 2]


def test_hostile_mounts() -> None:
    """Relative, empty and strange targets change nothing."""
    facts = server(("/s", "/data"), ("", ""), ("x", "relative/target"), ("/y", "/"))
    found = mapped(facts)
    assert place(found, "/data/upload/a.jpg") == "/media/upload/a.jpg"
    assert found.prefixes["/data/"] == "/data"
