"""A real Prometheus with our rules, which waits less long than the rules say."""

import math
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Pace:
    """How much sooner the rules speak than they are shipped.

    `lasts`, `keeps` and `window` make a `for`, a `keep_firing_for`, and a window, offset or age in an expression of the
    shipped one; all in seconds. `wanted` says how many of so many events of a log are waited for. By `symptoms` all
    that will be told has been.
    """

    lasts: Callable[[float], float]
    keeps: Callable[[float], float]
    window: Callable[[float], float]
    symptoms: float
    wanted: Callable[[int], int] = lambda shipped: shipped


def _within(least: float, seconds: float, most: float) -> float:
    return min(max(least, seconds), most)


FAST = Pace(
    # Two seconds more, since a scrape of 2 s is not sixty times as fast: a cause may come one scrape after its symptom.
    lasts=lambda shipped: _within(3.0, shipped / 60 + 2.0, 7.0),
    # Not cut as short: a cause is to outlast the symptoms that it explains.
    keeps=lambda shipped: shipped / 60 + 2.0,
    window=lambda shipped: _within(6.0, shipped / 60, 45.0),
    symptoms=14.0,
)
"""For what breaks, and is well again, in a moment."""
CONTAINERS = Pace(
    lasts=lambda shipped: max(3.0, shipped / 15) if shipped < 240 else min(16.0 + (shipped - 240) / 150, 22.0),
    keeps=lambda shipped: shipped / 20 + 2.0,
    # 10 min and more hold what Docker starts again and again, after pauses that grow up to a minute.
    window=lambda shipped: _within(8.0, shipped / 15, 12.0) if shipped < 600 else min(20.0 + shipped / 60, 50.0),
    symptoms=34.0,
    # Of what ends at once and is started again, events come no faster than Docker's pauses let them.
    wanted=lambda shipped: max(shipped // 2, 2),
)
"""For containers that end, and are started again by Docker."""
CALM = Pace(
    lasts=lambda shipped: shipped / 5,
    keeps=lambda shipped: shipped / 5,
    window=lambda shipped: shipped / 5,
    symptoms=14.0,
)
"""For what takes its time on a busy machine, as starting everything anew does."""


def hurried_rules(folder: Path, pace: Pace = FAST) -> list[Path]:
    """The shipped rules, each file by its name in the folder, as they are but sooner.

    Every `for` and `keep_firing_for` is made shorter, and in expressions every window, offset and age, which is what
    `time() - ...` is compared with. The order of durations stays, so causes still speak before symptoms.
    """
    folder.mkdir()
    for path in RULES:
        (folder / path.name).write_text(_hurried(path.read_text(), pace))
    return sorted(folder.iterdir())


def _hurried(text: str, pace: Pace) -> str:
    def window(found: re.Match[str]) -> str:
        wanted = WANTED.match(found.string, found.end())
        room = pace.wanted(int(wanted["count"])) * EVENT_SECONDS if wanted else 0.0
        return f"{max(pace.window(seconds(found[0])), room) * 1000:.0f}ms"

    read = yaml.safe_load(text)
    for rule in (rule for group in read["groups"] for rule in group["rules"]):
        for key, hurry in (("for", pace.lasts), ("keep_firing_for", pace.keeps)):
            if key in rule:
                rule[key] = f"{hurry(seconds(rule[key])) * 1000:.0f}ms"
        expr = DURATION.sub(window, rule["expr"])
        expr = WANTED.sub(lambda found: f"{found['window']}{pace.wanted(int(found['count']))}", expr)
        rule["expr"] = AGE.sub(lambda found: f"{found['said']}{pace.window(_product(found['seconds'])):g}", expr)
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
            folder, program, yaml.safe_dump(config), "--storage.tsdb.path=data", "--rules.alert.resend-delay=3s"
        )

    def query(self, expr: str) -> list[dict[str, str]]:
        """The labels of what the expression gives now."""
        return [labels for labels, _ in self.ask(expr)]

    def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that the expression gives now."""
        answer = httpx.post(f"http://{self.address}/api/v1/query", data={"query": expr}, timeout=10)
        assert answer.status_code == 200, answer.text
        return [(each["metric"], float(each["value"][1])) for each in answer.json()["data"]["result"]]
