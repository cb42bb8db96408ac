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

# One of each kind of fault, and of what must stay quiet: what `make test` has time for. `make drills` runs all.
CORE = (
    "redis-stopped",
    "server-stopped",
    "server-removed",
    "media-disk-filling",
    "proxy-misdirected",
    "certificate-expired",
)
