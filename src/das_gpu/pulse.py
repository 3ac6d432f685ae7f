"""What a piece of work and those who wait for it say to each other while it is done.

Work that runs in another thread or another process says that it is alive, and hears that it is
no longer wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


def _to_nobody(_: int) -> None:
    """Take a beat that nobody listens to."""


@dataclass(frozen=True)
class Pulse:
    """The signs of one piece of work.

    Attributes
    ----------
    cancelled : threading.Event
        Set when the work is no longer wanted; it then ends with ``InterruptedRunError``.
    beat : callable
        Told how many tiles have been finished since the last call; 0 says that the work is
        alive. May be called from any thread.
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    beat: Callable[[int], None] = _to_nobody


_current: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


def current() -> Pulse:
    """Pulse of the work that this thread is at; one that nobody listens to outside of any."""
    return _current.get() or Pulse()


@contextmanager
def under(pulse: Pulse) -> Iterator[None]:
    """Work under a pulse in this thread."""
    reset = _current.set(pulse)
    try:
        yield
    finally:
        _current.reset(reset)
