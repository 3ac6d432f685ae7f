"""The devices that the tests of the GPU backend run on.

``gpu`` stands for a CUDA device: the strict double on every machine, and once more, marked
``gpu``, the real one. Tests so marked are left out where no device answers; `make test-gpu` runs
them where one does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

import pytest

from das_gpu.backends import cuda
from tests.gpu.harness import double


@cache
def has_device() -> bool:
    """Whether a CUDA driver is installed and finds a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a device where there is none; say so when it was asked for."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if has_device() or not needing:
        return
    if config.option.markexpr == "gpu":
        pytest.exit("No CUDA device answers here: `das-gpu doctor` says what is missing.", 4)
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


class Stage:
    """Puts a device in place for a while."""

    def __init__(self, *, real: bool) -> None:
        self.real = real

    def installed(
        self, schedule: double.Schedule = "late", **options: int
    ) -> AbstractContextManager[double.Gpu | None]:
        """The double, under a schedule, or the real device, which has its own."""
        return self._real() if self.real else self._double(schedule, **options)

    @contextmanager
    def _real(self) -> Iterator[None]:
        yield None

    @contextmanager
    def _double(self, schedule: double.Schedule, **options: int) -> Iterator[double.Gpu]:
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(cuda, "driver_library", lambda: "the double")
            patch.setattr(cuda, "_functions", {})
            yield stack.enter_context(double.installed(schedule, **options))


@pytest.fixture(params=["double", pytest.param("silicon", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Stage:
    """Something that acts as a CUDA device."""
    return Stage(real=request.param == "silicon")


@pytest.fixture
def double_device() -> Stage:
    """The double alone, for what a real device cannot be asked to do."""
    return Stage(real=False)
