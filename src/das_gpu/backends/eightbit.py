"""Grey levels truncated to 8 bits at full resolution, in compiled loops.

See `das_gpu.backends.compiled` for what these may take for granted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop


@compiled_loop()
def _truncate(
    levels: NDArray[Any], low: float, spread: float, highest: float, out: NDArray[np.uint8]
) -> None:
    """In the order of these operations: a rounding elsewhere would be another grey here."""
    for i in range(levels.size):
        scaled = (np.float64(levels[i]) - low) / spread * highest
        out[i] = np.uint8(np.int32(min(highest, max(0.0, scaled))))


@compiled_loop()
def truncate_all(
    tile: NDArray[Any],
    live: NDArray[np.bool_],
    low: float,
    spread: float,
    highest: float,
    out: NDArray[np.uint8],
) -> None:
    """Channel by channel; 0 where one does not live."""
    for k in range(tile.shape[0]):
        if live[k]:
            _truncate(tile[k], low, spread, highest, out[k])
