"""The numbers are right: both recipes against plain SciPy in float64, to stated tolerances."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import das_gpu
from das_gpu import Recipe
from tests import recordings, reference
from tests.archives import random_walk, write_archive
from tests.outputs import envelopes, images, records
from tests.workspaces import chain, workspace

RATE_HZ = 200.0


def recipe(preset: str, **settings: Any) -> Recipe:
    return Recipe.from_preset(preset).with_settings(
        {key.replace("__", "."): value for key, value in settings.items()}
    )


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """40 channels x 50 s of random walk with slow swell and drift 100 times the in-band noise."""
    samples = random_walk(40, 10_000, seed=7, swell=100)
    path = tmp_path_factory.mktemp("walk") / "walk.zarr"
    return write_archive(path, samples, RATE_HZ, (16, 1500)), samples


@pytest.fixture(params=["NumPy", "compiled"])
def extract(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Both ways of the CPU backend: with NumPy's loops, and with those that numba compiles."""
    if request.param == "compiled":
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    return partial(das_gpu.extract, backend="cpu", fast=request.param == "compiled")


# --- the notebook -----------------------------------------------------------------------------

NOTEBOOK = {"selection__channel_step": 2, "tile__seconds": 5, "tile__bands": 4}


def notebook_tiles(samples: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Envelope per (sample_start, channel_start) in the notebook's own steps."""
    strided = samples[::2, ::2]
    sos = reference.band_pass(8, 14, 35, RATE_HZ / 2)
    return {
        (row * 1000, band * 10): reference.notebook_tile(
            strided[band * 5 : band * 5 + 5, row * 500 : row * 500 + 500], sos
        )
        for row in range(10)
        for band in range(4)
    }


def test_notebook_in_float64_gives_the_very_pixels_of_the_notebook(walk, tmp_path, extract):
    path, samples = walk
    extract(path, tmp_path / "out", recipe("notebook", **NOTEBOOK))
    ours, theirs = images(tmp_path / "out"), notebook_tiles(samples)
    assert ours.keys() == theirs.keys()
    for key, envelope in theirs.items():
        np.testing.assert_array_equal(ours[key], reference.notebook_image(envelope))


def test_notebook_envelope_is_within_1e_4_db(walk, tmp_path, extract):
    path, samples = walk
    extract(path, tmp_path / "out", recipe("notebook", image__format="npy", **NOTEBOOK))
    ours = envelopes(tmp_path / "out")
    worst = max(
        reference.errors_db(ours[key], envelope, within_db=80).max()
        for key, envelope in notebook_tiles(samples).items()
    )
    # The files are float32, half a unit in the last place of 170 dB is 7.6e-6 dB.
    assert worst <= 1e-4


@pytest.mark.slow
def test_notebook_in_float32_is_within_two_grey_levels_on_few_pixels(walk, tmp_path, extract):
    path, samples = walk
    extract(path, tmp_path / "out", recipe("notebook", compute__dtype="float32", **NOTEBOOK))
    for key, pixels in images(tmp_path / "out").items():
        exact = reference.notebook_image(notebook_tiles(samples)[key])
        difference = np.abs(pixels.astype(int) - exact)
        assert difference.max() <= 2
        assert np.mean(difference > 0) <= 0.05


def test_notebook_in_float32_is_within_a_fiftieth_of_a_decibel(walk, tmp_path, extract):
    path, samples = walk
    settings = {"image__format": "npy", "compute__dtype": "float32", **NOTEBOOK}
    extract(path, tmp_path / "out", recipe("notebook", **settings))
    ours = envelopes(tmp_path / "out")
    for key, envelope in notebook_tiles(samples).items():
        assert reference.errors_db(ours[key], envelope).max() <= 0.02


@pytest.mark.parametrize("name", ["silixa", "optodas"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_real_recordings_give_the_notebooks_own_output(
    shared_recordings, tmp_path, name, dtype, extract
):
    meta = recordings.facts(shared_recordings, name)
    expected = np.load(shared_recordings / f"{name}.expected.npz")
    settings = recordings.settings(shared_recordings, name) | {"compute.dtype": dtype}
    chosen = Recipe.from_preset("notebook").with_settings(settings)
    source = shared_recordings / f"{name}.zarr"
    extract(source, tmp_path / "png", chosen)
    extract(source, tmp_path / "npy", chosen.with_settings({"image.format": "npy"}))
    pixels, ours = (
        list(images(tmp_path / "png").values()),
        list(envelopes(tmp_path / "npy").values()),
    )
    assert len(pixels) == len(ours) == meta["tiles"]
    for tile in range(meta["tiles"]):
        difference = np.abs(pixels[tile].astype(int) - expected["image"][tile])
        envelope = expected["envelope_db"][tile].astype(np.float64)
        if dtype == "float64":
            assert difference.max() == 0
            assert reference.errors_db(ours[tile], envelope, within_db=80).max() <= 1e-4
        else:
            assert difference.max() <= 2
            assert np.mean(difference > 0) <= 0.05
            assert reference.errors_db(ours[tile], envelope).max() <= 0.02


# --- continuous -------------------------------------------------------------------------------

CONTINUOUS = {"selection__channel_step": 1, "tile__seconds": 5, "tile__bands": 4}


def whole_record(samples: np.ndarray, *, common_mode: bool) -> np.ndarray:
    """Envelope in dB of every channel and every second sample, without any tile."""
    z = reference.analytic_of_record(samples, RATE_HZ)[:, ::2]
    return reference.level_db(z - reference.common_mode(z) if common_mode else z)


def tile_errors(out: Path, whole: np.ndarray, status: str = "ok") -> np.ndarray:
    """Errors in dB over all tiles of a status, tile edges included."""
    tiles = envelopes(out)
    errors = []
    for record in records(out):
        if record["status"] == status:
            s, c = record["sample_start"], record["channel_start"]
            ours = tiles[s, c]
            cut = whole[c : c + ours.shape[0], s // 2 : s // 2 + ours.shape[1]]
            errors.append(reference.errors_db(ours, cut))
    return np.concatenate(errors)


@pytest.mark.parametrize("median", ["none", "channel"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_continuous_tiles_equal_the_chain_over_the_whole_record(
    walk, tmp_path, median, dtype, extract
):
    path, samples = walk
    settings = {"image__format": "npy", "median__kind": median, "compute__dtype": dtype}
    extract(path, tmp_path / "out", recipe("continuous", **settings, **CONTINUOUS))
    whole = whole_record(samples, common_mode=median == "channel")
    errors = tile_errors(tmp_path / "out", whole)
    assert np.sqrt(np.mean(errors**2)) <= 0.005
    assert np.percentile(errors, 99.9) <= 0.02
    assert errors.max() <= 0.15


def test_only_the_records_first_and_last_tiles_are_edge(walk, tmp_path, extract):
    path, _ = walk
    extract(path, tmp_path / "out", recipe("continuous", **CONTINUOUS))
    by_row = [record["status"] for record in records(tmp_path / "out")][::4]
    assert by_row == ["edge", *["ok"] * 8, "edge"]


@pytest.mark.parametrize("name", ["silixa", "optodas"])
@pytest.mark.slow
def test_continuous_on_real_recordings_equals_the_whole_record(
    shared_recordings, tmp_path, name, extract
):
    import zarr

    meta = recordings.facts(shared_recordings, name)
    source = shared_recordings / f"{name}.zarr"
    rate_hz = meta["sampling_rate_hz"]
    settings = recordings.settings(shared_recordings, name) | {
        "selection.channel_step": 1, "median.kind": "none", "image.format": "npy",
    }  # fmt: skip
    extract(source, tmp_path / "out", Recipe().with_settings(settings))
    counts = zarr.open_group(str(source), mode="r")["RawData"][:]
    whole = reference.level_db(reference.analytic_of_record(counts, rate_hz))[
        :, :: meta["time_step"]
    ]
    errors = []
    for record, ours in zip(
        [r for r in records(tmp_path / "out") if r["status"] == "ok"],
        [envelopes(tmp_path / "out")[r["sample_start"], r["channel_start"]]
         for r in records(tmp_path / "out") if r["status"] == "ok"],
        strict=True,
    ):  # fmt: skip
        start, c = record["sample_start"] // meta["time_step"], record["channel_start"]
        cut = whole[c : c + ours.shape[0], start : start + ours.shape[1]]
        errors.append(reference.errors_db(ours, cut))
    together = np.concatenate(errors)
    assert np.sqrt(np.mean(together**2)) <= 0.005
    assert np.percentile(together, 99.9) <= 0.02
    assert together.max() <= 0.15


def test_iir_and_spectral_agree_over_the_whole_record(walk, tmp_path, extract):
    """One tile as long as the record, so that neither has a tile edge to differ at."""
    path, _ = walk
    whole = {"tile__seconds": 50, "tile__bands": 1, "selection__channel_step": 1}
    results = {}
    for method in ("iir", "spectral"):
        settings = {"filter__method": method, "image__format": "npy", "filter__halo_s": 0, **whole}
        extract(path, tmp_path / method, recipe("continuous", **settings))
        (results[method],) = envelopes(tmp_path / method).values()
    inner = slice(200, -200)  # both extend the record at its ends, in different ways
    errors = reference.errors_db(
        results["iir"][:, inner], results["spectral"][:, inner].astype(float)
    )
    assert np.sqrt(np.mean(errors**2)) <= 0.02


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.slow
def test_every_allowed_step_samples_the_same_envelope(walk, tmp_path, step, extract):
    """Decimation in the spectrum lands on the strided grid of the full-rate envelope."""
    path, samples = walk
    settings = {"image__format": "npy", "median__kind": "none", "selection__time_step": step}
    extract(path, tmp_path / "out", recipe("continuous", **settings, **CONTINUOUS))
    z = reference.analytic_of_record(samples, RATE_HZ)
    for record in records(tmp_path / "out"):
        if record["status"] == "ok":
            s, c = record["sample_start"], record["channel_start"]
            ours = envelopes(tmp_path / "out")[s, c]
            stop = s + ours.shape[1] * step
            cut = reference.level_db(z[c : c + ours.shape[0], s:stop:step])
            assert reference.errors_db(ours, cut).max() <= 0.15


def test_the_median_after_the_band_pass_leaves_a_twentieth_of_the_common_mode():
    """600 channels, offsets of 1e6 counts, common mode 3 times the channels' own noise."""
    from das_gpu.backends import cpu

    random = np.random.default_rng(3)
    own = random.normal(size=(600, 800)) + 1j * random.normal(size=(600, 800))
    common = 3 * (random.normal(size=800) + 1j * random.normal(size=800))
    with workspace(chain(1, 600, 800)) as work:
        found = work.common_mode(cpu.Signal(own + common, np.full(600, True)))
    residual = np.sqrt(np.mean(np.abs(found - common) ** 2) / np.mean(np.abs(own) ** 2))
    assert residual == pytest.approx(0.05, abs=0.01)


def test_mean_of_groups_is_the_mean_wherever_chunks_cut_them(walk, tmp_path, extract):
    path, samples = walk  # chunks of 16 channels, groups of 3: every boundary cuts a group
    settings = {
        "selection__channel_reduce": "mean", "selection__channel_step": 3, "tile__bands": 1,
        "tile__seconds": 5, "median__kind": "none", "image__format": "npy",
    }  # fmt: skip
    extract(path, tmp_path / "out", recipe("continuous", **settings))
    grouped = samples[:39].reshape(13, 3, -1).mean(axis=1)
    whole = reference.level_db(reference.analytic_of_record(grouped, RATE_HZ)[:, ::2])
    assert tile_errors(tmp_path / "out", whole).max() <= 0.15
    assert records(tmp_path / "out")[0]["distance_start_m"] == pytest.approx(2.0419)
