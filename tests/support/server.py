"""A server program that a test starts in a folder of its own, and that says over HTTP when it is ready."""

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from immich_vitals.demo.servers import free_port

START_SECONDS = 30.0


class Server:
    """Runs until the end of the block. `config` becomes the file `config.yml` in the folder."""

    def __init__(self, folder: Path, program: str, config: str, *flags: str) -> None:
        self._folder = folder
        self._config = config
        self.address = f"127.0.0.1:{free_port()}"
        self._command = [program, "--config.file=config.yml", f"--web.listen-address={self.address}", *flags]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "config.yml").write_text(self._config)
        log_file = self._folder / "log"
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                self.__exit__(None, None, None)
                raise AssertionError(f"{self._command[0]} did not start: {log_file.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/-/ready", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False
