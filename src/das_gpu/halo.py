"""How much is read beside a tile, and tiles too short to be filtered. Pure numbers."""

from __future__ import annotations

import math

from das_gpu import filters
from das_gpu.errors import RecipeError
from das_gpu.model import Acquisition
from das_gpu.recipe import Recipe


def halo(
    recipe: Recipe, band: filters.BandPass, tile_samples: int, acquisition: Acquisition
) -> tuple[int, int]:
    """Archive samples before and after the core.

    Lengthened so that the window is a multiple of the time step and, in kept samples, a
    product of the primes 2, 3 and 5. No halo stays no halo: the window is then the tile.

    Raises
    ------
    RecipeError
        When the record is shorter than one halo.
    """
    halo_s = recipe.filter.halo_s
    if halo_s == 0:
        return 0, 0
    if halo_s == "auto":
        halo_s = filters.fall_time_s(band)
    rate_hz, step = acquisition.sampling_rate_hz, recipe.selection.time_step
    if halo_s * rate_hz > acquisition.n_samples:
        raise RecipeError(
            f"The record of {acquisition.n_samples / rate_hz:.3f} s is shorter than one halo of "
            f"{halo_s:.3f} s, which the {band.low_hz:g}-{band.high_hz:g} Hz band-pass needs; "
            f"choose a wider band, a lower order or a shorter filter.halo_s."
        )
    kept = math.ceil(halo_s * rate_hz / step)
    window = filters.fast_length(tile_samples + 2 * kept)
    before = (window - tile_samples) // 2
    return before * step, (window - tile_samples - before) * step


def check_window(recipe: Recipe, band: filters.BandPass, tile_samples: int, halo: int) -> None:
    """Refuse tiles too short to be filtered. The halo is counted in archive samples.

    Raises
    ------
    RecipeError
        Naming the least duration that would do.
    """
    step = recipe.selection.time_step
    hold_step = step if recipe.filter.decimate == "before" else 1
    window = (tile_samples * step + halo) // hold_step
    needed = filters.padding(band) + 1
    if tile_samples < 2 or window < needed:
        raise RecipeError(
            f"A tile of {recipe.tile.seconds:g} s is shorter than the filter: its window holds "
            f"{window} samples at {band.rate_hz:g} Hz, the order-{band.order} band-pass needs "
            f"{needed}. Make tile.seconds at least {needed / band.rate_hz:.2f}."
        )
