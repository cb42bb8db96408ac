import base64
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from immich_vitals import config as config_module
from immich_vitals.config import Config, ConfigError, Mistake, load


def mistakes(environ: Mapping[str, str], **flags: list[str]) -> list[Mistake]:
    with pytest.raises(ConfigError) as caught:
        load(environ, flags, ["host", "redis"])
    return list(caught.value.mistakes)


def ioredis(options: object) -> str:
    return "ioredis://" + base64.b64encode(json.dumps(options).encode()).decode()


def test_nothing_configured() -> None:
    """With nothing set it starts: no database, no Redis, the default address."""
    config = load({})
    assert config.postgres is None
    assert config.redis is None
    assert config.paths == ()
    assert config.web.listen == (":12283",)


def test_the_stock_env_file_is_a_configuration() -> None:
    """The five settings of Immich's example .env are enough for Postgres and Redis at their default places."""
    config = load(
        {
            "UPLOAD_LOCATION": "./library",
            "DB_DATA_LOCATION": "./postgres",
            "IMMICH_VERSION": "v2",
            "DB_PASSWORD": "postgres",
            "DB_USERNAME": "postgres",
            "DB_DATABASE_NAME": "immich",
        }
    )
    assert config.postgres is not None
    assert (config.postgres.where, config.postgres.user, config.postgres.database) == (
        "database:5432",
        "postgres",
        "immich",
    )
    assert config.redis is not None
    assert config.redis.where == "redis:6379"


def test_db_url() -> None:
    """The URL wins over the five, with percent-encoding, and parameters for Immich's own client are left out."""
    url = "postgresql://im%40mich:p%3Aw%2Fd@db.lan:5433/photos?sslmode=no-verify&uselibpqcompat=true"
    config = load({"DB_URL": url, "DB_HOSTNAME": "ignored"})
    assert config.postgres is not None
    assert (config.postgres.host, config.postgres.port, config.postgres.user) == ("db.lan", 5433, "im@mich")
    assert config.postgres.database == "photos"
    assert config.postgres.password is not None
    assert config.postgres.password.value == "p:w/d"
    assert config.postgres.options == {"sslmode": "require"}


def test_our_own_login_wins() -> None:
    """A login of our own takes the place of Immich's, whose password is then not sent."""
    config = load(
        {"DB_PASSWORD": "immichs", "IMMICH_VITALS_DB_USERNAME": "vitals", "IMMICH_VITALS_REDIS_PASSWORD": "r"}
    )
    assert config.postgres is not None
    assert (config.postgres.user, config.postgres.password) == ("vitals", None)
    assert config.redis is not None
    assert config.redis.password is not None
    assert config.redis.password.value == "r"


@pytest.mark.parametrize("padding", [True, False])
def test_ioredis_url(padding: bool) -> None:
    """Immich's form of the Redis URL, with Sentinel, TLS and database; with and without base64 padding."""
    url = ioredis(
        {"sentinels": [{"host": "s1", "port": 26380}, {"host": "s2"}], "name": "mymaster", "db": 2,
         "username": "u", "password": "geheim", "tls": {"rejectUnauthorized": False}}
    )  # fmt: skip
    redis = load({"REDIS_URL": url if padding else url.rstrip("=")}).redis
    assert redis is not None
    assert redis.sentinels == (("s1", 26380), ("s2", 26379))
    assert (redis.sentinel_name, redis.db, redis.username) == ("mymaster", 2, "u")
    assert redis.tls
    assert not redis.tls_verify
    assert redis.password is not None
    assert redis.password.value == "geheim"


@pytest.mark.parametrize(
    ("url", "host", "socket", "tls", "db"),
    [
        ("redis://:pw@cache:6380/3", "cache", None, False, 3),
        ("rediss://u:pw@cache", "cache", None, True, 0),
        ("unix:///run/redis.sock?db=1", "localhost", "/run/redis.sock", False, 1),
        (ioredis({"path": "/run/r.sock"}), "localhost", "/run/r.sock", False, 0),
    ],
)
def test_redis_urls(url: str, host: str, socket: str | None, tls: bool, db: int) -> None:
    """The usual forms of a Redis URL."""
    redis = load({"REDIS_URL": url}).redis
    assert redis is not None
    assert (redis.host, redis.socket, redis.tls, redis.db) == (host, socket, tls, db)


