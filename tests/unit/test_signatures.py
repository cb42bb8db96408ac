"""What log lines are taken for: the catalogue's own examples, lines from people's reports, and one event told often."""

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from immich_vitals import log_match
from immich_vitals.patterns import danger, needs
from immich_vitals.signatures import COMPONENTS, LONGEST_LINE, NOTHING, Catalogue, CatalogueError, Entry, Reader

LOGS = Path(__file__).parents[1] / "facts" / "logs"
CATALOGUE = Catalogue.load()
ENTRIES = [
    pytest.param(entry, component, id=f"{number}-{entry.signature}-{component}")
    for number, entry in enumerate(CATALOGUE.entries)
    for component in entry.components
]


def read(component: str, text: str, moments: list[float] | None = None) -> list[str]:
    """The signature of each line, `-` for one that counts as nothing."""
    lines = text.encode().split(b"\n")
    found = dict(Reader(CATALOGUE, component).feed(lines, moments))
    return [found.get(number, NOTHING) for number in range(len(lines))]


@pytest.mark.parametrize(("entry", "component"), ENTRIES)
def test_examples(entry: Entry, component: str) -> None:
    """Each entry's examples are taken for it, whichever component prints them, and its other examples are not."""
    for example in entry.matches:
        assert read(component, example) == [entry.signature], example
    for example in entry.misses:
        assert entry.signature not in read(component, example), example


@pytest.mark.parametrize("entry", CATALOGUE.entries, ids=lambda entry: entry.signature)
def test_patterns_are_bounded(entry: Entry) -> None:
    """No pattern of ours can take for ever on a hostile line, and each has a word to be found by."""
    for pattern in (*entry.patterns, *entry.unless):
        assert danger(pattern) is None
    for pattern in entry.patterns:
        assert any(needs(pattern, frozenset(), edges=True)), pattern


@pytest.mark.parametrize("component", COMPONENTS)
def test_healthy(component: str) -> None:
    """Lines of healthy programs count as nothing, and hardly any of them is even looked at."""
    lines = CATALOGUE.healthy[component]
    assert read(component, "\n".join(lines)) == [NOTHING] * len(lines)


HELD_OUT = ["held-out", *(f"held-out-{number}" for number in range(2, 16, 2))]


