"""Second-order sections forward and backward over many channels side by side.

In a recursion every step waits for the one before it, so that a channel alone cannot use vector
instructions: here each works on `LANES` channels. A work array is rows of one sample of each of
them; the recursion over its rows is written as LLVM's own vectors, whose state stays in
registers from the first row to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from das_gpu.backends.compiled import compiled_loop
from das_gpu.backends.loops import CASCADE, LANES

BLOCK_ROWS = 256
"""Rows that go through one cascade after another: they fill half of the first cache."""
NUMBERS = 5
"""Of a section: b0, b1, b2, -a1, -a2."""
_FUSED = ("contract",)
_DOUBLE = ir.DoubleType()
_ROW = ir.VectorType(_DOUBLE, LANES)
_PLACE = ir.IntType(64)
_WORD = ir.IntType(32)


def _instruction(write: Callable[..., None]) -> Callable[..., Any]:
    """Decorate what writes code to stand in compiled loops for that code.

    It gets LLVM's builder, then the memory of arrays, and numbers as LLVM's values.
    """

    @wraps(write)  # numba asks for the number of arguments
    def typed(_: Any, *kinds: Any) -> Any:
        def lowered(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = [
                context.make_array(kind)(context, builder, value).data
                if isinstance(kind, types.Array)
                else value
                for kind, value in zip(signature.args, values, strict=True)
            ]
            write(builder, *given)
            return context.get_dummy_value()

        return types.none(*kinds), lowered

    made: Callable[..., Any] = intrinsic(typed)
    return made


def _place(value: int) -> Any:
    return ir.Constant(_PLACE, value)


def _plus(builder: Any, place: Any, more: int) -> Any:
    return builder.add(place, _place(more))


def _in_every_lane(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(_ROW, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_WORD, 0))
    first = ir.Constant(ir.VectorType(_WORD, LANES), [0] * LANES)
    return builder.shuffle_vector(one, nothing, first)


def _row_pointer(builder: Any, data: Any, row: Any) -> Any:
    start = builder.gep(data, [builder.mul(row, _place(LANES))])
    return builder.bitcast(start, _ROW.as_pointer())


def _section(
    builder: Any, numbers: list[Any], state: tuple[Any, Any], x: Any
) -> tuple[Any, tuple[Any, Any]]:
    """One sample through one section: what comes out, and the new state.

    Direct form II transposed, in the order of SciPy's operations; the ``a`` are negated.
    """

    def fused(a: Any, b: Any, added: Any) -> Any:
        product = builder.fmul(a, b, flags=_FUSED)
        return builder.fadd(product, added, flags=_FUSED)

    b0, b1, b2, a1, a2 = numbers
    y = fused(b0, x, state[0])
    near = fused(a1, y, fused(b1, x, state[1]))
    far = fused(a2, y, builder.fmul(b2, x, flags=_FUSED))
    return y, (near, far)


@_instruction
def _run(
    builder: Any, work: Any, first: Any, ahead: Any, count: Any, numbers: Any, at: Any, state: Any
) -> None:
    """Rows from ``first`` on, each ``ahead`` of the one before it, through `CASCADE` sections.

    In place; ``count`` is at least 1. Cascade ``at`` has its own part of the ``numbers`` and of
    the ``state``, two rows for a section, which is kept up.
    """
    origin = builder.mul(at, _place(CASCADE * NUMBERS))
    every = [
        _in_every_lane(builder, builder.load(builder.gep(numbers, [_plus(builder, origin, i)])))
        for i in range(CASCADE * NUMBERS)
    ]
    top = builder.mul(at, _place(2 * CASCADE))
    places = [_row_pointer(builder, state, _plus(builder, top, i)) for i in range(2 * CASCADE)]
    before = [builder.load(place, align=8) for place in places]
    entry = builder.block
    body, after = (builder.append_basic_block(name) for name in ("samples", "done"))
    builder.branch(body)

    builder.position_at_end(body)
    left, row = builder.phi(_PLACE), builder.phi(_PLACE)
    states = [builder.phi(_ROW) for _ in before]
    pointer = _row_pointer(builder, work, row)
    value = builder.load(pointer, align=8)
    new: list[Any] = []
    for section in range(CASCADE):
        own = every[section * NUMBERS : (section + 1) * NUMBERS]
        value, kept = _section(builder, own, (states[2 * section], states[2 * section + 1]), value)
        new += kept
    builder.store(value, pointer, align=8)
    fewer = builder.sub(left, _place(1))
    now = [fewer, builder.add(row, ahead), *new]
    for phi, old, next_ in zip([left, row, *states], [count, first, *before], now, strict=True):
        phi.add_incoming(old, entry)
        phi.add_incoming(next_, body)
    builder.cbranch(builder.icmp_signed(">", fewer, _place(0)), body, after)

    builder.position_at_end(after)
    for place, last in zip(places, new, strict=True):
        builder.store(last, place, align=8)


@_instruction
def _turn(
    builder: Any,
    source: Any,
    place: Any,
    apart: Any,
    target: Any,
    target_place: Any,
    target_apart: Any,
) -> None:
    """Transpose a square of `LANES` runs of `LANES` values from one array to another.

    The runs begin at ``place`` and are ``apart``, in the target as in the source.
    """
    number = target.type.pointee
    narrow = isinstance(number, ir.FloatType)
    rows = [
        builder.load(_run_pointer(builder, source, place, apart, k), align=8) for k in range(LANES)
    ]
    for k, row in enumerate(_transposed(builder, rows)):
        value = builder.fptrunc(row, ir.VectorType(number, LANES)) if narrow else row
        pointer = _run_pointer(builder, target, target_place, target_apart, k)
        builder.store(value, pointer, align=4 if narrow else 8)


def _run_pointer(builder: Any, data: Any, place: Any, apart: Any, number: int) -> Any:
    start = builder.add(place, builder.mul(apart, _place(number)))
    vector = ir.VectorType(data.type.pointee, LANES)
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Halves, quarters, then neighbours change places between rows that far apart."""
    rows = list(rows)
    for apart in (4, 2, 1):
        kept = [k if not k & apart else k + LANES - apart for k in range(LANES)]
        given = [k + apart if not k & apart else k + LANES for k in range(LANES)]
        for i in range(LANES):
            if i & apart:
                continue
            pair = rows[i], rows[i + apart]
            for place, order in ((i, kept), (i + apart, given)):
                mask = ir.Constant(ir.VectorType(_WORD, LANES), order)
                rows[place] = builder.shuffle_vector(*pair, mask)
    return rows


