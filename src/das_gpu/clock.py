"""An archive's clock: from samples to times and back, without reading the time axis whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import Series, StoredArray
from das_gpu.errors import ChunkError, SourceError
from das_gpu.timescale import TimeScale

_NEIGHBOURS = 8  # chunks tried at either end of the record before it is given up


@dataclass(frozen=True, slots=True)
class Ends:
    """The first and the last sample whose times can be read.

    ``rate_hz`` is the rate at which the times advance from the first; None when they do not.
    """

    first: int
    first_ns: int
    last: int
    last_ns: int
    rate_hz: float | None


class TimeAxis:
    """The time axis in nanoseconds since 1970-01-01 UTC, a few decoded chunks kept.

    Safe to call from several threads. Pickles without the chunks.

    Parameters
    ----------
    variable : StoredArray
        One-dimensional.
    """

    def __init__(self, variable: StoredArray) -> None:
        self.variable = variable
        self.scale = TimeScale.of(variable.name, variable.dtype, variable.attributes)
        self._series = Series(variable)

    def __reduce__(self) -> tuple[Any, ...]:
        return TimeAxis, (self.variable,)

    def __len__(self) -> int:
        return len(self._series)

    @property
    def chunk_size(self) -> int:
        """Samples of a whole chunk."""
        return self._series.chunk_size

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return self.variable.grid_shape[0]

    def times_ns(self, t0: int, t1: int) -> NDArray[np.int64]:
        """Give the times of samples ``[t0, t1)``.

        Raises
        ------
        ChunkMissingError, ChunkCorruptError
            A chunk cannot be had.
        SourceError
            A stored value is not a time.
        """
        return self.scale.to_ns(self._series.read(t0, t1))

    def chunk_ns(self, number: int) -> NDArray[np.int64]:
        """Give the times of one chunk; raises as :meth:`times_ns` does."""
        return self.scale.to_ns(self._series.chunk(number))

    def ends(self) -> Ends:
        """Read the ends of the axis; beside lost chunks, those of their neighbours.

        Raises
        ------
        SourceError
            An end is lost and so are its neighbours, or a stored value is not a time.
        """
        numbers = range(self.n_chunks)
        head, head_ns = self._first_readable(numbers)
        tail, tail_ns = self._first_readable(reversed(numbers))
        return Ends(
            first=head * self.chunk_size,
            first_ns=int(head_ns[0]),
            last=tail * self.chunk_size + len(tail_ns) - 1,
            last_ns=int(tail_ns[-1]),
            rate_hz=_rate_hz(head_ns),
        )

    def _first_readable(self, numbers: Iterable[int]) -> tuple[int, NDArray[np.int64]]:
        lost: ChunkError | None = None
        for number in islice(numbers, _NEIGHBOURS):
            try:
                return number, self.chunk_ns(number)
            except ChunkError as exc:
                lost = lost or exc
        raise SourceError(
            f"The time axis of {self.variable.location} cannot be read at its ends: {lost}"
        ) from lost


def _rate_hz(times_ns: NDArray[np.int64]) -> float | None:
    """Measure the rate at which times advance, from the differences near their median.

    The mean of those, not the median itself: a clock in whole microseconds would round the
    period. A rate within 0.01 % of a whole number is that number.
    """
    steps = np.diff(times_ns)
    if not steps.size:
        return None
    median = float(np.median(steps))
    if median <= 0:
        return None
    rate_hz = 1e9 / float(np.mean(steps[np.abs(steps - median) < 0.5 * median]))
    whole = round(rate_hz)
    return float(whole) if whole and abs(rate_hz - whole) <= 1e-4 * whole else rate_hz


@dataclass(frozen=True, slots=True)
class Clock:
    """A time axis with its record's ends and sampling rate, searched for times."""

    axis: TimeAxis
    rate_hz: float
    start_ns: int
    last_ns: int

    @classmethod
    def of(cls, axis: TimeAxis, ends: Ends, rate_hz: float) -> Clock:
        """Make the clock; times beyond the readable ends are extrapolated."""
        before, after = ends.first, len(axis) - 1 - ends.last
        return cls(
            axis,
            rate_hz,
            start_ns=ends.first_ns - round(before * 1e9 / rate_hz),
            last_ns=ends.last_ns + round(after * 1e9 / rate_hz),
        )

    def sample_at(self, time_ns: int) -> int:
        """Give the first sample at or after a time; the axis' length when there is none.

        Found over the chunks, by interpolation, then bisection: one chunk is read where the
        clock runs evenly, at most 5 + log2(chunks) otherwise. Where a chunk is lost, its times
        are interpolated. Where the axis runs backwards, several samples may answer; one of
        them is given.
        """
        if time_ns <= self.start_ns:
            return 0
        if time_ns > self.last_ns:
            return len(self.axis)
        size = self.axis.chunk_size
        low, high = 0, self.axis.n_chunks - 1
        below = (0, self.start_ns)
        above = (len(self.axis) - 1, self.last_ns)
        attempt = 0
        while low <= high:
            guess = self._guess(attempt, time_ns, below, above)
            number = (low + high) // 2 if guess is None else min(max(guess // size, low), high)
            times = self._ascending(number, below, above)
            if time_ns <= times[0]:
                above, high = (number * size, int(times[0])), number - 1
            elif time_ns > times[-1]:
                below, low = (number * size + len(times) - 1, int(times[-1])), number + 1
            else:
                return number * size + int(np.searchsorted(times, time_ns))
            attempt += 1
        return min(low * size, len(self.axis))

    def _ascending(
        self, number: int, below: tuple[int, int], above: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Give the times of a chunk, made ascending; interpolated when the chunk is lost."""
        try:
            times = self.axis.chunk_ns(number)
        except ChunkError:
            size = self.axis.chunk_size
            samples = np.arange(number * size, min((number + 1) * size, len(self.axis)))
            period_ns = (above[1] - below[1]) / max(above[0] - below[0], 1)
            times = below[1] + np.rint((samples - below[0]) * period_ns).astype(np.int64)
        return np.maximum.accumulate(times)

    def _guess(
        self, attempt: int, time_ns: int, below: tuple[int, int], above: tuple[int, int]
    ) -> int | None:
        """Guess a sample: between both known ends, or from one of them at the nominal rate.

        The latter is exact when the jump lies towards the other end. None: bisect.
        """
        from_below = below[0] + (time_ns - below[1]) * self.rate_hz / 1e9
        from_above = above[0] - (above[1] - time_ns) * self.rate_hz / 1e9
        nearer_below = time_ns - below[1] <= above[1] - time_ns
        match attempt:
            case 0 | 3:
                part = (time_ns - below[1]) / max(above[1] - below[1], 1)
                return int(below[0] + part * (above[0] - below[0]))
            case 1 | 4:
                return int(from_below if nearer_below else from_above)
            case 2:
                return int(from_above if nearer_below else from_below)
        return None
