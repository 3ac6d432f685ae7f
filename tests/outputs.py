"""Reading back what a run wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(out: Path) -> list[dict[str, Any]]:
    """Every tile's record, delivered or not, in the plan's order."""
    found = lines(out / "metadata.jsonl") + lines(out / "undelivered.jsonl")
    return sorted(found, key=lambda record: (record["sample_start"], record["channel_start"]))


def statuses(out: Path) -> list[str]:
    """Every tile's status, in the plan's order."""
    return [record["status"] for record in records(out)]


def images(out: Path) -> dict[tuple[int, int], NDArray[Any]]:
    """Pixels by (sample_start, channel_start)."""
    return {
        (r["sample_start"], r["channel_start"]): np.asarray(Image.open(out / r["file_name"]))
        for r in lines(out / "metadata.jsonl")
    }


def envelopes(out: Path) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Envelope arrays in dB by (sample_start, channel_start)."""
    return {
        (r["sample_start"], r["channel_start"]): np.load(out / r["array_file"])
        for r in lines(out / "metadata.jsonl")
    }


def files(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run but run.json and the logs, whose dates and machine differ."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "report.html")
        if path.parent != out / "logs" and out / "report" not in path.parents
    }
