"""Everything that the exporter asks, broken in every way: the table behind docs/reliability.md and its tests."""

import errno
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from reliability.world import World, each_second
from support.fault_proxy import Drips, Fault, Hangs, Refuses, Resets, Says
from support.fuse import Trouble

Injection = Callable[[World], AbstractContextManager[None]]

# The ways, and what each means for something that speaks over a connection.
FAULTS = {
    "absent": "nothing is there: no socket, no such name, no folder",
    "refused": "it is there and takes no question",
    "hangs": "it takes the question and never answers",
    "drips": "the answer comes so slowly that it never ends",
    "resets": "the answer breaks off in its middle",
    "garbage": "the answer is none of its kind",
    "enormous": "the answer has no end",
    "revoked": "our login or our rights were taken away",
    "flapping": "it goes and comes back every second",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """Something that is asked. `scraped` are the collectors that ask it at each scrape and fail without it, `timed`
    those on a timer or a stream that may fail without it, `still` what failing ones go on to say, `midway` what they
    say, too, when it went away between two of their questions. `seconds` is Prometheus' time-out meanwhile."""

    title: str
    scraped: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    still: frozenset[str] = frozenset()
    midway: frozenset[str] = frozenset()
    seconds: float = 1.5


BACKENDS = {
    "docker": Backend(
        "The Docker API", ("container",), ("container_usage", "log"),
        frozenset(("container_exits_total", "container_oom_events_total", "container_event_stream_up")),
        midway=frozenset(("container_found", "container_state")),
    ),
    "postgres": Backend("Postgres", ("postgres",), ("library", "file"), frozenset(("postgres_up",))),
    "redis": Backend("Redis", ("redis", "queue"), (), frozenset(("redis_up",))),
    "probe": Backend("HTTP targets: Immich's own address"),
    "media": Backend("Media paths", (), ("file", "backup"), seconds=2.0),
    "log": Backend("Log streams: the containers' logs through Docker"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """A series and the value it has while the fault stands; None: it is not there."""

    metric: str
    value: float | None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        labels = ",".join(f'{name}="{value}"' for name, value in self.labels.items())
        series = f"`{self.metric}{f'{{{labels}}}' if labels else ''}`"
        return f"no {series}" if self.value is None else f"{series} is {self.value:g}"


@dataclass(frozen=True, slots=True)
class Case:
    """One way to break one thing. `like` says when a person meets it; `reasons` are those for which the collectors of
    the backend fail, without any they do not; `shown` is seen while it stands."""

    backend: str
    fault: str
    like: str
    inject: Injection
    reasons: frozenset[str] = frozenset()
    shown: tuple[Shown, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.backend}, {self.fault}: {self.like}"


def _case(backend: str, fault: str, like: str, inject: Injection, reasons: str = "", *shown: Shown) -> Case:
    return Case(backend, fault, like, inject, frozenset(reasons.split("|")) - {""}, shown)


# -- how to break it


def says(backend: str, fault: Fault) -> Injection:
    """The fault in what it answers."""
    return lambda world: world.proxies[backend].broken(fault)


def refuses(backend: str) -> Injection:
    return lambda world: world.proxies[backend].refusing()


def unknown(backend: str) -> Injection:
    return lambda world: world.unknown(backend)


def flaps(fault: Injection) -> Injection:
    return lambda world: each_second(lambda: fault(world))


def disk(trouble: Trouble) -> Injection:
    def inject(world: World) -> AbstractContextManager[None]:
        assert world.disk is not None
        return world.disk.in_trouble(trouble)

    return inject


def streams(fault: Fault) -> Injection:
    """The fault in what the engine answers to those who ask for a log. Meanwhile the server writes two lines."""

    @contextmanager
    def inject(world: World) -> Iterator[None]:
        with world.proxies["docker"].broken(fault, b"/logs?"):
            world.proxies["docker"].reset(b"/logs?")
            world.say("a line that nobody hears", "and another")
            yield

    return inject


@contextmanager
def login_revoked(world: World) -> Iterator[None]:
    """In Postgres."""
    with world.postgres.connect() as admin:
        admin.execute("ALTER ROLE watcher NOLOGIN")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watcher'")
        try:
            yield
        finally:
            admin.execute("ALTER ROLE watcher LOGIN")


@contextmanager
def user_revoked(world: World) -> Iterator[None]:
    """In Redis."""
    with world.redis.client() as keeper:
        keeper.acl_setuser("watcher", enabled=False)
        keeper.execute_command("CLIENT", "KILL", "USER", "watcher")
        try:
            yield
        finally:
            keeper.acl_setuser("watcher", enabled=True)


@contextmanager
def key_revoked(world: World) -> Iterator[None]:
    """Immich's API key."""
    immich = world.web.immich
    had, immich.permissions = immich.permissions, frozenset()
    try:
        yield
    finally:
        immich.permissions = had


@contextmanager
def other_things_in_place_of_folders(world: World) -> Iterator[None]:
    """A link that leads to itself, and a file."""
    with ExitStack() as mends:
        for name in ("profile", "backups"):
            folder = world.media / name
            kept = folder.rename(folder.with_name(f"kept-{name}"))
            mends.callback(kept.rename, folder)
            mends.callback(folder.unlink)
            if name == "backups":
                folder.touch()
            else:
                folder.symlink_to(folder)
        yield


@contextmanager
def log_in_floods(world: World) -> Iterator[None]:
    """300,000 lines, and one of 16 MB, as fast as the engine takes them."""
    lines = [*(["one of very many lines"] * 300_000), "x" * (16 << 20)]
    flood = threading.Thread(target=world.say, args=lines, kwargs={"container": "immich_machine_learning"})
    flood.start()
    try:
        yield
    finally:
        flood.join()


HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HTTP + b"Transfer-Encoding: chunked\r\n\r\n"
NOISE = bytes(range(256)) * 64
ZEROS = b"0" * 65536
# Postgres' messages: one column of text, a row of it, and a notice.
COLUMN = b"T" + struct.pack("!IH2sIhIhih", 26, 1, b"x\0", 0, 0, 25, -1, -1, 0)
ROW = b"D" + struct.pack("!IHI", 60_010, 1, 60_000) + b"x" * 60_000
NOTICE = b"N\x00\x00\x00\x0bSINFO\x00\x00"

DIRECT = {"probe": "ping", "route": "direct"}
PING_FAILS = Shown("probe_success", 0, DIRECT)
OTHER_ROUTE = Shown("probe_success", 1, {"probe": "ping", "route": "external"})
MEDIA = {"role": "media"}
SILENT = Shown("filesystem_responding", 0, MEDIA)
OTHER_DISK = Shown("filesystem_responding", 1, {"role": "tmp"})
NOTHING_LOST = Shown("file_lost", 0, {"kind": "original"})
SERVER = {"component": "server"}
DEAF = Shown("log_stream_up", 0, SERVER)
LISTENS = Shown("log_stream_up", 1, SERVER)

CASES = (
    _case("docker", "absent", "Docker is stopped, or its socket is not mounted",
          lambda world: world.proxies["docker"].absent(), "absent"),
    _case("docker", "refused", "the daemon has crashed and left its socket", refuses("docker"), "unavailable"),
    _case("docker", "hangs", "`docker ps` hangs, too", says("docker", Hangs()), "timeout"),
    _case("docker", "drips", "a host that swaps", says("docker", Drips()), "timeout"),
    _case("docker", "resets", "the daemon dies while it answers", says("docker", Resets()), "unavailable"),
    _case("docker", "garbage", "something else listens there", says("docker", Says(NOISE)), "unavailable"),
    _case("docker", "garbage", "JSON that is nested for ever",
          says("docker", Says(HTTP + b"Connection: close\r\n\r\n" + b"[" * 1_000_000)), "unavailable"),
    _case("docker", "enormous", "noise without an end", says("docker", Says(NOISE, NOISE)), "unavailable"),
    _case("docker", "enormous", "headers without an end", says("docker", Says(HTTP, b"X: y\r\n" * 1000)),
          "unavailable"),
    _case("docker", "enormous", "a list without an end", says("docker", Says(HTTP + b"\r\n[", b" " * 65536)),
          "unavailable|timeout"),
    _case("docker", "enormous", "a chunk whose size has no end", says("docker", Says(CHUNKED, ZEROS)),
          "unavailable|timeout"),
    _case("docker", "revoked", "a proxy of the socket no longer allows it",
          says("docker", Says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")), "unavailable"),
    _case("docker", "flapping", "a daemon in a crash loop", flaps(refuses("docker")), "unavailable|timeout"),

    _case("postgres", "absent", "its container is stopped: Docker no longer knows the name", unknown("postgres"),
          "absent"),
    _case("postgres", "refused", "its container runs, Postgres does not", refuses("postgres"), "unavailable"),
    _case("postgres", "hangs", "its disk does not answer", says("postgres", Hangs()), "timeout"),
    _case("postgres", "drips", "a very bad network", says("postgres", Drips()), "timeout"),
    _case("postgres", "resets", "one of its processes crashes, and it restarts", says("postgres", Resets()),
          "unavailable"),
    _case("postgres", "garbage", "DB_PORT leads to something else", says("postgres", Says(NOISE)), "unavailable"),
    _case("postgres", "enormous", "noise without an end", says("postgres", Says(NOISE, NOISE)), "unavailable"),
    _case("postgres", "enormous", "rows without an end", says("postgres", Says(COLUMN, ROW)), "unavailable|timeout"),
    _case("postgres", "enormous", "notices without an end", says("postgres", Says(NOTICE, NOTICE * 5000)),
          "unavailable|timeout"),
    _case("postgres", "enormous", "an error text of 2 GB", says("postgres", Says(b"E\x7f\xff\xff\xff", b"S" * 65536)),
          "unavailable|timeout"),
    _case("postgres", "revoked", "somebody changes the role or its password", login_revoked, "unavailable"),
    _case("postgres", "flapping", "Postgres in a crash loop", flaps(refuses("postgres")), "unavailable|timeout"),

    _case("redis", "absent", "its container is stopped: Docker no longer knows the name", unknown("redis"), "absent"),
    _case("redis", "refused", "its container runs, Redis does not", refuses("redis"), "unavailable"),
    _case("redis", "hangs", "a long script, or a host that is paused", says("redis", Hangs()), "timeout"),
    _case("redis", "drips", "a very bad network", says("redis", Drips()), "timeout"),
    _case("redis", "resets", "it is killed while it answers", says("redis", Resets()), "unavailable"),
    _case("redis", "garbage", "REDIS_PORT leads to something else", says("redis", Says(NOISE)), "unavailable"),
    _case("redis", "garbage", "lists in lists for ever", says("redis", Says(b"*1\r\n" * 1000)), "unavailable"),
    _case("redis", "enormous", "noise without an end", says("redis", Says(NOISE, NOISE)), "unavailable"),
    _case("redis", "enormous", "a line without an end", says("redis", Says(b"+", b"x" * 65536)),
          "unavailable|timeout"),
    _case("redis", "enormous", "a string of 2 GB", says("redis", Says(b"$2147483647\r\n", b"x" * 65536)),
          "unavailable|timeout"),
    _case("redis", "enormous", "a list of two billion", says("redis", Says(b"*2147483647\r\n", b":1\r\n" * 10000)),
          "unavailable|timeout"),
    _case("redis", "enormous", "lists that announce a billion each", says("redis", Says(b"*1000000000\r\n" * 6, b"")),
          "unavailable|timeout"),
    _case("redis", "revoked", "somebody disables the ACL user", user_revoked, "unavailable"),
    _case("redis", "revoked", "the ACL user may no longer read",
          says("redis", Says(b"-NOPERM no permissions to run the 'info' command\r\n" * 50)), "unavailable"),
    _case("redis", "flapping", "Redis in a crash loop", flaps(refuses("redis")), "unavailable|timeout"),

    _case("probe", "absent", "its container is stopped: Docker no longer knows the name", unknown("probe"), "",
          PING_FAILS, OTHER_ROUTE, Shown("probe_http_status", None, DIRECT)),
    _case("probe", "refused", "its container runs, Immich does not yet", refuses("probe"), "", PING_FAILS, OTHER_ROUTE,
          Shown("probe_http_status", None, DIRECT)),
    _case("probe", "hangs", "a server whose event loop is stuck", says("probe", Hangs()), "", PING_FAILS, OTHER_ROUTE),
    _case("probe", "drips", "a very bad network", says("probe", Drips()), "", PING_FAILS, OTHER_ROUTE),
    _case("probe", "resets", "it is killed while it answers", says("probe", Resets()), "", PING_FAILS, OTHER_ROUTE),
    _case("probe", "garbage", "the port belongs to something else", says("probe", Says(NOISE)), "", PING_FAILS,
          OTHER_ROUTE),
    _case("probe", "garbage", "another program's web page", says("probe", Says(HTTP + b"\r\n<html>")), "", PING_FAILS,
          OTHER_ROUTE, Shown("probe_http_status", 200, DIRECT)),
    _case("probe", "enormous", "headers without an end", says("probe", Says(HTTP, b"X: y\r\n" * 1000)), "", PING_FAILS,
          OTHER_ROUTE),
    _case("probe", "enormous", "a page without an end", says("probe", Says(HTTP + b"\r\n", ZEROS)), "", PING_FAILS,
          OTHER_ROUTE),
    _case("probe", "revoked", "the API key loses its permissions", key_revoked, "",
          Shown("probe_success", None, {"probe": "image", "route": "direct"}),
          Shown("probe_success", 1, DIRECT)),
    _case("probe", "flapping", "Immich in a crash loop", flaps(refuses("probe")), "", PING_FAILS, OTHER_ROUTE),

    _case("media", "absent", "the folder is not mounted into the exporter", disk(Trouble(error=errno.ENOENT)), "",
          Shown("filesystem_found", 0, MEDIA), Shown("storage_folder_present", 0, {"folder": "thumbs"}), OTHER_DISK,
          NOTHING_LOST),
    _case("media", "refused", "the program behind a FUSE mount has died",
          disk(Trouble(error=errno.ENOTCONN)), "unavailable", SILENT, Shown("storage_io_error", 1), OTHER_DISK,
          NOTHING_LOST),
    _case("media", "hangs", "the file server of an NFS or SMB mount is gone", disk(Trouble(hangs=True)), "timeout",
          SILENT, Shown("storage_folder_present", None, {"folder": "thumbs"}), OTHER_DISK,
          Shown("collector_success", 0, {"collector": "file"})),
    _case("media", "drips", "a disk that tries each block again and again", disk(Trouble(pause=0.5)), "timeout",
          SILENT, OTHER_DISK, Shown("collector_success", 0, {"collector": "file"})),
    _case("media", "resets", "a disk fails while a folder is listed",
          disk(Trouble(broken_lists=errno.EIO)), "unavailable", Shown("storage_io_error", 1), OTHER_DISK, NOTHING_LOST),
    _case("media", "garbage", "a link that leads to itself, a file in the place of a folder",
          other_things_in_place_of_folders, "", Shown("storage_folder_present", 0, {"folder": "profile"}),
          Shown("storage_folder_present", 0, {"folder": "backups"}),
          Shown("filesystem_found", 0, {"role": "profile"}), OTHER_DISK, NOTHING_LOST),
    _case("media", "enormous", "folders with 200,000 files each", disk(Trouble(more=200_000)), "",
          Shown("storage_folder_present", 1, {"folder": "thumbs"}), OTHER_DISK, NOTHING_LOST),
    _case("media", "revoked", "the exporter's user may not enter the folders", disk(Trouble(error=errno.EACCES)), "",
          Shown("filesystem_responding", 1, MEDIA), Shown("filesystem_found", None, MEDIA),
          Shown("storage_folder_present", None, {"folder": "thumbs"}), OTHER_DISK, NOTHING_LOST),
    _case("media", "flapping", "a USB disk with a loose plug", flaps(disk(Trouble(error=errno.EIO))), "unavailable",
          SILENT, OTHER_DISK, NOTHING_LOST),

    _case("log", "absent", "the container was removed a moment ago",
          streams(Says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")), "", DEAF),
    _case("log", "refused", "a proxy of the socket hangs up at once", streams(Refuses()), "", DEAF),
    _case("log", "hangs", "a logging driver that is stuck", streams(Hangs()), "", DEAF),
    _case("log", "drips", "a host that swaps", streams(Drips(0.02)), "", LISTENS),
    _case("log", "resets", "a proxy of the socket ends long answers", streams(Resets()), ""),
    _case("log", "garbage", "an answer that is not HTTP", streams(Says(NOISE)), "", DEAF),
    _case("log", "garbage", "a stream that is no log", streams(Says(CHUNKED + b"100\r\n" + NOISE[:256] + b"\r\n")), "",
          DEAF),
    _case("log", "enormous", "a program that writes as fast as it can, and a line of 16 MB", log_in_floods, "",
          LISTENS),
    _case("log", "revoked", "a proxy of the socket does not allow logs",
          streams(Says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")), "", DEAF),
    # Whether a scrape meets it while it is away is chance: it is asked again within the second.
    _case("log", "flapping", "a daemon that is restarted over and over", flaps(streams(Refuses())), ""),
)  # fmt: skip
