"""What commands say: results on stdout, messages, progress and errors on stderr.

How much of it is said, the block `speaking` decides. Colour is for terminals: there is none where
``NO_COLOR`` is set, nor on a terminal that calls itself ``dumb``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from das_gpu.errors import DasGpuError, InterruptedRunError, UsageError
from das_gpu.journal import facts_of
from das_gpu.redaction import redact

if TYPE_CHECKING:
    from rich.progress import TaskID

_TRUE = ("1", "true", "t", "yes", "y", "on")
_BROKEN_PIPE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended."""


@dataclass(frozen=True)
class _Voice:
    """How much is said, and since when, by ``time.monotonic``."""

    quiet: bool = False
    verbose: bool = False
    since_s: float = 0.0


_voice = _Voice()
Colour = Literal["red", "green", "yellow"]
_CODES: Mapping[Colour, int] = {"red": 31, "green": 32, "yellow": 33}
_VERDICTS: Mapping[int, Colour] = {0: "green", 3: "yellow", 10: "yellow"}
"""Colour of a verdict by the exit code; others are red."""


@contextmanager
def speaking(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Say as much as was asked for inside the block, what das-gpu's modules log included.

    Parameters
    ----------
    quiet : bool
        Errors only: no message, no progress, no table. Documents and JSON are written.
    verbose : bool
        Each step besides, with the seconds since the block was entered.

    Raises
    ------
    UsageError
        Both were asked for.
    """
    global _voice  # noqa: PLW0603 - a process has one stderr
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one of them.")
    before, _voice = _voice, _Voice(quiet, verbose, time.monotonic())
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logger, sayer = logging.getLogger("das_gpu"), _Sayer(level)
    let_through = logger.level
    logger.addHandler(sayer)
    if verbose:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(sayer)
        if verbose:
            logger.setLevel(let_through)
        _voice = before


class _Sayer(logging.Handler):
    """Says what modules log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a warning as a note, and less than that as a step."""
        if record.levelno >= logging.ERROR:
            _put(sys.stderr, f"{_coloured('note:', 'red', sys.stderr)} {record.getMessage()}")
        elif record.levelno >= logging.WARNING:
            note(record.getMessage())
        else:
            told = ", ".join(f"{name} {_value(value)}" for name, value in facts_of(record).items())
            detail(f"{record.getMessage()}: {told}" if told else record.getMessage())


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(message: str) -> None:
    """Write a message to stderr, on a line of its own."""
    if not _voice.quiet:
        _put(sys.stderr, message)


def note(message: str) -> None:
    """Say what somebody should know, though nothing has failed."""
    say(f"{_coloured('note:', 'yellow', sys.stderr)} {message}")


def detail(message: str) -> None:
    """Say what is only of interest to those who ask for it, and when it happened."""
    if _voice.verbose:
        _put(sys.stderr, f"{time.monotonic() - _voice.since_s:8.3f} s  {message}")


def write(text: str) -> None:
    """Write a document to stdout, ending in one line break."""
    _put(sys.stdout, text.rstrip("\n"))


def write_json(value: Mapping[str, Any]) -> None:
    """Write a result to stdout as one JSON object on one line."""
    write(json.dumps(value, allow_nan=False, ensure_ascii=False))


def write_report(text: str) -> None:
    """Write a result for people to stdout, unless errors alone were asked for."""
    if not _voice.quiet:
        write(text)


def write_table(rows: Sequence[tuple[str, str]], exit_code: int = 0) -> None:
    """Write names and values to stdout in two columns, for people.

    Parameters
    ----------
    rows : sequence of (str, str)
    exit_code : int
        What the verdict, if there is one, comes to.
    """
    width = max(len(name) for name, _ in rows)
    colour = _VERDICTS.get(exit_code, "red")
    lines = []
    for name, value in rows:
        shown = _coloured(value, colour, sys.stdout) if name == "verdict" else value
        lines.append(f"{name:<{width}}  {shown}")
    write_report("\n".join(lines))


def _put(stream: TextIO, text: str) -> None:
    stream.write(f"{redact(text)}\n")
    if stream is sys.stderr:
        stream.flush()


def _coloured(text: str, colour: Colour, stream: TextIO) -> str:
    """Colour a text where the stream is a terminal that may show colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not stream.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


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
        _put(sys.stderr, "".join(traceback.format_exception(error)).rstrip())
    _put(sys.stderr, f"{_coloured('das-gpu:', 'red', sys.stderr)} {message}")
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


class ProgressBar:
    """A bar on stderr: amount done, rate and time left; off a terminal, or if quiet, nothing.

    It appears with the first `update`, so that messages before it stand above it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._task: TaskID | None = None
        self._bar: Any = None

    def update(self, done: float, total: float, detail: str) -> None:
        """Show ``done`` of ``total`` with a detail such as the rate; safe from any thread."""
        if _voice.quiet or not sys.stderr.isatty():
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
