"""One connection to Immich's Postgres that obeys a deadline, and what its refusals mean.

Everything runs in a read-only transaction whose limits are set with SET LOCAL: so nothing of ours is left behind in
a server connection that PgBouncer lends to Immich next, and no start-up option is sent that PgBouncer would refuse.
"""

import fcntl
import re
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import psycopg
from psycopg import generators, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from immich_vitals.collector import CollectorFailure, Deadline, TimedOut, Unavailable
from immich_vitals.config import PostgresConfig
from immich_vitals.sources.kept import Down, Kept, NoServer, Silent
from immich_vitals.sources.names import NAMES, Unanswered, Unknown

APPLICATION = "immich-vitals"
# The server's own limit ends this much before the deadline, so that "too slow" can be told from "does not answer".
STATEMENT_MARGIN = 0.2
LOCK_SECONDS = 1.0  # we read catalogues and take the weakest lock; whoever makes us wait longer is the news
IDLE_SECONDS = 10.0  # the server ends our transaction when this process froze in it
MOST_BYTES = 64 * 1024 * 1024  # of one answer; only something that is no Postgres of Immich says more
_LOOK_INTERVAL = 0.1  # how often psycopg looks up from the socket; it ends at the deadline, not at the next look

Row = tuple[object, ...]
RV = TypeVar("RV")


class Slow(TimedOut):
    """The server is alive and ended our query because of its time limit."""


class Full(Unavailable):
    """The server is up and has no connection left for us."""


class Answered(Unavailable):
    """The server answered our query with an error; `sqlstate` is the code that Postgres has for it."""

    def __init__(self, message: str, *, mend: str = "", sqlstate: str) -> None:
        super().__init__(message, mend=mend)
        self.sqlstate = sqlstate


class _Connection(psycopg.Connection[Row]):
    """A connection whose every round trip ends at `deadline`, also when the server hangs or drips, and at
    `MOST_BYTES`."""

    deadline: Deadline

    def wait(self, gen: PQGen[RV], interval: float = _LOOK_INTERVAL, timeout: float | None = None) -> RV:
        left = max(0.0, self.deadline.remaining())
        measured = _measured(gen, self.pgconn.socket)
        return super().wait(measured, interval, left if timeout is None else min(left, timeout))


def _measured(gen: PQGen[RV], descriptor: int) -> PQGen[RV]:
    """The same, until more than `MOST_BYTES` have come: libpq keeps the whole of an answer in memory."""
    taken = 0
    try:
        waiting_for = next(gen)
        while True:
            ready = yield waiting_for
            taken += struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
            if taken > MOST_BYTES:
                raise Unavailable(
                    "the answer of Postgres is too long to be one",
                    mend="look at DB_HOSTNAME and DB_PORT, and at what answers there",
                )
            waiting_for = gen.send(ready)
    except StopIteration as end:
        return cast(RV, end.value)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a connection learns once: `version` as Postgres counts it (140023 is 14.23), and a right that a query
    has to know beforehand, since asking without it would fail as a whole."""

    version: int
    may_read_control: bool


_HELLO = """
SELECT current_setting('server_version_num')::int, has_function_privilege('pg_control_system()', 'execute')
"""

Results = Sequence[Sequence[Row]]
Queries = Callable[[Hello], str]


class Database(Kept["_Connection", Queries, Results]):
    """Immich's database. A question is a function from what a connection learns once to queries, separated by `;`.

    They are all sent in one round trip and seen in one read-only transaction; the answer is the rows of each. Beside
    `NoServer`, `Down` and `Silent`, `ask` raises `Slow`, `Full`, or `Unavailable` when the server is there and rejects
    our login, database or right.
    """

    def __init__(self, config: PostgresConfig) -> None:
        super().__init__()
        self._config = config
        self._hello = Hello(0, False)

    def _connect(self, question: Queries, deadline: Deadline) -> "_Connection":
        with _meanings(self._config, deadline):
            connection = _new_connection(self._config, deadline)
            try:
                hello = _transaction(_HELLO, deadline.limit(f"ask Postgres at {self._config.where}"))
                version, may_read_control = _results(connection, hello)[0][0]
            except BaseException:
                connection.close()
                raise
        self._hello = Hello(int(str(version)), bool(may_read_control))
        return connection

    def _ask(self, connection: "_Connection", question: Queries, deadline: Deadline) -> Results:
        with _meanings(self._config, deadline):
            limit = deadline.limit(f"ask Postgres at {self._config.where}")
            connection.deadline = deadline
            return _results(connection, _transaction(question(self._hello), limit))


@contextmanager
def _meanings(config: PostgresConfig, deadline: Deadline) -> Iterator[None]:
    """Errors of psycopg as the failures that they stand for."""
    try:
        yield
    except psycopg.Error as error:
        raise _meaning(error, config, deadline) from None


def _transaction(queries: str, limit: float) -> str:
    statement = max(0.05, limit - min(STATEMENT_MARGIN, limit / 4))
    return f"""BEGIN READ ONLY;
