"""The collector `file`: is each file that Immich's database names still on disk?"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from uuid import UUID

from immich_vitals.collector import (
    Clock,
    Collector,
    Context,
    Deadline,
    Every,
    Remark,
    SystemClock,
    TimedOut,
    Unavailable,
)
from immich_vitals.config import Config, PostgresConfig
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import OWN
from immich_vitals.sources.asset_files import (
    ENCODED_VIDEO,
    EXTERNAL,
    KINDS,
    ORIGINAL,
    PLACES,
    PREVIEW,
    THUMBNAIL,
    AssetFiles,
    Overview,
    Recorded,
)
from immich_vitals.sources.disks import DiskActivity
from immich_vitals.sources.file_audit import Audit, Progress, kept_form, progress_from
from immich_vitals.sources.file_compare import (
    SECOND_LOOK_SECONDS,
    Comparer,
    Counts,
    Disk,
    Gate,
    Lost,
    Name,
    Server,
    Stopped,
    Verdict,
    counts_of,
)
from immich_vitals.sources.file_looks import MISSING, RESULTS, UNMAPPED, UNREADABLE, Looker
from immich_vitals.sources.media_map import OTHER, MediaMap, Reach, media_map
from immich_vitals.sources.postgres import Database
from immich_vitals.sources.state import State

SAMPLED = Metric(
    "file_sampled",
    "Files of a random sample of live assets by what became of them: ok, missing, empty (no byte in it, though Immich "
    "noted some), unreadable (we may not enter its folder, or the file system reports an error) or unmapped (we do not "
    "see its folder, or its disk sleeps); the last two only where there are any.",
    ("kind", "result"),
)
SAMPLE_TIME = Metric("file_sample_timestamp_seconds", "When that sample was taken.")
LOST = Metric(
    "file_lost",
    "Files that a sample or the audit found missing or empty and that still were when last looked at, every ten "
    "minutes; a thousand of a kind at most.",
    ("kind",),
)
AUDITED = Metric("file_audited", "All files, as the last completed pass of the audit found them.", ("kind", "result"))
AUDIT_PROGRESS = Metric("file_audit_progress_ratio", "How far the audit's pass is; 1 between two passes.")
AUDIT_COMPLETED = Metric("file_audit_completed_timestamp_seconds", "When the audit's last pass was completed.")
PREFIX_ASSETS = Metric(
    "file_path_prefix_assets",
    "Live assets by what the path of their original begins with: a media location, or a folder that is a setting or a "
    "mount of the server; reachable is 1 when we see it, 0 when the server has nothing there, else unknown.",
    ("prefix", "reachable"),
)
LEFTOVERS = Metric(
    "file_template_leftovers",
    "Live uploads older than a day whose original still lies in `upload` while Immich's storage template is on; no "
    "sample while it is off. Counted with each sample, and every hour while there are any.",
)

# The first sample is small: it is there within seconds, also for `check`; the first whole one follows soon after.
QUICK_ASSETS = 40
FIRST_WHOLE_SECONDS = 300.0
AGAIN_SECONDS = 600.0
COUNT_AGAIN_SECONDS = 3600.0
TICK_SECONDS = 60.0
NAP_SECONDS = 10.0
# So many files an asset has at most, nearly always; and this long a sample may take at the configured pace.
FILES_OF_AN_ASSET = 4
LONGEST_SAMPLE_SECONDS = 400.0
DATABASE_SECONDS = 60.0
ALWAYS_SHOWN = (ORIGINAL, PREVIEW, THUMBNAIL, ENCODED_VIDEO)
EXTERNAL_PREFIXES = 3
ELSEWHERE = "external"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a sample found; `prefixes` are assets by (prefix, reach), `leftovers` what the storage template left in
    `upload`, None where it is off or not known. `moment` is seconds since the epoch."""

    moment: float
    counts: Counts
    prefixes: Mapping[tuple[str, Reach], int]
    leftovers: int | None = None
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """All that is known now. `progress` is None where there is no audit."""

    looked: Looked | None
    lost: Counter[str]
    progress: Progress | None = None


