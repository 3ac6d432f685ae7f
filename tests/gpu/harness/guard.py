"""Copies of arrays between unreadable pages, for a kernel to work on."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Placement = Literal["end", "start"]
"""Which edge of the array touches an unreadable page; the other one does so only by chance."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_READ = mmap.PROT_READ
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FILL = 0xC5


@dataclass
class Guarded:
    """A copy of an array's bytes with an unreadable page before and after.

    The bytes of the copy's pages that are not the array's are filled with a pattern, and
    looked at afterwards.
    """

    array: NDArray[Any]
    constant: bool
    placement: Placement
    base: int = field(init=False)
    length: int = field(init=False)
    address: int = field(init=False)

    def __post_init__(self) -> None:
        page = mmap.PAGESIZE
        body = -(-self.array.nbytes // page) * page
        self.length = body + 2 * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _LIBC.mmap(None, self.length, _READ_WRITE, flags, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"No memory for {self.length} bytes.")
        self.base = int(base)
        slack = body - self.array.nbytes if self.placement == "end" else 0
        self.address = self.base + page + slack
        if body:
            ctypes.memset(self.base + page, _FILL, body)
            ctypes.memmove(self.address, self.array.ctypes.data, self.array.nbytes)
            if self.constant:
                _LIBC.mprotect(self.base + page, body, _READ)
        _LIBC.mprotect(self.base, page, 0)
        _LIBC.mprotect(self.base + page + body, page, 0)

    def take_back(self) -> int | None:
        """Copy the results to the array; the nearest byte written beside it, if there is one."""
        if not self.constant and self.array.nbytes:
            ctypes.memmove(self.array.ctypes.data, self.address, self.array.nbytes)
        first, last = self.base + mmap.PAGESIZE, self.base + self.length - mmap.PAGESIZE
        before = ctypes.string_at(first, self.address - first)
        end = self.address + self.array.nbytes
        after = ctypes.string_at(end, last - end)
        for offset, beside in ((first - self.address, before), (self.array.nbytes, after)):
            if beside.count(_FILL) != len(beside):
                changed = np.flatnonzero(np.frombuffer(beside, np.uint8) != _FILL)
                return offset + int(changed[-1] if offset < 0 else changed[0])
        return None

    def offset_of(self, address: int) -> int | None:
        """Which byte of the array an address is, when it lies in the pages around it."""
        return address - self.address if self.base <= address < self.base + self.length else None

    def release(self) -> None:
        """Give the pages back."""
        _LIBC.munmap(self.base, self.length)
