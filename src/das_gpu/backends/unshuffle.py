"""Items whose bytes stand in planes, put together in compiled loops.

See `das_gpu.backends.compiled` for what these may take for granted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop


@compiled_loop()
def _four(
    a: NDArray[np.uint8],
    b: NDArray[np.uint8],
    c: NDArray[np.uint8],
    d: NDArray[np.uint8],
    out: NDArray[np.uint32],
) -> None:
    for i in range(out.size):
        low = np.uint32(a[i]) | (np.uint32(b[i]) << np.uint32(8))
        high = (np.uint32(c[i]) << np.uint32(16)) | (np.uint32(d[i]) << np.uint32(24))
        out[i] = low | high


@compiled_loop()
def _four_apart(
    planes: NDArray[np.uint8], at: int, count: int, step: int, out: NDArray[np.uint32]
) -> None:
    for i in range(out.size):
        place = at + i * step
        low = np.uint32(planes[place]) | (np.uint32(planes[place + count]) << np.uint32(8))
        place += 2 * count
        high = np.uint32(planes[place]) | (np.uint32(planes[place + count]) << np.uint32(8))
        out[i] = low | (high << np.uint32(16))


@compiled_loop()
def pick(
    planes: NDArray[np.uint8],
    first: int,
    block: int,
    row_items: int,
    row0: int,
    row_step: int,
    item0: int,
    item_step: int,
    out: NDArray[np.uint32],
) -> None:
    """Some items of some rows of a chunk, as far as they are among some of its blocks, to ``out``.

    Those are the items ``item0``, ``item0 + item_step`` ... of the rows ``row0``, ``row0 +
    row_step`` ..., as many as ``out`` has room for; a row has ``row_items``. The blocks begin with
    the chunk's item ``first`` and have ``block`` items of 4 bytes each, the last one perhaps
    fewer, and each has planes of its own. Rows are cut where blocks end.
    """
    rows, items = out.shape
    total = planes.size // 4
    for begin in range(0, total, block):
        count = min(block, total - begin)
        low = first + begin
        high = low + count
        k = max(0, (low // row_items - row0 + row_step - 1) // row_step)
        while k < rows and (row0 + k * row_step) * row_items < high:
            row = (row0 + k * row_step) * row_items
            # The first item that is not before the block, and the first that is behind it.
            j0 = max(0, (low - row - item0 + item_step - 1) // item_step)
            j1 = min(items, (high - row - item0 + item_step - 1) // item_step)
            if j1 > j0:
                at = 4 * begin + row + item0 + j0 * item_step - low
                target = out[k][j0:j1]
                if item_step == 1:
                    n = j1 - j0
                    _four(
                        planes[at : at + n],
                        planes[at + count : at + count + n],
                        planes[at + 2 * count : at + 2 * count + n],
                        planes[at + 3 * count : at + 3 * count + n],
                        target,
                    )
                else:
                    _four_apart(planes, at, count, item_step, target)
            k += 1
