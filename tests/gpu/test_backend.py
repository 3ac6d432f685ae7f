"""The GPU backend does what the CPU backend does, whatever the recipe, the archive or the order.

Where no GPU is, CuPy is the strict double of `tests.gpu.harness.double` and the kernels are
executed by the processor; with ``-m gpu`` the same tests ask a real device.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu import Recipe, extract
from das_gpu.backends import select
from das_gpu.backends.gpu import GpuBackend
from das_gpu.errors import DeviceError, UsageError
from das_gpu.process import design
from das_gpu.run import prepare
from das_gpu.segment import extract_segment
from das_gpu.sink import open_sink
from das_gpu.spans import ring_layout
from das_gpu.stream import SegmentStream
from tests.archives import clock_us, random_walk, write_archive
from tests.gpu.agreement import BARS, assert_runs_agree, loud_difference_db
from tests.gpu.conftest import Stage
from tests.outputs import files, images, statuses

CHUNKS = (10, 700)
SMALL = {
    "selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 2, "median.kind": "channel",
    "image.height": 48, "image.width": 40,
}  # fmt: skip


def small(preset: str = "continuous", **settings: Any) -> Recipe:
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return Recipe.from_preset(preset).with_settings({**SMALL, **changed})


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Three tiles long; channel 4 is dead."""
    made = random_walk(23, 1900, seed=5, swell=10)
    made[4] = 7
    return made


@pytest.fixture(scope="module")
def store(samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, CHUNKS)


def assert_same(device: Stage, store: Path, recipe: Recipe, folder: Path, **options: Any) -> None:
    """Run both backends and compare all they wrote."""
    extract(store, folder / "cpu", recipe, backend="cpu", **options)
    with device.installed():
        extract(store, folder / "gpu", recipe, backend="gpu", **options)
    assert_runs_agree(folder / "gpu", folder / "cpu", str(recipe.compute.dtype))


