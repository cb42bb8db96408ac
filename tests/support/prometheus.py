"""A real Prometheus with our rules, which waits less long than the rules say."""

import math
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx
import pytest
import yaml

from support.promtool import RULES
from support.rulebook import seconds
from support.server import Server

DURATION = re.compile(r"(?<=\[)\w+(?=\])|(?<=\[)\w+(?=:)|(?<=offset )\w+")
AGE = re.compile(r"(?P<said>time\(\)[^<>]*[<>]=? (?:bool )?)(?P<seconds>\d+(?: \* \d+)*)\b")
# What follows the window of a counter of which so many are wanted.
WANTED = re.compile(r"(?P<window>\]\s*\)\s*\)?\s*>= )(?P<count>[1-9]\d*)\b")
EVENT_SECONDS = 8.0
"""Of one kind, the log gives one event in 5 s, be there a hundred lines: so much room has each that is wanted."""
RETRY_SECONDS = 30.0
"""What the windows of 15 min and more have at least, as they hold what Docker starts again and again: its pauses grow,
and nobody hurries them."""
SYMPTOMS = 18.0
"""Twice what the longest `for` is made into: by then every symptom would have been told."""


def hurried_rules(folder: Path) -> list[Path]:
    """The shipped rules, each file by its name in the folder, as they are but up to sixty times as fast, within bounds.

    Every `for` and `keep_firing_for` is made shorter, and in expressions every window, offset and age, which is what
    `time() - ...` is compared with. The order of durations stays, so causes still speak before symptoms.
    """
    return _written(folder, _hurried)


def quicker_rules(folder: Path) -> list[Path]:
    """The shipped rules with each duration a fifth of what it was: for what takes its time, as starting anew does."""
    return _written(
        folder, lambda text: _shortened(text, _fifth, _fifth, lambda found: _fifth(seconds(found[0])), _fifth)
    )


def _written(folder: Path, change: Callable[[str], str]) -> list[Path]:
    folder.mkdir()
    for path in RULES:
        (folder / path.name).write_text(change(path.read_text()))
    return sorted(folder.iterdir())


def _fifth(told: float) -> float:
    return told / 5


def _lasts(told: float) -> float:
    # Not sixty times as fast, since a scrape of 2 s is not either: a cause may come one scrape after its symptom.
    return min(max(told / 30 + 2.0, 3.0), 9.0)


def _keeps(told: float) -> float:
    # Not cut as short as `for`: a cause is to outlast the symptoms that it explains.
    return told / 60 + 2.0


def _window(told: float) -> float:
    if told >= 900:
        return min(RETRY_SECONDS + (told - 900) / 60, 45.0)
    return min(max(told / 60, 6.0), RETRY_SECONDS)


def _range(found: re.Match[str]) -> float:
    wanted = WANTED.match(found.string, found.end())
    return max(_window(seconds(found[0])), int(wanted["count"]) * EVENT_SECONDS if wanted else 0.0)


def _wanted(found: re.Match[str]) -> int:
    # Half as many, since they come no faster.
    return max(int(found["count"]) // 2, 2)


def _hurried(text: str) -> str:
    text = WANTED.sub(lambda found: f"{found['window']}{_wanted(found)}", text)
    return _shortened(text, _lasts, _keeps, _range, _window)


def _shortened(
    text: str,
    lasts: Callable[[float], float],
    keeps: Callable[[float], float],
    window: Callable[[re.Match[str]], float],
    age: Callable[[float], float],
) -> str:
    """The rules with other durations, in seconds."""
    read = yaml.safe_load(text)
    for rule in (rule for group in read["groups"] for rule in group["rules"]):
        for key, other in (("for", lasts), ("keep_firing_for", keeps)):
            if key in rule:
                rule[key] = f"{other(seconds(rule[key])) * 1000:.0f}ms"
        expr = DURATION.sub(lambda found: f"{window(found) * 1000:.0f}ms", rule["expr"])
        rule["expr"] = AGE.sub(lambda found: f"{found['said']}{age(_product(found['seconds'])):g}", expr)
    return yaml.safe_dump(read, sort_keys=False)


def _product(factors: str) -> float:
    return math.prod(float(factor) for factor in factors.split(" * "))


class Prometheus(Server):
    """Scrapes these targets every two seconds, evaluates every second, and tells an Alertmanager."""

    def __init__(self, folder: Path, rules: Iterable[Path], targets: list[str], alertmanager: str) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not on the PATH; on Debian: apt-get install prometheus")
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": "immich-vitals", "static_configs": [{"targets": targets}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        }
        super().__init__(
            folder, program, yaml.safe_dump(config), "--storage.tsdb.path=data", "--rules.alert.resend-delay=1s"
        )

    def query(self, expr: str) -> list[dict[str, str]]:
        """The labels of what the expression gives now."""
        return [labels for labels, _ in self.ask(expr)]

    def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that the expression gives now."""
        answer = httpx.post(f"http://{self.address}/api/v1/query", data={"query": expr}, timeout=10)
        assert answer.status_code == 200, answer.text
        return [(each["metric"], float(each["value"][1])) for each in answer.json()["data"]["result"]]
