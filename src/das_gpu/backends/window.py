"""Windows of held samples on the host: kept in a ring, gathered, mirrored, detrended."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from das_gpu.bloscframe import Pick
from das_gpu.model import RingLayout

BandPass: TypeAlias = Callable[[Sequence[NDArray[Any]], NDArray[Any]], NDArray[np.bool_]]
"""From pieces of whole windows (channel, sample), which follow one another in time, to their
core's analytic signal, band-passed and decimated, in a C-contiguous complex array (channel, kept
sample). Returns which channels live: those not constant, and finite; the others become zeros.
Called by several threads at once."""


class HostRing:
    """A ring in host memory, in the archive's own type; see `das_gpu.model.RingLayout`."""

    time_major = False

    def __init__(self, layout: RingLayout) -> None:
        self.pick: Pick | None = None
        self._layout = layout
        self._slots = np.empty((layout.slots, layout.channels * layout.width), layout.dtype)
        self._aside = np.empty(layout.channels * layout.aside, layout.dtype)
        # What lies aside: of which column, and from which of its samples on.
        self._set_aside: tuple[int, int] | None = None
        column, left = layout.oldest(layout.bounds[0])
        if left <= layout.aside:
            self._set_aside = column, 0

    @contextmanager
    def room(self, column: int, k0: int, k1: int) -> Iterator[NDArray[Any]]:
        """See `das_gpu.backends.Ring`: the ring's own memory."""
        yield self._column(column)[k0:k1]

    def flush(self) -> bool:
        """Nothing is ever on its way."""
        return False

    def stop(self) -> None:
        """Nobody ever waits."""

    def keep(self, held0: int) -> None:
        """See `das_gpu.backends.Ring`: what is left of the oldest column is copied aside."""
        column, left = self._layout.oldest(held0)
        already = self._set_aside is not None and self._set_aside[0] == column
        if already or not 0 < left <= self._layout.aside:
            return
        samples = self._column(column)
        self._set_aside = column, samples.shape[1] - left
        self._column(column)[...] = samples[:, samples.shape[1] - left :]

    def pieces(self, k0: int, k1: int, held0: int, held1: int) -> list[NDArray[Any]]:
        """Views of channels ``[k0, k1)``, samples ``[held0, held1)``, one for each column."""
        found = []
        for column, low, high in self._layout.pieces(held0, held1):
            gone = self._gone(column)
            found.append(self._column(column)[k0:k1, low - gone : high - gone])
        return found

    def _gone(self, column: int) -> int:
        """Samples of a column that are no longer kept."""
        return 0 if self._set_aside is None or self._set_aside[0] != column else self._set_aside[1]

    def _column(self, column: int) -> NDArray[Any]:
        """What is kept of a column, (channel, sample)."""
        layout = self._layout
        start, stop = layout.samples(column)
        if self._set_aside is not None and self._set_aside[0] == column:
            left = stop - start - self._set_aside[1]
            return self._aside[: layout.channels * left].reshape(layout.channels, left)
        slot: NDArray[Any] = self._slots[(column - layout.first) % layout.slots]
        return slot[: layout.channels * (stop - start)].reshape(layout.channels, stop - start)


class Buffers(threading.local):
    """Arrays that each thread uses again and again, by name."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """This thread's array of that name; its contents are undefined."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.size < size:
            held = self._held[name] = np.empty(size, dtype=dtype)
        return held[:size].reshape(shape)


def limits(pieces: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lowest and highest sample of each channel; NaN where one is NaN."""
    low = np.min([piece.min(axis=1) for piece in pieces], axis=0)
    high = np.max([piece.max(axis=1) for piece in pieces], axis=0)
    return low, high


def gather(pieces: Sequence[NDArray[Any]], window: NDArray[np.float64], v0: int, v1: int) -> None:
    """Fill ``window`` from the held pieces, which are its samples ``[v0, v1)``.

    What is missing before and after is their odd reflection, folded as often as needed.
    """
    position = v0
    for piece in pieces:
        window[:, position : position + piece.shape[1]] = piece
        position += piece.shape[1]
    for outside in (np.arange(v0), np.arange(v1, window.shape[1])):
        if outside.size:
            window[:, outside] = _odd_reflection(window[:, v0:v1], outside - v0)


def _odd_reflection(known: NDArray[np.float64], positions: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values of the odd extension of ``known`` (channel, sample) at positions outside it.

    x(-i) = 2 x(0) - x(i) and the same about the last sample; two reflections are a shift by
    the period 2 (n - 1) that adds twice the difference of the ends.
    """
    n = known.shape[1]
    first, last = known[:, :1], known[:, -1:]
    if n == 1:
        return np.broadcast_to(first, (known.shape[0], positions.size))
    period = 2 * (n - 1)
    turns, rest = np.divmod(positions, period)
    mirrored = rest > n - 1
    values = known[:, np.where(mirrored, period - rest, rest)]
    values[:, mirrored] = 2 * last - values[:, mirrored]
    values += 2 * (last - first) * turns
    return values


def detrended(window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take off each channel's straight line through its first and its last sample, in place."""
    first = window[:, :1].copy()
    slope = (window[:, -1:] - first) / (window.shape[1] - 1)
    window -= first
    window -= slope * np.arange(window.shape[1])
    return window
