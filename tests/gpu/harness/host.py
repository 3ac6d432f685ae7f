"""Executes a kernel launch on the processor, on NumPy arrays, and looks for its faults.

Every CUDA thread is a fiber; see ``cuda_host.h`` for what is executed and ``README.md`` for
what that proves.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.launch import Launch
from tests.gpu.harness.abi import (
    LIMIT_S,
    SCHEDULES,
    Parameter,
    Range,
    Request,
    Schedule,
    check_arguments,
    check_shared,
    library_of,
    make_request,
)
from tests.gpu.harness.build import CompileError, Flavour, KernelError, build, compiler
from tests.gpu.harness.counts import Counts, Traffic
from tests.gpu.harness.guard import Guarded, Placement
from tests.gpu.harness.race import tsan_check

__all__ = [
    "CompileError",
    "Counts",
    "KernelError",
    "Traffic",
    "check",
    "compiler",
    "execute",
    "tsan_check",
]

_PLACEMENT: dict[Schedule, Placement] = {"forward": "end", "backward": "start", "random": "end"}

# The runtime has one state per kernel, and handlers of signals are the whole process's.
_TURN = threading.Lock()


class _Arguments:
    """The launch's arguments in memory, as the kernel gets them."""

    def __init__(
        self, launch: Launch, parameters: tuple[Parameter, ...], placement: Placement
    ) -> None:
        self.guards: dict[int, Guarded] = {}
        self.addresses = (ctypes.c_void_p * max(len(launch.args), 1))()
        self._kept: list[Any] = []
        written = [
            value
            for value, parameter in zip(launch.args, parameters, strict=True)
            if parameter.pointer and not parameter.constant and value is not None
        ]
        same: dict[tuple[int, int], Guarded] = {}
        for i, (value, parameter) in enumerate(zip(launch.args, parameters, strict=True)):
            if not parameter.pointer:
                self._put(i, ctypes.create_string_buffer(value.tobytes(), value.dtype.itemsize))
                continue
            if value is None:
                self._put(i, ctypes.c_void_p(None))
                continue
            place = (value.ctypes.data, value.nbytes)
            if place not in same:
                alone = sum(np.may_share_memory(value, other) for other in written)
                alike = sum((other.ctypes.data, other.nbytes) == place for other in written)
                if alone > alike and value.nbytes:
                    raise KernelError(f"{launch.kernel}: argument {i} overlaps another in part")
                constant = not alike
                same[place] = self.guards[i] = Guarded(value, constant, placement)
            self._put(i, ctypes.c_void_p(same[place].address))

    def _put(self, i: int, value: Any) -> None:
        self._kept.append(value)
        self.addresses[i] = ctypes.addressof(value)

    def take_back(self, kernel: str) -> None:
        for i, guard in self.guards.items():
            beside = guard.take_back()
            if beside is not None:
                raise KernelError(f"{kernel}: wrote byte {beside} of {describe(i, guard.array)}")

    def release(self) -> None:
        for guard in self.guards.values():
            guard.release()


def describe(i: int, array: NDArray[Any]) -> str:
    """An argument in words."""
    return f"argument {i} ({array.dtype}, shape {array.shape}, {array.nbytes} bytes)"


def _explain(outcome: int, request: Request, arguments: _Arguments) -> str:
    where = f"thread {tuple(request.thread)} of block {tuple(request.at_block)}"
    if outcome == 1:
        return f"{where}: {request.message.decode(errors='replace')}"
    if outcome == 3:
        return f"{where}: not finished after {LIMIT_S} s"
    if outcome == 4:
        return f"{where}: illegal arithmetic, like an integer divided by zero"
    did = "writes" if request.fault_is_write else "reads"
    for i, guard in arguments.guards.items():
        offset = guard.offset_of(request.fault_address)
        if offset is not None:
            why = " although const" if 0 <= offset < guard.array.nbytes else ""
            return f"{where}: {did} byte {offset} of {describe(i, guard.array)}{why}"
    return f"{where}: {did} address {request.fault_address:#x}, which is in no argument"


