"""The collector `log`: what is counted, what is kept over a restart, and what is said of logs that cannot be followed."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from immich_vitals.collector import CollectorFailure, Context, Deadline, Remark, SystemClock, Unavailable
from immich_vitals.collectors.log import Counts, LogCollector, log_samples
from immich_vitals.config import ConfigError, load
from immich_vitals.metrics import Sample
from immich_vitals.signatures import LONGEST_LINE, Catalogue
from immich_vitals.sources import docker as docker_source
from immich_vitals.sources.log_lines import Batch, Budget, Followed, Splitter
from immich_vitals.sources.state import State
from support.clock import FakeClock
from support.golden import cases, check

FULL = b"[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~jsbd6sja] Unknown error: Error: ENOSPC: no space left on device, write"
CALM = b"[Nest] 7  - 11/20/2026, 5:22:51 PM     LOG [Api:X] all is well"


def counts_of(kept: dict[str, object] | None = None, clock: FakeClock | None = None) -> Counts:
    return Counts(Catalogue.load(), kept or {}, clock or FakeClock())


def values(samples: Sequence[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric.name == name}


class Words:
    """A source that follows nothing and says what it is told to."""

    def __init__(self, *followed: Followed, failure: CollectorFailure | None = None) -> None:
        self.told, self.failure = followed, failure
        self.looks = 0
        self.running = threading.Event()

    def look(self, deadline: Deadline) -> None:
        self.looks += 1

    def run(self, stop: Callable[[], bool]) -> None:
        self.running.set()
        while not stop():
            threading.Event().wait(0.01)

    def followed(self) -> Sequence[Followed]:
        return self.told

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("case", cases("log"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """The lines that the programs of the case printed give exactly its expected samples."""
    counts = counts_of()
    chosen = case / "followed.json"
    up = json.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    components = [path.stem for path in sorted(case.glob("*.log"))]
    for component in components:
        lines = (case / f"{component}.log").read_bytes().splitlines()
        counts.open(component, component)(Batch(lines, [1_800_000_000.0] * len(lines), {}))
    followed = [Followed(component, up.get(component, True)) for component in components]
    check(case, LogCollector.metrics, log_samples(counts.facts(), followed), update_golden)
