"""The envelope of a stretch of samples in memory: window by window, as a run's tiles are made.

A stretch is covered by windows of a tile's length, and what is left by a shorter one, each with
its halos. So the result of a window depends on its own samples alone, whichever part of a long
array it is cut out of.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from das_gpu import backends
from das_gpu.backends import Array, Chain, Workspace
from das_gpu.model import Acquisition, RingLayout, RowWindow, Span
from das_gpu.plan import Plan
from das_gpu.plan import plan as lay_out
from das_gpu.process import design
from das_gpu.recipe import Recipe
from das_gpu.spans import archive_window, core, row_spans
from das_gpu.timeline import Cuts
from das_gpu.timescale import jumps_of

_KEPT = tuple(np.dtype(name) for name in ("i2", "i4", "f4", "f8"))
"""Types of samples that every backend takes as they are; others become float64."""


@dataclass(frozen=True)
class Piece:
    """One window, a row of a plan that has one band, and what of its core is wanted.

    Attributes
    ----------
    plan, row
        Say where the window is.
    skip : int
        Kept samples at its beginning that an earlier piece has made.
    """

    plan: Plan
    row: int
    skip: int = 0

    @property
    def samples(self) -> int:
        """Kept samples that are wanted."""
        return self.plan.tile_samples - self.skip

    @property
    def start(self) -> int:
        """First sample of the core."""
        return core(self.plan, self.row)[0]

    @property
    def stop(self) -> int:
        """Sample after the core's last one."""
        return core(self.plan, self.row)[1]


