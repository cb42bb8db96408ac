"""What dashboards take from the rules: limits, and which alert belongs where."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[2] / "rules"
HEARTBEAT = "ImmichVitalsHeartbeat"
_LIMIT = "immich_vitals:limit:"
_DASHBOARD = re.compile(r"/d/immich-vitals-([a-z]+)")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, which may be several rules of one name."""

    name: str
    step: str
    board: str
    """The last word of its dashboard's uid: `storage` of `immich-vitals-storage`."""


@cache
def alerts() -> tuple[Alert, ...]:
    """Every alert once, by name. All rules of one name have one step and one dashboard."""
    found = {
        Alert(rule["alert"], rule["labels"]["step"], _board(rule["annotations"]["dashboard"]))
        for rule in _rules()
        if "alert" in rule
    }
    return tuple(sorted(found, key=lambda alert: alert.name))


@cache
def limit(name: str) -> float:
    """The number that the rules use when nobody set one of their own. Raises `KeyError` for an unknown name."""
    for rule in _rules():
        if rule.get("record") == _LIMIT + name:
            return _number(rule["expr"])
    raise KeyError(f"rules/limits.rules.yml has no limit {name}")


def _rules() -> Iterator[dict[str, Any]]:
    for path in sorted(RULES.glob("*.rules.yml")):
        if path.name == "own.rules.yml":  # the person's own
            continue
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def _board(url: str) -> str:
    found = _DASHBOARD.search(url)
    if found is None:
        raise ValueError(f"{url} is no address of a dashboard")
    return found[1]


def _number(expression: str) -> float:
    """Of `max(...) or vector(5 * 1024^3)` the last number."""
    product = 1.0
    for factor in expression.rsplit("vector(", 1)[1].rstrip(")").split("*"):
        base, _, power = factor.partition("^")
        product *= float(base) ** float(power or 1)
    return product
