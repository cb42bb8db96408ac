"""Worlds: the exposition of a whole system as series over some hours, and what must be heard of them.

A world is a file in tests/worlds. `healthy.yml` puts the healthy one together from the golden files of the
collectors; every other one says what differs from it, and when:

    about: Redis is stopped for half an hour.
    steps:
      - at: 30                                   # minutes since the world began
        set:
          immich_vitals_redis_up: 0              # every series of this name
          immich_vitals_queue_workers{queue="ocr"}: 0
          immich_vitals_redis_writable: gone     # no sample from here on
          immich_vitals_container_restarts_total{component="redis"}: +1/m    # one more each minute
          immich_vitals_container_start_timestamp_seconds{component="redis"}: now+60/m    # started again each minute
      - at: 90
        set:
          immich_vitals_queue_*: back            # what it is in the healthy world
    alerts: [ImmichRedisDown, ImmichContainerStopped]   # all that fire at any time
    notifications: [ImmichRedisDown]                    # what is left after inhibition, the first one first
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from support.promtool import HOLE, notation

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "worlds"
GOLDEN = TESTS / "collectors" / "golden"
MINUTES = 300
DAY = 86400.0

Labels = tuple[tuple[str, str], ...]
Name = tuple[str, Labels]
Grid = dict[Name, list[float | None]]


@dataclass(frozen=True, slots=True)
class World:
    name: str
    about: str
    alerts: tuple[str, ...]
    notifications: tuple[str, ...]
    grid: Grid = field(repr=False)

    def series(self) -> dict[str, str]:
        """The values of each minute in promtool's notation; the world's name is the instance."""
        return {_written(name, self.name): notation(map(_item, values)) for name, values in self.grid.items()}

    def values(self, metric: str) -> list[float | None]:
        """Of every series of this name."""
        return [value for name, values in self.grid.items() if name[0] == metric for value in values]


def worlds() -> list[World]:
    """Every world there is."""
    return [_read(path) for path in sorted(FOLDER.glob("*.yml"))]


def _read(path: Path) -> World:
    told = yaml.safe_load(path.read_text())
    unknown = set(told) - {"about", "steps", "alerts", "notifications", "golden"}
    assert not unknown, f"{path.name}: unknown keys {unknown}"
    healthy = yaml.safe_load((FOLDER / "healthy.yml").read_text())
    well: Grid = {name: [value] * (MINUTES + 1) for name, value in _exposed(healthy["golden"])}
    _take(healthy["steps"], well, well)
    grid = {name: list(values) for name, values in well.items()}
    if path.stem != "healthy":
        _take(told.get("steps", []), grid, well)
    return World(path.stem, told["about"], tuple(told["alerts"]), tuple(told["notifications"]), grid)


def _exposed(cases: list[str]) -> Iterator[tuple[Name, float]]:
    """The series of golden cases; all moments are three days ago, since promtool's clock begins at 0."""
    for case in cases:
        for family in text_string_to_metric_families((GOLDEN / case / "expected.prom").read_text()):
            for sample in family.samples:
                value = -3 * DAY if sample.name.endswith("_timestamp_seconds") else sample.value
                yield (sample.name, tuple(sorted(sample.labels.items()))), value


def _take(steps: list[Mapping[str, Any]], grid: Grid, well: Grid) -> None:
    for step in steps:
        for selector, value in step["set"].items():
            _change(grid, well, selector, int(step["at"]), value)


def _change(grid: Grid, well: Grid, selector: str, at: int, value: object) -> None:
    """Change every series that the selector means from this minute on; make it where there is none."""
    name, labels = _parsed(selector)
    meant = [key for key in grid if fnmatchcase(key[0], name) and labels.items() <= dict(key[1]).items()]
    if not meant:
        assert "*" not in name, f"no series is called {name}"
        meant = [(name, tuple(sorted(labels.items())))]
        grid[meant[0]] = [None] * (MINUTES + 1)
    for key in meant:
        values = grid[key]
        for minute in range(at, MINUTES + 1):
            if value == "back":
                values[minute] = well[key][minute] if key in well else None
            else:
                values[minute] = _value(value, values[at], minute - at, at)


def _value(value: object, before: float | None, minutes: int, at: int) -> float | None:
    if value == "gone":
        return None
    found = re.fullmatch(r"(now)?(?:([+-][\d.e+]+)/m)?", str(value))
    if found is None:
        return float(str(value))
    # The first change shows a minute after the step: the sample at the step is where it starts from.
    return (at * 60.0 if found[1] else before or 0.0) + float(found[2] or 0) * minutes


def _item(value: float | None) -> str:
    return HOLE if value is None else f"{value:.17g}"


def _parsed(selector: str) -> tuple[str, dict[str, str]]:
    found = re.fullmatch(r"([\w*]+)(?:\{(.*)\})?", selector)
    assert found, f"{selector!r} is no series"
    return found[1], dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))


def _written(name: Name, instance: str) -> str:
    labels = {**dict(name[1]), "instance": instance, "job": "immich-vitals"}
    return name[0] + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