# --- every recipe -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(small(), id="continuous"),
        pytest.param(small(compute__dtype="float64"), id="continuous, float64"),
        pytest.param(small("notebook"), id="notebook"),
        pytest.param(small("notebook", compute__dtype="float32"), id="notebook, float32"),
        pytest.param(small(filter__method="iir", median__kind="none"), id="iir"),
        pytest.param(small(median__kind="none"), id="no median"),
        pytest.param(small(median__kind="time"), id="each channel's own median first"),
        pytest.param(small(median__kind="auto"), id="live channels span too little for a median"),
        pytest.param(small(image__format="npy"), id="arrays"),
        pytest.param(small(tile__overlap_time=0.5), id="tiles that overlap in time"),
        pytest.param(small(tile__overlap_channels=0.5), id="tiles that overlap along the cable"),
        pytest.param(
            small(tile__overlap_channels=0.3, image__format="npy", tile__bands=3),
            id="arrays that overlap along the cable",
        ),
        pytest.param(small(image__format="png16", image__orientation="time-right"), id="16 bits"),
        pytest.param(small(image__scale="tile"), id="lowest to highest"),
        pytest.param(small(image__scale="fixed:130:160"), id="fixed levels"),
        pytest.param(small(selection__channel_step=3), id="every third channel"),
        pytest.param(
            small(selection__channel_step=3, selection__channel_reduce="mean"), id="means of three"
        ),
        pytest.param(small(selection__time_step=1), id="every sample"),
    ],
)
def test_every_recipe_gives_the_same_images_and_records(device, store, tmp_path, recipe):
    assert_same(device, store, recipe, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("preset", ["continuous", "notebook"])
@pytest.mark.slow
def test_envelopes_are_the_cpus_in_either_precision(device, store, preset, dtype):
    """In the precision of the work, before anything is rounded to be delivered."""
    archive, plan = prepare(store, small(preset, compute__dtype=dtype))
    found = {}
    for kind in ("cpu", "gpu"):
        with device.installed():
            backend = select(kind, 1).backend if kind == "cpu" else GpuBackend()
            found[kind] = first_envelope(archive, plan, backend)
    ours, theirs = found["gpu"], found["cpu"]
    assert ours.dtype == theirs.dtype == dtype
    live = np.isfinite(theirs).all(axis=1) & (np.arange(len(theirs)) != 4)
    assert loud_difference_db(ours[live], theirs[live]) <= BARS[dtype].envelope_db


def first_envelope(archive, plan, backend) -> np.ndarray:
    """The envelope of the first row, in dB, as the backend computes it."""
    segment, chain = plan.segment(0), design(plan)
    layout = ring_layout(plan, segment)
    with (
        backend.workspace(layout, chain, 2) as work,
        SegmentStream(archive, plan, segment, work.ring, layout, loaders=2) as stream,
    ):
        row = next(iter(stream))
        signal = work.analytic(row)
        common = work.common_mode(signal) if plan.common_mode else None
        envelope = work.envelope_db(signal, common)
        if backend.kind == "cpu":
            return envelope.values.reshape(-1, envelope.values.shape[-1])
        work.close()
        import cupy

        host = work._memory.pinned(envelope.scratch.db.shape, envelope.scratch.db.dtype)
        stream_out = cupy.cuda.Stream(non_blocking=True)
        envelope.scratch.db.data.copy_to_host_async(host.ctypes.data, host.nbytes, stream_out)
        stream_out.synchronize()
        return host.copy()


# --- every archive ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_every_type_of_sample(device, samples, tmp_path, dtype):
    values = samples - samples.mean(axis=1, dtype=int, keepdims=True)
    values = np.clip(values, -30000, 30000).astype(dtype)
    if dtype != "int16":
        values[7, 1000] = np.nan
    path = write_archive(tmp_path / "a.zarr", values, 200.0, CHUNKS)
    assert_same(device, path, small(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_an_archive_of_time_before_distance_is_turned_on_the_device(
    device, samples, tmp_path, step
):
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, time_first=True)
    assert_same(device, path, small(selection__channel_step=step), tmp_path)


@pytest.mark.slow
def test_gaps_lost_chunks_and_channels_without_a_sample(device, samples, tmp_path):
    times = clock_us(samples.shape[1], 200.0)
    times[1300:] += 10_000_000
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, CHUNKS, times_us=times)
    (path / "RawData" / "1.0").unlink()
    assert_same(device, path, small(), tmp_path)
    assert {"gap", "missing"} <= set(statuses(tmp_path / "gpu"))
    again = tmp_path / "fill"
    again.mkdir()
    assert_same(device, path, small(), again, on_missing="fill")


@pytest.mark.parametrize("shape", [(1, 700), (3, 640)])
def test_one_channel_and_one_tile(device, samples, tmp_path, shape):
    path = write_archive(tmp_path / "a.zarr", samples[: shape[0], : shape[1]], 200.0, (2, 90))
    assert_same(device, path, small(tile__bands=1, median__kind="none"), tmp_path)


# --- order, memory, failure ---------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["eager", "late", "random"])
@pytest.mark.slow
def test_no_order_of_the_device_changes_a_byte(double_device, store, tmp_path, schedule):
    """Segments of one tile, so that workspaces come and go; each row once per segment."""
    with double_device.installed(schedule) as gpu:
        extract(store, tmp_path / "out", small(), backend="gpu", segment_minutes=0.001)
        assert gpu.counts.hidden_syncs == 0
    with double_device.installed("late"):
        extract(store, tmp_path / "one", small(), backend="gpu")
    assert images(tmp_path / "out").keys() == images(tmp_path / "one").keys()
    for key, picture in images(tmp_path / "one").items():
        assert (images(tmp_path / "out")[key] == picture).all()


@pytest.mark.slow
def test_segments_at_once_share_no_stream_and_no_plan(device, store, tmp_path):
    """Two threads, one device: the double fails when work of one touches the other's."""
    archive, plan = prepare(store, small(), segment_minutes=0.001)
    backend, sink = GpuBackend(), open_sink(tmp_path / "both")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            extract_segment(archive, plan, number, backend, sink, loaders=2)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    with device.installed("random"):
        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        extract_segment(archive, plan, 0, backend, open_sink(tmp_path / "alone"), loaders=2)
    both, alone = files(tmp_path / "both"), files(tmp_path / "alone")
    assert alone.items() <= both.items()


@pytest.mark.slow
def test_a_row_needs_ten_launches_and_only_its_results_come_back(double_device, store, tmp_path):
    recipe = small(tile__seconds=1)
    with double_device.installed() as gpu:
        extract(store, tmp_path / "out", recipe, backend="gpu")
        counts = gpu.counts
    _, plan = prepare(store, recipe)
    opening_fft = 1  # the backend's choice tries a transform
    launched = sum(counts.launches.values()) + counts.fft_calls - opening_fft
    assert launched == 10 * plan.rows
    pixels = plan.n_tiles * recipe.image.height * recipe.image.width
    numbers = plan.rows * (3 * 8 * plan.bands + 4 * (4 + plan.bands))
    opening_bytes = 3 * 8
    assert counts.d2h_bytes == pixels + numbers + opening_bytes
    assert counts.hidden_syncs == 0


@pytest.mark.slow
def test_each_kept_sample_crosses_to_the_device_once(double_device, store, samples, tmp_path):
    recipe = small(tile__seconds=1, selection__channel_step=2)
    with double_device.installed() as gpu:
        extract(store, tmp_path / "out", recipe, backend="gpu")
        sent = gpu.counts.h2d_bytes
    _, plan = prepare(store, recipe)
    kept = plan.kept_channels * plan.segment(0).read.t1 * samples.itemsize
    small_tables = 200_000
    assert kept <= sent <= kept + small_tables


@pytest.mark.slow
def test_a_batch_is_halved_when_memory_runs_out_and_says_so(double_device, store, tmp_path, caplog):
    with double_device.installed():
        extract(store, tmp_path / "whole", small(), backend="gpu")
    with (
        caplog.at_level(logging.WARNING),
        pytest.MonkeyPatch.context() as patch,
        double_device.installed(memory_bytes=1_150_000),
    ):
        patch.setattr("das_gpu.backends.transforms.LEAST_CHANNELS", 2)
        patch.setattr("das_gpu.backends.transforms.MEMORY_SHARE", 100.0)
        extract(store, tmp_path / "halves", small(), backend="gpu")
    assert "short of memory" in caplog.text
    assert files(tmp_path / "halves").items() == files(tmp_path / "whole").items()


def test_memory_kept_from_earlier_segments_makes_no_batch_smaller(device, store, monkeypatch):
    """Memory given back stays in the pool: it is not free, and it is ours."""
    _, plan = prepare(store, small())
    layout, chain = ring_layout(plan, plan.segment(0)), design(plan)
    backend = GpuBackend()
    with device.installed():
        import cupy

        with backend.workspace(layout, chain) as work:
            first = work.batch_channels
        monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (1000, 1 << 30))
        monkeypatch.setattr("das_gpu.backends.transforms.LEAST_CHANNELS", 2)
        with backend.workspace(layout, chain) as work:
            assert work.batch_channels == first == plan.kept_channels
        with GpuBackend().workspace(layout, chain) as work:
            assert work.batch_channels == 2


