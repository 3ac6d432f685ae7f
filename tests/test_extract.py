"""The main job, end to end: same pixels however it is cut, nothing lost, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import PIL
import pytest
import scipy
import zarr

from das_gpu import Recipe, extract, open_archive
from das_gpu.backends.cpu import CpuBackend
from das_gpu.backends.window import HostRing
from das_gpu.chunks import StoredArray
from das_gpu.errors import DestinationError, IdentityError, SourceError
from das_gpu.run import Progress, prepare
from das_gpu.segment import extract_segment
from das_gpu.sink import open_sink
from das_gpu.spans import ring_layout
from das_gpu.stream import SegmentStream
from tests.archives import clock_us, random_walk, write_archive
from tests.outputs import envelopes, files, images, lines, records, statuses

SMALL = {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3}
CHUNKS = (16, 700)


def small(**settings: Any) -> Recipe:
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return Recipe().with_settings({**SMALL, **changed})


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return random_walk(36, 6000, seed=5, swell=10)


@pytest.fixture(scope="module")
def store(samples, tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, CHUNKS)


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert extract(store, out, small(median__kind="channel")).exit_code == 0
    return out


# --- the cut changes no pixel -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["NumPy", "compiled"])
def loops(request, store, tmp_path_factory) -> tuple[bool, Path]:
    """Whether loops are compiled, and what they make when nothing else is special."""
    if request.param:
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    out = tmp_path_factory.mktemp("loops") / "out"
    extract(store, out, small(median__kind="channel"), fast=request.param)
    return request.param, out


@pytest.mark.parametrize("segment_minutes", [0.001, 0.1, 0.16, 60])
def test_no_segment_length_changes_a_pixel(store, loops, tmp_path, segment_minutes):
    compiled, expected = loops
    out, recipe = tmp_path / "out", small(median__kind="channel")
    extract(store, out, recipe, segment_minutes=segment_minutes, fast=compiled)
    ours, theirs = images(out), images(expected)
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in theirs)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_worker_count_changes_a_byte(store, loops, tmp_path, workers):
    compiled, expected = loops
    recipe = small(median__kind="channel")
    extract(store, tmp_path / "out", recipe, workers=workers, fast=compiled)
    assert files(tmp_path / "out") == files(expected)


@pytest.mark.parametrize("batch_channels", [1, 7, 36, 500])
@pytest.mark.parametrize("loaders", [1, 6])
def test_no_batch_size_or_loader_count_changes_a_byte(
    store, loops, tmp_path, batch_channels, loaders
):
    compiled, expected = loops
    archive, plan = prepare(store, small(median__kind="channel"))
    backend = CpuBackend(1, batch_channels, compiled=compiled)
    extract_segment(archive, plan, 0, backend, open_sink(tmp_path), loaders=loaders)
    made = {name: data for name, data in files(expected).items() if name.startswith("images")}
    assert files(tmp_path) == made


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(36, 6000), (5, 64), (36, 1), (1, 6000), (7, 999)])
def test_no_chunk_shape_changes_a_pixel(samples, loops, tmp_path, chunks):
    if chunks == (36, 1):
        samples, chunks = samples[:, :1300], (36, 13)
    store = write_archive(tmp_path / "b.zarr", samples, 200.0, chunks)
    compiled, expected = loops
    out = tmp_path / "out"
    extract(store, out, small(median__kind="channel"), fast=compiled)
    theirs = images(expected)
    for record in lines(out / "metadata.jsonl"):
        if record["status"] == "ok":
            key = record["sample_start"], record["channel_start"]
            assert (images(out)[key] == theirs[key]).all()


def test_either_dimension_order_gives_the_same_images(samples, undisturbed, tmp_path):
    store = write_archive(tmp_path / "b.zarr", samples, 200.0, CHUNKS, time_first=True)
    extract(store, tmp_path / "out", small(median__kind="channel"))
    ours, theirs = images(tmp_path / "out"), images(undisturbed)
    assert all((ours[key] == theirs[key]).all() for key in theirs)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.slow
def test_every_sample_type_is_read(samples, tmp_path, dtype):
    """Integers and floats differ in the rounding of the detrend only."""
    offset = (samples - 1_800_000) // 4  # fits int16 and is exact in float32
    typed = write_archive(tmp_path / "b.zarr", offset.astype(dtype), 200.0, CHUNKS)
    same = write_archive(tmp_path / "c.zarr", offset, 200.0, CHUNKS)
    extract(typed, tmp_path / "typed", small())
    extract(same, tmp_path / "int32", small())
    ours, theirs = images(tmp_path / "typed"), images(tmp_path / "int32")
    assert ours.keys() == theirs.keys()
    for key, image in theirs.items():
        difference = np.abs(ours[key].astype(int) - image)
        assert difference.max() <= 1
        assert np.mean(difference > 0) <= (0 if dtype is np.int16 else 0.01)


def test_a_start_time_moves_the_grid_and_halos_reach_before_it(store, samples, tmp_path):
    """A tile that starts at 23:11:20 is `ok`: its halo lies before the start, where samples are."""
    start = "2021-11-01T23:11:20Z"
    recipe = small(selection__start=start, selection__stop="2021-11-01T23:11:30")
    summary = extract(store, tmp_path / "out", recipe)
    assert summary.images == 9
    first = records(tmp_path / "out")[0]
    assert first["sample_start"] == 1034  # the first at or after: 5.166 s at 200 Hz, rounded up
    assert first["status"] == "ok"
    assert first["start_time"].startswith("2021-11-01T23:11:20.004")


# --- the manifest -----------------------------------------------------------------------------


def test_the_folder_is_as_documented(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    manifests = {"metadata.jsonl", "undelivered.jsonl"}
    assert names == {"run.json", "images", "segments", "logs"} | manifests
    first = lines(undisturbed / "metadata.jsonl")[0]
    assert list(first) == [
        "file_name", "status", "segment", "start_time", "end_time", "channel_start",
        "channel_stop", "channel_step", "sample_start", "sample_stop", "sample_step",
        "distance_start_m", "distance_stop_m", "db_low", "db_high", "dead_channels", "quality",
        "sha256", "split_key", "reason",
    ]  # fmt: skip
    assert first["file_name"] == "images/2021-11-01/23/20211101T231114834Z_ch00000.png"
    assert first["start_time"] == "2021-11-01T23:11:14.834000Z"
    assert first["end_time"] == "2021-11-01T23:11:17.834000Z"
    assert (first["channel_stop"], first["sample_stop"]) == (12, 600)
    assert first["distance_stop_m"] == pytest.approx(12 * 2.0419)
    assert (undisturbed / "undelivered.jsonl").read_text() == ""
    run = json.loads((undisturbed / "run.json").read_text())
    assert run["recipe_digest"] == small(median__kind="channel").digest
    assert set(run["identity"]) == {
        "recipe", "algorithm", "selection", "segment_minutes", "format", "backend", "on_missing",
        "source",
    }  # fmt: skip
    assert run["identity"]["recipe"]["filter"]["low_hz"] == 14
    assert run["versions"].keys() >= {"python", "numpy", "scipy", "pillow"}


def test_the_notebooks_pixels_belong_to_the_versions_that_drew_them(store, tmp_path):
    extract(store, tmp_path, Recipe.from_preset("notebook").with_settings(SMALL))
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert (identity["pillow"], identity["scipy"]) == (
        PIL.__version__.partition(".")[0],
        scipy.__version__.partition(".")[0],
    )


def test_every_image_is_vouched_for_by_its_hash(undisturbed):
    for record in lines(undisturbed / "metadata.jsonl"):
        data = (undisturbed / record["file_name"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()


def test_pixels_invert_to_decibels_by_the_recorded_limits(store, tmp_path):
    size = {"image__height": 600 // 2, "image__width": 12}  # one pixel a sample
    extract(store, tmp_path / "png", small(image__format="png16", **size))
    extract(store, tmp_path / "npy", small(image__format="npy"))
    arrays = envelopes(tmp_path / "npy")
    for record in lines(tmp_path / "png" / "metadata.jsonl"):
        key = record["sample_start"], record["channel_start"]
        pixels = images(tmp_path / "png")[key].T.astype(float)
        low, high = record["db_low"], record["db_high"]
        level_db = low + pixels / 65535 * (high - low)
        np.testing.assert_allclose(level_db, np.clip(arrays[key], low, high), atol=1e-3)


def test_quality_is_the_or_of_the_status_bits_over_the_core(samples, tmp_path):
    status, bits = np.zeros((2, 6000), np.uint8)
    status[700], status[599], status[1800], bits[1801] = 4, 1, 2, 2
    store = write_archive(
        tmp_path / "a.zarr", samples, 200.0, CHUNKS, gps_status=status, gps_bits=bits
    )
    extract(store, tmp_path / "out", small(tile__bands=1))
    assert [r["quality"] for r in records(tmp_path / "out")] == [1, 4, 0, 2 + 512, 0, 0, 0, 0, 0, 0]


# --- gaps -------------------------------------------------------------------------------------


def test_a_jump_makes_the_tile_it_crosses_a_gap_and_its_neighbours_edge(samples, tmp_path):
    times = clock_us(6000, 200.0)
    times[1500:] += 40_000_000
    store = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, times_us=times)
    summary = extract(store, tmp_path / "out", small(tile__bands=1))
    assert statuses(tmp_path / "out") == ["edge", "edge", "gap", "edge", *["ok"] * 5, "edge"]
    assert summary.exit_code == 0
    (gap,) = lines(tmp_path / "out" / "undelivered.jsonl")
    assert gap["file_name"] is None
    assert gap["reason"] == "the time axis jumps at sample 1500, inside the tile"


@pytest.mark.parametrize("axis", ["times_us", "counter"])
def test_a_jump_on_a_tile_boundary_loses_nothing(samples, tmp_path, axis):
    values = clock_us(6000, 200.0) if axis == "times_us" else np.arange(6000)
    values[1800:] -= 10 * (values[1] - values[0])  # runs backwards by ten samples
    store = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, **{axis: values})
    extract(store, tmp_path / "out", small(tile__bands=1))
    expected = ["edge", "ok", "edge", "edge", *["ok"] * 5, "edge"]
    assert statuses(tmp_path / "out") == expected


def test_a_jittering_clock_and_a_counter_that_was_never_set_are_no_jumps(samples, tmp_path):
    times = clock_us(6000, 200.0) + np.random.default_rng(1).integers(-1, 2, 6000)
    counter = np.full(6000, 7)
    store = write_archive(
        tmp_path / "a.zarr", samples, 200.0, CHUNKS, times_us=times, counter=counter
    )
    extract(store, tmp_path / "out", small(tile__bands=1))
    assert "gap" not in statuses(tmp_path / "out")


@pytest.mark.parametrize(("step_us", "status"), [(2400, "ok"), (2600, "gap"), (-2600, "gap")])
def test_a_jump_is_a_step_off_by_more_than_half_a_sample(samples, tmp_path, step_us, status):
    times = clock_us(6000, 200.0)
    times[3300:] += step_us
    store = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, times_us=times)
    extract(store, tmp_path / "out", small(tile__bands=1))
    assert statuses(tmp_path / "out")[5] == status


def test_a_halo_cut_at_a_jump_is_filled_by_odd_reflection(samples, tmp_path):
    """What lies beyond the jump does not reach the tile."""
    times = clock_us(6000, 200.0)
    times[1800:] += 1_000_000
    disturbed = samples.copy()
    disturbed[:, 1800:] = disturbed[:, :4200] * 3
    for name, values in (("a", samples), ("b", disturbed)):
        store = write_archive(tmp_path / f"{name}.zarr", values, 200.0, CHUNKS, times_us=times)
        extract(store, tmp_path / name, small(tile__bands=1))
    before, after = images(tmp_path / "a"), images(tmp_path / "b")
    assert (before[1200, 0] == after[1200, 0]).all()
    assert not (before[1800, 0] == after[1800, 0]).all()


# --- lost chunks ------------------------------------------------------------------------------


def lose(samples: np.ndarray, path: Path, key: str, how: str) -> Path:
    store = write_archive(path, samples, 200.0, CHUNKS)
    chunk = store / key
    if how == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-7])
    return store


@pytest.mark.parametrize("how", ["missing", "corrupt"])
def test_a_lost_chunk_loses_the_tiles_it_touches_and_no_other(samples, undisturbed, tmp_path, how):
    """Chunk 1.3 holds channels 16:32 of samples 2100:2800; bands are 12 channels, tiles 600."""
    store = lose(samples, tmp_path / "a.zarr", "RawData/1.3", how)
    summary = extract(store, tmp_path / "out", small())
    by_tile = {
        (r["sample_start"] // 600, r["channel_start"] // 12): r["status"]
        for r in records(tmp_path / "out")
    }
    for (row, band), status in by_tile.items():
        if band in (1, 2) and row in (3, 4):
            assert status == how
        elif row in (0, 9) or (band in (1, 2) and row in (2, 5)):
            assert status == "edge"
        else:
            assert status == "ok"
    assert summary.exit_code == 3
    assert summary.tiles[how] == 4
    assert "RawData/1.3" in lines(tmp_path / "out" / "undelivered.jsonl")[0]["reason"]
    theirs = images(undisturbed)
    untouched = images(tmp_path / "out")[3 * 600, 0]
    assert untouched.shape == theirs[1800, 0].shape


@pytest.mark.slow
def test_a_lost_chunk_that_comes_back_is_read_by_the_next_run(samples, tmp_path):
    store = lose(samples, tmp_path / "a.zarr", "RawData/1.3", "missing")
    whole = write_archive(tmp_path / "b.zarr", samples, 200.0, CHUNKS)
    assert extract(store, tmp_path / "out", small()).exit_code == 3
    assert extract(store, tmp_path / "out", small()).exit_code == 3
    (store / "RawData" / "1.3").write_bytes((whole / "RawData" / "1.3").read_bytes())
    assert extract(store, tmp_path / "out", small()).exit_code == 0
    extract(whole, tmp_path / "whole", small())
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_on_missing_fill_makes_the_channels_dead(samples, tmp_path):
    store = lose(samples, tmp_path / "a.zarr", "RawData/1.3", "missing")
    summary = extract(store, tmp_path / "out", small(), on_missing="fill")
    assert summary.exit_code == 0
    dead = {
        (r["sample_start"], r["channel_start"]): r["dead_channels"]
        for r in records(tmp_path / "out")
    }
    assert (dead[1800, 0], dead[1800, 12], dead[1800, 24]) == (0, 8, 8)


def test_on_missing_fill_forgives_neither_a_jump_nor_a_lost_time_axis(samples, tmp_path):
    times = clock_us(6000, 200.0)
    times[2200:] += 40_000_000  # in tile 3, as the lost chunk
    store = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, times_us=times)
    for row in range(3):
        (store / "RawData" / f"{row}.3").unlink()
    (store / "RawDataTime" / "7").unlink()  # samples 4900:5600, tiles 8 and 9
    extract(store, tmp_path / "out", small(tile__bands=1), on_missing="fill")
    expected = ["edge", "ok", "edge", "gap", "ok", "edge", "ok", "edge", "missing", "missing"]
    assert statuses(tmp_path / "out") == expected
    assert records(tmp_path / "out")[4]["dead_channels"] == 36


def test_on_missing_error_stops_the_run(samples, tmp_path):
    store = lose(samples, tmp_path / "a.zarr", "RawData/1.3", "missing")
    with pytest.raises(SourceError, match=r"RawData/1\.3"):
        extract(store, tmp_path / "out", small(), on_missing="error")


def test_a_lost_chunk_of_the_time_axis_is_missing_and_of_the_counter_is_not(samples, tmp_path):
    counter = np.arange(6000)
    store = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, counter=counter)
    (store / "RawDataSampleCount" / "1").unlink()
    assert extract(store, tmp_path / "counter", small()).exit_code == 0
    (store / "RawDataTime" / "3").unlink()  # samples 2100:2800, tiles 3 and 4
    assert extract(store, tmp_path / "axis", small(tile__bands=1)).exit_code == 3
    expected = ["edge", "ok", "edge", "missing", "missing", "edge", "ok", "ok", "ok", "edge"]
    assert statuses(tmp_path / "axis") == expected


# --- resume -----------------------------------------------------------------------------------


def test_a_rerun_of_a_finished_run_does_nothing(store, tmp_path):
    assert not extract(store, tmp_path / "out", small()).finished_before
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "images").rglob("*.png")}
    again = extract(store, tmp_path / "out", small())
    assert again.finished_before
    assert (again.images, again.chunks) == (30, 0)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "images").rglob("*.png")}


@pytest.mark.slow
def test_a_rerun_does_the_missing_segments_and_keeps_the_segment_length(store, tmp_path):
    extract(store, tmp_path / "whole", small(), segment_minutes=0.1)
    extract(store, tmp_path / "out", small(), segment_minutes=0.1)
    (tmp_path / "out" / "segments" / "00002.jsonl").unlink()
    torn = tmp_path / "out" / "segments" / "00004.jsonl"
    torn.write_bytes(torn.read_bytes()[:-20])
    again = extract(store, tmp_path / "out", small())
    assert again.made == 2 * 2 * 3
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.slow
def test_another_recipe_or_source_is_refused_and_the_difference_named(store, samples, tmp_path):
    extract(store, tmp_path / "out", small())
    before = files(tmp_path / "out")
    with pytest.raises(IdentityError, match=r"recipe\.tile\.bands: was 3, is 4"):
        extract(store, tmp_path / "out", small(tile__bands=4))
    other = write_archive(tmp_path / "b.zarr", samples[:, :5400], 200.0, CHUNKS)
    with pytest.raises(IdentityError, match="source"):
        extract(other, tmp_path / "out", small())
    assert files(tmp_path / "out") == before
    extract(store, tmp_path / "out", small(tile__bands=4), overwrite=True)
    assert len(images(tmp_path / "out")) == 40


def test_a_folder_that_holds_something_else_is_left_alone(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("dear")
    with pytest.raises(DestinationError, match="something else"):
        extract(store, tmp_path / "out", small())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def refuse(monkeypatch, column: int) -> None:
    """Let reading one column of chunks fail for another reason than the chunk."""
    load = StoredArray.load

    def failing(self, index, use):
        if self.name == "RawData" and index[1] == column:
            raise SourceError("the store is gone")
        return load(self, index, use)

    monkeypatch.setattr(StoredArray, "load", failing)


def test_a_segment_whose_source_fails_is_in_error_and_the_others_are_made(
    store, tmp_path, monkeypatch
):
    """Segments of 2 rows, 1200 samples; column 4 of 700 samples lies in the third only."""
    with monkeypatch.context() as patched:
        refuse(patched, 4)
        summary = extract(store, tmp_path / "out", small(filter__halo_s=0), segment_minutes=0.1)
    assert summary.exit_code == 3
    by_row = statuses(tmp_path / "out")[::3]
    assert by_row == ["ok"] * 4 + ["error"] * 2 + ["ok"] * 4
    assert lines(tmp_path / "out" / "undelivered.jsonl")[0]["reason"] == "the store is gone"
    again = extract(store, tmp_path / "out", small(filter__halo_s=0))
    assert (again.exit_code, again.made, again.images) == (0, 6, 30)


def test_a_rerun_whose_source_fails_keeps_what_was_delivered(samples, tmp_path, monkeypatch):
    store = lose(samples, tmp_path / "a.zarr", "RawData/1.3", "missing")
    extract(store, tmp_path / "out", small())
    before = files(tmp_path / "out")
    refuse(monkeypatch, 4)
    assert extract(store, tmp_path / "out", small()).exit_code == 3
    assert files(tmp_path / "out") == before


# --- what it costs ----------------------------------------------------------------------------


def test_every_chunk_is_fetched_once_per_segment(store, tmp_path):
    _, plan = prepare(store, small())
    assert plan.chunk_reads == 3 * 9  # 36 channels by 16, 6000 samples by 700
    assert extract(store, tmp_path / "out", small()).chunks == plan.chunk_reads


def test_progress_counts_every_tile_and_ends_at_the_total(store, tmp_path):
    seen: list[Progress] = []
    extract(store, tmp_path / "out", small(), on_progress=seen.append)
    assert sorted({p.done_tiles for p in seen}) == list(range(0, 31, 3))
    assert (seen[0].done_tiles, seen[-1].done_tiles) == (0, 30)
    assert {p.total_tiles for p in seen} == {30}
    assert seen[0].remaining_s is None
    assert seen[-1].remaining_s == 0


@pytest.mark.slow
def test_loaders_wait_when_the_ring_is_full(store):
    """Without a reader, no more is fetched than the ring holds."""
    archive = open_archive(store)
    _, plan = prepare(store, small())
    layout = ring_layout(plan, plan.segment(0))
    with SegmentStream(
        archive, plan, plan.segment(0), HostRing(layout), layout, loaders=3
    ) as stream:
        rows = iter(stream)
        next(rows)
        for thread in stream._threads:
            thread.join(timeout=0.5)
        fetched = stream.traffic.chunks
    assert 0 < fetched <= layout.slots * 3 < plan.chunk_reads


MEMORY = """
import re, sys
from pathlib import Path
from das_gpu import Recipe, extract
extract(sys.argv[1], sys.argv[2], Recipe().with_settings({"tile.bands": 2, "tile.seconds": 5}))
# Not getrusage: its peak counts from before the exec, when the child was the test's process.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_peak_memory_is_flat_over_the_length_of_the_archive(tmp_path):
    from das_gpu.scene import Scene
    from das_gpu.simulate import simulate

    peaks = {}
    for times in (1, 8):
        scene = Scene(channels=1500, seconds=60.0 * times, chunk_shape=(1500, 3000))
        path = simulate(tmp_path / f"{times}.zarr", scene)
        command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"out{times}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[times] = int(done.stdout)
    assert peaks[8] <= 1.1 * peaks[1]


