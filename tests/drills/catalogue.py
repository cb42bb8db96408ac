"""All drills by name."""

from collections.abc import Mapping, Sequence

from drills import access, backups, learning, postgres, queues, quiet, redis, services, storage, upgrades
from drills.drill import Drill

GROUPS: Sequence[tuple[str, Mapping[str, Drill]]] = (
    ("Containers", services.DRILLS),
    ("Disks and folders", storage.DRILLS),
    ("Postgres", postgres.DRILLS),
    ("Redis", redis.DRILLS),
    ("Queues", queues.DRILLS),
    ("Proxy, certificates, server", access.DRILLS),
    ("Machine learning", learning.DRILLS),
    ("Dumps", backups.DRILLS),
    ("Upgrades", upgrades.DRILLS),
    ("What must stay quiet", quiet.DRILLS),
)
DRILLS: Mapping[str, Drill] = {name: drill for _, group in GROUPS for name, drill in group.items()}

# One of each group: what `make test` has time for. `make drills` runs all.
CORE = (
    "server-stopped",
    "media-disk-full",
    "database-read-only",
    "redis-not-saved",
    "thumbnails-paused",
    "certificate-expired",
    "model-cut-short",
    "dump-cut-short",
    "version-skew",
    "odd-uploads",
)
