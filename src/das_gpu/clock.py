"""An archive's clock: from samples to times and back, without reading the time axis whole.

:class:`Search` chooses chunks of the axis, and does no I/O; :class:`TimeAxis` reads them, several
at once where answers travel; :class:`Clock` brings the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import StoredArray
from das_gpu.errors import ChunkError, SourceError
from das_gpu.series import Series
from das_gpu.timescale import TimeScale

_Known = tuple[int, int]
_T = TypeVar("_T")
_R = TypeVar("_R")

_NEIGHBOURS = 8  # chunks tried at either end of the record before it is given up
_AT_ONCE, _ROUNDS, _REQUESTS = 3, 9, 20  # a search's budget; see `Clock.sample_at`


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

    def times_ns(self, t0: int, t1: int) -> NDArray[np.int64]:
        """Give the times of samples ``[t0, t1)``.

        Raises
        ------
        ChunkMissingError, ChunkCorruptError
            A chunk cannot be had.
        SourceError, AccessDeniedError
            The store failed or refused, or a stored value is not a time.
        """
        return self.scale.to_ns(self._series.read(t0, t1))

    def chunk_ns(self, number: int) -> NDArray[np.int64]:
        """Give the times of one chunk; raises as :meth:`times_ns` does."""
        return self.scale.to_ns(self._series.chunk(number))

    def chunks_ns(self, numbers: Sequence[int]) -> dict[int, NDArray[np.int64] | None]:
        """Give the times of several chunks; None for a lost one, else as `times_ns`."""

        def times_ns(number: int) -> NDArray[np.int64] | None:
            try:
                return self.chunk_ns(number)
            except ChunkError:
                return None

        return dict(zip(numbers, self._each(times_ns, numbers), strict=True))

    def ends(self) -> Ends:
        """Read the ends of the axis; beside lost chunks, those of their neighbours.

        Raises
        ------
        SourceError
            An end is lost and so are its neighbours, or a stored value is not a time.
        """
        all_ = range(self.variable.grid_shape[0])
        (head, head_ns), (tail, tail_ns) = self._each(self._first_readable, (all_, all_[::-1]))
        return Ends(
            first=head * self.chunk_size,
            first_ns=int(head_ns[0]),
            last=tail * self.chunk_size + len(tail_ns) - 1,
            last_ns=int(tail_ns[-1]),
            rate_hz=rate_of(head_ns),
        )

    def _first_readable(self, numbers: Sequence[int]) -> tuple[int, NDArray[np.int64]]:
        lost: ChunkError | None = None
        for number in numbers[:_NEIGHBOURS]:
            try:
                return number, self.chunk_ns(number)
            except ChunkError as exc:
                lost = lost or exc
        raise SourceError(
            f"The time axis of {self.variable.location} cannot be read at its ends: {lost}"
        ) from lost

    def _each(self, work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """Do the work for every item: at once where it waits for a network."""
        if self.variable.is_local or len(set(items)) == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(len(items), "time-axis") as pool:
            return list(pool.map(work, items))


def rate_of(times_ns: NDArray[np.int64]) -> float | None:
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

        One or two chunks are read where the clock runs evenly, else at most 20 in at most 9
        rounds; more rounds on an axis of over 15,551 chunks, more chunks on one of over 524,287.
        A lost chunk's times are interpolated between those read on either side. Where the axis
        runs backwards, several samples may answer; one is given. Raises as `chunks_ns` does.
        """
        if time_ns <= self.start_ns:
            return 0
        if time_ns > self.last_ns:
            return len(self.axis)
        below, above = (0, self.start_ns), (len(self.axis) - 1, self.last_ns)
        search = Search(time_ns, self.rate_hz, self.axis.chunk_size, below, above)
        while numbers := search.ask():
            search.tell(self.axis.chunks_ns(numbers))
        return search.sample


