"""Tables of documents, made from kept results, and held to them.

    python bench/table.py bench/results/bench.json                       # print it
    python bench/table.py bench/results/bench.json --write README.md     # put it there
    python bench/table.py bench/results/bench.json --check README.md     # exit code 1: not the same

A result of ``das-gpu bench`` becomes the table between ``<!-- performance: NAME -->`` and
``<!-- /performance -->``, one of `bars.py` that between ``<!-- bars: NAME -->`` and ``<!-- /bars
-->``; NAME says where the result is, for whoever reads the document's source.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

STAGES = {
    "analytic": "band-pass and analytic signal",
    "common_mode": "median over channels",
    "envelope_db": "median off, level in dB",
    "levels": "grey levels of the tiles",
    "draw": "resize",
    "encode": "PNG encode",
}
WHOLE = {"read": "fetch and decode", "end to end": "archive to images"}
BASELINE = "reference"


class TableError(Exception):
    """A document has no place for the table, or a result is of no known kind."""


def render(result: Mapping[str, Any]) -> tuple[str, str]:
    """Give the kind of a result, as its markers name it, and its table in Markdown.

    Raises
    ------
    TableError
        When it is neither of ``das-gpu bench`` nor of ``bars.py``.
    """
    if "contestants" in result:
        return "performance", performance_table(result)
    if "bars" in result:
        return "bars", bars_table(result)
    raise TableError("This is no result of `das-gpu bench --out FILE` nor of bench/bars.py.")


# --- das-gpu bench ------------------------------------------------------------------------


def performance_table(result: Mapping[str, Any]) -> str:
    """Seconds of each contestant, by stage and end to end, and how many times the slowest way.

    A ratio is that of the reference's seconds to the contestant's, where both do the stage.
    """
    field: Mapping[str, Any] = result["contestants"]
    stretch = result["stretch"]
    size = f"{stretch['tile_channels']} channels x {stretch['tile_samples']} samples"
    row = f"one row of {stretch['bands']} tiles of {size}"
    lines = [*_header([row, *field])]
    lines += _stage_rows(STAGES, {name: one["stages"] for name, one in field.items()})
    minutes = _counted(stretch["minutes"], "minute")
    lines.append(_line([f"**{minutes}, {stretch['tiles']} tiles**", *("" for _ in field)]))
    lines += _stage_rows(WHOLE, field)
    lines.append(_line(["tiles per second", *(f"{o['tiles_per_s']:.1f}" for o in field.values())]))
    about = [f"`{name}`: {one['about']}." for name, one in field.items()]
    judged = (
        "All make the images they should"
        if result["agrees"]
        else "**They do not make the same images**"
    )
    return "\n".join([*lines, "", *about, f"{judged}. {_caption(result)}"])


def _stage_rows(stages: Mapping[str, str], times: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Give a line for each stage that anybody does."""
    for stage, text in stages.items():
        if not any(stage in one for one in times.values()):
            continue
        base = times.get(BASELINE, {}).get(stage)
        cells = [_cell(one.get(stage), base, name) for name, one in times.items()]
        yield _line([text, *cells])


def _cell(time: Mapping[str, Any] | None, base: Mapping[str, Any] | None, name: str) -> str:
    if time is None:
        return "-"
    text = _seconds(time["seconds"])
    if base is None or name == BASELINE:
        return text
    return f"{text} ({base['seconds'] / time['seconds']:.1f}x)"


def _caption(result: Mapping[str, Any]) -> str:
    """What it was measured on."""
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    gigabytes = result["stretch"]["decoded_bytes"] / 1e9
    return (
        f"Medians of {result['repeats']} on {_counted(result['threads'], 'thread')}, start-up "
        "left out, "
        f"{gigabytes:.1f} GB of decoded chunks; in brackets, how many times as fast as the "
        f"reference. {machine['model'] or machine['processor']}; das-gpu {result['das_gpu']}, "
        f"{packages}; {result['date'][:10]}."
    )


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


# --- bars.py ------------------------------------------------------------------------------


def bars_table(result: Mapping[str, Any]) -> str:
    """Give each figure of a result of `bars.py`, its bar, and whether it is met."""
    lines = _header(["part", "what", "found", "bar", "met"])
    for bar in result["bars"]:
        found = "not measured" if bar["value"] is None else _figure(bar["value"], bar["unit"])
        limit, met = "", ""
        if bar["limit"] is not None:
            limit = f"{'at least' if bar['at_least'] else 'at most'} {bar['limit']:g}"
            met = "yes" if bar["met"] else "**no**"
        if bar["aim"] is not None:
            limit += f", aim {bar['aim']:g}"
        lines.append(_line([bar["part"], bar["what"], found, limit, met]))
    archive, machine = result["archive"], result["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    caption = (
        f"Medians of {result['repeats']} on {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gb']:g} GB, Python {machine['python']}, {packages}; "
        f"{archive['channels']:,} channels x {archive['seconds']:g} s in chunks of "
        f"{archive['chunk_shape'][0]} x {archive['chunk_shape'][1]}, stored at "
        f"{archive['stored_over_decoded']:.2f} of their decoded size; {result['date'][:10]}."
    )
    if result["tiny"]:
        caption = f"**A trial of the benchmark, no figure.** {caption}"
    return "\n".join([*lines, "", caption])


def _figure(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:.0f} MB"
    if unit == "s":
        return _seconds(value)
    return f"{value:.2f} {unit}"


# --- documents ----------------------------------------------------------------------------


def replaced(document: str, kind: str, table: str) -> str:
    """Give a document's text with the table of this kind put between its markers.

    Raises
    ------
    TableError
        When the markers are not there exactly once.
    """
    parts = re.split(
        rf"(<!-- {kind}(?:: [^>]*)? -->\n)(.*?)(<!-- /{kind} -->)", document, flags=re.DOTALL
    )
    if len(parts) != 5:
        raise TableError(
            f"There are {len(parts) // 4} places for the table; there must be one, between the "
            f"lines `<!-- {kind}: FILE -->` and `<!-- /{kind} -->`."
        )
    before, begin, _, end, after = parts
    return f"{before}{begin}\n{table}\n\n{end}{after}"


def stale(document: str, result: Mapping[str, Any]) -> list[str]:
    """Give the lines that differ between a document's table and its result, old and new."""
    from difflib import unified_diff

    kind, table = render(result)
    wanted = replaced(document, kind, table)
    changes = unified_diff(document.splitlines(), wanted.splitlines(), n=0, lineterm="")
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print, write or check a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="of das-gpu bench --out, or of bench/bars.py")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", type=Path, metavar="FILE", help="put it between FILE's markers")
    what.add_argument("--check", type=Path, metavar="FILE", help="is FILE's the same?")
    options = parser.parse_args()
    try:
        result: dict[str, Any] = json.loads(options.result.read_text())
        kind, table = render(result)
        if options.write is not None:
            text = replaced(options.write.read_text(), kind, table)
            options.write.write_text(text)
            return 0
        if options.check is None:
            print(table)
            return 0
        differing = stale(options.check.read_text(), result)
    except (OSError, ValueError, TableError) as error:
        print(f"{options.result}: {error}", file=sys.stderr)
        return 2
    for line in differing:
        print(line)
    if differing:
        print(
            f"{options.check} does not show {options.result}; "
            f"python bench/table.py {options.result} --write {options.check} mends it.",
            file=sys.stderr,
        )
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
