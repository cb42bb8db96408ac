"""What a drill is: a fault that is really brought about on a machine with Immich, and what is told of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from support.machine import Machine

Injection = Callable[[Machine], AbstractContextManager[None]]


def as_it_is(machine: Machine) -> AbstractContextManager[None]:
    """The machine as all are."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Drill:
    """`inject` breaks something on entering and mends it on leaving.

    `told` is all that may be notified, the first thing first; empty for a drill that must stay quiet. `inhibited` must
    fire, and may not be told. `changes`: there may be other assets or files afterwards. `host`: it shows on the whole
    machine, so no other machine may watch that beside it. `prepare` makes the machine another one on entering, which
    must be calm as well, and on leaving what it was. `slow`: containers start anew, or much is done, which nobody can
    hurry as much as the rules; so it is watched with rules that are only five times as fast. `spoils`: the machine is
    not what it was, so it has one of its own.
    """

    about: str
    inject: Injection
    told: tuple[str, ...]
    inhibited: tuple[str, ...] = ()
    changes: bool = False
    host: bool = False
    prepare: Injection = as_it_is
    slow: bool = False
    spoils: bool = False
