"""The dashboards as Grafana reads them: panels, their queries with variables filled in, the colours they would have.

No Grafana runs here: it can be had from none of the registries, and its sources are too large to be brought here. So
this says how Grafana would colour a panel, by its value mappings and thresholds, and draws nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
Series = tuple[Mapping[str, str], float]
INTERVALS = {"__rate_interval": "1m", "__range": "5m", "__interval": "15s"}
BAD, SOON, NOTE = "red", "orange", "blue"


@dataclass(frozen=True)
class Panel:
    """One panel; `board` is the last word of its dashboard's uid."""

    board: str
    json: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.board}: {self.title}"

    @property
    def title(self) -> str:
        return str(self.json["title"])

    @property
    def type(self) -> str:
        return str(self.json["type"])

    @property
    def about(self) -> str:
        return str(self.json.get("description", ""))

    @property
    def queries(self) -> list[str]:
        return [str(target["expr"]) for target in self.json["targets"]]

    @property
    def defaults(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.json["fieldConfig"]["defaults"]
        return found

    def colors(self, target: Mapping[str, Any], found: Iterable[Series]) -> set[str]:
        """The colours of what a query gave; of lines those of the area they lie in, if levels tint it."""
        if self.type == "timeseries" and self._style != "dashed+area":
            return set()
        if self.type == "table":
            column = "Value" if len(self.json["targets"]) == 1 else f"Value #{target['refId']}"
            return {color for labels, value in found for color in self._of_row({**labels, column: value})}
        return {_color(self.defaults, value) for _, value in found}

    @property
    def _style(self) -> str:
        return str(self.defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode", "off"))

    def columns(self) -> dict[str, str]:
        """The titles of a table's columns, by the label or `Value` that they show."""
        organized = next(each for each in self.json["transformations"] if each["id"] == "organize")
        found: dict[str, str] = organized["options"]["renameByName"]
        return found

    def _of_row(self, row: Mapping[str, str | float]) -> Iterator[str]:
        overrides = {each["matcher"]["options"]: each["properties"] for each in self.json["fieldConfig"]["overrides"]}
        for name, title in self.columns().items():
            config = {each["id"]: each["value"] for each in overrides.get(title, ())}
            if "custom.cellOptions" in config and name in row:
                yield _color(config, row[name])


def _color(config: Mapping[str, Any], value: float | str) -> str:
    """What Grafana gives a value: the colour of its mapping, else that of the last threshold at or below it."""
    key = value if isinstance(value, str) else f"{value:g}"
    for mapping in config.get("mappings") or ():
        if mapping["type"] == "value" and key in mapping["options"]:
            return str(mapping["options"][key].get("color", ""))
    steps = (config.get("thresholds") or {}).get("steps", ())
    number = float("-inf") if isinstance(value, str) else value
    reached = [step for step in steps if step["value"] is None or number >= step["value"]]
    return str(reached[-1]["color"]) if reached else ""


@cache
def boards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by the last word of their uid."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json")))
    return {str(board["uid"]).removeprefix("immich-vitals-"): board for board in found}


def panels(board: str | None = None) -> list[Panel]:
    """The panels that ask something, of one dashboard or of all."""
    return [Panel(name, panel) for name in boards() if board in (None, name) for panel in _panels(boards()[name])]


def _panels(board: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def variables(board: str) -> dict[str, Mapping[str, Any]]:
    return {variable["name"]: variable for variable in boards()[board]["templating"]["list"]}


def filled(text: str, **values: str) -> str:
    """The query as Grafana sends it: intervals and these variables by their values, all others as "All"."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return INTERVALS.get(name) or values.get(name, ".*")

    return VARIABLE.sub(value, text)
