"""What can be told of a regular expression before it is used: which words a matching text holds, and whether a hostile
text could make it take for ever."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST_TEXT = 4096
"""Bytes that a pattern sees: bounds its work on a hostile line."""
SLOW = 0.05
"""Seconds that one of the user's patterns may take on a hostile text of full length."""

SMALL = bytes(
    10 if code == 10 else code | 32 if 65 <= code <= 90 else code if 97 <= code <= 122 or 48 <= code <= 57 else 32
    for code in range(256)
)
SHORTEST_WORD = 3
MOST_TEXTS = 400
UNKNOWN = "\0"
BLANK = "\1"
"""In the texts of a pattern: something that we cannot tell, and something that is in no word."""


def words_of(text: bytes) -> list[bytes]:
    """The words of a text, each as often as it is there."""
    return text.translate(SMALL).split()


def needs(pattern: str, common: Set[bytes], *, edges: bool) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """What a line must hold to match: one of the words, or one of the parts of a word, whole words first.

    `edges`: the pattern begins and ends with whole words. Common words are not chosen. Both empty: nothing is sure.
    """
    words, parts = set(), set()
    for text in _texts(_parser.parse(pattern.encode())):
        chosen = _best(f"{UNKNOWN}{text}{UNKNOWN}", common)
        if not chosen and edges:
            chosen = _best(f"{BLANK}{text}{BLANK}", common)
        runs = [run for piece in text.lower().split(UNKNOWN) for run in piece.split(BLANK) if len(run) >= SHORTEST_WORD]
        if chosen:
            words.add(chosen)
        elif runs:
            parts.add(max(runs, key=len).encode())
        else:
            return frozenset(), frozenset()
    return frozenset(words), frozenset(parts)


def _best(text: str, common: Set[bytes]) -> bytes:
    """The longest word that is surely whole and not common; empty when there is none."""
    pieces = text.lower().split(UNKNOWN)
    return max(
        (
            word
            for number, piece in enumerate(pieces)
            for word in _whole(piece, first=number == 0, last=number == len(pieces) - 1)
            if len(word) >= SHORTEST_WORD and word not in common
        ),
        key=lambda word: (len(word), word),
        default=b"",
    )


def _whole(piece: str, *, first: bool, last: bool) -> list[bytes]:
    """The words of a piece whose neighbours are unknown, unless it is the first or last."""
    text = piece.encode("latin-1", "replace").translate(SMALL)
    found = text.split()
    if found and not last and not text[-1:].isspace():
        found.pop()
    if found and not first and not text[:1].isspace():
        found.pop(0)
    return found


def _texts(tree: Iterable[tuple[object, object]]) -> list[str]:
    """Every text that a sequence of nodes matches, with UNKNOWN and BLANK."""
    texts = [""]
    for code, value in tree:
        here = _node(code, value)
        if len(texts) * len(here) > MOST_TEXTS:
            here = [UNKNOWN]
        texts = [before + after for before in texts for after in here]
    return texts


def _node(code: object, value: Any) -> list[str]:
    if code is op.LITERAL:
        return [chr(value)]
    if code is op.AT:
        return [BLANK] if value is not op.AT_NON_BOUNDARY else [UNKNOWN]
    if code is op.IN:
        return _class(value)
    if code is op.SUBPATTERN:
        return _texts(value[-1])
    if code is op.BRANCH:
        return [text for branch in value[1] for text in _texts(branch)]
    if code in _REPEATS:
        least, most, inner = value
        texts = _texts(inner)
        if all(text == BLANK for text in texts):
            return [BLANK] if least else [UNKNOWN]
        if (least, most) == (0, 1):
            return ["", *texts]
        if (least, most) == (1, 1):
            return texts
    return [UNKNOWN]


def _class(items: list[tuple[object, Any]]) -> list[str]:
    """A class of characters: a blank if none of them is in words, its letters if they are few."""
    if all(kind is op.LITERAL for kind, _ in items):
        letters = sorted({chr(value).lower() for _, value in items})
        if not any(letter.isalnum() for letter in letters):
            return [BLANK]
        if len(letters) <= 4:
            return letters
    blank = (op.CATEGORY_SPACE,)
    if all(kind is op.CATEGORY and value in blank for kind, value in items):
        return [BLANK]
    return [UNKNOWN]


def danger(pattern: str) -> str | None:
    """Why a pattern could take too long on a hostile line, if it could."""
    tree = _parser.parse(pattern.encode())
    if _nested(tree, inside=False):
        return "repeats something that repeats itself, such as (a+)+; that can take for ever on some lines"
    compiled = re.compile(pattern.encode())
    hostile = [b"".join(parts) for parts in _pumps(tree)]
    length = 16
    while length < LONGEST_TEXT:
        length += length // 2
        for pump in hostile:
            line = (pump * (length // len(pump) + 1))[:length]
            if all(_seconds(compiled, line + b"\x00") > SLOW for _ in range(3)):
                return f"takes more than {SLOW:g} s on a hostile line; use fewer of .* and .+, or [^x]{{0,80}} for them"
    return None


def _seconds(compiled: re.Pattern[bytes], text: bytes) -> float:
    """CPU time of one search."""
    began = time.thread_time()
    compiled.search(text)
    return time.thread_time() - began


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
