"""The CPU backend: a few channels at a time so that work stays in cache, on several threads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import MEDIAN_CHANNELS, Chain, Outcome, Picture, fast, plain
from das_gpu.backends.percentile import percentiles
from das_gpu.backends.window import BandPass, Buffers, HostRing, gather
from das_gpu.bloscframe import Pick
from das_gpu.model import RingLayout, RowWindow

BATCH_SAMPLES = 128
"""Samples of which a thread takes the median over channels at once."""
FLOOR_DB = 200.0
"""Zeros of a live channel are drawn this far under their tile's maximum."""

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)


class Steps(Protocol):
    """The loops of a tile row: `das_gpu.backends.plain`, or compiled `das_gpu.backends.fast`.

    Called by several threads at once on different parts. Complex and real arrays are of one
    precision, the chain's; those to be filled are C-contiguous.
    """

    @property
    def BATCH_CHANNELS(self) -> int:  # noqa: N802 - a constant of the module
        """Channels filtered at once: few, so that their intermediates are near at hand."""

    def band_pass(self, chain: Chain) -> BandPass:
        """The chain's way from windows to their cores' analytic signals.

        By gains of the one-sided spectrum, after the line through each channel's first and last
        sample is taken off; or by forward and backward second-order sections, of one piece.
        """

    def centre(
        self, window: NDArray[np.float64], known: tuple[int, int], core: tuple[int, int] | None
    ) -> NDArray[np.bool_]:
        """Take off each channel's median over its core, in place, if one is given.

        Returns which channels live: those not constant, and finite, throughout the ``known``
        samples; the others become zeros.
        """

    def medians(
        self,
        values: NDArray[Any],
        channels: NDArray[np.intp],
        start: int,
        stop: int,
        out: NDArray[Any],
    ) -> None:
        """Median over channels of real and of imaginary part, of samples ``[start, stop)``.

        Even counts give the mean of the two middle values.
        """

    def envelope_db(
        self,
        values: NDArray[Any],
        common: NDArray[Any] | None,
        out: NDArray[Any],
        lowest: NDArray[Any],
        highest: NDArray[Any],
    ) -> None:
        """``20*log10(abs(values - common) / 1e-6)``, to ``out``; -inf where that is 0.

        ``out`` may be the first half of the values' own memory. ``lowest`` and ``highest`` become
        the levels that each channel's lie between.
        """

    def in_float(
        self,
        envelope: NDArray[Any],
        live: NDArray[np.bool_],
        low: float,
        high: float,
        picture: Picture,
    ) -> NDArray[Any]:
        """Grey levels resized in floating point, clipped and rounded: (height, width).

        What the envelope holds of channels that do not live may be written over.
        """

    def by_pillow(
        self,
        envelope: NDArray[Any],
        live: NDArray[np.bool_],
        low: float,
        high: float,
        picture: Picture,
    ) -> NDArray[Any]:
        """Grey levels truncated to 8 bits, then resized by the installed Pillow."""


@dataclass(frozen=True)
class _Tools:
    """What the rows of a chain are made with."""

    steps: Steps
    band_pass: BandPass
    pick: Pick | None


@dataclass(frozen=True)
class Signal:
    """Analytic signal of a row's core, (channel, sample) complex, and which channels live."""

    values: NDArray[Any]
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Envelope:
    """Envelope of a row in dB, (band, channel, sample), and which of its channels live.

    ``lowest`` and ``highest`` are each channel's own levels.
    """

    values: NDArray[Any]
    live: NDArray[np.bool_]
    lowest: NDArray[Any]
    highest: NDArray[Any]


