"""`immich-vitals bundle`: what it writes, what it leaves alone, and that an installed wheel can do it too."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from tests.support import promtool

from immich_vitals import bundling, cli
from immich_vitals.bundling import OWN, BundleError, write

ROOT = Path(__file__).parents[2]
RULES = sorted(path.name for path in (ROOT / "rules").glob("*.rules.yml") if path.name != "own.rules.yml")
RUNBOOKS = sorted(path.name for path in (ROOT / "docs" / "runbooks").glob("*.md"))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def groups(folder: Path) -> list[object]:
    return [
        group
        for path in sorted((folder / "rules").glob("*.rules.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository to bundle from."""
    root = tmp_path / "source"
    package = root / "exporter" / "immich_vitals"
    told = {
        "rules/redis.rules.yml": "groups: [{name: redis, rules: [{record: 'a:b:c', expr: vector(1)}]}]\n",
        "rules/queue.rules.yml": "groups: [{name: queue, rules: [{record: 'a:b:d', expr: vector(1)}]}]\n",
        "rules/own.rules.yml": "groups: [{name: own, rules: []}]\n",
        "rules/tests/redis.test.yml": "tests: []\n",
        "docs/alerts.md": "# Alerts\n",
        "docs/runbooks/ImmichRedisDown.md": "# ImmichRedisDown\n",
        "docs/metrics.md": "# Metrics\n",
        "grafana/dashboards/triage.json": '{"url": "http://localhost:3000/d/x", "other": "http://localhost:30001"}\n',
    }
    for name, text in told.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    whole = bundling.folders
    monkeypatch.setattr(bundling, "folders", lambda: whole(package))
    return root


def test_writes_rules_runbooks_and_what_is_made_of_them(tmp_path: Path) -> None:
    """Everything of this repository, unchanged as long as nothing else is asked for; tests are not part of it."""
    count = write(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    written = names(folder) - {bundling.RECORD}
    assert len(written) == count
    assert written >= {f"rules/{name}" for name in RULES} | {f"runbooks/{name}" for name in RUNBOOKS}
    assert written >= {"alerts.md", "rules/alertmanager.example.yml", "prometheusrule.yaml", "mimir.yaml"}
    assert not any("test" in name for name in written)
    for name in RULES:
        assert (folder / "rules" / name).read_bytes() == (ROOT / "rules" / name).read_bytes()


def test_addresses_are_replaced_everywhere(tmp_path: Path) -> None:
    """One's own runbooks and Grafana are in every link of every file."""
    write(tmp_path, "https://wiki.example.org/immich/", "https://grafana.example.org:3000")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "/blob/main/docs/runbooks" not in text, path
            assert "http://localhost:3000" not in text, path
    alerts = [rule for group in groups(tmp_path) for rule in group["rules"] if "alert" in rule]  # type: ignore[index]
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example.org/immich/{alert['alert']}.md"
        assert alert["annotations"]["dashboard"].startswith("https://grafana.example.org:3000/d/immich-vitals-")


def test_dashboards_come_along(tmp_path: Path, source: Path) -> None:
    """Whatever lies in grafana/ is written, with the addresses; a port that only begins alike stays."""
    write(tmp_path / "out", grafana_url="https://grafana.example.org/")
    dashboard = json.loads((tmp_path / "out" / "grafana" / "dashboards" / "triage.json").read_text())
    assert dashboard == {"url": "https://grafana.example.org/d/x", "other": "http://localhost:30001"}


def test_kubernetes_and_mimir(tmp_path: Path) -> None:
    """A PrometheusRule and a Mimir namespace with the same groups as the files, in the form that each wants."""
    write(tmp_path)
    kubernetes = yaml.safe_load((tmp_path / "prometheusrule.yaml").read_text())
    assert {key: kubernetes[key] for key in ("apiVersion", "kind")} == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
    }
    assert kubernetes["metadata"]["name"] == "immich-vitals"
    assert kubernetes["spec"] == {"groups": groups(tmp_path)}
    mimir = yaml.safe_load((tmp_path / "mimir.yaml").read_text())
    assert mimir == {"namespace": "immich-vitals", "groups": groups(tmp_path)}
    assert len({group["name"] for group in mimir["groups"]}) == len(mimir["groups"])


@pytest.mark.promtool
@pytest.mark.parametrize("name", ["prometheusrule.yaml", "mimir.yaml"])
def test_prometheus_takes_the_groups(tmp_path: Path, name: str) -> None:
    """What stands in the generated files is sound."""
    program = promtool.promtool()
    write(tmp_path)
    told = yaml.safe_load((tmp_path / name).read_text())
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": told.get("spec", told)["groups"]}))
    promtool.check(program, "check", "rules", str(tmp_path / "all.yml"))


def test_manifests_come_along(tmp_path: Path) -> None:
    """All of kubernetes/, with the rule of the bundle, and what makes ConfigMaps of the dashboards in its place."""
    write(tmp_path, grafana_url="https://grafana.example.org")
    manifests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kubernetes").rglob("*.yaml")}
    assert {name for name in names(tmp_path) if name.startswith("kubernetes/")} == manifests
    rule = (tmp_path / "prometheusrule.yaml").read_bytes()
    assert (tmp_path / "kubernetes" / "monitoring" / "prometheusrule.yaml").read_bytes() == rule
    assert b"https://grafana.example.org" in rule
    monitoring = yaml.safe_load((tmp_path / "kubernetes" / "monitoring" / "kustomization.yaml").read_text())
    assert all((tmp_path / "kubernetes" / "monitoring" / each).exists() for each in monitoring["resources"])
    assert (tmp_path / "grafana" / "dashboards" / "kustomization.yaml").exists()


