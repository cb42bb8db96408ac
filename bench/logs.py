"""`python -m bench.logs [--lines N]`: following a log, beside mtail with the same signatures, and print it.

Both follow one file that is empty at first; then many lines, of which one in a thousand has a signature, are written to
it. What they cost is their processor time until they have read all of it.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Scraped, cpu_seconds, memory, wait_for_port
from immich_vitals.demo.scratch import Scratch, environment
from immich_vitals.demo.servers import free_port
from immich_vitals.signatures import NOTHING, Catalogue, Entry

COMPONENT = "server"
LINES = 1_000_000
RARE = 1000  # one line in so many has a signature
PIECE = 5000  # lines written at a time
PATIENCE = 240.0
MTAIL = "mtail"


@dataclass(frozen=True, slots=True)
class Followed:
    """What one process took for all lines: seconds of processor time, and what it counted."""

    name: str
    patterns: int
    lines: int
    cpu: float
    matches: int
    resident: int

    @property
    def rate(self) -> float:
        """Lines for a second of processor time."""
        return self.lines / self.cpu


def measure(folder: Path, lines: int = LINES) -> list[Followed]:
    """immich-vitals, and mtail where it is installed, on the same lines at the same time."""
    folder.mkdir()
    log = folder / "server.log"
    log.write_bytes(b"")
    entries = [entry for entry in Catalogue.load().entries if COMPONENT in entry.components]
    with ExitStack() as ends:
        ours = _ours(folder, log, ends)
        counted = [(ours, sum(len(entry.patterns) for entry in entries))]
        theirs = _mtail(folder, log, entries, ends)
        if theirs is not None:
            counted.append((theirs, sum(1 for _ in _translated(entries))))
        time.sleep(2)  # until both have found the file, and are at rest
        began = {one.name: cpu_seconds(one.pid) for one, _ in counted}
        with log.open("ab") as file:
            for piece in _pieces(entries, lines):
                file.write(piece)
                file.flush()
        results = []
        for one, patterns in counted:
            _wait_for(one, lines)
            cpu = cpu_seconds(one.pid) - began[one.name]
            results.append(
                Followed(one.name, patterns, lines, cpu, int(_sum(one, "matches")), memory(one.pid).resident)
            )
        return results


def _ours(folder: Path, log: Path, ends: ExitStack) -> Scraped:
    from immich_vitals.collectors import COLLECTORS

    port = free_port()
    others = ",".join(collector.name for collector in COLLECTORS if collector.name != "log")
    environ = {
        **environment(),
        "IMMICH_VITALS_LOG_FILES": f"{COMPONENT}={log}",
        "IMMICH_VITALS_DISABLE": others,
        "IMMICH_VITALS_LOG_LEVEL": "error",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "immich_vitals", "serve", f"--web.listen-address=127.0.0.1:{port}"],
        cwd=folder, env=environ, start_new_session=True,
    )  # fmt: skip
    ends.callback(process.wait)
    ends.callback(process.terminate)
    wait_for_port(port)
    return Scraped("immich-vitals", process.pid, port)


def _mtail(folder: Path, log: Path, entries: list[Entry], ends: ExitStack) -> Scraped | None:
    program = ["counter matches by signature"]
    program += [f'/{pattern}/ {{\n  matches["{signature}"]++\n}}' for signature, pattern in _translated(entries)]
    (folder / "programs").mkdir()
    (folder / "programs" / "immich.mtail").write_text("\n".join(program) + "\n", encoding="utf-8")
    port = free_port()
    out = ends.enter_context((folder / "mtail.log").open("wb"))
    try:
        process = subprocess.Popen(
            [MTAIL, "--address=127.0.0.1", f"--port={port}", f"--progs={folder / 'programs'}", f"--logs={log}",
             f"--log_dir={folder}"],
            cwd=folder, stdout=out, stderr=out, start_new_session=True, env=dict(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        return None
    ends.callback(process.wait)
    ends.callback(process.terminate)
    wait_for_port(port)
    return Scraped(MTAIL, process.pid, port)


def _translated(entries: list[Entry]) -> Iterator[tuple[str, str]]:
    """One pattern for each entry, in mtail's syntax, which knows no looking ahead and no case by parts."""
    for entry in entries:
        if entry.signature == NOTHING:
            continue
        for pattern in entry.patterns:
            if not any(part in pattern for part in ("(?!", "(?=", "(?<", "(?i", "\\1")):
                yield entry.signature, pattern.replace("/", "\\/")
                break


def _pieces(entries: list[Entry], lines: int) -> Iterator[bytes]:
    """Lines of a healthy server with ids and times that differ, and among them the catalogue's examples."""
    chance = random.Random(7)
    healthy = Catalogue.load().healthy[COMPONENT][:8]
    bad = [example for entry in entries if entry.signature != NOTHING for example in entry.matches]
    written = 0
    while written < lines:
        size = min(PIECE, lines - written)
        piece = []
        for number in range(written, written + size):
            line = chance.choice(bad) if number % RARE == 0 else chance.choice(healthy)
            new = line.replace("6bd1c03b", f"{chance.getrandbits(32):08x}")
            piece.append(new.replace("5:22:51 PM", f"5:{number // 60 % 60:02}:{number % 60:02} PM"))
        written += size
        yield ("\n".join(piece) + "\n").encode()


def _wait_for(one: Scraped, lines: int) -> None:
    """Until it has read all lines. Raises `TimeoutError`."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        one.scrape()
        if _sum(one, "lines_total") >= lines:
            return
        time.sleep(0.5)
    raise TimeoutError(f"{one.name} has read {_sum(one, 'lines_total'):.0f} of {lines} lines in {PATIENCE:.0f} s")


def _sum(one: Scraped, word: str) -> float:
    """All series of the metric of lines or of matches, which each of the two names in its own way."""
    names = {
        "lines_total": ("immich_vitals_log_lines_total{", "mtail_log_lines_total{"),
        "matches": ("immich_vitals_log_matches_total{", "matches{"),
    }[word]
    return sum(float(line.rsplit(" ", 1)[1]) for line in one.text.splitlines() if line.startswith(names))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.logs", description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES)
    options = parser.parse_args()
    with Scratch("bench-logs-") as scratch:
        for found in measure(scratch.path / "logs", options.lines):
            sys.stdout.write(
                f"{found.name}: {found.patterns} patterns, {found.rate:,.0f} lines for a second of CPU, "
                f"{found.cpu / found.lines * 1e6:.2f} µs a line, {found.matches} matches\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