def execute(
    launch: Launch,
    *,
    schedule: Schedule = "forward",
    seed: int = 0,
    flavour: Flavour = "plain",
) -> Counts:
    """Execute a launch; the arrays among its arguments receive the results.

    Parameters
    ----------
    launch : Launch
        Arrays are NumPy's, C-contiguous; complex64 for ``float2 *``, complex128 for
        ``double2 *``, None for a null pointer. ``const T *`` may be given read-only arrays.
    schedule : {"forward", "backward", "random"}
        The order in which blocks, and the threads of a block between barriers, take turns.
    seed : int
        Of the random schedule.
    flavour : {"plain", "fma", "ubsan", "counted", "tsan"}
        Compiled without contraction of products and sums; with it; with undefined behaviour
        reported; with accesses counted; or for ``tsan_check``.

    Returns
    -------
    Counts
        Traffic by argument is there only in the ``counted`` flavour.

    Raises
    ------
    KernelError
        At the first fault.
    """
    if flavour == "tsan":
        return tsan_check(launch, schedule=schedule, seed=seed)
    library, parameters = library_of(build(launch, flavour))
    check_arguments(launch, parameters)
    check_shared(launch, int(library.cuda_host_shared_bytes()))
    placement = "start" if flavour == "counted" else _PLACEMENT[schedule]
    arguments = _Arguments(launch, parameters, placement)
    request = make_request(launch, schedule, seed)
    ranges = (Range * max(len(arguments.guards), 1))()
    for entry, (i, guard) in zip(ranges, arguments.guards.items(), strict=False):
        entry.begin, entry.bytes, entry.argument = guard.address, guard.array.nbytes, i
        entry.element_bytes = parameters[i].size or 1
        entry.vector = parameters[i].kind in "cV" and parameters[i].size in (4, 8, 16)
    request.arguments = ctypes.cast(arguments.addresses, ctypes.POINTER(ctypes.c_void_p))
    request.ranges = ctypes.cast(ranges, ctypes.POINTER(Range))
    request.range_count = len(arguments.guards)
    try:
        with _TURN:
            if flavour == "counted":
                library.cuda_host_count(ctypes.byref(request))
            outcome = int(library.cuda_host_launch(ctypes.byref(request)))
            if flavour == "counted":
                library.cuda_host_count(None)
        if outcome:
            raise KernelError(f"{launch.kernel}: {_explain(outcome, request, arguments)}")
        arguments.take_back(launch.kernel)
    finally:
        arguments.release()
    return Counts(
        launches=1,
        threads=int(np.prod(launch.grid) * np.prod(launch.block)),
        barriers=request.barriers,
        collectives=request.collectives,
        shared_atomics=request.shared_atomics,
        arguments=_traffic(ranges, len(arguments.guards)) if flavour == "counted" else {},
    )


def _traffic(ranges: ctypes.Array[Range], count: int) -> dict[int, Traffic]:
    return {
        int(entry.argument): Traffic(
            entry.read_bytes,
            entry.written_bytes,
            entry.sectors_read,
            entry.sectors_written,
            entry.atomics,
        )
        for entry in ranges[:count]
    }


def check(
    launch: Launch,
    *,
    seed: int = 0,
    flavours: Iterable[Flavour] = ("plain", "fma"),
    verify: Callable[[], None] | None = None,
) -> None:
    """Execute a launch in every schedule and flavour; results must not depend on the schedule.

    The arrays start from the same contents each time, and hold the results of the last flavour
    afterwards. ``verify`` is called after each flavour, with that flavour's results in them.

    Raises
    ------
    KernelError
        At the first fault, or where two schedules' results differ in a bit.
    """
    arrays = {
        i: value
        for i, value in enumerate(launch.args)
        if isinstance(value, np.ndarray) and value.flags.writeable
    }
    before = {i: array.copy() for i, array in arrays.items()}
    for flavour in flavours:
        results: dict[Schedule, dict[int, NDArray[Any]]] = {}
        for schedule in SCHEDULES:
            for i, array in arrays.items():
                array[...] = before[i]
            execute(launch, schedule=schedule, seed=seed, flavour=flavour)
            results[schedule] = {i: array.copy() for i, array in arrays.items()}
        for schedule in SCHEDULES[1:]:
            for i in arrays:
                _assert_same(launch, i, results, schedule, flavour)
        if verify is not None:
            verify()


def _assert_same(
    launch: Launch,
    i: int,
    results: dict[Schedule, dict[int, NDArray[Any]]],
    schedule: Schedule,
    flavour: Flavour,
) -> None:
    first, other = results[SCHEDULES[0]][i], results[schedule][i]
    if first.tobytes() == other.tobytes():
        return
    bits = np.dtype((np.void, first.dtype.itemsize))
    differ = np.flatnonzero(first.reshape(-1).view(bits) != other.reshape(-1).view(bits))
    at = np.unravel_index(int(differ[0]), first.shape)
    raise KernelError(
        f"{launch.kernel}: the {schedule} schedule gives another result than the forward one "
        f"({flavour}): {describe(i, first)} differs at {len(differ)} places, first at "
        f"{tuple(map(int, at))}: {other[at]} instead of {first[at]}"
    )
