"""The collector `redis`: facts to samples, and what a real server answers."""

import json
import os
import pwd
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Unavailable
from immich_vitals.collectors.redis import RedisCollector, redis_samples
from immich_vitals.config import RedisConfig, Secret, load
from immich_vitals.demo.servers import UNPRIVILEGED, Redis
from immich_vitals.grants import PASSWORD, redis_acl
from immich_vitals.metrics import Sample
from immich_vitals.sources.redis import RedisServer, parse_info, server_facts
from support.golden import cases, check


def values(samples: list[Sample]) -> dict[str, float]:
    return {sample.metric.name: sample.value for sample in samples}


@pytest.mark.parametrize("case", cases("redis"), ids=lambda path: path.name)
def test_golden(case: Path, update_golden: bool) -> None:
    """What the server of the case says of itself gives exactly its expected samples."""
    settings = json.loads((case / "settings.json").read_text(encoding="utf-8"))
    info = (case / "info.txt").read_bytes().decode()
    facts = server_facts(parse_info(info), settings.get("save"), settings.get("stop-writes-on-bgsave-error"))
    check(case, RedisCollector.metrics, redis_samples(facts), update_golden)


def test_nothing_configured() -> None:
    """Without any setting of Redis or Postgres the collector is disabled, and says which setting to give."""
    config = load({})
    assert RedisCollector.from_config(config) is None
    assert "REDIS_HOSTNAME" in RedisCollector.disabled_because(config)


@pytest.mark.parametrize("by", ["port", "socket"])
def test_real_server(redis_server: Redis, context: Context, by: str) -> None:
    """A real server is read over TCP and over its unix socket."""
    config = RedisConfig("127.0.0.1", redis_server.port, socket=str(redis_server.socket) if by == "socket" else None)
    collector = RedisCollector(RedisServer(config))
    found = values(list(collector.collect(context)))
    collector.close()
    assert found["redis_up"] == found["redis_writable"] == found["redis_eviction_policy_safe"] == 1
    assert found["redis_clients"] >= 1


def test_connection_is_kept(redis_server: Redis, context: Context) -> None:
    """Many runs use one connection."""
    collector = RedisCollector(RedisServer(RedisConfig("127.0.0.1", redis_server.port)))
    with redis_server.client() as client:
        before = client.info("stats")["total_connections_received"]
        for _ in range(5):
            list(collector.collect(context))
        assert client.info("stats")["total_connections_received"] == before + 1
        collector.close()


def test_sends_nothing_to_be_allowed_besides(redis_server: Redis, context: Context) -> None:
    """Connecting sends no command that a login with the least rights would be refused."""
    collector = RedisCollector(RedisServer(RedisConfig("127.0.0.1", redis_server.port)))
    with redis_server.client() as client:
        client.config_resetstat()
        list(collector.collect(context))
        asked = set(client.info("commandstats"))
    collector.close()
    assert asked - {"cmdstat_hello", "cmdstat_client"} == {"cmdstat_config", "cmdstat_info"}


def test_least_rights(redis_server: Redis, context: Context) -> None:
    """The rights that `immich-vitals grants` prints are enough."""
    with redis_server.client() as client:
        client.execute_command(*redis_acl("vitals").split())
    config = RedisConfig("127.0.0.1", redis_server.port, db=1, username="vitals", password=Secret(PASSWORD))
    collector = RedisCollector(RedisServer(config))
    assert values(list(collector.collect(context)))["redis_writable"] == 1
    collector.close()


def test_without_config_rights(redis_server: Redis, context: Context) -> None:
    """A login that may not read settings still gets everything that INFO tells. It asks for the two settings once: what
    Redis denied stands in its log of that."""
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">pw", "+info")
    config = RedisConfig("127.0.0.1", redis_server.port, username="poor", password=Secret("pw"))
    collector = RedisCollector(RedisServer(config))
    for _ in range(3):
        assert values(list(collector.collect(context)))["redis_writable"] == 1
    collector.close()
    with redis_server.client() as client:
        assert [(each["object"], each["count"]) for each in client.acl_log()] == [("config", 2)]


@pytest.mark.parametrize(
    ("rights", "db", "command"), [("+ping", 0, "INFO"), ("+info", 1, "SELECT")], ids=["info", "select"]
)
def test_missing_right(redis_server: Redis, context: Context, rights: str, db: int, command: str) -> None:
    """A login without a right we need is told which, and where to get it; nothing is said about the server."""
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "none", "reset", "on", ">pw", rights)
    config = RedisConfig("127.0.0.1", redis_server.port, db=db, username="none", password=Secret("pw"))
    with pytest.raises(Unavailable, match=f"run {command}$") as caught:
        list(RedisCollector(RedisServer(config)).collect(context))
    assert "immich-vitals grants" in caught.value.mend
    assert caught.value.known == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "wants a password and none is set"),
        ({"password": Secret("wrong-pw")}, "rejects the user name or password"),
        ({"username": "nobody", "password": Secret("secret-pw")}, "rejects the user name or password"),
        ({"password": Secret("secret-pw"), "db": 99}, "has no such database"),
    ],
    ids=["none", "wrong", "user", "database"],
)
def test_login_rejected(tmp_path: Path, context: Context, config: dict[str, object], message: str) -> None:
    """A server that rejects our login is there: no redis_up, and a sentence without the password."""
    with Redis(tmp_path / "redis", "--requirepass", "secret-pw") as server:
        collector = RedisCollector(RedisServer(RedisConfig("127.0.0.1", server.port, **config)))  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match=message) as caught:
            list(collector.collect(context))
    assert caught.value.known == ()
    assert caught.value.mend
    assert "-pw" not in caught.value.message + caught.value.mend


def test_right_password(tmp_path: Path, context: Context) -> None:
    """A password, and a database other than 0, are used."""
    with Redis(tmp_path / "redis", "--requirepass", "secret-pw") as server:
        collector = RedisCollector(RedisServer(RedisConfig("127.0.0.1", server.port, 3, password=Secret("secret-pw"))))
        assert values(list(collector.collect(context)))["redis_up"] == 1
        collector.close()


def test_password_not_wanted(redis_server: Redis, context: Context) -> None:
    """A password for a server that has none is told apart from a wrong one."""
    config = RedisConfig("127.0.0.1", redis_server.port, password=Secret("pw"))
    with pytest.raises(Unavailable, match="has no password and one is set"):
        list(RedisCollector(RedisServer(config)).collect(context))


def test_socket_not_for_us(server_folder: Path, tmp_path: Path, context: Context) -> None:
    """A socket that this user may not open is named, with the mend; nothing is said about the server."""
    with Redis(server_folder / tmp_path.name) as server:
        server.socket.chmod(0)
        collector = RedisCollector(RedisServer(RedisConfig(socket=str(server.socket))))
        was = os.geteuid()
        if was == 0:
            os.seteuid(pwd.getpwnam(UNPRIVILEGED).pw_uid)
        try:
            with pytest.raises(Unavailable, match=r"may not open the socket of Redis at .*redis\.sock$") as caught:
                list(collector.collect(context))
        finally:
            os.seteuid(was)
    assert "unixsocketperm" in caught.value.mend
    assert caught.value.known == ()
