"""The CPU backend's steps with compiled loops, where numba is installed (extra ``fast``).

Each function is one step of `das_gpu.backends.cpu`, over the same arrays and to within
rounding the same numbers; the NumPy path there is the reference. Compute threads call them at
once on different parts: no lock of the interpreter is held and no thread started.

Nothing is compiled before `first_missing` is asked, or a step is first called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import filters
from das_gpu.backends import Chain, Picture, plain, twoway
from das_gpu.backends.analytic import AnalyticPlan, supported
from das_gpu.backends.grey import resized_by_pillow
from das_gpu.backends.loops import MEDIAN_BLOCK, loop
from das_gpu.backends.window import BandPass, Buffers
from das_gpu.bloscframe import Pick
from das_gpu.errors import UsageError

BATCH_CHANNELS = 128
"""Channels filtered at once: their intermediates fit a core's cache."""
LEVEL_CHANNELS = 32
"""Channels whose levels are in cache while their range is taken."""
PICKED_NBYTES = 4
"""Of the samples that `pick` puts together."""
REMEDY = "`pip install das-gpu[fast]` brings what fits; without it NumPy does the work."
_NOT_INSTALLED = f"numba is not installed. {REMEDY}"


def installed() -> bool:
    """Whether numba is there, without spending the second that importing it takes."""
    return find_spec("numba") is not None


def missing_for(chain: Chain, held: np.dtype[Any]) -> str | None:
    """What keeps a chain's steps from being compiled; see `first_missing`."""
    if not installed():
        return _NOT_INSTALLED
    picture, sections = chain.picture, chain.sections is not None
    if picture is None:
        return first_missing(chain.dtype, held, sections=sections)
    sections = sections or picture.resize == "pillow"
    return first_missing(chain.dtype, held, picture.highest, sections=sections)


@lru_cache(maxsize=32)
def first_missing(
    dtype: np.dtype[Any], held: np.dtype[Any], highest: int = 255, *, sections: bool = False
) -> str | None:
    """What keeps the compiled steps from running; None when they do.

    Runs every step once on next to nothing, so that all of them are compiled or loaded: the
    first time on a machine this takes some ten seconds, then a tenth of one. Worth doing on a
    thread of its own while the first chunks are on their way.

    Parameters
    ----------
    dtype : numpy.dtype
        float32 or float64: the precision of the steps.
    held : numpy.dtype
        Of the archive's samples.
    highest : int
        Greatest pixel value, 255 or 65535.
    sections : bool
        Second-order sections are wanted, or Pillow's images.
    """
    if not installed():
        return _NOT_INSTALLED
    try:
        _rehearse(dtype, held, highest)
        if sections:
            _rehearse_recursive(dtype)
    except (ImportError, OSError) as error:
        return f"numba cannot be imported: {error}. {REMEDY}"
    except Exception as error:  # noqa: BLE001 - whatever ails a compiler, there is another way
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"numba cannot compile or keep what it compiled ({said}). {REMEDY}"
    return None


def _rehearse(dtype: np.dtype[Any], held: np.dtype[Any], highest: int) -> None:
    signal = np.empty((2, 4), np.result_type(dtype, np.complex64))
    plan = AnalyticPlan(8, 4, np.ones(4), 0, 4, dtype)
    room = np.empty(plan.room_size, dtype)
    for pieces in (held, np.dtype(np.float64)):  # mirrored windows are float64
        live = plan.apply([np.arange(16, dtype=pieces).reshape(2, 8)], room, signal)
    real, common = np.empty((2, 4), dtype), np.empty(4, signal.dtype)
    pick()
    medians(signal, np.arange(2), 0, 4, common)
    envelope_db(signal, common, real, *np.empty((2, 2), dtype))
    real[...] = np.arange(8).reshape(2, 4)
    in_float(real, live, 0.0, 1.0, Picture(2, 2, highest, "time-right", "float"))
    centre(np.zeros((1, 2)), (0, 2), (0, 2))