class Search:
    """Which chunks to ask for, round by round, to find a time. Does no I/O.

    ``below`` and ``above`` are the record's first and last sample, each with its time in
    nanoseconds: ``time_ns`` is later than the one and not later than the other.
    """

    def __init__(
        self, time_ns: int, rate_hz: float, chunk_size: int, below: _Known, above: _Known
    ) -> None:
        self._time_ns, self._rate_hz, self._chunk_size = int(time_ns), rate_hz, chunk_size
        self._below, self._above = below, above
        self._lost: list[int] = []
        # Enough whatever the answers are, even if a first guess on its own is wrong.
        n_chunks = above[0] // chunk_size + 1
        self._rounds, self._requests = _ROUNDS, max(_REQUESTS, n_chunks.bit_length() + 1)
        while _reach(self._rounds - 1, self._requests - 1) < n_chunks:
            self._rounds += 1

    @property
    def sample(self) -> int:
        """The first sample at or after the time; between known samples, interpolated."""
        (s0, t0), (s1, t1) = self._below, self._above
        return s0 - (t0 - self._time_ns) * (s1 - s0) // (t1 - t0)

    def ask(self) -> list[int]:
        """Give the chunks to ask for next, in ascending order; none when the search is over."""
        (s0, _), (s1, _), size = self._below, self._above, self._chunk_size
        open_ = np.setdiff1d(np.arange((s0 + 1) // size, (s1 - 1) // size + 1), self._lost, True)
        if s1 - s0 == 1 or not open_.size or not self._rounds or not self._requests:
            return []
        guesses, alone = self._guesses()
        doubtful = not alone and len(guesses) < 3 and self._rounds == _ROUNDS
        if doubtful and _reach(self._rounds - 1, self._requests) >= open_.size:
            self._rounds -= 1  # a round saved is worth more than guesses
        # In the place of a lost chunk, the one after it.
        near = np.minimum(np.searchsorted(open_, guesses), open_.size - 1)
        places = self._choose(open_.size, list(dict.fromkeys(near.tolist())), alone)
        self._rounds, self._requests = self._rounds - 1, self._requests - len(places)
        return [int(open_[place]) for place in places]

    def tell(self, answers: Mapping[int, NDArray[np.int64] | None]) -> None:
        """Take the times of the chunks asked for; None for a lost one."""
        for number, answer in sorted(answers.items()):
            if answer is None:
                self._lost.append(number)
                continue
            times_ns, first = np.maximum.accumulate(answer), number * self._chunk_size
            at = int(np.searchsorted(times_ns, self._time_ns))
            if at > 0:
                self._below = (first + at - 1, int(times_ns[at - 1]))
            if at < len(times_ns):
                self._above = (first + at, int(times_ns[at]))
                return  # later chunks say the same, unless the axis runs backwards

    def _guesses(self) -> tuple[list[int], bool]:
        """Guess chunks, the likeliest first; True when one is enough as the clock runs evenly.

        Two count from either known sample at the nominal rate: the time lies between them where
        samples were lost and none repeated. The last is interpolated between those samples.
        """
        (s0, t0), (s1, t1) = self._below, self._above
        from_below = s0 + math.ceil((self._time_ns - t0) * self._rate_hz / 1e9)
        from_above = s1 - math.floor((t1 - self._time_ns) * self._rate_hz / 1e9)
        if abs(from_below - from_above) <= 2 * self._chunk_size:
            return [self.sample // self._chunk_size], True
        nearer_below = self._time_ns - t0 <= t1 - self._time_ns
        ends = [from_below, from_above] if nearer_below else [from_above, from_below]
        inside = (sample for sample in (*ends, self.sample) if s0 < sample <= s1)
        return [sample // self._chunk_size for sample in inside], False

    def _choose(self, n: int, guesses: list[int], alone: bool) -> list[int]:
        """Choose places among ``n`` chunks to ask for at once.

        As many guesses as may all be wrong and the rest of the budget still be enough, then,
        unless a guess stands ``alone``, what leaves the smallest parts.
        """
        for width in [1] * alone + [*range(min(_AT_ONCE, n, self._requests), 0, -1)]:
            for kept in range(min(width, len(guesses)), -1, -1):
                places = _spread(n, guesses[:kept], width)
                widest = max(high - low for low, high in pairwise([-1, *places, n])) - 1
                if widest <= _reach(self._rounds - 1, self._requests - width):
                    return places
        # Lost chunks have used the budget up: come as near as it allows.
        return _spread(n, [], min(n, _AT_ONCE, max(1, self._requests // self._rounds)))


def _reach(rounds: int, requests: int) -> int:
    """Count the chunks of which any one is sure to be found.

    A round of ``k`` tells in which of ``k + 1`` parts it lies; rounds alike make the most of it.
    """
    if not rounds:
        return 0
    each, more = divmod(min(requests, _AT_ONCE * rounds), rounds)
    return int((each + 1) ** (rounds - more) * (each + 2) ** more) - 1


def _spread(n: int, fixed: list[int], width: int) -> list[int]:
    """Add to the fixed places among ``n`` those that make the widest part the narrowest."""
    places = sorted(fixed)
    spans = [(high - low, low) for low, high in pairwise([-1, *places, n])]
    parts = [1] * len(spans)
    for _ in range(width - len(fixed)):
        parts[max(range(len(spans)), key=lambda k: spans[k][0] / parts[k])] += 1
    for (length, low), of in zip(spans, parts, strict=True):
        places += [low + length * part // of for part in range(1, of)]
    return sorted(places)
