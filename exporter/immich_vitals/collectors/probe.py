"""Immich as its users meet it: does it answer, beside the proxy and through it, and do photos load?"""

from collections.abc import Iterable, Iterator
from typing import Self

from immich_vitals.collector import Collector, Context, Every, Remark
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import OWN
from immich_vitals.sources.immich_http import Found, RouteFacts
from immich_vitals.sources.probes import ProbeFacts, Probes

SUCCESS = Metric(
    "probe_success",
    "1 when it works: ping and machine_learning answer as Immich's do, websocket opens, and for image a photo that"
    " exists loads as thumbnail, preview and original; no sample when it cannot be tried. route is direct (beside the"
    " proxy) or external (through it).",
    ("probe", "route"),
)
DURATION = Metric(
    "probe_duration_seconds", "How long the probe took, connection and TLS included, whether or not it worked.",
    ("probe", "route"),
)  # fmt: skip
STATUS = Metric(
    "probe_http_status", "Status of the last answer of the probe; no sample without an answer.", ("probe", "route")
)
FIRST_BYTE = Metric(
    "probe_first_byte_seconds", "Time from the request to ping until the first byte of its answer.", ("route",)
)
MAINTENANCE = Metric(
    "probe_maintenance_mode", "1 while Immich is in maintenance mode; websocket and photos are not tried then."
)
EXPIRY = Metric(
    "probe_certificate_expiry_timestamp_seconds",
    "When the certificate chain ends: the earliest end in it, or of one that is not trusted the server's own.",
    ("route",),
)
STARTED = Metric(
    "probe_certificate_start_timestamp_seconds",
    "When that certificate, the one that ends first, became valid: together they tell how long it is good for.",
    ("route",),
)
TRUSTED = Metric(
    "probe_certificate_trusted",
    "1 when a phone would trust the certificate: for this name, not expired, chain complete and of a known authority.",
    ("route",),
)
UPLOAD_LIMIT = Metric(
    "probe_upload_limit_bytes",
    "Largest announced upload that is let through, of usual sizes from 1 MiB to 50000 MiB: 0 when not even 1 MiB is,"
    " the largest when there is no limit, or one as Caddy's that counts only what has arrived. Asked each hour; nothing"
    " is sent.",
    ("route",),
)
REDIRECTS = Metric(
    "probe_redirects_to_https",
    "1 when http:// of the external address leads to https://; 0 when something else answers there; no sample when"
    " nothing does.",
)
FAMILY = Metric(
    "probe_address_family_success",
    "1 when ping works by this family of addresses; only for a name that has both, from a machine that can reach both.",
    ("route", "family"),
)

_MENDS = {
    ("ping", "direct"): "docker compose ps immich-server, and its log; or {own}SERVER_URL is wrong",
    ("ping", "external"): "if the direct route works, look at the log of the proxy; or {own}EXTERNAL_URL is wrong",
    ("websocket", "direct"): "read the log of immich-server",
    ("websocket", "external"): "let the proxy pass the headers Upgrade and Connection, with HTTP/1.1 to Immich",
    ("image", "direct"): "read the log of immich-server: the file may be missing, or not readable",
    ("image", "external"): "if photos load by the direct route, look at the log of the proxy",
    ("machine_learning", "direct"): "docker compose ps immich-machine-learning; or {own}MACHINE_LEARNING_URL is wrong",
}


class ProbeCollector(Collector):
    """Immich as its users meet it, beside its proxy and through it.

    immich_vitals_probe_success{probe="ping",route="external"} 1
    immich_vitals_probe_success{probe="image",route="direct"} 1
    immich_vitals_probe_certificate_expiry_timestamp_seconds{route="external"} 1.7e9
    """

    name = "probe"
    metrics = (
        SUCCESS, DURATION, STATUS, FIRST_BYTE, MAINTENANCE, EXPIRY, STARTED, TRUSTED, UPLOAD_LIMIT, REDIRECTS, FAMILY,
    )  # fmt: skip
    timeout = 45.0

    def __init__(self, probes: Probes, interval: float) -> None:
        self._probes = probes
        self.trigger = Every(interval, stretch=False, awaited=False)

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        probe = config.probe
        if not (probe.server or probe.external or probe.machine_learning):
            return None
        return cls(Probes(probe, config.postgres), probe.interval)

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return f"no address is known: set {OWN}SERVER_URL, {OWN}EXTERNAL_URL or {OWN}MACHINE_LEARNING_URL"

    def collect(self, ctx: Context) -> Iterable[Sample]:
        facts = self._probes.look(ctx.deadline)
        for remark in remarks_on(facts):
            ctx.remark(remark.message, remark.mend, optional=remark.optional)
        return probe_samples(facts)

    def close(self) -> None:
        self._probes.close()


def probe_samples(facts: ProbeFacts) -> Iterator[Sample]:
    """The samples of all routes."""
    for route in facts.routes:
        for probe, found in route.probes.items():
            yield from _found_samples(probe, route.name, found)
        yield from FIRST_BYTE.known(route.first_byte, route=route.name)
        if route.certificate is not None:
            yield TRUSTED.sample(route.certificate.trusted, route=route.name)
            yield from EXPIRY.known(route.certificate.expires, route=route.name)
            yield from STARTED.known(route.certificate.starts, route=route.name)
        for family, success in route.families.items():
            yield FAMILY.sample(success, route=route.name, family=family)
        yield from REDIRECTS.known(route.redirects)
    yield from UPLOAD_LIMIT.known(facts.upload_limit, route="external")
    known = [route.maintenance for route in facts.routes if route.maintenance is not None]
    yield from MAINTENANCE.known(any(known) if known else None)
    if facts.machine_learning is not None:
        yield from _found_samples("machine_learning", "direct", facts.machine_learning)


def _found_samples(probe: str, route: str, found: Found) -> Iterator[Sample]:
    labels = {"probe": probe, "route": route}
    yield from SUCCESS.known(found.success, **labels)
    yield from DURATION.known(found.seconds, **labels)
    yield from STATUS.known(found.status, **labels)


def remarks_on(facts: ProbeFacts) -> Iterator[Remark]:
    """What people should know: each probe that failed, each that could not be tried."""
    yield from facts.remarks
    for route in facts.routes:
        for probe, found in route.probes.items():
            yield from _remark(probe, route.name, found)
        yield from route.remarks
        yield from _certificate_remark(route)
    if facts.machine_learning is not None:
        yield from _remark("machine_learning", "direct", facts.machine_learning)


def _remark(probe: str, route: str, found: Found) -> Iterator[Remark]:
    if found.success is False and found.problem:
        yield Remark(f"{probe} fails by the {route} route: {found.problem}", _MENDS[probe, route].format(own=OWN))


def _certificate_remark(route: RouteFacts) -> Iterator[Remark]:
    if route.certificate is not None and not route.certificate.trusted:
        yield Remark(
            f"the certificate of the {route.name} route is not to be trusted: {route.certificate.problem}",
            f"mend it at the proxy; for an authority of your own set {OWN}PROBE_CA_FILE. No API key is sent meanwhile",
        )
