"""What a run was asked for and came to, in words and as the command that asks for it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from das_gpu.errors import RecipeError
from das_gpu.outcome import LOSSES_CODE, UNFINISHED_CODE
from das_gpu.report.evidence import Evidence
from das_gpu.report.layout import Layout

if TYPE_CHECKING:
    from das_gpu.recipe import Recipe

MEANINGS = {
    "ok": "an image was made, with all the recording it needs around it",
    "edge": "an image was made; near the record's end or a jump less was there to filter with",
    "gap": "the recording has a hole here: a fact, and no failure",
    "to do": "its segment is not finished",
    "missing": "the archive lacks a stored chunk that it needs",
    "corrupt": "a stored chunk that it needs cannot be decoded",
    "error": "it could not be made, for another reason",
}
"""Statuses, in the order in which the page lists them."""


def utc_text(time_ms: float) -> str:
    """A time for people.

    Examples
    --------
    >>> utc_text(1635808274834)
    '2021-11-01 23:11:14 UTC'
    """
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration_text(seconds: float) -> str:
    """A length of time for people.

    Examples
    --------
    >>> duration_text(195_839.995), duration_text(75.54), duration_text(3.2)
    ('54 h 24 min', '1 min 16 s', '3.2 s')
    """
    if seconds >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    if seconds >= 60:
        minutes, left = divmod(round(seconds), 60)
        return f"{minutes} min {left} s"
    return f"{seconds:.3g} s"


def recipe_of(evidence: Evidence) -> Recipe | None:
    """The run's recipe; None when ``run.json`` has one that this version does not know."""
    from das_gpu.recipe import Recipe

    try:
        return Recipe.model_validate(evidence.run["recipe"])
    except (KeyError, RecipeError):
        return None


def recipe_text(evidence: Evidence, recipe: Recipe | None) -> str:
    """The recipe as TOML, or as it stands in ``run.json``."""
    if recipe is not None:
        return recipe.to_toml()
    return json.dumps(evidence.run.get("recipe"), indent=2, ensure_ascii=False)


def source_of(evidence: Evidence) -> str:
    """Where the archive is."""
    source = evidence.run["identity"].get("source")
    return str(source.get("location", "")) if isinstance(source, Mapping) else ""


def command_text(evidence: Evidence, recipe: Recipe | None) -> str | None:
    """The command that continues the run; credentials are not in it."""
    source = source_of(evidence)
    if recipe is None or not source:
        return None
    identity = evidence.run["identity"]
    words = ["das-gpu", "extract", source, evidence.out]
    if recipe.preset != "continuous":
        words += ["--preset", recipe.preset]
    for name, value in _changes(recipe):
        # The table itself is in run.json, and may be too long for a command.
        table = name == "archive.positions"
        words += ["--positions", "FILE.csv"] if table else ["--set", f"{name}={value}"]
    if (on_missing := identity.get("on_missing", "skip")) != "skip":
        words += ["--on-missing", str(on_missing)]
    return " ".join(map(shlex.quote, words))


def asked(evidence: Evidence, recipe: Recipe | None) -> list[tuple[str, str]]:
    """What was asked: names and values."""
    layout = evidence.layout
    rows = [("Source", source_of(evidence) or "not known"), ("Time", _time(evidence))]
    rows += [("Distance", _distance(evidence)), ("Tiles", _tiles(layout))]
    if recipe is not None:
        rows += _processing(evidence, recipe)
    return rows


def verdict(evidence: Evidence) -> tuple[str, int | None, list[str]]:
    """What the run has come to: a headline, its exit code and what to do next."""
    totals, to_do = evidence.totals, evidence.segments_to_do
    gaps = totals.statuses["gap"]
    steps = []
    code: int | None
    if evidence.holder is not None:
        headline, code = f"At work: {evidence.holder}", None
        steps.append("This page shows what was finished when it was made.")
    elif to_do:
        many = "1 segment is" if to_do == 1 else f"{to_do:,} segments are"
        headline, code = f"Not finished: {many} to do", UNFINISHED_CODE
        steps.append("The command below continues the run; what is finished is not made again.")
    elif totals.lost:
        many = "1 tile was" if totals.lost == 1 else f"{totals.lost:,} tiles were"
        headline, code = f"Finished; {many} lost", LOSSES_CODE
    else:
        headline, code = "Finished; everything is delivered", 0
    if totals.lost and evidence.holder is None:
        steps.append("The command below tries the lost tiles again.")
    if evidence.quarantined:
        steps.append("Segments that are put aside are tried again only with --retry-quarantined.")
    if gaps:
        many = "1 tile lies" if gaps == 1 else f"{gaps:,} tiles lie"
        steps.append(f"{many} across a gap in the recording and cannot be made from it.")
    if not steps and totals.delivered:
        steps.append("Nothing is left to do.")
    return headline, code, steps


