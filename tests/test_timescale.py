"""Stored time values of every kind become nanoseconds since 1970."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from das_gpu.archive import open_archive
from das_gpu.errors import ChunkCorruptError, SourceError
from das_gpu.timescale import iso_time
from tests.layouts import (
    START_NS,
    START_US,
    TIMES_US,
    write,
)


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
    ],
)
def test_times_that_are_none_are_refused(
    tmp_path: Path, times: NDArray[Any], attributes: dict[str, Any] | None, said: str
) -> None:
    path = write(tmp_path / "a", times=times, time_attributes=attributes)
    with pytest.raises(SourceError, match=said):
        open_archive(path)


@pytest.mark.parametrize(
    ("times", "attributes", "said"),
    [
        (np.r_[TIMES_US[:3] / 1e6, np.nan, TIMES_US[4:] / 1e6], {"units": "s"}, "nan"),
        (np.r_[np.datetime64("NaT"), TIMES_US[1:].astype("M8[us]")], None, "no time"),
    ],
)
def test_a_value_that_is_no_time_loses_its_chunk(
    tmp_path: Path, times: NDArray[Any], attributes: dict[str, Any] | None, said: str
) -> None:
    archive = open_archive(write(tmp_path / "a", times=times, time_attributes=attributes))
    with pytest.raises(ChunkCorruptError, match=said):
        archive.times_ns(0, 10)
    assert abs(archive.times_ns(249, 250)[0] - TIMES_US[249] * 1000) < 1000


def test_iso_times() -> None:
    assert iso_time(START_NS) == "2021-11-01T23:11:14.834Z"
    assert iso_time(START_NS - 834_000_000) == "2021-11-01T23:11:14Z"
    assert iso_time(START_NS + 1) == "2021-11-01T23:11:14.834000001Z"
