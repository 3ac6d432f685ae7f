"""The plan: tiles partition the selection, halos and segments follow, the impossible is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from das_gpu.errors import RecipeError
from das_gpu.model import Acquisition
from das_gpu.plan import Plan, plan
from das_gpu.recipe import Recipe

PUBLISHED = Acquisition(
    shape=(47_500, 39_168_000),
    chunk_shape=(3000, 3000),
    dims=("distance", "time"),
    dtype="int32",
    sampling_rate_hz=200.0,
    channel_spacing_m=2.0419,
    start_ns=1_635_808_274_834_000_000,
    last_ns=1_636_004_114_829_000_000,
)


def recipe(preset: str = "continuous", **settings_: Any) -> Recipe:
    return Recipe.from_preset(preset).with_settings(
        {key.replace("__", "."): value for key, value in settings_.items()}
    )


def test_the_published_archive_makes_130560_tiles_in_218_segments():
    found = plan(PUBLISHED, recipe(selection__channel_start=10_000))
    assert (found.rows, found.bands, found.n_tiles) == (13_056, 10, 130_560)
    assert found.n_segments == 218
    assert (found.tile_samples, found.band_channels) == (1500, 750)
    assert found.unused_channels == found.unused_samples == 0
    assert found.common_mode


def test_the_default_halo_is_two_seconds_lengthened_to_a_fast_window():
    found = plan(PUBLISHED, recipe())
    assert 360 <= found.halo_before <= found.halo_after <= 420
    assert found.window_span == 3750  # 2 * 3 * 5**5, where 3738 would have done


def test_the_notebook_has_no_halo_and_holds_every_second_sample():
    found = plan(PUBLISHED, recipe("notebook"))
    assert (found.halo_before, found.halo_after, found.hold_step) == (0, 0, 2)
    assert not found.common_mode


def test_a_segment_is_a_quarter_of_an_hour_of_whole_tile_rows():
    found = plan(PUBLISHED, recipe())
    assert (found.segment(0).row0, found.segment(0).row1) == (0, 60)
    assert (found.segment(217).row0, found.segment(217).row1) == (217 * 60, 13_056)


def test_read_amplification_counts_what_halos_and_whole_chunks_cost():
    found = plan(PUBLISHED, recipe(selection__channel_start=12_000))
    # Chunks are 15 s, as the tiles: each segment's halos add a column at either end.
    assert found.chunk_reads == (13_056 + 2 * 217) * 12
    covered = (found.read_channels[1] - found.read_channels[0]) * 39_168_000
    assert found.read_amplification == pytest.approx(found.chunk_reads * 9e6 / covered)
    assert 1 < found.read_amplification < 1.1


def test_what_is_left_over_is_counted_and_said():
    short = replace(PUBLISHED, shape=(1003, 7001))
    found = plan(short, recipe(selection__channel_step=1, tile__bands=4))
    assert (found.band_channels, found.unused_channels) == (250, 3)
    assert (found.rows, found.unused_samples) == (2, 1001)
    assert "3 kept channels beyond the last whole band" in " ".join(found.notes)
    assert "1001 samples" in " ".join(found.notes)


def test_the_common_mode_needs_five_kilometres_and_says_so():
    short = replace(PUBLISHED, shape=(2400, 6000))
    found = plan(short, recipe())
    assert not found.common_mode
    assert "4.89 km" in " ".join(found.notes)
    assert plan(short, recipe(median__kind="channel")).common_mode
    assert plan(replace(PUBLISHED, shape=(2500, 6000)), recipe()).common_mode


def test_an_incomplete_group_of_channels_is_dropped_by_mean_and_kept_by_stride():
    narrow = replace(PUBLISHED, shape=(1003, 6000))
    stride = plan(narrow, recipe(tile__bands=1))
    mean = plan(narrow, recipe(tile__bands=1, selection__channel_reduce="mean"))
    assert (stride.kept_channels, mean.kept_channels) == (201, 200)
    assert stride.read_channels == (0, 1001)
    assert mean.read_channels == (0, 1000)
    assert mean.kept_distance_m(0) == pytest.approx(2 * 2.0419)


acquisitions = st.builds(
    lambda channels, samples, height, width, rate: replace(
        PUBLISHED,
        shape=(channels, samples),
        chunk_shape=(height, width),
        sampling_rate_hz=rate,
    ),
    st.integers(1, 400),
    st.integers(2000, 12_000),
    st.integers(1, 120),
    st.integers(10, 5000),
    st.sampled_from([100.0, 200.0, 199.5, 500.0]),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    acquisition = draw(acquisitions)
    n_channels, n_samples = acquisition.shape
    start = draw(st.integers(0, n_channels // 2))
    s0 = draw(st.integers(0, n_samples // 4))
    chosen = recipe(
        draw(st.sampled_from(["continuous", "notebook"])),
        selection__channel_start=start,
        selection__channel_step=draw(st.integers(1, 7)),
        selection__time_step=draw(st.integers(1, 2)),
        filter__low_hz=5.0,
        filter__high_hz=20.0,
        filter__order=draw(st.integers(1, 8)),
        tile__seconds=draw(st.floats(0.7, 9)),
        tile__bands=draw(st.integers(1, 5)),
    )
    if chosen.preset == "continuous" and draw(st.booleans()):
        chosen = chosen.with_settings({"selection.channel_reduce": "mean"})
    try:
        return plan(
            acquisition,
            chosen,
            (s0, draw(st.integers(n_samples // 2, n_samples))),
            segment_minutes=draw(st.floats(0.01, 2)),
        )
    except RecipeError:
        assume(False)
        raise


@pytest.mark.slow
@settings(max_examples=1000)
@given(plans())
def test_tiles_partition_the_selected_range_exactly(found: Plan):
    """Every kept (channel, sample) of whole tiles is in one tile; the rest is counted."""
    tiles = [tile for segment in found.segments() for tile in found.tiles(segment)]
    assert [tile.id for tile in tiles] == list(range(found.n_tiles))
    assert [(t.row, t.band) for t in tiles] == [
        (row, band) for row in range(found.rows) for band in range(found.bands)
    ]
    for tile in tiles:
        assert tile.core.t0 == found.sample_start + tile.row * found.tile_span
        assert tile.core.t1 - tile.core.t0 == found.tile_samples * found.time_step
        assert (
            tile.core.c0
            == found.channel_start + tile.band * found.band_channels * found.channel_step
        )
        assert tile.core.c1 - tile.core.c0 == found.band_channels * found.channel_step
    # What follows the last tile is less than another tile, and less than another channel a band.
    kept_samples = len(range(found.sample_start, found.sample_stop, found.time_step))
    assert 0 <= kept_samples - found.rows * found.tile_samples < found.tile_samples
    assert 0 <= found.unused_channels < found.bands


@pytest.mark.slow
@settings(max_examples=1000)
@given(plans())
def test_segments_read_their_tiles_with_halos_and_nothing_outside_the_record(found: Plan):
    rows = [row for s in found.segments() for row in range(s.row0, s.row1)]
    assert rows == list(range(found.rows))
    n_channels, n_samples = found.acquisition.shape
    for segment in found.segments():
        read = segment.read
        first, last = found.tile(segment.row0, 0), found.tile(segment.row1 - 1, found.bands - 1)
        assert read.t0 == max(0, first.core.t0 - found.halo_before)
        assert read.t1 == min(n_samples, last.core.t1 + found.halo_after)
        assert 0 <= read.c0 < read.c1 <= n_channels
        chunk_rows, columns = found.chunk_grid(segment)
        height, width = found.acquisition.chunk_shape
        assert chunk_rows.start * height <= read.c0 < read.c1 <= chunk_rows.stop * height
        assert columns.start * width <= read.t0 < read.t1 <= columns.stop * width
    assert found.read_amplification >= 1 - 1 / found.tile_samples


@settings(max_examples=200)
@given(plans())
@pytest.mark.slow
def test_halos_are_whole_steps_and_windows_have_fast_lengths(found: Plan):
    assert found.halo_before % found.time_step == found.halo_after % found.time_step == 0
    if found.halo_before or found.halo_after:
        kept = found.window_span // found.time_step
        for prime in (2, 3, 5):
            while kept % prime == 0:
                kept //= prime
        assert kept == 1


REFUSED = {
    "band above Nyquist": (recipe(filter__high_hz=100.0), "Nyquist frequency of 100 Hz"),
    "band above the notebook's Nyquist": (
        recipe("notebook", filter__high_hz=50.0),
        "Nyquist frequency of 50 Hz",
    ),
    "a step that aliases": (
        recipe(filter__method="iir", filter__high_hz=48.0),
        "27 dB; 60 dB are required. The largest selection.time_step that would do is 1",
    ),
    "more bands than channels": (recipe(tile__bands=9501), "9501 bands cannot be made of 9500"),
    "channels outside": (recipe(selection__channel_stop=47_501), "channels 0:47500"),
    "first channel outside": (recipe(selection__channel_start=47_500), "channels 0:47500"),
    "tile shorter than the filter": (
        recipe("notebook", tile__seconds=0.5),
        "window holds 50 samples at 100 Hz, the order-8 band-pass needs 52",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_impossible_is_refused_with_value_and_limit(case: str):
    impossible, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message):
        plan(PUBLISHED, impossible)


def test_a_record_shorter_than_one_tile_or_one_halo_is_refused():
    with pytest.raises(RecipeError, match=r"14\.990 s, less than one tile of 15 s"):
        plan(replace(PUBLISHED, shape=(47_500, 2998)), recipe(selection__time_step=1))
    with pytest.raises(RecipeError, match="shorter than one halo"):
        plan(replace(PUBLISHED, shape=(47_500, 300)), recipe(tile__seconds=1))


@pytest.mark.parametrize("samples", [(5, 5), (7, 5), (0, 39_168_001)])
def test_an_empty_or_outside_sample_range_is_refused(samples: tuple[int, int]):
    with pytest.raises(RecipeError, match="empty or outside"):
        plan(PUBLISHED, recipe(), samples)
