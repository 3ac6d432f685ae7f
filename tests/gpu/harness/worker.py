"""Puts the strict double in the place of CuPy in the workers of a dask cluster.

The workers load this module when ``DASK_DISTRIBUTED__WORKER__PRELOAD`` names it: dask's own way
to prepare workers, before dask-cuda hands CuPy the allocator. The program under test knows
nothing of it.
"""

from __future__ import annotations

from contextlib import ExitStack

from das_gpu.backends import cuda
from tests.gpu.harness import double

PRELOAD = "DASK_DISTRIBUTED__WORKER__PRELOAD"

_installed = ExitStack()


def dask_setup(worker: object) -> None:
    """Install the double for the life of the worker."""
    cuda.driver_library = lambda: "the double"
    _installed.enter_context(double.installed("late"))


def dask_teardown(worker: object) -> None:
    """Raise the first fault that only the end shows; dask logs it with its traceback."""
    _installed.close()
