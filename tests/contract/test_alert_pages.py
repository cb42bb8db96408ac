"""What `scripts/alerts` writes: docs/alerts.md, the start page of the runbooks, and the frame of each runbook."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/alerts", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the tool reads and writes, up to date."""
    for name in ("rules", "docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    run(tmp_path)
    return tmp_path


def test_pages_are_up_to_date() -> None:
    """The pages say what the rules say; `make docs` writes them anew."""
    done = run(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_a_changed_rule_is_noticed_and_mended(copy: Path) -> None:
    """`--check` names the pages that a changed rule makes stale and changes nothing; without it they are written."""
    assert run(copy, "--check").stderr == ""
    rules = copy / "rules" / "redis.rules.yml"
    rules.write_text(rules.read_text().replace('step: "6", rank: "10"', 'step: "7", rank: "09"', 1))
    runbook = copy / "docs" / "runbooks" / "ImmichRedisDown.md"
    before = runbook.read_text()
    done = run(copy, "--check")
    assert done.returncode == 1
    for page in ("docs/alerts.md", "docs/runbooks/README.md", "docs/runbooks/ImmichRedisDown.md"):
        assert f"{page} is not up to date" in done.stderr
    assert runbook.read_text() == before
    assert run(copy).returncode == 0
    assert runbook.read_text().splitlines()[2] == "critical · step 7, thumbnails and derived files · rank 09"
    assert (run(copy, "--check").returncode, run(copy).stdout) == (0, "")


def test_what_a_person_wrote_stays(copy: Path) -> None:
    """Only the third line and the last section of a runbook are the tool's."""
    runbook = copy / "docs" / "runbooks" / "ImmichRedisDown.md"
    told = runbook.read_text().replace("## Impact\n", "## Impact\n\nSomething new.\n")
    runbook.write_text(re.sub(r"## Related\n.*", "## Related\n\nOld.\n", told, flags=re.DOTALL))
    assert run(copy).stdout == "docs/runbooks/ImmichRedisDown.md\n"
    assert runbook.read_text() == told


def test_an_alert_without_a_runbook_is_named(copy: Path) -> None:
    """A missing runbook fails both ways; the tool does not make one up."""
    runbook = copy / "docs" / "runbooks" / "ImmichRedisDown.md"
    runbook.unlink()
    for arguments in ([], ["--check"]):
        done = run(copy, *arguments)
        assert done.returncode == 1
        assert "ImmichRedisDown needs a runbook" in done.stderr
    assert not runbook.exists()


def test_related_says_what_alertmanager_does(copy: Path) -> None:
    """The causes and the symptoms are those of the inhibition rules."""
    example = copy / "rules" / "alertmanager.example.yml"
    told = yaml.safe_load(example.read_text())
    told["inhibit_rules"] = [
        {
            "source_matchers": ['alertname="ImmichRedisDown"', 'severity="critical"'],
            "target_matchers": ['alertname=~"ImmichCollectorFailing|ImmichSchemaUnsupported"'],
        }
    ]
    example.write_text(yaml.safe_dump(told))
    run(copy)
    ends = {
        name: (copy / "docs" / "runbooks" / f"{name}.md").read_text().split("## Related\n")[1]
        for name in ("ImmichRedisDown", "ImmichSchemaUnsupported")
    }
    assert ends["ImmichRedisDown"] == (
        "\nNo other alert keeps this one quiet.\n\nSymptoms that this alert keeps quiet:"
        " [ImmichCollectorFailing](ImmichCollectorFailing.md),\n"
        "[ImmichSchemaUnsupported](ImmichSchemaUnsupported.md).\n"
    )
    assert ends["ImmichSchemaUnsupported"] == (
        "\nCauses that keep this alert quiet: [ImmichRedisDown](ImmichRedisDown.md).\n\n"
        "It keeps no other alert quiet.\n"
    )


def test_limits_page_follows_the_rules(copy: Path) -> None:
    """Each limit is in the table with its default and the alerts that use it, also by what is recorded."""
    page = (copy / "docs" / "alerts.md").read_text()
    limits = re.findall(r"record: immich_vitals:limit:(\w+)", (copy / "rules" / "limits.rules.yml").read_text())
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*\|)$", page.split("## Limits")[1], re.MULTILINE))
    assert list(rows) == limits
    assert all(re.search(r"\(runbooks/Immich\w+\.md\) \|$", row) for row in rows.values()), rows
    assert rows["disk_full_bytes"].startswith("| 5 GiB |")
    assert rows["disk_will_fill_seconds"].startswith("| 4 h |")


def test_missing_limits_are_all_looked_for() -> None:
    """ImmichLimitsMissing asks for each limit, and its description, which says which one it is, knows each as well."""
    limits = re.findall(r"record: immich_vitals:limit:(\w+)", (ROOT / "rules" / "limits.rules.yml").read_text())
    rules = yaml.safe_load((ROOT / "rules" / "exporter.rules.yml").read_text())["groups"][-1]["rules"]
    rule = next(rule for rule in rules if rule["alert"] == "ImmichLimitsMissing")
    assert re.findall(r"absent\(vector\(scalar\(immich_vitals:limit:(\w+)\)\)", rule["expr"]) == limits
    assert re.findall(r'"(\w+)"', rule["annotations"]["description"].split("-}}")[0]) == limits
