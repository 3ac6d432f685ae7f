"""Skips tests for want of a tool, except where all tools must be there."""

from __future__ import annotations

import os

import pytest

from tests.gpu.harness import nvrtc
from tests.gpu.harness.build import compiler


def _want(there: bool, what: str) -> None:
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} must be there in continuous integration.")
    pytest.skip(f"{what} is not there.")


def need_compiler() -> None:
    """Skip when there is no g++; fail when the variable ``CI`` is ``true``."""
    _want(compiler() is not None, "g++")


def need_nvrtc() -> None:
    """Skip when CuPy or NVRTC is missing; fail when the variable ``CI`` is ``true``."""
    _want(nvrtc.available(), "CuPy with NVRTC")
