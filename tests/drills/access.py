"""What breaks between phones and the server: nginx, its certificate, its limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drills.drill import Drill, Injection
from support.machine import HOST_NAME, NGINX, NGINX_CONF, SERVER_CONF, Machine


def proxied(before: str, after: str, conf: tuple[str, str] = ("", "")) -> Injection:
    """nginx with something else in its configuration."""

    @contextmanager
    def inject(machine: Machine) -> Iterator[None]:
        machine.set_proxy(SERVER_CONF.replace(before, after), NGINX_CONF.replace(*conf) if conf[0] else NGINX_CONF)
        yield
        machine.set_proxy()

    return inject


@contextmanager
def stalled(machine: Machine) -> Iterator[None]:
    """nginx passes requests to a program that accepts connections and says nothing, and waits for a second."""
    silent = "import socket, time; s = socket.create_server(('', 2283)); time.sleep(9999)"
    machine.docker(f'run --detach --name silent --network immich_default --entrypoint python3 {NGINX} -c "{silent}"')
    pass_on = proxied("http://immich-server:2283;", "http://silent:2283; proxy_read_timeout 1s;")
    with pass_on(machine):
        yield
    machine.docker("rm -f silent")


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
        "nginx passes requests to something that takes them and never answers (504).",
        stalled,
        ("ImmichProxyUnreachable",),
    ),
    "proxy-drops-websocket": Drill(
        "nginx does not pass the headers that open a websocket.",
        proxied("proxy_set_header Upgrade $http_upgrade;", ""),
        ("ImmichWebsocketBroken",),
    ),
    "proxy-body-limit": Drill(
        "nginx has its default limit of 1 MiB for an upload (413).",
        proxied("location / {", "location / { client_max_body_size 1m;"),
        ("ImmichUploadLimitTooLow",),
    ),
    "certificate-expired": Drill(
        "The certificate expired yesterday.",
        certified(lambda machine: machine.make_certificates(days=-1)),
        ("ImmichCertificateInvalid",),
    ),
    "certificate-expires": Drill(
        "The certificate of a day expires in two hours and was not renewed.",
        certified(lambda machine: machine.make_certificates(days=0.1)),
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
