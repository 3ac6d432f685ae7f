"""What runs in dask's worker processes: the work, its pulse, and what is said of it.

A worker speaks by events, which the scheduler passes on, and hears by its own list of tasks: a
task that the scheduler no longer wants, be it that the driver cancelled it, that the driver has
died, or that the scheduler has, is no longer in execution there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from das_gpu.errors import DasGpuError
from das_gpu.pulse import Pulse, under
from das_gpu.workers import foreseen, stacks_of

DASKS_LOGS = ("distributed", "tornado.application")
"""What dask says by itself, of which the terminal hears nothing; ours says what to do."""
LOOK_S = 0.5
"""Between two looks at whether a task is still wanted."""
ALIVE_S = 5.0
"""Between two signs of life, when no tile gets finished."""


def dask_setup(worker: object) -> None:  # noqa: ARG001 - dask's signature
    """Prepare a worker of our own; dask calls this in its main thread.

    A terminal sends Ctrl-C to the workers as well, and a batch system its warning. It is the
    driver's to decide what ends. What dask trips over while a worker closes, such as a heartbeat
    that finds the connections shut, would reach the user's terminal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in DASKS_LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Answer:
    """What a task came to. An error that it raised would be logged by the worker as its own."""

    result: Any = None
    error: DasGpuError | None = None


def perform(
    topic: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Answer:
    """Do a piece of work in a worker and tell the driver about it, by events of a topic."""
    from distributed import get_worker

    worker: Any = get_worker()
    voice = _Voice(worker, topic, worker.get_current_task())
    pulse, ended = Pulse(beat=voice.beat), threading.Event()
    listening = threading.Thread(target=_listen, args=(voice, pulse, ended), daemon=True)
    voice.say("begun", process=os.getpid())
    listening.start()
    try:
        with under(pulse):
            return Answer(function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - the driver decides what becomes of it
        return Answer(error=foreseen(error))
    finally:
        ended.set()
        voice.say("ended")


class _Voice:
    """Says what happens to one task."""

    def __init__(self, worker: Any, topic: str, key: str) -> None:
        self._worker, self._topic, self._key = worker, topic, key
        self._lock = threading.Lock()
        self._said_at = time.monotonic()

    def say(self, what: str, **facts: object) -> None:
        # The scheduler may just have gone; then nobody listens.
        with suppress(OSError):
            self._worker.log_event(self._topic, {"key": self._key, "say": what, **facts})

    def beat(self, tiles: int) -> None:
        """Tell of finished tiles; of mere life only now and then."""
        with self._lock:
            now = time.monotonic()
            if not tiles and now - self._said_at < ALIVE_S:
                return
            self._said_at = now
        self.say("tiles", tiles=tiles)

    def wanted(self) -> bool:
        """Whether the scheduler still wants this task, and the worker is to live."""
        task = self._worker.state.tasks.get(self._key)
        return (
            task is not None
            and task.state == "executing"
            and not self._worker.status.name.startswith("clos")
        )


def _listen(voice: _Voice, pulse: Pulse, ended: threading.Event) -> None:
    """Cancel the pulse when the task is no longer wanted."""
    while not ended.wait(LOOK_S):
        if not voice.wanted() and not ended.is_set():
            pulse.cancelled.set()
            return


def stacks() -> str:
    """Where every thread of a worker stands."""
    return stacks_of({thread.ident: thread.name for thread in threading.enumerate()})
