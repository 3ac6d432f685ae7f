"""What every test may rely on: hypothesis profiles, the cache, recordings, Azurite.

Fixtures
--------
azurite
    An Azure Blob Storage emulator on a loopback port, one per worker; see `tests.azurite`.
cache_folder
    Where das-gpu keeps what it makes once (the ``demo:`` recording) while the tests run.
    Always in force, so no test writes to the user's own cache.
torch
    PyTorch, imported by the first test that asks for it, since that takes seconds.
shared_recordings
    Real recordings beside the repository; a test that asks for them is skipped without.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from tests.absent import absent

pytest_plugins = ["tests.azurite"]

REPOSITORY = Path(__file__).resolve().parents[1]

# The default finds the same examples on every machine, so that a failure is never luck;
# HYPOTHESIS_PROFILE=thorough looks for new ones.
_PATIENT = [HealthCheck.too_slow]
settings.register_profile(
    "default", max_examples=100, deadline=None, derandomize=True, suppress_health_check=_PATIENT
)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_PATIENT
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Let the garbage collector pass over what stays until the end.

    That is every test and every module that tests import: looking through all of it, again and
    again, takes longer than many tests do.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the whole run, child processes and xdist's workers included."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # A worker's own base is a folder inside the run's.
        folder = folder.parent
    folder = folder / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        absent("PyTorch is not installed: pip install 'das-gpu[torch]'")
    return torch


@pytest.fixture(scope="session")
def shared_recordings() -> Path:
    """The folder of real recordings in the archive's layout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}")
    return folder
