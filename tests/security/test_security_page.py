"""SECURITY.md says what there is: tests that it names, the proofs of this folder, labels that name something of the
administrator's."""

import re
import subprocess
import sys
from pathlib import Path

from immich_vitals.collectors import COLLECTORS
from immich_vitals.runner import SELF_METRICS
from support.registry import need_registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE))
PROOFS = ("test_writes_nothing.py", "test_nothing_leaves.py")

# Whose values are from lists in our code.
CLOSED = {
    "access", "as", "collector", "component", "extension", "family", "folder", "health", "kind", "probe", "reachable",
    "reason", "resource", "result", "role", "route", "setting", "severity", "signature", "stage", "state", "type",
}  # fmt: skip
# Whose values come from outside; why each is told stands on the page.
OPEN = {
    "available", "code", "container", "database", "device", "event", "fstype", "image", "installed", "path",
    "policy", "prefix", "python", "queue", "server", "system_identifier", "version",
}  # fmt: skip


def names_in(file: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE))


def test_named_tests_exist() -> None:
    assert len(NAMED) > 30
    assert not [f"{file}::{test}" for file, test in NAMED if test not in names_in(ROOT / file)]


def test_every_proof_is_named() -> None:
    here = {(f"tests/security/{file}", test) for file in PROOFS for test in names_in(Path(__file__).with_name(file))}
    assert here <= NAMED


def test_labels() -> None:
    """Each label of each metric is one or the other, and the page has a line for each that is open."""
    declared = {label for kind in COLLECTORS for metric in kind.metrics for label in metric.labels}
    declared |= {label for metric in SELF_METRICS for label in metric.labels}
    assert not CLOSED & OPEN
    assert declared == CLOSED | OPEN
    table = PAGE.partition("| Label |")[2].partition("\n\n")[0]
    assert {label for line in table.splitlines()[1:] for label in re.findall(r"`(\w+)`", line.split("|")[1])} == OPEN


def test_audit() -> None:
    """It counts what it asked about, or says that nothing was audited, and ends with an error of its own."""
    need_registry()
    program = [sys.executable, str(ROOT / "scripts" / "audit")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        assert "NOT AUDITED: " in done.stderr
        assert not done.stdout
    else:
        counted = re.search(r"^\d+ packages, (\d+) known vulnerabilities; asked: ", done.stdout, re.MULTILINE)
        assert counted and done.returncode == (counted[1] != "0")
