"""What an archive's metadata is found to say: names, orders, sampling rate, channel spacing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from das_gpu.archive import open_archive
from das_gpu.errors import (
    SourceError,
    UsageError,
)
from tests.layouts import (
    DATA,
    START_NS,
    START_US,
    TIMES_US,
    settings_of,
    write,
)


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
@pytest.mark.slow
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
