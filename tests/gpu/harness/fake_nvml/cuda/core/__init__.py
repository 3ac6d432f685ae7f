"""A stand-in for NVIDIA's `cuda.core`, of which dask-cuda asks a context on a worker's device."""

from __future__ import annotations


class Device:
    """The device that comes first in CUDA_VISIBLE_DEVICES."""

    def set_current(self) -> None:
        """Make a context on the device."""
