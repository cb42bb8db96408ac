"""What every rule must be: the checks of pint that matter here, and our own about reasons, ranks and runbooks."""

import re
from functools import cache
from itertools import pairwise
from typing import Any

import promql_parser as promql
import pytest
import yaml

from immich_vitals import bundling
from support import inhibition, rulebook
from support.rulebook import LIMIT, ROOT, Broken, Rule

ALERTS = rulebook.alerts()
RECORDED = list(rulebook.recorded().values())
SEVERITIES = {"critical", "warning", "info"}
BY_COMPONENT = '{{ if eq $labels.component "machine_learning" }}warning{{ else }}critical{{ end }}'
RUNBOOKS = bundling.RUNBOOK_URL
DASHBOARDS = f"{bundling.GRAFANA_URL}/d/immich-vitals-"
UIDS = {"triage", "services", "storage", "postgres", "queues", "access"}
INSTANCE = "?var-instance={{ $labels.instance | urlquery }}"
COUNTS = {"rate", "increase", "irate", "resets", "changes", "max_over_time"}
LOOKS_BACK = {"increase", "resets", "changes", "max_over_time", "min_over_time", "rate", "predict_linear"}
WITHOUT_TARGET = {"ImmichLimitsMissing"}
"""Alerts on rules, not on an Immich: they have no instance."""
ALSO_LOOKS_BACK = {"ImmichQueueStalled": 1800}
"""Seconds for which the fault must have been there before the expression holds at all."""


ONE_FAULT = {("ImmichPostgresCorruption", "ImmichPostgresChecksumFailures")}
"""Source and target of equal rank: two ways to know of one damaged page."""


