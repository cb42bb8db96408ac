"""Which known trouble a log line tells of: the catalogue of signatures and the reader of one log.

The catalogue is data, `signatures.yml` beside this file. Every pattern has words that a matching line must hold; a
batch of lines is searched for these words first, as one piece of text, so that a line that says nothing costs next to
nothing. Only lines with such a word are looked at one by one.
"""

import re
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import NamedTuple

import yaml

OURS = Path(__file__).with_name("signatures.yml")
COMPONENTS = ("server", "microservices", "machine_learning", "database", "redis", "proxy")
NOTHING = "-"
"""The signature of entries that keep a line from counting at all."""

LONGEST_LINE = 16384
"""Bytes of one line that a reader looks at."""
LONGEST_TEXT = 4096
"""Bytes of what is left after the prefix that patterns see: bounds the work of a pattern on a hostile line."""
LONGEST_CATALOGUE = 1 << 20
MOST_OWN = 50
SLOW = 0.05
"""Seconds that one of the user's patterns may take on a hostile line of full length."""

SAME_MOMENT = 5.0
"""Seconds within which the same words are the same event."""
BLOCK = 150
"""Lines that one error with its stack and its repetition may take."""
FIELDS = 40
"""Lines below an error that may hold fields or output belonging to it."""
DETAILS = 3
"""Lines below an error that may hold its DETAIL or HINT."""
REMEMBERED = 256

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class CatalogueError(Exception):
    """A catalogue cannot be used; `mistakes` says all that is wrong with it, one sentence each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of line. `patterns` are searched in the text without its prefix; `unless` keeps a line from matching."""

    signature: str
    components: tuple[str, ...]
    meaning: str
    patterns: tuple[str, ...]
    unless: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()
    detail: bool = False


