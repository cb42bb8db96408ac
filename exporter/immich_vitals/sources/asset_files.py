"""Which files Immich's database says there are: at random, one after the other, or certain ones again.

Only live assets count: what is in the trash goes soon, and of an offline one Immich knows that its file is away. Hidden
motion parts of live photos have files like any other.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from uuid import UUID

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.sources.immich_facts import TEMPLATE_FACTS, read_facts
from immich_vitals.sources.immich_schema import FILE_COLUMNS, ImmichSchema, quoted, schema_from, schema_queries
from immich_vitals.sources.media_map import OTHER
from immich_vitals.sources.postgres import Database, Row

ORIGINAL, EXTERNAL, PREVIEW, THUMBNAIL, ENCODED_VIDEO, SIDECAR, PERSON, PROFILE = KINDS = (
    "original", "external", "preview", "thumbnail", "encoded_video", "sidecar", "person", "profile",
)  # fmt: skip

# Kinds of rows in the table of files. The full-size image is one more preview, made where a browser cannot show the
# original.
_ROW_KINDS = {
    "preview": PREVIEW,
    "fullsize": PREVIEW,
    "thumbnail": THUMBNAIL,
    "encoded_video": ENCODED_VIDEO,
    "sidecar": SIDECAR,
}
_COLUMNS = {
    PREVIEW: ("previewPath", "resizePath"),
    THUMBNAIL: ("thumbnailPath", "webpPath"),
    ENCODED_VIDEO: ("encodedVideoPath",),
    SIDECAR: ("sidecarPath",),
}
IDS = 1 << 128
WINDOWS = 16
# Ids are random (uuid 4), so a window holds about as many as expected; one that holds this many times more says that
# they are not.
UNEVEN = 8
AT_ONCE = 500

Phase = str
PHASES: tuple[Phase, ...] = ("asset", "person", "user")
PLACES = (*PHASES, "file")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One file in the database. `place` is the table that has it, by its use, and `key` the row; `kind` one of
    `KINDS`; `path` as recorded: not to be shown to anybody."""

    place: str
    key: str
    kind: str
    path: str

    @property
    def name(self) -> tuple[str, str, str]:
        """What stays the same when Immich moves the file."""
        return self.place, self.key, self.kind


@dataclass(frozen=True, slots=True)
class Overview:
    """Live assets in all, and by the label of what their original's path begins with.

    `leftovers` are those that the storage template should have moved out of `upload` by now; None: nobody asked.
    """

    assets: int
    by_prefix: Mapping[str, int]
    leftovers: int | None = None


def windows(share: float, random: Random) -> list[tuple[int, int]]:
    """Intervals of the space of ids that hold about `share` of it, as (from, up to).

    Each has the same width and begins at a point of its own, uniform over the whole space taken as a circle. So every
    id, wherever it lies and whatever its neighbours, is in one with the same probability. (The next id after a random
    point would favour ids behind gaps, a random page of the table those on pages with few rows.)
    """
    if share >= 1:
        return [(0, IDS)]
    width = max(1, round(IDS * share / WINDOWS))
    found = []
    for _ in range(WINDOWS):
        low = random.randrange(IDS)
        if low + width <= IDS:
            found.append((low, low + width))
        else:
            found += [(low, IDS), (0, low + width - IDS)]
    return found


