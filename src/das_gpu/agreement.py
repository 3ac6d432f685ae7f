"""How far two ways to make the same tiles are apart, and how far they may be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.stages import Contestant

_FAR_DB = 1e6
"""Stands for a difference to what is not a number, which JSON does not know."""
_ROUNDING_DB = 1.6e-5
"""Half a unit in the last place of a float32 level, on either side."""


@dataclass(frozen=True)
class Bar:
    """How far two ways to make the same tiles may be apart.

    Attributes
    ----------
    envelope_db, within_db : float
        Largest difference of the envelope, where it is within so many dB of its tile's maximum.
    grey_levels : int
        Largest difference of a pixel, of 255.
    pixels : float
        Share of pixels that may differ at all.
    """

    envelope_db: float
    within_db: float
    grey_levels: int
    pixels: float


SAME = Bar(1e-4, 80.0, 0, 0.0)
"""The notebook recipe in float64 on the CPU, and the notebook's steps."""
SINGLE = Bar(0.02, 60.0, 2, 0.05)
"""In float32: one backend and another, or float64."""
DOUBLE = Bar(1e-6 + _ROUNDING_DB, 60.0, 1, 0.001)
"""In float64: one backend and another; envelopes come as float32."""


def judged(
    one: Contestant, other: Contestant, bar: Bar, pictures: bool, folder: Path
) -> dict[str, Any]:
    """How far two contestants are apart, and whether that is within the bar.

    Parameters
    ----------
    one, other : Contestant
        The envelopes of their middle rows are compared.
    bar : Bar
        How far they may be apart.
    pictures : bool
        Whether to compare images too: all those of a run that stand in ``folder``, in a folder of
        the contestant's name.

    Returns
    -------
    dict
        What was found beside what is allowed, and ``agrees``; ready for JSON.
    """
    found: dict[str, Any] = {
        "compared": [one.name, other.name],
        "envelope_db": _envelope_difference_db(one, other, bar.within_db),
        "within_db": bar.within_db,
        "envelope_bar_db": bar.envelope_db,
    }
    found["agrees"] = found["envelope_db"] <= bar.envelope_db
    image = one.stretch.plan.recipe.image
    if pictures and image.format != "npy":
        scale = 257 if image.format == "png16" else 1
        tiles, largest, share = _pixel_differences(folder / one.name, folder / other.name)
        found |= {
            "images": tiles,
            "grey_levels": largest,
            "grey_levels_bar": bar.grey_levels * scale,
            "pixels": share,
            "pixels_bar": bar.pixels,
        }
        found["agrees"] &= largest <= bar.grey_levels * scale and share <= bar.pixels
    return found


def _envelope_difference_db(one: Contestant, other: Contestant, within_db: float) -> float:
    """Largest difference in the middle row, where the second is near its tile's maximum."""
    worst = 0.0
    for ours, theirs in zip(one.envelopes_db(), other.envelopes_db(), strict=True):
        near = theirs > theirs.max() - within_db
        apart = np.abs(ours.astype(np.float64) - theirs, where=near, out=np.zeros(near.shape))
        worst = max(worst, float(np.nan_to_num(apart, nan=_FAR_DB, posinf=_FAR_DB).max()))
    return worst


def _pixel_differences(one: Path, other: Path) -> tuple[int, int, float]:
    """Images compared, largest difference of a pixel, and the share of pixels that differ.

    Tiles with dead channels are left out: the notebook has no rule for them.
    """
    tiles, largest, differing, pixels = 0, 0, 0, 0
    for line in (one / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["dead_channels"]:
            continue
        ours, theirs = (_pixels(folder / record["file_name"]) for folder in (one, other))
        apart = np.abs(ours - theirs)
        tiles, pixels = tiles + 1, pixels + apart.size
        largest = max(largest, int(apart.max()))
        differing += int(np.count_nonzero(apart))
    return tiles, largest, differing / max(1, pixels)


def _pixels(file: Path) -> NDArray[np.int64]:
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image).astype(np.int64)