def test_a_device_without_room_fails_with_what_to_do(double_device, store, tmp_path):
    archive, plan = prepare(store, small())
    with (
        double_device.installed(memory_bytes=300_000),
        pytest.raises(DeviceError, match="--backend cpu"),
    ):
        extract_segment(archive, plan, 0, GpuBackend(), open_sink(tmp_path), loaders=1)


@pytest.mark.slow
def test_a_device_that_fails_once_costs_no_tile(double_device, store, tmp_path, caplog):
    with double_device.installed():
        extract(store, tmp_path / "calm", small(), backend="gpu", segment_minutes=0.001)
    with double_device.installed() as gpu:
        gpu.fail_after(200, lasting=False)
        summary = extract(store, tmp_path / "out", small(), backend="gpu", segment_minutes=0.001)
    assert summary.exit_code == 0
    assert "tried again" in caplog.text
    assert files(tmp_path / "out") == files(tmp_path / "calm")


@pytest.mark.slow
def test_a_device_that_stays_broken_loses_its_segments_not_the_run(double_device, store, tmp_path):
    with double_device.installed() as gpu:
        gpu.fail_after(200)
        summary = extract(store, tmp_path / "out", small(), backend="gpu", segment_minutes=0.001)
    assert summary.exit_code == 3
    assert statuses(tmp_path / "out").count("error") > 0
    with double_device.installed():
        again = extract(store, tmp_path / "out", small(), segment_minutes=0.001)
    assert (again.backend, again.exit_code) == ("gpu", 0)


# --- choosing -----------------------------------------------------------------------------


def test_auto_takes_the_device_when_all_is_there(device, store, tmp_path):
    with device.installed():
        chosen = select("auto", 1)
    assert chosen.backend.kind == "gpu"
    assert "GiB" in chosen.reason


@pytest.mark.parametrize(
    ("machine", "missing"),
    [
        ({"devices": 0}, "no CUDA-capable device"),
        ({"driver_version": 11040}, "driver for CUDA 11.4"),
    ],
)
def test_auto_falls_back_with_the_reason_and_gpu_is_refused_with_it(
    double_device, machine, missing
):
    with double_device.installed(**machine):
        chosen = select("auto", 1)
        assert chosen.backend.kind == "cpu"
        assert missing in chosen.reason
        assert "\n" not in chosen.reason
        with pytest.raises(UsageError, match=missing):
            select("gpu", 1)


def test_without_a_driver_auto_says_so(monkeypatch):
    def absent() -> str:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("das_gpu.backends.cuda.driver_library", absent)
    assert "no NVIDIA driver" in select("auto", 1).reason
    with pytest.raises(UsageError, match="no NVIDIA driver"):
        select("gpu", 1)


@pytest.mark.slow
def test_another_backend_than_the_runs_own_is_refused(double_device, store, tmp_path):
    with double_device.installed():
        extract(store, tmp_path / "out", small(), backend="gpu")
    with pytest.raises(UsageError, match='backend: was "gpu", is "cpu"'):
        extract(store, tmp_path / "out", small(), backend="cpu")
