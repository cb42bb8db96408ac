"""All drills by name."""

from collections.abc import Mapping

from drills import access, backups, learning, postgres, queues, quiet, redis, services, storage, upgrades
from drills.drill import Drill

DRILLS: Mapping[str, Drill] = {
    **services.DRILLS,
    **storage.DRILLS,
    **postgres.DRILLS,
    **redis.DRILLS,
    **queues.DRILLS,
    **access.DRILLS,
    **learning.DRILLS,
    **backups.DRILLS,
    **upgrades.DRILLS,
    **quiet.DRILLS,
}
