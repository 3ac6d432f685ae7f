"""The loops of a tile row in NumPy and SciPy: always there, and what compiled ones are held to.

See `das_gpu.backends.cpu.Steps` for what each does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Chain, window
from das_gpu.backends.grey import by_pillow, in_float
from das_gpu.backends.window import BandPass

__all__ = ["band_pass", "by_pillow", "centre", "envelope_db", "in_float", "medians"]

NARROW_COUNTS = 1 << 17
"""A window's range up to which its trend is taken off in float32: rounding is then under
0.01 count."""
MEDIAN_SAMPLES = 128
"""Samples whose median over channels is taken at once."""
LEVEL_CHANNELS = 16
"""Channels whose common mode is taken off at once: the differences stay in cache."""
DB_REFERENCE = 120.0
"""20*log10(1/1e-6): the level of 1 count re 1e-6 count."""


def detrended(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
    """Samples of whole windows less the line through each channel's ends; which channels live.

    Without going through float64 where integers stay within `NARROW_COUNTS`: differences to a
    channel's first sample are then exact integers, and exact in float32 too.
    """
    live = np.empty(out.shape[0], np.bool_)
    for k in range(0, out.shape[0], LEVEL_CHANNELS):
        rows = slice(k, k + LEVEL_CHANNELS)
        live[rows] = _detrended([piece[rows] for piece in pieces], out[rows])
    return live


def _detrended(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
    """A few channels, which stay in cache."""
    low, high = window.limits(pieces)
    live: NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high) & (low != high)
    if low.dtype.kind == "i":
        _detrend_narrow(pieces, out)
        wide = np.flatnonzero(high.astype(np.float64) - low > NARROW_COUNTS)
    else:
        wide = np.flatnonzero(live)
    if wide.size:
        some = [piece[wide] for piece in pieces]
        out[wide] = window.detrended(np.concatenate(some, axis=1, dtype=np.float64))
    out[~live] = 0
    return live


def _detrend_narrow(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
    first, last = pieces[0][:, :1], pieces[-1][:, -1]
    position = 0
    for piece in pieces:
        part = out[:, position : position + piece.shape[1]]
        part[...] = np.subtract(piece, first, dtype=np.int32)
        position += piece.shape[1]
    slope = (last.astype(np.float64) - first[:, 0]) / (out.shape[1] - 1)
    out -= slope.astype(out.dtype)[:, None] * np.arange(out.shape[1], dtype=out.dtype)


def band_pass(chain: Chain) -> BandPass:
    """By SciPy's transforms, or by its `sosfiltfilt` and transforms."""
    if chain.weights is not None:
        return _spectral(chain, chain.weights)
    return _recursive(chain)


def _spectral(chain: Chain, gains: NDArray[np.float64]) -> BandPass:
    """One pair of SciPy's transforms does the band-pass, the analytic signal, the decimation."""
    from scipy import fft

    buffers = window.Buffers()
    complex_type = np.result_type(chain.dtype, np.complex64)
    core = slice(chain.core0 // chain.step, chain.core0 // chain.step + chain.tile_samples)

    def band_pass(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        channels = out.shape[0]
        real = buffers.array("detrended", (channels, chain.length), chain.dtype)
        live = detrended(pieces, real)
        spectrum = fft.rfft(real, axis=1, overwrite_x=True)
        kept = (channels, chain.length // chain.step)
        folded = buffers.array("folded", kept, complex_type)
        fold(spectrum, gains, folded)
        # norm="forward" leaves the inverse unscaled: the gains carry the 1/N.
        out[...] = fft.ifft(folded, axis=1, norm="forward", overwrite_x=True)[:, core]
        return live

    return band_pass


def fold(spectrum: NDArray[Any], gains: NDArray[np.float64], out: NDArray[Any]) -> None:
    """One-sided spectrum times its gains, to ``out`` (channel, kept bin).

    An analytic signal has no negative frequencies, so keeping every step-th sample moves each
    bin down by whole multiples of the kept length, where they add; what none falls on is zero.
    """
    bins, length = gains.size, out.shape[1]
    weights = gains.astype(out.real.dtype)
    head = min(bins, length)
    np.multiply(spectrum[:, :head], weights[:head], out=out[:, :head])
    out[:, head:] = 0
    for start in range(length, bins, length):
        stop = min(start + length, bins)
        out[:, : stop - start] += spectrum[:, start:stop] * weights[start:stop]


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
    """By sorting, on blocks of samples turned so that channels are contiguous.

    NumPy's sort uses vector instructions where its partition around two places does not: at
    1,000 values a sample it is five times faster.
    """
    parts = out.view(values.real.dtype).reshape(-1, 2)
    n = channels.size
    for begin in range(start, stop, MEDIAN_SAMPLES):
        end = min(begin + MEDIAN_SAMPLES, stop)
        picked = values[channels, begin:end]
        for part, one in enumerate((picked.real, picked.imag)):
            turned = np.ascontiguousarray(one.T)
            turned.sort(axis=1)
            parts[begin:end, part] = (turned[:, (n - 1) // 2] + turned[:, n // 2]) / 2


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
    room = np.empty((min(LEVEL_CHANNELS, len(parts)), parts.shape[1]), out.dtype)
    for k in range(0, len(parts), LEVEL_CHANNELS):
        rows = parts[k : k + LEVEL_CHANNELS]
        power = room[: len(rows)]
        np.subtract(rows, 0 if away is None else away, out=power)
        np.square(power, out=power)
        levels = out[k : k + LEVEL_CHANNELS]
        np.add(power[:, ::2], power[:, 1::2], out=levels)
        with np.errstate(divide="ignore"):
            np.log10(levels, out=levels)
        levels *= 10
        levels += DB_REFERENCE
        levels.min(axis=1, out=lowest[k : k + LEVEL_CHANNELS])
        levels.max(axis=1, out=highest[k : k + LEVEL_CHANNELS])
