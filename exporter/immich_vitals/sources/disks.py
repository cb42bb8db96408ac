"""Whether a disk may be asleep: nobody but us has read or written it for a while.

From the kernel's counters for block devices, which cost no access. Only disks with moving parts sleep. Where it cannot
be known which disks a folder lies on (network, FUSE, ZFS, btrfs) or what they do, they count as awake: such storage is
either a machine of its own or made of several disks that something always keeps busy, and a sample that is never taken
would be worse than one that wakes a disk four times a day.
"""

import os
from collections.abc import Iterator
from pathlib import Path

SYS = Path("/sys/dev/block")
ASLEEP_AFTER_SECONDS = 600.0


class DiskActivity:
    """What others did with the disks below one device. To be asked now and then: it compares with its last look."""

    def __init__(self, sys: Path = SYS) -> None:
        self._sys = sys
        self._counts: dict[int, tuple[int, ...]] = {}
        self._active: dict[int, float] = {}

    def asleep(self, device: int | None, now: float) -> bool:
        """Whether no one has used the disks of the device for ten minutes. `now` is monotonic.

        The first look says no: a disk of which nothing is known was awake when this process started.
        """
        counts = self._read(device)
        if device is None or counts is None:
            return False
        if self._counts.get(device) != counts:
            self._counts[device] = counts
            self._active[device] = now
        return now - self._active[device] >= ASLEEP_AFTER_SECONDS

    def ours(self, device: int | None) -> None:
        """What was done since the last look was our own doing, and keeps no disk awake."""
        counts = self._read(device)
        if device in self._counts and device is not None and counts is not None:
            self._counts[device] = counts

    def _read(self, device: int | None) -> tuple[int, ...] | None:
        """Reads and writes that the disks with moving parts below the device have done; None when there are none, or
        when they cannot be known."""
        if device is None or os.major(device) == 0:
            return None
        try:
            disks = list(_disks((self._sys / f"{os.major(device)}:{os.minor(device)}").resolve(strict=True)))
            counts: list[int] = []
            for disk in disks:
                if (disk / "queue" / "rotational").read_text().strip() == "1":
                    words = (disk / "stat").read_text().split()
                    counts += (int(words[0]), int(words[4]))
        except (OSError, ValueError, IndexError):
            return None
        return tuple(counts) or None


def _disks(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The whole disks below a partition, an LVM volume, an encrypted device or a RAID."""
    below = sorted((folder / "slaves").iterdir()) if (folder / "slaves").is_dir() else []
    if below and depth < 8:
        for each in below:
            yield from _disks(each.resolve(strict=True), depth + 1)
    else:
        yield folder.parent if (folder / "partition").exists() else folder
