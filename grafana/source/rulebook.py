"""What dashboards take from the rules: limits, and which alert belongs where."""

import re
from dataclasses import dataclass
from functools import cache

from scripts.rulefiles import LIMIT, rules, value_of

HEARTBEAT = "ImmichVitalsHeartbeat"
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
        for rule in rules()
        if "alert" in rule
    }
    return tuple(sorted(found, key=lambda alert: alert.name))


@cache
def limit(name: str) -> float:
    """The number that the rules use when nobody set one of their own. Raises `KeyError` for an unknown name."""
    for rule in rules():
        if rule.get("record") == LIMIT + name:
            return value_of(rule["expr"].rsplit("vector(", 1)[1].rstrip(")"))
    raise KeyError(f"rules/limits.rules.yml has no limit {name}")


def _board(url: str) -> str:
    found = _DASHBOARD.search(url)
    if found is None:
        raise ValueError(f"{url} is no address of a dashboard")
    return found[1]
