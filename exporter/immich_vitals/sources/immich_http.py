"""Immich as its users meet it: its public API, asked by one route as apps and browsers ask it.

Nothing is written. No request has a body; the upload whose size is asked about is only announced.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from immich_vitals.collector import Deadline, Remark
from immich_vitals.config import Secret
from immich_vitals.settings import OWN
from immich_vitals.sources.canary import Asset, Canaries
from immich_vitals.sources.certificate import CertificateFacts, Trust, examine
from immich_vitals.sources.http_probe import (
    Answer,
    NoAnswer,
    Origin,
    Request,
    Way,
    addresses,
    ask,
    open_websocket,
    reaches,
)
from immich_vitals.sources.names import Family

PROBE_SECONDS = 5.0  # the apps give up after a few seconds, too
IMAGE_SECONDS = 10.0  # three requests, for up to three photos
EXTRA_SECONDS = 3.0  # what is nice to know: family of addresses, redirect, maintenance
LIMIT_SECONDS = 15.0

PING_PATHS = ("/api/server/ping", "/api/server-info/ping")  # the second up to 1.106
WEBSOCKET_PATH = "/api/socket.io/?EIO=4&transport=websocket"
UPLOAD_PATH = "/api/assets"
PROBES = ("ping", "websocket", "image")
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

MIB = 1 << 20
# What people and providers set as a limit, and 50000 MiB as Immich's own documentation has it for nginx.
UPLOAD_SIZES = tuple(
    size * MIB
    for size in (
        1, 2, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512, 1000, 1024, 2000, 2048, 4096, 5000,
        5120, 8192, 10000, 10240, 16384, 20000, 20480, 50000,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """How one probe went. `success` is None where it could not be tried, `status` where there was no answer.

    `problem` and `mend` are for people, and free of secrets, ids and names.
    """

    success: bool | None
    status: int | None = None
    seconds: float | None = None
    problem: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What was found by one route. None and missing keys: not known."""

    name: str
    probes: Mapping[str, Found]
    first_byte: float | None = None
    certificate: CertificateFacts | None = None
    families: Mapping[Family, bool] = field(default_factory=lambda: MappingProxyType({}))
    redirects: bool | None = None
    maintenance: bool | None = None
    remarks: Sequence[Remark] = ()


