"""A temporary folder whose whole content ends with us: files, mounts, and every process that works inside it.

A second process waits for the end of a pipe that only we hold open. So it also comes when we are killed with
SIGKILL, and there is only one way in which things are cleared away.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE_SECONDS = 8.0


class Scratch:
    """The folder is `path` from the moment of entering. Processes belong to it by their working directory."""

    path: Path

    def __init__(self, prefix: str = "immich-vitals-demo-") -> None:
        self._prefix = prefix
        self._sweeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.path = Path(tempfile.mkdtemp(prefix=self._prefix))
        self.path.chmod(0o755)  # the servers may run as another user
        self._sweeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "immich_vitals.demo.scratch", str(self.path)],
            stdin=subprocess.PIPE, cwd="/", start_new_session=True, env=environment(),
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sweeper is not None and self._sweeper.stdin is not None:
            self._sweeper.stdin.close()
            self._sweeper.wait()


def environment() -> dict[str, str]:
    """Our environment, in which a child finds this package wherever we found it."""
    package = str(Path(__file__).parents[2])
    found = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found)}


def sweep(folder: Path) -> None:
    """End every process that works inside the folder, unmount what is mounted there, remove it."""
    for process in inhabitants(folder):
        _ask_to_end(process, folder)
    until = time.monotonic() + PATIENCE_SECONDS
    while (left := inhabitants(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)
        left = inhabitants(folder)
    for mount in _mounts(folder):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def inhabitants(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is inside the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _ask_to_end(process: psutil.Process, folder: Path) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.name() != "postgres":
            process.terminate()
        elif process.pid in _postmasters(folder):
            # An immediate shutdown: nobody needs the data, and it gives back its shared memory, as SIGKILL does not.
            process.send_signal(signal.SIGQUIT)
        process.resume()


def _postmasters(folder: Path) -> set[int]:
    found = set()
    for file in folder.glob("**/data/postmaster.pid"):
        with contextlib.suppress(OSError, ValueError):
            found.add(int(file.read_text(encoding="utf-8").split("\n", 1)[0]))
    return found


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [point for line in lines if Path(point := line.split(" ")[1]).is_relative_to(folder)]


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]))
