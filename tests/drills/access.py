"""What breaks between phones and the server: nginx, its certificate, its limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import HOST_NAME, NGINX_CONF, SERVER_CONF, Machine

PASSES = "proxy_pass $immich;"


def proxied(before: str, after: str, conf: tuple[str, str] = ("", "")) -> Injection:
    """nginx with something else in its configuration."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.set_proxy(SERVER_CONF.replace(before, after), NGINX_CONF.replace(*conf) if conf[0] else NGINX_CONF)
        yield
        machine.set_proxy()

    return inject


def certified(make: Callable[[Machine], None]) -> Injection:
    """nginx with another certificate."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        make(machine)
        machine.reload_proxy()
        yield
        machine.make_certificates()
        machine.reload_proxy()

    return inject


@contextmanager
def proxy_stopped(machine: Machine) -> Iterator[None]:
    machine.between_probes()
    machine.docker("stop nginx")
    yield
    machine.docker("start nginx")


@contextmanager
def server_hangs(machine: Machine) -> Iterator[None]:
    """Every process of the server stands still, as when one computes without end."""
    machine.docker("exec immich_server sh -c 'kill -STOP $(cat /proc/1/task/1/children)'")
    yield
    machine.docker("exec immich_server sh -c 'kill -CONT $(cat /proc/1/task/1/children)'")
    machine.wait_until_up()


DRILLS = {
    "proxy-stopped": Drill("`docker stop nginx`.", proxy_stopped, ("ImmichContainerStopped",)),
    "proxy-misdirected": Drill(
        "nginx passes requests to a port that nobody listens at (502).",
        proxied(":2283", ":2284"),
        ("ImmichProxyUnreachable",),
    ),
    "proxy-gives-up": Drill(
        "nginx waits a tenth of a second for the server, which takes longer (504).",
        proxied(PASSES, f"{PASSES} proxy_read_timeout 1ms; proxy_connect_timeout 1ms;"),
        ("ImmichProxyUnreachable",),
    ),
    "proxy-drops-websocket": Drill(
        "nginx does not pass the headers that open a websocket.",
        proxied("proxy_set_header Upgrade $http_upgrade;", ""),
        ("ImmichWebsocketBroken",),
    ),
    "proxy-body-limit": Drill(
        "nginx has its default limit of 1 MiB for an upload (413).",
        proxied("location", "client_max_body_size 1m; location"),
        ("ImmichUploadLimitTooLow",),
    ),
    "certificate-expired": Drill(
        "The certificate expired yesterday.",
        certified(lambda machine: machine.make_certificates(days=-1)),
        ("ImmichCertificateInvalid",),
    ),
    "certificate-expires": Drill(
        "The certificate expires in two days.",
        certified(lambda machine: machine.make_certificates(days=2)),
        ("ImmichCertificateExpiring",),
    ),
    "certificate-without-chain": Drill(
        "nginx sends its certificate without the one that signed it, which phones refuse and browsers may not.",
        certified(lambda machine: machine.make_certificates(chain=False)),
        ("ImmichCertificateInvalid",),
    ),
    "certificate-of-another": Drill(
        "The certificate is for another name.",
        certified(lambda machine: machine.make_certificates(name=f"other.{HOST_NAME}")),
        ("ImmichCertificateInvalid",),
    ),
    "server-hangs": Drill(
        "The server takes requests and answers none.",
        server_hangs,
        ("ImmichServerUnreachable",),
    ),
}
