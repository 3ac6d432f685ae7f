"""Whether a run's files are what its records say; what is not can be put back to do."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from das_gpu.errors import DestinationError
from das_gpu.keys import (
    MANIFEST_KEYS,
    METADATA_KEY,
    TEMPORARY,
    UNDELIVERED_KEY,
    kind_of,
    segment_key,
)
from das_gpu.ledger import Ledger
from das_gpu.lock import Holder
from das_gpu.manifest import CsvTable, kept, parquet_is_of
from das_gpu.outcome import (
    LOSSES_CODE,
    UNFINISHED_CODE,
    Tally,
    delete,
    each,
    segment_files,
)
from das_gpu.runfile import number_in, require_run
from das_gpu.segmentfile import LOST, Row, file_of, manifest_lines, parse_segment, place_of
from das_gpu.sink import LocalSink, Sink, open_sink
from das_gpu.state import STATE_KEY
from das_gpu.store import Access

DAMAGED_CODE = 12
"""Exit code when files are not what the records say."""

# What a system says of one file on a bad disk, or of a folder in a file's place.
_UNREADABLE = (errno.EIO, errno.EISDIR)


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is not what the records say.

    Attributes
    ----------
    segment : int
        The segment that must be made again.
    key : str
        The file, an image's or a segment's.
    found : {"missing", "torn", "misplaced"}
        It is not there; its content is another; or the segment's tiles are not the plan's.
    """

    segment: int
    key: str
    found: Literal["missing", "torn", "misplaced"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What the files of a run are worth.

    Attributes
    ----------
    out : str
        The folder or container, without any secret.
    segments : int
        Segments of the whole run.
    to_do : tuple of int
        Those that are not finished; after a repair also those that were put back.
    tiles : mapping of str to int
        Tiles of the finished segments, by status.
    images : int
        Images that were read.
    faults : tuple of Fault
        What was found missing, torn or misplaced.
    extra : tuple of str
        A run's files that no record vouches for, and what killed writers left.
    manifests : tuple of str
        Manifests that are absent, or say something else than the segments.
    foreign : tuple of str
        Files that no run has made. They are never touched.
    holder : Holder or None
        The run that is at work, when one is; then ``extra`` and ``manifests``, which change
        all the time, are not looked at.
    repaired : bool
        Whether what was found has been mended, as far as it goes without the archive.
    seconds : float
        What it took.
    """

    out: str
    segments: int
    to_do: tuple[int, ...]
    tiles: Mapping[str, int]
    images: int
    faults: tuple[Fault, ...]
    extra: tuple[str, ...]
    manifests: tuple[str, ...]
    foreign: tuple[str, ...]
    holder: Holder | None
    repaired: bool
    seconds: float

    @property
    def put_back(self) -> tuple[int, ...]:
        """Segments with a fault: a repair puts them back to do."""
        return tuple(sorted({fault.segment for fault in self.faults}))

    @property
    def lost(self) -> int:
        """Tiles missing, corrupt or in error."""
        return sum(self.tiles.get(status, 0) for status in LOST)

    @property
    def damaged(self) -> bool:
        """Whether something is wrong that has not been mended.

        Of a run that has not come to its end, images without a record and old manifests are
        to be expected: its next command settles them.
        """
        if self.repaired:
            return False
        stale = self.manifests and not self.to_do
        stray = self.extra and not self.to_do and not self.lost
        return bool(self.faults or stale or stray)

    @property
    def exit_code(self) -> int:
        """12 damaged, 10 segments to do or a run at work, 3 tiles lost, else 0."""
        if self.damaged:
            return DAMAGED_CODE
        if self.to_do or self.holder is not None:
            return UNFINISHED_CODE
        return LOSSES_CODE if self.lost else 0


def verify(
    out: str | Path,
    access: Access | None = None,
    *,
    repair: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every image against its sha256, and every record against the plan.

    Parameters
    ----------
    out : str or Path
        The folder, or the URL of an Azure container and prefix, that was given to `extract`.
    access : Access, optional
        Credential and patience, for a container.
    repair : bool
        Put the segments with a fault back to do, delete files of the run's own naming that no
        record vouches for, and write the manifests anew. The command that began the run then
        makes what is missing.
    on_progress : callable, optional
        Told the images read so far and all there are.

    Raises
    ------
    DestinationInUseError
        ``repair`` while a run is at work.
    DestinationError
        There is no run, or it cannot be read or mended.
    AccessDeniedError
        The container's server refuses the credential.
    UsageError
        No run can be there, or the credential cannot be found.
    """
    sink = open_sink(out, access)
    if not repair:
        return _Inspection(sink, sink.holder(), on_progress).result()
    require_run(sink)
    with sink.hold(uuid4().hex):
        found = _Inspection(sink, None, on_progress).result()
        return _mended(sink, found)


def _mended(sink: Sink, found: Verification) -> Verification:
    """Mend what was found, so that a kill on the way leaves what can be mended again."""
    if not (found.faults or found.extra or found.manifests):
        return found
    ledger = Ledger(sink, found.segments, resumed=True)
    ledger.put_back(found.put_back)
    delete(sink, (*found.extra, STATE_KEY))
    sink.flush()
    if found.faults or found.manifests:
        ledger.publish(kept(sink))
    to_do = tuple(sorted({*found.to_do, *found.put_back}))
    return replace(found, to_do=to_do, repaired=True)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the tiles of each segment lie."""

    sample_start: int
    row_stride: int
    rows: int
    channel_start: int
    band_stride: int
    bands: int
    rows_per_segment: int

    @classmethod
    def of(cls, sink: Sink) -> _Layout:
        """The layout that ``run.json`` tells."""
        run = require_run(sink)
        selection = run["identity"].get("selection")

        def number(name: str) -> int:
            return number_in(sink, selection, name)

        def stride(name: str, length: str) -> int:
            return number(name if name in (selection or {}) else length)

        return cls(
            sample_start=number("sample_start"),
            row_stride=stride("tile_stride", "tile_samples") * number("sample_step"),
            rows=number("rows"),
            channel_start=number("channel_start"),
            band_stride=stride("band_stride", "band_channels") * number("channel_step"),
            bands=number("bands"),
            rows_per_segment=max(1, number_in(sink, run.get("plan"), "rows_per_segment")),
        )

    @property
    def segments(self) -> int:
        return -(-self.rows // self.rows_per_segment)

    def places(self, segment: int) -> list[tuple[int, int]]:
        """First sample and first channel of each tile, in order."""
        row0 = segment * self.rows_per_segment
        row1 = min(self.rows, row0 + self.rows_per_segment)
        return [
            (
                self.sample_start + row * self.row_stride,
                self.channel_start + band * self.band_stride,
            )
            for row in range(row0, row1)
            for band in range(self.bands)
        ]


class _Claim(NamedTuple):
    """What a record says of an image."""

    segment: int
    key: str
    sha256: Any


class _Inspection:
    """One look at all files. What is kept of each tile is the name of its image, if anything."""

    def __init__(
        self, sink: Sink, holder: Holder | None, on_progress: Callable[[int, int], None] | None
    ) -> None:
        self._sink, self._holder, self._on_progress = sink, holder, on_progress
        self._layout = _Layout.of(sink)
        self._tally = Tally()
        self._manifests = {METADATA_KEY: hashlib.sha256(), UNDELIVERED_KEY: hashlib.sha256()}
        self._csv = hashlib.sha256()
        self._table = CsvTable(self._csv.update)
        self._faults: list[Fault] = []
        self._finished: set[int] = set()
        self._unclaimed: set[str] = set()
        self._foreign: list[str] = []

    def result(self) -> Verification:
        """Look at everything."""
        began = time.monotonic()
        numbers = self._list()
        images = sum(kind_of(key) == "image" for key in self._unclaimed)
        read = 0
        self._report(read, images)
        for fault in each(self._sink, self._check, self._claims(numbers)):
            read += 1
            self._report(read, max(read, images))
            if fault is not None:
                self._faults.append(fault)
        at_work = self._holder is not None
        return Verification(
            out=self._sink.location,
            segments=self._layout.segments,
            to_do=tuple(
                number for number in range(self._layout.segments) if number not in self._finished
            ),
            tiles={name: n for name, n in self._tally.totals().statuses.items() if n},
            images=read,
            faults=tuple(sorted(self._faults, key=lambda fault: (fault.segment, fault.key))),
            extra=() if at_work else tuple(sorted(self._unclaimed)),
            manifests=() if at_work else tuple(self._out_of_date()),
            foreign=tuple(self._foreign),
            holder=self._holder,
            repaired=False,
            seconds=time.monotonic() - began,
        )

    def _report(self, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _list(self) -> list[int]:
        """Sort all files by what they are; return the segments that have one."""
        files = {segment_key(number): number for number in range(self._layout.segments)}
        numbers = []
        for key in self._sink.list():
            if key in files:
                numbers.append(files[key])
            elif (kind := kind_of(key)) in ("image", "segment"):
                self._unclaimed.add(key)
            elif kind is None:
                self._foreign.append(key)
        self._unclaimed.update(_leftovers(self._sink))
        return sorted(numbers)

    def _claims(self, numbers: list[int]) -> Iterator[_Claim]:
        """Go through the segments' files, and tell what they say of images."""
        for segment, data, rows in segment_files(self._sink, numbers):
            if data is None:
                continue
            self._finished.add(segment)
            if rows is None:
                self._faults.append(Fault(segment, segment_key(segment), "torn"))
                continue
            for lines, manifest in zip(
                manifest_lines(data, rows), self._manifests.values(), strict=True
            ):
                manifest.update(b"".join(lines))
            self._table.write(rows)
            if not self._fits(segment, rows):
                self._faults.append(Fault(segment, segment_key(segment), "misplaced"))
            self._tally.add(rows)
            for row in rows:
                key = file_of(row)
                if key is not None and kind_of(key) == "image":
                    self._unclaimed.discard(key)
                    yield _Claim(segment, key, row["sha256"])

    def _fits(self, segment: int, rows: list[Row]) -> bool:
        """Whether a segment's tiles are the plan's, and its files such as a run makes."""
        keys = [key for key in map(file_of, rows) if key is not None]
        ours = all(kind_of(key) == "image" for key in keys) and len(set(keys)) == len(keys)
        return ours and sorted(map(place_of, rows)) == self._layout.places(segment)

    def _check(self, claim: _Claim) -> Fault | None:
        """Read an image; what is wrong with it."""
        try:
            data = self._sink.get(claim.key)
        except DestinationError as error:
            if getattr(error.__cause__, "errno", None) not in _UNREADABLE:
                raise
            return Fault(claim.segment, claim.key, "torn")
        if data is not None and hashlib.sha256(data).hexdigest() == claim.sha256:
            return None
        # A run that is at work may have made the segment again meanwhile.
        again = parse_segment(self._sink.get(segment_key(claim.segment)), claim.segment) or ()
        if (claim.key, claim.sha256) not in ((file_of(row), row["sha256"]) for row in again):
            return None
        return Fault(claim.segment, claim.key, "missing" if data is None else "torn")

    def _out_of_date(self) -> Iterator[str]:
        """Manifests that are not what the segments say; tables need not be there."""
        for key, manifest in self._manifests.items():
            data = self._sink.get(key)
            if data is None or hashlib.sha256(data).digest() != manifest.digest():
                yield key
        sha256 = self._manifests[METADATA_KEY].hexdigest()
        self._table.finish(sha256)
        data = self._sink.get(MANIFEST_KEYS["csv"])
        if data is not None and hashlib.sha256(data).digest() != self._csv.digest():
            yield MANIFEST_KEYS["csv"]
        data = self._sink.get(MANIFEST_KEYS["parquet"])
        if data is not None and not parquet_is_of(data, sha256):
            yield MANIFEST_KEYS["parquet"]


def _leftovers(sink: Sink) -> Iterator[str]:
    """What killed writers left in a folder; a container shows nothing of the kind."""
    if isinstance(sink, LocalSink):
        root = Path(sink.location)
        for path in root.rglob(f"{TEMPORARY}*"):
            yield path.relative_to(root).as_posix()
