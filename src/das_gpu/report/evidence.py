"""What a run's files say of it, gathered for its page: tile by tile, in arrays.

Everything is read with mistrust. What people or other programs have written into these files
comes out as numbers, as keys of a run's own naming, or as text without secrets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from das_gpu.keys import kind_of
from das_gpu.lock import Holder
from das_gpu.model import Status
from das_gpu.outcome import Tally, Totals, finished, markers_in, quarantined
from das_gpu.redaction import redact
from das_gpu.report.layout import Layout, band_bounds, first_time_ms, number, row_starts, time_ms
from das_gpu.report.sessions import Session, read_sessions
from das_gpu.runfile import require_run
from das_gpu.segmentfile import Row, file_of
from das_gpu.sink import Sink

TO_DO = "to do"
"""What stands for the status of a tile whose segment is not finished."""
CODES = ("error", "corrupt", "missing", TO_DO, "gap", "edge", "ok")
"""Statuses by the number that the page has for them; of several tiles in one place the first in
this order is shown, so that a single loss among thousands is seen."""

_Json: TypeAlias = Mapping[str, Any]
_NUMBERS = re.compile(r"\d+(?:[.\d]*\d)?")
_MOST_DEAD = 2**31 - 1
_REMEMBERED = 200
"""Kinds of reasons that are told apart, and segments that are named for each."""


@dataclass(slots=True)
class Remark:
    """Tiles that have the same kind of reason to their names.

    Attributes
    ----------
    number : int
        What `Tiles.remark` has for it.
    status, reason : str
        The reason is the first one's; the others differ in numbers only.
    tiles : int
    segments : set of int
        Some of the segments they are in.
    first : int
        The first tile.
    alike : bool
        Whether all reasons are the same text.
    """

    number: int
    status: str
    reason: str
    tiles: int
    segments: set[int]
    first: int
    alike: bool = True


@dataclass(slots=True)
class Tiles:
    """What became of each tile; arrays are in the order of time, then of distance.

    Attributes
    ----------
    status : uint8 array
        Index into `CODES`.
    low_db, high_db : float32 array
        Ends of the grey scale, dB; NaN without an image.
    dead : int32 array
        Dead channels.
    quality : int64 array
        Bits of ``quality``, or -1 for tiles to do.
    remark : uint8 array
        Number of the `Remark` that each has, or 0.
    files : list of (str or None)
        Keys of the images or arrays.
    sha256 : list of str
        Of these files; empty without one.
    """

    status: NDArray[np.uint8]
    low_db: NDArray[np.float32]
    high_db: NDArray[np.float32]
    dead: NDArray[np.int32]
    quality: NDArray[np.int64]
    remark: NDArray[np.uint8]
    files: list[str | None]
    sha256: list[str]

    @classmethod
    def to_do(cls, count: int) -> Tiles:
        """So many tiles of which nothing is known yet."""
        nothing = np.full(count, np.nan, dtype=np.float32)
        return cls(
            status=np.full(count, CODES.index(TO_DO), dtype=np.uint8),
            low_db=nothing,
            high_db=nothing.copy(),
            dead=np.zeros(count, dtype=np.int32),
            quality=np.full(count, -1, dtype=np.int64),
            remark=np.zeros(count, dtype=np.uint8),
            files=[None] * count,
            sha256=[""] * count,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the page of a run is made from.

    Attributes
    ----------
    out : str
        The folder or container.
    run : mapping
        ``run.json``, every text in it without secrets.
    layout : Layout
    tiles : Tiles
    totals : Totals
        Over the finished segments.
    start_ms : int64 array
        Start of each row of tiles, ms since 1970-01-01 UTC.
    distance_m : float64 array
        Start of each band, and the end of the last one.
    remarks : list of Remark
        Why tiles are not plainly ok, the gravest first.
    quarantined : mapping of int to str
        Segments that are put aside, with the reasons.
    sessions : list of Session
        When it was worked on, by the logs in its folder.
    holder : Holder or None
        The run that is at work, when one is.
    """

    out: str
    run: _Json
    layout: Layout
    tiles: Tiles
    totals: Totals
    start_ms: NDArray[np.int64]
    distance_m: NDArray[np.float64]
    remarks: list[Remark]
    quarantined: Mapping[int, str]
    sessions: list[Session]
    holder: Holder | None

    @property
    def segments_to_do(self) -> int:
        """Segments that are not finished."""
        return max(0, self.layout.segments - self.totals.segments)

    @property
    def has_images(self) -> bool:
        """Whether tiles are delivered as pictures, and not as arrays."""
        return bool(self.run["identity"].get("format") != "npy")

    @property
    def db_reference(self) -> str:
        """What 0 dB is."""
        return str(self.run.get("db_reference", "1e-6 count"))