class CpuBackend:
    """`das_gpu.backends.Backend` over NumPy and SciPy, on ``threads`` threads.

    With ``compiled`` loops where `das_gpu.backends.fast` has them.
    """

    kind: Literal["cpu"] = "cpu"
    ahead = False

    def __init__(
        self, threads: int = 1, batch_channels: int | None = None, *, compiled: bool = False
    ) -> None:
        self.threads = threads
        self.batch_channels = batch_channels
        self.compiled = compiled
        # Whoever calls `each` is one of the threads. Tools are loaded on another in any case.
        self._pool = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="das-gpu-compute")

    @contextmanager
    def workspace(
        self,
        layout: RingLayout,
        chain: Chain,
        fillers: int = 1,  # noqa: ARG002 - they write to the ring itself
    ) -> Iterator[CpuWorkspace]:
        """A workspace in host memory."""
        # Loading what is compiled takes a second, in which the first chunks are on their way.
        tools = self._pool.submit(self._tools, chain, np.dtype(layout.dtype))
        yield CpuWorkspace(self, layout, chain, tools)

    def each(self, step: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a step to every item on the compute threads; results in order of the items.

        The caller is one of them: it would else be woken by every item that is done, and ask for
        the interpreter's lock each time. After an error no further item is begun, and when it is
        raised none is being worked on.
        """
        if self.threads == 1:
            return [step(item) for item in items]
        left = deque(enumerate(items))
        found: dict[int, Result] = {}

        def work() -> None:
            while True:
                try:
                    number, item = left.popleft()
                except IndexError:
                    return
                try:
                    found[number] = step(item)
                except BaseException:
                    left.clear()
                    raise

        helpers = [self._pool.submit(work) for _ in range(min(self.threads, len(left)) - 1)]
        try:
            work()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return [found[number] for number in range(len(found))]

    def _tools(self, chain: Chain, held: np.dtype[Any]) -> _Tools:
        steps: Steps = plain
        if self.compiled:
            missing = fast.missing_for(chain, held)
            if missing is None:
                steps = fast
            else:
                _LOG.warning("NumPy does what compiled loops would do sooner: %s", missing)
        pick = fast.pick() if steps is fast and held.itemsize == fast.PICKED_NBYTES else None
        return _Tools(steps, steps.band_pass(chain), pick)


class CpuWorkspace:
    """`das_gpu.backends.Workspace` over NumPy and SciPy."""

    depth = 0

    def __init__(
        self, backend: CpuBackend, layout: RingLayout, chain: Chain, tools: Future[_Tools]
    ) -> None:
        self.ring = HostRing(layout)
        tools.add_done_callback(partial(_equip, self.ring))
        self._chain = chain
        self._tools = tools
        self._each = backend.each
        self._batch_channels = backend.batch_channels
        self._buffers = Buffers()

    def analytic(self, row: RowWindow) -> Signal:
        """Gather, detrend or take the median off, band-pass, make analytic, cut to the core."""
        chain = self._chain
        channels = row.spans[-1].k1
        signal = self._buffers.array(
            "signal", (channels, chain.tile_samples), _complex(chain.dtype)
        )
        live = np.zeros(channels, dtype=bool)
        tools = self._tools.result()
        at_once = self._batch_channels or tools.steps.BATCH_CHANNELS

        def batch(k0: int, k1: int, v0: int, v1: int) -> None:
            if v1 <= v0:
                signal[k0:k1] = 0
                return
            held = self.ring.pieces(k0, k1, row.held0 + v0, row.held0 + v1)
            if chain.weights is None or chain.median_first or v1 - v0 < chain.length:
                held = [self._window(held, v0, v1)]
            live[k0:k1] = tools.band_pass(held, signal[k0:k1])

        self._each(
            lambda item: batch(*item),
            [
                (k0, min(k0 + at_once, span.k1), span.v0, span.v1)
                for span in row.spans
                for k0 in range(span.k0, span.k1, at_once)
            ],
        )
        return Signal(signal, live)

    def _window(self, held: Sequence[NDArray[Any]], v0: int, v1: int) -> NDArray[np.float64]:
        """The window in float64, mirrored where it is cut, its median off if that comes first."""
        chain = self._chain
        shape = held[0].shape[0], chain.length
        window = self._buffers.array("window", shape, np.dtype(np.float64))
        gather(held, window, v0, v1)
        core = chain.core0, chain.core0 + chain.step * chain.tile_samples
        self._tools.result().steps.centre(window, (v0, v1), core if chain.median_first else None)
        return window

    def common_mode(self, signal: Signal) -> NDArray[Any] | None:
        """Median over channels, a few samples at a time."""
        channels = median_channels(signal.live, self._chain.distance_m, self._chain.aperture_m)
        if not channels.size:
            return None
        values, medians = signal.values, self._tools.result().steps.medians
        common = np.empty(values.shape[1], dtype=values.dtype)

        def block(start: int) -> None:
            medians(values, channels, start, min(start + BATCH_SAMPLES, common.size), common)

        self._each(block, range(0, common.size, BATCH_SAMPLES))
        return common

    def envelope_db(self, signal: Signal, common: NDArray[Any] | None) -> Envelope:
        """Level in dB; a band's takes the first half of the memory that its signal was in.

        That of bands that share channels has memory of its own.
        """
        chain, levels = self._chain, self._tools.result().steps.envelope_db
        values, width, samples = signal.values, chain.band_channels, signal.values.shape[1]
        real = values.real.dtype
        if chain.overlapping:
            shape = chain.bands, width, samples
            envelope = self._buffers.array("envelope", shape, real)
        else:
            bands = values[: chain.bands * width].view(real).reshape(chain.bands, -1)
            envelope = bands[:, : width * samples].reshape(chain.bands, width, samples)
        lowest, highest = np.empty((2, values.shape[0]), real)

        def band(number: int) -> None:
            rows = chain.band(number)
            levels(values[rows], common, envelope[number], lowest[rows], highest[rows])

        self._each(band, range(chain.bands))
        return Envelope(envelope, signal.live, lowest, highest)

    def levels(self, envelope: Envelope) -> NDArray[np.float64]:
        """Grey limits per band, (bands, 2); zeros of live channels are floored in place."""
        chain, scale = self._chain, self._chain.scale
        levels = np.full((chain.bands, 2), np.nan)

        def band(number: int) -> None:
            rows = chain.band(number)
            alive = envelope.live[rows]
            if not alive.any():
                return
            tile = envelope.values[number]
            low, high = envelope.lowest[rows][alive].min(), envelope.highest[rows][alive].max()
            if low == -np.inf:
                high = high if np.isfinite(high) else tile.dtype.type(FLOOR_DB)
                np.maximum(tile, high - FLOOR_DB, out=tile)
                low = tile[alive].min()
            if scale.kind == "percentile":
                percents = scale.low, scale.high
                levels[number] = percentiles(tile if alive.all() else tile[alive], percents)
            elif scale.kind == "fixed":
                levels[number] = scale.low, scale.high
            else:
                levels[number] = low, high

        self._each(band, range(chain.bands))
        return levels

    def draw(self, envelope: Envelope, levels: NDArray[np.float64]) -> Outcome:
        """One image or array per band."""
        chain, live = self._chain, envelope.live
        picture = chain.picture
        steps = self._tools.result().steps

        def band(number: int) -> NDArray[Any]:
            rows = chain.band(number)
            tile, alive, (low, high) = envelope.values[number], live[rows], levels[number]
            if picture is None:
                return _array(tile, alive, low)
            if not np.isfinite(low):
                depth = np.uint16 if picture.highest > 255 else np.uint8
                return np.zeros((picture.height, picture.width), dtype=depth)
            draw = steps.by_pillow if picture.resize == "pillow" else steps.in_float
            return draw(tile, alive, low, high, picture)

        alive = np.flatnonzero(live)
        dead = [np.count_nonzero(~live[chain.band(number)]) for number in range(chain.bands)]
        return Outcome(
            pixels=self._each(band, range(chain.bands)),
            levels=levels,
            dead=np.array(dead),
            live=(int(alive[0]), int(alive[-1])) if alive.size else None,
        )

    def collect(self, drawn: Outcome) -> Outcome:
        """The outcome itself: it is on the host already."""
        return drawn


def _equip(ring: HostRing, tools: Future[_Tools]) -> None:
    """Give a ring its loop; chunks that came before are decoded otherwise, to the same samples."""
    # Not a method of the workspace, which holds the tools: in a cycle its memory would stay.
    if not (tools.cancelled() or tools.exception()):
        ring.pick = tools.result().pick


def median_channels(
    live: NDArray[np.bool_], distance_m: NDArray[np.float64], aperture_m: float
) -> NDArray[np.intp]:
    """Every k-th live channel, k the smallest that leaves at most `MEDIAN_CHANNELS`.

    None when the live channels span less cable than ``aperture_m``.
    """
    channels = np.flatnonzero(live)
    if channels.size == 0 or abs(np.ptp(distance_m[channels[[0, -1]]])) < aperture_m:
        return channels[:0]
    return channels[:: -(-channels.size // MEDIAN_CHANNELS)]


def _array(tile: NDArray[Any], live: NDArray[np.bool_], low: float) -> NDArray[np.float32]:
    """A tile's envelope as it is delivered; see `das_gpu.backends.Outcome`."""
    array = tile.astype(np.float32)
    array[~live] = low if np.isfinite(low) else 0.0
    return array


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.complex64)
