"""The figures of science.md, drawn from what ``science.py`` measures (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import science
from matplotlib.axes import Axes

mpl.use("Agg")

from matplotlib import pyplot as plt

# Wong's colours, which people with any colour vision tell apart (Nature Methods 8, 441).
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLOURS = (ORANGE, PURPLE, GREEN, BLUE)
STROKES = (":", "-.", "--", "-")


def draw(folder: Path, found: science.Numbers) -> None:
    """Write every figure as a PNG that can be read on a phone."""
    folder.mkdir(exist_ok=True)
    with _axes(folder / "aliasing.png") as axes:
        aliasing(axes)
    with _axes(folder / "impulse.png") as axes:
        impulse(axes, found)
    with _axes(folder / "edges.png") as axes:
        edges(axes)
    with _axes(folder / "median.png") as axes:
        median(axes, found)
    with _axes(folder / "aperture.png") as axes:
        aperture(axes, found)


@contextmanager
def _axes(file: Path) -> Iterator[Axes]:
    # 900 pixels for 5.6 inches: type of 10 points is 9 pixels high on a page 390 pixels wide.
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
        yield axes
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        figure.savefig(file, dpi=160)
        plt.close(figure)


def aliasing(axes: Axes) -> None:
    """What tones of one amplitude look like, by frequency."""
    levels = science.tone_levels_db()
    reference = levels["continuous"][np.argmin(np.abs(science.TONES_HZ - 25))]
    axes.axvspan(14, 35, color="#eeeeee", zorder=0)
    axes.axvspan(65, 86, color="#fbe3d6", zorder=0)
    axes.text(24.5, 7, "band", ha="center", va="bottom")
    axes.text(75.5, 7, "folds into it", ha="center", va="bottom")
    for preset, colour, stroke in (("notebook", ORANGE, "--"), ("continuous", BLUE, "-")):
        shown = levels[preset] - reference
        axes.plot(science.TONES_HZ, shown, stroke, color=colour, label=preset, linewidth=2)
    axes.set(
        xlim=(0, 100),
        ylim=(-145, 22),
        xlabel="frequency of the tone (Hz)",
        ylabel="level in the image (dB)",
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0.14, 0.02), frameon=False)


def impulse(axes: Axes, found: science.Numbers) -> None:
    """The envelope of the zero-phase impulse response, and where the halo ends."""
    seconds, level = science.impulse_response()
    halo_s = found["grid"]["halo_s"]
    axes.plot(seconds, level, color=BLUE, linewidth=1.6)
    for name, after in found["filter"]["fall_s"].items():
        axes.plot([after], [-float(name)], "o", color=ORANGE, markersize=6)
        late = after > 1
        axes.annotate(
            f"{name} dB, {after:.2f} s",
            (after, -float(name)),
            (-7, -12) if late else (7, 5),
            textcoords="offset points",
            ha="right" if late else "left",
        )
    axes.axvline(halo_s, color="black", linestyle="--", linewidth=1.2)
    axes.text(halo_s + 0.03, -8, "halo ends", va="top")
    axes.set(
        xlim=(0, 2.4),
        ylim=(-190, 8),
        xlabel="time from the impulse (s)",
        ylabel="envelope of the response (dB)",
    )


def edges(axes: Axes) -> None:
    """How the error falls from a tile's edge inwards, for each halo."""
    counts, truth = science.recorded()
    for halo_s, colour, stroke in zip(science.HALOS_S, COLOURS, STROKES, strict=True):
        error = science.edge_errors(halo_s, "spectral", counts, truth)
        half = error.shape[2] // 2
        folded = np.concatenate([error[..., :half], error[..., : half - 1 : -1]])
        # Bins of 0.1 s, both edges of all tiles and channels together.
        binned = folded.reshape(-1, half // 10, 10).swapaxes(0, 1).reshape(half // 10, -1)
        seconds = (np.arange(half // 10) + 0.5) * 10 * 2 / science.RATE_HZ
        worst = np.nanquantile(binned, 0.95, axis=1)
        axes.plot(seconds, worst, stroke, color=colour, label=f"{halo_s:g} s", linewidth=2)
    axes.set(
        xlim=(0, 3),
        yscale="log",
        ylim=(1e-7, 100),
        xlabel="time from the edge of a tile (s)",
        ylabel="error of the level (dB)",
    )
    axes.legend(title="halo", frameon=False, ncols=4, loc="upper right", columnspacing=1.2)


def median(axes: Axes, found: science.Numbers) -> None:
    """What is left of common noise, by the strength of the swell."""
    texts = {
        "none": "nothing subtracted",
        "raw": "median of raw counts",
        "centred": "own median off first",
        "filtered": "band-pass first",
    }
    # A logarithmic axis has no 0: the quietest sea stands at 1.
    slow = np.maximum(np.array(science.SLOW), 1.0)
    for (way, text), colour, stroke in zip(texts.items(), COLOURS, STROKES, strict=True):
        left = [each[way] for each in found["median"].values()]
        axes.plot(slow, left, stroke + "o", color=colour, label=text, linewidth=2)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(0.02, 60),
        xlabel="swell over in-band noise",
        ylabel="common noise that is left\n(in-band noise = 1)",
    )
    axes.set_xticks(slow, [f"{each:g}" for each in science.SLOW])
    axes.minorticks_off()
    axes.legend(frameon=False, ncols=2, loc="upper center", columnspacing=1.0, fontsize=10)


def aperture(axes: Axes, found: science.Numbers) -> None:
    """What the median takes of a whale's note, by how much cable it is taken over."""
    names = list(found["aperture"])
    for place, each in enumerate(found["aperture"].values()):
        low, high = max(0.0, each["least_db"]), each["most_db"]
        axes.plot([place, place], [low, high], color=BLUE, linewidth=9, solid_capstyle="butt")
        axes.text(place + 0.14, high, f"{high:.1f} dB", va="center")
    axes.set_xticks(range(len(names)), [f"{name}\n{int(name) / 100:g} km" for name in names])
    axes.set(
        xlim=(-0.4, len(names) - 0.2),
        ylim=(-0.5, 26),
        xlabel="channels, 10 m apart, and the cable they span",
        ylabel="loss of the note at its apex (dB)",
    )
