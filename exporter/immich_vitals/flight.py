"""The only place that starts threads.

A call that may hang for ever (a dead NFS mount, a frozen daemon) runs in a daemon thread: it can be left behind,
and the process still ends. `ThreadPoolExecutor` and `asyncio.to_thread` join their threads at exit and cannot.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


def start_thread(call: Callable[[], None], name: str) -> threading.Thread:
    """A started daemon thread."""
    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    return thread


class Flight(Generic[T]):
    """At most one call under way at any time; whoever comes while it runs joins it.

    A call that never returns costs one thread, however often it is asked for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._current: Future[T] | None = None

    def join_or_start(self, call: Callable[[], T]) -> Future[T]:
        """The future of the call under way, or of `call`, which is started when none is."""
        with self._lock:
            if self._current is not None and not self._current.done():
                return self._current
            future: Future[T] = Future()
            future.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
            self._current = future
        start_thread(lambda: _fly(future, call), self._name)
        return future


def _fly(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
