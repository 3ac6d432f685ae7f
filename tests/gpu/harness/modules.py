"""Kernels and transforms under CuPy's names.

A kernel is its real text, executed by `tests.gpu.harness.host`. The ring of samples is one
argument that a copying stream fills in one place while a kernel reads another. So that this is
no race, a kernel with parameters named ``ring``, ``columns`` and ``spans`` is taken to read the
slots in its table of columns only, and is shown garbage in all others.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from das_gpu.backends.launch import Launch
from tests.gpu.harness import abi, build, host, wheel
from tests.gpu.harness.arrays import DeviceArray
from tests.gpu.harness.blocks import POISON, Access, Block
from tests.gpu.harness.devices import MAX_SHARED_BYTES, Stream
from tests.gpu.harness.memory import MemoryPointer, alloc
from tests.gpu.harness.streams import Machine, Operation, machine, place

GRANTED_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that needs no asking."""

CONSTANTS = wheel.cufft_constants()
R2C, C2C = CONSTANTS["CUFFT_R2C"], CONSTANTS["CUFFT_C2C"]
D2Z, Z2Z = CONSTANTS["CUFFT_D2Z"], CONSTANTS["CUFFT_Z2Z"]
TYPES: dict[int, tuple[str, str]] = {
    R2C: ("float32", "complex64"),
    D2Z: ("float64", "complex128"),
    C2C: ("complex64", "complex64"),
    Z2Z: ("complex128", "complex128"),
}
"""Input and output of the transforms the double has."""


class RawModule:
    """See `cupy.RawModule`."""

    def __init__(
        self, code: str | None = None, *, options: tuple[str, ...] = (), backend: str = "nvrtc"
    ) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple) or backend != "nvrtc":
            raise TypeError("source text, a tuple of options and the backend nvrtc are wanted")
        self.code, self.options, self.backend = code, options, backend

    def get_function(self, name: str) -> RawKernel:
        """A kernel of the module, compiled now, as CuPy does."""
        owner = machine()
        with owner.call():
            owner.devices.available()
            if not re.search(rf'extern "C"\s+__global__[^;{{]*\b{name}\s*\(', self.code):
                raise owner.violation(f'the module has no extern "C" kernel {name}')
            options = tuple(o for o in self.options if o != f"-I{build.kernel_folder()}")
            draft = Launch(_source(self.code), options, name, (1, 1, 1), (1, 1, 1), ())
            try:
                path = build.build(draft, "plain")
            except build.CompileError as error:
                raise wheel.error("cuda.compiler.CompileException")(
                    str(error), self.code, name, self.options, "nvrtc"
                ) from error
            return RawKernel(draft, path, _parameter_names(self.code, name))


def _source(code: str) -> str:
    """A kernel file with this text: one of the product's, else one in the cache."""
    for path in sorted(build.kernel_folder().glob("*.cu")):
        if path.read_text() == code:
            return path.name
    path = build.cache_folder() / f"{hashlib.sha256(code.encode()).hexdigest()[:32]}.cu"
    if not path.exists():
        path.write_text(code)
    return str(path)


def _parameter_names(code: str, name: str) -> list[str]:
    after = re.sub(r"/\*.*?\*/|//[^\n]*", "", code, flags=re.DOTALL)
    found = re.search(rf"__global__[^;{{]*?\b{name}\s*\(([^)]*)\)", after)
    text = found.group(1) if found else ""
    return [item.split()[-1].strip("*&") for item in text.split(",") if item.strip()]


