"""``das-gpu preview``: what each step of a recipe does to a recording."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from das_gpu.cli import console
from das_gpu.cli.access import AccessOptions
from das_gpu.cli.demo import resolve_demo
from das_gpu.cli.options import OUTPUT, SELECTION, OutputOptions, RecipeOptions, option
from das_gpu.cli.places import Source
from das_gpu.errors import UsageError

if TYPE_CHECKING:
    from das_gpu.preview import Preview


def preview(
    source: Source,
    /,
    *,
    at: Annotated[
        str | None,
        option(SELECTION, "A time in the tile. [default: in the first tile]", metavar="UTC"),
    ] = None,
    band: Annotated[
        int | None,
        Parameter(
            group=SELECTION,
            help="Which of the tiles side by side, from 0. [default: the middle one]",
            metavar="N",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    options: RecipeOptions | None = None,
    reading: AccessOptions | None = None,
    file: Annotated[
        Path | None,
        Parameter(
            name=("--picture", "-o"),
            group=OUTPUT,
            help="The picture, a PNG. [default: preview_TIME_CHANNEL.png]",
            metavar="FILE.png",
        ),
    ] = None,
    show: Annotated[
        bool | None,
        option(
            OUTPUT,
            "Show the picture in the terminal too. [default: in kitty, iTerm2, WezTerm, Ghostty]",
            negative="--no-show",
        ),
    ] = None,
    output: OutputOptions | None = None,
) -> int:
    """Draw what each step of a recipe does to one tile.

    A PNG with axes, units and limits: raw, band-passed, without its median, envelope, and the tile
    as extract makes it with the same options on the CPU. Only the chunks that the tile needs are
    read. Kitty, Ghostty, iTerm2 and WezTerm show it in the terminal too. Needs the extra plot: pip
    install 'das-gpu[plot]'.
    """
    from das_gpu.figure import draw, require_matplotlib
    from das_gpu.preview import aim, look
    from das_gpu.sink import LocalSink

    require_matplotlib()
    if file is not None and file.suffix.lower() != ".png":
        raise UsageError(f"The picture is a PNG, and {file} is not named so: end it in .png.")
    recipe = (options or RecipeOptions()).recipe()
    access = (reading or AccessOptions()).access()
    resolve_demo(source)
    aimed = aim(source, recipe, at=at, band=band, access=access)
    for note in aimed.plan.notes:
        console.note(note)
    size = console.bytes_text(aimed.decoded_bytes)
    console.say(f"Reading {_chunks(aimed.chunks)}, {size} decoded.")
    seen = look(aimed)
    picture = draw(seen)
    file = file or Path(_name(seen))
    LocalSink(file.parent).put(file.name, picture)
    output = output or OutputOptions()
    hidden = show is False or (output.quiet and not show)
    shown = None if hidden else _shown(picture, asked=bool(show))
    if output.json:
        console.write_json({**_facts(seen), "picture": str(file), "shown": shown})
    else:
        console.write_table(_rows(seen, file))
    return seen.exit_code


def _shown(picture: bytes, *, asked: bool) -> str | None:
    """Show the picture on the terminal, where it is one that can; return how."""
    from das_gpu.cli import inline

    way = inline.show(picture, sys.stderr)
    if way is None and asked:
        console.note(
            "This is no terminal that is known to show pictures (kitty, iTerm2, WezTerm, "
            "Ghostty, without a multiplexer): open the file."
        )
    return way


def _name(seen: Preview) -> str:
    """File name of a tile's preview, in the folder that the command is run in."""
    from das_gpu.instants import utc_ns
    from das_gpu.render import file_name

    name = file_name(
        "plain",
        start_ns=utc_ns(seen.record.start_time),
        channel=seen.record.channel_start,
        distance_m=seen.record.distance_start_m,
        suffix="png",
    )
    return f"preview_{Path(name).name}"


def _facts(seen: Preview) -> dict[str, Any]:
    record, plan = seen.record, seen.plan
    return {
        "source": seen.source,
        "recipe_digest": plan.recipe.digest,
        "status": record.status,
        "reason": record.reason,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "row": seen.row,
        "band": seen.band,
        "bands": plan.bands,
        "channel_start": record.channel_start,
        "channel_stop": record.channel_stop,
        "channel_step": record.channel_step,
        "distance_start_m": record.distance_start_m,
        "distance_stop_m": record.distance_stop_m,
        "dead_channels": record.dead_channels,
        "db_low": record.db_low,
        "db_high": record.db_high,
        "db_reference": plan.recipe.image.db_reference,
        "steps": [
            {"name": step.name, "unit": step.unit, "low": step.low, "high": step.high}
            for step in seen.steps
        ],
        "chunks": seen.chunks,
        "stored_bytes": seen.stored_bytes,
        "notes": list(plan.notes),
        "exit_code": seen.exit_code,
    }


def _rows(seen: Preview, file: Path) -> list[tuple[str, str]]:
    record, plan = seen.record, seen.plan
    status = record.status if record.reason is None else f"{record.status}: {record.reason}"
    channels = f"{record.channel_start} to {record.channel_stop}, every {record.channel_step}"
    km = f"{record.distance_start_m / 1000:.3f} to {record.distance_stop_m / 1000:.3f}"
    rows = [
        ("picture", str(file)),
        ("time", f"{record.start_time} to {record.end_time}"),
        ("channels", f"{channels}; {km} km"),
        ("tile", f"band {seen.band} of {plan.bands}, row {seen.row}, counted from 0; {status}"),
    ]
    if record.db_low is not None and record.db_high is not None:
        reference = plan.recipe.image.db_reference
        rows.append(("levels", f"{record.db_low:.2f} to {record.db_high:.2f} dB re {reference}"))
    read = f"{_chunks(seen.chunks)}, {console.bytes_text(seen.stored_bytes)}"
    return [*rows, ("read", f"{read}, besides the time axis")]


def _chunks(count: int) -> str:
    return "1 chunk" if count == 1 else f"{count:,} chunks"
