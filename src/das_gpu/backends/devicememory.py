"""A segment's memory on a device, and pinned memory for its copies: made once, kept to the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array


class DeviceMemory:
    """Allocates through CuPy, on the current stream, and holds what it gave out.

    Parameters
    ----------
    cupy : module
        CuPy.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._held: list[Any] = []

    def allocate(self, nbytes: int) -> Any:
        """Device memory, as a pointer that offsets can be added to."""
        memory = self._cupy.cuda.alloc(max(nbytes, 1))
        self._held.append(memory)
        return memory

    def at(self, memory: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array in memory that was allocated.

        It is no view of another array: CuPy would copy one before a transform.
        """
        return self._cupy.ndarray(shape, dtype, memptr=memory)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new array, its contents undefined."""
        return self.at(self.allocate(int(np.prod(shape)) * dtype.itemsize), shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A host array that the device can copy from and to by itself."""
        count = int(np.prod(shape))
        memory = self._cupy.cuda.alloc_pinned_memory(max(count * dtype.itemsize, 1))
        self._held.append(memory)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def event(self) -> Any:
        """An event that no time is taken of; waiting for it leaves the processor to others."""
        return self._cupy.cuda.Event(block=True, disable_timing=True)

    def send(self, host: NDArray[Any], stream: Any) -> Array:
        """A copy on the device of a small host array, which is there after the stream."""
        pinned = self.pinned(host.shape, host.dtype)
        pinned[...] = host
        array = self.array(host.shape, host.dtype)
        array.data.copy_from_host_async(pinned.ctypes.data, pinned.nbytes, stream)
        return array

    def mark(self) -> int:
        """How much has been given out."""
        return len(self._held)

    def give_back(self, mark: int) -> None:
        """Let go of everything given out since a `mark`."""
        del self._held[mark:]
