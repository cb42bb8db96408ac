"""The example for Alertmanager: it loads, routes by severity, and inhibits in a real one as we think it does."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from support import alertmanager
from support.inhibition import EXAMPLE, inhibitions, told
from support.rulebook import FOLDER


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    path.write_text(alertmanager.for_this_release(EXAMPLE.read_text()))
    return path


def test_example_loads(example: Path) -> None:
    """amtool finds nothing wrong with the example and its templates."""
    done = subprocess.run(
        [alertmanager.amtool(), "check-config", str(example)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"alertname": "ImmichPostgresDown", "severity": "critical"}, "critical"),
        ({"alertname": "ImmichDiskWillFill", "severity": "warning"}, "warning"),
        ({"alertname": "ImmichPostgresChecksumsDisabled", "severity": "info"}, "info"),
        ({"alertname": "ImmichVitalsHeartbeat", "severity": "info"}, "dead-mans-switch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["alertname"],
)
def test_route(example: Path, labels: Mapping[str, str], receiver: str) -> None:
    """Each severity goes where it belongs, and the heartbeat to the dead-man's switch."""
    said = subprocess.run(
        [alertmanager.amtool(), "config", "routes", "test", f"--config.file={example}"]
        + [f"{name}={value}" for name, value in labels.items()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (said.returncode, said.stdout.split()) == (0, [receiver]), said.stderr


def test_commented_backup_window_works(tmp_path: Path) -> None:
    """With its comment signs taken away the example loads, and mutes at night what a backup stops."""
    kept = []
    lines = alertmanager.for_this_release(EXAMPLE.read_text()).splitlines()
    block = False
    for line in lines:
        block = line.strip().startswith(("# - matchers:", "# time_intervals:")) or (block and line.strip()[:1] == "#")
        block = block and "# Users suffer" not in line
        kept.append(line.replace("# ", "", 1) if block else line)
    config = tmp_path / "alertmanager.yml"
    config.write_text("\n".join(kept))
    done = subprocess.run([alertmanager.amtool(), "check-config", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    read = yaml.safe_load(config.read_text())
    assert [each["name"] for each in read["time_intervals"]] == ["backup-window"]
    muted = [route for route in read["route"]["routes"] if route.get("mute_time_intervals") == ["backup-window"]]
    assert len(muted) == 2
    assert read["route"]["routes"].index(muted[-1]) < next(
        number
        for number, route in enumerate(read["route"]["routes"])
        if route["matchers"] == ['severity="critical"'] and route not in muted
    )


def rendered(tmp_path: Path, name: str, alerts: list[dict[str, object]]) -> str:
    """What the template of this name makes of the alerts."""
    data = tmp_path / "data.json"
    firing = any(alert["status"] == "firing" for alert in alerts)
    data.write_text(json.dumps({"status": "firing" if firing else "resolved", "alerts": alerts}))
    done = subprocess.run(
        [
            alertmanager.amtool(), "template", "render", f"--template.glob={FOLDER / 'alertmanager.tmpl'}",
            f'--template.text={{{{ template "immich_vitals.{name}" . }}}}', f"--template.data={data}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def alert(summary: str, rank: str | None, status: str = "firing") -> dict[str, object]:
    labels = {"instance": "nas:12283", **({"rank": rank} if rank else {})}
    annotations = {"summary": summary, "description": "Why. First: this.", "runbook_url": "R", "dashboard": "D"}
    return {"status": status, "labels": labels, "annotations": annotations, "startsAt": "2026-11-20T21:57:00Z"}


def test_message_begins_with_the_cause(tmp_path: Path) -> None:
    """By rank, whatever the order of the labels; what has no rank and what is mended comes last."""
    alerts = [alert("Own.", None), alert("Late.", "11"), alert("Cause.", "02"), alert("Gone.", "01", "resolved")]
    assert rendered(tmp_path, "title", alerts) == "Cause. (and 2 more)"
    text = rendered(tmp_path, "text", alerts)
    summaries = ["Cause.", "Late.", "Own.", "Mended: Gone."]
    assert [line for line in text.splitlines() if line in summaries] == summaries
    assert text.startswith(
        "Cause.\nWhy. First: this.\nRunbook: R\nDashboard: D\nOn nas:12283, since 2026-11-20 21:57 UTC.\n"
    )


def test_title_says_what_is_mended(tmp_path: Path) -> None:
    """When nothing fires any more, the title says so."""
    assert rendered(tmp_path, "title", [alert("Gone.", "01", "resolved")]) == "Mended: Gone."


def test_secrets_are_in_files() -> None:
    """No password or token stands in the example itself."""
    for line in EXAMPLE.read_text().splitlines():
        setting = line.strip().removeprefix("- ").split(":")[0]
        if any(word in setting for word in ("password", "token", "credentials")):
            assert "_file" in setting or "_file:" in line, line


ALERT = {"severity": "critical", "component": "redis"}
SITUATION = [
    {"alertname": "ImmichDiskFull", "instance": "one", "severity": "critical", "role": "database", "blocks": "writes"},
    {"alertname": "ImmichRedisDown", "instance": "one", **ALERT},
    {"alertname": "ImmichRedisDown", "instance": "two", **ALERT},
    {"alertname": "ImmichRedisDown", "instance": "one", "cluster": "other", **ALERT},
    {"alertname": "ImmichContainerStopped", "instance": "two", "component": "redis", "severity": "warning"},
    {"alertname": "ImmichContainerStopped", "instance": "two", "component": "machine_learning", "severity": "warning"},
    {"alertname": "ImmichDatabaseEmpty", "instance": "one", "severity": "critical", "component": "database"},
]


def test_real_alertmanager_inhibits_as_we_read_it(tmp_path: Path) -> None:
    """Other instances and other clusters are not touched; nothing hides an empty database."""
    expected = told(SITUATION, inhibitions())
    assert [(alert["alertname"], alert["instance"]) for alert in expected] == [
        ("ImmichDiskFull", "one"),
        ("ImmichRedisDown", "two"),
        ("ImmichRedisDown", "one"),
        ("ImmichContainerStopped", "two"),
        ("ImmichDatabaseEmpty", "one"),
    ]
    assert alertmanager.notified(tmp_path, SITUATION) == {tuple(sorted(alert.items())) for alert in expected}
