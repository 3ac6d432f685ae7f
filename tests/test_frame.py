"""From a pixel to time, cable and level, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

import das_gpu
from das_gpu import Frame, Recipe, extract, level_db, locate, locate_box, pixel_at, pixel_of_level
from das_gpu.errors import DestinationError, UsageError
from das_gpu.model import TileRecord
from das_gpu.render import iso_utc
from das_gpu.simulate import DEMO_SCENE, notes
from tests.archives import START_NS, random_walk, write_archive
from tests.outputs import lines

REPOSITORY = Path(__file__).resolve().parents[1]
RATE_HZ = 200.0
NEAR_NS = 2


def record(samples=1500, step=2, channels=600, channel_step=5, **changes):
    """A tile of whole steps at 200 Hz, 2.0419 m from channel to channel."""
    made = {
        "start_time": iso_utc(START_NS),
        "end_time": iso_utc(START_NS + samples * step * 5_000_000),
        "sample_start": 6000,
        "sample_stop": 6000 + samples * step,
        "sample_step": step,
        "channel_start": 10000,
        "channel_stop": 10000 + channels * channel_step,
        "channel_step": channel_step,
        "distance_start_m": 20419.0,
        "distance_stop_m": 20419.0 + channels * channel_step * 2.0419,
        "db_low": 150.0,
        "db_high": 190.0,
    }
    return made | changes


orientations = st.sampled_from(["time-down", "time-right"])
frames = st.one_of(
    st.builds(Frame, st.integers(1, 2000), st.integers(1, 2000), orientations),
    st.just(Frame(None, None, "time-right")),
)
tiles = st.builds(
    record, st.integers(2, 5000), st.integers(1, 9), st.integers(1, 3000), st.integers(1, 50)
)


def size(made, frame):
    """Width and height of a tile's image."""
    samples = (made["sample_stop"] - made["sample_start"]) // made["sample_step"]
    channels = (made["channel_stop"] - made["channel_start"]) // made["channel_step"]
    return frame.width or samples, frame.height or channels


@given(tiles, frames, st.floats(0, 1), st.floats(0, 1))
def test_a_pixel_that_is_located_is_found_again(made, frame, across, down):
    width, height = size(made, frame)
    x, y = across * width - 0.5, down * height - 0.5
    place = locate(made, x, y, frame)
    again = pixel_at(made, place.time, place.distance_m, frame)
    # Times are whole nanoseconds, of which a pixel may have few.
    assert again == pytest.approx((x, y), abs=1e-4)


@given(tiles, frames)
def test_the_whole_image_is_the_whole_tile(made, frame):
    stretch = locate_box(made, (0, 0, *size(made, frame)), frame)
    assert (stretch.sample_start, stretch.sample_stop) == (
        made["sample_start"],
        made["sample_stop"],
    )
    assert stretch.channel_start == made["channel_start"]
    assert stretch.channel_stop == made["channel_stop"]
    assert iso_utc(stretch.start_ns) == made["start_time"]
    assert iso_utc(stretch.stop_ns) == made["end_time"]
    assert stretch.distance_start_m == made["distance_start_m"]
    assert stretch.distance_stop_m == pytest.approx(made["distance_stop_m"], abs=1e-6)


@given(tiles, frames, st.floats(0.01, 0.99))
def test_boxes_that_share_an_edge_share_no_sample_and_leave_none_out(made, frame, part):
    width, height = size(made, frame)
    cut = part * width
    left = locate_box(made, (0, 0, cut, height), frame)
    right = locate_box(made, (cut, 0, width, height), frame)
    axis = "sample" if frame.orientation == "time-right" else "channel"
    start, stop = made[f"{axis}_start"], made[f"{axis}_stop"]
    step = made[f"{axis}_step"]
    assert getattr(left, f"{axis}_start") == start
    assert getattr(right, f"{axis}_stop") == stop
    between = getattr(right, f"{axis}_start") - getattr(left, f"{axis}_stop")
    count = (stop - start) // step
    if min(part, 1 - part) * count >= 1:
        assert between == 0
    else:  # a box narrower than a sample holds one all the same
        assert between in (0, -step)


