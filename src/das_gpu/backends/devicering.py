"""A ring in a device's memory, filled from pinned buffers by one copy for each stored chunk.

Loader threads fill buffers and never touch the device; the thread that works on the segment
starts the copies when it calls `DeviceRing.flush`, and gives buffers back once they are done.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array
from das_gpu.errors import InterruptedRunError
from das_gpu.model import RingLayout


@dataclass
class Buffer:
    """Pinned host memory for one block, and the event that its copy has been made."""

    samples: NDArray[Any]
    copied: Any


@dataclass(frozen=True)
class _Handover:
    """A filled buffer on its way to channels from ``k0`` of a column."""

    buffer: Buffer
    column: int
    k0: int
    count: int


class DeviceRing:
    """See `das_gpu.backends.Ring`.

    Parameters
    ----------
    layout : RingLayout
        What the ring holds.
    samples : device array
        One-dimensional, of at least ``layout.capacity`` samples.
    buffers : sequence of Buffer
        Each holds the largest block of a column.
    copying : stream
        The stream the copies are issued on.
    """

    def __init__(
        self, layout: RingLayout, samples: Array, buffers: Sequence[Buffer], copying: Any
    ) -> None:
        self.layout = layout
        self.samples = samples
        self._copying = copying
        self._change = threading.Condition()
        self._free = deque(buffers)
        self._handed: deque[_Handover] = deque()
        self._flying: deque[Buffer] = deque()
        self._arrived: dict[int, Any] = {}
        self._read: Any = None
        self._stopped = False

    pick = None

    @property
    def time_major(self) -> bool:
        """Blocks are kept as they are stored; the kernels turn them."""
        return self.layout.time_major

    @contextmanager
    def room(self, column: int, k0: int, k1: int) -> Iterator[NDArray[Any]]:
        """See `das_gpu.backends.Ring`: part of a pinned buffer, when one is free."""
        start, stop = self.layout.samples(column)
        shape = (stop - start, k1 - k0) if self.time_major else (k1 - k0, stop - start)
        count = (stop - start) * (k1 - k0)
        with self._change:
            while not self._free and not self._stopped:
                self._change.wait()
            if self._stopped:
                raise InterruptedRunError("The segment was cancelled.")
            buffer = self._free.popleft()
        try:
            part = buffer.samples[:count].reshape(shape)
            yield part.T if self.time_major else part
        except BaseException:
            with self._change:
                self._free.append(buffer)
                self._change.notify()
            raise
        with self._change:
            self._handed.append(_Handover(buffer, column, k0, count))

    def flush(self) -> bool:
        """See `das_gpu.backends.Ring`; called by the device's thread alone."""
        while self._flying and self._flying[0].copied.done:
            self._give_back(self._flying.popleft())
        while True:
            with self._change:
                if not self._handed:
                    break
                handed = self._handed.popleft()
            self._copy(handed)
        return bool(self._flying)

    def keep(self, held0: int) -> None:
        """See `das_gpu.backends.Ring`: nothing is kept aside."""

    def stop(self) -> None:
        """See `das_gpu.backends.Ring`."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def offset(self, column: int) -> int:
        """Element of ``samples`` at which a column's slot begins."""
        layout = self.layout
        slot = (column - layout.first) % layout.slots
        return slot * layout.channels * layout.width

    def arrivals(self, columns: Sequence[int]) -> list[Any]:
        """Events after which these columns are in the ring; each is told once."""
        return [self._arrived.pop(column) for column in columns if column in self._arrived]

    def was_read(self, event: Any) -> None:
        """Tell that a row has been read by the time of an event: its oldest slots may go."""
        self._read = event

    def _copy(self, handed: _Handover) -> None:
        """Start a block's copy, after the rows that read what was in its place."""
        if self._read is not None:
            self._copying.wait_event(self._read)
            self._read = None
        start, stop = self.layout.samples(handed.column)
        first = self.offset(handed.column) + handed.k0 * (stop - start)
        item = self.samples.itemsize
        source = handed.buffer.samples
        place = self.samples.data + first * item
        place.copy_from_host_async(source.ctypes.data, handed.count * item, self._copying)
        handed.buffer.copied.record(self._copying)
        self._arrived[handed.column] = handed.buffer.copied
        self._flying.append(handed.buffer)

    def _give_back(self, buffer: Buffer) -> None:
        with self._change:
            self._free.append(buffer)
            self._change.notify()


def block_samples(layout: RingLayout) -> int:
    """Samples of the largest block: the channels of a row of stored chunks by a column."""
    return layout.width * int(max(1, np.diff(layout.blocks).max(initial=0)))
