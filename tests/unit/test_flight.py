import threading

from immich_vitals.flight import Flight


def test_one_call_at_a_time() -> None:
    """Whoever comes while a call is under way joins it; the next one afterwards starts anew."""
    gate, calls = threading.Event(), []

    def call() -> int:
        calls.append(1)
        gate.wait(10)
        return len(calls)

    flight: Flight[int] = Flight("test")
    first = flight.join_or_start(call)
    second = flight.join_or_start(call)
    assert first is second
    gate.set()
    assert first.result(10) == 1
    assert flight.join_or_start(call).result(10) == 2


def test_the_thread_does_not_keep_the_process_alive() -> None:
    """A call that never returns runs in a daemon thread."""
    entered, gate = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def call() -> None:
        threads.append(threading.current_thread())
        entered.set()
        gate.wait(10)

    future = Flight[None]("stuck").join_or_start(call)
    assert entered.wait(10)
    assert threads[0].daemon
    gate.set()
    future.result(10)


def test_an_error_reaches_everybody_who_waits() -> None:
    """What the call raises is raised to whoever asks for its result."""

    def call() -> None:
        raise OSError("no such mount")

    future = Flight[None]("error").join_or_start(call)
    assert isinstance(future.exception(10), OSError)


def test_waiting_cannot_cancel_the_call() -> None:
    """Somebody who gives up waiting does not take the result from the others."""
    gate = threading.Event()
    future = Flight[bool]("joined").join_or_start(lambda: gate.wait(10))
    assert not future.cancel()
    gate.set()
    assert future.result(10)
