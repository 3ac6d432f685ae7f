"""``das-gpu bench``: how fast this machine is, on the user's own archive."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from das_gpu.cli import console
from das_gpu.cli.access import AccessOptions
from das_gpu.cli.demo import resolve_demo
from das_gpu.cli.options import OUTPUT, RUNNING, OutputOptions, RecipeOptions, option
from das_gpu.cli.places import Source
from das_gpu.errors import DestinationError

_DISAGREES = 3


def bench(
    source: Source = "demo:",
    /,
    *,
    options: RecipeOptions | None = None,
    reading: AccessOptions | None = None,
    backend: Annotated[
        Literal["auto", "cpu", "gpu"],
        option(RUNNING, "Besides the notebook's steps. [default: auto, all that there are]"),
    ] = "auto",
    minutes: Annotated[
        float, option(RUNNING, "How much of the archive. [default: 1]", metavar="MINUTES")
    ] = 1.0,
    repeats: Annotated[
        int, option(RUNNING, "Timed runs of everything. [default: 5]", metavar="N")
    ] = 5,
    workers: Annotated[
        int | None,
        option(RUNNING, "Compute threads. [default: one per processor]", metavar="N"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        option(OUTPUT, "Set two kept results side by side; measure nothing.", metavar="FILE FILE"),
    ] = None,
    out: Annotated[
        Path | None, option(OUTPUT, "Keep the result in a JSON file.", metavar="FILE")
    ] = None,
    output: OutputOptions | None = None,
) -> int:
    """Time this machine: each backend and the notebook's steps.

    Stage by stage on one row of tiles, and from archive to images; all of it runs once before it
    is timed, so that start-up is left out. Seconds are medians. It says whether the backends make
    the same images within the documented tolerances.
    """
    from das_gpu import benchmark

    as_json = (output or OutputOptions()).json
    if compare is not None:
        found = benchmark.compare(*(benchmark.load(file) for file in compare))
        _keep(found, out)
        return _show(found, as_json, comparison_lines, 0)
    recipe, access = (options or RecipeOptions()).recipe(), (reading or AccessOptions()).access()
    resolve_demo(source)
    with console.progress_bar("measuring") as bar:
        result = benchmark.measure(
            source,
            recipe,
            backend=backend,
            minutes=minutes,
            repeats=repeats,
            workers=workers,
            access=access,
            on_step=lambda fraction: bar.update(fraction, 1.0, ""),
        )
    _keep(result, out)
    return _show(result, as_json, result_lines, 0 if result["agrees"] else _DISAGREES)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for people: who took part, a table of times, whether they agree."""
    field, stretch = result["contestants"], result["stretch"]
    machine = result["machine"]
    size = f"{stretch['tile_channels']} channels x {stretch['tile_samples']} samples"
    where = f"{result['threads']} threads of {machine['model'] or machine['processor']}"
    lines = [
        f"{stretch['tiles']} tiles of {size}, {stretch['bands']} to a row; {where}",
        f"medians of {result['repeats']}, in brackets processor seconds; start-up is left out",
        *(f"{name}: {one['about']}" for name, one in field.items()),
        *(f"{name}: left out. {why}" for name, why in result["left_out"].items()),
        "",
    ]
    stages = dict.fromkeys(stage for one in field.values() for stage in one["stages"])
    rows = [
        ["one row of tiles", *field],
        *(
            [f"  {stage}", *(_cell(one["stages"].get(stage)) for one in field.values())]
            for stage in stages
        ),
        ["the stretch", *("" for _ in field)],
        *(
            [f"  {stage}", *(_cell(one[stage]) for one in field.values())]
            for stage in ("read", "end to end")
        ),
    ]
    rows.append(["  tiles/s", *(f"{one['tiles_per_s']:.1f}" for one in field.values())])
    return [*lines, *_table(rows), "", *(_verdict(each) for each in result["agreement"])]


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """Two results side by side, for people."""
    lines = [
        f"not the same in both: {part}: {json.dumps(a)} and {json.dumps(b)}"
        for part, (a, b) in found["differences"].items()
    ]
    rows = [["", "", "first", "second", "first / second"]]
    for row in found["rows"]:
        times = (_seconds(row["first_s"]), _seconds(row["second_s"]))
        rows.append([row["contestant"], row["stage"], *times, f"{row['ratio']:.2f}"])
    return [*lines, *_table(rows)]


def _verdict(each: Mapping[str, Any]) -> str:
    first, second = each["compared"]
    text = (
        f"{first} and {second} {'agree' if each['agrees'] else 'DO NOT AGREE'}: envelope "
        f"{each['envelope_db']:.2g} dB apart at most, within {each['within_db']:g} dB of the "
        f"maximum (allowed {each['envelope_bar_db']:.2g})"
    )
    if "images" not in each:
        return text
    return (
        f"{text}; {each['images']} images: {each['grey_levels']} grey levels (allowed "
        f"{each['grey_levels_bar']}) on {each['pixels']:.2%} of pixels (allowed "
        f"{each['pixels_bar']:.2%})"
    )


def _cell(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return "-"
    return f"{_seconds(time['seconds'])} ({_seconds(time['processor_seconds'])})"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _show(
    result: Mapping[str, Any],
    as_json: bool,
    lines: Callable[[Mapping[str, Any]], list[str]],
    code: int,
) -> int:
    """Write a result to stdout; return the exit code."""
    if as_json:
        console.write_json({**result, "exit_code": code})
    else:
        console.write_report("\n".join(lines(result)))
    return code


def _keep(result: Mapping[str, Any], file: Path | None) -> None:
    """Write a result where it was asked for."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DestinationError(
            f"The result cannot be written to {file}: {error.strerror or error}. Name another "
            "file with --out."
        ) from error
