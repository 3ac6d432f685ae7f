"""Small archives in the published layout, made of arrays a test chose itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray

START_NS = 1_635_808_274_834_000_000
"""2021-11-01T23:11:14.834, the published archive's first sample."""


def clock_us(n_samples: int, rate_hz: float, start_ns: int = START_NS) -> NDArray[np.int64]:
    """A time axis without a flaw, in microseconds."""
    return start_ns // 1000 + np.round(np.arange(n_samples) * 1e6 / rate_hz).astype(np.int64)


def write_archive(
    path: Path,
    samples: NDArray[Any],
    rate_hz: float,
    chunk_shape: tuple[int, int],
    *,
    times_us: NDArray[np.int64] | None = None,
    counter: NDArray[np.int64] | None = None,
    gps_status: NDArray[np.uint8] | None = None,
    gps_bits: NDArray[np.uint8] | None = None,
    time_first: bool = False,
    blocksize: int = 0,
) -> Path:
    """Write samples (channel, sample) as a consolidated Zarr v2 group; return its path.

    ``blocksize`` is that of the Blosc frames, 0 for what Blosc thinks best.
    """
    n_samples = samples.shape[1]
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    # With LZ4 Blosc takes larger blocks than it is asked for.
    name = "zstd" if blocksize else "lz4"
    blosc = Blosc(name, clevel=5, shuffle=Blosc.SHUFFLE, blocksize=blocksize)

    def put(name: str, array: NDArray[Any], chunks: tuple[int, ...], dims: list[str]) -> None:
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            compressors=blosc,
            fill_value=None,
        )
        stored[...] = array
        stored.attrs["_ARRAY_DIMENSIONS"] = dims

    if time_first:
        put("RawData", samples.T, chunk_shape[::-1], ["time", "distance"])
    else:
        put("RawData", samples, chunk_shape, ["distance", "time"])
    axis = {
        "RawDataTime": clock_us(n_samples, rate_hz) if times_us is None else times_us,
        "RawDataSampleCount": counter,
        "GpsStatus": gps_status,
        "GpBits": gps_bits,
    }
    for name, values in axis.items():
        if values is not None:
            put(name, values, (chunk_shape[1],), ["time"])
    zarr.consolidate_metadata(group.store)
    return path


def random_walk(
    n_channels: int, n_samples: int, seed: int, *, swell: float = 0.0, rate_hz: float = 200.0
) -> NDArray[np.int32]:
    """Counts near 1.8e6: a random walk per channel, a common mode, and slow swell and drift.

    ``swell`` is the amplitude of the slow part relative to the noise from 14 to 35 Hz, 120 counts.
    """
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(scale=60, size=(n_channels, n_samples)), axis=1)
    walk += np.cumsum(random.normal(scale=180, size=n_samples))
    t = np.arange(n_samples) / rate_hz
    phase = random.uniform(0, 2 * np.pi, size=(n_channels, 1))
    slow = (
        np.sin(2 * np.pi * 0.12 * t + phase) + 0.5 * np.sin(2 * np.pi * 0.31 * t - phase) + t / 60
    )
    walk += swell * 120 * slow
    walk += random.normal(loc=1.8e6, scale=1e4, size=(n_channels, 1))
    return np.round(walk).astype(np.int32)
