"""Ctrl-C, and a batch system's warning: stop in good order; once more: leave at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from das_gpu.cli import console
from das_gpu.errors import InterruptedRunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` inside the block, the first time.

    The second time this process is left as it stands, which loses no more than a kill does:
    nothing but the segments that are being made.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    met = False

    def meet(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        nonlocal met
        if met:
            console.say("Left at once. The same command continues the run.")
            os._exit(InterruptedRunError.exit_code)
        met = True
        console.say("Stopping; Ctrl-C once more leaves at once.")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, meet) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
