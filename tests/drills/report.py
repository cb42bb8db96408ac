"""docs/drills.md: what each drill showed."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

import yaml

from drills.catalogue import DRILLS, GROUPS
from drills.drill import Drill
from immich_vitals.demo import FAULTS
from support.inhibition import EXAMPLE
from support.rulebook import alerts

PAGE = Path(__file__).parents[2] / "docs" / "drills.md"
KEPT = Path(__file__).with_name("results.json")
RANK = {rule.name: rule.labels["rank"] for rule in alerts()}
HEARTBEAT = "ImmichVitalsHeartbeat"
HEAD = """# Drills

Written by `make drills`, which keeps what it saw in `tests/drills/results.json`; `tests/contract/test_drills_page.py`
compares it with the drills.

A drill breaks a whole machine with Immich for real, and waits for what is told of it. It has passed when the machine
was calm before; when the first notification names the cause; when nothing else is told, though the symptoms fire; when
nothing that stands above it in the order of causes fired; when all is over once the fault is mended; and when there
are as many assets and files as before. {count} drills, of which {quiet} must stay quiet: {passed} passed.

Run them with `make drills`, or one with `make drills ARGS="-k redis-stopped"`; they need what `.ci/run` installs, and
root. `DRILLS_LANES` is how many machines are broken at the same time: five keep two cores busy. `make test` runs one
of each kind.

## What is real, and what stands in

{machine}
The rules are the shipped ones, and the routes and inhibitions those of `rules/alertmanager.example.yml`; but everything
waits for seconds in place of minutes (`tests/support/prometheus.py`), and all that is looked at now and then is looked
at every few seconds. So "after" is how long it took there, and "shipped" how long the rule and the route wait at least
as they are shipped. Where all starts anew, or much is done, the rules wait a fifth of what is shipped.
"""
REST = """
## Alerts that no drill brings about

{told}
"""


@dataclass(slots=True)
class Result:
    """What a drill showed. Durations are in seconds; `severity` is that of the first alert, `problem` what kept the
    drill from its end."""

    told: list[str] = field(default_factory=list)
    fired: set[str] = field(default_factory=set)
    first_after: float | None = None
    mended_after: float | None = None
    counts: tuple[object, object] | None = None
    problem: str | None = None
    severity: str = ""
    day: str = ""

    def why_failed(self, drill: Drill) -> str | None:
        """What the drill should have shown and did not, or None when it has passed."""
        if self.problem is not None:
            return self.problem
        if self.told != list(drill.told):
            return f"told {self.told} and not {list(drill.told)}; fired {sorted(self.fired)}"
        if missing := set(drill.inhibited) - self.fired:
            return f"{sorted(missing)} did not fire; what fired: {sorted(self.fired)}"
        if above := [each for each in self.fired if drill.told and RANK[each] < RANK[drill.told[0]]]:
            return f"{above} fired, before {drill.told[0]} in the order of causes"
        if self.counts is None or (self.counts[0] != self.counts[1] and not drill.changes):
            return f"assets and files before and after: {self.counts}"
        return None


def note(found: Mapping[str, Result], machine: str) -> None:
    """Keep what was seen, in the place of what was seen of the same drills before, and write the page anew."""
    kept = {name: result for name, result in noted().items() if name in DRILLS}
    for name, result in found.items():
        kept[name] = replace(result, day=str(date.today()))
    told = {name: {**asdict(kept[name]), "fired": sorted(kept[name].fired)} for name in sorted(kept)}
    KEPT.write_text(json.dumps(told, indent=1, default=str) + "\n")
    PAGE.write_text(page(noted(), machine))


def noted() -> dict[str, Result]:
    """What was seen of each drill when it was run last."""
    told = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {name: Result(**{**each, "fired": set(each["fired"])}) for name, each in told.items()}


def page(results: Mapping[str, Result], machine: str) -> str:
    """The whole page. `machine` says what the machines are made of."""
    head = HEAD.format(
        machine=machine, count=len(DRILLS), quiet=sum(not drill.told for drill in DRILLS.values()),
        passed=sum(name in results and results[name].why_failed(drill) is None for name, drill in DRILLS.items()),
    )  # fmt: skip
    parts = [head]
    for title, group in GROUPS:
        parts.append(f"\n## {title}\n\n" + "\n".join(_table(group, results)) + "\n")
    told = {alert for drill in DRILLS.values() for alert in drill.told}
    demo = {fault.alert for fault in FAULTS.values()}
    rest = sorted({rule.name for rule in alerts()} - told - {HEARTBEAT})
    lines = [f"- {name}" + (" (a fault of `make demo` does)" if name in demo else "") for name in rest]
    return "".join(parts) + REST.format(told="\n".join(lines))


def _table(group: Mapping[str, Drill], results: Mapping[str, Result]) -> Iterator[str]:
    yield "| Drill | What is done | Told | After | Shipped | Fired and kept quiet | Over after | Day | Verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, drill in group.items():
        result = results.get(name) or Result(problem="not run yet")
        cells = (
            name, drill.about, ", ".join(map(_linked, result.told)) or "nothing", _seconds(result.first_after),
            _shipped(result) if drill.told else "", ", ".join(sorted(result.fired - set(result.told))),
            _seconds(result.mended_after), result.day, "passed" if result.why_failed(drill) is None else "FAILED",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _linked(alert: str) -> str:
    return f"[{alert}](runbooks/{alert}.md)"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} s"


def _shipped(result: Result) -> str:
    """How long the first alert waits as shipped: in its rule, and in its route."""
    if not result.told:
        return ""
    waits = min(rule.lasts for rule in alerts() if rule.name == result.told[0])
    return _length(waits + _group_wait(result.severity))


def _group_wait(severity: str) -> float:
    route = yaml.safe_load(EXAMPLE.read_text())["route"]
    for each in route["routes"]:
        if each["matchers"] == [f'severity="{severity}"']:
            return _read(each["group_wait"])
    return _read(route["group_wait"])


def _read(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smh])", text)
    assert found, text
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def rows(text: str) -> Iterable[Mapping[str, str]]:
    """The rows of the tables of a page, by their headings."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        yield from (dict(zip(head, line, strict=True)) for line in lines)
