"""das-gpu: a raw distributed-acoustic-sensing archive into machine-learning-ready images.

>>> from das_gpu import Recipe, extract, open_archive, plan
>>> archive = open_archive(recording)
>>> archive.acquisition.shape
(1200, 6000)
>>> recipe = Recipe().with_settings({"tile.bands": 4})
>>> plan(recording, recipe).n_tiles
8
>>> summary = extract(recording, folder / "images", recipe)
>>> summary.images, summary.exit_code
(8, 0)

Importing the package imports neither CuPy nor dask; heavy libraries are loaded by the call
that needs them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from das_gpu.archive import Archive, open_archive
    from das_gpu.decibels import level_db, pixel_of_level
    from das_gpu.errors import DasGpuError
    from das_gpu.feed import StreamedTile, TileStream, stream
    from das_gpu.frame import Frame, locate, locate_box, pixel_at
    from das_gpu.labelled import envelope
    from das_gpu.model import TileRecord
    from das_gpu.plan import Plan
    from das_gpu.recipe import Recipe
    from das_gpu.run import Progress, Summary, extract
    from das_gpu.store import Access

__all__ = [
    "Access",
    "Archive",
    "DasGpuError",
    "Frame",
    "Plan",
    "Progress",
    "Recipe",
    "StreamedTile",
    "Summary",
    "TileRecord",
    "TileStream",
    "__version__",
    "envelope",
    "extract",
    "level_db",
    "locate",
    "locate_box",
    "open_archive",
    "pixel_at",
    "pixel_of_level",
    "plan",
    "stream",
]

_LATE = {
    "Access": "das_gpu.store",
    "Archive": "das_gpu.archive",
    "DasGpuError": "das_gpu.errors",
    "Frame": "das_gpu.frame",
    "Plan": "das_gpu.plan",
    "Progress": "das_gpu.run",
    "Recipe": "das_gpu.recipe",
    "StreamedTile": "das_gpu.feed",
    "Summary": "das_gpu.run",
    "TileRecord": "das_gpu.model",
    "TileStream": "das_gpu.feed",
    "envelope": "das_gpu.labelled",
    "extract": "das_gpu.run",
    "level_db": "das_gpu.decibels",
    "locate": "das_gpu.frame",
    "locate_box": "das_gpu.frame",
    "pixel_at": "das_gpu.frame",
    "pixel_of_level": "das_gpu.decibels",
    "open_archive": "das_gpu.archive",
    "stream": "das_gpu.feed",
}


def plan(
    source: str | Path, recipe: Recipe | None = None, *, segment_minutes: float = 15.0
) -> Plan:
    """Plan a recipe on an archive without reading a sample.

    Parameters
    ----------
    source : str or Path
        A Zarr archive: a folder, a URL, or ``demo:``.
    recipe : Recipe, optional
        What to compute; the ``continuous`` preset by default.
    segment_minutes : float
        Length of the unit of resume; it changes no pixel.

    Raises
    ------
    DasGpuError
        When the archive cannot be opened or the recipe does not fit it.

    Examples
    --------
    >>> from das_gpu import Recipe, plan
    >>> found = plan(recording, Recipe().with_settings({"tile.bands": 4}))
    >>> found.rows, found.bands, found.n_segments
    (2, 4, 1)
    """
    from das_gpu.recipe import Recipe
    from das_gpu.run import prepare

    return prepare(source, recipe or Recipe(), segment_minutes=segment_minutes)[1]


class _Package(ModuleType):
    """Keeps `das_gpu.plan` and `das_gpu.stream` the functions, whenever modules so named load."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("plan", "stream") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("das-gpu")
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
