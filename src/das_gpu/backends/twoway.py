"""How to call the compiled sections of `das_gpu.backends.recursive`.

Nothing is compiled, nor numba imported, before a filter is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Chain
from das_gpu.backends.analytic import AnalyticPlan, supported
from das_gpu.backends.loops import CASCADE, LANES, loop
from das_gpu.backends.window import BandPass, Buffers
from das_gpu.errors import UsageError

_LINE_BYTES = 64
"""Of cache: work arrays begin one."""


class TwoWayFilter:
    """A cascade of second-order sections without phase: forward, then backward.

    Does what ``scipy.signal.sosfiltfilt(sections, window, axis=1, padtype="odd",
    padlen=padding)[:, ::step]`` does, to within rounding. Threads share it.

    Parameters
    ----------
    sections : (n_sections, 6) float64 array
        b0, b1, b2, a0, a1, a2 of each, as SciPy designs them: every a0 is 1.
    padding : int
        Samples of odd extension at either end, 0 or more.
    step : int
        Samples per sample that is kept, from the first on.

    Raises
    ------
    UsageError
        When the sections are not of that kind, or padding or step are impossible.
    """

    def __init__(self, sections: NDArray[np.float64], padding: int, step: int) -> None:
        shape = sections.shape
        if len(shape) != 2 or 0 in shape or shape[1] != 6 or np.any(sections[:, 3] != 1):
            raise UsageError(
                "Second-order sections are rows of b0, b1, b2, a0, a1, a2 with a0 = 1; these have "
                f"the shape {shape}. scipy.signal.butter(..., output='sos') gives such."
            )
        if padding < 0 or step < 1:
            raise UsageError(
                f"A filter with {padding} samples of padding that keeps every {step}-th sample: "
                "the padding must be 0 or more, the step 1 or more."
            )
        self._padding, self._step = padding, step
        self._numbers, self._steady = _cascades(sections, CASCADE)
        self._buffers = Buffers()

    def apply(self, window: NDArray[np.float64], out: NDArray[Any]) -> None:
        """Filter a window's channels, finite throughout.

        Parameters
        ----------
        window : (channel, sample) float64 array, C-contiguous
            More samples than the padding; it is not changed.
        out : (channel, kept sample) float32 or float64 array, C-contiguous
            Filled with every ``step``-th sample, the first included; the filter itself runs in
            float64.

        Raises
        ------
        UsageError
            When the window is too short, or the arrays not of those shapes and types.
        """
        channels, length = window.shape
        if length <= self._padding:
            raise UsageError(
                f"A window of {length} samples cannot be extended by {self._padding} at its ends: "
                "it must be longer. Longer tiles or a lower order of the filter make it so."
            )
        kept = channels, -(-length // self._step)
        if out.shape != kept:
            raise UsageError(
                f"Every {self._step}-th sample of a window of the shape {window.shape} has the "
                f"shape {kept}; the room for it has {out.shape}."
            )
        gaps = not (window.flags.c_contiguous and out.flags.c_contiguous)
        if gaps or window.dtype != np.float64 or out.dtype not in (np.float32, np.float64):
            raise UsageError(
                f"A window of {window.dtype} was to be filtered into {out.dtype}; wanted, without "
                "gaps, are float64 and either float32 or float64."
            )
        rows = length + 2 * self._padding
        sizes = rows * LANES, self._steady.size * LANES
        room = self._buffers.array("room", (sum(sizes) + _LINE_BYTES // 8,), np.dtype(np.float64))
        skip = -room.ctypes.data % _LINE_BYTES // 8
        loop("recursive.two_ways", real=out.dtype)(
            window.reshape(-1),
            channels,
            self._padding,
            self._step,
            self._numbers,
            self._steady,
            room[skip : skip + sizes[0]],
            room[skip + sizes[0] : skip + sum(sizes)],
            out.reshape(-1),
        )


def _cascades(
    sections: NDArray[np.float64], length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of each section as the loops want them, and its state after an eternity of ones.

    Sections that change nothing fill the last cascade up.
    """
    filled = np.zeros((-(-len(sections) // length) * length, 6))
    filled[:, [0, 3]] = 1
    filled[: len(sections)] = sections
    b, a = filled[:, :3], filled[:, 3:]
    gain = b.sum(axis=1) / a.sum(axis=1)
    far = b[:, 2] - a[:, 2] * gain
    near = b[:, 1] - a[:, 1] * gain + far
    steady = np.stack([near, far], axis=1) * np.concatenate([[1.0], np.cumprod(gain)[:-1]])[:, None]
    return np.concatenate([b, -a[:, 1:]], axis=1).ravel(), steady.ravel()


class Quadrature:
    """The analytic signal of a core, from the real signal of the window around it.

    Its real part is the signal itself, so that only the other one is computed: by compiled
    transforms where they have the window's length, else by a pair of SciPy's real ones, which
    takes half of a complex one's time. Threads share it.

    Parameters
    ----------
    length : int
        Samples of a window, at least 2.
    first, samples : int
        The core.
    dtype : numpy.dtype
        float32 or float64.
    """

    def __init__(self, length: int, first: int, samples: int, dtype: np.dtype[Any]) -> None:
        self._length, self._first, self._samples = length, first, samples
        self._plan: AnalyticPlan | None = None
        self._buffers = Buffers()
        if supported(length, length):
            gains = np.full(length // 2 + 1, 2 / length)
            gains[0] = 0
            gains[length // 2 + length % 2 :] = 0
            self._plan = AnalyticPlan(length, length, gains, first, samples, dtype)
            # The plan takes a straight line off: of that line this is the quadrature.
            one_sided = np.fft.fft(np.arange(length)) * _one_sided(length)
            line = np.fft.ifft(one_sided).imag[first : first + samples]
            self._of_slope = np.ascontiguousarray(line, dtype=dtype)

    def apply(self, real: NDArray[Any], out: NDArray[Any]) -> None:
        """Fill ``out``.

        Parameters
        ----------
        real : (channel, length) array, C-contiguous
            Finite.
        out : (channel, samples) complex array of the same precision, C-contiguous
        """
        if self._plan is None:
            core = slice(self._first, self._first + self._samples)
            out.real, out.imag = real[:, core], _transformed(real)[:, core]
            return
        room = self._buffers.array("room", (self._plan.room_size,), real.dtype)
        self._plan.apply([real], room, out)
        slope = (real[:, -1] - real[:, 0]) / real.dtype.type(self._length - 1)
        join = loop("recursive.join", real=real.dtype)
        join(real, self._first, slope, self._of_slope, out.view(real.dtype))


def _one_sided(length: int) -> NDArray[np.float64]:
    gains = np.zeros(length)
    gains[1 : (length + 1) // 2] = 2
    return gains


def _transformed(real: NDArray[Any]) -> NDArray[Any]:
    from scipy import fft

    spectrum = fft.rfft(real, axis=1)
    spectrum *= -0.5j * _one_sided(real.shape[1])[: spectrum.shape[1]].astype(real.dtype)
    quadrature: NDArray[Any] = fft.irfft(spectrum, real.shape[1], axis=1, overwrite_x=True)
    return quadrature


def band_pass(chain: Chain, sections: NDArray[np.float64]) -> BandPass:
    """The sections forward and backward, decimation, then the analytic signal.

    Of one piece: a whole window in float64 whose channels that do not live are zeros.
    """
    kept = -(-chain.length // chain.step)
    two_way = TwoWayFilter(sections, chain.padding, chain.step)
    quadrature = Quadrature(kept, chain.core0 // chain.step, chain.tile_samples, chain.dtype)
    buffers = Buffers()

    def recursive(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        (window,) = pieces
        filtered = buffers.array("filtered", (window.shape[0], kept), chain.dtype)
        two_way.apply(window, filtered)
        quadrature.apply(filtered, out)
        return np.asarray(window.any(axis=1))

    return recursive
