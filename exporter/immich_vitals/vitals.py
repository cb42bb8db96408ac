"""The vital signs in a few lines for people: facts from the samples, without judgement on them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from immich_vitals.metrics import Sample


@dataclass(frozen=True, slots=True)
class VitalSign:
    """One line: what it is about, and what is known. `known` is False when nothing is."""

    name: str
    text: str
    known: bool = True


class Readings:
    """Samples by metric name, without prefix."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[tuple[dict[str, str], float]]] = {}
        for sample in samples:
            labels = dict(zip(sample.metric.labels, sample.labels, strict=True))
            self._by_name.setdefault(sample.metric.name, []).append((labels, sample.value))

    def of(self, name: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and values of the samples of a metric that carry these labels."""
        found = self._by_name.get(name, [])
        return [(given, value) for given, value in found if labels.items() <= given.items()]

    def one(self, name: str, **labels: str) -> float | None:
        """The value of the only such sample, or None."""
        found = self.of(name, **labels)
        return found[0][1] if found else None


def vital_signs(samples: Iterable[Sample]) -> list[VitalSign]:
    """Container health, headroom of disk and memory, queues, Postgres, Redis, thumbnails, files, probes and backup."""
    readings = Readings(samples)
    signs = []
    for name, say in _SIGNS.items():
        text = say(readings)
        signs.append(VitalSign(name, text or "not known", text is not None))
    return signs


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError  # the loop returns at its last unit


def _containers(readings: Readings) -> str | None:
    found = readings.of("container_found")
    if not found:
        return None
    states = [(labels, labels["state"]) for labels, value in readings.of("container_state") if value == 1]
    running = sum(state == "running" for _, state in states)
    parts = [f"{running} of {len(states)} running"] if states else []
    parts.extend(f"{labels['container']} is {state}" for labels, state in states if state != "running")
    parts.extend(
        f"{labels['container']} is {labels['health']}"
        for labels, value in readings.of("container_health")
        if value == 1 and labels["health"] in ("unhealthy", "starting")
    )
    parts.extend(f"no {labels['component']} container" for labels, value in found if value == 0)
    return ", ".join(parts)


def _disk(readings: Readings) -> str | None:
    silent = [labels["role"] for labels, value in readings.of("filesystem_responding") if value == 0]
    parts = [f"{role} does not respond" for role in silent]
    parts += [f"no {labels['path']}" for labels, value in readings.of("filesystem_found", role="media") if value == 0]
    sizes = {(labels["role"], labels["path"]): value for labels, value in readings.of("filesystem_size_bytes")}
    headroom = [
        (round(value / sizes[key], 3), labels["role"] != "media", labels["role"], value)
        for labels, value in readings.of("filesystem_avail_bytes")
        if sizes.get(key := (labels["role"], labels["path"]))
    ]
    if headroom:
        ratio, _, role, avail = min(headroom)  # of equals, media: the folders in it lie on its disk
        parts.append(f"{size(avail)} free for {role} ({ratio:.0%})")
    return ", ".join(parts) or None


def _memory(readings: Readings) -> str | None:
    total, available = readings.one("host_memory_total_bytes"), readings.one("host_memory_available_bytes")
    if not total or available is None:
        return None
    return f"{size(available)} of {size(total)} available"


def _jobs(readings: Readings) -> str | None:
    jobs = readings.of("queue_jobs")
    if not jobs:
        return None
    waits = sum(value for labels, value in jobs if labels["state"] in ("waiting", "prioritized", "paused"))
    active = sum(value for labels, value in jobs if labels["state"] == "active")
    paused = [labels["queue"] for labels, value in readings.of("queue_paused") if value == 1]
    text = f"{waits:.0f} waiting, {active:.0f} active"
    return f"{text}, paused: {', '.join(paused)}" if paused else text


def _postgres(readings: Readings) -> str | None:
    up = readings.one("postgres_up")
    if up is None:
        return None
    if not up:
        return "down"
    if readings.one("postgres_checksums_enabled") != 1:
        return "up, data checksums are off"
    failures = sum(value for _, value in readings.of("postgres_checksum_failures_total"))
    return f"up, {failures:.0f} checksum failures"


def _redis(readings: Readings) -> str | None:
    up = readings.one("redis_up")
    if up is None:
        return None
    return "down" if not up else "up, writable" if readings.one("redis_writable") else "up, refuses writes"


def _thumbnails(readings: Readings) -> str | None:
    required = readings.one("library_required", stage="thumbnail")
    pending = readings.one("library_pending", stage="thumbnail")
    if required is None or pending is None:
        return None
    if not required:
        return "no photos yet"
    # Rounded down, so that 100 % means all.
    covered = int(10_000 * (1 - pending / required)) / 100
    return f"{covered:g} % of {required:.0f} assets have one, {pending:.0f} pending"


def _files(readings: Readings) -> str | None:
    """Of the last random sample; what lies outside of what we see counts as not looked at."""
    looked = {
        result: sum(value for _, value in readings.of("file_sampled", result=result))
        for result in ("ok", "missing", "empty")
    }
    total = sum(looked.values())
    if not total:
        return None
    lost = looked["missing"] + looked["empty"]
    return (
        f"{lost:.0f} of {total:.0f} looked at are missing or empty"
        if lost
        else f"all of {total:.0f} looked at are there"
    )


def _access(readings: Readings) -> str | None:
    probes = [
        (labels, value) for labels, value in readings.of("probe_success") if labels["probe"] != "machine_learning"
    ]
    if not probes:
        return None
    failing = [f"{labels['probe']} ({labels['route']})" for labels, value in probes if not value]
    if failing:
        return f"fails: {', '.join(failing)}"
    routes = dict.fromkeys(
        {"direct": "beside the proxy", "external": "through it"}[labels["route"]] for labels, _ in probes
    )
    return f"well {' and '.join(routes)}"


def _backup(readings: Readings) -> str | None:
    newest = readings.one("backup_newest_timestamp_seconds", kind="database")
    if newest is None:
        return None
    text = f"last dump of the database {_moment(newest)}"
    intact = readings.one("backup_intact", kind="database")
    return text if intact is None else text + (", whole" if intact else ", NOT whole")


def _moment(seconds: float) -> str:
    """A file may bear any moment, also one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return "at a moment that no calendar has"


_SIGNS: dict[str, Callable[[Readings], str | None]] = {
    "Containers": _containers,
    "Disk": _disk,
    "Memory": _memory,
    "Postgres": _postgres,
    "Redis": _redis,
    "Jobs": _jobs,
    "Thumbnails": _thumbnails,
    "Files": _files,
    "Access": _access,
    "Backup": _backup,
}
