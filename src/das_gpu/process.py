"""The recipe, stated once, over a backend: one tile row in, its images and facts out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import filters
from das_gpu.backends import Backend, Chain, Picture, Ring
from das_gpu.model import RowWindow
from das_gpu.plan import APERTURE_M, Plan
from das_gpu.recipe import Scale

MEDIAN_CHANNELS = 1024
"""Most channels a common-mode median is taken over: its standard error is then 0.04 of a
channel's noise."""


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


class Processor:
    """A plan's recipe on one backend, applied row by row."""

    def __init__(self, plan: Plan, backend: Backend) -> None:
        self.chain = design(plan)
        self._picture = picture(plan)
        self._plan = plan
        self._backend = backend
        self._distance_m = np.array([plan.kept_distance_m(k) for k in range(plan.kept_channels)])

    def row(
        self, ring: Ring, row: RowWindow, release: Callable[[], None] | None = None
    ) -> list[TileResult]:
        """Process one row of tiles.

        Parameters
        ----------
        ring : Ring
            Holds the row's window.
        row : RowWindow
            Which samples are usable.
        release : callable, optional
            Called as soon as the ring is no longer needed for this row.

        Returns
        -------
        list of TileResult
            One per band, whether or not its status lets it be delivered.
        """
        backend, chain, recipe = self._backend, self.chain, self._plan.recipe
        signal, live = backend.analytic(ring, row, chain)
        if release is not None:
            release()
        common, reason = None, None
        if self._plan.common_mode:
            channels, reason = self._median_channels(live)
            if channels is not None:
                common = backend.common_mode(signal, channels)
        envelope = backend.envelope_db(signal, common)
        if recipe.image.format == "npy":
            return self._arrays(envelope, live, reason)
        levels = backend.levels(envelope, live, chain, recipe.image.parsed_scale)
        images = backend.grey(envelope, live, levels, chain, self._picture)
        return [
            self._result(image, levels[band], self._band(live, band), reason)
            for band, image in enumerate(images)
        ]

    def _band(self, array: NDArray[Any], band: int) -> NDArray[Any]:
        width = self.chain.band_channels
        return array[band * width : (band + 1) * width]

    def _result(
        self,
        pixels: NDArray[Any],
        levels: NDArray[np.float64],
        live: NDArray[np.bool_],
        reason: str | None,
    ) -> TileResult:
        low, high = (float(level) for level in levels)
        known = math.isfinite(low)
        return TileResult(
            pixels=pixels,
            db_low=low if known else None,
            db_high=high if known else None,
            dead_channels=int(live.size - np.count_nonzero(live)),
            reason=reason,
        )

    def _arrays(
        self, envelope: Any, live: NDArray[np.bool_], reason: str | None
    ) -> list[TileResult]:
        """The envelope itself, per band; dead channels hold the tile's lowest live level."""
        levels = self._backend.levels(envelope, live, self.chain, Scale.parse("tile"))
        host = self._backend.to_host(envelope)
        results = []
        for band in range(self.chain.bands):
            tile_live = self._band(live, band)
            array = self._band(host, band).astype(np.float32)
            low = levels[band, 0]
            array[~tile_live] = low if math.isfinite(low) else 0.0
            results.append(self._result(array, levels[band], tile_live, reason))
        return results

    def _median_channels(
        self, live: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp] | None, str | None]:
        """Every k-th live channel, k the smallest that leaves at most `MEDIAN_CHANNELS`.

        None, with the reason, when the live channels of this row are too few, or under
        ``auto`` span too little cable, for a median that cannot erase a call.
        """
        channels = np.flatnonzero(live)
        if channels.size == 0:
            return None, None
        span_m = abs(self._distance_m[channels[-1]] - self._distance_m[channels[0]])
        if self._plan.recipe.median.kind == "auto" and span_m < APERTURE_M:
            return None, (
                f"common mode not removed: the live channels span {span_m / 1000:.2f} km, "
                f"less than {APERTURE_M / 1000:g} km"
            )
        return channels[:: -(-channels.size // MEDIAN_CHANNELS)], None