class RawKernel:
    """See `cupy.RawKernel`; made by `RawModule.get_function`."""

    def __init__(self, draft: Launch, path: Path, names: list[str]) -> None:
        library, self._parameters = abi.library_of(path)
        self._static_bytes = int(library.cuda_host_shared_bytes())
        self._draft, self._names = draft, names
        self._asked_bytes: dict[int, int] = {}

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory a block may have on the current device."""
        device = machine().devices.current
        return self._asked_bytes.get(device, GRANTED_SHARED_BYTES - self._static_bytes)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        if nbytes + self._static_bytes > MAX_SHARED_BYTES:
            raise machine().violation(f"{place()} asks for {nbytes} bytes of shared memory a block")
        self._asked_bytes[machine().devices.current] = nbytes

    def _argument(self, owner: Machine, i: int, value: Any) -> Any:
        """An argument as the host's launcher takes it."""
        if isinstance(value, DeviceArray):
            value.data._place(value.nbytes)
            return value._storage()
        if isinstance(value, np.generic):
            pointer = i < len(self._parameters) and self._parameters[i].pointer
            return None if pointer and value.dtype == np.uint64 and value == 0 else value
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return value.copy()
        raise owner.violation(
            f"{place()}: argument {i} is {type(value).__name__}, which hides a type"
        )

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Stream | None = None,
    ) -> None:
        """Launch on a stream; scalars and structures are read now, arrays when it runs."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue(stream)
            if shared_mem > self.max_dynamic_shared_size_bytes:
                raise owner.violation(
                    f"{place()}: {shared_mem} bytes of shared memory not asked for"
                )
            parts = {i: _part(a) for i, a in enumerate(args) if isinstance(a, DeviceArray)}
            launch = replace(
                self._draft,
                grid=_three(grid),
                block=_three(block),
                args=tuple(self._argument(owner, i, value) for i, value in enumerate(args)),
                shared_bytes=shared_mem,
            )
            try:
                abi.check_arguments(launch, self._parameters)
            except build.KernelError as error:
                raise owner.violation(f"{place()}: {error}") from error
            constant = [parameter.constant for parameter in self._parameters]
            _refuse_aliases(owner, launch, parts, constant)

            def accesses() -> list[Access]:
                return [
                    Access(part.block, start, stop, not constant[i], whole=False)
                    for i, part in parts.items()
                    for start, stop in self._touched(launch, i, part)
                ]

            def run(_: Operation) -> None:
                touched = {i: self._touched(launch, i, part) for i, part in parts.items()}
                try:
                    _execute(launch, touched, parts)
                except build.KernelError as error:
                    raise owner.violation(str(error)) from error

            owner.counts.launches[launch.kernel] += 1
            blocks = [part.block for part in parts.values()]
            owner.issue(queue, f"kernel {launch.kernel}", run, blocks=blocks, accesses=accesses)

    def _touched(self, launch: Launch, i: int, part: _Part) -> list[tuple[int, int]]:
        """Byte ranges, in the array's block, that the kernel may touch through an argument."""
        if self._names[i] != "ring" or not {"columns", "spans"} <= set(self._names):
            return [(part.start, part.stop)]
        columns = launch.args[self._names.index("columns")]
        spans = launch.args[self._names.index("spans")]
        channels = int(spans.reshape(-1, 6)[-1, 1])
        slots = [
            (offset, offset + channels * n) for _, n, offset in columns.reshape(-1, 3).tolist()
        ]
        start, size = part.start, launch.args[i].itemsize
        table = columns.reshape(-1, 3).tolist()
        slots = [(offset, offset + channels * n) for _, n, offset in table]
        if any(not 0 <= low <= high <= launch.args[i].size for low, high in slots):
            raise machine().violation(f"{launch.kernel}: columns lie outside the ring: {slots}")
        return [(start + low * size, start + high * size) for low, high in slots]


@dataclass(frozen=True)
class _Part:
    """Bytes ``[start, stop)`` of a block: an array, without keeping its memory from being freed."""

    block: Block
    start: int
    stop: int


def _part(array: DeviceArray) -> _Part:
    block, start = array.data._place(array.nbytes)
    return _Part(block, start, start + array.nbytes)


def _three(numbers: tuple[int, ...]) -> tuple[int, int, int]:
    if not isinstance(numbers, tuple) or not 1 <= len(numbers) <= 3:
        raise TypeError(f"a grid or block is a tuple of one to three integers, not {numbers!r}")
    x, y, z = (*(int(n) for n in numbers), 1, 1)[:3]
    return x, y, z


def _refuse_aliases(
    owner: Machine, launch: Launch, parts: dict[int, _Part], constant: list[bool]
) -> None:
    for i in parts:
        for j in parts:
            both_read = constant[i] and constant[j]
            if i < j and not both_read and np.may_share_memory(launch.args[i], launch.args[j]):
                raise owner.violation(f"{place()}: arguments {i} and {j} overlap")


