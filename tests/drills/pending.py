# ruff: noqa: E501
"""What a drill does not show yet, and why as far as it is known: these are run, and may fail."""

from collections.abc import Mapping

PENDING: Mapping[str, str] = {
    "photos-inside": "told ImmichMarkerMissing, ImmichMediaNotMounted, ImmichMediaPathMoved; wanted is ImmichMediaNotMounted",
    "media-renamed": "nothing was told",
    "external-renamed": "nothing was told",
    "database-password-changed": "told ImmichRestartLoop, ImmichPostgresAuthFailing; wanted is ImmichPostgresAuthFailing",
    "database-closed": "told ImmichPostgresDown, ImmichPostgresWrongOwnership; wanted is ImmichPostgresWrongOwnership",
    "table-cut-short": "told ImmichPostgresCorruption, ImmichPostgresDown; was not over in time after the mend",
    "table-locked": "told ImmichPostgresBlocked, ImmichImageLoadFailing; wanted is ImmichPostgresBlocked",
    "redis-password-set": "told ImmichCollectorFailing, ImmichRedisAuthFailing; wanted is ImmichRedisAuthFailing",
    "dump-shrunk": "not run on a quiet machine yet",
    "server-older-than-database": "not run on a quiet machine yet",
    "cold-start": "not run on a quiet machine yet",
    "made-anew": "not run on a quiet machine yet",
    "docker-restarted": "not run on a quiet machine yet",
    "import": "not run on a quiet machine yet",
}
