"""From counts to the analytic signal of the core in compiled loops, channels side by side.

`das_gpu.backends.analytic` is how to call them and makes their tables; `das_gpu.backends.lanes`
says what rows are. Samples of a work array are complex, in the order in which a transform in
place wants them, until it is done; then in their natural order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import lanes
from das_gpu.backends.compiled import compiled_loop


@compiled_loop()
def _transform(work: NDArray[Any], schedule: NDArray[np.intp], factors: NDArray[Any]) -> None:
    """Unscaled transform in place.

    The schedule's rows: radix, first sample, number of blocks, samples between a block's legs,
    first factor, which row of a sample is its imaginary part (0 for a forward transform).
    """
    for number in range(schedule.shape[0]):
        radix, start, blocks, apart, at, imaginary = schedule[number]
        stop = start + blocks * radix * apart
        if apart == 1:
            if radix == 5:
                for place in range(start, stop, 5):
                    lanes.step5(work, place, apart, imaginary, factors, at)
            elif radix == 4:
                for place in range(start, stop, 4):
                    lanes.step4(work, place, apart, imaginary, factors, at)
            elif radix == 3:
                for place in range(start, stop, 3):
                    lanes.step3(work, place, apart, imaginary, factors, at)
            else:
                for place in range(start, stop, 2):
                    lanes.step2(work, place, apart, imaginary, factors, at)
            continue
        for place in range(start, stop, radix * apart):
            if radix == 5:
                for i in range(apart):
                    lanes.turned5(work, place + i, apart, imaginary, factors, at + 8 * i)
            elif radix == 4:
                for i in range(apart):
                    lanes.turned4(work, place + i, apart, imaginary, factors, at + 6 * i)
            elif radix == 3:
                for i in range(apart):
                    lanes.turned3(work, place + i, apart, imaginary, factors, at + 4 * i)
            else:
                for i in range(apart):
                    lanes.turned2(work, place + i, apart, imaginary, factors, at + 2 * i)


@compiled_loop()
def _read(
    kind: NDArray[Any],
    pieces: NDArray[np.intp],
    channels: NDArray[np.intp],
    rows: NDArray[np.intp],
    work: NDArray[Any],
    greatest: NDArray[Any],
    addresses: NDArray[np.intp],
    lines: NDArray[np.float64],
    single: NDArray[Any],
    bits: NDArray[Any],
) -> None:
    """Each channel less the line through its ends, to its lane.

    ``greatest`` becomes the bits of each lane's greatest absolute value, and at least 1 where
    the ends differ. ``addresses`` and ``lines`` are room for a row of them, ``bits`` those of
    ``single``.
    """
    width, number = channels.size, work.dtype.type
    first, slope = lines[0], lines[1]
    last = pieces[pieces.shape[0] - 1]
    for k in range(width):
        origin = lanes.held_sample(kind, pieces[0, 0] + channels[k] * pieces[0, 1], 0)
        end = lanes.held_sample(kind, last[0] + channels[k] * last[1], last[2] - 1)
        first[k], slope[k] = origin, (end - origin) / (rows.size - 1)
        greatest[k] = end != origin
    begin = 0
    for p in range(pieces.shape[0]):
        samples = pieces[p, 2]
        for k in range(width):
            addresses[k] = pieces[p, 0] + channels[k] * pieces[p, 1]
        if samples >= width:
            for i in range(0, samples, width):
                # The last ones are read again when their number is not a multiple.
                place = min(i, samples - width)
                lanes.turn_in(
                    kind, addresses, place, begin + place, first, slope, rows, work, greatest
                )
        else:
            for k in range(width):
                for i in range(samples):
                    away = lanes.held_sample(kind, addresses[k], i) - first[k]
                    value = number(away - slope[k] * (begin + i))
                    work[rows[begin + i] * width + k] = value
                    single[0] = abs(value)
                    greatest[k] = max(greatest[k], bits[0])
        begin += samples


@compiled_loop()
def _weigh(
    spectrum: NDArray[Any],
    bins: NDArray[np.intp],
    folded: NDArray[np.intp],
    weights: NDArray[Any],
    empty: NDArray[np.intp],
    out: NDArray[Any],
    width: int,
) -> None:
    """Each one-sided bin times its gain to its place, of ``folded`` ones on top of what is there.

    Bins are a sample, its mirror and its place; three weights each, those of ``folded`` last.
    """
    for i in range(bins.shape[0]):
        lanes.weighted(spectrum, bins[i, 0], bins[i, 1], weights, 3 * i, out, bins[i, 2])
    at = 3 * bins.shape[0]
    for i in range(folded.shape[0]):
        near, far, place = folded[i]
        lanes.weighted_more(spectrum, near, far, weights, at + 3 * i, out, place)
    for i in range(empty.size):
        out[2 * width * empty[i] : 2 * width * (empty[i] + 1)] = 0


@compiled_loop()
def _write(
    work: NDArray[Any], row: int, places: NDArray[np.intp], values: int, out: NDArray[Any]
) -> None:
    """So many values of each lane, from a row on, to its place of ``out``."""
    width = places.size
    if values >= width:
        for i in range(0, values, width):
            column = min(i, values - width)
            lanes.turn_out(work, row + column, places, column, out)
    else:
        for k in range(width):
            for i in range(values):
                out[places[k] + i] = work[(row + i) * width + k]


@compiled_loop()
def analytic(
    kind: NDArray[Any],
    pieces: NDArray[np.intp],
    rows: NDArray[np.intp],
    forward: NDArray[np.intp],
    bins: NDArray[np.intp],
    folded: NDArray[np.intp],
    weights: NDArray[Any],
    empty: NDArray[np.intp],
    inverse: NDArray[np.intp],
    factors: NDArray[Any],
    first_row: int,
    infinite: Any,
    places: NDArray[np.intp],
    lines: NDArray[np.float64],
    single: NDArray[Any],
    bits: NDArray[Any],
    greatest: NDArray[Any],
    work: NDArray[Any],
    kept: NDArray[Any],
    live: NDArray[np.bool_],
    values: int,
    out: NDArray[Any],
) -> None:
    """Every channel of the pieces to ``out``, a row's width of them at a time.

    Pieces are an address, bytes from channel to channel, and samples of the type of ``kind``.
    ``rows`` says where each sample of a window goes; other rows of ``work`` are zeros.
    ``infinite`` are the bits of infinity, ``greatest`` is room for a row of such; so are the
    three of ``places`` and the two of ``lines`` for a row, ``single`` and its ``bits`` for one.
    Each channel has so many ``values`` of ``out``.
    """
    width = greatest.size
    channels, targets = places[0], places[1]
    for start in range(0, live.size, width):
        for k in range(width):
            # Lanes that are left over do the last channel again.
            channels[k] = min(start + k, live.size - 1)
            targets[k] = channels[k] * values
        if rows.size * width < work.size:
            work[:] = 0
        _read(kind, pieces, channels, rows, work, greatest, places[2], lines, single, bits)
        for k in range(width):
            live[channels[k]] = 0 < greatest[k] < infinite
            if greatest[k] >= infinite:
                for i in range(k, work.size, width):
                    work[i] = 0
        _transform(work, forward, factors)
        _weigh(work, bins, folded, weights, empty, kept, width)
        _transform(kept, inverse, factors)
        _write(kept, first_row, targets, values, out)
