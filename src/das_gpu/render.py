"""Finished pixels and decibels become file bytes and file names; and back.

The scaling to grey levels happens before, in the backend; what comes here is final. The
PNG writer exists because a general one spends several times as long on choosing row filters
and searching matches as noise-like envelopes repay: here each row gets the Sub filter and zlib
codes its bytes without a search: 6 % more of them than with the quickest search where there is
much to be found, 1 % less in noise, in two thirds of the time. ISA-L's deflate is four times as
quick again, but was seen to encode the same pixels into other bytes once in some hundred images,
and a rerun must give the same files.
Format: PNG specification, third edition, https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import io
import struct
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREYSCALE = 0
_SUB_FILTER = 1
_DEFLATE_LEVEL = 1
_WINDOW_BITS = 15
_MEMORY_LEVEL = 9

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Greyscale PNG of the pixels' own depth, 8 or 16 bit.

    The bytes are a function of the pixels and of the installed zlib alone: no time, no text
    chunks.

    Parameters
    ----------
    pixels : uint8 or uint16 array, (height, width)
        Any memory layout and byte order; at least one pixel.

    Raises
    ------
    ValueError
        When the array is not two-dimensional, is empty, or has another dtype.
    """
    greyscale = pixels.dtype.kind == "u" and pixels.dtype.itemsize in (1, 2)
    if pixels.ndim != 2 or pixels.size == 0 or not greyscale:
        raise ValueError(
            f"A greyscale PNG is made of a (height, width) array of uint8 or uint16 with at "
            f"least one pixel; this one is {pixels.dtype} of shape {pixels.shape}."
        )
    height, width = pixels.shape
    bit_depth = 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, bit_depth, _GREYSCALE, 0, 0, 0)
    deflate = zlib.compressobj(
        _DEFLATE_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_HUFFMAN_ONLY
    )
    data = deflate.compress(_sub_filtered(pixels).data) + deflate.flush()
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    )


def _sub_filtered(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Rows as PNG stores them: the filter's number, then each byte less the pixel to its left.

    Bytes are subtracted modulo 256, high byte from high byte and low from low (PNG
    specification, section 9.2).
    """
    height, width = pixels.shape
    pixel_bytes = pixels.dtype.itemsize
    big_endian = np.ascontiguousarray(pixels, dtype=f">u{pixel_bytes}")
    raw = big_endian.view(np.uint8).reshape(height, width * pixel_bytes)
    rows = np.empty((height, 1 + raw.shape[1]), dtype=np.uint8)
    rows[:, 0] = _SUB_FILTER
    rows[:, 1 : 1 + pixel_bytes] = raw[:, :pixel_bytes]
    np.subtract(raw[:, pixel_bytes:], raw[:, :-pixel_bytes], out=rows[:, 1 + pixel_bytes :])
    return rows


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Length, type, data and checksum over type and data."""
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def encode_npy(db: NDArray[np.float32]) -> bytes:
    """Write the array in NumPy's ``.npy`` format: no pickle, little-endian, C order.

    Parameters
    ----------
    db : float32 array, (channel, sample)
        Envelope in dB.

    Raises
    ------
    ValueError
        When the array is not a two-dimensional float32 one.
    """
    if db.ndim != 2 or db.dtype != np.float32:
        raise ValueError(
            f"A tile is stored as a (channel, sample) array of float32; this one is "
            f"{db.dtype} of shape {db.shape}."
        )
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(db, dtype="<f4"), allow_pickle=False)
    return file.getvalue()


def file_name(
    style: Literal["plain", "notebook"],
    *,
    start_ns: int,
    channel: int,
    distance_m: float,
    suffix: Literal["png", "npy"],
) -> str:
    """Key of a tile's file, relative to the output folder.

    ``plain`` has no colon and no inner dot, so that every file system and every glob takes
    it. Its time is rounded to milliseconds, because the recorder's clock jitters by a
    microsecond; the rounding may carry into the next hour or day, and the folder follows the
    rounded time. ``notebook`` is NumPy's text of the time and Python's of the distance.

    Parameters
    ----------
    style : {"plain", "notebook"}
    start_ns : int
        Time of the tile's first sample, nanoseconds since 1970-01-01 UTC.
    channel : int
        Archive index of the tile's first channel; at least five digits in the name.
    distance_m : float
        Distance of that channel along the cable.
    suffix : {"png", "npy"}

    Examples
    --------
    >>> where = {"start_ns": 1635808274834000000, "channel": 10000, "distance_m": 20419.0}
    >>> file_name("plain", suffix="png", **where)
    'images/2021-11-01/23/20211101T231114834Z_ch10000.png'
    >>> file_name("notebook", suffix="png", **where)
    'images/2021-11-01T23:11:14.834000000_start20419.0.png'
    """
    if style == "notebook":
        return f"images/{np.datetime64(start_ns, 'ns')}_start{float(distance_m)}.{suffix}"
    start_s, start_ms = divmod((start_ns + _NS_PER_MS // 2) // _NS_PER_MS, 1000)
    start = _utc(start_s)
    return (
        f"images/{start:%Y-%m-%d}/{start:%H}/"
        f"{start:%Y%m%dT%H%M%S}{start_ms:03d}Z_ch{channel:05d}.{suffix}"
    )


def iso_utc(time_ns: int) -> str:
    """ISO 8601 text of a time, exact: microseconds, or nanoseconds where they are needed.

    Parameters
    ----------
    time_ns : int
        Nanoseconds since 1970-01-01 UTC.

    Examples
    --------
    >>> iso_utc(1635808274834000000)
    '2021-11-01T23:11:14.834000Z'
    >>> iso_utc(1635808274834000007)
    '2021-11-01T23:11:14.834000007Z'
    """
    whole_s, part_ns = divmod(time_ns, _NS_PER_S)
    part = f"{part_ns:09d}" if part_ns % 1000 else f"{part_ns // 1000:06d}"
    return f"{_utc(whole_s):%Y-%m-%dT%H:%M:%S}.{part}Z"


def split_key(time_ns: int) -> str:
    """UTC hour of a time; tiles of one hour belong in one part of a train and test split.

    Examples
    --------
    >>> split_key(1635808274834000000)
    '2021-11-01T23'
    """
    return f"{_utc(time_ns // _NS_PER_S):%Y-%m-%dT%H}"


def _utc(whole_s: int) -> datetime:
    return _EPOCH + timedelta(seconds=whole_s)


def level_db(pixel: ArrayLike, db_low: float, db_high: float, highest: int) -> NDArray[np.float64]:
    """Level that a pixel stands for: the inverse of the grey scale, up to its rounding.

    Pixels 0 and ``highest`` stand for everything at or beyond ``db_low`` and ``db_high``.

    Parameters
    ----------
    pixel : array_like of int
        Pixel values of an image, any shape.
    db_low, db_high : float
        The image's own limits as the manifest has them, dB.
    highest : int
        Highest pixel value: 255 or 65535.

    Returns
    -------
    float64 array of the same shape, dB re what the limits are.
    """
    return db_low + np.asarray(pixel, dtype=np.float64) * ((db_high - db_low) / highest)
