"""Regular chunks made of bytes that lie in several places.

Zarr's chunks are all of one size, and files are as long as they happen to be: where a file ends
inside a chunk, where the files' own chunks differ or are very small, or are encoded in a way that
Zarr does not know, the chunks of the array are put together from pieces of the files. Of what
is stored as it is, just the samples that are wanted are read; a compressed chunk that reaches into
two chunks of the array is read for both.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.codec import decompress
from das_gpu.errors import ChunkCorruptError, ChunkMissingError

Fetch = Callable[[str, int, int], memoryview]
"""Reads a file's bytes from the first to the last-but-one."""

Box = tuple[tuple[int, int], ...]
"""First and last-but-one index along each axis."""

STEPS = ("shuffle", "zlib", "zstd", "blosc", "lz4", "fletcher32")
"""Encoding steps that can be undone, by the names used here."""

_MOST_BYTES = 1 << 31
_SLACK = 1 << 20
_HOLE = 1 << 16  # cheaper to read than to ask twice
_RUN = 1 << 25  # read at once


@dataclass(frozen=True, slots=True)
class Part:
    """One file's piece of an array.

    Attributes
    ----------
    file : str
    shape : tuple of int
    offset : int
        First byte, for samples stored as they are in C order; else -1.
    chunks : tuple of int
        Shape of the file's own chunks, else empty.
    steps : tuple of str
        Encoding of these, in the order of encoding; of :data:`STEPS`.
    stored : tuple of (int, int, int) or None
        For each chunk in C order: first byte, bytes, and a bit for each step that was left out;
        None for one that was never written.
    """

    file: str
    shape: tuple[int, ...]
    offset: int = -1
    chunks: tuple[int, ...] = ()
    steps: tuple[str, ...] = ()
    stored: tuple[tuple[int, int, int] | None, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def as_json(self) -> list[Any]:
        """As it stands in the index."""
        if self.offset >= 0:
            return [self.file, self.shape, self.offset]
        return [self.file, self.shape, self.chunks, self.steps, self.stored]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Part:
        """Read what `as_json` wrote; ValueError when it cannot be."""
        file, shape, *rest = value
        if len(rest) == 1:
            return cls(str(file), _sizes(shape), int(rest[0]))
        chunks, steps, stored = rest
        part = cls(
            str(file),
            _sizes(shape),
            -1,
            _sizes(chunks, 1),
            tuple(map(str, steps)),
            tuple(None if one is None else _sizes(one) for one in stored),  # type: ignore[misc]  # of three, by the test below
        )
        whole = all(one is None or len(one) == 3 for one in part.stored)
        if not whole or len(part.stored) != math.prod(part.grid) or set(part.steps) - set(STEPS):
            raise ValueError("a table of chunks is not whole")
        return part


@dataclass(frozen=True)
class JoinedArray:
    """An uncompressed array whose chunks are put together from parts of files.

    Attributes
    ----------
    dtype : str
        NumPy's text of the stored type, byte order included.
    chunks : tuple of int
        One chunk of the array.
    axis : int
        Along which the parts follow each other.
    parts : tuple of Part
    """

    dtype: str
    chunks: tuple[int, ...]
    axis: int
    parts: tuple[Part, ...]

    def as_json(self) -> dict[str, Any]:
        """As it stands in the index."""
        parts = [part.as_json() for part in self.parts]
        return {"dtype": self.dtype, "chunks": self.chunks, "axis": self.axis, "parts": parts}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> JoinedArray:
        """Read what `as_json` wrote; ValueError or KeyError when it cannot be."""
        parts = tuple(Part.from_json(one) for one in value["parts"])
        chunks = _sizes(value["chunks"], 1)
        own = (part.chunks for part in parts if part.chunks)
        itemsize = np.dtype(value["dtype"]).itemsize
        if max(math.prod(shape) for shape in (chunks, *own)) * itemsize > _MOST_BYTES:
            raise ValueError(f"a chunk has more than {_MOST_BYTES} bytes")
        return cls(str(value["dtype"]), chunks, int(value["axis"]), parts)

    @cached_property
    def _bounds(self) -> list[int]:
        """First index of each part along the axis, and the end."""
        return [0, *accumulate(part.shape[self.axis] for part in self.parts)]

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk."""
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    def assemble(self, index: tuple[int, ...], out: memoryview, fetch: Fetch) -> None:
        """Make one chunk; zeros where it reaches beyond the array.

        Parameters
        ----------
        index : tuple of int
            In the grid of chunks.
        out : memoryview
            Of `chunk_nbytes`.
        fetch : callable
            Reads bytes of a file; they may be overwritten by its next answer.

        Raises
        ------
        ChunkMissingError
            A chunk of a file was never written.
        ChunkCorruptError
            A chunk of a file cannot be decoded.
        """
        chunk = np.frombuffer(out, self.dtype).reshape(self.chunks)
        chunk.fill(0)
        starts = [i * c for i, c in zip(index, self.chunks, strict=True)]
        axis, bounds = self.axis, self._bounds
        first = max(0, bisect_right(bounds, starts[axis]) - 1)
        stop = starts[axis] + self.chunks[axis]
        for number in range(first, len(self.parts)):
            if bounds[number] >= stop:
                break
            part, box, target = self.parts[number], [], []
            for each, (start, size) in enumerate(zip(starts, self.chunks, strict=True)):
                low = start - (bounds[number] if each == axis else 0)
                a, b = max(0, low), min(part.shape[each], low + size)
                box.append((a, max(a, b)))
                target.append(slice(a - low, max(a, b) - low))
            self._read(part, tuple(box), chunk[tuple(target)], fetch)

    def _read(self, part: Part, box: Box, out: NDArray[Any], fetch: Fetch) -> None:
        """Fill ``out`` with a box of a part."""
        if not out.size:
            return
        if part.offset < 0:
            self._read_chunks(part, box, out, fetch)
            return
        (low, high), inner = box[0], box[1:]
        row_nbytes = math.prod(part.shape[1:]) * out.itemsize
        start = part.offset + low * row_nbytes
        size = (high - low) * row_nbytes
        body = _whole(fetch(part.file, start, start + size), size, part.file, start)
        rows = np.frombuffer(body, out.dtype).reshape(high - low, *part.shape[1:])
        out[...] = rows[(slice(None), *(slice(a, b) for a, b in inner))]

    def _read_chunks(self, part: Part, box: Box, out: NDArray[Any], fetch: Fetch) -> None:
        touched = (range(a // c, -(-b // c)) for (a, b), c in zip(box, part.chunks, strict=True))
        wanted: list[tuple[int, int, int, tuple[int, ...]]] = []
        for index in product(*touched):
            found = part.stored[int(np.ravel_multi_index(index, part.grid))]
            if found is None:
                raise ChunkMissingError(
                    f"{part.file} holds no chunk {index} of its samples: it was never written. "
                    "Ask who made the file."
                )
            wanted.append((*found, index))
        limit = 2 * math.prod(part.chunks) * out.itemsize + _SLACK
        for run in _runs(sorted(wanted)):
            first = run[0][0]
            if any(size > limit for _, size, _, _ in run):
                raise ChunkCorruptError(
                    f"A chunk of {part.file} is said to have over {limit} bytes. Index it again."
                )
            last = max(offset + size for offset, size, _, _ in run)
            body = _whole(fetch(part.file, first, last), last - first, part.file, first)
            for offset, size, left_out, index in run:
                piece = body[offset - first : offset - first + size]
                try:
                    chunk = _decode(piece, part, left_out, out.dtype)
                except (ValueError, RuntimeError, struct.error) as error:
                    raise ChunkCorruptError(
                        f"A chunk of {part.file}, {size} bytes from byte {offset}, cannot be "
                        f"decoded: {error}. Copy the file again from its origin."
                    ) from error
                _copy(chunk, index, box, out)


def _copy(chunk: NDArray[Any], index: Sequence[int], box: Box, out: NDArray[Any]) -> None:
    """Copy what a decoded chunk has of a box."""
    source, target = [], []
    for i, size, (low, high) in zip(index, chunk.shape, box, strict=True):
        start, stop = max(low, i * size), min(high, (i + 1) * size)
        source.append(slice(start - i * size, stop - i * size))
        target.append(slice(start - low, stop - low))
    out[tuple(target)] = chunk[tuple(source)]


def _runs(
    pieces: Sequence[tuple[int, int, int, tuple[int, ...]]],
) -> Iterator[list[tuple[int, int, int, tuple[int, ...]]]]:
    """Gather pieces that lie close together, so that they are read at once."""
    run: list[tuple[int, int, int, tuple[int, ...]]] = []
    for piece in pieces:
        end = run[-1][0] + run[-1][1] if run else 0
        if run and (piece[0] > end + _HOLE or piece[0] + piece[1] > run[0][0] + _RUN):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _whole(body: memoryview, size: int, file: str, start: int) -> memoryview:
    if body.nbytes != size:
        raise ChunkCorruptError(
            f"{file} has {body.nbytes} of the {size} bytes that should follow its byte {start}. "
            "Index it again, or copy it again from its origin."
        )
    return body


def _decode(body: memoryview, part: Part, left_out: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undo the steps of a chunk's encoding, from the last to the first."""
    nbytes = math.prod(part.chunks) * dtype.itemsize
    for number in reversed(range(len(part.steps))):
        if left_out >> number & 1:
            continue
        match part.steps[number]:
            case "shuffle":
                planes = np.frombuffer(body, np.uint8).reshape(dtype.itemsize, -1)
                body = np.ascontiguousarray(planes.T).reshape(-1).data
            case "fletcher32":
                from numcodecs.fletcher32 import Fletcher32

                body = memoryview(Fletcher32().decode(bytes(body)))
            case "lz4":
                body = _unpack_lz4(body, nbytes)
            case compressor:
                out = np.empty(nbytes, np.uint8)
                decompress(compressor, body, out)
                body = out.data
    if body.nbytes != nbytes:
        raise ValueError(f"it has {body.nbytes} bytes where {nbytes} are expected")
    return np.frombuffer(body, dtype).reshape(part.chunks)


def _unpack_lz4(body: memoryview, nbytes: int) -> memoryview:
    """Undo HDF5's LZ4 filter: sizes of all and of a block, then each block after its size."""
    size, block = struct.unpack_from(">qi", body)
    if size != nbytes or block <= 0:
        raise ValueError(f"the LZ4 frame declares {size} bytes where the chunk has {nbytes}")
    out, place = np.empty(nbytes, np.uint8), 12
    for start in range(0, nbytes, block):
        piece = out[start : start + block]
        (stored,) = struct.unpack_from(">i", body, place)
        raw = body[place + 4 : place + 4 + max(stored, 0)]
        if stored == piece.nbytes:  # it would have grown
            piece[:] = np.frombuffer(raw, np.uint8)
        else:
            header = struct.pack("<i", piece.nbytes)
            decompress("lz4", memoryview(header + bytes(raw)), piece)
        place += 4 + stored
    return out.data


def _sizes(values: Sequence[Any], least: int = 0) -> tuple[int, ...]:
    sizes = tuple(int(one) for one in values)
    if any(one < least for one in sizes):
        raise ValueError(f"{sizes} has a number below {least}")
    return sizes
