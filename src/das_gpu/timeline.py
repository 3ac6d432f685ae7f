"""The time axis and its companions along a segment: clock, jumps, quality.

Read in the same stretches as the samples and forgotten behind them, so that a long segment
holds no more of the axis than a short one.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.archive import Archive
from das_gpu.chunks import StoredArray
from das_gpu.errors import ChunkCorruptError, ChunkError, ChunkMissingError
from das_gpu.model import Status
from das_gpu.timescale import jumps_of


@dataclass(frozen=True, slots=True)
class Lost:
    """Archive samples ``[start, stop)`` that cannot be had, and why."""

    start: int
    stop: int
    status: Status
    reason: str

    @classmethod
    def by(cls, error: ChunkError, start: int, stop: int) -> Lost:
        """What an error loses: the chunk is not there, is damaged, or cannot be had for now."""
        if isinstance(error, ChunkCorruptError):
            status = Status.CORRUPT
        elif isinstance(error, ChunkMissingError):
            status = Status.MISSING
        else:
            status = Status.ERROR
        return cls(start, stop, status, str(error))


@dataclass(frozen=True, slots=True)
class Cuts:
    """What interrupts a stretch: lost samples, and first samples after a jump."""

    lost: list[Lost]
    jumps: list[int]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Axis values of samples ``[start, stop)``; None where they cannot be had."""

    start: int
    stop: int
    times_ns: NDArray[np.int64] | None
    counter: NDArray[np.int64] | None
    quality: NDArray[np.int64]
    lost: Lost | None


class Timeline:
    """Axis values between what was `read` and what was told to be forgotten.

    Safe for loader threads to read into while rows are asked about.

    Parameters
    ----------
    archive : Archive
        Where the axis is stored.
    strict : bool
        Raise `ChunkError` for a lost chunk of the time axis instead of noting it.
    """

    def __init__(self, archive: Archive, *, strict: bool = False) -> None:
        self._archive = archive
        self._strict = strict
        self._period_ns = 1e9 / archive.acquisition.sampling_rate_hz
        self._pieces: dict[int, _Piece] = {}
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> None:
        """Read the axes of samples ``[start, stop)``, one stored axis chunk at a time."""
        width = self._archive.time.chunk_shape[0]
        for first in range(start - start % width, stop, width):
            t0, t1 = max(start, first), min(stop, first + width)
            piece = self._piece(t0, t1)
            with self._lock:
                self._pieces[t0] = piece

    def _piece(self, t0: int, t1: int) -> _Piece:
        times, lost = None, None
        try:
            times = self._archive.times_ns(t0, t1)
        except ChunkError as error:
            if self._strict:
                raise
            lost = Lost.by(error, t0, t1)
        quality = np.zeros(t1 - t0, dtype=np.int64)
        for variable, factor in self._archive.quality:
            bits = self._companion(variable, t0, t1)
            if bits is not None:
                quality |= bits.astype(np.int64) * factor
        count = self._archive.count
        counter = None if count is None else self._companion(count, t0, t1)
        return _Piece(t0, t1, times, counter, quality, lost)

    def _companion(self, variable: StoredArray, t0: int, t1: int) -> NDArray[Any] | None:
        """Values of a variable beside the time axis, or None: it loses no tile."""
        try:
            return self._archive.aux(variable, t0, t1)
        except ChunkError:
            return None

    def forget(self, sample: int) -> None:
        """Drop what lies wholly before a sample."""
        with self._lock:
            for start in [s for s, piece in self._pieces.items() if piece.stop <= sample]:
                del self._pieces[start]

    def _between(self, t0: int, t1: int) -> list[_Piece]:
        with self._lock:
            pieces = list(self._pieces.values())
        return sorted(
            (p for p in pieces if p.start < t1 and p.stop > t0), key=lambda piece: piece.start
        )

    def cuts(self, t0: int, t1: int) -> Cuts:
        """Lost stretches and jumps in samples ``[t0, t1)``.

        A jump is a step off by more than half a sample period, or backwards, of the clock,
        or of the interrogator's own counter where the archive has one.
        """
        pieces = self._between(t0, t1)
        jumps = self._steps([(p.start, p.times_ns) for p in pieces], self._period_ns)
        counted = [(p.start, p.counter) for p in pieces]
        if any(values is not None and np.any(values != values[0]) for _, values in counted):
            jumps |= self._steps(counted, 1.0)
        return Cuts(
            lost=[piece.lost for piece in pieces if piece.lost is not None],
            jumps=sorted(jump for jump in jumps if t0 < jump < t1),
        )

    @staticmethod
    def _steps(pieces: list[tuple[int, NDArray[np.int64] | None]], period: float) -> set[int]:
        """First samples after a step that is not one period, over neighbouring pieces."""
        jumps: set[int] = set()
        before: int | None = None
        for start, values in pieces:
            if values is None:
                before = None
                continue
            known = values if before is None else np.concatenate([[before], values])
            first = start if before is None else start - 1
            jumps.update(int(first + place) for place in jumps_of(known, period))
            before = int(values[-1])
        return jumps

    def quality(self, t0: int, t1: int) -> int:
        """OR of the quality bits of samples ``[t0, t1)``."""
        bits = 0
        for piece in self._between(t0, t1):
            part = piece.quality[max(0, t0 - piece.start) : t1 - piece.start]
            bits |= int(np.bitwise_or.reduce(part))
        return bits

    def limits(self, t0: int, t1: int, span: int) -> tuple[int, int]:
        """Start and end times, in ns, of ``span`` samples from ``t0``.

        The end is one period after the last sample. Where the axis is lost, the nearest known
        time is carried on at the sampling rate.
        """
        start = self._time_at(t0)
        return start, self._time_at(t1 - 1) + round((t0 + span - t1 + 1) * self._period_ns)

    def _time_at(self, sample: int) -> int:
        with self._lock:
            pieces = list(self._pieces.values())
        known_ns, known = self._archive.acquisition.start_ns, 0
        nearest = sys.maxsize
        for piece in pieces:
            place = min(max(sample, piece.start), piece.stop - 1)
            if piece.times_ns is not None and abs(place - sample) < nearest:
                nearest = abs(place - sample)
                known_ns, known = int(piece.times_ns[place - piece.start]), place
        return known_ns + round((sample - known) * self._period_ns)
