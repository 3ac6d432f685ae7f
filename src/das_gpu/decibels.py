"""From a pixel's value to the level it stands for, and back.

>>> record = {"db_low": 150.0, "db_high": 190.0}
>>> level_db(record, 51).item()
158.0
>>> pixel_of_level(record, 158.0).item()
51.0
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from das_gpu import render
from das_gpu.frame import Frame, Record, field_of


def level_db(record: Record, pixel: ArrayLike, frame: Frame | None = None) -> NDArray[np.float64]:
    """Level that a pixel's value stands for, up to the rounding to grey levels.

    Pixel 0 stands for the tile's `db_low` and everything below it, the highest for `db_high` and
    everything above. Channels that were dead are 0 too: the record counts them.

    Parameters
    ----------
    record : mapping or TileRecord
        As to `locate`.
    pixel : array_like of int, any shape
    frame : Frame, optional
        Says how many bits a pixel has: 8 by default, but 16 for an array of uint16.

    Returns
    -------
    float64 array of the same shape
        dB re 1e-6 count; NaN in a tile without a live channel, which has no levels.
    """
    values = np.asarray(pixel)
    low, high = _levels(record)
    return render.level_db(values, low, high, _highest(values, frame))


def pixel_of_level(
    record: Record, db: ArrayLike, frame: Frame | None = None
) -> NDArray[np.float64]:
    """Pixel value, not rounded, of a level: the inverse of `level_db`.

    Levels beyond the tile's limits have the limits' pixels; in a tile without levels it is 0, and
    so it is where all levels are the same.
    """
    low, high = _levels(record)
    highest = (frame or Frame()).highest
    values = np.asarray(db, dtype=np.float64)
    if not high > low:
        return np.zeros(values.shape)
    grey: NDArray[np.float64] = np.clip((values - low) * (highest / (high - low)), 0, highest)
    return grey


def _highest(values: NDArray[Any], frame: Frame | None) -> int:
    if frame is not None:
        return frame.highest
    return 65535 if values.dtype.kind == "u" and values.dtype.itemsize == 2 else 255


def _levels(record: Record) -> tuple[float, float]:
    low, high = field_of(record, "db_low"), field_of(record, "db_high")
    return (math.nan, math.nan) if low is None or high is None else (low, high)
