"""Other versions of Postgres than the embedded ones, where this machine has them."""

import os
import re
import subprocess
from pathlib import Path

from immich_vitals.demo.servers import Postgres

# Folders with `initdb` and `postgres`, separated by colons, beside those that Debian's packages use.
VARIABLE = "TEST_POSTGRES_BIN"


def folders() -> dict[int, Path]:
    """The folder of programs of each major version from 14 that was found."""
    named = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(":") if folder]
    found = {}
    for folder in (*Path("/usr/lib/postgresql").glob("*/bin"), *named):
        if (folder / "postgres").exists():
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            major = re.search(r"(\d+)", said)
            if major and int(major[1]) >= 14:
                found[int(major[1])] = folder
    return found


class InstalledPostgres(Postgres):
    """A cluster of its own that runs the programs of `folders()[major]`."""

    def _reachable_binaries(self, major: int) -> Path:
        return folders()[major]
