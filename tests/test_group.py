"""What is no archive, or not one that can be read, is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu.archive import open_archive
from das_gpu.errors import (
    DasGpuError,
    SourceError,
    SourceNotFoundError,
)
from tests.layouts import (
    DATA,
    TIMES_US,
    write,
)


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
