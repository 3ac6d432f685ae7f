"""The page itself: one HTML file that asks for nothing but its own sheets and images."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gpu.model import Status
from das_gpu.report import words
from das_gpu.report.charts import levels_chart, rate_chart
from das_gpu.report.evidence import CODES, Evidence, delivered
from das_gpu.report.packing import packed
from das_gpu.report.sessions import rates
from das_gpu.report.sheets import Sheets

if TYPE_CHECKING:
    from jinja2 import Template

_INTERVALS = 60
_BANDS = 200
"""Bands that the table of bands names; the map shows all."""
_SEGMENTS = 12
"""Segments that are named for each reason."""


def page_text(evidence: Evidence, sheets: Sheets) -> str:
    """The page of a run, as HTML.

    Every text from outside is escaped, and a content-security policy lets nothing run or load
    but the page's own script and style, by their digests, and pictures from where the page is.
    """
    recipe = words.recipe_of(evidence)
    headline, code, steps = words.verdict(evidence)
    style, script = _asset("report.css"), _asset("report.js")
    return template().render(
        policy=_policy(style, script),
        style=style,
        script=script,
        data=packed(evidence, sheets),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        version=version("das-gpu"),
        out=evidence.out,
        headline=headline,
        gravity=_gravity(evidence),
        code=words.code_meaning(code),
        steps=steps,
        command=words.command_text(evidence, recipe),
        asked=words.asked(evidence, recipe),
        recipe=words.recipe_text(evidence, recipe),
        figures=_figures(evidence),
        statuses=_statuses(evidence),
        levels=levels_chart(evidence.tiles.low_db, evidence.tiles.high_db, evidence.db_reference),
        rate=rate_chart(*rates(evidence.sessions, _INTERVALS)) if evidence.sessions else None,
        sessions=[
            (words.utc_text(1000 * one.began_s), words.duration_text(one.seconds), one.tiles)
            for one in evidence.sessions
        ],
        remarks=_remarks(evidence),
        quarantined=evidence.quarantined,
        bands=_bands(evidence),
        all_bands=evidence.layout.bands,
        quality=[
            (words.quality_text(bit), tiles)
            for bit, tiles in evidence.totals.tiles_by_quality_bit.items()
        ],
        dead=(evidence.totals.dead_channels, evidence.totals.tiles_with_dead_channels),
        provenance=_provenance(evidence),
        notes=_texts(_part(evidence.run, "plan").get("notes")),
        sheets=sheets,
        has_images=evidence.has_images,
    )


@cache
def template() -> Template:
    """The page's template, compiled once."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html.j2"))


@cache
def _asset(name: str) -> str:
    return resources.files("das_gpu").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What a browser may do for this page.

    ``'self'`` means nothing to some browsers in a page that was opened from a disk, so that
    ``file:`` stands beside it; in a page from a server it allows nothing.
    """
    allowed = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "'self' file: data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _gravity(evidence: Evidence) -> str:
    """How bad it is: the class of the headline."""
    if evidence.totals.lost:
        return "bad"
    return "open" if evidence.holder is not None or evidence.segments_to_do else "good"


def _figures(evidence: Evidence) -> list[tuple[str, str, str]]:
    """The few numbers to see first: name, value, and what to know of it."""
    totals, sessions = evidence.totals, evidence.sessions
    made = "images" if evidence.has_images else "arrays"
    figures = [(made, f"{totals.delivered:,}", f"of {evidence.layout.tiles:,} tiles")]
    figures.append(("tiles lost", f"{totals.lost:,}", "missing, corrupt or in error"))
    if sessions:
        seconds = sum(one.seconds for one in sessions)
        tiles = sum(one.tiles for one in sessions)
        times = "in 1 session" if len(sessions) == 1 else f"in {len(sessions)} sessions"
        figures.append(("working time", words.duration_text(seconds), times))
        rate = f"{tiles / seconds:.3g} tiles/s" if seconds > 0 else "-"
        figures.append(("throughput", rate, f"{tiles:,} tiles made"))
    else:
        figures.append(("working time", "not known", "there is no log in this place"))
    return figures


def _statuses(evidence: Evidence) -> list[tuple[str, int, float, str]]:
    """Status, tiles, their share and what it means; those that don't occur are left out."""
    counts = np.bincount(evidence.tiles.status, minlength=len(CODES)).tolist()
    tiles = max(1, evidence.layout.tiles)
    found = {name: counts[CODES.index(name)] for name in words.MEANINGS}
    return [(name, n, n / tiles, words.MEANINGS[name]) for name, n in found.items() if n]


