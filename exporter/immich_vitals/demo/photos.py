"""The demo's sample library: about 200 real files, and the rows that Immich 2.7.5 writes for such files.

All people are made up. Two photos are corrupt, as two are in most libraries: Immich read their metadata and could
never make a thumbnail of them.
"""

import hashlib
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from psycopg import sql
from psycopg.types.json import Jsonb

from immich_vitals.demo.schema import Connection

Row = Mapping[str, object]

FOLDERS = ("upload", "library", "thumbs", "encoded-video", "profile", "backups")
USERS = (("Ada Example", "ada@example.org"), ("Ben Sample", "ben@example.org"), ("Cleo Muster", "cleo@example.org"))
VERSION = "2.7.5"
DIMENSIONS = 512


@dataclass(frozen=True, slots=True)
class Group:
    """Assets that are alike. `extension` says what they are: jpg and png are photos, mp4 are videos.

    `encoded`: with a transcoded video. `live`: each photo has a hidden motion part. `offline`: its file is gone.
    """

    count: int
    extension: str = "jpg"
    visibility: str = "timeline"
    trashed: bool = False
    external: bool = False
    offline: bool = False
    encoded: bool = False
    live: bool = False
    corrupt: bool = False


GROUPS = (
    Group(110),
    Group(10, "png"),
    Group(10, "mp4", encoded=True),
    Group(6, "mp4"),
    Group(12, live=True),
    Group(10, visibility="archive"),
    Group(6, visibility="locked"),
    Group(8, trashed=True),
    Group(20, external=True),
    Group(4, external=True, offline=True),
    Group(2, corrupt=True),
)


@dataclass(slots=True)
class Library:
    """Rows by table, in the order in which they are written."""

    rows: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, table: str, **values: object) -> None:
        self.rows.setdefault(table, []).append(values)

    def insert(self, connection: Connection) -> None:
        """Write all rows in one transaction."""
        with connection.transaction():
            for table, rows in self.rows.items():
                _insert(connection, table, rows)


def make_library(media: Path, external: Path) -> Library:
    """Write Immich's media folder with its six folders and markers, and an external library; return the rows."""
    for folder in FOLDERS:
        (media / folder).mkdir(parents=True)
        (media / folder / ".immich").write_text(f"{time.time_ns() // 1_000_000}", encoding="ascii")
    external.mkdir()
    return _Photographer(media, external).shoot()


