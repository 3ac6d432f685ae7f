"""The recipe over a backend: which channels the common mode is taken from, and when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from das_gpu import Recipe, extract
from das_gpu.backends.cpu import CpuBackend
from das_gpu.process import Processor
from das_gpu.run import prepare
from tests.archives import random_walk, write_archive
from tests.outputs import images, records

SETTINGS = {"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 3}
SPACING_M = 150.0


@pytest.fixture
def samples():
    """60 channels that span 8.85 km at `SPACING_M`."""
    return random_walk(60, 2000, seed=4)


def recipe(kind: str) -> Recipe:
    return Recipe().with_settings(
        {**SETTINGS, "archive.channel_spacing_m": SPACING_M, "median.kind": kind}
    )


@pytest.mark.parametrize(
    ("live", "step"),
    [(1, 1), (1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3), (7500, 8)],
)
def test_the_median_is_over_every_kth_live_channel_at_most_1024(samples, tmp_path, live, step):
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, (60, 2000))
    processor = Processor(prepare(path, recipe("channel"))[1], CpuBackend())
    processor._distance_m = np.arange(7500) * SPACING_M
    channels, reason = processor._median_channels(np.arange(7500) < live)
    assert reason is None
    assert channels.tolist() == list(range(0, live, step))
    assert len(channels) <= 1024


def test_live_channels_over_less_than_5_km_keep_their_common_mode_and_the_tiles_say_so(
    samples, tmp_path
):
    """The selection spans 8.85 km, but only its first 4.35 km are alive."""
    samples[30:] = 7
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, (60, 2000))
    extract(path, tmp_path / "auto", recipe("auto"))
    extract(path, tmp_path / "none", recipe("none"))
    extract(path, tmp_path / "channel", recipe("channel"))
    assert all("live channels span 4.35 km" in r["reason"] for r in records(tmp_path / "auto"))
    auto, none = images(tmp_path / "auto"), images(tmp_path / "none")
    assert all((auto[key] == none[key]).all() for key in none)
    assert not (images(tmp_path / "channel")[0, 0] == none[0, 0]).all()


def test_a_row_without_a_live_channel_is_black(samples, tmp_path):
    samples[:, :1500] = 7
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, (60, 2000))
    summary = extract(path, tmp_path / "out", recipe("auto"))
    first = records(tmp_path / "out")[0]
    assert summary.images == 6
    assert (first["dead_channels"], first["db_low"], first["db_high"]) == (20, None, None)
    assert not images(tmp_path / "out")[0, 0].any()


def test_dead_channels_of_an_array_hold_its_lowest_live_level(samples, tmp_path):
    samples[5] = 7
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, (60, 2000))
    extract(path, tmp_path / "out", recipe("auto").with_settings({"image.format": "npy"}))
    first = records(tmp_path / "out")[0]
    array = np.load(tmp_path / "out" / first["array_file"])
    assert (array[5] == array.min()).all()
    assert array.min() == pytest.approx(first["db_low"], abs=1e-4)
    assert array.max() == pytest.approx(first["db_high"], abs=1e-4)
