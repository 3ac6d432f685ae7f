"""What is done, what is still to do, and the manifest that users read.

A run's folder holds ``run.json`` (what the run is), one ``segments/00042.jsonl`` per finished
segment (its tile records), ``metadata.jsonl`` (the delivered tiles) and ``undelivered.jsonl``
(the others, with their reasons). A segment is done when its file is there: it is written
last, after the images it vouches for are safe on the disk, whole or not at all. Both
manifests are made from the segments' files alone, so they can be lost and made again.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from das_gpu.errors import DestinationError
from das_gpu.model import Status, TileRecord
from das_gpu.runfile import (
    RUN_KEY,
    Store,
    as_json,
    note_environment,
    read_identity,
    read_run,
    refuse_differences,
    write_run,
)

__all__ = ["Ledger", "Totals", "read_identity"]

METADATA_KEY = "metadata.jsonl"
UNDELIVERED_KEY = "undelivered.jsonl"
RETRY_STATUSES = (Status.MISSING, Status.CORRUPT, Status.ERROR)

# Everything else in the folder is somebody else's and is never deleted.
_OWN_FILES = (METADATA_KEY, "manifest.parquet", UNDELIVERED_KEY, "report.html")
_OWN_SEGMENT = re.compile(r"segments/\d{5,}\.jsonl")
_OWN_IMAGE = re.compile(
    r"images/(\d{4}-\d\d-\d\d/\d\d/\d{8}T\d{9}Z_ch\d+"
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+_start[\d.e+-]+)\.(png|npy)"
)
_ALL_FIELDS = frozenset(field.name for field in fields(TileRecord))
_RECORD_SHAPES = (_ALL_FIELDS - {"array_file"}, _ALL_FIELDS - {"file_name"})
_DELIVERED = {status.value: status.delivered for status in Status}
_EXAMPLES = 3
_AHEAD = 2

_Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run has come to, over all its finished segments.

    Attributes
    ----------
    segments : int
        Finished segments.
    statuses : mapping of str to int
        Tiles of each status; every status is a key.
    dead_channels, tiles_with_dead_channels : int
        Sum over the tiles, and how many of them it comes from.
    tiles_by_quality_bit : mapping of int to int
        For each bit of ``quality`` (1, 2, 4, ...) that occurs, the tiles that have it.
    """

    segments: int
    statuses: Mapping[str, int]
    dead_channels: int
    tiles_with_dead_channels: int
    tiles_by_quality_bit: Mapping[int, int]

    @property
    def tiles(self) -> int:
        """Tiles of all statuses."""
        return sum(self.statuses.values())

    @property
    def delivered(self) -> int:
        """Tiles that made an image."""
        return sum(self.statuses[status] for status in Status if status.delivered)

    @property
    def lost(self) -> int:
        """Tiles that a rerun tries again; a gap in the recording is not among them."""
        return sum(self.statuses[status] for status in RETRY_STATUSES)


