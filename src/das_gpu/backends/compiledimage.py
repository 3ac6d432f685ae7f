"""From levels to pixels in compiled loops; see `das_gpu.backends.compiled`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop


@compiled_loop("reassoc", "contract")
def _dot(weights: NDArray[Any], values: NDArray[Any]) -> Any:
    total = values.dtype.type(0)
    for i in range(weights.size):
        total += weights[i] * values[i]
    return total


@compiled_loop("contract")
def _add_four(
    line: NDArray[Any],
    weights: tuple[Any, Any, Any, Any],
    a: NDArray[Any],
    b: NDArray[Any],
    c: NDArray[Any],
    d: NDArray[Any],
    low: Any,
) -> None:
    """Add four channels above ``low`` with their weights: the line is touched once for all."""
    of_a, of_b, of_c, of_d = weights
    for i in range(line.size):
        pair = of_a * (a[i] - low) + of_b * (b[i] - low)
        line[i] += pair + (of_c * (c[i] - low) + of_d * (d[i] - low))


@compiled_loop("contract")
def grey(
    tile: NDArray[Any],
    live: NDArray[np.bool_],
    low: Any,
    factor: Any,
    highest: Any,
    bounds: NDArray[np.intp],
    weights: NDArray[Any],
    time_bounds: NDArray[np.intp],
    time_weights: NDArray[Any],
    line: NDArray[Any],
    channels: NDArray[np.intp],
    shares: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Resize channels, then time, of levels above ``low``; scale, clip and round.

    ``out`` is (channel, time). A channel that is not live counts as level ``low``. There is room
    for one channel in ``line``, and for three more than enter a pixel in ``channels`` and
    ``shares``.
    """
    none = tile.dtype.type(0)
    for k in range(out.shape[0]):
        first, n = bounds[k, 0], 0
        for j in range(first, bounds[k, 1]):
            if live[j]:
                channels[n], shares[n] = j, weights[k, j - first]
                n += 1
        line[:] = none
        if n:
            channels[n : n + 3], shares[n : n + 3] = channels[0], none
        for j in range(0, n, 4):
            a, b, c, d = channels[j], channels[j + 1], channels[j + 2], channels[j + 3]
            four = (shares[j], shares[j + 1], shares[j + 2], shares[j + 3])
            _add_four(line, four, tile[a], tile[b], tile[c], tile[d], low)
        pixels = out[k]
        for p in range(pixels.size):
            begin, end = time_bounds[p, 0], time_bounds[p, 1]
            level = _dot(time_weights[p][: end - begin], line[begin:end]) * factor
            level = max(none, level)
            pixels[p] = np.rint(min(highest, level))
