"""Curves for the page of a run: numbers in, coordinates of lines and ticks out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 520, 230
"""Units of a chart's drawing."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46
_BINS = 48
_TICKS = 5

_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of steps.

    Attributes
    ----------
    name : str
        What it is, as the legend says it.
    style : str
        Class of its drawing.
    path : str
        The line, in the syntax of an SVG path.
    area : str
        What is below it.
    """

    name: str
    style: str
    path: str
    area: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves with their axes; ticks are (place, text)."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    description: str
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def levels_chart(
    low_db: NDArray[np.float32], high_db: NDArray[np.float32], reference: str
) -> Chart | None:
    """How the ends of the tiles' grey scales are distributed; None without any.

    ``reference`` is what 0 dB is.
    """
    low: _Array = low_db[np.isfinite(low_db)].astype(np.float64)
    high: _Array = high_db[np.isfinite(high_db)].astype(np.float64)
    if not low.size or not high.size:
        return None
    least, most = min(low.min(), high.min()), max(low.max(), high.max())
    width = _nice(max(float(most - least) / _BINS, 0.05))
    first = math.floor(least / width)
    steps = np.arange(first, math.floor(most / width) + 2)
    edges: _Array = (steps * width).astype(np.float64)
    counts = [np.histogram(one, edges)[0].astype(np.float64) for one in (low, high)]
    names = ("low end (black)", "high end (white)")
    description = "; ".join(
        f"{name}: median {np.median(one):.1f}, from {one.min():.1f} to {one.max():.1f} dB"
        for name, one in zip(names, (low, high), strict=True)
    )
    return _chart(
        edges,
        list(zip(names, ("low", "high"), counts, strict=True)),
        f"level, dB re {reference}",
        f"tiles per {width:g} dB",
        description,
    )


def rate_chart(rates: _Array, width_s: float) -> Chart:
    """Tiles per second over the time that was worked."""
    total_s = width_s * len(rates)
    unit, name = next(
        (unit, name)
        for unit, name in ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
        if total_s >= 2 * unit or unit == 1.0
    )
    edges: _Array = np.arange(len(rates) + 1, dtype=np.float64) * np.float64(width_s / unit)
    description = (
        f"from {rates.min():.3g} to {rates.max():.3g} tiles/s, {rates.mean():.3g} on average"
    )
    return _chart(
        edges,
        [("tiles/s", "rate", rates)],
        f"working time, {name}",
        "tiles/s",
        description,
    )


def _chart(
    edges: _Array,
    named: Iterable[tuple[str, str, _Array]],
    x_label: str,
    y_label: str,
    description: str,
) -> Chart:
    named = list(named)
    highest = max(1e-9, *(float(values.max()) for _, _, values in named))
    y_values = _round_numbers(0.0, highest)
    top = max(highest, y_values[-1])
    x_values = _round_numbers(float(edges[0]), float(edges[-1]))
    across = np.interp(edges, (edges[0], edges[-1]), (_LEFT, WIDTH - _RIGHT))

    def up(value: float) -> float:
        return HEIGHT - _BOTTOM - value / top * (HEIGHT - _BOTTOM - _TOP)

    def along(value: float) -> float:
        span = float(edges[-1] - edges[0]) or 1.0
        return _LEFT + (value - float(edges[0])) / span * (WIDTH - _RIGHT - _LEFT)

    curves = []
    for name, style, values in named:
        steps = " ".join(
            f"L{left:.1f} {up(value):.1f} L{right:.1f} {up(value):.1f}"
            for left, right, value in zip(across, across[1:], values.tolist(), strict=False)
        )
        line = f"M{steps.removeprefix('L')}"
        base = HEIGHT - _BOTTOM
        area = f"M{across[0]:.1f} {base} {steps} L{across[-1]:.1f} {base} Z"
        curves.append(Curve(name, style, line, area))
    return Chart(
        curves=tuple(curves),
        x_ticks=tuple((round(along(value), 1), f"{value:g}") for value in x_values),
        y_ticks=tuple((round(up(value), 1), f"{value:,g}") for value in y_values),
        x_label=x_label,
        y_label=y_label,
        description=description,
    )


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= value * 0.999))


def _round_numbers(low: float, high: float) -> list[float]:
    """A few round numbers from ``low`` to ``high``."""
    step = _nice(max(high - low, 1e-9) / _TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]
