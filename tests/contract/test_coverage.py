"""docs/coverage.md: every item of the guide with its metric, alert, runbook and test, and no empty cell."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/coverage", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_page_is_up_to_date_and_nothing_is_missing() -> None:
    """Names exist, every alert is in a row, every row has its tests; `make docs` writes the page anew."""
    done = run(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_cell_is_empty() -> None:
    """Eleven steps and the questions, each a table, and each row full."""
    text = PAGE.read_text()
    assert text.count("\n## ") == 12
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| What")]
    assert len(rows) > 60
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert all(cells), row


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """An alert in no row, and a row without what it needs, are named, and the page is not called right."""
    for name in ("rules", "docs", "scripts", "tests/worlds", "exporter/immich_vitals"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "docs" / "coverage.yml"
    told = source.read_text()
    assert "alerts: [ImmichServiceMissing]" in told
    source.write_text(told.replace("alerts: [ImmichServiceMissing]", "alerts: [ImmichGremlins]"))
    done = run(tmp_path, "--check")
    assert done.returncode == 1
    assert "ImmichServiceMissing is in no row" in done.stderr
    assert "there is no alert ImmichGremlins" in done.stderr
    assert "docs/coverage.md is not up to date" in done.stderr