class Catalogue:
    """All entries, in order: the first that matches a line gives its signature."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._matchers: dict[str, _Matcher] = {}

    @classmethod
    def load(cls, own: Path | None = None) -> "Catalogue":
        """Our catalogue, and before it the user's. Raises `CatalogueError` with every mistake in the user's."""
        entries = _ours()
        if own is None:
            return cls(entries)
        return cls((*_own(own), *entries))

    def signatures(self, component: str) -> tuple[str, ...]:
        """Every signature that this component can count, sorted."""
        return tuple(
            sorted(
                {e.signature for e in self.entries if component in e.components and e.signature != NOTHING},
            )
        )

    def matcher(self, component: str) -> "_Matcher":
        """The patterns of one component, made ready once."""
        if component not in self._matchers:
            self._matchers[component] = _Matcher([e for e in self.entries if component in e.components])
        return self._matchers[component]


# Reading the files.


@cache
def _ours() -> tuple[Entry, ...]:
    entries, mistakes = _entries(OURS.read_bytes(), OURS.name)
    if mistakes:
        raise CatalogueError(mistakes)
    return entries


def _own(path: Path) -> tuple[Entry, ...]:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_CATALOGUE + 1)
    except OSError as error:
        why = f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        raise CatalogueError([why]) from error
    if len(text) > LONGEST_CATALOGUE:
        raise CatalogueError([f"{path}: larger than 1 MiB; a catalogue is a short list of signatures"])
    entries, mistakes = _entries(text, str(path))
    if len(entries) > MOST_OWN:
        mistakes.append(f"{path}: {len(entries)} entries; at most {MOST_OWN} can be used")
    elif not mistakes:
        for number, entry in enumerate(entries, 1):
            mistakes += [f"{path}: entry {number} ({entry.signature}): {what}" for what in _wrong_with(entry)]
    if mistakes:
        raise CatalogueError(mistakes)
    return entries


def _entries(text: bytes, name: str) -> tuple[tuple[Entry, ...], list[str]]:
    try:
        loaded = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return (), [f"{name}: is no YAML: {' '.join(str(error).split())}"]
    listed = loaded.get("signatures") if isinstance(loaded, dict) else None
    if not isinstance(listed, list):
        return (), [f"{name}: needs a list `signatures:` at the top; see signatures.yml of immich-vitals for the form"]
    entries, mistakes = [], []
    for number, item in enumerate(listed, 1):
        entry, wrong = _entry(item)
        title = item.get("signature") if isinstance(item, dict) else None
        mistakes += [f"{name}: entry {number} ({title or 'without signature'}): {what}" for what in wrong]
        if entry is not None:
            entries.append(entry)
    return tuple(entries), mistakes


_KEYS = {"signature", "components", "meaning", "patterns", "unless", "matches", "misses", "detail"}


def _entry(item: object) -> tuple[Entry | None, list[str]]:
    if not isinstance(item, dict):
        return None, ["is no mapping; it needs signature, components, meaning, patterns, matches"]
    wrong = [f"unknown key `{key}`; known are {', '.join(sorted(_KEYS))}" for key in item if key not in _KEYS]
    signature = item.get("signature")
    if not isinstance(signature, str) or not (signature == NOTHING or _NAME.fullmatch(signature)):
        wrong.append("`signature` must be a name of small letters, digits and _, or `-` for lines that mean nothing")
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("components", "patterns", "unless", "matches", "misses"):
        value = item.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            wrong.append(f"`{key}` must be a list of texts; quote those that hold : or #")
            value = []
        lists[key] = tuple(value)
    known = ", ".join(COMPONENTS)
    wrong += [f"unknown component `{one}`; known are {known}" for one in lists["components"] if one not in COMPONENTS]
    if not lists["components"]:
        wrong.append(f"`components` is missing: one or more of {known}")
    if not lists["patterns"]:
        wrong.append("`patterns` is missing: regular expressions as Python knows them")
    if not lists["matches"]:
        wrong.append("`matches` is missing: at least one example line that must match")
    meaning = item.get("meaning")
    if not isinstance(meaning, str) or not meaning.strip():
        wrong.append("`meaning` is missing: a sentence on what such a line says")
    for pattern in (*lists["patterns"], *lists["unless"]):
        try:
            re.compile(pattern.encode())
        except (re.error, RecursionError, OverflowError) as error:
            wrong.append(f"pattern `{_short(pattern)}` is no regular expression: {error}")
    if wrong:
        return None, wrong
    components = lists["components"]
    if "server" in components and "microservices" not in components:
        components = (*components, "microservices")  # the same program, before v1.106
    return Entry(
        signature=str(signature),
        components=components,
        meaning=" ".join(str(meaning).split()),
        patterns=lists["patterns"],
        unless=lists["unless"],
        matches=lists["matches"],
        misses=lists["misses"],
        detail=item.get("detail") is True,
    ), []


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# Checking the user's entries.


def _wrong_with(entry: Entry) -> Iterator[str]:
    """What is wrong with a well-formed entry: a pattern that is dangerous or would look at every line, an example
    that fails."""
    dangerous = False
    for pattern in (*entry.patterns, *entry.unless):
        if why := _dangerous(pattern):
            dangerous = True
            yield f"pattern `{_short(pattern)}` {why}"
    if dangerous:
        return
    for pattern in entry.patterns:
        if not _words(pattern):
            yield f"pattern `{_short(pattern)}` has no word of three letters that a line must hold; add one"
            dangerous = True
    if dangerous:
        return
    matcher = _Matcher([entry])
    for example in entry.matches:
        if matcher.match(body(example.encode()[:LONGEST_LINE])) is None:
            yield f"example `{_short(example)}` in `matches` does not match; mend the pattern or the example"
    for example in entry.misses:
        if matcher.match(body(example.encode()[:LONGEST_LINE])) is not None:
            yield f"example `{_short(example)}` in `misses` does match; mend the pattern or the example"


def _dangerous(pattern: str) -> str | None:
    """Why a pattern could take too long on a hostile line, if it could."""
    tree = _parser.parse(pattern.encode())
    if _nested(tree, inside=False):
        return "repeats something that repeats itself, such as (a+)+; that can take for ever on some lines"
    compiled = re.compile(pattern.encode())
    hostile = [b"".join(parts) for parts in _pumps(tree)]
    length = 16
    while length < LONGEST_TEXT:
        length *= 2
        for pump in hostile:
            line = (pump * (length // len(pump) + 1))[:length]
            began = time.perf_counter()
            compiled.search(line + b"\x00")
            took = time.perf_counter() - began
            # Twice as long a line may take eight times as long; what is slow here will be worse at full length.
            if took > SLOW:
                return f"takes more than {SLOW:g} s on a hostile line; use fewer of .* and .+, or [^x]{{0,80}} for them"
    return None


_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT)


def _nested(tree: Iterable[tuple[object, object]], *, inside: bool) -> bool:
    for code, value in tree:
        if code in _REPEATS:
            most: int = value[1]  # type: ignore[index]
            repeated: Iterable[tuple[object, object]] = value[2]  # type: ignore[index]
            if (most > 1 and inside) or _nested(repeated, inside=inside or most > 16):
                return True
        else:
            for inner in _inner(code, value):
                if _nested(inner, inside=inside):
                    return True
    return False


def _inner(code: object, value: object) -> Iterable[Iterable[tuple[object, object]]]:
    """The parts of a node of the parsed pattern that are patterns themselves."""
    if code is op.BRANCH:
        return value[1]  # type: ignore[index,no-any-return]
    if code is op.SUBPATTERN:
        return [value[-1]]  # type: ignore[index]
    if code in (op.ASSERT, op.ASSERT_NOT):
        return [value[1]]  # type: ignore[index]
    if code is getattr(op, "ATOMIC_GROUP", None):
        return [value]  # type: ignore[list-item]
    return []


def _pumps(tree: Iterable[tuple[object, object]]) -> Iterator[list[bytes]]:
    """Texts that, repeated, make a backtracking search work hard: the pattern's own characters."""
    samples = list(_samples(tree))
    yield samples or [b"a"]
    for sample in sorted(set(samples)):
        yield [sample]
    for before in range(len(samples) - 1):
        yield samples[: before + 1]
    yield [b"a"]
    yield [b" "]


