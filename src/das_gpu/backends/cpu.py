"""The CPU backend: NumPy and SciPy, a few channels at a time so that work stays in cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array, Chain, Picture, Ring, grey
from das_gpu.model import RowWindow
from das_gpu.recipe import Scale

BATCH_CHANNELS = 64
"""Channels filtered at once: their intermediates fit a core's cache."""
BATCH_SAMPLES = 128
"""Samples whose median over channels is taken at once."""
DB_REFERENCE = 120.0
"""20*log10(1/1e-6): the level of 1 count re 1e-6 count."""
NARROW_COUNTS = 1 << 17
"""A window's range up to which its trend is taken off in float32: rounding is then under
0.01 count."""
FLOOR_DB = 200.0
"""Zeros of a live channel are drawn this far under their tile's maximum."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class HostRing:
    """A ring in host memory, (kept channel, capacity), in the archive's own type."""

    def __init__(self, channels: int, capacity: int, dtype: np.dtype[Any]) -> None:
        self._samples = np.zeros((channels, capacity), dtype=dtype)

    def store(self, block: NDArray[Any], k0: int, held0: int) -> None:
        """See `das_gpu.backends.Ring`."""
        rows = self._samples[k0 : k0 + block.shape[0]]
        done = 0
        for part in self._parts(held0, held0 + block.shape[1]):
            width = part.stop - part.start
            rows[:, part] = block[:, done : done + width]
            done += width

    def pieces(self, k0: int, k1: int, held0: int, held1: int) -> list[NDArray[Any]]:
        """Views of channels ``[k0, k1)``, samples ``[held0, held1)``, in one or two pieces."""
        return [self._samples[k0:k1, part] for part in self._parts(held0, held1)]

    def _parts(self, held0: int, held1: int) -> list[slice]:
        capacity = self._samples.shape[1]
        if held1 - held0 > capacity:
            raise ValueError(f"{held1 - held0} samples do not fit a ring of {capacity}")
        first = held0 % capacity
        last = first + held1 - held0
        if last <= capacity:
            return [slice(first, last)]
        return [slice(first, capacity), slice(0, last - capacity)]


