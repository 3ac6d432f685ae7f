"""Device arrays under CuPy's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.gpu.harness import wheel
from tests.gpu.harness.blocks import Access
from tests.gpu.harness.memory import MemoryPointer, alloc
from tests.gpu.harness.streams import Operation, machine, place


@dataclass(frozen=True)
class Flags:
    """See `cupy.ndarray.flags`."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class DeviceArray:
    """See `cupy.ndarray`: memory with a shape, and no arithmetic."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]  # as CuPy's, which compares elementwise

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = float,
        memptr: MemoryPointer | None = None,
    ) -> None:
        self.shape = (shape,) if isinstance(shape, SupportsIndex) else tuple(shape)
        self.shape = tuple(int(n) for n in self.shape)
        self.dtype = np.dtype(dtype)
        self.base: DeviceArray | None = None
        self._strides: tuple[int, ...] | None = None
        self.data = alloc(self.nbytes) if memptr is None else memptr
        self.data._place(self.nbytes)
        if self.data.ptr % self.dtype.alignment:
            raise machine().violation(f"{place()}: a misaligned array of {self.dtype}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def flags(self) -> Flags:
        """Layout; an array made from a pointer owns its data, as CuPy says."""
        flags = self._storage().flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    def _storage(self) -> NDArray[Any]:
        """The bytes on the device, as the double sees them."""
        block = self.data.mem.block
        return block.array(self.data.ptr - block.address, self.shape, self.dtype, self._strides)

    def _view(self, seen: NDArray[Any]) -> DeviceArray:
        view = object.__new__(DeviceArray)
        start = self._storage().__array_interface__["data"][0]
        view.shape, view.dtype, view._strides = seen.shape, seen.dtype, seen.strides
        view.data = self.data + (seen.__array_interface__["data"][0] - start)
        view.base = self if self.base is None else self.base
        return view

    def __getitem__(self, index: Any) -> DeviceArray:
        items = index if isinstance(index, tuple) else (index,)
        if not all(i is None or i is ... or isinstance(i, int | np.integer | slice) for i in items):
            raise machine().violation(f"{place()}: only slices and integers index device arrays")
        # The ellipsis makes even one element a view.
        return self._view(self._storage()[items if ... in items else (*items, ...)])

    def __setitem__(self, index: Any, value: DeviceArray | float) -> None:
        """Copy an array of that shape, or a number, on the current stream."""
        owner, target = machine(), self[index]
        with owner.call():
            queue = owner.devices.queue(None)
            written, to = target._rows(writes=True), target._storage()
            read: list[Access] = []
            source: Any = value
            if isinstance(value, DeviceArray):
                if value.shape != target.shape:
                    raise owner.violation(f"{place()} puts {value.shape} where is {target.shape}")
                read, source = value._rows(writes=False), value._storage()

            def run(_: Operation) -> None:
                to[...] = source

            blocks = [access.block for access in (*written, *read)]
            owner.issue(
                queue, f"setitem of {target.shape}", run,
                blocks=blocks, accesses=lambda: [*read, *written],
            )  # fmt: skip

    def _rows(self, *, writes: bool) -> list[Access]:
        """What is accessed of memory, row by row."""
        seen = self._storage()
        start = self.data.mem.block.storage.__array_interface__["data"][0]
        found = []
        for row in seen if seen.ndim == 2 else [seen.reshape(-1)]:
            if row.size:
                first = row.__array_interface__["data"][0] - start
                stop = first + (row.size - 1) * abs(row.strides[-1]) + row.itemsize
                found.append(Access(self.data.mem.block, first, stop, writes=writes))
        return found

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape; what would copy is refused."""
        storage = self._storage()
        if not storage.flags.c_contiguous:
            raise machine().violation(f"{place()}: this reshape copies")
        return self._view(storage.reshape(*shape))

    def __len__(self) -> int:
        return self.shape[0]

    def get(self) -> NDArray[Any]:
        """A copy on the host: a hidden synchronisation."""
        return self._value("get")

    def item(self) -> Any:
        """The only element: a hidden synchronisation."""
        return self._value("item").item()

    def __int__(self) -> int:
        return int(self._value("int"))

    def __float__(self) -> float:
        return float(self._value("float"))

    def __bool__(self) -> bool:
        return bool(self._value("bool"))

    def __index__(self) -> int:
        return int(self._value("index"))

    def _value(self, what: str) -> NDArray[Any]:
        owner = machine()
        with owner.call():
            owner.hidden_sync(what)
            owner.counts.d2h_bytes += self.nbytes
            return self._storage().copy()

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("__") and wheel.exists(f"ndarray.{name}"):
            raise AttributeError(f"the double does not support cupy.ndarray.{name}")
        raise AttributeError(f"neither the double nor the real CuPy has cupy.ndarray.{name}")


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = float) -> DeviceArray:
    """See `cupy.empty`."""
    return DeviceArray(shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike = float) -> DeviceArray:
    """See `cupy.zeros`: a memset on the current stream."""
    made = DeviceArray(shape, dtype)
    made.data.memset_async(0, made.nbytes)
    return made


def asnumpy(a: DeviceArray) -> NDArray[Any]:
    """See `cupy.asnumpy`."""
    return a.get()
