"""The soak in small, so that the tool itself stays true."""

import os
from pathlib import Path

import pytest

from bench import report, soak
from bench.soak import BOUNDS, Soak
from bench.soak_rig import Held
from support.docker_engine import why_not


@pytest.mark.docker
def test_three_hundred_scrapes() -> None:
    """Three hundred scrapes amid faults: none fails, all succeeds afterwards, and the report tells of each number."""
    reason = why_not()
    if reason is not None:
        assert not os.environ.get("FORBID_SKIPS"), reason
        pytest.skip(reason)
    found = soak.run(300, 50)
    assert found.scrapes >= 300
    assert len(found.held) == 6
    assert found.failing == ()
    assert not found.errors
    assert "Traceback" not in found.said
    assert found.runs > 0
    assert len(found.faults) >= 5
    text = soak.section(found)
    assert all(f"| {bound.title} |" in text for bound in BOUNDS)


def test_what_grows_is_a_problem() -> None:
    """A process that keeps something of each scrape is told, one that breathes is not."""
    flat = [_held(scrapes, resident=60_000_000 + scrapes % 7 * 100_000) for scrapes in range(1000, 101_000, 1000)]
    assert Soak(held=flat, scrapes=100_000).problems() == []
    leaking = [_held(scrapes, resident=60_000_000 + 100 * scrapes) for scrapes in range(1000, 101_000, 1000)]
    assert Soak(held=leaking, scrapes=100_000).problems() == ["RSS grew by 9,000,000.0, and may by 4,000,000"]


def test_what_fails_is_a_problem() -> None:
    flat = [_held(scrapes) for scrapes in range(1000, 11_000, 1000)]
    ended = Soak(held=flat, scrapes=10_000, failing=("redis",), said="msg=x Traceback (most recent call last)")
    ended.errors["ConnectionResetError: "] += 1
    assert len(ended.problems()) == 3


def test_its_part_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written anew takes the place of what was there, and the rest of the page stays."""
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n")
    monkeypatch.setattr(report, "PAGE", page)
    report.put(report.SOAK, "first\n")
    page.write_text(f"{page.read_text()}more\n")
    report.put(report.SOAK, "second\n")
    begin, end = page.read_text().split("second\n")
    assert (begin.startswith("# Benchmarks\n\n"), end.endswith("more\n"), "first" in begin + end) == (True, True, False)
    assert report.keep(report.SOAK) in page.read_text()


def _held(scrapes: int, resident: int = 60_000_000) -> Held:
    return Held(scrapes, resident, threads=15, descriptors=30, connections=20, sessions=2, clients=2, series=700)
