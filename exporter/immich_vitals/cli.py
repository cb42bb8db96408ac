"""The command `immich-vitals`."""

import argparse
import ctypes
import io
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from pathlib import Path

from immich_vitals import __version__, config, logs, reference
from immich_vitals.collector import Collector
from immich_vitals.collectors import COLLECTORS
from immich_vitals.config import Config, ConfigError
from immich_vitals.page import describe
from immich_vitals.runner import Runner, Status
from immich_vitals.settings import OWN, SETTINGS
from immich_vitals.vitals import vital_signs

CHECK_SECONDS = 120.0

M_ARENA_MAX = -8  # of malloc.h
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGE_BYTES = 1 << 20
OK, FAILED, WRONG_USE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 something did not answer, 2 wrong settings or usage."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be bytes that are no text
    command: Callable[[argparse.Namespace], int] = getattr(options, "command", _serve)
    try:
        return command(options)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(f"immich-vitals: {mistake}", file=sys.stderr)
        return WRONG_USE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130


def build(settings: Config) -> Runner:
    """A runner with every collector that the settings enable."""
    enabled: list[Collector] = []
    disabled: dict[str, tuple[str, str]] = {}
    for kind in COLLECTORS:
        about = kind.__doc__ or ""
        if kind.name in settings.disabled:
            disabled[kind.name] = (about, "Switched off by IMMICH_VITALS_DISABLE.")
            continue
        collector = kind.from_config(settings)
        if collector is None:
            disabled[kind.name] = (about, kind.disabled_because(settings))
        else:
            enabled.append(collector)
    return Runner(enabled, disabled)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("settings", "Each can be set in the environment too; see `immich-vitals config`.")
    for setting in SETTINGS:
        if setting.flag:
            group.add_argument(setting.flag, dest=setting.name, action="append", help=setting.help, metavar="VALUE")
    parser = argparse.ArgumentParser(
        prog="immich-vitals",
        description="Vital signs for Immich: why photos do not load, and what to fix first.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"immich-vitals {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, parents=[common])
        sub.set_defaults(command=command)
        return sub

    add("serve", _serve, "Serve the metrics until told to stop (the default).")
    add("check", _check, "Ask every collector once; exit 0 only if everything enabled really answered.")
    add("scrape", _scrape, "Print the metrics once.")
    demo = add("demo", _demo, "Run against an embedded Postgres, Redis and media folder, to see what it is like.")
    demo.add_argument("--fault", default=None, help="break something after the start; see --list-faults")
    demo.add_argument("--list-faults", action="store_true", default=False, help="what can be broken")
    demo.add_argument("--once", action="store_true", default=False, help="print the vital signs and end")
    bundle = add("bundle", _bundle, "Write the alert rules, runbooks and dashboards that belong to this version.")
    bundle.add_argument("folder", metavar="DIR", help="where to; made if it is not there")
    bundle.add_argument("--runbook-url", type=_url, default=None, metavar="URL", help="where your runbooks are")
    bundle.add_argument("--grafana-url", type=_url, default=None, metavar="URL", help="where your Grafana is")
    bundle.add_argument("--force", action="store_true", default=False, help="replace files that are not ours, too")
    grants = add("grants", _grants, "Print SQL and a Redis ACL line for logins that may only read what is needed.")
    grants.add_argument("--role", default="immich_vitals", help="name of the Postgres role and Redis user")
    match = add("log-match", _log_match, "Say for each log line on standard input which signature it would count as.")
    match.add_argument("--component", required=True, metavar="C", help="whose log it is, such as server or database")
    match.add_argument("--catalogue", type=Path, default=None, metavar="FILE", help="signatures of your own")
    for name, command, about in (
        ("metrics", _metrics, "Print the reference of all metrics."),
        ("config", _config, "Print the reference of all settings."),
    ):
        sub = add(name, command, about)
        sub.add_argument("--format", choices=("md", "json"), default="md", help="Markdown or JSON")
    add("healthcheck", _healthcheck, "Exit 0 if the exporter on this host answers; for the container's HEALTHCHECK.")
    return parser


def _load(options: argparse.Namespace) -> Config:
    flags = {setting.name: getattr(options, setting.name) for setting in SETTINGS if hasattr(options, setting.name)}
    settings = config.load(os.environ, flags, [kind.name for kind in COLLECTORS])
    logs.set_up(settings.log_level)
    return settings


def _serve(options: argparse.Namespace) -> int:
    from immich_vitals.server import serve

    settings = _load(options)
    _give_memory_back()
    serve(settings, build(settings))
    # Not by the interpreter's own end, which kills the threads left behind as they come back from a call, and aborts
    # the whole process, with exit code 134, when that call is one into Rust (bcrypt).
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(OK)


def _give_memory_back() -> None:
    """Keep the C library from giving each of our short-lived threads a heap of its own, which it hardly gives back, and
    from keeping the place of an enormous answer: by itself it puts up to 32 MB into the heap once it has seen such."""
    with suppress(OSError, AttributeError):  # another C library than GNU's
        library = ctypes.CDLL(None)
        library.mallopt(M_ARENA_MAX, 2)
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)


def _scrape(options: argparse.Namespace) -> int:
    from immich_vitals.server import exposition

    runner = build(_load(options))
    body, _ = exposition(runner.metrics, runner.scrape(CHECK_SECONDS, everything=True))
    sys.stdout.write(body.decode())
    return OK