def _samples(tree: Iterable[tuple[object, object]]) -> Iterator[bytes]:
    for code, value in tree:
        if code is op.LITERAL:
            yield bytes([value]) if isinstance(value, int) and value < 256 else b"?"
        elif code in _REPEATS:
            yield from _samples(value[2])  # type: ignore[index]
        elif code is op.IN:
            yield _one_of(value)  # type: ignore[arg-type]
        else:
            for inner in _inner(code, value):
                yield from _samples(inner)


def _one_of(items: Sequence[tuple[object, object]]) -> bytes:
    kind = {op.CATEGORY_DIGIT: b"1", op.CATEGORY_SPACE: b" ", op.CATEGORY_WORD: b"a", op.CATEGORY_NOT_SPACE: b"a"}
    for code, value in items:
        if code is op.NEGATE:
            return b"~"
        if code is op.LITERAL and isinstance(value, int):
            return bytes([value])
        if code is op.RANGE:
            return bytes([value[0]])  # type: ignore[index]
        if code is op.CATEGORY:
            return kind.get(value, b"-")
    return b"~"


# Words that a line must hold for a pattern to match it.

SHORTEST_WORD = 3


def _words(pattern: str) -> frozenset[bytes]:
    """Words in small letters, one of which is in every line that matches; empty when there is none of use."""
    found = _required(_parser.parse(pattern.encode()))
    return found if found and all(len(word) >= SHORTEST_WORD for word in found) else frozenset()


def _required(tree: Iterable[tuple[object, object]]) -> frozenset[bytes]:
    """The best choice of words over a sequence of nodes."""
    best: frozenset[bytes] = frozenset()
    run = bytearray()

    def offer(choice: frozenset[bytes]) -> None:
        nonlocal best
        if _worth(choice) > _worth(best):
            best = choice

    for code, value in tree:
        if code is op.LITERAL and isinstance(value, int) and value < 128:
            run.append(value)
            continue
        if code is op.IN and (letter := _same_letter(value)):  # type: ignore[arg-type]
            run += letter
            continue
        if run:
            offer(frozenset({bytes(run).lower()}))
            run.clear()
        if code in _REPEATS:
            if value[0] > 0:  # type: ignore[index]
                offer(_required(value[2]))  # type: ignore[index]
        elif code is op.BRANCH:
            branches = [_required(inner) for inner in value[1]]  # type: ignore[index]
            if all(branches):
                offer(frozenset().union(*branches))
        elif code is op.SUBPATTERN:
            offer(_required(value[-1]))  # type: ignore[index]
    if run:
        offer(frozenset({bytes(run).lower()}))
    return best


