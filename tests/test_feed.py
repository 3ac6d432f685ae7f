"""`das_gpu.stream`: the tiles of a run without its files, as fast as they are taken."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import das_gpu
from das_gpu import Recipe, extract, feed, stream
from das_gpu.errors import ChunkMissingError, RecipeError, SourceNotFoundError, UsageError
from das_gpu.sink import LocalSink
from tests.archives import clock_us, random_walk, write_archive
from tests.outputs import envelopes, images, lines
from tests.proxy import FaultProxy

ROWS, BANDS = 8, 2
CHUNKS = 2 * 7
RECIPE = Recipe().with_settings({
    "selection.channel_step": 1, "tile.seconds": 3, "tile.bands": BANDS, "median.kind": "channel",
    "image.height": 40, "image.width": 32,
})  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """8 rows of 2 tiles of 10 channels x 300 kept samples; channel 4 is dead."""
    samples = random_walk(20, ROWS * 600 + 50, seed=3)
    samples[4] = 7
    return write_archive(tmp_path_factory.mktemp("feed") / "a.zarr", samples, 200.0, (10, 700))


def place(tile):
    return tile.record.sample_start, tile.record.channel_start


EARLIER = set()
"""Threads that were there before a test: of whatever ran in this process."""


@pytest.fixture(autouse=True)
def earlier_threads():
    EARLIER.update(threading.enumerate())
    yield
    EARLIER.clear()


def working_threads():
    there = set(threading.enumerate()) - EARLIER
    return [each.name for each in there if each.name.startswith("das-gpu")]


def assert_threads_end():
    gc.collect()
    deadline = time.monotonic() + 10
    while working_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert working_threads() == []


# --- the same as a run --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "overlaps"),
    [
        ("continuous", {}),
        ("notebook", {}),
        ("continuous", {"tile.overlap_time": 0.5, "tile.overlap_channels": 0.5}),
    ],
    ids=["continuous", "notebook", "overlapping"],
)
def test_pixels_and_records_are_those_of_a_run(store, tmp_path, preset, overlaps):
    settings = {"tile.seconds": 3, "tile.bands": BANDS, **overlaps}
    recipe = Recipe.from_preset(preset).with_settings(settings)
    extract(store, tmp_path, recipe, backend="cpu", fast=False)
    tiles = list(stream(store, recipe, backend="cpu", fast=False))
    written = images(tmp_path)
    assert [place(tile) for tile in tiles] == list(written)
    for tile in tiles:
        np.testing.assert_array_equal(tile.pixels, written[place(tile)])
    of_files = {"file_name": None, "sha256": None}
    for tile, line in zip(tiles, lines(tmp_path / "metadata.jsonl"), strict=True):
        assert tile.record.as_json() == line | of_files | {"reason": line["reason"] or None}


def test_envelopes_are_the_arrays_of_a_run(store, tmp_path):
    extract(store, tmp_path, RECIPE.with_settings({"image.format": "npy"}), fast=False)
    written = envelopes(tmp_path)
    tiles = list(stream(store, RECIPE, envelopes=True, fast=False))
    assert [place(tile) for tile in tiles] == list(written)
    for tile in tiles:
        np.testing.assert_array_equal(tile.envelope_db, written[place(tile)])


def test_selection_is_laid_over_the_recipe(store):
    tiles = list(
        stream(
            store,
            RECIPE.with_settings({"tile.bands": 1}),
            channels="2:12:2",
            start="2021-11-01T23:11:17.834",
            stop="2021-11-01T23:11:23.834",
        )
    )
    assert [place(tile) for tile in tiles] == [(600, 2), (1200, 2)]
    assert {tile.record.channel_stop for tile in tiles} == {12}


def test_nothing_is_written(store, monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was put")

    monkeypatch.setattr(LocalSink, "put", refuse)
    monkeypatch.chdir(tmp_path)
    assert len(list(stream(store, RECIPE))) == ROWS * BANDS
    assert list(tmp_path.iterdir()) == []


def test_tiles_that_cannot_be_made_are_skipped_and_told(tmp_path):
    times = clock_us(2400, 200.0)
    times[900:] += 1_000_000
    path = write_archive(tmp_path / "a", random_walk(20, 2400, 1), 200.0, (20, 400), times_us=times)
    (path / "RawData" / "0.5").unlink()
    with stream(path, RECIPE) as tiles:
        made = [place(tile)[0] for tile in tiles]
        skipped = [(each.sample_start, each.status) for each in tiles.skipped]
    assert made == [0, 0, 1200, 1200]
    assert skipped == [(600, "gap")] * BANDS + [(1800, "missing")] * BANDS
    assert all(each.reason for each in tiles.skipped)


def test_a_failure_reaches_the_consumer(tmp_path):
    path = write_archive(tmp_path / "a", random_walk(20, 2400, 1), 200.0, (20, 400))
    (path / "RawData" / "0.5").unlink()
    with pytest.raises(ChunkMissingError), stream(path, RECIPE, on_missing="error") as tiles:
        list(tiles)
    assert_threads_end()


# --- back-pressure and leaving ------------------------------------------------------------


def test_it_runs_ahead_by_so_many_tiles_and_no_more(store, monkeypatch):
    made, record_of = [], feed.record_of
    monkeypatch.setattr(feed, "record_of", lambda *args: made.append(1) or record_of(*args))
    with stream(store, RECIPE, ahead=3) as tiles:
        next(tiles)
        # One taken, three that wait, and one in the hand of who would put it there.
        deadline = time.monotonic() + 30
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(made) == 5
        assert len(list(tiles)) == ROWS * BANDS - 1


def test_nothing_is_read_before_the_first_tile_is_asked_for(store):
    tiles = stream(store, RECIPE)
    assert "das-gpu-stream" not in working_threads()
    tiles.close()
    assert list(tiles) == []


@pytest.mark.parametrize("taken", [1, ROWS * BANDS])
def test_leaving_the_block_ends_every_thread(store, taken):
    with stream(store, RECIPE, ahead=1) as tiles:
        for _ in range(taken):
            next(tiles)
        assert "das-gpu-stream" in working_threads() or taken > 1
    assert not {"das-gpu-stream", "das-gpu-loader-0"} & set(working_threads())
    assert_threads_end()


def test_leaving_a_loop_ends_every_thread(store):
    for tile in stream(store, RECIPE, ahead=1):
        assert tile.pixels.any()
        break
    assert_threads_end()


def test_leaving_early_ends_fetching(azurite, store):
    azurite.create_container("feed", public="container")
    azurite.upload_folder(store, "feed", "a.zarr")
    with FaultProxy(azurite.port) as proxy:
        with stream(proxy.url("feed", "a.zarr"), RECIPE, ahead=1, loaders=1) as tiles:
            next(tiles)
        asked = proxy.count("RawData/")
        time.sleep(0.3)
        assert proxy.count("RawData/") == asked < CHUNKS


# --- arrays for others --------------------------------------------------------------------


@pytest.mark.parametrize("envelopes_wanted", [False, True])
def test_dlpack_gives_the_array_itself(store, envelopes_wanted):
    tile = next(stream(store, RECIPE, envelopes=envelopes_wanted))
    taken = np.from_dlpack(tile)
    assert taken.ctypes.data == tile.array.ctypes.data
    assert tile.__dlpack_device__() == (1, 0)


def test_torch_takes_tiles_without_a_copy(store, torch):
    tile = next(stream(store, RECIPE))
    tensor = torch.from_dlpack(tile)
    assert tensor.data_ptr() == tile.pixels.ctypes.data
    assert tensor.dtype == torch.uint8
    tensor[0, 0] = 77
    assert tile.pixels[0, 0] == 77


def test_a_tile_is_nobody_elses(store):
    first, *others = stream(store, RECIPE)
    before = [other.pixels.copy() for other in others]
    first.pixels[...] = 0
    for other, was in zip(others, before, strict=True):
        np.testing.assert_array_equal(other.pixels, was)


def test_asking_for_the_other_kind_says_what_to_do(store):
    tile = next(stream(store, RECIPE))
    with pytest.raises(UsageError, match="envelopes=True"):
        _ = tile.envelope_db
    with pytest.raises(UsageError, match=r"take tile\.envelope_db"):
        _ = replace(tile, is_image=False).pixels


# --- parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
def test_parts_are_disjoint_and_complete(store, count):
    parts = [stream(store, RECIPE, part=(number, count)) for number in range(count)]
    found = [[place(tile) for tile in part] for part in parts]
    assert [len(tiles) for tiles in found] == [part.n_tiles for part in parts]
    whole = sorted(place(tile) for tile in stream(store, RECIPE))
    assert sorted(each for tiles in found for each in tiles) == whole
    if count <= ROWS:
        assert all(found)


def test_parts_change_no_pixel(store):
    whole = {place(tile): tile.pixels for tile in stream(store, RECIPE, fast=False)}
    for number in range(3):
        for tile in stream(store, RECIPE, part=(number, 3), fast=False):
            np.testing.assert_array_equal(tile.pixels, whole[place(tile)])


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"part": (2, 2)}, UsageError, "Part 2 of 2"),
        ({"ahead": 0}, UsageError, "at least 1"),
        ({"channels": "5"}, RecipeError, "START:STOP:STEP"),
        ({"start": "yesterday"}, RecipeError, "selection.start"),
        ({"backend": "tpu"}, UsageError, "auto, cpu or gpu"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(store, options, error, words):
    with pytest.raises(error, match=words):
        stream(store, RECIPE, **options)


def test_an_archive_that_is_not_there_is_told_at_once(tmp_path):
    with pytest.raises(SourceNotFoundError):
        stream(tmp_path / "nothing")


# --- names --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_name_stays_the_functions_whatever_is_imported_first():
    for first in ("das_gpu", "das_gpu.stream", "das_gpu.segment"):
        script = f"import {first}; from das_gpu import stream; assert callable(stream)"
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_public_name_is_there():
    assert {name for name in das_gpu.__all__ if not hasattr(das_gpu, name)} <= {"__version__"}
