"""A stand-in for `rmm.allocators.cupy`: its memory is a pool of whatever CuPy is there."""

from __future__ import annotations

from typing import Any

allocated: list[int] = []
"""Bytes of every allocation in this process."""


def rmm_cupy_allocator(nbytes: int) -> Any:
    """Allocate device memory."""
    import cupy

    allocated.append(nbytes)
    return cupy.cuda.MemoryPool().malloc(nbytes)
