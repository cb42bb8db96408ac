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
          immich_vitals_container_start_timestamp_seconds{component="redis"}: now
    alerts: [ImmichRedisDown, ImmichContainerStopped]   # all that fire at any time
    notifications: [ImmichRedisDown]                    # what is left after inhibition, the first one first
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.support.promtool import HOLE, notation

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "worlds"
GOLDEN = TESTS / "collectors" / "golden"
MINUTES = 300
DAY = 86400.0

Labels = tuple[tuple[str, str], ...]
Name = tuple[str, Labels]


@dataclass(frozen=True, slots=True)
class World:
    name: str
    about: str
    alerts: tuple[str, ...]
    notifications: tuple[str, ...]
    series: Mapping[str, str] = field(repr=False)
    """Series with the values of each minute in promtool's notation; the world's name is their instance."""


def worlds() -> list[World]:
    """Every world there is."""
    return [_read(path) for path in sorted(FOLDER.glob("*.yml"))]


def _read(path: Path) -> World:
    told = yaml.safe_load(path.read_text())
    unknown = set(told) - {"about", "steps", "alerts", "notifications", "golden"}
    assert not unknown, f"{path.name}: unknown keys {unknown}"
    healthy = yaml.safe_load((FOLDER / "healthy.yml").read_text())
    grid: dict[Name, list[float | None]] = {
        name: [value] * (MINUTES + 1) for name, value in _exposed(healthy["golden"])
    }
    steps = list(healthy["steps"]) + ([] if path.stem == "healthy" else list(told.get("steps", [])))
    for step in steps:
        for selector, value in step["set"].items():
            _change(grid, selector, int(step["at"]), value)
    return World(
        path.stem, told["about"], tuple(told["alerts"]), tuple(told["notifications"]),
        {_written(name, path.stem): notation(map(_item, values)) for name, values in grid.items()},
    )  # fmt: skip


def _exposed(cases: list[str]) -> Iterator[tuple[Name, float]]:
    """The series of golden cases; all moments are three days ago, since promtool's clock begins at 0."""
    for case in cases:
        for family in text_string_to_metric_families((GOLDEN / case / "expected.prom").read_text()):
            for sample in family.samples:
                value = -3 * DAY if sample.name.endswith("_timestamp_seconds") else sample.value
                yield (sample.name, tuple(sorted(sample.labels.items()))), value


def _change(grid: dict[Name, list[float | None]], selector: str, at: int, value: object) -> None:
    """Change every series that the selector means from this minute on; make it where there is none."""
    name, labels = _parsed(selector)
    meant = [key for key in grid if key[0] == name and labels.items() <= dict(key[1]).items()]
    if not meant:
        meant = [(name, tuple(sorted(labels.items())))]
        grid[meant[0]] = [None] * (MINUTES + 1)
    for key in meant:
        values = grid[key]
        for minute in range(at, MINUTES + 1):
            values[minute] = _value(value, values[at], minute - at, at)


def _value(value: object, before: float | None, minutes: int, at: int) -> float | None:
    if value == "gone":
        return None
    if value == "now":
        return at * 60.0
    if isinstance(value, str):
        slope = re.fullmatch(r"([+-][\d.e+]+)/m", value)
        assert slope, f"{value!r} is no value of a step"
        # The first change shows a minute after the step, as the sample at the step is where it starts from.
        return (before or 0.0) + float(slope[1]) * minutes
    assert isinstance(value, int | float), f"{value!r} is no value of a step"
    return float(value)


def _item(value: float | None) -> str:
    return HOLE if value is None else f"{value:.17g}"


def _parsed(selector: str) -> tuple[str, dict[str, str]]:
    found = re.fullmatch(r"(\w+)(?:\{(.*)\})?", selector)
    assert found, f"{selector!r} is no series"
    return found[1], dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))


def _written(name: Name, instance: str) -> str:
    labels = {**dict(name[1]), "instance": instance, "job": "immich-vitals"}
    return name[0] + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
