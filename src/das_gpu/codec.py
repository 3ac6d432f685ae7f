"""What a chunk's encoding is, and decoding it into a caller's buffer.

A frame's declared size is checked against the chunk's before anything is decoded: a few
kilobytes can ask for a gigabyte.

Frame layouts: Blosc 1 header (README_CHUNK_FORMAT of c-blosc), Zstandard (RFC 8878, 3.1.1.1),
zlib and gzip (RFC 1950, 1952), LZ4 as numcodecs frames it (a little-endian 32-bit size first).
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.bloscframe import BloscFrame, Pick
from das_gpu.metadata import ArrayMetadata, Settings

if TYPE_CHECKING:
    from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata


_Decoder = Callable[[memoryview, NDArray[np.uint8]], None]

Run = tuple[int, NDArray[Any]]
"""Some rows of a chunk, and the number of the first."""


_ALIGNED = 64
"""Bytes of a cache line."""
PART_NBYTES = 1 << 23
"""Decoded together: less is not worth the call, more is memory for nothing."""
PLANES_NBYTES = 1 << 21
"""The same of what items are put together from: it stays in the cache until that is done."""


class Scratch:
    """Memory to decode into, as much as was ever asked for; one thread's at a time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory of this shape, undefined."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._memory.nbytes < nbytes:
            self._memory = np.empty(0, np.uint8)  # freed before its successor is made
            memory = np.empty(nbytes + _ALIGNED, np.uint8)
            self._memory = memory[-memory.ctypes.data % _ALIGNED :]
        return self._memory[:nbytes].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class Codec:
    """How the chunks of an array are encoded.

    Attributes
    ----------
    description : str
        Free of secrets; part of a run's identity.
    """

    description: str
    _decoder: _Decoder | None
    _swapped: bool
    _compressor: str

    @classmethod
    def of(
        cls, metadata: ArrayMetadata | ArrayV2Metadata | ArrayV3Metadata, stored: np.dtype[Any]
    ) -> Codec:
        """Read the encoding of an array whose stored dtype is ``stored``."""
        if isinstance(metadata, ArrayMetadata):
            return cls._plain(metadata)
        if metadata.zarr_format == 2:
            filters, last = list(metadata.filters or ()), metadata.compressor
            configs = [dict(one.get_config()) for one in (*filters, last) if one is not None]
            chain = [(str(config.pop("id")), config) for config in configs]
            text = _of_v2(chain, stored) + ("" if metadata.order == "C" else " order F")
            plain = not filters and metadata.order == "C"
            name = chain[-1][0] if chain else "none"
            return cls(text, _DECODERS.get(name) if plain else None, not stored.isnative, name)
        known: list[dict[str, Any]] = [dict(one.to_dict()) for one in metadata.codecs]
        names = [str(one["name"]) for one in known]
        settings: list[dict[str, Any]] = [dict(one.get("configuration") or {}) for one in known]
        text = _of_v3(list(zip(names, settings, strict=True)))
        plain = names[:1] == ["bytes"] and len(names) <= 2
        endian = settings[0].get("endian") or sys.byteorder
        decoder = _DECODERS.get((*names, "none")[1]) if plain else None
        inner = settings[0].get("codecs") if names == ["sharding_indexed"] else None
        steps = [str(one["name"]) for one in inner] if inner else names
        outermost = [name for name in steps if name != "crc32c"][-1]
        return cls(text, decoder, endian != sys.byteorder, outermost)

    @classmethod
    def _plain(cls, metadata: ArrayMetadata) -> Codec:
        two, stored = metadata.zarr_format == 2, metadata.stored
        text = _of_v2(metadata.steps, stored) if two else _of_v3(metadata.steps)
        name = metadata.compressor
        return cls(text, _DECODERS[name], not stored.isnative, name)

    @property
    def plain(self) -> bool:
        """True for one known compressor or none, no filters, C order: :meth:`decode` can do it."""
        return self._decoder is not None

    def decode(self, body: memoryview, out: NDArray[Any]) -> None:
        """Decode a stored object into ``out``, a C-contiguous chunk in native byte order.

        Raises
        ------
        ValueError
            The object does not decode to the size of ``out``, or the encoding is not plain.
        """
        if self._decoder is None:
            raise ValueError(f"chunks encoded as {self.description} are not plain")
        flat = out.reshape(-1).view(np.uint8)
        _decompress(self._decoder, body, flat)
        self._turn(out)

    def runs(
        self, body: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], scratch: Scratch
    ) -> Iterator[Run]:
        """Decode a stored object a few rows at a time, where its encoding allows.

        What is decoded then needs no room for a whole chunk.

        Parameters
        ----------
        body : memoryview
            Changed and changed back meanwhile, when it can be.
        shape, dtype
            Of the chunk, in native byte order.
        scratch : Scratch
            Holds each run until the next is asked for.

        Yields
        ------
        first : int
            First row of the run; the rows of all runs are those of the chunk, in order.
        rows : ndarray, (n, ``*shape[1:]``)

        Raises
        ------
        ValueError
            As `decode`.
        """
        frame = self._frame(body, shape, dtype)
        parts = () if frame is None else frame.parts(PART_NBYTES)
        if frame is None or len(parts) < 2:
            chunk = scratch.array(shape, dtype)
            self.decode(body, chunk)
            yield 0, chunk
            return
        row_nbytes = frame.nbytes // shape[0]
        # Parts come to one place, for the sake of vector instructions; what was left of the last
        # one stands before it.
        place = row_nbytes + -row_nbytes % _ALIGNED
        memory = scratch.array((place + max(map(frame.size, parts)),), np.dtype(np.uint8))
        first, start = 0, place
        for part in parts:
            stop = place + self._part(frame, part, memory[place:]).size
            count, left = divmod(stop - start, row_nbytes)
            rows = memory[start : stop - left].view(dtype).reshape(count, *shape[1:])
            self._turn(rows)
            yield first, rows
            first += count
            start = place - left
            memory[start:place] = memory[stop - left : stop]

    def pick(
        self,
        body: memoryview,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        wanted: tuple[range, range],
        pick: Pick,
        out: NDArray[Any],
        scratch: Scratch,
    ) -> bool:
        """Decode a stored object and put only the wanted samples together, where they belong.

        Parameters
        ----------
        body : memoryview
            Changed and changed back meanwhile.
        shape, dtype
            Of the chunk, in native byte order, of two dimensions.
        wanted : (range, range)
            Rows and columns, ascending.
        pick : callable
            See `das_gpu.bloscframe.Pick`.
        out : (row, column) ndarray
            Filled.
        scratch : Scratch

        Returns
        -------
        bool
            False where the encoding or the arrays do not allow it: nothing was done then.

        Raises
        ------
        ValueError
            As `decode`.
        """
        frame = self._frame(body, shape, dtype)
        if frame is None or self._swapped or not out.flags.c_contiguous or out.itemsize != 4:
            return False
        parts = frame.parts(PLANES_NBYTES)
        if not parts or not frame.shuffled(out.itemsize):
            return False
        (rows, columns), words = wanted, out.view(np.uint32)
        places = shape[1], rows.start, rows.step, columns.start, columns.step
        memory = scratch.array((max(map(frame.size, parts)),), np.dtype(np.uint8))
        block = frame.block_nbytes // out.itemsize
        for part in parts:
            planes = self._part(frame, part, memory, in_planes=True)
            pick(planes, part.start * block, block, *places, words)
        return True

    def _frame(
        self, body: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> BloscFrame | None:
        """The body as a Blosc frame of a chunk's size; None where it is encoded otherwise."""
        if self._decoder is not _decode_blosc:
            return None
        return BloscFrame.of(body, math.prod(shape) * dtype.itemsize)

    @staticmethod
    def _part(
        frame: BloscFrame, part: range, out: NDArray[np.uint8], *, in_planes: bool = False
    ) -> NDArray[np.uint8]:
        try:
            return frame.decode_part(part, out, in_planes=in_planes)
        except RuntimeError as exc:
            raise ValueError(str(exc)) from exc

    def _turn(self, samples: NDArray[Any]) -> None:
        """Turn decoded samples to native byte order."""
        if self._swapped:
            samples.view(f"u{samples.itemsize}").byteswap(inplace=True)

    def check_declared_size(self, body: memoryview, limit: int) -> None:
        """Refuse bytes that would decode to more than ``limit``, before somebody decodes them.

        Raises
        ------
        ValueError
            They declare, or hold, more than that.
        """
        measure = _SIZES.get(self._compressor)
        size = measure(body, limit) if measure is not None else None
        if size is not None and size > limit:
            raise ValueError(f"it declares {size} bytes where at most {limit} are expected")


def decompress(name: str, body: memoryview, out: NDArray[np.uint8]) -> None:
    """Decompress bytes into all of ``out``.

    Parameters
    ----------
    name : {"blosc", "zstd", "zlib", "gzip", "lz4", "none"}
        The compressor; ``lz4`` as numcodecs frames it.
    body : memoryview
    out : ndarray of uint8, C-contiguous

    Raises
    ------
    ValueError
        The bytes are damaged, or decompress to another size.
    """
    _decompress(_DECODERS[name], body, out)


def _decompress(decoder: _Decoder, body: memoryview, out: NDArray[np.uint8]) -> None:
    try:
        decoder(body, out)
    except (RuntimeError, zlib.error) as exc:
        raise ValueError(str(exc)) from exc


def _of_v2(chain: Sequence[tuple[str, Settings]], stored: np.dtype[Any]) -> str:
    """Describe an encoding of format 2."""
    return f"{_of_v3(chain) or 'none'} {stored.str}"


def _of_v3(chain: Sequence[tuple[str, Settings]]) -> str:
    """Describe an encoding of format 3, whose steps say the byte order too."""
    return " ".join(
        f"{name}({', '.join(f'{key}={settings[key]}' for key in sorted(settings))})"
        for name, settings in chain
    )


def _check_size(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise ValueError(f"{what} {found} bytes where the chunk has {expected}")


def _decode_none(body: memoryview, out: NDArray[np.uint8]) -> None:
    _check_size(body.nbytes, out.nbytes, "the object has")
    out[:] = np.frombuffer(body, np.uint8)


def _decode_blosc(body: memoryview, out: NDArray[np.uint8]) -> None:
    BloscFrame.of(body, out.nbytes).decode(out)


def _decode_zstd(body: memoryview, out: NDArray[np.uint8]) -> None:
    from numcodecs import zstd

    declared = _zstd_content_size(body)
    if declared is not None:
        _check_size(declared, out.nbytes, "the zstd frame declares")
    zstd.decompress(body, out)


def _zstd_content_size(body: memoryview) -> int | None:
    """Read the decoded size from the frame header; None when it declares none."""
    if bytes(body[:4]) != b"\x28\xb5\x2f\xfd" or body.nbytes < 6:
        raise ValueError("it does not begin with a zstd frame")
    descriptor = body[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if not width:
        return None
    return int.from_bytes(body[start : start + width], "little") + (256 if width == 2 else 0)


def _decode_lz4(body: memoryview, out: NDArray[np.uint8]) -> None:
    from numcodecs import lz4

    _check_size(int.from_bytes(body[:4], "little"), out.nbytes, "the LZ4 frame declares")
    lz4.decompress(body, out)


def _decode_zlib(body: memoryview, out: NDArray[np.uint8]) -> None:
    _inflate(body, out, zlib.MAX_WBITS)


def _decode_gzip(body: memoryview, out: NDArray[np.uint8]) -> None:
    _inflate(body, out, zlib.MAX_WBITS | 16)


def _inflate(body: memoryview, out: NDArray[np.uint8], wbits: int) -> None:
    """One zlib or gzip stream; never holds more than the chunk's size and a byte."""
    stream = zlib.decompressobj(wbits)
    decoded = stream.decompress(body, out.nbytes + 1)
    _check_size(len(decoded), out.nbytes, "the stream holds at least")
    if not stream.eof:
        raise ValueError("the stream ends too early")
    out[:] = np.frombuffer(decoded, np.uint8)


_DECODERS: dict[str, _Decoder] = {
    "none": _decode_none,
    "blosc": _decode_blosc,
    "zstd": _decode_zstd,
    "zlib": _decode_zlib,
    "gzip": _decode_gzip,
    "lz4": _decode_lz4,
}


def _blosc_size(body: memoryview, limit: int) -> int | None:  # noqa: ARG001 - it is declared
    return int.from_bytes(body[4:8], "little")


def _zstd_size(body: memoryview, limit: int) -> int | None:  # noqa: ARG001 - it is declared
    return _zstd_content_size(body)


def _lz4_size(body: memoryview, limit: int) -> int | None:  # noqa: ARG001 - it is declared
    return int.from_bytes(body[:4], "little")


def _zlib_size(body: memoryview, limit: int) -> int | None:
    """Size of a stream, which declares none: found by decoding, as far as the limit."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of zlib and gzip
    return len(stream.decompress(body, limit + 1))


_SIZES: dict[str, Callable[[memoryview, int], int | None]] = {
    "blosc": _blosc_size,
    "zstd": _zstd_size,
    "lz4": _lz4_size,
    "zlib": _zlib_size,
    "gzip": _zlib_size,
}
