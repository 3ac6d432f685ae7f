"""The units of levels: what is added to dB re 1e-6 count, and what is to be said of it.

Strain is an offset in dB. Samples are never multiplied by it: the square of 1e-13 is nothing in
float32.
"""

from __future__ import annotations

from collections.abc import Iterator

from das_gpu.errors import RecipeError
from das_gpu.model import Acquisition, Optics
from das_gpu.recipe import Recipe


def optics_of(acquisition: Acquisition, recipe: Recipe) -> Optics | None:
    """What makes strain of this recording's counts; None when levels are in counts.

    Raises
    ------
    RecipeError
        Strain is asked for, and the gauge length is not known, or samples are no counts.
    """
    if recipe.image.units == "counts":
        return None
    if acquisition.quantity:
        raise RecipeError(
            "Strain is made of counts of optical phase, and what this archive holds is not that: "
            f"its samples are {acquisition.quantity}. Leave out --units strain: levels are then "
            "in dB re 1e-6 of the samples' own unit."
        )
    if acquisition.optics is None:
        raise RecipeError(
            "Strain is asked for, and neither the archive's attributes (GaugeLength) nor the "
            "recipe say the gauge length. Give --gauge-length in metres, or --units counts."
        )
    return acquisition.optics


def offset_db(acquisition: Acquisition, recipe: Recipe) -> float:
    """What is added to levels in dB re 1e-6 count; 0 when these are what is wanted."""
    optics = optics_of(acquisition, recipe)
    return 0.0 if optics is None else optics.offset_db


def notes(acquisition: Acquisition, recipe: Recipe) -> Iterator[str]:
    """What a user should know of the units before the run."""
    optics = optics_of(acquisition, recipe)
    if acquisition.quantity:
        yield (
            f"The archive's samples are {acquisition.quantity}: wherever levels are said to be in "
            "dB re 1e-6 count, it is 1e-6 of that unit."
        )
    if optics is not None and acquisition.dtype.startswith("float"):
        yield (
            f"The samples are {acquisition.dtype}: they are taken for counts of 2 pi / 2^16 rad of "
            "optical phase."
        )
    if optics is not None:
        yield (
            f"Levels are dB re {recipe.image.db_reference}: 1 count is "
            f"{optics.strain_per_count:.4e} strain, by a gauge length of "
            f"{optics.gauge_length_m:g} m ({optics.gauge_length_origin}), a refractive index of "
            f"{optics.refractive_index:g} ({optics.refractive_index_origin}) and light of "
            f"{optics.wavelength_m * 1e9:g} nm ({optics.wavelength_origin})."
        )
