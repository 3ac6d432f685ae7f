"""One segment's chunks: fetched ahead, decoded, put in a ring, in bounded memory.

Loader threads walk the segment one column of stored chunks (one stretch of time, all
selected channels) at a time. Each fetches the next chunk and, when the ring has room for its
column, decodes it: into the ring itself where all of the chunk is wanted, else a few channels at a
time on the way there. So there is always a request in flight for each thread, loading
runs ahead of the work by what the ring holds and one chunk's bytes for each thread, and every
stored chunk is fetched and decoded once. What a chunk, the time axis or the sample counter says
about a row of tiles becomes the row's spans.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import LifoQueue
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from das_gpu.archive import Archive
from das_gpu.backends import Ring
from das_gpu.chunks import Chunk
from das_gpu.codec import Scratch
from das_gpu.errors import ChunkError, InterruptedRunError
from das_gpu.model import RingLayout, RowWindow, Segment
from das_gpu.patience import cancelled_by
from das_gpu.plan import Plan
from das_gpu.pulse import Pulse
from das_gpu.spans import archive_window, column_samples, core, held, row_spans
from das_gpu.timeline import Lost, Timeline

OnMissing = Literal["skip", "error", "fill"]

_LOOK_S = 0.5
_POLL_S = 0.001
"""Between looks at a ring that has something on its way."""
AXES = -1
"""The job of a column that reads the time axis and its companions."""


@dataclass
class Traffic:
    """What a stream has fetched so far."""

    chunks: int = 0
    stored_bytes: int = 0


@dataclass
class _Column:
    """A column of stored chunks on its way into the ring."""

    pending: int
    ready: bool = False
    lost: dict[int, Lost] = field(default_factory=dict)
    partial: dict[int, dict[int, NDArray[np.float64]]] = field(default_factory=dict)


class SegmentStream:
    """The rows of a segment, in order, while loaders fetch what comes next.

    Use as a context manager and iterate; call `release` when a row's samples are no longer
    needed (iterating on does so too).

    Parameters
    ----------
    archive, plan, segment
        Where to read, and what.
    ring : Ring
        Laid out as ``layout``.
    layout : RingLayout
        See `das_gpu.spans.ring_layout`.
    loaders : int
        Threads that fetch and decode: requests in flight.
    decoders : int
        Threads of these that may decode at a time, each into memory of its own.
    on_missing : {"skip", "error", "fill"}
        A lost chunk loses its tiles, stops the segment, or makes its channels dead.
    pulse : Pulse, optional
        Beats with every chunk; when it is cancelled, waiting raises ``InterruptedRunError``.
    """

    def __init__(
        self,
        archive: Archive,
        plan: Plan,
        segment: Segment,
        ring: Ring,
        layout: RingLayout,
        *,
        loaders: int,
        decoders: int | None = None,
        on_missing: OnMissing = "skip",
        pulse: Pulse | None = None,
    ) -> None:
        self.traffic = Traffic()
        self._archive, self._plan, self._segment = archive, plan, segment
        self._ring, self._layout = ring, layout
        self._on_missing, self._pulse = on_missing, pulse or Pulse()
        self._chunk_rows, self._columns = plan.chunk_grid(segment)
        self._timeline = Timeline(archive, strict=on_missing == "error")
        self._change = threading.Condition()
        self._jobs = iter(
            [(column, row) for column in self._columns for row in (AXES, *self._chunk_rows)]
        )
        jobs_per_column = len(self._chunk_rows) + 1
        self._state = {column: _Column(jobs_per_column) for column in self._columns}
        self._low = layout.first_slot(layout.bounds[0])
        self._transposed = plan.acquisition.dims[0] == "time"
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        # The last one used is the first to be used again: it is still in the processor's cache.
        self._scratches: LifoQueue[Scratch] = LifoQueue()
        for _ in range(min(decoders or loaders, loaders)):
            self._scratches.put(Scratch())
        self._threads = [
            threading.Thread(target=self._load, name=f"das-gpu-loader-{n}", daemon=True)
            for n in range(loaders)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Tell the loaders to stop, in the middle of a request too; safe from any thread."""
        with self._change:
            self._closed.set()
            self._change.notify_all()
        self._ring.stop()

    def __iter__(self) -> Iterator[RowWindow]:
        """Yield each row as soon as its window is in the ring."""
        for row in range(self._segment.row0, self._segment.row1):
            stop = min(archive_window(self._plan, row)[1], self._segment.read.t1)
            last = (stop - 1) // self._plan.acquisition.chunk_shape[1]
            self._await(last)
            self._ring.flush()
            yield self._row_window(row)
            self.release(row)

    def release(self, row: int) -> None:
        """Let the loaders overwrite what only this row and earlier ones needed."""
        held0 = held(self._plan, archive_window(self._plan, row + 1)[0])
        low, _ = self._layout.oldest(held0)
        # A column that is still being loaded stays where it is.
        if self._state[low].ready:
            self._ring.keep(held0)
            low = self._layout.first_slot(held0)
        with self._change:
            self._low = max(self._low, low)
            self._timeline.forget(archive_window(self._plan, row + 1)[0])
            self._change.notify_all()

    # --- rows ---------------------------------------------------------------------------

    def _await(self, column: int) -> None:
        """Wait until this column and all before it are in the ring."""
        with self._change:
            for wanted in range(self._columns.start, column + 1):
                state = self._state.get(wanted)
                while state is not None and not state.ready and self._failure is None:
                    if self._closed.is_set() or self._pulse.cancelled.is_set():
                        raise InterruptedRunError("The segment was cancelled.")
                    self._change.wait(_POLL_S if self._ring.flush() else _LOOK_S)
                if self._failure is not None:
                    raise self._failure

    def _row_window(self, row: int) -> RowWindow:
        """Spans, times and quality of a row whose samples are in the ring."""
        plan = self._plan
        w0, w1 = archive_window(plan, row)
        t0, t1 = core(plan, row)
        cuts = self._timeline.cuts(max(0, w0), min(w1, plan.acquisition.n_samples))
        lost = {chunk_row: self._lost(chunk_row, w0, w1) for chunk_row in self._chunk_rows}
        start_ns, end_ns = self._timeline.limits(t0, t1, plan.tile_span)
        return RowWindow(
            row=row,
            held0=held(plan, w0),
            length=plan.window_span // plan.hold_step,
            spans=row_spans(plan, row, cuts, lost, fill=self._on_missing == "fill"),
            start_ns=start_ns,
            end_ns=end_ns,
            quality=self._timeline.quality(t0, t1),
        )

    def _lost(self, chunk_row: int, w0: int, w1: int) -> list[Lost]:
        """Chunks of a chunk row that are lost and touch a window."""
        width = self._plan.acquisition.chunk_shape[1]
        columns = range(
            max(w0 // width, self._columns.start), min(-(-w1 // width), self._columns.stop)
        )
        return [
            self._state[column].lost[chunk_row]
            for column in columns
            if chunk_row in self._state[column].lost
        ]

    # --- loaders ------------------------------------------------------------------------

    def _load(self) -> None:
        """Take jobs in order until there are none, the stream is closed, or one fails."""
        try:
            with cancelled_by(self._closed):
                while (job := self._next_job()) is not None:
                    self._run_job(*job)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that iterates
            with self._change:
                self._failure = self._failure or error
            self.close()

    def _next_job(self) -> tuple[int, int] | None:
        with self._change:
            return None if self._closed.is_set() else next(self._jobs, None)

    def _await_room(self, column: int) -> None:
        """Wait until the ring has a slot for the column."""
        with self._change:
            while column - self._low >= self._layout.slots:
                if self._closed.is_set():
                    raise InterruptedRunError("The segment was cancelled.")
                self._change.wait()

    @contextmanager
    def _scratch(self) -> Iterator[Scratch]:
        """Memory to decode into, when one of those who decode has done."""
        scratch = self._scratches.get()
        try:
            yield scratch
        finally:
            self._scratches.put(scratch)

    def _run_job(self, column: int, chunk_row: int) -> None:
        lost: Lost | None = None
        start, stop = column_samples(self._plan, self._segment, column)
        if chunk_row == AXES:
            self._timeline.read(start, stop)
        else:
            lost = self._read_chunk(column, chunk_row)
        self._pulse.beat(0)
        state = self._state[column]
        with self._change:
            if lost is not None:
                state.lost[chunk_row] = lost
            state.pending -= 1
            last = state.pending == 0
            self._change.notify_all()
        if last:
            self._store_straddling(state.partial, column)
            with self._change:
                state.partial = {}
                state.ready = True
                self._change.notify_all()

    def _read_chunk(self, column: int, chunk_row: int) -> Lost | None:
        """Fetch and decode one chunk and keep its wanted part; or say that it is lost."""
        data = self._archive.data
        index = (column, chunk_row) if self._transposed else (chunk_row, column)
        try:
            stored = data.load(index, partial(self._put, column, chunk_row))
        except ChunkError as error:
            if self._on_missing == "error":
                raise
            return Lost.by(error, *column_samples(self._plan, self._segment, column))
        with self._change:
            self.traffic.chunks += 1
            self.traffic.stored_bytes += stored
        return None

    def _put(self, column: int, chunk_row: int, chunk: Chunk) -> None:
        """Decode a chunk as soon as the ring has room, and keep its wanted part there."""
        self._await_room(column)
        if (whole := self._whole(column, chunk_row)) is not None:
            with self._ring.room(column, *whole) as room:
                chunk.decode(room.T if self._transposed else room)
            return
        with self._scratch() as scratch:
            if self._plan.recipe.selection.channel_reduce == "stride":
                self._keep_some(column, chunk_row, chunk, scratch)
            else:
                samples = chunk.decode(scratch.array(chunk.shape, chunk.dtype))
                self._keep_means(column, chunk_row, samples.T if self._transposed else samples)

    def _whole(self, column: int, chunk_row: int) -> tuple[int, int] | None:
        """The channels of a chunk all of which is wanted as it is stored; else None."""
        plan, layout = self._plan, self._layout
        height, width = plan.acquisition.chunk_shape
        data_type = plan.acquisition.dtype
        as_stored = plan.channel_step == plan.hold_step == 1 and layout.dtype == data_type
        if not as_stored or self._transposed != self._ring.time_major:
            return None
        start, stop = column_samples(plan, self._segment, column)
        k0 = chunk_row * height - plan.channel_start
        inside = k0 >= 0 and k0 + height <= plan.kept_channels
        return (k0, k0 + height) if inside and stop - start == width else None

    def _keep_some(self, column: int, chunk_row: int, chunk: Chunk, scratch: Scratch) -> None:
        """Put the wanted channels and samples of a chunk, as it is decoded, in the ring."""
        low, high = self._chunk_channels(chunk_row)
        step, kept = self._plan.channel_step, self._plan.kept_channels
        k0, k1 = max(0, -(-low // step)), min(kept, -(-high // step))
        if k1 <= k0:
            return
        channels, samples = range(k0 * step - low, k1 * step - low, step), self._held(column)
        along, across = (samples, channels) if self._transposed else (channels, samples)
        columns = slice(across.start, across.stop, across.step)
        with self._ring.room(column, k0, k1) as room:
            target = room.T if self._transposed else room
            pick = self._ring.pick
            if pick is not None and chunk.pick((along, across), pick, target, scratch):
                return
            for first, rows in chunk.runs(scratch):
                edges = (first, first + len(rows))
                i0, i1 = (max(0, -((along.start - edge) // along.step)) for edge in edges)
                wanted = along[i0:i1]
                place = slice(wanted.start - first, wanted.stop - first, wanted.step)
                target[i0:i1] = rows[place, columns]

    def _chunk_channels(self, chunk_row: int) -> tuple[int, int]:
        """Channels of a chunk row, counted from the first that is asked for; half-open."""
        height, c0 = self._plan.acquisition.chunk_shape[0], self._plan.channel_start
        return chunk_row * height - c0, (chunk_row + 1) * height - c0

    def _held(self, column: int) -> range:
        """Places of the held samples in the chunks of a column."""
        width, step = self._plan.acquisition.chunk_shape[1], self._plan.hold_step
        start, stop = self._layout.samples(column)
        first = self._plan.sample_start - column * width
        return range(first + start * step, first + stop * step, step)

    def _keep_means(self, column: int, chunk_row: int, block: NDArray[Any]) -> None:
        """Put means over groups of channels of a decoded (channel, sample) block in the ring."""
        plan, step, held = self._plan, self._plan.channel_step, self._held(column)
        samples = block[:, held.start : held.stop : held.step]
        low, high = self._chunk_channels(chunk_row)
        k0 = max(0, -(-low // step))
        k1 = max(k0, min(plan.kept_channels, high // step))
        if k1 > k0:
            whole = samples[k0 * step - low : k1 * step - low]
            groups = whole.reshape(k1 - k0, step, whole.shape[1])
            with np.errstate(invalid="ignore"), self._ring.room(column, k0, k1) as room:
                np.divide(groups.sum(axis=1, dtype=np.float64), step, out=room)
        for k in {low // step, k1}:
            members = range(max(k * step, low), min((k + 1) * step, high))
            if 0 <= k < plan.kept_channels and 0 < len(members) < step:
                part = samples[members.start - low : members.stop - low]
                with self._change:
                    groups_of = self._state[column].partial.setdefault(k, {})
                    groups_of[chunk_row] = part.sum(axis=0, dtype=np.float64)

    def _store_straddling(
        self, partial: dict[int, dict[int, NDArray[np.float64]]], column: int
    ) -> None:
        """Put groups in the ring whose members lie in several chunk rows, summed in order."""
        for k, parts in partial.items():
            with self._ring.room(column, k, k + 1) as room:
                total = np.sum([parts[row] for row in sorted(parts)], axis=0)
                np.divide(total, self._plan.channel_step, out=room[0])
