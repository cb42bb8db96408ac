"""A TCP or unix proxy before a real server, with a fault that a test puts in and takes out while it runs."""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

Address = tuple[str, int] | str  # as sockets have it: host and port, or the path of a unix socket


class Fault:
    """What happens to each piece that the server sends; this one lets it pass. One fault may serve many connections.

    `change` returns the pieces to send in its place. It may wait for `lifted`, and raise OSError to break the
    connection with a reset.
    """

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        yield piece


class Hangs(Fault):
    """Nothing arrives until the fault is lifted, then all of it."""

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        lifted.wait()
        yield piece


class Drips(Fault):
    """One byte `every` so many seconds until the fault is lifted, then the rest."""

    def __init__(self, every: float = 0.2) -> None:
        self._every = every

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        for at in range(len(piece)):
            yield piece[at : at + 1]
            if lifted.wait(self._every):
                yield piece[at + 1 :]
                return


class Refuses(Fault):
    """A reset in the place of an answer."""

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        yield b""
        raise ConnectionResetError


class Resets(Fault):
    """Half of the first answer, then a reset."""

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        yield piece[: len(piece) // 2]
        raise ConnectionResetError


class Says(Fault):
    """Something else than what the server says: `words`, and then `again` for ever."""

    def __init__(self, words: bytes, again: bytes = b"") -> None:
        self._words = words
        self._again = again

    def change(self, piece: bytes, lifted: threading.Event) -> Iterator[bytes]:
        yield self._words
        if not self._again:
            raise EOFError  # hangs up, as one who has said it all
        yield from itertools.repeat(self._again)


class FaultProxy:
    """Listens on a free loopback port, or at `path`, and passes everything to and from `server`.

    `connections` are those that stand. A fault changes only what answers a question that has the bytes `about` in it.
    Leaving the context closes every socket.
    """

    def __init__(self, server: Address, path: Path | None = None) -> None:
        self._server = server
        self._path = path
        self._fault = Fault()
        self._about = b""
        self._lifted = threading.Event()
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.listen()

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._pairs)

    def listen(self) -> None:
        """Take connections, on the port of before if there was one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._listener.listen(128)
        else:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Take no connection any more and reset those that stand; the file of a unix socket stays."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self, about: bytes = b"") -> None:
        """Reset the connections that stand, or those of them whose last question has these bytes in it."""
        with self._lock:
            standing = [pair for pair in self._pairs if about in pair.question]
        for pair in standing:
            _reset(pair.client)
            _reset(pair.server)

    def new_ear(self) -> Callable[[bytes], None]:
        """For each connection: who is told of what the client sends, piece by piece."""
        return lambda piece: None

    @contextlib.contextmanager
    def broken(self, fault: Fault, about: bytes = b"") -> Iterator[None]:
        """Put the fault in, for connections that stand and for new ones."""
        self._lifted = threading.Event()
        self._fault, self._about = fault, about
        try:
            yield
        finally:
            self._fault = Fault()
            self._lifted.set()

    @contextlib.contextmanager
    def leading_to(self, server: Address) -> Iterator[None]:
        """Another server answers at the address."""
        own, self._server = self._server, server
        self.reset()
        try:
            yield
        finally:
            self._server = own
            self.reset()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        self.refuse()
        try:
            yield
        finally:
            self.listen()

    @contextlib.contextmanager
    def absent(self) -> Iterator[None]:
        """As `refusing`, and the file of the unix socket is gone, too."""
        self.refuse()
        if self._path is not None:
            self._path.unlink()
        try:
            yield
        finally:
            self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._lifted.set()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
                server.connect(self._server)
            except OSError:
                _reset(client)
                client.close()
                continue
            for each in (client, server):
                if each.family == socket.AF_INET:
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server, self.new_ear())
            with self._lock:
                self._pairs.add(pair)
            for source, target, change in ((client, server, pair.ask), (server, client, self._change)):
                threading.Thread(target=self._pass, args=(pair, source, target, change), daemon=True).start()

    def _change(self, piece: bytes, pair: "_Pair") -> Iterator[bytes]:
        fault = self._fault if self._about in pair.question else Fault()
        return fault.change(piece, self._lifted)

    def _pass(
        self,
        pair: "_Pair",
        source: socket.socket,
        target: socket.socket,
        change: Callable[[bytes, "_Pair"], Iterator[bytes]],
    ) -> None:
        try:
            while piece := source.recv(65536):
                for changed in change(piece, pair):
                    target.sendall(changed)
        except EOFError:
            pass
        except OSError:
            _reset(target)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if next(pair.ends):  # the second of the two threads
            with self._lock:
                self._pairs.discard(pair)
            source.close()
            target.close()


class _Pair:
    """A client's connection and ours to the server for it. `question` is what the client said last."""

    def __init__(self, client: socket.socket, server: socket.socket, ear: Callable[[bytes], None]) -> None:
        self.client = client
        self.server = server
        self._ear = ear
        self.question = b""
        self.ends = itertools.count()

    def ask(self, piece: bytes, _: "_Pair") -> Iterator[bytes]:
        self.question = piece
        self._ear(piece)
        yield piece


def _reset(connection: socket.socket) -> None:
    """Let the connection end with a reset and wake up whoever waits for it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
