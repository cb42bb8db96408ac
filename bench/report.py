"""The report: docs/benchmarks.md."""

import base64 as encoding
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.counters import Counted
from bench.logs import RARE, Followed
from bench.measure import Memory

SCRAPE_INTERVAL = 15.0
REFRESH_INTERVAL = 300.0
OURS = "immich-vitals"
MEGABYTE = 1e6
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SOAK = "soak"  # a part of the page that is written on its own

_HOW = (
    "{scrapes} scrapes of each process in turn, with gzip and in a connection of their own; then {idle:.0f} s without "
    "scrapes, for what runs on timers. CPU is user and system time of the whole process. CPU at rest is that of "
    "{interval:.0f} s without a scrape, and CPU per interval what a scrape interval of {interval:.0f} s costs: both "
    "together and, for immich-vitals, its share of a refresh of the library every 5 minutes."
)
_COSTS = (
    "process", "CPU per scrape", "CPU at rest", "CPU per interval", "p50", "p95", "max", "RSS", "PSS", "series",
    "bytes",
)  # fmt: skip
_REFRESH = (
    "Every 5 minutes, and more seldom where it takes longer than 6 s. One pass over the tables: the blocks it touches "
    "beside the blocks that the tables have."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process costs: seconds of processor time per scrape and per second at rest, seconds of waiting."""

    name: str
    scrape: float
    at_rest: float
    memory: Memory
    median: float
    p95: float
    longest: float
    series: int
    bytes_sent: int

    @property
    def per_interval(self) -> float:
        """Seconds of processor time from one scrape to the next, with all that runs between."""
        return self.scrape + self.between

    @property
    def between(self) -> float:
        """Seconds of processor time in an interval without the scrape."""
        return SCRAPE_INTERVAL * self.at_rest


@dataclass(frozen=True, slots=True)
class Refresh:
    """One refresh of the library. `blocks` were touched by its pass over the tables, which have `pages` blocks."""

    statements: float
    seconds: float
    cpu: float
    blocks: int
    pages: dict[str, int]
    plan: str


@dataclass(frozen=True, slots=True)
class Part:
    """How long one collector's last run took."""

    name: str
    seconds: float | None


@dataclass(slots=True)
class Result:
    """Everything that was measured; by size of the library where it could matter."""

    machine: str
    versions: dict[str, str]
    missing: list[str]
    no_docker: str | None = None
    counted: dict[int, Counted] = field(default_factory=dict)
    refreshes: dict[int, Refresh] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    logs: list[Followed] = field(default_factory=list)


def markdown(result: Result, assets: int, scrapes: int, idle: float) -> str:
    """The whole report."""
    refresh = result.refreshes[assets]
    ours = next(cost for cost in result.costs if cost.name == OURS)
    others = [cost for cost in result.costs if cost.name != OURS]
    share = refresh.cpu * SCRAPE_INTERVAL / REFRESH_INTERVAL
    rows = [_cost_row(ours, share), *(_cost_row(cost, 0.0) for cost in others)]
    rows.append(_sum_row(others))
    rows.extend((name, *["not installed"] + ["-"] * 9) for name in result.missing)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}; run it to have your own numbers.",
        "",
        f"Machine: {result.machine}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
        "",
        f"The world: a library of {assets:,} assets in Postgres, 18 BullMQ queues with a worker each in Redis, "
        + ("five containers on a Docker engine of its own" if result.no_docker is None else "no Docker")
        + ", a media folder; everything on this one machine. Nothing is switched off in the exporter.",
        "",
        "## One scrape, beside the exporters it replaces",
        "",
        _HOW.format(scrapes=scrapes, idle=idle, interval=SCRAPE_INTERVAL),
        "",
        *table(
            _COSTS,
            rows,
        ),
        "",
        *_compared(ours, share, others),
        *_left_out(result),
        "",
        "## What is asked of the servers",
        "",
        "Per scrape, as the servers count it: " + _same(result.counted.values()),
        "",
        *table(
            ("assets", "Postgres round trips", "statements", "Redis commands", "Docker requests", "series", "bytes"),
            [_count_row(size, counted) for size, counted in result.counted.items()],
        ),
        "",
        "## One refresh of the library",
        "",
        _REFRESH,
        "",
        *table(
            ("assets", "took", "CPU of the exporter", "statements", "blocks touched", "blocks of the tables"),
            [_refresh_row(size, found) for size, found in result.refreshes.items()],
        ),
        "",
        f"The plan, with {assets:,} assets:",
        "",
        "```",
        refresh.plan,
        "```",
        "",
        *_logs(result.logs),
        "## Collectors",
        "",
        *table(("collector", "last run took"), [(part.name, _ms(part.seconds)) for part in result.parts]),
        "",
    ]
    return "\n".join(lines)


