"""Slow on purpose: work that shares a disk or a database with Immich takes its time."""

import time
from collections.abc import Callable

from immich_vitals.collector import Clock, SystemClock


class Pace:
    """Lets through so many units a second. A second's worth may go at once, so that small work is not slowed."""

    def __init__(
        self, per_second: float, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._per_second = per_second
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._free_at = self._clock.monotonic()

    def take(self, units: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until `units` more may be used; returns early once `stop()` is true, which is asked twice a second."""
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now - 1.0) + units / self._per_second
        while (wait := self._free_at - self._clock.monotonic()) > 0 and not stop():
            self._sleep(min(wait, 0.5))
