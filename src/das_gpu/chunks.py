"""One stored array, read chunk by chunk.

Zarr's own array reads allocate afresh, copy once more and turn a missing chunk silently into
fill values. Here the bytes are fetched raw and decoded straight into the caller's buffer.
Chunks that are not plain (filters, Fortran order, shards, rare codecs) go through Zarr's codec
pipeline, more slowly, with the same errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.bloscframe import Pick
from das_gpu.codec import Codec, Run, Scratch
from das_gpu.errors import (
    ChunkCorruptError,
    ChunkError,
    ChunkMissingError,
    ChunkUnreadableError,
    DasGpuError,
    SourceError,
)
from das_gpu.locations import Location
from das_gpu.metadata import ArrayMetadata
from das_gpu.store import Store

if TYPE_CHECKING:
    from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata


_FRAME_SLACK = 1 << 20  # headers, indices and incompressible blocks of one object
_FILTERED = 8
_FETCHES = 2  # a chunk that cannot be decoded is fetched once more: it may be the wire's fault


class StoredArray:
    """One Zarr array in a store, read chunk by chunk. Safe to call from several threads.

    A pickle holds no secret: the store is opened anew where it is loaded.

    Parameters
    ----------
    name : str
        Key prefix of the array below the location: its name in the group.
    metadata : ArrayMetadata, or zarr ArrayV2Metadata or ArrayV3Metadata
        As `das_gpu.metadata` understood it or, where it did not, as Zarr parsed it.
    store : Store
        Opened at the group's place.

    Attributes
    ----------
    name : str
    shape, chunk_shape : tuple of int
        In stored order. For a sharded array the chunk is the inner one.
    dtype : numpy.dtype
        Of decoded samples, in native byte order.
    dims : tuple of str
        Dimension names; empty when the store gives none.
    fill_value : object or None
        None when the metadata says null.
    attributes : dict
        The array's own attributes.
    plain : bool
        True when chunks are decoded straight into the caller's buffer.
    codec : str
        Secret-free description of the encoding.
    """

    def __init__(
        self,
        name: str,
        metadata: ArrayMetadata | ArrayV2Metadata | ArrayV3Metadata,
        store: Store,
    ) -> None:
        self.name = name
        self._metadata = metadata
        self._store = store
        stored = _stored_dtype(metadata)
        self.shape: tuple[int, ...] = tuple(metadata.shape)
        self.dtype: np.dtype[Any] = stored.newbyteorder("=")
        self.chunk_shape, self._shard_shape = _grid(name, metadata)
        self.attributes: dict[str, Any] = dict(metadata.attributes)
        self.dims = _dims(metadata, self.attributes)
        self.fill_value: object | None = metadata.fill_value
        pairs = zip(self._shard_shape or self.chunk_shape, self.chunk_shape, strict=True)
        self._chunks_per_object = math.prod(shard // chunk for shard, chunk in pairs)
        self._codec = Codec.of(metadata, stored)
        self.codec, self.plain = self._codec.description, self._codec.plain

    def __reduce__(self) -> tuple[type[StoredArray], tuple[object, ...]]:
        return StoredArray, (self.name, self._metadata, self._store)

    def __repr__(self) -> str:
        return f"StoredArray({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    @property
    def location(self) -> Location:
        """The group's place."""
        return self._store.location

    @property
    def is_local(self) -> bool:
        """Whether all that is read is on this machine."""
        return self._store.is_local

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one decoded chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of chunks along each dimension, in stored order."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))

    def key(self, index: tuple[int, ...]) -> str:
        """Name of the stored object that holds a chunk, below the location.

        Raises
        ------
        IndexError
            The array has no such chunk.
        """
        counts = self.grid_shape
        if len(index) != len(counts) or not all(
            0 <= i < n for i, n in zip(index, counts, strict=True)
        ):
            raise IndexError(f"{self.name} has no chunk {index}: its grid is {counts}")
        if self._shard_shape is not None:
            sizes = zip(index, self.chunk_shape, self._shard_shape, strict=True)
            index = tuple(i * chunk // shard for i, chunk, shard in sizes)
        name = self._metadata.encode_chunk_key(index)
        return f"{self.name}/{name}" if self.name else name

    def read(self, index: tuple[int, ...], out: NDArray[Any]) -> int:
        """Fetch, check and decode one chunk.

        Parameters
        ----------
        index : tuple of int
            Chunk index in stored order.
        out : ndarray, ``chunk_shape``, ``dtype``, C-contiguous
            Filled with the chunk, edge chunks included: beyond the array's shape stand the
            stored padding or, when Zarr's pipeline is used, zeros. Undefined after an error.

        Returns
        -------
        int
            Bytes fetched.

        Raises
        ------
        ChunkMissingError
            The store has no such object.
        ChunkCorruptError
            The bytes cannot be decoded to the promised size, though fetched twice.
        ChunkUnreadableError
            The store answers, but never with the whole object.
        SourceError, AccessDeniedError
            The store failed or refused.
        """
        return self.load(index, lambda chunk: chunk.decode(out))

    def load(self, index: tuple[int, ...], use: Callable[[Chunk], object]) -> int:
        """Fetch one chunk and have it decoded and used; see :meth:`read`.

        Parameters
        ----------
        index : tuple of int
            Chunk index in stored order.
        use : callable
            Given the chunk when its bytes are there; may wait, and raise. Called once more when
            the chunk turns out to be corrupt.
        """
        key, started_s = self.key(index), time.monotonic()
        for attempt in range(_FETCHES):
            try:
                chunk = self._fetch(index, key)
                use(chunk)
            except ChunkCorruptError:
                if attempt == _FETCHES - 1:
                    raise
            except ChunkError:
                raise
            except SourceError as exc:
                if self._store.is_alive(started_s):
                    raise ChunkUnreadableError(str(exc)) from exc
                raise
            else:
                return chunk.stored_bytes
        raise AssertionError  # the last attempt returns or raises

    def _fetch(self, index: tuple[int, ...], key: str) -> Chunk:
        if not self.plain:
            through_zarr = partial(self._read_through_zarr, index, key)
            return Chunk(self.chunk_shape, self.dtype, through_zarr)
        body = self._store.get(key, check=partial(self._check_stored_size, key))
        if body is None:
            raise self._missing(key)
        decode, runs = partial(self._decode, key, body), partial(self._runs, key, body)
        pick = partial(self._pick, key, body)
        return Chunk(self.chunk_shape, self.dtype, decode, runs, pick, body.nbytes)

    def _decode(self, key: str, body: memoryview, out: NDArray[Any]) -> int:
        try:
            self._codec.decode(body, out)
        except ValueError as exc:
            raise self._corrupt(key, str(exc)) from exc
        return body.nbytes

    def _runs(self, key: str, body: memoryview, scratch: Scratch) -> Iterator[Run]:
        try:
            yield from self._codec.runs(body, self.chunk_shape, self.dtype, scratch)
        except ValueError as exc:
            raise self._corrupt(key, str(exc)) from exc

    def _pick(self, key: str, body: memoryview, *others: Any) -> bool:
        try:
            return self._codec.pick(body, self.chunk_shape, self.dtype, *others)
        except ValueError as exc:
            raise self._corrupt(key, str(exc)) from exc

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Read a box by integers and slices; a lost chunk raises, it is never filled in."""
        items = item if isinstance(item, tuple) else (item,)
        items += (slice(None),) * (self.ndim - len(items))
        bounds: list[tuple[int, int]] = []
        inside: list[slice | int] = []
        for one, n in zip(items, self.shape, strict=True):
            span = range(n)[one]
            if isinstance(span, int):
                bounds.append((span, span + 1))
                inside.append(0)
            else:
                bounds.append((min(span), max(span) + 1) if span else (0, 0))
                inside.append(slice(None, None, span.step))
        box = np.empty([hi - lo for lo, hi in bounds], self.dtype)
        if box.size:
            self._read_box(bounds, box)
        return np.asarray(box[tuple(inside)])

    def _read_box(self, bounds: list[tuple[int, int]], box: NDArray[Any]) -> None:
        sizes = self.chunk_shape
        scratch = np.empty(sizes, self.dtype)
        spans = (range(lo // c, -(-hi // c)) for (lo, hi), c in zip(bounds, sizes, strict=True))
        for index in product(*spans):
            self.read(index, scratch)
            source: list[slice] = []
            target: list[slice] = []
            for i, size, (low, high) in zip(index, sizes, bounds, strict=True):
                start, stop = max(low, i * size), min(high, (i + 1) * size)
                source.append(slice(start - i * size, stop - i * size))
                target.append(slice(start - low, stop - low))
            box[tuple(target)] = scratch[tuple(source)]

    def _read_through_zarr(
        self,
        index: tuple[int, ...],
        key: str,
        out: NDArray[Any],
    ) -> int:
        from das_gpu.pipeline import ObjectAbsentError, read_chunk

        known: Any = self._metadata  # Zarr's own: a plain array's chunks are not read here
        box = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, self.chunk_shape, self.shape, strict=True)
        )
        # Filters may change sizes, but hardly so much.
        most = _FILTERED * self.chunk_nbytes + _FRAME_SLACK
        try:
            return read_chunk(
                self._store,
                self.name,
                known,
                box,
                out,
                check=partial(self._check_stored_size, key),
                inspect=partial(self._codec.check_declared_size, limit=most),
                sharded=self._shard_shape is not None,
            )
        except DasGpuError:
            raise
        except ObjectAbsentError as exc:
            raise self._missing(key) from exc
        except Exception as exc:  # codecs raise whatever they like on bad bytes
            raise self._corrupt(key, f"{type(exc).__name__}: {exc}") from exc

    def _check_stored_size(self, key: str, size: int) -> None:
        if size == 0:
            raise self._corrupt(key, "the object is empty")
        limit = self._chunks_per_object * (2 * self.chunk_nbytes + _FRAME_SLACK)
        if size > limit:
            raise self._corrupt(
                key,
                f"the object has {size} bytes; {self._chunks_per_object} chunk(s) of "
                f"{self.chunk_nbytes} bytes cannot need more than {limit}",
            )

    def _missing(self, key: str) -> ChunkMissingError:
        return ChunkMissingError(
            f"{self.location} holds no object {key}: this chunk of {self.name} was never "
            "written, or was lost. Ask who publishes the archive."
        )

    def _corrupt(self, key: str, reason: str) -> ChunkCorruptError:
        return ChunkCorruptError(
            f"Chunk {key} of {self.location} cannot be decoded to {self.chunk_shape} "
            f"{self.dtype}: {reason}. Copy the object again from its origin."
        )


@dataclass
class Chunk:
    """A stored chunk, to be decoded by the thread that has fetched it, in one of three ways.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    stored_bytes : int
        Bytes fetched; where Zarr's codecs decode, they are fetched only then.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _decode: Callable[[NDArray[Any]], int]
    _runs: Callable[[Scratch], Iterator[Run]] | None = None
    _pick: Callable[..., bool] | None = None
    stored_bytes: int = 0

    def decode(self, out: NDArray[Any]) -> NDArray[Any]:
        """Decode all of it into ``out`` and return that; see `StoredArray.read`."""
        if out.shape != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous {self.shape} {self.dtype}, not {out.shape} {out.dtype}"
            )
        self.stored_bytes = self._decode(out)
        return out

    def pick(
        self, wanted: tuple[range, range], pick: Pick, out: NDArray[Any], scratch: Scratch
    ) -> bool:
        """Decode only what is wanted into ``out``, if its encoding allows; see `Codec.pick`."""
        return self._pick is not None and self._pick(wanted, pick, out, scratch)

    def runs(self, scratch: Scratch) -> Iterator[Run]:
        """Decode it a few rows at a time, where its encoding allows; see `Codec.runs`."""
        if self._runs is None:
            yield 0, self.decode(scratch.array(self.shape, self.dtype))
        else:
            yield from self._runs(scratch)