class Route:
    """One way to Immich: `direct`, beside every proxy, or `external`, as phones take it.

    `http_port` is where a browser goes that was not told of TLS.
    """

    def __init__(
        self, name: str, url: str, trust: Trust, key: Secret | None, canaries: Canaries | None,
        http_port: int = 80,
    ) -> None:  # fmt: skip
        self.name = name
        self._configured = Origin.of(url)
        self._trust = trust
        self._key = key
        self._canaries = canaries
        self._http_port = http_port
        self._ping_path = PING_PATHS[0]

    def look(self, deadline: Deadline) -> RouteFacts:
        """Every probe in turn. What needs an answer to ping is not tried without one: it would fail, too."""
        began = deadline.clock.monotonic()
        certificate: CertificateFacts | None = None
        try:
            origin = self._origin(deadline.within(EXTRA_SECONDS))
            way = self._way(origin, deadline)
            if origin.secure:
                certificate = examine(way, self._trust, deadline.within(PROBE_SECONDS))
                way = Way(origin, way.addresses, self._trust.strict() if certificate.trusted else self._trust.lenient())
        except NoAnswer as no_answer:
            return self._unreachable(Found(False, None, deadline.clock.monotonic() - began, str(no_answer)))
        ping, first_byte = self._ping(way, deadline.within(PROBE_SECONDS))
        if ping.status is None:
            return self._unreachable(ping, certificate)
        probes = {"ping": ping}
        maintenance = self._maintenance(way, deadline.within(EXTRA_SECONDS)) if ping.success else None
        remarks: list[Remark] = []
        if not maintenance:
            probes["websocket"] = self._websocket(way, deadline.within(PROBE_SECONDS))
            image = self._image(way, certificate, deadline.within(IMAGE_SECONDS), remarks)
            if image is not None:
                probes["image"] = image
        return RouteFacts(
            self.name,
            probes,
            first_byte,
            certificate,
            dict(self._families(way, deadline)) if self.name == "external" else {},
            self._redirects(origin, deadline.within(EXTRA_SECONDS)) if self.name == "external" else None,
            maintenance,
            remarks,
        )

    def upload_limit(self, deadline: Deadline) -> float | None:
        """The largest of `UPLOAD_SIZES` that is let through, 0 when not even the first is; None when not known."""
        try:
            origin = self._origin(deadline.within(EXTRA_SECONDS))
            way = self._way(origin, deadline)
            if origin.secure:
                trusted = examine(way, self._trust, deadline.within(PROBE_SECONDS)).trusted
                way = Way(origin, way.addresses, self._trust.strict() if trusted else self._trust.lenient())
            return _largest(way, deadline)
        except NoAnswer:
            return None

    def _unreachable(self, ping: Found, certificate: CertificateFacts | None = None) -> RouteFacts:
        probes = {"ping": ping, "websocket": Found(False)}
        if self._key is not None and self._canaries is not None and self._canaries.choose():
            probes["image"] = Found(False)
        return RouteFacts(self.name, probes, certificate=certificate)

    def _way(self, origin: Origin, deadline: Deadline) -> Way:
        return Way(origin, addresses(origin, deadline.within(PROBE_SECONDS)))

    def _origin(self, deadline: Deadline) -> Origin:
        """The configured origin, or the one with TLS that its http:// redirects to."""
        if self._configured.secure or self.name != "external":
            return self._configured
        answer = ask(self._way(self._configured, deadline), Request(self._ping_path), deadline)
        return _redirected(answer, self._configured) or self._configured

    def _ping(self, way: Way, deadline: Deadline) -> tuple[Found, float | None]:
        found, answer = _asked(way, Request(self._ping_path), deadline)
        if answer is not None and answer.status == 404:
            other = next(path for path in PING_PATHS if path != self._ping_path)
            second, second_answer = _asked(way, Request(other), deadline)
            if second_answer is not None and second_answer.status == 200:
                self._ping_path, found, answer = other, second, second_answer
        if answer is None:
            return found, None
        if _pongs(answer):
            return found, answer.first_byte
        problem = f"answered with status {answer.status}"
        if answer.status == 200:
            problem = "answered, but not as Immich does"
        elif 300 <= answer.status < 400:
            problem += ", a redirect: to a login of the proxy, or to another name?"
        return Found(False, answer.status, answer.seconds, problem), answer.first_byte

    def _websocket(self, way: Way, deadline: Deadline) -> Found:
        began = deadline.clock.monotonic()
        try:
            answer = open_websocket(way, WEBSOCKET_PATH, deadline)
        except NoAnswer as no_answer:
            return Found(False, None, deadline.clock.monotonic() - began, str(no_answer))
        if answer.status != 101:
            return Found(False, answer.status, answer.seconds, f"the upgrade got status {answer.status}, not 101")
        if not answer.body.startswith(b"0{"):
            return Found(False, 101, answer.seconds, "the upgrade was answered, but not by Immich")
        return Found(True, 101, answer.seconds)

    def _maintenance(self, way: Way, deadline: Deadline) -> bool | None:
        """Whether somebody has put Immich into maintenance mode, in which it answers to ping and to little else."""
        _, answer = _asked(way, Request("/api/server/config"), deadline)
        if answer is None or answer.status != 200:
            return None
        config = _json(answer.body)
        return None if config is None else config.get("maintenanceMode") is True

    def _image(
        self, way: Way, certificate: CertificateFacts | None, deadline: Deadline, remarks: list[Remark]
    ) -> Found | None:
        """Photos as a user loads them. None when nothing is known of it; then a remark says why."""
        if self._key is None or self._canaries is None:
            return None
        if certificate is None and self.name == "external" and not way.origin.loopback:
            remarks.append(
                Remark(
                    "the API key is not sent without TLS: no photo is tried by the external route",
                    f"set {OWN}EXTERNAL_URL to its https:// address",
                )
            )
            return None
        if certificate is not None and not certificate.trusted:
            return None  # the certificate has a remark of its own
        trial = _Trial(way, self._key, deadline)
        for asset in self._canaries.choose():
            found = trial.load(asset)
            if trial.refused:
                break
            if found is None or found.success:
                self._canaries.note(asset, visible=found is not None)
            if found is not None and found.success:
                break
        if trial.refused:
            remarks.append(_refusal(self.name, trial.refused))
            return None
        if trial.without_original:
            remarks.append(
                Remark(
                    "the API key may not download originals: only thumbnail and preview are tried",
                    "give the key the permission asset.download",
                )
            )
        if trial.last is None and self._canaries.choose():
            remarks.append(
                Remark(
                    "the user of the API key sees none of the photos tried",
                    "make the key as a user who has photos; and are database and address of the same Immich?",
                )
            )
        return trial.last

    def _families(self, way: Way, deadline: Deadline) -> Iterator[tuple[Family, bool]]:
        """Ping by each family of addresses, where the name has both and this machine can reach both."""
        if len({address.family for address in way.addresses}) < 2:
            return
        for family in FAMILIES:
            by = way.by(family)
            if not any(reaches(address) for address in by.addresses):
                continue
            _, answer = _asked(by, Request(self._ping_path), deadline.within(EXTRA_SECONDS))
            yield family, answer is not None and _pongs(answer)

    def _redirects(self, origin: Origin, deadline: Deadline) -> bool | None:
        """Whether http:// leads to https://; None when nothing answers there, which is as well."""
        if not self._configured.secure:
            return origin.secure
        if origin.port != 443 and self._http_port == 80:
            return None  # beside an unusual port, what is on port 80 may be anything
        plain = Origin("http", origin.host, self._http_port)
        try:
            _, answer = _asked(self._way(plain, deadline), Request("/"), deadline)
        except NoAnswer:
            return None
        return None if answer is None else _redirected(answer, origin) is not None


