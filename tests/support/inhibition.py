"""What Alertmanager would keep quiet, read from our example."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).parents[2] / "rules" / "alertmanager.example.yml"
MATCHER = re.compile(r'^(\w+)(=~|!~|!=|=)"(.*)"$')

Alert = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Matcher:
    label: str
    operator: str
    value: str

    def fits(self, alert: Alert) -> bool:
        found = alert.get(self.label, "")
        same = re.fullmatch(self.value, found) is not None if "~" in self.operator else found == self.value
        return same is not self.operator.startswith("!")


@dataclass(frozen=True, slots=True)
class Inhibition:
    source: tuple[Matcher, ...]
    target: tuple[Matcher, ...]
    equal: tuple[str, ...]

    def mutes(self, alert: Alert, firing: Iterable[Alert]) -> bool:
        """As Alertmanager does: an alert that is source and target of a rule is not muted by another such one."""
        if not all(matcher.fits(alert) for matcher in self.target):
            return False
        both = all(matcher.fits(alert) for matcher in self.source)
        return any(
            all(matcher.fits(other) for matcher in self.source)
            and all(alert.get(label, "") == other.get(label, "") for label in self.equal)
            and not (both and all(matcher.fits(other) for matcher in self.target))
            for other in firing
        )

    def names(self) -> Iterator[tuple[str, str]]:
        """Every pair of a source's and a target's alert name."""
        for source in _names(self.source):
            for target in _names(self.target):
                yield source, target


def config() -> dict[str, object]:
    read: dict[str, object] = yaml.safe_load(EXAMPLE.read_text())
    return read


def inhibitions() -> list[Inhibition]:
    """The inhibition rules of the example."""
    rules = config()["inhibit_rules"]
    assert isinstance(rules, list)
    return [
        Inhibition(
            tuple(map(_matcher, rule["source_matchers"])),
            tuple(map(_matcher, rule["target_matchers"])),
            tuple(rule["equal"]),
        )
        for rule in rules
    ]


def told(firing: list[Alert], rules: list[Inhibition]) -> list[Alert]:
    """Those of the firing alerts that nothing keeps quiet."""
    return [alert for alert in firing if not any(rule.mutes(alert, firing) for rule in rules)]


def _matcher(text: str) -> Matcher:
    found = MATCHER.match(text)
    assert found, f"{text!r} is no matcher as we write them"
    return Matcher(*found.groups())


def _names(matchers: Iterable[Matcher]) -> list[str]:
    named = [matcher for matcher in matchers if matcher.label == "alertname"]
    assert len(named) == 1, "each side of an inhibition names its alerts"
    return re.sub(r"\((.*?)\)", r"\1", named[0].value).split("|")