class _Photographer:
    """Makes the same library each time, except for the moments, which end some minutes ago."""

    def __init__(self, media: Path, external: Path) -> None:
        self.media = media
        self.external = external
        self.library = Library()
        self.random = random.Random(275)
        self.now = datetime.now(UTC)
        self.users = [self.uuid() for _ in USERS]
        self.external_library = self.uuid()
        self.shots = 0

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def shoot(self) -> Library:
        self.people()
        self.settings()
        for group in GROUPS:
            for _ in range(group.count):
                self.asset(group)
        return self.library

    def people(self) -> None:
        for number, (name, email) in enumerate(USERS):
            self.library.add(
                "user", id=self.users[number], name=name, email=email, isAdmin=number == 0, oauthId="", password="",
                profileImagePath=self.avatar(self.users[number]) if number == 0 else "", profileChangedAt=self.now,
                quotaUsageInBytes=0, shouldChangePassword=False, status="active", createdAt=self.ago(days=500),
            )  # fmt: skip

    def settings(self) -> None:
        """What Immich notes about itself."""
        checks = dict.fromkeys(FOLDERS, True)
        found = {"checkedAt": self.now.isoformat(), "releaseVersion": f"v{VERSION}"}
        for key, value in {
            "MediaLocation": {"location": str(self.media)},
            "system-flags": {"mountChecks": checks},
            "version-check-state": found,
            "admin-onboarding": {"isOnboarded": True},
        }.items():
            self.library.add("system_metadata", key=key, value=Jsonb(value))
        for version, days in (("2.6.3", 90), (VERSION, 12)):
            self.library.add("version_history", id=self.uuid(), version=version, createdAt=self.ago(days=days))
        self.library.add(
            "library", id=self.external_library, name="Old disk", ownerId=self.users[0], exclusionPatterns=[],
            importPaths=[str(self.external)], refreshedAt=self.ago(hours=6), createdAt=self.ago(days=300),
        )  # fmt: skip

    def asset(self, group: Group) -> str:
        """One asset with its files; a live photo is two."""
        asset, owner = self.uuid(), self.users[self.shots % len(self.users) if not group.external else 0]
        self.shots += 1
        created = self.ago(minutes=7, hours=40 * self.shots)
        name = f"IMG_{self.shots:04}.{group.extension}"
        motion = self.motion_part(owner, created, name) if group.live else None
        content = self.video() if group.extension == "mp4" else self.picture(group)
        path = self.original(owner, name, group)
        if not group.offline:
            path.write_bytes(content)
        gone = group.trashed or group.offline
        self.library.add(
            "asset", id=asset, deviceAssetId=name, ownerId=owner, deviceId="demo", originalFileName=name,
            type="VIDEO" if group.extension == "mp4" else "IMAGE", originalPath=str(path), fileCreatedAt=created,
            fileModifiedAt=created, localDateTime=created, createdAt=created, updatedAt=created,
            duration="0:00:04.00000" if group.extension == "mp4" else None, livePhotoVideoId=motion,
            checksum=hashlib.sha1(str(path).encode() if group.external else content).digest(),
            checksumAlgorithm="sha1-path" if group.external else "sha1",
            thumbhash=None if group.corrupt else self.random.randbytes(24), isOffline=group.offline,
            libraryId=self.external_library if group.external else None, isExternal=group.external,
            deletedAt=self.ago(hours=30) if gone else None, status="trashed" if group.trashed else "active",
            visibility=group.visibility, width=320, height=240,
        )  # fmt: skip
        self.library.add(
            "asset_exif", assetId=asset, make="Demo", model="Camera", exifImageWidth=320, exifImageHeight=240,
            fileSizeInByte=len(content), dateTimeOriginal=created, description="",
        )  # fmt: skip
        done = None if group.corrupt else created + timedelta(seconds=20)
        self.library.add(
            "asset_job_status", assetId=asset, metadataExtractedAt=created + timedelta(seconds=2),
            facesRecognizedAt=done, duplicatesDetectedAt=done, ocrAt=done,
        )  # fmt: skip
        if not group.corrupt:
            self.derived(asset, owner, group, created)
        return asset

    def motion_part(self, owner: str, created: datetime, name: str) -> str:
        """The moving part of a live photo: hidden, and never given thumbnails."""
        asset, content = self.uuid(), self.video()
        path = self.spread("encoded-video", owner, f"{self.uuid()}-MP.mp4")
        path.write_bytes(content)
        self.library.add(
            "asset", id=asset, deviceAssetId=f"{name}-MP", ownerId=owner, deviceId="demo", type="VIDEO",
            originalFileName=path.name, originalPath=str(path), fileCreatedAt=created, fileModifiedAt=created,
            localDateTime=created, createdAt=created, updatedAt=created, checksum=hashlib.sha1(content).digest(),
            checksumAlgorithm="sha1", status="active", visibility="hidden",
        )  # fmt: skip
        self.library.add("asset_job_status", assetId=asset, metadataExtractedAt=created + timedelta(seconds=3))
        return asset

    def derived(self, asset: str, owner: str, group: Group, created: datetime) -> None:
        """What Immich's jobs make of an asset: preview, thumbnail, transcoded video, vector, faces, text."""
        colours = self.colours()
        files = {
            "preview": (self.spread("thumbs", owner, f"{asset}_preview.jpeg"), _image(colours, (240, 180), "JPEG")),
            "thumbnail": (self.spread("thumbs", owner, f"{asset}_thumbnail.webp"), _image(colours, (96, 72), "WEBP")),
        }
        if group.encoded:
            files["encoded_video"] = (self.spread("encoded-video", owner, f"{asset}.mp4"), self.video())
        for kind, (path, content) in files.items():
            path.write_bytes(content)
            self.library.add("asset_file", assetId=asset, type=kind, path=str(path), createdAt=created)
        self.library.add("smart_search", assetId=asset, embedding=self.vector())
        self.library.add("ocr_search", assetId=asset, text="")
        if self.shots % 10 == 0:
            self.face(asset, owner)

    def face(self, asset: str, owner: str) -> None:
        person, face = self.uuid(), self.uuid()
        self.library.add("person", id=person, ownerId=owner, name="", thumbnailPath="")
        self.library.add(
            "asset_face", id=face, assetId=asset, personId=person, imageWidth=320, imageHeight=240, isVisible=True,
            boundingBoxX1=10, boundingBoxX2=80, boundingBoxY1=10, boundingBoxY2=90, sourceType="machine-learning",
        )  # fmt: skip
        self.library.add("face_search", faceId=face, embedding=self.vector())

    def original(self, owner: str, name: str, group: Group) -> Path:
        if group.external:
            return self.external / name
        return self.spread("upload", owner, f"{self.uuid()}.{group.extension}")

    def spread(self, folder: str, owner: str, name: str) -> Path:
        """Where Immich keeps a file: two levels of folders from the first four digits of its name."""
        path = self.media / folder / owner / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def avatar(self, owner: str) -> str:
        path = self.media / "profile" / owner / f"{self.uuid()}.png"
        path.parent.mkdir()
        path.write_bytes(_image(self.colours(), (64, 64), "PNG"))
        return str(path)

    def picture(self, group: Group) -> bytes:
        content = _image(self.colours(), (320, 240), "PNG" if group.extension == "png" else "JPEG")
        return content[: len(content) // 3] if group.corrupt else content

    def video(self) -> bytes:
        """The outline of an MP4 file: its boxes are right, its pictures are noise."""
        noise = self.random.randbytes(20_000)
        kind = b"isom\x00\x00\x02\x00isomiso2avc1mp41"
        boxes = ((b"ftyp", kind), (b"free", b""), (b"mdat", noise))
        return b"".join((8 + len(body)).to_bytes(4, "big") + name + body for name, body in boxes)

    def vector(self) -> str:
        return str([round(self.random.uniform(-1, 1), 4) for _ in range(DIMENSIONS)])

    def colours(self) -> tuple[str, str]:
        dark, light = self.random.randrange(0x808080), 0x808080 + self.random.randrange(0x7F7F7F)
        return f"#{dark:06x}", f"#{light:06x}"

    def ago(self, *, days: float = 0, hours: float = 0, minutes: float = 0) -> datetime:
        return self.now - timedelta(days=days, hours=hours, minutes=minutes)


def _image(colours: tuple[str, str], size: tuple[int, int], kind: str) -> bytes:
    from PIL import Image, ImageOps  # of the extra `demo`

    grey = Image.radial_gradient("L").resize(size)
    out = BytesIO()
    ImageOps.colorize(grey, *colours).save(out, kind, quality=80)
    return out.getvalue()


def _insert(connection: Connection, table: str, rows: Sequence[Row]) -> None:
    """Insert rows that may have different columns, one statement for each set of columns."""
    by_columns: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_columns.setdefault(tuple(row), []).append(row)
    with connection.cursor() as cursor:
        for columns, alike in by_columns.items():
            statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(map(sql.Placeholder, columns)),
            )
            cursor.executemany(statement, alike)