def _stored_dtype(
    metadata: ArrayMetadata | ArrayV2Metadata | ArrayV3Metadata,
) -> np.dtype[Any]:
    if isinstance(metadata, ArrayMetadata):
        return metadata.stored
    return np.dtype(metadata.dtype.to_native_dtype())


def _grid(
    name: str, metadata: ArrayMetadata | ArrayV2Metadata | ArrayV3Metadata
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk shape, and the shard's when chunks are gathered in shards."""
    try:
        chunks = tuple(metadata.chunks)
        shards = None if isinstance(metadata, ArrayMetadata) else metadata.shards
    except NotImplementedError as exc:
        raise SourceError(
            f"The chunks of {name} form no regular grid; das-gpu reads regular grids only."
        ) from exc
    if not all(size > 0 for size in chunks):
        raise SourceError(f"The chunks of {name} are said to be {chunks}; sizes must be positive.")
    return chunks, None if shards is None else tuple(shards)


def _dims(
    metadata: ArrayMetadata | ArrayV2Metadata | ArrayV3Metadata, attributes: Mapping[str, Any]
) -> tuple[str, ...]:
    """Dimension names from the metadata or, as xarray writes them in format 2, an attribute."""
    named = getattr(metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    if not isinstance(named, (list, tuple)) or len(named) != len(metadata.shape):
        return ()
    return tuple(str(dim) for dim in named) if all(named) else ()
