"""All drills by name."""

from collections.abc import Mapping

from drills import services
from drills.drill import Drill

DRILLS: Mapping[str, Drill] = {**services.DRILLS}