@given(tiles, frames, st.floats(0, 1), st.floats(0, 1))
def test_what_a_box_holds_is_what_its_pixels_show(made, frame, across, down):
    width, height = size(made, frame)
    x, y = int(across * (width - 1)), int(down * (height - 1))
    stretch = locate_box(made, (x, y, x + 1, y + 1), frame)
    place = locate(made, x, y, frame)
    half_ns = 5_000_000 * made["sample_step"] / 2
    assert stretch.start_ns - half_ns - NEAR_NS <= place.time_ns
    assert place.time_ns <= stretch.stop_ns - half_ns + NEAR_NS
    assert stretch.channel_start <= place.channel <= stretch.channel_stop
    assert (place.channel - made["channel_start"]) % made["channel_step"] == 0


def test_pixels_of_an_array_are_samples_and_channels():
    made, frame = record(), Frame.of_recipe(Recipe.load(settings={"image.format": "npy"}))
    place = locate(made, 10, 3, frame)
    assert place.time_ns == START_NS + 10 * 2 * 5_000_000
    assert (place.channel, place.channel_at) == (10015, 10015.0)
    assert place.distance_m == pytest.approx(20419.0 + 15 * 2.0419)


def test_time_runs_down_or_to_the_right():
    down = locate(record(), 10, 20, Frame())
    right = locate(record(), 20, 10, Frame(orientation="time-right"))
    assert down == right
    assert down.time_ns == START_NS + round((20.5 * 1500 / 256 - 0.5) * 10_000_000)


def test_a_record_of_a_run_is_as_good_as_its_line():
    made = record()
    rest = {field.name: None for field in dataclasses.fields(TileRecord)}
    assert locate(TileRecord(**{**rest, **made}), 5, 6) == locate(made, 5, 6)


@pytest.mark.parametrize(("x", "y"), [(-0.6, 0), (255.6, 0), (0, 256), (float("nan"), 0)])
def test_a_pixel_beyond_the_image_is_refused(x, y):
    with pytest.raises(UsageError, match=r"outside the image.*0 to 255"):
        locate(record(), x, y)


@pytest.mark.parametrize("box", [(5, 0, 5, 9), (9, 0, 5, 9), (-1, 0, 5, 9), (0, 0, 257, 9)])
def test_a_box_that_is_none_or_leaves_the_image_is_refused(box):
    with pytest.raises(UsageError, match="0 and 256"):
        locate_box(record(), box)


def test_what_the_tile_does_not_show_has_a_place_beyond_its_edges():
    x, y = pixel_at(record(), START_NS - 10**9, 20000.0)
    assert x < -0.5
    assert y < -0.5


def test_something_else_than_a_record_is_refused():
    with pytest.raises(UsageError, match=r"no sample_stop.*metadata.jsonl"):
        locate({"file_name": "cat.png"}, 1, 1)


@given(
    st.floats(-100, 300),
    st.floats(0.01, 200),
    st.sampled_from([(np.uint8, 255), (np.uint16, 65535)]),
    st.integers(0, 65535),
)
def test_levels_become_the_pixels_they_came_from(low, span, kind, value):
    dtype, highest = kind
    made = record(db_low=low, db_high=low + span)
    pixel = np.array([0, value % (highest + 1), highest], dtype=dtype)
    db = level_db(made, pixel)
    again = pixel_of_level(made, db, Frame(highest=highest))
    assert np.array_equal(np.round(again), pixel)
    assert db[0] == low
    assert db[-1] == pytest.approx(low + span)


def test_levels_beyond_the_limits_have_the_limits_pixels():
    assert pixel_of_level(record(), [0.0, 300.0]).tolist() == [0.0, 255.0]


