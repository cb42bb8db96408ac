"""What is released: the wheel, the source distribution, the list of what is inside; and that no machine needs a
compiler to install them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import immich_vitals
from support.registry import need_registry

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `make dist`, which has installed both and used them."""
    need_registry()
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "dist"), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def pins() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(plain(line).split("==") for line in lines if "==" in line)


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_three_files_of_one_version(dist: Path) -> None:
    """The wheel works in an empty environment, the source distribution makes the same one, and all three say the
    version that stands in the package."""
    version = immich_vitals.__version__
    assert {path.name for path in dist.iterdir()} == {
        f"immich_vitals-{version}-py3-none-any.whl",
        f"immich_vitals-{version}.tar.gz",
        f"immich-vitals-{version}.cdx.json",
    }
    assert PROJECT["dynamic"] == ["version"]


def test_sbom_lists_what_runs(dist: Path) -> None:
    """Every package that runs is in the SBOM at the version that is tested, with a licence; nothing else is."""
    (path,) = dist.glob("*.cdx.json")
    told = json.loads(path.read_text())
    root = told["metadata"]["component"]
    assert (told["bomFormat"], root["name"], root["version"]) == (
        "CycloneDX",
        "immich-vitals",
        immich_vitals.__version__,
    )
    found = {plain(each["name"]): each for each in told["components"]}
    assert {name: each["version"] for name, each in found.items()}.items() <= pins().items()
    wanted = {plain(re.split(r"[\[>=]", each)[0]) for each in PROJECT["dependencies"]}
    older = {"async-timeout"} if sys.version_info < (3, 11, 3) else set()  # of which redis needs it, as Debian 12's
    assert set(found) == wanted | {"psycopg-binary", "hiredis", "click", "typing-extensions"} | older
    assert all(each["licenses"] for each in found.values())


def test_no_compiler_is_needed() -> None:
    """Ready-made wheels of all dependencies are there for amd64 and arm64, glibc and musl: for the oldest Python that
    is supported and for that of the image. `scripts/wheels` asks for all Pythons."""
    need_registry()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "wheels"), "3.11", "3.13"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    found = {line.split("  ", 3)[3].strip() for line in done.stdout.splitlines()}
    assert len(done.stdout.splitlines()) == 8
    assert len(found) == 1, done.stdout  # the same packages everywhere
