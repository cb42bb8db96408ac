"""Which container is which part of Immich."""

from collections.abc import Mapping

import pytest

from immich_vitals.sources.docker import Event, Listed
from immich_vitals.sources.docker_components import (
    Matching,
    Part,
    component_of,
    is_id,
    only_microservices,
    repository,
    tag,
)

DIGEST = "sha256:" + "ab" * 32
ANY = Matching({}, None)


def container(
    name: str = "x", image: str = "busybox", *, project: str = "", service: str = "", command: str = "", **labels: str
) -> Listed:
    compose = {"com.docker.compose.project": project, "com.docker.compose.service": service}
    found = {key: value for key, value in compose.items() if value} | labels
    return Listed(f"id-{name}", name, image, command, "running", found)


def told(*containers: Listed, matching: Matching = ANY) -> dict[str, str]:
    """The components by container name."""
    return {part.container.name: part.component for part in matching.parts(containers)}


@pytest.mark.parametrize(
    ("image", "component"),
    [
        ("ghcr.io/immich-app/immich-server:v2.7.5", "server"),
        ("ghcr.io/immich-app/immich-server", "server"),
        (f"ghcr.io/immich-app/immich-server:release@{DIGEST}", "server"),
        (f"ghcr.io/immich-app/immich-server@{DIGEST}", "server"),
        ("registry.local:5000/immich-server", "server"),
        ("Registry.local:5000/a/b/immich-app/immich-server:v2", "server"),
        ("altran1502/immich-server:release", "server"),
        ("ghcr.io/imagegenius/immich:latest", "server"),
        ("ghcr.io/imagegenius/immich-noml", "server"),
        ("ghcr.io/imagegenius/immich-machine-learning", "machine_learning"),
        ("ghcr.io/immich-app/immich-machine-learning:v2.7.5-cuda", "machine_learning"),
        ("registry:5000/immich-machine-learning-openvino:v2", "machine_learning"),
        ("ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0", "database"),
        ("tensorchord/pgvecto-rs:pg14-v0.2.0", "database"),
        (f"docker.io/tensorchord/pgvecto-rs:pg14-v0.2.0@{DIGEST}", "database"),
        ("tensorchord/vchord-postgres:pg16-v0.4.3", "database"),
        ("altran1502/immich-proxy", "proxy"),
        ("ghcr.io/immich-app/immich-cli:latest", None),
        ("alangrainger/immich-public-proxy", None),
        ("damongolding/immich-kiosk", None),
        ("altran1502/immich-web", None),
        ("me/immich-vitals:1", None),
        ("postgres:16", None),
        ("valkey/valkey:9", None),
        ("someone/postgres", None),
        (DIGEST, None),
        ("", None),
    ],
)
def test_image_alone(image: str, component: str | None) -> None:
    """An image of Immich is known wherever it comes from; one that anybody may use tells nothing by itself."""
    assert told(container(image=image)).get("x") == component


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("immich_server", "server"),
        ("immich-server", "server"),
        ("systemd-immich-server", "server"),
        ("Immich", "server"),
        ("immich_microservices", "microservices"),
        ("immich_machine_learning", "machine_learning"),
        ("immich_postgres", "database"),
        ("PostgreSQL_Immich", "database"),
        ("immich_redis", "redis"),
        ("immich-valkey", "redis"),
        ("immich_nginx", "proxy"),
        ("immich_public_proxy", None),
        ("immich-db-backup", None),
        ("backup-immich-db", None),
        ("immich_redis_exporter", None),
        ("redis", None),
    ],
)
def test_name_alone(name: str, component: str | None) -> None:
    """Immich's names of containers and services are known without compose, and also with an image that is an id."""
    assert told(container(name, DIGEST)).get(name) == component
    if not name.startswith("systemd"):
        assert told(container("x", DIGEST, project="p", service=name)).get("x") == component


@pytest.mark.parametrize(
    "image", ["prodrigestivill/postgres-backup-local:14", "oliver006/redis_exporter", "mariadb:11"]
)
def test_name_that_lies(image: str) -> None:
    """A backup job, an exporter or another kind of database is no part of Immich, whatever its name."""
    assert told(container("immich_postgres", image)) == {}
    beside = container("s", "immich-app/immich-server", project="p")
    assert told(beside, container("x", image, project="p", service="database")) == {"s": "server"}


def test_plain_names_count_beside_immich_only() -> None:
    """`redis` and `database` are Immich's in a compose project that holds Immich, and nobody's elsewhere."""
    assert told(
        container("s", "immich-app/immich-server", project="photos", service="app"),
        container("photos-redis-1", "valkey/valkey:9", project="photos", service="redis"),
        container("photos-database-1", DIGEST, project="photos", service="database"),
        container("photos-web-1", "nginx:1.29", project="photos", service="web"),
        container("other-redis-1", "redis:7", project="other", service="redis"),
        container("redis", "redis:7"),
    ) == {"s": "server", "photos-redis-1": "redis", "photos-database-1": "database", "photos-web-1": "proxy"}


def test_project_called_immich() -> None:
    """Also without its server the project `immich` is Immich's."""
    found = told(container("a", "redis:7", project="immich", service="redis"))
    assert found == {"a": "redis"}


def test_surer_signs_win_within_a_project() -> None:
    """In one project with everything, the Redis and database of other applications are left alone."""
    everything = [
        container("s", "immich-app/immich-server", project="home", service="immich-server"),
        container("r", "valkey/valkey:9", project="home", service="immich-redis"),
        container("d", "immich-app/postgres:14", project="home", service="immich-db"),
        container("paperless-broker", "redis:7", project="home", service="broker"),
        container("redis", "redis:7", project="home", service="redis"),
        container("nextcloud-db", "postgres:16", project="home", service="database"),
    ]
    assert told(*everything) == {"s": "server", "r": "redis", "d": "database"}
    without = [each for each in everything if each.name != "r"]
    assert told(*without) == {"s": "server", "redis": "redis", "d": "database"}