class CpuBackend:
    """`das_gpu.backends.Backend` over NumPy and SciPy, on ``threads`` threads."""

    kind: Literal["cpu"] = "cpu"

    def __init__(self, threads: int = 1, batch_channels: int = BATCH_CHANNELS) -> None:
        self.threads = threads
        self._batch_channels = batch_channels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="das-gpu-compute")
        self._scratch = threading.local()

    def ring(self, channels: int, capacity: int, dtype: np.dtype[Any]) -> HostRing:
        """A ring in host memory."""
        return HostRing(channels, capacity, dtype)

    def analytic(self, ring: Ring, row: RowWindow, chain: Chain) -> tuple[Array, NDArray[np.bool_]]:
        """Gather, detrend or take the median off, band-pass, make analytic, cut to the core."""
        if not isinstance(ring, HostRing):
            raise TypeError("the CPU backend reads its own ring")
        channels = row.spans[-1].k1
        signal = self._buffer("signal", (channels, chain.tile_samples), _complex(chain.dtype))
        live = np.zeros(channels, dtype=bool)

        def batch(k0: int, k1: int, v0: int, v1: int) -> None:
            if v1 <= v0:
                signal[k0:k1] = 0
                return
            held = ring.pieces(k0, k1, row.held0 + v0, row.held0 + v1)
            low, high = _range(held)
            live[k0:k1] = alive = np.isfinite(low) & np.isfinite(high) & (low != high)
            if chain.weights is None:
                whole = self._iir(self._window(held, v0, v1, alive, chain), chain)
            else:
                real = self._buffer("detrended", (k1 - k0, chain.length), chain.dtype)
                narrow = v1 - v0 == chain.length and not chain.median_first
                wide = _detrend_narrow(held, low, high, real) if narrow else np.arange(k1 - k0)
                if wide.size:
                    some = [piece[wide] for piece in held]
                    window = self._window(some, v0, v1, alive[wide], chain)
                    real[wide] = _detrended(window)
                whole = self._spectral(real, chain, chain.weights)
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
        return signal, live

    def _window(
        self,
        held: Sequence[NDArray[Any]],
        v0: int,
        v1: int,
        alive: NDArray[np.bool_],
        chain: Chain,
    ) -> NDArray[np.float64]:
        """The window in float64, mirrored where it is cut, its median off if that comes first."""
        window = self._buffer("window", (alive.size, chain.length), np.dtype(np.float64))
        _gather(held, window, v0, v1)
        window[~alive] = 0
        if chain.median_first:
            core = window[:, chain.core0 : chain.core0 + chain.step * chain.tile_samples]
            window -= np.median(core, axis=1, keepdims=True)
        return window

    def _spectral(self, real: NDArray[Any], chain: Chain, gains: NDArray[np.float64]) -> Array:
        """Zero-phase band-pass, analytic signal and decimation in one pair of transforms."""
        from scipy import fft

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
        return fft.ifft(folded, axis=1, norm="forward", overwrite_x=True)

    def _iir(self, window: NDArray[np.float64], chain: Chain) -> Array:
        """Forward-backward second-order sections, decimation, then the analytic signal."""
        from scipy import fft, signal

        filtered = signal.sosfiltfilt(
            chain.sections, window, axis=1, padtype="odd", padlen=chain.padding
        )
        kept = np.ascontiguousarray(filtered[:, :: chain.step], dtype=chain.dtype)
        length = kept.shape[1]
        spectrum = fft.rfft(kept, axis=1, overwrite_x=True)
        one_sided = np.zeros((kept.shape[0], length), dtype=spectrum.dtype)
        one_sided[:, : spectrum.shape[1]] = spectrum
        one_sided[:, 1 : (length + 1) // 2] *= 2
        return fft.ifft(one_sided, axis=1, overwrite_x=True)

    def common_mode(self, signal: Array, channels: NDArray[np.intp]) -> Array:
        """Median by partition, on blocks of samples turned so that channels are contiguous."""
        common = np.empty(signal.shape[1], dtype=signal.dtype)
        parts = common.view(signal.real.dtype).reshape(-1, 2)

        def block(start: int) -> None:
            picked = signal[channels, start : start + BATCH_SAMPLES]
            for part, values in enumerate((picked.real, picked.imag)):
                parts[start : start + BATCH_SAMPLES, part] = _median(np.ascontiguousarray(values.T))

        self._each(block, range(0, signal.shape[1], BATCH_SAMPLES))
        return common

    def envelope_db(self, signal: Array, common: Array | None) -> Array:
        """Power in dB, batch by batch."""
        envelope = self._buffer("envelope", signal.shape, signal.real.dtype)

        def batch(k0: int) -> None:
            rows = signal[k0 : k0 + self._batch_channels]
            if common is not None:
                rows -= common
            out = envelope[k0 : k0 + self._batch_channels]
            np.square(rows.real, out=out)
            out += np.square(rows.imag)
            with np.errstate(divide="ignore"):
                np.log10(out, out=out)
            out *= 10
            out += DB_REFERENCE

        self._each(batch, range(0, signal.shape[0], self._batch_channels))
        return envelope

    def levels(
        self, envelope: Array, live: NDArray[np.bool_], chain: Chain, scale: Scale
    ) -> NDArray[np.float64]:
        """Grey limits per band."""
        levels = np.full((chain.bands, 2), np.nan)

        def band(number: int) -> None:
            rows = slice(number * chain.band_channels, (number + 1) * chain.band_channels)
            alive = live[rows]
            if not alive.any():
                return
            tile = envelope[rows]
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

    def grey(
        self,
        envelope: Array,
        live: NDArray[np.bool_],
        levels: NDArray[np.float64],
        chain: Chain,
        picture: Picture,
    ) -> Sequence[NDArray[Any]]:
        """One image per band."""
        draw = grey.by_pillow if picture.resize == "pillow" else grey.in_float

        def band(number: int) -> NDArray[Any]:
            rows = slice(number * chain.band_channels, (number + 1) * chain.band_channels)
            low, high = levels[number]
            if not np.isfinite(low):
                depth = np.uint16 if picture.highest > 255 else np.uint8
                return np.zeros((picture.height, picture.width), dtype=depth)
            return draw(envelope[rows], live[rows], low, high, picture)

        return self._each(band, range(chain.bands))

    def to_host(self, envelope: Array) -> NDArray[np.floating[Any]]:
        """The envelope itself: it is on the host already."""
        array: NDArray[np.floating[Any]] = envelope
        return array

    def _each(self, step: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a step to every item on the compute threads, in order of the items."""
        if self.threads == 1:
            return [step(item) for item in items]
        return list(self._pool.map(step, items))

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """This thread's reusable array of that name; its contents are undefined."""
        size = int(np.prod(shape))
        held = getattr(self._scratch, name, None)
        if held is None or held.dtype != dtype or held.size < size:
            held = np.empty(size, dtype=dtype)
            setattr(self._scratch, name, held)
        array: NDArray[Any] = held[:size].reshape(shape)
        return array


def _complex(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.complex64)


def _range(pieces: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lowest and highest sample of each channel; NaN where one is NaN."""
    low = np.min([piece.min(axis=1) for piece in pieces], axis=0)
    high = np.max([piece.max(axis=1) for piece in pieces], axis=0)
    return low, high


def _gather(pieces: Sequence[NDArray[Any]], window: NDArray[np.float64], v0: int, v1: int) -> None:
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


def _detrended(window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take off each channel's straight line through its first and its last sample, in place."""
    first = window[:, :1].copy()
    slope = (window[:, -1:] - first) / (window.shape[1] - 1)
    window -= first
    window -= slope * np.arange(window.shape[1])
    return window


def _detrend_narrow(
    pieces: Sequence[NDArray[Any]], low: NDArray[Any], high: NDArray[Any], out: NDArray[Any]
) -> NDArray[np.intp]:
    """Detrend whole windows of integers without going through float64.

    Differences to the first sample are exact integers, and exact in float32 too as long as a
    channel stays within `NARROW_COUNTS`. Returns the channels that do not, left undone.
    """
    if low.dtype.kind != "i":
        return np.arange(low.size)
    first, last = pieces[0][:, :1], pieces[-1][:, -1]
    position = 0
    for piece in pieces:
        part = out[:, position : position + piece.shape[1]]
        part[...] = np.subtract(piece, first, dtype=np.int32)
        position += piece.shape[1]
    slope = (last.astype(np.float64) - first[:, 0]) / (out.shape[1] - 1)
    out -= slope.astype(out.dtype)[:, None] * np.arange(out.shape[1], dtype=out.dtype)
    return np.flatnonzero(high.astype(np.float64) - low > NARROW_COUNTS)


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
