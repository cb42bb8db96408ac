"""What the exporter logs."""

import logging
import sys

import httpx

from immich_vitals.logs import Formatter
from support.exporter import Exporter
from support.tcp_proxy import TcpServer, closes, says


def test_libraries_do_not_log_beside_us() -> None:
    """An answer whose head cannot be read is told in one line of ours, without a traceback."""
    hostile = b"HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 2\r\n\r\n{}"
    with TcpServer(says(hostile)) as docker, TcpServer(closes) as others:
        environ = {
            "DOCKER_HOST": f"tcp://127.0.0.1:{docker.port}",
            "DB_URL": f"postgresql://immich:x@127.0.0.1:{others.port}/immich",
            "REDIS_URL": f"redis://127.0.0.1:{others.port}",
            "IMMICH_VITALS_DISABLE": "container_usage, log, file, library, postgres_patrol, backup, version",
        }
        with Exporter(environ) as running:
            for _ in range(2):
                httpx.get(running.url("/metrics"), timeout=15)
            said = running.stop()
    warnings = [line for line in said.splitlines() if "level=warning" in line]
    assert "Traceback" not in said
    assert sorted(line.split("collector=")[1].split()[0] for line in warnings if "collector failing" in line) == [
        "container", "postgres", "queue", "redis",
    ]  # fmt: skip
    assert all('msg="collector failing"' in line or 'msg="event stream lost' in line for line in warnings), said


def test_a_traceback_quotes_nothing() -> None:
    """It says which kind of error came from which line, and what that led to, and not what was being read."""
    read = {"owner": "ada@example.org"}
    try:
        try:
            raise KeyError(read["owner"])
        except KeyError as error:
            raise ValueError(f"no {read['owner']}") from error
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it broke", (), sys.exc_info())
    said = Formatter(keys=["level"], mapping={"level": "levelname"}).format(record)
    assert "KeyError\\n\\nled to\\n\\nTraceback" in said and said.rstrip('"').endswith("ValueError")
    assert 'raise KeyError(read[\\"owner\\"])' in said
    assert "ada@" not in said
