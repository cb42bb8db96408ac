"""What answers as Redis may say anything that its protocol can: a collector tells what it can, or why it cannot."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from immich_vitals.collector import Deadline
from immich_vitals.collectors.queue import QueueCollector
from immich_vitals.collectors.redis import RedisCollector, redis_samples
from immich_vitals.config import RedisConfig
from immich_vitals.sources import bullmq
from immich_vitals.sources.bullmq import workers_by_queue
from immich_vitals.sources.redis import Commands, RedisServer, Reply, parse_info, server_facts
from immich_vitals.sources.versions import mixed
from support.fuzz import WORDS, collected, fuzzed, shown
from support.golden import ROOT

INFO = (ROOT / "redis" / "healthy" / "info.txt").read_bytes()
FIELDS = [line.split(":")[0] for line in INFO.decode().split("\r\n") if ":" in line]
VALUES = WORDS | st.sampled_from(("nan", "-inf", "1e400", "1_0", " 1", "-0", "ok", "err", "slave", "٣", "0x1"))
BYTES = VALUES.map(lambda word: word.encode(errors="replace")) | st.binary(max_size=20)
WHOLE = st.integers(-(2**63), 2**63 - 1)
ERRORS = st.sampled_from(("WRONGTYPE of a key", "NOPERM no", "ERR unknown command", "MISCONF", "")).map(ResponseError)
ANY: st.SearchStrategy[Reply] = st.recursive(
    st.none() | WHOLE | BYTES | ERRORS, lambda inner: st.lists(inner, max_size=4), max_leaves=8
)
IDS = st.sampled_from(
    (b"1795000000000-0", b"0-0", b"1-", b"-1", b"", b"x-y", b"1" * 5000 + b"-0", b"18446744073709551615-1")
)
ENTRY = st.tuples(IDS | ANY, st.lists(st.sampled_from((b"event", b"completed", b"jobId", b"7")) | ANY, max_size=5))
STREAM = st.tuples(
    st.sampled_from((b"immich_bull:search:events", b"else")) | ANY, st.lists(ENTRY.map(list), max_size=3) | ANY
)
LINES = st.lists(
    st.sampled_from(
        ("id=1 addr=x name=immich_bull:dGh1bWJuYWlsR2VuZXJhdGlvbg== db=0 cmd=bzpopmin ", "name=immich_bull:!!! db=0 ",
         "id=2 name=immich_bull:dGh1bWJuYWlsR2VuZXJhdGlvbg==:w:x db=0 cmd=brpoplpush ", "", "=", "name=")
    ) | WORDS, max_size=6,
).map(lambda lines: "\n".join(lines).encode(errors="replace"))  # fmt: skip
# What each command is answered with, beside anything else.
USUAL: dict[str, st.SearchStrategy[Reply]] = {
    "CLIENT": LINES,
    "LLEN": WHOLE,
    "ZCARD": WHOLE,
    "HMGET": st.lists(st.none() | BYTES, min_size=3, max_size=3),
    "LRANGE": st.lists(BYTES, max_size=4),
    "ZRANGE": st.lists(BYTES, max_size=2),
    "XREVRANGE": st.lists(ENTRY.map(list), max_size=2),
    "HGET": st.none() | BYTES,
    "EXISTS": WHOLE,
    "XREAD": st.none() | st.lists(STREAM.map(list), max_size=2),
    "INFO": st.just(INFO) | BYTES,
    "CONFIG": st.lists(BYTES, min_size=2, max_size=2),
}


class Anything(RedisServer):
    """A server whose every reply is drawn; the wire is met in tests/integration/test_reliability.py."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__(RedisConfig())
        self._data = data
        self._left = 12  # round trips; then it has no more events

    def ask(self, question: Commands, deadline: Deadline) -> list[Reply]:
        self._left -= 1
        usual = self._data.draw(st.booleans())
        return [self._reply(name, usual) for name in question.names]

    def _reply(self, name: str, usual: bool) -> Reply:
        if name == "XREAD" and self._left < 0:
            return None
        if usual and name in ("HMGET", "LLEN", "ZCARD", "LRANGE", "ZRANGE") and not self._data.draw(st.booleans()):
            return 0 if name in ("LLEN", "ZCARD") else []
        return self._data.draw(USUAL[name] if usual else USUAL[name] | ANY)


@fuzzed
@given(st.data())
def test_queues(data: st.DataObject) -> None:
    """Two scrapes, so that events are read on from wherever the first one saw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bullmq, "KNOWN_QUEUES", ("search",))  # beside those that workers name; twenty draw for seconds
        collector = QueueCollector(Anything(data), 0)
    for _ in range(2):
        collected(collector)


@fuzzed
@given(st.data())
def test_server(data: st.DataObject) -> None:
    collected(RedisCollector(Anything(data)))


@fuzzed
@given(
    st.dictionaries(st.sampled_from(FIELDS) | VALUES, VALUES, max_size=8),
    st.none() | VALUES,
    st.none() | VALUES,
)
@example({"server_time_usec": "nan", "uptime_in_seconds": "inf"}, None, None)
@example({"server_time_usec": "inf", "uptime_in_seconds": "1"}, None, None)
@example({"valkey_version": "", "redis_version": "\ud800"}, None, None)
def test_info(changed: dict[str, str], save: str | None, stops: str | None) -> None:
    """Any words in place of INFO's own, and lines that are none."""
    fields = {**parse_info(INFO.decode()), **changed}
    shown(RedisCollector, redis_samples(server_facts(fields, save, stops)))
    parse_info("\r\n".join(f"{name}:{value}" for name, value in fields.items()))


@fuzzed
@given(LINES | ANY)
def test_clients(clients: Reply) -> None:
    workers_by_queue(clients, 0)
    mixed(clients)
