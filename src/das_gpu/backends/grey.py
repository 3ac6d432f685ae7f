"""Grey levels and resizing of one envelope tile, on the host."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import filters
from das_gpu.backends import Picture

RESIZE_BLOCK = 16
"""Output lines of one banded matrix product."""


def in_float(
    envelope: NDArray[Any], live: NDArray[np.bool_], low: float, high: float, picture: Picture
) -> NDArray[Any]:
    """Grey levels resized in floating point, clipped and rounded: (height, width).

    The weights of each output pixel sum to 1, so subtracting the lower limit and scaling after
    the resize is the same as resizing grey levels. Dead channels become that limit in
    ``envelope`` itself.
    """
    across, down = picture.width, picture.height
    if picture.orientation == "time-right":
        across, down = down, across
    envelope[~live] = low
    resized = _resize_time(envelope, down)
    scaled = _resize_channels(resized, across)
    scaled -= low
    scaled *= picture.highest / (high - low) if high > low else 0.0
    np.clip(scaled, 0, picture.highest, out=scaled)
    np.rint(scaled, out=scaled)
    pixels = scaled.astype(np.uint16 if picture.highest > 255 else np.uint8)
    return np.ascontiguousarray(pixels.T if picture.orientation == "time-down" else pixels)


@lru_cache(maxsize=32)
def _banded(n_in: int, n_out: int, dtype: np.dtype[Any]) -> list[tuple[int, int, NDArray[Any]]]:
    """The resize as dense blocks on its band: (first input, last input, weights (in, out))."""
    bounds, weights = filters.resize_weights(n_in, n_out)
    blocks = []
    for start in range(0, n_out, RESIZE_BLOCK):
        stop = min(start + RESIZE_BLOCK, n_out)
        first, last = int(bounds[start, 0]), int(bounds[stop - 1, 1])
        block = np.zeros((last - first, stop - start), dtype=dtype)
        for out in range(start, stop):
            low, high = bounds[out]
            block[low - first : high - first, out - start] = weights[out, : high - low]
        blocks.append((first, last, block))
    return blocks


def _resize_time(tile: NDArray[Any], n_out: int) -> NDArray[Any]:
    """(channel, sample) -> (channel, n_out)."""
    out = np.empty((tile.shape[0], n_out), dtype=tile.dtype)
    done = 0
    for first, last, block in _banded(tile.shape[1], n_out, tile.dtype):
        np.matmul(tile[:, first:last], block, out=out[:, done : done + block.shape[1]])
        done += block.shape[1]
    return out


def _resize_channels(tile: NDArray[Any], n_out: int) -> NDArray[Any]:
    """(channel, sample) -> (n_out, sample)."""
    out = np.empty((n_out, tile.shape[1]), dtype=tile.dtype)
    done = 0
    for first, last, block in _banded(tile.shape[0], n_out, tile.dtype):
        np.matmul(block.T, tile[first:last], out=out[done : done + block.shape[1]])
        done += block.shape[1]
    return out


def by_pillow(
    envelope: NDArray[Any], live: NDArray[np.bool_], low: float, high: float, picture: Picture
) -> NDArray[Any]:
    """Grey levels truncated to 8 bits, then resized by the installed Pillow: the notebook's."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (envelope - low) / (high - low) * picture.highest
    if high <= low:
        scaled[...] = 0
    np.clip(scaled, 0, picture.highest, out=scaled)
    scaled[~live] = 0
    return resized_by_pillow(scaled.astype(np.uint8), picture)


def resized_by_pillow(levels: NDArray[np.uint8], picture: Picture) -> NDArray[Any]:
    """Grey levels (channel, sample) as an image of the picture's size and orientation."""
    from PIL import Image

    if picture.orientation == "time-down":
        levels = np.ascontiguousarray(levels.T)
    image = Image.fromarray(levels).resize(
        (picture.width, picture.height), Image.Resampling.BICUBIC
    )
    return np.asarray(image)
