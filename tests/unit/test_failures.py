import gc
import weakref

from immich_vitals.collector import CollectorFailure, Unavailable


class Much:
    """What a source has read until it fails."""


def test_a_failure_that_is_kept_holds_nothing_of_what_was_read() -> None:
    """Who goes on after a failure and keeps it does not keep an enormous answer until the next search for garbage."""
    held: list[weakref.ref[Much]] = []

    def read() -> None:
        much = Much()
        held.append(weakref.ref(much))
        try:
            raise ValueError("not JSON")
        except ValueError as error:
            raise Unavailable("the answer is none", mend="look there") from error

    def go_on() -> CollectorFailure:
        kept: list[CollectorFailure] = []
        try:
            read()
        except CollectorFailure as failure:
            kept.append(failure.to_keep())
        return kept[0]

    gc.disable()
    try:
        failure = go_on()
        assert held[0]() is None
    finally:
        gc.enable()
    assert (failure.message, failure.mend, failure.reason) == ("the answer is none", "look there", "unavailable")
