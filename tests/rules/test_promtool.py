"""The rules' own promtool tests, in every Prometheus there is; and the same once more with scrapes that were missed."""

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from support import promtool
from support.promtool import HOLE
from support.rulebook import FOLDER, seconds

FILES = sorted((FOLDER / "tests").glob("*.test.yml"))
ITEM = re.compile(
    r"^(?P<first>[-+]?(?:\d[\d.]*(?:e[+-]?\d+)?|Inf|NaN)|_|stale)(?:(?P<step>[+-][\d.e]+)?x(?P<times>\d+))?$"
)


PROGRAMS = promtool.programs() or ["promtool"]


def names(path: Path) -> str:
    return path.name


@pytest.fixture(scope="module")
def runs() -> Iterator[Mapping[tuple[str, str], Future[None]]]:
    """All the long runs of promtool, started at once; it uses one core in each."""
    promtool.promtool()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            **{(file.name, "missed"): pool.submit(_miss_scrapes, file) for file in FILES},
            **{
                (file.name, program): pool.submit(promtool.check, program, "test", "rules", str(file))
                for file in FILES
                for program in PROGRAMS
            },
        }


@pytest.mark.promtool
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("file", FILES, ids=names)
def test_rules(runs: Mapping[tuple[str, str], Future[None]], file: Path, program: str) -> None:
    """The rules give what their promtool tests expect, in full."""
    runs[file.name, program].result()


@pytest.mark.promtool
@pytest.mark.parametrize("program", PROGRAMS)
def test_rules_load(program: str) -> None:
    """Prometheus would load every file."""
    promtool.promtool()
    promtool.check(program, "check", "rules", *map(str, promtool.RULES))


@pytest.mark.promtool
@pytest.mark.parametrize("file", FILES, ids=names)
def test_missed_scrape(runs: Mapping[tuple[str, str], Future[None]], file: Path) -> None:
    """Whatever fires fires as well without this scrape, and a minute later at most without the one before."""
    runs[file.name, "missed"].result()


def _miss_scrapes(file: Path) -> None:
    told = yaml.safe_load(file.read_text())
    rules = [file.parent / name for name in told["rule_files"]]
    for test in told["tests"]:
        if seconds(test["interval"]) > 60:
            continue  # A trend over days: a scrape of five minutes is missed together with the window of an alert.
        values = {each["series"]: list(_expanded(str(each["values"]))) for each in test["input_series"]}
        if any(HOLE in series for series in values.values()):
            continue  # It has holes of its own, and says what they must not do.
        for minute, expected in _fired(test).items():
            for missed in (minute, minute - 1):
                with_hole = {name: promtool.notation(_without(series, missed)) for name, series in values.items()}
                # Without the very scrape in which a fault began, its alert comes a scrape later.
                asked = [minute, minute + 1] if missed < minute else [minute]
                found = promtool.firing(with_hole, asked, rules)
                for alert in expected:
                    assert any(alert in found[each] for each in asked), f"{test['name']}: minute {minute}, not {missed}"


def _fired(test: dict[str, object]) -> dict[int, list[dict[str, str]]]:
    """The alerts that the test expects, by minute."""
    found: dict[int, list[dict[str, str]]] = {}
    cases = test.get("alert_rule_test", [])
    assert isinstance(cases, list)
    for case in cases:
        for alert in case.get("exp_alerts") or []:
            labels = {
                "alertname": case["alertname"],
                **{name: str(value) for name, value in alert["exp_labels"].items()},
            }
            found.setdefault(int(seconds(str(case["eval_time"])) // 60), []).append(labels)
    return found


def _expanded(notation: str) -> Iterator[str]:
    """promtool's notation, one item a minute: `1+2x3` is 1 3 5 7, `_x3` are three holes."""
    for item in notation.split():
        found = ITEM.match(item)
        assert found, f"{item!r} is not in promtool's notation"
        first, step, times = found["first"], float(found["step"] or 0), found["times"]
        if first == HOLE:
            yield from [HOLE] * int(times or 1)
        elif times is None or first == "stale":
            yield first
        else:
            yield from (
                first if not step else f"{float(first) + step * number:.17g}" for number in range(int(times) + 1)
            )


def _without(series: list[str], missed: int) -> Iterator[str]:
    return (HOLE if number == missed else value for number, value in enumerate(series))
