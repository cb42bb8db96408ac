"""The collector `storage`: what Immich's folders are, and what its user may do with them."""

import json
import os
import struct
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Deadline, SystemClock, TimedOut
from immich_vitals.collectors.storage import StorageCollector, StorageFacts, remarks_on, storage_samples
from immich_vitals.config import StorageConfig, WatchedPath, load
from immich_vitals.settings import FOLDERS
from immich_vitals.sources import storage as source
from immich_vitals.sources.docker import ContainerFacts, Mount
from immich_vitals.sources.docker_writers import FolderMount, Writer, Writers, folder_mounts, user_of
from immich_vitals.sources.files import Mount as FileMount
from immich_vitals.sources.rights import Rights, User, all_of, may
from immich_vitals.sources.state import State
from immich_vitals.sources.storage import (
    NAMES,
    Changes,
    FolderFacts,
    FolderLook,
    Identity,
    MediaFolders,
    WriteProbe,
    look_into,
)
from support.clock import FakeClock
from support.golden import cases, check

USER_ID = "6f1a2b3c-0d4e-4f5a-8b6c-7d8e9f0a1b2c"
ROOT = User(0, (0,), overrides=True)
THOUSAND = User(1000, (1000,))
EXT4 = FileMount("/data", "ext4", "8:1", False, "/dev/sda1", frozenset({"rw"}))

Found = dict[tuple[str, ...], float]


# -- golden


@pytest.mark.parametrize("case", cases("storage"), ids=lambda path: path.name)
def test_golden(case: Path, context: Context, update_golden: bool) -> None:
    """What the folders and Docker say in the case gives exactly its expected samples and remarks."""
    told = json.loads((case / "facts.json").read_text(encoding="utf-8"))
    facts = facts_of(told)
    check(case, StorageCollector.metrics, storage_samples(facts), update_golden)
    assert [remark.message for remark in remarks_on(facts)] == told["remarks"]


def facts_of(told: dict[str, object]) -> StorageFacts:
    folders = {}
    for role, each in told["folders"].items():  # type: ignore[attr-defined]
        path = Path(each.get("path", "/data" if role == "media" else f"/data/{NAMES[role]}"))
        mount = told["mounts"][each["mount"]] if each.get("mount") else None  # type: ignore[index]
        look = dict(each["look"])
        rights = tuple(Rights(int(mode, 8), uid, gid) for mode, uid, gid in look.pop("rights", []))
        marker = look.pop("marker_rights", None)
        folders[role] = FolderFacts(
            WatchedPath(role, path),
            FolderLook(**look, rights=rights, marker_rights=Rights(int(marker[0], 8), *marker[1:]) if marker else None),
            FileMount(**{**mount, "options": frozenset(mount["options"])}) if mount else None,
        )
    writers = [
        Writer(
            User(writer["uid"], (writer["gid"],), overrides=writer["uid"] == 0) if "uid" in writer else None,
            {folder: FolderMount(**mount) for folder, mount in writer.get("folders", {}).items()},
        )
        for writer in told["writers"]  # type: ignore[attr-defined]
    ]
    probe = WriteProbe(**told["probe"]) if "probe" in told else None  # type: ignore[arg-type]
    return StorageFacts(folders, writers, told["changes"], probe)  # type: ignore[arg-type]


