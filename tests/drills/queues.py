"""Background jobs that wait, fail, or are held back."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drills.drill import Drill
from support.machine import Machine

SERVER = "immich_server"
THUMBNAILS = "immich_bull:thumbnailGeneration"
# A phone: one photo after the other, all of them whole; then one that was cut off, and one that is empty.
PHONE = """
import sys
sys.path.insert(0, "/stand-ins")
import http.client
from immich_vitals.demo.web import KEY

def upload(name, content):
    head = f'--b\\r\\nContent-Disposition: form-data; name="assetData"; filename="{name}"\\r\\n\\r\\n'
    connection = http.client.HTTPConnection("127.0.0.1", 2283, timeout=60)
    kind = {"Content-Type": "multipart/form-data; boundary=b", "x-api-key": KEY}
    connection.request("POST", "/api/assets", head.encode() + content + b"\\r\\n--b--\\r\\n", kind)
    assert connection.getresponse().status == 201

for number in range(200):
    upload(f"IMG_{number}.jpg", b"\\xff\\xd8\\xff\\xe0 photo %d \\xff\\xd9" % number)
upload("IMG_cut.jpg", b"\\xff\\xd8\\xff\\xe0 photo that was cut off")
upload("IMG_empty.heic", b"")
"""
# "Refresh metadata" of photos, again and again, until the table has its key.
REFRESH = """
import sys, time
sys.path.insert(0, "/stand-ins")
import immich_server as server
photos = "SELECT id::text FROM asset WHERE type = 'IMAGE' AND thumbhash IS NOT NULL AND visibility = 'timeline'"
key = "SELECT 1 FROM pg_constraint WHERE conname = 'asset_job_status_pkey'"
with server.queues() as client, server.database() as connection:
    for (asset,) in connection.execute(photos).fetchall() * 100:
        if connection.execute(key).fetchone():
            break
        server.add_jobs(client, "metadataExtraction", "AssetExtractMetadata", 1, asset)
        time.sleep(0.1)
"""


def asset(machine: Machine) -> str:
    """A photo that is whole."""
    return machine.sql(
        "SELECT id FROM asset WHERE type = 'IMAGE' AND thumbhash IS NOT NULL AND NOT \"isExternal\""
        ' AND "deletedAt" IS NULL ORDER BY id LIMIT 1'
    )


@contextmanager
def thumbnails_paused(machine: Machine) -> Iterator[None]:
    """Pause is pressed at the queue of thumbnails, as BullMQ does it, and photos come in."""
    machine.redis("hset", f"{THUMBNAILS}:meta", "paused", "1")
    if machine.redis("exists", f"{THUMBNAILS}:wait") == "1":
        machine.redis("rename", f"{THUMBNAILS}:wait", f"{THUMBNAILS}:paused")
    machine.redis("del", f"{THUMBNAILS}:marker")
    machine.add_job("thumbnailGeneration", "AssetGenerateThumbnails", asset(machine), 20)
    yield
    machine.redis("hdel", f"{THUMBNAILS}:meta", "paused")
    machine.redis("rename", f"{THUMBNAILS}:paused", f"{THUMBNAILS}:wait")
    machine.redis("zadd", f"{THUMBNAILS}:marker", "0", "0")


def processes(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from processes(int(child))


@contextmanager
def server_frozen(machine: Machine) -> Iterator[None]:
    """All processes of the server get SIGSTOP while it works; their connections stay open."""
    machine.add_job("thumbnailGeneration", "AssetGenerateThumbnails", asset(machine), 200)
    for pid in processes(machine.host_pid(SERVER)):
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in processes(machine.host_pid(SERVER)):
        os.kill(pid, signal.SIGCONT)
    machine.wait_until_up()


@contextmanager
def no_workers(machine: Machine) -> Iterator[None]:
    """IMMICH_WORKERS_INCLUDE names the api alone, and there is no other server."""
    with machine.changed("immich-server", {"environment": {"IMMICH_WORKERS_INCLUDE": "api"}}):
        machine.wait_until_up()
        machine.add_job("thumbnailGeneration", "AssetGenerateThumbnails", asset(machine), 20)
        yield


@contextmanager
def job_orphaned(machine: Machine) -> Iterator[None]:
    """A worker lost a job that it had begun. BullMQ's own takes it back within a minute, unless it hangs; the
    stand-in's does so at its start only."""
    sidecar = "immich_bull:sidecar"
    machine.redis("hset", f"{sidecar}:meta", "paused", "1")
    machine.add_job("sidecar", "SidecarCheck", asset(machine))
    machine.redis("lmove", f"{sidecar}:paused", f"{sidecar}:active", "right", "left")
    machine.redis("hdel", f"{sidecar}:meta", "paused")
    yield
    machine.redis("lmove", f"{sidecar}:active", f"{sidecar}:wait", "right", "left")
    machine.redis("zadd", f"{sidecar}:marker", "0", "0")


@contextmanager
def two_bad_photos(machine: Machine) -> Iterator[None]:
    machine.sh(f"docker exec -i {SERVER} python3 - <<'END'\n{PHONE}\nEND")
    yield


@contextmanager
def constraint_gone(machine: Machine) -> Iterator[None]:
    """A restore lost the key of a table, and all metadata are to be read anew: every such job fails."""
    machine.sql("ALTER TABLE asset_job_status DROP CONSTRAINT asset_job_status_pkey")
    machine.engine.run("exec", "--detach", SERVER, "python3", "-c", REFRESH)
    yield
    machine.sql('ALTER TABLE asset_job_status ADD PRIMARY KEY ("assetId")')


DRILLS: Mapping[str, Drill] = {
    "thumbnails-paused": Drill(
        "The queue of thumbnails is paused, and jobs wait in it.", thumbnails_paused, ("ImmichQueuePaused",)
    ),
    "server-frozen": Drill("SIGSTOP to the server while jobs wait.", server_frozen, ("ImmichServerUnreachable",)),
    "server-without-workers": Drill(
        "The server runs without its workers, and jobs wait.", no_workers, ("ImmichQueueNoWorkers",)
    ),
    "job-orphaned": Drill(
        "A job counts as running, and no worker has it.", job_orphaned, ("ImmichQueueOrphanedJobs",)
    ),
    "two-bad-photos": Drill(
        "200 photos come in, one of them cut off and one empty.", two_bad_photos, (), changes=True
    ),
    "jobs-failing": Drill(
        "A table has lost its key, so every job that reads metadata fails.", constraint_gone, ("ImmichJobsFailing",)
    ),
}  # fmt: skip