class AssetFiles:
    """The files in Immich's database. Not for use by two threads at a time."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._schema: ImmichSchema | None = None

    def look(self, deadline: Deadline) -> None:
        """Learn which tables and columns there are; to be called before the others, again after some minutes.

        Raises `Absent` without Immich's tables, `Unavailable` when our role may not read the paths or when this
        Immich records them elsewhere.
        """
        columns, function = self._database.ask(schema_queries, deadline)
        schema = schema_from(columns, function, self._name)
        closed = schema.closed(FILE_COLUMNS)
        if closed:
            shown = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more columns" if len(closed) > 3 else "")
            raise Unavailable(
                f"our role lacks the right to read {shown}, which the comparison with the disk needs",
                mend="run the SQL that `immich-vitals grants` prints again; all other collectors work without it",
            )
        if not schema.has("asset", "id", "deletedAt", "isOffline", "isExternal", "originalPath"):
            raise Unavailable(
                "this Immich does not record where the originals are as we know it",
                mend="if a migration is under way, wait for it; else update immich-vitals to fit this Immich",
            )
        self._schema = schema

    def stored_location(self, deadline: Deadline) -> str | None:
        """Immich's own note of its media location; None when there is none or when our role may not read it."""
        table = self._known.tables.get("metadata")
        if table is None or not table.has("key", "value") or table.closed & {"key", "value"}:
            return None
        query = f"SELECT value::text FROM {table.sql} WHERE key = 'MediaLocation'"
        (rows,) = self._database.ask(lambda hello: query, deadline)
        try:
            noted = json.loads(str(rows[0][0]))["location"] if rows else None
        except (ValueError, TypeError, KeyError):
            return None
        return noted if isinstance(noted, str) and noted and "\0" not in noted else None

    def template_on(self, deadline: Deadline) -> bool:
        """Whether Immich's storage template is switched on. Raises `Unavailable` when our role may not know it."""
        told = read_facts(self._database, self._name, TEMPLATE_FACTS, deadline).values
        return told.get("enabled", told.get("once")) == "true"

    def overview(self, prefixes: Mapping[str, str], deadline: Deadline, *, leftovers: bool = False) -> Overview:
        """Counts all live assets, in one sequential scan. `prefixes` as `MediaMap.prefixes` has them.

        `leftovers`: count these, too, in the same scan; they stay None where this Immich has not the columns for it.
        """
        cases = "".join(
            f' WHEN starts_with("originalPath", {_text(prefix)}) THEN {_text(label)}'
            for prefix, label in prefixes.items()
        )
        label = f"CASE{cases} ELSE {_text(OTHER)} END" if cases else _text(OTHER)
        left = _leftover(self._known) if leftovers else None
        query = f"""SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off;
SELECT {label}, count(*), count(*) FILTER (WHERE {left or "false"})
FROM {self._known.tables["asset"].sql} a WHERE {_LIVE} GROUP BY 1"""
        (rows,) = self._database.ask(lambda hello: query, deadline)
        counts = {str(name): count for name, count, _ in rows if isinstance(count, int)}
        found = sum(count for _, _, count in rows if isinstance(count, int))
        return Overview(sum(counts.values()), counts, found if left else None)

    def sample(self, wanted: int, overview: Overview, random: Random, deadline: Deadline) -> list[list[Recorded]]:
        """The files of about `wanted` live assets, one list for each asset; all assets when there are no more.

        Every live asset is among them with the same probability.
        """
        share = wanted / max(1, overview.assets)
        most = max(50, UNEVEN * wanted // WINDOWS) if share < 1 else wanted + 1000
        parts = windows(share, random)
        found, longest = self._assets(windows_query(self._known, parts, most), deadline)
        if longest >= most and share < 1:
            query = scattered_query(self._known, share, 4 * wanted)
            found, _ = self._assets(query, deadline)
        return found

    def batch(self, phase: Phase, after: str | None, deadline: Deadline) -> tuple[list[list[Recorded]], str | None]:
        """The next files in the order of the rows' ids, and the id to go on after; None at the end of the phase."""
        if phase == "asset":
            beyond = f" AND a.id > {_text(after)}::uuid" if after else ""
            query = f"{_asset_select(self._known)} WHERE {_LIVE}{beyond} ORDER BY a.id LIMIT {AT_ONCE}"
            assets, _ = self._assets(query, deadline)
            return assets, assets[-1][0].key if len(assets) == AT_ONCE else None
        query = _faces_query(self._known, phase, f"t.id > {_text(after)}::uuid" if after else "true")
        if not query:
            return [], None
        (rows,) = self._database.ask(lambda hello: f"{query} ORDER BY t.id LIMIT {AT_ONCE}", deadline)
        return [[each] for each in _faces(phase, rows)], str(rows[-1][0]) if len(rows) == AT_ONCE else None

    def again(self, files: Iterable[tuple[str, str, str]], deadline: Deadline) -> list[Recorded]:
        """Those of the files, by `Recorded.name`, that the database still has, with their paths as of now."""
        wanted = set(files)
        found: list[Recorded] = []
        for place in PLACES:
            keys = sorted({key for where, key, _ in wanted if where == place})
            for start in range(0, len(keys), AT_ONCE):
                found += self._rows(place, keys[start : start + AT_ONCE], deadline)
        return [each for each in found if each.name in wanted]

    def emptied(self, assets: Sequence[str], deadline: Deadline) -> set[str]:
        """Those of the assets of whose original Immich has noted that it had something in it.

        A file without a byte that was uploaded like that is as it should be.
        """
        table = self._known.tables.get("exif")
        if not assets or table is None or not table.has("assetId", "fileSizeInByte"):
            return set()
        query = f"""SELECT "assetId"::text FROM {table.sql}
WHERE "assetId" = ANY ({_ids(assets)}) AND "fileSizeInByte" > 0"""
        (rows,) = self._database.ask(lambda hello: query, deadline)
        return {str(row[0]) for row in rows}

    def close(self) -> None:
        self._database.close()

    @property
    def _known(self) -> ImmichSchema:
        if self._schema is None:
            raise AssertionError("look() comes first")
        return self._schema

    def _assets(self, query: str, deadline: Deadline) -> tuple[list[list[Recorded]], int]:
        """The files of each asset that the query gives, and how many came of its longest part."""
        (rows,) = self._database.ask(lambda hello: query, deadline)
        assets = {each[0].key: each for each in (_files_of(row) for row in rows)}
        lengths: dict[object, int] = {}
        for row in rows:
            lengths[row[-1]] = lengths.get(row[-1], 0) + 1
        if self._known.has("file", "id", "assetId", "type", "path"):
            keys = list(assets)
            for start in range(0, len(keys), AT_ONCE):
                for asset, file in self._file_rows(
                    f'"assetId" = ANY ({_ids(keys[start : start + AT_ONCE])})', deadline
                ):
                    assets[asset].append(file)
        return list(assets.values()), max(lengths.values(), default=0)

    def _rows(self, place: str, keys: Sequence[str], deadline: Deadline) -> list[Recorded]:
        if place == "asset":
            query = f"{_asset_select(self._known)} WHERE {_LIVE} AND a.id = ANY ({_ids(keys)})"
            (rows,) = self._database.ask(lambda hello: query, deadline)
            return [file for row in rows for file in _files_of(row)]
        if place == "file":
            return [file for _, file in self._file_rows(f"f.id = ANY ({_ids(keys)})", deadline)]
        query = _faces_query(self._known, place, f"t.id = ANY ({_ids(keys)})")
        if not query:
            return []
        (rows,) = self._database.ask(lambda hello: query, deadline)
        return _faces(place, rows)

    def _file_rows(self, condition: str, deadline: Deadline) -> list[tuple[str, Recorded]]:
        """Rows of the table of files, each with its asset."""
        if not self._known.has("file", "id", "assetId", "type", "path"):
            return []
        query = f"""SELECT f.id::text, f."assetId"::text, f.type::text, f.path::text
FROM {self._known.tables["file"].sql} f JOIN {self._known.tables["asset"].sql} a ON a.id = f."assetId"
WHERE {condition} AND {_LIVE}"""
        (rows,) = self._database.ask(lambda hello: query, deadline)
        return [
            (str(asset), Recorded("file", str(key), _ROW_KINDS[str(kind)], str(path)))
            for key, asset, kind, path in rows
            if kind in _ROW_KINDS and path
        ]


_LIVE = 'a."deletedAt" IS NULL AND NOT a."isOffline"'


def _leftover(schema: ImmichSchema) -> str | None:
    """The condition for an upload of which the storage template has left the original where it came in.

    Immich puts it into `upload/<user id>/` and moves it once its metadata are known, minutes later; hence the day. A
    motion part is moved with its photo. None where this Immich, or our role, has not what is asked for.
    """
    hidden = {"visibility": "a.visibility::text = 'hidden'", "isVisible": 'NOT a."isVisible"'}
    table = schema.tables["asset"]
    column = next((name for name in hidden if table.has(name)), None)
    if column is None or not table.has("createdAt", "ownerId") or table.closed & {column, "createdAt", "ownerId"}:
        return None
    # In this order: the first is cheap, and rules out most.
    return (
        f"""strpos(a."originalPath", '/upload/') > 0 AND NOT a."isExternal" AND NOT {hidden[column]}"""
        """ AND a."createdAt" < now() - interval '1 day'"""
        """ AND strpos(a."originalPath", '/upload/' || a."ownerId" || '/') > 0"""
    )


def windows_query(schema: ImmichSchema, parts: Sequence[tuple[int, int]], most: int) -> str:
    """Live assets whose ids lie in the intervals, at most so many of each. Range scans of the primary key: they read
    as much as they give, however large the library is."""
    selects = []
    for number, (low, high) in enumerate(parts):
        upper = f" AND a.id < '{UUID(int=high)}'" if high < IDS else ""
        selects.append(
            f"({_asset_select(schema, number)} WHERE a.id >= '{UUID(int=low)}'{upper} AND {_LIVE} LIMIT {most})"
        )
    return "SET LOCAL enable_seqscan = off; SET LOCAL jit = off;\n" + "\nUNION ALL\n".join(selects)


def scattered_query(schema: ImmichSchema, share: float, most: int) -> str:
    """Each live asset with the same probability whatever its id, for ids that are not random; one sequential scan."""
    return (
        "SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off;\n"
        f"{_asset_select(schema)} WHERE {_LIVE} AND random() < {share:.12f} LIMIT {most}"
    )


def _asset_select(schema: ImmichSchema, part: int = 0) -> str:
    columns = [_column(schema, kind) for kind in _COLUMNS]
    return (
        f'SELECT a.id::text, a."isExternal", a."originalPath"::text, {", ".join(columns)}, {part}'
        f" FROM {schema.tables['asset'].sql} a"
    )


def _column(schema: ImmichSchema, kind: str) -> str:
    name = next((name for name in _COLUMNS[kind] if schema.has("asset", name)), None)
    return f"a.{quoted(name)}::text" if name else "NULL::text"


def _files_of(row: Row) -> list[Recorded]:
    """The files that one row of an asset names, the original first."""
    key, external, original, *others, _ = row
    files = [Recorded("asset", str(key), EXTERNAL if external else ORIGINAL, str(original))]
    files += [Recorded("asset", str(key), kind, str(path)) for kind, path in zip(_COLUMNS, others, strict=True) if path]
    return files


def _faces_query(schema: ImmichSchema, phase: Phase, condition: str) -> str:
    """Rows (id, path) of people's faces or users' own pictures; empty when this Immich has no such column."""
    column, live = ("thumbnailPath", "true") if phase == "person" else ("profileImagePath", 't."deletedAt" IS NULL')
    if not schema.has(phase, "id", column):
        return ""
    return f"SELECT t.id::text, t.{quoted(column)}::text FROM {schema.tables[phase].sql} t WHERE {condition} AND {live}"


def _faces(phase: Phase, rows: Iterable[Row]) -> list[Recorded]:
    kind = PERSON if phase == "person" else PROFILE
    return [Recorded(phase, str(key), kind, str(path)) for key, path in rows if path]


def _ids(keys: Iterable[str]) -> str:
    return "'{" + ",".join(str(UUID(key)) for key in keys) + "}'::uuid[]"


def _text(text: str) -> str:
    """The text as SQL writes it, whatever the server's standard_conforming_strings says."""
    quoted_text = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{quoted_text}'"