SET LOCAL statement_timeout = {round(statement * 1000)};
SET LOCAL lock_timeout = {round(min(LOCK_SECONDS, statement) * 1000)};
SET LOCAL idle_in_transaction_session_timeout = {round(IDLE_SECONDS * 1000)};
{queries};
COMMIT"""


def _results(connection: _Connection, queries: str) -> Results:
    """The rows of those statements that give rows."""
    found: list[Sequence[Row]] = []
    with connection.cursor() as cursor:
        cursor.execute(queries.encode())
        while True:
            if cursor.description is not None:
                found.append(cursor.fetchall())
            if not cursor.nextset():
                return found


def _new_connection(config: PostgresConfig, deadline: Deadline) -> _Connection:
    """A new connection. psycopg's own `connect` counts in whole seconds and never fewer than two."""
    addresses = _addresses(config, deadline)
    for tried, address in enumerate(addresses, 1):
        limit = deadline.limit(f"connect to Postgres at {config.where}") / (len(addresses) - tried + 1)
        try:
            pgconn = waiting.wait_conn(generators.connect(_conninfo(config, address)), _LOOK_INTERVAL, limit)
            break
        except psycopg.OperationalError:
            if tried == len(addresses):
                raise
    connection = _Connection(pgconn, row_factory=tuple_row)
    connection.deadline = deadline
    connection.autocommit = True
    connection.prepare_threshold = None
    return connection


def _addresses(config: PostgresConfig, deadline: Deadline) -> Sequence[str | None]:
    """The addresses behind the host name, [None] for the folder of a unix socket. Raises `NoServer` or `Silent`."""
    if config.host.startswith(("/", "@")):
        return [None]
    try:
        found = NAMES.addresses(config.host, deadline)
    except Unanswered:
        raise Silent(
            f"the host name of Postgres, {config.host!r}, could not be looked up in time",
            mend="see whether the database container runs: one that does not has no name; then the name servers",
        ) from None
    except Unknown:
        raise NoServer(
            f"the host name of Postgres, {config.host!r}, is not known here",
            mend="look at DB_HOSTNAME, and whether the exporter is in the same Docker network as the database; "
            "a database container that is not running has no name either",
        ) from None
    return list(dict.fromkeys(str(each.socket_address[0]) for each in found))


def _conninfo(config: PostgresConfig, address: str | None) -> str:
    parameters: dict[str, str | int | None] = {
        "host": config.host,
        "hostaddr": address,
        "port": config.port,
        "user": config.user,
        "password": config.password.value if config.password else None,
        "dbname": config.database,
        "application_name": APPLICATION,
        "client_encoding": "utf8",
        "gssencmode": "disable",
        **config.options,
    }
    return make_conninfo("", **{name: value for name, value in parameters.items() if value is not None})


@dataclass(frozen=True, slots=True)
class _Refusal:
    """One way to be refused. `sqlstate` says it when a query was; while connecting libpq gives only the text, so
    `text` is looked for too. `message` may use {where}, {user} and {database}."""

    kind: type[CollectorFailure]
    sqlstate: str
    text: str
    message: str
    mend: str


