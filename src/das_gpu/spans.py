"""What of a row's window can be used: pure arithmetic on cuts and lost chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from das_gpu.model import RingLayout, Segment, Span, Status
from das_gpu.plan import Plan
from das_gpu.timeline import Cuts, Lost


def archive_window(plan: Plan, row: int) -> tuple[int, int]:
    """Archive samples of a row's window, halos included; may reach beyond the record."""
    start = plan.sample_start + row * plan.row_stride - plan.halo_before
    return start, start + plan.window_span


def core(plan: Plan, row: int) -> tuple[int, int]:
    """Archive samples of a row's tiles, inside the record."""
    start = archive_window(plan, row)[0] + plan.halo_before
    return start, min(start + plan.tile_span, plan.acquisition.n_samples)


def held(plan: Plan, sample: int) -> int:
    """Ring index of the first held sample at or after an archive sample."""
    return -((plan.sample_start - sample) // plan.hold_step)


def held_dtype(plan: Plan) -> np.dtype[Any]:
    """The type of held samples: the archive's own, or float64 for means of channels."""
    if plan.recipe.selection.channel_reduce == "mean":
        return np.dtype(np.float64)
    return np.dtype(plan.acquisition.dtype)


def column_samples(plan: Plan, segment: Segment, column: int) -> tuple[int, int]:
    """Archive samples of a column of stored chunks that the segment reads."""
    width = plan.acquisition.chunk_shape[1]
    return max(column * width, segment.read.t0), min((column + 1) * width, segment.read.t1)


def ring_layout(plan: Plan, segment: Segment, *, ahead: bool = True) -> RingLayout:
    """A ring for a segment: the columns that a window touches.

    Or all that a segment reads, where this is less.

    Parameters
    ----------
    plan, segment
        What is read.
    ahead : bool
        There is room for the next tiles beyond the window, so that it can be filled while the
        window is computed on. Else memory is spared: a window's first column, of which only the
        halo is wanted, is kept aside, where that is at most half of it.
    """
    height, width = plan.acquisition.chunk_shape
    chunk_rows, columns = plan.chunk_grid(segment)
    windows = [archive_window(plan, row) for row in range(segment.row0, segment.row1)]
    beginnings = [max(start, segment.read.t0) for start, _ in windows]
    touched = [
        (min(stop, segment.read.t1) - 1) // width - start // width + 1
        for start, (_, stop) in zip(beginnings, windows, strict=True)
    ]
    slots, aside = max(touched), 0
    if ahead:
        slots += -(-plan.row_stride // width)
    else:
        ends = [min((start // width + 1) * width, segment.read.t1) for start in beginnings]
        left = [
            held(plan, end) - held(plan, start) for start, end in zip(beginnings, ends, strict=True)
        ]
        most = max((n for n in left if 2 * n <= width // plan.hold_step), default=0)
        fewer = max(n - (rest <= most) for n, rest in zip(touched, left, strict=True))
        if fewer < slots:
            slots, aside = fewer, most
    first_channels = (row * height - plan.channel_start for row in chunk_rows)
    blocks = [max(0, -(-channel // plan.channel_step)) for channel in first_channels]
    return RingLayout(
        first=columns.start,
        bounds=(
            *(held(plan, column_samples(plan, segment, column)[0]) for column in columns),
            held(plan, segment.read.t1),
        ),
        slots=max(1, min(slots, len(columns))),
        channels=plan.kept_channels,
        dtype=held_dtype(plan).name,
        blocks=(*(min(k, plan.kept_channels) for k in blocks), plan.kept_channels),
        time_major=plan.acquisition.dims[0] == "time"
        and plan.recipe.selection.channel_reduce == "stride",
        aside=aside,
    )


def row_spans(
    plan: Plan, row: int, cuts: Cuts, lost: Mapping[int, Sequence[Lost]], *, fill: bool
) -> tuple[Span, ...]:
    """Runs of kept channels whose samples come from the same chunk rows, and what they can use.

    Parameters
    ----------
    plan, row
        The plan, and which of its rows.
    cuts : Cuts
        What interrupts the window.
    lost : mapping of int to sequence of Lost
        For each chunk row, its lost chunks that touch the window.
    fill : bool
        Lost chunks make their channels dead, not their tiles lost.
    """
    per_chunk = {chunk_row: _usable(plan, row, cuts, lost[chunk_row], fill) for chunk_row in lost}
    return tuple(_runs(plan, per_chunk))


def _usable(plan: Plan, row: int, cuts: Cuts, chunks: Sequence[Lost], fill: bool) -> Span:
    """The usable samples of a row's window, as a span without channels.

    ``chunks`` are the lost ones of the samples, which ``fill`` forgives; it does not forgive a
    time axis that cannot be read, nor a chunk that a rerun may find readable.
    """
    w0, w1 = archive_window(plan, row)
    t0, t1 = core(plan, row)
    lost, jumps = [*cuts.lost, *chunks], cuts.jumps
    hit = [each for each in lost if each.start < t1 and each.stop > t0]
    filled = fill and not any(each in cuts.lost or each.status is Status.ERROR for each in hit)
    inside = [jump for jump in jumps if t0 < jump < t1]
    if hit and not (filled and inside):
        worst = min(hit, key=lambda each: each.status.rank)
        return Span(0, 0, 0, 0, Status.OK if filled else worst.status, worst.reason)
    if inside:
        reason = f"the time axis jumps at sample {inside[0]}, inside the tile"
        return Span(0, 0, 0, 0, Status.GAP, reason)
    low = max([0, w0, *(e.stop for e in lost if e.stop <= t0), *(j for j in jumps if j <= t0)])
    high = min(
        [
            plan.acquisition.n_samples,
            w1,
            *(e.start for e in lost if e.start >= t1),
            *(j for j in jumps if j >= t1),
        ]
    )
    v0, v1 = (held(plan, sample) - held(plan, w0) for sample in (low, high))
    if v0 == 0 and v1 == plan.window_span // plan.hold_step:
        return Span(0, 0, v0, v1, Status.OK)
    return Span(0, 0, v0, v1, Status.EDGE, _edge_reason(plan, row, low, high, lost))


def _edge_reason(plan: Plan, row: int, low: int, high: int, lost: Sequence[Lost]) -> str:
    """Why a halo is cut."""
    w0, w1 = archive_window(plan, row)
    if any(each.stop == low or each.start == high for each in lost):
        return "the halo is cut at a lost chunk"
    at_end = (low == 0 and w0 < 0) or (high == plan.acquisition.n_samples and high < w1)
    return "the halo is cut at the record's end" if at_end else "the halo is cut at a time jump"


def _runs(plan: Plan, per_chunk: Mapping[int, Span]) -> Iterator[Span]:
    """Spans with channels: where several chunk rows make up a channel, the worst of them."""
    height = plan.acquisition.chunk_shape[0]
    tail = plan.channel_step - 1 if plan.recipe.selection.channel_reduce == "mean" else 0
    first = plan.channel_start + np.arange(plan.kept_channels) * plan.channel_step
    rows = np.stack([first // height, (first + tail) // height])
    starts = np.flatnonzero(np.any(np.diff(rows, axis=1, prepend=-1), axis=0))
    for k0, k1 in zip(starts, [*starts[1:], plan.kept_channels], strict=True):
        parts = [per_chunk[r] for r in range(int(rows[0, k0]), int(rows[1, k0]) + 1)]
        worst = min(parts, key=lambda part: part.status.rank)
        v0, v1 = max(part.v0 for part in parts), min(part.v1 for part in parts)
        yield Span(int(k0), int(k1), v0, max(v0, v1), worst.status, worst.reason)
