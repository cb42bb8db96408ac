"""What is kept over a restart: all or nothing, and never a reason to fail."""

from pathlib import Path

import pytest

from immich_vitals.sources.pace import Pace
from immich_vitals.sources.state import State
from support.clock import FakeClock


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    State(tmp_path, "log").write({"place": 7})
    assert State(tmp_path, "log").read() == {"place": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


def test_without_a_folder_nothing_is_kept_and_nothing_fails() -> None:
    state = State(None, "log")
    state.write({"place": 7})
    assert (state.read(), state.kept, state.problem) == ({}, False, "")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}" + b" " * (1 << 20) + b"{"])
def test_a_file_that_is_not_ours_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.json").write_bytes(content)
    assert State(tmp_path, "log").read() == {}


def test_a_folder_that_cannot_be_written_is_named_and_the_old_content_stays(tmp_path: Path) -> None:
    state = State(tmp_path / "gone", "log")
    state.write({"place": 7})
    assert state.problem == f"cannot write {tmp_path}/gone/log.json: No such file or directory"
    (tmp_path / "gone").mkdir()
    state.write({"place": 8})
    assert (state.problem, state.read()) == ("", {"place": 8})


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    state = State(tmp_path, "log")
    state.write({"place": 7})
    with pytest.raises(TypeError):
        state.write({"place": object()})
    assert state.read() == {"place": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


def test_pace_lets_a_seconds_worth_through_and_then_as_much_as_was_asked_for() -> None:
    clock = FakeClock()
    pace = Pace(10, clock, clock.advance)
    began = clock.monotonic()
    for _ in range(10 + 35):
        pace.take(1)
    assert 3.4 <= clock.monotonic() - began <= 4.5


def test_pace_does_not_wait_for_somebody_who_is_to_stop() -> None:
    clock = FakeClock()
    pace = Pace(1, clock, clock.advance)
    pace.take(100, stop=lambda: True)
    assert clock.monotonic() == FakeClock().monotonic()
