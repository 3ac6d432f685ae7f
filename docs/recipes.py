"""The README's figure of the two recipes: what happens at a tile's edge, and what aliases.

Usage: ``python docs/recipes.py PICTURE.png`` (needs matplotlib). The recording is the ``demo:``
archive. For the lower row a pump is added to it: a tone that rises from 71 to 80 Hz, which every
second sample alone turns into one that falls from 29 to 20 Hz, as a fin whale's note does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from das_gpu import Recipe, envelope, open_archive
from das_gpu.scene import SOUND_SPEED_M_S
from das_gpu.simulate import demo_archive

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PRESETS = ("notebook", "continuous")
COLOURS = {"notebook": "#D55E00", "continuous": "#0072B2"}
"""Told apart by those who see no red or no green, too."""
COUNT_DB = 120.0
"""Levels are dB re 1e-6 count; the figure's are dB re 1 count."""
RATE_HZ, CHANNEL_SPACING_M = 200.0, 2.0419

FIRST_TILE_S = 13.0
EDGE_S = 28.0
"""Tiles of 15 s begin 13 s into the record, so that an edge cuts a fin whale's note."""
AROUND_EDGE_S = 0.5

PUMP_START_S, PUMP_LASTS_S = 36.0, 0.8
PUMP_HZ = (71.0, 80.0)
PUMP_KM, PUMP_OFFSET_M = 4.2, 900.0
PUMP_COUNTS = 2000.0
SHOWN_PUMP_S = (35.2, 39.2)

LEVELS_DB = (35.0, 68.0)


@dataclass(frozen=True)
class Found:
    """What one recipe makes of the recording.

    Attributes
    ----------
    edge : (distance, time) DataArray
        Level around a tile's edge, dB re 1 count.
    error_db : (distance, time) float64
        Its distance from the level of the record that is filtered whole, by the same recipe.
    pump, quiet : (distance, time) DataArray
        Level with the pump and without it, dB re 1 count.
    """

    edge: xr.DataArray
    error_db: NDArray[np.float64]
    pump: xr.DataArray
    quiet: xr.DataArray

    def edge_error_db(self, within_s: float) -> float:
        """95th percentile of the error so near to the edge."""
        near = np.abs(self.edge.time.values - EDGE_S) <= within_s
        return float(np.percentile(self.error_db[:, near], 95))

    def heard(self, level: xr.DataArray) -> xr.DataArray:
        """Mean level of the 200 m of cable nearest to the pump over 0.2 s, dB re 1 count."""
        power = 10 ** (level.sel(distance=slice(PUMP_KM - 0.1, PUMP_KM + 0.1)) / 10)
        return 10 * np.log10(power.mean("distance").rolling(time=21, center=True).mean())

    def pump_db(self) -> float:
        """How far the pump stands out of what is there without it, where it is loudest."""
        return float((self.heard(self.pump) - self.heard(self.quiet)).max())


def find() -> dict[str, Found]:
    """What each recipe makes of the demonstration."""
    samples = recording()
    noisy = samples + pump(samples)
    return {preset: found(preset, samples, noisy) for preset in PRESETS}


def recording() -> xr.DataArray:
    """Every fifth channel of the demonstration; seconds since its first sample, and metres."""
    samples = open_archive(demo_archive()).dataset.RawData
    labels = {
        "time": np.arange(samples.sizes["time"]) / RATE_HZ,
        "distance": np.arange(samples.sizes["distance"]) * CHANNEL_SPACING_M,
    }
    return samples.assign_coords(labels).isel(distance=slice(None, None, 5)).load()


def pump(samples: xr.DataArray) -> xr.DataArray:
    """Its tone as the cable hears it: later and weaker with the distance."""
    range_m = np.hypot(samples.distance - PUMP_KM * 1000, PUMP_OFFSET_M)
    since_s = samples.time - PUMP_START_S - range_m / SOUND_SPEED_M_S
    low_hz, high_hz = PUMP_HZ
    phase = 2 * np.pi * since_s * (low_hz + (high_hz - low_hz) * since_s / PUMP_LASTS_S / 2)
    swell = np.sin(np.pi * since_s / PUMP_LASTS_S) ** 2 * PUMP_COUNTS * PUMP_OFFSET_M / range_m
    tone = (swell * np.sin(phase)).where((since_s > 0) & (since_s < PUMP_LASTS_S), 0.0)
    return tone.round().astype(samples.dtype).transpose(*samples.dims)