@pytest.mark.parametrize("name", ["development", *HELD_OUT, "known"])
def test_field_lines(name: str) -> None:
    """Lines from public reports are taken for what a person takes them for."""
    readers = {component: Reader(CATALOGUE, component) for component in COMPONENTS}
    wrong = []
    for row in (LOGS / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
        component, expected, line = row.split("\t", 2)
        found = readers[component].feed([line.encode()], None)
        got = found[0][1] if found else NOTHING
        if got != expected:
            wrong.append((expected, got, line))
    assert not wrong


ALONE = [*(f"held-out-{number}" for number in range(3, 18, 2)), "held-out-16"]


@pytest.mark.parametrize("name", ALONE)
def test_field_lines_alone(name: str) -> None:
    """So are lines from reports that are read one by one, each as the first of its log."""
    rows = [row.split("\t", 2) for row in (LOGS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()]
    got = [(read(component, line)[0], line) for component, _, line in rows]
    assert got == [(expected, line) for _, expected, line in rows]


@pytest.mark.parametrize(
    "prefix",
    [
        "immich_server            | ",
        "immich-server-1  | ",
        "[immich-server]           | ",
        "Nov 20 17:22:51 host immich_server[1234]: ",
        "2026-11-20T17:22:51.123456789Z ",
        "2026-11-20T17:22:51.123456789Z",
        "2026-11-20 17:22:51.123456+00:00",
        "2026-11-20T17:22:51+0100 host docker[77]: ",
        "2024/07/01 18:09:59\tstdout\t",
        "2026-11-20T17:22:51.1Z stderr F ",
        "2026-11-20T17:22:51Z app[abc123] fra [info] ",
        "2026-11-20 17:22:51.123 | ",
        "stderr | 2026-11-20 17:22:51 | ",
        "[2026-11-20 17:22:51] ",
        "11/20/2026 5:22:51 PM ",
        "Nov 20, 2026 @ 17:22:51.123 ",
        "17:22:51 immich_server[2964161]: ",
        "<30>Nov 20 17:22:51 host immich_server[1234]: ",
        "2026-11-20T17:22:51+0100 host docker/immich_server[77]: ",
        "[pod/immich-server-6f/immich-server] ",
        "immich-server-6f5d server ",
        "immich-server-6f5d \u203a server ",
        "immich_server.1.x8s0q@node1    | ",
        "> ",
        "\x1b[31m",
        "[31m",
        "",
    ],
)
def test_prefixes(prefix: str) -> None:
    """What compose, journald, syslog or a shipper put before a line changes nothing: the same error twice is one."""
    line = "Error: ENOENT: no such file or directory, access '/data/thumbs/a/b_thumbnail.webp'"
    quiet = [
        "[Nest] 7  - 11/20/2026, 5:22:51 PM   DEBUG [Api:X~a1b2c3d4] Error: EACCES: permission denied, access",
        "    at async ENOSPC.access (node:internal/fs/promises:607:10)",
        "  code: 'EACCES',",
    ]
    lines = "\n".join(prefix + one for one in (line, *quiet, line))
    assert read("server", lines) == ["file_missing", "-", "-", "-", "-"]
    late = "[11/20/26 17:43:15] CRITICAL WORKER TIMEOUT (pid:2418)"
    box = "                             \u2502 OSError: [Errno 28] No space left on device \u2502"
    assert read("machine_learning", f"{prefix}{box}\n{prefix}{late}") == ["-", "ml_worker_crash"]


def test_level_log() -> None:
    """What the server logs without a warning is no trouble, whatever words a file's name brings in."""
    head = "[Nest] 7  - 11/20/2026, 5:22:51 PM "
    tidy = "LOG [Microservices:MediaService] Successfully encoded /data/Permission denied/No space left on device.mp4"
    away = "LOG [Api:MachineLearningRepository] Machine learning server became unhealthy (http://immich-ml:3003)."
    assert read("server", f"{head}    {tidy}\n{head}    {away}") == ["-", "ml_unreachable"]


def test_message_below_a_stack() -> None:
    """A stack may stand where the name of the class should be; the message comes after its last frame."""
    error = 'QueryFailedError: could not write to file "base/pgsql_tmp/pgsql_tmp384.2": No space left on device'
    head = f"[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [{error}"
    frames = ["    at async DataSource.query (/usr/src/app/node_modules/typeorm/DataSource.js:350:20)"]
    last = f"    at async AssetService.get (/usr/src/app/dist/asset.service.js:180:24)] {error}"
    assert read("server", last) == ["no_space"]
    assert read("server", "\n".join([head, *frames, last])) == ["no_space", "-", "-"]
    check = "    at async X.y (/usr/src/app/dist/x.js:180:24)] Unable to run version check: Error: connect ETIMEDOUT"
    assert read("server", check) == ["-"]


def test_json_lines() -> None:
    """Docker's and Immich's own JSON hold the same line."""
    inner = "Unable to send file: Error: EIO: i/o error, read"
    nest = f'{{"level":"error","pid":7,"timestamp":1795196063310,"message":"{inner}","context":"LoggingRepository"}}'
    docker = '{"log":"[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~a1b2c3d4] ' + inner + '\\n","stream":"stderr"}'
    both = '{"log":' + '"' + nest.replace('"', '\\"') + '\\n"' + ',"stream":"stdout","time":"2026-11-20T17:22:51Z"}'
    for line in (nest, docker, both):
        assert read("server", line) == ["io_error"]
    assert read("server", nest.replace('"error"', '"debug"')) == ["-"]


@pytest.mark.parametrize("path", sorted((LOGS / "blocks").iterdir()), ids=lambda path: path.stem)
def test_told_more_than_once(path: Path) -> None:
    """One event told in several lines counts once; two events count twice, however alike. By batch and line by line."""
    rows = [row.split("\t", 1) for row in path.read_text(encoding="utf-8").splitlines()]
    component, expected = path.name.split(".")[0], [row[0] for row in rows]
    assert read(component, "\n".join(row[1] for row in rows)) == expected
    one_by_one = Reader(CATALOGUE, component)
    found = [one_by_one.feed([row[1].encode()], None) for row in rows]
    assert [one[0][1] if one else NOTHING for one in found] == expected


def test_same_words_within_five_seconds() -> None:
    """With a clock, the same words count once in five seconds; of requests with other ids each counts."""
    line = "2026-11-20 18:22:06.932 UTC [23016] FATAL:  sorry, too many clients already"
    assert read("database", "\n".join([line] * 4), [0.0, 1.0, 4.9, 11.0]) == [
        "database_unreachable", "-", "-", "database_unreachable",
    ]  # fmt: skip
    often = read("database", "\n".join([line] * 10), [2.0 * number for number in range(10)])
    assert [number for number, found in enumerate(often) if found != NOTHING] == [0, 3, 6, 9]
    head = (
        "[Nest] 7  - 11/20/2026, 5:22:51 PM   ERROR [Api:X~%s] Unknown error: Error: connect ECONNREFUSED 10.0.0.3:5432"
    )
    lines = "\n".join(head % cid for cid in ("aaaaaaaa", "bbbbbbbb", "aaaaaaaa"))
    assert read("server", lines, [0.0, 0.1, 0.2]) == ["database_unreachable", "database_unreachable", "-"]


def test_signatures_of_a_component() -> None:
    """A component lists what it can count, and never the nothing."""
    assert "postgres_corruption" in CATALOGUE.signatures("database")
    assert "thumbnail_failed" not in CATALOGUE.signatures("redis")
    assert all(NOTHING not in CATALOGUE.signatures(component) for component in COMPONENTS)
    assert CATALOGUE.signatures("microservices") == CATALOGUE.signatures("server")


OWN = """
signatures:
- signature: my_disk
  components: [server]
  meaning: The array is degraded.
  patterns: ['array is degraded']
  matches: ['md0: array is degraded']
  misses: ['md0: array is fine']
"""


def test_own_catalogue(tmp_path: Path) -> None:
    """A user's entries are asked before ours."""
    path = tmp_path / "own.yml"
    path.write_text(OWN.replace("array is degraded", "no space left"), encoding="utf-8")
    catalogue = Catalogue.load(path)
    assert "my_disk" in catalogue.signatures("server")
    assert "my_disk" not in catalogue.signatures("redis")
    assert Reader(catalogue, "server").feed([b"system error: no space left on device"], None) == [(0, "my_disk")]


MISTAKES = {
    "no YAML": ("{", "is no YAML"),
    "no list": ("a: b", "needs a list `signatures:`"),
    "no mapping": ("signatures: [x]", "entry 1"),
    "unknown component": (OWN.replace("[server]", "[servre]"), "unknown component `servre`"),
    "unknown key": (OWN.replace("misses", "missess"), "unknown key `missess`"),
    "bad name": (OWN.replace("my_disk", "My Disk"), "`signature` must be"),
    "no expression": (OWN.replace("['array is degraded']", "['(']"), "is no regular expression"),
    "for ever": (OWN.replace("['array is degraded']", "['(?:a+)+degraded']"), "repeats something that repeats itself"),
    "slow": (OWN.replace("['array is degraded']", "['a.*a.*a.*a.*degraded$']"), "takes more than"),
    "every line": (OWN.replace("['array is degraded']", "['.*']"), "has no word"),
    "example fails": (OWN.replace("md0: array is degraded", "md0: array is gone"), "`md0: array is gone` in `matches`"),
    "example matches": (OWN.replace("md0: array is fine", "sd0: array is degraded"), "in `misses` does match"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    """Each mistake names the file, the entry and what to mend."""
    path = tmp_path / "own.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogueError) as raised:
        Catalogue.load(path)
    assert all(mistake.startswith(str(path)) for mistake in raised.value.mistakes)
    assert says in " ".join(raised.value.mistakes)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Two bad entries are told in one go; a file that cannot be read is told, too."""
    path = tmp_path / "own.yml"
    second = OWN.replace("signatures:\n", "").replace("my_disk", "Other")
    path.write_text(OWN.replace("[server]", "[x]") + second, encoding="utf-8")
    with pytest.raises(CatalogueError) as raised:
        Catalogue.load(path)
    assert len(raised.value.mistakes) == 2
    with pytest.raises(CatalogueError, match="cannot be read"):
        Catalogue.load(tmp_path / "absent.yml")


def source(*pieces: bytes) -> Callable[[int], bytes]:
    left = list(pieces)
    return lambda size: left.pop(0) if left else b""


def test_log_match_passes_lines_through() -> None:
    """Bytes that are no text, a line without end and one of a megabyte come out as they went in."""
    out = io.BytesIO()
    long = b"x" * 1_000_000
    pieces = [b"\xff\xfe bad\nNo space", b" left on device\n", *[long[:65536]] * 16, b"\r\n", b"end"]
    log_match.run("server", None, source(*pieces), out)
    lines = out.getvalue().split(b"\n")
    assert lines[0] == b"-\t\xff\xfe bad"
    assert lines[1] == b"no_space\tNo space left on device"
    assert lines[2] == b"-\t" + long[:65536] * 16 + b"\r"
    assert lines[3:] == [b"-\tend", b""]


def test_log_match_answers_at_once() -> None:
    """The command answers each line as it comes, and says what it does not know."""
    command = [sys.executable, "-m", "immich_vitals", "log-match", "--component"]
    with subprocess.Popen([*command, "redis"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"# Background saving error\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"redis_error\t# Background saving error\n"
        process.stdin.close()
        assert process.wait(30) == 0
    unknown = subprocess.run([*command, "rdis"], input=b"", capture_output=True, timeout=30, check=False)
    assert unknown.returncode == 2
    assert b"unknown component 'rdis'" in unknown.stderr


@pytest.mark.parametrize("component", COMPONENTS)
def test_hostile_lines(component: str) -> None:
    """Lines made to be slow are read in time that grows with their length, and crash nothing."""
    words = b" ".join(sorted(CATALOGUE.matcher(component).words))
    hostile = [
        (words * 50)[:LONGEST_LINE], b"[" * LONGEST_LINE, b"{" * LONGEST_LINE, b'{"log":"' + b"\\" * LONGEST_LINE,
        b"Error: " * 2300, b"a | " * 4000, b"2026-11-20T17:22:51Z" * 800, b"\x00" * LONGEST_LINE,
        b"failed could not certificate error" * 480, b'{"message":"' + b"\\u0041" * 2700, b"\x1b[31m" * 3000, b"",
    ]  # fmt: skip
    began = time.process_time()
    Reader(CATALOGUE, component).feed([line[:LONGEST_LINE] for line in hostile], None)
    assert time.process_time() - began < 5.0