def test_all_mistakes_at_once() -> None:
    """Every mistake is reported in one go, each with the setting, the value and the mend."""
    found = mistakes(
        {
            "DB_PORT": "abc",
            "DB_PASSWORD": "x",
            "DB_SSL_MODE": "prefered",
            "REDIS_PORT": "70000",
            "IMMICH_VITALS_LIBRARY_INTERVAL": "five minutes",
            "IMMICH_VITALS_DISABLE": "hosts",
            "IMMICH_VITALS_CONTAINERS": "databse=pg, proxy",
            "IMMICH_VITALS_LISTEN_ADDRES": ":1",
            "DOCKER_HOST": "/var/run/docker.sock",
            "IMMICH_VITALS_TELEMETRY_PATH": "metrics",
        }
    )
    assert {mistake.setting for mistake in found} == {
        "DB_PORT",
        "DB_SSL_MODE",
        "REDIS_PORT",
        "IMMICH_VITALS_LIBRARY_INTERVAL",
        "IMMICH_VITALS_DISABLE",
        "IMMICH_VITALS_CONTAINERS",
        "IMMICH_VITALS_LISTEN_ADDRES",
        "DOCKER_HOST",
        "IMMICH_VITALS_TELEMETRY_PATH",
    }
    text = "\n".join(str(mistake) for mistake in found)
    for mend in ("did you mean prefer?", "did you mean host?", "did you mean database?", "LISTEN_ADDRESS?", "'abc'"):
        assert mend in text
    assert all(mistake.mend for mistake in found)


@pytest.mark.parametrize(
    "environ",
    [
        {"DB_URL": "mysql://root:hunter2@db/x"},
        {"DB_URL": "postgresql://root:hunter2@db:port/x"},
        {"DB_URL": "postgresql://root:hunter2@db/x?sslmode=hunter3"},
        {"REDIS_URL": "ioredis://hunter2!"},
        {"REDIS_URL": "ioredis://" + base64.b64encode(b'{"password": "hunter2"').decode()},
        {"REDIS_URL": ioredis({"password": "hunter2", "port": "many"})},
        {"REDIS_URL": ioredis({"password": "hunter2", "sentinels": ["a"]})},
        {"REDIS_URL": ioredis({"password": "hunter2", "sentinels": [{"host": "a"}]})},
        {"REDIS_URL": ioredis(["hunter2"])},
        {"REDIS_URL": "redis://:hunter2@h:port"},
        {"REDIS_URL": "redis://:hunter2@h/hunter2"},
        {"REDIS_URL": "memcached://:hunter2@h"},
    ],
)
def test_no_mistake_shows_a_secret(environ: dict[str, str]) -> None:
    """A wrong URL is reported without any of its content."""
    found = mistakes(environ)
    assert found
    assert "hunter" not in str(ConfigError(found))


def test_secrets_are_not_in_a_repr() -> None:
    """Neither repr nor str of the configuration shows a password."""
    config = load({"DB_PASSWORD": "hunter2", "REDIS_URL": "redis://:hunter2@h"})
    assert "hunter2" not in repr(config) + str(config)


def test_secret_files(tmp_path: Path) -> None:
    """A secret can be in a file, whose last line end is not part of it."""
    (tmp_path / "pw").write_text("hunter 2 \n")
    config = load({"DB_PASSWORD_FILE": str(tmp_path / "pw"), "DB_HOSTNAME_FILE": str(tmp_path / "pw")})
    assert config.postgres is not None
    assert config.postgres.password is not None
    assert config.postgres.password.value == "hunter 2 "


