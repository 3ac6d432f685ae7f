"""Memory, pointers, copies and allocators under CuPy's names."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from numpy.typing import NDArray

from tests.gpu.harness.blocks import Access, Block, Copy
from tests.gpu.harness.devices import Stream
from tests.gpu.harness.streams import Machine, Operation, Queue, machine, place


class Memory:
    """An allocation; it is given back when nothing refers to it any more."""

    def __init__(self, owner: Machine, block: Block, *, raw: bool = False) -> None:
        self.machine = owner
        self.block = block
        _give_back_with(self, owner, block, raw=raw)


def _give_back_with(holder: object, owner: Machine, block: Block, *, raw: bool = False) -> None:
    # A finaliser may run at any time, even inside the double: it only leaves word.
    release = weakref.finalize(
        holder, owner.released.append, lambda: owner.devices.give_back(block, raw=raw)
    )
    release.atexit = False


class MemoryPointer:
    """See `cupy.cuda.MemoryPointer`."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem = mem
        self._offset = offset

    @property
    def ptr(self) -> int:
        """The address on the device."""
        return self.mem.block.address + self._offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self._offset + offset)

    def _place(self, nbytes: int) -> tuple[Block, int]:
        """The block and the offset of ``nbytes`` bytes from here, all inside the allocation."""
        owner, block = machine(), self.mem.block
        if self.mem.machine is not owner:
            raise owner.violation(f"{place()} uses memory of an earlier installation")
        if not 0 <= self._offset <= self._offset + nbytes <= block.nbytes:
            raise owner.violation(
                f"{place()}: bytes [{self._offset}, {self._offset + nbytes}) of {block.name}"
            )
        if block.device != owner.devices.current:
            raise owner.violation(
                f"{place()}: {block.name} is on device {block.device}, and device "
                f"{owner.devices.current} is current"
            )
        return block, self._offset

    def copy_from_host_async(
        self, mem: int | ctypes.c_void_p, size: int, stream: Stream | None = None
    ) -> None:
        """Copy from pinned memory, which is read when the copy runs."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            target, at = self._place(size)
            address = _address(mem)
            source = owner.devices.pinned_at(address, size)
            start = address - source.address
            _inspect(owner, source, start, start + size)
            copy = Copy(start, start + size, False, None, source.checksum(start, start + size))

            def run(operation: Operation) -> None:
                _verify(owner, source, copy, operation)
                target.storage[at : at + size] = source.storage[start : start + size]

            owner.counts.h2d_bytes += size
            accesses = [
                Access(source, start, start + size, writes=False),
                Access(target, at, at + size, writes=True),
            ]
            what = f"copy of {size} bytes to the device"
            copy.by = _issue(owner, queue, what, run, accesses)
            source.copies.append(copy)

    def copy_to_host_async(
        self, mem: int | ctypes.c_void_p, size: int, stream: Stream | None = None
    ) -> None:
        """Copy to pinned memory, which holds garbage until the copy has run."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            source, at = self._place(size)
            address = _address(mem)
            target = owner.devices.pinned_at(address, size)
            start = address - target.address
            stop = start + size
            _inspect(owner, target, start, stop)
            earlier = [c for c in target.copies if c.start < stop and start < c.stop]
            alone = all(c.by.done for c in earlier)
            for one in earlier:
                one.checksum = None
            if alone:
                target.poison(start, stop)
            copy = Copy(start, stop, True, None, target.checksum(start, stop) if alone else None)

            def run(operation: Operation) -> None:
                _verify(owner, target, copy, operation)
                # What the host finds there from now on is right.
                copy.checksum = None
                target.storage[start:stop] = source.storage[at : at + size]

            owner.counts.d2h_bytes += size
            accesses = [
                Access(source, at, at + size, writes=False),
                Access(target, start, stop, writes=True),
            ]
            copy.by = _issue(owner, queue, f"copy of {size} bytes to the host", run, accesses)
            target.copies.append(copy)

    def copy_from_device_async(
        self, src: MemoryPointer, size: int, stream: Stream | None = None
    ) -> None:
        """Copy within a device."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            target, at = self._place(size)
            source, start = src._place(size)
            if target is source and at < start + size and start < at + size:
                raise owner.violation(f"{place()} copies between overlapping ranges")

            def run(_: Operation) -> None:
                target.storage[at : at + size] = source.storage[start : start + size]

            owner.counts.d2d_bytes += size
            accesses = [
                Access(source, start, start + size, writes=False),
                Access(target, at, at + size, writes=True),
            ]
            _issue(owner, queue, f"copy of {size} bytes on the device", run, accesses)

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        """Set every byte."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            target, at = self._place(size)

            def run(_: Operation) -> None:
                target.storage[at : at + size] = value

            owner.counts.memset_bytes += size
            accesses = [Access(target, at, at + size, writes=True)]
            _issue(owner, queue, f"memset of {size} bytes", run, accesses)


