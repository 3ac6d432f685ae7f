"""What the files of a run say has come of it. Nothing here writes."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from das_gpu.keys import QUARANTINE, SEGMENTS, marker_key, segment_key
from das_gpu.model import Status
from das_gpu.runfile import Store
from das_gpu.segmentfile import LOST, Row, any_lost, marker_reason, parse_segment

UNFINISHED_CODE = 10
"""Exit code of a run with segments to do."""
LOSSES_CODE = 3
"""Exit code of a finished run with tiles missing, corrupt or in error."""

_NUMBER = re.compile(r"\d+")
_AHEAD = 2

_S = TypeVar("_S")
_T = TypeVar("_T")


class Finished(NamedTuple):
    """A finished segment: its number, its file, and the file's rows."""

    segment: int
    data: bytes
    rows: list[Row]


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
        return sum(self.statuses[status] for status in LOST)


class Tally:
    """Counts finished segments, one after the other."""

    def __init__(self) -> None:
        self._segments = 0
        self._tiles: Counter[tuple[str, int]] = Counter()
        self._dead_channels: Counter[int] = Counter()

    def add(self, rows: Collection[Row]) -> None:
        """Count a segment."""
        self._segments += 1
        self._tiles.update((row["status"], row["quality"]) for row in rows)
        self._dead_channels.update(row["dead_channels"] for row in rows)

    def totals(self) -> Totals:
        """What has been counted."""
        statuses = dict.fromkeys(map(str, Status), 0)
        by_bit: Counter[int] = Counter()
        for (status, quality), n in self._tiles.items():
            statuses[status] += n
            by_bit.update({1 << i: n for i in range(quality.bit_length()) if quality >> i & 1})
        return Totals(
            segments=self._segments,
            statuses=statuses,
            dead_channels=sum(dead * n for dead, n in self._dead_channels.items()),
            tiles_with_dead_channels=sum(n for dead, n in self._dead_channels.items() if dead),
            tiles_by_quality_bit=dict(sorted(by_bit.items())),
        )


def segment_files(
    sink: Store, numbers: Collection[int]
) -> Iterator[tuple[int, bytes | None, list[Row] | None]]:
    """Number, content and rows of each of these segments' files, in order.

    A few are in memory at a time. Of a file that is not sound there are no rows.
    """
    contents = each(sink, sink.get, map(segment_key, numbers))
    for segment, data in zip(numbers, contents, strict=True):
        yield segment, data, parse_segment(data, segment)


def finished(sink: Store, n_segments: int) -> Iterator[Finished]:
    """Every finished segment of a run, in order.

    One listing tells which files are there: a store may take as long to say of each one that
    it isn't.
    """
    present = sorted(number for number in segments_in(sink) if number < n_segments)
    for segment, data, rows in segment_files(sink, present):
        if data is not None and rows is not None:
            yield Finished(segment, data, rows)


def segments_in(sink: Store) -> set[int]:
    """Numbers of the segments that have a file, sound or not."""
    return _numbers(sink.list(SEGMENTS), segment_key)


def markers_in(sink: Store) -> set[int]:
    """Numbers of the segments that have a file in ``quarantine/``."""
    return _numbers(sink.list(QUARANTINE), marker_key)


def quarantined(sink: Store, marked: Collection[int]) -> dict[int, str]:
    """Segments in quarantine, with their reasons.

    A marker counts as long as its segment has lost tiles. One whose segment has been delivered
    since, or has no file, was left by a kill.

    Parameters
    ----------
    sink : Sink
    marked : collection of int
        Segments that have a marker.
    """
    found = segment_files(sink, sorted(marked))
    held = [segment for segment, _, rows in found if rows is not None and any_lost(rows)]
    reasons = each(sink, sink.get, map(marker_key, held))
    return {segment: marker_reason(data) for segment, data in zip(held, reasons, strict=True)}


def each(sink: Store, act: Callable[[_S], _T], things: Iterable[_S]) -> Iterator[_T]:
    """Do something with every file, as many at once as are of use.

    Results come in order, a few ahead of the taker.
    """
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(sink.writers, thread_name_prefix="das-gpu-files") as pool:
        try:
            for thing in things:
                waiting.append(pool.submit(act, thing))
                if len(waiting) > _AHEAD * sink.writers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def delete(sink: Store, keys: Iterable[str]) -> None:
    """Delete files, several at once."""
    for _ in each(sink, sink.delete, keys):
        pass


def _numbers(keys: Iterable[str], name: Callable[[int], str]) -> set[int]:
    """Numbers of the segments that have these names; others are somebody else's files."""
    numbers = ((int(found[0]), key) for key in keys if (found := _NUMBER.search(key)))
    return {number for number, key in numbers if name(number) == key}