def _rehearse_recursive(dtype: np.dtype[Any]) -> None:
    """The steps of second-order sections, and of Pillow's images, which few recipes have."""
    one = np.array([[1.0, 0, 0, 1, 0, 0]])
    twoway.TwoWayFilter(one, 0, 1).apply(np.zeros((8, 8)), np.empty((8, 8), dtype))
    real = np.zeros((1, 8), dtype)
    signal = np.empty((1, 8), np.result_type(dtype, np.complex64))
    twoway.Quadrature(8, 0, 8, dtype).apply(real, signal)
    by_pillow(real, np.ones(1, np.bool_), 0.0, 1.0, Picture(2, 2, 255, "time-right", "pillow"))


def band_pass(chain: Chain) -> BandPass:
    """By compiled transforms, many channels side by side; what they cannot do, as `plain` does."""
    if chain.sections is not None:
        return twoway.band_pass(chain, chain.sections)
    length, kept = chain.length, chain.length // chain.step
    if chain.weights is None or not supported(length, kept):
        return plain.band_pass(chain)
    first = chain.core0 // chain.step
    plan = AnalyticPlan(length, kept, chain.weights, first, chain.tile_samples, chain.dtype)
    buffers = Buffers()

    def apply(pieces: Sequence[NDArray[Any]], out: NDArray[Any]) -> NDArray[np.bool_]:
        return plan.apply(pieces, buffers.array("room", (plan.room_size,), chain.dtype), out)

    return apply


def centre(
    window: NDArray[np.float64], known: tuple[int, int], core: tuple[int, int] | None
) -> NDArray[np.bool_]:
    """Take off each channel's median over its core, in place, and find the channels that live.

    Exactly NumPy's medians: even counts give the mean of the two middle values.

    Parameters
    ----------
    window : (channel, sample) float64 array, C-contiguous
        Channels that do not live become zeros.
    known : (int, int)
        Samples that say which channels live: those not constant, and finite throughout them.
    core : (int, int) or None
        Samples whose median is taken; None when nothing is to be taken off.

    Returns
    -------
    (channel,) bool array
        Which channels live.

    Raises
    ------
    UsageError
        When either range is empty or not within the window.
    """
    for start, stop in (known, core or known):
        if not 0 <= start < stop <= window.shape[1]:
            raise UsageError(
                f"Samples [{start}, {stop}) of a window of {window.shape[1]} were asked for: a "
                "range must hold at least one sample of the window."
            )
    begin, end = core or (0, 0)
    values = np.empty(end - begin + 2)
    live = np.empty(window.shape[0], np.bool_)
    loop("centre.centre")(window, *known, begin, end, values, values.view(np.int64), live)
    return live


