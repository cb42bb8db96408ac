"""The collector `backup`: which backups there are, whether they are whole, and where they lie."""

import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_vitals.collector import Context, Deadline, TimedOut, Unavailable
from immich_vitals.collectors.backup import BackupCollector, BackupFacts, backup_samples, spacing
from immich_vitals.config import BackupConfig, load
from immich_vitals.sources import dumps
from immich_vitals.sources.backups import (
    Asked,
    Backup,
    Found,
    Place,
    disks_of,
    others_backups,
    own_dumps,
    place_of,
)
from immich_vitals.sources.cron import longest_gap
from immich_vitals.sources.dump_checks import DumpChecks
from immich_vitals.sources.dumps import Verdict, verify
from immich_vitals.sources.files import Mount
from immich_vitals.sources.immich_facts import Told
from immich_vitals.sources.pace import Pace
from immich_vitals.sources.state import State
from support.clock import FakeClock
from support.golden import cases, check

NOW = 1_800_000_000.0
DAY = 86400.0
DUMP = b"--\n-- PostgreSQL database dump\n--\n\n" + b"INSERT INTO x;\n" * 1000
END = b"--\n-- PostgreSQL database dump complete\n--\n\n"
KEY = b"\\unrestrict 8DmDw7UopMjSnDCskmwuTvpx7D3dxcMOTPZmt5MvKp06O7hkeb7hfxvG8rZKaxN\n\n"
UNHURRIED = Pace(1e9)


