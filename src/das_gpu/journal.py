"""The log of a run: a file of JSON lines, one for each thing that happened.

Modules write to their loggers as usual; what belongs to an event besides its text goes along as
``extra=facts(segment=7)``. Every line has ``time`` (ISO 8601, UTC), ``level`` and ``event``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from das_gpu.errors import DestinationError
from das_gpu.redaction import redact

_FACTS = "das_gpu_facts"
_logger = logging.getLogger("das_gpu")
_change = threading.Lock()
_before: list[int] = []
"""What the logger let through before there was a log."""
_owners: dict[int, logging.Handler] = {}
"""Logs of the runs of this process, by the threads that run them."""


def facts(**values: object) -> dict[str, object]:
    """What a line of the log says besides its text, as the ``extra`` of a logging call."""
    return {_FACTS: values}


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record says besides its text."""
    found: dict[str, object] = getattr(record, _FACTS, {})
    return found


def name_of_log(now: datetime) -> str:
    """Name of the log that a run begins.

    Examples
    --------
    >>> name_of_log(datetime(2026, 11, 23, 2, 15, 0, 250_000, tzinfo=UTC))
    '20261123T021500250Z.jsonl'
    """
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z.jsonl"


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Write what happens inside the block to a file, behind what it holds.

    Raises
    ------
    DestinationError
        The file cannot be opened. What cannot be written later is left out: a full disk must
        not end a run that still could.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Lines(path, encoding="utf-8")
    except OSError as error:
        raise DestinationError(
            f"The log {path} cannot be written: {error.strerror or error}. Name another file with "
            "--log-json."
        ) from error
    handler.setFormatter(_JsonLine())
    with _change:
        if not _owners:
            _before.append(_logger.level)
            _logger.setLevel(logging.INFO)
        _owners[threading.get_ident()] = handler
        _logger.addHandler(handler)
    try:
        yield
    finally:
        with _change:
            _logger.removeHandler(handler)
            del _owners[threading.get_ident()]
            if not _owners:
                _logger.setLevel(_before.pop())
        handler.close()


class _Lines(logging.FileHandler):
    """A file of lines, the loss of which nobody is told of."""

    _over = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what another thread's run says; what nobody's does, all write down."""
        return _owners.get(record.thread or 0, self) is self

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless the log is over: a thread may have found it just before."""
        if not self._over:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on without the line."""

    def close(self) -> None:
        """Close the file; what it does not take is lost."""
        self.acquire()
        try:
            self._over = True
            with suppress(OSError):
                super().close()
        finally:
            self.release()


class _JsonLine(logging.Formatter):
    """One line of JSON, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; see the module."""
        when = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= facts_of(record)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, ensure_ascii=False, default=str))
