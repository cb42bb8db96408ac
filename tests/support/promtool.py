"""promtool: our rules on series of our choice, and which alerts fire when."""

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "rules").glob("*.rules.yml"))
HOLE = "_"
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Alert = Mapping[str, str]


def programs() -> list[str]:
    """Every promtool there is: Debian's on the PATH, and that of Prometheus 3 where PROMTOOL3 names one."""
    return [path for path in (shutil.which("promtool"), os.environ.get("PROMTOOL3")) if path]


def promtool() -> str:
    """The one on the PATH; without one the test is skipped."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on the PATH; on Debian: apt-get install prometheus")
    return found


# It works hard for minutes, beside tests that watch how fast servers answer.
NICE = ("nice", "-n", "15")


def check(program: str, *arguments: str) -> None:
    """Run promtool; an error is a failed assertion with what it said."""
    done = subprocess.run([*NICE, program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(
    series: Mapping[str, str], minutes: Sequence[int], rules: Iterable[Path] = RULES, program: str | None = None
) -> dict[int, list[Alert]]:
    """The alerts that fire at these minutes, with their labels, if the series have these values, one a minute.

    promtool has no other way to show results than to complain that they are not the expected ones, so something
    is expected that never is.
    """
    rules = list(rules)
    with tempfile.TemporaryDirectory(prefix="immich-vitals-promtool-") as folder:
        file = Path(folder) / "asked.test.yml"
        asked = {
            "rule_files": [str(path) for path in rules],
            "evaluation_interval": "1m",
            "group_eval_order": _order(rules),
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": 'ALERTS{alertstate="firing"}',
                            "eval_time": f"{minute}m",
                            "exp_samples": [{"labels": "never", "value": minute}],
                        }
                        for minute in minutes
                    ],
                }
            ],
        }
        file.write_text(json.dumps(asked))
        done = subprocess.run(
            [*NICE, program or promtool(), "test", "rules", str(file)], capture_output=True, text=True, check=False
        )
    found = dict(_answers(done.stdout + done.stderr))
    assert sorted(found) == sorted(minutes), (done.stdout + done.stderr)[:3000]
    return found


def _answers(text: str) -> Iterable[tuple[int, list[Alert]]]:
    """Pairs of the minute, which is the value we claimed to expect, and the alerts that there were instead."""
    for claimed, got in re.findall(r'exp: \{__name__="never"\} (\S+)\n\s*got: ([^\n]*)', text):
        alerts = []
        for part in re.findall(r"\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\}", got):
            labels = {name: json.loads(f'"{value}"') for name, value in LABEL.findall(part)}
            del labels["__name__"], labels["alertstate"]
            alerts.append(labels)
        yield int(float(claimed)), alerts


def _order(rules: Iterable[Path]) -> list[str]:
    """Groups that record before those that use them; promtool takes any order otherwise."""
    groups = [group["name"] for path in rules for group in yaml.safe_load(path.read_text())["groups"]]
    return sorted(groups, key=lambda name: (not name.endswith("-limits"), not name.endswith("-recorded")))


def notation(items: Iterable[str]) -> str:
    """Items, one a minute, in promtool's notation: equal neighbours are written once, with their number."""
    return " ".join(_run(item, len(list(run))) for item, run in itertools.groupby(items))


def _run(item: str, count: int) -> str:
    if item == HOLE:
        return f"{HOLE}x{count}"
    return " ".join([item] * count) if item == "stale" else f"{item}x{count - 1}"
