"""What only a real GPU can show: compute-sanitizer's verdict, and speed. Run by `make test-gpu`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from das_gpu import Recipe, extract
from das_gpu.scene import Scene
from das_gpu.simulate import simulate
from tests.archives import random_walk, write_archive

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1800)]

FOUND = 86
"""What compute-sanitizer is told to exit with when it finds something."""


@pytest.mark.parametrize("preset", ["continuous", "notebook"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tmp_path: Path, tool: str, preset: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.fail("compute-sanitizer is not on PATH; it comes with the CUDA toolkit")
    store = write_archive(tmp_path / "a.zarr", random_walk(64, 4000, seed=5), 200.0, (30, 900))
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable]
    command += ["-m", "das_gpu", "extract", str(store), str(tmp_path / "out"), "--backend", "gpu"]
    command += ["--preset", preset, "--channels", "::1", "--tile-seconds", "3", "--bands", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gpu_is_faster_than_the_cpu(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every channel, once to warm up and then timed; both read the same page cache."""
    store = simulate(tmp_path / "a.zarr", Scene(channels=12_000, seconds=240.0))
    recipe = Recipe().with_settings({"selection.channel_step": 1})
    seconds = {}
    for backend in ("cpu", "gpu"):
        for turn in ("warm", "timed"):
            begun = time.perf_counter()
            extract(store, tmp_path / backend / turn, recipe, backend=backend)
            seconds[backend] = time.perf_counter() - begun
        record_property(f"{backend}_seconds", seconds[backend])
    assert seconds["gpu"] < seconds["cpu"], seconds
