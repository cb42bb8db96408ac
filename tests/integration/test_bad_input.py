"""What a person gets who sets something wrong: one clear sentence with the mend, and the rest unaffected."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from immich_vitals.demo.queues import create_queues
from immich_vitals.demo.servers import Postgres, Redis
from immich_vitals.grants import grants_sql
from support.immich_database import create_tables

# The collectors that ask Postgres.
DATABASE = ("postgres", "postgres_patrol", "library", "version")


@pytest.fixture(scope="module")
def immich(server_folder: Path) -> Iterator[dict[str, str]]:
    """Settings for a Postgres with a password and Immich's tables, and a Redis with a password."""
    with (
        Postgres(server_folder / "strict") as postgres,
        Redis(server_folder / "strict-redis", "--requirepass", "r3d1s") as redis,
    ):
        with redis.client(password="r3d1s") as client:
            create_queues(client)
        with postgres.connect() as connection:
            connection.execute("CREATE DATABASE immich")
            connection.execute("CREATE ROLE vitals LOGIN PASSWORD 'gehe1m'")
            connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'gehe1m'")
            connection.execute("REVOKE CONNECT ON DATABASE immich FROM PUBLIC")
        with postgres.connect("immich") as connection:
            create_tables(connection, "2.7.5")
            connection.execute(grants_sql("immich", "vitals"))
        (postgres.data / "pg_hba.conf").write_text("host all postgres all trust\nhost all all all scram-sha-256\n")
        with postgres.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        yield {
            "DB_HOSTNAME": "127.0.0.1",
            "DB_PORT": str(postgres.port),
            "DB_USERNAME": "vitals",
            "DB_PASSWORD": "gehe1m",
            "REDIS_HOSTNAME": "127.0.0.1",
            "REDIS_PORT": str(redis.port),
            "REDIS_PASSWORD": "r3d1s",
            "IMMICH_VITALS_DISABLE": "container,container_usage,log",
        }


def check(environ: Mapping[str, str]) -> tuple[int, dict[str, tuple[str, str]]]:
    """`immich-vitals check`: the exit code, and what each collector says."""
    done = subprocess.run(
        [sys.executable, "-m", "immich_vitals", "check"], env={"PATH": os.environ["PATH"], **environ},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    for secret in ("gehe1m", "r3d1s"):
        assert secret not in done.stdout + done.stderr
    table = done.stdout.split("\n\n", 1)[0].splitlines()
    rows = [line.split(maxsplit=2) for line in table]
    return done.returncode, {name: (state, says) for name, state, says in rows}


def test_all_is_well(immich: dict[str, str]) -> None:
    """With the right settings everything enabled answers."""
    code, said = check(immich)
    watched = ("host", "postgres", "library", "queue", "redis")
    assert {name: said[name][0] for name in watched} == dict.fromkeys(watched, "ok")
    assert [words for words in said.values() if words[0] not in ("ok", "off")] == []
    assert code == 0


@pytest.mark.parametrize(
    ("wrong", "failing", "words"),
    [
        ({"DB_PASSWORD": "gehe1m-no"}, DATABASE, ("password", "DB_PASSWORD")),
        ({"DB_USERNAME": "stranger"}, DATABASE, ("grants",)),
        ({"DB_DATABASE_NAME": "foto"}, DATABASE, ("foto", "DB_DATABASE_NAME")),
        ({"DB_PORT": "1"}, DATABASE, ("refuses the connection", "DB_PORT")),
        ({"DB_HOSTNAME": "no-such-host.invalid"}, DATABASE, ("no-such-host.invalid", "DB_HOSTNAME")),
        ({"REDIS_PASSWORD": ""}, ("redis", "queue"), ("password", "REDIS_PASSWORD")),
        ({"REDIS_PASSWORD": "r3d1s-no"}, ("redis", "queue"), ("password", "REDIS_PASSWORD")),
        ({"REDIS_PORT": "1"}, ("redis", "queue"), ("refuses the connection", "REDIS_PORT")),
        (
            {"DOCKER_HOST": "unix:///nowhere/docker.sock", "IMMICH_VITALS_DISABLE": ""},
            ("container", "container_usage", "log"),
            ("/nowhere/docker.sock",),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_one_thing_wrong(
    immich: dict[str, str], wrong: dict[str, str], failing: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """What is wrong is said in words with the mend, exactly its collectors fail, and the exit code is 1."""
    code, said = check({**immich, **wrong})
    assert {name for name, (state, _) in said.items() if state == "FAILED"} == set(failing)
    for name in failing:
        sentence = said[name][1]
        assert "To mend it: " in sentence
        assert all(word in sentence for word in words), sentence
    assert code == 1


def test_a_missing_grant_names_the_table(immich: dict[str, str]) -> None:
    """A role that may not read a table is told which, and where the grants come from; Postgres itself is well."""
    admin = f"host=127.0.0.1 port={immich['DB_PORT']} user=postgres dbname=immich"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("REVOKE SELECT ON asset_job_status FROM vitals")
        try:
            code, said = check(immich)
        finally:
            connection.execute(grants_sql("immich", "vitals"))
    assert said["postgres"][0] == "ok"
    assert said["library"][0] == "FAILED"
    assert "asset_job_status" in said["library"][1]
    assert "immich-vitals grants" in said["library"][1]
    assert code == 1


def test_a_path_that_does_not_exist(immich: dict[str, str], tmp_path: Path) -> None:
    """A watched path that is not there is named; the others are measured as usual."""
    media = tmp_path / "media"
    media.mkdir()
    code, said = check(
        {**immich, "IMMICH_MEDIA_LOCATION": str(media), "IMMICH_VITALS_MODEL_CACHE_PATH": "/nowhere/models"}
    )
    assert said["postgres"][0] == "ok"
    assert said["filesystem"][0] == "PARTLY"
    assert "/nowhere/models" in said["filesystem"][1]
    assert code == 1
