"""``das-gpu verify``: whether a run's files are what its records say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from das_gpu.cli import console
from das_gpu.cli.access import ACCESS, AccessOptions
from das_gpu.cli.options import RUNNING, OutputOptions, option
from das_gpu.cli.places import Run
from das_gpu.cli.status import out_access

if TYPE_CHECKING:
    from das_gpu.verify import Verification

_SHOWN = 10
"""Files of a kind that are named; --json names all."""


def verify(
    out: Run,
    /,
    *,
    repair: Annotated[
        bool,
        option(
            RUNNING,
            "Put damaged segments back to do, delete images without a record, rewrite manifests.",
        ),
    ] = False,
    reading: AccessOptions | None = None,
    out_credential: Annotated[
        str, option(ACCESS, "The same as --credential, as extract has it for OUT.", metavar="FORM")
    ] = "auto",
    output: OutputOptions | None = None,
) -> int:
    """Check a run: images against their sha256, records against the plan.

    Every image is read. Files that no run has made are named and never touched. --credential is
    OUT's.
    """
    from das_gpu.verify import verify as find_out

    with console.progress_bar("verifying") as bar:
        found = find_out(
            out,
            out_access(reading, out_credential),
            repair=repair,
            on_progress=_drawn_on(bar),
        )
    if (output or OutputOptions()).json:
        console.write_json(_facts(found))
    else:
        console.write_table(_rows(found), found.exit_code)
    return found.exit_code


def _drawn_on(bar: console.ProgressBar) -> Callable[[int, int], None]:
    """Draws how far it is, how fast it goes and what time is left."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        detail = f"{done}/{total} images"
        if done and seconds > 0:
            left = console.duration_text(round((total - done) * seconds / done))
            detail += f", {done / seconds:.0f} images/s, {left} left"
        bar.update(done, total, detail)

    return show


def _rows(found: Verification) -> list[tuple[str, str]]:
    finished = found.segments - len(found.to_do)
    counts = ", ".join(f"{n:,} {name}" for name, n in found.tiles.items())
    rows = [
        ("run", found.out),
        ("segments", f"{finished:,} of {found.segments:,} done"),
        ("tiles", counts or "none"),
        ("images", f"{found.images:,} read in {found.seconds:.1f} s"),
    ]
    if found.holder is not None:
        rows.append(("at work", f"{found.holder}; what it has not finished is left out"))
    for what in ("missing", "torn", "misplaced"):
        keys = [fault.key for fault in found.faults if fault.found == what]
        rows += _named(what, keys)
    rows += _named("extra", found.extra)
    rows += _named("out of date", found.manifests)
    rows += _named("foreign", found.foreign)
    return [*rows, ("verdict", _verdict(found))]


def _named(what: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Some of the files by name, and how many more there are."""
    rows = [(what, key) for key in keys[:_SHOWN]]
    if len(keys) > _SHOWN:
        rows.append(("", f"and {len(keys) - _SHOWN:,} more: --json names all"))
    return rows


def _verdict(found: Verification) -> str:
    continues = "the command that began the run, given again, makes what is missing"
    if found.damaged:
        then = f"; {_to_do(len(found.put_back))} then" if found.put_back else ""
        return f"Damaged. `das-gpu verify --repair` mends it{then}."
    if found.repaired and found.put_back:
        return f"Repaired. {_to_do(len(found.put_back))} again; {continues}."
    text = "Repaired." if found.repaired else "All that is there is right."
    if found.to_do and found.holder is None:
        return f"{text} {_to_do(len(found.to_do))}; {continues}."
    if found.lost:
        return f"{text} {found.lost:,} tiles could not be delivered; das-gpu status --failed."
    return text


def _to_do(segments: int) -> str:
    return "1 segment is to do" if segments == 1 else f"{segments:,} segments are to do"


def _facts(found: Verification) -> dict[str, Any]:
    """The same for machines."""
    return {
        "out": found.out,
        "segments": found.segments,
        "to_do": list(found.to_do),
        "put_back": list(found.put_back),
        "tiles": dict(found.tiles),
        "images": found.images,
        "faults": [asdict(fault) for fault in found.faults],
        "extra": list(found.extra),
        "manifests": list(found.manifests),
        "foreign": list(found.foreign),
        "holder": None if found.holder is None else asdict(found.holder),
        "damaged": found.damaged,
        "repaired": found.repaired,
        "seconds": found.seconds,
        "exit_code": found.exit_code,
    }
