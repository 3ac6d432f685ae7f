"""``das-gpu report``: the page of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from das_gpu.cli import console
from das_gpu.cli.access import ACCESS, AccessOptions
from das_gpu.cli.options import OutputOptions, option
from das_gpu.cli.places import Run
from das_gpu.cli.status import out_access

if TYPE_CHECKING:
    from das_gpu.report import Report
    from das_gpu.store import Access

_PATIENCE_S = 3.0
"""How long the end of a run may take for thumbnails."""


def report(
    out: Run,
    /,
    *,
    reading: AccessOptions | None = None,
    out_credential: Annotated[
        str, option(ACCESS, "The same as --credential, as extract has it for OUT.", metavar="FORM")
    ] = "auto",
    output: OutputOptions | None = None,
) -> int:
    """Write the page of a run: map, images, levels, reasons, provenance.

    Every extract writes it at its end, with as many thumbnails as can be had in a few seconds;
    this draws the others. A run that is at work is not disturbed. --credential is OUT's.
    """
    from das_gpu.report import report as write

    with console.progress_bar("drawing") as bar:
        written = write(out, out_access(reading, out_credential), on_progress=_drawn_on(bar))
    if (output or OutputOptions()).json:
        console.write_json({**asdict(written), "exit_code": 0})
    else:
        console.write_table(_rows(written))
    return 0


class EarlyPage:
    """Loads what the page of a run needs while the run is at work, once it has begun to deliver."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self) -> None:
        """Begin, in a thread of its own; again does nothing."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._load, name="das-gpu-page", daemon=True).start()

    @staticmethod
    def _load() -> None:
        # What is wrong is said when the page is to be written.
        with suppress(Exception):
            from das_gpu.report import load

            load()


def page_at_end(out: str | Path, access: Access, *, changed: bool = True) -> str | None:
    """Write the page at the end of a run, if that can be done; what is wrong is said.

    Parameters
    ----------
    out : str or Path
        As `extract` was given it.
    access : Access
        How it is reached.
    changed : bool
        False when the run had nothing to do: a page that is there is left as it is.

    Returns
    -------
    str or None
        Where it is. None when there is no page: the run is what it is without one.
    """
    try:
        from das_gpu.report import current
        from das_gpu.report import report as write

        if not changed and (there := current(out, access)) is not None:
            console.say(f"Page: {there}.")
            return there
        written = write(out, access, within_s=_PATIENCE_S)
    except Exception as error:  # noqa: BLE001 - no page is worth more than the run it is of
        console.note(
            f"The page of this run could not be written: {error} `das-gpu report {out}` tries "
            "again."
        )
        return None
    told = f"Page: {written.page}."
    if written.left_out:
        told += (
            f" {written.left_out:,} thumbnails are left out of it, which take longer: das-gpu "
            f"report {out}"
        )
    console.say(told)
    return written.page


def _drawn_on(bar: console.ProgressBar) -> Callable[[int, int], None]:
    """Draws how far it is, how fast it goes and what time is left."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        detail = f"{done}/{total} thumbnails"
        if done and seconds > 0:
            left = console.duration_text(round((total - done) * seconds / done))
            detail += f", {done / seconds:.0f}/s, {left} left"
        bar.update(done, total, detail)

    return show


def _rows(written: Report) -> list[tuple[str, str]]:
    rows = [
        ("page", f"{written.page} ({console.bytes_text(written.bytes)})"),
        ("tiles", f"{written.tiles:,}"),
    ]
    if written.images:
        rows.append(("thumbnails", f"{written.thumbnails:,} of {written.images:,} images"))
        place = f"{written.sheets_beside:,} beside the page" if written.sheets_beside else "in it"
        rows.append(("sheets", f"{place}; {written.sheets_made:,} drawn now"))
    else:
        rows.append(("thumbnails", "none: the run has no images"))
    if written.unreadable:
        text = f"{written.unreadable:,} images are not there, or cannot be read: das-gpu verify"
        rows.append(("unreadable", text))
    return [*rows, ("took", console.duration_text(round(written.seconds, 1)))]
