"""The page of a run: what was asked and done, tile by tile, in one HTML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from das_gpu.store import Access

REPORT_KEY = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Attributes
    ----------
    page : str
        Where the page is: a path, or an address.
    bytes : int
        Its size.
    tiles, images : int
        Tiles of the run, and those of them that there is a picture of.
    thumbnails : int
        Pictures that the contact sheet shows.
    left_out : int
        Those that it doesn't for want of time; the next page goes on from there.
    unreadable : int
        Those that are not there, or cannot be read.
    sheets_made, sheets_beside : int
        Sheets of thumbnails that were drawn, and that lie beside the page.
    seconds : float
        What it took.
    """

    page: str
    bytes: int
    tiles: int
    images: int
    thumbnails: int
    left_out: int
    unreadable: int
    sheets_made: int
    sheets_beside: int
    seconds: float


def current(out: str | Path, access: Access | None = None) -> str | None:
    """Where the page of a run is, when nothing has been finished since it was written.

    In a container a page that is there is taken for that.

    Parameters
    ----------
    out, access
        As to `report`.

    Raises
    ------
    DestinationError, AccessDeniedError, UsageError
        As `report`.
    """
    from das_gpu.keys import SEGMENTS
    from das_gpu.sink import LocalSink, open_sink

    sink = open_sink(out, access)
    if REPORT_KEY not in sink.list(REPORT_KEY):
        return None
    if isinstance(sink, LocalSink):
        # A folder is as old as the last file that came into it.
        written, last = (Path(sink.location, key).stat() for key in (REPORT_KEY, SEGMENTS))
        if written.st_mtime_ns < last.st_mtime_ns:
            return None
    return f"{sink.location.rstrip('/')}/{REPORT_KEY}"


def load() -> None:
    """Load what `report` needs, so that it need not be waited for at the end of a run."""
    from importlib import import_module

    from PIL import Image

    from das_gpu.report.page import template

    template()
    Image.preinit()
    import_module("tomlkit")  # writes the recipe


def report(
    out: str | Path,
    access: Access | None = None,
    *,
    within_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write the page of a run, ``report.html``, and what it needs beside it.

    The page shows what its files say at this moment; a run that is at work is not disturbed.
    Of a small run it holds everything. The thumbnails of a large one lie beside it, in
    ``report/sprites/``; of these only those are drawn whose images are new.

    Parameters
    ----------
    out : str or Path
        The folder, or the URL of an Azure container and prefix, that was given to `extract`.
    access : Access, optional
        Credential and patience, for a container.
    within_s : float, optional
        Draw thumbnails for no longer than this; the page says what is left out and how to get
        it.
    on_progress : callable, optional
        Told the images that have a thumbnail by now, and all there are.

    Raises
    ------
    DestinationError
        There is no run, or it cannot be read, or the page cannot be written.
    AccessDeniedError
        The container's server refuses the credential.
    UsageError
        No run can be there, or the credential cannot be found.

    Examples
    --------
    >>> from das_gpu import Recipe, extract
    >>> from das_gpu.report import report
    >>> out = folder / "pictures"
    >>> summary = extract(recording, out, Recipe().with_settings({"tile.bands": 2}))
    >>> written = report(out)
    >>> written.thumbnails, (out / "report.html").exists()
    (4, True)
    """
    import time

    from das_gpu.report.evidence import gather
    from das_gpu.report.page import page_text
    from das_gpu.report.sheets import make_sheets, sweep_sheets
    from das_gpu.sink import open_sink

    began = time.monotonic()
    sink = open_sink(out, access)
    evidence = gather(sink)
    sheets = make_sheets(sink, evidence, within_s, on_progress)
    data = page_text(evidence, sheets).encode(errors="replace")
    sink.put(REPORT_KEY, data)
    # Only now: the page that was there before refers to them.
    sweep_sheets(sink, sheets.keys)
    return Report(
        page=f"{evidence.out.rstrip('/')}/{REPORT_KEY}",
        bytes=len(data),
        tiles=evidence.layout.tiles,
        images=sheets.images,
        thumbnails=sheets.images - sheets.left_out - sheets.unreadable,
        left_out=sheets.left_out,
        unreadable=sheets.unreadable,
        sheets_made=sheets.made,
        sheets_beside=sum(key is not None for key in sheets.keys),
        seconds=time.monotonic() - began,
    )
