"""Tiles that share samples or channels with their neighbours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_gpu import Recipe, cli, extract
from das_gpu.backends import rowshape
from das_gpu.errors import RecipeError, UsageError
from das_gpu.model import Acquisition
from das_gpu.plan import plan
from das_gpu.process import design
from das_gpu.report import report
from das_gpu.status import status
from das_gpu.verify import verify
from tests.archives import START_NS, random_walk, write_archive
from tests.outputs import envelopes, files, images, lines, records, statuses

RATE_HZ = 200.0


def acquisition(channels=600, samples=24_000):
    return Acquisition(
        shape=(channels, samples),
        chunk_shape=(200, 3000),
        dims=("distance", "time"),
        dtype="int32",
        sampling_rate_hz=RATE_HZ,
        channel_spacing_m=2.0419,
        start_ns=START_NS,
        last_ns=START_NS + (samples - 1) * 5_000_000,
    )


def recipe(**settings):
    changed = {"tile.bands": 2, "selection.channel_step": 1, "image.format": "npy"} | settings
    return Recipe.load(settings=changed)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """60 s of 40 channels, in chunks of 15 s."""
    path = tmp_path_factory.mktemp("recording") / "recording.zarr"
    return write_archive(path, random_walk(40, 12_000, seed=1), RATE_HZ, (20, 3000))


@pytest.fixture(scope="module")
def apart(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("apart")
    extract(recording, out, recipe())
    return envelopes(out)


@pytest.fixture(scope="module")
def overlapping(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("overlapping")
    settings = {"tile.overlap_time": 0.5, "tile.overlap_channels": 0.25}
    extract(recording, out, recipe(**settings), segment_minutes=0.25)
    return out


class TestPlan:
    def test_the_next_tile_begins_before_one_ends(self):
        found = plan(acquisition(), recipe(**{"tile.overlap_time": 0.5}))
        assert found.rows == 15  # 120 s, a tile of 15 s each 7.5 s
        assert found.tile(1, 0).core.t0 == 1500
        assert found.tile(1, 0).core.t1 == 4500
        assert found.unused_samples == 0

    def test_bands_are_as_wide_as_without_and_more(self):
        found = plan(acquisition(), recipe(**{"tile.bands": 4, "tile.overlap_channels": 0.5}))
        assert (found.bands, found.band_channels, found.kept_channels) == (7, 150, 600)
        assert [found.tile(0, band).core.c0 for band in range(3)] == [0, 75, 150]

    @given(
        st.integers(20, 400),
        st.integers(6_000, 40_000),
        st.integers(1, 7),
        st.floats(0, 0.9),
        st.floats(0, 0.9),
        st.floats(0.2, 2),
    )
    def test_the_grid_covers_what_it_can_and_segments_read_all_of_it(
        self, channels, samples, bands, in_time, along, minutes
    ):
        settings = {
            "tile.bands": bands,
            "tile.overlap_time": in_time,
            "tile.overlap_channels": along,
        }
        made = plan(acquisition(channels, samples), recipe(**settings), segment_minutes=minutes)
        last = made.tile(made.rows - 1, made.bands - 1).core
        assert last.t1 <= samples < last.t1 + made.row_stride
        assert last.c1 <= bands * made.band_channels < last.c1 + made.band_stride
        assert last.c1 == made.kept_channels
        assert made.band_channels == channels // bands
        seen = 0
        for segment in made.segments():
            for tile in made.tiles(segment):
                assert tile.id == seen
                seen += 1
                assert segment.read.t0 <= max(0, tile.core.t0 - made.halo_before)
                assert segment.read.t1 >= min(samples, tile.core.t1 + made.halo_after)
                assert segment.read.c0 <= tile.core.c0
                assert segment.read.c1 >= tile.core.c1
        assert seen == made.n_tiles

    @pytest.mark.parametrize("share", [-0.1, 0.91, 1.0])
    def test_shares_that_leave_no_step_are_refused(self, share):
        with pytest.raises(RecipeError, match=r"tile\.overlap_time"):
            recipe(**{"tile.overlap_time": share})

    def test_without_overlap_a_run_is_the_run_it_was(self):
        plain = recipe()
        assert "overlap_time" not in plain.content["tile"]
        assert "tile_stride" not in plan(acquisition(), plain).resolved()
        other = recipe(**{"tile.overlap_time": 0.5})
        assert other.digest != plain.digest
        assert plan(acquisition(), other).resolved()["tile_stride"] == 750


class TestTiles:
    def test_a_tile_on_the_old_grid_is_the_same_tile(self, recording, apart, tmp_path):
        """Half of the rows lie where they would without overlap; so do all bands."""
        extract(recording, tmp_path, recipe(**{"tile.overlap_time": 0.5}))
        found = envelopes(tmp_path)
        assert len(found) == 14
        for place, expected in apart.items():
            np.testing.assert_array_equal(found[place], expected)

    def test_two_tiles_agree_on_what_they_share(self, overlapping):
        found = envelopes(overlapping)
        assert len(found) == 7 * 2
        compared = 0
        for (sample, channel), one in found.items():
            later = found.get((sample + 1500, channel))
            if later is not None:
                # Filter and halo are the same; each tile has its own straight line taken off.
                difference = np.abs(one[:, 750:] - later[:, :750])
                assert np.quantile(difference[one[:, 750:] > one.max() - 60], 0.999) < 0.05
                compared += 1
            beside = found.get((sample, channel + 15))
            if beside is not None:
                np.testing.assert_array_equal(one[15:], beside[:5])
                compared += 1
        assert compared == 6 * 2 + 7

    def test_records_say_where_each_lies(self, overlapping):
        places = [(r["sample_start"], r["channel_start"]) for r in records(overlapping)]
        assert places == [(row * 1500, band * 15) for row in range(7) for band in range(2)]
        for record in records(overlapping):
            assert record["sample_stop"] == record["sample_start"] + 3000
            assert record["channel_stop"] == record["channel_start"] + 20
            assert record["distance_start_m"] == pytest.approx(2.0419 * record["channel_start"])
        assert (
            len(
                {
                    record["file_name" if "file_name" in record else "array_file"]
                    for record in records(overlapping)
                }
            )
            == 14
        )

    @pytest.mark.parametrize("fast", [pytest.param(True, marks=pytest.mark.slow), False])
    @pytest.mark.parametrize("scale", ["percentile:0.5", "tile"])
    def test_images_are_those_of_the_band_alone(self, recording, tmp_path, fast, scale):
        settings = {"image.format": "png", "image.scale": scale, "median.kind": "none"}
        both = recipe(**settings, **{"tile.overlap_channels": 0.5})
        extract(recording, tmp_path / "both", both, fast=fast)
        alone = recipe(
            **settings,
            **{
                "tile.bands": 1,
                "selection.channel_start": 10,
                "selection.channel_stop": 30,
            },
        )
        extract(recording, tmp_path / "alone", alone, fast=fast)
        found, expected = images(tmp_path / "both"), images(tmp_path / "alone")
        assert len(found) == 3 * len(expected) == 12
        for place, image in expected.items():
            np.testing.assert_array_equal(found[place], image)

    def test_dead_channels_count_in_each_band_that_has_them(self, tmp_path):
        samples = random_walk(40, 6000, seed=1)
        samples[18] = 7
        recording = write_archive(tmp_path / "a.zarr", samples, RATE_HZ, (20, 3000))
        extract(recording, tmp_path / "out", recipe(**{"tile.overlap_channels": 0.25}))
        dead = [record["dead_channels"] for record in lines(tmp_path / "out/metadata.jsonl")]
        assert dead == [1, 1, 1, 1]

    def test_a_gap_costs_the_tiles_that_it_lies_in(self, tmp_path):
        times_us = START_NS // 1000 + np.arange(12_000) * 5_000
        times_us[6_700:] += 10**6
        recording = write_archive(
            tmp_path / "a.zarr",
            random_walk(20, 12_000, seed=1),
            RATE_HZ,
            (20, 3000),
            times_us=times_us,
        )
        extract(recording, tmp_path / "out", recipe(**{"tile.bands": 1, "tile.overlap_time": 0.5}))
        # Tiles begin at 0, 1500, ..., 9000; the jump is inside of those at 4500 and 6000.
        gaps = [r["sample_start"] for r in records(tmp_path / "out") if r["status"] == "gap"]
        assert gaps == [4500, 6000]

    @pytest.mark.parametrize("ring", ["one segment", "many"])
    def test_segments_change_no_bit(self, recording, overlapping, tmp_path, ring):
        minutes = 15.0 if ring == "one segment" else 0.125
        settings = {"tile.overlap_time": 0.5, "tile.overlap_channels": 0.25}
        extract(recording, tmp_path, recipe(**settings), segment_minutes=minutes)
        kept = {name: sha for name, sha in files(tmp_path).items() if name.startswith("images/")}
        assert kept == {
            name: sha for name, sha in files(overlapping).items() if name.startswith("images/")
        }


class TestRun:
    def test_verify_status_and_resume_know_the_grid(self, recording, tmp_path):
        settings = {"tile.overlap_time": 0.5, "tile.overlap_channels": 0.25}
        extract(recording, tmp_path, recipe(**settings), segment_minutes=0.25)
        assert verify(tmp_path).exit_code == 0
        assert status(tmp_path).total_tiles == 14
        before = files(tmp_path)
        (tmp_path / "segments/00001.jsonl").unlink()
        assert verify(tmp_path).to_do == (1,)
        assert extract(recording, tmp_path, recipe(**settings)).made < 14
        assert files(tmp_path) == before
        assert statuses(tmp_path).count("ok") > 0

    def test_another_overlap_is_another_run(self, recording, overlapping):
        with pytest.raises(UsageError, match="tile_stride"):
            extract(recording, overlapping, recipe())

    def test_the_page_has_a_cell_for_each_tile(self, overlapping):
        assert report(overlapping).tiles == 14
        page = (overlapping / "report.html").read_text()
        # 20 channels each, 2.0419 m apart, and the second from the 15th on.
        assert "0.00&ndash;0.04" in page
        assert "0.03&ndash;0.07" in page
        assert '"rowMs": 7500' in page or '"rowMs":7500' in page

    def test_the_option_is_two_settings(self, recording, tmp_path, capsys):
        command = ["extract", str(recording), str(tmp_path), "--bands", "2", "--dry-run", "--json"]
        assert cli.main([*command, "--channels", "::1", "--overlap", "0.5:0.25"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["tiles"] == 14
        assert cli.main([*command, "--overlap", "half"]) == 2
        assert "0.5:0.25" in capsys.readouterr().err

    def test_a_device_is_told_how_far_bands_are_apart(self):
        chain = design(plan(acquisition(), recipe(**{"tile.overlap_channels": 0.25})))
        shape = rowshape.RowShape.of(chain)
        assert (shape.bands, shape.band_channels, shape.band_stride) == (2, 300, 225)
        assert (shape.channels, shape.image_channels) == (525, 600)
