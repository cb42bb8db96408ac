"""A small, real world to look at: `immich-vitals demo`. Also the embedded servers that tests and benchmark use.

`run` and `FAULTS` are loaded when they are asked for: the demo's own helper processes live in this package, too, and
need neither.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immich_vitals.demo.faults import FAULTS
    from immich_vitals.demo.show import run

__all__ = ["FAULTS", "run"]


def __getattr__(name: str) -> object:
    if name == "FAULTS":
        from immich_vitals.demo.faults import FAULTS

        return FAULTS
    if name == "run":
        from immich_vitals.demo.show import run

        return run
    raise AttributeError(f"{__name__} has no {name}")