def test_secret_files_that_cannot_be(tmp_path: Path) -> None:
    """A file that is missing, empty, or given beside the value is a mistake, not an empty password."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "pw").write_text("hunter2")
    found = mistakes(
        {
            "DB_PASSWORD_FILE": str(tmp_path / "none"),
            "REDIS_PASSWORD_FILE": str(tmp_path / "empty"),
            "DB_URL": "postgresql://h",
            "DB_URL_FILE": str(tmp_path / "pw"),
        }
    )
    assert [mistake.setting for mistake in found] == ["DB_PASSWORD_FILE", "DB_URL_FILE", "REDIS_PASSWORD_FILE"]
    assert "hunter2" not in str(ConfigError(found))


def test_yaml_file(tmp_path: Path) -> None:
    """The YAML file may hold any setting, lists and mappings as such; environment and flags win over it."""
    file = tmp_path / "vitals.yml"
    file.write_text(
        "db_hostname: from-yaml\ndb_port: 6000\nexternal_paths: [/mnt/a, /mnt/b]\n"
        "containers: {database: my-pg}\nlisten_address: ':1'\nlibrary_interval: 10m\n"
    )
    config = load(
        {"IMMICH_VITALS_CONFIG_FILE": str(file), "DB_HOSTNAME": "from-env"},
        {"IMMICH_VITALS_LISTEN_ADDRESS": [":2", "[::1]:3"]},
    )
    assert config.postgres is not None
    assert (config.postgres.host, config.postgres.port) == ("from-env", 6000)
    assert [(watched.role, str(watched.path)) for watched in config.paths] == [
        ("external", "/mnt/a"),
        ("external", "/mnt/b"),
    ]
    assert config.docker.overrides == {"database": "my-pg"}
    assert config.web.listen == (":2", "[::1]:3")
    assert config.library_interval == 600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("db_hostnam: x", "did you mean db_hostname?"),
        ("db_port: [1, 2]", "not a list"),
        ("a: b: c", "line 1"),
        ("db_port: 1\ndb_port: 2", "given twice"),
        ("- db_port", "not a mapping"),
        ("db_port: {a: 1}", "is not a text"),
        ("\x00", "not a text of YAML"),
    ],
)
def test_yaml_with_a_typo(tmp_path: Path, text: str, said: str) -> None:
    """What is wrong in the file is said with its place."""
    file = tmp_path / "vitals.yml"
    file.write_text(text)
    assert said in str(ConfigError(mistakes({"IMMICH_VITALS_CONFIG_FILE": str(file)})))


def test_media_folder(tmp_path: Path) -> None:
    """Of Immich's two names for the media folder the one that exists here is taken; its six folders are below it,
    unless set on their own."""
    (tmp_path / "host").mkdir()
    environ = {"IMMICH_MEDIA_LOCATION": "/data-of-the-container", "UPLOAD_LOCATION": str(tmp_path / "host")}
    assert paths(load(environ))["media"] == tmp_path / "host"
    assert paths(load(environ))["encoded_video"] == tmp_path / "host" / "encoded-video"
    assert paths(load({**environ, "UPLOAD_LOCATION": "/nowhere"}))["media"] == Path("/data-of-the-container")
    own = paths(load({**environ, "IMMICH_VITALS_MEDIA_PATH": "/m", "IMMICH_VITALS_THUMBS_PATH": "/ssd/thumbs"}))
    assert (own["media"], own["thumbs"], own["upload"]) == (Path("/m"), Path("/ssd/thumbs"), Path("/m/upload"))


def test_folder_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer, or that we may not look at, holds up no start: it is taken as named, and the
    collectors say what is wrong with it."""
    answers = threading.Event()

    def look(path: Path) -> bool:
        if path.name == "dead":
            answers.wait(10)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", look)
    monkeypatch.setattr(config_module, "PATH_SECONDS", 0.05)
    found = paths(load({"IMMICH_MEDIA_LOCATION": "/mnt/dead", "DB_DATA_LOCATION": "/nobodys/immich/postgres"}))
    assert (found["media"], found["database"]) == (Path("/mnt/dead"), Path("/nobodys/immich/postgres"))
    answers.set()


def paths(config: Config) -> dict[str, Path]:
    return {watched.role: watched.path for watched in config.paths}


def test_in_a_cluster() -> None:
    """Kubernetes tells where its API is, IPv6 too; a setting of ours wins."""
    told = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    found = load(told).docker.kubernetes
    assert found is not None
    assert (found.api, found.namespace) == ("https://[fd00::1]:6443", None)
    assert found.account == Path("/var/run/secrets/kubernetes.io/serviceaccount")
    mine = {"IMMICH_VITALS_KUBERNETES_API": "https://k8s:6443/", "IMMICH_VITALS_KUBERNETES_NAMESPACE": "photos"}
    found = load({**told, **mine}).docker.kubernetes
    assert found is not None
    assert (found.api, found.namespace) == ("https://k8s:6443", "photos")
    assert load({}).docker.kubernetes is None


@pytest.mark.parametrize("api", ["k8s:6443", "https://user:hunter2@k8s", "https://k8s?x=1", "https://k8s:0"])
def test_cluster_with_mistakes(api: str) -> None:
    """What is no address of an API, or no namespace, is named; a login in it is not shown."""
    with pytest.raises(ConfigError) as caught:
        load({"IMMICH_VITALS_KUBERNETES_API": api, "IMMICH_VITALS_KUBERNETES_NAMESPACE": "Photos/x"})
    settings = {mistake.setting for mistake in caught.value.mistakes}
    assert settings == {"IMMICH_VITALS_KUBERNETES_API", "IMMICH_VITALS_KUBERNETES_NAMESPACE"}
    assert "hunter2" not in str(caught.value)


def test_service_links_are_no_settings() -> None:
    """Kubernetes tells of a Service called immich-vitals in variables that begin as ours do: they hold up no start."""
    words = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "PORT", "PORT_12283_TCP", "PORT_12283_TCP_ADDR")
    load({f"IMMICH_VITALS_{word}": "tcp://10.43.0.9:12283" for word in words})
