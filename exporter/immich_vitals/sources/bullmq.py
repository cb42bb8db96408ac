"""Immich's background queues as BullMQ keeps them in Redis: keys `immich_bull:<queue>:<part>`.

What is asked costs the same however many jobs there are: nothing is scanned, lists are counted and looked at from
their ends only. A quiet system is read in one round trip, a busy one in two or three.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from redis.exceptions import InvalidResponse, ResponseError

from immich_vitals.collector import Deadline
from immich_vitals.sources.redis import Commands, RedisServer, Reply, items, number, pack, text

PREFIX = "immich_bull"
# Of Immich 1.91 to 2.7. Those of other versions are found by their workers.
KNOWN_QUEUES: tuple[str, ...] = (
    "backgroundTask", "backupDatabase", "duplicateDetection", "editor", "faceDetection", "facialRecognition", "library",
    "metadataExtraction", "migration", "notifications", "objectTagging", "ocr", "recognizeFaces", "search", "sidecar",
    "smartSearch", "storageTemplateMigration", "thumbnailGeneration", "videoConversion", "workflow",
)  # fmt: skip
# Immich dropped these in 1.92 and 1.93; an upgraded Redis may keep their traces, where no worker will ever come.
GONE_QUEUES = frozenset(("objectTagging", "recognizeFaces"))
# The events of BullMQ that are counted. A job's others (added, waiting, drained, ...) say nothing more of throughput,
# and would be a hundred series.
EVENTS_FROM_START = ("active", "completed")
COUNTED_EVENTS = frozenset((*EVENTS_FROM_START, "failed", "stalled", "progress"))

ACTIVE_LOOKED_AT = 50  # per queue, the oldest; Immich runs 1 to 5 jobs per queue unless told otherwise
TAIL = 4  # of a waiting list: the oldest job, and the marks that BullMQ 4 may have put beside it
EVENTS_AT_ONCE = 200  # per stream and round trip: what is held in memory at a time
EVENT_ROUNDS = 50  # per reading: as much as Immich's streams hold (about 10,000)

EventId: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """One queue. Times are seconds since the epoch, None where no such job is.

    `jobs` maps a state to a count, some states only once there was a job in them. `orphaned` is how many of the oldest
    `ACTIVE_LOOKED_AT` active jobs nobody holds a lock on. `workers` is None when we may not list Redis' clients.
    `events` counts since the first reading.
    """

    name: str
    jobs: Mapping[str, int]
    paused: bool
    oldest_waiting: float | None
    oldest_active: float | None
    orphaned: int
    workers: int | None
    events: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class QueuesFacts:
    """All queues there are, the names of those whose keys hold something else than BullMQ's, and what kept us from
    counting workers, if anything did."""

    queues: tuple[QueueFacts, ...]
    foreign: tuple[str, ...]
    workers_refused: ResponseError | None


@dataclass(slots=True)
class _Look:
    """What the first round trip tells of a queue, and the later ones add."""

    name: str
    jobs: dict[str, int]
    exists: bool
    paused: bool
    oldest: Sequence[str]  # ids of the jobs that may be the longest waiting one
    active: Sequence[str]  # ids, oldest last
    last_event: EventId | None
    waiting_since: float | None = None
    active_since: float | None = None
    orphaned: int = 0

    @property
    def in_use(self) -> bool:
        return any(self.jobs.values()) or (self.exists and self.name not in GONE_QUEUES)


class _NotBullmq(Exception):
    """A key of a queue has another type than BullMQ gives it."""


@dataclass(slots=True)
class _Stream:
    """How far the events of a queue have been read, and what was counted on the way."""

    read_to: EventId
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(EVENTS_FROM_START, 0)))


class Queues:
    """Reads Immich's queues, and counts their events from the first reading on.

    The counts and the place reached in a stream change together, once a whole answer is there: a reading that is
    interrupted loses nothing and counts nothing twice. Events that BullMQ trims before they are read are lost.
    """

    def __init__(self, server: RedisServer, db: int) -> None:
        self._server = server
        self._db = db
        self._names = KNOWN_QUEUES
        self._ask_first = _first_questions(self._names)
        self._streams: dict[str, _Stream] = {}
        self._met: set[tuple[str, str]] = set()

    def read(self, deadline: Deadline) -> QueuesFacts:
        """All queues. Raises as `RedisServer.ask` does, or `Unavailable` when a command is not allowed."""
        clients, *replies = self._server.ask(self._ask_first, deadline)
        workers_refused = clients if isinstance(clients, ResponseError) else None
        workers = workers_by_queue(clients, self._db)
        looks, foreign = self._first_looks(self._names, replies)
        found = tuple(sorted(workers.keys() - set(self._names)))
        if found:
            more, more_foreign = self._first_looks(found, self._server.ask(_first_questions(found), deadline)[1:])
            looks, foreign = [*looks, *more], [*foreign, *more_foreign]
            self._names += found
            self._ask_first = _first_questions(self._names)
        there = [look for look in looks if look.in_use or look.name in workers]
        self._second_look(there, deadline)
        self._count_events(looks, deadline)
        facts = (self._facts(look, None if workers_refused else workers[look.name]) for look in there)
        return QueuesFacts(tuple(facts), tuple(foreign), workers_refused)

    def _facts(self, look: _Look, workers: int | None) -> QueueFacts:
        events = dict(self._streams[look.name].counts)
        self._met.update((look.name, state) for state, count in look.jobs.items() if count)
        jobs = {
            state: count
            for state, count in look.jobs.items()
            if state in STATES_FROM_START or (look.name, state) in self._met
        }
        return QueueFacts(
            look.name, jobs, look.paused, look.waiting_since, look.active_since, look.orphaned, workers, events
        )

    def _first_looks(self, names: Sequence[str], replies: Sequence[Reply]) -> tuple[list[_Look], list[str]]:
        looks, foreign = [], []
        each = len(_FIRST)
        for index, name in enumerate(names):
            try:
                looks.append(self._first_look(name, replies[index * each : (index + 1) * each]))
            except _NotBullmq:
                foreign.append(name)
        return looks, foreign

    def _first_look(self, name: str, replies: Sequence[Reply]) -> _Look:
        for (command, *_), reply in zip(_FIRST, replies, strict=True):
            self._check(command, reply)
            if isinstance(reply, ResponseError):
                raise _NotBullmq
        counts = [int(number(reply) or 0) for reply in replies[:6]]
        meta, wait, paused, active, prioritized, events = replies[6:]
        tails = [[text(job) for job in items(tail)] for tail in (wait, paused)]
        marks = [sum(map(_is_mark, tail)) for tail in tails]
        jobs = dict(zip(STATES, counts, strict=True))
        jobs["waiting"] -= marks[0]
        jobs["paused"] -= marks[1]
        last_jobs = [next((job for job in reversed(tail) if not _is_mark(job)), None) for tail in tails]
        first_of_priority = [text(job) for job in items(prioritized)]
        last_entry = _first(events)
        last_event = _event_id(_first(last_entry))
        if last_entry is not None and last_event is None:
            raise _NotBullmq
        return _Look(
            name=name,
            jobs=jobs,
            exists=any(value is not None for value in items(meta)),
            paused=_first(meta) is not None,
            oldest=[*filter(None, last_jobs), *first_of_priority],
            active=[text(job) for job in items(active)],
            last_event=last_event,
        )

    def _ask(self, commands: Commands, deadline: Deadline) -> Iterator[Reply]:
        """The replies one by one, each checked."""
        for command, reply in zip(commands.names, self._server.ask(commands, deadline), strict=True):
            self._check(command, reply)
            yield reply

    def _check(self, command: str, reply: Reply) -> None:
        """Raise when the command was refused. A key of another type than expected is no refusal."""
        if isinstance(reply, ResponseError) and not str(reply).startswith("WRONGTYPE"):
            raise self._server.refused(command, reply)

    def _second_look(self, looks: Sequence[_Look], deadline: Deadline) -> None:
        """Since when the oldest jobs wait and run, and whether the running ones are locked."""
        asked: list[tuple[str, ...]] = []
        for look in looks:
            asked.extend(("HGET", _key(look.name, job), "timestamp") for job in look.oldest)
            if look.active:
                asked.append(("HGET", _key(look.name, look.active[-1]), "processedOn"))
                asked.append(("EXISTS", *(_key(look.name, job, "lock") for job in look.active)))
        if not asked:
            return
        replies = self._ask(pack(asked), deadline)
        lockless = []
        for look in looks:
            look.waiting_since = min(filter(None, [_seconds(next(replies)) for _ in look.oldest]), default=None)
            if look.active:
                look.active_since = _seconds(next(replies))
                if number(next(replies)) != len(look.active):
                    lockless.append(look)
        self._count_orphans(lockless, deadline)

    def _count_orphans(self, looks: Sequence[_Look], deadline: Deadline) -> None:
        """Which of the jobs without a lock are still active: one that has ended since the first look is none."""
        if not looks:
            return
        asked: list[tuple[str, ...]] = []
        for look in looks:
            asked.extend(("EXISTS", _key(look.name, job, "lock")) for job in look.active)
            asked.append(_question(_ACTIVE, look.name))
        replies = self._ask(pack(asked), deadline)
        for look in looks:
            unlocked = {job for job in look.active if number(next(replies)) == 0}
            look.orphaned = len(unlocked & {text(job) for job in items(next(replies))})

    def _count_events(self, looks: Sequence[_Look], deadline: Deadline) -> None:
        behind = [look.name for look in looks if self._is_behind(look)]
        for _ in range(EVENT_ROUNDS):
            if not behind:
                return
            keys = [_key(name, "events") for name in behind]
            reached = ["{}-{}".format(*self._streams[name].read_to) for name in behind]
            asked = pack([("XREAD", "COUNT", str(EVENTS_AT_ONCE), "STREAMS", *keys, *reached)])
            (reply,) = self._ask(asked, deadline)
            behind = [name for name in map(self._take, items(reply)) if name]

    def _is_behind(self, look: _Look) -> bool:
        """Whether the stream holds events after the last one read. At first sight it is read from its end on."""
        stream = self._streams.get(look.name)
        if stream is None:
            self._streams[look.name] = _Stream(look.last_event or (0, 0))
            return False
        if look.last_event is None or look.last_event == stream.read_to:
            return False
        if look.last_event < stream.read_to:  # Redis was emptied, and its clock set back
            stream.read_to = (0, 0)
        return True

    def _take(self, reply: Reply) -> str | None:
        """Count one stream's new events; its queue's name when there may be more."""
        name = text(_first(reply)).removeprefix(f"{PREFIX}:").removesuffix(":events")
        stream = self._streams.get(name)
        new = [entry for entries in items(reply)[1:2] for entry in items(entries)]
        read_to = _event_id(_first(new[-1])) if new else None
        if stream is None or read_to is None:
            raise self._server.refused("XREAD", InvalidResponse())
        stream.counts.update(event for entry in new if (event := _event_name(entry)) in COUNTED_EVENTS)
        stream.read_to = read_to
        return name if len(new) == EVENTS_AT_ONCE else None


def workers_by_queue(clients: Reply, db: int) -> Counter[str]:
    """Workers by queue, from CLIENT LIST: each has one connection named after its queue."""
    found: Counter[str] = Counter()
    if not isinstance(clients, bytes):
        return found
    in_db = b" db=%d " % db
    for line in clients.split(b"\n"):
        named = _WORKER.search(line)
        if named and in_db in line:
            name = _queue_name(named[1])
            if name is not None:
                found[name] += 1
    return found


def _queue_name(encoded: bytes) -> str | None:
    """The queue a connection is named after, or None when it is somebody else's."""
    try:
        name = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name if re.fullmatch(r"\w{1,40}", name, re.ASCII) else None


