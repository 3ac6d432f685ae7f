"""What the compiled kernels and Python know of each other: the request, parameters, arguments."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from das_gpu.backends.launch import Launch
from tests.gpu.harness.build import KernelError, build

Schedule = Literal["forward", "backward", "random"]
SCHEDULES: tuple[Schedule, ...] = ("forward", "backward", "random")
LIMIT_S = 120
"""Seconds after which a kernel is taken to loop for ever."""

# What shared memory holds before a block writes to it: NaN, a small and a large number.
_POISON: dict[Schedule, int] = {"forward": 0xFF, "backward": 0xAB, "random": 0x7F}
_MOST_THREADS = 1024
_MOST_SHARED = 232_448
_MOST_STATIC_SHARED = 49_152


class Range(ctypes.Structure):
    """One pointer argument and its counters, as ``cuda_host_runtime.h`` has it."""

    _fields_ = (
        ("begin", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                "argument",
                "bytes",
                "element_bytes",
                "vector",
                "read_bytes",
                "written_bytes",
                "sectors_read",
                "sectors_written",
                "atomics",
            )
        ),
    )


class Request(ctypes.Structure):
    """What the runtime is asked and answers, as ``cuda_host_runtime.h`` has it."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("schedule", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("poison", ctypes.c_uint32),
        ("flush", ctypes.c_uint32),
        ("limit_s", ctypes.c_uint32),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("ranges", ctypes.POINTER(Range)),
        ("range_count", ctypes.c_int64),
        ("thread", ctypes.c_uint32 * 3),
        ("at_block", ctypes.c_uint32 * 3),
        ("fault_address", ctypes.c_uint64),
        ("fault_is_write", ctypes.c_uint32),
        ("barriers", ctypes.c_int64),
        ("collectives", ctypes.c_int64),
        ("shared_atomics", ctypes.c_int64),
        ("message", ctypes.c_char * 512),
    )


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: pointer or value, kind and bytes of the element."""

    pointer: bool
    constant: bool
    kind: str
    size: int

    @classmethod
    def parse(cls, words: str) -> Parameter:
        """Read a parameter as ``cuda_host_launch.h`` writes it."""
        constant = words.startswith("*const ")
        rest = words.removeprefix("*").removeprefix("const ")
        return cls(words.startswith("*"), constant, rest[0], int(rest[1:]))

    def __str__(self) -> str:
        names = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
        name = {"V0": "void", "b1": "bool"}.get(f"{self.kind}{self.size}") or (
            f"{names[self.kind]}{8 * self.size}"
            if self.kind in names
            else f"structure of {self.size} bytes"
        )
        return f"pointer to {'const ' if self.constant else ''}{name}" if self.pointer else name

    def accepts(self, dtype: np.dtype[Any]) -> bool:
        """Whether elements of this dtype are what the parameter is or points to."""
        if self.pointer and self.size == 0:
            return True
        if dtype.itemsize != self.size:
            return False
        if self.kind == "V":
            return dtype.kind == "V" or (self.pointer and dtype.kind == "c")
        if self.pointer and {dtype.kind, self.kind} <= {"b", "u"}:
            return True
        return dtype.kind == self.kind


@functools.cache
def library_of(path: Path) -> tuple[ctypes.CDLL, tuple[Parameter, ...]]:
    """A compiled kernel and its parameters."""
    library = ctypes.CDLL(str(path))
    library.cuda_host_signature.restype = ctypes.c_char_p
    library.cuda_host_shared_bytes.restype = ctypes.c_int64
    words = library.cuda_host_signature().decode().rstrip(";")
    return library, tuple(Parameter.parse(word) for word in words.split(";") if word)


def signature(launch: Launch) -> tuple[Parameter, ...]:
    """The parameters of the launch's kernel."""
    return library_of(build(launch, "plain"))[1]


def check_arguments(launch: Launch, parameters: tuple[Parameter, ...]) -> None:
    """Compare geometry and arguments with what a GPU and the kernel's parameters allow.

    Raises
    ------
    KernelError
        At the first argument that is not exactly what its parameter is.
    """
    name = launch.kernel
    x, y, z = launch.block
    if min(launch.block) < 1 or x * y * z > _MOST_THREADS or z > 64:
        raise KernelError(f"{name}: no GPU has blocks of {launch.block} threads")
    if min(launch.grid) < 1 or launch.grid[0] >= 2**31 or max(launch.grid[1:]) > 65_535:
        raise KernelError(f"{name}: no GPU has grids of {launch.grid} blocks")
    if not 0 <= launch.shared_bytes <= _MOST_SHARED:
        raise KernelError(
            f"{name}: no GPU has {launch.shared_bytes} bytes of shared memory a block"
        )
    if len(launch.args) != len(parameters):
        raise KernelError(f"{name}: {len(launch.args)} arguments for {len(parameters)} parameters")
    for i, (value, parameter) in enumerate(zip(launch.args, parameters, strict=True)):
        where = f"{name}: argument {i}"
        if parameter.pointer:
            if value is None:
                continue
            if not isinstance(value, np.ndarray):
                raise KernelError(f"{where}: a {parameter} is given a {type(value).__name__}")
            if not parameter.accepts(value.dtype):
                raise KernelError(f"{where}: a {parameter} is given {value.dtype}")
            if not value.flags.c_contiguous:
                raise KernelError(f"{where}: the array is not C-contiguous")
            if not (parameter.constant or value.flags.writeable):
                raise KernelError(f"{where}: a {parameter} is given a read-only array")
        else:
            zero_d = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind == "V"
            if not (zero_d or isinstance(value, np.generic)):
                raise KernelError(
                    f"{where}: {parameter} wants a NumPy scalar, not a {type(value).__name__}"
                )
            if not parameter.accepts(value.dtype):
                raise KernelError(f"{where}: {parameter} is given {value.dtype}")


def check_shared(launch: Launch, static_bytes: int) -> None:
    """Compare the shared memory of a block with what there is.

    Raises
    ------
    KernelError
        When no GPU has as much.
    """
    if static_bytes > _MOST_STATIC_SHARED or static_bytes + launch.shared_bytes > _MOST_SHARED:
        raise KernelError(
            f"{launch.kernel}: {static_bytes} bytes of static and {launch.shared_bytes} of dynamic "
            "shared memory are more than a block may have"
        )


def _flushes(launch: Launch) -> bool:
    """Whether denormal numbers become zero: in float32, and only there, on a GPU."""
    return not any(option.endswith("=double") for option in launch.options)


def make_request(launch: Launch, schedule: Schedule, seed: int) -> Request:
    """What the runtime is asked for, but the arguments."""
    request = Request()
    request.grid[:], request.block[:] = launch.grid, launch.block
    request.shared_bytes = launch.shared_bytes
    request.schedule, request.seed = SCHEDULES.index(schedule), seed & 0xFFFFFFFF
    request.poison, request.flush = _POISON[schedule], _flushes(launch)
    request.limit_s = LIMIT_S
    return request
