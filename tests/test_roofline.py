"""What a row of tiles asks of a GPU is counted, within its bars, and as the README says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from das_gpu import Recipe
from tests.gpu.harness.require import need_compiler, need_nvrtc

BENCH = Path(__file__).resolve().parents[1] / "bench"
CONTINUOUS = Recipe.from_preset("continuous").with_settings({"median.kind": "channel"})
NOTEBOOK = Recipe.from_preset("notebook")
SPECTRAL_STEPS = [
    *("gather", "rfft", "spectral_response", "ifft", "pick_channels", "common_mode"),
    *("envelope_db", "levels", "along_time", "along_channels"),
]


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    need_compiler()
    need_nvrtc()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("roofline", "roofline_counts", "roofline_device")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((BENCH / "results" / "roofline.json").read_text())


# --- what is committed --------------------------------------------------------------------


def test_the_readme_shows_the_committed_result(bench, committed):
    assert bench["roofline"].tables(committed) in (BENCH / "README.md").read_text()


def test_the_committed_result_meets_every_bar(bench, committed):
    assert {name: each["bar"] for name, each in committed["bars"].items()} == bench["roofline"].BARS
    for name, each in committed["bars"].items():
        assert each["found"] <= each["bar"], name
    assert [step["name"] for step in committed["steps"]] == SPECTRAL_STEPS


def test_the_committed_row_is_the_one_that_is_promised(committed):
    row = committed["row"]
    assert (row["channels"], row["samples"], row["window"], row["bands"]) == (7500, 1500, 3750, 10)
    assert row["scaling_error"] < 0.001


@pytest.mark.slow
def test_the_kernels_move_what_the_committed_result_says(bench, committed):
    """One band is counted here, two are in the result: a change of a kernel shows."""
    counts = bench["roofline_counts"]
    made = counts.cable_plan(CONTINUOUS, bench["roofline"].CHANNELS)
    steps = counts.counted_steps(made, part_bands=1)
    for step, said in zip(steps, committed["steps"], strict=True):
        assert step.name == said["name"]
        assert step.least_bytes == said["least_bytes"]
        assert step.moved_bytes >= step.least_bytes
        said_bytes = said["read_bytes"] + said["written_bytes"]
        assert step.moved_bytes == pytest.approx(said_bytes, rel=0.002)
    assert sum(step.moved_bytes for step in steps) <= 1e9 * bench["roofline"].BARS["traffic_gb"]


# --- rows ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [CONTINUOUS, NOTEBOOK], ids=["continuous", "notebook"])
def test_a_row_asks_for_what_the_formulas_say(bench, recipe):
    device = bench["roofline_device"]
    made = device.small_plan(recipe)
    rows = device.requested(made)
    steady = range(1, len(rows) - 1)
    assert len(steady) >= 3
    for row in steady:
        asked = rows[row]
        assert asked.calls <= bench["roofline"].BARS["calls"]
        assert asked.h2d_bytes == device.h2d_bytes(made, row)
        assert asked.d2h_bytes == device.d2h_bytes(made)
        assert (asked.hidden_syncs, asked.allocations) == (0, 0)
        assert asked.waits == 1, "the host waits for the results of the row before, and that is all"


@pytest.mark.parametrize("recipe", [CONTINUOUS, NOTEBOOK], ids=["continuous", "notebook"])
def test_the_samples_of_the_large_row_are_all_that_counts(bench, recipe):
    device, counts = bench["roofline_device"], bench["roofline_counts"]
    made = counts.cable_plan(recipe, bench["roofline"].CHANNELS)
    kept = device.kept_bytes(made)
    assert kept == 7500 * 3000 * 4 // (made.hold_step)
    sent = device.h2d_bytes(made, counts.MIDDLE_ROW)
    assert kept < sent < 1.001 * kept
    assert device.d2h_bytes(made) == 10 * (256 * 256 + 3 * 8) + (4 + 10) * 4


def test_a_window_lies_in_the_columns_it_touches(bench):
    counts = bench["roofline_counts"]
    columns = counts.columns_of(counts.cable_plan(CONTINUOUS, 100), counts.MIDDLE_ROW)
    starts, samples, _ = columns.T
    assert starts[0] <= 0 < starts[0] + samples[0]
    assert starts[-1] < 3750 <= starts[-1] + samples[-1]
    assert (starts[1:] == starts[:-1] + samples[:-1]).all()


# --- device -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "share"),
    [
        pytest.param("80", 32, 0, 256, 1.0, id="nothing limits"),
        pytest.param("80", 128, 0, 256, 0.25, id="registers"),
        pytest.param("80", 33, 0, 256, 0.75, id="registers come in units of 8 a thread"),
        pytest.param("90", 255, 0, 32, 0.125, id="two warps of 255 registers in each partition"),
        pytest.param("80", 32, 64 * 1024, 256, 0.25, id="shared memory of an A100"),
        pytest.param("90", 32, 64 * 1024, 256, 0.375, id="shared memory of an H100"),
        pytest.param("100", 16, 0, 32, 0.5, id="32 blocks"),
    ],
)
def test_occupancy_is_the_scarcest_of_what_a_block_takes(
    bench, arch, registers, shared, threads, share
):
    found = bench["roofline_device"].occupancy(arch, registers, shared, threads)
    assert found == pytest.approx(share)


@pytest.mark.slow
def test_the_roofline_runs_and_shows_every_step(tmp_path: Path) -> None:
    need_compiler()
    need_nvrtc()
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "roofline.py"), "--tiny", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in (*SPECTRAL_STEPS, "the row", "sosfiltfilt, notebook, 8 sections", "The limit"):
        assert name in done.stdout
    found = json.loads(result.read_text())
    assert found["machine"]["cpu"]
    again = subprocess.run(
        [sys.executable, str(BENCH / "roofline.py"), "--markdown", str(result)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.stdout == done.stdout
