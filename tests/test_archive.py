"""An archive opened: its samples as they are stored, its ranges of time, its lazy view."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

from das_gpu.archive import open_archive
from das_gpu.errors import (
    AccessDeniedError,
    ChunkCorruptError,
    ChunkMissingError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.timescale import iso_time
from tests.azurite import Azurite
from tests.layouts import (
    CHUNK,
    DATA,
    PUBLISHED,
    START_NS,
    TIMES_US,
    no_jumps,
    published,
    settings_of,
    write,
)

# -- formats, orders, types ------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_both_formats_consolidated_or_not(
    tmp_path: Path, zarr_format: int, consolidated: bool
) -> None:
    archive = open_archive(
        write(tmp_path / "a", zarr_format=zarr_format, consolidated=consolidated)
    )
    assert archive.zarr_format == zarr_format
    found = archive.acquisition
    assert (found.shape, found.chunk_shape) == ((12, 250), (5, 60))
    assert found.dims == ("distance", "time")
    assert found.dtype == "int32"
    assert (found.start_ns, found.last_ns) == (START_NS, START_NS + 249 * 5_000_000)
    assert (found.sampling_rate_hz, found.sampling_rate_origin) == (
        200.0,
        "measured from RawDataTime",
    )
    assert (found.channel_spacing_m, found.channel_spacing_origin) == (2.0419, "assumed")
    np.testing.assert_array_equal(archive.data[:], DATA)
    np.testing.assert_array_equal(archive.times_ns(0, 250), TIMES_US * 1000)


@pytest.mark.parametrize("fill_value", [None, 0])
def test_counts_and_times_stay_integers_whatever_the_fill_value(
    tmp_path: Path, fill_value: int | None
) -> None:
    data = DATA.astype(np.int32)
    data[3] = 0
    archive = open_archive(write(tmp_path / "a", data=data, fill_value=fill_value))
    dataset = archive.dataset
    assert dataset.RawData.dtype == np.int32
    np.testing.assert_array_equal(dataset.RawData.values, data)
    assert dataset.time.dtype == np.dtype("M8[ns]")


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("time_first", [False, True])
def test_types_and_orders(tmp_path: Path, dtype: str, byte_order: str, time_first: bool) -> None:
    data = DATA.astype(dtype)
    stored = np.dtype(dtype).newbyteorder(byte_order)
    if time_first:
        path = write(
            tmp_path / "a", data=data.T, dims=("time", "distance"), chunks=(60, 5), dtype=stored
        )
    else:
        path = write(tmp_path / "a", data=data, dtype=stored)
    archive = open_archive(path)
    found = archive.acquisition
    assert found.dims == (("time", "distance") if time_first else ("distance", "time"))
    assert (found.shape, found.chunk_shape, found.dtype) == ((12, 250), (5, 60), dtype)
    np.testing.assert_array_equal(archive.data[:], data.T if time_first else data)
    assert archive.dataset.RawData.dims == found.dims


@pytest.mark.parametrize(
    "how",
    [
        {"compressors": numcodecs.Blosc("lz4")},
        {"compressors": numcodecs.Zstd()},
        {"compressors": numcodecs.GZip()},
        {"compressors": None},
        {"filters": [numcodecs.Delta("<i4")]},
        {"zarr_format": 3, "shards": (10, 120)},
    ],
    ids=["blosc", "zstd", "gzip", "none", "delta", "sharded"],
)
def test_encodings(tmp_path: Path, how: dict[str, Any]) -> None:
    archive = open_archive(write(tmp_path / "a", **how))
    assert archive.acquisition.chunk_shape == (5, 60)
    np.testing.assert_array_equal(archive.data[:], DATA)


def test_lost_chunks_of_an_auxiliary_variable_are_fill(tmp_path: Path) -> None:
    extra = {"GpsStatus": np.full(250, 3, np.uint8)}
    for fill_value in (0, None):
        path = write(tmp_path / str(fill_value), extra=extra, fill_value=fill_value)
        (path / "GpsStatus/1").unlink()
        (path / "RawDataTime/1").unlink()
        archive = open_archive(path)
        ((status, _),) = archive.quality
        if fill_value is None:
            with pytest.raises(ChunkMissingError):
                archive.aux(status, 0, 20)
        else:
            np.testing.assert_array_equal(archive.aux(status, 0, 20), [3] * 7 + [0] * 7 + [3] * 6)
        with pytest.raises(ChunkMissingError):
            archive.times_ns(0, 250)


def test_ranges(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path / "a"))
    second = 1_000_000_000
    assert archive.sample_range(None, None) == (0, 250)
    assert archive.sample_range(START_NS, START_NS + second) == (0, 200)
    assert archive.sample_range(START_NS + 1, START_NS + second + 1) == (1, 201)
    assert archive.sample_range(START_NS - second, None) == (0, 250)
    assert archive.sample_range(None, START_NS + 2 * second) == (0, 250)


@pytest.mark.parametrize(
    ("start_s", "stop_s", "said"),
    [
        (0.5, 0.5, "is empty: stop must come after start"),
        (0.5, 0.1, "is empty"),
        (-2, 1, "is not inside the record"),
        (0, 60, "is not inside the record"),
        (60, None, "is not inside the record"),
        (None, -1, "is empty"),
        (0.5001, 0.5002, "no sample in the range"),
    ],
)
def test_ranges_that_cannot_be_met_name_the_record(
    tmp_path: Path, start_s: float | None, stop_s: float | None, said: str
) -> None:
    archive = open_archive(write(tmp_path / "a"))
    start, stop = (
        None if one is None else START_NS + round(one * 1e9) for one in (start_s, stop_s)
    )
    record = "2021-11-01T23:11:14.834Z to 2021-11-01T23:11:16.079Z"
    with pytest.raises(UsageError, match=said) as caught:
        archive.sample_range(start, stop)
    assert record in str(caught.value)


def test_the_published_archive_opens_with_few_requests() -> None:
    with published(no_jumps) as served:
        archive = open_archive(served.url)
        assert archive.acquisition.shape == PUBLISHED
        assert archive.acquisition.last_ns == START_NS + (PUBLISHED[1] - 1) * 5_000_000
        assert len(served.requests) <= 7
        assert archive.fingerprint() == {
            "location": served.url,
            "data": "RawData",
            "dims": ["distance", "time"],
            "shape": list(PUBLISHED),
            "dtype": "int32",
            "chunks": [CHUNK, CHUNK],
            "codec": "blosc(blocksize=0, clevel=5, cname=lz4, shuffle=1) <i4",
            "first_time": "2021-11-01T23:11:14.834Z",
            "last_time": "2021-11-04T05:35:14.829Z",
        }


# -- the lazy view ---------------------------------------------------------------------------


def test_making_the_dataset_reads_nothing() -> None:
    with published(no_jumps) as served:
        archive = open_archive(served.url)
        before = len(served.requests)
        xr.Dataset().chunk()  # the libraries are loaded before the clock starts
        start = time.perf_counter()
        dataset = archive.dataset
        took_s = time.perf_counter() - start
        assert "RawData" in repr(dataset)
        part = dataset.isel(distance=slice(10_000, 10_010), time=slice(6000, 9000))
        assert len(served.requests) == before
        assert took_s < 2
        assert dataset.sizes == {"distance": 47_500, "time": 39_168_000}
        assert dataset.RawData.dtype == np.int32
        assert dataset.distance.values[-1] == pytest.approx(47_499 * 2.0419)
        assert archive.dataset is dataset
        np.testing.assert_array_equal(
            part.time.values.astype(np.int64), START_NS + np.arange(6000, 9000) * 5_000_000
        )
        with pytest.raises(ChunkMissingError):
            part.RawData.load()


def test_the_dataset_holds_the_recording(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path / "a"))
    dataset = archive.dataset
    np.testing.assert_array_equal(dataset.RawData.values, DATA)
    np.testing.assert_array_equal(dataset.time.values, TIMES_US.astype("M8[us]"))
    np.testing.assert_allclose(dataset.distance.values, np.arange(12) * 2.0419)
    np.testing.assert_array_equal(dataset.RawData[::-2, 100:3:-7].values, DATA[::-2, 100:3:-7])
    np.testing.assert_allclose(dataset.RawData.mean("time"), DATA.mean(axis=1))
    assert float((dataset.RawData - dataset.RawData).sum()) == 0


def test_times_are_selected_by_label(tmp_path: Path) -> None:
    dataset = open_archive(write(tmp_path / "a")).dataset

    def seconds(part: xr.Dataset) -> list[float]:
        return list((part.time.values.astype(np.int64) - START_NS) / 1e9)

    half = dataset.sel(time=slice("2021-11-01T23:11:15", "2021-11-01T23:11:15.5Z"))
    assert seconds(half)[0] == pytest.approx(0.17)
    assert seconds(half)[-1] == pytest.approx(0.665)
    again = half.sel(time=slice("2021-11-01T23:11:15.2", None, 2))
    assert seconds(again)[:2] == pytest.approx([0.37, 0.38])
    assert half.sel(time=slice("2021-11-01T20", "2021-11-01T21")).sizes["time"] == 0
    one = dataset.sel(time="2021-11-01T23:11:15.001", method="nearest")
    assert one.time.values == np.datetime64("2021-11-01T23:11:14.999")
    assert dataset.sel(time=one.time.values).RawData.shape == (12,)
    with pytest.raises(KeyError, match="no sample at"):
        dataset.sel(time="2021-11-01T23:11:15.001")
    with pytest.raises(UsageError, match="by a slice"):
        dataset.sel(time=["2021-11-01T23:11:15"])


def test_the_dataset_and_the_archive_pickle_without_their_stores(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path / "a"), settings_of(channel_spacing_m=5))
    again = pickle.loads(pickle.dumps(archive))  # noqa: S301  # our own bytes
    assert again.acquisition == archive.acquisition
    dataset = pickle.loads(pickle.dumps(archive.dataset))  # noqa: S301
    np.testing.assert_array_equal(dataset.sel(time=slice(None)).RawData.values, DATA)


def test_a_corrupt_chunk_of_the_dataset_raises(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    file = path / "RawData/0.0"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ChunkCorruptError):
        open_archive(path).dataset.RawData[:5, :60].load()


# -- blob storage ----------------------------------------------------------------------------

PREFIX = "ooi_South_Tx.zarr/ooi_South_Tx.zarr"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.slow
def test_a_public_container_gives_the_same_values(
    azurite: Azurite, tmp_path: Path, zarr_format: int, consolidated: bool
) -> None:
    path = write(tmp_path / "a", zarr_format=zarr_format, consolidated=consolidated)
    azurite.create_container("zarr", public="container")
    prefix = f"{zarr_format}{consolidated}/{PREFIX}"
    azurite.upload_folder(path, "zarr", prefix)
    local, remote = open_archive(path), open_archive(azurite.url("zarr", prefix))
    assert remote.acquisition == local.acquisition
    np.testing.assert_array_equal(remote.data[:], DATA)
    np.testing.assert_array_equal(remote.times_ns(0, 250), TIMES_US * 1000)
    np.testing.assert_array_equal(remote.dataset.RawData.values, DATA)
    with pytest.raises(SourceError, match=r"Perhaps you mean http.*ooi_South_Tx\.zarr/ooi_South"):
        open_archive(azurite.url("zarr", prefix.rpartition("/")[0]))
    with pytest.raises(SourceNotFoundError, match="There is nothing at"):
        open_archive(azurite.url("zarr", "elsewhere"))


def test_a_container_that_nobody_may_list(azurite: Azurite, tmp_path: Path) -> None:
    path = write(tmp_path / "a", consolidated=False)
    azurite.create_container("unlisted", public="blob")
    azurite.upload_folder(path, "unlisted", "a")
    np.testing.assert_array_equal(open_archive(azurite.url("unlisted", "a")).data[:], DATA)


def test_a_private_container_is_refused(azurite: Azurite, tmp_path: Path) -> None:
    azurite.create_container("secret")
    azurite.upload_folder(write(tmp_path / "a"), "secret", "a")
    with pytest.raises((AccessDeniedError, SourceNotFoundError), match="anonymously"):
        open_archive(azurite.url("secret", "a"))


# -- real recordings -------------------------------------------------------------------------


def test_real_recordings(shared_recordings: Path) -> None:
    for name in ("silixa", "optodas"):
        expected = json.loads((shared_recordings / f"{name}.json").read_text())
        archive = open_archive(shared_recordings / f"{name}.zarr")
        assert archive.acquisition.sampling_rate_hz == expected["sampling_rate_hz"]
        assert iso_time(archive.acquisition.start_ns) == expected["start_utc"] + "Z"
        stored = zarr.open_array(str(shared_recordings / f"{name}.zarr/RawData"), mode="r")
        np.testing.assert_array_equal(archive.data[:], stored[:])
