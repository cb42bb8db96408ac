"""Redis that does not keep what it is given, or takes nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drills.drill import Drill
from drills.services import paused
from support.machine import Machine

NAME = "immich_redis"
MIB = 1 << 20
# Somebody's tool that opens connections and forgets them; they are named so that they can be told from Immich's.
LEAK = (
    "import redis, time\n"
    "kept = []\n"
    "while True:\n"
    "    try:\n"
    "        kept.append(redis.Redis(host='redis', client_name='leak'))\n"
    "        kept[-1].ping()\n"
    "    except redis.RedisError:\n"
    "        time.sleep(0.5)\n"
)

# Another program's cache, until there is no limit any more.
CACHE = (
    "import itertools, redis, time\n"
    "client = redis.Redis(host='redis', client_name='cache')\n"
    "for number in itertools.count():\n"
    "    if int(client.config_get('maxmemory')['maxmemory']) == 0:\n"
    "        break\n"
    "    try:\n"
    "        client.set(f'cache:{number}', 'x' * 1000)\n"
    "    except redis.exceptions.OutOfMemoryError:\n"
    "        time.sleep(0.1)\n"
)


def settings(machine: Machine, **wanted: object) -> None:
    """`CONFIG SET`."""
    for name, value in wanted.items():
        machine.redis("config", "set", name.replace("_", "-"), str(value))


def data(machine: Machine) -> Path:
    """The folder with Redis' data, as the machine has it."""
    return Path(machine.engine.value(NAME, "{{(index .Mounts 0).Source}}"))


def used(machine: Machine) -> int:
    told = dict(line.split(":", 1) for line in machine.redis("info", "memory").split() if ":" in line)
    return int(told["used_memory"])


@contextmanager
def limited(machine: Machine, **wanted: str) -> Iterator[None]:
    """maxmemory is just above what is used, with these settings, and another program keeps its cache in this Redis."""
    settings(machine, maxmemory=used(machine) + MIB, **wanted)
    machine.engine.run("exec", "--detach", "immich_server", "python3", "-c", CACHE)
    yield
    settings(machine, maxmemory=0)
    machine.wait_for("the cache ends", lambda: "name=cache " not in machine.redis("client", "list"))
    machine.redis("eval", "for _, key in ipairs(redis.call('keys', 'cache:*')) do redis.call('del', key) end", "0")


@contextmanager
def folder_closed(machine: Machine) -> Iterator[None]:
    """Redis may not write to the folder with its data, and saves after the next write."""
    folder = data(machine)
    owner = folder.stat()
    _own(folder, 0)
    settings(machine, save="1 1")
    yield
    _own(folder, owner.st_uid)
    machine.redis("bgsave")
    settings(machine, save="60 1")


def _own(folder: Path, user: int) -> None:
    os.chown(folder, user, user)


@contextmanager
def memory_full(machine: Machine) -> Iterator[None]:
    with limited(machine):
        yield


@contextmanager
def evicting(machine: Machine) -> Iterator[None]:
    with limited(machine, maxmemory_policy="allkeys-lru"):
        yield
    settings(machine, maxmemory_policy="noeviction")
    machine.redis("config", "resetstat")
    machine.docker("restart immich_server")  # which makes its queues anew
    machine.wait_until_up()


@contextmanager
def policy_changed(machine: Machine) -> Iterator[None]:
    settings(machine, maxmemory_policy="allkeys-lru")
    yield
    settings(machine, maxmemory_policy="noeviction")


@contextmanager
def snapshot_broken(machine: Machine) -> Iterator[None]:
    """Garbage after the header of dump.rdb, and a restart."""
    machine.docker(f"stop {NAME}")
    snapshot = data(machine) / "dump.rdb"
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole[:9] + b"\xff\x00garbage" * 20)
    machine.docker(f"start {NAME}")
    yield
    machine.docker(f"stop {NAME}")
    snapshot.write_bytes(whole)
    machine.docker(f"start {NAME}")
    machine.docker("restart immich_server")  # Docker waits longer and longer before it tries again
    machine.wait_until_up()


@contextmanager
def connections_used_up(machine: Machine) -> Iterator[None]:
    """A tool keeps opening connections until there are none left."""
    settings(machine, maxclients=60)
    machine.engine.run("exec", "--detach", "immich_server", "python3", "-c", LEAK)
    yield
    machine.immich("kill immich-server")  # with the tool in it
    machine.immich("up -d immich-server")
    machine.wait_until_up()
    settings(machine, maxclients=10000)


@contextmanager
def flushed(machine: Machine) -> Iterator[None]:
    """FLUSHALL, as a "clear cache" button of some tool does."""
    machine.redis("flushall")
    yield


@contextmanager
def password_set(machine: Machine) -> Iterator[None]:
    """Redis is made anew with a password that nobody else was told."""
    with machine.changed("redis", {"command": ["--requirepass", "new"]}):
        yield


DRILLS = {
    "redis-not-saved": Drill(
        "Redis may not write to its own folder, and a write past `save`.", folder_closed, ("ImmichRedisNotWritable",)
    ),
    "redis-full": Drill("maxmemory is reached, with the policy noeviction.", memory_full, ("ImmichRedisNotWritable",)),
    "redis-policy": Drill("maxmemory-policy is allkeys-lru.", policy_changed, ("ImmichRedisEvicting",)),
    "redis-evicts": Drill("maxmemory is reached, with the policy allkeys-lru.", evicting, ("ImmichRedisEvicting",)),
    "redis-snapshot-broken": Drill("Garbage in dump.rdb, and a restart.", snapshot_broken, ("ImmichRedisDown",)),
    "redis-connections-used-up": Drill(
        "maxclients is reached.", connections_used_up, ("ImmichRedisRejectingConnections",)
    ),
    "redis-flushed": Drill("FLUSHALL while no job waits.", flushed, ()),
    "redis-paused": Drill(
        "`docker pause immich_redis`.", paused(NAME), ("ImmichRedisDown",), ("ImmichContainerPaused",)
    ),
    "redis-password-set": Drill(
        "Redis asks for a password that only it knows.",
        password_set,
        ("ImmichRedisAuthFailing",),
        ("ImmichCollectorFailing",),
    ),
}
