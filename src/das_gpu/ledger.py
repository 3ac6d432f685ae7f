"""What is done, what is still to do, and the manifest that users read.

A run's folder holds ``run.json`` (what the run is), one ``segments/00042.jsonl`` per finished
segment (its tile records), ``metadata.jsonl`` (the delivered tiles) and ``undelivered.jsonl``
(the others, with their reasons). A segment is done when its file is there: it is written
last, after the images it vouches for are safe on the disk, whole or not at all. Both
manifests are made from the segments' files alone, so they can be lost and made again.

A segment that fails for reasons of its own gets a ``quarantine/00042.json`` besides: until it
is asked for, it is not tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from das_gpu.errors import DestinationError
from das_gpu.keys import (
    IMAGES,
    LOGS,
    METADATA_KEY,
    PRODUCTS,
    SHEETS,
    UNDELIVERED_KEY,
    kind_of,
    marker_key,
    segment_key,
)
from das_gpu.manifest import Format, tables
from das_gpu.model import TileRecord
from das_gpu.outcome import (
    Tally,
    Totals,
    delete,
    each,
    finished,
    markers_in,
    quarantined,
    segments_in,
)
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
from das_gpu.segmentfile import (
    LOST,
    Row,
    file_of,
    manifest_lines,
    marker_data,
    parse_segment,
    place_of,
    record_of,
    segment_data,
)
from das_gpu.state import STATE_KEY

__all__ = ["Ledger", "Totals", "read_identity"]

RETRY_STATUSES = LOST

_EXAMPLES = 3
_GLANCE = 100


class Ledger:
    """The state of one run in its folder; make it with `Ledger.open`.

    What it answers is what the files say. It remembers only which of them there are, for the
    process that hands out segments alone writes them; a worker in another process sends its
    records once its images are on the disk.

    Parameters
    ----------
    sink : Sink
        Where the run is.
    n_segments : int
        Segments of the whole run, numbered from 0.
    resumed : bool
        Whether the run was there already.
    warnings : sequence of str
        Differences in software or machine since it was last worked on.

    Attributes
    ----------
    n_segments, resumed, warnings
        As they were given.
    """

    def __init__(
        self, sink: Store, n_segments: int, *, resumed: bool, warnings: Sequence[str] = ()
    ) -> None:
        self._sink = sink
        self.n_segments = n_segments
        self.resumed = resumed
        self.warnings = tuple(warnings)
        self._present = segments_in(sink)
        self._marked = markers_in(sink)

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
            Files that no run has made stay, and so do the logs.
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
        ledger = cls(sink, n_segments, resumed=True, warnings=warnings)
        ledger._take_marks(ledger._marked.difference(ledger.quarantined()))
        return ledger

    def done(self, segment_id: int) -> bool:
        """Whether the segment's file is there and whole, whatever its tiles' statuses."""
        return self._rows(segment_id) is not None

    def pending(
        self, retry_statuses: Collection[str] = RETRY_STATUSES, *, quarantined: bool = False
    ) -> list[int]:
        """Segments to work on: those not done, and those with a tile to be tried again.

        Parameters
        ----------
        retry_statuses : collection of str
            A tile with one of these statuses makes its segment pending.
        quarantined : bool
            Segments in quarantine too.
        """
        retry = frozenset(retry_statuses)
        left_alone = set() if quarantined else self._marked
        settled = {
            segment_id
            for segment_id, _, rows in finished(self._sink, self.n_segments)
            if segment_id in left_alone or not any(row["status"] in retry for row in rows)
        }
        return [each for each in range(self.n_segments) if each not in settled]

    def quarantined(self) -> dict[int, str]:
        """Segments in quarantine, with the reasons."""
        return quarantined(self._sink, self._marked)

    def finish_segment(self, segment_id: int, records: Sequence[TileRecord]) -> None:
        """Declare a segment done, after its images have been put through the same sink.

        The images are forced to the disk, then the segment's file is written, then images
        of an earlier attempt that are no longer in the records are deleted, and the segment is
        taken out of quarantine. A kill or a power cut at any point leaves the earlier state or
        the new one.

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
        data, rows = segment_data(segment_id, records)
        earlier = self._rows(segment_id) if segment_id in self._present else None
        self._sink.flush()
        self._sink.put(segment_key(segment_id), data)
        self._present.add(segment_id)
        if earlier:
            vouched = {file_of(row) for row in rows}
            stale = {key for row in earlier if (key := file_of(row)) and key not in vouched}
            delete(self._sink, sorted(key for key in stale if kind_of(key) == "image"))
        if segment_id in self._marked:
            self._take_marks([segment_id])

    def give_up(self, segment_id: int, records: Sequence[TileRecord]) -> None:
        """Declare a segment done that could not be made.

        What an earlier run has delivered of it stays, as far as its images are still those: an
        attempt that came to nothing may have replaced some.

        Parameters
        ----------
        segment_id : int
        records : sequence of TileRecord
            All tiles of the segment, in error.

        Raises
        ------
        ValueError, DestinationError
            As by `finish_segment`.
        """
        rows = self._rows(segment_id) or []
        images = each(self._sink, self._image, rows)
        kept = {
            place_of(row): row
            for row, data in zip(rows, images, strict=True)
            if data is None or hashlib.sha256(data).hexdigest() == row["sha256"]
        }
        if len(kept) < len(records):
            found = (kept.get((record.sample_start, record.channel_start)) for record in records)
            pairs = zip(found, records, strict=True)
            self.finish_segment(segment_id, [record_of(row) if row else r for row, r in pairs])

    def _image(self, row: Row) -> bytes | None:
        """What is in the file that a row vouches for; None when it vouches for none."""
        key = file_of(row)
        return None if key is None else self._sink.get(key) or b""

    def quarantine(self, segment_id: int, reason: str, records: Sequence[TileRecord]) -> None:
        """Put a segment aside that fails for reasons of its own; see `pending`.

        What an earlier run has delivered of it stays. A kill at any point leaves the segment
        as it was, or in error: it is then tried again.

        Parameters
        ----------
        segment_id : int
        reason : str
            What happened, for people.
        records : sequence of TileRecord
            All tiles of the segment, in error; they are recorded when nothing else is.

        Raises
        ------
        ValueError, DestinationError
            As by `finish_segment`.
        """
        self.give_up(segment_id, records)
        self._sink.put(marker_key(segment_id), marker_data(segment_id, reason))
        self._marked.add(segment_id)

    def put_back(self, segment_ids: Iterable[int]) -> None:
        """Make segments pending again, durably; their images stay, to be written anew."""
        segments = sorted(set(segment_ids))
        self._take_marks(self._marked.intersection(segments))
        delete(self._sink, map(segment_key, segments))
        self._sink.flush()
        self._present.difference_update(segments)

    def publish(self, manifests: Collection[Format] = ()) -> Totals:
        """Write ``metadata.jsonl`` and ``undelivered.jsonl`` anew from the finished segments.

        A few segments are in memory at a time. Lines are sorted by time, then channel.

        Parameters
        ----------
        manifests : collection of {"parquet", "csv"}
            Write ``manifest.parquet`` or ``manifest.csv`` too, with the same lines.

        Returns
        -------
        Totals
            Over the finished segments.
        """
        tally, sha256 = Tally(), hashlib.sha256()
        with (
            self._sink.open_writer(METADATA_KEY) as metadata,
            self._sink.open_writer(UNDELIVERED_KEY) as undelivered,
            tables(self._sink, manifests) as written,
        ):
            for _, data, rows in finished(self._sink, self.n_segments):
                tally.add(rows)
                delivered, others = manifest_lines(data, rows)
                metadata.writelines(delivered)
                undelivered.writelines(others)
                for table in written:
                    table.write(rows)
                if written:
                    sha256.update(b"".join(delivered))
            for table in written:
                table.finish(sha256.hexdigest())
        return tally.totals()

    def _rows(self, segment_id: int) -> list[Row] | None:
        return parse_segment(self._sink.get(segment_key(segment_id)), segment_id)

    def _take_marks(self, segment_ids: Iterable[int]) -> None:
        """Take segments out of quarantine."""
        segments = sorted(segment_ids)
        if segments:
            delete(self._sink, map(marker_key, segments))
            self._sink.flush()
            self._marked.difference_update(segments)


def _refuse_occupied(sink: Store) -> None:
    for limit in (_GLANCE, None):
        seen = sink.list(limit=limit)
        # A run that came to nothing leaves its log, and may leave its state.
        found = [key for key in seen if not key.startswith(LOGS) and key != STATE_KEY]
        if found or len(seen) < _GLANCE:
            break
    if found:
        raise DestinationError(
            f"{sink.location} holds something else than a das-gpu run: there is no {RUN_KEY}, "
            f"but there is {', '.join(found[:_EXAMPLES])}. Choose an empty or a new output folder."
        )


def _delete_run(sink: Store) -> None:
    """Delete a run's own files, so that a kill at any point leaves no false claim.

    What vouches goes before what it vouches for, and is gone for good before that. The
    earlier ``run.json`` stays to be replaced: until then the folder is that run, with less
    and less of it done.
    """
    segments, markers = segments_in(sink), markers_in(sink)
    delete(sink, (*PRODUCTS, STATE_KEY, *map(marker_key, markers), *map(segment_key, segments)))
    sink.flush()
    delete(sink, (key for key in sink.list(IMAGES) if kind_of(key) == "image"))
    delete(sink, (key for key in sink.list(SHEETS) if kind_of(key) == "sheet"))
    sink.flush()
