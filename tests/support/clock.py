"""A clock that the test owns."""


class FakeClock:
    """`monotonic` and `time` stand still until `advance`; `set` changes the time of day alone, as a person does."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._set = 0.0

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._set

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def set(self, seconds: float) -> None:
        """Forward or back."""
        self._set += seconds