@compiled_loop()
def _to_rows(
    window: NDArray[np.float64],
    channels: int,
    length: int,
    start: int,
    first: int,
    work: NDArray[np.float64],
) -> None:
    """Channels from ``start`` on to the lanes of the rows from ``first`` on."""
    if channels >= LANES and length >= LANES:
        for i in range(0, length, LANES):
            place = min(i, length - LANES)
            _turn(window, start * length + place, length, work, (first + place) * LANES, LANES)
    else:
        for lane in range(min(LANES, channels)):
            for i in range(length):
                work[(first + i) * LANES + lane] = window[(start + lane) * length + i]


@compiled_loop()
def _from_rows(
    work: NDArray[np.float64],
    first: int,
    step: int,
    start: int,
    out: NDArray[Any],
    channels: int,
) -> None:
    """Every ``step``-th row from ``first`` on to channels from ``start`` on."""
    kept = out.size // channels
    if channels >= LANES and kept >= LANES:
        for i in range(0, kept, LANES):
            place = min(i, kept - LANES)
            row = (first + place * step) * LANES
            _turn(work, row, step * LANES, out, start * kept + place, kept)
    else:
        for lane in range(min(LANES, channels)):
            for i in range(kept):
                out[(start + lane) * kept + i] = work[(first + i * step) * LANES + lane]


@compiled_loop()
def _settle(
    work: NDArray[np.float64], row: int, steady: NDArray[np.float64], state: NDArray[np.float64]
) -> None:
    """Give the sections the state they have after an eternity of this row's samples."""
    for i in range(steady.size):
        for lane in range(LANES):
            state[i * LANES + lane] = steady[i] * work[row * LANES + lane]


@compiled_loop()
def _sweep(
    work: NDArray[np.float64],
    first: int,
    ahead: int,
    count: int,
    numbers: NDArray[np.float64],
    state: NDArray[np.float64],
) -> None:
    """All rows through all sections, in blocks of rows that stay in the first cache."""
    cascades = numbers.size // (CASCADE * NUMBERS)
    for begin in range(0, count, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, count - begin)
        for number in range(cascades):
            _run(work, first + begin * ahead, ahead, rows, numbers, number, state)


@compiled_loop()
def _extend(work: NDArray[np.float64], padding: int, length: int) -> None:
    """Rows before and after the window: odd reflections about its first and its last."""
    first, last = padding, padding + length - 1
    for i in range(1, padding + 1):
        for lane in range(LANES):
            near = 2.0 * work[first * LANES + lane]
            work[(first - i) * LANES + lane] = near - work[(first + i) * LANES + lane]
            near = 2.0 * work[last * LANES + lane]
            work[(last + i) * LANES + lane] = near - work[(last - i) * LANES + lane]


@compiled_loop()
def two_ways(
    window: NDArray[np.float64],
    channels: int,
    padding: int,
    step: int,
    numbers: NDArray[np.float64],
    steady: NDArray[np.float64],
    work: NDArray[np.float64],
    state: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    """All channels, `LANES` at a time; of the last ones some again, so that no lane is empty.

    ``window`` and ``out`` are all of their channels one after the other.
    """
    length = window.size // channels
    whole = length + 2 * padding
    for begin in range(0, channels, LANES):
        start = max(0, min(begin, channels - LANES))
        _to_rows(window, channels, length, start, padding, work)
        _extend(work, padding, length)
        _settle(work, 0, steady, state)
        _sweep(work, 0, 1, whole, numbers, state)
        _settle(work, whole - 1, steady, state)
        _sweep(work, whole - 1, -1, whole - padding, numbers, state)
        _from_rows(work, padding, step, start, out, channels)


@compiled_loop("contract")
def join(
    real: NDArray[Any], first: int, slope: NDArray[Any], of_slope: NDArray[Any], out: NDArray[Any]
) -> None:
    """The real parts of ``out``, and what a slope of 1 adds to the imaginary ones, by channels.

    ``out`` is a complex array as a real one of twice the length. Its real parts are the samples
    of ``real`` from ``first`` on.
    """
    samples = out.shape[1] // 2
    for k in range(out.shape[0]):
        source, target, rise = real[k][first : first + samples], out[k], slope[k]
        for i in range(samples):
            u = np.uintp(i) * np.uintp(2)
            target[u] = source[i]
            target[u + np.uintp(1)] += rise * of_slope[i]