def put(name: str, text: str) -> None:
    """Write a part of the page that is measured on its own, in place of the one of before, or at the end."""
    page = PAGE.read_text(encoding="utf-8")
    part = f"{_begin(name)}\n{text}{_end(name)}\n"
    PAGE.write_text(page.replace(kept, part) if (kept := keep(name)) else f"{page}\n{part}", encoding="utf-8")


def keep(name: str) -> str:
    """The part of the page with this name as it stands there, with its marks; empty when there is none."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    begin, end = page.find(_begin(name)), page.find(_end(name))
    return page[begin : end + len(_end(name)) + 1] if 0 <= begin < end else ""


def _begin(name: str) -> str:
    return f"<!-- {name}: written on its own -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"


def machine() -> str:
    """What this runs on, in a few words."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")), platform.machine())
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return (
        f"{os.cpu_count()} x {model}, {total / 2**30:.0f} GiB of memory, {system}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def base64(text: str) -> str:
    return encoding.b64encode(text.encode()).decode()


def _same(counted: Iterable[Counted]) -> str:
    asked = {(found.messages, found.statements, round(found.commands), found.requests) for found in counted}
    return "the same for both libraries." if len(asked) == 1 else "NOT the same for both libraries, which is a fault."


def _compared(ours: Cost, share: float, others: Sequence[Cost]) -> Iterable[str]:
    if not others:
        return
    scrape = ours.scrape / sum(cost.scrape for cost in others)
    interval = (ours.per_interval + share) / sum(cost.per_interval for cost in others)
    resident = ours.memory.resident / sum(cost.memory.resident for cost in others)
    yield (
        f"immich-vitals takes {scrape:.0%} of the CPU time per scrape, {interval:.0%} of it per interval and "
        f"{resident:.0%} of the resident memory of the other {len(others)} together."
    )
    yield ""


def _logs(found: Sequence[Followed]) -> Iterable[str]:
    if not found:
        return
    yield "## Following a log"
    yield ""
    yield (
        f"{found[0].lines:,} lines of Immich's server, of which one in {RARE:,} has a signature, written to a file "
        "that both follow at the same time. mtail has the first pattern of each entry of the catalogue that its syntax "
        "allows; immich-vitals has all of them."
    )
    yield ""
    head = ("process", "patterns", "lines per second of CPU", "CPU per line", "matches", "RSS")
    rows = [
        (one.name, str(one.patterns), f"{one.rate:,.0f}", f"{one.cpu / one.lines * 1e6:.2f} µs", str(one.matches),
         _mb(one.resident))
        for one in found
    ]  # fmt: skip
    yield from table(head, rows)
    yield ""


def _left_out(result: Result) -> Iterable[str]:
    yield "cAdvisor, which immich-vitals replaces as well, is left out: Debian does not package it."
    if result.no_docker is not None:
        yield f"Containers are left out: {result.no_docker}."
    if result.missing:
        yield f"Not installed here: `apt install {' '.join(result.missing)}`."


def _cost_row(cost: Cost, more: float) -> tuple[str, ...]:
    return (
        cost.name, _ms(cost.scrape), _ms(cost.between), _ms(cost.per_interval + more), _ms(cost.median), _ms(cost.p95),
        _ms(cost.longest), _mb(cost.memory.resident), _mb(cost.memory.proportional), str(cost.series),
        str(cost.bytes_sent),
    )  # fmt: skip


def _sum_row(costs: Sequence[Cost]) -> tuple[str, ...]:
    return (
        f"the {len(costs)} together",
        _ms(sum(cost.scrape for cost in costs)),
        _ms(sum(cost.between for cost in costs)),
        _ms(sum(cost.per_interval for cost in costs)),
        "", "", "",
        _mb(sum(cost.memory.resident for cost in costs)),
        _mb(sum(cost.memory.proportional for cost in costs)),
        str(sum(cost.series for cost in costs)),
        str(sum(cost.bytes_sent for cost in costs)),
    )  # fmt: skip


def _count_row(size: int, counted: Counted) -> tuple[str, ...]:
    requests = "-" if counted.requests is None else f"{counted.requests:g}"
    return (
        f"{size:,}", f"{counted.messages:g}", f"{counted.statements:g}", f"{counted.commands:g}", requests,
        str(counted.series), str(counted.bytes_sent),
    )  # fmt: skip


def _refresh_row(size: int, found: Refresh) -> tuple[str, ...]:
    pages = ", ".join(f"{name} {count:,}" for name, count in sorted(found.pages.items()))
    cpu = _ms(found.cpu) if found.cpu else "< 10 ms"  # less than the kernel counts in
    return (
        f"{size:,}", _ms(found.seconds), cpu, f"{found.statements:.1f}", f"{found.blocks:,}",
        f"{sum(found.pages.values()):,} ({pages})",
    )  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _mb(count: float) -> str:
    return f"{count / MEGABYTE:.1f} MB"
