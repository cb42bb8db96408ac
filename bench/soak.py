"""`python -m bench.soak [--scrapes N]`: scrape the exporter very often while everything that it reads breaks and heals
over and over, and see that what it holds stays as it is. Writes its section of docs/benchmarks.md.

The parts are those of the demo, with the logins that `immich-vitals grants` prints, and a Docker engine; the exporter
meets them through the proxies that the tests break them with. Needs what the tests of Docker need.
"""

import argparse
import http.client
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench import report
from bench.soak_faults import FAULTS
from bench.soak_rig import Held, Rig
from support.docker_engine import why_not

SCRAPERS = 4  # as two pairs of Prometheus servers
TIMEOUT = 2.0  # that Prometheus allows; the exporter takes half a second off
HELD = (0.05, 0.6)  # seconds that most faults stand
HELD_LONG, LONG = 3.0, 20  # longer than the time-out, by one in twenty
PAUSE = (0.1, 0.8)  # from one fault of a part to its next
_HOW = """\
Written by `make soak`: {scrapes:,} scrapes by {scrapers} at once, without a pause, in {minutes:.0f} minutes on \
{machine}. Scrapes at the same moment share a run: the collector of Redis, which was there most of the time, ran \
{runs:,} times.

Meanwhile {faults:,} faults in {ways} ways, some shorter than a scrape and some longer than its time-out ({parts}): \
ways to Docker, Postgres, Redis, the server and machine learning that refuse, reset, hang, drip or talk garbage; \
logins revoked; the media folder gone; logs rotated, truncated and gone in bursts of lines; containers killed; clients \
that hang up, never read or talk garbage. {verdict}

Answered later than the time-out of {timeout:g} s: {late:,} scrapes; the longest took {longest:.2f} s. The faults rest \
while it is read what the process holds. The first {warm:.0%} of the scrapes are the warm-up. Growth is what the line \
that fits all readings after it best rises by.
"""
_WELL = "After the last every collector succeeded and every stream stood again; the log had no traceback."
WARM_UP = 0.1  # of the scrapes: caches fill, and series of what happens for the first time appear


@dataclass(frozen=True, slots=True)
class Bound:
    """How much one of the numbers may grow, in all, from the warm-up to the end, by the line that fits it best."""

    what: str
    title: str
    growth: float
    because: str


BOUNDS = (
    Bound("resident", "RSS", 4e6, "the allocator's own breath; a kilobyte kept per scrape would be 90 MB"),
    Bound("threads", "threads", 2, "streams are begun anew after a pause, and one may be missing at a moment"),
    Bound("descriptors", "descriptors", 4, "as threads: a stream has a socket, and a run on a timer a file"),
    Bound("connections", "connections", 3, "as threads"),
    Bound("sessions", "Postgres sessions", 1, "a run on a timer has one of its own"),
    Bound("clients", "Redis clients", 1, "each collector of it has one"),
    Bound("series", "series", 10, "a reason or an exit code that is met for the first time late"),
)


@dataclass(slots=True)
class Soak:
    """What came of it."""

    held: list[Held] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    scrapes: int = 0
    runs: int = 0
    late: int = 0
    longest: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    failing: tuple[str, ...] = ()
    said: str = ""
    seconds: float = 0.0

    @property
    def warm(self) -> list[Held]:
        """What was held after the warm-up."""
        return [each for each in self.held if each.scrapes >= WARM_UP * self.scrapes]

    def growth(self, what: str) -> float:
        """What the line through the numbers after the warm-up rises by, from its first to its last scrape."""
        warm = self.warm
        scrapes = [float(each.scrapes) for each in warm]
        slope = statistics.linear_regression(scrapes, [float(getattr(each, what)) for each in warm]).slope
        return slope * (scrapes[-1] - scrapes[0])

    def problems(self) -> list[str]:
        """Why this is no success, in sentences; none: it is one."""
        grown = [(each, self.growth(each.what)) for each in BOUNDS]
        found = [
            f"{each.title} grew by {growth:,.1f}, and may by {each.growth:,.0f}"
            for each, growth in grown
            if growth > each.growth
        ]
        found += [f"at the end {name} still failed" for name in self.failing]
        found += [f"{count} scrapes failed: {why}" for why, count in self.errors.items()]
        if "Traceback" in self.said:
            found.append(f"there is a traceback in the log: {self.said[self.said.index('Traceback') :][:2000]}")
        return found


