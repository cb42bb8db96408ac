"""A clock that the test owns."""


class FakeClock:
    """`monotonic` and `time` stand still until `advance`."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
