# ruff: noqa: E501
"""What a drill does not show yet, and why as far as it is known: these are run, and may fail."""

from collections.abc import Mapping

PENDING: Mapping[str, str] = {
    "server-paused": "told ImmichContainerPaused, ImmichContainerUnhealthy; wanted is ImmichContainerPaused",
    "photos-inside": "told ImmichMarkerMissing, ImmichMediaNotMounted, ImmichMediaPathMoved; wanted is ImmichMediaNotMounted",
    "media-renamed": "nothing was told",
    "external-renamed": "nothing was told",
    "database-password-changed": "told ImmichRestartLoop, ImmichPostgresAuthFailing; wanted is ImmichPostgresAuthFailing",
    "database-closed": "told ImmichPostgresDown, ImmichPostgresWrongOwnership; wanted is ImmichPostgresWrongOwnership",
    "database-of-other-version": "told ImmichPostgresDown, ImmichPostgresVersionMismatch; wanted is ImmichPostgresVersionMismatch",
    "table-cut-short": "told ImmichPostgresCorruption, ImmichPostgresDown; was not over in time after the mend",
    "library-missing": "told ImmichPostgresDown, ImmichVectorExtensionProblem; wanted is ImmichVectorExtensionProblem",
    "table-locked": "told ImmichPostgresBlocked, ImmichImageLoadFailing; wanted is ImmichPostgresBlocked",
    "redis-password-set": "told ImmichCollectorFailing, ImmichRedisAuthFailing; wanted is ImmichRedisAuthFailing",
    "proxy-gives-up": "told ImmichImageLoadFailing; wanted is ImmichProxyUnreachable",
    "proxy-body-limit": "nothing was told",
    "certificate-expires": "nothing was told",
    "dump-cut-short": "not run on a quiet machine yet",
    "dump-shrunk": "not run on a quiet machine yet",
    "no-dump-for-days": "not run on a quiet machine yet",
    "nightly-dump": "not run on a quiet machine yet",
    "server-older-than-database": "not run on a quiet machine yet",
    "version-skew": "not run on a quiet machine yet",
    "upgraded": "not run on a quiet machine yet",
    "cold-start": "not run on a quiet machine yet",
    "planned-restart": "not run on a quiet machine yet",
    "made-anew": "not run on a quiet machine yet",
    "docker-restarted": "not run on a quiet machine yet",
    "import": "not run on a quiet machine yet",
    "odd-uploads": "not run on a quiet machine yet",
    "hour-of-nothing": "not run on a quiet machine yet",
}
