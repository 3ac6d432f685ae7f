"""The peer: an interactive notebook's pipeline, as a user of xarray and dask writes it.

    python bench/notebook_pipeline.py STORE OUT --channel-step 5 --time-step 2 --bands 4

Channels and samples are strided lazily; each stored chunk then goes through one chain of
SciPy calls by ``dask.array.map_blocks``; the tiles are handed out by ``to_delayed`` and
written as images by the workers of a local dask cluster. Everything is float64. The
seconds of each phase go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from dask.distributed import Client
from numpy.typing import NDArray
from PIL import Image
from scipy import signal

CHANNEL_SPACING_M = 2.0419


def envelope_db(
    counts: NDArray[Any], numerator: NDArray[np.float64], denominator: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Band-passed envelope of one block, dB re 1e-6 count.

    Parameters
    ----------
    counts : ndarray, (channel, sample)
        Strided samples.
    numerator, denominator : ndarray
        Coefficients of the band-pass at the strided rate; a little quicker than its
        second-order sections, and here as exact.

    Returns
    -------
    ndarray of float64, (channel, sample)
    """
    traces = counts.astype(np.float64)
    traces -= np.median(traces, axis=1, keepdims=True)
    filtered = signal.filtfilt(numerator, denominator, traces, axis=1)
    level: NDArray[np.float64] = 20 * np.log10(np.abs(signal.hilbert(filtered, axis=1)) / 1e-6)
    return level


def grey_image(level_db: NDArray[np.float64]) -> Image.Image:
    """Picture of one tile, 256 x 256: rows are time, columns are channels."""
    picture = level_db.T
    low, high = picture.min(), picture.max()
    grey = ((picture - low) / (high - low) * 255).astype(np.uint8)
    return Image.fromarray(grey).resize((256, 256), Image.Resampling.BICUBIC)


def save_tile(level_db: NDArray[np.float64], file: str) -> str:
    """Write the picture of one tile and give back its name."""
    grey_image(level_db).save(file)
    return file


def tile_tasks(store: str, out: Path, options: argparse.Namespace) -> list[Any]:
    """Open the store and lay out one delayed image for each whole tile."""
    dataset = xr.open_zarr(store, decode_cf=False)
    counts = dataset["RawData"][:: options.channel_step, :: options.time_step]
    rate_hz = options.sampling_rate / options.time_step
    width = round(options.seconds * rate_hz)
    height = counts.sizes["distance"] // options.bands
    rows = counts.sizes["time"] // width
    starts_us = dataset["RawDataTime"][:: options.time_step * width].values

    # Where a tile is a stored chunk, as in the published archive, this changes nothing.
    blocks = counts[: height * options.bands, : width * rows].data.rechunk((height, width))
    numerator, denominator = signal.butter(
        options.order, [options.low, options.high], "bandpass", fs=rate_hz
    )
    levels = blocks.map_blocks(envelope_db, numerator, denominator, dtype=np.float64)
    write = delayed(save_tile)
    tasks = []
    for band, tiles in enumerate(levels.to_delayed()):
        distance_m = CHANNEL_SPACING_M * (band * height * options.channel_step)
        for start_us, tile in zip(starts_us[:rows], tiles, strict=True):
            date = np.datetime64(int(start_us) * 1000, "ns")
            tasks.append(write(tile, str(out / f"{date}_start{distance_m}.png")))
    return tasks


def main() -> None:
    """Run the pipeline once and print the seconds of each phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("out", type=Path)
    parser.add_argument("--channel-step", type=int, default=5)
    parser.add_argument("--time-step", type=int, default=2)
    parser.add_argument("--bands", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--sampling-rate", type=float, default=200.0)
    parser.add_argument("--low", type=float, default=14.0)
    parser.add_argument("--high", type=float, default=35.0)
    parser.add_argument("--order", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    begin = time.perf_counter()
    # distributed and dask annotate these two only in part.
    with Client(  # type: ignore[no-untyped-call]
        n_workers=options.workers, threads_per_worker=1, dashboard_address=None
    ):
        started = time.perf_counter()
        tasks = tile_tasks(options.store, options.out, options)
        opened = time.perf_counter()
        compute(*tasks)  # type: ignore[no-untyped-call]
        computed = time.perf_counter()
    seconds = {
        "start": started - begin,
        "open": opened - started,
        "compute": computed - opened,
        "close": time.perf_counter() - computed,
    }
    print(json.dumps({"images": len(tasks), "seconds": seconds}))


if __name__ == "__main__":
    main()
