"""Thumbnails of a run's images, many to a file: the contact sheet of its page.

A sheet's name holds a digest of the images on it. So a sheet whose images are as they were is
not made again, a browser never shows an old one, and what nothing refers to can be deleted.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from das_gpu.errors import DestinationError
from das_gpu.keys import SHEETS, kind_of
from das_gpu.outcome import delete
from das_gpu.report.evidence import Evidence
from das_gpu.report.pictures import grey_image
from das_gpu.sink import Sink

if TYPE_CHECKING:
    from PIL import Image

EMBEDDED_TILES = 4_000
"""Images of which the thumbnails go into the page itself: one file holds all of a small run."""
EMBEDDED_BYTES = 6_000_000
"""What they may come to; in a page they take a third more."""

_SIDE = 80
_LEAST_SIDE = 8
_COLUMNS = 16
_TILES = 200
_QUALITY = 60
_DRAWING = "1"  # part of the digest: to be raised when the same images would give other sheets
_TOGETHER = 25


@dataclass(slots=True)
class Sheets:
    """The sheets of a run, by their numbers.

    Attributes
    ----------
    tiles : int
        Places on a sheet, delivered or not: whole rows of tiles, where they fit.
    columns, width, height : int
        Thumbnails side by side on a sheet, and the pixels of one.
    keys : list of (str or None)
        File of each sheet; None for those that are not there, or are in ``embedded``.
    embedded : dict of int to bytes
        Sheets that go into the page.
    images : int
        Images of the run.
    left_out : int
        Images without a thumbnail for want of time.
    unreadable : int
        Images that are not there, or are no pictures of the run's size.
    made : int
        Sheets that were drawn; the others were there.
    """

    tiles: int
    columns: int
    width: int
    height: int
    keys: list[str | None]
    embedded: dict[int, bytes] = field(default_factory=dict)
    images: int = 0
    left_out: int = 0
    unreadable: int = 0
    made: int = 0


def make_sheets(
    sink: Sink,
    evidence: Evidence,
    within_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Sheets:
    """Draw the sheets that are not there yet, and store those that go beside the page.

    Parameters
    ----------
    sink : Sink
    evidence : Evidence
    within_s : float, optional
        Begin no sheet later than this; what is left out is counted.
    on_progress : callable, optional
        Told the images done so far, and all of them.

    Raises
    ------
    DestinationError
        The place cannot be read or written.
    """
    sheets = _empty(evidence)
    if not sheets.images:
        return sheets
    drawing = _Drawing(sink, evidence, sheets)
    began, done = time.monotonic(), 0
    beside = set() if drawing.embedding else set(sink.list(SHEETS))
    with ThreadPoolExecutor(_threads(sink), thread_name_prefix="das-gpu-sheets") as pool:
        for number, tiles in drawing.with_images():
            key = f"{SHEETS}{number:05d}-{drawing.digest(tiles)}.jpg"
            if key in beside:
                sheets.keys[number] = key
            elif within_s is not None and time.monotonic() - began > within_s:
                sheets.left_out += len(tiles)
            else:
                drawing.draw(pool, number, key, tiles)
            done += len(tiles)
            if on_progress is not None:
                on_progress(done, sheets.images)
    drawing.settle()
    return sheets


def sweep_sheets(sink: Sink, kept: Collection[str | None]) -> None:
    """Delete the sheets that a page does not refer to."""
    stale = [key for key in sink.list(SHEETS) if kind_of(key) == "sheet" and key not in kept]
    delete(sink, stale)


def _empty(evidence: Evidence) -> Sheets:
    layout, image = evidence.layout, evidence.run.get("recipe") or {}
    rows = max(1, _TILES // layout.bands)
    tiles = rows * layout.bands if layout.bands <= _TILES else _TILES
    size = _size(image.get("image") if isinstance(image, dict) else None)
    longest = max(size)
    width, height = (max(_LEAST_SIDE, round(_SIDE * side / longest)) for side in size)
    images = sum(key is not None for key in evidence.tiles.files) if evidence.has_images else 0
    keys: list[str | None] = [None] * -(-layout.tiles // tiles)
    return Sheets(tiles, min(_COLUMNS, tiles), width, height, keys, images=images)


def _size(image: object) -> tuple[int, int]:
    """Width and height of the run's images, by its recipe."""
    sides = [image.get(side) if isinstance(image, dict) else None for side in ("width", "height")]
    width, height = (side if isinstance(side, int) and 1 <= side <= 8192 else 1 for side in sides)
    return width, height


