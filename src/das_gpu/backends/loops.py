"""The compiled loops there are, and how to call them without numba.

A loop is compiled by numba once on a machine; its code is kept on disk and loaded from there in
milliseconds, where importing numba takes half a second. Each loop is one function of C: an array
is its address and its shape, and nothing of Python is held or touched while it runs.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from das_gpu.backends import machinecode

ROW_BYTES = 32
"""Of a row of channels side by side: one register of AVX2. With rows as long as AVX-512's the work
arrays crowd the second cache, and where there is no AVX-512 the values in hand do not fit the
registers."""
MEDIAN_BLOCK = 32
"""Real columns that are turned at once for their medians: two lines of cache of each channel."""
LANES = 8
"""Channels side by side in second-order sections: of AVX-512 one register, of AVX2 two."""
CASCADE = 4
"""Sections that a sample goes through at once. Theirs are 8 vectors of state and 20 of
coefficients, which AVX-512's registers hold; and while a section waits for its own last sample,
the others work."""

LOOPS = {
    "compiled.medians": "real[2] int[1] int int real[1] key[1] key real[1]",
    "compiled.envelope_32": "real[2] real[1] real[2]",
    "compiled.envelope_64": "real[2] real[1] real[2]",
    "compiledimage.grey": "real[2] bool[1] real real real int[2] real[2] int[2] real[2] "
    "real[1] int[1] real[1] pixel[2]",
    "centre.centre": "double[2] int int int int double[1] key[1] bool[1]",
    "eightbit.truncate_all": "real[2] bool[1] double double double byte[2]",
    "recursive.two_ways": "double[1] int int int double[1] double[1] double[1] double[1] real[1]",
    "unshuffle.pick": "byte[1] int int int int int int int word[2]",
    "recursive.join": "real[2] int real[1] real[1] real[2]",
    "spectrum.analytic": "held[1] int[2] int[1] int[2] int[2] int[2] real[1] int[1] int[2] "
    "real[1] int key int[2] double[2] real[1] key[1] key[1] real[1] real[1] bool[1] int real[1]",
}
"""By module and name, the kinds of their arguments: numbers, and arrays of so many dimensions.
``real`` is the precision of the steps, ``key`` an integer of its size, ``held`` the type of the
archive's samples and ``pixel`` that of an image's."""
_FIXED = {"int": "intp", "double": "f8", "bool": "?", "byte": "u1", "word": "u4"}
_NUMBERS: dict[str, Any] = {
    "i4": ctypes.c_int32,
    "i8": ctypes.c_int64,
    "f4": ctypes.c_float,
    "f8": ctypes.c_double,
}
_LOADING = Lock()


@dataclass(frozen=True)
class Argument:
    """One argument of a loop: of this type, a number or an array of ``ndim`` dimensions."""

    dtype: np.dtype[Any]
    ndim: int


class Loop:
    """A compiled loop.

    Parameters
    ----------
    name : str
    arguments : tuple of Argument
    address : int
        Of its code.
    """

    def __init__(self, name: str, arguments: tuple[Argument, ...], address: int) -> None:
        self._name, self._arguments = name, arguments
        kinds: list[Any] = []
        for one in arguments:
            number = _NUMBERS.get(one.dtype.str[1:])
            kinds += [ctypes.c_void_p, *[ctypes.c_ssize_t] * one.ndim] if one.ndim else [number]
        # The interpreter's lock is not held meanwhile.
        self._function = ctypes.CFUNCTYPE(None, *kinds)(address)

    def __call__(self, *given: Any) -> None:
        """Run it; it trusts what arrays hold, but not what they are.

        Raises
        ------
        TypeError
            An array has another type or number of dimensions, or gaps.
        """
        values: list[Any] = []
        for one, wanted in zip(given, self._arguments, strict=True):
            if not wanted.ndim:
                values.append(one.item() if isinstance(one, np.generic) else one)
                continue
            if (one.dtype, one.ndim) != (wanted.dtype, wanted.ndim) or not one.flags.c_contiguous:
                raise TypeError(
                    f"{self._name} was given {one.dtype}{one.shape}, strides {one.strides}, where "
                    f"it takes {wanted.dtype} of {wanted.ndim} dimensions without gaps"
                )
            values.append(one.__array_interface__["data"][0])
            values.extend(one.shape)
        self._function(*values)


def loop(name: str, **kinds: Any) -> Loop:
    """Load a loop, or compile it first.

    Parameters
    ----------
    name : str
        One of `LOOPS`.
    **kinds : dtype
        Of ``real``, ``held`` and ``pixel``, as far as its arguments are of these kinds.

    Raises
    ------
    ImportError
        It has to be compiled, and numba cannot be imported.
    """
    return _loop(name, tuple((kind, np.dtype(kinds[kind]).str[1:]) for kind in sorted(kinds)))


@lru_cache(maxsize=64)
def _loop(name: str, kinds: tuple[tuple[str, str], ...]) -> Loop:
    arguments = _arguments(name, dict(kinds))
    symbol = "_".join(["das_gpu", name.replace(".", "_"), *(dtype for _, dtype in kinds)])
    with _LOADING:
        code = machinecode.kept(symbol)
        if code is None:
            from das_gpu.backends import compiling

            code = compiling.compile_loop(name, arguments, symbol)
            machinecode.keep(symbol, code)
        return Loop(name, arguments, machinecode.load(code, symbol))


def _arguments(name: str, kinds: dict[str, str]) -> tuple[Argument, ...]:
    types = {**_FIXED, **kinds}
    types["key"] = "i" + types.get("real", types["double"])[1:]
    found = [re.fullmatch(r"(\w+)(?:\[(\d)\])?", one) for one in LOOPS[name].split()]
    return tuple(Argument(np.dtype(types[one[1]]), int(one[2] or 0)) for one in found if one)
