"""An archive opened: what it is found to hold, its time axis, its lazy view."""

from __future__ import annotations

import json
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from das_gpu.archive import Archive, open_archive
from das_gpu.errors import (
    AccessDeniedError,
    ChunkCorruptError,
    ChunkMissingError,
    DasGpuError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.recipe import ArchiveSettings
from das_gpu.timescale import iso_time
from tests.azurite import Azurite, BlobServer, serve_blobs

START_US = 1_635_808_274_834_000
START_NS = START_US * 1000
N_CHANNELS, N_SAMPLES, RATE_HZ = 12, 250, 200
DATA = np.random.default_rng(0).integers(-1000, 1000, (N_CHANNELS, N_SAMPLES)).cumsum(axis=1)
TIMES_US = START_US + np.arange(N_SAMPLES) * 5000


def write(
    path: Path,
    *,
    zarr_format: int = 2,
    consolidated: bool = True,
    data: NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
    names: tuple[str, str] = ("RawData", "RawDataTime"),
    dims: tuple[str, str] | None = ("distance", "time"),
    attributes: dict[str, Any] | None = None,
    data_attributes: dict[str, Any] | None = None,
    time_attributes: dict[str, Any] | None = None,
    extra: dict[str, NDArray[Any]] | None = None,
    fill_value: int | None = None,
    chunks: tuple[int, int] = (5, 60),
    **how: Any,
) -> Path:
    """Write a small archive; without arguments, one in the published layout."""
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format, attributes=attributes)

    def put(name: str, values: NDArray[Any], dims: Any, attrs: Any, **how: Any) -> None:
        if zarr_format == 3:
            how["dimension_names"] = dims
            how["fill_value"] = 0
        else:
            how["fill_value"] = fill_value
            attrs = {**(attrs or {}), **({"_ARRAY_DIMENSIONS": list(dims)} if dims else {})}
        stored = group.create_array(
            name, shape=values.shape, dtype=how.pop("dtype", values.dtype), attributes=attrs, **how
        )
        stored[...] = values

    samples = DATA.astype(np.int32) if data is None else data
    axis = TIMES_US if times is None else times
    put(names[0], samples, dims, data_attributes, chunks=chunks, **how)
    put(names[1], axis, ("time",), time_attributes, chunks=(60,))
    for name, values in (extra or {}).items():
        kind = "time" if len(values) == len(axis) else "distance"
        put(name, values, (kind,) if values.ndim == 1 else None, None, chunks=(7,) * values.ndim)
    if consolidated:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # consolidation is new to format 3
            zarr.consolidate_metadata(str(path))
    return path


def settings_of(**values: Any) -> ArchiveSettings:
    return ArchiveSettings.model_validate(values)


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


@pytest.mark.parametrize("dims", [None, ("phony_dim_0", "phony_dim_1")])
def test_the_time_axis_is_told_by_its_length_where_names_say_nothing(
    tmp_path: Path, dims: tuple[str, str] | None
) -> None:
    assert open_archive(write(tmp_path / "a", dims=dims)).acquisition.dims == ("distance", "time")
    time_first = write(tmp_path / "b", data=DATA.T.astype("f4"), dims=dims, chunks=(60, 5))
    assert open_archive(time_first).acquisition.dims == ("time", "distance")
    square = write(tmp_path / "c", data=DATA[:, :12].astype("f4"), times=TIMES_US[:12], dims=dims)
    assert open_archive(square).acquisition.dims == ("distance", "time")


