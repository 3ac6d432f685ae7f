"""When a run was worked on, and how fast, by the logs in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.keys import LOGS, kind_of
from das_gpu.sink import Sink

_EVENTS = ("run begun", "segment finished", "run ended", "run stopped")
_MARKS = tuple(event.encode() for event in _EVENTS)


@dataclass(frozen=True, slots=True)
class Session:
    """One command that worked on the run.

    Attributes
    ----------
    began_s, ended_s : float
        Seconds since 1970-01-01 UTC; the end is the last thing that is known of it.
    finished : tuple of (float, int)
        When each segment was finished, and its tiles.
    """

    began_s: float
    ended_s: float
    finished: tuple[tuple[float, int], ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_s - self.began_s

    @property
    def tiles(self) -> int:
        """Tiles it made."""
        return sum(tiles for _, tiles in self.finished)


def read_sessions(sink: Sink, since_ms: int | None) -> list[Session]:
    """Sessions of a run, the earliest first.

    Parameters
    ----------
    sink : Sink
    since_ms : int or None
        When the run was begun: earlier logs are of a run that it has replaced.
    """
    found: list[Session] = []
    for key in sink.list(LOGS):
        if kind_of(key) == "log":
            found += _sessions_in(sink.get(key) or b"")
    earliest = float("-inf") if since_ms is None else since_ms / 1000 - 1
    return sorted(
        (one for one in found if one.finished and one.began_s >= earliest),
        key=lambda one: one.began_s,
    )


def rates(sessions: Sequence[Session], most: int) -> tuple[NDArray[np.float64], float]:
    """Tiles per second over the time that was worked, pauses left out.

    A segment's tiles count as made evenly since the one before it was finished.

    Parameters
    ----------
    sessions : sequence of Session
        At least one.
    most : int
        Intervals at most; there are no more of them than segments.

    Returns
    -------
    float64 array, float
        The rate in each of some equal intervals, and how long one is, in seconds.
    """
    times, made, at = [0.0], [0.0], 0.0
    for session in sessions:
        for when, tiles in session.finished:
            times.append(max(times[-1], at + when - session.began_s))
            made.append(made[-1] + tiles)
        at += session.seconds
        times.append(max(times[-1], at))
        made.append(made[-1])
    total_s = max(times[-1], 1e-3)
    intervals = max(1, min(most, sum(len(session.finished) for session in sessions)))
    edges = np.linspace(0, total_s, intervals + 1)
    width_s = total_s / intervals
    return np.diff(np.interp(edges, times, made)) / width_s, width_s


def _sessions_in(data: bytes) -> Iterator[Session]:
    """Sessions of one log; a log may hold several."""
    began: float | None = None
    last = 0.0
    finished: list[tuple[float, int]] = []
    for line in data.splitlines():
        if not any(mark in line for mark in _MARKS):
            continue
        entry = _entry(line)
        if entry is None:
            continue
        when, event, tiles = entry
        if event == "run begun":
            if began is not None:
                yield Session(began, last, tuple(finished))
            began, finished = when, []
        elif began is not None and event == "segment finished":
            finished.append((when, tiles))
        last = max(when, began or when)
    if began is not None:
        yield Session(began, last, tuple(finished))


def _entry(line: bytes) -> tuple[float, str, int] | None:
    """When something happened, what, and to how many tiles."""
    try:
        found: Any = json.loads(line)
        event = found["event"]
        tiles = found["tiles"] if event == "segment finished" else 0
        when = datetime.fromisoformat(found["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    known = isinstance(event, str) and event.startswith(_EVENTS)
    sound = isinstance(tiles, int) and not isinstance(tiles, bool) and tiles >= 0
    return (when, event, tiles) if known and sound else None
