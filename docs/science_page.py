"""The tables and the numbers of science.md, as ``science.py`` has measured them."""

from __future__ import annotations

import math
import re
import sys
from typing import Any, TypeAlias

from das_gpu.backends import MEDIAN_CHANNELS

Numbers: TypeAlias = dict[str, Any]

WAYS = {
    "none": "nothing is subtracted",
    "raw": "median over channels of the raw counts",
    "centred": "each channel's own median off, then over channels",
    "filtered": "**band-pass, then median over channels**",
}
FLOOR_DB = -200.0
"""Levels below are rounding, in float64 too."""
METHODS = ("spectral", "iir")
ERRORS = ("max", "rms")


def tables(found: Numbers) -> dict[str, str]:
    """The page's tables, by the name that their place has."""
    falls, tones, edges, left, loss = (
        found["filter"]["fall_s"],
        *(found[name] for name in ("aliasing", "edges", "median", "aperture")),
    )
    return {
        "impulse": _table(
            ["envelope of the response down by (dB)", *falls],
            [["after (s)", *(f"{value:.2f}" for value in falls.values())]],
        ),
        "aliasing": _table(
            ["a tone of (Hz)", *tones],
            [
                [f"`{preset}` (dB)", *(_down(each[preset]) for each in tones.values())]
                for preset in ("continuous", "notebook")
            ],
        ),
        "edges": _table(
            [
                "halo at least (s)",
                *(f"`{method}`, {what} (dB)" for method in METHODS for what in ERRORS),
            ],
            [
                [halo, *(_db(each[f"{method} {what}_db"]) for method in METHODS for what in ERRORS)]
                for halo, each in edges["halo_s"].items()
            ],
        ),
        "median": _table(
            ["swell over in-band noise", *left],
            [[text, *(f"{each[way]:.2f}" for each in left.values())] for way, text in WAYS.items()],
        ),
        "aperture": _table(
            ["channels, 10 m apart", *loss],
            [["the note loses (dB)", *(_range(each) for each in loss.values())]],
        ),
    }


def phrases(found: Numbers) -> list[str]:
    """What the page's text says in numbers, as it has to say it."""
    units, grid, band, agreed = (found[name] for name in ("units", "grid", "filter", "agreement"))
    mantissa, exponent = f"{units['strain_per_count']:.4e}".split("e")
    edge = found["edges"]
    share = 100 * agreed["notebook_float32_share"]
    return [
        f"{mantissa}e{int(exponent)} strain",
        f"lower by {-units['offset_db']:.2f} dB",
        f"nothing of {units['gauge_null_hz']:.1f} Hz",
        f"{grid['tiles']:,} tiles in {grid['segments']} segments",
        f"{grid['tile_samples']:,} samples by {grid['band_channels']} channels",
        f"{grid['band_km']:.1f} km of cable",
        f"{grid['pixel_ms']:.0f} ms by {grid['pixel_m']:.0f} m",
        f"standard error of {math.sqrt(math.pi / 2 / MEDIAN_CHANNELS):.2f}",
        f"{grid['halo_s']:.2f} s on either side",
        f"{grid['window_samples']:,} kept samples",
        f"{band['corner_db']:.0f} dB at both corners",
        f"{band['down_50_hz_db']:.0f} dB at 50 Hz",
        f"{band['rejection_db']:.0f} dB at 65 Hz",
        f"by {band['rejection_wide_db']:.0f} dB only",
        f"by {band['warping_db']:.1f} dB at most",
        f"from {edge['without line']:.2g} to {edge['with line']:.1g} dB",
        f"on {agreed['notebook_pixels_that_differ']} pixels",
        f"{agreed['continuous_rms_db']:.5f} dB rms",
        f"{agreed['continuous_max_db']:.3f} dB at most",
        f"{agreed['iir_rms_db']:.3f} dB rms apart",
        f"{agreed['notebook_float32_levels']} grey level on {share:.2f} % of the pixels",
    ]


def with_tables(page: str, found: Numbers) -> str:
    """The page with these numbers in its tables."""
    for name, table in tables(found).items():
        place = rf"(<!-- measured: {name} -->\n).*?(<!-- /measured -->)"
        page, replaced = re.subn(place, rf"\1\n{table}\n\2", page, flags=re.DOTALL)
        if replaced != 1:
            sys.exit(f"science.md has {replaced} places for the table {name}; it needs one.")
    return page


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _down(level_db: float) -> str:
    """A level against that of a tone inside the band."""
    if level_db <= FLOOR_DB:
        return f"< {FLOOR_DB:.0f}"
    return f"{level_db:.0f}" if level_db < -0.5 else "0"


def _range(loss: Numbers) -> str:
    """Least and most, dB."""
    return f"{max(0.0, loss['least_db']):.1f} to {loss['most_db']:.1f}"


def _db(value: float) -> str:
    """An error in dB; what is less than a ten-thousandth is not told apart."""
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
