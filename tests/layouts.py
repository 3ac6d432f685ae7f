"""Archives of every layout, made on disk, and the published one, served without its samples."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from das_gpu.recipe import ArchiveSettings
from tests.azurite import BlobServer, serve_blobs

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


PUBLISHED = (47_500, 39_168_000)
CHUNK = 3000


def as_usual(_: str) -> None:
    """Answer what is asked."""


@contextmanager
def published(
    extra_us: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    instead: Callable[[str], bytes | int | None] = as_usual,
) -> Iterator[BlobServer]:
    """The published archive's metadata and clock over HTTP; its samples do not exist.

    ``extra_us`` adds jumps to an even clock, as a function of the sample. ``instead`` is called
    with every key asked for; unless None, what it returns is answered in its place.
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
        if (other := instead(key)) is not None:
            return other
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
