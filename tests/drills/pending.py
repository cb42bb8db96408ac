# ruff: noqa: E501
"""What a drill does not show yet, and why as far as it is known: these are run, and may fail."""

from collections.abc import Mapping

PENDING: Mapping[str, str] = {
    "table-cut-short": "told ImmichPostgresCorruption, ImmichPostgresDown; was not over in time after the mend",
    "table-locked": "told ImmichPostgresBlocked, ImmichImageLoadFailing; wanted is ImmichPostgresBlocked",
    "dump-shrunk": "not run on a quiet machine yet",
}
