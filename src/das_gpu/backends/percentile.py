"""Percentiles of many levels, of which only those in the tails are put in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLED_LEVELS = 4096
"""Levels of a tile that tell where its percentiles are to be looked for."""


def percentiles(levels: NDArray[Any], percents: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of levels, by linear interpolation between order statistics, exactly.

    Of a few levels taken here and there it is plain below (or above) which one those that matter
    lie; only these are sorted out, unless the few have misled.
    """
    flat = levels.reshape(-1)
    few = np.sort(flat[:: max(1, flat.size // SAMPLED_LEVELS) | 1])
    last = flat.size - 1
    low, high = percents[0] / 100 * last, last - percents[1] / 100 * last

    def rank(place: float) -> int:
        """A place among the few that surely lies beyond that place among all."""
        share = (place + 2) / flat.size * few.size
        return min(int(share + 4 * share**0.5 + 4), few.size - 1)

    below, above = few[rank(low)], few[-1 - rank(high)]
    near = _beyond(flat, below, above)

    def tail(marked: NDArray[np.bool_], place: float) -> NDArray[Any]:
        found = np.compress(marked, near)
        return found if found.size >= min(int(place) + 2, flat.size) else flat.copy()

    least = _interpolated(tail(near <= below, low), low)
    # The greatest are the least of what is turned round.
    return least, -_interpolated(np.negative(tail(near >= above, high)), high)


def _beyond(flat: NDArray[Any], below: float, above: float) -> NDArray[Any]:
    """All that is at most ``below`` or at least ``above``, and some neighbours.

    Eight are looked at as one word: most words hold none.
    """
    words = flat.size // 8
    inside = flat[: words * 8]
    marked = inside <= below
    marked |= inside >= above
    found = np.flatnonzero(marked.view(np.uint64) != 0)
    near = np.take(inside.reshape(words, 8), found, axis=0)
    return np.concatenate([near.reshape(-1), flat[words * 8 :]])


def _interpolated(some: NDArray[Any], place: float) -> float:
    """Value at a fractional place in ascending order; the values are put in another order."""
    whole = int(place)
    some.partition(whole)
    found = float(some[whole])
    if whole + 1 < some.size:
        found += (place - whole) * (float(some[whole + 1 :].min()) - found)
    return found
