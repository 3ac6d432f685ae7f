"""Those who do pieces of work, as seen by who hands them out; and a thread that does them."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from das_gpu.errors import DasGpuError, InterruptedRunError, WorkerError
from das_gpu.pulse import Pulse, under

_P = ParamSpec("_P")
_T = TypeVar("_T")

BEGUN = -1
"""In the place of a number of tiles: the work is begun, or begun anew by another worker."""
GRACE_S = 60.0
"""How long work that is cancelled may take to end."""
STUCK = "das-gpu-stuck"
"""Name of a thread that has been left to itself."""

Listener = Callable[[Future[Any], int], None]


def _deaf(future: Future[Any], tiles: int) -> None:
    """Listen to no beat."""


class Workers(Executor):
    """Do pieces of work. Futures raise a `DasGpuError` whatever goes wrong.

    Futures count as running from the start: which have begun, beats tell.
    """

    on_beat: Listener = staticmethod(_deaf)
    """Told a future and a number of tiles (see `Pulse.beat`) or ``BEGUN``, from any thread."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many pieces of work are done at once; it may change."""

    @abstractmethod
    def cancel(self, future: Future[Any], error: DasGpuError) -> None:
        """Let a piece of work end; its future raises the error, within about `GRACE_S`."""

    @abstractmethod
    def tidy(self) -> None:
        """End by force what was cancelled and does not end; to be called every second or so."""

    @abstractmethod
    def stacks(self, future: Future[Any]) -> str:
        """Where the threads that do a piece of work stand, for the log."""

    def where(self, future: Future[Any]) -> str:  # noqa: ARG002 - of one place only
        """Which worker does a piece of work; empty when there is but one."""
        return ""

    def trouble(self) -> str:
        """What keeps the workers from working, in half a sentence; empty when nothing is known."""
        return ""

    def relieve(self) -> bool:
        """Do something about that trouble; False when nothing can be done."""
        return False


def foreseen(error: BaseException) -> DasGpuError:
    """The error itself, or one that tells what nobody foresaw."""
    if isinstance(error, DasGpuError):
        return error
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    told = WorkerError(
        f"Something unforeseen went wrong: {what}. This is a fault of das-gpu or of the machine, "
        "not of your data or your command; please report it with the run's log."
    )
    told.__cause__ = error
    # A note crosses to another process, a cause does not.
    told.add_note("".join(traceback.format_exception(error)).rstrip())
    return told


@dataclass
class _Piece:
    """A piece of work and the thread that does it."""

    pulse: Pulse
    thread: threading.Thread
    error: DasGpuError | None = None
    deadline: float = 0.0


class Here(Workers):
    """Do each piece of work in a daemon thread of its own in this process.

    A thread cannot be killed. One that does not end when it should is left behind, and the next
    piece of work begins beside it.
    """

    def __init__(self) -> None:
        self._pieces: dict[Future[Any], _Piece] = {}
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """One: the threads of one segment are as many as the processors."""
        return 1

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Begin a piece of work at once."""
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()
        pulse = Pulse(beat=lambda tiles: self.on_beat(future, tiles))
        work = partial(self._work, future, pulse, partial(fn, *args, **kwargs))
        thread = threading.Thread(target=work, name="das-gpu-segment", daemon=True)
        with self._lock:
            self._pieces[future] = _Piece(pulse, thread)
        thread.start()
        return future

    def _work(self, future: Future[_T], pulse: Pulse, work: Callable[[], _T]) -> None:
        self.on_beat(future, BEGUN)
        with under(pulse):
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the one who waits
                if (piece := self._end(future)) is not None:
                    future.set_exception(piece.error or foreseen(error))
                return
        if self._end(future) is not None:
            future.set_result(result)

    def _end(self, future: Future[Any]) -> _Piece | None:
        """Take a piece of work off the list; None when it has been left behind."""
        with self._lock:
            return self._pieces.pop(future, None)

    def cancel(self, future: Future[Any], error: DasGpuError) -> None:
        """Let a piece of work end; see `Workers.cancel`."""
        with self._lock:
            piece = self._pieces.get(future)
            if piece is not None:
                piece.error, piece.deadline = error, time.monotonic() + GRACE_S
                piece.pulse.cancelled.set()

    def tidy(self) -> None:
        """Leave threads behind that do not end; see `Workers.tidy`."""
        now = time.monotonic()
        for future, piece in list(self._pieces.items()):
            if piece.error is not None and now > piece.deadline and self._end(future) is not None:
                piece.thread.name = STUCK
                future.set_exception(piece.error)

    def stacks(self, future: Future[Any]) -> str:  # noqa: ARG002 - all of them are this process's
        """Where every thread of this process stands."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return stacks_of(names)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for what has begun; with ``cancel_futures`` cancel it, and wait no longer than that.

        What still does not end is left behind.
        """
        if cancel_futures:
            stopped = InterruptedRunError("The run was stopped in the middle of this segment.")
            for future in list(self._pieces):
                self.cancel(future, stopped)
        if wait:
            wait_for(list(self._pieces), timeout=GRACE_S if cancel_futures else None)
        for piece in list(self._pieces.values()):
            piece.thread.name = STUCK


def stacks_of(names: dict[int | None, str]) -> str:
    """Stacks of this process's threads, by their names."""
    return "\n".join(
        f"Thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for number, frame in sys._current_frames().items()  # noqa: SLF001 - documented
    )


def anybody_stuck() -> bool:
    """Whether a thread was left behind in this process, so that it cannot end in good order."""
    return any(thread.name == STUCK for thread in threading.enumerate())