@pytest.mark.parametrize("case", cases("backup"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """The facts of the case give exactly its expected samples."""
    check(
        case, BackupCollector.metrics, backup_samples(facts_of(json.loads((case / "facts.json").read_text()))),
        update_golden,
    )  # fmt: skip


def facts_of(told: dict[str, Any]) -> BackupFacts:
    places = {name: Place(frozenset(disks)) for name, disks in told.pop("places").items()}
    verdict = Verdict(told.pop("verdict")) if "verdict" in told else None
    moments = {name: NOW - told.pop(name) for name in ("failed", "restore_tested") if name in told}
    found = {kind: found_of(each) for kind, each in told.pop("found").items()}
    return BackupFacts(found=found, places=places, verdict=verdict, **moments, **told)


def found_of(told: dict[str, Any]) -> Found:
    backups = tuple(Backup(f"/b/{age}", NOW - age, size, 0, family) for age, size, family in told["backups"])
    place = Place(frozenset(told["place"])) if "place" in told else None
    return Found(backups, place, told.get("readable", True), told.get("there", True))


# -- which backups there are


def put(path: Path, age: float = 3600.0, content: bytes = b"x") -> Path:
    """A file last written `age` seconds before `NOW`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (NOW - age, NOW - age))
    return path


def named(age: float, version: str = "v2.7.5-pg14.17") -> str:
    """Immich's name for a dump that began then, in this machine's time."""
    return time.strftime(f"immich-db-backup-%Y%m%dT%H%M%S-{version}.sql.gz", time.localtime(NOW - age))


def test_own_dumps_of_both_name_styles(tmp_path: Path) -> None:
    """Dumps of old and new Immich count, the newest first; nothing else in the folder does."""
    old = put(tmp_path / f"immich-db-backup-{int((NOW - 2 * DAY) * 1000)}.sql.gz", 2 * DAY)
    new = put(tmp_path / named(3600))
    rc = put(tmp_path / named(DAY, "v3.0.0-rc.1-pg18.1"), DAY)
    for other in (
        ".immich", named(60) + ".tmp", "uploaded-20260101-immich.sql.gz", "restore-point-" + named(60),
        "my-own.sql.gz", "immich-db-backup-.sql.gz", "immich-db-backup-20269999T999999.sql",
    ):  # fmt: skip
        put(tmp_path / other, 10)
    (tmp_path / named(30)).mkdir()
    (tmp_path / named(20)).symlink_to("nowhere")
    found = own_dumps(str(tmp_path), NOW)
    assert [each.path for each in found.backups] == [str(new), str(rc), str(old)]
    assert [each.family for each in found.backups] == ["-v2.7.5-pg14.17", "-v3.0.0-rc.1-pg18.1", ""]
    assert found.backups[0].moment == NOW - 3600


def test_a_copied_dump_is_as_old_as_its_name(tmp_path: Path) -> None:
    """A dump whose file is days younger than its name was copied; one within a time zone's reach was not."""
    put(tmp_path / named(30 * DAY), 60)
    put(tmp_path / named(14 * 3600), 60)  # written in a container 14 hours behind
    moments = [NOW - each.moment for each in own_dumps(str(tmp_path), NOW).backups]
    assert moments == [60, pytest.approx(30 * DAY, abs=3601)]


def test_a_dump_from_the_future_is_not_the_newest(tmp_path: Path) -> None:
    """A clock that was wrong once does not blind us for years; where there is nothing else, it is shown."""
    future = put(tmp_path / named(-400 * DAY), -400 * DAY)
    assert own_dumps(str(tmp_path), NOW).backups[0].path == str(future)
    put(tmp_path / named(3600))
    found = own_dumps(str(tmp_path), NOW).backups
    assert (len(found), found[0].moment) == (2, NOW - 3600)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Immich before 1.120 has no folder: nothing is known, which is not the same as no dumps."""
    assert own_dumps(str(tmp_path / "backups"), NOW) == Found(there=False)
    assert own_dumps(str(put(tmp_path / "file")), NOW) == Found(there=False)


def test_a_folder_that_we_may_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without rights is told from an empty one."""

    def refuse(path: str) -> Iterator[object]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert own_dumps(str(tmp_path), NOW) == Found(readable=False)


def test_others_backups(tmp_path: Path) -> None:
    """Globs find files and folders; what may still be written is left out, and brackets are no pattern."""
    old = put(tmp_path / "[a]" / "x-1.dump", 2 * DAY)
    put(tmp_path / "[a]" / "x-2.dump", 30)
    put(tmp_path / "a" / "x-3.dump", 60)
    found = others_backups([f"{tmp_path}/[a]/x-?.dump"], NOW, unsettled=600)
    assert [each.path for each in found.backups] == [str(old)]
    assert not found.backups[0].packed
    (tmp_path / "snapshots" / "one").mkdir(parents=True)
    (folder,) = others_backups([f"{tmp_path}/snapshots/*"], NOW).backups
    assert folder.size is None


def test_a_marker_tells_neither_size_nor_place(tmp_path: Path) -> None:
    """A file that a tool touches is no backup itself: where it lies, and how large it is, says nothing."""
    marker = put(tmp_path / "done", 30, b"")
    found = others_backups([str(marker)], NOW, markers=True)
    assert found.backups[0].marker and found.backups[0].size is None and found.place is None
    archive = put(tmp_path / "immich.tar", 30, bytes(10_000))
    found = others_backups([str(archive)], NOW, markers=True)
    assert found.backups[0].size == 10_000 and found.place is not None


# -- whether a dump is whole


def verdict(path: Path, content: bytes, packed: bool = True) -> Verdict | None:
    return verify(str(put(path, content=content)), packed, UNHURRIED, lambda: False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(DUMP + END), Verdict.WHOLE),
        (gzip.compress(DUMP + END + KEY), Verdict.WHOLE),
        (gzip.compress(DUMP) + gzip.compress(END), Verdict.WHOLE),
        (gzip.compress(DUMP + END) + bytes(512), Verdict.WHOLE),
        (gzip.compress(DUMP + END, 0), Verdict.WHOLE),
        (b"", Verdict.EMPTY),
        (gzip.compress(b""), Verdict.CUT),
        (gzip.compress(DUMP), Verdict.CUT),
        (gzip.compress(DUMP + b"'dump complete'\n-- PostgreSQL database dump complete --x\n"), Verdict.CUT),
        (gzip.compress(DUMP + END + b"x\n" * 3000), Verdict.CUT),
        (gzip.compress(DUMP + END)[:-1], Verdict.DAMAGED),
        (gzip.compress(DUMP + END)[: len(gzip.compress(DUMP + END)) // 2], Verdict.DAMAGED),
        (gzip.compress(DUMP + END)[:10], Verdict.DAMAGED),
        (gzip.compress(DUMP + END) + b"garbage", Verdict.DAMAGED),
        (DUMP + END, Verdict.DAMAGED),
        (bytes(100_000), Verdict.DAMAGED),
        (b"\x1f\x8b" + os.urandom(10_000), Verdict.DAMAGED),
    ],
)  # fmt: skip
def test_own_dump(content: bytes, expected: Verdict, tmp_path: Path) -> None:
    """An own dump is whole when its gzip checks out and its closing line is there."""
    assert verdict(tmp_path / "dump.sql.gz", content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (DUMP + END + KEY, Verdict.WHOLE),
        (DUMP, Verdict.CUT),
        (gzip.compress(DUMP + END), Verdict.WHOLE),
        (gzip.compress(DUMP + END)[:-5], Verdict.DAMAGED),
        (b"", Verdict.EMPTY),
        (b"PGDMP" + bytes(100_000), Verdict.UNKNOWN),
        (gzip.compress(b"PGDMP" + bytes(100_000)), Verdict.UNKNOWN),
        (b"\x28\xb5\x2f\xfd" + os.urandom(1000), Verdict.UNKNOWN),
        (b"-- MySQL dump\n-- Dump completed\n", Verdict.UNKNOWN),
    ],
)
def test_dump_of_another_tool(content: bytes, expected: Verdict, tmp_path: Path) -> None:
    """Plain SQL and gzip of it can be judged, other forms cannot."""
    assert verdict(tmp_path / "dump", content, packed=False) == expected


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    """One wrong bit anywhere in the middle fails the check sum."""
    content = bytearray(gzip.compress(DUMP + os.urandom(5000).hex().encode() + END))
    content[len(content) // 2] ^= 1
    assert verdict(tmp_path / "x", bytes(content)) in (Verdict.DAMAGED, Verdict.CUT)


def test_a_dump_that_changes_meanwhile_is_not_judged(tmp_path: Path) -> None:
    """Somebody still writes to it: neither whole nor damaged."""
    path = put(tmp_path / "x", content=gzip.compress(DUMP))

    class Writing(Pace):
        def take(self, units: float, stop: Callable[[], bool] = lambda: False) -> None:
            with path.open("ab") as file:
                file.write(b"more")

    assert verify(str(path), True, Writing(1e9), lambda: False) is None


def test_a_bomb_needs_no_memory_and_no_hurry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that unpacks to a lot is unpacked in pieces, at its pace."""
    monkeypatch.setattr(dumps, "MOST_UNPACKED", 4096)
    taken: list[float] = []

    class Counting(Pace):
        def take(self, units: float, stop: Callable[[], bool] = lambda: False) -> None:
            taken.append(units)

    path = put(tmp_path / "x", content=gzip.compress(bytes(4_000_000)))
    assert verify(str(path), True, Counting(1e9), lambda: False) == Verdict.CUT
    assert max(taken) < 10_000
    assert sum(taken) > 40_000


def test_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO in the place of a dump blocks nothing."""
    os.mkfifo(tmp_path / "fifo")
    assert verify(str(tmp_path / "fifo"), True, UNHURRIED, lambda: False) == Verdict.UNKNOWN


def test_the_pace_is_kept(tmp_path: Path) -> None:
    """A dump of 10 MB takes ten seconds at 1 MB/s, and stops within one piece when told to."""
    clock = FakeClock()
    path = put(tmp_path / "x", content=gzip.compress(os.urandom(10_000_000), 0))
    started = clock.monotonic()
    assert verify(str(path), True, Pace(1e6, clock, clock.advance), lambda: False) == Verdict.CUT
    assert 9 <= clock.monotonic() - started <= 11
    assert verify(str(path), True, Pace(1e6, clock, clock.advance), lambda: True) is None


# -- which were read already


def dump(path: Path, **changes: Any) -> Backup:
    told = path.stat()
    return Backup(str(path), told.st_mtime, told.st_size, told.st_mtime_ns, "", packed=True, **changes)


@contextmanager
def running(checks: DumpChecks) -> Iterator[None]:
    """Its thread, which must end when it is told to."""
    stop = threading.Event()
    thread = threading.Thread(target=checks.run, args=(stop.is_set,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_each_dump_is_read_once_also_over_a_restart(tmp_path: Path) -> None:
    """The verdict is remembered by name, size and time; a file that changed is read again."""
    path = put(tmp_path / "secret-name.sql.gz", content=gzip.compress(DUMP + END))
    read: list[str] = []

    def counting(path: str, *others: Any) -> Verdict | None:
        read.append(path)
        return verify(path, *others)

    make = partial(DumpChecks, pace=UNHURRIED, check=counting, look_seconds=0.01)
    for _ in range(2):
        checks = make(State(tmp_path, "backup"))
        with running(checks):
            until(lambda checks=checks: checks.verdict(dump(path)) == Verdict.WHOLE)  # type: ignore[misc]
    assert read == [str(path)]
    assert "secret" not in (tmp_path / "backup.json").read_text()
    put(path, 10, gzip.compress(DUMP))
    assert make(State(tmp_path, "backup")).verdict(dump(path)) is None


@pytest.mark.parametrize("kept", ["{", '{"dumps": [1]}', '{"dumps": {"x": "fine", "y": 7}}', "[]", "\xff"])
def test_strange_state(kept: str, tmp_path: Path) -> None:
    """What is not ours in the state folder is as good as nothing."""
    (tmp_path / "backup.json").write_text(kept, encoding="latin-1")
    path = put(tmp_path / "x", content=b"x")
    assert DumpChecks(State(tmp_path, "backup"), UNHURRIED).verdict(dump(path)) is None


def test_remembers_only_the_last(tmp_path: Path) -> None:
    """The state does not grow with the years."""
    checks = DumpChecks(State(tmp_path, "backup"), UNHURRIED, look_seconds=0.01)
    with running(checks):
        for number in range(20):
            path = put(tmp_path / str(number), content=b"")
            until(lambda path=path: checks.verdict(dump(path)) == Verdict.EMPTY)  # type: ignore[misc]
    assert len(json.loads((tmp_path / "backup.json").read_text())["dumps"]) == 8


def test_a_disk_that_hangs_ends_with_stop_and_harms_no_later_dump(tmp_path: Path) -> None:
    """Reading may hang for ever: `run` still ends, and no verdict goes to the wrong dump."""
    hangs, first, second = threading.Event(), put(tmp_path / "1", content=b""), put(tmp_path / "2", content=b"")

    def check(path: str, *others: Any) -> Verdict | None:
        if path == str(first):
            hangs.wait(10)
            return Verdict.DAMAGED
        return Verdict.WHOLE

    checks = DumpChecks(State(None, "backup"), UNHURRIED, check, look_seconds=0.01)
    checks.verdict(dump(first))
    with running(checks):
        time.sleep(0.03)
    with running(checks):
        assert checks.verdict(dump(second)) is None
        time.sleep(0.03)
        assert checks.verdict(dump(second)) is None
        hangs.set()
        until(lambda: checks.verdict(dump(second)) == Verdict.WHOLE)


def test_a_dump_that_cannot_be_read(tmp_path: Path) -> None:
    """It is neither whole nor damaged; the reason is kept for people, and it is tried again later."""
    checks = DumpChecks(State(None, "backup"), UNHURRIED, look_seconds=0.01)
    path = put(tmp_path / "x")
    seen = dump(path)
    path.unlink()
    with running(checks):
        assert checks.verdict(seen) is None
        until(lambda: checks.problem == "No such file or directory")
        put(path, content=b"")
        until(lambda: checks.verdict(seen) == Verdict.EMPTY)
    assert checks.problem == ""


# -- how often


@pytest.mark.parametrize(
    ("expression", "hours"),
    [
        ("0 02 * * *", 24),
        ("0 0 2 * * *", 24),
        ("30 */6 * * *", 6),
        ("0 1,13 * * *", 12),
        ("0 2 * * 1-5", 72),
        ("0 2 * * MON,fri", 96),
        ("0 2 * * 0,7", 168),
        ("0 2 1 * *", 31 * 24),
        ("0 2 1,15 * *", 17 * 24),
        ("0 2 1 * 1", 168),
        ("*/5 * * * *", 1 / 12),
        ("0/20 * * * *", 1 / 3),
        ("@daily", 24),
        ("@weekly", 168),
        ("0 2 29 2 *", 4 * 365.25 * 24),
    ],
)
def test_longest_gap(expression: str, hours: float) -> None:
    """The longest time between two runs, whatever the time zone."""
    assert longest_gap(expression) == pytest.approx(hours * 3600)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "never",
        "0 2 * *",
        "0 25 * * *",
        "0 2 31 2 *",
        "*/0 * * * *",
        "5-1 * * * *",
        "0 2 * * * * *",
        "1,,2 * * * *",
        "- * * * *",
    ],
)
def test_no_cron_expression(expression: str) -> None:
    """What does not make sense is not guessed at."""
    assert longest_gap(expression) is None


@given(st.text(alphabet="0123456789*/-,@ LW#?", max_size=30))
def test_any_text_as_schedule(expression: str) -> None:
    """Whatever somebody typed in, the answer is a number or none."""
    gap = longest_gap(expression)
    assert gap is None or gap > 0


def test_spacing() -> None:
    """Some dumps by hand do not change the schedule that the others show; too few show none."""

    def at(*ages: float) -> list[Backup]:
        return [Backup("x", NOW - age, 1, 0, "") for age in ages]

    assert spacing(at(0, 7 * DAY, 14 * DAY)) is None
    assert spacing(at(0, 7 * DAY, 14 * DAY, 21 * DAY)) == 7 * DAY
    assert spacing(at(0, 60, 90, 7 * DAY, 14 * DAY, 21 * DAY, 28 * DAY)) == 7 * DAY
    assert spacing(at(0, 60, 120, 180, 240)) == DAY


# -- where they lie


def sysfs(root: Path) -> Path:
    """Two disks: sda with two partitions, the second one under a volume; sdb whole under a RAID with sdc."""
    devices = root / "devices"
    for path, number in (
        ("sda", "8:0"), ("sda/sda1", "8:1"), ("sda/sda2", "8:2"), ("sdb", "8:16"), ("sdc", "8:32"),
        ("virtual/dm-0", "253:0"), ("virtual/md0", "9:0"),
    ):  # fmt: skip
        folder = devices / path
        folder.mkdir(parents=True)
        (root / "dev/block").mkdir(parents=True, exist_ok=True)
        (root / "class/block").mkdir(parents=True, exist_ok=True)
        (root / "dev/block" / number).symlink_to(folder)
        (root / "class/block" / folder.name).symlink_to(folder)
    for partition in ("sda1", "sda2"):
        (devices / "sda" / partition / "partition").write_text("1")
    for volume, parts in (("dm-0", ["sda/sda2"]), ("md0", ["sdb", "sdc"])):
        (devices / "virtual" / volume / "slaves").mkdir()
        for part in parts:
            (devices / "virtual" / volume / "slaves" / Path(part).name).symlink_to(devices / part)
    return root


@pytest.mark.parametrize(
    ("device", "fstype", "source", "expected"),
    [
        ("8:1", "ext4", "/dev/sda1", {"sda"}),
        ("253:0", "ext4", "/dev/mapper/vg-db", {"sda"}),
        ("9:0", "xfs", "/dev/md0", {"sdb", "sdc"}),
        ("0:45", "btrfs", "/dev/sda1", {"sda"}),
        ("0:46", "btrfs", "/dev/mapper/secret", {"/dev/mapper/secret"}),
        ("0:50", "zfs", "tank/photos", {"zfs tank"}),
        ("0:51", "nfs4", "nas:/photos", {"0:51"}),
        ("0:52", "overlay", "overlay", {"0:52"}),
    ],
)
def test_disks(device: str, fstype: str, source: str, expected: set[str], tmp_path: Path) -> None:
    """Partitions, volumes, subvolumes and datasets lead to their disk or pool."""
    mount = Mount("/x", fstype, device, readonly=False, source=source)
    assert disks_of(device, mount, sysfs(tmp_path)) == expected


def test_place_of_a_real_folder(tmp_path: Path) -> None:
    """Two folders beside each other share a disk, and what is not there has no place."""
    (tmp_path / "a").mkdir()
    here, beside = place_of(str(tmp_path)), place_of(str(tmp_path / "a"))
    assert here and beside and here.disks & beside.disks
    assert place_of(str(tmp_path / "b")) is None
    elsewhere = place_of("/proc")
    assert elsewhere and not here.disks & elsewhere.disks


# -- the collector


def collector(folder: Path | None = None, *, told: Told | Exception | None = None, **config: Any) -> BackupCollector:
    def ask(deadline: Deadline) -> Told:
        if isinstance(told, Told):
            return told
        raise told or AssertionError

    settings = {"database": (), "media": (), "restore_test": None, "interval": 600.0, "rate": 1e9} | config
    checks = DumpChecks(State(None, "backup"), UNHURRIED, look_seconds=0.01)
    paths = {} if folder is None else {"backups": folder / "backups", "media": folder}
    return BackupCollector(BackupConfig(**settings), paths, checks, ask if told else None, Asked(0.2))


def context() -> Context:
    clock = FakeClock(NOW)
    return Context(Deadline.after(10.0, clock), clock)


def values(found: BackupCollector, ctx: Context) -> dict[tuple[str, ...], float]:
    return {(sample.metric.name.removeprefix("backup_"), *sample.labels): sample.value for sample in found.collect(ctx)}


SETTINGS = frozenset(("metadata", "notification"))


def test_an_ordinary_immich(tmp_path: Path) -> None:
    """Two dumps, Immich's default schedule, and once the newest has been read, that it is whole."""
    for age in (3600, DAY + 3600):
        put(tmp_path / "backups" / named(age), age, gzip.compress(DUMP + END))
    backup = collector(tmp_path, told=Told({}, SETTINGS))
    found = values(backup, ctx := context())
    assert ctx.remarks == []
    assert found["newest_timestamp_seconds", "database"] == NOW - 3600
    assert found["count", "database"] == 2
    assert found["interval_seconds", "database"] == DAY
    assert found["scheduled",] == 1
    assert found["same_filesystem", "database", "media"] == 1
    assert ("intact", "database") not in found
    stop = threading.Event()
    thread = threading.Thread(target=backup.follow, args=(stop.is_set,), daemon=True)
    thread.start()
    until(lambda: values(backup, context()).get(("intact", "database")) == 1)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_switched_off_in_immich(tmp_path: Path) -> None:
    """Dumps that Immich was told not to make are not missing, and the person is told once."""
    (tmp_path / "backups").mkdir()
    told = Told({"backup.database.enabled": "false", "backup.database.cronExpression": "0 2 * * 0"}, SETTINGS)
    found = values(collector(tmp_path, told=told), ctx := context())
    assert found["scheduled",] == 0
    assert found["interval_seconds", "database"] == 7 * DAY
    assert [remark.message for remark in ctx.remarks] == [
        "Immich's own dumps are switched off, and no other tool's are named"
    ]


def test_an_immich_without_dumps(tmp_path: Path) -> None:
    """Before 1.120 there is neither folder nor schedule: nothing is said to be missing."""
    assert values(collector(tmp_path, told=Told({}, SETTINGS)), ctx := context()) == {}
    assert "not found" in ctx.remarks[0].message


def test_other_tools_dumps_take_the_place_of_immichs(tmp_path: Path) -> None:
    """Whose dumps are named is whose dumps are watched; Immich's schedule has no say in them."""
    put(tmp_path / "backups" / named(60), 60)
    put(tmp_path / "mine" / "a.sql", 7200, DUMP)
    backup = collector(tmp_path, told=Told({"failed": "1799990000.5"}, SETTINGS), database=(f"{tmp_path}/mine/*",))
    found = values(backup, context())
    assert found["newest_timestamp_seconds", "database"] == NOW - 7200
    assert ("scheduled",) not in found
    assert ("interval_seconds", "database") not in found
    assert found["failure_timestamp_seconds",] == 1799990000.5


def test_the_database_does_not_answer(tmp_path: Path) -> None:
    """What is on disk is shown all the same, and what is not known is told."""
    put(tmp_path / "backups" / named(60), 60)
    found = values(collector(tmp_path, told=Unavailable("it refused", mend="start it")), ctx := context())
    assert found["count", "database"] == 1
    assert ("scheduled",) not in found
    assert ["it refused" in remark.message for remark in ctx.remarks] == [True]


def test_restore_test(tmp_path: Path) -> None:
    """The time of the file that somebody touches; a file that is not there is told."""
    touched = put(tmp_path / "tried", 5 * DAY)
    assert values(collector(restore_test=touched), context())["restore_test_timestamp_seconds",] == NOW - 5 * DAY
    assert values(collector(restore_test=tmp_path / "never"), ctx := context()) == {}
    assert "RESTORE_TEST_FILE" in ctx.remarks[-1].message


def test_a_dead_mount_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs costs one thread and its own numbers; when all hang, the collector says so; then it heals."""
    copies = put(tmp_path / "copies" / "photos.tar", 60, bytes(5000))
    put(tmp_path / "backups" / named(60), 60)
    released, scandir = threading.Event(), os.scandir

    def hang(path: str) -> Any:
        if Path(path).name == "backups":
            released.wait(10)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", hang)
    before = threading.active_count()
    backup = collector(tmp_path, media=(str(copies),))
    for _ in range(3):
        found = values(backup, ctx := context())
        assert found["count", "media"] == 1
        assert ("count", "database") not in found
        assert "does not answer" in ctx.remarks[0].message
    assert threading.active_count() <= before + 1
    alone = collector()
    alone._paths = {"backups": tmp_path / "backups"}
    with pytest.raises(TimedOut, match="does not answer"):
        values(alone, context())
    released.set()
    until(lambda: ("count", "database") in values(backup, context()))


def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk is not an empty folder."""

    def fail(path: str) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    put(tmp_path / "copies.tar", 60)
    found = values(collector(tmp_path, media=(f"{tmp_path}/copies.tar",)), ctx := context())
    assert ("count", "database") not in found and found["count", "media"] == 1
    assert "Input/output error" in ctx.remarks[0].message
    alone = collector()
    alone._paths = {"backups": tmp_path / "backups"}
    with pytest.raises(Unavailable, match="it fails with 'Input/output error'"):
        values(alone, context())


def test_named_and_not_there(tmp_path: Path) -> None:
    """A path that nothing is at is told: it is a typing error, or not mounted here, or no backup was ever made."""
    put(tmp_path / "copies.tar")
    there, nowhere = (f"{tmp_path}/copies.tar",), (f"{tmp_path}/no/*.tar",)
    for database, media, setting in ((there, nowhere, "MEDIA_BACKUPS"), (nowhere, there, "DATABASE_BACKUPS")):
        values(collector(database=database, media=media), ctx := context())
        said = [remark.message for remark in ctx.remarks]
        assert f"nothing is there of what IMMICH_VITALS_{setting} names" in said
        assert len([each for each in said if "nothing is there" in each]) == 1


def test_nothing_configured() -> None:
    """Without any folder, glob or database the collector is off, and says what to do."""
    config = load({})
    assert BackupCollector.from_config(config) is None
    assert "DATABASE_BACKUPS" in BackupCollector.disabled_because(config)


def test_from_settings(tmp_path: Path) -> None:
    """The settings lead to the folder; the interval is the one given."""
    made = BackupCollector.from_config(
        load({"IMMICH_MEDIA_LOCATION": str(tmp_path), "IMMICH_VITALS_BACKUP_INTERVAL": "1h"})
    )
    assert made is not None
    assert made.trigger.interval(10.0) == 3600.0  # type: ignore[union-attr]
    assert made._paths["backups"] == tmp_path / "backups"
