"""The audit: every file in the database against the disk, over and over, in the order of the rows' ids.

It keeps its place in the state folder after each batch, and a batch is counted as a whole or not at all: so a restart,
a dead mount or the beginning of quiet hours costs a batch at most and counts nothing twice. Memory holds one batch.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from immich_vitals.collector import Deadline
from immich_vitals.sources.asset_files import KINDS, PHASES, AssetFiles
from immich_vitals.sources.file_compare import Comparer, Counts, Disk, Gate, Lost, counts_of
from immich_vitals.sources.file_looks import RESULTS

DATABASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass under way: the phase, the id to go on after, and what was found so far. `began` in seconds since the
    epoch, `assets` looked at of `total`."""

    began: float
    total: int
    phase: str = PHASES[0]
    after: str | None = None
    assets: int = 0
    counts: Counts = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Progress:
    """The pass under way, if any, and the last one that was completed: when, and what it found."""

    current: Pass | None = None
    began: float | None = None
    completed: float | None = None
    found: Counts = field(default_factory=Counter)

    @property
    def ratio(self) -> float | None:
        """How far the pass is; 1 between two; None before the first."""
        if self.current is None:
            return 1.0 if self.completed is not None else None
        return min(1.0, self.current.assets / max(1, self.current.total))


class Audit:
    """The audit's place. `step` does one batch; to be called by one thread."""

    def __init__(self, database: AssetFiles, comparer: Comparer, lost: Lost, progress: Progress) -> None:
        self._database = database
        self._comparer = comparer
        self._lost = lost
        self.progress = progress

    def due(self, now: float, interval: float) -> bool:
        """Whether there is something to do: a pass under way, or the time for the next."""
        began = self.progress.began
        return self.progress.current is not None or began is None or not 0 <= now - began < interval

    def step(self, now: float, disk: Disk, gate: Gate, deadline: Callable[[], Deadline]) -> None:
        """Begin a pass, or do its next batch. Raises `Stopped`, and what the database and the disk raise."""
        current = self.progress.current
        if current is None:
            total = self._database.overview({}, deadline()).assets
            self.progress = replace(self.progress, current=Pass(now, total), began=now)
            return
        rows, after = self._database.batch(current.phase, current.after, deadline())
        files = [file for row in rows for file in row]
        seen = self._comparer.look(files, disk, gate)
        verdicts = self._comparer.confirmed(seen, self._database, disk, gate, deadline)
        self._lost.take(verdicts)
        assets = current.assets + (len(rows) if current.phase == PHASES[0] else 0)
        counts = current.counts + counts_of(verdicts)
        phase: str | None = current.phase
        if after is None:
            phase = next(iter(PHASES[PHASES.index(current.phase) + 1 :]), None)
        if phase is None:
            self.progress = Progress(None, self.progress.began, now, counts)
        else:
            current = Pass(current.began, current.total, phase, after, assets, counts)
            self.progress = replace(self.progress, current=current)


def progress_from(kept: Mapping[str, object]) -> Progress:
    """The progress as `kept_form` wrote it; from anything else, a new beginning."""
    try:
        current = kept.get("current")
        return Progress(
            current=None
            if not isinstance(current, dict)
            else Pass(
                began=float(current["began"]),
                total=int(current["total"]),
                phase=PHASES[PHASES.index(current["phase"])],
                after=None if current["after"] is None else str(UUID(current["after"])),
                assets=int(current["assets"]),
                counts=_counts(current["counts"]),
            ),
            began=_moment(kept.get("began")),
            completed=_moment(kept.get("completed")),
            found=_counts(kept.get("found", [])),
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        return Progress()


def kept_form(progress: Progress) -> dict[str, object]:
    """The progress for a JSON file."""
    current = progress.current
    return {
        "current": current
        and {
            "began": current.began,
            "total": current.total,
            "phase": current.phase,
            "after": current.after,
            "assets": current.assets,
            "counts": _listed(current.counts),
        },
        "began": progress.began,
        "completed": progress.completed,
        "found": _listed(progress.found),
    }


def _listed(counts: Counts) -> list[list[object]]:
    return [[kind, result, count] for (kind, result), count in counts.items()]


def _counts(listed: object) -> Counts:
    if not isinstance(listed, list):
        raise TypeError("counts are a list")
    counts: Counts = Counter()
    for kind, result, count in listed:
        counts[KINDS[KINDS.index(kind)], RESULTS[RESULTS.index(result)]] = int(count)
    return counts


def _moment(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
