"""Results that stay on the device: a row's images or envelopes in memory of their own.

That memory is no pool's. Whoever takes an array may still be using it, on a stream that nobody
here knows, when he lets it go; a pool would hand it to the next row at once, whereas CUDA frees
memory only after all that was begun before.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array, Chain
from das_gpu.backends.devicememory import DeviceMemory


class Resident:
    """Keeps copies of rows' results on the device until they are collected, oldest first.

    Parameters
    ----------
    cupy : module
        CuPy.
    memory : DeviceMemory
        For what a workspace needs all its life.
    stream : stream
        The one that rows are computed on; it is current where a method is called.
    """

    def __init__(self, cupy: Any, memory: DeviceMemory, stream: Any) -> None:
        self._cupy, self._memory, self._stream = cupy, memory, stream
        self._kept: deque[Array] = deque()

    def keep(self, result: Array) -> None:
        """Copy a row's result on the device, before the next row overwrites it."""
        kept = self._empty(result.shape, result.dtype)
        kept.data.copy_from_device_async(result.data, result.nbytes, self._stream)
        self._kept.append(kept)

    def images(self) -> list[Array]:
        """Take the oldest row's images, one per band, once the row is known to be computed."""
        kept = self._kept.popleft()
        return [kept[band] for band in range(kept.shape[0])]

    def envelopes(
        self, live: NDArray[np.bool_], levels: NDArray[np.float64], chain: Chain
    ) -> list[Array]:
        """Take the oldest row's envelopes as they are delivered: see `das_gpu.backends.Outcome`.

        Parameters
        ----------
        live, levels, chain
            As for `arrays`.
        """
        kept = self._kept.popleft()
        width = chain.band_channels
        if kept.dtype != np.float32 or np.isfinite(levels[:, 2]).any():
            # Rare: double precision, or live channels that are silent to the last bit somewhere.
            made = np.concatenate(arrays(self._to_host(kept), live, levels, chain))
            kept = self._empty(made.shape, made.dtype)
            self._from_host(made, kept)
        else:
            low = np.where(np.isfinite(levels[:, 0]), levels[:, 0], 0.0)
            for band in range(chain.bands):
                for channel in np.flatnonzero(~live[chain.band(band)]).tolist():
                    kept[band * width + channel] = low[band]
            self._stream.synchronize()
        return [kept[band * width : (band + 1) * width] for band in range(chain.bands)]

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        with self._cupy.cuda.using_allocator(None):
            return self._cupy.empty(shape, dtype)

    def _from_host(self, values: NDArray[Any], target: Array) -> None:
        mark = self._memory.mark()
        pinned = self._memory.pinned(values.shape, values.dtype)
        pinned[...] = values
        target.data.copy_from_host_async(pinned.ctypes.data, values.nbytes, self._stream)
        self._stream.synchronize()
        self._memory.give_back(mark)

    def _to_host(self, array: Array) -> NDArray[Any]:
        mark = self._memory.mark()
        pinned = self._memory.pinned(array.shape, array.dtype)
        array.data.copy_to_host_async(pinned.ctypes.data, array.nbytes, self._stream)
        self._stream.synchronize()
        host = pinned.copy()
        self._memory.give_back(mark)
        return host


def arrays(
    db: NDArray[Any], live: NDArray[np.bool_], levels: NDArray[np.float64], chain: Chain
) -> list[NDArray[np.float32]]:
    """The envelope of each band as it is delivered: see `das_gpu.backends.Outcome`.

    Parameters
    ----------
    db : (bands * band_channels, samples) array
        The envelope in dB.
    live : (channels,) bool array
        Which channels live.
    levels : (bands, 3) float64 array
        Lowest and highest live level, and the floor below which nothing is drawn.
    chain : Chain
        For the bands.
    """
    made = []
    for band, (low, _, floor) in enumerate(levels):
        rows = slice(band * chain.band_channels, (band + 1) * chain.band_channels)
        array = np.maximum(db[rows], floor).astype(np.float32)
        array[~live[chain.band(band)]] = low if np.isfinite(low) else 0.0
        made.append(array)
    return made
