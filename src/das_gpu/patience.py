"""How long a request may take, and when it is made again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from das_gpu.errors import DasGpuError, InterruptedRunError
from das_gpu.journal import facts

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 15.0
_THROTTLED_WAIT_S = 5.0
_cancelled: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of one request, its repetitions included.

    Attributes
    ----------
    total_s : float
        From the first attempt to giving up: the deadline of a chunk.
    connect_s, stall_s : float
        Longest wait for a connection, and for the next byte.
    slow_s, slow_rate : float
        An attempt that has brought less than ``slow_rate`` bytes per second after ``slow_s``
        seconds is given up.
    broken_bodies : int
        Attempts whose body breaks off, before the object is given up: the store answers, so
        waiting longer for this object helps nobody.
    """

    total_s: float = 240.0
    connect_s: float = 10.0
    stall_s: float = 10.0
    slow_s: float = 30.0
    slow_rate: float = 10_000.0
    broken_bodies: int = 4

    @classmethod
    def within(cls, total_s: float) -> Patience:
        """The usual limits, none of them longer than the whole."""
        usual = cls()
        return cls(
            total_s,
            connect_s=min(usual.connect_s, total_s),
            stall_s=min(usual.stall_s, total_s),
            slow_s=min(usual.slow_s, total_s),
        )


class Transient(Exception):  # noqa: N818 - a reason to try again, seen by no user
    """An attempt failed in a way that may pass.

    Parameters
    ----------
    error : DasGpuError
        What the user is told when it does not pass.
    retry_after_s : float or None
        How long the server asks to be left alone.
    throttled : bool
        It asks to be left alone, and for how long this transport cannot see.
    answered : bool
        The store did answer, and then the body broke off.
    """

    def __init__(
        self,
        error: DasGpuError,
        *,
        retry_after_s: float | None = None,
        throttled: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s
        self.throttled = throttled
        self.answered = answered


class GaveUp(Exception):  # noqa: N818 - translated by the store, seen by no user
    """Patience is at its end; carries the last failure and how it was tried."""

    def __init__(self, last: Transient, attempts: int, seconds: float) -> None:
        times = "once" if attempts == 1 else f"{attempts} times in {seconds:.0f} s"
        super().__init__(f"Tried {times}.")
        self.last = last


@contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Let an event end every request of this thread inside the block, and every wait for one."""
    reset = _cancelled.set(event)
    try:
        yield
    finally:
        _cancelled.reset(reset)


class Watch:
    """One attempt's clock: it ends the attempt when it is too slow, too late or not wanted.

    Parameters
    ----------
    patience : Patience
    deadline : float
        Of the whole request, by ``time.monotonic``.
    """

    def __init__(self, patience: Patience, deadline: float) -> None:
        self._patience = patience
        self._deadline = deadline
        self._cancelled = _cancelled.get()
        self._started = time.monotonic()

    def verdict(self, received: int) -> str | None:
        """Why to end the attempt now, after ``received`` bytes; None to go on.

        Raises
        ------
        InterruptedRunError
            Nobody waits for the answer any more.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise InterruptedRunError("The reading was cancelled.")
        now = time.monotonic()
        spent = now - self._started
        if spent > self._patience.slow_s and received < spent * self._patience.slow_rate:
            return f"only {received} bytes came in {spent:.0f} s"
        if now > self._deadline:
            return f"{received} bytes had come when the time was up"
        return None


def patiently(attempt: Callable[[Watch], _T], patience: Patience) -> _T:
    """Make a request, again after failures that may pass, until patience ends.

    Waits grow from 1 s to 15 s, with a random quarter more or less, so that many readers do
    not come back together; a server's ``Retry-After`` is waited for.

    Parameters
    ----------
    attempt : callable
        Makes the request once; raises :class:`Transient`.
    patience : Patience

    Raises
    ------
    GaveUp
        It did not pass in time.
    InterruptedRunError
        See `cancelled_by`.
    """
    started = time.monotonic()
    deadline = started + patience.total_s
    wait_s = _FIRST_WAIT_S
    attempts = broken = 0
    while True:
        attempts += 1
        try:
            return attempt(Watch(patience, deadline))
        except Transient as failure:
            broken += failure.answered
            pause_s = wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads, hides nothing
            if failure.throttled:
                pause_s = max(pause_s, _THROTTLED_WAIT_S)
            if failure.retry_after_s is not None:
                pause_s = max(pause_s, failure.retry_after_s)
            now = time.monotonic()
            if broken >= patience.broken_bodies or now + pause_s > deadline:
                raise GaveUp(failure, attempts, now - started) from failure
            told = facts(attempt=attempts, pause_s=round(pause_s, 1), reason=str(failure.error))
        _log.info("asked again", extra=told)
        if (cancelled := _cancelled.get()) is None:
            time.sleep(pause_s)
        elif cancelled.wait(pause_s):
            raise InterruptedRunError("The reading was cancelled.")
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def parse_retry_after(text: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3); None for none.

    Examples
    --------
    >>> parse_retry_after("3")
    3.0
    >>> parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    0.0
    """
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    return max(0.0, when - time.time())
