"""Windows of samples less each channel's median over time, in compiled loops.

See `das_gpu.backends.compiled` for what these may take for granted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop, middle
from das_gpu.errors import UsageError

_GREATEST_KEY = np.int64(np.iinfo(np.int64).max)


@compiled_loop()
def _lives(samples: NDArray[np.float64]) -> bool:
    """Whether samples are finite and not all the same."""
    first = samples[0]
    moved, broken = False, False
    for i in range(samples.size):
        away = samples[i] - first
        moved |= away != 0.0
        broken |= away - away != 0.0
    return moved and not broken


@compiled_loop("reassoc")
def _mean(samples: NDArray[np.float64]) -> float:
    total = 0.0
    for i in range(samples.size):
        total += samples[i]
    return total / samples.size


@compiled_loop()
def _centre(
    window: NDArray[np.float64],
    known: tuple[int, int],
    core: tuple[int, int],
    values: NDArray[np.float64],
    keys: NDArray[np.int64],
    live: NDArray[np.bool_],
) -> None:
    """Channel by channel; ``keys`` is the memory of ``values``, with room for two more."""
    n = core[1] - core[0]
    places, place_keys = values[n:], keys[n:]
    for k in range(window.shape[0]):
        samples = window[k]
        live[k] = _lives(samples[known[0] : known[1]])
        if not live[k]:
            samples[:] = 0.0
        elif n > 0:
            values[:n] = samples[core[0] : core[1]]
            middle(keys[:n], _mean(values[:n]), places, place_keys, _GREATEST_KEY)
            median = (places[0] + places[1]) / 2.0
            for i in range(samples.size):
                samples[i] -= median


def centre(
    window: NDArray[np.float64], known: tuple[int, int], core: tuple[int, int] | None
) -> NDArray[np.bool_]:
    """Take off each channel's median over its core, in place, and find the channels that live.

    Exactly NumPy's medians: even counts give the mean of the two middle values.

    Parameters
    ----------
    window : (channel, sample) float64 array, C-contiguous
        Channels that do not live become zeros.
    known : (int, int)
        Samples that say which channels live: those not constant, and finite throughout them.
    core : (int, int) or None
        Samples whose median is taken; None when nothing is to be taken off.

    Returns
    -------
    (channel,) bool array
        Which channels live.

    Raises
    ------
    UsageError
        When either range is empty or not within the window.
    """
    for start, stop in (known, core or known):
        if not 0 <= start < stop <= window.shape[1]:
            raise UsageError(
                f"Samples [{start}, {stop}) of a window of {window.shape[1]} were asked for: a "
                "range must hold at least one sample of the window."
            )
    begin, end = core or (0, 0)
    values = np.empty(end - begin + 2)
    live = np.empty(window.shape[0], np.bool_)
    _centre(window, known, (begin, end), values, values.view(np.int64), live)
    return live
