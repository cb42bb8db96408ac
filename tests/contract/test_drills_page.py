"""docs/drills.md is of the drills that there are, and has no failing line."""

from drills.catalogue import CORE, DRILLS, GROUPS
from drills.drill import Drill
from drills.report import PAGE, RANK, rows
from support.inhibition import inhibitions

ROWS = {row["Drill"]: row for row in rows(PAGE.read_text())}


def test_every_drill_is_on_the_page() -> None:
    """With what is done; none that is gone, and none twice."""
    assert {name: row["What is done"] for name, row in ROWS.items()} == {
        name: drill.about for name, drill in DRILLS.items()
    }


def test_no_line_fails() -> None:
    """Each told what it should, and its symptoms fired."""
    assert {name for name, row in ROWS.items() if row.get("Verdict") == "passed"} == set(DRILLS)
    for name, drill in DRILLS.items():
        told = [each.partition("]")[0].lstrip("[") for each in ROWS[name]["Told"].split(", ")]
        assert told == (list(drill.told) or ["nothing"]), name
        assert set(drill.inhibited) <= set(ROWS[name]["Fired and kept quiet"].split(", ")), name


def test_what_is_kept_quiet_is_inhibited_by_the_cause() -> None:
    """The example for Alertmanager has a rule that keeps each symptom quiet while what is told of it fires."""
    pairs = {pair for rule in inhibitions() for pair in rule.names()}

    def quiet(drill: Drill) -> set[str]:
        return {each for each in drill.inhibited if not any((cause, each) in pairs for cause in drill.told)}

    assert {name: quiet(drill) for name, drill in DRILLS.items() if quiet(drill)} == {}


def test_symptoms_rank_below_their_cause() -> None:
    """No drill lists as symptom what stands above its cause in the order of causes."""
    for name, drill in DRILLS.items():
        assert all(RANK[each] >= RANK[drill.told[0]] for each in drill.inhibited), name


def test_the_core_is_of_every_group() -> None:
    """CI runs one drill of each."""
    assert sorted(title for name in CORE for title, group in GROUPS if name in group) == sorted(dict(GROUPS))
