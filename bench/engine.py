"""Five real containers, named as Immich's, on a Docker engine of our own; and a proxy that counts what is asked."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker

CONTAINERS = {
    "immich_server": ("immich-server", "ghcr.io/immich-app/immich-server:v2.7.5"),
    "immich_machine_learning": ("immich-machine-learning", "ghcr.io/immich-app/immich-machine-learning:v2.7.5"),
    "immich_postgres": ("database", "ghcr.io/immich-app/postgres:14-vectorchord0.4.3"),
    "immich_redis": ("redis", "docker.io/valkey/valkey:9"),
    "proxy": ("proxy", "docker.io/library/nginx:1"),
}
START_SECONDS = 60.0


def why_not() -> str | None:
    """Why there can be no engine here, or None."""
    if shutil.which("dockerd") is None:
        return "dockerd is not on the PATH (Debian: apt install docker.io)"
    if shutil.which("busybox") is None:
        return "there is no static busybox to make an image of (Debian: apt install busybox-static)"
    if os.geteuid() != 0:
        return "dockerd needs root"
    return None


@contextmanager
def engine(folder: Path) -> Iterator[Path]:
    """A Docker engine with the five containers running; gives its socket. Raises `TimeoutError`."""
    folder.mkdir()
    path = folder / "docker.sock"
    with ExitStack() as ends:
        log = ends.enter_context((folder / "dockerd.log").open("wb"))
        process = subprocess.Popen(
            ["dockerd", "--data-root", str(folder / "root"), "--exec-root", str(folder / "exec"), "-H", f"unix://{path}",
             "--pidfile", str(folder / "pid"), "--bridge=none", "--iptables=false", "--ip6tables=false"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )  # fmt: skip
        ends.callback(_end, process)
        client = ends.enter_context(contextlib.closing(_client(path, process)))
        for name, (service, image) in CONTAINERS.items():
            repository, tag = image.rsplit(":", 1)
            client.api.import_image_from_data(_image(), repository=repository, tag=tag)
            container = client.containers.run(
                image, ["/bin/busybox", "sleep", "86400"], name=name, detach=True, network_mode="none",
                mem_limit="512m",
                labels={"com.docker.compose.project": "immich", "com.docker.compose.service": service},
            )  # fmt: skip
            ends.callback(container.remove, force=True)
        yield path


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def _client(path: Path, process: "subprocess.Popen[bytes]") -> "docker.DockerClient":
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if path.exists():
            with contextlib.suppress(docker.errors.DockerException):
                return docker.DockerClient(base_url=f"unix://{path}")
        time.sleep(0.1)
    raise TimeoutError(f"dockerd did not start: {(path.parent / 'dockerd.log').read_text()[-1000:]}")


def _image() -> bytes:
    program = Path(shutil.which("busybox") or "").read_bytes()
    entry = tarfile.TarInfo("bin/busybox")
    entry.mode, entry.size = 0o755, len(program)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(program))
    return out.getvalue()


class CountingProxy:
    """A unix socket in front of another one; `requests` are the HTTP requests that came through."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.requests: list[str] = []
        self._target = target
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "CountingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(str(self._target))
                for source, sink, count in ((client, upstream, True), (upstream, client, False)):
                    threading.Thread(target=self._relay, args=(source, sink, count), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if count:
                    lines = [line for line in data.split(b"\r\n") if line.endswith(b" HTTP/1.1")]
                    self.requests.extend(line.decode() for line in lines)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