def medians(
    values: NDArray[Any], channels: NDArray[np.intp], start: int, stop: int, out: NDArray[Any]
) -> None:
    """Median over channels of the real and of the imaginary part, for some of the samples.

    Exactly NumPy's medians: even counts give the mean of the two middle values.

    Parameters
    ----------
    values : (channel, sample) complex array, C-contiguous
        Finite in the chosen channels.
    channels : (n,) intp array
        Rows of ``values`` to take the median over, at least one.
    start, stop : int
        Samples to do.
    out : (sample,) complex array of the same type
        Its part ``[start, stop)`` is filled.
    """
    real = out.real.dtype
    # Columns an odd number of cache lines apart do not compete for the same places in it.
    apart = -(-channels.size // 32) * 32 + 16
    room = np.empty(MEDIAN_BLOCK * apart + 2, real)
    integer = np.int32 if real == np.float32 else np.int64
    keys, greatest_key = room.view(integer), integer(np.iinfo(integer).max)
    signal, common = values.view(real), out.view(real)
    step = loop("compiled.medians", real=real)
    rows = np.ascontiguousarray(channels)
    step(signal, rows, 2 * start, 2 * stop, room, keys, greatest_key, common)


def envelope_db(
    values: NDArray[Any],
    common: NDArray[Any] | None,
    out: NDArray[Any],
    lowest: NDArray[Any],
    highest: NDArray[Any],
) -> None:
    """``20*log10(abs(values - common) / 1e-6)`` and each channel's range of it.

    To a rounding of ``out``'s type, its series being exact to 1e-6 dB in float32 and 1e-13 dB
    in float64; -inf where the envelope is 0.

    Parameters
    ----------
    values : (channel, sample) complex array, C-contiguous
    common : (sample,) complex array of the same type, or None
        Subtracted from every channel.
    out : (channel, sample) array of the values' real type, C-contiguous
        Filled. It may be the first half of the values' memory.
    lowest, highest : (channel,) arrays of that type
        Filled; of a channel whose levels are not numbers with anything.
    """
    if common is None:
        common = np.zeros(values.shape[1], values.dtype)
    step = loop(f"compiled.envelope_{8 * out.itemsize}", real=out.dtype)
    parts, away = values.view(out.dtype), common.view(out.dtype)
    for k in range(0, len(out), LEVEL_CHANNELS):
        rows = slice(k, k + LEVEL_CHANNELS)
        # ``out`` may be the values' memory: the first block's levels would lie in its values.
        levels = out[rows] if k else np.empty_like(out[rows])
        step(parts[rows], away, levels)
        levels.min(axis=1, out=lowest[rows])
        levels.max(axis=1, out=highest[rows])
        if k == 0:
            out[rows] = levels


def in_float(
    envelope: NDArray[Any], live: NDArray[np.bool_], low: float, high: float, picture: Picture
) -> NDArray[Any]:
    """Grey levels resized in floating point, clipped and rounded: (height, width).

    As `das_gpu.backends.grey.in_float`, without a change to ``envelope``.
    """
    across, down = picture.width, picture.height
    if picture.orientation == "time-right":
        across, down = down, across
    real = envelope.dtype
    pixels = np.empty((across, down), np.uint16 if picture.highest > 255 else np.uint8)
    bounds, weights = _weights(envelope.shape[0], across, real)
    most = weights.shape[1] + 3
    loop("compiledimage.grey", real=real, pixel=pixels.dtype)(
        envelope,
        live,
        low,
        picture.highest / (high - low) if high > low else 0.0,
        picture.highest,
        bounds,
        weights,
        *_weights(envelope.shape[1], down, real),
        np.empty(envelope.shape[1], real),
        np.empty(most, np.intp),
        np.empty(most, real),
        pixels,
    )
    return np.ascontiguousarray(pixels.T if picture.orientation == "time-down" else pixels)


def by_pillow(
    envelope: NDArray[Any], live: NDArray[np.bool_], low: float, high: float, picture: Picture
) -> NDArray[Any]:
    """As `das_gpu.backends.grey.by_pillow`, to the last bit; ``picture.highest`` is 255."""
    greys = truncated(envelope, live, low, high, picture.highest)
    return resized_by_pillow(greys, picture)


def truncated(
    envelope: NDArray[Any], live: NDArray[np.bool_], low: float, high: float, highest: int
) -> NDArray[np.uint8]:
    """Greys ``(level - low) / (high - low) * highest``, clipped, and truncated to integers.

    To the last bit what these operations give in NumPy and float64, without a change to
    ``envelope``.

    Parameters
    ----------
    envelope : (channel, sample) float32 or float64 array, C-contiguous
        In dB; not NaN in live channels.
    live : (channel,) bool array
        The others become 0.
    low, high : float
        Levels of grey 0 and of the highest; all is 0 unless ``high`` is the greater.
    highest : int
        At most 255.

    Returns
    -------
    (channel, sample) uint8 array
    """
    out = np.zeros(envelope.shape, np.uint8)
    if high > low:
        low, spread = float(low), float(high) - float(low)
        step = loop("eightbit.truncate_all", real=envelope.dtype)
        step(envelope, live, low, spread, float(highest), out)
    return out


def pick() -> Pick:
    """See `das_gpu.backends.unshuffle.pick`."""
    return loop("unshuffle.pick")


@lru_cache(maxsize=32)
def _weights(
    n_in: int, n_out: int, dtype: np.dtype[Any]
) -> tuple[NDArray[np.intp], NDArray[np.floating[Any]]]:
    bounds, weights = filters.resize_weights(n_in, n_out)
    return bounds, weights.astype(dtype)
