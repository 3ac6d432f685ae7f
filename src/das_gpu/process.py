"""The recipe, stated once, over a backend: one tile row in, its images and facts out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import filters, units
from das_gpu.backends import Array, Chain, Picture, Workspace
from das_gpu.model import RowWindow
from das_gpu.plan import APERTURE_M, Plan
from das_gpu.recipe import Scale


@dataclass(frozen=True)
class TileResult:
    """What the arithmetic says of one tile.

    ``pixels`` is (height, width) uint8 or uint16, or the envelope in dB, float32 (channel,
    sample), when arrays were asked for. ``db_low`` and ``db_high`` are None when the tile
    has no live channel.
    """

    pixels: NDArray[Any]
    db_low: float | None
    db_high: float | None
    dead_channels: int
    reason: str | None


def design(plan: Plan) -> Chain:
    """The numbers of a plan's recipe, designed once in float64."""
    recipe, hold_step = plan.recipe, plan.hold_step
    length = plan.window_span // hold_step
    step = plan.time_step // hold_step
    band = filters.BandPass(
        recipe.filter.low_hz,
        recipe.filter.high_hz,
        recipe.filter.order,
        plan.acquisition.sampling_rate_hz / hold_step,
    )
    spectral = recipe.filter.method == "spectral"
    images = recipe.image.format != "npy"
    return Chain(
        dtype=np.dtype(recipe.compute.dtype),
        length=length,
        core0=plan.halo_before // hold_step,
        step=step,
        tile_samples=plan.tile_samples,
        weights=filters.spectral_weights(band, length, step) if spectral else None,
        sections=None if spectral else filters.sections(band),
        padding=filters.padding(band),
        median_first=recipe.median.kind == "time",
        bands=plan.bands,
        band_channels=plan.band_channels,
        band_stride=plan.band_stride,
        scale=_scale(plan) if images else Scale.parse("tile"),
        picture=picture(plan) if images else None,
        distance_m=np.array([plan.kept_distance_m(k) for k in range(plan.kept_channels)]),
        aperture_m=APERTURE_M if recipe.median.kind == "auto" else 0.0,
    )


def picture(plan: Plan) -> Picture:
    """How the plan's tiles become images."""
    image = plan.recipe.image
    return Picture(
        height=image.height,
        width=image.width,
        highest=65535 if image.format == "png16" else 255,
        orientation=image.orientation,
        resize=image.resize,
    )


def _scale(plan: Plan) -> Scale:
    """The recipe's scale in the backends' unit, dB re 1e-6 count."""
    scale = plan.recipe.image.parsed_scale
    if scale.kind != "fixed":
        return scale
    offset_db = units.offset_db(plan.acquisition, plan.recipe)
    return replace(scale, low=scale.low - offset_db, high=scale.high - offset_db)


class Processor:
    """A plan's recipe in a backend's workspace, applied row by row."""

    def __init__(self, plan: Plan, chain: Chain, workspace: Workspace) -> None:
        self._plan, self._chain, self._workspace = plan, chain, workspace
        self._offset_db = units.offset_db(plan.acquisition, plan.recipe)

    def begin(self, row: RowWindow, release: Callable[[], None] | None = None) -> Array:
        """Start on one row of tiles; `finish` wants what is returned.

        Parameters
        ----------
        row : RowWindow
            Which samples are usable; its window is in the workspace's ring.
        release : callable, optional
            Called as soon as the ring is no longer needed for this row.
        """
        work = self._workspace
        signal = work.analytic(row)
        if release is not None:
            release()
        common = work.common_mode(signal) if self._plan.common_mode else None
        envelope = work.envelope_db(signal, common)
        return work.draw(envelope, work.levels(envelope))

    def finish(self, drawn: Array) -> list[TileResult]:
        """The row's results, one per band, whether or not its status lets it be delivered."""
        outcome = self._workspace.collect(drawn)
        reason = self._reason(outcome.live)
        results = []
        for pixels, levels, dead in zip(outcome.pixels, outcome.levels, outcome.dead, strict=True):
            low, high = (float(level) + self._offset_db for level in levels)
            known = math.isfinite(low)
            results.append(
                TileResult(
                    pixels=pixels if self._chain.picture else self._in_units(pixels),
                    db_low=low if known else None,
                    db_high=high if known else None,
                    dead_channels=int(dead),
                    reason=reason,
                )
            )
        return results

    def _in_units(self, levels_db: NDArray[Any]) -> NDArray[Any]:
        """A tile's levels in the recipe's units."""
        return levels_db + np.float32(self._offset_db) if self._offset_db else levels_db

    def _reason(self, live: tuple[int, int] | None) -> str | None:
        """Why the common mode was not taken off, where the plan says it is."""
        if not self._plan.common_mode or live is None:
            return None
        first_m, last_m = (self._chain.distance_m[k] for k in live)
        span_m = abs(last_m - first_m)
        if span_m >= self._chain.aperture_m:
            return None
        return (
            f"common mode not removed: the live channels span {span_m / 1000:.2f} km, "
            f"less than {self._chain.aperture_m / 1000:g} km"
        )
