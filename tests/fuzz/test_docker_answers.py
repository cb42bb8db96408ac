"""What answers as Docker may say anything that JSON can: a collector tells what it can, or why it cannot."""

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.collector import Deadline
from immich_vitals.collectors.container import ContainerCollector, ContainerUsageCollector
from immich_vitals.config import ConfigError, load
from immich_vitals.sources.docker import Docker, container_facts, event_of, usage_facts
from immich_vitals.sources.docker_components import Matching, component_of
from immich_vitals.sources.docker_immich import media_location, media_mounted, version_of
from support.fake_docker import FakeDocker
from support.fuzz import JSON, all_collected, collected, fuzzed, like, seldom, told
from support.golden import ROOT

HEALTHY = ROOT / "container" / "healthy"
USAGE = ROOT / "container_usage" / "healthy"


def _read(name: str) -> object:
    return json.loads((HEALTHY / name).read_text(encoding="utf-8"))


LIST = _read("containers.json")
assert isinstance(LIST, list)
SERVER = next(each for each in LIST if each["Names"] == ["/immich_server"])
FIRST = SERVER["Id"]
INSPECTED = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(HEALTHY.glob("?" * 12 + "*.json"))]
INSPECTED = [each for each in INSPECTED if isinstance(each, dict) and "State" in each]
STATS = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(USAGE.glob("*.stats.json"))]
EVENT = {
    "Type": "container", "Action": "die", "timeNano": 1_795_000_000_000_000_000,
    "Actor": {"ID": FIRST, "Attributes": {"exitCode": "137", "image": "x", "name": "immich_server"}},
}  # fmt: skip
TWINS = [SERVER, SERVER]
NAMESAKES = [{**SERVER, "Id": "a"}, {**SERVER, "Id": "b"}]
HUGE = 10**400


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeDocker]:
    with FakeDocker(HEALTHY) as docker:
        yield docker


@fuzzed
@given(like(LIST) | JSON, like(INSPECTED[0]), like(STATS[0]), like({"ApiVersion": "1.44", "MinAPIVersion": "1.24"}))
@example(TWINS, INSPECTED[0], STATS[0], {})
@example(NAMESAKES, INSPECTED[0], STATS[0], {})
@example([{**SERVER, "Id": "../../x y\r\nz"}], INSPECTED[0], STATS[0], {})
@example([{**SERVER, "Id": "é/?#%"}], INSPECTED[0], STATS[0], {})
@example([{**SERVER, "Id": "\ud800"}], INSPECTED[0], STATS[0], {})
@example(LIST, {**INSPECTED[0], "RestartCount": HUGE}, {}, {"ApiVersion": "9" * 5000 + "." + "9" * 5000})
def test_collectors(fake: FakeDocker, listed: object, inspected: object, stats: object, version: object) -> None:
    """All answers at once: no series twice, no number that none can read, no failure without a word on the mend."""
    fake.bodies["/containers/json"] = _bytes(listed)
    fake.bodies["/version"] = _bytes(version)
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get("Id"), str):
            fake.bodies[f"/containers/{each['Id']}/json"] = _bytes(inspected)
            fake.bodies[f"/containers/{each['Id']}/stats"] = _bytes(stats)
    all_collected(load({"DOCKER_HOST": fake.host}), ContainerCollector, ContainerUsageCollector)
    fake.requests.clear()


@fuzzed
@given(like({"SecurityOptions": ["name=rootless", "name=seccomp,profile=default"]}))
def test_info(fake: FakeDocker, raw: object) -> None:
    fake.bodies["/info"] = _bytes(raw)
    docker = Docker(fake.host, load({}).docker)
    assert told(lambda: docker.maps_users(Deadline.after(10))) in (True, False, None)
    docker.close()


LINES = st.one_of(like(EVENT).map(lambda raw: json.dumps(raw).encode()), st.binary(max_size=30))


@fuzzed
@given(st.lists(LINES, max_size=4), st.sampled_from((b"\n", b"\r\n", b"")))
@example([b"[" * 100_000], b"\n")
@example([b'{"timeNano": ' + b"9" * 5000 + b"}"], b"\n")
def test_event_stream(fake: FakeDocker, lines: list[bytes], end: bytes) -> None:
    """Lines of the stream are events, or something else, or the stream is told to be none."""
    fake.event_lines = [line + end for line in lines if line + end]  # an empty chunk would end it
    docker = Docker(fake.host, load({}).docker)
    stops = iter((False,))
    events = docker.ends(0.05, time.time)

    told(lambda: list(events.new(lambda: next(stops, True))))
    assert not events.connected
    docker.close()
    fake.drop_streams()


@seldom
@given(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=12))
@example("a b")
@example("%zz")
@example("[fe80::1%eth0]")
@example("\x7f")
def test_any_address(host: str) -> None:
    """An address of another machine is taken, or told to be none; nobody is there."""
    try:
        config = load({"DOCKER_HOST": f"tcp://{host}.invalid:1"})
    except ConfigError as error:
        assert {mistake.setting for mistake in error.mistakes} == {"DOCKER_HOST"}
        return
    collector = ContainerCollector.from_config(config)
    assert collector is not None
    assert collected(collector) is None
    collector.close()


@fuzzed
@given(st.one_of([like(each) for each in INSPECTED]))
@example({**INSPECTED[0], "State": {**INSPECTED[0]["State"], "StartedAt": "9999-12-31T23:59:59.999999999-23:59"}})
def test_inspected(raw: object) -> None:
    """One container's facts, and what they mean for Immich."""
    facts = told(lambda: container_facts(_json(raw)))
    if facts is not None:
        for component in ("server", "database"):
            version_of(component, facts)
        media_mounted(facts)
        media_location(facts)


@fuzzed
@given(like(STATS[0]), like(EVENT))
@example({"memory_stats": {"usage": HUGE, "stats": {"inactive_file": 0}}}, {**EVENT, "timeNano": HUGE})
def test_usage_and_events(stats: object, event: object) -> None:
    found = usage_facts(_json(stats))
    assert found.memory_working_set is None or float(found.memory_working_set) >= 0
    assert found.cpu_seconds is None or found.cpu_seconds == found.cpu_seconds
    happened = event_of(_json(event))
    if happened is not None:
        component_of(happened, Matching({}, None), ())
        assert happened.exit_code is None or happened.exit_code.isascii()


def _bytes(raw: object) -> bytes:
    return json.dumps(raw).encode()


def _json(raw: object) -> object:
    return json.loads(_bytes(raw))