_WORKER = re.compile(rb" name=" + PREFIX.encode() + rb":([A-Za-z0-9+/]+=*)(?::w:\S*)? ")

STATES = ("waiting", "paused", "active", "delayed", "prioritized", "failed")
# The other states are told once there was a job in them: Immich delays jobs of one queue and prefers those of another.
STATES_FROM_START = frozenset(("waiting", "active", "failed"))
_ACTIVE = ("LRANGE", "active", str(-ACTIVE_LOOKED_AT), "-1")
# Per queue; the second word is the part of its keys. The first six are the counts, in the order of STATES.
_FIRST = (
    ("LLEN", "wait"),
    ("LLEN", "paused"),
    ("LLEN", "active"),
    ("ZCARD", "delayed"),
    ("ZCARD", "prioritized"),
    ("ZCARD", "failed"),
    ("HMGET", "meta", "paused", "opts.maxLenEvents", "version"),
    ("LRANGE", "wait", str(-TAIL), "-1"),
    ("LRANGE", "paused", str(-TAIL), "-1"),
    _ACTIVE,
    ("ZRANGE", "prioritized", "0", "0"),
    ("XREVRANGE", "events", "+", "-", "COUNT", "1"),
)


def _first_questions(names: Iterable[str]) -> Commands:
    return pack([("CLIENT", "LIST"), *(_question(words, name) for name in names for words in _FIRST)])


def _question(words: Sequence[str], queue: str) -> tuple[str, ...]:
    command, part, *rest = words
    return (command, _key(queue, part), *rest)


def _key(*parts: str) -> str:
    return ":".join((PREFIX, *parts))


def _is_mark(job: str) -> bool:
    """Whether a member of a waiting list is no job: BullMQ 4 wakes workers for delayed jobs with `0:<ms>`."""
    return job.startswith("0:")


def _seconds(reply: Reply) -> float | None:
    milliseconds = number(reply)
    return milliseconds / 1000 if milliseconds else None


def _first(reply: Reply) -> Reply:
    return next(iter(items(reply)), None)


def _event_id(reply: Reply) -> EventId | None:
    """None for what is no id of a stream's entry."""
    found = re.fullmatch(r"(\d{1,20})-(\d{1,20})", text(reply), re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def _event_name(entry: Reply) -> str:
    words = [word for fields in items(entry)[1:2] for word in items(fields)]
    if len(words) > 1 and words[0] == b"event":  # BullMQ writes it first
        return text(words[1])
    return text(dict(zip(map(text, words[::2]), words[1::2], strict=False)).get("event"))