# -- a real media folder


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A media folder as Immich makes it, with one user."""
    media = tmp_path / "media"
    for folder in NAMES.values():
        (media / folder).mkdir(parents=True)
        (media / folder / ".immich").write_text("1732152434000")
    for folder in ("upload", "thumbs", "encoded-video", "profile"):
        (media / folder / USER_ID).mkdir()
    (media / "library" / "admin" / "2024").mkdir(parents=True)
    return media


def watched(media: Path) -> list[WatchedPath]:
    return [WatchedPath("media", media), *(WatchedPath(role, media / name) for role, name in NAMES.items())]


def collector(media: Path, tmp_path: Path, *, write_probe: bool = False, **options: object) -> StorageCollector:
    """As after a start of the exporter; what it keeps is in `tmp_path`."""
    config = StorageConfig(300.0, (os.geteuid(), os.getegid()), write_probe)
    folders = MediaFolders(watched(media), **options)  # type: ignore[arg-type]
    return StorageCollector(folders, config, State(tmp_path, "storage"))


def run(collector: StorageCollector, context: Context | None = None) -> Found:
    """The samples of one run, by metric and labels."""
    context = context or Context(Deadline.after(10.0), SystemClock())
    return {(sample.metric.name, *sample.labels): sample.value for sample in collector.collect(context)}


def value(found: Found, name: str, *labels: str) -> float | None:
    return found.get((f"storage_{name}", *labels))


def test_healthy(media: Path, tmp_path: Path, context: Context) -> None:
    """A media folder as Immich leaves it: all is there, nothing is remarked, at most 38 series."""
    found = run(collector(media, tmp_path), context)
    for folder in FOLDERS:
        assert value(found, "folder_present", folder) == 1
        assert value(found, "marker_present", folder) == 1
        assert [value(found, "access", folder, access) for access in ("read", "write", "enter")] == [1, 1, 1]
    assert {key[1] for key in found if key[0] == "storage_nested"} == set(FOLDERS) - {"backups"}
    assert value(found, "io_error") == value(found, "root_changes_total") == 0
    assert value(found, "write_probe_success") is None
    assert len(found) <= 38
    assert context.remarks == []


def test_before_the_first_start(tmp_path: Path, context: Context) -> None:
    """A media folder that Immich has not filled yet: no folder is there, and nothing else is claimed or remarked."""
    (tmp_path / "media").mkdir()
    found = run(collector(tmp_path / "media", tmp_path), context)
    assert {key: number for key, number in found.items() if key[0] != "storage_folder_present"} == {
        ("storage_io_error",): 0,
        ("storage_root_changes_total",): 0,
    }
    assert all(value(found, "folder_present", folder) == 0 for folder in FOLDERS)
    assert context.remarks == []


def test_missing_media_folder(tmp_path: Path, context: Context) -> None:
    """Without the media folder every folder is missing; that is an answer, not a failure."""
    found = run(collector(tmp_path / "nowhere", tmp_path), context)
    assert all(value(found, "folder_present", folder) == 0 for folder in FOLDERS)


def test_old_release(media: Path, tmp_path: Path, context: Context) -> None:
    """Before 1.115 there are no markers: they are 0, and nobody is told that Immich will not start."""
    for marker in media.glob("*/.immich"):
        marker.unlink()
    (media / "backups").rmdir()
    found = run(collector(media, tmp_path), context)
    assert value(found, "marker_present", "thumbs") == 0
    assert value(found, "marker_present", "backups") is None
    assert value(found, "folder_present", "backups") == 0
    assert context.remarks == []


def test_one_marker_is_gone(media: Path, tmp_path: Path, context: Context) -> None:
    """The one folder is named, with what to look at first."""
    (media / "thumbs" / ".immich").unlink()
    found = run(collector(media, tmp_path), context)
    assert [folder for folder in FOLDERS if value(found, "marker_present", folder) == 0] == ["thumbs"]
    (remark,) = context.remarks
    assert remark.message == "the file .immich is missing in thumbs, so Immich will not start again"
    assert "right disk" in remark.mend


def test_strange_things_in_place_of_folders(media: Path, tmp_path: Path) -> None:
    """A file, a dangling link, a loop of links are no folders; a link to a folder is one; a link may be a marker."""
    for folder in ("upload", "library", "thumbs", "profile"):
        (media / folder).rename(tmp_path / folder)
    (media / "upload").touch()
    (media / "library").symlink_to(tmp_path / "nowhere")
    (media / "thumbs").symlink_to(media / "thumbs")
    (media / "profile").symlink_to(tmp_path / "profile")
    (media / "backups" / ".immich").unlink()
    (media / "backups" / ".immich").symlink_to("nowhere")
    found = run(collector(media, tmp_path))
    present = {folder: value(found, "folder_present", folder) for folder in FOLDERS}
    assert present == {"upload": 0, "library": 0, "thumbs": 0, "encoded_video": 1, "profile": 1, "backups": 1}
    assert value(found, "marker_present", "profile") == 1
    assert value(found, "marker_present", "backups") == 0


def test_settings(tmp_path: Path, media: Path) -> None:
    """A folder with a path of its own is looked at there; without any folder the collector says what to set."""
    away = tmp_path / "away"
    (media / "thumbs").rename(away)
    settings = {
        "IMMICH_MEDIA_LOCATION": str(media),
        "IMMICH_VITALS_THUMBS_PATH": str(away),
        "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "IMMICH_VITALS_MEDIA_USER": "0:0",
    }
    found = StorageCollector.from_config(load(settings))
    assert found is not None
    assert value(run(found), "marker_present", "thumbs") == 1
    only = StorageCollector.from_config(load({"IMMICH_VITALS_THUMBS_PATH": str(away)}))
    assert only is not None
    assert {key[1] for key in run(only) if key[0] == "storage_folder_present"} == {"thumbs"}
    nothing = load({})
    assert StorageCollector.from_config(nothing) is None
    assert "IMMICH_MEDIA_LOCATION" in StorageCollector.disabled_because(nothing)


@pytest.mark.parametrize(
    ("made", "nested"),
    [
        ({"upload/upload/x": USER_ID}, ["upload"]),
        ({"upload/thumbs/x": USER_ID}, ["upload"]),
        ({"upload/upload": ""}, []),  # an empty folder: the place of a mount, or what a mend left
        ({"thumbs/thumbs/ab": "x"}, ["thumbs"]),
        ({"encoded-video/encoded-video/x": "x"}, ["encoded_video"]),
        ({"profile/profile/x": "x"}, ["profile"]),
        ({"backups/backups/x": "x", "backups/upload/x": "x"}, []),  # somebody's copies
        ({"library/library/2024/x": "x"}, []),  # a user whose label is library
        ({"library/upload/2024/x": "x"}, []),
        ({"library/library/admin/2024": ""}, ["library"]),  # the same user twice
        ({f"library/library/{USER_ID}": ""}, ["library"]),
        ({"library/upload/2024": "", "library/thumbs/2024": ""}, ["library"]),  # two such users are none
        ({"upload/library.old/x": "x", "upload/backup/upload/x": "x"}, []),
    ],
    ids=str,
)
def test_nested(media: Path, tmp_path: Path, made: dict[str, str], nested: list[str]) -> None:
    """A restore one level too deep shows; users' labels, empty folders and people's own copies do not."""
    for path, name in made.items():
        (media / path / name).mkdir(parents=True)
    found = run(collector(media, tmp_path))
    assert [folder for folder in FOLDERS if value(found, "nested", folder)] == nested


def test_nested_by_its_marker_and_not_by_a_link(media: Path, tmp_path: Path) -> None:
    """A marker below tells a restored `library/library`; a link that leads back, made for old paths, is none."""
    (media / "library" / "library").mkdir()
    (media / "library" / "library" / ".immich").touch()
    (media / "upload" / "upload").symlink_to(media / "upload")
    found = run(collector(media, tmp_path))
    assert [folder for folder in FOLDERS if value(found, "nested", folder)] == ["library"]


def test_many_entries(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder with very many entries only the first are looked at."""
    for number in range(50):
        (media / "upload" / f"{number:08x}{USER_ID[8:]}").mkdir()
    monkeypatch.setattr(source, "ENTRIES", 10)
    look = look_into(WatchedPath("upload", media / "upload"))
    assert 1 <= len(look.rights) <= 11


