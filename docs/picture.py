"""The README's picture: the tiles of a run put side by side, with axes, from its manifest.

Usage: ``python docs/picture.py RUN_FOLDER PICTURE.png`` (needs matplotlib).
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")

from matplotlib import pyplot as plt

COUNT_DB = 120.0
"""Levels in the manifest are dB re 1e-6 count; the picture's are dB re 1 count."""


def main(run: Path, picture: Path) -> None:
    """Draw every delivered tile at its time and distance, in one colour scale."""
    records = [json.loads(line) for line in (run / "metadata.jsonl").read_text().splitlines()]
    first = datetime.fromisoformat(records[0]["start_time"])
    low = np.median([record["db_low"] for record in records]) - COUNT_DB
    high = np.median([record["db_high"] for record in records]) - COUNT_DB
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for record in records:
        share = np.asarray(Image.open(run / record["file_name"])) / 255
        level_db = record["db_low"] + share * (record["db_high"] - record["db_low"]) - COUNT_DB
        start, end = (
            (datetime.fromisoformat(record[key]) - first).total_seconds()
            for key in ("start_time", "end_time")
        )
        drawn = axes.imshow(
            level_db,
            extent=(
                record["distance_start_m"] / 1000,
                record["distance_stop_m"] / 1000,
                end,
                start,
            ),
            vmin=low,
            vmax=high,
            cmap="magma",
            aspect="auto",
            interpolation="nearest",
        )
    axes.set_xlim(records[0]["distance_start_m"] / 1000, records[-1]["distance_stop_m"] / 1000)
    axes.set_ylim((datetime.fromisoformat(records[-1]["end_time"]) - first).total_seconds(), 0)
    axes.set_xlabel("distance along the cable (km)")
    axes.set_ylabel(f"time after {first:%Y-%m-%d %H:%M:%S} UTC (s)")
    axes.set_title("Fin-whale notes in das-gpu extract demo: (synthetic recording, 14-35 Hz)")
    figure.colorbar(drawn, label="envelope (dB re 1 count)")
    figure.savefig(picture, dpi=90)
    # Noise does not compress: 64 colours look the same at a third of the size.
    Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