def found(preset: str, samples: xr.DataArray, noisy: xr.DataArray) -> Found:
    """What a recipe makes of the recording without and with the pump."""
    recipe = Recipe.load(settings={"preset": preset, "selection.channel_step": 1})

    def level(of: xr.DataArray, tile_s: float) -> xr.DataArray:
        made = envelope(of, recipe.with_settings({"tile.seconds": tile_s})) - COUNT_DB
        return made.assign_coords(distance=made.distance / 1000)

    shown = slice(EDGE_S - AROUND_EDGE_S, EDGE_S + AROUND_EDGE_S)
    beside = samples.sel(time=slice(FIRST_TILE_S, 2 * EDGE_S - FIRST_TILE_S))
    edge = level(beside, 15).sel(time=shown)
    whole = level(samples, 60).sel(time=shown)
    around = slice(SHOWN_PUMP_S[0] - 5, SHOWN_PUMP_S[1] + 5)
    pumping, quiet = (
        level(of.sel(time=around), 60).sel(time=slice(*SHOWN_PUMP_S)) for of in (noisy, samples)
    )
    return Found(edge, np.abs(edge - whole).values, pumping, quiet)


def draw(made: dict[str, Found], picture: Path) -> None:
    """Draw the figure."""
    plt.rcParams.update({"font.size": 13, "axes.titlesize": 13, "axes.titlelocation": "left"})
    figure, axes = plt.subplots(
        2, 3, figsize=(12, 7.6), layout="constrained", width_ratios=(1, 1, 0.9)
    )
    figure.get_layout_engine().set(wspace=0.04, hspace=0.05)
    for row, column in np.ndindex(2, 2):
        preset = PRESETS[column]
        level = (made[preset].edge, made[preset].pump)[row]
        drawn = _draw(axes[row, column], level, zero_s=(EDGE_S, 0)[row])
        what = ("a note at a tile's edge", "a pump, 71 to 80 Hz")[row]
        axes[row, column].set_title(f"{preset}: {what}", color=COLOURS[preset])
    figure.colorbar(drawn, ax=axes[:, :2], shrink=0.95, pad=0.015, label="envelope (dB re 1 count)")
    for column in range(2):
        axes[0, column].axhline(0, color="white", linewidth=1.2, linestyle=(0, (6, 4)))
    axes[0, 0].set_ylabel("time from the tile's edge (s)")
    axes[1, 0].set_ylabel("time (s)")
    axes[1, 0].annotate(
        "no whale:\nan alias",
        (PUMP_KM - 0.9, 37.15),
        (0.35, 38.8),
        color="white",
        weight="bold",
        bbox={"facecolor": "black", "alpha": 0.7, "linewidth": 0},
        arrowprops={"arrowstyle": "->", "color": "white", "linewidth": 1.8},
    )
    _draw_errors(axes[0, 2], made)
    _draw_alias(axes[1, 2], made)
    figure.savefig(picture, dpi=92)
    # Noise does not compress: fewer colours look the same at a third of the size.
    drawn_rgb = Image.open(picture).convert("RGB")
    few = drawn_rgb.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


def _draw(axes: Axes, level: xr.DataArray, zero_s: float) -> mpl.image.AxesImage:
    """A stretch of envelope, time downwards; means of 40 m, less than the gauge length."""
    power = (10 ** (level / 10)).coarsen(distance=4).mean()
    level = 10 * np.log10(power)
    distance_km, time_s = level.distance.values, level.time.values - zero_s
    extent = (distance_km[0], distance_km[-1], time_s[-1], time_s[0])
    axes.set_xlabel("distance along the cable (km)")
    return axes.imshow(
        level.transpose("time", "distance"),
        extent=extent,
        vmin=LEVELS_DB[0],
        vmax=LEVELS_DB[1],
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
    )


def _draw_errors(axes: Axes, made: dict[str, Found]) -> None:
    """How wrong the level is, sample by sample across a tile's edge."""
    for preset, each in made.items():
        time_s = each.edge.time.values - EDGE_S
        wrong_db = np.percentile(each.error_db, 95, axis=0)
        axes.plot(time_s, wrong_db, color=COLOURS[preset], linewidth=2, label=preset)
    axes.set_title("error at the edge")
    axes.set_xlabel("time from the tile's edge (s)")
    axes.set_ylabel("95th percentile (dB)")
    axes.set_ylim(-1, 49)
    axes.legend(frameon=False, loc="upper left", handlelength=1.5)
    axes.grid(alpha=0.3)


def _draw_alias(axes: Axes, made: dict[str, Found]) -> None:
    """How the level rises when the pump runs."""
    for preset, each in made.items():
        level = each.heard(each.pump)
        axes.plot(level.time, level, color=COLOURS[preset], linewidth=2, label=preset)
        quiet = each.heard(each.quiet)
        label = "without the pump" if preset == PRESETS[-1] else None
        axes.plot(quiet.time, quiet, color="black", linewidth=1.2, linestyle=":", label=label)
    axes.set_title(f"mean level at {PUMP_KM:g} km")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("envelope (dB re 1 count)")
    axes.set_xlim(SHOWN_PUMP_S)
    axes.set_ylim(45, 80)
    axes.legend(frameon=False, loc="upper left", handlelength=1.5)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    draw(find(), Path(sys.argv[1]))
