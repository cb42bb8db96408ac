"""What a fault of the demo is: really injected into a healthy world, shown by a series, named by an alert, undone.

A fault is a context manager over a world: it breaks something on entering and mends it on leaving.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from immich_vitals.demo.world import World
from immich_vitals.metrics import PREFIX as METRICS
from immich_vitals.vitals import Readings

Injection = Callable[[World], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Sign:
    """The series that shows a fault, and the values it then has. `metric` is without `immich_vitals_`."""

    metric: str
    at_least: float = float("-inf")
    at_most: float = float("inf")
    labels: Mapping[str, str] = field(default_factory=dict)

    def seen(self, readings: Readings) -> bool:
        value = readings.one(self.metric, **self.labels)
        return value is not None and self.at_least <= value <= self.at_most

    @property
    def series(self) -> str:
        """As one types it into Prometheus."""
        labels = ",".join(f'{name}="{value}"' for name, value in self.labels.items())
        return f"{METRICS}{self.metric}" + (f"{{{labels}}}" if labels else "")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can break. `alert` names it; `impossible` says why this machine cannot have it, or None."""

    description: str
    inject: Injection
    sign: Sign
    alert: str
    impossible: Callable[[], str | None] = lambda: None


def until(what: str, holds: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.02)


def may_mount() -> bool:
    """Whether this process has the capability CAP_SYS_ADMIN, which is the 22nd."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 21 & 1)