def _threads(sink: Sink) -> int:
    """As many as are of use: a folder answers at once, a container keeps one waiting."""
    from das_gpu.host import processors

    return max(sink.writers, min(processors(), 8))


class _Drawing:
    """The drawing of a run's sheets."""

    def __init__(self, sink: Sink, evidence: Evidence, sheets: Sheets) -> None:
        image = evidence.run.get("recipe") or {}
        self._sink, self._tiles, self._sheets = sink, evidence.tiles, sheets
        self._size = _size(image.get("image") if isinstance(image, dict) else None)
        self._drawn: dict[int, tuple[str, bytes]] = {}
        self.embedding = sheets.images <= EMBEDDED_TILES

    def with_images(self) -> Iterator[tuple[int, list[int]]]:
        """Each sheet that has any image, and the tiles on it that have one."""
        for number in range(len(self._sheets.keys)):
            first = number * self._sheets.tiles
            last = min(first + self._sheets.tiles, len(self._tiles.files))
            tiles = [tile for tile in range(first, last) if self._tiles.files[tile]]
            if tiles:
                yield number, tiles

    def digest(self, tiles: list[int]) -> str:
        """What tells a sheet of these images from any other."""
        sheets = self._sheets
        told = [_DRAWING, sheets.width, sheets.height, sheets.columns]
        told += [f"{tile % sheets.tiles}:{self._tiles.sha256[tile]}" for tile in tiles]
        return hashlib.sha256("\n".join(map(str, told)).encode()).hexdigest()[:16]

    def draw(self, pool: ThreadPoolExecutor, number: int, key: str, tiles: list[int]) -> None:
        """Draw a sheet and keep it, in the page or beside it."""
        from PIL import Image

        sheets = self._sheets
        rows = -(-(tiles[-1] % sheets.tiles + 1) // sheets.columns)
        sheet = Image.new("L", (sheets.columns * sheets.width, rows * sheets.height))
        # A thumbnail by itself would take less time than to hand it to another thread.
        parts = [tiles[first : first + _TOGETHER] for first in range(0, len(tiles), _TOGETHER)]
        thumbnails = [one for part in pool.map(self._thumbnails, parts) for one in part]
        unreadable = 0
        for tile, thumbnail in zip(tiles, thumbnails, strict=True):
            if thumbnail is None:
                unreadable += 1
                continue
            down, right = divmod(tile % sheets.tiles, sheets.columns)
            sheet.paste(thumbnail, (right * sheets.width, down * sheets.height))
        if unreadable:
            # Under another name: the next page looks again.
            key = re.sub(r"-\w+", lambda name: f"-{'0' * 8}{name[0][1:9]}", key)
        sheets.unreadable += unreadable
        sheets.made += 1
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=_QUALITY)
        if self.embedding:
            self._drawn[number] = (key, file.getvalue())
        else:
            self._put(number, key, file.getvalue())

    def settle(self) -> None:
        """Take the sheets into the page, or put them beside it after all if they are too big."""
        if sum(len(data) for _, data in self._drawn.values()) <= EMBEDDED_BYTES:
            self._sheets.embedded = {number: data for number, (_, data) in self._drawn.items()}
        else:
            for number, (key, data) in self._drawn.items():
                self._put(number, key, data)

    def _put(self, number: int, key: str, data: bytes) -> None:
        self._sink.put(key, data, durable=False)
        self._sheets.keys[number] = key

    def _thumbnails(self, tiles: list[int]) -> list[Image.Image | None]:
        return [self._thumbnail(tile) for tile in tiles]

    def _thumbnail(self, tile: int) -> Image.Image | None:
        """A thumbnail, or None where there is no image of the run's size."""
        from PIL import Image

        data = None
        with suppress(DestinationError):  # one file on a bad disk
            data = self._sink.get(self._tiles.files[tile] or "")
        image = None if data is None else grey_image(data, self._size)
        if image is None:
            return None
        return image.resize((self._sheets.width, self._sheets.height), Image.Resampling.BOX)