def _same_letter(items: Sequence[tuple[object, object]]) -> bytes:
    """The letter that `[Aa]` stands for, in either size."""
    letters = {bytes([value]).lower() if isinstance(value, int) else b"" for _, value in items}
    if len(letters) == 1 and all(code is op.LITERAL for code, _ in items):
        return letters.pop()
    return b""


def _worth(words: frozenset[bytes]) -> float:
    return min(map(len, words)) - 0.5 * (len(words) - 1) if words else -1.0


# Matching one text.


class Found(NamedTuple):
    """What a text was found to say. `what` tells it from other events of the same signature, if the pattern says."""

    signature: str
    detail: bool
    end: int
    what: bytes | None


class _Pattern:
    """One pattern of an entry, compiled at its first use."""

    __slots__ = ("_compiled", "_text", "entry", "rank", "words")

    def __init__(self, rank: int, text: str, entry: Entry) -> None:
        self.rank = rank
        self.entry = entry
        self.words = _words(text)
        self._text = text
        self._compiled: re.Pattern[bytes] | None = None

    def search(self, text: bytes) -> re.Match[bytes] | None:
        if self._compiled is None:
            self._compiled = re.compile(self._text.encode())
        return self._compiled.search(text)


class _Matcher:
    """The patterns of one component, found by the words they need."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        patterns = [
            _Pattern(rank, text, entry)
            for rank, (entry, text) in enumerate((entry, text) for entry in entries for text in entry.patterns)
        ]
        self._always = [pattern for pattern in patterns if not pattern.words]
        chosen = _fewest([pattern.words for pattern in patterns if pattern.words])
        self._by_word: dict[bytes, list[_Pattern]] = {}
        for pattern in patterns:
            for word in pattern.words:
                self._by_word.setdefault(chosen[word], []).append(pattern)
        self.words = tuple(self._by_word)
        self._unless = {id(entry): [re.compile(one.encode()) for one in entry.unless] for entry in entries}
        self.every_line = bool(self._always)

    def match(self, text: bytes) -> Found | None:
        """The first pattern, in the order of the catalogue, that the text matches; None also for `-`."""
        lower = text.lower()
        candidates = {pattern.rank: pattern for pattern in self._always}
        for word in self.words:
            if word in lower:
                for pattern in self._by_word[word]:
                    candidates[pattern.rank] = pattern
        for rank in sorted(candidates):
            pattern = candidates[rank]
            match = pattern.search(text)
            if match is None or any(unless.search(text) for unless in self._unless[id(pattern.entry)]):
                continue
            if pattern.entry.signature == NOTHING:
                return None
            what = match.groupdict().get("what")
            return Found(pattern.entry.signature, pattern.entry.detail, match.end(), what)
        return None


def _fewest(needs: Sequence[frozenset[bytes]]) -> dict[bytes, bytes]:
    """For every word the shortest of all words that is a part of it, so that fewer have to be searched for."""
    words = sorted({word for need in needs for word in need}, key=lambda word: (len(word), word))
    chosen: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    for word in words:
        part = next((short for short in kept if short in word), word)
        if part is word:
            kept.append(word)
        chosen[word] = part
    return chosen


# One line without what others wrote before it.

_ANSI = re.compile(rb"(?:\x1b|#033|\\u001b|\\x1b|\^\[)?\[(?:\d{1,3}(?:;\d{1,3})*)?m")
_PREFIX = re.compile(
    rb"(?:"
    rb"\s{0,4}[\w.\-/]{1,80}\s{0,60}\|(?: |$)"  # docker compose
    rb"|\[[\w.\-/ ]{1,80}\]\s{0,40}\| ?"  # docker compose v1
    rb"|\[pod/[^\]\s]{1,200}\] "  # kubectl logs --prefix
    rb"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z| ?[+-]\d\d:?\d\d)?(?=[^\d,.:]|$)[ \t]?"
    rb"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d [\w.\-]{1,80} "
    rb"[\w.\-/@]{1,80}(?:\[\d+\])?: "
    rb"|[\w.\-]{1,80} (?:docker|podman|conmon|immich[\w.\-]*|postgres[\w.\-]*|redis[\w.\-]*|nginx)(?:\[\d+\])?: "
    rb"|(?:stdout|stderr)(?: [FP])?[ \t]"
    rb"|[\w\-]{1,40}\[[\w\-]{1,40}\] \w{1,10} \[\w{1,10}\] ?"  # a platform's app[id] region [level]
    rb")"
)
_NEST = re.compile(
    rb"\s*(?:\[?Nest\] \d+ {1,3}- )?(?P<date>[^\[\]{}'\"]{6,40}?)\s+(?P<level>VERBOSE|DEBUG|LOG|WARN|ERROR|FATAL)\s+"
    rb"\[(?:(?:Api|Microservices|Maintenance|ImmichAdmin):)?(?P<context>\{.{0,2000}?\}\]|.*?\](?= |$)|.*$) ?"
)
_JSON_LOG = re.compile(rb'^\s*\{"log":"(?P<text>.*?)(?:\\n)?"(?:,"stream":|,"time":|,"attrs":|\}|$)')
_ESCAPE = re.compile(rb'\\(["\\/nrt]|u00[0-7][0-9a-fA-F])')
_ESCAPED = {b'"': b'"', b"\\": b"\\", b"/": b"/", b"n": b"\n", b"r": b"", b"t": b"\t"}
_JSON_LEVEL = re.compile(rb'"level": ?"(?P<level>\w+)"')
_JSON_TEXT = re.compile(rb'"message": ?"(?P<text>(?:[^"\\]|\\.)*)')


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return _ESCAPED.get(code) or (bytes([int(code[1:], 16)]) if code[:1] == b"u" else b"")


def body(line: bytes) -> bytes:
    """The line as its program wrote it: without colours and without what compose, journald, syslog or a shipper put
    before it."""
    if (wrapped := _JSON_LOG.match(line)) is not None:
        line = _ESCAPE.sub(_unescape, wrapped["text"])
    if b"m" in line and b"[" in line:
        line = _ANSI.sub(b"", line)
    position = 0
    for _ in range(6):
        prefix = _PREFIX.match(line, position)
        if prefix is None or prefix.end() == position:
            break
        position = prefix.end()
    return line[position : position + LONGEST_TEXT].rstrip()


# What kind of line it is.

_INTRO = re.compile(
    rb"(?:Unknown error|Unable to send file|Error uploading file|[Uu]nable to run job handler \([^)]{0,80}\)|Unable to run job handler"
    rb"|\w+ worker error|Database [Bb]ackup [Ff]ailure|(?:Kysely m|M)igrations failed(?: with error)?"
    rb"|Migration \"[^\"]{0,120}\" failed, error|\[?cause\]?|error|message|Error occurred during transcoding"
    rb"|(?:driver|\w*)?(?:[eE]rror|Exception)(?: \[\w+\])?):? ?['\"`]?"
)
_STACK = re.compile(rb", stack: .*", re.DOTALL)
_BARE = re.compile(rb"(?:\[?cause\]?: )?(?:[A-Z]\w*)?(?:Error|Exception)(?: \[\w+\])?: |\w+ worker error: ")
_AGAIN = re.compile(rb"Unknown error: |(?:[A-Z]\w*)?Error: |Unable to send file: |(?:[A-Z]\w*)?Error$")
_NEVER = re.compile(
    rb"\s*(?:at (?:async |new |Object\.|process\.|file:|[\w$.#<>\[\] ]+\()|\xe2\x94\x82|\xe2\x95[\xad\xb0]"
    rb"|throw |\^|Object:|(?:detail|hint|where|code|errno|syscall|path|dest|address|port|routine|file|line|query|sql|stack"
    rb"|internalQuery|parameters|params|args|command|name|severity|severity_local|hostname|cmd|killed|signal): "
    rb"|STATEMENT: |\xe2\x9d\xb1|File \"/|Node\.js v\d)"
)
_STATEMENT = re.compile(rb"(?:STATEMENT|QUERY):  ")
_RICH = re.compile(rb"\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\]")
_CID = re.compile(rb"~([a-z0-9]{8})\]$")
_JOB = re.compile(rb'"id": ?"([0-9a-f-]{36})"')
_DETAIL = re.compile(rb"(?:DETAIL|HINT|CONTEXT|QUERY|LOCATION):  ?")
_MARKS = (b"starting microservices worker", b"starting api worker", b"initializing immich", b"starting immich ")


@dataclass(slots=True)
class _Event:
    signature: str
    core: bytes
    what: bytes | None
    identity: bytes | None
    line: int
    moment: float | None


@dataclass(slots=True)
class _Line:
    """A line taken apart. `head`: it begins a record; `again`: it may tell an error a second time."""

    text: bytes
    head: bool = False
    again: bool = False
    detail: bool = False
    identity: bytes | None = None
    quiet: bool = False
    context: bytes = b""


def core(text: bytes) -> bytes:
    """The words that are the same each time one error is told: without the introductions that programs put before."""
    text = _STACK.sub(b"", text).strip()
    for _ in range(6):
        shorter = _INTRO.sub(b"", text, count=1) if _INTRO.match(text) else text
        if shorter == text:
            break
        text = shorter.strip()
    return text.strip(b"'\"`,. \t")[:300]


class Reader:
    """Reads one log, and keeps what it needs to know which lines tell of an event already counted."""

    def __init__(self, catalogue: Catalogue, component: str) -> None:
        self._matcher = catalogue.matcher(component)
        self._component = component
        self._search = (*self._matcher.words, *(_MARKS if component in ("server", "microservices") else ()))
        self._number = 0
        self._mark = 0
        self._events: deque[_Event] = deque(maxlen=8)
        self._identities: dict[tuple[str, bytes], int] = {}
        self._recent: dict[tuple[str, bytes], tuple[float, bytes | None]] = {}
        self._record: deque[bytes] = deque(maxlen=12)
        self._record_before: tuple[bytes, ...] = ()
        self._timeouts: dict[bytes, int] = {}

    def feed(self, lines: Sequence[bytes], moments: Sequence[float] | None) -> list[tuple[int, str]]:
        """The new events in these lines, as (index, signature).

        Lines have no line end and at most LONGEST_LINE bytes; `moments` are seconds since the epoch, one for each
        line, None when they are not known.
        """
        found: list[tuple[int, str]] = []
        for index in self._candidates(lines):
            moment = moments[index] if moments is not None else None
            signature = self._look(lines, index, moment)
            if signature is not None:
                found.append((index, signature))
        self._number += len(lines)
        if self._component == "machine_learning":
            self._record_before = (*self._record_before, *lines[-12:])[-12:]
        return found

    def _candidates(self, lines: Sequence[bytes]) -> Sequence[int]:
        """Indexes of the lines that hold a word of some pattern."""
        if not lines:
            return ()
        if self._matcher.every_line:
            return range(len(lines))
        text = b"\n".join(lines).lower()
        places: set[int] = set()
        for word in self._search:
            place = text.find(word)
            while place >= 0:
                places.add(text.rfind(b"\n", 0, place) + 1)
                following = text.find(b"\n", place)
                place = text.find(word, following) if following >= 0 else -1
        if not places:
            return ()
        if len(lines) == 1:
            return (0,)
        starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
        return sorted({bisect_right(starts, place) - 1 for place in places})

    def _look(self, lines: Sequence[bytes], index: int, moment: float | None) -> str | None:
        number = self._number + index
        raw = lines[index][:LONGEST_LINE]
        text = body(raw)
        if self._component in ("server", "microservices"):
            start = text.lower()
            if any(start.startswith(mark) for mark in _MARKS):
                self._mark = number
                return None
        if _NEVER.match(text) or _STATEMENT.search(text):
            return None
        line = self._taken_apart(text)
        if line.quiet:
            return None
        search, begin = line.text, 0
        if self._component == "machine_learning" and not _RICH.match(text) and text[:8].isspace():
            before = self._wrapped(lines, index)
            search, begin = before + text.strip(), len(before)
        if self._component == "machine_learning" and self._recycled(search, number):
            return None
        match = self._matcher.match(search)
        if match is None and _BARE.match(line.context):
            # The error stands where the name of the class should be.
            match, line.text, line.again = self._matcher.match(line.context), line.context, True
        if match is None or match.end <= begin:
            return None
        return self._counted(match, line, number, moment)

    def _taken_apart(self, text: bytes) -> _Line:
        if (nest := _NEST.match(text)) is not None:
            message = text[nest.end() :]
            context = nest["context"]
            cid = _CID.search(context)
            job = _JOB.search(context)
            return _Line(
                text=message if message else text,
                head=True,
                again=_AGAIN.match(message) is not None,
                identity=cid[1] if cid else job[1] if job else None,
                quiet=nest["level"] in (b"DEBUG", b"VERBOSE"),
                context=_CID.sub(b"", context).rstrip(b"]"),
            )
        if text.startswith(b"{") and (said := _JSON_TEXT.search(text)) is not None:
            level = _JSON_LEVEL.search(text)
            message = _ESCAPE.sub(_unescape, said["text"])
            job = _JOB.search(text.replace(b"\\", b""))
            return _Line(
                text=text if self._component == "proxy" else message.split(b"\n", 1)[0],
                head=True,
                again=_AGAIN.match(message) is not None,
                identity=job[1] if job else None,
                quiet=level is not None and level["level"].lower() in (b"debug", b"verbose"),
            )
        stripped = text.lstrip()
        bare = _BARE.match(stripped) is not None
        return _Line(
            text=stripped,
            again=bare,
            detail=self._component == "database" and _DETAIL.search(text[:120]) is not None,
        )

    def _wrapped(self, lines: Sequence[bytes], index: int) -> bytes:
        """The lines before this one that are one text with it, joined."""
        parts: list[bytes] = []
        earlier = [*self._record_before, *lines[max(0, index - 12) : index]]
        for raw in reversed(earlier[-12:]):
            text = body(raw[:LONGEST_LINE])
            if not text or b"\xe2\x94\x82" in text or b"\xe2\x95" in text:
                break
            parts.append(text.strip())
            if _RICH.match(text) or not text[:8].isspace():
                break
        return b" ".join(reversed(parts)) + b" " if parts else b""

    def _recycled(self, text: bytes, number: int) -> bool:
        """A kill that gunicorn did itself, after a time-out that was counted."""
        if (late := re.search(rb"WORKER TIMEOUT \(pid:\s?(\d+)\)", text)) is not None:
            self._timeouts = {late[1]: number, **dict(list(self._timeouts.items())[:15])}
            return False
        if b"SIGKILL" in text and (killed := re.search(rb"Worker \(pid:\s?(\d+)\) was sent SIGKILL", text)) is not None:
            at = self._timeouts.pop(killed[1], None)
            return at is not None and number - at <= FIELDS
        return False

    def _counted(self, found: Found, line: _Line, number: int, moment: float | None) -> str | None:
        """The signature if this is a new event, and None if it is one that was counted."""
        words = found.what if found.what is not None else core(line.text)
        event = _Event(found.signature, words, found.what, line.identity, number, moment)
        again = self._is_again(event, found, line)
        if moment is not None:
            self._recent[(event.signature, words)] = (moment, line.identity)
            if len(self._recent) > REMEMBERED:
                del self._recent[next(iter(self._recent))]
        if line.identity is not None:
            self._identities[(event.signature, line.identity)] = number
            if len(self._identities) > REMEMBERED:
                del self._identities[next(iter(self._identities))]
        if again:
            return None
        self._events.append(event)
        return event.signature

    def _is_again(self, event: _Event, found: Found, line: _Line) -> bool:
        if event.identity is not None and not event.identity.count(b"-"):
            # The id of a request. That of a job may come back when the job is run again.
            seen = self._identities.get((event.signature, event.identity))
            if seen is not None and event.line - seen <= 50 * BLOCK:
                return True
        if event.moment is not None:
            known = self._recent.get((event.signature, event.core))
            if (
                known is not None
                and abs(event.moment - known[0]) <= SAME_MOMENT
                and (known[1] is None or event.identity is None or known[1] == event.identity)
            ):
                return True
        last = self._events[-1] if self._events else None
        if last is None or last.signature != event.signature or last.line < self._mark:
            return False
        apart = event.line - last.line
        if event.moment is not None and last.moment is not None and abs(event.moment - last.moment) > SAME_MOMENT:
            return False
        if (found.detail or line.detail) and apart <= DETAILS:
            return True
        same = last.core == event.core or (
            min(len(last.core), len(event.core)) >= 20
            and (last.core.startswith(event.core) or event.core.startswith(last.core))
        )
        if not same or apart > BLOCK:
            return False
        if line.head and not line.again:
            return False
        return last.identity is None or event.identity is None or last.identity == event.identity