def _execute(
    launch: Launch, touched: dict[int, list[tuple[int, int]]], parts: dict[int, _Part]
) -> None:
    """Run a kernel, showing it garbage in the parts of its arguments it must not touch."""
    args = list(launch.args)
    for i, part in parts.items():
        if touched[i] == [(part.start, part.stop)]:
            continue
        shown = np.resize(np.frombuffer(POISON, np.uint8), part.stop - part.start)
        for low, high in touched[i]:
            shown[low - part.start : high - part.start] = part.block.storage[low:high]
        args[i] = shown.view(args[i].dtype).reshape(args[i].shape)
    host.execute(replace(launch, args=tuple(args)))


class Plan1d:
    """See `cupy.cuda.cufft.Plan1d`: one work area, so one stream at a time."""

    def __init__(self, nx: int, fft_type: int, batch: int, *, devices: None = None) -> None:
        owner = machine()
        if devices is not None or fft_type not in TYPES:
            raise TypeError("the double's plans are forward real or complex, on one device")
        if nx < 1 or batch < 1:
            raise owner.violation(f"{place()}: a plan of {batch} transforms of {nx}")
        self.nx, self.fft_type, self.batch = nx, fft_type, batch
        # As much as cuFFT may take: one buffer of the complex values.
        self.work_area: MemoryPointer = alloc(nx * batch * np.dtype(TYPES[fft_type][1]).itemsize)

    def __enter__(self) -> Plan1d:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing: only `cupy.fft` asks for the plan that was entered."""

    def fft(self, a: DeviceArray, out: DeviceArray, direction: int) -> None:
        """Transform on the current stream, unnormalised either way."""
        owner = machine()
        with owner.call():
            queue = owner.devices.queue()
            real = self.fft_type in (R2C, D2Z)
            bins = self.nx // 2 + 1 if real else self.nx
            for array, dtype, length, name in (
                (a, TYPES[self.fft_type][0], self.nx, "input"),
                (out, TYPES[self.fft_type][1], bins, "output"),
            ):
                fault = _transform_fault(array, dtype, self.batch * length, real=real)
                if fault:
                    raise owner.violation(f"{place()}: the transform's {name} {fault}")
            forward, inverse = CONSTANTS["CUFFT_FORWARD"], CONSTANTS["CUFFT_INVERSE"]
            if direction not in ((forward,) if real else (forward, inverse)):
                raise owner.violation(f"{place()}: {direction} is no direction of this transform")
            source = a._storage().reshape(-1)[: self.batch * self.nx].reshape(self.batch, self.nx)
            target = out._storage().reshape(-1)[: self.batch * bins].reshape(self.batch, bins)
            if np.may_share_memory(source, target) and (real or a.data.ptr != out.data.ptr):
                raise owner.violation(f"{place()}: the transform's input and output overlap")
            work, _ = self.work_area._place(0)

            def run(_: Operation) -> None:
                target[...] = _transform(source, real=real, forward=direction == forward)
                work.poison()

            accesses = [
                _span(a, source, writes=False),
                _span(out, target, writes=True),
                Access(work, 0, work.nbytes, writes=True),
            ]
            owner.counts.fft_calls += 1
            blocks: list[Block] = [access.block for access in accesses]
            what = f"transform of {self.batch} x {self.nx}"
            owner.issue(queue, what, run, blocks=blocks, accesses=lambda: accesses)


def _transform_fault(array: DeviceArray, dtype: str, size: int, *, real: bool) -> str:
    array.data._place(array.nbytes)
    if array.base is not None:
        return "is a view, which CuPy's transforms copy"
    if array.dtype != dtype:
        return f"is {array.dtype}, not {dtype}"
    if not array.flags.c_contiguous or array.size < size:
        return f"holds {array.size} elements, not {size}"
    if array.data.ptr % (array.itemsize * (2 if real and array.dtype.kind == "f" else 1)):
        return "is not aligned to a complex number"
    return ""


def _span(array: DeviceArray, used: NDArray[Any], *, writes: bool) -> Access:
    start = array.data.ptr - array.data.mem.block.address
    return Access(array.data.mem.block, start, start + used.nbytes, writes=writes)


def _transform(source: NDArray[Any], *, real: bool, forward: bool) -> NDArray[Any]:
    method: Callable[..., NDArray[Any]] = scipy.fft.rfft if real else scipy.fft.fft
    if not forward:
        method = functools.partial(scipy.fft.ifft, norm="forward")
    # Garbage in is garbage out here, as on the device: no warning.
    with np.errstate(all="ignore"):
        return method(source, axis=1)