class Ledger:
    """The state of one run in its folder; make it with `Ledger.open`.

    Nothing is cached: what it answers is what the folder holds. The process that hands out
    segments alone writes it; a worker in another process sends its records once its images are
    on the disk.

    Attributes
    ----------
    n_segments : int
        Segments of the whole run, numbered from 0.
    resumed : bool
        True when the folder held this run already.
    warnings : tuple of str
        Differences in software or machine since this run was last worked on.
    """

    def __init__(
        self, sink: Store, n_segments: int, *, resumed: bool, warnings: Sequence[str] = ()
    ) -> None:
        self._sink = sink
        self.n_segments = n_segments
        self.resumed = resumed
        self.warnings = tuple(warnings)

    @classmethod
    def open(
        cls,
        sink: Store,
        identity: Mapping[str, Any],
        header: Mapping[str, Any],
        *,
        overwrite: bool = False,
        n_segments: int,
    ) -> Ledger:
        """Start a run in an empty folder, or continue the same run.

        Leftovers of killed writers are removed, so no other process may be writing there.

        Parameters
        ----------
        sink : Sink
        identity : mapping
            All that decides the files' content; JSON values, nested as you like.
        header : mapping
            What else ``run.json`` is to hold: JSON values, no secrets. Of its parts
            ``versions`` and ``machine`` are compared when a run continues, and what has
            changed is noted under ``continued``.
        overwrite : bool
            Delete the run that the folder holds, whatever its identity, and start over.
            Files that no run has made stay.
        n_segments : int
            Segments of the whole run.

        Raises
        ------
        IdentityError
            When the folder holds a run with another identity; every difference is named.
        DestinationError
            When the folder holds something else, or cannot be read or written.
        """
        from importlib.metadata import version

        current = as_json({"das_gpu": version("das-gpu"), "identity": identity, **header})
        earlier = read_run(sink)
        if earlier is None:
            _refuse_occupied(sink)
        elif overwrite:
            _delete_run(sink)
        else:
            refuse_differences(sink, earlier["identity"], current["identity"])
        sink.sweep()
        if earlier is None or overwrite:
            write_run(sink, current)
            return cls(sink, n_segments, resumed=False)
        warnings = note_environment(sink, earlier, current)
        return cls(sink, n_segments, resumed=True, warnings=warnings)

    def done(self, segment_id: int) -> bool:
        """Whether the segment's file is there and whole, whatever its tiles' statuses."""
        return _read_segment(self._sink, segment_id) is not None

    def pending(self, retry_statuses: Collection[str] = RETRY_STATUSES) -> list[int]:
        """Segments to work on: those not done, and those with a tile to be tried again.

        Parameters
        ----------
        retry_statuses : collection of str
            A tile with one of these statuses makes its segment pending.
        """
        retry = frozenset(retry_statuses)
        settled = {
            segment_id
            for segment_id, _, rows in self._finished()
            if not any(row["status"] in retry for row in rows)
        }
        return [each for each in range(self.n_segments) if each not in settled]

    def finish_segment(self, segment_id: int, records: Sequence[TileRecord]) -> None:
        """Declare a segment done, after its images have been put through the same sink.

        The images are forced to the disk, then the segment's file is written, then images
        of an earlier attempt that are no longer in the records are deleted. A kill or a
        power cut at any point leaves the earlier state or the new one.

        Parameters
        ----------
        segment_id : int
        records : sequence of TileRecord
            All tiles of the segment, at least one.

        Raises
        ------
        ValueError
            When the records could not be read back: none at all, another segment's, an
            unknown status, a file where none is delivered or the reverse, a level that is
            not finite.
        DestinationError
            When the destination cannot be written.
        """
        key = _segment_key(segment_id)
        data = b"".join(_line(record.as_json()) for record in records)
        rows = _parse_segment(data, segment_id)
        if rows is None:
            raise ValueError(
                f"The {len(records)} records given for segment {segment_id} do not make a "
                f"readable {key}: it takes at least one, all of that segment, each with a known "
                f"status, and with a file exactly when that status is delivered."
            )
        earlier = {_key(row) or "" for row in _read_segment(self._sink, segment_id) or ()}
        self._sink.flush()
        self._sink.put(key, data)
        stale = earlier.difference(map(_key, rows))
        _delete(self._sink, sorted(filter(_OWN_IMAGE.fullmatch, stale)))

    def publish(self) -> Totals:
        """Write ``metadata.jsonl`` and ``undelivered.jsonl`` anew from the finished segments.

        A few segments are in memory at a time. Lines are sorted by time, then channel.

        Returns
        -------
        Totals
            Over the finished segments.
        """
        segments = 0
        tiles: Counter[tuple[str, int]] = Counter()
        dead_channels: Counter[int] = Counter()
        with (
            self._sink.open_writer(METADATA_KEY) as metadata,
            self._sink.open_writer(UNDELIVERED_KEY) as undelivered,
        ):
            for _, data, rows in self._finished():
                segments += 1
                tiles.update((row["status"], row["quality"]) for row in rows)
                dead_channels.update(row["dead_channels"] for row in rows)
                # Segments are whole tile rows in order of time: sorting each sorts all.
                lines = sorted(zip(rows, data.splitlines(keepends=True), strict=True), key=_place)
                metadata.writelines(_metadata_line(line) for row, line in lines if _key(row))
                undelivered.writelines(line for row, line in lines if not _key(row))
        return _totals(segments, tiles, dead_channels)

    def _finished(self) -> Iterator[tuple[int, bytes, list[_Row]]]:
        """Number, file and rows of each finished segment, in order.

        One listing tells which files are there: a store may take as long to say of each one
        that it isn't.
        """
        present = set(self._sink.list("segments/"))
        numbers = [each for each in range(self.n_segments) if _segment_key(each) in present]
        contents = _each(self._sink, self._sink.get, map(_segment_key, numbers))
        for segment_id, data in zip(numbers, contents, strict=True):
            rows = _parse_segment(data, segment_id)
            if data is not None and rows is not None:
                yield segment_id, data, rows