class FileCollector(Collector):
    """Immich's database against the disk: a random sample, what was found lost, and the audit of everything.

    immich_vitals_file_sampled{kind="original",result="ok"} 200
    immich_vitals_file_lost{kind="preview"} 10
    immich_vitals_file_path_prefix_assets{prefix="/data",reachable="1"} 50702
    """

    name = "file"
    metrics = (SAMPLED, SAMPLE_TIME, LOST, AUDITED, AUDIT_PROGRESS, AUDIT_COMPLETED, PREFIX_ASSETS, LEFTOVERS)
    timeout = 600.0

    def __init__(
        self,
        config: Config,
        postgres: PostgresConfig,
        media: Path,
        *,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        pause: Callable[[float], None] = time.sleep,
        looker: Looker | None = None,
        activity: DiskActivity | None = None,
    ) -> None:
        self._config = config
        self._media = media
        self._clock = clock or SystemClock()
        self._chance = chance or random.Random()
        self._pause = pause
        self._looker = looker or Looker()
        self._others: dict[str, Looker] = {}
        self._activity = activity or DiskActivity()
        self._server = Server(config)
        self._comparer = Comparer(self._looker, config.file.rate, self._clock, pause)
        self._assets = AssetFiles(Database(postgres), postgres.database)
        self._audited = AssetFiles(Database(postgres), postgres.database)
        self._state = State(config.state, "file")
        kept = self._state.read()
        self._lost = Lost(_names(kept.get("lost")))
        audit = kept.get("audit")
        self._audit = Audit(
            self._audited, self._comparer, self._lost, progress_from(audit if isinstance(audit, dict) else {})
        )
        self._turn = threading.Lock()
        self._looked: Looked | None = None
        self._samples_taken = 0
        self._again_at = 0.0
        self._counted_at = 0.0
        self._template_unknown: Remark | None = None
        self.trigger = Every(min(TICK_SECONDS, config.file.interval), stretch=False, awaited=False)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        media = _media(config)
        return cls(config, config.postgres, media) if config.postgres and media else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        if config.postgres is None:
            return "no database is configured; set DB_HOSTNAME and DB_PASSWORD (or DB_URL), as Immich's .env has them"
        return (
            "no media folder is known, so whether files are lost cannot be told: mount it into the exporter, read-only"
            f" is enough, and set IMMICH_MEDIA_LOCATION, UPLOAD_LOCATION or {OWN}MEDIA_PATH"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        waits = self._waits()
        if waits is None:
            try:
                if self._sample_due(ctx.clock.time()):
                    self._take_sample(ctx)
                elif ctx.clock.time() - self._again_at >= min(AGAIN_SECONDS, self._config.file.interval):
                    self._look_again(ctx)
            except Stopped:
                pass  # the quiet hours have begun: the next tick after them begins anew
            finally:
                self._assets.close()
        elif self._looked is None:
            ctx.remark(f"no file was looked at: {waits.message}", waits.mend)
        for remark in (*(self._looked.remarks if self._looked else ()), self._template_unknown):
            if remark is None:
                continue
            ctx.remark(remark.message, remark.mend)
        if self._config.file.sample > longest_sample(self._config.file.rate):
            ctx.remark(
                f"a sample has {longest_sample(self._config.file.rate)} assets: more are not looked at in ten minutes",
                f"raise {OWN}FILE_RATE, or lower {OWN}FILE_SAMPLE",
            )
        if self._state.problem:
            ctx.remark(self._state.problem, f"give the exporter's user the right to write to {OWN}STATE_PATH")
        progress = self._audit.progress if self._config.file.audit else None
        return file_samples(FileFacts(self._looked, self._lost.by_kind(), progress))

    def follow(self, stop: Callable[[], bool]) -> None:
        """The audit, where it is switched on."""
        try:
            while not stop():
                if self._audit_may_go_on():
                    self._audit_step(stop)
                else:
                    self._audited.close()
                    self._nap()
        except Stopped:
            pass
        finally:
            self._audited.close()

    def close(self) -> None:
        self._assets.close()
        self._audited.close()
        self._server.close()

    # -- the sample

    def _sample_due(self, now: float) -> bool:
        if self._looked is None or self._samples_taken == 0:
            return True
        interval = self._config.file.interval
        if self._samples_taken == 1:
            interval = min(interval, FIRST_WHOLE_SECONDS)
        return not 0 <= now - self._looked.moment < interval

    def _take_sample(self, ctx: Context) -> None:
        self._assets.look(ctx.deadline)
        disk, overview, prefixes = self._see(self._assets, lambda: ctx.deadline)
        most = longest_sample(self._config.file.rate)
        wanted = min(self._config.file.sample, most, *((QUICK_ASSETS,) if not self._samples_taken else ()))
        sample = self._assets.sample(wanted, overview, self._chance, ctx.deadline)
        gate = self._gate(lambda: False)
        seen = self._comparer.look([file for asset in sample for file in asset], disk, gate)
        wait = min(SECOND_LOOK_SECONDS, self._config.file.interval)
        verdicts = self._comparer.confirmed(seen, self._assets, disk, gate, lambda: ctx.deadline, wait)
        self._lost.take(verdicts)
        counts = counts_of(verdicts)
        now = ctx.clock.time()
        remarks = tuple(remarks_on(counts, disk, self._media))
        self._looked = Looked(now, counts, prefixes, overview.leftovers, remarks)
        self._samples_taken += 1
        self._again_at = now
        self._keep()

    def _look_again(self, ctx: Context) -> None:
        """At what was lost, at prefixes that lead nowhere and at leftovers: so an alert ends soon after the mend."""
        names = self._lost.names()
        left = bool(self._looked and self._looked.leftovers) and self._count_due(ctx.clock.time())
        nowhere = self._looked is not None and any(reach is Reach.NOWHERE for _, reach in self._looked.prefixes)
        if names or nowhere or left:
            self._assets.look(ctx.deadline)
            disk, overview, prefixes = self._see(self._assets, lambda: ctx.deadline)
            gate = self._gate(lambda: False)
            before = [Verdict(Recorded(*name, path=""), MISSING) for name in names]
            verdicts = self._comparer.confirmed(before, self._assets, disk, gate, lambda: ctx.deadline, wait=0.0)
            self._lost.forget(set(names) - {verdict.file.name for verdict in verdicts})
            self._lost.take(verdicts)
            if self._looked is not None:
                self._looked = replace(self._looked, prefixes=prefixes, leftovers=overview.leftovers)
            self._keep()
        self._again_at = ctx.clock.time()

    def _see(
        self, assets: AssetFiles, deadline: Callable[[], Deadline], *, count: bool = True
    ) -> tuple[Disk, Overview, Mapping[tuple[str, Reach], int]]:
        """Where files are, as of now, and how many assets there are by prefix."""
        with self._turn:
            server = self._server.facts(self._clock)
        media = media_map(self._config, self._media, server, assets.stored_location(deadline()))
        alive = self._alive(media)
        media = media.settled(alive)
        overview = self._count(assets, media, deadline) if count else Overview(0, {})
        return Disk(media, alive), overview, prefix_counts(overview, media, alive)

    def _count(self, assets: AssetFiles, media: MediaMap, deadline: Callable[[], Deadline]) -> Overview:
        self._template_unknown = None
        try:
            leftovers = assets.template_on(deadline())
        except Unavailable as unknown:
            leftovers = False
            self._template_unknown = Remark(
                f"whether the storage template is on is not known: {unknown.message}", unknown.mend
            )
        self._counted_at = self._clock.time()
        return assets.overview(media.prefixes, deadline(), leftovers=leftovers)

    def _count_due(self, now: float) -> bool:
        return not 0 <= now - self._counted_at < COUNT_AGAIN_SECONDS

    def _alive(self, media: MediaMap) -> Mapping[str, bool]:
        """Which folders have something in them; one on a disk that sleeps is left alone, and so is what is in it.

        One that is not Immich's own and does not answer counts as empty. Raises `TimedOut` for Immich's own.
        """
        own = [root for root in media.own_roots if not self._sleeps(root)]
        alive = dict(self._looker.alive(own))
        for root in (root for root in media.roots if root not in media.own_roots):
            looker = self._others.setdefault(root, self._looker.another())
            with suppress(TimedOut):
                alive[root] = not self._sleeps(root, looker) and looker.alive([root])[root]
        return alive

    # -- the audit

    def _audit_may_go_on(self) -> bool:
        file = self._config.file
        return file.audit and self._audit.due(self._clock.time(), file.interval) and self._waits() is None

    def _audit_step(self, stop: Callable[[], bool]) -> None:
        def deadline() -> Deadline:
            return Deadline.after(DATABASE_SECONDS, self._clock)

        self._audited.look(deadline())
        disk, _, _ = self._see(self._audited, deadline, count=False)
        try:
            self._audit.step(self._clock.time(), disk, self._gate(stop), deadline)
        except Stopped:
            return  # what was begun of the batch is done again
        self._keep()

    def _nap(self) -> None:
        self._pause(NAP_SECONDS)  # at once: nobody waits for the end of what sleeps here

    # -- whether to look at all

    def _gate(self, stop: Callable[[], bool]) -> Gate:
        return _Gate(lambda: stop() or self._waits() is not None, self._ours)

    def _waits(self) -> Remark | None:
        """Why no file may be looked at now, if so."""
        quiet = self._config.file.quiet
        if quiet is not None and is_quiet(time.localtime(self._clock.time()), quiet):
            return Remark("these are quiet hours", f"wait for their end, or change {OWN}FILE_QUIET_HOURS")
        if self._sleeps(str(self._media)):
            return Remark(
                "nobody has used the disk of the photos for ten minutes, so it may sleep",
                f"use Immich for a moment, or set {OWN}FILE_WAKES_DISKS=true",
            )
        return None

    def _sleeps(self, path: str, looker: Looker | None = None) -> bool:
        if self._config.file.wakes_disks:
            return False
        return self._activity.asleep((looker or self._looker).device(path), self._clock.monotonic())

    def _ours(self) -> None:
        if not self._config.file.wakes_disks:
            self._activity.ours(self._looker.device(str(self._media)))

    def _keep(self) -> None:
        with self._turn:
            self._state.write({"lost": self._lost.names(), "audit": kept_form(self._audit.progress)})


class _Gate(Gate):
    def __init__(self, closed: Callable[[], bool], after: Callable[[], None]) -> None:
        self._closed = closed
        self._after = after

    def before(self) -> None:
        if self._closed():
            raise Stopped

    def after(self) -> None:
        self._after()


def file_samples(facts: FileFacts) -> Iterator[Sample]:
    shown = Counter(dict.fromkeys(ALWAYS_SHOWN, 0))
    if facts.looked is not None:
        yield SAMPLE_TIME.sample(facts.looked.moment)
        yield from _counted(SAMPLED, facts.looked.counts)
        for (prefix, reach), count in facts.looked.prefixes.items():
            yield PREFIX_ASSETS.sample(count, prefix=prefix, reachable=reach.value)
        yield from LEFTOVERS.known(facts.looked.leftovers)
    if facts.looked is not None or facts.lost:
        shown.update(facts.lost)
        for kind, count in shown.items():
            yield LOST.sample(count, kind=kind)
    if facts.progress is not None:
        if facts.progress.completed is not None:
            yield from _counted(AUDITED, facts.progress.found)
        yield from AUDIT_PROGRESS.known(facts.progress.ratio)
        yield from AUDIT_COMPLETED.known(facts.progress.completed)


def _counted(metric: Metric, counts: Counts) -> Iterator[Sample]:
    """Counts of the kinds there are. A result that stands for what we do not see is left out where it is 0."""
    for kind in KINDS:
        if kind not in ALWAYS_SHOWN and not any(counts[kind, result] for result in RESULTS):
            continue
        for result in RESULTS:
            if counts[kind, result] or result not in (UNREADABLE, UNMAPPED):
                yield metric.sample(counts[kind, result], kind=kind, result=result)


def prefix_counts(overview: Overview, media: MediaMap, alive: Mapping[str, bool]) -> Mapping[tuple[str, Reach], int]:
    """Assets by prefix: every media location, the largest other folders, and the rest of these as one."""
    found: Counter[tuple[str, Reach]] = Counter()
    others = 0
    for label, count in sorted(overview.by_prefix.items(), key=lambda item: -item[1]):
        if label == OTHER or media.is_media(label):
            found[label, media.reach(label, alive)] += count
        elif others < EXTERNAL_PREFIXES:
            others += 1
            found[label, media.reach(label, alive)] += count
        else:
            found[ELSEWHERE, Reach.UNKNOWN] += count
    return found


def remarks_on(counts: Counts, disk: Disk, media: Path) -> Iterator[Remark]:
    """What to tell people of files that we do not see. Names no file."""
    own = sum(counts[kind, UNMAPPED] for kind in KINDS if kind != EXTERNAL)
    if own:
        there = any(disk.alive.get(root) for root in disk.media.own_roots)
        yield Remark(
            f"{own} files of the sample were not looked for: "
            + ("their folder is not seen here" if there else f"nothing of Immich is in {media}"),
            f"mount Immich's whole media folder into the exporter and set {OWN}MEDIA_PATH; where its folders lie on "
            f"several disks, mount those too, or set {OWN}THUMBS_PATH and the like",
        )
    if counts[EXTERNAL, UNMAPPED]:
        yield Remark(
            f"{counts[EXTERNAL, UNMAPPED]} files of external libraries were not looked for: their folder is not seen "
            "here",
            f"mount it into the exporter and set {OWN}EXTERNAL_PATHS, or {OWN}PATH_MAP where the path differs",
        )
    closed = sum(counts[kind, UNREADABLE] for kind in KINDS)
    if closed:
        yield Remark(
            f"{closed} files of the sample could not be looked at: this user may not enter their folders, or the disk "
            "reports errors",
            "run the exporter as a user or in a group that may enter Immich's folders (x), such as Immich's own; else "
            "look at `dmesg` on the host",
        )


def longest_sample(rate: int) -> int:
    """How many assets can be looked at in one run, at so many files in a second."""
    return max(1, int(rate * LONGEST_SAMPLE_SECONDS) // FILES_OF_AN_ASSET)


def is_quiet(now: time.struct_time, quiet: tuple[int, int]) -> bool:
    """Whether a moment lies in the quiet hours, (from, to) in minutes of the day, perhaps over midnight."""
    minute = now.tm_hour * 60 + now.tm_min
    begin, end = quiet
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _media(config: Config) -> Path | None:
    return next((watched.path for watched in config.paths if watched.role == "media"), None)


def _names(kept: object) -> list[Name]:
    """The names of lost files in the state."""
    if not isinstance(kept, list):
        return []
    found = []
    for each in kept:
        try:
            place, key, kind = map(str, each)
            found.append((PLACES[PLACES.index(place)], str(UUID(key)), KINDS[KINDS.index(kind)]))
        except (TypeError, ValueError):
            continue
    return found
