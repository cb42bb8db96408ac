"""The rule files as data, for what is generated from them: pages, dashboards."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "rules"
LIMIT = "immich_vitals:limit:"
"""How the names of the limits begin."""


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """Every rule of every file that we ship."""
    return tuple(
        rule
        for path in sorted(FOLDER.glob("*.rules.yml"))
        if path.name != "own.rules.yml"  # the person's own
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    )


def value_of(expression: str) -> float:
    """The value of the products and powers that limits are written as: `5 * 1024^3`."""
    result = 1.0
    for factor in expression.split("*"):
        base, _, power = factor.partition("^")
        result *= float(base) ** float(power or 1)
    return result