class MachineLearning:
    """The service that Immich asks for faces and search."""

    def __init__(self, url: str, trust: Trust) -> None:
        self._origin = Origin.of(url)
        self._trust = trust

    def look(self, deadline: Deadline) -> Found:
        began = deadline.clock.monotonic()
        deadline = deadline.within(PROBE_SECONDS)
        try:
            tls = self._trust.strict() if self._origin.secure else None
            way = Way(self._origin, addresses(self._origin, deadline), tls)
        except NoAnswer as no_answer:
            return Found(False, None, deadline.clock.monotonic() - began, str(no_answer))
        found, answer = _asked(way, Request("/ping"), deadline)
        if answer is None or (answer.status == 200 and answer.body.strip(b'" \r\n') == b"pong"):
            return found
        return Found(False, answer.status, answer.seconds, f"answered with status {answer.status}, and not pong")


class _Trial:
    """Loads photos with the key. `refused` is the status with which the key itself was."""

    def __init__(self, way: Way, key: Secret, deadline: Deadline) -> None:
        self._way = way
        self._key = key
        self._deadline = deadline
        self._seconds = 0.0
        self.last: Found | None = None
        self.refused: int | None = None
        self.without_original = False

    def load(self, asset: Asset) -> Found | None:
        """How it went with this photo; None when the key does not see it, or is refused."""
        self._seconds = 0.0
        path = f"/api/assets/{asset.id}"
        steps = (
            ("thumbnail", Request(f"{path}/thumbnail?size=thumbnail", headers=self._headers(), most=64 * 1024)),
            ("preview", Request(f"{path}/thumbnail?size=preview", headers=self._headers(), most=2048)),
            ("original", Request(f"{path}/original", headers=self._headers(Range="bytes=0-1023"), most=1024)),
        )
        status: int | None = None
        for kind, request in steps:
            found, answer = _asked(self._way, request, self._deadline)
            self._seconds += found.seconds or 0.0
            if answer is None:
                return self._failed(kind, found.problem, None)
            status = answer.status
            if status == 403 and kind == "original":
                self.without_original = True
                break
            if status in (401, 403):
                self.refused = status
                return None
            if status in (400, 404) and "message" in (_json(answer.body) or {}):  # Immich's own words, not the proxy's
                return None
            problem = _no_picture(kind, answer)
            if problem:
                return self._failed(kind, problem, status)
        self.last = Found(True, 200 if self.without_original else status, self._seconds)
        return self.last

    def _failed(self, kind: str, problem: str, status: int | None) -> Found:
        self.last = Found(False, status, self._seconds, f"{kind}: {problem}")
        return self.last

    def _headers(self, **more: str) -> Mapping[str, str]:
        return {"x-api-key": self._key.value, **more}


