"""The machine Immich runs on: memory, swap, and how long work waits for it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from immich_vitals.collector import Collector, Context
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.sources.host import PROC, HostFacts, read_host

MEMORY_TOTAL = Metric("host_memory_total_bytes", "Memory of the machine.")
MEMORY_AVAILABLE = Metric(
    "host_memory_available_bytes", "Memory that programs can still get without swapping, as the kernel estimates it."
)
SWAP_TOTAL = Metric("host_swap_total_bytes", "Swap space; 0 when there is none.")
SWAP_FREE = Metric("host_swap_free_bytes", "Swap space not in use.")
WAITING = Metric(
    "host_pressure_waiting_seconds_total",
    "Time during which some or all (full) tasks waited for cpu, memory or io; no sample on kernels without PSI.",
    ("resource", "severity"),
)
OOM_KILLS = Metric("host_oom_kills_total", "Processes the kernel killed for lack of memory since boot.")
BOOTED = Metric("host_boot_timestamp_seconds", "When the machine booted.")
CPUS = Metric("host_cpus", "Logical CPUs online.")
LOAD = Metric("host_load1", "Tasks running or waiting for CPU or disk, averaged over a minute.")


class HostCollector(Collector):
    """The machine Immich runs on.

    immich_vitals_host_memory_available_bytes 5.1e+09
    immich_vitals_host_pressure_waiting_seconds_total{resource="memory",severity="full"} 5.9
    immich_vitals_host_oom_kills_total 0
    """

    name = "host"
    metrics = (MEMORY_TOTAL, MEMORY_AVAILABLE, SWAP_TOTAL, SWAP_FREE, WAITING, OOM_KILLS, BOOTED, CPUS, LOAD)
    timeout = 2.0

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls()

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return "it is switched off: take `host` out of IMMICH_VITALS_DISABLE"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        return host_samples(read_host(self._proc))


def host_samples(facts: HostFacts) -> Iterator[Sample]:
    """The samples of a machine."""
    yield from MEMORY_TOTAL.known(facts.memory_total)
    yield from MEMORY_AVAILABLE.known(facts.memory_available)
    yield from SWAP_TOTAL.known(facts.swap_total)
    yield from SWAP_FREE.known(facts.swap_free)
    for (resource, severity), seconds in facts.waited.items():
        yield WAITING.sample(seconds, resource=resource, severity=severity)
    yield from OOM_KILLS.known(facts.oom_kills)
    yield from BOOTED.known(facts.booted)
    yield from CPUS.known(facts.cpus)
    yield from LOAD.known(facts.load1)
