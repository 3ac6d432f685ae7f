"""A stand-in for `cupy` on a machine without a GPU, stricter than the real one.

Names, signatures and exceptions are those of the installed wheel, or an error. What a real GPU
forgives by chance is refused here: work whose order nothing guarantees, host memory that is
rewritten or read while a copy is on its way, implicit synchronisation, the null stream, memory
never written, past its end, or freed while in use. See `tests.gpu.harness.streams` for how order
is judged, and `devices`, `memory`, `arrays` and `modules` beside it for what is offered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, NoReturn

from numpy.typing import NDArray

from tests.gpu.harness import arrays, devices, memory, modules, streams, wheel
from tests.gpu.harness.blocks import DisciplineError
from tests.gpu.harness.streams import Counts, Machine, Operation, Schedule, Site

__all__ = ["SURFACE", "Counts", "DisciplineError", "Gpu", "Schedule", "Site", "installed"]

GIBIBYTE = 1 << 30

SURFACE: dict[str, Any] = {
    "RawModule": modules.RawModule,
    "asnumpy": arrays.asnumpy,
    "empty": arrays.empty,
    "ndarray": arrays.DeviceArray,
    "zeros": arrays.zeros,
    "cuda.Device": devices.Device,
    "cuda.Event": devices.Event,
    "cuda.MemoryPointer": memory.MemoryPointer,
    "cuda.MemoryPool": memory.MemoryPool,
    "cuda.PinnedMemoryPointer": memory.PinnedMemoryPointer,
    "cuda.Stream": devices.Stream,
    "cuda.alloc": memory.alloc,
    "cuda.alloc_pinned_memory": memory.alloc_pinned_memory,
    "cuda.get_current_stream": devices.get_current_stream,
    "cuda.set_allocator": memory.set_allocator,
    "cuda.using_allocator": memory.using_allocator,
    "cuda.cufft.Plan1d": modules.Plan1d,
    **{f"cuda.cufft.{name}": value for name, value in modules.CONSTANTS.items()},
    "cuda.runtime.driverGetVersion": devices.driver_get_version,
    "cuda.runtime.getDeviceCount": devices.get_device_count,
    "cuda.runtime.getDeviceProperties": devices.get_device_properties,
    "cuda.runtime.memGetInfo": devices.mem_get_info,
    "cuda.runtime.runtimeGetVersion": devices.runtime_get_version,
}
"""What the double offers, by its name below `cupy`; the exceptions are the wheel's own."""

EXCEPTIONS = (
    "cuda.compiler.CompileException",
    "cuda.memory.OutOfMemoryError",
    "cuda.runtime.CUDARuntimeError",
)


class Gpu:
    """The hands of a test on the installed double."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def counts(self) -> Counts:
        """What was asked of the device since the start or `reset_counts`."""
        return self._machine.counts

    def reset_counts(self) -> None:
        """Count from zero, and forget the log."""
        self._machine.counts = Counts()
        self._machine.log.clear()

    @property
    def log(self) -> list[Operation]:
        """Every operation issued: ``what``, ``queue``, ``site`` and ``thread`` of each."""
        return self._machine.log

    @property
    def violations(self) -> list[DisciplineError]:
        """What was found wrong so far; the end of the installation raises the first."""
        return self._machine.violations

    @property
    def sync_sites(self) -> list[Site]:
        """The lines that recorded, waited or synchronised, in the order first reached."""
        return self._machine.sites

    def drop(self, site: Site | int) -> None:
        """Turn a line of `sync_sites`, or the one that will get this number, into nothing."""
        self._machine.dropped.add(site)

    def fail_after(self, calls: int, *, status: int = 719, lasting: bool = True) -> None:
        """Let a CUDARuntimeError come after ``calls`` more calls: once, or for ever."""
        self._machine.fail_after(calls, status, lasting=lasting)

    def allow_sync(self) -> AbstractContextManager[None]:
        """Let this thread synchronise implicitly for a while."""
        return self._machine.allowing()

    def host_read(self, array: NDArray[Any]) -> None:
        """The host is about to read a pinned array."""
        with self._machine.call():
            memory.host_access(self._machine, array, writes=False)

    def host_write(self, array: NDArray[Any]) -> None:
        """The host is about to write a pinned array."""
        with self._machine.call():
            memory.host_access(self._machine, array, writes=True)

    def finish(self) -> None:
        """Run all that waits, without the program under test noticing."""
        with self._machine.call():
            self._machine.finish()

    @property
    def used_bytes(self) -> list[int]:
        """Memory in use on each device."""
        self._machine.tidy()
        return list(self._machine.devices.used)


@contextmanager
def installed(
    schedule: Schedule = "eager",
    seed: int = 0,
    *,
    devices: int = 1,
    memory_bytes: int = GIBIBYTE,
    driver_version: int = 13000,
) -> Iterator[Gpu]:
    """Put the double in the place of `cupy`.

    Parameters
    ----------
    schedule : {"eager", "late", "random"}
        When operations run: as they are issued, when something waits for them, or at random.
    seed : int
        Of the random schedule.
    devices : int
        Number of devices; 0 raises CUDA's own error where one is wanted.
    memory_bytes : int
        Memory of each device.
    driver_version : int
        13000 for 13.0; 0 for no driver.

    Raises
    ------
    DisciplineError
        At the end too, for the first fault that the program swallowed, or that only what still
        waited then shows.
    """
    if streams.current:
        raise RuntimeError("a double is installed already")
    wheel.real()
    owner = Machine(schedule, seed)
    owner.devices = _devices(owner, devices, memory_bytes, driver_version)
    kept = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("cupy", "cupyx")}
    for name in kept:
        del sys.modules[name]
    sys.modules.update(_modules())
    # None refuses the import.
    sys.modules["cupyx"] = None  # type: ignore[assignment]
    streams.current.append(owner)
    try:
        yield Gpu(owner)
        owner.finish()
        if owner.violations:
            raise owner.violations[0]
    finally:
        streams.current.clear()
        for name in [n for n in sys.modules if n.split(".")[0] in ("cupy", "cupyx")]:
            del sys.modules[name]
        sys.modules.update(kept)


def _devices(owner: Machine, count: int, memory_bytes: int, driver: int) -> devices.Devices:
    return devices.Devices(owner, count, memory_bytes, driver)


def _modules() -> dict[str, ModuleType]:
    """The double as modules."""
    made: dict[str, ModuleType] = {"cupy": _Module("cupy")}
    for path, value in [*SURFACE.items(), *((path, wheel.error(path)) for path in EXCEPTIONS)]:
        *folders, name = path.split(".")
        where = "cupy"
        for folder in folders:
            inner = f"{where}.{folder}"
            if inner not in made:
                made[inner] = _Module(inner)
                setattr(made[where], folder, made[inner])
            where = inner
        setattr(made[where], name, value)
    made["cupy"].__dict__["__version__"] = wheel.real().__version__
    return made


class _Module(ModuleType):
    """A module that says why a name is not there."""

    def __getattr__(self, name: str) -> NoReturn:
        path = f"{self.__name__}.{name}"
        if not name.startswith("__") and wheel.exists(path.removeprefix("cupy.")):
            raise AttributeError(f"the double does not support {path}")
        raise AttributeError(f"neither the double nor the real CuPy has {path}")
