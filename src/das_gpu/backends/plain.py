"""The loops of a tile row in NumPy and SciPy: always there, and what compiled ones are held to.

See `das_gpu.backends.cpu.Steps` for what each does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Chain, window
from das_gpu.backends.grey import by_pillow, in_float
from das_gpu.backends.window import BandPass

__all__ = [
    "BATCH_CHANNELS",
    "band_pass",
    "by_pillow",
    "centre",
    "envelope_db",
    "in_float",
    "medians",
]

NARROW_COUNTS = 1 << 17
"""A window's range up to which its trend is taken off in float32: rounding is then under
0.01 count."""
BATCH_CHANNELS = 128
"""Channels transformed by one call of SciPy."""
BLOCK_CHANNELS = 64
"""Channels that one call of NumPy works on: more would not stay in a core's cache, fewer would
keep the interpreter's lock busy."""
DB_PER_NEPER = 20 / math.log(10)
"""NumPy's natural logarithm has vector instructions on every machine; its others take up to
seven times as long."""
DB_REFERENCE = 120.0
"""20*log10(1/1e-6): the level of 1 count re 1e-6 count."""


class Detrend:
    """Takes the line through each channel's first and last sample off whole windows.

    Without going through float64 where integers stay within `NARROW_COUNTS`: differences to a
    channel's first sample are then exact integers, and exact in float32 too. Threads share it.

    Parameters
    ----------
    length : int
        Samples of a window.
    dtype : numpy.dtype
        float32 or float64: of what it leaves.
    """

    def __init__(self, length: int, dtype: np.dtype[Any]) -> None:
        self._ramp = np.arange(length, dtype=dtype)
        self._buffers = window.Buffers()

    def apply(self, pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        """Fill ``out`` (channel, sample) from pieces of its windows; which channels live."""
        live = np.empty(out.shape[0], np.bool_)
        for k in range(0, out.shape[0], BLOCK_CHANNELS):
            rows = slice(k, k + BLOCK_CHANNELS)
            live[rows] = self._block([piece[rows] for piece in pieces], out[rows])
        return live

    def _block(self, pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        if pieces[0].dtype.kind != "i":
            low, high = window.limits(pieces)
            live: NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high) & (low != high)
            wide = live
        else:
            low, high = self._narrow(pieces, out)
            live = low != high
            # Beyond 32 bits differences wrap around, and may look small where samples lie near
            # both ends of that range.
            near_end = np.abs(pieces[0][:, 0].astype(np.int64)) >= 2**31 - NARROW_COUNTS
            wide = (high - low > NARROW_COUNTS) | near_end
        if wide.any():
            some = [piece[wide] for piece in pieces]
            out[wide] = window.detrended(np.concatenate(some, axis=1, dtype=np.float64))
        out[~live] = 0
        return live

    def _narrow(
        self, pieces: Sequence[NDArray[Any]], out: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fill ``out`` from integers; the least and the greatest difference to the first."""
        differences = self._buffers.array("differences", out.shape, np.dtype(np.int32))
        line = self._buffers.array("line", out.shape, out.dtype)
        first, last = pieces[0][:, :1], pieces[-1][:, -1:]
        position = 0
        for piece in pieces:
            part = differences[:, position : position + piece.shape[1]]
            np.subtract(piece, first, out=part, dtype=np.int32)
            position += piece.shape[1]
        slope = (last.astype(np.float64) - first) / (self._ramp.size - 1)
        np.multiply(slope.astype(out.dtype), self._ramp, out=line)
        out[...] = differences
        out -= line
        return differences.min(axis=1).astype(np.int64), differences.max(axis=1).astype(np.int64)


def band_pass(chain: Chain) -> BandPass:
    """By SciPy's transforms, or by its `sosfiltfilt` and transforms."""
    if chain.weights is not None:
        return _spectral(chain, chain.weights)
    return _recursive(chain)


def _spectral(chain: Chain, gains: NDArray[np.float64]) -> BandPass:
    """One pair of SciPy's transforms does the band-pass, the analytic signal, the decimation."""
    from scipy import fft

    detrend, buffers = Detrend(chain.length, chain.dtype), window.Buffers()
    core = slice(chain.core0 // chain.step, chain.core0 // chain.step + chain.tile_samples)
    weights, kept = gains.astype(chain.dtype), chain.length // chain.step

    def band_pass(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        channels = out.shape[0]
        real = buffers.array("detrended", (channels, chain.length), chain.dtype)
        live = detrend.apply(pieces, real)
        folded = fold(fft.rfft(real, axis=1, overwrite_x=True), weights, kept)
        # norm="forward" leaves the inverse unscaled: the gains carry the 1/N.
        out[...] = fft.ifft(folded, axis=1, norm="forward", overwrite_x=True)[:, core]
        return live

    return band_pass


def fold(spectrum: NDArray[Any], weights: NDArray[Any], length: int) -> NDArray[Any]:
    """One-sided spectrum times its weights, of its precision: (channel, ``length`` kept bins).

    An analytic signal has no negative frequencies, so keeping every step-th sample moves each
    bin down by whole multiples of the kept length, where they add; what none falls on is zero.
    The spectrum is written over, and where it is long enough the result lies in it.
    """
    # Real and imaginary parts as they lie: NumPy would make the weights complex first.
    parts, twice = spectrum.view(weights.dtype), weights.repeat(2)
    bins, length = 2 * weights.size, 2 * length
    parts[:, :bins] *= twice
    parts[:, bins:] = 0
    for start in range(length, bins, length):
        beyond = parts[:, start : start + length]
        parts[:, : beyond.shape[1]] += beyond
    if parts.shape[1] < length:
        parts = np.pad(parts, ((0, 0), (0, length - parts.shape[1])))
    return parts.view(spectrum.dtype)[:, : length // 2]


def _recursive(chain: Chain) -> BandPass:
    """SciPy's `sosfiltfilt`, decimation, then the analytic signal by a pair of transforms."""
    from scipy import fft, signal

    core = slice(chain.core0 // chain.step, chain.core0 // chain.step + chain.tile_samples)

    def band_pass(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        (counts,) = pieces
        filtered = signal.sosfiltfilt(
            chain.sections, counts, axis=1, padtype="odd", padlen=chain.padding
        )
        kept = np.ascontiguousarray(filtered[:, :: chain.step], dtype=chain.dtype)
        length = kept.shape[1]
        spectrum = fft.rfft(kept, axis=1, overwrite_x=True)
        one_sided = np.zeros((kept.shape[0], length), dtype=spectrum.dtype)
        one_sided[:, : spectrum.shape[1]] = spectrum
        one_sided[:, 1 : (length + 1) // 2] *= 2
        out[...] = fft.ifft(one_sided, axis=1, overwrite_x=True)[:, core]
        return np.asarray(counts.any(axis=1))

    return band_pass


def centre(
    samples: NDArray[np.float64], known: tuple[int, int], core: tuple[int, int] | None
) -> NDArray[np.bool_]:
    """By NumPy's median."""
    low, high = window.limits([samples[:, known[0] : known[1]]])
    live: NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high) & (low != high)
    samples[~live] = 0
    if core is not None:
        samples -= np.median(samples[:, core[0] : core[1]], axis=1, keepdims=True)
    return live


def medians(
    values: NDArray[Any], channels: NDArray[np.intp], start: int, stop: int, out: NDArray[Any]
) -> None:
    """By sorting, turned so that channels are contiguous.

    NumPy's sort uses vector instructions where its partition around two places does not: at
    1,000 values a sample it is five times faster.
    """
    real = values.real.dtype
    turned = np.ascontiguousarray(values.view(real)[channels, 2 * start : 2 * stop].T)
    turned.sort(axis=1)
    n = channels.size
    out.view(real)[2 * start : 2 * stop] = (turned[:, (n - 1) // 2] + turned[:, n // 2]) / 2


def envelope_db(
    values: NDArray[Any],
    common: NDArray[Any] | None,
    out: NDArray[Any],
    lowest: NDArray[Any],
    highest: NDArray[Any],
) -> None:
    """A few channels at a time, real and imaginary parts as they lie, side by side."""
    parts = values.view(out.dtype)
    away = None if common is None else common.view(out.dtype)
    room = np.empty((min(BLOCK_CHANNELS, len(parts)), parts.shape[1]), out.dtype)
    for k in range(0, len(parts), BLOCK_CHANNELS):
        rows = slice(k, k + BLOCK_CHANNELS)
        rest, levels = room[: len(parts[rows])], out[rows]
        np.subtract(parts[rows], 0 if away is None else away, out=rest)
        np.abs(rest.view(values.dtype), out=levels)
        with np.errstate(divide="ignore"):
            np.log(levels, out=levels)
        levels *= DB_PER_NEPER
        levels += DB_REFERENCE
        levels.min(axis=1, out=lowest[rows])
        levels.max(axis=1, out=highest[rows])
