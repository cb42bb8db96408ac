"""From the answers of Docker and Podman to facts, and from facts to what they mean for Immich."""

from collections.abc import Mapping

import pytest

from immich_vitals.collector import Unavailable
from immich_vitals.sources.docker import ContainerFacts, Mount, container_facts, event_of, usage_facts
from immich_vitals.sources.docker_immich import media_mounted, version_of

SERVER = "ghcr.io/immich-app/immich-server:release"
NEW = {"IMMICH_SOURCE_REF": "v2.7.5"}
OLD = {"IMMICH_SOURCE_REF": "v1.132.3"}


def inspected(state: Mapping[str, object], **others: object) -> ContainerFacts:
    return container_facts({"Name": "/x", "State": {"Status": "running", **state}, **others})


def bind(target: str) -> Mount:
    return Mount("bind", "", target)


def volume(target: str, name: str = "photos") -> Mount:
    return Mount("volume", name, target)


def anonymous(target: str) -> Mount:
    return volume(target, "ab" * 32)


def server(
    *mounts: Mount, env: Mapping[str, str] = NEW, image: str = SERVER, labels: Mapping[str, str] | None = None
) -> ContainerFacts:
    return ContainerFacts(
        name="x", image=image, state="running", health="none", restarts=0, started=None, finished=None, exit_code=None,
        oom_killed=False, start_failed=False, restart_policy="no", memory_limit=None, shm_size=None, mounts=mounts,
        env=env, labels=labels or {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-11-20T19:04:42.459134483Z", 1795201482.459134),
        ("2026-11-20T19:04:42Z", 1795201482.0),
        ("2026-11-20T20:04:42.5+01:00", 1795201482.5),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        ("yesterday", None),
        (None, None),
        (7, None),
    ],
)
def test_moments(written: object, moment: float | None) -> None:
    """Moments with nanoseconds, and in the zone that Podman writes, are read; the year 1 is never."""
    assert inspected({"StartedAt": written}).started == moment


@pytest.mark.parametrize(
    ("status", "started", "code"),
    [
        ("running", "2026-11-20T19:04:42Z", None),
        ("paused", "2026-11-20T19:04:42Z", None),
        ("exited", "2026-11-20T19:04:42Z", 137),
        ("dead", "2026-11-20T19:04:42Z", 137),
        ("restarting", "2026-11-20T19:04:42Z", 137),
        ("created", "0001-01-01T00:00:00Z", None),
        ("exited", "0001-01-01T00:00:00Z", None),
    ],
)
def test_exit_code(status: str, started: str, code: int | None) -> None:
    """There is an exit code only after a run has ended."""
    assert inspected({"Status": status, "StartedAt": started, "ExitCode": 137}).exit_code == code


@pytest.mark.parametrize(
    ("word", "state"),
    [("configured", "created"), ("stopped", "exited"), ("initialized", "created"), ("removing", "removing")],
)
def test_words_of_podman(word: str, state: str) -> None:
    """Podman's own words for states become Docker's."""
    assert inspected({"Status": word}).state == state


def test_podman_without_health_check() -> None:
    """Podman's empty health is none."""
    assert inspected({"Health": {"Status": "", "Log": None}}).health == "none"


def test_limits_and_shared_memory() -> None:
    """No limit is None, not 0; shared memory of the host or of another container is not the container's."""
    facts = inspected({}, HostConfig={"Memory": 0, "ShmSize": 67108864, "IpcMode": "private"})
    assert (facts.memory_limit, facts.shm_size) == (None, 67108864)
    for mode in ("host", "container:abc"):
        assert inspected({}, HostConfig={"ShmSize": 67108864, "IpcMode": mode}).shm_size is None


def test_start_failed() -> None:
    """An error of the engine counts as long as the container does not run."""
    assert inspected({"Status": "created", "Error": "no such device"}).start_failed
    assert not inspected({"Status": "running", "Error": "no such device"}).start_failed
    assert not inspected({"Status": "exited", "Error": ""}).start_failed


def test_secrets_are_not_read() -> None:
    """Of the environment only the few variables that are needed leave the source."""
    facts = inspected({}, Config={"Env": ["DB_PASSWORD=hunter2", "IMMICH_SOURCE_REF=v2.7.5", "PATH=/bin", "odd"]})
    assert facts.env == {"IMMICH_SOURCE_REF": "v2.7.5"}


@pytest.mark.parametrize(
    "raw", [None, [], {}, {"Name": "/x"}, {"Name": "/x", "State": []}, {"State": {"Status": "dead"}}]
)
def test_no_container(raw: object) -> None:
    """An answer that describes no container is unavailable, not a bug."""
    with pytest.raises(Unavailable):
        container_facts(raw)


def test_odd_types_are_unknown() -> None:
    """A field of another type than documented is unknown, and nothing breaks."""
    odd = {"Health": 3, "OOMKilled": "yes", "ExitCode": "1", "FinishedAt": []}
    facts = inspected(odd, HostConfig=[], Config="x", Mounts={}, RestartCount=None)
    assert (facts.health, facts.oom_killed, facts.finished, facts.mounts) == ("none", False, None, None)
    assert (facts.restarts, facts.restart_policy, facts.labels) == (0, "no", {})


