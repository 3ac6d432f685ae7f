"""Launches of the kernels between the analytic signal and the images, and their tables.

Every function here turns arrays and integers into a `Launch`; none of them touches a device.
Arrays may be a device's or NumPy's, and are C-contiguous. The order within a tile row is
`pick_channels`, `common_mode`, `envelope_db`, `levels`, `grey`: each leaves on the device what
the next one reads, so that nothing has to be looked at in between. The kernels' own contracts are
at the heads of ``kernels/*.cu``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from das_gpu.backends import MEDIAN_CHANNELS, Array
from das_gpu.backends.launch import Launch, define
from das_gpu.backends.resizing import Resizing
from das_gpu.backends.rowshape import ROUNDS, RowShape, Scratch
from das_gpu.recipe import Scale

_SECTOR_BYTES = 32
_SAMPLE_COLUMNS_BYTES = 64
_PICK_THREADS = 1024
_RESET_BLOCKS = 64
_THREADS = 256
_ENVELOPE_ROWS = 64
_TIME_ROWS = 32
_SIDE = 32
_SCALE_KINDS = {"percentile": 0, "tile": 1, "fixed": 2}

_REAL_DTYPES = tuple(np.dtype(name) for name in ROUNDS)


def pick_channels(
    row: RowShape, live: Array, distance_m: Array, scratch: Scratch, aperture_m: float
) -> Launch:
    """Choose the channels that carry the common mode, count what lives, and reset the counters.

    Parameters
    ----------
    row : RowShape
        The row's shape.
    live : (channels,) uint8 array
        1 for channels that live.
    distance_m : (channels,) float64 array
        Of each channel, along the cable.
    scratch : Scratch
        Written: ``picked``, ``facts`` and the counters.
    aperture_m : float
        None are picked where the live channels span less; 0 or less for no such rule.
    """
    return Launch(
        source="common_mode.cu",
        options=_real(row.dtype),
        kernel="pick_channels",
        grid=(1 + _RESET_BLOCKS, 1, 1),
        block=(_PICK_THREADS, 1, 1),
        args=(
            live,
            distance_m,
            np.int32(row.channels),
            np.int32(MEDIAN_CHANNELS),
            np.float64(aperture_m),
            np.int32(row.bands),
            np.int32(row.band_channels),
            np.int32(row.band_stride),
            scratch.picked,
            scratch.facts,
            scratch.extremes,
            scratch.tickets,
            scratch.counts,
            np.int64(scratch.counts.size),
        ),
    )


def common_mode(row: RowShape, signal: Array, scratch: Scratch) -> Launch:
    """Median of the picked channels, of the real and of the imaginary part at each core sample.

    Parameters
    ----------
    row : RowShape
        The row's shape.
    signal : (channels, row_length) complex64 or complex128 array
        The analytic signal.
    scratch : Scratch
        ``picked`` and ``facts`` are read; ``common`` is written, zeros where none are picked.
    """
    samples_a_block = _SAMPLE_COLUMNS_BYTES // (2 * row.dtype.itemsize)
    return Launch(
        source="common_mode.cu",
        options=_real(row.dtype),
        kernel="common_mode",
        grid=(-(-(row.first % samples_a_block + row.samples) // samples_a_block), 1, 1),
        block=(_THREADS, 1, 1),
        args=(
            signal,
            scratch.picked,
            scratch.facts,
            np.int64(row.row_length),
            np.int32(row.first),
            np.int32(row.samples),
            scratch.common,
        ),
        shared_bytes=_SAMPLE_COLUMNS_BYTES * min(MEDIAN_CHANNELS, row.channels),
    )


def envelope_db(
    row: RowShape, signal: Array, live: Array, scratch: Scratch, scale: Scale, *, subtract: bool
) -> Launch:
    """The envelope in dB, and the grey levels or, for percentiles, their first round.

    Parameters
    ----------
    row : RowShape
        The row's shape.
    signal : (channels, row_length) complex64 or complex128 array
        The analytic signal.
    live : (channels,) uint8 array
        1 for channels that live.
    scratch : Scratch
        ``facts``, ``common`` and the counters are read; ``db`` and ``levels`` are written.
    scale : Scale
        Where the grey limits come from.
    subtract : bool
        Whether ``common`` holds a common mode to subtract.
    """
    return Launch(
        source="envelope_db.cu",
        options=_real(row.dtype),
        kernel="envelope_db",
        grid=(_tile_blocks(row, row.samples), 1, 1),
        block=(_THREADS, 1, 1),
        args=(
            signal,
            scratch.common if subtract else None,
            live,
            scratch.facts,
            np.int64(row.row_length),
            np.int32(row.first),
            np.int32(row.samples),
            np.int32(row.band_channels),
            np.int32(row.band_stride),
            np.int32(_SCALE_KINDS[scale.kind]),
            *_limits(scale),
            scratch.db,
            scratch.extremes,
            scratch.tickets,
            scratch.counts,
            scratch.narrowed,
            scratch.levels,
        ),
    )


def levels(row: RowShape, live: Array, scratch: Scratch, scale: Scale) -> tuple[Launch, ...]:
    """The further rounds of percentiles: one in float32, two in float64, none for other scales.

    Parameters
    ----------
    row : RowShape
        The row's shape.
    live : (channels,) uint8 array
        1 for channels that live.
    scratch : Scratch
        As `envelope_db` left it; ``levels`` is written.
    scale : Scale
        Where the grey limits come from.
    """
    if scale.kind != "percentile":
        return ()
    sector = _SECTOR_BYTES // row.dtype.itemsize
    return tuple(
        Launch(
            source="levels.cu",
            options=_real(row.dtype),
            kernel="levels",
            grid=(_tile_blocks(row, row.samples + sector - 1), 1, 1),
            block=(_THREADS, 1, 1),
            args=(
                scratch.db,
                live,
                scratch.facts,
                np.int32(row.samples),
                np.int32(row.band_channels),
                np.int32(row.band_stride),
                np.int32(number),
                *_limits(scale),
                scratch.extremes,
                scratch.tickets,
                scratch.counts,
                scratch.narrowed,
                scratch.levels,
            ),
        )
        for number in range(1, 1 + ROUNDS[row.dtype.name])
    )


def grey(row: RowShape, live: Array, scratch: Scratch, resizing: Resizing) -> tuple[Launch, Launch]:
    """The images of a row, in two passes.

    Parameters
    ----------
    row : RowShape
        The row's shape.
    live : (channels,) uint8 array
        1 for channels that live.
    scratch : Scratch
        ``db`` and ``levels`` are read; ``half`` and ``pixels`` are written.
    resizing : Resizing
        Tables for the row's picture, where the kernels can read them.
    """
    options = _grey_options(row.dtype, resizing)
    highest = np.int32(resizing.picture.highest)
    time_down = np.int32(resizing.picture.orientation == "time-down")
    first, last = (scratch.db, scratch.half), (scratch.half, scratch.pixels)

    source, target = first if resizing.time_first else last
    band_rows = row.band_channels if resizing.time_first else resizing.n_channels
    groups = -(-band_rows // _TIME_ROWS) * -(-resizing.n_time // _THREADS)
    along_time = Launch(
        source="grey_resize.cu",
        options=options,
        kernel="along_time",
        grid=(row.bands * groups, 1, 1),
        block=(_THREADS, 1, 1),
        args=(
            source,
            live,
            scratch.levels,
            resizing.time_bounds,
            resizing.time_weights,
            np.int32(band_rows),
            np.int32(row.band_stride),
            np.int32(row.samples),
            np.int32(resizing.n_time),
            highest,
            time_down,
            target,
        ),
    )
    source, target = last if resizing.time_first else first
    columns = resizing.n_time if resizing.time_first else row.samples
    groups = -(-columns // _SIDE) * -(-resizing.n_channels // _SIDE)
    along_channels = Launch(
        source="grey_resize.cu",
        options=options,
        kernel="along_channels",
        grid=(row.bands * groups, 1, 1),
        block=(_SIDE, _THREADS // _SIDE, 1),
        args=(
            source,
            live,
            scratch.levels,
            resizing.channel_bounds,
            resizing.channel_weights,
            np.int32(row.band_channels),
            np.int32(row.band_stride),
            np.int32(columns),
            np.int32(resizing.n_channels),
            highest,
            time_down,
            target,
        ),
    )
    return (along_time, along_channels) if resizing.time_first else (along_channels, along_time)


def _tile_blocks(row: RowShape, columns: int) -> int:
    """Blocks of 64 channels by 256 of so many columns that cover every band."""
    return row.bands * -(-row.band_channels // _ENVELOPE_ROWS) * -(-columns // _THREADS)


def _limits(scale: Scale) -> tuple[np.float64, np.float64]:
    """The scale's two numbers as the kernels take them: percentiles as shares of 1."""
    unit = 100 if scale.kind == "percentile" else 1
    return np.float64(scale.low / unit), np.float64(scale.high / unit)


def _real(dtype: np.dtype[Any]) -> tuple[str, ...]:
    return (define("REAL", dtype),)


def _grey_options(dtype: np.dtype[Any], resizing: Resizing) -> tuple[str, ...]:
    return _grey_macros(dtype, resizing.pixel_dtype, resizing.pillow, resizing.time_first)


def _grey_macros(
    dtype: np.dtype[Any], pixel: np.dtype[Any], pillow: bool, time_first: bool
) -> tuple[str, ...]:
    return (
        define("REAL", dtype),
        define("PIXEL", pixel),
        define("PILLOW", int(pillow)),
        define("TIME_FIRST", int(time_first)),
    )


VARIANTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(
        (source, _real(dtype))
        for source in ("common_mode.cu", "envelope_db.cu", "levels.cu")
        for dtype in _REAL_DTYPES
    ),
    *(
        ("grey_resize.cu", _grey_macros(dtype, np.dtype(pixel), pillow, time_first))
        for dtype in _REAL_DTYPES
        for pixel, pillow, time_first in (
            (np.uint8, False, True),
            (np.uint16, False, True),
            (np.uint8, True, True),
            (np.uint8, True, False),
        )
    ),
)
"""Every way in which these kernels are compiled."""
