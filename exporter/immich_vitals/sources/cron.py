"""How long a cron schedule can take from one run to the next."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from functools import lru_cache
from itertools import pairwise

_PRESETS = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_MONTHS = ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIRST_DAY = date(2024, 1, 1)
_DAYS = 5 * 366  # so that also a run on each 29th of February is met twice
_DAY_MINUTES = 24 * 60


@lru_cache(maxsize=8)
def longest_gap(expression: str) -> float | None:
    """The longest time between two runs in seconds, whatever the time zone; None when it is no cron expression.

    Five fields, or six with seconds first, as Immich's scheduler takes them.
    """
    fields = _PRESETS.get(expression.strip().lower(), expression).lower().split()
    try:
        if len(fields) == 6:
            del fields[0]
        minute, hour, day, month, weekday = fields
        minutes = sorted(60 * h + m for h in _numbers(hour, 0, 23) for m in _numbers(minute, 0, 59))
        days = _days(day, month, weekday)
    except ValueError:
        return None
    runs = [number for number, fits in enumerate(days) if fits]
    if len(runs) < 2:
        return None
    within = max((later - earlier for earlier, later in pairwise(minutes)), default=0)
    nights = max(later - earlier for earlier, later in pairwise(runs))
    return 60.0 * max(within, nights * _DAY_MINUTES - minutes[-1] + minutes[0])


def _days(day: str, month: str, weekday: str) -> Iterator[bool]:
    """For each of many days, whether something runs. Where day and weekday are both given, either will do."""
    days, months = _numbers(day, 1, 31), _numbers(month, 1, 12, _MONTHS)
    weekdays = {number % 7 for number in _numbers(weekday, 0, 7, _WEEKDAYS)}
    either = day not in ("*", "?") and weekday not in ("*", "?")

    def fits(when: date) -> bool:
        by_day, by_weekday = when.day in days, when.isoweekday() % 7 in weekdays
        return when.month in months and (by_day or by_weekday if either else by_day and by_weekday)

    return (fits(_FIRST_DAY + timedelta(number)) for number in range(_DAYS))


def _numbers(field: str, lowest: int, highest: int, names: Sequence[str] = ()) -> set[int]:
    """The numbers that a field allows. Raises `ValueError`."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        if span in ("*", "?"):
            first, last = lowest, highest
        else:
            begin, dash, end = span.partition("-")
            first = _number(begin, names)
            last = _number(end, names) if dash else highest if slash else first
        if not lowest <= first <= last <= highest or (slash and int(step) < 1):
            raise ValueError(field)
        found.update(range(first, last + 1, int(step) if slash else 1))
    return found


def _number(text: str, names: Sequence[str]) -> int:
    return names.index(text) if text and text in names else int(text)