def test_a_name_of_either_axis_is_enough(tmp_path: Path) -> None:
    square: dict[str, Any] = {"data": DATA[:, :12].astype("f4"), "times": TIMES_US[:12]}
    for dims in (("y", "channel"), ("time", "y")):
        archive = open_archive(write(tmp_path / dims[0], dims=dims, **square))
        assert archive.acquisition.dims == ("time", "distance")


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("raw_data", "raw_data_time"), ("data", "time"), ("DAS", "Time"), ("odd", "times")]
)
def test_names_are_found(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = open_archive(write(tmp_path / "a", names=names))
    assert (archive.data.name, archive.time.name) == names
    assert names[0] in archive.dataset


def test_names_can_be_given(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        extra={"clock": TIMES_US + 5_000_000, "other": DATA[:, :100].astype("i2")},
    )
    archive = open_archive(path, settings_of(time="clock"))
    assert archive.acquisition.start_ns == START_NS + 5_000_000_000
    with pytest.raises(UsageError, match=r"archive\.data names nothing, .*RawData \(12, 250\)"):
        open_archive(path, settings_of(data="nothing"))
    with pytest.raises(SourceError, match=r"has shape \(250,\), but other \(12, 100\)"):
        open_archive(path, settings_of(data="other"))


def test_a_variable_of_a_nested_group_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a", consolidated=False)
    inner = zarr.open_group(str(path / "inner"), mode="w", zarr_format=2)
    inner.create_array("x", data=DATA.astype("f4"))
    archive = open_archive(path, settings_of(data="inner/x"))
    np.testing.assert_array_equal(archive.data[:], DATA.astype("f4"))


def test_status_and_counter_are_found(tmp_path: Path) -> None:
    extra = {
        "RawDataSampleCount": np.arange(1, 251),
        "GpsStatus": np.full(250, 3, np.uint8),
        "GpBits": np.full(250, 2, np.uint8),
    }
    archive = open_archive(write(tmp_path / "a", extra=extra))
    assert archive.count is not None
    np.testing.assert_array_equal(archive.aux(archive.count, 50, 70), np.arange(51, 71))
    assert [(one.name, factor) for one, factor in archive.quality] == [
        ("GpsStatus", 1),
        ("GpBits", 256),
    ]


def test_a_counter_of_another_length_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = open_archive(write(tmp_path / "a", extra={"GpsStatus": np.zeros(9, np.uint8)}))
    assert archive.quality == ()
    assert "GpsStatus is not used" in caplog.text


# -- lost chunks of the axes -----------------------------------------------------------------


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


@pytest.mark.parametrize("number", [0, 4])
def test_the_record_has_ends_though_a_chunk_of_its_time_axis_is_lost(
    tmp_path: Path, number: int
) -> None:
    path = write(tmp_path / "a")
    (path / f"RawDataTime/{number}").unlink()
    found = open_archive(path).acquisition
    assert (found.start_ns, found.last_ns) == (START_NS, START_NS + 249 * 5_000_000)


def test_a_time_is_found_though_its_chunk_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (path / "RawDataTime/2").unlink()
    archive = open_archive(path)
    for sample in (119, 120, 150, 179, 180):
        assert archive.sample_at(int(TIMES_US[sample]) * 1000) == sample


def test_without_any_time_the_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    for number in range(5):
        (path / f"RawDataTime/{number}").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"time axis of .* cannot be read at its ends"):
        open_archive(path)


