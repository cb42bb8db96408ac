"""The image of this tree, built once for all workers of a run."""

import fcntl
import os
from pathlib import Path

import pytest

from support import docker_engine, images
from support.docker_engine import Engine
from support.registry import need_registry

ROOT = Path(__file__).parents[2]
IMAGE = "immich-vitals"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `docker save` gives of `immich-vitals`, built by the Dockerfile on a real engine.

    Its base is a stand-in (see `images.import_base`). Skips the test where a part is missing."""
    for reason in (docker_engine.why_not(), images.why_not()):
        if reason is not None:
            assert not os.environ.get("FORBID_SKIPS"), reason
            pytest.skip(reason)
    need_registry()
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    saved = folder / "immich-vitals-image.tar"
    with (folder / "immich-vitals-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not saved.exists():
            with Engine() as engine:
                images.build(engine, ROOT, images.import_base(engine, own), IMAGE)
                engine.run("save", "--output", f"{saved}.part", IMAGE)
            saved.with_name(f"{saved.name}.part").rename(saved)
    return saved
