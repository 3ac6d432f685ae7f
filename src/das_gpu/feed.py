"""Tiles as they are ready, for those who need no files: computed ahead, delivered one by one.

A thread walks the plan's segments by the way that `das_gpu.extract` takes, up to the images, and
puts each tile in a short queue. When the queue is full it waits, and the loaders before it, so
that a slow consumer costs no memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from das_gpu import backends, host
from das_gpu.archive import Archive
from das_gpu.backends import Array, Backend
from das_gpu.errors import InterruptedRunError, UsageError
from das_gpu.model import TileRecord
from das_gpu.plan import Plan
from das_gpu.pulse import Pulse, under
from das_gpu.recipe import Recipe, Setting, parse_channels
from das_gpu.run import SEGMENT_MINUTES, compiled_loops, default_loaders, prepare
from das_gpu.segment import opened_segment, record_of
from das_gpu.store import Access
from das_gpu.stream import OnMissing

__all__ = ["StreamedTile", "TileStream", "stream"]

AHEAD_ROWS = 2
"""Rows of tiles that wait for the consumer, unless it asks for another number of tiles."""


@dataclass(frozen=True)
class StreamedTile:
    """One tile and what is known of it, where the backend keeps its arrays.

    Implements the DLPack protocol: ``torch.from_dlpack(tile)`` and ``numpy.from_dlpack(tile)``
    take its array without a copy. It is nobody else's; it may be written to.

    Attributes
    ----------
    record : TileRecord
        As in a run's manifest; ``file_name`` and ``sha256`` are None, for there is no file.
    array : (height, width) uint8 or uint16, or (channel, sample) float32
        The image, or the envelope in dB re 1e-6 count: NumPy's, or CuPy's with the GPU backend.
    is_image : bool
        Which of the two it is.
    """

    record: TileRecord
    array: Array
    is_image: bool

    @property
    def pixels(self) -> Array:
        """The image, (height, width) uint8 or uint16; ``db_low`` and ``db_high`` give its levels.

        Raises
        ------
        UsageError
            The stream makes envelopes.
        """
        if not self.is_image:
            raise UsageError(
                "This stream makes envelopes, not images: take tile.envelope_db, or leave out "
                "envelopes=True and image.format = 'npy'."
            )
        return self.array

    @property
    def envelope_db(self) -> Array:
        """The envelope, (channel, sample) float32, dB re 1e-6 count.

        Raises
        ------
        UsageError
            The stream makes images.
        """
        if self.is_image:
            raise UsageError(
                "This stream makes images, not envelopes: take tile.pixels, or ask for "
                "das_gpu.stream(..., envelopes=True)."
            )
        return self.array

    def __dlpack__(self, **options: Any) -> Any:
        """Capsule of the array; see the DLPack protocol of the array API standard."""
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device that the array is on."""
        kind, number = self.array.__dlpack_device__()
        return int(kind), int(number)


class _Queue:
    """Tiles on their way from one thread to another; either side may end it."""

    def __init__(self, ahead: int) -> None:
        self.pulse = Pulse()
        self.skipped: list[TileRecord] = []
        self._ahead = ahead
        self._change = threading.Condition()
        self._tiles: deque[StreamedTile] = deque()
        self._ended = False
        self._failure: BaseException | None = None

    def put(self, tile: StreamedTile) -> None:
        """Add a tile as soon as there is room for it."""
        with self._change:
            self._change.wait_for(
                lambda: len(self._tiles) < self._ahead or self.pulse.cancelled.is_set()
            )
            if self.pulse.cancelled.is_set():
                raise InterruptedRunError("The stream was closed.")
            self._tiles.append(tile)
            self._change.notify_all()

    def get(self) -> StreamedTile | None:
        """Take the next tile as soon as there is one; None after the last one, or once closed."""
        with self._change:
            self._change.wait_for(lambda: bool(self._tiles) or self._ended)
            if self._tiles:
                tile = self._tiles.popleft()
                self._change.notify_all()
                return tile
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return None

    def end(self, failure: BaseException | None = None) -> None:
        """There will be no more tiles."""
        with self._change:
            self._failure = None if self.pulse.cancelled.is_set() else failure
            self._ended = True
            self._change.notify_all()

    def close(self) -> None:
        """No more tiles are wanted: what makes them ends soon."""
        with self._change:
            self.pulse.cancelled.set()
            self._tiles.clear()
            self._ended = True
            self._change.notify_all()


