"""The dashboards as a TypeScript program that compiles only if Grafana's own types accept them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KINDS = {
    "timeseries": ("timeseries", "TimeSeries"),
    "stat": ("stat", "Stat"),
    "state-timeline": ("statetimeline", "StateTimeline"),
    "bargauge": ("bargauge", "BarGauge"),
    "table": ("table", "Table"),
}
"""Our types of panels: folder and name of their types. Those of tables have no FieldConfig of their own."""
OF_PROMETHEUS = {"expr", "step", "tagKeys", "textFormat", "titleFormat", "useValueForTime"}
"""What the data source keeps in an annotation, which Grafana's schema knows nothing of."""
# The types have enums, which JSON has as their values; a literal of an object may have no name that the type lacks.
PLAIN = """\
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Some<T> = Plain<Partial<T>>;
"""


def program(boards: Mapping[str, Mapping[str, Any]], modules: Path) -> str:
    """One file: each dashboard, and of each panel the options, the field configuration and the queries.

    `modules` is the node_modules with @grafana/schema, whose folders moved in version 12.
    """
    found = [folder for folder in ("types", "esm") if (modules / f"@grafana/schema/dist/{folder}/raw").is_dir()]
    raw = f"@grafana/schema/dist/{found[0]}/raw"
    lines = [f"import type {{ Dashboard }} from '{raw}/dashboard/x/dashboard_types.gen';"]
    for folder, name in KINDS.values():
        lines.append(f"import type * as {name} from '{raw}/composable/{folder}/panelcfg/x/{name}PanelCfg_types.gen';")
    asks = f"{raw}/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen"
    typed = (modules / f"{asks}.d.ts").exists()  # newer ones keep it with the data source
    lines.append(
        f"import type {{ PrometheusDataQuery }} from '{asks}';" if typed else "type PrometheusDataQuery = any;"
    )
    known = (modules / f"{raw}/dashboard/x/dashboard_types.gen.d.ts").read_text(encoding="utf-8")
    # Until version 11 variables had to have an id, and a dashboard a style, which Grafana itself did without.
    foreign = set() if "allFormat" in known else {"id"}
    style = {"style": "dark"} if "allFormat" in known else {}
    lines.append(PLAIN)
    for name, board in boards.items():
        annotations = [_without(each, OF_PROMETHEUS) for each in board["annotations"]["list"]]
        variables = [_without(each, foreign) for each in board["templating"]["list"]]
        whole = {**board, **style, "annotations": {"list": annotations}, "templating": {"list": variables}}
        lines.append(_constant(f"{name}", "Plain<Dashboard>", whole))
        for panel in board["panels"]:
            if panel["type"] != "row":
                lines.extend(_panel(f"{name}_{panel['id']}", panel))
    return "\n".join(lines)


def _panel(name: str, panel: Mapping[str, Any]) -> Iterator[str]:
    kind = KINDS[panel["type"]][1]
    yield _constant(f"{name}_options", f"Some<{kind}.Options>", panel["options"])
    custom = panel["fieldConfig"]["defaults"].get("custom")
    if custom:
        yield _constant(f"{name}_fields", f"Some<{kind}.FieldConfig>", custom)
    for target in panel["targets"]:
        yield _constant(f"{name}_{target['refId']}", "Some<PrometheusDataQuery>", target)


def _without(given: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}


def _constant(name: str, kind: str, value: object) -> str:
    return f"export const {name}: {kind} = {json.dumps(value)};"
