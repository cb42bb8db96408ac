"""systemd/immich-vitals.service: systemd takes it, its settings exist, it is as closed as docs/deployment.md says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from immich_vitals.settings import SETTINGS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "immich-vitals.service"
PROGRAM = "/opt/immich-vitals/bin/immich-vitals"
VARIABLES = {setting.name for setting in SETTINGS} | {setting.file_variable for setting in SETTINGS}
SECRETS = {setting.file_variable for setting in SETTINGS if setting.secret}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on the PATH; on Debian: apt-get install systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def lines(name: str) -> list[str]:
    """The values of a directive."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_systemd_takes_it(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, with the command where it is on this machine."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, str(Path(sys.executable).with_name("immich-vitals"))))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_how_closed_it_is() -> None:
    """systemd's own number for it is the one in the page, for the release that the page names, and a good one."""
    done = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    found = re.search(r"Overall exposure level for immich-vitals\.service: ([\d.]+) (\w+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert (float(found[1]) <= 2.0, found[2]) == (True, "OK")
    if analyze("--version").stdout.startswith("systemd 252"):
        said = re.search(r"systemd 252 of Debian 12 says ([\d.]+)", (ROOT / "docs" / "deployment.md").read_text())
        assert said is not None and said[1].rstrip(".") == found[1]


def test_settings_exist() -> None:
    """What the unit sets are settings; secrets come from files that systemd hands over, and from nowhere else."""
    given = dict(line.split("=", 1) for line in lines("Environment"))
    assert set(given) <= VARIABLES
    loaded = {f"%d/{line.split(':')[0]}" for line in lines("LoadCredential")}
    assert {value for name, value in given.items() if name in SECRETS} == loaded
    assert not {name for name in given if name in {setting.name for setting in SETTINGS if setting.secret}}


def test_state_is_where_systemd_makes_it() -> None:
    """The folder of the state is the one that systemd makes for the service."""
    assert [f"IMMICH_VITALS_STATE_PATH=%S/{lines('StateDirectory')[0]}"] == [
        line for line in lines("Environment") if "STATE_PATH" in line
    ]


def test_it_has_no_right_that_it_does_not_need() -> None:
    """No user of its own that stays, no capability, no group of Docker's unless somebody asks for it."""
    assert lines("DynamicUser") == ["yes"]
    assert lines("CapabilityBoundingSet") == [""]
    assert lines("SupplementaryGroups") == []
    assert lines("ExecStart") == [f"{PROGRAM} serve"]


def test_page_sets_up_what_the_unit_reads() -> None:
    """The commands of the page make the files that the unit names."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    for value in [*lines("EnvironmentFile"), *lines("LoadCredential")]:
        path = value.lstrip("-").split(":")[-1]
        assert f"install -m 600 /dev/stdin {path}" in page
    environment = re.search(r"<<'END'\n(.*?)^END$", page, re.MULTILINE | re.DOTALL)
    assert environment is not None
    assert {line.split("=", 1)[0] for line in environment[1].splitlines()} <= VARIABLES - SECRETS
