"""The tiles of a run as the page's script takes them: a byte per tile and quantity."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.keys import IMAGES
from das_gpu.report.evidence import CODES, Evidence, Tiles, delivered
from das_gpu.report.sheets import Sheets

_STEPS = 254
"""Steps of a quantity that is told by a byte; 0 is none."""


def packed(evidence: Evidence, sheets: Sheets) -> dict[str, Any]:
    """All that the script needs to know, ready for JSON.

    Layers are left out that say nothing. The names of 130,560 images take 200 kB: each is that
    of its row, of which only what differs from the row before is told, and that of its band.
    """
    layout, tiles = evidence.layout, evidence.tiles
    regular = evidence.start_ms[:1] + np.round(np.arange(layout.rows) * layout.row_ms)
    layers = {
        "low": _scaled(tiles.low_db),
        "high": _scaled(tiles.high_db),
        "dead": _share(tiles.dead, layout.band_channels),
        "quality": _numbered(tiles.quality),
    }
    return {
        "codes": CODES,
        "rows": layout.rows,
        "bands": layout.bands,
        "rowsPerSegment": layout.rows_per_segment,
        "start": int(evidence.start_ms[0]) if layout.rows else 0,
        "late": (evidence.start_ms - regular.astype(np.int64)).tolist(),
        "tileMs": layout.tile_ms,
        "rowMs": layout.row_ms,
        "km": np.round(evidence.distance_m / 1000, 5).tolist(),
        "channels": [
            layout.channel_start,
            layout.band_span,
            layout.channel_step,
            layout.band_stride,
        ],
        "samples": [layout.sample_start, layout.tile_span, layout.row_stride],
        "status": _base64(tiles.status),
        "layers": {name: layer for name, layer in layers.items() if layer is not None},
        "remark": _base64(tiles.remark) if tiles.remark.any() else None,
        "remarks": {one.number: [one.reason, one.alike] for one in evidence.remarks},
        "files": _names(tiles, layout.bands),
        "pictures": evidence.has_images,
        "reference": evidence.db_reference,
        "sheets": {
            "tiles": sheets.tiles,
            "columns": sheets.columns,
            "width": sheets.width,
            "height": sheets.height,
            "keys": sheets.keys,
            "embedded": {
                number: b64encode(data).decode() for number, data in sheets.embedded.items()
            },
        },
    }


def _base64(values: NDArray[np.uint8]) -> str:
    return b64encode(values.tobytes()).decode()


def _scaled(values: NDArray[np.float32]) -> dict[str, Any] | None:
    """Levels between the least and the greatest of them."""
    known = np.isfinite(values)
    if not known.any():
        return None
    least, most = float(values[known].min()), float(values[known].max())
    steps = (values - least) * (_STEPS / max(most - least, 1e-6))
    data = np.where(known, 1 + np.round(np.nan_to_num(steps)), 0)
    return {"least": least, "most": most, "data": _base64(data.astype(np.uint8))}


def _share(counts: NDArray[np.int32], whole: int) -> dict[str, Any] | None:
    """Counts as shares of the greatest; the least of them is not lost."""
    most = int(counts.max(initial=0))
    if not most:
        return None
    data = np.ceil(counts * (_STEPS / most)) + (counts > 0)
    return {"least": 0, "most": most, "of": whole, "data": _base64(data.astype(np.uint8))}


def _numbered(values: NDArray[np.int64]) -> dict[str, Any] | None:
    """Values by their numbers in a list of those that occur; a single one says nothing."""
    known = values >= 0
    occurring, numbers = np.unique(values[known], return_inverse=True)
    if len(occurring) < 2:
        return None
    data = np.zeros(len(values), dtype=np.uint8)
    data[known] = np.minimum(numbers + 1, _STEPS)
    return {"values": occurring[:_STEPS].tolist(), "data": _base64(data)}


def _names(tiles: Tiles, bands: int) -> dict[str, Any]:
    """Keys of the files: of each row the part up to the last ``_``, of each band the rest."""
    rows: dict[int, str] = {}
    ends: dict[int, str] = {}
    odd: dict[int, str | None] = {}
    for tile in np.flatnonzero(delivered(tiles)).tolist():
        if tiles.files[tile] is None:
            odd[tile] = None
    for tile, key in enumerate(tiles.files):
        if key is None:
            continue
        start, line, end = key.removeprefix(IMAGES).rpartition("_")
        row, band = divmod(tile, bands)
        if rows.setdefault(row, start + line) != start + line or ends.setdefault(band, end) != end:
            odd[tile] = key.removeprefix(IMAGES)
    before, told = "", []
    for row in range(len(tiles.files) // bands):
        name = rows.get(row, before)
        same = next(
            (at for at, (a, b) in enumerate(zip(before, name, strict=False)) if a != b),
            min(len(before), len(name)),
        )
        told.append([same, name[same:]] if same else name)
        before = name
    return {
        "above": IMAGES,
        "rows": told,
        "bands": [ends.get(band, "") for band in range(bands)],
        "odd": odd,
    }
