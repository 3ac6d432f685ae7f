"""Windows of samples less each channel's median over time, in compiled loops.

See `das_gpu.backends.compiled` for what these may take for granted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop, middle

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
def centre(
    window: NDArray[np.float64],
    known0: int,
    known1: int,
    core0: int,
    core1: int,
    values: NDArray[np.float64],
    keys: NDArray[np.int64],
    live: NDArray[np.bool_],
) -> None:
    """Channel by channel; ``keys`` is the memory of ``values``, with room for two more."""
    n = core1 - core0
    places, place_keys = values[n:], keys[n:]
    for k in range(window.shape[0]):
        samples = window[k]
        live[k] = _lives(samples[known0:known1])
        if not live[k]:
            samples[:] = 0.0
        elif n > 0:
            for i in range(n):  # an array to an array would be copied first
                values[i] = samples[core0 + i]
            middle(keys[:n], _mean(values[:n]), places, place_keys, _GREATEST_KEY)
            median = (places[0] + places[1]) / 2.0
            for i in range(samples.size):
                samples[i] -= median
