"""One world for all tests of reliability: each leaves it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.world import World, running_world


@pytest.fixture(scope="session")
def world(server_folder: Path) -> Iterator[World]:
    folder = server_folder / "reliability"
    folder.mkdir()
    with running_world(folder) as made:
        yield made
