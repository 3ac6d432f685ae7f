"""Blocks of memory that remember who touched them.

A block is one allocation, on a device or pinned on the host. Each access by an operation is
noted with its byte range and its operation; a later access that conflicts with one that does
not happen before it is a race, whatever order the two happened to run in.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

POISON = b"\xab\xab\xfb\x7f"
"""Unwritten memory: a NaN as float32 and (twice) as float64, far out of range as an integer."""


class DisciplineError(AssertionError):
    """A program that works by luck, or not at all, on a real GPU."""


class Actor(Protocol):
    """What a block knows of an operation: whether another one comes before it."""

    done: bool

    def follows(self, other: Any) -> bool:
        """Whether ``other`` happens before this operation on every device, every time."""


class Ranges:
    """A set of bytes, as disjoint ascending half-open ranges."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> None:
        """Add ``[start, stop)``."""
        apart = [r for r in self._ranges if r[1] < start or r[0] > stop]
        joined = [r for r in self._ranges if not (r[1] < start or r[0] > stop)]
        low = min([start, *(r[0] for r in joined)])
        high = max([stop, *(r[1] for r in joined)])
        self._ranges = sorted([*apart, (low, high)])

    def cover(self, start: int, stop: int) -> bool:
        """Whether every byte of ``[start, stop)`` is in the set."""
        return any(low <= start and stop <= high for low, high in self._ranges)

    def touch(self, start: int, stop: int) -> bool:
        """Whether any byte of ``[start, stop)`` is in the set."""
        return any(low < stop and start < high for low, high in self._ranges)


@dataclass(frozen=True)
class Access:
    """Bytes ``[start, stop)`` of a block that an operation reads or writes.

    ``whole`` says that a read uses every byte, so that all must have been written; else one
    written byte is enough.
    """

    block: Block
    start: int
    stop: int
    writes: bool
    whole: bool = True


@dataclass(frozen=True)
class Note:
    """An access that has happened."""

    start: int
    stop: int
    writes: bool
    by: Any


@dataclass
class Copy:
    """A copy that was issued from or to pinned memory, and what that memory then held.

    ``checksum`` is None where the memory may rightly change before the copy executes.
    """

    start: int
    stop: int
    writes: bool
    by: Any
    checksum: int | None


@dataclass(eq=False)
class Block:
    """One allocation.

    Attributes
    ----------
    name : str
        What messages call it.
    address : int
        Where it begins: an invented address for device memory, the true one for pinned.
    storage : (nbytes,) uint8
        Its bytes.
    device : int or None
        Number of the device; None for pinned memory.
    home : int or None
        The stream it was allocated on, whose later allocations may be given the same memory.
    users : dict
        The last operation issued on each stream that touches it.
    """

    name: str
    address: int
    storage: NDArray[np.uint8]
    device: int | None
    home: int | None
    users: dict[int, int] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    _notes: list[Note] = field(default_factory=list)
    _written: Ranges = field(default_factory=Ranges)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.storage.size

    def contains(self, address: int, nbytes: int) -> bool:
        """Whether ``nbytes`` bytes from ``address`` lie in the block."""
        return self.address <= address and address + nbytes <= self.address + self.nbytes

    def check(self, actor: Actor, access: Access) -> None:
        """Refuse a race, and a read of memory that was never written.

        Raises
        ------
        DisciplineError
            Naming the bytes and both operations.
        """
        for note in self.conflicts(access.start, access.stop, writes=access.writes):
            if not actor.follows(note.by):
                verb = "writes" if access.writes else "reads"
                other = "wrote" if note.writes else "read"
                raise DisciplineError(
                    f"{self.name}, bytes [{access.start}, {access.stop}): {actor} {verb} what "
                    f"{note.by} {other}, and no event orders the two"
                )
        # What the host wrote into pinned memory is not seen here.
        if access.writes or self.device is None or access.start == access.stop:
            return
        seen = self._written.cover if access.whole else self._written.touch
        if not seen(access.start, access.stop):
            raise DisciplineError(
                f"{self.name}, bytes [{access.start}, {access.stop}): {actor} reads memory that "
                "was never written"
            )

    def note(self, actor: Actor, access: Access) -> None:
        """Remember an access that `check` let pass."""
        start, stop = access.start, access.stop
        # All that a write covers happens before it: whoever follows the write follows them too.
        self._notes = [
            note
            for note in self._notes
            if not (start <= note.start and note.stop <= stop)
            or not (access.writes or (not note.writes and actor.follows(note.by)))
        ]
        self._notes.append(Note(start, stop, access.writes, actor))
        if access.writes:
            self._written.add(start, stop)

    def conflicts(self, start: int, stop: int, *, writes: bool) -> Iterator[Note]:
        """Past accesses to ``[start, stop)`` of which one, or the one asked about, is a write."""
        for note in self._notes:
            if note.start < stop and start < note.stop and (note.writes or writes):
                yield note

    def poison(self, start: int = 0, stop: int | None = None) -> None:
        """Fill ``[start, stop)`` with garbage that arithmetic cannot miss."""
        part = self.storage[start:stop]
        whole = part.size - part.size % 4
        part[:whole].view(np.uint32)[:] = np.frombuffer(POISON, np.uint32)
        part[whole:] = np.frombuffer(POISON, np.uint8)[: part.size - whole]

    def checksum(self, start: int, stop: int) -> int:
        """A checksum of the bytes ``[start, stop)``."""
        return zlib.crc32(self.storage[start:stop].tobytes())

    def array(
        self,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """The bytes from ``offset`` as an array; a view."""
        return np.ndarray(shape, dtype, self.storage, offset, strides)


def aligned(nbytes: int, alignment: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that begin at a multiple of ``alignment``."""
    raw = np.empty(nbytes + alignment, np.uint8)
    skip = -raw.ctypes.data % alignment
    return raw[skip : skip + nbytes]