def gather(sink: Sink) -> Evidence:
    """Read what a run's files say.

    Raises
    ------
    DestinationError
        When there is no run, or ``run.json`` does not say where its tiles lie.
    """
    holder = sink.holder()
    run: _Json = clean(require_run(sink))
    layout = Layout.of(sink, run)
    reading = _Reading(layout)
    for segment, _, rows in finished(sink, layout.segments):
        reading.add(segment, rows)
    return Evidence(
        out=redact(sink.location),
        run=run,
        layout=layout,
        tiles=reading.tiles,
        totals=reading.tally.totals(),
        start_ms=row_starts(layout, reading.start_ms, first_time_ms(sink, run)),
        distance_m=band_bounds(layout, reading.distance_m),
        remarks=sorted(reading.remarks.values(), key=lambda one: CODES.index(one.status)),
        quarantined={
            segment: redact(reason)
            for segment, reason in quarantined(sink, markers_in(sink)).items()
        },
        sessions=read_sessions(sink, time_ms(run.get("created"))),
        holder=holder,
    )


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    layout: Layout
    tally: Tally = field(default_factory=Tally)
    start_ms: dict[int, int] = field(default_factory=dict)
    distance_m: dict[int, tuple[float, float]] = field(default_factory=dict)
    remarks: dict[tuple[str, str], Remark] = field(default_factory=dict)
    tiles: Tiles = field(init=False)

    def __post_init__(self) -> None:
        self.tiles = Tiles.to_do(self.layout.tiles)

    def add(self, segment: int, rows: list[Row]) -> None:
        """Enter a segment's rows."""
        self.tally.add(rows)
        tiles = self.tiles
        for row in rows:
            index = self.layout.index(row)
            if index is None:
                continue
            status = row["status"]
            tiles.status[index] = CODES.index(status)
            tiles.low_db[index] = number(row["db_low"])
            tiles.high_db[index] = number(row["db_high"])
            tiles.dead[index] = min(max(row["dead_channels"], 0), _MOST_DEAD)
            tiles.quality[index] = row["quality"] & 0xFFFF
            key = file_of(row)
            if key is not None and kind_of(key) == "image":
                tiles.files[index] = key
                tiles.sha256[index] = str(row["sha256"])
            self._place(index, row)
            if row["reason"]:
                self._remark(index, segment, status, str(row["reason"]))

    def _place(self, index: int, row: Row) -> None:
        """Learn when the tile's row begins, and where its band lies."""
        in_time, band = divmod(index, self.layout.bands)
        if in_time not in self.start_ms and (start := time_ms(row["start_time"])) is not None:
            self.start_ms[in_time] = start
        if band not in self.distance_m:
            bounds = number(row["distance_start_m"]), number(row["distance_stop_m"])
            if all(map(math.isfinite, bounds)):
                self.distance_m[band] = bounds

    def _remark(self, index: int, segment: int, status: str, reason: str) -> None:
        kind = (status, _NUMBERS.sub("#", reason))
        remark = self.remarks.get(kind)
        if remark is None:
            if len(self.remarks) >= _REMEMBERED:
                kind = (status, "")
            made = Remark(len(self.remarks) + 1, status, redact(reason), 0, set(), index)
            remark = self.remarks.setdefault(kind, made)
        self.tiles.remark[index] = remark.number
        remark.tiles += 1
        remark.alike = remark.alike and remark.reason == redact(reason)
        if len(remark.segments) < _REMEMBERED:
            remark.segments.add(segment)


def clean(value: Any) -> Any:
    """The same JSON value without secrets in its texts."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [clean(one) for one in value]
    return value


def delivered(tiles: Tiles) -> NDArray[np.bool_]:
    """Which tiles made an image or an array."""
    codes = [CODES.index(status) for status in Status if status.delivered]
    return np.isin(tiles.status, codes)
