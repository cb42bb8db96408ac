"""The collector `file`, against real folders and databases with the tables of ten versions of Immich."""

import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, Every, TimedOut
from immich_vitals.collectors.file import FileCollector, is_quiet
from immich_vitals.collectors.library import LibraryCollector
from immich_vitals.config import Config, load
from immich_vitals.demo.servers import Postgres
from immich_vitals.grants import grants_sql
from immich_vitals.metrics import Sample
from immich_vitals.sources import asset_files
from immich_vitals.sources.asset_files import IDS, AssetFiles, windows, windows_query
from immich_vitals.sources.disks import DiskActivity
from immich_vitals.sources.file_compare import Server
from immich_vitals.sources.file_looks import Looker
from immich_vitals.sources.immich_schema import schema_from, schema_queries
from immich_vitals.sources.postgres import Database, Hello, Row
from support import fuse
from support.clock import FakeClock
from support.fake_docker import FakeDocker
from support.golden import cases, check
from support.immich_database import VERSIONS, immich_database, schema
from support.immich_database import config as postgres_config
from support.photo_library import PhotoLibrary

NO_DOCKER = "unix:///nowhere/docker.sock"


@pytest.fixture
def photos(tmp_path: Path) -> PhotoLibrary:
    return PhotoLibrary("2.7.5", tmp_path / "media", tmp_path / "external")


def settings(photos: PhotoLibrary, **own: str) -> Config:
    """Settings of an exporter that sees the folders; `own` without the prefix of their names."""
    named = {f"IMMICH_VITALS_{name}": value for name, value in own.items()}
    return load(
        {
            "DB_HOSTNAME": "db",
            "DOCKER_HOST": NO_DOCKER,
            "IMMICH_VITALS_MEDIA_PATH": str(photos.media),
            "IMMICH_VITALS_FILE_WAKES_DISKS": "true",
            "IMMICH_VITALS_PATH_MAP": f"/mnt/photos={photos.external}",
            **named,
        }
    )


class Exporter:
    """A collector with a clock of its own: what it waits for passes at once."""

    def __init__(self, server: Postgres, database: str, config: Config, user: str = "postgres", **more: Any) -> None:
        self.clock = FakeClock()
        self.context = self.fresh()
        media = next(watched.path for watched in config.paths if watched.role == "media")
        self.collector = FileCollector(
            config, postgres_config(server, database, user), media, clock=self.clock, pause=self.clock.advance,
            chance=random.Random(1), **more,
        )  # fmt: skip

    def fresh(self) -> Context:
        return Context(Deadline.after(600.0, self.clock), self.clock)

    def samples(self, after: float = 0.0) -> tuple[Sample, ...]:
        """What one run gives, some seconds after the last."""
        self.clock.advance(after)
        self.context = self.fresh()
        return tuple(self.collector.collect(self.context))

    def remarks(self) -> str:
        return " ".join(f"{remark.message} {remark.mend}" for remark in self.context.remarks)


@contextmanager
def exporter(server: Postgres, photos: PhotoLibrary, *, role: str = "postgres", **own: Any) -> Iterator[Exporter]:
    """An exporter beside the library."""
    more = {name: own.pop(name) for name in ("looker", "activity") if name in own}
    with immich_database(server, photos.version, setup=photos.sql) as database:
        yield Exporter(server, database, settings(photos, **own), role, **more)


