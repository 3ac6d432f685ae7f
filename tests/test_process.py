"""The recipe over a backend: which channels the common mode is taken from, and when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from das_gpu import Recipe, extract
from das_gpu.backends.cpu import median_channels
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
def test_the_median_is_over_every_kth_live_channel_at_most_1024(live, step):
    channels = median_channels(np.arange(7500) < live, np.arange(7500) * SPACING_M, 0.0)
    assert channels.tolist() == list(range(0, live, step))
    assert len(channels) <= 1024


@pytest.mark.parametrize(("span_m", "some"), [(4999.9, False), (5000.0, True)])
def test_no_median_is_taken_over_less_than_the_aperture(span_m, some):
    """Distances may run either way along the cable."""
    for distance_m in (np.array([0.0, 1.0, span_m]), np.array([span_m, 1.0, 0.0])):
        channels = median_channels(np.array([True, True, True]), distance_m, 5000.0)
        assert bool(channels.size) is some


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
