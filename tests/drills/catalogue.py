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

# What a drill does not show yet, and why as far as it is known. They are run, and may fail.
PENDING: Mapping[str, str] = {}

# One of each kind of fault, and of what must stay quiet: what `make test` has time for. `make drills` runs all.
CORE = (
    "redis-stopped",
    "database-stopped",
    "server-stopped",
    "machine-learning-out-of-memory",
    "proxy-misdirected",
    "certificate-expired",
    "model-cut-short",
    "dump-program-missing",
    "server-older-than-database",
    "planned-restart",
    "made-anew",
    "odd-uploads",
)