def test_a_tile_without_live_channels_has_no_levels():
    dead = record(db_low=None, db_high=None)
    assert np.isnan(level_db(dead, 7))
    assert pixel_of_level(dead, 170.0) == 0.0


def test_a_frame_is_what_the_run_says(tmp_path):
    recording = write_archive(
        tmp_path / "a.zarr", random_walk(20, 3000, seed=1), RATE_HZ, (20, 3000)
    )
    for form, expected in (
        ({"image.format": "png16", "image.height": 100}, Frame(100, 256, "time-down", 65535)),
        ({"image.orientation": "time-right"}, Frame(256, 256, "time-right")),
        ({"image.format": "npy"}, Frame(None, None, "time-right")),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        extract(recording, out, Recipe.load(settings={"tile.bands": 1, **form}))
        assert Frame.of(out) == expected
    with pytest.raises(DestinationError, match="no run"):
        Frame.of(tmp_path / "nothing")


@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
@pytest.mark.parametrize("shape", [(256, 256), (100, 400)])
def test_the_brightest_pixel_of_a_lone_burst_is_where_and_when_it_was(tmp_path, orientation, shape):
    channel, sample = 137, 2000
    t = (np.arange(6000) - sample) / RATE_HZ
    along = np.exp(-0.5 * ((np.arange(400) - channel) / 12) ** 2)
    burst = 3000 * along[:, None] * np.exp(-0.5 * (t / 0.15) ** 2) * np.sin(2 * np.pi * 22 * t)
    noise = np.random.default_rng(1).normal(scale=2, size=burst.shape)
    recording = write_archive(
        tmp_path / "a.zarr", np.round(1.8e6 + burst + noise).astype("i4"), RATE_HZ, (200, 3000)
    )
    settings = {
        "tile.bands": 2,
        "selection.channel_step": 1,
        "image.height": shape[0],
        "image.width": shape[1],
        "image.orientation": orientation,
        "image.scale": "tile",
        "image.format": "png16",
    }
    out = tmp_path / "out"
    extract(recording, out, Recipe.load(settings=settings))
    (made,) = (
        line
        for line in lines(out / "metadata.jsonl")
        if line["sample_start"] <= sample < line["sample_stop"]
        and line["channel_start"] <= channel < line["channel_stop"]
    )
    pixels, frame = np.asarray(Image.open(out / made["file_name"])), Frame.of(out)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    place = locate(made, x, y, frame)
    truth_ns = START_NS + sample * 5_000_000
    truth = pixel_at(made, truth_ns, channel * 2.0419, frame)
    assert abs(truth[0] - x) <= 1
    assert abs(truth[1] - y) <= 1
    assert abs(place.channel - channel) <= 2
    assert abs(place.time_ns - truth_ns) <= 16e9 / min(shape)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    extract("demo:", out, Recipe.load(settings={"tile.bands": 1}))
    return out


@pytest.mark.parametrize("tile", [1, 3])
def test_a_whales_note_in_the_demo_is_located_within_a_pixel_of_its_arrival(demo, tile):
    made = lines(demo / "metadata.jsonl")[tile]
    pixels, frame = np.asarray(Image.open(demo / made["file_name"])).astype(float), Frame.of(demo)
    means = ndimage.uniform_filter(pixels, (3, 9))
    y, x = np.unravel_index(means.argmax(), means.shape)
    place = locate(made, x, y, frame)
    # A note is loudest in its middle.
    here_m = np.float64(place.distance_m)
    middles_s = [note.arrival_s(here_m) + note.duration_s / 2 for note in notes(DEMO_SCENE)]
    rows = [
        pixel_at(made, DEMO_SCENE.start_ns + round(1e9 * middle_s), place.distance_m, frame)[1]
        for middle_s in middles_s
    ]
    assert min(abs(row - y) for row in rows) <= 1
    assert abs(place.distance_m - notes(DEMO_SCENE)[0].along_m) < 600


def test_the_functions_are_the_packages():
    assert das_gpu.locate is locate
    assert json.dumps(das_gpu.__all__).count("locate") == 2
