"""Photos to try: some of the assets that Immich shows to somebody, chosen from its database."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from immich_vitals.collector import CollectorFailure, Deadline
from immich_vitals.config import PostgresConfig
from immich_vitals.sources.immich_schema import ImmichSchema, quoted, schema_from, schema_queries
from immich_vitals.sources.postgres import Database

TRIES = 3  # photos of one user: a single broken file is the file collector's news, not "photos do not load"
USERS = 12  # a key sees one user's photos, and tells nobody whose: so many are tried until that is known
KEPT = 20  # photos of each user
KEEP_SECONDS = 3600.0
RETRY_SECONDS = 300.0
ROWS = 4000  # of the asset table are looked at, in pages chosen at random, however many there are
_NO_SCHEMA = "Immich's tables are not as we know them: no photo can be chosen"


@dataclass(frozen=True, slots=True)
class Asset:
    """A live photo with a thumbnail and a preview. Neither id ever becomes a label or a line of a log."""

    id: UUID
    owner: UUID


class Canaries:
    """The photos to try. `problem` says why there are none."""

    def __init__(self, config: PostgresConfig, rng: random.Random | None = None) -> None:
        self._config = config
        self._database = Database(config)
        self._random = rng or random.Random()
        self._kept: dict[UUID, list[Asset]] = {}
        self._visible: UUID | None = None
        self._due = float("-inf")
        self.problem = ""

    def refresh(self, deadline: Deadline) -> None:
        """Choose anew when it is time to; what was chosen before is kept where the database does not answer."""
        now = deadline.clock.monotonic()
        if now < self._due:
            return
        try:
            self._kept, self.problem = self._chosen(deadline), ""
        except CollectorFailure as failure:
            self.problem = failure.message
        finally:
            self._database.close()  # the next time is an hour away
        self._due = now + (KEEP_SECONDS if self._kept and not self.problem else RETRY_SECONDS)

    def choose(self) -> Sequence[Asset]:
        """Photos of the user whom the key is known to see, or else one of each user."""
        mine = self._kept.get(self._visible) if self._visible else None
        if mine:
            return self._random.sample(mine, min(TRIES, len(mine)))
        owners = self._random.sample(list(self._kept), min(USERS, len(self._kept)))
        return [self._random.choice(self._kept[owner]) for owner in owners]

    def note(self, asset: Asset, *, visible: bool) -> None:
        """Remember whether the key sees this photo: then it sees, or does not see, its owner's."""
        if visible:
            self._visible = asset.owner
        elif self._visible == asset.owner:
            self._visible = None  # deleted since, or the key has changed

    def close(self) -> None:
        self._database.close()

    def _chosen(self, deadline: Deadline) -> dict[UUID, list[Asset]]:
        columns, function = self._database.ask(schema_queries, deadline)
        query = canary_query(schema_from(columns, function, self._config.database))
        if query is None:
            self.problem = _NO_SCHEMA
            return {}
        rows = self._database.ask(lambda hello: query, deadline)[0]
        kept: dict[UUID, list[Asset]] = {}
        for asset, owner in rows:
            kept.setdefault(UUID(str(owner)), []).append(Asset(UUID(str(asset)), UUID(str(owner))))
        return kept


def canary_query(schema: ImmichSchema) -> str | None:
    """Rows (asset, owner), at most `KEPT` of each owner; None when the tables do not say what is live and shown."""
    if not schema.has("asset", "id", "ownerId", "type", "deletedAt", "isOffline"):
        return None
    if schema.has("asset", "visibility"):
        shown = "a.visibility::text IN ('timeline', 'archive')"
    elif schema.has("asset", "isVisible"):
        shown = 'a."isVisible"'
    else:
        return None
    made = [_made(schema, "thumbnail", "thumbnailPath"), _made(schema, "preview", "previewPath")]
    if None in made:
        return None
    asset = schema.tables["asset"]
    # Pages are sampled, not rows: of ten million assets some hundred pages are read.
    return f"""SELECT id::text, owner::text FROM (
  SELECT a.id, a."ownerId" AS owner, row_number() OVER (PARTITION BY a."ownerId" ORDER BY random()) AS number
  FROM {asset.sql} a TABLESAMPLE SYSTEM (least(100, 100.0 * {ROWS} / greatest(1,
    (SELECT reltuples FROM pg_class WHERE oid = '{asset.sql.replace("'", "''")}'::regclass))))
  WHERE a.type = 'IMAGE' AND a."deletedAt" IS NULL AND NOT a."isOffline" AND {shown} AND {" AND ".join(map(str, made))}
) AS found WHERE number <= {KEPT}"""


def _made(schema: ImmichSchema, kind: str, path: str) -> str | None:
    if schema.has("asset", path):
        return f"coalesce(a.{quoted(path)}, '') <> ''"
    if schema.has("file", "assetId", "type"):
        files = schema.tables["file"].sql
        return f"EXISTS (SELECT FROM {files} f WHERE f.\"assetId\" = a.id AND f.type = '{kind}')"
    return None