@dataclass(frozen=True)
class _Maker:
    """Makes the tiles of some segments in a thread of its own."""

    archive: Archive
    plan: Plan
    segments: range
    backend: Backend
    loaders: int
    decoders: int
    on_missing: OnMissing

    def run(self, queue: _Queue) -> None:
        try:
            with host.single_threaded_blas(), under(queue.pulse):
                for number in self.segments:
                    self._segment(number, queue)
        except BaseException as error:  # noqa: BLE001 - handed to the one who iterates
            queue.end(error)
        else:
            queue.end()

    def _segment(self, number: int, queue: _Queue) -> None:
        plan, segment = self.plan, self.plan.segment(number)
        is_image = plan.recipe.image.format != "npy"
        with opened_segment(
            self.archive,
            plan,
            number,
            self.backend,
            loaders=self.loaders,
            decoders=self.decoders,
            on_missing=self.on_missing,
        ) as (rows, _):
            for row, results in rows:
                for band, result in enumerate(results):
                    tile = plan.tile(row.row, band)
                    record = record_of(plan, segment, row, tile, result)
                    if result is None or record.status not in ("ok", "edge"):
                        queue.skipped.append(record)
                    else:
                        queue.put(StreamedTile(record, result.pixels, is_image))


class TileStream(Iterator[StreamedTile]):
    """Iterates over tiles in the plan's order; made by `stream`.

    Nothing is read before the first tile is asked for. It ends, with its threads and requests,
    after the last tile, on `close`, at the end of a ``with`` block, and when nobody holds it any
    more; one stream is one pass.

    Attributes
    ----------
    plan : Plan
        What is made; of several parts, all of it.
    n_tiles : int
        Tiles of this part, those that will be skipped included.
    backend : str
        ``cpu`` or ``gpu``.
    """

    def __init__(self, maker: _Maker, ahead: int) -> None:
        self.plan, self.backend = maker.plan, maker.backend.kind
        rows = [maker.plan.segment(number) for number in maker.segments]
        self.n_tiles = sum(each.row1 - each.row0 for each in rows) * maker.plan.bands
        self._queue = _Queue(ahead)
        # The thread knows the queue and not this object, which may then end when it is let go.
        self._thread: threading.Thread | None = threading.Thread(
            target=maker.run, args=(self._queue,), name="das-gpu-stream", daemon=True
        )
        weakref.finalize(self, self._queue.close)

    @property
    def skipped(self) -> tuple[TileRecord, ...]:
        """Records of the tiles passed by so far, which could not be made, with their reasons.

        Their ``status`` is ``gap``, ``missing``, ``corrupt`` or ``error``.
        """
        return tuple(self._queue.skipped)

    def __next__(self) -> StreamedTile:
        """Wait for the next tile.

        Raises
        ------
        DasGpuError
            Reading or computing failed: see `das_gpu.errors`.
        """
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()
        tile = self._queue.get()
        if tile is None:
            self.close()
            raise StopIteration
        return tile

    def close(self) -> None:
        """End what is on its way, and wait until its threads are gone; again does nothing."""
        self._queue.close()
        thread, self._thread = self._thread, None
        if thread is not None and thread.ident is not None:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def stream(
    source: str | Path,
    recipe: Recipe | None = None,
    *,
    channels: str | None = None,
    start: str | datetime | None = None,
    stop: str | datetime | None = None,
    envelopes: bool = False,
    part: tuple[int, int] = (0, 1),
    ahead: int | None = None,
    backend: str = "auto",
    workers: int | None = None,
    fast: bool | None = None,
    loaders: int | None = None,
    on_missing: OnMissing = "skip",
    access: Access | None = None,
) -> TileStream:
    """Make an archive's tiles one after another, without touching a disk.

    The pixels are those that `das_gpu.extract` writes. While a stream is at work NumPy's linear
    algebra runs on one thread in this process, because their number changes low bits.

    Parameters
    ----------
    source : str or Path
        A Zarr archive: a folder, a URL, or ``demo:``.
    recipe : Recipe, optional
        What to compute; the ``continuous`` preset by default.
    channels : str, optional
        ``START:STOP:STEP``, in the recipe's place.
    start, stop : str or datetime, optional
        UTC, in the recipe's place; ``stop`` is not included.
    envelopes : bool
        Deliver (channel, sample) float32 envelopes in dB, as ``image.format = "npy"`` does,
        not images.
    part : (int, int)
        Number of this part, and of how many: the parts are successive stretches of time that
        together are the whole, each tile in one of them. A part that finds no row of tiles left
        has none.
    ahead : int, optional
        Finished tiles that may wait for the consumer; two rows of tiles by default.
    backend : {"auto", "cpu", "gpu"}
        Where to compute, and where the arrays are.
    workers : int, optional
        Compute threads; by default the processors this process may use.
    fast : bool, optional
        Whether the CPU's loops are compiled; by default as in `das_gpu.extract`.
    loaders : int, optional
        Chunk requests in flight; by default `das_gpu.run.default_loaders`.
    on_missing : {"skip", "error", "fill"}
        A lost chunk loses its tiles, ends the stream, or makes its channels dead.
    access : Access, optional
        Credential, transport and patience with which the archive is read.

    Raises
    ------
    DasGpuError
        The archive cannot be opened, the recipe does not fit it, the backend cannot be had.

    Examples
    --------
    >>> import numpy as np
    >>> from das_gpu import Recipe, stream
    >>> recipe = Recipe().with_settings({"tile.bands": 4})
    >>> with stream(recording, recipe, channels="::5") as tiles:
    ...     shapes = [tile.pixels.shape for tile in tiles]
    >>> len(shapes), shapes[0]
    (8, (256, 256))
    >>> tile = next(stream(recording, recipe, envelopes=True))
    >>> np.from_dlpack(tile).shape, tile.record.status, tile.record.channel_stop
    ((60, 1500), 'edge', 300)
    """
    number, count = part
    if not 0 <= number < count:
        raise UsageError(
            f"Part {number} of {count} was asked for: parts are numbered from 0, so that (0, 2) "
            "and (1, 2) are the halves."
        )
    if ahead is not None and ahead < 1:
        raise UsageError(f"{ahead} tiles ahead were asked for; give at least 1.")
    recipe = _changed(recipe or Recipe(), channels, start, stop, envelopes)
    archive, plan = prepare(source, recipe, segment_minutes=SEGMENT_MINUTES, access=access)
    plan = replace(plan, rows_per_segment=min(plan.rows_per_segment, max(1, plan.rows // count)))
    threads = workers or host.processors()
    chosen = backends.select(backend, threads, compiled_loops(plan, fast), resident=True).backend
    host.give_big_buffers_back()
    n = plan.n_segments
    maker = _Maker(
        archive,
        plan,
        range(n * number // count, n * (number + 1) // count),
        chosen,
        loaders or default_loaders(archive, threads),
        threads,
        on_missing,
    )
    return TileStream(maker, ahead or AHEAD_ROWS * plan.bands)


def _changed(
    recipe: Recipe,
    channels: str | None,
    start: str | datetime | None,
    stop: str | datetime | None,
    envelopes: bool,
) -> Recipe:
    """Lay what was asked for over a recipe."""
    settings: dict[str, Setting] = {}
    if channels is not None:
        settings |= parse_channels(channels)
    for name, time in (("selection.start", start), ("selection.stop", stop)):
        if time is not None:
            settings[name] = time.isoformat() if isinstance(time, datetime) else time
    if envelopes:
        settings["image.format"] = "npy"
    return recipe.with_settings(settings) if settings else recipe