def _remarks(evidence: Evidence) -> list[dict[str, Any]]:
    """Why tiles are not plainly ok."""
    return [
        {
            "status": one.status,
            "lost": not Status(one.status).delivered and one.status != Status.GAP,
            "reason": one.reason,
            "alike": one.alike,
            "tiles": one.tiles,
            "first": one.first,
            "when": words.utc_text(int(evidence.start_ms[one.first // evidence.layout.bands])),
            "segments": ", ".join(map(str, sorted(one.segments)[:_SEGMENTS])),
            "more": max(0, len(one.segments) - _SEGMENTS),
        }
        for one in evidence.remarks
    ]


def _bands(evidence: Evidence) -> list[dict[str, Any]]:
    """Each band's tiles, levels and dead channels."""
    layout, tiles = evidence.layout, evidence.tiles
    if not layout.rows:
        return []
    made = delivered(tiles).reshape(layout.rows, layout.bands)
    starts = evidence.distance_m[:-1]
    stops = evidence.distance_m[1:]
    if layout.band_stride < layout.band_span:
        stops = starts + (evidence.distance_m[-1] - evidence.distance_m[-2])
    dead = tiles.dead.reshape(made.shape)
    known = (tiles.quality >= 0).reshape(made.shape)
    rows = []
    for band in range(min(layout.bands, _BANDS)):
        seen = dead[known[:, band], band]
        share = float(seen.mean()) / layout.band_channels if seen.size else 0.0
        levels = [
            one.reshape(made.shape)[made[:, band], band] for one in (tiles.low_db, tiles.high_db)
        ]
        levels = [one[np.isfinite(one)] for one in levels]
        rows.append(
            {
                "km": [f"{metres / 1000:.2f}" for metres in (starts[band], stops[band])],
                "channel": layout.channel_start + band * layout.band_stride,
                "tiles": int(made[:, band].sum()),
                "levels": [f"{np.median(one):.1f}" if one.size else "-" for one in levels],
                "dead": f"{100 * share:.3g} %",
                "share": min(1.0, share),
                "most": int(seen.max(initial=0)),
            }
        )
    return rows


def _provenance(evidence: Evidence) -> list[tuple[str, str]]:
    run, identity = evidence.run, evidence.run["identity"]
    backend, machine, source = (
        _part(*where) for where in ((run, "backend"), (run, "machine"), (identity, "source"))
    )
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    rows = [
        ("Begun", run.get("created")),
        ("das-gpu", run.get("das_gpu")),
        ("Backend", ", ".join(_texts([backend.get("kind"), backend.get("reason")]))),
        ("Machine", ", ".join(f"{name}: {value}" for name, value in machine.items())),
        ("Versions", _pairs(_part(run, "versions"))),
        ("Recipe, SHA-256", run.get("recipe_digest")),
        ("Run's identity, SHA-256", hashlib.sha256(text.encode()).hexdigest()),
        ("Algorithm", identity.get("algorithm")),
        ("Archive", _pairs(source)),
        ("Segments", f"{evidence.layout.segments:,} of {identity.get('segment_minutes')} min"),
    ]
    continued = run.get("continued")
    rows += [
        ("Continued with", _pairs(note) if isinstance(note, Mapping) else str(note))
        for note in (continued if isinstance(continued, list) else ())
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _texts(values: object) -> list[str]:
    found: Iterable[object] = values if isinstance(values, list) else ()
    return [str(one) for one in found if one]


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values on a line."""
    parts = []
    for name, value in values.items():
        text = f"({_pairs(value)})" if isinstance(value, Mapping) else value
        if isinstance(value, list):
            text = " x ".join(map(str, value))
        parts.append(f"{name} {text}")
    return ", ".join(parts)
