"""The exporter as a process of its own, as people run it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from immich_vitals.demo.servers import free_port


class Exporter:
    """`immich-vitals serve` with this environment on a free loopback port; ends with the block.

    `through` is a command that becomes the one behind it, such as `unshare --mount`.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *flags: str, through: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # not a pipe: a full one would stop the exporter
        self._process = subprocess.Popen(
            [*through, sys.executable, "-m", "immich_vitals", "serve",
             f"--web.listen-address=127.0.0.1:{self.port}", *flags],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(environ or {})},
            stdout=self._said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until = time.monotonic() + 30
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"the exporter did not start: {self.stop()}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def memory(self, word: str = "VmRSS") -> int:
        """Memory of the process in MiB: now, or with `VmHWM` at its highest."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(word + ":"))

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send the signal and return what the process said. Raises `TimeoutExpired` when it does not end."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._said.seek(0)
        return self._said.read()

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process.poll() is None:
                self.stop()
        finally:
            self._said.close()