def code_meaning(code: int | None) -> str:
    """What an exit code says."""
    return {
        None: "There is no exit code yet",
        0: "Exit code 0: all delivered",
        LOSSES_CODE: "Exit code 3: finished, with tiles missing, corrupt or in error",
        UNFINISHED_CODE: "Exit code 10 of das-gpu status: not finished",
    }[code]


def quality_text(bit: int) -> str:
    """What a bit of a tile's ``quality`` says.

    Examples
    --------
    >>> quality_text(2), quality_text(256)
    ('GpsStatus, bit 1', 'GpBits, bit 0')
    """
    position = bit.bit_length() - 1
    return f"GpsStatus, bit {position}" if position < 8 else f"GpBits, bit {position - 8}"


def _changes(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Settings that are not as the preset has them."""
    from das_gpu.recipe import Recipe

    preset: dict[str, Any] = Recipe.from_preset(recipe.preset).model_dump(mode="json")
    for table, settings in recipe.model_dump(mode="json").items():
        if not isinstance(settings, Mapping):
            continue
        for key, value in settings.items():
            if value is not None and value != preset[table][key]:
                text = value if isinstance(value, str) else json.dumps(value)
                yield f"{table}.{key}", text


def _time(evidence: Evidence) -> str:
    layout = evidence.layout
    if not layout.rows:
        return "none"
    start, last = int(evidence.start_ms[0]), int(evidence.start_ms[-1])
    length = duration_text(((layout.rows - 1) * layout.row_ms + layout.tile_ms) / 1000)
    return f"{utc_text(start)} to {utc_text(last + layout.tile_ms)}, {length} of recording"


def _distance(evidence: Evidence) -> str:
    layout = evidence.layout
    stop = layout.channel_start + (layout.bands - 1) * layout.band_stride + layout.band_span
    metres = evidence.distance_m
    each = f", one in {layout.channel_step}" if layout.channel_step > 1 else ""
    return (
        f"{metres[0] / 1000:.3f} to {metres[-1] / 1000:.3f} km along the cable: channels "
        f"{layout.channel_start:,} to {stop - 1:,}{each}, {layout.channel_spacing_m:g} m apart"
    )


def _tiles(layout: Layout) -> str:
    kilometres = layout.band_span * layout.channel_spacing_m / 1000
    return (
        f"{layout.tiles:,}: {layout.rows:,} in time, of {layout.tile_ms / 1000:g} s, by "
        f"{layout.bands:,} along the cable, of {layout.band_channels:,} channels "
        f"({kilometres:.3g} km)"
    )


def _processing(evidence: Evidence, recipe: Recipe) -> Iterator[tuple[str, str]]:
    rate, step = evidence.layout.sampling_rate_hz, recipe.selection.time_step
    how = {
        "spectral": "applied by FFT, without a phase shift",
        "iir": "second-order sections, forwards and back",
    }
    band = f"{recipe.filter.low_hz:g} to {recipe.filter.high_hz:g} Hz"
    order = f"a Butterworth filter of order {recipe.filter.order}"
    yield "Band-pass", f"{band}, {order}, {how[recipe.filter.method]}"
    if step > 1:
        kept = f"one sample in {step} is kept, {rate / step:g} of {rate:g} Hz"
        dropped = f"the others are dropped {recipe.filter.decimate} filtering"
        yield "Sampling", f"{kept}; {dropped}"
    else:
        yield "Sampling", f"every sample, {rate:g} Hz"
    kind: str = recipe.median.kind
    if kind == "auto":
        common = evidence.run["identity"]["selection"].get("common_mode")
        kind = "channel" if common else "none"
    yield (
        "Median",
        {
            "channel": "at each instant the median over channels is subtracted",
            "time": "of each channel its median over time is subtracted",
            "none": "none is subtracted",
        }[kind],
    )
    yield "Image", _image(recipe)


def _image(recipe: Recipe) -> str:
    image = recipe.image
    envelope = f"the envelope in dB re {image.db_reference}"
    if image.format == "npy":
        return f"{envelope}, as {recipe.compute.dtype} computed it, in NumPy arrays of float32"
    kind, _, numbers = image.scale.partition(":")
    low, _, high = numbers.partition(":")
    scale = {
        "percentile": f"from percentile {low} to {100 - float(low or 0):g} of each tile",
        "tile": "from the least to the greatest of each tile",
        "fixed": f"from {low} to {high} dB",
    }[kind]
    bits = {"png": 8, "png16": 16}[image.format]
    way = {"time-down": "time runs down", "time-right": "time runs to the right"}
    return (
        f"{envelope}, grey {scale}; PNG of {bits} bits, {image.width} x {image.height} pixels "
        f"(width x height), {way[image.orientation]}; computed in {recipe.compute.dtype}"
    )
