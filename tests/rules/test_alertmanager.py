"""The example for Alertmanager: it loads, routes by severity, and inhibits in a real one as we think it does."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support import alertmanager
from tests.support.inhibition import EXAMPLE, inhibitions, told


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
    assert "1 templates" in done.stdout


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


def test_secrets_are_in_files() -> None:
    """No password or token stands in the example itself."""
    for line in EXAMPLE.read_text().splitlines():
        setting = line.strip().removeprefix("- ").split(":")[0]
        if any(word in setting for word in ("password", "token", "credentials")):
            assert "_file" in setting or "_file:" in line, line


ALERT = {"severity": "critical", "component": "redis"}
SITUATION = [
    {"alertname": "ImmichDiskFull", "instance": "one", "severity": "critical", "role": "database"},
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