def each(rules: list[Rule]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rule", rules, ids=[f"{rule.name}-{number}" for number, rule in enumerate(rules)])


@each(ALERTS + RECORDED)
def test_expression_reads_what_there_is_and_keeps_the_target(rule: Rule) -> None:
    """Metrics and labels exist, joins can match, and instance, job and the cluster's labels are never dropped."""
    try:
        shape = rulebook.shape(promql.parse(rule.expr))
    except Broken as broken:
        pytest.fail(f"{rule.name}: {broken}")
    assert shape is not None
    assert shape.target or rule.name.startswith(LIMIT) or rule.name in WITHOUT_TARGET


@each(ALERTS + RECORDED)
def test_expression_reads_samples_through_a_window(rule: Rule) -> None:
    """A missed scrape resets nothing: raw samples are read over five minutes or more, counters as counters."""
    if rule.name.startswith(LIMIT) or rule.name in WITHOUT_TARGET:
        return
    for name, around in rulebook.raw_reads(promql.parse(rule.expr)):
        if name in rulebook.recorded() or name == "up":
            continue
        functions = [node.func.name for node in around if isinstance(node, promql.Call)]
        windows = [node.range.total_seconds() for node in around if isinstance(node, promql.MatrixSelector)]
        assert windows, f"{name} is read without a window"
        assert min(windows) >= 300, f"{name}: four scrapes of a minute must fit into the window"
        metric = rulebook.metrics()[name]
        if metric.full_name.endswith("_total"):
            assert COUNTS & set(functions), f"{name} is a counter"
        else:
            assert not {"rate", "increase", "irate", "resets"} & set(functions), f"{name} is no counter"


@each(ALERTS)
def test_alert_waits_before_it_speaks(rule: Rule) -> None:
    """It compares something; a restart or a single bad scrape does not fire it; it does not flap when it ends."""
    nodes = list(rulebook.nodes(promql.parse(rule.expr)))
    functions = {node.func.name for node in nodes if isinstance(node, promql.Call)}
    compares = any(str(node.op) in rulebook.COMPARISONS for node in nodes if isinstance(node, promql.BinaryExpr))
    if rule.name == "ImmichVitalsHeartbeat":
        assert rule.lasts == 0
        return
    assert compares or functions & {"absent", "absent_over_time"}
    assert rule.lasts >= 60 or functions & LOOKS_BACK
    assert rule.keeps > 0 or rule.labels["severity"] == "info"


@each(ALERTS)
def test_alert_has_its_labels(rule: Rule) -> None:
    """severity, component, step and rank, from closed lists."""
    shape = rulebook.shape(promql.parse(rule.expr))
    assert shape is not None
    extra = {"queue", "blocks"}
    assert set(rule.labels) - extra | ({"component"} & shape.labels) == {"severity", "component", "step", "rank"}
    assert rule.labels["severity"] in SEVERITIES or (
        rule.labels["severity"] == BY_COMPONENT and "component" in shape.labels
    )
    assert re.fullmatch(r"[1-9]|1[01]", rule.labels["step"])
    assert re.fullmatch(r"0[1-9]|1[0-6]", rule.labels["rank"])
    assert re.fullmatch(r"Immich[A-Z]\w+", rule.name)


@each(ALERTS)
def test_alert_has_its_annotations(rule: Rule) -> None:
    """Summary, description with the first thing to do, runbook and dashboard, with labels that are really there."""
    assert set(rule.annotations) == {"summary", "description", "runbook_url", "dashboard"}
    assert rule.annotations["summary"].endswith(".")
    assert re.search(r"First: .*\.$", rule.annotations["description"], re.DOTALL), "say what to do first"
    assert rule.annotations["runbook_url"] == f"{RUNBOOKS}/{rule.name}.md"
    assert rule.annotations["dashboard"].startswith(DASHBOARDS)
    dashboard = rule.annotations["dashboard"].removeprefix(DASHBOARDS)
    assert dashboard.split("?")[0] in UIDS
    if rule.name not in WITHOUT_TARGET:
        assert INSTANCE in dashboard
    shape = rulebook.shape(promql.parse(rule.expr))
    assert shape is not None
    there = shape.labels | set(rule.labels) | rulebook.TARGET
    for template in [*rule.annotations.values(), *rule.labels.values()]:
        assert set(re.findall(r"\$labels\.(\w+)", template)) <= there
        assert not re.search(r"\$value\s*}}", template), "say the value in human units"
        assert template.count("instance=%q") == template.count("instance=%q,cluster=%q"), "another cluster's facts"
        for name in re.findall(r"\bimmich_vitals_\w+", template):
            assert name in rulebook.metrics()


@each(ALERTS)
def test_alert_says_why(rule: Rule) -> None:
    """The reason for its numbers stands beside it."""
    assert len(rule.reason) > 40


@each(ALERTS)
def test_alert_has_a_runbook(rule: Rule) -> None:
    """With the four sections, and no link to a runbook that is not there."""
    page = ROOT / "docs" / "runbooks" / f"{rule.name}.md"
    text = page.read_text()
    assert text.startswith(f"# {rule.name}\n")
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections == ["Meaning", "Impact", "Diagnosis", "Mitigation", "Related"]
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_no_runbook_is_left_over() -> None:
    """Every page in docs/runbooks belongs to an alert, except for the index."""
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert pages - {"README"} == {rule.name for rule in ALERTS}


def test_recorded_names_are_unique_and_in_the_fields_form() -> None:
    """level:metric:operations, each recorded once."""
    names = [rule.name for rule in rulebook.rules() if not rule.alert]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z_]+:\w+:[a-z0-9_]+", name)


def test_limits_are_used_and_replaceable() -> None:
    """Each limit is used, by a rule that compares with it; each gives way to one of the person's own."""
    used = {
        name
        for rule in rulebook.rules()
        for name, _ in rulebook.raw_reads(promql.parse(rule.expr))
        if name.startswith(LIMIT)
    }
    limits = {name: rule for name, rule in rulebook.recorded().items() if name.startswith(LIMIT)}
    checks = next(rule for rule in ALERTS if rule.name == "ImmichLimitsMissing")
    assert used == set(limits)
    assert set(re.findall(rf"{LIMIT}\w+", checks.expr)) == set(limits)
    for name, rule in limits.items():
        word = name.removeprefix(LIMIT)
        assert re.fullmatch(rf"max\(immich_vitals:own_limit:{word}\) or vector\([\d.*^ ]+\)", rule.expr)
    elsewhere = {
        name
        for rule in ALERTS
        if rule not in (checks,)
        for name, around in rulebook.raw_reads(promql.parse(rule.expr))
        if name.startswith(LIMIT)
        and not any(isinstance(node, promql.Call) and node.func.name == "scalar" for node in around)
    }
    assert elsewhere == set()


