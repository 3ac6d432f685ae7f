"""From counts to levels in compiled loops, each one pass over pieces that fit a cache.

They are compiled as `das_gpu.backends.loops` says, hold no lock of the interpreter and start no
threads. They allocate nothing and raise nothing: room to work in is among their arguments, which
they trust. `das_gpu.backends.fast` is how to call them.

Complex arrays come here as real ones of twice the length (real, imaginary, real, ...), all
arrays are C-contiguous, and every inner loop runs over a slice: so that it becomes vector
instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from das_gpu.backends.loops import MEDIAN_BLOCK

_OCTAVE_DB = 10 * math.log10(2)
_NEPER_DB = 10 / math.log(10)
_REFERENCE_DB = 120.0
# Powers under 2**-100 are raised by 2**100 first, so that none is denormal.
_RAISE = 100
_SMALL = 2.0**-_RAISE
_RAISED = 2.0**_RAISE
# Bits of the square root of 1/2: where a mantissa's octave is made to begin.
_ROOT_HALF_32 = 0x3F3504F3
_ROOT_HALF_64 = 0x3FE6A09E667F3BCD
_GREATEST_32 = float(np.finfo(np.float32).max)
_GREATEST_64 = float(np.finfo(np.float64).max)

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled_loop(*liberties: str) -> Callable[[Loop], Loop]:
    """Decorate a loop to be compiled for each combination of types it is called with.

    Parameters
    ----------
    liberties : str
        What LLVM may take for granted of floating point: its names of fast-math flags.
    """

    def decorated(loop: Loop) -> Loop:
        options: dict[str, Any] = {"error_model": "numpy", "fastmath": set(liberties)}
        made: Loop = njit(**options)(loop)
        return made

    return decorated


@compiled_loop("reassoc")
def _sum(values: NDArray[Any]) -> Any:
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


@compiled_loop()
def _key(bits: Any, greatest_key: Any) -> Any:
    """Integer in the order of the float with these bits; done again it gives the bits back."""
    return type(greatest_key)(bits ^ greatest_key) if bits < type(greatest_key)(0) else bits


@compiled_loop()
def _make_keys(bits: NDArray[Any], greatest_key: Any) -> tuple[Any, Any]:
    """Turn bits into keys, in place; the least and the greatest of them."""
    low, high = greatest_key, bits.dtype.type(~greatest_key)
    for i in range(bits.size):
        key = _key(bits[i], greatest_key)
        bits[i] = key
        low = min(low, key)
        high = max(high, key)
    return low, high


@compiled_loop()
def _split(keys: NDArray[Any], pivot: Any, greatest_key: Any) -> tuple[int, Any, Any]:
    """How many keys are under the pivot, the greatest of these, and the least of the others."""
    integer = keys.dtype.type
    least_key = integer(~greatest_key)
    under, greatest, least = integer(0), least_key, greatest_key
    for i in range(keys.size):
        key = keys[i]
        is_under = key < pivot
        under = integer(under + integer(is_under))
        low = key if is_under else least_key
        high = greatest_key if is_under else key
        greatest = max(greatest, low)
        least = min(least, high)
    return under, greatest, least


@compiled_loop()
def middle(
    keys: NDArray[Any],
    mean: Any,
    places: NDArray[Any],
    place_keys: NDArray[Any],
    greatest_key: Any,
) -> None:
    """The two middle values, to ``places``; the same one twice for an odd count.

    Guesses where half of the values are under it. ``low`` and ``high`` are always keys that
    occur, numbers ``start`` and ``stop - 1`` of the sorted ones, with the wanted one between
    them; each guess takes at least one value out. ``place_keys`` are the bits of ``places``.
    """
    n = keys.size
    half = n // 2
    low, high = _make_keys(keys, greatest_key)
    start, stop, turn = 0, n, 0
    places[0] = mean
    while low < high:
        pivot = _key(place_keys[0], greatest_key)
        if not (low < pivot <= high):
            pivot = high
        under, greatest, least = _split(keys, pivot, greatest_key)
        if under == half:
            low, high = (greatest if 2 * half == n else least), least
            break
        if under < half:
            low, start = least, under
        else:
            high, stop = greatest, under
        # A share of the count finds the place in a smooth distribution, the middle in any.
        share = 0.5 if turn % 8 > 5 else (half - 0.5 - start) / max(stop - 1 - start, 1)
        turn += 1
        place_keys[0], place_keys[1] = _key(low, greatest_key), _key(high, greatest_key)
        places[0] += (places[1] - places[0]) * places.dtype.type(share)
    place_keys[0], place_keys[1] = _key(low, greatest_key), _key(high, greatest_key)


@compiled_loop()
def medians(
    signal: NDArray[Any],
    channels: NDArray[np.intp],
    start: int,
    stop: int,
    values: NDArray[Any],
    keys: NDArray[Any],
    greatest_key: Any,
    out: NDArray[Any],
) -> None:
    """Median over some channels of the columns ``[start, stop)``, into the same places of out.

    ``values`` is room for ``MEDIAN_BLOCK`` columns and two values, ``keys`` the same memory as
    integers: comparing, counting and choosing become vector instructions with these alone.
    """
    n = channels.size
    apart = (values.size - 2) // MEDIAN_BLOCK
    places, place_keys = values[values.size - 2 :], keys[keys.size - 2 :]
    for begin in range(start, stop, MEDIAN_BLOCK):
        width = min(MEDIAN_BLOCK, stop - begin)
        for k in range(n):
            row = signal[channels[k]][begin : begin + width]
            place = np.uintp(k)
            for i in range(width):
                values[place] = row[i]
                place += np.uintp(apart)
        for i in range(width):
            mean = _sum(values[i * apart : i * apart + n]) / values.dtype.type(n)
            middle(keys[i * apart : i * apart + n], mean, places, place_keys, greatest_key)
            out[begin + i] = (places[0] + places[1]) / values.dtype.type(2)


@compiled_loop("contract")
def _level_32(power: Any) -> Any:
    """``10*log10(power) + 120`` in float32: an octave and a series of the rest of it.

    log(m) = 2 (s + s**3/3 + s**5/5 + ...) with s = (m - 1)/(m + 1), at most 0.172 here.
    """
    small = power < np.float32(_SMALL)
    bits = np.float32(power * np.float32(_RAISED) if small else power).view(np.int32)
    octave = np.int32(np.int32(bits - np.int32(_ROOT_HALF_32)) >> np.int32(23))
    mantissa = np.int32(bits - np.int32(octave << np.int32(23))).view(np.float32)
    s = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
    z = s * s
    series = np.float32(1 / 7)
    series = series * z + np.float32(1 / 5)
    series = series * z + np.float32(1 / 3)
    series = series * z + np.float32(1)
    octaves = np.float32(octave) - (np.float32(_RAISE) if small else np.float32(0))
    level = octaves * np.float32(_OCTAVE_DB) + np.float32(2 * _NEPER_DB) * s * series
    level += np.float32(_REFERENCE_DB)
    level = level if power > np.float32(0) else np.float32(-np.inf)
    return level if power <= np.float32(_GREATEST_32) else power


@compiled_loop("contract")
def _level_64(power: Any) -> Any:
    """As `_level_32`, in float64."""
    small = power < _SMALL
    bits = np.float64(power * _RAISED if small else power).view(np.int64)
    octave = (bits - _ROOT_HALF_64) >> 52
    mantissa = np.int64(bits - (octave << 52)).view(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    series = 1 / 17
    series = series * z + 1 / 15
    series = series * z + 1 / 13
    series = series * z + 1 / 11
    series = series * z + 1 / 9
    series = series * z + 1 / 7
    series = series * z + 1 / 5
    series = series * z + 1 / 3
    series = series * z + 1.0
    octaves = np.float64(np.int32(octave)) - (_RAISE if small else 0.0)
    level = octaves * _OCTAVE_DB + 2 * _NEPER_DB * s * series + _REFERENCE_DB
    level = level if power > 0.0 else np.float64(-np.inf)
    return level if power <= _GREATEST_64 else power


@compiled_loop("contract")
def envelope_32(signal: NDArray[Any], common: NDArray[Any], out: NDArray[Any]) -> None:
    """Level in dB of what a complex64 signal is apart from its common mode."""
    for k in range(out.shape[0]):
        values, levels = signal[k], out[k]
        for i in range(levels.size):
            u = np.uintp(i) * np.uintp(2)
            real = values[u] - common[u]
            imaginary = values[u + np.uintp(1)] - common[u + np.uintp(1)]
            levels[i] = _level_32(real * real + imaginary * imaginary)


@compiled_loop("contract")
def envelope_64(signal: NDArray[Any], common: NDArray[Any], out: NDArray[Any]) -> None:
    """As `envelope_32`, for complex128."""
    for k in range(out.shape[0]):
        values, levels = signal[k], out[k]
        for i in range(levels.size):
            u = np.uintp(i) * np.uintp(2)
            real = values[u] - common[u]
            imaginary = values[u + np.uintp(1)] - common[u + np.uintp(1)]
            levels[i] = _level_64(real * real + imaginary * imaginary)
