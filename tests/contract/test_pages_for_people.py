"""docs/deployment.md, docs/migrating.md and README.md name only what there is: metrics, alerts, settings, links, and of
others what their source has.

`tests/facts/exporter-names.tsv` holds names of metrics and alerts as they stand in the source of cAdvisor 6a0c4f25,
node_exporter a7dcc3a0 (its test data and mixin), postgres_exporter dbb1987e, redis_exporter cd5941f1,
blackbox_exporter e39d7d41 and awesome-prometheus-alerts a8533189, read with a script on 2026-11-28.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from immich_vitals.collectors import COLLECTORS
from immich_vitals.metrics import Metric
from immich_vitals.runner import SELF_METRICS
from immich_vitals.settings import SETTINGS
from support import rulebook

ROOT = Path(__file__).parents[2]
DEPLOYMENT, MIGRATING, README = ROOT / "docs" / "deployment.md", ROOT / "docs" / "migrating.md", ROOT / "README.md"
PAGES = (DEPLOYMENT, MIGRATING, README)
DECLARED: list[Metric] = [metric for kind in COLLECTORS for metric in kind.metrics] + list(SELF_METRICS)
LABELS = {metric.full_name: set(metric.labels) for metric in DECLARED}
COMPOSE = (ROOT / "docker-compose.example.yml").read_text()
OTHERS = re.compile(r"(?:container|node|pg|redis|probe)_\w+")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def known(kind: str) -> frozenset[str]:
    """The names of metrics or alerts of the exporters that are no exporters for Immich."""
    rows = [line.split("\t") for line in (ROOT / "tests" / "facts" / "exporter-names.tsv").read_text().splitlines()]
    return frozenset(name for each, _, name in rows if each == kind)


@cache
def peers() -> frozenset[str]:
    """The names of metrics of other exporters for Immich, and of Immich itself."""
    lines = (ROOT / "tests" / "facts" / "peer-metric-names.txt").read_text().splitlines()
    return frozenset(line.split("\t")[1] for line in lines)


def quoted(text: str) -> list[str]:
    """What stands in backticks, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, without what indents them."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pages
def test_our_metrics_and_alerts_exist(page: Path) -> None:
    """Every name of ours is one that the code or the rules have."""
    text = page.read_text()
    assert set(re.findall(r"\bimmich_vitals_[a-z0-9_]+\b", text)) - set(LABELS) - {"immich_vitals_state"} == set()
    alerts = {rule.name for rule in rulebook.alerts()}
    assert set(re.findall(r"\bImmich[A-Z][A-Za-z]+\b", text)) - alerts == set()


@pages
def test_settings_exist(page: Path) -> None:
    """Every variable is a setting, or one that the compose example reads."""
    text = page.read_text()
    names = {setting.name for setting in SETTINGS} | {setting.file_variable for setting in SETTINGS}
    asked = set(re.findall(r"\b(?:IMMICH_VITALS|DB|REDIS|DOCKER)_[A-Z_]*[A-Z]\b", text))
    assert asked - names == set()
    for name in re.findall(r"\b(?:VITALS_[A-Z_]+|IMMICH_NETWORK)\b", text):
        assert f"${{{name}:-" in COMPOSE, name


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings that are linked to exist."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
            titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_names_of_others_are_theirs() -> None:
    """Metrics and alerts of other exporters are spelled as in their source."""
    for text in quoted(MIGRATING.read_text()):
        if re.fullmatch(r"immich_(?!vitals)(?!server$|bull)\w+|promtail_\w+|system_\w+|process_\w+|http_\w+", text):
            assert text in peers(), text
        elif OTHERS.fullmatch(text):
            assert text in known("metric"), text
        elif re.fullmatch(r"(?!Immich)[A-Z][a-z]\w+", text):
            assert text in known("alert"), text


def pairs() -> Iterator[tuple[str, str]]:
    """The queries to compare, old and new."""
    table = MIGRATING.read_text().split("## Compare")[1]
    for row in re.findall(r"^\| `(.+?)` \| `(.+?)` \|", table, re.MULTILINE):
        yield row[0].replace("\\|", "|"), row[1].replace("\\|", "|")


def test_there_are_pairs_to_compare() -> None:
    assert len(list(pairs())) == 12


@pytest.mark.parametrize(("old", "new"), list(pairs()))
def test_pairs_to_compare(old: str, new: str) -> None:
    """Both queries can be read; ours asks for labels that its metric has, the other for a metric that there is."""
    for selector in selectors(new):
        asked = {matcher.name for matcher in selector.matchers.matchers} - {"__name__"}
        assert asked <= LABELS[rulebook.name_of(selector)]
    for selector in selectors(old):
        assert rulebook.name_of(selector) in known("metric") | peers()


def selectors(query: str) -> list[promql.VectorSelector]:
    """Every selector of a query."""
    found = [node for node in rulebook.nodes(promql.parse(query)) if isinstance(node, promql.VectorSelector)]
    assert found, query
    return found


def test_small_compose_file() -> None:
    """The exporter of a further machine has settings that exist, no login, and no right to write or to gain rights."""
    services = yaml.safe_load(blocks(DEPLOYMENT, "yaml")[0])["services"]
    exporter = services["exporter"]
    assert set(exporter["environment"]) <= {setting.name for setting in SETTINGS}
    assert not any(name.startswith(("DB_", "REDIS_")) for name in exporter["environment"])
    example = yaml.safe_load(COMPOSE)["services"]
    for word in ("read_only", "cap_drop", "security_opt", "mem_limit"):
        assert exporter[word] == example["exporter"][word]
    proxy = services["docker-proxy"]
    assert proxy["image"] == example["docker-proxy"]["image"]
    assert proxy["environment"] == example["docker-proxy"]["environment"]


def test_folder_of_its_own() -> None:
    """The `sed` of the page leaves no relative path in the example, and what comes out is read as before."""
    script = re.search(r"^sed '(.+)' src/docker-compose", DEPLOYMENT.read_text(), re.MULTILINE)
    assert script is not None
    for more in ("", r"; s|env_file: \.env|env_file: stack.env|"):
        done = subprocess.run(["sed", script[1] + more], input=COMPOSE, capture_output=True, text=True, check=True)
        made = yaml.safe_load(done.stdout)
        mounts = [mount for service in made["services"].values() for mount in service.get("volumes", ())]
        assert mounts
        assert not any(":-./" in mount or mount.startswith("./") for mount in mounts)
        assert made["services"]["exporter"]["env_file"] == ("stack.env" if more else ".env")
    assert f"`sed '{script[1]}{more}'`" in DEPLOYMENT.read_text()


@pytest.mark.promtool
def test_scrape_config_of_several_machines(tmp_path: Path) -> None:
    """Prometheus would load it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH; on Debian: apt-get install prometheus")
    config = next(block for block in blocks(DEPLOYMENT, "yaml") if "scrape_configs" in block)
    (tmp_path / "prometheus.yml").write_text(config)
    done = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
