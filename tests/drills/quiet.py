"""What happens on every machine with Immich, and is no fault: nobody may be told of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import Machine

IMPORTED = 3_000  # as the rules see it, five times as many
IMPORT_SECONDS = 240.0
HOUR = 60.0  # with rules that are sixty times as fast
IMPORT = f"""
import sys; sys.path.insert(0, "/stand-ins")
import immich_server as s
import hashlib, json, uuid
from pathlib import Path
photo = next(Path("/data/upload").rglob("*.jpg")).read_bytes()
with s.database() as connection, s.queues() as client:
    (owner,) = connection.execute('SELECT id::text FROM "user" LIMIT 1').fetchone()
    for _ in range({IMPORTED // 500}):
        found = []
        for _ in range(500):
            asset = str(uuid.uuid4())
            path = s.spread("upload", owner, asset, ".jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo)
            found.append((asset, path))
        with connection.transaction():
            for asset, path in found:
                s.add_asset(connection, asset, owner, path, asset.encode())
        for asset, _ in found:
            s.add_jobs(client, "metadataExtraction", "AssetExtractMetadata", 1, asset)
"""
PENDING = """
    SELECT count(*) FROM asset a
    WHERE "deviceId" = 'phone' AND NOT EXISTS (SELECT FROM smart_search WHERE "assetId" = a.id)
"""


def restarted(words: str) -> Injection:
    """`docker compose` with these words on Immich's project."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.immich(words)
        machine.wait_until_up()
        yield

    return inject


@contextmanager
def cold_start(machine: Machine) -> Iterator[None]:
    """The machine was switched off, and everything starts at once."""
    names = "immich_server immich_machine_learning immich_postgres immich_redis nginx immich-vitals-exporter-1"
    machine.docker(f"kill {names}")
    time.sleep(5)
    machine.docker(f"start {names}")
    machine.wait_until_up()
    yield


@contextmanager
def daemon_restarted(machine: Machine) -> Iterator[None]:
    """`systemctl restart docker`, as by an update of the packages: all containers start anew."""
    machine.engine.restart()
    machine.wait_until_up()
    yield


@contextmanager
def imported(machine: Machine) -> Iterator[None]:
    """Photos are uploaded, and all that Immich makes of a photo is made."""
    machine.engine.run("exec", "immich_server", "python3", "-c", IMPORT, seconds=IMPORT_SECONDS)
    machine.wait_for("all is made of them", lambda: machine.sql(PENDING) == "0", IMPORT_SECONDS)
    yield


@contextmanager
def odd_uploads(machine: Machine) -> Iterator[None]:
    """Five photos that are there already, three uploads that end half-way, three wrong passwords, and a health check of
    Postgres that names no user."""
    photo = next(machine.on_disk("library").rglob("upload/**/*.jpg")).read_bytes() + b"once"
    assert machine.upload(photo) == 201
    assert [machine.upload(photo) for _ in range(5)] == [200] * 5
    for _ in range(3):
        machine.abort_upload()
        assert machine.post("/api/auth/login", b"{}", "application/json") == 401
        machine.docker("exec immich_postgres /usr/lib/postgresql/17/bin/psql -h /tmp -U root -d immich -c '' || true")
    yield


@contextmanager
def nothing(_: Machine) -> Iterator[None]:
    """Nothing happens for an hour."""
    time.sleep(HOUR)
    yield


DRILLS = {
    "cold-start": Drill("The machine is switched off without a word, and on again.", cold_start, (), slow=True),
    "planned-restart": Drill("`docker compose restart`.", restarted("restart"), (), slow=True),
    "made-anew": Drill("`docker compose up -d --force-recreate`.", restarted("up -d --force-recreate"), (), slow=True),
    "docker-restarted": Drill(
        "Docker's daemon is restarted, and all containers with it.", daemon_restarted, (), slow=True
    ),
    "import": Drill(
        f"{IMPORTED:,} photos are uploaded and processed.", imported, (), changes=True, slow=True, spoils=True
    ),
    "odd-uploads": Drill(
        "Five duplicate uploads, three aborted ones, three wrong passwords, a health check without a user.",
        odd_uploads,
        (),
        changes=True,
    ),
    "hour-of-nothing": Drill("Nothing happens for an hour.", nothing, ()),
}
