"""One connection to Immich's Redis or Valkey that obeys a deadline, what its refusals mean, and what it says of
itself.

The connection is redis-py's, without its pool, retries and health checks: those would spend the deadline twice.
"""

import math
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import hiredis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as BrokenError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from immich_vitals.collector import CollectorFailure, Deadline, Unavailable
from immich_vitals.config import RedisConfig
from immich_vitals.sources.kept import Down, Kept, NoServer, Silent
from immich_vitals.sources.names import NAMES, Unanswered, Unknown

CONNECT_SECONDS = 1.5  # per address: a host name may stand for two, and one of them may be dead
SENTINEL_SECONDS = 1.0  # per Sentinel, so that a hung one leaves time for the next
MOST_BYTES = 32 * 1024 * 1024  # of one round trip; only something that is no Redis of Immich says more
# A list so long that hiredis, which makes room for all of it at once, would stop this whole process.
_ENDLESS = re.compile(rb"(?:^|\n)[*~%>]\d{8}")
GRANTS = "give the login the rights that `immich-vitals grants` prints"

Reply: TypeAlias = "int | bytes | ResponseError | list[Reply] | None"


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands as they go over the wire, so that those that never change are packed once."""

    names: tuple[str, ...]
    packed: bytes


def pack(commands: Iterable[Sequence[str]]) -> Commands:
    """The commands, each given as its words."""
    given = [tuple(words) for words in commands]
    packed = b"".join(hiredis.pack_command(words) for words in given)  # type: ignore[arg-type]  # meant: any length
    return Commands(tuple(words[0] for words in given), packed)


class _PatientSocket:
    """A socket whose every call ends at its owner's deadline, so that a server that drips bytes cannot outlast it,
    and that takes no endless answer: hiredis would keep all of it."""

    def __init__(self, inner: socket.socket, owner: "_Deadlined") -> None:
        self._inner = inner
        self._owner = owner
        self._taken = 0
        self._tail = b"\n"

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def settimeout(self, seconds: float | None) -> None:
        """Does nothing: redis-py would set its own time-out, one per call, here."""

    def recv(self, count: int, flags: int = 0) -> bytes:
        self._limit()
        data = self._inner.recv(count, flags)
        self._check(data)
        return data

    def recv_into(self, buffer: bytearray) -> int:
        self._limit()
        count = self._inner.recv_into(buffer)
        self._check(bytes(memoryview(buffer)[:count]))
        return count

    def sendall(self, data: bytes) -> None:
        self._taken = 0
        self._limit()
        self._inner.sendall(data)

    def _limit(self) -> None:
        left = self._owner.deadline.remaining()
        if left <= 0:
            raise TimeoutError("no time left")
        self._inner.settimeout(left)

    def _check(self, data: bytes) -> None:
        self._taken += len(data)
        if self._taken > MOST_BYTES or _ENDLESS.search(self._tail + data):
            raise InvalidResponse("an answer without end")
        self._tail = (self._tail + data)[-10:]


class _Link(Protocol):
    """What we use of a connection of redis-py, whose own is not typed."""

    deadline: Deadline

    def connect(self) -> None: ...
    def close(self) -> None: ...
    def send_packed_command(self, command: list[bytes], check_health: bool) -> None: ...
    def read_response(self) -> Reply: ...


class _Deadlined:
    """Mixed into a connection of redis-py. `deadline` may be moved between two commands."""

    def __init__(self, where: str, deadline: Deadline, **options: object) -> None:
        super().__init__(**options)
        self.where = where
        self.deadline = deadline

    def close(self) -> None:
        self.disconnect()  # type: ignore[attr-defined]

    def _connect(self) -> _PatientSocket:
        try:
            return _PatientSocket(super()._connect(), self)  # type: ignore[misc]
        except (OSError, UnicodeError) as error:
            raise _cannot_connect(error, self.where) from error


class _Tcp(_Deadlined, Connection): ...


class _Unix(_Deadlined, UnixDomainSocketConnection): ...


class _Tls(_Deadlined, SSLConnection): ...


class RedisServer(Kept[_Link, Commands, list[Reply]]):
    """Immich's Redis. A question is some commands; the answer has their replies, in order, after one round trip.

    A refused command's reply is its error. Beside `NoServer`, `Down` and `Silent`, `ask` raises `Unavailable` when the
    server is there and rejects our login.
    """

    def __init__(self, config: RedisConfig) -> None:
        super().__init__()
        self._config = config
        self.where = config.where
        self.tells_settings = True  # as far as is known

    def refused(self, command: str, error: RedisError) -> CollectorFailure:
        """The failure that the refusal of a command we cannot do without, or nonsense for its answer, stands for."""
        return _meaning(error, self.where, command)

    def _connect(self, question: Commands, deadline: Deadline) -> _Link:
        with self._meanings(question):
            config = _master(self._config, deadline) if self._config.sentinels else self._config
            self.where = config.where
            return _connected(config, deadline)

    def _ask(self, connection: _Link, question: Commands, deadline: Deadline) -> list[Reply]:
        with self._meanings(question):
            return _replies(connection, question, deadline)

    @contextmanager
    def _meanings(self, commands: Commands) -> Iterator[None]:
        """Errors of redis-py as the failures that they stand for."""
        try:
            yield
        except RedisError as error:
            raise _meaning(error, self.where, commands.names[0]) from error


def _connected(config: RedisConfig, deadline: Deadline) -> _Link:
    """A new connection, logged in. Raises redis-py's errors, or a failure when there is nothing to connect to."""
    if config.socket is None:
        _look_up(config, deadline)  # redis-py does it once more, without a deadline
    limit = deadline.limit(f"connect to Redis at {config.where}", CONNECT_SECONDS)
    kind: Callable[..., _Link] = _Tcp
    place: dict[str, object] = {"host": config.host, "port": config.port}
    if config.socket:
        kind, place = _Unix, {"path": config.socket}
    elif config.tls:
        kind = _Tls
        place |= {
            "ssl_ca_certs": config.tls_ca_file,
            "ssl_cert_reqs": "required" if config.tls_verify else "none",
            "ssl_check_hostname": config.tls_verify,
        }
    connection = kind(
        config.where,
        deadline,
        **place,
        db=config.db,
        username=config.username,
        password=config.password.value if config.password else None,
        socket_timeout=limit,
        socket_connect_timeout=limit,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,  # else it sends CLIENT SETINFO, which our login need not be allowed
    )
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def _look_up(config: RedisConfig, deadline: Deadline) -> None:
    """See that the host name is known. Raises `NoServer` when it is not, `Silent` when nobody says in time."""
    try:
        NAMES.addresses(config.host, deadline)
    except Unknown as error:
        raise _cannot_connect(socket.gaierror(), config.where) from error
    except Unanswered:
        raise Silent(
            f"the host name of Redis at {config.where} could not be looked up in time",
            mend="see whether the redis container runs: one that does not has no name; then the name servers",
        ) from None


