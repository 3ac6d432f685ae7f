"""Zarr's own codec pipeline over our store, for chunks that are not plain.

Imports zarr: import this module late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.storage import MemoryStore, StorePath

from das_gpu.store import Store
from das_gpu.transports import CheckSize, Part


class ObjectAbsentError(Exception):
    """There is no object of that key; Zarr would silently take it for fill values."""


class _Fetching(MemoryStore):
    """What Zarr asks for, fetched from our store: whole objects, or parts of shards."""

    def __init__(
        self, store: Store, check: CheckSize, inspect: Callable[[memoryview], None], indices: int
    ) -> None:
        super().__init__(read_only=True)
        self._source = store
        self._check = check
        self._inspect = inspect
        self._indices = indices
        self.fetched = 0

    @property
    def found(self) -> bool:
        """Whether a chunk was fetched: not a shard's index alone, which says there is none."""
        return self._indices < 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        body = await asyncio.to_thread(self._fetch, key, _part(byte_range))
        return (prototype or default_buffer_prototype()).buffer.from_bytes(body)

    def _fetch(self, key: str, part: Part | None) -> bytes:
        body = self._source.get(key, check=self._check, part=part)
        if body is None:
            raise ObjectAbsentError(key)
        self.fetched += body.nbytes
        self._indices -= 1
        if self._indices < 0:
            self._inspect(body)
        return bytes(body)


def read_chunk(
    store: Store,
    name: str,
    metadata: ArrayV2Metadata | ArrayV3Metadata,
    box: tuple[slice, ...],
    out: NDArray[Any],
    *,
    check: CheckSize,
    inspect: Callable[[memoryview], None],
    sharded: bool,
) -> int:
    """Decode a box of an array that lies in one chunk.

    Parameters
    ----------
    store, name, metadata
        The array.
    box : tuple of slice
        Inside the array.
    out : ndarray
        The chunk; its beginning is filled with the box, the rest with zeros.
    check : callable
        Told the size of what is about to be fetched.
    inspect : callable
        Given a chunk's bytes before they are decoded; raises to refuse them.
    sharded : bool
        The chunk lies in a shard, whose index is fetched first.

    Returns
    -------
    int
        Bytes fetched.

    Raises
    ------
    ObjectAbsentError
        The chunk's object is not there.
    Exception
        Of any kind, by codecs that are given bad bytes.
    """
    fetching = _Fetching(store, check, inspect, int(sharded))
    known: Any = metadata
    array: Any = zarr.Array(zarr.AsyncArray(metadata=known, store_path=StorePath(fetching, name)))
    values = np.asarray(array[box])
    if not fetching.found:
        raise ObjectAbsentError(name)
    flat = out.reshape(-1).view(np.uint8)
    flat[:] = 0
    out[tuple(slice(0, n) for n in values.shape)] = values
    return fetching.fetched


def _part(wanted: ByteRequest | None) -> Part | None:
    match wanted:
        case RangeByteRequest(start, end):
            return start, end
        case OffsetByteRequest(offset):
            return offset, None
        case SuffixByteRequest(suffix):
            return -suffix, None
    return None
