"""Rows of channels side by side, written into compiled loops as LLVM's own vectors.

A row is as many values as fit `ROW_BYTES`, one of each of so many channels: its lanes. A work
array is row after row, and a complex sample of it two rows: real parts, imaginary parts. What is
here stands in compiled loops like a function and becomes straight vector instructions in them,
whatever LLVM's own vectoriser would think of that loop. Everything trusts its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from das_gpu.backends.loops import ROW_BYTES

_WORD = ir.IntType(32)
_PLACE = ir.IntType(64)
_DOUBLE = ir.DoubleType()
_FUSED = ("contract",)
_FIFTH = 2 * math.pi / 5


class _Row:
    """A vector's value while code is written: arithmetic on it writes instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: _Row) -> _Row:
        return _Row(self.builder, self.builder.fadd(self.value, other.value, flags=_FUSED))

    def __sub__(self, other: _Row) -> _Row:
        return _Row(self.builder, self.builder.fsub(self.value, other.value, flags=_FUSED))

    def __mul__(self, other: _Row | float) -> _Row:
        by = other.value if isinstance(other, _Row) else _constant(self.value.type, other)
        return _Row(self.builder, self.builder.fmul(self.value, by, flags=_FUSED))


_Pair = tuple[_Row, _Row]
"""Real and imaginary part."""