def values(samples: tuple[Sample, ...], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


def counted(samples: tuple[Sample, ...], name: str = "file_sampled") -> dict[tuple[str, ...], float]:
    """The counts that are not 0."""
    return {labels: value for labels, value in values(samples, name).items() if value}


@pytest.mark.parametrize("case", cases("file"), ids=lambda path: path.name)
def test_golden(case: Path, postgres: Postgres, tmp_path: Path, update_golden: bool) -> None:
    """The library of the case gives exactly its expected samples, on every Postgres."""
    facts = json.loads((case / "case.json").read_text(encoding="utf-8"))
    photos = PhotoLibrary(facts["version"], tmp_path / "media", tmp_path / "external", facts["location"])
    for group in facts["assets"]:
        made = dict(group)
        count, spoil = made.pop("count"), made.pop("spoil", {})
        made["kinds"] = tuple(made.get("kinds", ("preview", "thumbnail")))
        for _ in range(count):
            files = photos.uploaded(**made) if "days" in made else photos.asset(**made)
            for kind, how in spoil.items():
                SPOIL[how](files[kind])
    if facts.get("people"):
        photos.people()
    if facts.get("storage_template"):
        photos.storage_template(on=True)
    state = tmp_path / "state"
    state.mkdir()
    with exporter(postgres, photos, FILE_AUDIT="true", STATE_PATH=str(state)) as found:
        if facts.get("audited"):
            audit(found)
        samples = found.samples()
    check(case, FileCollector.metrics, samples, update_golden)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOIL: Mapping[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "folder": make_folder,
}


def audit(found: Exporter) -> None:
    """One whole pass."""
    found.collector.follow(lambda: found.collector._audit.progress.completed is not None)


FORMS = [
    *((version, "/data" if "asset" in schema(version) else "upload") for version in VERSIONS),
    ("1.118.2", "/usr/src/app/upload"),
    ("1.137.3", "/usr/src/app/upload"),
    ("1.106.4", "/data"),
]


@pytest.mark.parametrize(("version", "location"), FORMS)
def test_every_version_and_form_of_path(version: str, location: str, tmp_path: Path, postgres18: Postgres) -> None:
    """Files recorded relative, below the old location and below the new one are found, each of their kinds."""
    photos = PhotoLibrary(version, tmp_path / "media", tmp_path / "external", location)
    kinds = ("preview", "thumbnail", "encoded_video", "sidecar")
    files = photos.asset(kinds=kinds)
    photos.asset(template="library/admin/2024/05/a photo.jpg")
    photos.asset(external=True)
    files["thumbnail"].unlink()
    with exporter(postgres18, photos) as found:
        samples = found.samples()
    assert counted(samples) == {
        ("original", "ok"): 2, ("external", "ok"): 1, ("preview", "ok"): 3, ("thumbnail", "ok"): 2,
        ("thumbnail", "missing"): 1, ("encoded_video", "ok"): 1, ("sidecar", "ok"): 1,
    }  # fmt: skip
    assert counted(samples, "file_lost") == {("thumbnail",): 1}
    assert values(samples, "file_path_prefix_assets") == {(location, "1"): 2, ("/mnt/photos", "1"): 1}


@pytest.mark.parametrize("version", ["1.106.4", "2.7.5"])
def test_rows_of_a_real_server(version: str, tmp_path: Path, postgres18: Postgres) -> None:
    """What a real Immich wrote is all understood: every file that a live asset names is found where it was made."""
    photos = PhotoLibrary(version, tmp_path / "media", tmp_path / "external")
    asset, live = photos.asset_table, 'a."deletedAt" IS NULL AND NOT a."isOffline" AND NOT a."isExternal"'
    with immich_database(postgres18, version, rows=True) as database:
        with postgres18.connect(database) as admin:
            columns = [name for name in schema(version)[asset] if name.endswith("Path")]
            paths = [
                row[0]
                for name in columns
                for row in admin.execute(f'SELECT "{name}" FROM {asset} a WHERE {live} AND "{name}" <> \'\''.encode())
            ]
            if photos.file_table:
                live = live.replace(' AND NOT a."isExternal"', "")  # thumbnails are Immich's own in any case
                query = f'SELECT path FROM {photos.file_table} f JOIN {asset} a ON a.id = f."assetId" WHERE {live}'
                paths += [row[0] for row in admin.execute(query.encode())]
        for path in map(str, paths):
            # A sidecar lies beside its photo, also in an external library.
            outside = path.startswith("/mnt/photos/")
            here = photos.external / path[12:] if outside else photos.media / path.removeprefix("/data/")
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(b"photo")
        found = Exporter(postgres18, database, settings(photos, FILE_SAMPLE="1000"))
        found.samples()
        results = counted(found.samples(after=301))
    own = {labels: count for labels, count in results.items() if labels[0] != "external"}
    assert {result for _, result in own} == {"ok"}
    assert sum(own.values()) == len(set(paths))


def test_only_live_assets_count(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """The trash and offline files of an external library are no loss; a hidden motion part is like any other."""
    for state in ('"deletedAt" = now()', '"isOffline" = true', "visibility = 'hidden'"):
        photos.asset(kinds=(), state=state)["original"].unlink()
    with exporter(postgres18, photos) as found:
        assert counted(found.samples()) == {("original", "missing"): 1}


def test_an_original_that_came_empty_is_as_it_should_be(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """Somebody uploaded a file without a byte: that is no loss. One that Immich knew to be larger is."""
    for size in (0, None, 700):
        photos.asset(kinds=(), size=size)["original"].write_bytes(b"")
    photos.asset()["preview"].write_bytes(b"")
    with exporter(postgres18, photos) as found:
        samples = found.samples()
    assert counted(samples, "file_lost") == {("original",): 1, ("preview",): 1}
    assert counted(samples)[("original", "ok")] == 3


def test_what_is_moved_or_deleted_meanwhile_is_not_lost(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """A file that Immich moves, or whose asset it deletes, between our question and our look is not missing."""
    moved, deleted = photos.asset(kinds=()), photos.asset(kinds=())
    later = moved["original"].with_name("later.jpg")
    moved["original"].rename(later)
    deleted["original"].unlink()
    with exporter(postgres18, photos) as found, postgres18.connect(found.collector._assets._name) as immich:
        waited: list[float] = []

        def meanwhile(seconds: float) -> None:
            found.clock.advance(seconds)
            if not waited:
                old, gone = str(moved["original"].name), str(deleted["original"].name)
                immich.execute('UPDATE asset SET "originalPath" = replace("originalPath", %s, %s)', (old, "later.jpg"))
                immich.execute('DELETE FROM asset WHERE "originalPath" LIKE %s', (f"%{gone}",))
            waited.append(seconds)

        found.collector._comparer._pause = meanwhile
        samples = found.samples()
    assert counted(samples) == {("original", "ok"): 1}
    assert sum(waited) == 10


def test_a_loss_is_followed_until_it_is_mended(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """What was found missing stays told, whatever later samples hold, and ends ten minutes after it is back."""
    files = [photos.asset() for _ in range(60)]
    away = files[0]["original"].with_name("away")
    files[0]["original"].rename(away)
    with exporter(postgres18, photos, FILE_SAMPLE="100") as found:
        found.samples()
        assert counted(found.samples(after=301), "file_lost") == {("original",): 1}
        assert counted(found.samples(after=601), "file_lost") == {("original",): 1}
        away.rename(files[0]["original"])
        assert counted(found.samples(after=60), "file_lost") == {("original",): 1}
        assert counted(found.samples(after=600), "file_lost") == {}


def test_the_first_sample_is_small_and_the_next_comes_soon(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """`check` gets an answer within seconds; a whole sample follows after five minutes, then one every six hours."""
    for _ in range(300):
        photos.asset(kinds=())
    with exporter(postgres18, photos) as found:
        began = found.clock.monotonic()
        first = found.samples()
        assert found.clock.monotonic() - began < 10
        assert 15 < sum(counted(first).values()) < 80
        assert found.samples(after=60) == first
        whole = found.samples(after=300)
        assert 130 < sum(counted(whole).values()) < 270
        assert found.samples(after=3600) == whole
        assert values(found.samples(after=6 * 3600), "file_sample_timestamp_seconds") != values(
            whole, "file_sample_timestamp_seconds"
        )


def test_pace(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """No more than the configured number of files in a second."""
    for _ in range(40):
        photos.asset()
    with exporter(postgres18, photos, FILE_RATE="10") as found:
        began = found.clock.monotonic()
        assert sum(counted(found.samples()).values()) == 120
        assert found.clock.monotonic() - began == pytest.approx(12.0, abs=1.0)


def test_a_sample_that_would_take_too_long(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """It is made smaller beforehand, so that each asset keeps the same chance, and that is said."""
    for _ in range(300):
        photos.asset(kinds=())
    with exporter(postgres18, photos, FILE_RATE="1", FILE_SAMPLE="200") as found:
        found.samples()
        assert "a sample has 100 assets" in found.remarks()
        assert 60 < sum(counted(found.samples(after=301)).values()) < 150


# -- what we do not see


def test_a_media_folder_that_is_away_is_no_loss(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """An empty folder in the place of the media, or none, says nothing about the files: unmapped, and a remark."""
    photos.asset()
    photos.media.rename(photos.media.with_name("away"))
    with exporter(postgres18, photos) as found:
        gone = found.samples()
        assert counted(gone) == {(kind, "unmapped"): 1 for kind in ("original", "preview", "thumbnail")}
        assert counted(gone, "file_lost") == {}
        assert "nothing of Immich is in" in found.remarks()
        assert values(gone, "file_path_prefix_assets") == {("/data", "unknown"): 1}
        photos.media.mkdir()
        assert counted(found.samples(after=301)) == counted(gone)


def test_an_empty_folder_of_its_own_disk_is_no_loss(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """The thumbnails lie on a disk that we were not given: an empty folder is in their place."""
    photos.asset()
    (photos.media / "thumbs").rename(photos.media.with_name("ssd"))
    (photos.media / "thumbs").mkdir()
    with exporter(postgres18, photos) as found:
        assert counted(found.samples()) == {
            ("original", "ok"): 1, ("preview", "unmapped"): 1, ("thumbnail", "unmapped"): 1,
        }  # fmt: skip
        assert "IMMICH_VITALS_THUMBS_PATH" in found.remarks()
    ssd = str(photos.media.with_name("ssd"))
    with exporter(postgres18, photos, THUMBS_PATH=ssd) as found:
        assert {result for _, result in counted(found.samples())} == {"ok"}


def test_nested_restore(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """The library was restored one folder too deep: its originals are missing."""
    for _ in range(3):
        photos.asset()
    (photos.media / "nested").mkdir()
    for folder in ("upload", "thumbs"):
        (photos.media / folder).rename(photos.media / "nested" / folder)
    (photos.media / "nested").rename(photos.media / "upload")
    with exporter(postgres18, photos) as found:
        assert counted(found.samples(), "file_lost") == {("original",): 3}


def test_an_external_disk_that_is_away_is_no_loss(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """Its mount point is empty, or not known here at all."""
    photos.asset(kinds=(), external=True)["original"].unlink()
    (photos.external / "keep").unlink()
    with exporter(postgres18, photos) as found:
        assert counted(found.samples()) == {("external", "unmapped"): 1}
    with exporter(postgres18, photos, PATH_MAP="/elsewhere=/elsewhere") as found:
        samples = found.samples()
        assert counted(samples) == {("external", "unmapped"): 1}
        assert values(samples, "file_path_prefix_assets") == {("other", "unknown"): 1}
        assert "IMMICH_VITALS_EXTERNAL_PATHS" in found.remarks()


def test_hostile_paths(
    photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths that lead out, are far too long, loop, or go through links are only ever asked for, and never named."""
    files = [photos.asset(kinds=()) for _ in range(7)]
    secret = tmp_path / "secret-name.txt"
    secret.write_text("never read")
    loop, link, broken, pipe = (files[number]["original"] for number in (0, 1, 2, 3))
    for path in (loop, link, broken, pipe):
        path.unlink()
    loop.symlink_to(loop)
    link.symlink_to(secret)
    broken.symlink_to("/srv/of/the/server/secret-name.jpg")
    os.mkfifo(pipe)
    recorded = {
        4: "/data/upload/../../secret-name.txt",
        5: "/data/upload/" + "secret-name/" * 900 + "x",
        6: "/data/upload/secret-name\\'; DROP TABLE asset; --",
    }
    for number, odd in recorded.items():
        name = files[number]["original"].name
        photos.statements.append(
            f'UPDATE asset SET "originalPath" = $t${odd}$t$ WHERE "originalPath" LIKE \'%{name}\';'
        )
    with caplog.at_level(logging.DEBUG), exporter(postgres18, photos) as found:
        samples = found.samples()
    assert counted(samples) == {
        ("original", "unreadable"): 2,  # the loop, the long one
        ("original", "ok"): 1,  # the link that leads somewhere: libraries may be made of links
        ("original", "unmapped"): 2,  # the link that leads nowhere here, the path with dots
        ("original", "missing"): 2,  # the pipe, the odd name
    }
    assert "secret" not in found.remarks() + caplog.text + str(samples)


def test_folders_that_we_may_not_enter(
    photos: PhotoLibrary, postgres18: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the exporter's own lack of rights: unreadable, with a remark, and nothing lost."""
    files = photos.asset()
    closed, real = files["original"].parent, Path.stat

    def refused(path: Path, **more: bool) -> os.stat_result:  # root, as in CI, may enter everything
        if path.is_relative_to(closed):
            raise PermissionError(13, "Permission denied")
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", refused)
    with exporter(postgres18, photos) as found:
        samples = found.samples()
    assert counted(samples)[("original", "unreadable")] == 1
    assert counted(samples, "file_lost") == {}
    assert "may not enter" in found.remarks()


def docker(folder: Path, *mounts: tuple[Path, str]) -> Path:
    """What a Docker API says of a server with these mounts."""
    folder.mkdir()
    image = "ghcr.io/immich-app/immich-server:v2"
    found = {"Id": "a" * 64, "Names": ["/immich_server"], "Image": image, "State": "running"}
    inspected = {
        "Name": "/immich_server",
        "State": {"Status": "running"},
        "Config": {"Image": image, "Env": ["IMMICH_SOURCE_REF=v2.7.5"]},
        "Mounts": [{"Type": "bind", "Source": str(source), "Destination": target} for source, target in mounts],
    }
    (folder / "containers.json").write_text(json.dumps([found]))
    (folder / f"{found['Id']}.json").write_text(json.dumps(inspected))
    return folder


def test_paths_that_lead_nowhere(photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path) -> None:
    """The mounts of the server say where files are, and where it can have none; that is counted anew soon."""
    photos.asset()
    photos.asset(external=True)
    photos.location = "/usr/src/app/upload"
    photos.asset()
    mounts = docker(tmp_path / "docker", (photos.media, "/data"), (photos.external, "/mnt/photos"))
    with FakeDocker(mounts) as fake, exporter(postgres18, photos, PATH_MAP="/x=/x") as found:
        found.collector._server = Server(load({"DOCKER_HOST": fake.host}))
        samples = found.samples()
        assert values(samples, "file_path_prefix_assets") == {
            ("/data", "1"): 1, ("/mnt/photos", "1"): 1, ("/usr/src/app/upload", "0"): 1,
        }  # fmt: skip
        assert counted(samples)[("original", "unmapped")] == 1
        assert counted(samples, "file_lost") == {}
        # The engine is away for a moment: what it said holds.
        fake.statuses["/containers"] = 500
        assert counted(found.samples(after=301), "file_path_prefix_assets") == values(
            samples, "file_path_prefix_assets"
        )
        del fake.statuses["/containers"]
        with postgres18.connect(found.collector._assets._name) as immich:
            for table, column in (("asset", "originalPath"), ("asset_file", "path")):
                immich.execute(
                    f"""UPDATE {table} SET "{column}" = replace("{column}", '/usr/src/app/upload', '/data')""".encode()
                )
        assert values(found.samples(after=601), "file_path_prefix_assets") == {
            ("/data", "1"): 2,
            ("/mnt/photos", "1"): 1,
        }
        found.collector.close()


# -- failures


def failing(found: Exporter) -> CollectorFailure:
    with pytest.raises(CollectorFailure) as caught:
        found.samples()
    return caught.value


def test_a_dead_mount_costs_one_thread_and_heals(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """A disk that does not answer is a time-out, once and again; then it answers, and all is as before."""
    photos.asset()
    looker, answers = Looker(patience=0.05), threading.Event()
    with exporter(postgres18, photos, looker=looker) as found:
        with pytest.raises(TimedOut):
            looker._ask(answers.wait)
        for _ in range(3):
            assert failing(found).reason == "timeout"
        assert sum(thread.name == "files" for thread in threading.enumerate()) == 1
        answers.set()
        until(lambda: looker._last is not None and looker._last.done())
        looker._patience = 5.0
        assert {result for _, result in counted(found.samples())} == {"ok"}


def test_a_dead_external_library_holds_nobody_else(photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path) -> None:
    """While its file system hangs its files are not looked for, and Immich's own are; then it answers, and all are."""
    if (reason := fuse.why_not()) is not None:
        pytest.skip(reason)
    photos.asset(kinds=())
    photos.asset(kinds=(), external=True)
    point = tmp_path / "share"
    with fuse.SlowFolder(photos.external, point) as share:
        own = {"looker": Looker(patience=0.2), "PATH_MAP": f"/mnt/photos={point}"}
        with exporter(postgres18, photos, **own) as found:
            with share.in_trouble(fuse.Trouble(hangs=True)):
                for _ in range(2):
                    assert counted(found.samples(after=86400)) == {("original", "ok"): 1, ("external", "unmapped"): 1}
            (other,) = found.collector._others.values()
            until(lambda: other._last is not None and other._last.done())
            other._patience = 5.0
            assert counted(found.samples(after=86400)) == {("original", "ok"): 1, ("external", "ok"): 1}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_no_immich_here(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """A database without Immich's tables is absent; one that does not answer at all is not."""
    failure = failing(Exporter(postgres18, "postgres", settings(photos)))
    assert failure.reason == "absent"
    assert failing(Exporter(postgres18, "no-such-database", settings(photos))).reason == "unavailable"


def test_a_changed_schema(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """Where originals are recorded elsewhere, nothing is guessed."""
    photos.statements.append('ALTER TABLE asset RENAME COLUMN "originalPath" TO "where"')
    with exporter(postgres18, photos) as found:
        failure = failing(found)
    assert failure.reason == "unavailable"
    assert "update immich-vitals" in failure.mend


@pytest.mark.parametrize("version", VERSIONS)
def test_grants_are_enough(version: str, tmp_path: Path, postgres18: Postgres) -> None:
    """The role of `grants` finds what a superuser finds, sample and audit, in every version."""
    photos = PhotoLibrary(version, tmp_path / "media", tmp_path / "external")
    photos.asset(kinds=("preview", "thumbnail", "encoded_video", "sidecar"))["original"].write_bytes(b"")
    photos.people()
    results = []
    with immich_database(postgres18, version, setup=photos.sql) as database, postgres18.connect(database) as admin:
        admin.execute(grants_sql(database, "lister").encode())
        try:
            for role in ("postgres", "lister"):
                found = Exporter(postgres18, database, settings(photos, FILE_AUDIT="true"), role)
                audit(found)
                results.append(found.samples())
        finally:
            admin.execute("DROP OWNED BY lister; DROP ROLE lister")
    assert results[0] == results[1]
    assert counted(results[0], "file_audited")[("person", "ok")] == 1
    assert counted(results[0], "file_lost") == {("original",): 1}


def test_a_missing_grant_is_for_this_collector_alone(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """A role from before says to run the grants again; the library collector needs no path and goes on."""
    with immich_database(postgres18, "2.7.5", setup=photos.sql) as database, postgres18.connect(database) as admin:
        admin.execute(grants_sql(database, "older").encode())
        admin.execute(
            'REVOKE SELECT ("originalPath") ON asset FROM older; REVOKE SELECT (path) ON asset_file FROM older'
        )
        try:
            found = Exporter(postgres18, database, settings(photos), "older")
            failure = failing(found)
            library = LibraryCollector(postgres_config(postgres18, database, "older"), 300.0)
            assert tuple(library.collect(found.fresh()))
        finally:
            admin.execute("DROP OWNED BY older; DROP ROLE older")
    assert failure.reason == "unavailable"
    assert "asset.originalPath, asset_file.path" in failure.message
    assert "immich-vitals grants` prints again" in failure.mend


# -- sampling


def test_every_id_has_the_same_chance() -> None:
    """Ids with large gaps beside them and ids in a crowd come into the sample equally often: chi-square over 60,000
    draws of a seeded generator. The usual way, the next id after a random point, fails the same test."""
    chance = random.Random(6)
    ids = sorted([chance.randrange(IDS) for _ in range(90)] + [IDS // 3 + n for n in range(10)])
    drawn, naive = Counter[int](), Counter[int]()
    rounds, share = 6000, 0.1
    for _ in range(rounds):
        parts = windows(share, chance)
        drawn.update({each for low, high in parts for each in ids if low <= each < high})
        for _ in range(10):
            point = chance.randrange(IDS)
            naive[next((each for each in ids if each >= point), ids[0])] += 1
    expected = rounds * (1 - (1 - share / asset_files.WINDOWS) ** asset_files.WINDOWS)

    def chi_square(found: Counter[int], mean: float) -> float:
        return sum((found[each] - mean) ** 2 / mean for each in ids)

    # The crowd goes in and out together, so a hundred ids are 91 that vary: its ten count once. 0.999 quantile: 138.
    single = [each for each in ids if not IDS // 3 < each < IDS // 3 + 10]
    assert sum((drawn[each] - expected) ** 2 / expected for each in single) < 138
    assert chi_square(naive, 600) > 10_000


def test_windows_cover_what_is_asked() -> None:
    """All of the space for a share of one; otherwise intervals within the space, of the width that was asked for."""
    assert windows(1.0, random.Random(1)) == [(0, IDS)]
    for seed in range(50):
        parts = windows(0.3, random.Random(seed))
        assert all(0 <= low < high <= IDS for low, high in parts)
        assert sum(high - low for low, high in parts) == pytest.approx(0.3 * IDS, rel=1e-6)


MANY = """
    INSERT INTO {table} (id, type, "originalPath") SELECT gen_random_uuid(), 'IMAGE', '/data/upload/x' || n
    FROM generate_series(1, 20000) n;
"""


@pytest.mark.parametrize("statistics", ["none", "fresh"])
@pytest.mark.parametrize("version", ["1.91.4", "2.7.5"])
def test_a_sample_reads_little(version: str, statistics: str, postgres: Postgres) -> None:
    """Of a large library the primary key is read in a few ranges, whatever the planner knows; nothing is sorted."""
    table = "asset" if "asset" in schema(version) else "assets"
    setup = MANY.format(table=table) + ("ANALYZE;" if statistics == "fresh" else "")
    with (
        immich_database(postgres, version, setup=setup, analyze=False) as database,
        postgres.connect(database) as connection,
    ):
        columns, function = schema_queries(Hello(0, False)).split(";")
        found = schema_from(
            connection.execute(columns.encode()).fetchall(), connection.execute(function.encode()).fetchall(), database
        )
        limits, _, query = windows_query(found, windows(0.01, random.Random(3)), 100).partition(";\n")
        with connection.transaction():
            connection.execute(limits.encode())
            plan = connection.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query.encode()).fetchone()
    root = plan[0][0]["Plan"]  # type: ignore[index]
    kinds = Counter(node["Node Type"] for node in nodes(root))
    assert not {"Seq Scan", "Sort"} & set(kinds)
    assert 120 < root["Actual Rows"] < 290
    assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 2 * root["Actual Rows"] + 200


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def test_ids_that_are_not_random(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """Were ids ever given out in a row, the sample would still be one of all assets, and bounded."""
    rows = """INSERT INTO asset (id, type, "originalPath")
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'IMAGE', '/data/upload/' || n FROM generate_series(1, 20000) n"""
    with immich_database(postgres18, "2.7.5", setup=rows) as database:
        source = AssetFiles(Database(postgres_config(postgres18, database)), database)
        deadline = Deadline.after(20.0)
        source.look(deadline)
        overview = source.overview({}, deadline)
        sizes = [len(source.sample(200, overview, random.Random(seed), deadline)) for seed in range(60)]
        source.close()
    assert max(sizes) <= 800
    assert {size for size in sizes if size} and all(size > 100 for size in sizes if size)


# -- what the storage template left behind


LEFT = "file_template_leftovers"
HIDDEN = {"visibility": "visibility = 'hidden'", "isVisible": '"isVisible" = false'}


def with_leftovers(photos: PhotoLibrary) -> None:
    """Two leftovers, and beside them whatever is none."""
    columns = schema(photos.version)[photos.asset_table]
    shown = '"isVisible" = true' if "isVisible" in columns else "visibility = 'timeline'"
    for state in (shown, shown if "isVisible" in columns else "visibility = 'locked'"):
        photos.uploaded(state=state)
    photos.uploaded(state=shown, days=0.9)
    photos.uploaded(state=shown, template="library/admin/2024/05/upload/IMG_1.jpg")
    photos.uploaded(state=shown, external=True)
    photos.uploaded(state=f'{shown}, "deletedAt" = now()')
    photos.uploaded(state=next(hidden for column, hidden in HIDDEN.items() if column in columns))


@pytest.mark.parametrize(("version", "location"), FORMS)
def test_leftovers_of_the_storage_template(version: str, location: str, tmp_path: Path, postgres18: Postgres) -> None:
    """Old uploads that are still where they came in, for as long as the template is on; not those of today, not
    external ones, not motion parts. Immich's own role knows it, and one that the grants made."""
    photos = PhotoLibrary(version, tmp_path / "media", tmp_path / "external", location)
    with_leftovers(photos)
    photos.storage_template(on=True)
    with immich_database(postgres18, version, setup=photos.sql) as database, postgres18.connect(database) as admin:
        admin.execute(grants_sql(database, "least").encode())
        try:
            own = Exporter(postgres18, database, settings(photos))
            least = Exporter(postgres18, database, settings(photos), "least")
            for each in (own, least):
                assert values(each.samples(), LEFT) == {(): 2}
                assert not each.remarks()
            assert values(own.samples(after=301), LEFT) == {(): 2}
            old = "/upload/" + "0" * 8
            admin.execute(
                f'UPDATE {photos.asset_table} SET "originalPath" = replace("originalPath", %s, %s)'.encode(),
                (old, old.replace("upload", "library")),
            )
            assert values(own.samples(after=601), LEFT) == {(): 2}
            assert values(own.samples(after=3600), LEFT) == {(): 0}
        finally:
            admin.execute("DROP OWNED BY least; DROP ROLE least")


@pytest.mark.parametrize("version", ["1.91.4", "2.7.5"])
def test_without_the_storage_template_nothing_is_left_over(version: str, tmp_path: Path, postgres18: Postgres) -> None:
    """By default, and when somebody has switched it off: no sample, and nothing to remark."""
    for switched_off in (False, True):
        photos = PhotoLibrary(version, tmp_path / "media", tmp_path / "external")
        with_leftovers(photos)
        if switched_off:
            photos.storage_template(on=False)
        with exporter(postgres18, photos) as found:
            samples = found.samples()
            assert counted(samples, "file_path_prefix_assets")
            assert values(samples, LEFT) == {}
            assert not found.remarks()


def test_settings_that_a_later_immich_does_not_read(tmp_path: Path, postgres18: Postgres) -> None:
    """1.118 has the table of the settings of before 1.106 beside its own: what is in it does not count."""
    photos = PhotoLibrary("1.118.2", tmp_path / "media", tmp_path / "external")
    with_leftovers(photos)
    photos.storage_template(on=False)
    photos.statements.append("INSERT INTO system_config (key, value) VALUES ('storageTemplate.enabled', 'true');")
    with exporter(postgres18, photos) as found:
        assert values(found.samples(), LEFT) == {}


def test_a_role_that_may_not_know_of_the_storage_template(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """A role of older grants: no sample, a remark that tells what to run, and everything else as ever."""
    with_leftovers(photos)
    photos.storage_template(on=True)
    with immich_database(postgres18, "2.7.5", setup=photos.sql) as database, postgres18.connect(database) as admin:
        admin.execute(grants_sql(database, "older").encode())
        admin.execute("DROP FUNCTION immich_vitals.storage_template()")
        try:
            found = Exporter(postgres18, database, settings(photos), "older")
            samples = found.samples()
            assert counted(samples) and counted(samples, "file_path_prefix_assets")
            assert values(samples, LEFT) == {}
            assert "whether the storage template is on is not known" in found.remarks()
            assert "immich-vitals grants` prints" in found.remarks()
            assert "clientSecret" not in found.remarks()
        finally:
            admin.execute("DROP OWNED BY older; DROP ROLE older")


def test_leftovers_cost_no_further_scan(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """They come with the count by prefix: one pass over the table of the assets, and over no other."""
    with_leftovers(photos)
    with immich_database(postgres18, "2.7.5", setup=photos.sql) as database, postgres18.connect(database) as admin:
        source = AssetFiles(Database(postgres_config(postgres18, database)), database)
        asked: list[str] = []
        ask = source._database.ask

        def noted(question: Callable[[Hello], str], deadline: Deadline) -> Sequence[Sequence[Row]]:
            asked.append(question(Hello(180000, False)))
            return ask(question, deadline)

        source.look(Deadline.after(20.0))
        source._database.ask = noted  # type: ignore[method-assign]
        found = source.overview({"/data/": "/data"}, Deadline.after(20.0), leftovers=True)
        source.close()
        (query,) = asked
        plan = admin.execute(b"EXPLAIN (FORMAT JSON) " + query.partition(";\n")[2].encode()).fetchone()
    scans = [node for node in nodes(plan[0][0]["Plan"]) if "Scan" in node["Node Type"]]  # type: ignore[index]
    assert found.leftovers == 2
    assert [scan["Relation Name"] for scan in scans] == ["asset"]


# -- quiet hours and sleeping disks


@pytest.mark.parametrize(
    ("hour", "quiet", "expected"),
    [(3, (1380, 390), True), (23, (1380, 390), True), (12, (1380, 390), False), (7, (360, 480), True),
     (8, (360, 480), False)],
)  # fmt: skip
def test_is_quiet(hour: int, quiet: tuple[int, int], expected: bool) -> None:
    """Spans within a day and over midnight; the end does not belong to them."""
    assert is_quiet(time.struct_time((2026, 1, 1, hour, 0, 0, 0, 1, 0)), quiet) is expected


def test_quiet_hours(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """In quiet hours no file is looked at, by the sample or the audit, and the last result is shown."""
    photos.asset()
    with exporter(postgres18, photos) as found:
        shown = found.samples()
        minute = time.localtime(found.clock.time() + 86400)
        begin = f"{minute.tm_hour:02}:{minute.tm_min:02}"
    end = f"{(minute.tm_hour + 2) % 24:02}:{minute.tm_min:02}"
    with exporter(postgres18, photos, FILE_QUIET_HOURS=f"{begin}-{end}", FILE_AUDIT="true") as found:
        assert found.samples() == ()
        assert "quiet hours" in found.remarks()
        assert not found.collector._audit_may_go_on()
        assert values(found.samples(after=7300), "file_sampled") == values(shown, "file_sampled")
        assert found.samples(after=86400 - 7300 + 60) != ()
        assert not found.remarks()


def disk(folder: Path, device: int, *, rotational: str = "1") -> Path:
    """A disk as /sys/dev/block shows it."""
    found = folder / f"{os.major(device)}:{os.minor(device)}"
    (found / "queue").mkdir(parents=True)
    (found / "queue" / "rotational").write_text(f"{rotational}\n")
    (found / "stat").write_text(" 5 0 0 0 7 0 0 0 0 0 0\n")
    return found


def test_a_sleeping_disk_is_left_alone(photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path) -> None:
    """Ten minutes after others last used the disk nobody looks any more; our own looks do not count."""
    photos.asset()
    found_disk = disk(tmp_path / "sys", photos.media.stat().st_dev)
    activity = DiskActivity(tmp_path / "sys")
    with exporter(postgres18, photos, FILE_WAKES_DISKS="false", FILE_INTERVAL="1h", activity=activity) as found:
        first = found.samples()
        assert counted(first)
        assert found.samples(after=4000) == first
        (found_disk / "stat").write_text(" 6 0 0 0 7 0 0 0 0 0 0\n")
        assert found.samples(after=60) != first


def test_disks_by_kind(tmp_path: Path) -> None:
    """A partition is its disk; a mapped device is those below it; what has no moving parts never sleeps."""
    sys = tmp_path / "sys"
    whole = disk(tmp_path / "devices", os.makedev(8, 0))
    part = whole / "sda1"
    part.mkdir()
    (part / "partition").write_text("1")
    mapped = tmp_path / "devices" / "dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves" / "sda1").symlink_to(part)
    sys.mkdir()
    (sys / "8:1").symlink_to(part)
    (sys / "253:0").symlink_to(mapped)
    disk(sys, os.makedev(259, 0), rotational="0")
    (sys / "7:0").mkdir()
    activity = DiskActivity(sys)
    devices = {
        name: os.makedev(*number)
        for name, number in {
            "part": (8, 1),
            "mapped": (253, 0),
            "ssd": (259, 0),
            "odd": (7, 0),
            "gone": (9, 9),
            "nfs": (0, 52),
        }.items()
    }
    assert not any(activity.asleep(device, 0.0) for device in devices.values())
    assert {name for name, device in devices.items() if activity.asleep(device, 700.0)} == {"part", "mapped"}
    (whole / "stat").write_text("6 0 0 0 7")
    assert not activity.asleep(devices["mapped"], 800.0)
    (whole / "stat").write_text("9 0 0 0 7")
    activity.ours(devices["part"])
    assert activity.asleep(devices["part"], 1500.0)
    assert not activity.asleep(None, 0.0)


# -- the audit


def test_audit(photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds each single loss, in batches, goes on where it was after a restart, and rests until the next is due."""
    monkeypatch.setattr(asset_files, "AT_ONCE", 7)
    files = [photos.asset() for _ in range(30)]
    photos.people()["person"].unlink()
    files[11]["original"].unlink()
    state = tmp_path / "state"
    state.mkdir()
    own = {"FILE_AUDIT": "true", "STATE_PATH": str(state), "FILE_SAMPLE": "1"}
    with immich_database(postgres18, "2.7.5", setup=photos.sql) as database:
        first = Exporter(postgres18, database, settings(photos, **own))

        def half_way() -> bool:
            current = first.collector._audit.progress.current
            return current is not None and current.assets >= 14

        first.collector.follow(half_way)
        half = first.samples()
        assert values(half, "file_audit_progress_ratio") == {(): pytest.approx(14 / 30)}
        assert values(half, "file_audited") == {}
        second = Exporter(postgres18, database, settings(photos, **own))
        place = second.collector._audit.progress.current
        assert place is not None and place.assets > 0
        audit(second)
        done = second.samples()
        assert counted(done, "file_audited") == {
            ("original", "ok"): 29, ("original", "missing"): 1, ("preview", "ok"): 30, ("thumbnail", "ok"): 30,
            ("person", "missing"): 1, ("profile", "ok"): 1,
        }  # fmt: skip
        assert counted(done, "file_lost") == {("original",): 1, ("person",): 1}
        assert values(done, "file_audit_progress_ratio") == {(): 1}
        assert not second.collector._audit_may_go_on()
        second.clock.advance(6 * 3600)
        assert second.collector._audit_may_go_on()
        third = Exporter(postgres18, database, settings(photos, **own))
        assert counted(third.samples(), "file_audited") == counted(done, "file_audited")
        assert values(third.samples(), "file_audit_completed_timestamp_seconds")
        assert not list(state.glob(".*"))


def test_a_dead_mount_stops_the_audit_and_counts_nothing_twice(
    photos: PhotoLibrary, postgres18: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch under way is done again when the disk answers."""
    monkeypatch.setattr(asset_files, "AT_ONCE", 4)
    for _ in range(10):
        photos.asset(kinds=())
    looker = Looker()
    with exporter(postgres18, photos, FILE_AUDIT="true", looker=looker) as found:
        results, calls = looker.results, iter(range(100))

        def flaky(*given: Any) -> list[str]:
            if next(calls) == 1:
                raise TimedOut("the disk of the photos does not answer")
            return results(*given)

        monkeypatch.setattr(looker, "results", flaky)
        with pytest.raises(TimedOut):
            audit(found)
        audit(found)
        assert counted(found.samples(), "file_audited") == {("original", "ok"): 10}


def test_the_audit_ends_at_once(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """Whether it works, waits for a second look or rests: `stop` ends it within a second of its own time."""
    photos.asset(kinds=())["original"].unlink()
    for own in ({"FILE_AUDIT": "true"}, {}):
        with exporter(postgres18, photos, **own) as found:
            stops: list[float] = []

            def stop(found: Exporter = found, stops: list[float] = stops) -> bool:
                began = found.clock.monotonic()
                if began >= 1_800_000_003.0 or stops:
                    stops.append(began)
                found.clock.advance(0.01)
                return bool(stops)

            found.collector.follow(stop)
            assert stops[-1] - stops[0] < 1.0


def test_without_the_audit_it_says_nothing_of_it(photos: PhotoLibrary, postgres18: Postgres) -> None:
    """No progress, no counts; the sample is as ever."""
    photos.asset()
    with exporter(postgres18, photos) as found:
        names = {sample.metric.name for sample in found.samples()}
    assert names == {"file_sampled", "file_sample_timestamp_seconds", "file_lost", "file_path_prefix_assets"}


@pytest.mark.parametrize("content", ["", "[]", '{"audit": {"current": {"phase": "x"}}, "lost": [1, ["a", "b", "c"]]}',
                                     '{"audit": {"found": [["a", "b", 1]]}, "lost": {}}', '{"audit": 4}'])  # fmt: skip
def test_a_state_that_is_not_ours(content: str, photos: PhotoLibrary, postgres18: Postgres, tmp_path: Path) -> None:
    """Everything begins anew."""
    (tmp_path / "file.json").write_text(content)
    photos.asset()
    with exporter(postgres18, photos, STATE_PATH=str(tmp_path), FILE_AUDIT="true") as found:
        audit(found)
        assert counted(found.samples(), "file_audited")[("original", "ok")] == 1


# -- settings


def test_not_configured() -> None:
    """Without a database or a media folder there is no collector, and the reason says what cannot be known."""
    nothing, no_media = load({}), load({"DB_HOSTNAME": "db"})
    assert FileCollector.from_config(nothing) is None
    assert "DB_HOSTNAME" in FileCollector.disabled_because(nothing)
    assert FileCollector.from_config(no_media) is None
    assert "whether files are lost cannot be told" in FileCollector.disabled_because(no_media)


def test_configured(photos: PhotoLibrary) -> None:
    """It looks once a minute whether something is due, and no scrape waits for it."""
    collector = FileCollector.from_config(settings(photos))
    assert collector is not None
    assert collector.trigger == Every(60.0, stretch=False, awaited=False)
    collector.close()
