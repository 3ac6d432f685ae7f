"""What kernel launches did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """What a launch did through one pointer argument.

    Attributes
    ----------
    read_bytes, written_bytes : int
        Sum over all threads' accesses, other than atomic ones.
    sectors_read, sectors_written : int
        Distinct 32-byte sectors of each access of a warp, summed; an atomic operation counts in
        both. The array is taken to begin on a sector, as device arrays do.
    atomics : int
        Atomic operations of threads.
    """

    read_bytes: int = 0
    written_bytes: int = 0
    sectors_read: int = 0
    sectors_written: int = 0
    atomics: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.sectors_read + other.sectors_read,
            self.sectors_written + other.sectors_written,
            self.atomics + other.atomics,
        )


@dataclass(frozen=True)
class Counts:
    """What launches did.

    Attributes
    ----------
    launches, threads : int
        Kernel launches, and threads in all their blocks.
    barriers, collectives : int
        Barriers of blocks, and warp collectives (votes, shuffles, ``__syncwarp``).
    shared_atomics : int
        Atomic operations elsewhere than in arguments; counted in the ``counted`` flavour.
    arguments : dict of int to Traffic
        By place among the kernel's parameters, for pointers; empty but in the ``counted``
        flavour. An array given twice is counted at its first place.
    """

    launches: int
    threads: int
    barriers: int
    collectives: int
    shared_atomics: int = 0
    arguments: dict[int, Traffic] = field(default_factory=dict)

    @property
    def total(self) -> Traffic:
        """The traffic of all arguments."""
        return sum(self.arguments.values(), Traffic())

    @property
    def sector_traffic_bytes(self) -> int:
        """Bytes of all sectors read and written."""
        return 32 * (self.total.sectors_read + self.total.sectors_written)
