"""What the demo can break between Immich and its users: server, machine learning, and the proxy before the server."""

from collections.abc import Iterator
from contextlib import contextmanager

from immich_vitals.demo.fault import Fault, Sign
from immich_vitals.demo.world import World

NOBODY = ("127.0.0.1", 1)  # a port that nobody listens at
SLOW_SECONDS = 2.5
LIMIT_BYTES = 1 << 20  # what nginx takes where nobody says


@contextmanager
def server_hangs(world: World) -> Iterator[None]:
    """The server takes requests and does not answer, as when it computes without end."""
    world.web.immich.hang()
    yield
    world.web.immich.go_on()


@contextmanager
def photos_unreadable(world: World) -> Iterator[None]:
    """The server answers, and may not read the files of the photos."""
    world.web.immich.may_read = False
    yield
    world.web.immich.may_read = True


@contextmanager
def machine_learning_down(world: World) -> Iterator[None]:
    world.web.machine_learning.stop()
    yield
    world.web.machine_learning.start()


@contextmanager
def proxy_misdirected(world: World) -> Iterator[None]:
    """The proxy passes requests to where Immich no longer is, and so answers 502."""
    proxy = world.web.proxy
    before, proxy.target = proxy.target, NOBODY
    yield
    proxy.target = before


@contextmanager
def proxy_slow(world: World) -> Iterator[None]:
    """The proxy takes its time before each answer."""
    world.web.proxy.delay = SLOW_SECONDS
    yield
    world.web.proxy.delay = 0.0


@contextmanager
def websocket_dropped(world: World) -> Iterator[None]:
    """The proxy does not pass the headers that open a websocket."""
    world.web.proxy.passes_upgrade = False
    yield
    world.web.proxy.passes_upgrade = True


@contextmanager
def upload_limit(world: World) -> Iterator[None]:
    world.web.proxy.body_limit = LIMIT_BYTES
    yield
    world.web.proxy.body_limit = None


def _failing(probe: str, route: str) -> Sign:
    return Sign("probe_success", at_most=0, labels={"probe": probe, "route": route})


FAULTS_PROBE: dict[str, Fault] = {
    "server-hangs": Fault(
        "The server takes requests and does not answer.",
        server_hangs,
        _failing("ping", "direct"),
        "ImmichServerUnreachable",
    ),
    "photos-unreadable": Fault(
        "The server may not read the files of the photos.",
        photos_unreadable,
        _failing("image", "direct"),
        "ImmichImageLoadFailing",
    ),
    "machine-learning-down": Fault(
        "Machine learning is stopped.",
        machine_learning_down,
        _failing("machine_learning", "direct"),
        "ImmichMachineLearningUnreachable",
    ),
    "proxy-misdirected": Fault(
        "The proxy passes requests to where Immich no longer is.",
        proxy_misdirected,
        _failing("ping", "external"),
        "ImmichProxyUnreachable",
    ),
    "proxy-slow": Fault(
        f"The proxy waits for {SLOW_SECONDS} s before each answer.",
        proxy_slow,
        Sign("probe_first_byte_seconds", at_least=SLOW_SECONDS, labels={"route": "external"}),
        "ImmichProxySlow",
    ),
    "websocket-dropped": Fault(
        "The proxy drops the headers that open a websocket.",
        websocket_dropped,
        _failing("websocket", "external"),
        "ImmichWebsocketBroken",
    ),
    "upload-limit": Fault(
        "The proxy takes uploads of up to 1 MiB.",
        upload_limit,
        Sign("probe_upload_limit_bytes", at_most=LIMIT_BYTES, labels={"route": "external"}),
        "ImmichUploadLimitTooLow",
    ),
}
