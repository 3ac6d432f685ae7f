"""Recordings in HDF5 files, indexed and read where they are: the same pixels as from Zarr."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from das_gpu import Recipe, extract, open_archive
from das_gpu.cli import main
from das_gpu.errors import IdentityError, SourceError, UsageError
from das_gpu.index import index_files
from tests.archives import clock_us, random_walk, write_archive
from tests.hdf5 import (
    RATE_HZ,
    SPACING_M,
    write_dasdae,
    write_prodml,
    write_series,
    write_silixa,
    write_terra15,
)
from tests.outputs import files, records, statuses

RECIPE = Recipe().with_settings(
    {
        "selection.channel_step": 1,
        "tile.seconds": 3,
        "tile.bands": 3,
        "archive.channel_spacing_m": SPACING_M,
        "median.kind": "channel",
    }
)
N = 6000


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return random_walk(36, N, seed=5, swell=10)


@pytest.fixture(scope="module")
def expected(samples, tmp_path_factory) -> dict[str, str]:
    """Images of the same samples in a plain Zarr store."""
    folder = tmp_path_factory.mktemp("plain")
    store = write_archive(folder / "a.zarr", samples, RATE_HZ, (16, 700))
    extract(store, folder / "out", RECIPE)
    return pictures(folder / "out")


def pictures(out: Path) -> dict[str, str]:
    found = {name: sha for name, sha in files(out).items() if name.startswith("images/")}
    assert found
    return found


def indexed(folder: Path, sources: list[Path]) -> Path:
    return index_files(sources, folder / "archive.json").path


# --- the same pixels --------------------------------------------------------------------------

EQUAL, UNEQUAL = [2000, 2000, 2000], [1700, 2301, 1999]
GZIP = {"compression": "gzip", "shuffle": True}


@pytest.mark.parametrize(
    ("lengths", "options", "joined"),
    [
        pytest.param(EQUAL, {}, False, id="stored as they are"),
        pytest.param(UNEQUAL, {}, True, id="stored as they are, of unequal length"),
        pytest.param(EQUAL, {"time_first": False}, False, id="channels first"),
        pytest.param(UNEQUAL, {"time_first": False}, True, id="channels first, unequal"),
        pytest.param(EQUAL, {"chunks": (2000, 36), **GZIP}, False, id="gzip and shuffle"),
        pytest.param(
            [*EQUAL[:2], 1900, 100],
            {"chunks": (2000, 36), "maxshape": (None, 36), **GZIP},
            True,
            id="gzip, a file cut short",
        ),
        pytest.param(
            [2000, 4000],
            {"chunks": (2400, 36), "maxshape": (None, 36), **GZIP},
            True,
            id="gzip, chunks reach over the end",
        ),
        pytest.param([4000, 2000], {"chunks": (2000, 36), **GZIP}, False, id="gzip, two chunks"),
        pytest.param(UNEQUAL, {"chunks": (500, 10), **GZIP}, True, id="small chunks, unequal"),
        pytest.param(EQUAL, {"chunks": (2000, 36), "compression": "gzip"}, False, id="gzip"),
        pytest.param(EQUAL, {"chunks": (2000, 36), **hdf5plugin.Blosc()}, False, id="Blosc"),
        pytest.param(EQUAL, {"chunks": (2000, 36), **hdf5plugin.Zstd()}, False, id="zstd"),
        pytest.param(EQUAL, {"chunks": (2000, 36), **hdf5plugin.LZ4()}, True, id="LZ4"),
        pytest.param(
            EQUAL, {"chunks": (2000, 36), "fletcher32": True, **GZIP}, True, id="checksums"
        ),
    ],
)
def test_images_of_indexed_files_are_those_of_a_plain_archive(
    samples, expected, tmp_path, lengths, options, joined
):
    source = indexed(tmp_path, write_series(tmp_path, samples, lengths, **options))
    assert ("RawData" in open_archive(source).index.joined) is joined
    assert extract(source, tmp_path / "out", RECIPE).exit_code == 0
    assert pictures(tmp_path / "out") == expected


@pytest.mark.parametrize("write", [write_terra15, write_silixa, write_dasdae])
@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.slow
def test_a_layout_that_dascore_knows_is_read_where_it_is(
    samples, expected, tmp_path, write, lengths
):
    first, paths = 0, []
    for number, length in enumerate(lengths):
        path = tmp_path / f"{number}.h5"
        paths.append(write(path, samples[:, first : first + length], first))
        first += length
    source = indexed(tmp_path, paths)
    archive = open_archive(source)
    assert archive.acquisition.channel_spacing_m == pytest.approx(SPACING_M)
    assert archive.acquisition.sampling_rate_hz == RATE_HZ
    assert extract(source, tmp_path / "out", RECIPE).exit_code == 0
    assert pictures(tmp_path / "out") == expected


def test_what_dascore_says_that_samples_are_is_kept(samples, tmp_path):
    path = write_terra15(tmp_path / "a.h5", samples, 0)
    acquisition = open_archive(indexed(tmp_path, [path])).acquisition
    assert acquisition.quantity == "'meter / second', by attribute RawDataUnit of the group"


def test_a_chunk_that_did_not_become_smaller_is_stored_as_it_is(tmp_path):
    noise = np.random.default_rng(1).integers(-(1 << 31), 1 << 31, (36, 2000)).astype(np.int32)
    path = tmp_path / "a.h5"
    write_prodml(path, noise, chunks=(2000, 36), compression=32015)
    with h5py.File(path, "a") as file:
        # As a filter that finds nothing to save leaves it: the bytes, and a mark.
        raw = file["Acquisition/Raw[0]/RawData"]
        raw.id.write_direct_chunk((0, 0), noise.T.tobytes(), filter_mask=1)
    archive = open_archive(indexed(tmp_path, [path]))
    assert (noise == archive.data[:, :].T).all()


def test_attributes_of_the_files_become_those_of_the_archive(samples, tmp_path):
    source = indexed(tmp_path, write_series(tmp_path, samples, EQUAL))
    acquisition = open_archive(source).acquisition
    assert acquisition.sampling_rate_origin == "attribute OutputDataRate of the group"
    assert acquisition.channel_spacing_m == SPACING_M
    attributes = json.loads(json.loads(source.read_text())["refs"][".zattrs"])
    assert attributes["GaugeLength"] == 51.0
    assert "uuid" not in attributes  # another one in each file


def test_other_readers_of_such_references_read_it(samples, tmp_path, monkeypatch):
    import zarr
    from fsspec.implementations.reference import ReferenceFileSystem

    source = indexed(tmp_path, write_series(tmp_path, samples, EQUAL, chunks=(2000, 36), **GZIP))
    monkeypatch.chdir(tmp_path)  # they take relative names from here
    system = ReferenceFileSystem(str(source))
    store = zarr.storage.MemoryStore(
        {key: zarr.core.buffer.cpu.Buffer.from_bytes(system.cat(key)) for key in system.find("")}
    )
    group = zarr.open_group(store, mode="r", zarr_format=2)
    assert (samples == group["RawData"][:].T).all()
    assert (group["RawDataTime"][:] == clock_us(N, RATE_HZ)).all()


def test_other_readers_do_not_take_joined_arrays_for_empty_ones(samples, tmp_path):
    source = indexed(tmp_path, write_series(tmp_path, samples, UNEQUAL))
    assert set(read_refs(source)) == {".zgroup", ".zattrs"}


def test_big_endian_samples_are_read(samples, expected, tmp_path):
    source = indexed(tmp_path, write_series(tmp_path, samples.astype(">i4"), UNEQUAL))
    extract(source, tmp_path / "out", RECIPE)
    assert pictures(tmp_path / "out") == expected


def test_a_chunk_that_was_never_written_is_missing(samples, tmp_path):
    paths = write_series(tmp_path, samples, EQUAL, chunks=(2000, 36), **GZIP)
    with h5py.File(paths[1], "a") as file:
        raw = file["Acquisition/Raw[0]"]
        del raw["RawData"]
        raw.create_dataset("RawData", (2000, 36), np.int32, chunks=(2000, 36), **GZIP)
    extract(indexed(tmp_path, paths), tmp_path / "out", RECIPE)
    found = [(r["sample_start"], r["status"]) for r in records(tmp_path / "out")]
    assert {start for start, status in found if status == "missing"} == {1800, 2400, 3000, 3600}


@pytest.mark.parametrize(
    ("lengths", "length", "lost"),
    [
        pytest.param(EQUAL, 2000, range(1800, 4000, 600), id="as chunks"),
        # Both of the chunks that are joined of it, each as long as the longest file.
        pytest.param(UNEQUAL, 1000, range(0, 4602, 600), id="joined"),
    ],
)
def test_damaged_bytes_are_corrupt(samples, tmp_path, lengths, length, lost):
    paths = write_series(tmp_path, samples, lengths, chunks=(length, 36), **GZIP)
    with h5py.File(paths[1]) as file:
        place = file["Acquisition/Raw[0]/RawData"].id.get_chunk_info(0).byte_offset
    body = bytearray(paths[1].read_bytes())
    body[place + 100 : place + 200] = bytes(100)
    paths[1].write_bytes(body)
    assert extract(indexed(tmp_path, paths), tmp_path / "out", RECIPE).exit_code == 3
    found = {(r["sample_start"], r["status"]) for r in records(tmp_path / "out")}
    assert {start for start, status in found if status == "corrupt"} == set(lost)


# --- what does not fit together ---------------------------------------------------------------


def write_with_gap(folder: Path, samples: np.ndarray) -> list[Path]:
    return [
        write_prodml(folder / "b.h5", samples[:, 3000:], 3000 + 50),
        write_prodml(folder / "a.h5", samples[:, :3000]),
    ]


def test_a_gap_between_files_is_reported_and_loses_only_the_tiles_it_crosses(
    samples, tmp_path, capsys
):
    paths = write_with_gap(tmp_path, samples)
    source = str(tmp_path / "archive.json")
    assert main(["index", *map(str, paths), "-o", source, "--json"]) == 0
    (gap,) = json.loads(capsys.readouterr().out)["gaps"]
    assert (gap["sample"], gap["after"], gap["before"], gap["seconds"]) == (
        3000, "a.h5", "b.h5", 0.25,
    )  # fmt: skip
    assert main(["info", source]) == 0
    shown = capsys.readouterr().out
    assert "1 gap, 0.25 s in all" in shown
    assert "2 indexed" in shown
    recipe = RECIPE.with_settings({"tile.seconds": 4})
    assert extract(source, tmp_path / "out", recipe).exit_code == 0
    crossing = [r["status"] == "gap" for r in records(tmp_path / "out")]
    starts = [r["sample_start"] for r in records(tmp_path / "out")]
    assert crossing == [start < 3000 < start + 800 for start in starts]
    assert any(crossing)


@pytest.mark.parametrize("moved_us", [250_000, -250_000])
def test_a_jump_of_the_clock_inside_a_file_is_a_gap_too(samples, tmp_path, capsys, moved_us):
    times_us = clock_us(N, RATE_HZ)
    times_us[1000:] += moved_us
    parts = samples[:, :2000], samples[:, 2000:]
    first = write_prodml(tmp_path / "a.h5", parts[0], times_us=times_us[:2000])
    second = write_prodml(tmp_path / "b.h5", parts[1], 2000, times_us=times_us[2000:])
    source = str(tmp_path / "archive.json")
    assert main(["index", str(first), str(second), "-o", source, "--json"]) == 0
    (gap,) = json.loads(capsys.readouterr().out)["gaps"]
    assert (gap["sample"], gap["after"], gap["before"], gap["seconds"]) == (
        1000, "a.h5", "a.h5", moved_us / 1e6,
    )  # fmt: skip
    assert main(["info", source]) == 0
    said = "0.25 s inside a.h5" if moved_us > 0 else "the clock goes back 0.25 s inside a.h5"
    assert said in capsys.readouterr().out
    extract(source, tmp_path / "out", RECIPE)
    lost = [r["sample_start"] for r in records(tmp_path / "out") if r["status"] == "gap"]
    assert lost == [600] * 3


def test_a_jump_does_not_change_the_rate_of_a_file_that_states_none(samples, tmp_path):
    times_us = clock_us(N, RATE_HZ)
    times_us[1000:] += 3_600_000_000
    path = write_prodml(tmp_path / "a.h5", samples, times_us=times_us)
    with h5py.File(path, "a") as file:
        del file["Acquisition/Raw[0]"].attrs["OutputDataRate"]
    summary = index_files([path], tmp_path / "archive.json")
    assert summary.sampling_rate_hz == pytest.approx(RATE_HZ)
    assert [gap.sample for gap in summary.document.gaps] == [1000]


@pytest.mark.parametrize(
    ("first_sample", "change", "said"),
    [
        (2900, {}, "overlap"),
        (0, {}, "overlap"),
        (3000, {"gauge_length_m": 10.0}, "GaugeLength 10.0, not 51.0"),
    ],
)
def test_files_that_are_not_one_recording_are_refused_by_name(
    samples, tmp_path, first_sample, change, said
):
    first = write_prodml(tmp_path / "first.h5", samples[:, :3000])
    other = write_prodml(tmp_path / "other.h5", samples[:, 3000:], first_sample, **change)
    with pytest.raises(SourceError, match=said) as caught:
        index_files([first, other], tmp_path / "archive.json")
    assert "first.h5" in str(caught.value)
    assert "other.h5" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda samples: samples[:20], "channels 20, not 36"),
        (lambda samples: samples.astype(np.float32), "dtype <f4, not <i4"),
    ],
)
def test_files_of_other_channels_or_type_are_refused(samples, tmp_path, make, said):
    first = write_prodml(tmp_path / "first.h5", samples[:, :3000])
    other = write_prodml(tmp_path / "other.h5", make(samples[:, 3000:]), 3000)
    with pytest.raises(SourceError, match=said):
        index_files([first, other], tmp_path / "archive.json")


def test_times_that_run_backwards_are_refused(samples, tmp_path):
    path = write_prodml(tmp_path / "a.h5", samples, times_us=clock_us(N, RATE_HZ)[::-1])
    with pytest.raises(SourceError, match=r"a\.h5 run from .* do not advance"):
        index_files([path], tmp_path / "archive.json")


def test_a_bitshuffled_file_is_refused_by_the_name_of_its_filter(samples, tmp_path):
    path = write_prodml(
        tmp_path / "a.h5", samples, chunks=(2000, 36), **hdf5plugin.Bitshuffle(cname="none")
    )
    with pytest.raises(SourceError, match=r"filter 32008 \(bitshuffle\).*h5repack"):
        index_files([path], tmp_path / "archive.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no HDF5", "cannot be read as HDF5"), (None, "There is no file")],
)
def test_what_is_no_recording_is_named(tmp_path, content, said):
    path = tmp_path / "a.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=said) as caught:
        index_files([path], tmp_path / "archive.json")
    assert "a.h5" in str(caught.value)


def test_an_hdf5_file_of_no_known_layout_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["something"] = np.zeros((3, 4))
    with pytest.raises(SourceError, match=r"a\.h5 holds no layout that is known"):
        index_files([tmp_path / "a.h5"], tmp_path / "archive.json")


def test_an_index_must_be_called_json(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.json"):
        index_files([tmp_path / "a.h5"], tmp_path / "b.h5")


# --- files that change afterwards -------------------------------------------------------------


def rewritten(path: Path) -> None:
    """The same size and other content."""
    body = path.read_bytes()
    path.write_bytes(body[:-5000] + bytes(5000))


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["as chunks", "joined"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [(Path.unlink, "not there any more"), (rewritten, "changed since it was indexed")],
)
def test_a_file_that_is_gone_or_changed_is_missing_and_never_read(
    samples, expected, tmp_path, lengths, spoil, said
):
    paths = write_series(tmp_path, samples, lengths)
    source = indexed(tmp_path, paths)
    spoil(paths[2])
    assert extract(source, tmp_path / "out", RECIPE).exit_code == 3
    lost = [r for r in records(tmp_path / "out") if r["status"] == "missing"]
    assert 0 < len(lost) <= len(statuses(tmp_path / "out"))
    assert all("part0002.h5" in r["reason"] and said in r["reason"] for r in lost)
    for name, sha in pictures(tmp_path / "out").items() if lengths is EQUAL else ():
        row = [r for r in records(tmp_path / "out") if r["file_name"] == name]
        assert row[0]["status"] == "edge" or expected[name] == sha


def test_a_folder_of_files_and_their_index_can_be_moved(samples, expected, tmp_path):
    (tmp_path / "here" / "day1").mkdir(parents=True)
    paths = write_series(tmp_path / "here" / "day1", samples, EQUAL)
    indexed(tmp_path / "here", paths)
    shutil.move(tmp_path / "here", tmp_path / "there")
    extract(tmp_path / "there" / "archive.json", tmp_path / "out", RECIPE)
    assert pictures(tmp_path / "out") == expected


def test_a_run_is_not_continued_with_another_index(samples, tmp_path):
    paths = write_series(tmp_path, samples, EQUAL)
    source = indexed(tmp_path, paths)
    extract(source, tmp_path / "out", RECIPE)
    os.utime(paths[0], (1, 1))
    indexed(tmp_path, paths)
    with pytest.raises(IdentityError, match=r"source\.index"):
        extract(source, tmp_path / "out", RECIPE)


# --- many files -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_files_are_indexed_in_seconds_and_opened_at_once(tmp_path):
    first = write_prodml(tmp_path / "first.h5", random_walk(8, 200, seed=1))
    with h5py.File(first) as file:
        offset = file["Acquisition/Raw[0]/RawDataTime"].id.get_offset()
    whole, times_us = first.read_bytes(), clock_us(200_000, RATE_HZ)
    first.unlink()
    for n in range(1000):
        times = times_us[200 * n : 200 * n + 200].tobytes()
        body = whole[:offset] + times + whole[offset + len(times) :]
        (tmp_path / f"{(n * 7919) % 1000:04d}.h5").write_bytes(body)
    started_s = time.monotonic()
    source = index_files([tmp_path], tmp_path / "archive.json").path
    indexed_s = time.monotonic() - started_s
    assert indexed_s < 30
    assert source.stat().st_size < 4_000_000
    started_s = time.monotonic()
    archive = open_archive(source)
    assert time.monotonic() - started_s < 2
    assert archive.acquisition.n_samples == 200_000
    assert not archive.index.gaps
    assert archive.sample_at(archive.acquisition.last_ns) == 199_999


def test_made_times_take_little_room(samples, tmp_path, monkeypatch):
    path = write_dasdae(tmp_path / "a.h5", random_walk(2, 400_000, seed=1))
    source = indexed(tmp_path, [path])
    archive = open_archive(source)
    assert (archive.times_ns(0, 400_000) == clock_us(400_000, RATE_HZ) * 1000).all()
    times = [one for key, one in read_refs(source).items() if key.startswith("time/")]
    assert sum(map(len, times)) < 400_000 * 8 / 50


def read_refs(source: Path) -> dict[str, Any]:
    refs: dict[str, Any] = json.loads(source.read_text())["refs"]
    return refs


# --- indices that were not written here -------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "is not an index"),
        ("[]", "is not an index"),
        ('{"version": 1, "refs": {}, "templates": {"u": "x"}}', "templates"),
        ('{"version": 1, "refs": {}, "das_gpu": {"format": 99}}', "of format 99"),
        ('{"version": 1, "refs": {"a": ["x", -1, 5]}}', "is not an index"),
    ],
)
def test_what_is_not_an_index_is_said(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=said):
        open_archive(tmp_path / "a.json")


@pytest.mark.parametrize(
    "name", ["https://evil.blob.example.com/c/a.h5", "http://192.0.2.1:80/a/c/a.h5"]
)
def test_an_index_does_not_lead_to_unknown_servers(samples, tmp_path, name):
    source = indexed(tmp_path, write_series(tmp_path, samples, EQUAL))
    source.write_text(source.read_text().replace("part0000.h5", name))
    with pytest.raises(SourceError, match="names"):
        open_archive(source)