# Errors about what stands in a row, or raised by somebody's own function: their words quote it.
_ABOUT_VALUES = ("22", "23", "P0")
_GRANTS = "run the SQL that `immich-vitals grants` prints, as a superuser"
_REFUSALS = (
    _Refusal(Full, "53300", "too many clients|remaining connection slots|too many connections|no more connections",
             "Postgres at {where} has no connection left for us",
             "see who holds them: SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2; "
             "raise max_connections only when they are all needed"),
    _Refusal(Down, "57P03", "starting up|not yet accepting connections|not accepting connections|in recovery mode",
             "Postgres at {where} is starting or recovering and takes no connections yet",
             "wait, and read its log: after a crash it says how far the recovery is"),
    _Refusal(Down, "57P0[125]", "shutting down|terminating connection",
             "Postgres at {where} is shutting down or ended the connection",
             "if nobody stopped it, its log says why"),
    _Refusal(Unavailable, "28P01", "password authentication failed|no password supplied",
             "Postgres at {where} rejects the password of role {user!r}",
             "look at DB_PASSWORD (or IMMICH_VITALS_DB_PASSWORD); a changed .env does not change the password of an "
             "existing database: ALTER ROLE does"),
    _Refusal(Unavailable, "", "peer authentication failed|ident authentication failed|authentication failed for user",
             "Postgres at {where} does not let role {user!r} in",
             "look at DB_USERNAME and at the method pg_hba.conf names for it"),
    _Refusal(Unavailable, "3D000", r'database "[^"]*" does not exist',
             "Postgres at {where} has no database {database!r}",
             "look at DB_DATABASE_NAME; if it is right, Postgres runs on another or an empty data directory"),
    _Refusal(Unavailable, "28000", r'role "[^"]*" does not exist|is not permitted to log in',
             "Postgres at {where} has no role {user!r} that may log in",
             "look at DB_USERNAME (or IMMICH_VITALS_DB_USERNAME); `immich-vitals grants` prints the SQL for one"),
    _Refusal(Unavailable, "", "permission denied for database",
             "role {user!r} may not connect to database {database!r} at {where}", _GRANTS),
    # After the others: with sslmode `prefer` the second attempt, without TLS, may add this to a first one's reason.
    _Refusal(Unavailable, "", "no pg_hba.conf entry|pg_hba.conf rejects",
             "Postgres at {where} has no rule in pg_hba.conf that lets role {user!r} into {database!r} from here",
             "add a line for this address to pg_hba.conf and reload, or, if its lines ask for TLS, set DB_SSL_MODE"),
    _Refusal(Unavailable, "", "server does not support SSL|SSL was required|certificate|SSL error|SSL connection",
             "TLS to Postgres at {where} does not come about: certificate or mode do not fit",
             "look at DB_SSL_MODE, and at sslrootcert in DB_URL; `disable` is for a server without TLS"),
    _Refusal(NoServer, "", r"No such file or directory",
             "the socket of Postgres is not at {where}",
             "look at DB_HOSTNAME; it names the folder of the socket, which has to be mounted here"),
    _Refusal(Down, "", "Connection refused", "Postgres at {where} refuses the connection",
             "see whether the database container runs and what its log says last; then DB_HOSTNAME and DB_PORT"),
    _Refusal(Down, "", "No route to host|Network is unreachable|Connection reset|timed out",
             "Postgres at {where} cannot be reached", "look at DB_HOSTNAME, DB_PORT, the network and any firewall"),
    _Refusal(Down, "", "invalid response|expected authentication request|unexpected message|lost synchronization",
             "what answers at {where} is not Postgres", "look at DB_HOSTNAME and DB_PORT"),
    _Refusal(Slow, "57014|55P03", "(?!)",
             "Postgres at {where} is alive but did not finish our query in time",
             "see what else it does: SELECT pid, state, wait_event, query FROM pg_stat_activity"),
)  # fmt: skip


def _meaning(error: psycopg.Error, config: PostgresConfig, deadline: Deadline) -> CollectorFailure:
    """The failure that an error of psycopg stands for, in words for people."""
    names = {"where": config.where, "user": config.user, "database": config.database}
    said = str(error)
    sqlstate = error.sqlstate or ""
    if sqlstate == "42501":
        return _missing_grant(said, config)
    for refusal in _REFUSALS:
        by_code = bool(sqlstate and refusal.sqlstate and re.fullmatch(refusal.sqlstate, sqlstate))
        if by_code or (not sqlstate and re.search(refusal.text, said)):
            return refusal.kind(refusal.message.format(**names), mend=refusal.mend)
    if sqlstate:
        words = f": {_first_line(said)}" if not sqlstate.startswith(_ABOUT_VALUES) else ""
        return Answered(
            f"Postgres at {config.where} answered with error {sqlstate}{words}",
            mend="its log has the whole error; class XX or 58 means damaged or missing files",
            sqlstate=sqlstate,
        )
    if deadline.remaining() <= 0 or "timeout expired" in said:
        return Silent(
            f"Postgres at {config.where} does not answer",
            mend="it may be frozen or wait for a dead disk: look at its container and at the disk of its data",
        )
    # A severity and two spaces are the server's own words, perhaps in a language that the table above lacks.
    if re.search(r"failed: \S+:  ", said):
        return Unavailable(
            f"Postgres at {config.where} turns us away: {_first_line(said)}", mend="its log may say more"
        )
    return Down(
        f"the connection to Postgres at {config.where} broke: {_first_line(said)}",
        mend="read the log of the database for what ended it",
    )


def _missing_grant(said: str, config: PostgresConfig) -> Unavailable:
    what = re.search(r"permission denied for (\w+ \S+)", said)
    of = f" of {what[1]}" if what else ""
    return Unavailable(f"role {config.user!r} lacks the right to read{of}", mend=_GRANTS)


def _first_line(text: str) -> str:
    return (text.strip() or "no reason given").split("\n", 1)[0]
