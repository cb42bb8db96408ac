"""A small Immich library in a real folder, with the rows that a version of Immich would have for it."""

import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.immich_database import schema

USER = "00000000-0000-4000-8000-00000000000a"
LIBRARY = "00000000-0000-4000-8000-00000000000b"
COLUMNS = {
    "preview": ("previewPath", "resizePath"),
    "thumbnail": ("thumbnailPath", "webpPath"),
    "encoded_video": ("encodedVideoPath",),
    "sidecar": ("sidecarPath",),
}


@dataclass
class PhotoLibrary:
    """Files below `media` and `external`, recorded below `location` (`upload` for relative paths) and `import_path`.

    `sql` are the rows, for `immich_database(setup=...)`.
    """

    version: str
    media: Path
    external: Path
    location: str = "/data"
    import_path: str = "/mnt/photos"
    statements: list[str] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(4))

    def __post_init__(self) -> None:
        for folder in ("upload", "library", "thumbs", "encoded-video", "profile", "backups"):
            (self.media / folder).mkdir(parents=True, exist_ok=True)
            (self.media / folder / ".immich").write_text("1")
        self.external.mkdir(exist_ok=True)
        (self.external / "keep").write_text("1")

    @property
    def sql(self) -> str:
        return "".join(self.statements)

    @property
    def asset_table(self) -> str:
        return "asset" if "asset" in schema(self.version) else "assets"

    @property
    def file_table(self) -> str | None:
        return next((name for name in ("asset_file", "asset_files") if name in schema(self.version)), None)

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def asset(
        self,
        *,
        template: str = "",
        kinds: tuple[str, ...] = ("preview", "thumbnail"),
        external: bool = False,
        state: str = "",
        size: int | None = 5,
    ) -> dict[str, Path]:
        """One asset, its files by kind. `template` is the path that the storage template gives; `state` is SQL that
        sets columns; `size` what Immich noted, None for no row."""
        asset = self.uuid()
        name = f"IMG_{asset[:4]}.jpg"
        if external:
            original, recorded = self.external / name, f"{self.import_path}/{name}"
        else:
            original, recorded = self._own(template or f"upload/{USER}/{asset[:2]}/{asset[2:4]}/{self.uuid()}.jpg")
        files = {"original": original}
        columns = {"id": asset, "type": "IMAGE", "originalPath": recorded}
        rows = []
        for kind in kinds:
            folder = {"encoded_video": "encoded-video"}.get(kind, "thumbs")
            suffix = {"encoded_video": ".mp4", "sidecar": ".xmp", "thumbnail": "_thumbnail.webp"}.get(
                kind, f"_{kind}.jpeg"
            )
            path, recorded = self._own(f"{folder}/{USER}/{asset[:2]}/{asset[2:4]}/{asset}{suffix}")
            files[kind] = path
            column = next(
                (each for each in COLUMNS.get(kind, ()) if each in schema(self.version)[self.asset_table]), None
            )
            if column:
                columns[column] = recorded
            else:
                rows.append((kind, recorded))
        if "isExternal" in schema(self.version)[self.asset_table]:
            columns["isExternal"] = "true" if external else "false"
        names = ", ".join(f'"{column}"' for column in columns)
        values = ", ".join(f"$t${value}$t$" for value in columns.values())
        self.statements.append(f"INSERT INTO {self.asset_table} ({names}) VALUES ({values});")
        if state:
            self.statements.append(f"UPDATE {self.asset_table} SET {state} WHERE id = '{asset}';")
        for kind, recorded in rows:
            self.statements.append(
                f'INSERT INTO {self.file_table} (id, "assetId", type, path)'
                f" VALUES ('{self.uuid()}', '{asset}', '{kind}', $t${recorded}$t$);"
            )
        exif = "asset_exif" if "asset_exif" in schema(self.version) else "exif"
        if size is not None:
            self.statements.append(f'INSERT INTO {exif} ("assetId", "fileSizeInByte") VALUES (\'{asset}\', {size});')
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"photo")
        return files

    def uploaded(self, *, days: float = 2, state: str = "", **more: Any) -> dict[str, Path]:
        """One asset that the user uploaded so many days ago, as Immich notes it. `state` and the rest as in `asset`."""
        noted = f'"ownerId" = $t${USER}$t$, "createdAt" = now() - interval \'{days} days\''
        return self.asset(state=f"{noted}, {state}" if state else noted, **more)

    def storage_template(self, *, on: bool) -> None:
        """Somebody switches the storage template on or off."""
        value = "true" if on else "false"
        if tuple(map(int, self.version.split("."))) < (1, 106):
            row = f"INSERT INTO system_config (key, value) VALUES ('storageTemplate.enabled', '{value}');"
        else:
            told = f'{{"storageTemplate": {{"enabled": {value}}}, "oauth": {{"clientSecret": "hidden"}}}}'
            row = f"INSERT INTO system_metadata (key, value) VALUES ('system-config', $t${told}$t$);"
        self.statements.append(row)

    def people(self) -> dict[str, Path]:
        """A person's face and a user's own picture."""
        found = {}
        for kind, table, column, folder in (
            ("person", "person", "thumbnailPath", "thumbs"),
            ("profile", "user" if "user" in schema(self.version) else "users", "profileImagePath", "profile"),
        ):
            path, recorded = self._own(f"{folder}/{USER}/{self.uuid()}.jpeg")
            self.statements.append(
                f'INSERT INTO "{table}" (id, "{column}") VALUES (\'{self.uuid()}\', $t${recorded}$t$);'
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"face")
            found[kind] = path
        return found

    def _own(self, below: str) -> tuple[Path, str]:
        return self.media / below, f"{self.location}/{below}"
