"""The profile counts the real run's work, each second once."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from das_gpu import Recipe, segment
from das_gpu.backends.cpu import CpuBackend
from das_gpu.ledger import Ledger
from tests.archives import random_walk, write_archive
from tests.outputs import images

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def profiling() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("profiling")


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_functions_seconds_are_its_own_and_not_those_of_what_it_calls(profiling):
    profile = profiling.Profile()
    inner = profile.wrapped(lambda: busy(0.03), "inner")

    def outer() -> None:
        busy(0.01)
        inner()
        inner()

    profile.wrapped(outer, "outer")()
    spent = profile.spent
    assert dict(spent.calls) == {"inner": 2, "outer": 1}
    assert spent.processor_s["inner"] == pytest.approx(0.06, abs=0.008)
    assert spent.processor_s["outer"] == pytest.approx(0.01, abs=0.008)


def test_waiting_takes_time_on_the_wall_and_none_of_a_processor(profiling):
    profile = profiling.Profile()
    with profile.at("waiting"):
        time.sleep(0.02)
    assert profile.spent.wall_s["waiting"] >= 0.02
    assert profile.spent.processor_s["waiting"] < 0.01


@pytest.mark.parametrize("compiled", [False, True], ids=["NumPy", "compiled"])
def test_a_profiled_run_makes_the_same_images_and_leaves_nothing_wrapped(
    profiling, tmp_path, compiled
):
    if compiled:
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    store = write_archive(tmp_path / "a.zarr", random_walk(24, 4000, seed=3), 200.0, (12, 900))
    settings = {"selection.channel_step": 2, "tile.seconds": 5, "tile.bands": 2}
    recipe = Recipe().with_settings({**settings, "median.kind": "channel"})
    before = segment.encode_png, CpuBackend.each, vars(Ledger)["open"]
    found = profiling.run_once(store, tmp_path / "out", recipe, fast=compiled)
    assert (segment.encode_png, CpuBackend.each, vars(Ledger)["open"]) == before
    assert found["tiles"] == len(images(tmp_path / "out")) == 8
    kinds = found["kinds"]
    wrapped = {kind for _, _, kind in profiling.PLACES} | set(profiling.STEPS.values())
    theirs = {name for name in wrapped if ("compiled" in name) is not compiled}
    shared = {"gather: copy"}  # of the first and the last row's windows
    elsewhere = {name for name in theirs - shared if name.startswith(("gather", "FFT", "gains"))}
    assert kinds.keys() >= wrapped - elsewhere - set(profiling.WAITS)
    assert not kinds.keys() & elsewhere
    assert kinds["fetch"]["calls"] == kinds["decode"]["calls"] >= found["chunks"] == 10
    assert kinds["encode"]["calls"] == 8
    # Besides the images, run.json and what vouches for them.
    assert kinds["write"]["calls"] > 8
    total_s = sum(spent["processor_s"] for spent in kinds.values())
    assert total_s == pytest.approx(found["processor_s"])
    assert kinds[profiling.REST]["processor_s"] > -0.05


def test_imports_are_added_up_by_package(profiling):
    report = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1500 |       1500 |   numpy.core\n"
        "import time:       500 |       2000 | numpy\n"
        "noise\n"
        "import time:      3000 |       3000 |     zarr.core\n"
    )
    assert profiling.imports(report) == {"zarr": 3.0, "numpy": 2.0}


@pytest.mark.slow
def test_the_profile_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    done = subprocess.run(
        [sys.executable, str(BENCH / "profiling.py"), "--tiny", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    for run in found["runs"].values():
        assert (run["tiles"], run["rows"]) == (8, 2)
        for kind, spent in run["kinds"].items():
            assert f"| {kind} |" in done.stdout
            assert spent["row_ms"] == pytest.approx(1000 * spent["processor_s"] / 2, abs=0.06)
            assert spent["tile_ms"] == pytest.approx(spent["row_ms"] / 4, abs=0.002)
    starting = found["start_up"]
    assert 0 < starting["first_byte_s"] <= starting["first_sample_s"]
    assert 0 < starting["help_processor_s"] < starting["first_byte_processor_s"]
    assert {"numpy", "pydantic", "das_gpu"} <= starting["imports_ms"].keys()
