"""The CUDA kernels: found, compiled once per device and set of options, launched; vendor errors."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gpu.errors import DeviceError

if TYPE_CHECKING:
    from das_gpu.backends.launch import Launch

_log = logging.getLogger(__name__)

GRANTED_BYTES = 48 * 1024
"""Dynamic shared memory a block may have without asking for more."""
_STANDARD = "-std=c++17"
_INSTALL = "pip install 'das-gpu[cuda12]' or 'das-gpu[cuda13]', as the driver allows"

_functions: dict[tuple[int, str, tuple[str, ...], str], Any] = {}
_compiling = threading.Lock()


@dataclass(frozen=True)
class Device:
    """A GPU as its driver describes it."""

    number: int
    name: str
    memory_bytes: int
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes / 2**30:.0f} GiB, sm_{self.compute_capability})"


def kernel_folder() -> Path:
    """Where the kernels' sources are: in the package, or beside it in a checkout.

    Raises
    ------
    DeviceError
        They are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_kernels", package.parents[1] / "kernels"):
        if (folder / "gather.cu").is_file():
            return folder
    raise DeviceError(
        f"The CUDA kernels are not where they are installed ({package / '_kernels'}). "
        "Install das-gpu again."
    )


@cache
def source_text(name: str) -> str:
    """The text of a kernel source in `kernel_folder`."""
    return (kernel_folder() / name).read_text(encoding="utf-8")


def compiler_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """All that a kernel source is compiled with, besides what CuPy adds."""
    return (_STANDARD, f"-I{kernel_folder()}", *options)


def run(launch: Launch, device: int) -> None:
    """Launch a kernel on the current stream, compiling it first if need be.

    Raises
    ------
    DeviceError
        It cannot be compiled or launched.
    """
    with vendor_errors(f"launching the kernel {launch.kernel}"):
        function = _function(launch, device)
        # A null pointer by value: not every CuPy takes None for one.
        args = tuple(np.uint64(0) if value is None else value for value in launch.args)
        function(launch.grid, launch.block, args, shared_mem=launch.shared_bytes)


def _function(launch: Launch, device: int) -> Any:
    key = (device, launch.source, launch.options, launch.kernel)
    with _compiling:
        found = _functions.get(key)
        if found is None:
            import cupy

            module = cupy.RawModule(
                code=source_text(launch.source),
                options=compiler_options(launch.options),
                backend="nvrtc",
            )
            found = _functions[key] = module.get_function(launch.kernel)
        if launch.shared_bytes > max(GRANTED_BYTES, found.max_dynamic_shared_size_bytes):
            found.max_dynamic_shared_size_bytes = launch.shared_bytes
    return found


@contextmanager
def vendor_errors(doing: str) -> Iterator[None]:
    """Turn what CuPy raises into a `DeviceError` that says what was being done.

    ``MemoryError`` passes: who allocates can ask for less.
    """
    try:
        yield
    except (DeviceError, MemoryError):
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("cupy", "cupy_backends"):
            raise
        raise DeviceError(
            f"The GPU failed while {doing}: {_first_line(error)} What was finished is kept; "
            "`das-gpu doctor` shows the state of the device, --backend cpu goes without it."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


# --- what is there ------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One thing that the GPU backend needs: there, or what to do about it."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is there."""
        return not self.remedy


def driver_library() -> str:
    """Load the NVIDIA driver's library; its name.

    Raises
    ------
    OSError
        There is none.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    ctypes.CDLL(name)
    return name


def findings() -> Iterator[Finding]:
    """What the GPU backend needs, in the order in which each needs the one before.

    Ends after the first that is missing.
    """
    for name, look, remedy in _NEEDS:
        try:
            found = look()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
            yield Finding(name, _first_line(error), remedy)
            return
        yield Finding(name, found)


def first_missing() -> Finding | None:
    """The first thing that the GPU backend lacks; None when it would run."""
    return next((one for one in findings() if not one.ok), None)


def device(number: int = 0) -> Device:
    """Describe a device.

    Raises
    ------
    DeviceError
        The driver cannot.
    """
    import cupy

    with vendor_errors("describing the device"):
        facts = cupy.cuda.runtime.getDeviceProperties(number)
        name = facts["name"]
        return Device(
            number,
            name.decode() if isinstance(name, bytes) else str(name),
            int(facts["totalGlobalMem"]),
            f"{facts['major']}{facts['minor']}",
        )


def _look_for_wheel() -> str:
    if "cupy" not in sys.modules and find_spec("cupy") is None:
        raise ImportError("CuPy is not installed.")
    return "installed"


def _look_for_driver() -> str:
    try:
        return driver_library()
    except OSError as error:
        raise OSError("There is no NVIDIA driver on this machine.") from error


def _look_for_cupy() -> str:
    import cupy

    driver = cupy.cuda.runtime.driverGetVersion()
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    said = f"CuPy {cupy.__version__} for CUDA {_dotted(runtime)}, driver for CUDA {_dotted(driver)}"
    # A driver runs every minor version of its own major one.
    if driver // 1000 < runtime // 1000:
        raise DeviceError(f"They do not fit: {said}.")
    return said


def _look_for_devices() -> str:
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    if not count:
        raise DeviceError("The driver finds no device.")
    return "; ".join(str(device(number)) for number in range(count))


def _look_for_compiler() -> str:
    import cupy

    module = cupy.RawModule(
        code=source_text("spectral_response.cu"), options=compiler_options(()), backend="nvrtc"
    )
    module.get_function("spectral_response")
    return f"{kernel_folder().name}/ compiled by NVRTC"


def _look_for_transforms() -> str:
    import cupy

    from das_gpu.backends.devicememory import DeviceMemory

    memory, cufft = DeviceMemory(cupy), cupy.cuda.cufft
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        signal = memory.send(np.array([1, 2, 3, 4], dtype=np.float32), stream)
        spectrum = memory.array((3,), np.dtype(np.complex64))
        cufft.Plan1d(4, cufft.CUFFT_R2C, 1).fft(signal, spectrum, cufft.CUFFT_FORWARD)
        found = memory.pinned((3,), spectrum.dtype)
        spectrum.data.copy_to_host_async(found.ctypes.data, found.nbytes, stream)
        stream.synchronize()
    if not np.allclose(found, [10, -2 + 2j, -2], atol=1e-5):
        raise DeviceError("cuFFT computes wrong numbers.")
    return "a transform by cuFFT is right"


def _dotted(version: int) -> str:
    """CUDA's version number 13020 as 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


_NEEDS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("CuPy wheel", _look_for_wheel, f"Install it: {_INSTALL}."),
    ("driver", _look_for_driver, "Install NVIDIA's driver, or run on a machine with a GPU."),
    (
        "CuPy and driver",
        _look_for_cupy,
        f"Bring the driver up to date, or install the wheel that it can run: {_INSTALL}.",
    ),
    (
        "devices",
        _look_for_devices,
        "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES; a batch job must ask for a GPU.",
    ),
    ("compiler", _look_for_compiler, f"NVRTC comes with the wheel's [ctk] extra: {_INSTALL}."),
    ("transforms", _look_for_transforms, f"cuFFT comes with the wheel's [ctk] extra: {_INSTALL}."),
)
