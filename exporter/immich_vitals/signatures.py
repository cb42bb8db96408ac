"""Which known trouble a log line tells of: the catalogue of signatures and the reader of one log.

The catalogue is data, `signatures.yml` beside this file. Every pattern has words that a matching line must hold; a
batch of lines is searched for these words first, as one piece of text, so that a line that says nothing costs next to
nothing. Only lines with such a word are looked at one by one.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from immich_vitals.log_text import (
    BARE,
    BOX,
    COLOUR,
    FRAME,
    LAST_FRAME,
    NEVER,
    RICH,
    STACK,
    STATEMENT,
    Line,
    body,
    core,
    taken_apart,
)
from immich_vitals.patterns import SMALL, danger, needs, words_of

OURS = Path(__file__).with_name("signatures.yml")
COMPONENTS = ("server", "microservices", "machine_learning", "database", "redis", "proxy")
NOTHING = "-"
"""The signature of entries that keep a line from counting at all."""

LONGEST_LINE = 16384
"""Bytes of one line that a reader looks at."""
LONGEST_CATALOGUE = 1 << 20
MOST_OWN = 50

SAME_MOMENT = 5.0
"""Seconds within which the same words are the same event."""
BLOCK = 150
"""Lines that one error with its stack and its repetition may take."""
FIELDS = 40
"""Lines below an error that may hold fields or output belonging to it."""
CHAIN = 500
"""Lines that a chain of exceptions may take."""
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
    together: bool = False
    ours: bool = False


class Catalogue:
    """All entries, in order: the first that matches a line gives its signature."""

    def __init__(self, entries: Sequence[Entry], healthy: Mapping[str, Sequence[str]]) -> None:
        self.entries = tuple(entries)
        self.healthy = healthy
        self._matchers: dict[str, _Matcher] = {}

    @classmethod
    def load(cls, own: Path | None = None) -> "Catalogue":
        """Our catalogue, and before it the user's. Raises `CatalogueError` with every mistake in the user's."""
        entries, healthy = _ours()
        return cls(entries if own is None else (*_own(own), *entries), healthy)

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
            self._matchers[component] = _Matcher(
                [entry for entry in self.entries if component in entry.components],
                frozenset(words_of("\n".join(self.healthy.get(component, ())).encode())),
            )
        return self._matchers[component]


@cache
def _ours() -> tuple[tuple[Entry, ...], dict[str, list[str]]]:
    text = OURS.read_bytes()
    entries, mistakes = _entries(text, OURS.name)
    if mistakes:
        raise CatalogueError(mistakes)
    healthy: dict[str, list[str]] = _loaded(text)["healthy"]
    healthy["microservices"] = healthy["server"]
    return tuple(replace(entry, ours=True) for entry in entries), healthy


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


def _loaded(text: bytes) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _entries(text: bytes, name: str) -> tuple[tuple[Entry, ...], list[str]]:
    try:
        loaded = _loaded(text)
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


_KEYS = {"signature", "components", "meaning", "patterns", "unless", "matches", "misses", "detail", "together"}


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
        together=item.get("together") is True,
    ), []


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong_with(entry: Entry) -> Iterator[str]:
    """What is wrong with a well-formed entry: a pattern that is dangerous or would look at every line, an example
    that fails."""
    dangerous = False
    for pattern in (*entry.patterns, *entry.unless):
        if why := danger(pattern):
            dangerous = True
            yield f"pattern `{_short(pattern)}` {why}"
    if dangerous:
        return
    for pattern in entry.patterns:
        if not any(needs(pattern, frozenset(), edges=False)):
            yield f"pattern `{_short(pattern)}` has no word of three letters that a line must hold; add one"
            dangerous = True
    if dangerous:
        return
    for example in entry.matches:
        if not _found(entry, example):
            yield f"example `{_short(example)}` in `matches` does not match; mend the pattern or the example"
    for example in entry.misses:
        if _found(entry, example):
            yield f"example `{_short(example)}` in `misses` does match; mend the pattern or the example"


def _found(entry: Entry, example: str) -> bool:
    """Whether a log with only these lines would be found to hold the entry, `-` being an entry like others."""
    named = replace(entry, signature="found")
    lines = [line[:LONGEST_LINE] for line in example.encode().split(b"\n")]
    return bool(Reader(Catalogue([named], {}), entry.components[0]).feed(lines, None))


class Found(NamedTuple):
    """What a text was found to say. `what` tells it from other events of the same signature, if the pattern says."""

    signature: str
    detail: bool
    together: bool
    end: int
    what: bytes | None


class _Pattern:
    """One pattern of an entry, compiled at its first use."""

    __slots__ = ("_compiled", "_text", "entry", "rank")

    def __init__(self, rank: int, text: str, entry: Entry) -> None:
        self.rank = rank
        self.entry = entry
        self._text = text
        self._compiled: re.Pattern[bytes] | None = None

    def search(self, text: bytes) -> re.Match[bytes] | None:
        if self._compiled is None:
            self._compiled = re.compile(self._text.encode())
        return self._compiled.search(text)


class _Matcher:
    """The patterns of one component, found by the words they need."""

    def __init__(self, entries: Sequence[Entry], common: Set[bytes] = frozenset()) -> None:
        self._by_word: dict[bytes, list[_Pattern]] = {}
        self._by_part: dict[bytes, list[_Pattern]] = {}
        for rank, (entry, text) in enumerate((one, pattern) for one in entries for pattern in one.patterns):
            pattern = _Pattern(rank, text, entry)
            words, parts = needs(text, common, edges=entry.ours)
            for word in words:
                self._by_word.setdefault(word, []).append(pattern)
            for part in parts:
                self._by_part.setdefault(part, []).append(pattern)
        self.words = frozenset(self._by_word)
        self.parts = tuple(self._by_part)
        self._unless = {id(entry): [re.compile(one.encode()) for one in entry.unless] for entry in entries}

    def match(self, text: bytes) -> Found | None:
        """The first pattern, in the order of the catalogue, that the text matches; None also for `-`."""
        small = text.translate(SMALL)
        candidates = {
            pattern.rank: pattern for word in self.words.intersection(small.split()) for pattern in self._by_word[word]
        }
        if self.parts:
            lower = text.lower()
            candidates |= {
                pattern.rank: pattern for part in self.parts if part in lower for pattern in self._by_part[part]
            }
        for rank in sorted(candidates):
            pattern = candidates[rank]
            match = pattern.search(text)
            if match is None or any(unless.search(text) for unless in self._unless[id(pattern.entry)]):
                continue
            if pattern.entry.signature == NOTHING:
                return None
            entry = pattern.entry
            return Found(entry.signature, entry.detail, entry.together, match.end(), match.groupdict().get("what"))
        return None


@dataclass(slots=True)
class _Event:
    signature: str
    core: bytes
    what: bytes | None
    identity: bytes | None
    line: int
    moment: float | None
    head: bool
    bodiless: bool
    when: bytes | None


_MARKS = (b"starting microservices worker", b"starting api worker", b"initializing immich", b"starting immich ")
_CAUSE = re.compile(rb"[Ee]rror: |\bE[A-Z]{3,}\b")
_CHAIN = re.compile(rb"^\s*(?:The above exception was|During handling of the above)")
_CHAIN_WORDS = frozenset({b"above"})
_MARK_WORDS = frozenset({b"starting", b"initializing"})


def _line_starts(text: bytes, part: bytes) -> Iterator[int]:
    """Where the lines begin that hold a part."""
    place = text.find(part)
    while place >= 0:
        yield text.rfind(b"\n", 0, place) + 1
        following = text.find(b"\n", place)
        place = text.find(part, following) if following >= 0 else -1


class Reader:
    """Reads one log, and keeps what it needs to know which lines tell of an event already counted."""

    def __init__(self, catalogue: Catalogue, component: str) -> None:
        self._matcher = catalogue.matcher(component)
        self._component = component
        self._words = self._matcher.words
        if component in ("server", "microservices"):
            self._words |= _MARK_WORDS
        elif component == "machine_learning":
            self._words |= _CHAIN_WORDS
        self._number = 0
        self._mark = 0
        self._chain = 0
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
        text = b"\n".join(lines)
        if b"m" in text and (b"\x1b[" in text or b"[39m" in text or b"[0m" in text):
            text = COLOUR.sub(b" ", text)
        small = text.translate(SMALL)
        places: set[int] = set()
        present = small.split()
        if not self._words.isdisjoint(present):
            for word in self._words.intersection(present):
                places.update(_line_starts(small, word))
        if self._matcher.parts:
            lower = text.lower()
            for part in self._matcher.parts:
                places.update(_line_starts(lower, part))
        if not places:
            return ()
        starts = list(accumulate((len(line) + 1 for line in small.split(b"\n")), initial=0))
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
        if self._component == "machine_learning" and _CHAIN.search(text):
            self._chain = number
            return None
        if (last := LAST_FRAME.match(text)) is not None:
            text = text[last.end() :]  # the stack stood where the name of the class should be; here is the message
        if NEVER.match(text) or STATEMENT.search(text) or (b"   at " in text and FRAME.search(text)):
            return None
        if (self._component == "database" and text.startswith(b"\t")) or (
            self._component == "machine_learning" and BOX in text
        ):
            return None
        # The worker says its error and then, in the same line, the error with its stack.
        line = taken_apart(STACK.sub(b"", text), self._component)
        if line.quiet:
            return None
        search, begin = line.text, 0
        if self._component == "machine_learning" and not RICH.match(text) and text[:8].isspace():
            before = self._wrapped(lines, index)
            search, begin = before + text.strip(), len(before)
        if self._component == "machine_learning" and self._recycled(search, number):
            return None
        match = self._matcher.match(search)
        if match is None and BARE.match(line.context):
            # The error stands where the name of the class should be.
            match, line.text, line.again = self._matcher.match(line.context), line.context, True
        if match is None or match.end <= begin:
            return None
        return self._counted(match, line, number, moment)

    def _wrapped(self, lines: Sequence[bytes], index: int) -> bytes:
        """The lines before this one that are one text with it, joined."""
        parts: list[bytes] = []
        earlier = [*self._record_before, *lines[max(0, index - 12) : index]]
        for raw in reversed(earlier[-12:]):
            text = body(raw[:LONGEST_LINE])
            if not text or BOX in text or b"\xe2\x95" in text:
                break
            parts.append(text.strip())
            if RICH.match(text) or not text[:8].isspace():
                break
        return b" ".join(reversed(parts)) + b" " if parts else b""

    def _recycled(self, text: bytes, number: int) -> bool:
        """A kill that gunicorn did itself, after a time-out that was counted."""
        if (late := re.search(rb"WORKER TIMEOUT \(pid:\s?(\d+)\)", text)) is not None:
            self._timeouts = {late[1]: number, **dict(list(self._timeouts.items())[:15])}
            return False
        if (killed := re.search(rb"Worker \(pid:\s?(\d+)\) was sent SIG(?:KILL|ABRT)", text)) is not None:
            at = self._timeouts.pop(killed[1], None)
            return at is not None and number - at <= FIELDS
        return False

    def _counted(self, found: Found, line: Line, number: int, moment: float | None) -> str | None:
        """The signature if this is a new event, and None if it is one that was counted."""
        words = found.what if found.what is not None else core(line.said or line.text)
        bodiless = line.head and not _CAUSE.search(line.text)
        event = _Event(
            found.signature, words, found.what, line.identity, number, moment, line.head, bodiless, line.when
        )  # fmt: skip
        again = self._is_again(event, found, line)
        if line.identity is not None:
            self._identities[(event.signature, line.identity)] = number
            if len(self._identities) > REMEMBERED:
                del self._identities[next(iter(self._identities))]
        if again:
            return None
        if moment is not None:
            # Only of what was counted, or an error that comes every other second would be counted once for ever.
            self._recent[(event.signature, words)] = (moment, line.identity)
            if len(self._recent) > REMEMBERED:
                del self._recent[next(iter(self._recent))]
        self._events.append(event)
        return event.signature

    def _is_again(self, event: _Event, found: Found, line: Line) -> bool:
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
        for nth, earlier in enumerate(reversed(self._events)):
            if earlier.line < self._mark:
                break
            late = event.moment is not None and earlier.moment is not None
            if late and abs((event.moment or 0) - (earlier.moment or 0)) > SAME_MOMENT:
                continue
            if earlier.signature == event.signature and self._tells_again(event, earlier, nth, found, line):
                return True
        return False

    def _tells_again(self, event: _Event, earlier: _Event, nth: int, found: Found, line: Line) -> bool:
        """Whether a line tells the event that was the nth before it, of the same signature."""
        apart = event.line - earlier.line
        if nth == 0 and (found.detail or line.detail) and apart <= DETAILS:
            return True
        if apart == 1 and earlier.bodiless and line.again and not line.head:
            return True  # the error that the line before announced
        if earlier.line < self._chain <= event.line and apart <= CHAIN:
            return True
        if line.output and apart <= FIELDS:
            return True
        if found.together and line.when is not None and line.when == earlier.when and apart <= FIELDS:
            return True
        same = earlier.core == event.core or (
            min(len(earlier.core), len(event.core)) >= 20
            and (earlier.core.startswith(event.core) or event.core.startswith(earlier.core))
        )
        if not same or apart > BLOCK or (line.head and not line.again):
            return False
        if not earlier.head and (nth > 1 or apart > FIELDS):
            return False
        return earlier.identity is None or event.identity is None or earlier.identity == event.identity
