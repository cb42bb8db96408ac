"""Collectors whose behaviour a test decides."""

import threading
from collections.abc import Callable, Iterable
from typing import Self

from immich_vitals.collector import Collector, Context, OnScrape, Trigger
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample

VALUE = Metric("fake_value", "A number the test chose.")
OTHER = Metric("fake_other", "Another number.")


class FakeCollector(Collector):
    """Answers what the test says."""

    name = "fake"
    metrics = (VALUE, OTHER)

    def __init__(
        self,
        answer: Callable[[Context], Iterable[Sample]],
        *,
        name: str = "fake",
        trigger: Trigger | None = None,
        timeout: float = 3.0,
    ) -> None:
        self._answer = answer
        self.name = name  # type: ignore[misc]
        self.trigger = trigger or OnScrape()
        self.timeout = timeout  # type: ignore[misc]
        self.runs = 0

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "it is made by tests"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        self.runs += 1
        return self._answer(ctx)


class Gate:
    """An answer that hangs until the test opens the gate; `entered` is set when somebody waits at it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, ctx: Context) -> Iterable[Sample]:
        self.entered.set()
        self._open.wait(30)
        return [VALUE.sample(1)]

    def open(self) -> None:
        self._open.set()
