"""The collector `host`: files of /proc to samples."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Unavailable
from immich_vitals.collectors.host import HostCollector
from immich_vitals.config import load
from immich_vitals.runner import Runner
from support.fakes import VALUE, FakeCollector
from support.golden import cases, check


@pytest.mark.parametrize("case", cases("host"), ids=lambda path: path.name)
def test_golden(case: Path, context: Context, update_golden: bool) -> None:
    """The files of the case give exactly its expected samples."""
    check(case, HostCollector.metrics, HostCollector(case / "proc").collect(context), update_golden)


def test_this_machine(context: Context) -> None:
    """On a real Linux the figures are there and make sense."""
    collector = HostCollector.from_config(load({}))
    assert collector is not None
    found = {sample.metric.name: sample.value for sample in collector.collect(context)}
    assert 0 < found["host_memory_available_bytes"] < found["host_memory_total_bytes"]
    assert found["host_cpus"] >= 1
    assert 0 < found["host_boot_timestamp_seconds"] <= context.clock.time()


@pytest.mark.parametrize("meminfo", ["absent", "refused"])
def test_no_proc(tmp_path: Path, context: Context, meminfo: str) -> None:
    """Where memory cannot be read at all, the collector fails with one sentence."""
    if meminfo == "refused":
        (tmp_path / "meminfo").mkdir()
    with pytest.raises(Unavailable, match=f"{tmp_path}/meminfo cannot be read") as caught:
        HostCollector(tmp_path).collect(context)
    assert "/proc" in caught.value.mend


def test_switched_off() -> None:
    """The sentence about a collector that is switched off names the switch."""
    assert "IMMICH_VITALS_DISABLE" in HostCollector.disabled_because(load({}))


@contextmanager
def hanging_file(path: Path) -> Iterator[None]:
    """A file whose opening hangs, until the context is left."""
    os.mkfifo(path)
    try:
        yield
    finally:
        with path.open("w"):
            pass


def test_slower_than_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc that hangs costs the scrape no more than the collector's time, and the other collectors nothing."""
    monkeypatch.setattr(HostCollector, "timeout", 0.1)
    runner = Runner([HostCollector(tmp_path), FakeCollector(lambda ctx: [VALUE.sample(7)])])
    with hanging_file(tmp_path / "meminfo"):
        found = {(sample.metric.name, *sample.labels): sample.value for sample in runner.scrape(5)}
        assert found["collector_success", "host"] == 0
        assert found["collector_failures_total", "host", "timeout"] == 1
        assert found["fake_value",] == 7
    runner.stop()