# -- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "units"),
    [
        (TIMES_US, None),
        (TIMES_US, "microseconds since 1970-01-01"),
        (TIMES_US * 1000, "nanoseconds since 1970-01-01T00:00:00"),
        (TIMES_US // 1000, "ms since 1970-01-01 00:00:00 UTC"),
        (TIMES_US - START_US, "microseconds since 2021-11-01T23:11:14.834"),
        (TIMES_US - START_US, "us since 2021-11-02 01:11:14.834+02:00"),
        (TIMES_US - START_US, "microseconds since 2021-11-1 18:11:14.834 -0500"),
        ((TIMES_US - START_US) / 1e6, "seconds since 2021-11-01T23:11:14.834Z"),
        (((TIMES_US - START_US) // 1000).astype(np.int32), "ms since 2021-11-01T23:11:14.834"),
        (TIMES_US.astype(np.uint64), "microseconds"),
        (TIMES_US.astype("M8[us]"), None),
        ((TIMES_US * 1000).astype("M8[ns]"), None),
    ],
)
def test_times_of_many_kinds_become_nanoseconds(
    tmp_path: Path, times: NDArray[Any], units: str | None
) -> None:
    attributes = {"units": units} if units else None
    archive = open_archive(write(tmp_path / "a", times=times, time_attributes=attributes))
    np.testing.assert_array_equal(archive.times_ns(0, 250), TIMES_US * 1000)
    assert archive.times_ns(0, 250).dtype == np.int64
    assert archive.times_ns(3, 3).shape == (0,)


@pytest.mark.parametrize(
    ("times", "attributes", "said"),
    [
        (TIMES_US / 1e6, None, "units ''"),
        (TIMES_US, {"units": "fortnights since 1970-01-01"}, "fortnights"),
        (TIMES_US, {"units": "us since the flood"}, "flood"),
        (TIMES_US, {"units": "us since 2021-02-30"}, "2021-02-30"),
        (TIMES_US, {"units": "us since 1970-01-01", "calendar": "noleap"}, "noleap"),
        (TIMES_US.astype("M8[M]"), None, "dtype datetime64"),
        (TIMES_US * 1000, None, "no time in units of 1000 ns"),
        (np.r_[TIMES_US[:3] / 1e6, np.nan, TIMES_US[4:] / 1e6], {"units": "s"}, "nan"),
        (np.r_[np.datetime64("NaT"), TIMES_US[1:].astype("M8[us]")], None, "no time"),
    ],
)
def test_times_that_are_none_are_refused(
    tmp_path: Path, times: NDArray[Any], attributes: dict[str, Any] | None, said: str
) -> None:
    path = write(tmp_path / "a", times=times, time_attributes=attributes)
    with pytest.raises(SourceError, match=said):
        open_archive(path)


def test_iso_times() -> None:
    assert iso_time(START_NS) == "2021-11-01T23:11:14.834Z"
    assert iso_time(START_NS - 834_000_000) == "2021-11-01T23:11:14Z"
    assert iso_time(START_NS + 1) == "2021-11-01T23:11:14.834000001Z"


# -- rate and spacing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "attributes"),
    [
        ("attributes", {"SamplingFrequency": 200}),
        ("attributes", {"sampling_rate_hz": "200.0 Hz"}),
        ("data_attributes", {"fs": [200.0]}),
        ("data_attributes", {"time_step": 0.005}),
        ("time_attributes", {"PulseRate": 200, "units": "us since 1970-01-01"}),
    ],
)
def test_the_rate_stands_in_attributes(
    tmp_path: Path, where: str, attributes: dict[str, Any]
) -> None:
    how: dict[str, Any] = {where: attributes}
    found = open_archive(write(tmp_path / "a", **how)).acquisition
    assert found.sampling_rate_hz == 200
    assert found.sampling_rate_origin.startswith(f"attribute {next(iter(attributes))} of ")


def test_the_recipe_wins_over_attributes_and_these_over_the_clock(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        attributes={"sampling_rate": 200.5, "dx": 8.0},
        data_attributes={"channel_spacing_m": "4.5 m"},
    )
    found = open_archive(path).acquisition
    assert (found.sampling_rate_hz, found.channel_spacing_m) == (200.5, 4.5)
    found = open_archive(
        path, settings_of(sampling_rate_hz=199.5, channel_spacing_m=1.5)
    ).acquisition
    assert (found.sampling_rate_hz, found.sampling_rate_origin) == (199.5, "recipe")
    assert (found.channel_spacing_m, found.channel_spacing_origin) == (1.5, "recipe")


def test_attributes_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a", attributes={"fs": "unknown", "dx": 0, "sampling_rate": None})
    found = open_archive(path).acquisition
    assert found.sampling_rate_origin == "measured from RawDataTime"
    assert found.channel_spacing_origin == "assumed"


def test_a_rate_that_contradicts_the_clock_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", attributes={"fs": 500})
    with pytest.raises(SourceError, match=r"attribute fs of the group says 500 Hz.* at 200 Hz"):
        open_archive(path)
    with pytest.raises(UsageError, match=r"recipe is 100 Hz, but RawDataTime .* at 200 Hz"):
        open_archive(path, settings_of(sampling_rate_hz=100))
    assert open_archive(path, settings_of(sampling_rate_hz=200)).acquisition.sampling_rate_hz == 200


@pytest.mark.parametrize("rate_hz", [62.5, 200, 3000, 10_000])
def test_a_clock_in_microseconds_is_measured_to_the_whole_rate(
    tmp_path: Path, rate_hz: float
) -> None:
    times = START_US + np.rint(np.arange(250) * 1e6 / rate_hz).astype(np.int64)
    times[30:] += 7_000_000
    found = open_archive(write(tmp_path / "a", times=times)).acquisition
    assert found.sampling_rate_hz == pytest.approx(rate_hz, rel=1e-9 if rate_hz % 1 == 0 else 1e-4)


def test_without_a_clock_the_rate_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a", times=np.full(250, START_US))
    with pytest.raises(SourceError, match="does not say its sampling rate"):
        open_archive(path)
    assert open_archive(path, settings_of(sampling_rate_hz=9)).acquisition.sampling_rate_hz == 9


def test_a_distance_coordinate_gives_distances_and_spacing(tmp_path: Path) -> None:
    metres = 100 + np.arange(12) * 2.5
    path = write(tmp_path / "a", extra={"distance": metres})
    archive = open_archive(path)
    assert archive.acquisition.distances_m == tuple(metres)
    assert archive.acquisition.channel_spacing_m == 2.5
    assert archive.acquisition.channel_spacing_origin == "the distance coordinate"
    np.testing.assert_array_equal(archive.dataset.distance, metres)
    given_m = open_archive(path, settings_of(channel_spacing_m=3.0))
    assert given_m.acquisition.distances_m is None
    np.testing.assert_allclose(given_m.dataset.distance, np.arange(12) * 3.0)


def test_a_distance_coordinate_in_kilometres_or_in_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a", extra={"distance": np.arange(12) / 100}, consolidated=False)
    zarr.open_array(str(path / "distance"), mode="r+").attrs["units"] = "km"
    assert open_archive(path).acquisition.channel_spacing_m == pytest.approx(10)
    zarr.open_array(str(path / "distance"), mode="r+").attrs["units"] = "furlong"
    with pytest.raises(SourceError, match="not a distance in metres: its units are 'furlong'"):
        open_archive(path)


# -- what is no archive ----------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="There is no folder"):
        open_archive(tmp_path / "nowhere")
    with pytest.raises(SourceNotFoundError, match="There is an empty folder"):
        open_archive(tmp_path)


def test_not_a_group_but_near_one(tmp_path: Path) -> None:
    write(tmp_path / "outer.zarr" / "inner.zarr")
    with pytest.raises(SourceError, match=r"Perhaps you mean .*outer\.zarr/inner\.zarr"):
        open_archive(tmp_path / "outer.zarr")
    with pytest.raises(SourceError, match="a single Zarr array"):
        open_archive(tmp_path / "outer.zarr" / "inner.zarr" / "RawData")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(SourceError, match=r"no \.zgroup and no zarr\.json\. It holds a\.png"):
        open_archive(tmp_path / "pictures")
    write(tmp_path / "three", zarr_format=3)
    with pytest.raises(SourceError, match="cannot be understood"):
        open_archive(tmp_path / "three" / "RawData")


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"zarr_consolidated_format": 1, "metadata": {"x/.zarray": 3}}']
)
def test_metadata_that_is_none(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a")
    (path / ".zmetadata").write_text(text)
    with pytest.raises(SourceError, match="cannot be understood"):
        open_archive(path)


def test_metadata_of_absurd_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a")
    monkeypatch.setattr("das_gpu.group._MAX_METADATA_BYTES", 100)
    with pytest.raises(SourceError, match="beyond 100 bytes is not read"):
        open_archive(path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"data": DATA[0].astype("f4"), "dims": None, "chunks": (60,)}, "1 dimension"),
        ({"data": DATA.astype("i8")}, "has dtype int64; samples must be int16"),
        ({"data": np.zeros((0, 250), "i4")}, r"is empty: its shape is \(0, 250\)"),
        ({"names": ("RawData", "when")}, "has no time variable.*when"),
        ({"times": TIMES_US[:-1]}, r"RawDataTime .* \(249,\), but RawData \(12, 250\)"),
        (
            {"names": ("a", "time"), "extra": {"b": DATA.astype("f4")}},
            r"more than one array that could be .* a \(12, 250\) int32, b \(12, 250\) float32",
        ),
        ({"names": ("a", "time"), "data": DATA.astype("u1")}, "no array that could be"),
    ],
)
def test_archives_without_a_recording(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "a", **how)
    with pytest.raises(SourceError, match=said):
        open_archive(path)


