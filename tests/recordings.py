"""Real recordings beside the repository: what is known of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def facts(folder: Path, name: str) -> dict[str, Any]:
    """Parameters that come with a recording."""
    known: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return known


def settings(folder: Path, name: str) -> dict[str, Any]:
    """The recipe's settings with which its expected output was made."""
    meta = facts(folder, name)
    return {
        "selection.channel_start": meta["first_channel"],
        "selection.channel_step": meta["channel_step"],
        "selection.time_step": meta["time_step"],
        "archive.channel_spacing_m": meta["channel_spacing_m"],
        "tile.seconds": meta["tile_seconds"],
        "tile.bands": meta["bands"],
    }
