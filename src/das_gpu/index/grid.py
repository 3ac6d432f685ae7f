"""What chunks the parts of an array make up: those of the files, or others put together of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import numpy as np

from das_gpu.index.hdf5 import Piece
from das_gpu.virtual.document import Reference
from das_gpu.virtual.joined import JoinedArray, Part

_MOST_BYTES = 32 << 20
"""Of a chunk that is cut out of samples stored as they are."""
_LEAST_BYTES = 1 << 20
_SMALL_BYTES = 256 << 10
_MOST_SAMPLES = 1 << 17
_LEAST_SAMPLES = 1 << 10
_TARGET_BYTES = 16 << 20

_COMPRESSORS: dict[str, dict[str, Any]] = {
    "zlib": {"id": "zlib", "level": 1},
    "zstd": {"id": "zstd", "level": 1},
    "blosc": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
}
"""As decoders want them; how hard it was compressed makes no difference to them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is described and where its chunks are: as references, or joined.

    Attributes
    ----------
    metadata : dict
        The array's ``.zarray``.
    chunks : dict of str to Reference
        By the chunk's name in the array; empty when ``joined`` is given.
    joined : JoinedArray or None
    """

    metadata: dict[str, Any]
    chunks: dict[str, Reference]
    joined: JoinedArray | None


def lay_out(pieces: Sequence[Piece], axis: int) -> Layout:
    """Choose the chunks of an array made of parts that follow each other along an axis.

    The files' own chunks are the array's where these form one regular grid; samples stored as they
    are get cut into chunks of at most 32 MiB, where their numbers have a common divisor that
    is neither too large nor too small. All else is joined.

    Parameters
    ----------
    pieces : sequence of Piece
        Of one type, and one shape but for the axis.
    axis : int
    """
    parts = [piece.part for piece in pieces]
    dtype = pieces[0].dtype
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    steps, itemsize = parts[0].steps, np.dtype(dtype).itemsize
    regular = _own_chunks(parts, axis, itemsize) or _cut(parts, axis, itemsize)
    if regular is None:
        chunks = _joined_chunks(parts, axis, itemsize)
        joined = JoinedArray(dtype, chunks, axis, tuple(parts))
        return Layout(_metadata(shape, chunks, dtype, ()), {}, joined)
    references = _references(parts, axis, regular, itemsize)
    return Layout(_metadata(shape, regular, dtype, steps), dict(references), None)


def _metadata(
    shape: Sequence[int], chunks: Sequence[int], dtype: str, steps: Sequence[str]
) -> dict[str, Any]:
    shuffled = "shuffle" in steps
    compressor = next((_COMPRESSORS[step] for step in steps if step in _COMPRESSORS), None)
    return {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunks),
        "dtype": dtype,
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "shuffle", "elementsize": int(dtype[2:])}] if shuffled else None,
        "compressor": compressor,
    }


def _own_chunks(parts: Sequence[Part], axis: int, itemsize: int) -> tuple[int, ...] | None:
    """The files' own chunks, where they are one regular grid in an encoding that Zarr knows."""
    first = parts[0]
    if not first.chunks or first.steps not in _EXPRESSIBLE:
        return None
    same = all((part.chunks, part.steps) == (first.chunks, first.steps) for part in parts)
    aligned = all(part.shape[axis] % first.chunks[axis] == 0 for part in parts[:-1])
    encoded = all(one is None or not one[2] for part in parts for one in part.stored)
    large = len(first.shape) == 1 or math.prod(first.chunks) * itemsize >= _SMALL_BYTES
    return first.chunks if same and aligned and encoded and large else None


_EXPRESSIBLE = frozenset(
    [(), *((one,) for one in _COMPRESSORS), *(("shuffle", one) for one in _COMPRESSORS)]
)


def _cut(parts: Sequence[Part], axis: int, itemsize: int) -> tuple[int, ...] | None:
    """Whole rows of samples stored as they are, as many as divide every file."""
    if any(part.chunks for part in parts):
        return None
    first = parts[0].shape
    if axis == 1 and any(part.shape != first for part in parts):
        return None
    common = math.gcd(*(part.shape[0] for part in parts))
    row_bytes = math.prod(first[1:]) * itemsize
    one_dimension = len(first) == 1
    most = _MOST_SAMPLES if one_dimension else max(1, _MOST_BYTES // row_bytes)
    least = _LEAST_SAMPLES if one_dimension else -(-_LEAST_BYTES // row_bytes)
    rows = max(n for n in _divisors(common) if n <= most)
    # Small chunks are put up with where whole files are no larger.
    if rows < least and any(part.shape[0] != rows for part in parts):
        return None
    return (rows, *first[1:])


def _divisors(number: int) -> list[int]:
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return [*low, *(number // n for n in low)]


def _references(
    parts: Sequence[Part], axis: int, chunks: tuple[int, ...], itemsize: int
) -> Iterator[tuple[str, Reference]]:
    starts = [0, *accumulate(part.shape[axis] for part in parts)]
    nbytes = math.prod(chunks) * itemsize
    for part, start in zip(parts, starts, strict=False):
        grid = tuple(-(-n // c) for n, c in zip(part.shape, chunks, strict=True))
        for number, index in enumerate(product(*map(range, grid))):
            place = list(index)
            place[axis] += start // chunks[axis]
            name = ".".join(map(str, place))
            if part.offset >= 0:
                yield name, (part.file, part.offset + number * nbytes, nbytes)
            elif (found := part.stored[number]) is not None:
                yield name, (part.file, found[0], found[1])


def _joined_chunks(parts: Sequence[Part], axis: int, itemsize: int) -> tuple[int, ...]:
    """Chunks of about 16 MiB, of what lies together in the files.

    None is longer than a file: whoever loses one does not lose its neighbours with it.
    """
    shape = list(parts[0].shape)
    longest = max(part.shape[axis] for part in parts)
    if len(shape) == 1:
        return (min(longest, _MOST_SAMPLES),)
    other = 1 - axis
    along = max(_together(part, axis) for part in parts)
    across = max(_together(part, other) for part in parts)
    times = max(1, _TARGET_BYTES // (along * across * itemsize))
    wide = min(shape[other], across * times)
    long = along * max(1, _TARGET_BYTES // (along * wide * itemsize))
    chunks = [0, 0]
    chunks[axis], chunks[other] = min(longest, long), wide
    return tuple(chunks)


def _together(part: Part, axis: int) -> int:
    """Samples along an axis that are read together anyway."""
    if part.chunks:
        return part.chunks[axis]
    return 1 if axis == 0 else part.shape[axis]