def test_name_that_is_not_utf8(media: Path, tmp_path: Path) -> None:
    """Names of strange bytes in the folders harm nothing."""
    (media / "library" / os.fsdecode(b"caf\xe9")).mkdir()
    assert value(run(collector(media, tmp_path)), "nested", "library") == 0


# -- hanging and failing folders


def test_hanging_folder(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    """A folder that does not answer has no samples and is named; the others are as usual; it is not asked twice."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    asked = []

    def look(item: WatchedPath) -> FolderLook:
        asked.append(item.role)
        if item.role == "thumbs" and fifo.exists():
            fifo.read_bytes()
        return look_into(item)

    monkeypatch.setattr(source, "look_into", look)
    looked = collector(media, tmp_path, patience=0.2)
    for _ in range(2):
        found = run(looked, context)
    assert {key[1] for key in found if key[0] == "storage_folder_present"} == set(FOLDERS) - {"thumbs"}
    assert asked.count("thumbs") == 1
    assert asked.count("upload") == 2
    assert context.remarks[0].message == "does not respond: thumbs"
    with fifo.open("w"):
        fifo.unlink()
    while value(run(looked), "folder_present", "thumbs") != 1:
        pass


def test_slower_than_the_deadline(media: Path, tmp_path: Path) -> None:
    """Without time there is no answer."""
    with pytest.raises(TimedOut, match="no time left"):
        run(collector(media, tmp_path), Context(Deadline.after(-1), SystemClock()))


@pytest.mark.parametrize("call", ["stat", "scandir", "statvfs", "getxattr"])
def test_error_of_the_disk(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An error of the file system on the way says so, and spoils no other folder."""
    real = getattr(os, call)

    def broken(path: object, *rest: object, **named: object) -> object:
        if "thumbs" in str(path):
            raise OSError(5, "Input/output error")
        return real(path, *rest, **named)

    monkeypatch.setattr(source.os, call, broken)
    context = Context(Deadline.after(10.0), SystemClock())
    found = run(collector(media, tmp_path), context)
    assert value(found, "folder_present", "upload") == 1
    if call != "getxattr":  # a list that cannot be read is unknown, and no more
        assert value(found, "io_error") == 1
        assert any("thumbs (Input/output error)" in remark.message for remark in context.remarks)


# -- another disk in its place


def test_root_replaced(media: Path, tmp_path: Path) -> None:
    """Another folder in the place of the media folder is one change, a folder that comes back is none."""
    looked = collector(media, tmp_path)
    assert value(run(looked), "root_changes_total") == 0
    media.rename(tmp_path / "away")
    assert value(run(looked), "root_changes_total") == 0  # gone is not another
    (tmp_path / "away").rename(media)
    assert value(run(looked), "root_changes_total") == 0
    media.rename(tmp_path / "away")
    media.mkdir()
    context = Context(Deadline.after(10.0), SystemClock())
    assert value(run(looked, context), "root_changes_total") == 1
    assert any("was replaced" in remark.message for remark in context.remarks)
    assert value(run(looked), "root_changes_total") == 1


def test_root_replaced_while_the_exporter_was_away(media: Path, tmp_path: Path) -> None:
    """The folder before a restart of the exporter is remembered, and the count goes on."""
    run(collector(media, tmp_path))
    media.rename(tmp_path / "away")
    media.mkdir()
    assert value(run(collector(media, tmp_path)), "root_changes_total") == 1
    media.rmdir()
    (tmp_path / "away").rename(media)
    assert value(run(collector(media, tmp_path)), "root_changes_total") == 2
    assert value(run(collector(media, tmp_path)), "root_changes_total") == 2


def test_remark_on_a_change_ends(media: Path, tmp_path: Path) -> None:
    """People are told for an hour."""
    looked, clock = collector(media, tmp_path), FakeClock()
    run(looked, Context(Deadline.after(10.0, clock), clock))
    media.rename(tmp_path / "away")
    media.mkdir()
    context = Context(Deadline.after(10.0, clock), clock)
    run(looked, context)
    assert context.remarks
    clock.advance(3700)
    context = Context(Deadline.after(10.0, clock), clock)
    run(looked, context)
    assert context.remarks == []


def test_folder_made_anew_is_no_other_disk(media: Path, tmp_path: Path) -> None:
    """Who empties `thumbs` and makes it anew changes no disk."""
    looked = collector(media, tmp_path)
    run(looked)
    (media / "thumbs").rename(tmp_path / "old")
    (media / "thumbs").mkdir()
    assert value(run(looked), "root_changes_total") == 0


@pytest.mark.parametrize(
    "kept",
    ["{", "[]", '{"count": "x", "seen": 3}', '{"seen": {"media": {"inode": "x"}}}', '{"seen": {"media": 1}, "at": []}'],
)
def test_garbage_in_the_state(media: Path, tmp_path: Path, kept: str) -> None:
    """What cannot be read is as if nothing had been kept."""
    (tmp_path / "storage.json").write_text(kept)
    assert value(run(collector(media, tmp_path)), "root_changes_total") == 0
    assert json.loads((tmp_path / "storage.json").read_text())["seen"]["media"]["inode"] == media.stat().st_ino


def test_state_that_cannot_be_written(media: Path, tmp_path: Path, context: Context) -> None:
    """It costs the memory over a restart, and is remarked."""
    looked = collector(media, tmp_path / "nowhere")
    assert value(run(looked, context), "root_changes_total") == 0
    assert "IMMICH_VITALS_STATE_PATH" in context.remarks[0].mend


def identity(
    inode: int = 2, filesystem: int = 7, fstype: str = "ext4", source: str = "/dev/sda1", boot: str = "a"
) -> Identity:
    return Identity(inode, filesystem, fstype, source, boot)


@pytest.mark.parametrize(
    ("new", "same"),
    [
        (identity(boot="b"), True),
        (identity(source="/dev/sdb1", boot="b"), True),  # the same disk found in another order
        (identity(filesystem=8, source="/dev/sdb1", boot="b"), True),  # XFS: its number follows the name
        (identity(filesystem=8, source="/dev/sdb1"), False),
        (identity(inode=131073), False),
        (identity(fstype="btrfs"), False),
    ],
    ids=str,
)
def test_same_folder_on_a_disk(new: Identity, same: bool) -> None:
    """A boot may give a disk another name; another number, inode or type is another folder."""
    assert identity().same_folder(new) is same


def test_same_folder_elsewhere() -> None:
    """A share that is mounted anew is the same; so is one whose inodes are made up; another share is not."""
    nfs = identity(128, 0, "nfs4", "nas:/photos")
    assert nfs.same_folder(identity(128, 0, "nfs4", "nas:/photos", boot="b"))
    assert not nfs.same_folder(identity(128, 0, "nfs4", "nas:/other"))
    fuse = FolderFacts(
        WatchedPath("media", Path("/mnt/user/immich")),
        FolderLook(present=True, inode=11, filesystem=0),
        FileMount("/mnt/user", "fuse.shfs", "0:40", False, "shfs", frozenset()),
    )
    found = Identity.of(fuse, "a")
    assert found is not None
    assert found.inode == 0
    assert Identity.of(FolderFacts(fuse.watched, FolderLook(present=False), None), "a") is None
    assert Identity.read(found.kept()) == found


def test_changes_count_once_for_all_folders() -> None:
    """A vanished disk changes the root and all folders in it; that is one change."""
    changes = Changes()
    everything = ["media", *FOLDERS]
    assert changes.note(dict.fromkeys(everything, identity()), 1.0)
    assert not changes.note(dict.fromkeys(everything, identity()), 2.0)
    assert changes.note(dict.fromkeys(everything, identity(filesystem=9, source="/dev/sdb1")), 3.0)
    assert (changes.count, changes.at) == (1, 3.0)


# -- the write probe


def test_write_probe(media: Path, tmp_path: Path, context: Context) -> None:
    """A small file is written and removed; nothing of it stays, nor of one that was cut short."""
    (media / source.PROBE_NAME).write_text("cut short")
    before = sorted(path.name for path in media.iterdir() if path.name != source.PROBE_NAME)
    found = run(collector(media, tmp_path, write_probe=True), context)
    assert value(found, "write_probe_success") == 1
    assert sorted(path.name for path in media.iterdir()) == before
    assert context.remarks == []


def test_write_probe_does_not_follow_links(media: Path, tmp_path: Path) -> None:
    """A link of the probe's name is removed, not written through."""
    (tmp_path / "precious").write_text("precious")
    (media / source.PROBE_NAME).symlink_to(tmp_path / "precious")
    assert source.write_and_remove(media).worked
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("error", "first", "later"), [(13, None, 0), (30, None, 0), (28, 0, 0), (5, 0, 0), (122, 0, 0)], ids=str
)
def test_write_probe_fails(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, first: float | None, later: float
) -> None:
    """A full or broken disk is a failure; that we may not write says nothing of Immich, unless we could before."""
    open_file = os.open

    def refuse(*told: object, **named: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(source.os, "open", refuse)
    context = Context(Deadline.after(10.0), SystemClock())
    assert value(run(collector(media, tmp_path, write_probe=True), context), "write_probe_success") == first
    assert os.strerror(error) in context.remarks[0].message
    monkeypatch.setattr(source.os, "open", open_file)
    assert value(run(collector(media, tmp_path, write_probe=True)), "write_probe_success") == 1
    monkeypatch.setattr(source.os, "open", refuse)
    assert value(run(collector(media, tmp_path, write_probe=True)), "write_probe_success") == later


def test_write_probe_hangs(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    """A write that hangs is a failure."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(source, "write_and_remove", lambda folder: fifo.read_bytes())
    found = run(collector(media, tmp_path, write_probe=True, patience=0.2), context)
    assert value(found, "write_probe_success") == 0
    assert "it hangs" in context.remarks[0].message
    with fifo.open("w"):
        pass


# -- who may


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As the kernel gives it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("user", "rights", "answers"),
    [
        (THOUSAND, Rights(0o755, 1000, 1000), (True, True, True)),
        (THOUSAND, Rights(0o755, 0, 0), (True, False, True)),
        (THOUSAND, Rights(0o077, 1000, 1000), (False, False, False)),  # the owner's bits count, though others may
        (THOUSAND, Rights(0o707, 0, 1000), (False, False, False)),  # and the group's
        (User(1000, (1000,), frozenset({44})), Rights(0o770, 0, 44), (True, True, True)),
        (User(1000, (1000,), more_groups=True), Rights(0o755, 0, 0), (True, None, True)),
        (User(1000, (1000, 0)), Rights(0o775, 0, 0), (True, None, True)),  # which is its first group?
        (User(1000, ()), Rights(0o755, 0, 0), (None, None, None)),
        (ROOT, Rights(0o000, 1000, 1000), (True, True, True)),
        (User(0, (0,)), Rights(0o700, 1000, 1000), (False, False, False)),  # root without DAC_OVERRIDE
        (THOUSAND, Rights(0o700, 0, 0, hidden=True), (None, None, None)),
        (
            THOUSAND,
            Rights(0o770, 0, 0, acl((1, 7, NOBODY), (2, 7, 1000), (4, 0, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY))),
            (True, False, True),
        ),
        (
            THOUSAND,
            Rights(0o770, 0, 0, acl((1, 7, NOBODY), (4, 0, NOBODY), (8, 6, 1000), (16, 7, NOBODY), (32, 7, NOBODY))),
            (True, True, False),
        ),
        (THOUSAND, Rights(0o755, 0, 0, b"garbage"), (True, False, True)),
    ],
    ids=str,
)
def test_may(user: User, rights: Rights, answers: tuple[bool | None, ...]) -> None:
    """By owner, groups and lists as Linux does it; None where a group or a list is not known."""
    assert tuple(may(user, access, rights, EXT4) for access in ("read", "write", "enter")) == answers


@pytest.mark.parametrize(
    ("fstype", "options", "root", "granted", "refused"),
    [
        ("ext4", "", True, True, False),
        ("zfs", "", True, True, False),
        ("nfs4", "", None, True, None),
        ("9p", "", None, True, None),
        ("cifs", "", None, True, False),
        ("cifs", "noperm", None, None, None),
        ("fuse.sshfs", "", None, None, None),
        ("fuse.shfs", "default_permissions,allow_other", True, True, False),
        ("fuse.mergerfs", "default_permissions,allow_other", True, True, False),
        ("virtiofs", "", True, True, False),
        ("fakeowner", "", None, None, None),
    ],
)
def test_may_by_file_system(
    fstype: str, options: str, root: bool | None, granted: bool | None, refused: bool | None
) -> None:
    """Where a server or a program decides, mode bits prove little, and root may be nobody."""
    mount = FileMount("/data", fstype, "0:40", False, "x", frozenset(options.split(",")))
    rights = Rights(0o750, 1000, 1000)
    assert may(ROOT, "write", rights, mount) is root
    assert may(THOUSAND, "write", rights, mount) is granted
    assert may(User(1001, (1001,)), "write", rights, mount) is refused
    assert may(ROOT, "write", Rights(0o777, 1000, 1000), mount) is True
    assert may(THOUSAND, "write", rights, None) is None


def test_all_of() -> None:
    """One refusal is enough; one that is not known, or none at all, is not known."""
    assert all_of([True, True]) is True
    assert all_of([True, None, False]) is False
    assert all_of([True, None]) is None
    assert all_of([]) is None


# -- what Docker says


def container(image: str = "ghcr.io/immich-app/immich-server:v2.7.5", **told: object) -> ContainerFacts:
    facts: dict[str, object] = {
        "name": "immich_server", "image": image, "state": "running", "health": "healthy", "restarts": 0,
        "started": None, "finished": None, "exit_code": None, "oom_killed": False, "start_failed": False,
        "restart_policy": "always", "memory_limit": None, "shm_size": None, "mounts": (), "env": {}, "labels": {},
    }  # fmt: skip
    return ContainerFacts(**{**facts, **told})  # type: ignore[arg-type]


OTHER = "ghcr.io/imagegenius/immich:2.7.5"


@pytest.mark.parametrize(
    ("facts", "maps", "user"),
    [
        (container(), False, User(0, (0,), overrides=True)),
        (container(user="root"), False, User(0, (0,), overrides=True)),
        (container(user="0:0", root_overrides=False), False, User(0, (0,))),
        (container(user="1000:1000"), False, THOUSAND),
        (container(user="1000"), False, User(1000, (1000, 0))),
        (container(user="1000:users"), False, User(1000, ())),
        (container(user="node"), False, None),
        (container(user="1000:1000", groups=("44", "root")), False, User(1000, (1000,), frozenset({0, 44}))),
        (
            container(user="1000:1000", groups=("video",)),
            False,
            User(1000, (1000,), more_groups=True),
        ),
        (container(user="1000:1000"), True, None),
        (container(user="1000:1000"), None, None),
        (container(user="1000:1000", own_users=True), True, THOUSAND),
        (container(OTHER), False, None),
        (container(OTHER, env={"PUID": "1000", "PGID": "100"}), False, User(1000, (100,))),
        (container(OTHER, env={"PUID": "1000"}), False, User(1000, (1000, 0))),
        (container(OTHER, user="1000:1000"), False, THOUSAND),
    ],
    ids=lambda value: f"{value.image}-{value.user}-{value.groups}" if isinstance(value, ContainerFacts) else None,
)
def test_user_of_a_container(facts: ContainerFacts, maps: bool | None, user: User | None) -> None:
    """As given, where the numbers are the host's; names that only the image knows are not guessed."""
    assert user_of(facts, maps) == user


def bind(source: str, target: str, *, writable: bool = True) -> Mount:
    return Mount("bind", "", target, source, writable)


@pytest.mark.parametrize(
    ("mounts", "elsewhere", "read_only"),
    [
        ([bind("/srv/immich", "/data")], [], []),
        ([bind("/srv/immich", "/data", writable=False)], [], list(FOLDERS)),
        ([bind("/srv/immich", "/data"), bind("/fast/thumbs", "/data/thumbs")], ["thumbs"], []),
        ([bind("/srv/immich", "/data"), bind("/srv/immich/thumbs", "/data/thumbs", writable=False)], [], ["thumbs"]),
        ([bind(f"/srv/immich/{name}", f"/data/{name}") for name in NAMES.values()], [], []),
        (
            [bind(f"/srv/immich/{name}", f"/data/{name}") for name in ("upload", "library")]
            + [bind("/fast/tn", "/data/thumbs")],
            ["thumbs"],
            [],
        ),
        ([Mount("volume", "photos", "/data", "")], [], []),
        ([], [], []),
    ],
    ids=str,
)
def test_mounts_of_a_container(mounts: list[Mount], elsewhere: list[str], read_only: list[str]) -> None:
    """A folder on another disk of the host, and one that the container may not write to, show."""
    found = folder_mounts(container(mounts=tuple(mounts)))
    assert [folder for folder, mount in found.items() if mount.elsewhere] == elsewhere
    assert [folder for folder, mount in found.items() if not mount.writable] == read_only


class FakeDocker:
    """In the place of WritersOfDocker: says what it is told."""

    def __init__(self, *writers: Writer, problem: str = "") -> None:
        self._writers = Writers(writers, problem, "mend it")

    def read(self, deadline: Deadline) -> Writers:
        return self._writers

    def close(self) -> None:
        pass


def with_docker(media: Path, docker: FakeDocker, user: tuple[int, int] | None = None) -> StorageCollector:
    config = StorageConfig(300.0, user, write_probe=False)
    return StorageCollector(MediaFolders(watched(media)), config, State(None, "storage"), docker)  # type: ignore[arg-type]


def test_read_only_for_the_container(media: Path, context: Context) -> None:
    """A mount that the container may not write to counts, be the user root."""
    mounts = {folder: FolderMount(writable=folder != "thumbs") for folder in FOLDERS}
    found = run(with_docker(media, FakeDocker(Writer(ROOT, mounts))), context)
    assert value(found, "access", "thumbs", "write") == 0
    assert value(found, "access", "thumbs", "read") == 1
    assert value(found, "access", "upload", "write") == 1
    assert [remark.message for remark in context.remarks] == ["Immich may not write thumbs"]


def test_folder_on_another_disk_that_we_do_not_see(media: Path, context: Context) -> None:
    """Of the empty folder below a mount of Immich's own nothing is said; people are told how to show us its disk."""
    (media / "thumbs" / ".immich").unlink()
    mounts = {folder: FolderMount(True, elsewhere=folder == "thumbs") for folder in FOLDERS}
    found = run(with_docker(media, FakeDocker(Writer(ROOT, mounts))), context)
    assert not [key for key in found if "thumbs" in key]
    assert value(found, "marker_present", "upload") == 1
    (remark,) = context.remarks
    assert "Immich has thumbs on another disk" in remark.message
    assert "IMMICH_VITALS_THUMBS_PATH" in remark.mend


def test_two_containers(media: Path) -> None:
    """Server and microservices must both be able to."""
    other = User(1234, (1234,))
    found = run(with_docker(media, FakeDocker(Writer(ROOT, {}), Writer(other, {}))))
    assert value(found, "access", "upload", "write") == 0
    assert value(found, "access", "upload", "read") == 1


@pytest.mark.parametrize("docker", [FakeDocker(), FakeDocker(problem="Docker is away"), FakeDocker(Writer(None, {}))])
def test_user_not_known(media: Path, docker: FakeDocker) -> None:
    """Without a user nothing is said of rights, and all else as usual; a user in the settings is enough."""
    found = run(with_docker(media, docker))
    assert value(found, "marker_present", "upload") == 1
    assert not [key for key in found if key[0] == "storage_access"]
    found = run(with_docker(media, docker, (1234, 1234)))
    assert value(found, "access", "upload", "write") == 0


def test_docker_away_is_remarked(media: Path, context: Context) -> None:
    """And not where a setting names the user."""
    run(with_docker(media, FakeDocker(problem="Docker is away")), context)
    assert [remark.message for remark in context.remarks] == ["Docker is away"]
    run(with_docker(media, FakeDocker(problem="Docker is away"), (0, 0)), context)
    assert len(context.remarks) == 1


def test_read_only_file_system(media: Path, tmp_path: Path) -> None:
    """A file system that takes no writes is not writable, whoever asks."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"36 35 8:1 / {tmp_path} rw - ext4 /dev/sda1 ro,errors=remount-ro\n")
    found = run(collector(media, tmp_path, mountinfo=mountinfo))
    assert value(found, "access", "upload", "write") == 0
    mountinfo.write_text(f"36 35 8:1 / {tmp_path} ro - ext4 /dev/sda1 rw\n")  # mounted read-only for us alone
    found = run(collector(media, tmp_path, mountinfo=mountinfo))
    assert value(found, "access", "upload", "write") == 1


def test_close(media: Path, tmp_path: Path) -> None:
    """Closing without Docker, and with one, is quiet."""
    collector(media, tmp_path).close()
    with_docker(media, FakeDocker()).close()
