"""Launches of the kernels between the ring and the analytic signal, and their tables.

Every function here turns arrays and integers into a `Launch`; none of them touches a device.
Arrays may be a device's or NumPy's: only ``shape`` and ``dtype`` are looked at. All of them are
C-contiguous. The kernels' own contracts are at the heads of ``kernels/*.cu``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array
from das_gpu.backends.launch import Launch, define
from das_gpu.backends.response import folded_range

KEPT_BYTES = 44 * 1024
"""Dynamic shared memory in which `median_rows` keeps its keys; with its static memory it stays
under the 48 KB that every device grants without being asked."""

_GATHER_THREADS = 256
_TILE = 32
_TILE_ROWS = 8
_MEDIAN_THREADS = 256
_RESPONSE_THREADS = 256
_RESPONSE_ROWS = 16
_WARP = 32


_SAMPLE_DTYPES = tuple(np.dtype(name) for name in ("int16", "int32", "float32", "float64"))
_REAL_DTYPES = tuple(np.dtype(name) for name in ("float32", "float64"))
_ORDERS = (1, 8, 16)


def gather(
    ring: Array,
    columns: Array,
    spans: Array,
    out: Array,
    live: Array,
    *,
    detrend: bool,
    median: Array | None = None,
    first_channel: int = 0,
    time_major: bool = False,
) -> Launch:
    """Copy windows from the ring to the rows that are transformed or filtered next.

    Parameters
    ----------
    ring : array of samples
        The device ring, in the archive's dtype.
    columns : (n_columns, 3) int64 array
        First sample relative to the window, samples and slot offset of each column.
    spans : (n_spans, 6) int64 array
        ``k0, k1, v0, v1, b0, b1``: usable samples of each stretch of channels.
    out : (channels, length) float32 or float64 array
        Written: the windows, mirrored where they are cut; zeros for channels that do not live.
    live : (channels,) uint8 array
        Written: 1 for channels whose usable samples are finite and not all equal.
    detrend : bool
        Take off the line through the window's first and last sample.
    median : (channels,) float64 array, optional
        Taken off each channel instead.
    first_channel : int
        The kept channel of the first row of `out`.
    time_major : bool
        The slots are stored sample by sample.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        When shapes do not agree.
    """
    channels, length = out.shape
    _agree("live", live.shape, (channels,))
    if median is not None:
        _agree("median", median.shape, (channels,))
    if time_major:
        grid, block = (_blocks(channels, _TILE), 1, 1), (_TILE, _TILE_ROWS, 1)
    else:
        grid, block = (channels, 1, 1), (_GATHER_THREADS, 1, 1)
    return Launch(
        source="gather.cu",
        options=_gather_options(ring.dtype, out.dtype, time_major),
        kernel="gather",
        grid=grid,
        block=block,
        args=(
            *_tables(ring, columns, spans),
            np.int32(first_channel),
            np.int32(channels),
            np.int32(length),
            median,
            np.int32(detrend),
            out,
            live,
        ),
    )


def median_rows(
    ring: Array,
    columns: Array,
    spans: Array,
    median: Array,
    *,
    core: tuple[int, int],
    first_channel: int = 0,
    time_major: bool = False,
) -> Launch:
    """Exact median of each channel over the core of its window, straight from the ring.

    Parameters
    ----------
    ring, columns, spans : arrays
        As for `gather`.
    median : (channels,) float64 array
        Written: the medians; NaN where a sample is NaN.
    core : (int, int)
        Half-open range of held samples of the window.
    first_channel : int
        The kept channel of the first median.
    time_major : bool
        The slots are stored sample by sample.

    Returns
    -------
    Launch
    """
    (channels,) = median.shape
    core0, core1 = core
    key_bytes = (core1 - core0) * (8 if ring.dtype.itemsize == 8 else 4)
    kept = key_bytes <= KEPT_BYTES
    return Launch(
        source="median_rows.cu",
        options=_median_options(ring.dtype, time_major),
        kernel="median_rows",
        grid=(channels, 1, 1),
        block=(_MEDIAN_THREADS, 1, 1),
        args=(
            *_tables(ring, columns, spans),
            np.int32(first_channel),
            np.int32(channels),
            np.int32(core0),
            np.int32(core1),
            np.int32(kept),
            median,
        ),
        shared_bytes=key_bytes if kept else 0,
    )


def spectral_response(
    spectrum: Array, weights: Array, folded: Array, *, first: int, last: int
) -> Launch:
    """Weigh a one-sided spectrum and fold it to the length of the decimated analytic signal.

    Parameters
    ----------
    spectrum : (channels, length // 2 + 1) complex array
        The transform of the windows, or of the filtered, decimated rows.
    weights : (bins,) float32 or float64 array
        Gain of each bin; at least `last` long.
    folded : (channels, kept) complex array
        Written at the outputs that ``[first, last)`` folds to and nowhere else: zero it once.
    first, last : int
        Bins that count, from `passband`.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        When shapes do not agree, or the bins are not in the spectrum.
    """
    rows, bins = spectrum.shape
    kept = folded.shape[1]
    _agree("folded", folded.shape, (rows, kept))
    if not 0 <= first < last <= min(bins, weights.shape[0]):
        raise ValueError(
            f"bins [{first}, {last}) are not within {bins} bins and {weights.shape[0]} weights"
        )
    j0, j1 = folded_range(first, last, kept)
    return Launch(
        source="spectral_response.cu",
        options=(define("REAL", weights.dtype),),
        kernel="spectral_response",
        grid=(
            _blocks(rows, _RESPONSE_ROWS),
            _blocks(j1 - j0 // _WARP * _WARP, _RESPONSE_THREADS),
            1,
        ),
        block=(_RESPONSE_THREADS, 1, 1),
        args=(
            spectrum,
            weights,
            folded,
            np.int32(rows),
            np.int32(bins),
            np.int32(first),
            np.int32(last),
            np.int32(kept),
            np.int32(j0),
            np.int32(j1),
        ),
    )


def cascade(sections: NDArray[np.float64]) -> NDArray[np.void]:
    """Second-order sections as the structure that `sosfiltfilt` takes by value.

    Parameters
    ----------
    sections : (n_sections, 6) float64 array
        ``b0 b1 b2 1 a1 a2`` a row.

    Returns
    -------
    0-d structured array
        Field ``sections``, (n_sections, 7): ``b0 b1 b2 a1 a2`` and the section's state when the
        cascade is at rest on a signal of ones (``scipy.signal.sosfilt_zi``).
    """
    import scipy.signal

    packed = np.empty((), dtype=[("sections", np.float64, (len(sections), 7))])
    packed["sections"][:, :3] = sections[:, :3]
    packed["sections"][:, 3:5] = sections[:, 4:]
    packed["sections"][:, 5:] = scipy.signal.sosfilt_zi(sections)
    return packed


def sosfiltfilt_scratch(rows: int, length: int, padding: int) -> tuple[int, int, int]:
    """Shape of the float64 scratch array of `sosfiltfilt`."""
    return _blocks(rows, _WARP), length + 2 * padding, _WARP


def sosfiltfilt(
    x: Array,
    scratch: Array,
    out: Array,
    sections: NDArray[np.void],
    *,
    padding: int,
    step: int,
) -> Launch:
    """Filter rows forwards and backwards and keep every `step`-th sample.

    Parameters
    ----------
    x : (rows, length) float64 array
        The signal.
    scratch : float64 array
        Of the shape `sosfiltfilt_scratch` gives, or larger along its first axis.
    out : (rows, ceil(length / step)) float32 or float64 array
        Written.
    sections : 0-d structured array
        From `cascade`.
    padding : int
        Samples of odd extension at either end.
    step : int
        Every `step`-th sample is kept.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        When shapes do not agree, or the rows are not longer than the padding.
    """
    rows, length = x.shape
    if not 0 <= padding < length:
        raise ValueError(f"{length} samples cannot be extended by {padding} at either end")
    _agree("out", out.shape, (rows, _blocks(length, step)))
    needed = sosfiltfilt_scratch(rows, length, padding)
    _agree("scratch", scratch.shape, (max(scratch.shape[0], needed[0]), *needed[1:]))
    return Launch(
        source="sosfiltfilt.cu",
        options=_sosfiltfilt_options(sections["sections"].shape[0], out.dtype),
        kernel="sosfiltfilt",
        grid=(needed[0], 1, 1),
        block=(_WARP, 1, 1),
        args=(
            x,
            scratch,
            out,
            sections,
            np.int32(rows),
            np.int32(length),
            np.int32(padding),
            np.int32(step),
        ),
    )


def _tables(ring: Array, columns: Array, spans: Array) -> tuple[Any, ...]:
    """The arguments with which every kernel that reads the ring begins."""
    _agree("columns", columns.shape, (columns.shape[0], 3))
    _agree("spans", spans.shape, (spans.shape[0], 6))
    return ring, columns, np.int32(columns.shape[0]), spans, np.int32(spans.shape[0])


def _agree(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ValueError(f"{name} has the shape {shape} where {wanted} is needed")


def _blocks(count: int, each: int) -> int:
    return -(-count // each)


def _gather_options(
    sample: np.dtype[Any], real: np.dtype[Any], time_major: bool
) -> tuple[str, ...]:
    return (define("SAMPLE", sample), define("REAL", real), *_layout(time_major))


def _median_options(sample: np.dtype[Any], time_major: bool) -> tuple[str, ...]:
    return (define("SAMPLE", sample), *_layout(time_major))


def _sosfiltfilt_options(n_sections: int, real: np.dtype[Any]) -> tuple[str, ...]:
    return define("SECTIONS", n_sections), define("REAL", real)


def _layout(time_major: bool) -> tuple[str, ...]:
    return (define("TIME_MAJOR", 1),) if time_major else ()


VARIANTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(
        ("gather.cu", _gather_options(sample, real, time_major))
        for sample in _SAMPLE_DTYPES
        for real in _REAL_DTYPES
        for time_major in (False, True)
    ),
    *(
        ("median_rows.cu", _median_options(sample, time_major))
        for sample in _SAMPLE_DTYPES
        for time_major in (False, True)
    ),
    *(("spectral_response.cu", (define("REAL", real),)) for real in _REAL_DTYPES),
    *(
        ("sosfiltfilt.cu", _sosfiltfilt_options(order, real))
        for order in _ORDERS
        for real in _REAL_DTYPES
    ),
)
"""Every source with the options the product can ask for; of the filter's orders, which may be
1 to 16, the least, the usual and the greatest."""
