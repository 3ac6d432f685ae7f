"""What makes two runs one run, and what else is written down about a run."""

from __future__ import annotations

from typing import Any

from das_gpu import host
from das_gpu.archive import Archive
from das_gpu.backends import Selected
from das_gpu.plan import Plan
from das_gpu.recipe import Recipe
from das_gpu.units import optics_of

ALGORITHM_VERSION = 1
"""Raised when the same recipe would give other pixels; part of a run's identity."""


def identity_of(
    archive: Archive, plan: Plan, selected: Selected, segment_minutes: float, on_missing: str
) -> dict[str, Any]:
    """All that two runs must share to be one run."""
    identity: dict[str, Any] = {
        "recipe": plan.recipe.content,
        "algorithm": ALGORITHM_VERSION,
        "selection": plan.resolved(),
        "segment_minutes": segment_minutes,
        "format": plan.recipe.image.format,
        "backend": selected.backend.kind,
        "on_missing": on_missing,
        "source": archive.fingerprint(),
    }
    if (optics := optics_of(plan.acquisition, plan.recipe)) is not None:
        identity["strain_per_count"] = optics.strain_per_count
    if plan.recipe.image.resize == "pillow":
        from importlib.metadata import version

        identity["pillow"] = version("pillow").partition(".")[0]
        identity["scipy"] = version("scipy").partition(".")[0]
    return identity


def header_of(recipe: Recipe, selected: Selected, plan: Plan) -> dict[str, Any]:
    """What else run.json says: for readers, not for comparing."""
    from datetime import UTC, datetime

    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "db_reference": recipe.image.db_reference,
        "plan": {
            "tiles": plan.n_tiles,
            "segments": plan.n_segments,
            "rows_per_segment": plan.rows_per_segment,
            "notes": plan.notes,
        },
        "backend": {"kind": selected.backend.kind, "reason": selected.reason},
        "versions": host.versions(),
        "machine": host.description(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