def _no_picture(kind: str, answer: Answer) -> str:
    """Why this is not the picture; empty when it is."""
    content = answer.headers.get("content-type", "").split(";")[0].strip().lower()
    if answer.status not in (200, 206):
        return f"status {answer.status}"
    if not answer.body:
        return "it is empty"
    if not content.startswith("image/") and (kind != "original" or content in ("text/html", "application/json")):
        return "what came is not an image"
    return ""


def _refusal(route: str, status: int) -> Remark:
    if route == "external":
        mend = (
            "if photos load by the direct route, the proxy takes the header x-api-key away or wants a login of its own:"
            " let /api through"
        )
    else:
        mend = "make a key in Immich (Account Settings, API Keys) with the permissions asset.view and asset.download"
    what = "does not know the key" if status == 401 else "says that the key lacks a permission"
    return Remark(f"{OWN}API_KEY: by the {route} route the answer is {status}, which {what}: no photo is tried", mend)


def _largest(way: Way, deadline: Deadline) -> float | None:
    """By halves, the largest first: where there is no limit, one request tells."""
    if (passes := _lets_through(way, UPLOAD_SIZES[-1], deadline)) is None:
        return None
    if passes:
        return float(UPLOAD_SIZES[-1])
    low, high = -1, len(UPLOAD_SIZES) - 1  # the largest known to pass, the smallest known not to
    while high - low > 1:
        middle = (low + high) // 2
        if (passes := _lets_through(way, UPLOAD_SIZES[middle], deadline)) is None:
            return None
        low, high = (middle, high) if passes else (low, middle)
    return float(UPLOAD_SIZES[low]) if low >= 0 else 0.0


def _lets_through(way: Way, size: int, deadline: Deadline) -> bool | None:
    """Whether an upload of so many bytes passes. 413 says no; what wants the body, or a login, is behind the limit."""
    headers = {
        "Expect": "100-continue",
        "Content-Type": "multipart/form-data; boundary=immich-vitals",
        "Content-Length": str(size),
    }
    request = Request(UPLOAD_PATH, "POST", headers, expects=True)
    _, answer = _asked(way, request, deadline.within(PROBE_SECONDS))
    if answer is not None and answer.status == 413:
        return False
    return True if answer is not None and answer.status in (100, 400, 401, 404) else None


def _asked(way: Way, request: Request, deadline: Deadline) -> tuple[Found, Answer | None]:
    """The answer, as found and as it came; status 200 is a success."""
    began = deadline.clock.monotonic()
    try:
        answer = ask(way, request, deadline)
    except NoAnswer as no_answer:
        return Found(False, None, deadline.clock.monotonic() - began, str(no_answer)), None
    return Found(answer.status == 200, answer.status, answer.seconds), answer


def _pongs(answer: Answer) -> bool:
    said = _json(answer.body) if answer.status == 200 else None
    return said is not None and said.get("res") == "pong"


def _json(body: bytes) -> Mapping[str, object] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _redirected(answer: Answer, origin: Origin) -> Origin | None:
    """The origin with TLS, of the same host, that a redirect leads to; None for any other answer."""
    if answer.status not in (301, 302, 303, 307, 308):
        return None
    location = answer.headers.get("location", "")
    try:
        target = Origin.of(location) if urlsplit(location).netloc else None
    except ValueError:
        return None
    return target if target is not None and target.secure and target.host == origin.host else None
