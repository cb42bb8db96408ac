"""The collector `backup`: is there a good backup, and would it outlive the disk?"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Self

from immich_vitals.collector import Collector, CollectorFailure, Context, Deadline, Every, TimedOut, Unavailable
from immich_vitals.config import BackupConfig, Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import OWN
from immich_vitals.sources.backups import (
    SETTLED_SECONDS,
    Asked,
    Backup,
    Failed,
    Found,
    Place,
    others_backups,
    own_dumps,
    place_of,
    touched,
)
from immich_vitals.sources.cron import longest_gap
from immich_vitals.sources.dump_checks import DumpChecks
from immich_vitals.sources.dumps import Verdict
from immich_vitals.sources.immich_facts import BACKUP_FACTS, Told, read_facts
from immich_vitals.sources.pace import Pace
from immich_vitals.sources.postgres import Database
from immich_vitals.sources.state import State

NEWEST = Metric(
    "backup_newest_timestamp_seconds", "When the newest backup was made; refreshed every 10 minutes.", ("kind",)
)
SIZE = Metric("backup_newest_size_bytes", "Size of the newest backup; no sample for a folder or a marker.", ("kind",))
PREVIOUS = Metric(
    "backup_previous_size_bytes",
    "Size of the backup before it, where the two can be compared: same tool, same versions of Immich and Postgres.",
    ("kind",),
)
COUNT = Metric("backup_count", "Backups that there are; no sample when they cannot be looked at.", ("kind",))
INTERVAL = Metric(
    "backup_interval_seconds",
    "Longest time from one backup to the next: by Immich's schedule, else the usual time between the last ones, but not"
    " less than a day; no sample when neither is known.",
    ("kind",),
)
SCHEDULED = Metric(
    "backup_scheduled",
    "1 when Immich's own dumps are switched on, 0 when they are switched off in its settings; no sample when another"
    " tool's dumps are watched, or when the settings cannot be read.",
)
INTACT = Metric(
    "backup_intact",
    "1 when the newest dump was read to its end and is whole: its compression checks out and its closing line is there;"
    " no sample before it was read, or when its form is not known.",
    ("kind",),
)
SAME = Metric(
    "backup_same_filesystem",
    "1 when the newest backup lies on the disk of what `as` names, as far as can be seen: on one file system, one pool,"
    " or partitions and volumes of one disk.",
    ("kind", "as"),
)
RESTORE_TEST = Metric(
    "backup_restore_test_timestamp_seconds", "When a restore was last tried, by the file that somebody touches then."
)
FAILURE = Metric(
    "backup_failure_timestamp_seconds",
    "When one of Immich's own dumps last failed, by the notice that it leaves for its admin (from 1.133 on); no sample"
    " when there is no such notice.",
)

DATABASE, MEDIA = "database", "media"
# What dies with the same disk: a dump with the database, a copy of the photos with the photos. Immich's own dumps lie
# in the media folder, so that is shown, too.
COMPARED = ((DATABASE, DATABASE), (DATABASE, MEDIA), (MEDIA, MEDIA))
DEFAULT_CRON = "0 02 * * *"
DAY = 86400.0
SPACING_OF = 8
LEAST_FOR_SPACING = 4

Answer = Found | Place | float | None


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """All that is known. `found` has the kinds that could be looked at, `places` where media folder and database lie.

    `schedule` is Immich's cron expression when its own dumps are watched and its settings could be read, and
    `enabled` whether they are switched on. Moments are seconds since the epoch.
    """

    found: Mapping[str, Found] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    verdict: Verdict | None = None
    schedule: str | None = None
    enabled: bool | None = None
    failed: float | None = None
    restore_tested: float | None = None


class BackupCollector(Collector):
    """Immich's own dumps of its database, other tools' dumps, and copies of the media folder.

    immich_vitals_backup_newest_timestamp_seconds{kind="database"} 1.7952e+09
    immich_vitals_backup_intact{kind="database"} 1
    immich_vitals_backup_same_filesystem{kind="database",as="database"} 0
    """

    name = "backup"
    metrics = (
        NEWEST, SIZE, PREVIOUS, COUNT, INTERVAL, SCHEDULED, INTACT, SAME, RESTORE_TEST, FAILURE,
    )  # fmt: skip
    timeout = 30.0

    def __init__(
        self,
        config: BackupConfig,
        paths: Mapping[str, Path],
        checks: DumpChecks,
        ask_immich: Callable[[Deadline], Told] | None = None,
        asked: Asked[Answer] | None = None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._checks = checks
        self._ask_immich = ask_immich
        self._asked = asked or Asked()
        self.trigger = Every(config.interval, stretch=False)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        paths = {watched.role: watched.path for watched in config.paths}
        backup = config.backup
        if not (config.postgres or "backups" in paths or backup.database or backup.media or backup.restore_test):
            return None
        checks = DumpChecks(State(config.state, cls.name), Pace(backup.rate))
        ask = partial(_ask_immich, Database(config.postgres), config.postgres.database) if config.postgres else None
        return cls(backup, paths, checks, ask)

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return (
            "no backup is known: mount Immich's media folder into the exporter and set IMMICH_MEDIA_LOCATION or"
            f" UPLOAD_LOCATION, or name the backups in {OWN}DATABASE_BACKUPS and {OWN}MEDIA_BACKUPS"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        answers = self._asked.ask(self._questions(ctx.clock.time()), ctx.deadline)
        told = self._told(ctx)
        facts = self._facts(answers, told)
        failed = {name: answer for name, answer in answers.items() if isinstance(answer, Failed)}
        if failed and len(failed) == len(answers):
            kind = TimedOut if any(each.hangs for each in failed.values()) else Unavailable
            raise kind(
                f"no folder of backups can be looked at: it {next(iter(failed.values())).why}",
                mend="see whether its disk or file server is there: `dmesg`, `mount`, and `df` on the host",
                known=backup_samples(facts),
            )
        self._remark(ctx, facts, answers)
        return backup_samples(facts)

    def follow(self, stop: Callable[[], bool]) -> None:
        self._checks.run(stop)

    def _questions(self, now: float) -> dict[str, Callable[[], Answer]]:
        """What to ask of which folder, by what it is about."""
        config, asked = self._config, dict[str, Callable[[], Answer]]()
        if config.database:
            asked[DATABASE] = partial(others_backups, config.database, now, unsettled=SETTLED_SECONDS)
        elif "backups" in self._paths:
            asked[DATABASE] = partial(own_dumps, str(self._paths["backups"]), now)
        if config.media:
            asked[MEDIA] = partial(others_backups, config.media, now, markers=True)
        if config.restore_test:
            asked["restore"] = partial(touched, str(config.restore_test))
        for role in (DATABASE, MEDIA):
            if role in self._paths and asked:
                asked[f"place of {role}"] = partial(place_of, str(self._paths[role]))
        return asked

    def _told(self, ctx: Context) -> Told | None:
        """What Immich's database says of its dumps; what it does not say hides nothing of what is on disk."""
        if self._ask_immich is None:
            return None
        try:
            return self._ask_immich(ctx.deadline)
        except CollectorFailure as failure:
            ctx.remark(
                f"whether Immich's own dumps are switched on, and whether one failed, is not known: {failure.message}",
                failure.mend,
            )
            return None

    def _facts(self, answers: Mapping[str, Answer | Failed], told: Told | None) -> BackupFacts:
        found = {kind: answer for kind in (DATABASE, MEDIA) if isinstance(answer := answers.get(kind), Found)}
        places = {
            role: answer for role in (DATABASE, MEDIA) if isinstance(answer := answers.get(f"place of {role}"), Place)
        }
        dumps = found[DATABASE].backups if DATABASE in found else ()
        restored = answers.get("restore")
        own = not self._config.database and DATABASE in found and found[DATABASE].there
        values = told.values if told else {}
        known = told is not None and "metadata" in told.tables and own
        return BackupFacts(
            found=found,
            places=places,
            verdict=self._checks.verdict(dumps[0]) if dumps and dumps[0].size is not None else None,
            schedule=values.get("backup.database.cronExpression", DEFAULT_CRON) if known else None,
            enabled=values.get("backup.database.enabled") != "false" if known else None,
            failed=_number(values.get("failed")),
            restore_tested=restored if isinstance(restored, float) else None,
        )

    def _remark(self, ctx: Context, facts: BackupFacts, answers: Mapping[str, Answer | Failed]) -> None:
        names = {DATABASE: self._shown(), MEDIA: f"what {OWN}MEDIA_BACKUPS names", "restore": f"{OWN}RESTORE_TEST_FILE"}
        for name, answer in answers.items():
            if isinstance(answer, Failed) and name in names:
                ctx.remark(
                    f"{names[name]} cannot be looked at: it {answer.why}",
                    "see whether its disk or file server is there: `dmesg`, `mount`, and `df` on the host",
                )
        found = facts.found.get(DATABASE)
        if found and not found.readable:
            ctx.remark(
                f"this user may not look into {self._shown()}",
                "run the exporter as a user or in a group that may read it (r and x), such as Immich's",
            )
        if found and not found.there:
            ctx.remark(
                f"not found: {self._shown()}",
                f"mount the media folder into the exporter, or set {OWN}BACKUPS_PATH to where it is mounted; Immich"
                f" before 1.120 makes no dumps: name those of your own tool in {OWN}DATABASE_BACKUPS",
            )
        if DATABASE not in answers:
            ctx.remark(
                "where Immich's dumps of its database are is not known",
                "mount the media folder into the exporter and set IMMICH_MEDIA_LOCATION or UPLOAD_LOCATION, or set"
                f" {OWN}DATABASE_BACKUPS",
                optional=True,
            )
        if facts.enabled is False:
            ctx.remark(
                "Immich's own dumps are switched off, and no other tool's are named",
                "switch them on in Immich's settings (Administration, Settings, Backup), or name the others in"
                f" {OWN}DATABASE_BACKUPS",
            )
        for kind, named, setting in (
            (DATABASE, self._config.database, "DATABASE_BACKUPS"),
            (MEDIA, self._config.media, "MEDIA_BACKUPS"),
        ):
            if named and (there := facts.found.get(kind)) and not there.backups:
                ctx.remark(
                    f"nothing is there of what {OWN}{setting} names",
                    "mount the folder of your backups into the exporter, and give the path that it has there; or your"
                    " tool has not finished one yet",
                )
        if self._config.restore_test and answers.get("restore") is None:
            ctx.remark(
                f"{OWN}RESTORE_TEST_FILE names a file that is not there",
                "touch it when you have restored a backup to a test place and found it good",
            )
        if facts.verdict in SAYS:
            ctx.remark(*SAYS[facts.verdict])
        if self._checks.problem:
            ctx.remark(
                f"the newest dump cannot be read: {self._checks.problem}",
                "let the exporter's user read it, or look at the disk: `dmesg`",
            )
        if self._checks.state_problem:
            ctx.remark(self._checks.state_problem, f"look at the folder that {OWN}STATE_PATH names")

    def _shown(self) -> str:
        if self._config.database:
            return f"what {OWN}DATABASE_BACKUPS names"
        return f"{self._paths['backups']}" if "backups" in self._paths else "the folder of Immich's dumps"


