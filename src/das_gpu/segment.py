"""One segment from the archive to its images: the only place that sees every step."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from numpy.typing import NDArray

from das_gpu.archive import Archive
from das_gpu.backends import Array, Backend
from das_gpu.errors import InterruptedRunError
from das_gpu.model import RowWindow, Segment, Span, Status, Tile, TileRecord
from das_gpu.patience import cancelled_by
from das_gpu.plan import Plan
from das_gpu.process import Processor, TileResult, design
from das_gpu.pulse import current
from das_gpu.render import encode_npy, encode_png, file_name, iso_utc, split_key
from das_gpu.sink import Sink
from das_gpu.spans import ring_layout
from das_gpu.stream import OnMissing, SegmentStream, Traffic

Made: TypeAlias = tuple[RowWindow, list[TileResult | None]]
"""A row of tiles and what was computed of each band: None where nothing could be."""


@dataclass(frozen=True)
class SegmentResult:
    """A finished segment: its records in the plan's order, and what reading them took."""

    records: list[TileRecord]
    traffic: Traffic


@contextmanager
def opened_segment(
    archive: Archive,
    plan: Plan,
    number: int,
    backend: Backend,
    *,
    loaders: int,
    decoders: int | None = None,
    on_missing: OnMissing = "skip",
) -> Iterator[tuple[Iterator[Made], Traffic]]:
    """Read and compute one segment: its rows one after another, and what reading has taken so far.

    Leaving the context ends what is being fetched and gives the backend's memory back. For the
    parameters, the pulse and the errors see `extract_segment`.
    """
    segment, chain = plan.segment(number), design(plan)
    layout = ring_layout(plan, segment, ahead=backend.ahead)
    pulse = current()
    with (
        backend.workspace(layout, chain, min(loaders, decoders or loaders)) as workspace,
        SegmentStream(
            archive,
            plan,
            segment,
            workspace.ring,
            layout,
            loaders=loaders,
            decoders=decoders,
            on_missing=on_missing,
            pulse=pulse,
        ) as stream,
    ):
        processor = Processor(plan, chain, workspace)

        def finished(row: RowWindow, drawn: Array | None) -> Made:
            if drawn is None:
                return row, [None] * chain.bands
            return row, [*processor.finish(drawn)]

        def rows() -> Iterator[Made]:
            begun: deque[tuple[RowWindow, Array | None]] = deque()
            for row in stream:
                if pulse.cancelled.is_set():
                    raise InterruptedRunError("The segment was cancelled before it was finished.")
                usable = any(span.v1 > span.v0 or span.status.delivered for span in row.spans)
                release = partial(stream.release, row.row)
                begun.append((row, processor.begin(row, release) if usable else None))
                while len(begun) > workspace.depth:
                    yield finished(*begun.popleft())
            for each in begun:
                yield finished(*each)

        yield rows(), stream.traffic


def extract_segment(
    archive: Archive,
    plan: Plan,
    number: int,
    backend: Backend,
    sink: Sink,
    *,
    loaders: int,
    decoders: int | None = None,
    on_missing: OnMissing = "skip",
) -> SegmentResult:
    """Make the images of one segment and put them in the sink.

    The thread's pulse (see `das_gpu.pulse`) beats with every chunk and with every row of tiles;
    when it is cancelled, the segment ends where it next waits or begins a row.

    Parameters
    ----------
    archive, plan, number
        Where to read, what to make, and which of the plan's segments.
    backend : Backend
        Does the arithmetic.
    sink : Sink
        Takes the images; the caller vouches for the segment by its records.
    loaders : int
        Threads that fetch and decode chunks.
    decoders : int, optional
        Threads of these that may decode at a time.
    on_missing : {"skip", "error", "fill"}
        What a lost chunk does.

    Raises
    ------
    InterruptedRunError
        When cancelled.
    SourceError, DestinationError, DeviceError
        When the archive cannot be read, the sink not written, or the device fails.
    """
    pulse, segment = current(), plan.segment(number)
    writing: list[Future[TileRecord]] = []
    records: list[TileRecord] = []

    def collect() -> None:
        """Wait for the row being written, so that at most one is."""
        if not writing:
            return
        records.extend(future.result() for future in writing)
        pulse.beat(len(writing))
        writing.clear()

    def deliver(*work: Any) -> TileRecord:
        """Deliver a tile; a put that waits for its store ends when the run is stopped."""
        with cancelled_by(pulse.cancelled):
            return _deliver(*work)

    with (
        ThreadPoolExecutor(sink.writers, thread_name_prefix="das-gpu-encode") as pool,
        opened_segment(
            archive,
            plan,
            number,
            backend,
            loaders=loaders,
            decoders=decoders,
            on_missing=on_missing,
        ) as (rows, traffic),
    ):
        for row, results in rows:
            collect()
            for band, result in enumerate(results):
                tile = plan.tile(row.row, band)
                writing.append(pool.submit(deliver, plan, segment, row, tile, result, sink))
        collect()
    return SegmentResult(records, traffic)


