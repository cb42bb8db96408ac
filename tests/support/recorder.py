"""A proxy before an HTTP server that writes down what is asked of it, byte by byte."""

from collections.abc import Callable
from dataclasses import dataclass

from support.fault_proxy import Address, FaultProxy


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came: `body` is what belongs to it after its head, `told` how many bytes it announced."""

    method: str
    target: str
    headers: dict[str, str]
    told: int
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Recorder(FaultProxy):
    """A `FaultProxy` that keeps what clients sent."""

    def __init__(self, server: Address) -> None:
        self._heard: list[bytearray] = []
        super().__init__(server)

    @property
    def asked(self) -> list[Asked]:
        """All requests so far, connection by connection."""
        return [asked for each in list(self._heard) for asked in requests_in(bytes(each))]

    def new_ear(self) -> Callable[[bytes], None]:
        taken = bytearray()
        self._heard.append(taken)
        return taken.extend


def requests_in(heard: bytes) -> list[Asked]:
    """The requests in what a client sent over one connection. After an upgrade, or where a body was announced and is
    cut off, all that is left is the last request's body."""
    found = []
    while heard:
        head, end, rest = heard.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = f"{line}  ".split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        told = int(headers.get("content-length", "0"))
        chunked = "transfer-encoding" in headers
        length = len(rest) if "upgrade" in headers or chunked or not end else min(told, len(rest))
        found.append(Asked(method, target, headers, told, rest[:length]))
        heard = rest[length:]
    return found