def _check(options: argparse.Namespace) -> int:
    settings = _load(options)
    logs.set_up("error")  # the table says it all; the log would say it twice
    runner = build(settings)
    scrape = runner.begin(CHECK_SECONDS, everything=True)
    waiting: set[str] = set()
    while (pending := scrape.pending())[0]:
        names = scrape.names(pending[0])
        if names != waiting:
            print(f"waiting for {', '.join(sorted(names))}", file=sys.stderr, flush=True)
            waiting = names
        wait_for(pending[0], timeout=min(pending[1], 1.0), return_when="FIRST_COMPLETED")
    samples = runner.finish(scrape)
    statuses = runner.statuses()
    for line in check_table(statuses):
        print(line)
    signs = [sign for sign in vital_signs(samples) if sign.known]
    width = max((len(sign.name) for sign in signs), default=0)
    for number, sign in enumerate(signs):
        print(("" if number else "\n") + f"{sign.name:<{width}}  {sign.text}")
    enabled = [status for status in statuses if status.enabled]
    if not enabled:
        print("Nothing is enabled: nothing was checked.", file=sys.stderr)
        return FAILED
    return OK if all(describe(status)[0] == "ok" for status in enabled) else FAILED


def check_table(statuses: Sequence[Status]) -> list[str]:
    """One line a collector: name, state, and what it says with the mend."""
    words = {"ok": "ok", "partly": "PARTLY", "failing": "FAILED", "off": "off", "waiting": "FAILED"}
    rows = []
    for status in statuses:
        state, says = describe(status)
        rows.append((status.name, words[state], says if state != "waiting" else "Gave no answer in time."))
    width = max((len(name) for name, _, _ in rows), default=0)
    return [f"{name:<{width}}  {state:<6}  {says}" for name, state, says in rows]


def _demo(options: argparse.Namespace) -> int:
    from immich_vitals import demo

    if options.list_faults:
        width = max(map(len, demo.FAULTS))
        for name, fault in demo.FAULTS.items():
            print(f"{name:<{width}}  {fault.description}")
        return OK
    listen = getattr(options, OWN + "LISTEN_ADDRESS", [None])[-1]
    return demo.run(options.fault, listen=listen, once=options.once)


def _bundle(options: argparse.Namespace) -> int:
    from immich_vitals import bundling

    try:
        count = bundling.write(
            Path(options.folder),
            options.runbook_url or bundling.RUNBOOK_URL,
            options.grafana_url or bundling.GRAFANA_URL,
            force=options.force,
        )
    except bundling.BundleError as error:
        print(f"immich-vitals bundle: {error}", file=sys.stderr)
        return FAILED
    print(f"{count} files in {options.folder}; alerts.md there says where each belongs")
    return OK


def _log_match(options: argparse.Namespace) -> int:
    from immich_vitals import log_match
    from immich_vitals.signatures import COMPONENTS, CatalogueError

    component = str(options.component).strip().lower().replace("-", "_")
    if component not in COMPONENTS:
        known = ", ".join(COMPONENTS)
        print(f"immich-vitals log-match: unknown component {options.component!r}; known: {known}", file=sys.stderr)
        return WRONG_USE
    try:
        log_match.run(component, options.catalogue, partial(os.read, sys.stdin.fileno()), sys.stdout.buffer)
    except CatalogueError as error:
        for mistake in error.mistakes:
            print(f"immich-vitals log-match: {mistake}", file=sys.stderr)
        return WRONG_USE
    return OK


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s\"'<>{}#\\]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no address: it begins with http:// or https://")
    return text


def _grants(options: argparse.Namespace) -> int:
    from immich_vitals import grants

    settings = _load(options)
    database = settings.postgres.database if settings.postgres else "immich"
    print(grants.grants_sql(database, options.role))
    # As a comment, so that the whole output can be given to psql.
    print("-- The user for Redis or Valkey is made with this line in redis-cli:")
    print(f"--   {grants.redis_acl(options.role)}")
    return OK


def _metrics(options: argparse.Namespace) -> int:
    print(reference.metrics(options.format), end="")
    return OK


def _config(options: argparse.Namespace) -> int:
    print(reference.settings(options.format), end="")
    return OK


def _healthcheck(options: argparse.Namespace) -> int:
    """Whether the listening process answers at all: any HTTP status will do, also 401 and a refused TLS handshake
    for want of a client certificate, since the check has no credentials."""
    settings = _load(options)
    host, _, port = settings.web.listen[0].rpartition(":")
    host = host.strip("[]")
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), timeout=3.0) as plain:
            said = _first_bytes(plain, settings)
    except OSError as error:
        print(f"unhealthy: {host}:{port} {error.strerror or error}", file=sys.stderr)
        return FAILED
    if not said:
        print(f"unhealthy: {host}:{port} accepts and does not answer", file=sys.stderr)
        return FAILED
    print(f"healthy, answered in {(time.monotonic() - began) * 1000:.0f} ms")
    return OK


def _first_bytes(plain: socket.socket, settings: Config) -> bytes:
    from immich_vitals.web import Web

    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    if not Web(settings.web.config_file).tls:
        plain.sendall(request)
        return plain.recv(64)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it asks whether we live, not who we are
    try:
        with context.wrap_socket(plain) as wrapped:
            wrapped.sendall(request)
            return wrapped.recv(64) or b"the handshake, then no more for want of a certificate"
    except ssl.SSLError as error:
        return (error.reason or "the handshake was refused").encode()
