"""A library of any size, made inside Postgres in a few statements."""

from immich_vitals.demo.schema import Connection

# Of a hundred assets: one in the trash, two archived, ten videos (half with an encoded file), one without thumbnails.
_ASSETS = """
INSERT INTO asset (id, "deviceAssetId", "ownerId", "deviceId", type, "originalPath", "originalFileName",
  "fileCreatedAt", "fileModifiedAt", "localDateTime", "createdAt", checksum, "checksumAlgorithm", thumbhash,
  "deletedAt", status, visibility)
SELECT md5('asset' || n)::uuid, 'IMG_' || n, md5('user' || n %% 3)::uuid, 'bench',
  CASE WHEN n %% 10 = 0 THEN 'VIDEO' ELSE 'IMAGE' END,
  '/data/upload/' || md5('user' || n %% 3)::uuid || '/ab/cd/' || md5('file' || n)::uuid || '.jpg',
  'IMG_' || n || '.jpg',
  moment, moment, moment, moment, decode(md5('content' || n) || '00000000', 'hex'), 'sha1',
  CASE WHEN n %% 100 = 7 THEN NULL ELSE decode(md5('hash' || n), 'hex') END,
  CASE WHEN n %% 100 = 1 THEN now() END,
  (CASE WHEN n %% 100 = 1 THEN 'trashed' ELSE 'active' END)::assets_status_enum,
  (CASE WHEN n %% 100 IN (2, 3) THEN 'archive' ELSE 'timeline' END)::asset_visibility_enum
FROM generate_series(%(first)s::int, %(last)s::int) n, LATERAL (SELECT now() - n * interval '7 minutes' AS moment) m
"""
_JOB_STATUS = """
INSERT INTO asset_job_status ("assetId", "metadataExtractedAt", "facesRecognizedAt", "duplicatesDetectedAt", "ocrAt")
SELECT md5('asset' || n)::uuid, now(), now(), now(), now() FROM generate_series(%(first)s::int, %(last)s::int) n
"""
_EXIF = """
INSERT INTO asset_exif ("assetId", make, model, "fileSizeInByte", "exifImageWidth", "exifImageHeight", description)
SELECT md5('asset' || n)::uuid, 'Demo', 'Camera', 3000000, 4000, 3000, ''
FROM generate_series(%(first)s::int, %(last)s::int) n
"""
_FILES = """
INSERT INTO asset_file ("assetId", type, path)
SELECT md5('asset' || n)::uuid, kind, '/data/thumbs/' || md5('user' || n %% 3)::uuid || '/ab/cd/'
  || md5('asset' || n)::uuid || '_' || kind
FROM generate_series(%(first)s::int, %(last)s::int) n, unnest(ARRAY['preview', 'thumbnail', 'encoded_video']) kind
WHERE n %% 100 <> 7 AND (kind <> 'encoded_video' OR n %% 20 = 0)
"""
_VECTORS = """
INSERT INTO smart_search ("assetId", embedding)
SELECT md5('asset' || n)::uuid, array_fill(((n %% 1000) / 1000.0)::real, ARRAY[512])::vector
FROM generate_series(%(first)s::int, %(last)s::int) n
"""
_USERS = """
INSERT INTO "user" (id, name, email, "oauthId", password, "profileImagePath", "profileChangedAt",
  "quotaUsageInBytes", status)
SELECT md5('user' || n)::uuid, 'Person ' || n, n || '@example.org', '', '', '', now(), 0, 'active'
FROM generate_series(0, 2) n
"""
TABLES = ("asset", "asset_file", "asset_job_status", "smart_search")


def add_users(connection: Connection) -> None:
    connection.execute(_USERS)


def add_assets(connection: Connection, first: int, last: int) -> None:
    """Add the assets from `first` to `last`, both included, and bring the planner's statistics up to date."""
    for statement in (_ASSETS, _JOB_STATUS, _EXIF, _FILES, _VECTORS):
        connection.execute(statement, {"first": first, "last": last})
    connection.execute("VACUUM ANALYZE")
