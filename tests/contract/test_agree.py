"""What must agree: the code, the generated pages, the golden files, the compose example, the rules."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from immich_vitals import __version__, reference
from immich_vitals.collectors import COLLECTORS
from immich_vitals.metrics import Metric
from immich_vitals.runner import SELF_METRICS
from immich_vitals.settings import SETTINGS

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "collectors" / "golden"
DECLARED: list[Metric] = [metric for kind in COLLECTORS for metric in kind.metrics] + list(SELF_METRICS)


def test_reference_pages() -> None:
    """The pages in docs are what the code generates; `make docs` writes them anew."""
    assert (ROOT / "docs" / "metrics.md").read_text() == reference.metrics("md")
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.settings("md")


def test_a_metric_is_declared_once() -> None:
    """No two collectors declare the same name."""
    names = [metric.name for metric in DECLARED]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.name)
def test_metric_names(metric: Metric) -> None:
    """Names are snake case with base units, help is a sentence, and no label clashes with a target's."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert not re.search(
        r"_(count|sum|bucket|created|ms|kb|mb|gb|percent|minutes|hours)$", metric.name
    ) or metric.name in ("backup_count",)
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.endswith(".")
    assert not set(metric.labels) & {"job", "instance", "service", "le", "quantile"}


def test_a_collectors_metrics_carry_its_name() -> None:
    """The word of a collector is the subsystem of its metrics."""
    for kind in COLLECTORS:
        word = kind.name.split("_")[0]
        assert all(metric.name.startswith(word + "_") for metric in kind.metrics)


def test_no_name_is_taken() -> None:
    """No metric has a name that another Immich exporter or Immich itself uses."""
    taken = {
        line.split("\t")[1] for line in (ROOT / "tests" / "facts" / "peer-metric-names.txt").read_text().splitlines()
    }
    assert not taken & {metric.full_name for metric in DECLARED}


def test_every_metric_is_in_a_golden_file() -> None:
    """Each collector's metrics all appear in an expected.prom, and no golden file has a metric that is gone."""
    shown: set[str] = set()
    for expected in GOLDEN.glob("*/*/expected.prom"):
        shown.update(re.findall(r"^# TYPE (\S+) ", expected.read_text(), re.MULTILINE))
    declared = {metric.full_name for kind in COLLECTORS for metric in kind.metrics}
    assert shown == declared


def test_every_collector_has_its_places() -> None:
    """The same word everywhere: file, test and golden folder."""
    for kind in COLLECTORS:
        word = kind.__module__.rsplit(".", 1)[1]
        assert (ROOT / "tests" / "collectors" / f"test_{word}.py").exists()
        assert (GOLDEN / kind.name).is_dir()


@pytest.mark.promtool
def test_promtool_likes_the_metrics() -> None:
    """`promtool check metrics` finds nothing to say of the golden files but that a gauge is called `..._count`."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH; on Debian: apt-get install prometheus")
    for expected in sorted(GOLDEN.glob("*/*/expected.prom")):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=expected.read_bytes(), capture_output=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith(b"immich_vitals_backup_count ")]
        assert said == [], expected


@pytest.mark.promtool
def test_promtool_likes_the_rules_and_the_scrape_config(tmp_path: Path) -> None:
    """Prometheus would load the rules and the configuration of the compose example."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH; on Debian: apt-get install prometheus")
    shutil.copytree(ROOT / "rules", tmp_path / "rules")
    shutil.copy(ROOT / "compose" / "prometheus.yml", tmp_path)
    done = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_compose_example_uses_settings_that_exist() -> None:
    """Every variable that the example gives to the exporter is a setting, and the defaults of paths agree."""
    compose = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())
    exporter = compose["services"]["exporter"]
    names = {setting.name for setting in SETTINGS} | {setting.file_variable for setting in SETTINGS}
    assert set(exporter["environment"]) <= names
    targets = {volume.removesuffix(":ro").split(":")[-1] for volume in exporter["volumes"]}
    paths = {value for value in exporter["environment"].values() if str(value).startswith("/")}
    assert paths == targets


def test_compose_example_is_least_privilege() -> None:
    """The exporter of the example is no root, writes only to a volume of its own, has no capability and never sees the
    Docker socket."""
    services = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())["services"]
    exporter = services["exporter"]
    assert exporter["read_only"] is True
    assert exporter["cap_drop"] == ["ALL"]
    assert exporter["user"] == "${VITALS_USER:-65532:65532}"
    assert [volume for volume in exporter["volumes"] if not volume.endswith(":ro")] == ["state:/state"]
    assert not any("docker.sock" in volume for volume in exporter["volumes"])
    assert services["docker-proxy"]["environment"]["POST"] == 0


def test_versions_come_from_one_place() -> None:
    """The version of the package is that of the image; its lower bounds and the tested pins name the same packages."""
    pins = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE) == [__version__]
    needs = re.findall(r'^  "([A-Za-z][\w.-]*)(?:\[[\w,]+\])?>=', project, re.MULTILINE)
    assert {name.lower() for name in needs} <= pins
