"""A real Docker engine of the tests' own: its own daemon, containerd, data and socket, all in one folder."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

IMAGE = "busybox:test"
START_SECONDS = 60.0
T = TypeVar("T")


class EngineError(Exception):
    """The engine did not do as told; the message ends with what it said."""


def why_not() -> str | None:
    """Why no engine can be started here, or None when one can."""
    missing = [name for name in ("dockerd", "containerd", "runc", "docker", "busybox") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install docker.io busybox-static)"
    return None if os.geteuid() == 0 else "only root can start a Docker engine"


class Engine:
    """A running dockerd without networks, and an image `busybox:test` in it.

    Used as a context manager. Every start has a folder of its own, so that what an aborted run left behind is not
    in the way; what it mounts in there is unmounted at the end. With `networks` it makes networks for its containers
    in a network namespace of its own, which ends with it: its ports are those of nobody else (see `fetch`).
    """

    def __init__(self, *, networks: bool = False) -> None:
        self._networks = networks
        # Short: the longest socket in here, containerd's for its tasks, must stay below 108 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="dk", dir="/tmp"))
        self.socket = self.folder / "d.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._namespace: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of the daemon."""
        assert self._daemon is not None
        return self._daemon.pid

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises `EngineError`."""
        apart = ["nsenter", f"--net=/proc/{self._own_namespace()}/ns/net"] if self._networks else []
        none = ["--iptables=false", "--ip-forward=false", "--ip-masq=false"] if not self._networks else []
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [*apart, "dockerd", "--data-root", str(self.folder / "r"), "--exec-root", str(self.folder / "e"),
                 "--pidfile", str(self.folder / "pid"), "-H", self.host, "--bridge=none", *none,
                 "--ip6tables=false", "--shutdown-timeout=5"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

        def answers() -> bool:
            if self._daemon is None or self._daemon.poll() is not None:
                raise EngineError(f"dockerd ended: {self._log()}")
            return subprocess.run(self._command("version"), capture_output=True).returncode == 0

        self.wait_for(answers, "the engine answers", START_SECONDS)

    def stop(self) -> None:
        """Stop the daemon and its containers."""
        self._stop_daemon()
        self._end_what_is_left()
        if self._namespace is not None:
            self._namespace.communicate()  # closes what it reads, at which it ends
            self._namespace = None

    def restart(self) -> None:
        """Stop the daemon, and start it again; containers that shall always run start again, too."""
        self._stop_daemon()
        self.start()

    def _stop_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(30)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
            self._daemon = None

    def _own_namespace(self) -> int:
        """The process that keeps our network namespace while no daemon runs; it ends with this one, too."""
        if self._namespace is None:
            self._namespace = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "ip link set lo up; echo up; exec cat >/dev/null"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self._namespace.stdout is not None
            self._namespace.stdout.readline()
        return self._namespace.pid

    def run(self, *words: str, seconds: float = 60.0) -> str:
        """The output of `docker <words>`. Raises `EngineError`."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=seconds)
        if done.returncode != 0:
            raise EngineError(f"docker {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def fetch(self, url: str) -> str:
        """What answers at this address of the engine's own network namespace. Raises `EngineError`."""
        asked = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", asked, url],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise EngineError(f"{url}: {done.stderr.strip()}")
        return done.stdout

    def shell(self, script: str) -> None:
        """Run a shell script that calls docker many times. Raises `EngineError`."""
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise EngineError(f"{script}: {done.stderr.strip()}")

    def create(self, name: str, *options: str, command: str = "exec sleep 1000", image: str = IMAGE) -> str:
        """Create a container that runs a shell command; returns its id."""
        return self.run(
            "create", "--name", name, "--network=none", "--stop-timeout=1", *options, image, "/bin/sh", "-c", command
        )

    def start_container(self, name: str, *options: str, command: str = "exec sleep 1000", image: str = IMAGE) -> str:
        """Create a container and start it; returns its id."""
        container = self.create(name, *options, command=command, image=image)
        self.run("start", name)
        return container

    def inspect(self, name: str) -> dict[str, object]:
        """What `docker inspect` says."""
        found: list[dict[str, object]] = json.loads(self.run("container", "inspect", name))
        return found[0]

    def value(self, name: str, template: str) -> str:
        """What `docker inspect --format` says."""
        return self.run("container", "inspect", "--format", template, name)

    def wait_until(self, name: str, template: str, value: str, seconds: float = 30.0) -> None:
        """Wait until `docker inspect --format` says so."""
        self.wait_for(lambda: self.value(name, template) == value, f"{name}: {template} is {value}", seconds)

    def remove_containers(self) -> None:
        """Remove every container."""
        found = self.run("ps", "-aq").split()
        if found:
            self.run("rm", "-f", "-v", *found)

    def wait_for(self, look: Callable[[], T], what: str, seconds: float = 30.0) -> T:
        """The first true thing that `look` returns. Raises `EngineError` when there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.2)  # each look may start programs
        raise EngineError(f"waited {seconds:.0f} s in vain until {what}")

    def __enter__(self) -> Self:
        try:
            self.start()
            self._import_image()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for target in self._mounts():
            subprocess.run(["umount", "-l", target], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, *words: str) -> list[str]:
        return ["docker", "-H", self.host, *words]

    def _import_image(self) -> None:
        busybox = Path(shutil.which("busybox") or "")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(busybox.resolve(), "bin/busybox")
            for applet in ("sh", "sleep", "kill", "true", "cat", "dd", "tail"):
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        done = subprocess.run(self._command("import", "-", IMAGE), input=packed.getvalue(), capture_output=True)
        if done.returncode != 0:
            raise EngineError(f"docker import: {done.stderr.decode()}")

    def _end_what_is_left(self) -> None:
        """End containerd and shims of ours that survived a daemon that had to be killed."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def _mounts(self) -> list[str]:
        """What is mounted below our folder, innermost first."""
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        targets = [line.split()[4] for line in lines]
        return sorted((target for target in targets if target.startswith(f"{self.folder}/")), reverse=True)

    def _log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
