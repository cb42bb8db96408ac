"""Our rules as data: what an expression reads, which labels it keeps, which limits it uses."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import promql_parser as promql
import yaml

from immich_vitals.collectors import COLLECTORS
from immich_vitals.metrics import Metric
from immich_vitals.runner import SELF_METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "rules"
TARGET = frozenset({"instance", "job", "cluster"})
OTHERS = {"up": frozenset[str]()}
LIMIT, OWN_LIMIT = "immich_vitals:limit:", "immich_vitals:own_limit:"
COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">="})
SETS = frozenset({"and", "or", "unless"})


@dataclass(frozen=True, slots=True)
class Rule:
    file: Path
    name: str
    expr: str
    alert: bool
    lasts: float
    keeps: float
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    reason: str
    """The comments between the name and the expression."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Shape:
    """What a vector looks like: the labels it surely has, and whether those of the target are still there."""

    labels: frozenset[str]
    target: bool


class Broken(Exception):
    """The expression reads or drops something it must not."""


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule of every file, as written."""
    return tuple(rule for path in sorted(FOLDER.glob("*.rules.yml")) for rule in _read(path))


def alerts() -> list[Rule]:
    return [rule for rule in rules() if rule.alert]


@cache
def recorded() -> dict[str, Rule]:
    return {rule.name: rule for rule in rules() if not rule.alert}


@cache
def metrics() -> dict[str, Metric]:
    """Every metric of the exporter by its full name."""
    return {each.full_name: each for kind in COLLECTORS for each in kind.metrics} | {
        each.full_name: each for each in SELF_METRICS
    }


def seconds(duration: str) -> float:
    """`1h30m` in seconds."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    found = re.findall(r"(\d+)(ms|s|m|h|d|w)", duration)
    assert "".join(map("".join, found)) == duration, f"{duration!r} is no duration"
    return sum(int(number) * units[unit] for number, unit in found)


def nodes(expr: promql.Expr) -> Iterator[promql.Expr]:
    """The expression and everything in it."""
    yield expr
    for child in _children(expr):
        yield from nodes(child)


def raw_reads(expr: promql.Expr, within: tuple[promql.Expr, ...] = ()) -> Iterator[tuple[str, tuple[promql.Expr, ...]]]:
    """Every selector's name, with the expressions around it from the outside in."""
    if isinstance(expr, promql.VectorSelector):
        yield name_of(expr), within
    for child in _children(expr):
        yield from raw_reads(child, (*within, expr))


def name_of(selector: promql.VectorSelector) -> str:
    if not selector.name:
        raise Broken("a selector without a name")
    return str(selector.name)


def shape(expr: promql.Expr) -> Shape | None:
    """What the expression gives; None for a scalar. Raises `Broken`."""
    match expr:
        case promql.NumberLiteral() | promql.StringLiteral():
            return None
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return shape(expr.expr)
        case promql.MatrixSelector():
            return shape(expr.vector_selector)
        case promql.VectorSelector():
            return _selected(expr)
        case promql.Call():
            return _called(expr)
        case promql.AggregateExpr():
            return _aggregated(expr)
        case promql.BinaryExpr():
            return _joined(expr)
        case _:
            raise Broken(f"{type(expr).__name__} is new to this lint")


def _selected(selector: promql.VectorSelector) -> Shape:
    name = name_of(selector)
    has = labels_of(name)
    for matcher in selector.matchers.matchers:
        if matcher.name not in has | TARGET:
            raise Broken(f"{name} has no label {matcher.name}")
        regular = "Re" in str(matcher.op)
        if regular and not re.search(r"[][.*+?|(){}\\^$]", matcher.value):
            raise Broken(f"{name}: {matcher.name} is matched by a regular expression that is none: {matcher.value}")
    return Shape(has, target=not name.startswith((LIMIT, OWN_LIMIT)))