class _Room:
    """An array of a compiled loop while code is written, seen as rows or as single values."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self.builder, self.kind = builder, kind.dtype
        self.number = context.get_data_type(kind.dtype)
        self.width = ROW_BYTES * 8 // kind.dtype.bitwidth
        self._data = context.make_array(kind)(context, builder, value).data

    def one(self, place: Any) -> Any:
        """A single value."""
        return self.builder.load(self.builder.gep(self._data, [place]))

    def every(self, place: Any) -> _Row:
        """A single value in all lanes of a row."""
        return self.same(place, self.width)

    def same(self, place: Any, count: int) -> _Row:
        """A single value in so many lanes."""
        return _Row(self.builder, _spread(self.builder, self.one(place), count))

    def vector(self, place: Any, count: int) -> Any:
        """Pointer to ``count`` values from ``place`` on."""
        kind = ir.VectorType(self.number, count).as_pointer()
        return self.builder.bitcast(self.builder.gep(self._data, [place]), kind)

    def row(self, number: Any) -> _Row:
        """A whole row."""
        return _Row(self.builder, self.builder.load(self._row(number), align=ROW_BYTES))

    def set_row(self, number: Any, row: _Row) -> None:
        """Overwrite a row."""
        self.builder.store(row.value, self._row(number), align=ROW_BYTES)

    def pair(self, number: Any) -> _Pair:
        """A complex sample."""
        row = self.builder.shl(number, _place(1))
        return self.row(row), self.row(self.builder.add(row, _place(1)))

    def set_pair(self, number: Any, pair: _Pair) -> None:
        """Overwrite a complex sample."""
        row = self.builder.shl(number, _place(1))
        self.set_row(row, pair[0])
        self.set_row(self.builder.add(row, _place(1)), pair[1])

    def _row(self, number: Any) -> Any:
        return self.vector(self.builder.mul(number, _place(self.width)), self.width)


def _instruction(result: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate what writes code to stand in compiled loops for that code.

    It gets LLVM's builder, then arrays as `_Room` and numbers as LLVM's values.
    """

    def decorated(write: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(write)  # numba asks for the number of arguments
        def typed(_: Any, *kinds: Any) -> Any:
            def lowered(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                given = [
                    _Room(context, builder, kind, value) if isinstance(kind, types.Array) else value
                    for kind, value in zip(signature.args, values, strict=True)
                ]
                value = write(builder, *given)
                return context.get_dummy_value() if value is None else value

            return result(*kinds), lowered

        made: Callable[..., Any] = intrinsic(typed)
        return made

    return decorated


def _place(value: int) -> Any:
    return ir.Constant(_PLACE, value)


def _constant(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _spread(builder: Any, value: Any, count: int) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_WORD, 0))
    return _mixed(builder, one, nothing, [0] * count)


def _mixed(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    places = ir.Constant(ir.VectorType(_WORD, len(order)), order)
    return builder.shuffle_vector(a, b, places)


def _turned(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Transpose of a square: single values change places first, then pairs, then fours."""
    turned, n = list(rows), len(rows)
    apart = 1
    while apart < n:
        first = [k + n - apart if k & apart else k for k in range(n)]
        second = [k + n if k & apart else k + apart for k in range(n)]
        for i in range(n):
            if not i & apart:
                pair = turned[i], turned[i + apart]
                turned[i] = _mixed(builder, *pair, first)
                turned[i + apart] = _mixed(builder, *pair, second)
        apart *= 2
    return turned


def _sum(a: _Pair, b: _Pair) -> _Pair:
    return a[0] + b[0], a[1] + b[1]


def _difference(a: _Pair, b: _Pair) -> _Pair:
    return a[0] - b[0], a[1] - b[1]


def _times(a: _Pair, factor: float) -> _Pair:
    return a[0] * factor, a[1] * factor


def _product(a: _Pair, b: _Pair) -> _Pair:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _either_side(middle: _Pair, away: _Pair) -> tuple[_Pair, _Pair]:
    """``middle + i*away`` and ``middle - i*away``."""
    return (
        (middle[0] - away[1], middle[1] + away[0]),
        (middle[0] + away[1], middle[1] - away[0]),
    )


def _two(a: Sequence[_Pair]) -> list[_Pair]:
    return [_sum(a[0], a[1]), _difference(a[0], a[1])]


def _three(a: Sequence[_Pair]) -> list[_Pair]:
    both = _sum(a[1], a[2])
    middle = _sum(a[0], _times(both, -0.5))
    up, down = _either_side(middle, _times(_difference(a[1], a[2]), math.sqrt(0.75)))
    return [_sum(a[0], both), up, down]


def _four(a: Sequence[_Pair]) -> list[_Pair]:
    even, odd = _sum(a[0], a[2]), _sum(a[1], a[3])
    up, down = _either_side(_difference(a[0], a[2]), _difference(a[1], a[3]))
    return [_sum(even, odd), up, _difference(even, odd), down]


def _five(a: Sequence[_Pair]) -> list[_Pair]:
    outer, inner = _sum(a[1], a[4]), _sum(a[2], a[3])
    out, in_ = _difference(a[1], a[4]), _difference(a[2], a[3])
    cos1, cos2 = math.cos(_FIFTH), math.cos(2 * _FIFTH)
    sin1, sin2 = math.sin(_FIFTH), math.sin(2 * _FIFTH)
    one = _sum(_sum(a[0], _times(outer, cos1)), _times(inner, cos2))
    two = _sum(_sum(a[0], _times(outer, cos2)), _times(inner, cos1))
    up1, down1 = _either_side(one, _sum(_times(out, sin1), _times(in_, sin2)))
    up2, down2 = _either_side(two, _difference(_times(out, sin2), _times(in_, sin1)))
    return [_sum(_sum(a[0], outer), inner), up1, up2, down2, down1]


def _butterfly(
    transform: Callable[[Sequence[_Pair]], list[_Pair]], radix: int, *, turned: bool
) -> Callable[..., Any]:
    """A step of a transform with exp(+2 pi i ...), in place.

    In a compiled loop: ``step(work, place, apart, imaginary, factors, at)``; complex samples
    ``place``, ``place + apart``, ... of ``work``, all but the first of them times the complex
    ``factors`` from ``at`` on where it is a ``turned`` one. ``imaginary`` is which row of a
    sample's two is its imaginary part: 1, or 0 for the transform with exp(-2 pi i ...).
    """

    @_instruction(types.none)
    def step(
        builder: Any, work: _Room, place: Any, apart: Any, imaginary: Any, factors: _Room, at: Any
    ) -> None:
        real = builder.sub(_place(1), imaginary)
        rows, legs = [], []
        for leg in range(radix):
            row = builder.shl(builder.add(place, builder.mul(apart, _place(leg))), _place(1))
            rows.append((builder.add(row, real), builder.add(row, imaginary)))
            value = work.row(rows[-1][0]), work.row(rows[-1][1])
            if leg and turned:
                cosine = builder.add(at, _place(2 * leg - 2))
                sine = builder.add(at, _place(2 * leg - 1))
                value = _product(value, (factors.every(cosine), factors.every(sine)))
            legs.append(value)
        for pair, value in zip(rows, transform(legs), strict=True):
            work.set_row(pair[0], value[0])
            work.set_row(pair[1], value[1])

    return step


step2, turned2 = (_butterfly(_two, 2, turned=turned) for turned in (False, True))
step3, turned3 = (_butterfly(_three, 3, turned=turned) for turned in (False, True))
step4, turned4 = (_butterfly(_four, 4, turned=turned) for turned in (False, True))
step5, turned5 = (_butterfly(_five, 5, turned=turned) for turned in (False, True))


def _weighted(*, added: bool) -> Callable[..., Any]:
    """Weighted sum of a complex sample A and another, B: to a sample of ``target``.

    In a compiled loop: ``step(source, a, b, factors, at, target, to)``;
    ``g*(A + conj(B)) + (u + iv)*(A - conj(B))`` with g, u, v at ``at`` of ``factors``, on top
    of what is there if ``added``.
    """

    @_instruction(types.none)
    def step(
        builder: Any, source: _Room, a: Any, b: Any, factors: _Room, at: Any, target: _Room, to: Any
    ) -> None:
        one, two = source.pair(a), source.pair(b)
        g, u, v = (factors.every(builder.add(at, _place(i))) for i in range(3))
        even = one[0] + two[0], one[1] - two[1]
        odd = one[0] - two[0], one[1] + two[1]
        value = _sum((even[0] * g, even[1] * g), _product(odd, (u, v)))
        target.set_pair(to, _sum(value, target.pair(to)) if added else value)

    return step


weighted, weighted_more = _weighted(added=False), _weighted(added=True)


@_instruction(types.float64)
def held_sample(builder: Any, kind: _Room, address: Any, place: Any) -> Any:
    """Sample ``place`` after a memory address, of the type of array ``kind``, as a float64."""
    return _doubled(builder, _held(builder, kind, address, place, 1), kind.kind, _DOUBLE)


@_instruction(types.none)
def turn_in(
    builder: Any,
    kind: _Room,
    addresses: _Room,
    place: Any,
    position: Any,
    first: _Room,
    slope: _Room,
    rows: _Room,
    work: _Room,
    greatest: _Room,
) -> None:
    """A row's width of samples of as many channels, each less its line, to their rows.

    From sample ``place`` after each of the ``addresses`` on, which is the window's sample
    ``position``; ``rows`` says where in ``work`` each sample of the window goes. In
    ``greatest`` the bits of each channel's greatest absolute value are kept up.
    """
    n = work.width
    double = ir.VectorType(_DOUBLE, n)
    counted = ir.Constant(double, [ir.Constant(_DOUBLE, float(i)) for i in range(n)])
    begin = builder.sitofp(position, _DOUBLE)
    times = _Row(builder, _spread(builder, begin, n)) + _Row(builder, counted)
    channels = []
    for k in map(_place, range(n)):
        held = _held(builder, kind, addresses.one(k), place, n)
        value = _Row(builder, _doubled(builder, held, kind.kind, double))
        value = value - first.same(k, n) - times * slope.same(k, n)
        channels.append(_narrowed(builder, value.value, work.number))
    bits = ir.VectorType(greatest.number, n)
    no_sign = _constant(bits, 2 ** (greatest.number.width - 1) - 1)
    record = builder.load(greatest.vector(_place(0), n), align=1)
    for i, row in enumerate(_turned(builder, channels)):
        work.set_row(rows.one(builder.add(position, _place(i))), _Row(builder, row))
        size = builder.and_(builder.bitcast(row, bits), no_sign)
        record = builder.select(builder.icmp_signed(">", size, record), size, record)
    builder.store(record, greatest.vector(_place(0), n), align=1)


@_instruction(types.none)
def turn_out(builder: Any, work: _Room, row: Any, places: _Room, column: Any, out: _Room) -> None:
    """As many rows from ``row`` on as a row is wide, turned: to ``out``.

    Lane k goes to place ``places[k] + column`` of it and those after it.
    """
    n = work.width
    rows = [work.row(builder.add(row, _place(i))).value for i in range(n)]
    for k, channel in enumerate(_turned(builder, rows)):
        place = builder.add(places.one(_place(k)), column)
        builder.store(channel, out.vector(place, n), align=1)


def _held(builder: Any, kind: _Room, address: Any, place: Any, count: int) -> Any:
    start = builder.inttoptr(address, kind.number.as_pointer())
    start = builder.gep(start, [place])
    if count > 1:
        start = builder.bitcast(start, ir.VectorType(kind.number, count).as_pointer())
    return builder.load(start, align=1)


def _doubled(builder: Any, value: Any, number: Any, double: Any) -> Any:
    if value.type == double:
        return value
    if isinstance(number, types.Float):
        return builder.fpext(value, double)
    return (builder.sitofp if number.signed else builder.uitofp)(value, double)


def _narrowed(builder: Any, value: Any, number: Any) -> Any:
    wanted = ir.VectorType(number, value.type.count)
    return value if value.type == wanted else builder.fptrunc(value, wanted)