def _issue(
    owner: Machine,
    queue: Queue,
    what: str,
    run: Callable[[Operation], None],
    accesses: list[Access],
) -> Operation:
    blocks = [access.block for access in accesses]
    return owner.issue(queue, what, run, blocks=blocks, accesses=lambda: accesses)


def _address(mem: int | ctypes.c_void_p) -> int:
    address = mem.value if isinstance(mem, ctypes.c_void_p) else mem
    if not isinstance(address, int):
        raise TypeError(f"an address or a ctypes.c_void_p is wanted, not {type(mem).__name__}")
    return address


def _inspect(owner: Machine, block: Block, start: int, stop: int) -> None:
    """Look whether the host rewrote pinned memory that earlier copies may still be reading."""
    block.copies = [c for c in block.copies if not owner.known(c.by.queue.number, c.by.tick)]
    for copy in block.copies:
        if copy.start < stop and start < copy.stop:
            _verify(owner, block, copy, copy.by)


def _verify(owner: Machine, block: Block, copy: Copy, by: Operation) -> None:
    if copy.checksum is None or block.checksum(copy.start, copy.stop) == copy.checksum:
        return
    raise owner.violation(
        f"{block.name}, bytes [{copy.start}, {copy.stop}): the host wrote them before {by} "
        "was known to be over"
    )


def host_access(owner: Machine, array: NDArray[Any], *, writes: bool) -> None:
    """Refuse the host's access to a pinned array that a copy may still be using."""
    address = array.__array_interface__["data"][0]
    block = owner.devices.pinned_at(address, array.nbytes)
    start = address - block.address
    for copy in block.copies:
        overlap = copy.start < start + array.nbytes and start < copy.stop
        known = owner.known(copy.by.queue.number, copy.by.tick)
        if overlap and not known and (writes or copy.writes):
            verb = "writes" if writes else "reads"
            raise owner.violation(f"the host {verb} {block.name}, which {copy.by} may still use")


class PinnedMemoryPointer:
    """See `cupy.cuda.PinnedMemoryPointer`.

    Instances belong to subclasses that are ctypes arrays too: that gives them the buffer protocol.
    """

    @property
    def ptr(self) -> int:
        """The address on the host."""
        return ctypes.addressof(cast("ctypes.Array[ctypes.c_uint8]", self))

    def size(self) -> int:
        """Bytes from here to the end: CuPy's pool rounds up to a power of two."""
        return ctypes.sizeof(cast("ctypes.Array[ctypes.c_uint8]", self))

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a PinnedMemoryPointer is no sequence; read it as a buffer")

    __len__ = __getitem__ = __setitem__ = __iter__ = _refuse


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """See `cupy.cuda.alloc_pinned_memory`."""
    owner = machine()
    with owner.call():
        block = owner.devices.pin(size)
        length = block.nbytes
        kind: Any = type("PinnedMemoryPointer", (PinnedMemoryPointer, ctypes.c_uint8 * length), {})
        pointer: PinnedMemoryPointer = kind.from_buffer(block.storage)
        _give_back_with(pointer, owner, block)
        return pointer


Allocator = Callable[[int], MemoryPointer]


def _malloc(size: int, *, raw: bool) -> MemoryPointer:
    owner = machine()
    with owner.call():
        return MemoryPointer(Memory(owner, owner.devices.take(size), raw=raw), 0)


def _raw(size: int) -> MemoryPointer:
    return _malloc(size, raw=True)


class MemoryPool:
    """See `cupy.cuda.MemoryPool`: memory that a stream freed goes to its next allocation."""

    def __init__(self, allocator: Allocator | None = None) -> None:
        if allocator is not None:
            raise TypeError("the double's pool takes its memory from the device only")

    def malloc(self, size: int) -> MemoryPointer:
        """Allocate."""
        return _malloc(size, raw=False)


DEFAULT_POOL = MemoryPool.__new__(MemoryPool)


def alloc(size: int) -> MemoryPointer:
    """Allocate with the thread's allocator, else with the process's."""
    devices = machine().devices
    local = getattr(devices.local, "allocator", None)
    chosen: Allocator = local or devices.allocator or DEFAULT_POOL.malloc
    return chosen(size)


def set_allocator(allocator: Allocator | None = None) -> None:
    """Set the process's allocator; None allocates from the device itself."""
    machine().devices.allocator = _raw if allocator is None else allocator


@contextmanager
def using_allocator(allocator: Allocator | None = None) -> Iterator[None]:
    """Set the thread's allocator for a while."""
    local = machine().devices.local
    before = getattr(local, "allocator", None)
    local.allocator = _raw if allocator is None else allocator
    try:
        yield
    finally:
        local.allocator = before
