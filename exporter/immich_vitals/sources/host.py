"""What Linux says of the machine in /proc. In a container these are the host's figures, in LXC those of the guest."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from immich_vitals.collector import Unavailable

PROC = Path("/proc")
RESOURCES = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine; None where the kernel does not say. Memory is in bytes, `booted` in seconds since the epoch.

    `waited` maps (resource, severity) to the seconds that some or all tasks waited for cpu, memory or io.
    """

    memory_total: float | None
    memory_available: float | None
    swap_total: float | None
    swap_free: float | None
    waited: Mapping[tuple[str, str], float]
    oom_kills: float | None
    booted: float | None
    cpus: int | None
    load1: float | None


def read_host(proc: Path = PROC) -> HostFacts:
    """The machine as `proc` shows it. Raises `Unavailable` when there is no meminfo."""
    memory, stat = _read(proc / "meminfo"), _read(proc / "stat")
    if not memory:
        raise Unavailable(f"{proc / 'meminfo'} cannot be read", mend="the exporter needs Linux with /proc mounted")
    return HostFacts(
        memory_total=_kib(memory, "MemTotal"),
        memory_available=_kib(memory, "MemAvailable"),
        swap_total=_kib(memory, "SwapTotal"),
        swap_free=_kib(memory, "SwapFree"),
        waited={
            (resource, severity): int(microseconds) / 1_000_000
            for resource in RESOURCES
            for severity, microseconds in _WAITED.findall(_read(proc / "pressure" / resource))
        },
        oom_kills=_value(_read(proc / "vmstat"), "oom_kill"),
        booted=_value(stat, "btime"),
        cpus=len(_CPU.findall(stat)) or None,
        load1=_value(_read(proc / "loadavg"), ""),
    )


# As in `some avg10=0.47 avg60=0.72 avg300=0.67 total=24975877`, in microseconds.
_WAITED = re.compile(r"^(some|full) .*\btotal=(\d{1,20})$", re.MULTILINE)
_CPU = re.compile(r"^cpu\d", re.MULTILINE)


def _read(path: Path) -> str:
    """The file, or nothing: a kernel may lack it, or refuse to fill it (pressure with psi=0)."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _value(lines: str, name: str) -> float | None:
    """The number after a name at the beginning of a line; with an empty name, the number that begins a line."""
    found = re.search(rf"^{name}:?\s*(\d+(?:\.\d+)?)\b", lines, re.MULTILINE)
    return float(found[1]) if found else None


def _kib(lines: str, name: str) -> float | None:
    """The same in bytes, of a value in KiB."""
    value = _value(lines, name)
    return None if value is None else value * 1024
