"""docs/reliability.md, made of the matrix."""

from collections.abc import Iterator

from reliability.matrix import BACKENDS, CASES, FAULTS, Backend, Case

HEAD = """# When what is behind it breaks

Written by `pytest --update-golden tests/reliability/test_page.py` from `tests/reliability/matrix.py`. Each row is a
test with the real process and a real Postgres, Redis, Docker engine and file system, each behind something that breaks.

Whatever breaks, and however:

* A scrape is answered within Prometheus' own time-out.
* What is affected says so: `immich_vitals_collector_success` is 0 with a reason, or the item's own metric is. Values of
  before are not shown.
* Every other collector goes on, at a scrape, on its timer and along its stream. Logs are read on where they were left:
  no line is lost or counted twice.
* The first scrape after it has the values again; what runs on a timer or follows a stream, its next run.
* No thread, file descriptor, connection or memory is left behind.
* SIGTERM ends the exporter within two seconds, with exit code 0.

The ways to break:

"""
TABLE = """
| | As when | What is seen |
|---|---|---|
"""
BEYOND = (
    (
        "The disk fills below our own state",
        "What is watched is watched; the place of before stays whole; the page says why; no line is lost over a kill",
        "tests/reliability/test_beyond.py",
    ),
    (
        "The clock is set by hours or years, forward or back",
        "Nothing fails, nothing is called old, timers go on",
        "tests/reliability/test_beyond.py",
    ),
    (
        "Another Postgres answers at the address: a standby, after a fail-over",
        "Up and not writable, until it is promoted; another cluster shows by its system identifier",
        "tests/reliability/test_beyond.py",
    ),
    (
        "Every server hangs at once, or the disk does",
        "What does not need them goes on at its pace",
        "tests/reliability/test_beyond.py",
    ),
    (
        "Docker is restarted below the stream of events",
        "Each exit counts once, also those of the time between",
        "tests/integration/test_docker.py",
    ),
    (
        "Docker is restarted below the streams of logs",
        "Each line counts once, also those of the time between",
        "tests/integration/test_log_docker.py",
    ),
    (
        "A disk is unmounted under everybody, and mounted anew",
        "It is told as another one, and as the old one when it is back",
        "tests/integration/test_storage_mounts.py",
    ),
    (
        "500 idle connections and 50 slow ones",
        "Prometheus is served in time; no thread is spent on them",
        "tests/reliability/test_clients.py",
    ),
    (
        "2,000 wrong passwords",
        "A login that is known is served at once",
        "tests/reliability/test_clients.py",
    ),
)


def page() -> str:
    parts = [HEAD, *(f"* **{fault}**: {meaning}.\n" for fault, meaning in FAULTS.items())]
    for name, backend in BACKENDS.items():
        parts += [f"\n## {backend.title}\n", *_failing(backend), TABLE]
        parts += [f"| {each.fault} | {each.like} | {_seen(each)} |\n" for each in _in_order(name)]
    parts.append("\n## What is in no table\n\n| What happens | What holds | Test |\n|---|---|---|\n")
    parts += [f"| {what} | {holds} | `{test}` |\n" for what, holds, test in BEYOND]
    return "".join(parts)


def _in_order(backend: str) -> Iterator[Case]:
    for fault in FAULTS:
        yield from (case for case in CASES if (case.backend, case.fault) == (backend, fault))


def _failing(backend: Backend) -> Iterator[str]:
    """Which collectors fail while it is broken."""
    timed = ", ".join(f"`{name}`" for name in backend.timed)
    if backend.scraped:
        yield f"\n{', '.join(f'`{name}`' for name in backend.scraped)} fails at each scrape, with the reason below"
        yield f"; {timed} at its next run, unless all is well by then.\n" if timed else ".\n"
    elif timed:
        yield f"\nWhere a reason is named, {timed} fails for it at its next run, unless all is well by then.\n"


def _seen(case: Case) -> str:
    """What a person finds in the metrics."""
    reasons = [" or ".join(f"`{reason}`" for reason in sorted(case.reasons))] if case.reasons else []
    return "; ".join([*reasons, *(each.text for each in case.shown)]) or "nothing: what was missed is read again"
