"""The shape of a tile row on a device, and the arrays that its kernels need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from das_gpu.backends import MEDIAN_CHANNELS, Array, Chain
from das_gpu.backends.resizing import Resizing

FACTS = 4
"""Numbers in ``facts`` before the dead channels of each band."""
ROUNDS = {"float32": 1, "float64": 2}
"""Further rounds of a percentile: its precision is 2**-15 dB, or 2**-27 dB."""

_BINS = 4096
_STATISTICS = 4
_MOST_COUNTED = (1 << 32) - 1


@dataclass(frozen=True)
class RowShape:
    """The shape of a tile row on the device.

    Attributes
    ----------
    channels : int
        Kept channels of the signal; those of the bands make images.
    row_length, first, samples : int
        Values in a channel of the signal, of which ``[first, first + samples)`` are the core.
    bands, band_channels : int
        Tiles, and channels in each.
    band_stride : int
        Channels from a band's first to the next one's; fewer than it has where bands overlap.
    dtype : numpy.dtype
        float32 or float64.

    Raises
    ------
    ValueError
        When a tile has more values than its 32-bit counters hold, or its image channels or its
        core are not part of the signal.
    """

    channels: int
    row_length: int
    first: int
    samples: int
    bands: int
    band_channels: int
    band_stride: int
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        if self.band_channels * self.samples > _MOST_COUNTED:
            raise ValueError(
                f"A tile of {self.band_channels} channels x {self.samples} samples has more values "
                f"than can be counted ({_MOST_COUNTED})."
            )
        if (self.bands - 1) * self.band_stride + self.band_channels > self.channels:
            raise ValueError(
                f"{self.bands} x {self.band_channels}, {self.band_stride} apart, of "
                f"{self.channels} channels."
            )
        if self.first + self.samples > self.row_length:
            raise ValueError(f"The core ends beyond the {self.row_length} values of a channel.")

    @classmethod
    def of(cls, chain: Chain) -> RowShape:
        """The shape of the rows that a chain makes."""
        width, stride = chain.band_channels, chain.band_stride
        return cls(
            channels=chain.distance_m.size,
            row_length=-(-chain.length // chain.step),
            first=chain.core0 // chain.step,
            samples=chain.tile_samples,
            bands=chain.bands,
            band_channels=width,
            band_stride=width if stride is None else stride,
            dtype=chain.dtype,
        )

    @property
    def image_channels(self) -> int:
        """Channels of all images: where bands overlap, those that they share count for each."""
        return self.bands * self.band_channels


@dataclass(frozen=True)
class Scratch:
    """The arrays that a row's kernels write, made once; `needs` lists their shapes and dtypes.

    Attributes
    ----------
    picked : (1024,) int32
        Channels that carry the common mode.
    facts : (4 + bands,) int32
        Number picked, number live, first and last live channel (-1: none), dead channels of each
        band.
    common : (samples,) complex
        The common mode.
    db : (bands * band_channels, samples) REAL
        The envelope in dB, -inf where it is 0. Values of live channels count as at least the
        floor in ``levels``.
    extremes, tickets, counts, narrowed
        Counters of `envelope_db` and `levels`, reset by `pick_channels`.
    levels : (bands, 3) float64
        Lower and upper grey limit and floor in dB; NaN, NaN and -inf for a band without a live
        channel, a floor of -inf where nothing needs lifting.
    half : array or None
        Between the two passes of `grey`.
    pixels : (bands, height, width) uint8 or uint16, or None
        The images.
    """

    picked: Array
    facts: Array
    common: Array
    db: Array
    extremes: Array
    tickets: Array
    counts: Array
    narrowed: Array
    levels: Array
    half: Array | None = None
    pixels: Array | None = None

    @staticmethod
    def needs(
        row: RowShape, resizing: Resizing | None
    ) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of every array, by name; those of the images only for images."""
        rounds = ROUNDS[row.dtype.name]
        keys = np.dtype(f"uint{8 * row.dtype.itemsize}")
        needs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "picked": ((MEDIAN_CHANNELS,), np.dtype(np.int32)),
            "facts": ((FACTS + row.bands,), np.dtype(np.int32)),
            "common": ((row.samples,), np.result_type(row.dtype, np.complex64)),
            "db": ((row.image_channels, row.samples), row.dtype),
            "extremes": ((row.bands, 2), keys),
            "tickets": ((row.bands, 3), np.dtype(np.uint32)),
            "counts": ((row.bands, 1 + _STATISTICS * rounds, _BINS), np.dtype(np.uint32)),
            "narrowed": (
                (row.bands, 1 + rounds, _STATISTICS, 2),
                np.dtype(np.int64),
            ),
            "levels": ((row.bands, 3), np.dtype(np.float64)),
        }
        if resizing is not None:
            picture = resizing.picture
            between = (
                (row.image_channels, resizing.n_time)
                if resizing.time_first
                else (row.bands, resizing.n_channels, row.samples)
            )
            needs["half"] = (between, np.dtype(np.uint8) if resizing.pillow else row.dtype)
            needs["pixels"] = ((row.bands, picture.height, picture.width), resizing.pixel_dtype)
        return needs
