"""Commands as processes of their own, with everything they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LONGEST_S = 120.0
_GONE_S = 10.0


class Command:
    """``das-gpu`` with arguments, in a session of its own; what it says goes to a file."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._said = folder / "said.txt"
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "das_gpu", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def end(self) -> int:
        """Wait for its exit code, and for all its processes to be gone by themselves."""
        code = self.process.wait(LONGEST_S)
        deadline_s = time.monotonic() + _GONE_S
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not left, f"left behind: {left}"
        return code

    def workers(self) -> list[psutil.Process]:
        """The worker processes of its cluster."""
        return [each for each in self.processes() if "multiprocessing.spawn" in _command_of(each)]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in its session."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != "zombie":
                    found.append(process)
            except (ProcessLookupError, psutil.Error):
                continue
        return found


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running(
    arguments: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Command]:
    """A command that does not outlive the context."""
    command = Command(arguments, folder, environment)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()
