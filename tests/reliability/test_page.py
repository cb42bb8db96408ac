"""The page about reliability: it is what the tests do, and has no empty cell."""

from pathlib import Path

import pytest

from reliability.matrix import BACKENDS, CASES, FAULTS
from reliability.page import page

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_page_is_up_to_date(update_golden: bool) -> None:
    """`--update-golden` writes it anew."""
    if update_golden:
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cell_is_empty(backend: str) -> None:
    """Each thing is broken in each way, and something is expected of it."""
    cases = [case for case in CASES if case.backend == backend]
    assert {case.fault for case in cases} == FAULTS.keys()
    assert all(case.like for case in cases)
    assert len({case.name for case in cases}) == len(cases)


def test_files_named_in_it_exist() -> None:
    for part in page().split("`"):
        if part.startswith("tests/"):
            assert (PAGE.parents[1] / part).exists(), part
