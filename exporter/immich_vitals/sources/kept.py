"""What the sources of Postgres and Redis share: a connection kept between runs, and how a server can be gone."""

import threading
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from immich_vitals.collector import Absent, CollectorFailure, Deadline, TimedOut, Unavailable

CONNECT_SECONDS = 5.0  # also of a run that has minutes: a server that is well lets one in at once

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class NoServer(Absent):
    """Nothing is there: the host name is unknown, or the socket file is gone."""


class Down(Unavailable):
    """There is no server that answers questions: it refuses, starts, loads its data, shuts down, or went away."""


class Silent(TimedOut):
    """The server accepts the connection, or not even that, and has not answered in full at the deadline."""


class Closable(Protocol):
    """A connection of any client library."""

    def close(self) -> None: ...


Link = TypeVar("Link", bound=Closable)


class Kept(ABC, Generic[Link, Question, Answer]):
    """A server to ask. The connection is made when first needed, kept, and dropped after any error.

    Not for use by two threads at a time, but for `close`.
    """

    def __init__(self) -> None:
        self._connection: Link | None = None
        self._in_use = threading.Lock()

    def ask(self, question: Question, deadline: Deadline) -> Answer:
        """The answer, after one round trip.

        Raises `NoServer`, `Down`, `Silent`, or another failure when the server is there and rejects us.
        """
        with self._in_use:
            kept = self._connection is not None
            try:
                return self._ask_or_drop(question, deadline)
            except Down:
                # A kept connection that died since the last run says nothing about the server now.
                if not kept:
                    raise
                return self._ask_or_drop(question, deadline)

    def close(self) -> None:
        """Let the connection go; does nothing while a run uses it, which ends with the process."""
        if self._in_use.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._in_use.release()

    @abstractmethod
    def _connect(self, question: Question, deadline: Deadline) -> Link:
        """A new connection, logged in."""

    @abstractmethod
    def _ask(self, connection: Link, question: Question, deadline: Deadline) -> Answer:
        """The answer over this connection."""

    def _ask_or_drop(self, question: Question, deadline: Deadline) -> Answer:
        try:
            if self._connection is None:
                self._connection = self._connected(question, deadline.within(CONNECT_SECONDS))
            return self._ask(self._connection, question, deadline)
        except Silent as failure:
            failure.asked = False
            self._drop()
            raise
        except BaseException:
            self._drop()
            raise

    def _connected(self, question: Question, deadline: Deadline) -> Link:
        try:
            return self._connect(question, deadline)
        except CollectorFailure as failure:
            failure.asked = False
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
