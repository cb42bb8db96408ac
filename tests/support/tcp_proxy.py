"""A TCP server whose behaviour a test decides, and a way to put it in front of a real one."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Answer = Callable[[socket.socket], None]


class TcpServer:
    """Listens on a free loopback port and hands each connection to `answer`, in a thread of its own.

    `connections` counts them, `serving` those under way: a client that hangs up ends its own. Leaving the context
    closes every socket and waits for the threads.
    """

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def serving(self) -> int:
        return sum(thread.is_alive() for thread in self._threads[1:])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._sockets.append(connection)
            self._answer(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for item in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()
        for thread in self._threads:
            thread.join(10)


class Forward:
    """An answer that passes bytes to and from a real server on this machine.

    `cut_after` is how many bytes of the server's may pass before the connection breaks; None for all.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut_after: int | None = None

    def __call__(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as server:
            back = threading.Thread(target=self._back, args=(server, client))
            back.start()
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    server.sendall(data)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join(10)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self.cut_after is not None:
                    data = data[: self.cut_after]
                    self.cut_after -= len(data)
                client.sendall(data)
                if self.cut_after == 0:
                    break
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket) -> None:
    """Takes everything and says nothing."""
    while connection.recv(65536):
        pass


def says(words: bytes) -> Answer:
    """Answers whatever comes first with these bytes, then nothing more."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(words)
        silent(connection)

    return answer


def drips(words: bytes, every: float) -> Answer:
    """Answers with one byte at a time, one each `every` seconds."""

    def answer(connection: socket.socket) -> None:
        pause = threading.Event()
        for byte in words:
            connection.sendall(bytes([byte]))
            pause.wait(every)

    return answer


def closes(connection: socket.socket) -> None:
    """Takes what comes first, and hangs up."""
    connection.recv(65536)