def test_own_limits_are_nobodys_business(tmp_path: Path, source: Path) -> None:
    """Own limits are not copied from a checkout, and not touched where they are, not even by --force."""
    out = tmp_path / "out"
    write(out)
    assert OWN not in names(out)
    (out / OWN).write_text("mine\n")
    record = json.loads((out / bundling.RECORD).read_text())
    record["files"][OWN] = bundling._digest(b"mine\n")
    (out / bundling.RECORD).write_text(json.dumps(record))
    write(out, force=True)
    assert (out / OWN).read_text() == "mine\n"


def test_a_new_version_replaces_the_old_one(tmp_path: Path, source: Path) -> None:
    """What it wrote before it replaces; what is part of it no more it removes, lest a rule be loaded twice."""
    out = tmp_path / "out"
    write(out)
    (source / "rules" / "redis.rules.yml").rename(source / "rules" / "valkey.rules.yml")
    (source / "docs" / "alerts.md").write_text("# Alerts, new\n")
    write(out)
    assert (out / "alerts.md").read_text() == "# Alerts, new\n"
    assert "rules/valkey.rules.yml" in names(out)
    assert "rules/redis.rules.yml" not in names(out)


@pytest.mark.parametrize("gone", [False, True], ids=["still-ours", "no-longer-part-of-it"])
def test_a_changed_file_is_not_lost(tmp_path: Path, source: Path, gone: bool) -> None:
    """A file that somebody changed is named, and nothing at all is written; --force writes."""
    out = tmp_path / "out"
    write(out)
    (out / "rules" / "redis.rules.yml").write_text("changed\n")
    (source / "docs" / "alerts.md").write_text("# Alerts, new\n")
    if gone:
        (source / "rules" / "redis.rules.yml").unlink()
    with pytest.raises(BundleError, match=r"redis\.rules\.yml\. Nothing was written.*own\.rules\.yml.*--force"):
        write(out)
    assert (out / "alerts.md").read_text() == "# Alerts\n"
    assert (out / "rules" / "redis.rules.yml").read_text() == "changed\n"
    write(out, force=True)
    assert (out / "alerts.md").read_text() == "# Alerts, new\n"
    assert (out / "rules" / "redis.rules.yml").exists() is not gone


def test_a_file_that_never_was_ours_is_not_lost(tmp_path: Path, source: Path) -> None:
    """Neither by its name alone, nor because a record that is damaged or made up says so."""
    out = tmp_path / "out"
    (out / "runbooks").mkdir(parents=True)
    (out / "runbooks" / "ImmichRedisDown.md").write_text("mine\n")
    (tmp_path / "outside").write_text("mine\n")
    for record in ("{", "[]", '{"files": 1}', '{"files": {"alerts.md": null}}'):
        (out / bundling.RECORD).write_text(record)
        with pytest.raises(BundleError, match=r"ImmichRedisDown\.md"):
            write(out)
    mine = bundling._digest(b"mine\n")
    (out / bundling.RECORD).write_text(json.dumps({"files": {"../outside": mine, str(tmp_path / "outside"): mine}}))
    write(out, force=True)
    assert (tmp_path / "outside").exists()


def test_a_file_like_ours_is_ours(tmp_path: Path, source: Path) -> None:
    """A run that was cut off before its record was written is simply done again."""
    out = tmp_path / "out"
    write(out)
    (out / bundling.RECORD).unlink()
    write(out)


def test_an_installation_without_rules_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was built from the package's folder alone."""
    whole = bundling.folders
    monkeypatch.setattr(bundling, "folders", lambda: whole(tmp_path / "site" / "immich_vitals"))
    with pytest.raises(BundleError, match="without its rules"):
        write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """Exit 0 and the number of files; 1 with the reason when it cannot; 2 for an address that is none."""
    out = tmp_path / "out"
    assert cli.main(["bundle", str(out), "--grafana-url", "https://grafana.example.org"]) == 0
    assert capsys.readouterr().out.startswith("7 files in ")
    (out / "alerts.md").write_text("changed\n")
    assert cli.main(["bundle", str(out)]) == 1
    assert capsys.readouterr().err.startswith("immich-vitals bundle: not written by this command, or changed since: ")
    assert cli.main(["bundle", str(out), "--force"]) == 0
    assert cli.main(["bundle", str(out / "alerts.md")]) == 1
    assert "Not a directory" in capsys.readouterr().err
    for url in ("grafana.example.org", "javascript:alert(1)", 'https://x"', "https://x y", "https://{{x}}"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["bundle", str(out), "--runbook-url", url])
        assert ended.value.code == 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def in_wheel(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_bundle_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """The wheel carries everything, nothing of the tests or of one's own, and writes what the repository writes."""
    inside = {name.removeprefix("immich_vitals/bundle/") for name in in_wheel(built) if "/bundle/" in name}
    assert inside >= {f"rules/{name}" for name in RULES} | {f"runbooks/{name}" for name in RUNBOOKS}
    assert not {name for name in inside if "test" in name or name == OWN}
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    only_here = "runbooks/ImmichOnlyHere.md"
    (tmp_path / "site" / "immich_vitals" / "bundle" / only_here).write_text("# ImmichOnlyHere\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "immich_vitals", "bundle", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    write(tmp_path / "expected")
    expected = names(tmp_path / "expected")
    assert names(tmp_path / "out") == expected | {only_here}
    for name in expected - {bundling.RECORD}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name


def test_source_distribution_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """Who builds from the source distribution gets the same files."""
    (archive,) = built.glob("*.tar.gz")
    # Not tarfile: whether extractall takes a filter, or warns without one, differs from 3.11.2 to 3.14.
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    (tree,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "again"], cwd=tree, check=True)
    assert in_wheel(tree / "again") == in_wheel(built)