def test_chunks_of_absurd_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", consolidated=False)
    metadata = path / "RawData" / ".zarray"
    fields = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**fields, "chunks": [1 << 20, 1 << 20]}))
    with pytest.raises(SourceError, match="at most 2147483648 are read at once"):
        open_archive(path)


def test_every_error_is_one_paragraph_that_names_the_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "a", names=("RawData", "when"))
    with pytest.raises(DasGpuError) as caught:
        open_archive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- finding a time --------------------------------------------------------------------------


@st.composite
def clocks(draw: st.DrawFn) -> NDArray[np.int64]:
    """Time axes in microseconds that never run backwards: jumps, stops, jitter."""
    steps = draw(
        st.lists(
            st.sampled_from([5000, 5000, 5000, 4999, 5001, 0, 900_000, 60_000_000]),
            min_size=30,
            max_size=79,
        )
    )
    return START_US + np.cumsum([0, *steps])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


def with_clock(folder: Path, times: NDArray[np.int64]) -> Archive:
    shutil.rmtree(folder / "a", ignore_errors=True)
    group = zarr.open_group(str(folder / "a"), mode="w", zarr_format=2)
    shape = (2, len(times))
    group.create_array("RawData", shape=shape, chunks=shape, dtype="i4")
    stored = group.create_array("RawDataTime", shape=times.shape, chunks=(7,), dtype="i8")
    stored[...] = times
    return open_archive(folder / "a", settings_of(sampling_rate_hz=200))


