"""Tables of weights with which a GPU resizes tiles to images.

The weights are those of the CPU backend: Pillow's antialiased bicubic, in floating point or, where
Pillow itself is to be followed, in its fixed-point numbers and its order of the two axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import filters
from das_gpu.backends import Array, Picture

_PRECISION_BITS = 22


@dataclass(frozen=True)
class Resizing:
    """Tables that turn the tiles of a row into images; see `tables`.

    Attributes
    ----------
    picture : Picture
        What they were made for.
    time_first : bool
        Whether the first pass runs along time.
    n_time, n_channels : int
        Pixels along either axis.
    time_bounds, channel_bounds : (pixels, 2) int32 array
        Half-open range of inputs of each pixel.
    time_weights, channel_weights : (taps, pixels) array
        Weight of input ``bounds[pixel, 0] + tap``: REAL, or int32 in units of 2**-22.
    """

    picture: Picture
    time_first: bool
    n_time: int
    n_channels: int
    time_bounds: Array
    time_weights: Array
    channel_bounds: Array
    channel_weights: Array

    @property
    def pillow(self) -> bool:
        """Whether Pillow's own 8-bit arithmetic is followed."""
        return self.picture.resize == "pillow"

    @property
    def pixel_dtype(self) -> np.dtype[Any]:
        """uint8, or uint16 for pictures with more than 256 levels."""
        return np.dtype(np.uint16 if self.picture.highest > 255 else np.uint8)


def tables(samples: int, channels: int, dtype: np.dtype[Any], picture: Picture) -> Resizing:
    """Tables that turn tiles into a picture.

    ``float`` takes `das_gpu.filters.resize_weights` in the envelope's own precision and time first.
    ``pillow`` rounds them to 22 bits after the point, halves away from zero, as Pillow's
    ``normalize_coeffs_8bpc`` (libImaging/Resample.c) does, and takes the axes in the order of the
    installed Pillow.

    Parameters
    ----------
    samples, channels : int
        Of a tile.
    dtype : numpy.dtype
        float32 or float64: the envelope's.
    picture : Picture
        What is wanted.
    """
    time_down = picture.orientation == "time-down"
    n_time, n_channels = picture.height, picture.width
    if not time_down:
        n_time, n_channels = n_channels, n_time
    time_first = True
    if picture.resize == "pillow":
        tile = (samples, channels) if time_down else (channels, samples)
        vertical_first = pillow_vertical_first(tile, (picture.height, picture.width))
        time_first = vertical_first == time_down
    time_bounds, time_weights = _table(samples, n_time, dtype, picture)
    channel_bounds, channel_weights = _table(channels, n_channels, dtype, picture)
    return Resizing(
        picture=picture,
        time_first=time_first,
        n_time=n_time,
        n_channels=n_channels,
        time_bounds=time_bounds,
        time_weights=time_weights,
        channel_bounds=channel_bounds,
        channel_weights=channel_weights,
    )


def pillow_vertical_first(
    before: tuple[int, int], after: tuple[int, int], version: str | None = None
) -> bool:
    """Whether Pillow resizes the vertical axis before the horizontal one.

    From Pillow 13 on it does where the height shrinks, by more than twice the pixels that the
    width loses (libImaging/Resample.c). Pillow 12.2 and 12.3 do where the height shrinks and is
    more than 100 times the width (PIL/Image.py); older ones never do.

    Parameters
    ----------
    before, after : (height, width)
        Shapes of the image.
    version : str, optional
        Pillow's; the installed one's when not given.
    """
    from PIL import __version__ as installed

    release = tuple(int(part) for part in (version or installed).split(".")[:2])
    lost_height, lost_width = before[0] - after[0], before[1] - after[1]
    if lost_height <= 0:
        return False
    if release >= (13, 0):
        return lost_height > 2 * lost_width
    return release >= (12, 2) and before[0] > 100 * before[1]


def _table(
    n_in: int, n_out: int, dtype: np.dtype[Any], picture: Picture
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Bounds (n_out, 2) and weights (taps, n_out) along one axis."""
    bounds, weights = filters.resize_weights(n_in, n_out)
    if picture.resize == "pillow":
        fixed = weights * (1 << _PRECISION_BITS)
        weights = np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)
    else:
        weights = weights.astype(dtype)
    return bounds.astype(np.int32), np.ascontiguousarray(weights.T)