def test_several_of_one_component() -> None:
    """Two servers, and a stopped one beside a running one, are each found."""
    server = "immich-app/immich-server"
    found = told(*(container(f"s{n}", server, project="p", service="immich-server") for n in range(3)))
    assert found == {"s0": "server", "s1": "server", "s2": "server"}


def test_microservices() -> None:
    """A server that is called microservices, or is told to be, is microservices."""
    server = "immich-app/immich-server:v1.106.4"
    assert told(
        container("a", server, service="immich-microservices", project="p"),
        container("b", server, command="tini -- /bin/bash start.sh microservices"),
        container("c", server, command="tini -- /bin/bash start.sh"),
        container("immich_microservices", server),
    ) == {"a": "microservices", "b": "microservices", "c": "server", "immich_microservices": "microservices"}


@pytest.mark.parametrize(
    ("env", "alone"),
    [
        ({}, False),
        ({"IMMICH_WORKERS_INCLUDE": "microservices"}, True),
        ({"IMMICH_WORKERS_EXCLUDE": "api"}, True),
        ({"IMMICH_WORKERS_INCLUDE": "api, microservices"}, False),
        ({"IMMICH_WORKERS_INCLUDE": "api,microservices", "IMMICH_WORKERS_EXCLUDE": " api"}, True),
        ({"IMMICH_WORKERS_INCLUDE": "api"}, False),
        ({"IMMICH_WORKERS_EXCLUDE": "microservices"}, False),
        ({"IMMICH_WORKERS_INCLUDE": "nonsense"}, False),
    ],
)
def test_workers(env: Mapping[str, str], alone: bool) -> None:
    """Immich's own variables decide whether a server runs jobs and no API."""
    assert only_microservices(env) is alone


def test_overrides() -> None:
    """A pattern in the settings makes a container the component, and nothing else is it then."""
    matching = Matching({"database": "my-pg*", "proxy": "swag"}, None)
    found = told(
        container("my-pg-16", "postgres:16", project="other"),
        container("swag", "linuxserver/swag", project="web"),
        container("immich_postgres", "immich-app/postgres", project="immich", service="database"),
        container("nginx", "nginx", project="immich", service="nginx"),
        container("immich_redis", "redis", project="immich", service="redis"),
        container("redis", "redis", project="web", service="redis"),
        matching=matching,
    )
    assert found == {"my-pg-16": "database", "swag": "proxy", "immich_redis": "redis"}


def test_one_project() -> None:
    """With a project in the settings the containers of others are not looked at, save those a pattern names."""
    server = "immich-app/immich-server"
    found = told(
        container("a", server, project="photos"),
        container("b", server, project="family"),
        container("c", server),
        container("r", "redis", project="photos", service="redis"),
        container("swag", "linuxserver/swag", project="web"),
        matching=Matching({"proxy": "swag"}, "photos"),
    )
    assert found == {"a": "server", "r": "redis", "swag": "proxy"}


def test_one_off_containers() -> None:
    """What `docker compose run` leaves behind is no part of Immich."""
    one_off = container("x", "immich-app/immich-server", project="p", **{"com.docker.compose.oneoff": "True"})
    assert told(one_off) == {}


def test_podman_and_swarm_labels() -> None:
    """podman-compose and stacks are understood as compose is."""
    podman = {"io.podman.compose.project": "photos", "io.podman.compose.service": "database"}
    swarm = {"com.docker.stack.namespace": "photos", "com.docker.swarm.service.name": "photos_redis"}
    server = {"io.podman.compose.project": "photos"}
    assert told(
        container("s", "ghcr.io/immich-app/immich-server", **server),
        container("d", DIGEST, **podman),
        container("r", DIGEST, **swarm),
    ) == {"s": "server", "d": "database", "r": "redis"}


def event(name: str, image: str, identity: str = "new", **labels: str) -> Event:
    return Event("die", identity, name, image, labels, "1", 1)


def test_component_of_event() -> None:
    """An event is of the component last seen under its id; a newcomer is told by what the event says."""
    redis = Part("redis", container("cache", "redis", project="photos", service="redis"))
    server = Part("microservices", container("s", "immich-app/immich-server", project="photos"))
    compose = {"com.docker.compose.project": "photos", "com.docker.compose.service": "redis"}
    parts = [redis, server]
    assert component_of(event("s", "immich-app/immich-server", "id-s"), ANY, parts) == "microservices"
    assert component_of(event("cache", "redis", **compose), ANY, parts) == "redis"
    assert component_of(event("other", "redis"), ANY, parts) is None
    assert component_of(event("cache", "redis"), Matching({"redis": "cache"}, None), []) == "redis"


@pytest.mark.parametrize(
    ("image", "path", "label"),
    [
        ("registry:5000/a/b:1", "registry:5000/a/b", "1"),
        ("registry:5000/a/b", "registry:5000/a/b", ""),
        (f"a/b:1@{DIGEST}", "a/b", "1"),
        (f"a/b@{DIGEST}", "a/b", ""),
        ("b", "b", ""),
    ],
)
def test_reference(image: str, path: str, label: str) -> None:
    """Ports, tags and digests of an image reference are told apart."""
    assert (repository(image), tag(image)) == (path, label)


@pytest.mark.parametrize(
    ("image", "expected"),
    [(DIGEST, True), ("ee930b1f5af5", True), ("ab" * 32, True), ("redis", False), ("a/b:1", False)],
)
def test_is_id(image: str, expected: bool) -> None:
    """A bare id is told from a name."""
    assert is_id(image) is expected