def _replies(connection: _Link, commands: Commands, deadline: Deadline) -> list[Reply]:
    """Send the commands and read a reply to each. Raises redis-py's error when the connection breaks."""
    connection.deadline = deadline
    connection.send_packed_command([commands.packed], check_health=False)
    replies: list[Reply] = []
    for _ in commands.names:
        try:
            replies.append(connection.read_response())
        except ResponseError as refusal:
            if str(refusal).startswith("DENIED"):
                raise  # the one answer to everything that is sent
            replies.append(refusal)
    return replies


def _master(config: RedisConfig, deadline: Deadline) -> RedisConfig:
    """Where the Sentinels say the master is. Each is asked in turn until one knows."""
    name = config.sentinel_name or ""
    asked = pack([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)])
    failure: CollectorFailure | None = None
    for host, port in config.sentinels:
        soon = deadline.within(SENTINEL_SECONDS)
        sentinel = RedisServer(RedisConfig(host=host, port=port, password=config.sentinel_password))
        try:
            (reply,) = sentinel.ask(asked, soon)
        except CollectorFailure as broken:
            mend = "look at `sentinels` and `sentinelPassword` in REDIS_URL"
            failure = type(broken)(f"asking a Sentinel: {broken.message}", mend=mend)
            continue
        finally:
            sentinel.close()
        if isinstance(reply, ResponseError):
            failure = sentinel.refused("SENTINEL", reply)
        elif (address := items(reply)) and len(address) == 2:
            return replace(config, host=text(address[0]), port=int(text(address[1])), socket=None, sentinels=())
        else:
            failure = Unavailable(
                f"the Sentinel at {host}:{port} knows no master named {name!r}",
                mend="look at `name` in REDIS_URL; `SENTINEL MASTERS` lists the names it knows",
            )
    raise failure or Unavailable("no Sentinel is named", mend="look at `sentinels` in REDIS_URL")