@pytest.mark.parametrize(
    ("memory", "working_set"),
    [
        ({"usage": 1000, "stats": {"inactive_file": 1, "total_inactive_file": 300}}, 700),
        ({"usage": 1000, "stats": {"inactive_file": 200}}, 800),
        ({"usage": 100, "stats": {"inactive_file": 200}}, 0),
        ({"usage": 1000}, None),
        ({"usage": 1000, "stats": None}, None),
        ({"stats": {"inactive_file": 200}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_working_set(memory: object, working_set: float | None) -> None:
    """With cgroup v1 and v2 the cache that can be taken back is left out; without its size nothing is known."""
    assert usage_facts({"memory_stats": memory}).memory_working_set == working_set


def test_usage_of_an_ended_container() -> None:
    """The zeros that stand for a container that has just ended are no usage."""
    assert usage_facts({"cpu_stats": {"cpu_usage": {"total_usage": 0}}}).cpu_seconds is None
    assert usage_facts({"cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}}}).cpu_seconds == 1.5


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {"Action": "start", "Actor": {"ID": "a"}, "timeNano": 1},
        {"Action": "die", "timeNano": 1},
        {"Action": "die", "Actor": {"ID": "a"}, "timeNano": "1"},
    ],
)
def test_no_event(raw: object) -> None:
    """What is no exit or OOM kill, or lacks container or moment, is no event."""
    assert event_of(raw) is None


def test_event() -> None:
    """An exit carries code, name, image and labels."""
    actor = {"ID": "a", "Attributes": {"exitCode": "137", "name": "n", "image": "i", "label": "l"}}
    event = event_of({"Type": "container", "Action": "die", "Actor": actor, "timeNano": 5})
    assert event is not None
    assert (event.id, event.name, event.image, event.exit_code, event.nanoseconds) == ("a", "n", "i", "137", 5)
    assert event.labels["label"] == "l"


@pytest.mark.parametrize(
    ("facts", "mounted"),
    [
        (server(bind("/data")), True),
        (server(volume("/data")), True),
        (server(anonymous("/data")), False),
        (server(Mount("tmpfs", "", "/data")), False),
        (server(), False),
        (server(bind("/data/thumbs")), False),
        (server(bind("/data/upload"), bind("/data/library")), True),
        (server(bind("/data/upload"), anonymous("/data/library")), False),
        (server(bind("/datastore")), False),
        (server(bind("/usr/src/app/upload")), True),
        (server(bind("/usr/src/app"), env=OLD), True),
        (server(bind("/data"), bind("/usr/src/app/upload/thumbs")), False),
        (server(bind("/data"), env=OLD), False),
        (server(bind("/data"), anonymous("/usr/src/app/upload"), env=OLD), False),
        (server(bind("/usr/src/app/upload"), env=OLD), True),
        (server(bind("/data"), env={}), True),
        (server(env={}), False),
        (server(bind("/srv"), env={**NEW, "IMMICH_MEDIA_LOCATION": "/srv/photos"}), True),
        (server(bind("/data"), env={**NEW, "IMMICH_MEDIA_LOCATION": "/srv/photos"}), False),
        (server(bind("/usr/src/app/upload"), env={**OLD, "IMMICH_MEDIA_LOCATION": "./upload"}), True),
        (server(bind("/photos"), image="imagegenius/immich", env={}), None),
        (server(bind("/photos"), image="imagegenius/immich", env={"IMMICH_MEDIA_LOCATION": "/photos"}), True),
    ],
)
def test_media_mounted(facts: ContainerFacts, mounted: bool | None) -> None:
    """The media location is the one that this version of Immich would choose, and counts only where it lasts."""
    assert media_mounted(facts) is mounted


def test_mounts_not_told() -> None:
    """Without a list of mounts nothing is known."""
    assert media_mounted(inspected({}, Config={"Image": SERVER})) is None


@pytest.mark.parametrize(
    ("component", "facts", "version"),
    [
        ("server", server(env=NEW), "v2.7.5"),
        ("server", server(env={}, image="a/immich-server:v2.7.5@sha256:" + "ab" * 32), "v2.7.5"),
        ("server", server(env={}, labels={"org.opencontainers.image.version": "v2.7.4"}), "v2.7.4"),
        ("server", server(env={}, labels={"org.opencontainers.image.version": "main"}), None),
        ("server", server(env={}), None),
        ("server", server(env={"IMMICH_SOURCE_REF": "main"}), "main"),
        ("database", server(env={"PG_VERSION": "14.19-1.pgdg12+1", **NEW}), "14.19-1.pgdg12+1"),
        ("redis", server(env={"REDIS_VERSION": "7.4.2"}), "7.4.2"),
        ("redis", server(env={"VALKEY_VERSION": "9.0.1"}), "9.0.1"),
        ("server", server(env={"IMMICH_SOURCE_REF": "x" * 200}), None),
    ],
)
def test_version(component: str, facts: ContainerFacts, version: str | None) -> None:
    """The version comes from the environment, else the image's label, else its tag; a moving tag is none."""
    assert version_of(component, facts) == version
