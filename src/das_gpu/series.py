"""A variable along time, read by sample range."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import StoredArray
from das_gpu.errors import ChunkMissingError

_CACHED_CHUNKS = 8


class Series:
    """A one-dimensional stored array read by sample range, with a few decoded chunks kept.

    Parameters
    ----------
    array : StoredArray
        One-dimensional.
    fill_missing : bool
        Take a missing chunk for the array's fill value, when it has one.
    """

    def __init__(self, array: StoredArray, *, fill_missing: bool = False) -> None:
        self.array = array
        self._fill_missing = fill_missing and array.fill_value is not None
        self._cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def chunk_size(self) -> int:
        """Samples of a whole chunk."""
        return self.array.chunk_shape[0]

    def chunk(self, number: int) -> NDArray[Any]:
        """Read-only samples of one chunk, without the padding of the last one."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        samples = np.empty(self.array.chunk_shape, self.array.dtype)
        try:
            self.array.read((number,), samples)
        except ChunkMissingError:
            if not self._fill_missing:
                raise
            samples.fill(self.array.fill_value)
        samples = samples[: len(self) - number * self.chunk_size]
        samples.flags.writeable = False
        with self._lock:
            self._cache[number] = samples
            if len(self._cache) > _CACHED_CHUNKS:
                self._cache.popitem(last=False)
        return samples

    def read(self, t0: int, t1: int) -> NDArray[Any]:
        """Copy samples ``[t0, t1)`` into a new array.

        Raises
        ------
        IndexError
            The range is not inside the array.
        ChunkMissingError, ChunkCorruptError
            A chunk cannot be had.
        """
        if not 0 <= t0 <= t1 <= len(self):
            raise IndexError(f"{self.array.name} has no samples [{t0}, {t1}): it has {len(self)}")
        samples = np.empty(t1 - t0, self.array.dtype)
        size = self.chunk_size
        for number in range(t0 // size, -(-t1 // size)):
            first = number * size
            start, stop = max(t0, first), min(t1, first + size)
            samples[start - t0 : stop - t0] = self.chunk(number)[start - first : stop - first]
        return samples
