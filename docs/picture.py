"""The README's picture: the tiles of a run put side by side, and one of them as it comes out.

Usage: ``python docs/picture.py RUN_FOLDER PICTURE.png`` (needs matplotlib). Times, distances and
levels are those of the run's manifest.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from das_gpu import level_db

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

COUNT_DB = 120.0
"""Levels in the manifest are dB re 1e-6 count; the picture's are dB re 1 count."""
SHOWN_AS_ONE = (4, 8)
"""Pixels of a tile, downwards and across, that the overview shows as one."""

Record = dict[str, Any]


def main(run: Path, picture: Path) -> None:
    """Draw every delivered tile at its time and distance, and the loudest of them by itself."""
    records = [json.loads(line) for line in (run / "metadata.jsonl").read_text().splitlines()]
    loudest = max(records, key=lambda record: record["db_high"] or 0.0)
    plt.rcParams.update({"font.size": 13, "axes.titlesize": 13, "axes.titlelocation": "left"})
    figure, (overview, single) = plt.subplots(
        1, 2, figsize=(12, 5.6), layout="constrained", width_ratios=(1.75, 1)
    )
    figure.get_layout_engine().set(wspace=0.05)
    _draw_all(overview, run, records, loudest)
    _draw_one(single, run, loudest)
    figure.savefig(picture, dpi=92)
    # Noise does not compress: fewer colours look the same at a third of the size.
    drawn = Image.open(picture).convert("RGB")
    few = drawn.quantize(192, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


def _draw_all(axes: Axes, run: Path, records: list[Record], marked: Record) -> None:
    first = datetime.fromisoformat(records[0]["start_time"])
    levels = [_means(_levels(run, record)) for record in records]
    low, high = np.percentile(np.concatenate(levels), (0.5, 99.5))
    for record, level in zip(records, levels, strict=True):
        left, right, end, start = _extent(record, first)
        drawn = axes.imshow(
            level,
            extent=(left, right, end, start),
            vmin=low,
            vmax=high,
            cmap="magma",
            aspect="auto",
            interpolation="nearest",
        )
    left, right, end, start = _extent(marked, first)
    axes.add_patch(
        Rectangle((left, start), right - left, end - start, fill=False, color="white", lw=2)
    )
    axes.set_xlim(_extent(records[0], first)[0], _extent(records[-1], first)[1])
    axes.set_ylim(_extent(records[-1], first)[2], 0)
    axes.set_title(f"{len(records)} tiles side by side")
    axes.set_xlabel("distance along the cable (km)")
    axes.set_ylabel(f"time after {first:%Y-%m-%d %H:%M:%S} UTC (s)")
    axes.figure.colorbar(drawn, ax=axes, pad=0.02, label="envelope (dB re 1 count)")


def _draw_one(axes: Axes, run: Path, record: Record) -> None:
    first = datetime.fromisoformat(record["start_time"])
    pixels = _pixels(run, record)
    axes.imshow(
        pixels, extent=_extent(record, first), cmap="gray", aspect="auto", interpolation="nearest"
    )
    height, width = pixels.shape
    axes.set_title(f"one of them, {height} x {width} pixels")
    axes.set_xlabel("distance along the cable (km)")
    axes.set_ylabel(f"time after {first:%H:%M:%S} UTC (s)")


def _pixels(run: Path, record: Record) -> NDArray[np.uint8]:
    with Image.open(run / record["file_name"]) as image:
        return np.asarray(image)


def _levels(run: Path, record: Record) -> NDArray[np.float64]:
    """Levels that a tile's pixels stand for, dB re 1 count."""
    return level_db(record, _pixels(run, record)) - COUNT_DB


def _means(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean levels of small blocks of pixels: the overview has not room for all."""
    down, across = SHOWN_AS_ONE
    height, width = level.shape[0] // down, level.shape[1] // across
    power = 10 ** (level[: height * down, : width * across] / 10)
    blocks = power.reshape(height, down, width, across)
    means: NDArray[np.float64] = 10 * np.log10(blocks.mean(axis=(1, 3)))
    return means


def _extent(record: Record, first: datetime) -> tuple[float, float, float, float]:
    """Left and right in km, bottom and top in seconds, of a tile whose times run downwards."""
    end, start = (
        (datetime.fromisoformat(record[key]) - first).total_seconds()
        for key in ("end_time", "start_time")
    )
    return record["distance_start_m"] / 1000, record["distance_stop_m"] / 1000, end, start


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
