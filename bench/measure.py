"""CPU, memory and time of a process that is scraped, read from /proc and from the clock."""

import gzip
import http.client
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in bytes: all of it, and with pages that others share counted by halves, thirds, ..."""

    resident: int
    proportional: int


@dataclass(slots=True)
class Scraped:
    """A process that answers on `port`, and what scraping it has cost so far."""

    name: str
    pid: int
    port: int
    path: str = "/metrics"
    seconds: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    text: str = ""
    _began: float = 0.0

    def begin(self) -> None:
        self.seconds.clear()
        self._began = cpu_seconds(self.pid)

    def scrape(self) -> None:
        """One scrape as Prometheus does it, with gzip, in a connection of its own. Raises `OSError`."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"Accept-Encoding": "gzip", "X-Prometheus-Scrape-Timeout-Seconds": "10"}
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.seconds.append(time.perf_counter() - began)
        if answer.status != 200:
            raise OSError(f"{self.name} answered with {answer.status}")
        self.bytes_sent = len(body)
        self.text = (gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body).decode()

    @property
    def cpu_per_scrape(self) -> float:
        """Seconds of processor time since `begin`, all threads and timers included, by the number of scrapes."""
        return (cpu_seconds(self.pid) - self._began) / len(self.seconds)

    @property
    def series(self) -> int:
        return sum(1 for line in self.text.splitlines() if line and not line.startswith("#"))

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the scrapes was answered."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def value(self, series: str) -> float | None:
        """The value of one series of the last scrape, written as in the exposition."""
        for line in self.text.splitlines():
            if line.startswith(f"{series} "):
                return float(line.rsplit(" ", 1)[1])
        return None


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return sum(int(number) for number in fields[11:15]) / TICKS


def memory(pid: int) -> Memory:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return Memory(found["Rss"], found["Pss"])


def wait_for_port(port: int, seconds: float = 30.0) -> None:
    """Until something answers HTTP on a loopback port. Raises `TimeoutError`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise TimeoutError(f"nothing answers on port {port}")