def test_rules_of_one_name_differ_only_in_what_they_look_at() -> None:
    """Two rules of one alert agree on component, step and rank."""
    for first, second in pairwise(sorted(ALERTS, key=lambda rule: rule.name)):
        if first.name == second.name:
            for label in ("step", "rank"):
                assert first.labels[label] == second.labels[label], first.name


def rank(name: str) -> int:
    return int(next(rule for rule in ALERTS if rule.name == name).labels["rank"])


def test_inhibition_goes_down_the_ranks() -> None:
    """A source always has the smaller rank, so the graph of causes has no cycle; nothing hides rank 07."""
    names = {rule.name for rule in ALERTS}
    for rule in inhibition.inhibitions():
        assert {"cluster", "instance"} <= set(rule.equal)
        for source, target in rule.names():
            assert {source, target} <= names
            assert rank(source) < rank(target) or (source, target) in ONE_FAULT, f"{source} must not hide {target}"
            assert rank(target) != 7, f"{source} must not hide {target}"


def speaks_after(rule: Rule) -> float:
    """Seconds from the fault to the alert."""
    return rule.lasts + ALSO_LOOKS_BACK.get(rule.name, 0)


def test_a_cause_speaks_before_its_symptom_and_ends_after_it() -> None:
    """Its `for` is not longer, and it is kept firing at least as long: no symptom is told before or after it."""
    for rule in inhibition.inhibitions():
        for source, target in rule.names():
            causes = [each for each in ALERTS if each.name == source]
            symptoms = [each for each in ALERTS if each.name == target]
            # Where an alert has several rules, the quickest and the longest kept one speak for it.
            assert min(map(speaks_after, causes)) <= min(map(speaks_after, symptoms)), f"{source} -> {target}"
            assert max(each.keeps for each in causes) >= max(each.keeps for each in symptoms), f"{source} -> {target}"


def test_inhibitions_match_labels_that_alerts_have() -> None:
    """A matcher on a label that its alerts do not have would never, or always, match."""
    by_name = {rule.name: rule for rule in ALERTS}
    for rule in yaml.safe_load(inhibition.EXAMPLE.read_text())["inhibit_rules"]:
        for side in ("source_matchers", "target_matchers"):
            matchers = [inhibition.MATCHER.match(text) for text in rule[side]]
            named = next(found for found in matchers if found and found[1] == "alertname")
            for name in re.sub(r"\((.*?)\)", r"\1", named[3]).split("|"):
                alert = by_name[name]
                shape = rulebook.shape(promql.parse(alert.expr))
                assert shape is not None
                has = shape.labels | set(alert.labels) | {"alertname", "instance", "cluster"}
                assert {found[1] for found in matchers if found} | set(rule["equal"]) <= has | {"component"}, name


@cache
def _tests() -> list[dict[str, Any]]:
    files = sorted((ROOT / "rules" / "tests").glob("*.test.yml"))
    return [test for path in files for test in yaml.safe_load(path.read_text())["tests"]]


def _cases(alert: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    asked = [
        (test, [each for each in test.get("alert_rule_test", []) if each["alertname"] == alert]) for test in _tests()
    ]
    return [(test, cases) for test, cases in asked if cases]


@pytest.mark.parametrize("alert", sorted({rule.name for rule in ALERTS}))
def test_alert_is_tested_both_ways(alert: str) -> None:
    """It fires beside a healthy neighbour, is silent somewhere, and resolves after it fired."""
    fires = silent = resolves = beside = False
    for test, asked in _cases(alert):
        moments = sorted(asked, key=lambda case: rulebook.seconds(str(case["eval_time"])))
        fired = [bool(case.get("exp_alerts")) for case in moments]
        fires |= any(fired)
        silent |= not all(fired)
        resolves |= any(a and not b for a, b in pairwise(fired))
        instances = set(re.findall(r'instance="([^"]+)"', str(test["input_series"])))
        beside |= any(fired) and len(instances) > 1
    if alert == "ImmichVitalsHeartbeat":
        assert fires
    else:
        assert fires and silent and resolves
        assert beside or alert in WITHOUT_TARGET
