"""Commands in a terminal: what people see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator


def on_terminal(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Run a command in a terminal; return its exit code and what was shown."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "das_gpu", *arguments],
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", **environment},
    )
    os.close(follower)
    shown = b"".join(_written(leader))
    os.close(leader)
    return child.wait(timeout=60), shown.decode()


def _written(descriptor: int) -> Iterator[bytes]:
    """What is written to a terminal until its last writer closes it."""
    while True:
        try:
            block = os.read(descriptor, 4096)
        except OSError:  # how Linux reports that the other end is closed
            return
        if not block:
            return
        yield block
