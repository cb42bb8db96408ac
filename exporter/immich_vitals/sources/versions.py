"""Immich's versions: how they are written, which is newer, and whether two programs work on one set of queues."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import total_ordering

from immich_vitals.collector import Deadline, Unavailable
from immich_vitals.sources.bullmq import PREFIX
from immich_vitals.sources.redis import RedisServer, Reply, pack

# `v2.7.5`, `2.7`, `v3.0.0-rc.1`, and with what the images of machine learning add: `v2.7.5-cuda`.
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,5}))?(?:-(alpha|beta|rc)[.-]?(\d{1,4})?)?(?:[-+].*)?")
# How a worker of BullMQ 4 (Immich before 1.125) and of BullMQ 5 waits for jobs.
_WAITS = ("brpoplpush", "bzpopmin")


@total_ordering
@dataclass(frozen=True, slots=True)
class Release:
    """A version that can be compared. `patch` is None where only two numbers are told; `stage` is alpha, beta or rc,
    and empty for the release itself."""

    major: int
    minor: int
    patch: int | None
    stage: str = ""
    number: int = 0

    @classmethod
    def of(cls, text: str) -> "Release | None":
        """None when it is no version, such as the name of a branch."""
        found = _VERSION.fullmatch(text)
        if found is None:
            return None
        patch = int(found[3]) if found[3] else None
        return cls(int(found[1]), int(found[2]), patch, found[4] or "", int(found[5] or 0))

    def differs(self, other: "Release") -> bool:
        """Whether these are two versions for certain: 2.7 may be 2.7.5."""
        if self.patch is None or other.patch is None:
            return (self.major, self.minor) != (other.major, other.minor)
        return self != other

    def __lt__(self, other: "Release") -> bool:
        return self._order() < other._order()

    def __str__(self) -> str:
        numbers = ".".join(str(each) for each in (self.major, self.minor, self.patch) if each is not None)
        return numbers + (f"-{self.stage}.{self.number}" if self.stage else "")

    def _order(self) -> tuple[int, int, int, str, int]:
        return self.major, self.minor, self.patch or 0, self.stage or "release", self.number


def differ(releases: Sequence[Release]) -> bool:
    """Whether any two of them differ."""
    return any(one.differs(other) for number, one in enumerate(releases) for other in releases[:number])


def mixed_workers(server: RedisServer, deadline: Deadline) -> bool:
    """Whether workers of two generations take jobs from one queue. Raises as `RedisServer.ask` does, or `Unavailable`
    when we may not list Redis' clients."""
    (clients,) = server.ask(pack([("CLIENT", "LIST")]), deadline)
    if not isinstance(clients, bytes | str):
        raise Unavailable("Redis does not list its clients", mend="give the exporter's Redis user +client|list")
    return mixed(clients)


def mixed(clients: Reply) -> bool:
    """The same, of Redis' list of clients."""
    text = clients.decode("utf-8", "replace") if isinstance(clients, bytes) else str(clients)
    waits: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split(" "))
        if words.get("name", "").startswith(PREFIX) and words.get("cmd") in _WAITS:
            waits.setdefault(words["name"], set()).add(words["cmd"])
    return any(len(each) > 1 for each in waits.values())


def shown(text: str) -> str | None:
    """A version as a label: without a leading `v`, a branch as it is; None for what is no name at all."""
    release = Release.of(text)
    if release is not None:
        return str(release)
    return text if re.fullmatch(r"[-+./\w]{1,40}", text, re.ASCII) else None


def releases(texts: Iterable[str]) -> list[Release]:
    """Those that are versions."""
    return [release for text in texts if (release := Release.of(text)) is not None]
