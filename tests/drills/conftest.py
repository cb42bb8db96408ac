"""Which drills are run: those that stand for all others, unless all are asked for, or some by name."""

import pytest

from drills.catalogue import CORE


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-drills") or config.getoption("keyword"):
        return
    others = [item for item in items if "test_drill[" in item.name and item.name[11:-1] not in CORE]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
