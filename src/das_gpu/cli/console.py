"""What commands say: results on stdout, messages, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from das_gpu.errors import DasGpuError, InterruptedRunError
from das_gpu.redaction import redact

if TYPE_CHECKING:
    from rich.progress import TaskID

_TRUE = ("1", "true", "t", "yes", "y", "on")
_BROKEN_PIPE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended."""


def say(message: str) -> None:
    """Write a message to stderr, on a line of its own."""
    sys.stderr.write(f"{redact(message)}\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """Write a result to stdout, ending in one line break."""
    sys.stdout.write(redact(text).rstrip("\n") + "\n")


def write_json(value: Mapping[str, Any]) -> None:
    """Write a result to stdout as one JSON object on one line."""
    write(json.dumps(value, allow_nan=False, ensure_ascii=False))


def write_table(rows: Sequence[tuple[str, str]]) -> None:
    """Write names and values to stdout in two columns."""
    width = max(len(name) for name, _ in rows)
    write("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units.

    Examples
    --------
    >>> bytes_text(7_441_920_000_000)
    '7.44 TB'
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"


def duration_text(seconds: float) -> str:
    """A length of time for people.

    Examples
    --------
    >>> duration_text(195_839.995)
    '54 h 24 min'
    >>> duration_text(75.5)
    '1 min 15.5 s'
    """
    if seconds >= 3600:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    minutes, left = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f} min {left:g} s" if minutes else f"{left:g} s"


def fail(error: DasGpuError, arguments: Sequence[str]) -> int:
    """Report an error that das-gpu raised on purpose; return its exit code."""
    return _report(type(error).__name__, str(error), error.exit_code, error, arguments)


def fail_interrupted(error: KeyboardInterrupt, arguments: Sequence[str]) -> int:
    """Report a Ctrl-C that met no run: nothing is half done."""
    message = "Interrupted. Nothing is half-written; run the same command again to continue."
    code = InterruptedRunError.exit_code
    return _report(InterruptedRunError.__name__, message, code, error, arguments)


def fail_unexpected(error: Exception, arguments: Sequence[str]) -> int:
    """Report an error that nobody foresaw."""
    what = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    message = (
        f"Something unexpected went wrong: {what}. This is a fault of das-gpu, not of your data "
        "or your command; please report it with the output of the same command and --debug."
    )
    return _report(type(error).__name__, message, DasGpuError.exit_code, error, arguments)


def _report(
    name: str, message: str, code: int, error: BaseException, arguments: Sequence[str]
) -> int:
    if _asked("--debug", arguments):
        say("".join(traceback.format_exception(error)).rstrip())
    say(f"das-gpu: {message}")
    if _asked("--json", arguments):
        write_json({"error": name, "message": message, "exit_code": code})
    return code


def _asked(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a switch is on, also when the arguments as a whole could not be understood."""
    variable = f"DAS_GPU_{flag.removeprefix('--').upper()}"
    return flag in arguments or os.environ.get(variable, "").lower() in _TRUE


def abandon_output() -> int:
    """Give up on an output whose reader has gone; return the exit code.

    The streams are pointed at nothing, because Python flushes them once more when it ends.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
    return _BROKEN_PIPE


class _Sayer(logging.Handler):
    """Says what modules warn of."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"note: {record.getMessage()}")


@contextmanager
def warnings_said() -> Iterator[None]:
    """Say on stderr what das-gpu's modules warn of inside the block."""
    logger, sayer = logging.getLogger("das_gpu"), _Sayer(logging.WARNING)
    logger.addHandler(sayer)
    try:
        yield
    finally:
        logger.removeHandler(sayer)


class ProgressBar:
    """A bar on stderr: amount done, rate and time left. Nothing is drawn off a terminal.

    It appears with the first `update`, so that messages before it stand above it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._task: TaskID | None = None
        self._bar: Any = None

    def update(self, done: float, total: float, detail: str) -> None:
        """Show ``done`` of ``total`` with a detail such as the rate; safe from any thread."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._start()
        self._bar.update(self._task, completed=done, total=total, detail=detail)

    def stop(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[detail]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._what, total=None, detail="")
        self._bar.start()


@contextmanager
def progress_bar(what: str) -> Iterator[ProgressBar]:
    """Give a progress bar that is taken off the terminal at the end, whatever happens."""
    bar = ProgressBar(what)
    try:
        yield bar
    finally:
        bar.stop()
