"""What breaks in machine learning: its models, and its worker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drills.drill import Drill
from support.machine import Machine

CONTAINER = "immich_machine_learning"
MODEL = "clip/ViT-B-32__openai/visual/model.onnx"
SEARCHES, PAUSE = 4, 2.0


def cache(machine: Machine) -> Path:
    """The volume of the models, as the machine sees it."""
    return Path(
        machine.engine.value(CONTAINER, '{{range .Mounts}}{{if eq .Destination "/cache"}}{{.Source}}{{end}}{{end}}')
    )


def search(machine: Machine) -> None:
    """Photos are looked at anew, which asks for the model."""
    asset = machine.sql('SELECT id FROM asset WHERE "deletedAt" IS NULL AND thumbhash IS NOT NULL LIMIT 1')
    machine.add_job("smartSearch", "SmartSearch", asset)


def kill_workers(machine: Machine, signal: str) -> None:
    """End the workers of machine learning, not their master, as the kernel does."""
    machine.docker(f"exec {CONTAINER} sh -c 'for p in /proc/[0-9]*; do read -r _ _ _ parent _ <$p/stat;"
                   f" [ $parent = 7 ] && kill -{signal} $(basename $p) || true; done'")  # fmt: skip


@contextmanager
def model_cut_short(machine: Machine) -> Iterator[None]:
    """A model's file lost its end, as when the disk was full during its download."""
    model = cache(machine) / MODEL
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    machine.docker(f"restart {CONTAINER}")
    for _ in range(SEARCHES):
        search(machine)
        time.sleep(PAUSE)
    yield
    model.write_bytes(content)
    machine.docker(f"restart {CONTAINER}")


@contextmanager
def workers_killed(machine: Machine) -> Iterator[None]:
    """The worker crashes again and again; the container stays up, and healthy."""
    for _ in range(SEARCHES):
        kill_workers(machine, "SEGV")
        time.sleep(PAUSE)
    yield


@contextmanager
def idle(machine: Machine) -> Iterator[None]:
    """The worker leaves by itself, as it does when nobody has searched for five minutes, and another one comes."""
    for _ in range(2):
        search(machine)
        time.sleep(PAUSE)
        kill_workers(machine, "INT")
    yield


DRILLS = {
    "model-cut-short": Drill(
        "The file of a model in the cache is half there.", model_cut_short, ("ImmichModelCacheBroken",)
    ),
    "machine-learning-crashes": Drill(
        "The worker of machine learning crashes on every search; its container runs on.",
        workers_killed,
        ("ImmichMachineLearningCrashing",),
    ),
    "machine-learning-idle": Drill("Machine learning's worker leaves since nobody searched, twice.", idle, ()),
}
