"""What stays on the device: tiles that are streamed, and envelopes of arrays that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu import Recipe, stream
from das_gpu.backends.devicememory import DeviceMemory
from das_gpu.backends.resident import Resident
from das_gpu.model import Acquisition
from das_gpu.windows import covering, envelopes_db
from tests.archives import random_walk, write_archive
from tests.gpu.agreement import BARS, loud_difference_db
from tests.gpu.conftest import Stage
from tests.workspaces import chain

DEAD = 4
SMALL = {
    "selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 2, "median.kind": "channel",
    "image.height": 48, "image.width": 40,
}  # fmt: skip


def small(preset: str = "continuous", **changed: Any) -> Recipe:
    settings = {name.replace("__", "."): value for name, value in changed.items()}
    return Recipe.from_preset(preset).with_settings(SMALL | settings)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    made = random_walk(23, 1900, seed=5, swell=10)
    made[DEAD] = 7
    return made


@pytest.fixture(scope="module")
def store(samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, (10, 700))


def on_host(array: Any) -> np.ndarray:
    """Fetch an array from the device by a stream of its own, as another library would."""
    import cupy

    assert isinstance(array, cupy.ndarray)
    fetching = cupy.cuda.Stream(non_blocking=True)
    memory = cupy.cuda.alloc_pinned_memory(array.nbytes)
    array.data.copy_to_host_async(memory.ptr, array.nbytes, fetching)
    fetching.synchronize()
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape).copy()


@pytest.mark.parametrize("schedule", ["late", "random"])
@pytest.mark.slow
def test_streamed_images_are_the_devices_and_the_cpus(device: Stage, store, schedule) -> None:
    wanted = [tile.pixels for tile in stream(store, small(), backend="cpu")]
    with device.installed(schedule), stream(store, small(), backend="gpu") as tiles:
        # All are held until the end: none may be overwritten by a later row.
        held = list(tiles)
        found = [on_host(tile.pixels) for tile in held]
        assert tiles.backend == "gpu"
        del held
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2
        assert np.mean(ours != theirs) <= 0.05


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.slow
def test_streamed_envelopes_are_the_devices_and_the_cpus(device: Stage, store, dtype) -> None:
    """In float64 they are rounded on the host: they come as float32 all the same."""
    recipe = small(compute__dtype=dtype)
    wanted = [tile.envelope_db for tile in stream(store, recipe, backend="cpu", envelopes=True)]
    with device.installed():
        tiles = stream(store, recipe, backend="gpu", envelopes=True)
        found = [on_host(tile.envelope_db) for tile in tiles]
        tiles.close()
        del tiles
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == np.float32
        assert loud_difference_db(ours, theirs) <= max(BARS[dtype].envelope_db, 2e-5)
    # The dead channel is at its tile's lowest live level.
    live = np.delete(found[0], DEAD, axis=0)
    np.testing.assert_array_equal(found[0][DEAD], np.full(found[0].shape[1], live.min()))


@pytest.mark.parametrize(
    ("dtype", "floor"), [("float32", -np.inf), ("float32", 4.0), ("float64", -np.inf)]
)
def test_another_stream_may_read_what_was_mended_at_once(device: Stage, dtype, floor) -> None:
    levels = np.array([[1.0, 9.0, floor], [2.0, 9.0, -np.inf]])
    live = np.array([True, False, True, True])
    with device.installed():
        import cupy

        computing = cupy.cuda.Stream(non_blocking=True)
        memory = DeviceMemory(cupy)
        resident = Resident(cupy, memory, computing)
        with computing:
            db = memory.array((4, 8), np.dtype(dtype))
            db[...] = 3.0
            resident.keep(db)
            computing.synchronize()
            bands = resident.envelopes(live, levels, chain(2, 2, 8))
        found = np.stack([on_host(band) for band in bands])
        del bands, db, memory, resident
    lifted = max(3.0, floor)
    np.testing.assert_array_equal(found[:, :, 0], [[lifted, 1.0], [3.0, 3.0]])
    assert found.dtype == np.float32


@pytest.mark.slow
def test_no_pixel_crosses_to_the_host(double_device: Stage, store) -> None:
    with double_device.installed() as gpu:
        before = gpu.counts.d2h_bytes
        with stream(store, small(), backend="gpu") as tiles:
            count = len(list(tiles))
        numbers = gpu.counts.d2h_bytes - before
    assert count == 6
    assert numbers < 48 * 40


@pytest.mark.parametrize("preset", ["continuous", "notebook"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.slow
def test_an_array_of_the_device_gets_its_envelope_there(
    device: Stage, samples: np.ndarray, preset: str, dtype: str
) -> None:
    """Cut out of a larger one, with a jump of the clock, and what is left at its end."""
    recipe = small(preset, compute__dtype=dtype, tile__bands=1, image__format="npy")
    acquisition = Acquisition(
        shape=samples.shape, chunk_shape=samples.shape, dims=("distance", "time"), dtype="int32",
        sampling_rate_hz=200.0, channel_spacing_m=10.0, start_ns=0, last_ns=0,
    )  # fmt: skip
    times_ns = np.arange(samples.shape[1]) * 5_000_000
    times_ns[650:] += 10**9
    pieces = covering(acquisition, recipe, (0, samples.shape[1]))
    options: Any = {"threads": 1, "compiled": False}
    wanted = envelopes_db(samples, times_ns, 0, pieces, **options)
    with device.installed():
        import cupy

        with cupy.cuda.Stream(non_blocking=True) as users:
            larger = cupy.empty((samples.shape[0], samples.shape[1] + 9), samples.dtype)
            memory = cupy.cuda.alloc_pinned_memory(larger.nbytes)
            host = np.frombuffer(memory, larger.dtype, larger.size).reshape(larger.shape)
            host[:, 9:] = samples
            larger.data.copy_from_host_async(memory.ptr, larger.nbytes, users)
            made = envelopes_db(larger[:, 9:], times_ns, 0, pieces, **options)
            users.synchronize()
        found = on_host(made)
        del made, larger
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    assert np.isnan(wanted).any()
    live = np.arange(len(wanted)) != DEAD
    heard = np.isfinite(wanted[live]).all(axis=0)
    assert loud_difference_db(found[live][:, heard], wanted[live][:, heard]) <= (
        BARS[dtype].envelope_db
    )
