"""Filter design on the host, in float64: what every backend is handed as plain numbers.

The band-pass is the digital Butterworth filter that ``scipy.signal.butter(order, [low,
high], "bandpass", fs=rate)`` designs. SciPy is imported only where second-order sections
are asked for; everything else follows from the closed form of the squared response, because
importing ``scipy.signal`` costs more time than processing several tiles.

A band-pass run forwards and backwards has no phase and the response ``|H(f)|**2``. "Down by
x dB" therefore always means ``-20 * log10(|H(f)|**2)`` here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from das_gpu.butterworth import band_pass_sections
from das_gpu.errors import RecipeError

Method: TypeAlias = Literal["spectral", "iir"]

TRIM_RELATIVE = 1e-12
"""Spectral weights below this part of the largest are zero (240 dB down)."""

_LARGEST_STEP = 10_000
_LONGEST_GRID = 1 << 20
_SPECTRUM_OVERSAMPLING = 2
_TRUNCATION = 1e-4
_BICUBIC_SUPPORT = 2.0
_BICUBIC_A = -0.5


@dataclass(frozen=True)
class BandPass:
    """A Butterworth band-pass at the sampling rate it is applied at.

    Attributes
    ----------
    low_hz, high_hz : float
        Corner frequencies, where one pass is down 3 dB and the zero-phase response 6 dB.
    order : int
        Order of the low-pass prototype, as ``scipy.signal.butter`` counts it; the band-pass
        has twice as many poles.
    rate_hz : float
        Sampling rate of the samples that are filtered.

    Raises
    ------
    RecipeError
        When the band is not inside (0, rate/2), or the order is below 1.
    """

    low_hz: float
    high_hz: float
    order: int
    rate_hz: float

    def __post_init__(self) -> None:
        nyquist_hz = self.rate_hz / 2
        if not (math.isfinite(nyquist_hz) and 0 < self.low_hz < self.high_hz < nyquist_hz):
            raise RecipeError(
                f"A band-pass from {self.low_hz:g} to {self.high_hz:g} Hz cannot be designed at "
                f"{self.rate_hz:g} samples per second: the corners must ascend between 0 and half "
                f"the rate, {nyquist_hz:g} Hz. Change filter.low_hz, filter.high_hz or "
                f"selection.time_step."
            )
        if self.order < 1:
            raise RecipeError(f"The filter's order is {self.order}; it must be at least 1.")

    @property
    def n_sections(self) -> int:
        """Second-order sections of the design: one per order of the prototype."""
        return self.order


def sections(band: BandPass) -> NDArray[np.float64]:
    """Design second-order sections for forward-backward filtering.

    Parameters
    ----------
    band : BandPass
        The design; its rate is the one the sections are applied at.

    Returns
    -------
    (n_sections, 6) float64 array
        ``b0 b1 b2 1 a1 a2`` a row, as ``scipy.signal.sosfiltfilt`` takes them.
    """
    return band_pass_sections(*_warped(band), band.order)


def padding(band: BandPass) -> int:
    """Count the samples of odd extension at each end, as ``scipy.signal.sosfiltfilt`` does."""
    return 3 * (2 * band.n_sections + 1)


def squared_response(band: BandPass, frequency_hz: ArrayLike) -> NDArray[np.float64]:
    """Response ``|H(f)|**2`` of the digital band-pass, in closed form.

    The bilinear transform maps f to the analogue frequency ``W = 2*rate*tan(pi*f/rate)``; with
    both corners prewarped the same way, ``W0**2 = W_low*W_high`` and ``B = W_high - W_low``,
    ``|H|**2 = 1 / (1 + ((W**2 - W0**2) / (B*W))**(2*order))``
    (Oppenheim and Schafer, Discrete-Time Signal Processing, chapter 7). The factor 2*rate
    cancels.

    Parameters
    ----------
    band : BandPass
        The design.
    frequency_hz : array_like
        Any frequencies; the response is even and repeats with the sampling rate.

    Returns
    -------
    float64 array
        Same shape as `frequency_hz`, between 0 and 1; exactly 0 at 0 Hz and at half the rate.
    """
    cycles = np.asarray(frequency_hz, dtype=np.float64) / band.rate_hz
    cycles = np.abs(cycles - np.round(cycles))
    low, high = _warped(band)
    blocked = (cycles == 0.0) | (cycles == 0.5)
    warped = np.tan(np.pi * np.where(blocked, 0.25, cycles))
    # Far outside the band the power overflows; 1 / (1 + inf) is the 0 that is meant.
    with np.errstate(over="ignore"):
        prototype = (warped - low * high / warped) / (high - low)
        response = 1.0 / (1.0 + prototype ** (2 * band.order))
    return np.asarray(np.where(blocked, 0.0, response), dtype=np.float64)


def spectral_weights(band: BandPass, n: int, step: int) -> NDArray[np.float64]:
    """Weights that turn the rfft of a window into its filtered, decimated analytic signal.

    With ``X = rfft(window)``, ``Y = X[:len(w)] * w`` folded modulo ``m = n // step`` (bin j is
    added to bin j mod m) and an **unnormalised** inverse complex FFT of length m, the result is
    the analytic signal of the zero-phase filtered window at every `step`-th sample. The weights
    are ``2*|H|**2 / n`` between 0 and half the rate and 0 at both ends; the 1/n is the inverse
    transform's own factor, which stays 1/n and does not become 1/m, because the sum still runs
    over the spectrum of n samples.

    Parameters
    ----------
    band : BandPass
        The design, at the full rate.
    n : int
        Samples in the window; a multiple of `step`.
    step : int
        Every `step`-th sample is kept.

    Returns
    -------
    float64 array, at most ``n//2 + 1`` long
        One weight per rfft bin from 0 on; trailing bins below `TRIM_RELATIVE` of the largest
        weight are left out.

    Raises
    ------
    ValueError
        When `n` is not a positive multiple of `step`.
    """
    if step < 1 or n < 1 or n % step:
        raise ValueError(f"A window of {n} samples is no positive multiple of the step {step}.")
    frequency_hz = np.arange(n // 2 + 1) * (band.rate_hz / n)
    weights = (2.0 / n) * squared_response(band, frequency_hz)
    kept = np.flatnonzero(weights > TRIM_RELATIVE * weights.max())
    return weights[: int(kept[-1]) + 1 if kept.size else 1].copy()


@lru_cache(maxsize=64)
def fall_time_s(band: BandPass, drop_db: float = 140.0) -> float:
    """Time after which the zero-phase impulse response has died away.

    The envelope is the magnitude of the inverse transform of ``|H|**2`` over the positive
    frequencies. It is sampled on a grid that is doubled until the envelope falls within its
    first quarter, so that neither its length nor its wrap-around shows.

    Parameters
    ----------
    band : BandPass
        The design.
    drop_db : float
        How far under its maximum the envelope must stay, above 0 and at most 240.

    Returns
    -------
    float
        Seconds on either side of the impulse.

    Raises
    ------
    RecipeError
        When the filter rings longer than can be computed or sensibly be read as a halo.
    ValueError
        When `drop_db` is outside its range.
    """
    if not 0 < drop_db <= 240:
        raise ValueError(f"drop_db is {drop_db:g}; it must be above 0 and at most 240.")
    limit = 10.0 ** (-drop_db / 20)
    # A frequency grid only as wide as the response is: a low band needs minutes of time grid,
    # but at its own bandwidth instead of at the sampling rate.
    widest_hz = _upper_edge_hz(band, _TRUNCATION * limit)
    length_s = 8.0 / min(band.low_hz, band.high_hz - band.low_hz)
    while True:
        n_bins = math.ceil(widest_hz * length_s) + 1
        n_grid = 1 << (_SPECTRUM_OVERSAMPLING * n_bins - 1).bit_length()
        if n_grid > _LONGEST_GRID:
            raise RecipeError(
                f"The band-pass from {band.low_hz:g} to {band.high_hz:g} Hz of order {band.order} "
                f"rings for more than {length_s / 8:.3g} s before it is {drop_db:g} dB down, too "
                f"long for a halo. Raise filter.low_hz, widen the band, or give filter.halo_s."
            )
        bins_hz = np.minimum(np.arange(n_bins) / length_s, band.rate_hz / 2)
        envelope = np.abs(np.fft.ifft(squared_response(band, bins_hz), n_grid))[: n_grid // 2]
        last = int(np.flatnonzero(envelope > limit * envelope[0])[-1])
        if last < n_grid // 4:
            return (last + 1) * length_s / n_grid
        length_s *= 2


def alias_rejection_db(band: BandPass, step: int, method: Method) -> float:
    """How far down the strongest frequency is that decimation would fold into the band.

    Samples are filtered at the full rate and every `step`-th one is kept. ``spectral`` makes
    the analytic signal, which has no negative frequencies, so f folds to ``f - k*rate/step``
    only; ``iir`` keeps a real signal, whose mirror image folds to ``k*rate/step - f`` as well.

    Parameters
    ----------
    band : BandPass
        The design, at the full rate.
    step : int
        Every `step`-th sample is kept, at least 1.
    method : {"spectral", "iir"}
        How the filter is applied.

    Returns
    -------
    float
        Rejection in dB, 0 when the band folds onto itself, ``inf`` when nothing folds.
    """
    if step == 1:
        return math.inf
    low_hz, high_hz, rate_out_hz = band.low_hz, band.high_hz, band.rate_hz / step
    # The response rises to the band's centre and falls after it, so only the images next to
    # the band can be the strongest.
    images = [(low_hz + k * rate_out_hz, high_hz + k * rate_out_hz) for k in (-1, 1)]
    if method == "iir":
        nearest = math.floor((low_hz + high_hz) / rate_out_hz)
        images += [
            (k * rate_out_hz - high_hz, k * rate_out_hz - low_hz)
            for k in range(nearest - 1, nearest + 3)
            if k > 0
        ]
    return min((_least_attenuation_db(band, *image) for image in images), default=math.inf)


def largest_step(band: BandPass, method: Method, limit_db: float = 60.0) -> int:
    """Largest step, up to 10,000, whose folded frequencies are rejected by `limit_db` or more.

    Parameters
    ----------
    band : BandPass
        The design, at the full rate.
    method : {"spectral", "iir"}
        How the filter is applied.
    limit_db : float
        Rejection asked for, above 0.

    Returns
    -------
    int
        At least 1: a step of 1 folds nothing.
    """
    # Kept samples must come at least as fast as the band is wide, or it folds onto itself.
    widest = min(_LARGEST_STEP, math.floor(band.rate_hz / (band.high_hz - band.low_hz)))
    return next(
        step for step in range(widest, 0, -1) if alias_rejection_db(band, step, method) >= limit_db
    )


def fast_length(n: int) -> int:
    """Smallest length of at least `n` (and 1) that is a product of the primes 2, 3 and 5."""
    best = 1 << max(0, n - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            twos = 1 << max(0, -(-n // threes) - 1).bit_length()
            best = min(best, twos * threes)
            threes *= 3
        fives *= 5
    return best


def resize_weights(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Weights of Pillow's antialiased bicubic resize along one axis.

    Keys' cubic kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981), widened by ``n_in / n_out``
    when the axis shrinks; bounds are rounded and the weights normalised as Pillow's
    ``precompute_coeffs`` (libImaging/Resample.c) does.

    Parameters
    ----------
    n_in, n_out : int
        Lengths of the axis before and after, at least 1.

    Returns
    -------
    bounds : (n_out, 2) intp array
        Half-open range of input positions that enter each output position.
    weights : (n_out, ksize) float64 array
        Weight ``weights[i, j]`` belongs to input ``bounds[i, 0] + j``; each row sums to 1 and
        is 0 beyond its range.
    """
    ratio = n_in / n_out
    widening = max(1.0, ratio)
    support = _BICUBIC_SUPPORT * widening
    centre = (np.arange(n_out) + 0.5) * ratio
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.intp), 0)
    stop = np.minimum(np.trunc(centre + support + 0.5).astype(np.intp), n_in)
    position = np.arange(2 * math.ceil(support) + 1)
    offset = position[None, :] + first[:, None] - centre[:, None] + 0.5
    inside = position[None, :] < (stop - first)[:, None]
    weights = np.where(inside, _bicubic(offset * (1.0 / widening)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.stack([first, stop], axis=1), weights


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((_BICUBIC_A + 2.0) * x - (_BICUBIC_A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _BICUBIC_A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _warped(band: BandPass) -> tuple[float, float]:
    """Both corners prewarped by the bilinear transform, in units of twice the rate."""
    low = math.tan(math.pi * band.low_hz / band.rate_hz)
    high = math.tan(math.pi * band.high_hz / band.rate_hz)
    return low, high


def _upper_edge_hz(band: BandPass, response: float) -> float:
    """Frequency above which the squared response stays under `response`."""
    low, high = _warped(band)
    reach = response ** (-1 / (2 * band.order)) * (high - low)
    edge = (reach + math.sqrt(reach * reach + 4 * low * high)) / 2
    return band.rate_hz / math.pi * math.atan(edge)


def _least_attenuation_db(band: BandPass, from_hz: float, to_hz: float) -> float:
    """Least attenuation within a range of frequencies; ``inf`` when it holds none."""
    from_hz, to_hz = max(from_hz, 0.0), min(to_hz, band.rate_hz / 2)
    if from_hz > to_hz:
        return math.inf
    low, high = _warped(band)
    centre_hz = band.rate_hz / math.pi * math.atan(math.sqrt(low * high))
    strongest = float(squared_response(band, min(max(centre_hz, from_hz), to_hz)))
    return math.inf if strongest == 0.0 else max(0.0, -20.0 * math.log10(strongest))