def _each(sink: Store, act: Callable[[str], _T], keys: Iterable[str]) -> Iterator[_T]:
    """Do something with every file, several at once; results in order, a few ahead of the taker."""
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(sink.writers, thread_name_prefix="das-gpu-ledger") as pool:
        try:
            for key in keys:
                waiting.append(pool.submit(act, key))
                if len(waiting) > _AHEAD * sink.writers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _delete(sink: Store, keys: Iterable[str]) -> None:
    for _ in _each(sink, sink.delete, keys):
        pass


def _totals(
    segments: int, tiles: Mapping[tuple[str, int], int], dead_channels: Mapping[int, int]
) -> Totals:
    """Totals from counts of (status, quality) and of dead channels, each over the tiles."""
    statuses = dict.fromkeys(map(str, Status), 0)
    by_bit: Counter[int] = Counter()
    for (status, quality), n in tiles.items():
        statuses[status] += n
        by_bit.update({1 << i: n for i in range(quality.bit_length()) if quality >> i & 1})
    return Totals(
        segments=segments,
        statuses=statuses,
        dead_channels=sum(dead * n for dead, n in dead_channels.items()),
        tiles_with_dead_channels=sum(n for dead, n in dead_channels.items() if dead),
        tiles_by_quality_bit=dict(sorted(by_bit.items())),
    )


def _segment_key(segment_id: int) -> str:
    return f"segments/{segment_id:05d}.jsonl"


def _line(row: Mapping[str, object]) -> bytes:
    # JSON has no NaN: readers of the manifest (Arrow, pandas) would fail on the file.
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _metadata_line(line: bytes) -> bytes:
    """Write an empty text for a missing reason.

    Arrow-based readers (Hugging Face `datasets` among them) infer each column's type from
    the first megabytes: a column of nulls with the first text far below them is an error.
    """
    # The line is our own writing, where no text can contain these bytes: its quotes would
    # be escaped. Writing the row anew would cost more than all the rest.
    return line.replace(b'"reason": null', b'"reason": ""')


def _place(entry: tuple[_Row, bytes]) -> tuple[int, int]:
    row, _ = entry
    return row["sample_start"], row["channel_start"]


def _key(row: _Row) -> str | None:
    """File that the tile's row vouches for."""
    key: str | None = row["file_name"] if "file_name" in row else row["array_file"]
    return key


def _read_segment(sink: Store, segment_id: int) -> list[_Row] | None:
    return _parse_segment(sink.get(_segment_key(segment_id)), segment_id)


def _parse_segment(data: bytes | None, segment_id: int) -> list[_Row] | None:
    """Rows of a segment's file; None when it is absent, torn or otherwise unsound."""
    # A segment has at least one tile: an empty file is what a power cut leaves.
    if not data or not data.endswith(b"\n"):
        return None
    lines = data.splitlines()
    try:
        # As one array: twice as fast as line by line.
        rows: list[_Row] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return None
    whole = len(rows) == len(lines) and all(_sound(row, segment_id) for row in rows)
    return rows if whole else None


def _sound(row: object, segment_id: int) -> bool:
    if not isinstance(row, dict) or row.keys() not in _RECORD_SHAPES:
        return False
    status = row["status"]
    return (
        row["segment"] == segment_id
        and isinstance(status, str)
        and isinstance(row["sample_start"], int)
        and isinstance(row["channel_start"], int)
        and isinstance(row["dead_channels"], int)
        and isinstance(row["quality"], int)
        and _DELIVERED.get(status) is isinstance(_key(row), str)
    )


def _refuse_occupied(sink: Store) -> None:
    found = sink.list(limit=_EXAMPLES)
    if found:
        raise DestinationError(
            f"{sink.location} holds something else than a das-gpu run: there is no {RUN_KEY}, "
            f"but there is {', '.join(found)}. Choose an empty or a new output folder."
        )


def _delete_run(sink: Store) -> None:
    """Delete a run's own files, so that a kill at any point leaves no false claim.

    What vouches goes before what it vouches for, and is gone for good before that. The
    earlier ``run.json`` stays to be replaced: until then the folder is that run, with less
    and less of it done.
    """
    _delete(sink, (*_OWN_FILES, *filter(_OWN_SEGMENT.fullmatch, sink.list("segments/"))))
    sink.flush()
    _delete(sink, filter(_OWN_IMAGE.fullmatch, sink.list("images/")))
    sink.flush()
