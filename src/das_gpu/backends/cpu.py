"""The CPU backend: NumPy and SciPy, a few channels at a time so that work stays in cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import MEDIAN_CHANNELS, Chain, Outcome, Picture, grey
from das_gpu.backends.window import HostRing, detrend_narrow, detrended, gather, limits
from das_gpu.model import RingLayout, RowWindow

BATCH_CHANNELS = 64
"""Channels filtered at once: their intermediates fit a core's cache."""
BATCH_SAMPLES = 128
"""Samples whose median over channels is taken at once."""
DB_REFERENCE = 120.0
"""20*log10(1/1e-6): the level of 1 count re 1e-6 count."""
FLOOR_DB = 200.0
"""Zeros of a live channel are drawn this far under their tile's maximum."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Signal:
    """Analytic signal of a row's core, (channel, sample) complex, and which channels live."""

    values: NDArray[Any]
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Envelope:
    """Envelope of a row in dB, (channel, sample), and which channels live."""

    values: NDArray[Any]
    live: NDArray[np.bool_]


class CpuBackend:
    """`das_gpu.backends.Backend` over NumPy and SciPy, on ``threads`` threads."""

    kind: Literal["cpu"] = "cpu"

    def __init__(self, threads: int = 1, batch_channels: int = BATCH_CHANNELS) -> None:
        self.threads = threads
        self.batch_channels = batch_channels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="das-gpu-compute")

    @contextmanager
    def workspace(
        self,
        layout: RingLayout,
        chain: Chain,
        fillers: int = 1,  # noqa: ARG002 - they write to the ring itself
    ) -> Iterator[CpuWorkspace]:
        """A workspace in host memory."""
        yield CpuWorkspace(self, layout, chain)

    def each(self, step: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a step to every item on the compute threads, in order of the items."""
        if self.threads == 1:
            return [step(item) for item in items]
        return list(self._pool.map(step, items))


class CpuWorkspace:
    """`das_gpu.backends.Workspace` over NumPy and SciPy."""

    depth = 0

    def __init__(self, backend: CpuBackend, layout: RingLayout, chain: Chain) -> None:
        self.ring = HostRing(layout)
        self._chain = chain
        self._each = backend.each
        self._batch_channels = backend.batch_channels
        self._scratch = threading.local()

    def analytic(self, row: RowWindow) -> Signal:
        """Gather, detrend or take the median off, band-pass, make analytic, cut to the core."""
        chain = self._chain
        channels = row.spans[-1].k1
        signal = self._buffer("signal", (channels, chain.tile_samples), _complex(chain.dtype))
        live = np.zeros(channels, dtype=bool)

        def batch(k0: int, k1: int, v0: int, v1: int) -> None:
            if v1 <= v0:
                signal[k0:k1] = 0
                return
            held = self.ring.pieces(k0, k1, row.held0 + v0, row.held0 + v1)
            low, high = limits(held)
            live[k0:k1] = alive = np.isfinite(low) & np.isfinite(high) & (low != high)
            if chain.weights is None:
                whole = self._iir(self._window(held, v0, v1, alive))
            else:
                real = self._buffer("detrended", (k1 - k0, chain.length), chain.dtype)
                narrow = v1 - v0 == chain.length and not chain.median_first
                wide = detrend_narrow(held, low, high, real) if narrow else np.arange(k1 - k0)
                if wide.size:
                    some = [piece[wide] for piece in held]
                    real[wide] = detrended(self._window(some, v0, v1, alive[wide]))
                whole = self._spectral(real, chain.weights)
            first = chain.core0 // chain.step
            signal[k0:k1] = whole[:, first : first + chain.tile_samples]

        self._each(
            lambda item: batch(*item),
            [
                (k0, min(k0 + self._batch_channels, span.k1), span.v0, span.v1)
                for span in row.spans
                for k0 in range(span.k0, span.k1, self._batch_channels)
            ],
        )
        return Signal(signal, live)

    def _window(
        self,
        held: Sequence[NDArray[Any]],
        v0: int,
        v1: int,
        alive: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """The window in float64, mirrored where it is cut, its median off if that comes first."""
        chain = self._chain
        window = self._buffer("window", (alive.size, chain.length), np.dtype(np.float64))
        gather(held, window, v0, v1)
        window[~alive] = 0
        if chain.median_first:
            core = window[:, chain.core0 : chain.core0 + chain.step * chain.tile_samples]
            window -= np.median(core, axis=1, keepdims=True)
        return window

    def _spectral(self, real: NDArray[Any], gains: NDArray[np.float64]) -> NDArray[Any]:
        """Zero-phase band-pass, analytic signal and decimation in one pair of transforms."""
        from scipy import fft

        chain = self._chain
        spectrum = fft.rfft(real, axis=1, overwrite_x=True)
        bins, length = gains.size, chain.length // chain.step
        weights = gains.astype(chain.dtype)
        folded = self._buffer("folded", (real.shape[0], length), _complex(chain.dtype))
        head = min(bins, length)
        np.multiply(spectrum[:, :head], weights[:head], out=folded[:, :head])
        folded[:, head:] = 0
        # An analytic signal has no negative frequencies: keeping every step-th sample moves
        # each bin down by whole multiples of the kept length.
        for start in range(length, bins, length):
            stop = min(start + length, bins)
            folded[:, : stop - start] += spectrum[:, start:stop] * weights[start:stop]
        # norm="forward" leaves the inverse unscaled: the weights carry the 1/N.
        signal: NDArray[Any] = fft.ifft(folded, axis=1, norm="forward", overwrite_x=True)
        return signal

    def _iir(self, window: NDArray[np.float64]) -> NDArray[Any]:
        """Forward-backward second-order sections, decimation, then the analytic signal."""
        from scipy import fft, signal

        chain = self._chain
        filtered = signal.sosfiltfilt(
            chain.sections, window, axis=1, padtype="odd", padlen=chain.padding
        )
        kept = np.ascontiguousarray(filtered[:, :: chain.step], dtype=chain.dtype)
        length = kept.shape[1]
        spectrum = fft.rfft(kept, axis=1, overwrite_x=True)
        one_sided = np.zeros((kept.shape[0], length), dtype=spectrum.dtype)
        one_sided[:, : spectrum.shape[1]] = spectrum
        one_sided[:, 1 : (length + 1) // 2] *= 2
        analytic: NDArray[Any] = fft.ifft(one_sided, axis=1, overwrite_x=True)
        return analytic

    def common_mode(self, signal: Signal) -> NDArray[Any] | None:
        """Median by sorting, on blocks of samples turned so that channels are contiguous."""
        channels = median_channels(signal.live, self._chain.distance_m, self._chain.aperture_m)
        if not channels.size:
            return None
        values = signal.values
        common = np.empty(values.shape[1], dtype=values.dtype)
        parts = common.view(values.real.dtype).reshape(-1, 2)

        def block(start: int) -> None:
            picked = values[channels, start : start + BATCH_SAMPLES]
            for part, one in enumerate((picked.real, picked.imag)):
                parts[start : start + BATCH_SAMPLES, part] = _median(np.ascontiguousarray(one.T))

        self._each(block, range(0, values.shape[1], BATCH_SAMPLES))
        return common

    def envelope_db(self, signal: Signal, common: NDArray[Any] | None) -> Envelope:
        """Power in dB, batch by batch."""
        values = signal.values
        envelope = self._buffer("envelope", values.shape, values.real.dtype)

        def batch(k0: int) -> None:
            rows = values[k0 : k0 + self._batch_channels]
            if common is not None:
                rows -= common
            out = envelope[k0 : k0 + self._batch_channels]
            np.square(rows.real, out=out)
            out += np.square(rows.imag)
            with np.errstate(divide="ignore"):
                np.log10(out, out=out)
            out *= 10
            out += DB_REFERENCE

        self._each(batch, range(0, values.shape[0], self._batch_channels))
        return Envelope(envelope, signal.live)

    def levels(self, envelope: Envelope) -> NDArray[np.float64]:
        """Grey limits per band, (bands, 2); zeros of live channels are floored in place."""
        chain, scale = self._chain, self._chain.scale
        levels = np.full((chain.bands, 2), np.nan)

        def band(number: int) -> None:
            tile, alive = self._band(envelope, number)
            if not alive.any():
                return
            values = tile if alive.all() else tile[alive]
            low, high = values.min(), values.max()
            if low == -np.inf:
                high = high if np.isfinite(high) else values.dtype.type(FLOOR_DB)
                np.maximum(tile, high - FLOOR_DB, out=tile)
                values = tile if alive.all() else tile[alive]
                low = values.min()
            if scale.kind == "percentile":
                levels[number] = _percentiles(values, scale.low, scale.high)
            elif scale.kind == "fixed":
                levels[number] = scale.low, scale.high
            else:
                levels[number] = low, high

        self._each(band, range(chain.bands))
        return levels

    def draw(self, envelope: Envelope, levels: NDArray[np.float64]) -> Outcome:
        """One image or array per band."""
        chain, live = self._chain, envelope.live

        def band(number: int) -> NDArray[Any]:
            tile, alive = self._band(envelope, number)
            return _drawn(tile, alive, levels[number], chain.picture)

        alive = np.flatnonzero(live)
        tiles = live[: chain.bands * chain.band_channels].reshape(chain.bands, -1)
        return Outcome(
            pixels=self._each(band, range(chain.bands)),
            levels=levels,
            dead=np.count_nonzero(~tiles, axis=1),
            live=(int(alive[0]), int(alive[-1])) if alive.size else None,
        )

    def collect(self, drawn: Outcome) -> Outcome:
        """The outcome itself: it is on the host already."""
        return drawn

    def _band(self, envelope: Envelope, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        width = self._chain.band_channels
        rows = slice(number * width, (number + 1) * width)
        return envelope.values[rows], envelope.live[rows]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """This thread's reusable array of that name; its contents are undefined."""
        size = int(np.prod(shape))
        held = getattr(self._scratch, name, None)
        if held is None or held.dtype != dtype or held.size < size:
            held = np.empty(size, dtype=dtype)
            setattr(self._scratch, name, held)
        array: NDArray[Any] = held[:size].reshape(shape)
        return array


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


def _drawn(
    tile: NDArray[Any],
    live: NDArray[np.bool_],
    levels: NDArray[np.float64],
    picture: Picture | None,
) -> NDArray[Any]:
    """The image of a tile, or its array; see `das_gpu.backends.Outcome`."""
    low, high = levels
    if picture is None:
        array = tile.astype(np.float32)
        array[~live] = low if np.isfinite(low) else 0.0
        return array
    if not np.isfinite(low):
        depth = np.uint16 if picture.highest > 255 else np.uint8
        return np.zeros((picture.height, picture.width), dtype=depth)
    draw = grey.by_pillow if picture.resize == "pillow" else grey.in_float
    return draw(tile, live, low, high, picture)


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.complex64)


def _median(values: NDArray[Any]) -> NDArray[Any]:
    """Median of each row, in place; even counts give the mean of the two middle values.

    NumPy's sort uses vector instructions where its partition around two places does not: at
    1,000 values a row it is five times faster.
    """
    n = values.shape[1]
    values.sort(axis=1)
    median: NDArray[Any] = (values[:, (n - 1) // 2] + values[:, n // 2]) / 2
    return median


def _percentiles(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Two percentiles by linear interpolation between order statistics.

    Each order statistic has a partition of its own: around a single place it is vectorised.
    """
    flat = values.flatten()
    upper = _interpolated(flat, high / 100 * (flat.size - 1))
    return _interpolated(flat, low / 100 * (flat.size - 1)), upper


def _interpolated(flat: NDArray[Any], place: float) -> float:
    """Order statistic at a fractional place of ``flat``, which is partitioned there."""
    whole = int(place)
    flat.partition(whole)
    below = float(flat[whole])
    if whole + 1 == flat.size:
        return below
    return below + (place - whole) * (float(flat[whole + 1 :].min()) - below)