_SETTINGS = "REDIS_HOSTNAME and REDIS_PORT, or REDIS_URL"


def _cannot_connect(error: Exception, where: str) -> CollectorFailure:
    """The failure that an error of the operating system while connecting stands for."""
    match error:
        case socket.gaierror() | UnicodeError():
            return NoServer(
                f"the host of Redis at {where} is not known",
                mend=f"look at {_SETTINGS}, and whether the exporter is in Immich's Docker network",
            )
        case ssl.SSLCertVerificationError():
            return Unavailable(
                f"the certificate of Redis at {where} is not trusted: {error.verify_message}",
                mend="let it carry the name in REDIS_URL and be signed by an authority that this machine trusts",
            )
        case ssl.SSLError():
            return Unavailable(
                f"Redis at {where} does not speak TLS",
                mend="look at REDIS_URL: rediss:// or `tls` is for a server with TLS only",
            )
        case FileNotFoundError():
            return NoServer(
                f"the socket of Redis is not at {where}",
                mend="look at REDIS_SOCKET, and whether the socket's folder is mounted here",
            )
        case PermissionError():
            return Unavailable(
                f"this user may not open the socket of Redis at {where}",
                mend="run the exporter in the socket's group, or set `unixsocketperm 770` in redis.conf",
            )
        case ConnectionRefusedError():
            return Down(
                f"Redis at {where} refuses the connection",
                mend=f"see whether the redis container runs and what its log says last; then {_SETTINGS}",
            )
        case TimeoutError():
            return Silent(
                f"Redis at {where} does not answer",
                mend=f"look at {_SETTINGS}, the network and any firewall; asked for TLS, a server without it is silent",
            )
        case _:
            return Down(
                f"Redis at {where} cannot be reached", mend=f"look at {_SETTINGS}, the network and any firewall"
            )


def _meaning(error: RedisError, where: str, command: str) -> CollectorFailure:
    """The failure that an error of redis-py stands for; `command` is what was refused, if one was."""
    said = str(error)
    match error:
        case LateError():
            return Silent(
                f"Redis at {where} does not answer",
                mend="it may be frozen, swapped out or busy with one long command: look at its container and its host",
            )
        case BusyLoadingError():
            return Down(f"Redis at {where} is still loading its data", mend="wait; its log says how far it is")
        case MasterDownError():
            return Down(
                f"Redis at {where} is a replica that has lost its master",
                mend="start the master or promote the replica",
            )
        case NoPermissionError():
            named = re.search(r"the '([^']+)' command", said)
            words = named[1].replace("|", " ").upper() if named else command
            return Unavailable(f"Redis at {where} does not let this login run {words}", mend=GRANTS)
        case BrokenError() if "max number of clients" in said:
            return Unavailable(
                f"Redis at {where} has no connection left",
                mend="see who holds them: CLIENT LIST; or raise `maxclients`",
            )
        case AuthenticationError() if "required" in said:
            return Unavailable(f"Redis at {where} wants a password and none is set", mend="set REDIS_PASSWORD")
        case AuthenticationError() if "without any password" in said or "no password is set" in said:
            return Unavailable(f"Redis at {where} has no password and one is set", mend="unset REDIS_PASSWORD")
        case AuthenticationError():
            return Unavailable(
                f"Redis at {where} rejects the user name or password", mend="look at REDIS_USERNAME and REDIS_PASSWORD"
            )
        case InvalidResponse():
            return Unavailable(f"what answers at {where} is not Redis", mend=f"look at {_SETTINGS}")
        case ResponseError() if said.startswith("DENIED"):
            return Unavailable(
                f"Redis at {where} is in protected mode and answers its own machine only",
                mend="set a password for it, or `protected-mode no` on a network of its own",
            )
        case ResponseError() if "DB index" in said:
            return Unavailable(f"Redis at {where} has no such database", mend="look at REDIS_DBINDEX")
        case BrokenError():
            return Down(
                f"Redis at {where} closed the connection",
                mend="its log says why; a server that expects TLS does so too, then use rediss:// in REDIS_URL",
            )
        case _:
            return Unavailable(
                f"Redis at {where} refuses {command}: {said[:100]}",
                mend="a server that is no Redis 6.2, Valkey 7 or newer may lack it",
            )


