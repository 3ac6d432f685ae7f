"""The benchmark of the steps runs, with the compiled ones or without, and its three ways agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[1] / "bench" / "kernels.py"
AGREE = {
    "detrend, band-pass, envelope": 0.05,
    "median over channels": 2e-3,
    "common mode off, level": 1e-4,
    "percentiles": 1e-4,
    "resize": 1,
}


@pytest.mark.slow
def test_the_steps_are_measured_and_agree(tmp_path: Path) -> None:
    result = tmp_path / "kernels.json"
    command = [sys.executable, str(KERNELS), "--tiny", "--no-start-up", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    ways = {"plain", "numpy", "compiled"} if find_spec("numba") else {"plain", "numpy"}
    unlike = {"encode", "the same over sosfiltfilt and hilbert"}
    assert found["steps"].keys() == AGREE.keys() | unlike
    for name, bar in AGREE.items():
        step = found["steps"][name]
        assert step["median_ms"].keys() == ways
        assert step["times_plain"]["plain"] == 1
        assert max(step["largest_difference"].values()) <= bar, name
    assert found["steps"]["encode"]["median_ms"].keys() == {"plain", "numpy"}
    assert all(found["steps"][name]["largest_difference"] == {} for name in unlike)
    assert found["start_up"] is None
    assert found["machine"]["packages"].keys() >= {"das-gpu", "numpy", "scipy", "pillow"}