@pytest.fixture(scope="module")
def long_store(tmp_path_factory) -> Path:
    """Long enough that a signal meets a run in the middle."""
    samples = np.tile(random_walk(400, 6000, seed=5), (1, 10))
    return write_archive(tmp_path_factory.mktemp("long") / "a.zarr", samples, 200.0, (400, 3000))


@pytest.fixture(scope="module")
def interruptible(long_store) -> list[str]:
    """A command of 20 segments, without its output."""
    arguments = ["--segment-minutes", "0.25", "--workers", "1", "--tile-seconds", "3"]
    arguments += ["--bands", "2"]
    return [sys.executable, "-m", "das_gpu", "extract", *arguments, str(long_store)]


@pytest.fixture(scope="module")
def uninterrupted(interruptible, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    subprocess.run([*interruptible, str(out)], check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_finishes_an_interrupted_run(interruptible, uninterrupted, tmp_path, sent):
    out = tmp_path / "out"
    command = [*interruptible, str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((out / "segments").glob("0*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(sent)
    _, said = running.communicate(timeout=60)
    finished = len(list((out / "segments").glob("0*.jsonl")))
    assert 0 < finished < 20
    if sent == signal.SIGINT:
        assert running.returncode == 130
        assert "same command continues" in said
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert files(out) == files(uninterrupted)


# --- other encodings --------------------------------------------------------------------------

ENCODINGS = {
    "format 3, zstd": {"zarr_format": 3, "compressors": zarr.codecs.ZstdCodec()},
    "format 3, sharded": {"zarr_format": 3, "shards": (32, 1400)},
    "format 2, uncompressed": {"zarr_format": 2, "compressors": None},
    "format 2, delta filter": {"zarr_format": 2, "filters": [numcodecs.Delta("<i4")]},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_however_the_chunks_are_encoded_the_images_are_the_same(
    samples, undisturbed, tmp_path, encoding
):
    """Plain encodings are decoded in place, others by Zarr's own pipeline."""
    options = dict(ENCODINGS[encoding])
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=options.pop("zarr_format"))
    data = group.create_array(
        "RawData", shape=samples.shape, chunks=CHUNKS, dtype="<i4", fill_value=0, **options
    )
    data[...] = samples
    group.create_array("RawDataTime", data=clock_us(6000, 200.0), chunks=(700,))
    extract(tmp_path / "a.zarr", tmp_path / "out", small(median__kind="channel"))
    ours, theirs = images(tmp_path / "out"), images(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in theirs)
