"""The response of the band-pass as the kernels take it: which bins count, where they fold to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_GAIN = {"float32": 1e-10, "float64": 1e-16}


def passband(weights: NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Bins whose weight counts in arithmetic of this precision.

    A bin is left out when its gain is under 1e-10 (float32) or 1e-16 (float64) of the greatest. A
    swell 1e5 times as strong as the noise in the band would leave 1e-5 or 1e-11 of that noise
    behind if all of it lay just outside, 9e-5 or 9e-11 dB.

    Parameters
    ----------
    weights : (bins,) float64 array
        Gain of each bin of the one-sided spectrum, not all 0.
    dtype : numpy.dtype
        float32 or float64.

    Returns
    -------
    first, last : int
        Half-open range of bins, first < last.

    Raises
    ------
    ValueError
        When every weight is 0.
    """
    kept = np.flatnonzero(weights > _LEAST_GAIN[dtype.name] * weights.max(initial=0.0))
    if not kept.size:
        raise ValueError("every weight is 0: the band-pass passes nothing")
    return int(kept[0]), int(kept[-1]) + 1


def one_sided_weights(length: int) -> NDArray[np.float64]:
    """Weights that turn the rfft of a real signal into the spectrum of its analytic signal.

    1 at 0 Hz and at half the rate, 2 between, over the length, for an unscaled inverse transform
    (S. L. Marple, IEEE Trans. Signal Processing 47, 1999; ``scipy.signal.hilbert``).

    Parameters
    ----------
    length : int
        Samples of the signal, at least 1.

    Returns
    -------
    (length // 2 + 1,) float64 array
    """
    weights = np.full(length // 2 + 1, 1 / length)
    weights[1 : (length + 1) // 2] *= 2
    return weights


def folded_range(first: int, last: int, kept: int) -> tuple[int, int]:
    """Outputs that bins ``[first, last)`` fold to, modulo ``kept``, as one half-open range."""
    turns = first // kept
    if last - turns * kept > kept:
        return 0, kept
    return first - turns * kept, last - turns * kept
