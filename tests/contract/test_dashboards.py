"""The dashboards agree with the metrics, the rules and the runbooks, and are laid out for eyes.

Where grafana/dashboard-linter has a rule of its own for it, the test restates it: templated data source, job and
instance, rate intervals, units, titles, descriptions.
"""

import json
import os
import re
import subprocess
from itertools import combinations
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from grafana.source import rulebook as limits
from grafana.source.boards import files
from immich_vitals import bundling
from support import grafana, grafana_types, rulebook
from support.grafana import Panel, boards, filled, panels, variables

ROOT = rulebook.ROOT
ALERTS = {rule.name: rule for rule in rulebook.alerts()}
RUNBOOKS = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
NOT_OURS = {"ALERTS": {"alertname", "alertstate", "severity", "component", "step", "rank"}, "ALERTS_FOR_STATE": set()}
"""What Prometheus makes of the rules; it has the target's labels, but no job where a rule drops it."""
COUNTED = {"rate", "increase", "irate", "resets", "changes"}
UNITS = {"short", "none", "bytes", "s", "percentunit", "dateTimeFromNow", "dateTimeAsIso", "ops", "cps", "cpm"}
TYPES = {"timeseries", "stat", "state-timeline", "bargauge", "table"}
COLORS = {"green", "blue", "orange", "red", "text", "transparent", "purple", "#8e8e8e"}
COLUMN_PIXELS, LETTER_PIXELS, EDGE_PIXELS = 51, 7.3, 30
"""Of a window 1280 pixels wide, in Grafana's letters of titles."""
PHONE_LETTERS = 44
COMPILE = ["node", "node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]
COMPILE += ["--moduleResolution", "node", "--target", "es2020"]
GRAFANA_VERSIONS = re.findall(r'^versions="(.+)"$', (ROOT / ".ci" / "grafana-types").read_text(), re.MULTILINE)[
    0
].split()


def each_panel(*types: str) -> pytest.MarkDecorator:
    chosen = [panel for panel in panels() if not types or panel.type in types]
    return pytest.mark.parametrize("panel", chosen, ids=str)


each_board = pytest.mark.parametrize("board", sorted(boards()))


def test_the_committed_dashboards_are_those_of_the_source() -> None:
    """`make docs` was run."""
    written = {path.name: path.read_text(encoding="utf-8") for path in grafana.FOLDER.glob("*.json")}
    assert written == files()


def test_the_dashboards_are_those_of_the_design() -> None:
    """Six, whose addresses the rules know."""
    linked = {re.findall(r"/d/immich-vitals-(\w+)", rule.annotations["dashboard"])[0] for rule in ALERTS.values()}
    assert set(boards()) == linked == {"triage", "services", "storage", "postgres", "queues", "access"}


@each_board
def test_links_of_alerts_select_something(board: str) -> None:
    """Whatever an alert's link gives a dashboard is a variable there, and one that a panel uses."""
    links = [rule.annotations["dashboard"] for rule in ALERTS.values()]
    given = {
        name
        for link in links
        if f"/d/immich-vitals-{board}" in link
        for name in re.findall(r"[?&]var-(\w+)=", link)
    }  # fmt: skip
    used = {name for panel in panels(board) for query in panel.queries for name in re.findall(r"\$(\w+)", query)}
    assert given <= variables(board).keys() & used


@pytest.mark.parametrize("alert", sorted(set(ALERTS) - {"ImmichVitalsHeartbeat", "ImmichLimitsMissing"}))
def test_each_alert_is_spoken_of_where_its_link_leads(alert: str) -> None:
    """The dashboard that an alert links to has a panel whose description names it."""
    board = re.findall(r"/d/immich-vitals-(\w+)", ALERTS[alert].annotations["dashboard"])[0]
    assert any(re.search(rf"\b{alert}\b", panel.about) for panel in panels(board))


@each_panel()
def test_panel_says_what_it_is(panel: Panel) -> None:
    """A title that fits, a unit, and a description that says what bad looks like and names alerts that exist."""
    width = panel.json["gridPos"]["w"]
    assert 0 < len(panel.title) <= min(PHONE_LETTERS, (width * COLUMN_PIXELS - EDGE_PIXELS) / LETTER_PIXELS)
    assert panel.type in TYPES
    assert panel.defaults["unit"] in UNITS
    assert panel.about.endswith(".")
    assert len(panel.about) >= 60
    assert set(re.findall(r"\bImmich[A-Z]\w+", panel.about)) <= ALERTS.keys()
    assert re.search(r"\bAlerts?: ", panel.about) or "alert" in panel.about.lower()


@each_board
def test_titles_differ(board: str) -> None:
    """No two panels of a dashboard have one name."""
    titles = [panel.title for panel in panels(board)]
    assert len(titles) == len(set(titles))


@each_panel()
def test_panel_asks_the_chosen_data_source(panel: Panel) -> None:
    """The variable, in the panel and in each of its queries."""
    assert panel.json["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel.json["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel.json["targets"]]
    assert len(references) == len(set(references))


@each_panel()
def test_query_asks_for_what_there_is(panel: Panel) -> None:
    """Metrics and labels exist, the target is selected by job, cluster and instance, variables are declared."""
    for query in panel.queries:
        asked = set(re.findall(r"\$\{?(\w+)", query)) - grafana.INTERVALS.keys()
        assert asked <= variables(panel.board).keys()
        expr = promql.parse(filled(query))
        selectors = [node for node in rulebook.nodes(expr) if isinstance(node, promql.VectorSelector)]
        assert selectors
        for selector in selectors:
            name = rulebook.name_of(selector)
            if name.startswith(rulebook.LIMIT):
                continue
            known = NOT_OURS.get(name)
            labels = known if known is not None else rulebook.labels_of(name)
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= labels | rulebook.TARGET, f"{name} has no {matched - labels}"
            wanted = {"cluster", "instance"} if known is not None else {"job", "cluster", "instance"}
            assert wanted <= matched or name == "ALERTS", f"{name} is asked of everybody"


@each_panel()
def test_query_reads_counters_as_counters(panel: Panel) -> None:
    """Counters by what they gained, over a window that follows the zoom; gauges as they are."""
    for query in panel.queries:
        for name, around in rulebook.raw_reads(promql.parse(filled(query))):
            functions = {node.func.name for node in around if isinstance(node, promql.Call)}
            if name.endswith("_total") and not (panel.type == "stat" and "failures" in name):
                assert functions & COUNTED, f"{name} is a counter"
            elif name in rulebook.metrics():
                assert not functions & {"rate", "increase", "irate"}, f"{name} is no counter"
        for window in re.findall(r"(?:rate|increase)\((?:[^()]|\([^()]*\))*?\[([^\]]+)\]", query):
            assert window in ("$__rate_interval", "$__range", "1h", "1d"), (
                f"a window that the zoom does not change: {window}"
            )


@each_panel("stat", "bargauge", "table")
def test_what_is_now_is_asked_now(panel: Panel) -> None:
    """Numbers, bars and tables show no value of an hour ago as today's: they ask for this moment alone."""
    assert all(target["instant"] and not target["range"] for target in panel.json["targets"])


@each_board
def test_variables_select_the_target(board: str) -> None:
    """Data source, job, cluster and instance can be chosen, and the lists follow the time range."""
    found = variables(board)
    assert list(found)[:4] == ["datasource", "job", "cluster", "instance"]
    assert found["datasource"]["type"] == "datasource"
    assert found["datasource"]["query"] == "prometheus"
    for name, variable in found.items():
        if name != "datasource":
            assert variable["refresh"] == 2
            assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            metric = re.findall(r"label_values\((\w+)", variable["query"])[0]
            assert metric in rulebook.metrics() or metric in rulebook.recorded()
            assert name in rulebook.labels_of(metric) | rulebook.TARGET
            assert variable["multi"] is variable["includeAll"]
            assert not variable["multi"] or variable["allValue"] == ".*"


@each_board
def test_panels_fill_the_grid(board: str) -> None:
    """Nothing overlaps, nothing sticks out, and each line of panels is full and of one height."""
    places = [panel["gridPos"] for panel in boards()[board]["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        assert place["h"] > 0
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    for top in {place["y"] for place in places}:
        line = [place for place in places if place["y"] == top]
        assert sum(place["w"] for place in line) == 24
        assert len({place["h"] for place in line}) == 1
    ids = [panel["id"] for panel in boards()[board]["panels"]]
    assert len(ids) == len(set(ids))


@each_panel()
def test_colour_means_something(panel: Panel) -> None:
    """Colours come from a closed list, by name, so that they hold in dark and in light; states say what is unknown."""
    text = json.dumps(panel.json["fieldConfig"])
    assert set(re.findall(r'"color": "([^"]+)"', text)) <= COLORS
    thresholds = [step["value"] for step in panel.defaults.get("thresholds", {}).get("steps", ())]
    assert thresholds[:1] in ([], [None])
    assert thresholds[1:] == sorted(thresholds[1:])
    mappings = panel.defaults.get("mappings") or ()
    if panel.type == "state-timeline" or (panel.type == "stat" and mappings):
        assert {mapping["type"] for mapping in mappings} >= {"value", "special"}
        known = next(mapping["options"] for mapping in mappings if mapping["type"] == "value")
        assert all(result["text"] and result["color"] for result in known.values())
    if panel.type == "state-timeline":
        scheme = panel.defaults["color"]
        assert scheme == {"mode": "fixed", "fixedColor": "#8e8e8e"}, "thresholds would take the place of the states"
        assert "thresholds" not in panel.defaults
    if panel.type == "timeseries":
        assert panel.defaults["custom"]["spanNulls"] is False, "a gap would look like data"
    if panel.type in ("stat", "bargauge", "state-timeline", "table"):
        assert panel.defaults["noValue"]


def test_links_lead_somewhere() -> None:
    """Every link inside leads to one of the dashboards, every runbook exists."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in grafana.FOLDER.glob("*.json"))
    uids = {f"immich-vitals-{name}" for name in boards()}
    for uid in re.findall(r'"/d/([\w-]+)(?:[?"])', text):
        assert uid in uids
    addresses = set(re.findall(r'"(https?://[^"]+)"', text))
    assert addresses == {f"{bundling.RUNBOOK_URL}/${{__value.raw}}.md"}
    assert {*ALERTS, "README"} <= RUNBOOKS
    # Values that become a part of an address.
    words = {word for panel in panels("triage") for word in _mapped(panel, "Look at")}
    assert words == boards().keys()


def _mapped(panel: Panel, column: str) -> set[str]:
    return {
        word
        for override in panel.json["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == column
        for each in override["properties"]
        if each["id"] == "mappings"
        for mapping in each["value"]
        for word in mapping["options"]
    }


def test_provisioning_matches_the_compose_example() -> None:
    """Grafana finds data source and dashboards where the compose example mounts them, and opens on Triage."""
    services = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    inside = {target: source for source, target in mounts.items()}
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/immich-vitals.yml").read_text())["providers"][0]
    folder = provider["options"]["path"]
    assert (ROOT / inside[folder]).resolve() == grafana.FOLDER
    assert (ROOT / inside["/etc/grafana/provisioning"]).resolve() == ROOT / "grafana" / "provisioning"
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(folder)
    assert json.loads((grafana.FOLDER / home.name).read_text())["uid"] == "immich-vitals-triage"
    source = yaml.safe_load((ROOT / "grafana/provisioning/datasources/immich-vitals.yml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    scrape = yaml.safe_load((ROOT / "compose/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


def test_dashboards_are_as_hot_as_the_rules() -> None:
    """What dashboards take for the limits of the rules is what the rules' page says of them."""
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert f"| `disk_full_ratio` | {limits.limit('disk_full_ratio'):.0%}".replace("%", " %") in page
    with pytest.raises(KeyError):
        limits.limit("nonsense")


@pytest.mark.parametrize("version", GRAFANA_VERSIONS)
def test_dashboards_fit_the_types_of_grafana(version: str) -> None:
    """Grafana's own TypeScript types accept each dashboard, the options of each panel, and each query."""
    folder = Path(os.environ.get("GRAFANA_TYPES", "nowhere")) / version
    if not folder.is_dir():
        pytest.skip("Grafana's types are not here; GRAFANA_TYPES=$(.ci/grafana-types FOLDER) fetches them from npm")
    (folder / "dashboards.ts").write_text(grafana_types.program(boards(), folder / "node_modules"), encoding="utf-8")
    done = subprocess.run(
        [*COMPILE, "dashboards.ts"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[:4000]
