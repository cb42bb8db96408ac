"""What lies in the state folder may be anything: somebody wrote into it, or a disk did."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.cli import build
from immich_vitals.collector import SystemClock
from immich_vitals.collectors.file import FileCollector, FileFacts, file_samples
from immich_vitals.collectors.log import Counts, LogCollector, log_samples
from immich_vitals.config import Config, load
from immich_vitals.signatures import Catalogue
from immich_vitals.sources.backups import Backup
from immich_vitals.sources.dump_checks import DumpChecks
from immich_vitals.sources.file_audit import progress_from
from immich_vitals.sources.log_lines import Batch
from immich_vitals.sources.pace import Pace
from immich_vitals.sources.page_pass import Memory
from immich_vitals.sources.state import State
from support.fuzz import JSON, fuzzed, like, seldom, shown

OWNERS = ("log", "file", "storage", "backup", "postgres_patrol")
COUNTS = [["original", "ok", 3]]
WRITTEN: dict[str, object] = {
    "log": {
        "saved": time.time(), "lines": {"server": 3}, "matches": [["server", "no_space", 1]],
        "lasts": [["server", "no_space", 1]],
        "places": {"file:server=/x": {"files": [{"device": 1, "inode": 1, "offset": 1, "head": "", "head_size": 0}]}},
    },
    "file": {
        "lost": ["original"],
        "audit": {
            "current": {"began": 1.0, "total": 5, "phase": "assets", "after": None, "assets": 1, "counts": COUNTS},
            "began": 1.0, "completed": 2.0, "found": COUNTS,
        },
    },
    "storage": {"count": 1, "at": 1.5, "seen": {"media": {"inode": 1, "device": "8:1"}}, "could_write": True},
    "backup": {"dumps": {"x": "whole"}},
    "postgres_patrol": {
        "place": "x", "started": 1.0, "begun": None, "oid": 1, "block": 1, "truncated": [[1, 2]],
        "damaged": [{"oid": 1, "filenode": 1, "first": 1, "after": 2, "crashed": False}], "checked": [1], "bad": [],
    },
}  # fmt: skip


def _bytes(raw: object) -> bytes:
    return json.dumps(raw).encode()


ANY = st.binary(max_size=60) | JSON.map(_bytes)
FILES = st.fixed_dictionaries({}, optional={name: ANY | like(WRITTEN[name]).map(_bytes) for name in OWNERS})
DEEP = b"[" * 100_000
LARGE = b'{"count": 1e400, "at": 1' + b"0" * 400 + b', "saved": NaN, "audit": {"began": 1' + b"0" * 400 + b"}}"


@pytest.fixture(scope="module")
def settings(folder: Path) -> Config:
    """Of an exporter with everything on, and nobody there to ask."""
    media = folder / "media"
    media.mkdir()
    (folder / "server.log").write_text("ENOSPC: no space left on device\n")
    return load(
        {
            "DB_URL": "postgresql://x:x@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1", "DOCKER_HOST": "tcp://127.0.0.1:1",
            "IMMICH_MEDIA_LOCATION": str(media), "IMMICH_VITALS_STATE_PATH": str(folder),
            "IMMICH_VITALS_LOG_FILES": f"server={folder / 'server.log'}", "IMMICH_VITALS_PAGE_PATROL": "true",
            "IMMICH_VITALS_FILE_AUDIT": "true",
        }
    )  # fmt: skip


@seldom
@given(FILES)
@example(dict.fromkeys(OWNERS, DEEP))
@example(dict.fromkeys(OWNERS, LARGE))
@example(dict.fromkeys(OWNERS, b"{}" + b" " * (1 << 20)))
def test_any_files(folder: Path, settings: Config, files: dict[str, bytes]) -> None:
    """The exporter starts with any of them, and no collector breaks on what it kept."""
    for name in OWNERS:
        (folder / f"{name}.json").write_bytes(files.get(name, b""))
    runner = build(settings)
    runner.scrape(5.0, everything=True)
    for status in runner.statuses():
        assert status.outcome is None or status.outcome.reason != "error", (status.name, status.outcome)


@fuzzed
@given(like(WRITTEN["log"]), like(WRITTEN["file"]), like(WRITTEN["backup"]), like(WRITTEN["postgres_patrol"]))
def test_anything_kept(folder: Path, log: object, file: object, backup: object, patrol: object) -> None:
    """Whatever was read is taken over as a whole or not at all, and can be shown and kept again."""
    kept = _kept(folder, log)
    counts = Counts(Catalogue.load(), kept, SystemClock())
    counts.open("file:server=/x", "server")(Batch([b"ENOSPC: no space left on device"], None, {}))
    shown(LogCollector, log_samples(counts.facts(), ()))
    assert {**counts.to_keep(), "saved": 0} == {**_kept(folder, counts.to_keep()), "saved": 0}
    audit = _kept(folder, file).get("audit")
    progress = progress_from(audit if isinstance(audit, dict) else {})
    shown(FileCollector, file_samples(FileFacts(None, Counter(), progress)))
    state = State(folder, "any")
    state.write(_kept(folder, backup))
    assert DumpChecks(state, Pace(1e9)).verdict(Backup("x", 1.0, 1, 1, "x")) is None
    memory = Memory.of(_kept(folder, patrol))
    assert isinstance(memory.place, str)


def _kept(folder: Path, raw: object) -> dict[str, object]:
    """As it would be read."""
    (folder / "fuzz.json").write_bytes(_bytes(raw))
    return State(folder, "fuzz").read()
