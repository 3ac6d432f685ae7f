"""What ``--cluster cuda`` needs to be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from das_gpu.backends.cuda import Finding
from das_gpu.errors import UsageError

LEAST_DASK_CUDA = 26
_INSTALL = "pip install 'das-gpu[cuda12]' or 'das-gpu[cuda13]', as the driver allows"


def findings(*, load: bool) -> Iterator[Finding]:
    """What ``--cluster cuda`` needs besides the GPU backend.

    Parameters
    ----------
    load : bool
        Import the packages too, which takes seconds and, without a driver, fails.
    """
    yield _package("dask-cuda", "dask_cuda", ("dask-cuda",), load)
    yield _package("RMM", "rmm", ("rmm-cu13", "rmm-cu12", "rmm"), load)


def _package(name: str, module: str, wheels: tuple[str, ...], load: bool) -> Finding:
    remedy = f"--cluster cuda needs it: {_INSTALL}."
    if find_spec(module) is None:
        return Finding(name, f"{name} is not installed.", remedy)
    found = ""
    for wheel in wheels:
        with suppress(PackageNotFoundError):
            found = found or version(wheel)
    major = found.partition(".")[0]
    if module == "dask_cuda" and major.isdigit() and int(major) < LEAST_DASK_CUDA:
        return Finding(name, f"{name} {found} is older than {LEAST_DASK_CUDA}.", remedy)
    if load:
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
            return Finding(name, f"{name} cannot be imported: {error}.", remedy)
    return Finding(name, found or "installed")


def refuse_missing() -> None:
    """Raise UsageError when something is missing."""
    missing = next((one for one in findings(load=True) if not one.ok), None)
    if missing is not None:
        raise UsageError(
            f"--cluster cuda cannot run: {missing.found} {missing.remedy} --cluster local "
            "computes on processors."
        )
