"""What the kernel, or something that plays its part (LXCFS, gVisor), says in files, and the heads of dumps."""

import gzip
import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.collector import Deadline
from immich_vitals.collectors.filesystem import FilesystemCollector, filesystem_samples
from immich_vitals.collectors.host import HostCollector, host_samples
from immich_vitals.config import WatchedPath
from immich_vitals.sources.disks import DiskActivity
from immich_vitals.sources.dumps import Verdict, verify
from immich_vitals.sources.files import WatchedPaths, mount_of, read_mounts
from immich_vitals.sources.host import read_host
from immich_vitals.sources.pace import Pace
from support.fuzz import WORDS, fuzzed, shown, told

PROC = ("meminfo", "stat", "vmstat", "loadavg", "pressure/cpu", "pressure/memory", "pressure/io")
NUMBERS = st.sampled_from(("0", "1", "-1", "18446744073709551615", "9" * 400, "9" * 5000, "1.5", "nan", "", "٣", "1e5"))
LINES = st.builds(
    lambda name, number, rest: f"{name}{number}{rest}",
    st.sampled_from(
        ("MemTotal: ", "MemAvailable: ", "SwapTotal: ", "SwapFree:", "btime ", "oom_kill ", "cpu0 ", "",
         "some avg10=0 total=", "full avg10=0 total=")
    ), NUMBERS, st.sampled_from((" kB", "", " x", "\0", "\x85")),
)  # fmt: skip
TEXTS = st.binary(max_size=60) | st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode())


@fuzzed
@given(st.fixed_dictionaries(dict.fromkeys(PROC, TEXTS)))
@example({**dict.fromkeys(PROC, b""), "meminfo": b"x", "pressure/cpu": b"some total=" + b"9" * 5000})
@example({**dict.fromkeys(PROC, b""), "meminfo": b"x", "pressure/cpu": b"some total=" + b"9" * 400})
def test_any_proc(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    facts = told(lambda: read_host(folder))
    if facts is not None:
        shown(HostCollector, host_samples(facts))


WORD = st.sampled_from(
    (
        "36",
        "98:0",
        "/",
        "/mnt",
        "/mnt\\040a",
        "/mnt\\777",
        "\\",
        "rw,ro",
        "-",
        "ext4",
        "nfs4",
        "fuse.x",
        "\xfc",
        "\x85",
        "",
        "\x0b",
    )
)


@fuzzed
@given(st.lists(st.lists(WORD | WORDS, max_size=12).map(" ".join), max_size=5), st.binary(max_size=60))
@example(["36 35 98:0 / /mnt/a\x85b rw - ext4 /dev/x rw", "37 35 98:1 / / rw - ext4 /dev/y ro"], b"")
def test_any_mountinfo(folder: Path, lines: list[str], noise: bytes) -> None:
    """Mounts are those that can be read; what is on a path is said with labels that can be read."""
    file = folder / "mountinfo"
    file.write_bytes("\n".join(lines).encode(errors="replace") + b"\n" + noise)
    mount_of("/mnt/a b", read_mounts(file))
    paths = [WatchedPath("media", folder), WatchedPath("external", Path("/mnt/a b"))]
    shown(FilesystemCollector, filesystem_samples(WatchedPaths(paths, mountinfo=file).read(Deadline.after(5))))


def test_a_mount_point_with_signs_that_end_lines_elsewhere(tmp_path: Path) -> None:
    """Only a line feed ends a line of mountinfo, and the kernel writes that as \\012."""
    file = tmp_path / "mountinfo"
    file.write_text("36 35 98:0 / /mnt/a\x85b\x0cc rw - ext4 /dev/x rw\n")
    assert [mount.point for mount in read_mounts(file)] == ["/mnt/a\x85b\x0cc"]


@fuzzed
@given(TEXTS, TEXTS, st.booleans())
def test_any_disk(folder: Path, rotational: bytes, stat: bytes, partition: bool) -> None:
    """A disk whose counters cannot be read is not asleep."""
    disk = folder / "sys" / "8:0"
    (disk / "queue").mkdir(parents=True, exist_ok=True)
    (disk / "queue" / "rotational").write_bytes(rotational)
    (disk / "stat").write_bytes(stat)
    activity = DiskActivity(folder / "sys")
    for now in (0.0, 1000.0):
        activity.asleep(os.makedev(8, 0), now)
    activity.ours(os.makedev(8, 0))


OPENING, CLOSING = b"--\n-- PostgreSQL database dump\n--\n\n", b"--\n-- PostgreSQL database dump complete\n--\n\n"
SQL = OPENING + b"SELECT 1;\n" * 50 + CLOSING
PACKED = gzip.compress(SQL, mtime=0)
REST = st.binary(max_size=50)
DUMPS = st.one_of(
    st.binary(max_size=100),
    st.binary(max_size=60).map(lambda rest: b"\x1f\x8b" + rest),
    st.integers(0, len(PACKED)).map(lambda size: PACKED[:size]),
    st.builds(
        lambda at, bits: PACKED[: at % len(PACKED)] + bits + PACKED[at % len(PACKED) :],
        st.integers(0),
        st.binary(max_size=4),
    ),
    st.builds(lambda first, rest: PACKED * first + rest, st.integers(0, 3), st.binary(max_size=20)),
    st.builds(
        lambda head, tail: gzip.compress(OPENING + head + CLOSING + tail),
        st.binary(max_size=50),
        st.binary(max_size=50),
    ),
    st.sampled_from((SQL, OPENING, CLOSING, SQL + b"\n" * 5000, PACKED + b"\0" * 600)),
)


@fuzzed
@given(DUMPS, st.booleans())
@example(gzip.compress(OPENING + b"\0" * 50_000_000 + CLOSING), True)
def test_any_dump(folder: Path, content: bytes, packed: bool) -> None:
    """A dump has a verdict, and is whole only where it can be unpacked and ends as a dump does."""
    file = folder / "dump"
    file.write_bytes(content)
    found = verify(str(file), packed, Pace(1e12), lambda: False)
    assert isinstance(found, Verdict)
    if found is Verdict.WHOLE:
        text = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        assert b"dump complete" in text[-5000:]