_AGAIN = "make a new one (Administration, Job Queues, Create job), and keep the older ones until it is good"
SAYS = {
    Verdict.EMPTY: ("the newest dump is empty", _AGAIN),
    Verdict.DAMAGED: ("the newest dump is damaged or cut off", _AGAIN),
    Verdict.CUT: ("the newest dump ends before its closing line", _AGAIN),
    Verdict.UNKNOWN: (
        "whether the newest dump is whole cannot be told: it is neither SQL of pg_dump nor gzip of it",
        "nothing, if your tool checks its own dumps; else write plain SQL or .sql.gz",
    ),
}


def _ask_immich(database: Database, name: str, deadline: Deadline) -> Told:
    try:
        return read_facts(database, name, BACKUP_FACTS, deadline)
    finally:
        database.close()  # the next run is minutes away


def backup_samples(facts: BackupFacts) -> Iterator[Sample]:
    """The samples of both kinds."""
    for kind, found in facts.found.items():
        if found.readable and found.there:
            yield from _kind_samples(kind, found)
        by_schedule = longest_gap(facts.schedule) if kind == DATABASE and facts.schedule else None
        yield from INTERVAL.known(by_schedule or spacing(found.backups), kind=kind)
    for kind, other in COMPARED:
        place = facts.found[kind].place if kind in facts.found else None
        if place is not None and other in facts.places:
            yield SAME.sample(bool(place.disks & facts.places[other].disks), **{"kind": kind, "as": other})
    yield from SCHEDULED.known(facts.enabled)
    if facts.verdict not in (None, Verdict.UNKNOWN):
        yield INTACT.sample(facts.verdict == Verdict.WHOLE, kind=DATABASE)
    yield from RESTORE_TEST.known(facts.restore_tested)
    yield from FAILURE.known(facts.failed)


def _kind_samples(kind: str, found: Found) -> Iterator[Sample]:
    yield COUNT.sample(len(found.backups), kind=kind)
    if not found.backups:
        return
    newest, *others = found.backups
    yield NEWEST.sample(newest.moment, kind=kind)
    yield from SIZE.known(newest.size, kind=kind)
    previous = next((each.size for each in others if each.family == newest.family), None)
    yield from PREVIOUS.known(previous, kind=kind)


def spacing(backups: Sequence[Backup]) -> float | None:
    """The usual time between the last backups, which a few made by hand do not change; None of too few.

    Not less than a day: several made by hand on one afternoon are no schedule.
    """
    moments = [each.moment for each in backups[:SPACING_OF]]
    if len(moments) < LEAST_FOR_SPACING:
        return None
    gaps = sorted(later - earlier for later, earlier in pairwise(moments))
    return max(DAY, gaps[len(gaps) // 2])


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