class Quiet:
    """Many work at once, until somebody wants quiet: then whoever works ends his piece, and nobody begins a new one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted = False
        self._working = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with self._changed:
            self._wanted = True
            self._changed.wait_for(lambda: not self._working)
        try:
            yield
        finally:
            with self._changed:
                self._wanted = False
                self._changed.notify_all()


def _break(rig: Rig, part: str, quiet: Quiet, over: threading.Event, soak: Soak) -> None:
    """Break one part over and over, each time in one way of its own."""
    chance = random.Random(part)
    ways = [(name, breaks) for of, name, breaks in FAULTS if of == part]
    while not over.wait(chance.uniform(*PAUSE)):
        name, breaks = chance.choice(ways)
        held = HELD_LONG if chance.randrange(LONG) == 0 else chance.uniform(*HELD)
        with quiet.work(), breaks(rig):
            over.wait(held)
        soak.faults[f"{part}: {name}"] += 1


class Scrapers:
    """Scrape as several Prometheus servers do, without their pause: in a connection that stands, with gzip."""

    def __init__(self, rig: Rig, soak: Soak, quiet: Quiet, wanted: int) -> None:
        self._rig = rig
        self._soak = soak
        self._quiet = quiet
        self._wanted = wanted
        self._counted = threading.Condition()

    def wait_for(self, scrapes: int) -> int:
        """Until there were so many; returns how many there are."""
        with self._counted:
            self._counted.wait_for(lambda: self._soak.scrapes >= min(scrapes, self._wanted))
            return self._soak.scrapes

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while self._soak.scrapes < self._wanted:
            with self._quiet.work():
                began = time.monotonic()
                try:
                    connection = connection or http.client.HTTPConnection(
                        "127.0.0.1", self._rig.exporter.port, timeout=60
                    )
                    headers = {"Accept-Encoding": "gzip", "X-Prometheus-Scrape-Timeout-Seconds": str(TIMEOUT)}
                    connection.request("GET", "/metrics", headers=headers)
                    answer = connection.getresponse()
                    answer.read()
                    problem = None if answer.status == 200 else f"status {answer.status}"
                except (OSError, http.client.HTTPException) as error:
                    problem = f"{type(error).__name__}: {error}"
                took = time.monotonic() - began
            if problem is not None and connection is not None:
                connection.close()
                connection = None
            self._count(took, problem)
        if connection is not None:
            connection.close()

    def _count(self, took: float, problem: str | None) -> None:
        with self._counted:
            self._soak.scrapes += 1
            self._soak.late += took > TIMEOUT
            self._soak.longest = max(self._soak.longest, took)
            if problem is not None:
                self._soak.errors[problem] += 1
            self._counted.notify_all()


def run(scrapes: int, every: int, say: Callable[[str], None] = lambda text: None) -> Soak:
    """So many scrapes, with a look at what is held after every so many of them."""
    soak, quiet, over = Soak(), Quiet(), threading.Event()
    with ExitStack() as ends:
        rig = Rig(ends)
        _, failing = rig.healed()
        if failing:
            raise TimeoutError(f"{', '.join(failing)} failed before anything was broken")
        scrapers = Scrapers(rig, soak, quiet, scrapes)
        began, runs = time.monotonic(), rig.runs()
        breaking = [
            threading.Thread(target=_break, args=(rig, part, quiet, over, soak), daemon=True)
            for part in dict.fromkeys(part for part, _, _ in FAULTS)
        ]
        scraping = [threading.Thread(target=scrapers.run, daemon=True) for _ in range(SCRAPERS)]
        for thread in (*breaking, *scraping):
            thread.start()
        try:
            for wanted in range(every, scrapes + 1, every):
                done = scrapers.wait_for(wanted)
                with quiet.quiet():
                    held = rig.held(done)
                soak.held.append(held)
                say(f"{time.monotonic() - began:.0f} s: {held}, {soak.faults.total():,} faults, {soak.late} late")
        finally:
            over.set()
        for thread in (*scraping, *breaking):
            thread.join()
        soak.seconds, soak.runs = time.monotonic() - began, rig.runs() - runs
        _, soak.failing = rig.healed()
        soak.said = rig.exporter.stop()
    return soak


def section(soak: Soak) -> str:
    """What docs/benchmarks.md says of it."""
    warm = soak.warm
    rows = []
    for bound in BOUNDS:
        numbers = [getattr(each, bound.what) for each in warm]
        tell = _megabytes if bound.what == "resident" else _count
        held = [tell(number) for number in (numbers[0], numbers[-1], max(numbers), soak.growth(bound.what))]
        rows.append((bound.title, *held, f"{tell(bound.growth)}: {bound.because}"))
    parts = Counter[str]()
    for name, count in soak.faults.items():
        parts[name.split(": ")[0]] += count
    problems = soak.problems()
    how = _HOW.format(
        scrapes=soak.scrapes, scrapers=SCRAPERS, minutes=soak.seconds / 60, machine=report.machine(), runs=soak.runs,
        faults=soak.faults.total(), ways=len(soak.faults), warm=WARM_UP, timeout=TIMEOUT, late=soak.late,
        parts=", ".join(f"{part} {count:,}" for part, count in parts.most_common()), longest=soak.longest,
        verdict=f"**Not flat: {'; '.join(problems)}.**" if problems else _WELL,
    )  # fmt: skip
    head = ("held", "after the warm-up", "at the end", "highest", "growth", "may grow by")
    return "\n".join(["## A soak", "", how, *report.table(head, rows), ""])


def _megabytes(number: float) -> str:
    return f"{number / report.MEGABYTE:.1f} MB"


def _count(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--scrapes", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=1000, help="scrapes between two looks at what is held")
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 2
    soak = run(options.scrapes, options.every, _say)
    text = section(soak)
    sys.stdout.write(text)
    if not options.dry_run:
        report.put(report.SOAK, text)
    problems = soak.problems()
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
