"""The analytic signal of many channels at once, by compiled transforms.

One pass over the counts for all of detrend, transform, gains, decimation and the transform
back. Nothing is compiled before a plan is applied, and numba not imported before one is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends.loops import ROW_BYTES, loop
from das_gpu.errors import UsageError

RADICES = (5, 4, 3, 2)
"""Of a transform's steps, the innermost first."""
NEAR_BYTES = 1 << 14
"""Of a part of a work array: so much stays in the first cache over all of the part's steps."""
HELD = tuple(np.dtype(name) for name in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"))
"""Types of samples that are read as they are; others by way of a copy in float64."""


def supported(length: int, kept_length: int) -> bool:
    """Whether there are transforms for both lengths: products of the primes 2, 3 and 5.

    Parameters
    ----------
    length : int
        Samples of a window, at least 2.
    kept_length : int
        Samples of its analytic signal.
    """
    if length < 2 or kept_length < 1:
        return False
    return _radices(length) is not None and _radices(kept_length) is not None


def _radices(n: int) -> list[int] | None:
    """Steps of a transform of n samples, the outermost first; None for other primes."""
    found: list[int] = []
    for radix in RADICES:
        while n % radix == 0:
            found.insert(0, radix)
            n //= radix
    return found if n == 1 else None


class _Transform:
    """Tables of an unscaled transform in place: of each leg's transform, then of the legs.

    Attributes
    ----------
    order : (n,) intp array
        Where each of the samples has to be before; afterwards they are in order.
    schedule : (step, 6) intp array
        As `das_gpu.backends.spectrum` follows it.
    factors : float64 array
        Complex ones, (real, imaginary), of all steps.
    """

    def __init__(self, n: int, sample_bytes: int, at: int, *, forward: bool) -> None:
        self.order = np.zeros(n, np.intp)
        self._near = NEAR_BYTES // sample_bytes
        self._levels: list[tuple[int, int, int]] = []
        factors = [np.empty(0)]
        index, apart = np.arange(n), n
        for radix in _radices(n) or ():
            apart //= radix
            self.order += index % radix * apart
            index //= radix
            self._levels.append((radix, apart, at))
            if apart > 1:
                turns = np.outer(np.arange(apart), np.arange(1, radix)) / (radix * apart)
                factors.append(np.exp(2j * np.pi * turns).ravel().view(np.float64))
                at += factors[-1].size
        self.factors = np.concatenate(factors)
        steps = [(*step, int(not forward)) for step in self._steps(0, 0)]
        self.schedule = np.array(steps, np.intp).reshape(-1, 6)

    def _steps(self, level: int, start: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Leg by leg while a part is too long for the first cache, then step by step."""
        if level == len(self._levels):
            return
        radix, apart, at = self._levels[level]
        samples = radix * apart
        if samples > self._near:
            for leg in range(radix):
                yield from self._steps(level + 1, start + leg * apart)
            yield radix, start, 1, apart, at
            return
        for radix, apart, at in reversed(self._levels[level:]):
            yield radix, start, samples // (radix * apart), apart, at


class AnalyticPlan:
    """How windows of one length become the analytic signal of their core.

    Each channel less the straight line through its first and last sample, its one-sided
    spectrum times gains, folded to the length that is kept, transformed back without scaling
    and cut. The rounding is that of ``dtype``, the line's that of float64. Threads may share a
    plan: it never changes.

    Parameters
    ----------
    length : int
        Samples of a window.
    kept_length : int
        Samples of the analytic signal: bin j is added to its bin j modulo this.
    gains : (bin,) float64 array
        Of the one-sided spectrum's first bins, the transform's 1/length included.
    first, samples : int
        The part ``[first, first + samples)`` of the analytic signal is wanted.
    dtype : numpy.dtype
        float32 or float64.

    Attributes
    ----------
    room_size : int
        Values of ``dtype`` that `apply` wants room for.

    Raises
    ------
    UsageError
        When the lengths are not `supported`, or the gains or the part do not fit them.
    """

    def __init__(
        self,
        length: int,
        kept_length: int,
        gains: NDArray[np.float64],
        first: int,
        samples: int,
        dtype: np.dtype[Any],
    ) -> None:
        if not supported(length, kept_length):
            raise UsageError(
                f"There is no compiled transform from {length} samples to {kept_length}: both "
                "must be products of 2, 3 and 5. Choose such a window, or go without numba."
            )
        if not (first >= 0 and 0 < samples <= kept_length - first):
            raise UsageError(
                f"Samples {first} to {first + samples} of {kept_length} were asked for; there "
                "has to be at least one, and none outside."
            )
        if gains.size > length // 2 + 1:
            raise UsageError(
                f"There are {gains.size} gains for a window of {length} samples, which has "
                f"{length // 2 + 1} bins; give at most one for each."
            )
        self._length, self._samples = length, samples
        self._dtype = np.dtype(dtype)
        self._bits = np.dtype(np.int32 if self._dtype == np.float32 else np.int64)
        self._width = ROW_BYTES // self._dtype.itemsize
        self._align = ROW_BYTES
        # Even windows are transformed as half as many complex samples.
        n = length // 2 if length % 2 == 0 else length
        forward = _Transform(n, 2 * ROW_BYTES, 0, forward=True)
        inverse = _Transform(kept_length, 2 * ROW_BYTES, forward.factors.size, forward=False)
        factors = np.concatenate([forward.factors, inverse.factors])
        sample = np.arange(length)
        rows = 2 * forward.order
        if n < length:
            rows = rows[sample // 2] + sample % 2
        self._sizes = tuple(2 * count * self._width for count in (n, kept_length))
        self.room_size = sum(self._sizes) + self._width
        self._tables = (
            rows,
            forward.schedule,
            *_bins(gains, length, inverse.order, self._dtype),
            inverse.schedule,
            factors.astype(self._dtype),
            2 * first,
            np.array(np.inf, self._dtype).view(self._bits)[()],
        )

    def apply(
        self, pieces: Sequence[NDArray[Any]], room: NDArray[Any], out: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Fill ``out`` with the analytic signal of the core of one window of each channel.

        Parameters
        ----------
        pieces : sequence of (channel, sample) arrays
            Integers or floats of one type that follow one another in time: the whole window.
        room : (room_size,) array of the plan's type, C-contiguous
            To work in; nobody else's meanwhile. Its contents do not matter.
        out : (channel, samples) complex array of the plan's precision, C-contiguous
            Filled.

        Returns
        -------
        (channel,) bool array
            Which channels live: those not constant and finite throughout. The others are zeros.

        Raises
        ------
        UsageError
            When the pieces are not one window, or the arrays not of those shapes and types.
        """
        held = [_readable(piece) for piece in pieces if piece.shape[1]]
        table = np.array(
            [
                (piece.__array_interface__["data"][0], piece.strides[0], piece.shape[1])
                for piece in held
            ],
            np.intp,
        ).reshape(-1, 3)
        self._check(held, int(table[:, 2].sum()), room, out)
        skip = -room.__array_interface__["data"][0] % self._align // room.itemsize
        middle = skip + self._sizes[0]
        live = np.empty(out.shape[0], np.bool_)
        single = np.empty(1, self._dtype)
        loop("spectrum.analytic", real=self._dtype, held=held[0].dtype)(
            np.empty(0, held[0].dtype),
            table,
            *self._tables,
            np.empty((3, self._width), np.intp),
            np.empty((2, self._width)),
            single,
            single.view(self._bits),
            np.empty(self._width, self._bits),
            room[skip:middle],
            room[middle : middle + self._sizes[1]],
            live,
            2 * self._samples,
            out.view(self._dtype).reshape(-1),
        )
        return live

    def _check(
        self, pieces: Sequence[NDArray[Any]], length: int, room: NDArray[Any], out: NDArray[Any]
    ) -> None:
        """The compiled loops trust their arguments: what they get is looked at here."""
        found = {(piece.shape[0], piece.dtype) for piece in pieces}
        if length != self._length or [channels for channels, _ in found] != [out.shape[0]]:
            shapes = ", ".join(str(piece.shape) for piece in pieces)
            raise UsageError(
                f"Pieces of shapes {shapes or 'none'} were given for {out.shape[0]} channels and "
                f"windows of {self._length} samples; give as many channels and samples, all of "
                "one type."
            )
        complex_dtype = np.result_type(self._dtype, np.complex64)
        if (
            (out.shape[1:], out.dtype) != ((self._samples,), complex_dtype)
            or not out.flags.c_contiguous
            or (room.ndim, room.dtype, room.size >= self.room_size) != (1, self._dtype, True)
            or not room.flags.c_contiguous
        ):
            raise UsageError(
                f"An output of {out.shape} {out.dtype} and a room of {room.shape} {room.dtype} "
                f"were given; wanted, without gaps, are (channels, {self._samples}) "
                f"{complex_dtype} and ({self.room_size},) {self._dtype}."
            )


def _bins(
    gains: NDArray[np.float64], length: int, order: NDArray[np.intp], dtype: np.dtype[Any]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any], NDArray[np.intp]]:
    """Bins (sample, its mirror, place) first at a place, those on top, all weights, empty places.

    A window's even samples as real and its odd ones as imaginary parts have the transform Z;
    bin f of the window's own is ``(A + conj(B))/2 - i/2 exp(-2 pi i f/length) (A - conj(B))``
    with A and B samples f and -f of Z. Odd windows are real samples alone: A is conj(B).
    """
    used = np.flatnonzero(gains)
    place = order[used % order.size]
    _, firsts = np.unique(place, return_index=True)
    used = np.concatenate([used[firsts], np.delete(used, firsts)])
    place = np.concatenate([place[firsts], np.delete(place, firsts)])
    half = gains[used] / 2
    n = length if length % 2 else length // 2
    turned = -1j * half * np.exp(-2j * np.pi * used / length)
    weights = np.stack([half, turned.real, turned.imag], axis=1).astype(dtype).ravel()
    bins = np.stack([used % n, -used % n, place], axis=1).astype(np.intp)
    empty = np.setdiff1d(order, place)
    return bins[: firsts.size], bins[firsts.size :], weights, empty


def _readable(piece: NDArray[Any]) -> NDArray[Any]:
    """The piece itself where its samples follow one another in memory, in a type that is read."""
    if piece.dtype not in HELD:
        return piece.astype(np.float64, order="C")
    return piece if piece.strides[1] == piece.itemsize else np.ascontiguousarray(piece)
