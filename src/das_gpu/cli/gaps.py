"""How commands tell of an index's gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from das_gpu.cli import console

if TYPE_CHECKING:
    from das_gpu.virtual.document import Document

_SHOWN = 10
"""Gaps that are listed; --json lists all."""


def gap_facts(document: Document) -> list[dict[str, Any]]:
    """Gaps between files and inside them, ready for JSON."""
    from das_gpu.timescale import iso_time

    return [
        {
            "sample": gap.sample,
            "after": gap.after,
            "before": gap.before,
            "start_time": iso_time(gap.start_ns),
            "stop_time": iso_time(gap.stop_ns),
            "seconds": (gap.stop_ns - gap.start_ns) / 1e9,
        }
        for gap in document.gaps
    ]


def gap_rows(document: Document) -> list[tuple[str, str]]:
    """Gaps between files and inside them, for people: how many, and the first few."""
    gaps = gap_facts(document)
    if not gaps:
        return [("gaps", "none")]
    seconds = sum(max(0.0, gap["seconds"]) for gap in gaps)
    many = "1 gap" if len(gaps) == 1 else f"{len(gaps):,} gaps"
    rows = [("gaps", f"{many}, {_length(seconds)} in all")]
    rows += [("gap", _text(gap)) for gap in gaps[:_SHOWN]]
    if len(gaps) > _SHOWN:
        rows.append(("", f"and {len(gaps) - _SHOWN:,} more: --json lists all"))
    return rows


def _text(gap: Mapping[str, Any]) -> str:
    place = "inside" if gap["after"] == gap["before"] else "after"
    seconds = gap["seconds"]
    what = _length(seconds) if seconds >= 0 else f"the clock goes back {_length(-seconds)}"
    return f"{what} {place} {gap['after']}, from {gap['start_time']}"


def _length(seconds: float) -> str:
    return console.duration_text(seconds) if seconds >= 1 else f"{seconds:.3g} s"
