"""The exporters that immich-vitals replaces, as Debian packages them, pointed at the same servers."""

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Scraped, wait_for_port
from immich_vitals.demo.servers import Postgres, Redis, free_port
from immich_vitals.demo.world import DATABASE

MTAIL_PROGRAM = "counter lines_with_error\n/ERROR/ {\n  lines_with_error++\n}\n"


@dataclass(frozen=True, slots=True)
class Peer:
    """An exporter: the program, which is also the name of its Debian package, and how it is started."""

    program: str
    arguments: Callable[["Setting"], list[str]]
    environment: Callable[["Setting"], Mapping[str, str]] = lambda setting: {}
    path: Callable[["Setting"], str] = lambda setting: "/metrics"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer needs to know. `web` is the port of a small web server to probe."""

    port: int
    folder: Path
    postgres: Postgres
    redis: Redis
    web: int


PEERS = (
    Peer(
        "prometheus-postgres-exporter",
        lambda to: [f"--web.listen-address=127.0.0.1:{to.port}"],
        lambda to: {
            "DATA_SOURCE_NAME": f"postgresql://postgres@127.0.0.1:{to.postgres.port}/{DATABASE}?sslmode=disable"
        },
    ),
    Peer(
        "prometheus-redis-exporter",
        lambda to: [f"-web.listen-address=127.0.0.1:{to.port}", f"-redis.addr=redis://127.0.0.1:{to.redis.port}"],
    ),
    Peer("prometheus-node-exporter", lambda to: [f"--web.listen-address=127.0.0.1:{to.port}"]),
    Peer(
        "prometheus-blackbox-exporter",
        lambda to: [f"--web.listen-address=127.0.0.1:{to.port}", f"--config.file={to.folder / 'blackbox.yml'}"],
        path=lambda to: f"/probe?module=http&target=http://127.0.0.1:{to.web}/",
    ),
    Peer(
        "mtail",
        lambda to: ["--address=127.0.0.1", f"--port={to.port}", f"--progs={to.folder / 'mtail'}",
                    f"--logs={to.folder / 'quiet.log'}"],
    ),
)  # fmt: skip


def missing() -> list[str]:
    """The peers that are not installed."""
    return [peer.program for peer in PEERS if shutil.which(peer.program) is None]


def versions() -> dict[str, str]:
    """The installed peers' versions, as dpkg knows them."""
    found = {}
    for peer in PEERS:
        asked = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", peer.program], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            found[peer.program] = asked.stdout
    return found


@contextmanager
def running(folder: Path, postgres: Postgres, redis: Redis) -> Iterator[list[Scraped]]:
    """All installed peers, started and answering."""
    folder.mkdir()
    (folder / "mtail").mkdir()
    (folder / "mtail" / "errors.mtail").write_text(MTAIL_PROGRAM, encoding="ascii")
    (folder / "quiet.log").write_text("quiet\n", encoding="ascii")
    (folder / "blackbox.yml").write_text("modules: {http: {prober: http}}\n", encoding="ascii")
    with ExitStack() as ends:
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pong)
        ends.callback(web.shutdown)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        started = []
        for peer in PEERS:
            if shutil.which(peer.program) is None:
                continue
            setting = Setting(free_port(), folder, postgres, redis, web.server_address[1])
            log = ends.enter_context((folder / f"{peer.program}.log").open("wb"))
            process = subprocess.Popen(
                [peer.program, *peer.arguments(setting)], cwd=folder, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **peer.environment(setting)},
            )  # fmt: skip
            ends.callback(process.wait)
            ends.callback(process.terminate)
            wait_for_port(setting.port)
            started.append(Scraped(peer.program, process.pid, setting.port, peer.path(setting)))
        yield started


class _Pong(http.server.BaseHTTPRequestHandler):
    """Answers as Immich's ping does."""

    def do_GET(self) -> None:
        body = b'{"res":"pong"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not a line for each request."""
