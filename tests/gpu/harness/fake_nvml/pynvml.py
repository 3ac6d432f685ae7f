"""A stand-in for NVIDIA's `pynvml` on a machine without a driver: as many GPUs as are wanted.

A folder with nothing else but this and a `cuda.core` without devices, to be put on PYTHONPATH: so
dask-cuda and distributed run their own code in the process that starts a cluster and in its
workers. What they do not ask for isn't here.

FAKE_NVML_DEVICES
    Environment variable: number of GPUs; 2 by default. None are as no driver.
"""

# ruff: noqa: N801, N802, N818 - the names are NVML's
from __future__ import annotations

import os
from dataclasses import dataclass

MEMORY_BYTES = 16 << 30
NVML_DEVICE_MIG_DISABLE = 0
NVML_DEVICE_MIG_ENABLE = 1
_UUID = "GPU-00000000-0000-0000-0000-"


class NVMLError(Exception):
    """Base of what NVML answers."""


class NVMLError_LibraryNotFound(NVMLError):
    """There is no driver."""

    def __str__(self) -> str:
        return "NVML Shared Library Not Found"


class NVMLError_DriverNotLoaded(NVMLError):
    """The driver is not loaded."""


class NVMLError_Unknown(NVMLError):
    """Anything else."""


class NVMLError_NotSupported(NVMLError):
    """The device cannot do that."""


class NVMLError_InvalidArgument(NVMLError):
    """There is no such device."""


@dataclass(frozen=True)
class Memory:
    """Of a device, in bytes."""

    total: int = MEMORY_BYTES
    used: int = 0
    free: int = MEMORY_BYTES


@dataclass(frozen=True)
class Utilization:
    """Of a device, in percent."""

    gpu: int = 0
    memory: int = 0


def nvmlInit() -> None:
    """Fail where there is no driver."""
    if not _devices():
        raise NVMLError_LibraryNotFound


def nvmlSystemGetDriverVersion() -> str:
    """The driver's version."""
    return "999.0"


def nvmlDeviceGetCount() -> int:
    """Number of devices."""
    return _devices()


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    """A device by its number, which is its handle too."""
    if not 0 <= int(index) < _devices():
        raise NVMLError_InvalidArgument
    return int(index)


def nvmlDeviceGetHandleByUUID(uuid: bytes) -> int:
    """A device by its identifier."""
    return nvmlDeviceGetHandleByIndex(int(uuid.decode().rpartition("-")[2]))


def nvmlDeviceGetIndex(handle: int) -> int:
    """A device's number."""
    return handle


def nvmlDeviceGetUUID(handle: int) -> str:
    """A device's identifier."""
    return f"{_UUID}{handle:012d}"


def nvmlDeviceGetName(handle: int) -> str:
    """A device's name."""
    return f"Stand-in {handle}"


def nvmlDeviceGetMemoryInfo(handle: int) -> Memory:
    """A device's memory."""
    return Memory()


def nvmlDeviceGetUtilizationRates(handle: int) -> Utilization:
    """How busy a device is."""
    return Utilization()


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[object]:
    """Processes that use a device, of which there are none."""
    return []


def nvmlDeviceIsMigDeviceHandle(handle: int) -> int:
    """Whether a device is a part of another."""
    return 0


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    """Fail: devices cannot be parted."""
    raise NVMLError_NotSupported(handle)


def nvmlDeviceGetCpuAffinity(handle: int, words: int) -> list[int]:
    """Processors near a device, as words of 64 bits: those of this process."""
    mask = sum(1 << processor for processor in os.sched_getaffinity(0))
    return [mask >> 64 * word & (1 << 64) - 1 for word in range(words)]


def _devices() -> int:
    return int(os.environ.get("FAKE_NVML_DEVICES", "2"))
