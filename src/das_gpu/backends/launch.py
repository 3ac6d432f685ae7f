"""A kernel launch as data: which kernel, how it is compiled, its geometry and its arguments.

Computed apart from the device, so that what a test executes on a processor and what a GPU
executes are launched alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

TYPE_NAMES = {
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned int",
    "int64": "long long",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}
"""What C calls the dtypes of samples."""


def define(name: str, value: str | int | np.dtype[Any]) -> str:
    """Spell a compiler option that defines a macro; a dtype becomes its C type."""
    text = TYPE_NAMES[value.name] if isinstance(value, np.dtype) else str(value)
    return f"-D{name}={text}"


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes
    ----------
    source : str
        File name in ``kernels/``, like ``gather.cu``.
    options : tuple of str
        Macro definitions the source is compiled with.
    kernel : str
        Name of the ``extern "C" __global__`` function.
    grid, block : (int, int, int)
        Blocks, and threads in each.
    args : tuple
        Arrays (device arrays, or NumPy's where a processor executes the kernel), NumPy scalars
        of exactly the parameter's type, and structures as 0-d structured arrays.
    shared_bytes : int
        Dynamic shared memory of each block.
    """

    source: str
    options: tuple[str, ...]
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[Any, ...]
    shared_bytes: int = 0
