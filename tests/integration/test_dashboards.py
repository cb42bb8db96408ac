"""Every query of every dashboard, asked of a real Prometheus that has watched a whole, healthy Immich for a while.

Containers come from an engine that speaks Docker's API and has a healthy Immich in it; everything else is real. How the
dashboards show faults is tested in test_alerts_of_the_demo.py.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from immich_vitals.demo.world import World
from support import grafana
from support.exporter import Exporter
from support.fake_docker import FakeDocker
from support.grafana import BAD, SOON, Panel
from support.prometheus import Prometheus, hurried_rules

CONTAINERS = Path(__file__).parents[1] / "collectors" / "golden" / "container" / "healthy"
USAGE = CONTAINERS.parents[1] / "container_usage" / "healthy"
PATIENCE = 90.0


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("dashboards")
    with ExitStack() as ends:
        world = ends.enter_context(World(feed_every=1.0))
        docker = ends.enter_context(FakeDocker(containers(folder / "containers", world)))
        settings = {**world.environment(), "DOCKER_HOST": docker.host, "IMMICH_VITALS_FILE_AUDIT": "true"}
        exporter = ends.enter_context(Exporter(settings))
        rules = hurried_rules(folder / "rules")
        target = f"127.0.0.1:{exporter.port}"
        running = ends.enter_context(Prometheus(folder / "prometheus", rules, [target], "127.0.0.1:1"))
        until = time.monotonic() + PATIENCE
        while not running.query("count_over_time(immich_vitals_library_users[1h]) > 20"):
            assert time.monotonic() < until, "it was not scraped for long enough"
            time.sleep(0.5)
        yield running


def containers(folder: Path, world: World) -> Path:
    """The healthy containers, whose server has the folders of this world mounted."""
    shutil.copytree(CONTAINERS, folder)
    for usage in USAGE.glob("*.stats.json"):
        shutil.copy(usage, folder)
    for path in folder.glob("*.json"):
        told = json.loads(path.read_text())
        if isinstance(told, dict) and told.get("Name") == "/immich_server":
            for each in (world.media, world.external):
                told["Mounts"].append({"Type": "bind", "Source": str(each), "Destination": str(each), "RW": True})
            path.write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("panel", grafana.panels(), ids=str)
def test_panel_has_data_on_a_healthy_system(prometheus: Prometheus, panel: Panel) -> None:
    """Each query gives something, with the labels that legends and columns show, and not too much; nothing is red."""
    series = 0
    for target in panel.json["targets"]:
        found = prometheus.ask(grafana.filled(target["expr"]))
        series += len(found)
        for name in re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]):
            assert all(labels.get(name) for labels, _ in found), f"nothing to show for {name}"
        assert not panel.colors(target, found) & {BAD, SOON}, f"{target['expr']}: {found}"
    # A number or a bar may say in a word why there is none, such as that something is switched off.
    says = panel.type in ("stat", "bargauge") and panel.defaults["noValue"] != "unknown"
    assert series or says, f"no data for {panel.queries}"
    assert series <= 300
