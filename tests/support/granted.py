"""A world whose administrator has run what `immich-vitals grants` prints."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
import redis

from immich_vitals.demo.world import DATABASE, World
from immich_vitals.grants import PASSWORD

ROLE, CHOSEN = "vitals", "a-password-of-ones-own"


@dataclass(frozen=True, slots=True)
class Granted:
    """The world and the settings with which an exporter watches it by the granted logins."""

    world: World
    environment: Mapping[str, str]

    def postgres(self) -> psycopg.Connection[tuple[object, ...]]:
        dsn = f"host=127.0.0.1 port={self.world.postgres.port} user={ROLE} password={CHOSEN} dbname={DATABASE}"
        return psycopg.connect(dsn, autocommit=True)

    def redis(self) -> redis.Redis:
        return self.world.redis.client(username=ROLE, password=CHOSEN)


def grant(world: World) -> Granted:
    """Make both logins in the world; the SQL is run twice, since it may be run again."""
    printed = subprocess.run(
        [sys.executable, "-m", "immich_vitals", "grants", "--role", ROLE],
        env={"PATH": os.environ["PATH"], "DB_HOSTNAME": "database"},
        capture_output=True, text=True, check=True,
    ).stdout.replace(PASSWORD, CHOSEN)  # fmt: skip
    psql = [str(world.postgres.binaries / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-d"]
    for _ in range(2):
        done = subprocess.run([*psql, world.postgres.dsn(DATABASE)], input=printed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    # Elsewhere in the demo nobody needs a password.
    access = world.postgres.data / "pg_hba.conf"
    access.write_text(f"host all {ROLE} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
    with world.postgres.connect() as admin:
        admin.execute("SELECT pg_reload_conf()")
    line = re.search(r"^--   (ACL SETUSER .*)$", printed, re.MULTILINE)
    assert line is not None
    with world.redis.client() as client:
        client.execute_command(*line[1].split())  # type: ignore[no-untyped-call]
    logins = {
        "DB_URL": f"postgresql://{ROLE}:{CHOSEN}@127.0.0.1:{world.postgres.port}/{DATABASE}",
        "REDIS_URL": f"redis://{ROLE}:{CHOSEN}@127.0.0.1:{world.redis.port}/0",
    }
    return Granted(world, {**world.environment(), "IMMICH_VITALS_FILE_AUDIT": "true", **logins})