@settings(max_examples=25)
@given(times=clocks(), data=st.data())
def test_a_time_is_found_as_searchsorted_finds_it(
    folder: Path, times: NDArray[np.int64], data: st.DataObject
) -> None:
    # A first chunk with jumps may advance at any median rate; the check is not the subject.
    times[:7] = times[7] - 5000 * np.arange(7, 0, -1)
    archive = with_clock(folder, times)
    near = st.sampled_from(times.tolist()).flatmap(lambda t: st.integers(t - 2, t + 2))
    anywhere = st.integers(int(times[0]) - 10, int(times[-1]) + 10)
    for wanted in data.draw(st.lists(near | anywhere, min_size=5, max_size=20)):
        assert archive.sample_at(wanted * 1000) == np.searchsorted(times, wanted)


@settings(max_examples=25)
@given(st.lists(st.integers(-20_000, 20_000), min_size=30, max_size=60), st.integers(-9, 10**6))
def test_a_clock_that_runs_backwards_ends_the_search_all_the_same(
    folder: Path, steps: list[int], offset: int
) -> None:
    times = START_US + np.cumsum([*[5000] * 8, *steps])
    archive = with_clock(folder, times)
    assert 0 <= archive.sample_at((START_US + offset) * 1000) <= len(times)


def test_where_a_clock_steps_back_the_first_sample_at_or_after_is_given(folder: Path) -> None:
    times = START_US + 5000 * np.array([0, 1, 2, 3, 4, 5, 6, 7, 12, 8, 9, 10, 11, 13, 14, 15])
    assert with_clock(folder, times).sample_at((START_US + 5000 * 10) * 1000) == 8


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


# -- the published shape ---------------------------------------------------------------------

PUBLISHED = (47_500, 39_168_000)
CHUNK = 3000


@contextmanager
def published(extra_us: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Iterator[BlobServer]:
    """The published archive's metadata and clock over HTTP; its samples do not exist.

    ``extra_us`` adds jumps to an even clock, as a function of the sample.
    """

    def array(shape: tuple[int, ...], dtype: str, dims: list[str]) -> tuple[Any, Any]:
        blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
        fields = {"zarr_format": 2, "shape": shape, "chunks": [CHUNK] * len(shape), "order": "C"}
        fields |= {"dtype": dtype, "fill_value": None, "filters": None, "dimension_separator": "."}
        fields["compressor"] = blosc if len(shape) == 2 else None
        return fields, {"_ARRAY_DIMENSIONS": dims}

    arrays = {
        "RawData": array(PUBLISHED, "<i4", ["distance", "time"]),
        "RawDataTime": array(PUBLISHED[1:], "<i8", ["time"]),
        "GpsStatus": array(PUBLISHED[1:], "|u1", ["time"]),
    }
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": {}}
    for name, (fields, attributes) in arrays.items():
        metadata |= {f"{name}/.zarray": fields, f"{name}/.zattrs": attributes}
    files = {
        ".zgroup": metadata[".zgroup"],
        ".zattrs": {},
        ".zmetadata": {"zarr_consolidated_format": 1, "metadata": metadata},
    }

    def answer(key: str) -> bytes | int:
        if key in files:
            return json.dumps(files[key]).encode()
        name, _, number = key.partition("/")
        if name == "RawDataTime" and number.isdigit():
            samples = int(number) * CHUNK + np.arange(CHUNK)
            return bytes((START_US + samples * 5000 + extra_us(samples)).astype("<i8").tobytes())
        return 404

    with serve_blobs(answer) as served:
        yield served


def no_jumps(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    return samples * 0


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


def test_a_time_in_an_even_clock_takes_one_request() -> None:
    with published(no_jumps) as served:
        archive = open_archive(served.url)
        before = len(served.requests)
        assert archive.sample_at(START_NS + 20_000_000 * 5_000_000 - 1) == 20_000_000
        assert len(served.requests) - before == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_time_in_a_clock_with_jumps_takes_at_most_20_requests(seed: int) -> None:
    random = np.random.default_rng(seed)
    places = np.sort(random.integers(0, PUBLISHED[1], [1, 3, 30, 3000][seed]))
    sizes = np.r_[0, np.cumsum(10 ** random.uniform(4, 11, len(places)))].astype(np.int64)

    def extra_us(samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return sizes[np.searchsorted(places, samples, side="right")]

    with published(extra_us) as served:
        archive = open_archive(served.url)
        used = []
        for sample in random.integers(0, PUBLISHED[1], 12):
            wanted = START_US + sample * 5000 + int(extra_us(np.array([sample]))[0])
            for offset in (-1, 0):
                again = open_archive(served.url) if offset else archive
                before = len(served.requests)
                assert again.sample_at((wanted + offset) * 1000) == sample
                used.append(len(served.requests) - before)
    assert max(used) <= 20
    if seed < 2:
        assert np.mean(used) <= 6


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