@cache
def labels_of(name: str) -> frozenset[str]:
    """The labels of a metric or record, beside those of the target. Raises `Broken` for an unknown name."""
    if name in OTHERS or name.startswith(OWN_LIMIT):
        return OTHERS.get(name, frozenset())
    if name in recorded():
        rule = recorded()[name]
        found = shape(promql.parse(rule.expr))
        if found is None:
            raise Broken(f"{name} records a scalar")
        return found.labels | frozenset(rule.labels)
    if name in metrics():
        return frozenset(metrics()[name].labels)
    raise Broken(f"there is no metric {name}")


def _called(call: promql.Call) -> Shape | None:
    function, arguments = call.func.name, [shape(each) for each in call.args]
    if function in ("vector", "time", "scalar"):
        return None if function != "vector" else Shape(frozenset(), target=False)
    vectors = [each for each in arguments if each is not None]
    if function in ("absent", "absent_over_time"):
        return Shape(frozenset(), target=False)
    if function in ("label_replace", "label_join"):
        made = call.args[1].val
        return Shape(vectors[0].labels | {made}, vectors[0].target)
    return vectors[0] if vectors else None


def _aggregated(expr: promql.AggregateExpr) -> Shape:
    inner = shape(expr.expr)
    if inner is None:
        raise Broken("an aggregation over a scalar")
    kind = str(expr.modifier.type) if expr.modifier else "none"
    if "Without" not in kind:
        if not inner.target:
            return Shape(frozenset(), target=False)
        raise Broken(f"{expr.op}: aggregate with `without`, anything else drops the labels of the target")
    dropped = frozenset(expr.modifier.labels)
    if not dropped <= inner.labels:
        raise Broken(f"{expr.op} without {sorted(dropped - inner.labels)}, which is not there")
    return inner if str(expr.op).endswith("k") else Shape(inner.labels - dropped, inner.target)


def _joined(expr: promql.BinaryExpr) -> Shape | None:
    left, right, operator = shape(expr.lhs), shape(expr.rhs), str(expr.op)
    if left is None or right is None:
        return left or right
    modifier = expr.modifier
    matching = modifier.matching if modifier else None
    ignored: frozenset[str] = frozenset()
    if matching is not None:
        if "Exclude" not in str(matching.type) and right.target:
            raise Broken(f"{operator}: match with `ignoring`; `on` drops or mixes the labels of the target")
        ignored = frozenset(matching.labels)
    unmatched = (left.labels ^ right.labels) - ignored
    if operator != "or" and unmatched and right.target:
        raise Broken(f"{operator}: only one side has {sorted(unmatched)}, so that nothing matches")
    if operator == "or":
        return Shape(left.labels & right.labels, left.target and right.target)
    if operator in SETS:
        return left
    card = str(modifier.card) if modifier else ""
    if "ManyToOne" in card:
        return Shape(left.labels | frozenset(modifier.group_labels or ()), left.target)
    if "OneToMany" in card:
        return Shape(right.labels | frozenset(modifier.group_labels or ()), right.target)
    return Shape(left.labels - ignored, left.target)


def _children(expr: promql.Expr) -> list[promql.Expr]:
    match expr:
        case promql.Call():
            return list(expr.args)
        case promql.BinaryExpr():
            return [expr.lhs, expr.rhs]
        case promql.MatrixSelector():
            return [expr.vector_selector]
        case promql.AggregateExpr():
            return [expr.expr, *([expr.param] if expr.param is not None else [])]
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return [expr.expr]
        case _:
            return []


def _read(path: Path) -> Iterator[Rule]:
    text = path.read_text()
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            unknown = set(rule) - {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}
            assert not unknown, f"{path.name}: unknown keys {unknown}"
            name = rule.get("alert") or rule["record"]
            yield Rule(
                path, name, rule["expr"], "alert" in rule,
                seconds(rule.get("for", "0s")), seconds(rule.get("keep_firing_for", "0s")),
                rule.get("labels", {}), rule.get("annotations", {}), _reason(text, name),
            )  # fmt: skip


def _reason(text: str, name: str) -> str:
    """The comments at every place where the rule of this name begins."""
    found = re.findall(rf"- alert: {name}\n((?:\s*#.*\n)*)", text)
    return "\n".join(found) if all(found) else ""
