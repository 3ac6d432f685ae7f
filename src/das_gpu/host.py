"""This machine: its processors and versions, and what a run asks of its memory and threads."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def processors() -> int:
    """Count the processors that this process may use: the budget of all its threads together.

    Those it may run on, or as many as its container may keep busy, if that is fewer.
    """
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(usable, _quota())))


def _quota(root: Path = Path("/")) -> float:
    """Processors' worth of time that the container, or any group around it, may take.

    Of control groups, version 2 (``cpu.max``: quota and period in microseconds, or ``max``) and
    version 1 (``cpu.cfs_quota_us``, -1 for none): Linux, Documentation/admin-guide/cgroup-v2.rst.
    """
    least = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, names, path = line.split(":", 2)
        if names not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        folder = root / "sys/fs/cgroup" / names
        below = folder / path.lstrip("/")
        for group in (below, *below.parents):
            least = min(least, _share(group))
            if group == folder:
                break
    return least


def _share(group: Path) -> float:
    """Processors' worth of time that a control group may take."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            text = " ".join((group / name).read_text().strip() for name in names)
            quota, period = map(float, text.split())
        except (OSError, ValueError):  # no such file, or "max 100000"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def description() -> dict[str, Any]:
    """Describe the machine, ready for JSON."""
    import platform

    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": processors(),
    }


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that results may depend on."""
    import platform
    from importlib.metadata import version

    names = ("numpy", "scipy", "pillow", "zarr", "obstore", "azure-storage-blob")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def give_big_buffers_back() -> None:
    """Ask the C library to return big buffers to the system when they are freed.

    glibc otherwise learns from the first freed chunk to keep all of them in its heaps, whose
    holes then grow with the length of a run: by a third from one minute to eight. Smaller
    buffers stay in the heap, where they cost no page faults.
    """
    import ctypes

    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(mmap_threshold, 4 << 20)
            mallopt(trim_threshold, 8 << 20)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread: more would fight the compute threads and change low bits of images."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