def failed_records(plan: Plan, number: int, reason: str) -> list[TileRecord]:
    """Records of a segment that could not be made at all: every tile in error."""
    segment = plan.segment(number)
    acquisition = plan.acquisition
    records = []
    for tile in plan.tiles(segment):
        start_ns, end_ns = (
            acquisition.start_ns + round(sample * 1e9 / acquisition.sampling_rate_hz)
            for sample in (tile.core.t0, tile.core.t1)
        )
        row = RowWindow(tile.row, 0, 0, (), start_ns, end_ns, 0)
        records.append(_record(plan, segment, row, tile, Status.ERROR, reason))
    return records


def record_of(
    plan: Plan, segment: Segment, row: RowWindow, tile: Tile, result: TileResult | None
) -> TileRecord:
    """State what became of a tile of which no file is made."""
    status, reason = _status(plan, row, tile)
    if result is None or not status.delivered:
        return _record(plan, segment, row, tile, status, reason)
    return _record(plan, segment, row, tile, status, _reasons(reason, result), result=result)


def _deliver(
    plan: Plan, segment: Segment, row: RowWindow, tile: Tile, result: TileResult | None, sink: Sink
) -> TileRecord:
    """Encode and put one tile, if its status lets it be delivered, and state what became of it."""
    status, reason = _status(plan, row, tile)
    if result is None or not status.delivered:
        return record_of(plan, segment, row, tile, result)
    array = plan.recipe.image.format == "npy"
    data = _encode(result.pixels, array)
    name = file_name(
        plan.recipe.image.names,
        start_ns=row.start_ns,
        channel=tile.core.c0,
        distance_m=plan.acquisition.distance_m(tile.core.c0),
        suffix="npy" if array else "png",
    )
    sink.put(name, data, durable=False)
    return _record(
        plan,
        segment,
        row,
        tile,
        status,
        _reasons(reason, result),
        name=name,
        result=result,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _reasons(reason: str, result: TileResult) -> str:
    return "; ".join(text for text in (reason, result.reason) if text)


def _encode(pixels: NDArray[Any], array: bool) -> bytes:
    return encode_npy(pixels) if array else encode_png(pixels)


def _status(plan: Plan, row: RowWindow, tile: Tile) -> tuple[Status, str]:
    """The gravest status among the spans that a tile's channels lie in."""
    k0 = tile.band * plan.band_stride
    touching: list[Span] = [
        span for span in row.spans if span.k0 < k0 + plan.band_channels and span.k1 > k0
    ]
    worst = min(touching, key=lambda span: span.status.rank)
    return worst.status, worst.reason


def _record(
    plan: Plan,
    segment: Segment,
    row: RowWindow,
    tile: Tile,
    status: Status,
    reason: str,
    *,
    name: str | None = None,
    result: TileResult | None = None,
    sha256: str | None = None,
) -> TileRecord:
    array = plan.recipe.image.format == "npy"
    first = tile.band * plan.band_stride
    last = first + plan.band_channels
    units, positions = plan.recipe.image.units, plan.acquisition.positions
    places: dict[str, float] = {}
    if positions is not None:
        for end, kept in (("start", first), ("stop", last)):
            channel = plan.kept_channel(kept)
            places[f"longitude_{end}"] = positions.longitude(channel)
            places[f"latitude_{end}"] = positions.latitude(channel)
    return TileRecord(
        file_name=None if array else name,
        array_file=name if array else None,
        status=status.value,
        segment=segment.id,
        start_time=iso_utc(row.start_ns),
        end_time=iso_utc(row.end_ns),
        channel_start=tile.core.c0,
        channel_stop=tile.core.c1,
        channel_step=plan.channel_step,
        sample_start=tile.core.t0,
        sample_stop=tile.core.t1,
        sample_step=plan.time_step,
        distance_start_m=plan.kept_distance_m(first),
        distance_stop_m=plan.kept_distance_m(last),
        db_low=None if result is None else result.db_low,
        db_high=None if result is None else result.db_high,
        dead_channels=0 if result is None else result.dead_channels,
        quality=row.quality,
        sha256=sha256,
        split_key=split_key(row.start_ns),
        reason=reason or None,
        db_reference=None if units == "counts" else plan.recipe.image.db_reference,
        **places,
    )