def items(reply: Reply) -> list[Reply]:
    """A list in a reply; empty for anything else."""
    return reply if isinstance(reply, list) else []


def text(reply: Reply) -> str:
    """A text in a reply; empty for anything else."""
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""


def number(reply: Reply) -> float | None:
    """A number in a reply, whether sent as number or as text; None for anything else."""
    if isinstance(reply, int):
        return reply
    return _finite(text(reply))


def _finite(word: str) -> float | None:
    with suppress(ValueError):
        found = float(word)
        return found if math.isfinite(found) else None
    return None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself in INFO and CONFIG; None where it does not say.

    Times are seconds since the epoch, memory is in bytes. `memory_max` is 0 without a limit. `memory_uncounted` is
    the part of `memory_used` that the limit does not count. `saves` and `stops_when_save_fails` are Redis' settings
    `save` and `stop-writes-on-bgsave-error`; where we may not read those, its defaults.
    """

    product: str
    version: str
    mode: str
    role: str
    started: float | None
    loading: bool | None
    read_only: bool
    memory_used: float | None
    memory_uncounted: float
    memory_max: float | None
    eviction_policy: str
    evicted: float | None
    clients: float | None
    clients_max: float | None
    rejected: float | None
    last_save: float | None
    last_save_ok: bool | None
    log_write_ok: bool | None
    saves: bool
    stops_when_save_fails: bool


_ASK_INFO = pack([("INFO",)])
_ASK_SERVER = pack([("INFO",), ("CONFIG", "GET", "save"), ("CONFIG", "GET", "stop-writes-on-bgsave-error")])


def read_server(server: RedisServer, deadline: Deadline) -> ServerFacts:
    """What the server says of itself, in one round trip. Raises as `RedisServer.ask` does.

    A login that may not read settings asks for them once: each try stands in Redis' own log of what it denied.
    """
    info, saves, stops = (*server.ask(_ASK_SERVER if server.tells_settings else _ASK_INFO, deadline), None, None)[:3]
    server.tells_settings &= not isinstance(saves, NoPermissionError)
    if isinstance(info, ResponseError):
        raise server.refused("INFO", info)
    fields = parse_info(text(info))
    if "redis_version" not in fields:
        raise Unavailable(f"what answers at {server.where} is not Redis", mend=f"look at {_SETTINGS}")
    return server_facts(fields, _setting(saves), _setting(stops))


def parse_info(info: str) -> dict[str, str]:
    """The fields of INFO."""
    return dict(line.split(":", 1) for line in info.split("\r\n") if ":" in line)


def server_facts(info: Mapping[str, str], save: str | None, stop_when_save_fails: str | None) -> ServerFacts:
    """The facts in INFO's fields and in two settings; None for a setting that we may not read."""

    def value(name: str) -> float | None:
        return _finite(info.get(name, ""))

    def is_one_of(name: str, yes: str, no: str) -> bool | None:
        return {yes: True, no: False}.get(info.get(name, ""))

    now, uptime = value("server_time_usec"), value("uptime_in_seconds")
    valkey = info.get("valkey_version")
    role = {"slave": "replica"}.get(info.get("role", ""), info.get("role", ""))
    return ServerFacts(
        product="valkey" if valkey else "redis",
        version=valkey or info["redis_version"],
        mode=info.get("server_mode") or info.get("redis_mode", ""),
        role=role,
        # Both are of the same moment in the server, so the difference does not flicker.
        started=None if now is None or uptime is None else now // 1_000_000 - uptime,
        loading=is_one_of("loading", "1", "0"),
        read_only=role == "replica" and info.get("slave_read_only") != "0",
        memory_used=value("used_memory"),
        memory_uncounted=value("mem_not_counted_for_evict") or 0.0,
        memory_max=value("maxmemory"),
        eviction_policy=info.get("maxmemory_policy", ""),
        evicted=value("evicted_keys"),
        clients=value("connected_clients"),
        clients_max=value("maxclients"),
        rejected=value("rejected_connections"),
        last_save=value("rdb_last_save_time"),
        last_save_ok=is_one_of("rdb_last_bgsave_status", "ok", "err"),
        log_write_ok=is_one_of("aof_last_write_status", "ok", "err"),
        saves=save != "",
        stops_when_save_fails=stop_when_save_fails != "no",
    )


def _setting(reply: Reply) -> str | None:
    pair = items(reply)
    return text(pair[1]) if len(pair) == 2 else None
