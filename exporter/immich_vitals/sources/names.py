"""Host names to addresses, in bounded time.

The system's resolver takes no deadline, and waits for ten seconds and more where nobody answers it: so it does for the
name of a container that does not run, in a Docker network without a way to a name server.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from immich_vitals.collector import Deadline, TimedOut
from immich_vitals.flight import Flight

Family = Literal["ipv4", "ipv6"]
_FAMILIES: Mapping[int, Family] = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}


class Unknown(Exception):
    """Nobody knows the name."""


class Unanswered(TimedOut):
    """Nobody said in time what the name stands for."""


@dataclass(frozen=True, slots=True)
class Address:
    """One address behind a host name, as sockets want it."""

    family: Family
    kind: int
    socket_address: tuple[str, int] | tuple[str, int, int, int]

    def at(self, port: int) -> "Address":
        """The same with this port."""
        host, _, *rest = self.socket_address
        return Address(self.family, self.kind, (host, port, *rest))  # type: ignore[arg-type]


class Names:
    """Asks the system's resolver in a thread, which is left behind when it hangs; one for each name, however often it
    is asked for."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[Sequence[Address]]] = {}

    def addresses(self, host: str, deadline: Deadline) -> Sequence[Address]:
        """The addresses in the system's order, with port 0. Raises `Unknown` or `Unanswered`, and `TimedOut`
        when no time is left to ask."""
        flight = self._flights.setdefault(host, Flight("resolve"))
        limit = deadline.limit(f"look up {host}")
        try:
            return flight.join_or_start(lambda: _resolved(host)).result(limit)
        except TimeoutError:
            raise Unanswered(f"the name {host} was not looked up in time") from None
        except (OSError, UnicodeError):
            raise Unknown(host) from None


NAMES = Names()
"""For all sources: who asks for the same name joins."""


def _resolved(host: str) -> Sequence[Address]:
    found: dict[object, Address] = {}
    for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        if family in _FAMILIES:
            found[address] = Address(_FAMILIES[family], family, address)  # type: ignore[arg-type]
    return list(found.values())
