"""The bars: what is compared takes turns, is the same work, and is judged by what it comes to."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from das_gpu.simulate import Scene, simulate

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCENE = Scene(channels=24, seconds=30.0, chunk_shape=(12, 1500))
PARTS = {"continuous", "notebook", "steady", "kernels", "memory", "startup"}


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("bars", "bars_archive", "bars_parts", "bars_process", "bars_work")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("bars") / "archive.zarr", SCENE)


def group(path: Path) -> Any:
    return zarr.open_consolidated(str(path), mode="r")


# --- turns and bars -----------------------------------------------------------------------


def test_ways_take_turns_who_goes_first_alternates_and_warm_ups_do_not_count(bench):
    ran: list[str] = []

    def way(name: str):
        return lambda: {"place": len(ran), "name": ran.append(name)}

    found = bench["bars_work"].interleaved({name: way(name) for name in "abc"}, 3, warm_ups=1)
    assert "".join(ran) == "cbaabccbaabc"
    assert [run["place"] for run in found["a"]] == [3, 8, 9]
    assert [run["place"] for run in found["c"]] == [5, 6, 11]


def test_the_median_of_the_runs_counts_and_every_run_is_kept(bench):
    runs = [{"seconds": s, "pixels": "abc"} for s in (1.0, 9.0, 2.0)]
    summed = bench["bars_work"].summed_up({"ours": runs, "peer": [{"seconds": 8.0}]})
    assert summed["ours"] == {"median": {"seconds": 2.0}, "runs": runs}
    assert bench["bars_work"].over(summed["peer"], summed["ours"], "seconds") == 4.0
    assert bench["bars_work"].over(summed["peer"], {}, "seconds") is None


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "met"),
    [
        (6.0, 6.0, True, True),
        (5.99, 6.0, True, False),
        (3.0, 3.0, False, True),
        (3.01, 3.0, False, False),
        (None, 3.0, False, False),
        (None, None, False, None),
        (99.0, None, True, None),
    ],
)
def test_a_bar_is_met_from_its_own_side_and_never_unmeasured(bench, value, limit, at_least, met):
    bar = bench["bars_work"].Bar("steady", "a row", "times", value, limit, at_least=at_least)
    assert bar.met is met


def test_missed_bars_are_named_with_what_was_found(bench):
    made = bench["bars_work"].Bar
    bars = [
        made("continuous", "faster", "times", 9.1, 6.0, 9.0, at_least=True),
        made("steady", "a row, numba", "times", 3.4, 3.0, 2.4),
        made("kernels", "resize, numba", "times", None, 3.0, at_least=True),
        made("startup", "first sample", "s", 99.0),
    ]
    assert bench["bars"].missed(bars) == [
        "steady: a row, numba: 3.4 times, at most 3",
        "kernels: resize, numba: not measured, at least 3",
    ]


def test_a_process_that_fails_ends_the_benchmark_with_what_it_said(bench):
    code = "import sys; sys.exit('no such archive')"
    with pytest.raises(SystemExit, match=r"ended with 1:\nno such archive"):
        bench["bars_work"].process([sys.executable, "-c", code])


def test_a_process_is_told_whether_to_compile_and_never_by_who_measures(bench, monkeypatch):
    monkeypatch.setenv("DAS_GPU_FAST", "no")
    code = "import os; print(os.environ.get('DAS_GPU_FAST'))"
    command = [sys.executable, "-c", code]
    said = [bench["bars_work"].process(command, fast=fast)[0].strip() for fast in ("yes", None)]
    assert said == ["yes", "None"]


# --- archives -----------------------------------------------------------------------------


def test_a_linked_archive_repeats_the_samples_and_its_clock_goes_on(bench, store, tmp_path):
    path = bench["bars_archive"].linked(
        tmp_path / "large.zarr", store, SCENE, channels=42, seconds=75.0
    )
    small, large = group(store), group(path)
    assert large["RawData"].shape == (42, 15000)
    repeated = np.tile(small["RawData"][...], (2, 3))[:42, :15000]
    np.testing.assert_array_equal(large["RawData"][...], repeated)
    steps_us = np.diff(large["RawDataTime"][...])
    assert (steps_us.min(), steps_us.max()) == (5000, 5000)
    stored = [file for file in (path / "RawData").iterdir() if not file.name.startswith(".")]
    assert len(stored) == 40
    assert all(file.stat().st_nlink > 1 for file in stored)


def test_a_scene_that_ends_within_a_chunk_is_not_repeated(bench, store, tmp_path):
    ragged = replace(SCENE, channels=23)
    with pytest.raises(ValueError, match="23 channels x 6000 samples are no whole chunks"):
        bench["bars_archive"].linked(tmp_path / "l", store, ragged, channels=42, seconds=75.0)
    assert not (tmp_path / "l").exists()


def test_compression_is_stored_over_decoded_size(bench, store):
    chunks = [store / "RawData" / f"{row}.{column}" for row in range(2) for column in range(4)]
    stored = sum(chunk.stat().st_size for chunk in chunks)
    assert bench["bars_archive"].compression(store) == pytest.approx(stored / (24 * 6000 * 4))


# --- steady state -------------------------------------------------------------------------


def test_the_pace_is_that_of_the_middle_rows(bench):
    starting, ending = [0.9, 1.0], [2.001, 2.002]
    middle = [1.0 + 0.1 * row for row in range(1, 11)]
    assert bench["bars_parts"].slope([*starting, *middle, *ending], 2) == pytest.approx(0.1)


@pytest.mark.parametrize("at_s", [[1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 3.0, 2.0, 1.0, 9, 9]])
def test_no_pace_is_told_from_too_few_rows_or_rows_out_of_order(bench, at_s):
    with pytest.raises(ValueError, match="No pace can be told"):
        bench["bars_parts"].slope(at_s, 2)


def test_the_bare_loop_decodes_every_chunk(bench, store, tmp_path):
    found = bench["bars_process"].bare(str(store))
    assert (found["chunks"], found["columns"]) == (8, 4)
    path = bench["bars_archive"].linked(tmp_path / "l", store, SCENE, channels=24, seconds=30.0)
    last = path / "RawData" / "1.3"
    body = last.read_bytes()
    last.unlink()
    last.write_bytes(body[:100])
    with pytest.raises(ValueError, match=r"1\.3 has 100 bytes of the"):
        bench["bars_process"].bare(str(path))


# --- images -------------------------------------------------------------------------------


def write_images(out: Path, *, names: str = "ab", level: int = 7) -> None:
    out.mkdir(parents=True)
    for name in names:
        pixels = np.full((4, 4), 100, np.uint8)
        pixels[2, 3] = level
        Image.fromarray(pixels).save(out / f"{name}.png")


def test_a_digest_is_of_names_and_pixels_wherever_they_are(bench, tmp_path):
    write_images(tmp_path / "one")
    write_images(tmp_path / "two" / "images")
    write_images(tmp_path / "pixel", level=8)
    write_images(tmp_path / "name", names="ac")
    found = {out.name: bench["bars_parts"].digest(out) for out in tmp_path.iterdir()}
    assert found["one"] == found["two"]
    assert found["one"][0] == 2
    assert len({check for _, check in found.values()}) == 3


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"names": "abcdefgh"}, None),
        ({"names": "abcdefgh", "level": 8}, "notebook, by default: not pixel by pixel the images"),
        ({"names": "abcdefg"}, "wrote 7 images, not 8"),
    ],
)
def test_times_of_other_images_than_the_peers_are_refused(
    bench, store, tmp_path, monkeypatch, ours, said
):
    parts, work = bench["bars_parts"], bench["bars_work"]

    def process(command, *, fast=None):
        store_at = command.index(str(store))
        peer = command[1].endswith("notebook_pipeline.py")
        write_images(Path(command[store_at + 1]), **({"names": "abcdefgh"} if peer else ours))
        return "", {"seconds": 8.0 if peer else 2.0, "processor_s": 1.0}

    monkeypatch.setattr(parts, "process", process)
    sizes = replace(bench["bars_archive"].TINY, scene=SCENE)
    job = work.Job(store, sizes, tmp_path, 2, tiny=True)
    if said is not None:
        with pytest.raises(SystemExit, match=said):
            parts.to_images(job, ["notebook"])
        return
    found = parts.to_images(job, ["continuous", "notebook"])
    judged = {(bar.part, bar.unit): (bar.value, bar.met) for bar in found.bars if bar.limit}
    assert judged == {("continuous", "times"): (4.0, False), ("notebook", "times"): (4.0, True)}


# --- the whole ----------------------------------------------------------------------------


@pytest.mark.slow
def test_all_parts_run_and_say_what_they_measured(bench, tmp_path):
    file = tmp_path / "bars.json"
    command = [sys.executable, str(BENCH / "bars.py"), "--tiny", "--check", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert file.exists(), done.stderr
    found = json.loads(file.read_text())
    assert {bar["part"] for bar in found["bars"]} == PARTS
    bars = [
        bench["bars_work"].Bar(**{key: value for key, value in bar.items() if key != "met"})
        for bar in found["bars"]
    ]
    assert [bar["met"] for bar in found["bars"]] == [bar.met for bar in bars]
    missed = bench["bars"].missed(bars)
    assert done.returncode == (1 if missed else 0)
    assert [line for line in done.stdout.splitlines() if line.startswith("missed: ")] == [
        f"missed: {each}" for each in missed
    ]
    assert all(f"| {bar.part} | {bar.what} |" in done.stdout for bar in bars)
    unmeasured = {bar.part for bar in bars if bar.value is None}
    assert unmeasured == (set() if find_spec("numba") else {"steady", "kernels"})
    parts = found["parts"]
    peer = parts["continuous and notebook"]["ways"]["notebook's pipeline"]
    ours = parts["continuous and notebook"]["ways"]["notebook, by default"]
    assert [run["pixels"] for run in ours["runs"]] == [run["pixels"] for run in peer["runs"]]
    for way in parts["steady"]["ways"].values():
        assert way["runs"][0]["chunks"] == 32
    assert {len(way["runs"]) for way in parts["memory"]["ways"].values()} == {1}
    assert 0.3 < found["archive"]["stored_over_decoded"] < 0.7
    assert found["machine"]["packages"].keys() >= {"das-gpu", "numpy", "scipy", "dask"}