def covering(
    acquisition: Acquisition, recipe: Recipe, sample_range: tuple[int, int]
) -> tuple[Piece, ...]:
    """Cover samples with windows of a tile's length; the last one ends where the samples do.

    Where there are fewer than a tile has, the only window is as long as they are.

    Raises
    ------
    RecipeError
        The recipe cannot be carried out on so few samples, or at their rate.
    """
    start, stop = sample_range
    step, rate_hz = recipe.selection.time_step, acquisition.sampling_rate_hz
    kept = -(-(stop - start) // step)
    if kept < recipe.tile.seconds * rate_hz / step:
        recipe = recipe.with_settings({"tile.seconds": kept * step / rate_hz})
    plan = lay_out(acquisition, recipe, sample_range)
    pieces = [Piece(plan, row) for row in range(plan.rows)]
    tile = plan.tile_samples
    rest = kept - plan.rows * tile
    if rest:
        last = lay_out(acquisition, recipe, (start + (kept - tile) * step, stop))
        pieces.append(Piece(last, 0, skip=tile - rest))
    return tuple(pieces)


def reach(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Samples that the windows want before and after their cores: all of them as many."""
    return pieces[0].plan.halo_before, pieces[0].plan.halo_after


def envelopes_db(
    samples: Array,
    times_ns: NDArray[np.int64] | None,
    first: int,
    pieces: Sequence[Piece],
    *,
    threads: int,
    compiled: bool,
) -> Array:
    """Envelope of successive pieces, side by side.

    Parameters
    ----------
    samples : (channel, sample) array
        NumPy's, or CuPy's: then the work is done on the device, and the result is there.
    times_ns : (sample,) int64 array or None
        Their times; a jump in them is not filtered across.
    first : int
        Number of the first of the samples, as the pieces count.
    pieces : sequence of Piece
        All of their windows' samples that exist are among the samples.
    threads : int
        Compute threads.
    compiled : bool
        Whether the processor's loops are compiled.

    Returns
    -------
    (channel, kept sample) array of the recipe's dtype
        dB re 1e-6 of the samples' unit; -inf where it is 0, as in channels that are dead in a
        window, NaN in windows that a jump of the clock goes through.
    """
    place = _Host(threads, compiled) if isinstance(samples, np.ndarray) else _Device()
    plan, channels = pieces[0].plan, samples.shape[0]
    chain = design(plan)
    chain = replace(chain, band_channels=channels, distance_m=chain.distance_m[:channels])
    held = samples.dtype if samples.dtype in _KEPT else np.dtype(np.float64)
    layout = RingLayout(
        0, (0, chain.length), 1, channels, held.name, (0, channels), time_major=False
    )
    out = place.empty((channels, sum(piece.samples for piece in pieces)), chain.dtype)
    at = 0
    with place.workspace(layout, chain) as work:
        for piece in pieces:
            target = out[:, at : at + piece.samples]
            at += piece.samples
            span = replace(_span(piece, times_ns, first), k1=channels)
            if span.v1 <= span.v0:
                target[...] = np.nan
                continue
            place.load(work, _held(piece, samples, first, span), span.v0)
            signal = work.analytic(RowWindow(piece.row, 0, chain.length, (span,), 0, 0, 0))
            common = work.common_mode(signal) if plan.common_mode else None
            place.store(work, work.envelope_db(signal, common), target)
    return out


def _span(piece: Piece, times_ns: NDArray[np.int64] | None, first: int) -> Span:
    """What of a piece's window can be used."""
    plan = piece.plan
    jumps: list[int] = []
    if times_ns is not None:
        w0, w1 = archive_window(plan, piece.row)
        low, high = max(w0, first), min(w1, first + times_ns.size)
        part = times_ns[low - first : high - first]
        jumps = (low + jumps_of(part, 1e9 / plan.acquisition.sampling_rate_hz)).tolist()
    (span,) = row_spans(plan, piece.row, Cuts([], jumps), {0: []}, fill=False)
    return span


def _held(piece: Piece, samples: Array, first: int, span: Span) -> Array:
    """The usable samples of a piece's window, at the rate that they are filtered at."""
    start, step = archive_window(piece.plan, piece.row)[0], piece.plan.hold_step
    low, high = (start + place * step - first for place in (span.v0, span.v1))
    return samples[:, low : high - step + 1 : step]


class _Place(Protocol):
    """Where samples are, and what computes there."""

    def empty(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """An array whose contents are undefined."""

    def workspace(self, layout: RingLayout, chain: Chain) -> AbstractContextManager[Workspace]:
        """For windows of one length; its ring has one column."""

    def load(self, work: Workspace, held: Array, start: int) -> None:
        """Put samples in the ring, from one of its samples on."""

    def store(self, work: Workspace, envelope: Array, target: Array) -> None:
        """Bring a row's envelope, its last samples, where it is wanted; dead channels as -inf."""


class _Host:
    """In NumPy's arrays, on the processor."""

    def __init__(self, threads: int, compiled: bool) -> None:
        self._backend = _processor(threads, compiled)

    def empty(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def workspace(self, layout: RingLayout, chain: Chain) -> AbstractContextManager[Workspace]:
        return self._backend.workspace(layout, chain)

    def load(self, work: Workspace, held: NDArray[Any], start: int) -> None:
        with work.ring.room(0, 0, held.shape[0]) as room:
            room[:, start : start + held.shape[1]] = held

    def store(self, work: Workspace, envelope: Any, target: NDArray[Any]) -> None:  # noqa: ARG002 - on the host there is nothing to wait for
        target[...] = envelope.values[0, :, -target.shape[1] :]
        target[~envelope.live] = -np.inf


@cache
def _processor(threads: int, compiled: bool) -> backends.Backend:
    return backends.select("cpu", threads, compiled).backend


class _Device:
    """In CuPy's arrays, on the device."""

    def __init__(self) -> None:
        self._backend: Any = backends.select("gpu", 1).backend

    def empty(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        return self._backend.empty(shape, dtype)

    def workspace(self, layout: RingLayout, chain: Chain) -> AbstractContextManager[Workspace]:
        made: AbstractContextManager[Workspace] = self._backend.workspace(layout, chain)
        return made

    def load(self, work: Any, held: Array, start: int) -> None:
        work.load(held, start)

    def store(self, work: Any, envelope: Any, target: Array) -> None:
        work.store(envelope, target)
