"""The kernels from the ring to the analytic signal, executed on a processor.

`check` runs a launch under every thread schedule and both contraction modes and leaves the last
result in its arrays; what is expected comes from NumPy, SciPy and the host backend.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from das_gpu import filters
from das_gpu.backends import filtering, window
from das_gpu.backends.launch import Launch
from das_gpu.backends.response import folded_range, one_sided_weights, passband
from tests.gpu.harness.host import check, execute, tsan_check

BAND = filters.BandPass(14.0, 35.0, 8, 200.0)
LAYOUTS = pytest.mark.parametrize("time_major", [False, True], ids=["channel", "time"])
Spans = list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Held:
    """Samples (channel, position) of a window in a ring, and the ring's tables."""

    samples: NDArray[Any]
    ring: NDArray[Any]
    columns: NDArray[np.int64]
    spans: NDArray[np.int64]
    time_major: bool

    @property
    def tables(self) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        return self.ring, self.columns, self.spans


def hold(
    samples: NDArray[Any],
    widths: list[int],
    *,
    start: int = 0,
    spans: Spans | None = None,
    blocks: list[int] | None = None,
    time_major: bool = False,
) -> Held:
    """Put ``samples`` of positions from 0 into a ring of columns of these widths.

    Columns begin at position ``start`` and lie in the ring in reverse order, apart from one
    another. What is no sample of the window is the type's greatest value, or NaN. ``spans`` are
    (k0, k1, v0, v1); ``blocks`` are the edges of the stored blocks of channels.
    """
    channels, length = samples.shape
    spans = spans or [(0, channels, 0, length)]
    blocks = blocks or [0, channels]
    floating = samples.dtype.kind == "f"
    poison = np.nan if floating else np.iinfo(samples.dtype).max
    ring = np.full(channels * sum(widths) + 7 * len(widths), poison, dtype=samples.dtype)
    columns, first, offset = [], start, ring.size
    for width in widths:
        offset -= channels * width + 7
        columns.append((first, width, offset))
        low, high = max(first, 0), min(first + width, length)
        edges = list(itertools.pairwise(blocks)) if time_major else [(0, channels)]
        for b0, b1 in edges:
            slot = ring[offset + b0 * width : offset + b1 * width]
            shape = (width, b1 - b0) if time_major else (b1 - b0, width)
            block = slot.reshape(shape)
            if low < high:
                part = (block.T if time_major else block)[:, low - first : high - first]
                part[...] = samples[b0:b1, low:high]
        first += width
    table = [
        (max(k0, b0), min(k1, b1), v0, v1, b0, b1)
        for k0, k1, v0, v1 in spans
        for b0, b1 in itertools.pairwise(blocks)
        if max(k0, b0) < min(k1, b1)
    ]
    return Held(samples, ring, np.array(columns, np.int64), np.array(table, np.int64), time_major)


def counts(channels: int, length: int, seed: int = 0) -> NDArray[np.int32]:
    """A random walk near 1.8e6 counts."""
    steps = np.random.default_rng(seed).integers(-900, 900, (channels, length))
    return (1_800_000 + np.cumsum(steps, axis=1)).astype(np.int32)


def windows(held: Held, detrend: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What the host backend makes of the same samples, and which channels live."""
    channels, length = held.samples.shape
    expected = np.zeros((channels, length))
    live = np.zeros(channels, dtype=bool)
    for k0, k1, v0, v1, _, _ in held.spans:
        if v1 <= v0:
            continue
        piece = held.samples[k0:k1, v0:v1]
        low, high = window.limits([piece])
        live[k0:k1] = np.isfinite(low) & np.isfinite(high) & (low != high)
        window.gather([piece], expected[k0:k1], v0, v1)
    expected[~live] = 0
    return window.detrended(expected) if detrend and length > 1 else expected, live


def gathered(
    held: Held,
    real: str = "float64",
    *,
    detrend: bool = False,
    median: NDArray[np.float64] | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_], Launch]:
    out = np.full(held.samples.shape, np.nan, dtype=real)
    live = np.full(len(out), 7, dtype=np.uint8)
    launch = filtering.gather(
        *held.tables, out, live, detrend=detrend, median=median, time_major=held.time_major
    )
    check(launch)
    assert set(live) <= {0, 1}
    return out, live.astype(bool), launch


SHAPES: dict[str, dict[str, Any]] = {
    "one sample": {"samples": counts(1, 1), "widths": [1]},
    "two samples": {"samples": counts(1, 2), "widths": [1, 1]},
    "one channel": {"samples": counts(1, 301), "widths": [100, 250], "start": -40},
    "tiles exactly filled": {"samples": counts(32, 64), "widths": [64]},
    "a channel and a sample more": {"samples": counts(33, 65), "widths": [30, 40], "start": -5},
    "blocks": {"samples": counts(70, 45), "widths": [9, 9, 30], "blocks": [0, 20, 33, 70]},
    "many columns": {"samples": counts(2, 70), "widths": [1, 2] * 25, "start": -2},
    "cut at either end": {
        "samples": counts(40, 61),
        "widths": [20, 20, 20, 20],
        "start": -3,
        "spans": [(0, 10, 7, 61), (10, 25, 0, 33), (25, 40, 5, 60)],
        "blocks": [0, 17, 40],
    },
    "folded many times": {
        "samples": counts(5, 40),
        "widths": [60],
        "spans": [(0, 2, 17, 20), (2, 4, 30, 32), (4, 5, 12, 13)],
    },
    "nothing usable": {
        "samples": counts(35, 20),
        "widths": [8, 12],
        "spans": [(0, 3, 0, 20), (3, 34, 4, 4), (34, 35, 2, 20)],
    },
}


@LAYOUTS
@pytest.mark.parametrize("detrend", [False, True], ids=["plain", "detrended"])
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())
def test_gather_gives_the_windows_of_the_host_backend(
    case: dict[str, Any], detrend: bool, time_major: bool
) -> None:
    held = hold(**case, time_major=time_major)
    expected, expected_live = windows(held, detrend)
    out, live, _ = gathered(held, detrend=detrend)
    np.testing.assert_array_equal(live, expected_live)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-8 if detrend else 0)


@LAYOUTS
@pytest.mark.parametrize("sample", ["int16", "int32", "float32", "float64"])
def test_gather_rounds_once_after_the_line_is_off(sample: str, time_major: bool) -> None:
    held = hold((counts(3, 90) - 1_795_000).astype(sample), [50, 50], time_major=time_major)
    expected, _ = windows(held, detrend=True)
    out, _, _ = gathered(held, "float32", detrend=True)
    # Beside the one rounding, the line may be a double's rounding off: nothing near zero.
    np.testing.assert_allclose(out, expected, rtol=6.0e-8, atol=1e-8)


@LAYOUTS
def test_extreme_counts_stay_exact(time_major: bool) -> None:
    limits = np.iinfo(np.int32)
    extreme = np.array([[limits.max, limits.min, 0, limits.min, limits.max]], dtype=np.int32)
    held = hold(extreme, [9], spans=[(0, 1, 1, 4)], time_major=time_major)
    expected, _ = windows(held, detrend=False)
    out, live, _ = gathered(held)
    assert live.all()
    np.testing.assert_array_equal(out, expected)


@LAYOUTS
@pytest.mark.parametrize("sample", ["float32", "float64"])
def test_channels_that_are_constant_or_not_finite_do_not_live(
    sample: str, time_major: bool
) -> None:
    samples = counts(9, 40).astype(sample)
    samples[1] = 5
    samples[2, 17] = np.nan
    samples[3, 0] = np.inf
    samples[4, 39] = -np.inf
    samples[5] = np.where(np.arange(40) % 2, 0.0, -0.0)
    samples[6] = np.nan
    samples[7] = np.where(np.arange(40) % 2, 0.0, np.finfo(sample).smallest_subnormal)
    out, live, _ = gathered(hold(samples, [23, 17], time_major=time_major), detrend=True)
    assert list(np.flatnonzero(live)) == [0, 7, 8]
    assert not out[~live].any()
    assert out[0].any()


@LAYOUTS
@pytest.mark.slow
def test_a_median_is_taken_off_unless_a_line_is(time_major: bool) -> None:
    held = hold(counts(34, 50), [60], spans=[(0, 34, 3, 50)], time_major=time_major)
    median = np.median(held.samples, axis=1)
    expected, _ = windows(held, detrend=False)
    out, _, _ = gathered(held, median=median)
    np.testing.assert_array_equal(out, expected - median[:, None])
    lined, _, _ = gathered(held, median=median, detrend=True)
    np.testing.assert_array_equal(lined, gathered(held, detrend=True)[0])


@LAYOUTS
@pytest.mark.slow
def test_a_batch_of_channels_gives_the_same_rows(time_major: bool) -> None:
    spans = [(0, 30, 0, 25), (30, 50, 4, 25), (50, 90, 0, 20)]
    held = hold(counts(90, 25), [10, 20], spans=spans, blocks=[0, 41, 90], time_major=time_major)
    whole, _, _ = gathered(held)
    part = np.empty((37, 25))
    live = np.empty(37, dtype=np.uint8)
    check(
        filtering.gather(
            *held.tables, part, live, detrend=False, first_channel=28, time_major=time_major
        )
    )
    np.testing.assert_array_equal(part, whole[28:65])


@LAYOUTS
def test_channels_beyond_every_narrow_index_are_found(time_major: bool) -> None:
    held = hold(np.arange(200_000, dtype=np.int32).reshape(-1, 2), [2], time_major=time_major)
    out, live = np.empty((5, 2)), np.empty(5, dtype=np.uint8)
    check(
        filtering.gather(
            *held.tables, out, live, detrend=False, first_channel=99_995, time_major=time_major
        )
    )
    np.testing.assert_array_equal(out, held.samples[-5:])


MEDIAN_CASES: dict[str, tuple[NDArray[Any], tuple[int, int]]] = {
    "one sample": (counts(1, 1), (0, 1)),
    "two samples": (counts(2, 2), (0, 2)),
    "odd": (counts(3, 257), (0, 257)),
    "even": (counts(3, 600), (20, 578)),
    "equal": (np.full((2, 40), -3, np.int32), (1, 39)),
    "two values": (np.tile(np.array([[4, 4, 9, 9]], np.int16), 30), (0, 120)),
    "the middle two far apart": (
        np.array([[np.iinfo(np.int32).min] * 3 + [np.iinfo(np.int32).max] * 3], np.int32),
        (0, 6),
    ),
    "too many to stage": (counts(1, 11_400), (10, 11_390)),
    "too many doubles to stage": (counts(1, 5_700).astype(np.float64) * 1e-13, (3, 5_700)),
    "many equal, many greater": (
        np.repeat(np.array([[8, 9, 9000]], np.int32), [5, 45, 50], axis=1),
        (0, 100),
    ),
    "negative floats": (-np.abs(counts(2, 99) * np.float32(0.37)), (0, 99)),
    "infinities": (np.array([[-np.inf, 1, 2, np.inf, np.inf]], np.float64), (0, 5)),
    "not a number": (np.array([[1, np.nan, 3], [1, 2, 3]], np.float32), (0, 3)),
    "zeros of both signs": (np.array([[-0.0, 0.0, -0.0, 1e-310]], np.float64), (0, 4)),
}


@LAYOUTS
@pytest.mark.parametrize("case", MEDIAN_CASES.values(), ids=MEDIAN_CASES.keys())
@pytest.mark.slow
def test_median_is_numpys_to_the_bit(
    case: tuple[NDArray[Any], tuple[int, int]], time_major: bool
) -> None:
    samples, (core0, core1) = case
    length = samples.shape[1]
    widths = [length // 3, length // 3 + 1, length] if length > 100 else [1] * (2 * length + 1)
    held = hold(samples, widths, start=-(length // 5), time_major=time_major)
    median = np.full(len(samples), -77.0)
    check(filtering.median_rows(*held.tables, median, core=(core0, core1), time_major=time_major))
    expected = np.median(samples[:, core0:core1].astype(np.float64), axis=1)
    np.testing.assert_array_equal(median, expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40))
@pytest.mark.slow
def test_median_of_any_integers(values: list[int]) -> None:
    held = hold(np.array([values], dtype=np.int32), [len(values)])
    median = np.empty(1)
    execute(filtering.median_rows(*held.tables, median, core=(0, len(values))))
    assert median[0] == np.median(np.array(values, dtype=np.float64))


def test_median_is_that_of_the_usable_part() -> None:
    held = hold(counts(3, 30), [30], spans=[(0, 1, 10, 30), (1, 2, 4, 4), (2, 3, 0, 30)])
    median = np.empty(3)
    check(filtering.median_rows(*held.tables, median, core=(5, 25)))
    samples = held.samples
    expected = [np.median(samples[0, 10:25]), 0.0, np.median(samples[2, 5:25])]
    np.testing.assert_array_equal(median, expected)


def response(
    spectrum: NDArray[Any], weights: NDArray[Any], kept: int, first: int, last: int
) -> tuple[NDArray[Any], NDArray[Any], Launch]:
    """The kernel's result over a sentinel, and the fold written out."""
    folded = np.full((len(spectrum), kept), 7 - 7j, dtype=spectrum.dtype)
    launch = filtering.spectral_response(spectrum, weights, folded, first=first, last=last)
    check(launch)
    expected = np.zeros((len(spectrum), kept), dtype=np.complex128)
    for bin_ in range(first, last):
        expected[:, bin_ % kept] += spectrum[:, bin_].astype(np.complex128) * weights[bin_]
    return folded, expected, launch


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rows", "bins", "kept", "first", "last"),
    [
        (1, 1, 1, 0, 1),
        (8, 301, 300, 20, 200),
        (9, 301, 200, 50, 301),
        (3, 301, 60, 61, 119),
        (17, 301, 40, 5, 301),
        (2, 601, 600, 0, 601),
        (5, 301, 100, 90, 130),
    ],
    ids=["one", "no fold", "wraps", "second turn", "seven turns", "all", "across a turn"],
)
def test_response_weighs_and_folds(
    rows: int, bins: int, kept: int, first: int, last: int, real: str
) -> None:
    rng = np.random.default_rng(3)
    spectrum = (rng.normal(size=(rows, bins)) + 1j * rng.normal(size=(rows, bins))).astype(
        np.result_type(real, np.complex64)
    )
    weights = rng.uniform(0.1, 1, bins).astype(real)
    folded, expected, _ = response(spectrum, weights, kept, first, last)
    j0, j1 = folded_range(first, last, kept)
    np.testing.assert_allclose(
        folded[:, j0:j1], expected[:, j0:j1], rtol=0, atol=20 * float(np.finfo(real).eps)
    )
    untouched = np.r_[folded[:, :j0].ravel(), folded[:, j1:].ravel()]
    assert (untouched == 7 - 7j).all()
    assert not np.delete(expected, np.s_[j0:j1], axis=1).any()


@pytest.mark.parametrize(("real", "tolerance_db"), [("float32", 0.02), ("float64", 1e-6)])
def test_bins_left_out_do_not_show_beside_a_swell(real: str, tolerance_db: float) -> None:
    length = 3750
    rng = np.random.default_rng(5)
    time = np.arange(length) / BAND.rate_hz
    swell = sum(np.cos(2 * np.pi * f * time + f) for f in (0.07, 0.13, 0.9))
    noise = rng.normal(size=length)
    noise /= np.abs(scipy.signal.hilbert(noise)).mean()
    spectrum = scipy.fft.rfft(window.detrended((1e5 * swell + noise)[None])[0])
    weights = filters.spectral_weights(BAND, length, 2)
    first, last = passband(weights, np.dtype(real))
    assert 0 < first < last < length // 2
    whole = np.zeros(length // 2, dtype=np.complex128)
    whole[: weights.size] = (spectrum[: weights.size] * weights)[: whole.size]
    part = np.zeros_like(whole)
    part[first:last] = whole[first:last]
    level, cut = (
        20 * np.log10(np.abs(scipy.fft.ifft(one, norm="forward"))) for one in (whole, part)
    )
    near = level > level.max() - 60
    assert np.abs(cut - level)[near].max() < tolerance_db / 100


def test_a_band_that_passes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="passes nothing"):
        passband(np.zeros(5), np.dtype(np.float32))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_one_sided_weights_make_the_signal_of_hilbert(length: int) -> None:
    signal = np.random.default_rng(1).normal(size=(2, length))
    weights = one_sided_weights(length)
    folded = np.zeros((2, length), dtype=np.complex128)
    launch = filtering.spectral_response(
        scipy.fft.rfft(signal), weights, folded, first=0, last=weights.size
    )
    check(launch)
    analytic = scipy.fft.ifft(folded, norm="forward")
    np.testing.assert_allclose(analytic, scipy.signal.hilbert(signal), atol=1e-14)


def sections_of(order: int) -> NDArray[np.float64]:
    return filters.sections(filters.BandPass(14.0, 35.0, order, 200.0))


def filtered(
    x: NDArray[np.float64], order: int, padding: int, step: int, real: str = "float64"
) -> tuple[NDArray[Any], Launch]:
    rows, length = x.shape
    scratch = np.empty(filtering.sosfiltfilt_scratch(rows, length, padding))
    out = np.full((rows, -(-length // step)), np.nan, dtype=real)
    cascade = filtering.cascade(sections_of(order))
    launch = filtering.sosfiltfilt(x, scratch, out, cascade, padding=padding, step=step)
    check(launch)
    return out, launch


@pytest.mark.parametrize(
    ("rows", "length", "order", "padding", "step"),
    [
        (1, 2, 1, 1, 1),
        (1, 1, 1, 0, 1),
        (3, 64, 8, 0, 2),
        (33, 90, 8, 51, 2),
        (32, 52, 8, 51, 1),
        (2, 150, 16, 99, 3),
        (4, 61, 2, 15, 7),
        (1, 40, 4, 27, 50),
    ],
)
def test_sections_forwards_and_backwards_as_in_scipy(
    rows: int, length: int, order: int, padding: int, step: int
) -> None:
    x = counts(rows, length).astype(np.float64)
    out, _ = filtered(x, order, padding, step)
    expected = scipy.signal.sosfiltfilt(sections_of(order), x, padtype="odd", padlen=padding)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(out, expected[:, ::step], rtol=0, atol=1e-10 * scale)


def test_the_filter_rounds_once_at_its_end() -> None:
    x = counts(2, 80).astype(np.float64)
    exact, _ = filtered(x, 8, 51, 2)
    rounded, _ = filtered(x, 8, 51, 2, real="float32")
    np.testing.assert_allclose(rounded, exact, rtol=6e-8, atol=1e-30)


@pytest.mark.parametrize(("real", "tolerance_db"), [("float32", 0.02), ("float64", 1e-6)])
def test_launch_after_launch_gives_the_band_passed_analytic_signal(
    real: str, tolerance_db: float
) -> None:
    length, kept = 1500, 750
    held = hold(counts(4, length), [900, 900], start=-200, spans=[(0, 4, 0, 1400)])
    rows, _, _ = gathered(held, real, detrend=True)
    gains = filters.spectral_weights(BAND, length, 2)
    first, last = passband(gains, np.dtype(real))
    spectrum = scipy.fft.rfft(rows)
    folded = np.zeros((4, kept), dtype=spectrum.dtype)
    check(filtering.spectral_response(spectrum, gains.astype(real), folded, first=first, last=last))
    exact = np.zeros((4, length), dtype=np.complex128)
    exact[:, : gains.size] = scipy.fft.rfft(windows(held, detrend=True)[0])[:, : gains.size] * gains
    whole = scipy.fft.ifft(exact, norm="forward")[:, ::2]
    level, made = (
        20 * np.log10(np.abs(z)) for z in (whole, scipy.fft.ifft(folded, norm="forward"))
    )
    near = level > level.max(axis=1, keepdims=True) - 60
    assert np.abs(made - level)[near].max() < tolerance_db


def launches() -> dict[str, Launch]:
    """One small launch of every kernel, with every barrier in use."""
    some: dict[str, Launch] = {}
    for time_major in (False, True):
        spans = [(0, 20, 3, 70), (20, 40, 0, 66)]
        samples = counts(40, 70)
        samples[5] = 1
        held = hold(samples, [40, 40], spans=spans, blocks=[0, 40], time_major=time_major)
        name = "time" if time_major else "channel"
        some[f"gather {name}"] = filtering.gather(
            *held.tables,
            np.empty((40, 70), np.float32),
            np.empty(40, np.uint8),
            detrend=True,
            time_major=time_major,
        )
        some[f"median {name}"] = filtering.median_rows(
            *held.tables, np.empty(40), core=(4, 64), time_major=time_major
        )
    long = hold(counts(1, 11_400), [11_400])
    some["median unstaged"] = filtering.median_rows(*long.tables, np.empty(1), core=(0, 11_400))
    some["response"] = filtering.spectral_response(
        np.ones((9, 101), np.complex64),
        np.ones(101, np.float32),
        np.zeros((9, 60), np.complex64),
        first=3,
        last=90,
    )
    some["sosfiltfilt"] = filtering.sosfiltfilt(
        counts(33, 70).astype(np.float64),
        np.empty(filtering.sosfiltfilt_scratch(33, 70, 51)),
        np.empty((33, 35), np.float32),
        filtering.cascade(sections_of(8)),
        padding=51,
        step=2,
    )
    return some


@pytest.mark.parametrize("name", launches().keys())
def test_no_behaviour_is_undefined(name: str) -> None:
    execute(launches()[name], flavour="ubsan")


@pytest.mark.parametrize("name", launches().keys())
@pytest.mark.slow
def test_no_two_threads_race(name: str) -> None:
    tsan_check(launches()[name])


def sectors(launch: Launch, argument: int) -> int:
    traffic = execute(launch, flavour="counted").arguments[argument]
    return traffic.sectors_read + traffic.sectors_written


@LAYOUTS
def test_gather_passes_over_memory_once(time_major: bool) -> None:
    held = hold(counts(32, 3750), [3000, 3000], start=-700, time_major=time_major)
    out, live = np.empty((32, 3750), np.float32), np.empty(32, np.uint8)
    launch = filtering.gather(*held.tables, out, live, detrend=True, time_major=time_major)
    moved = 32 * sum(sectors(launch, i) for i, arg in enumerate(launch.args) if np.ndim(arg))
    # Rows of 3,750 values begin at any element of a sector, columns at any other.
    assert moved < 1.2 * (held.samples.nbytes + out.nbytes)


def test_median_reads_the_core_once() -> None:
    held = hold(counts(8, 3750), [3000, 3000], start=-700)
    launch = filtering.median_rows(*held.tables, np.empty(8), core=(375, 3375))
    assert 32 * sectors(launch, 0) < 1.2 * 8 * 3000 * 4


def test_response_reads_the_passband_once_and_its_weights_once_for_eight_rows() -> None:
    weights = filters.spectral_weights(BAND, 3750, 2).astype(np.float32)
    first, last = passband(weights.astype(np.float64), np.dtype(np.float32))
    spectrum, folded = np.ones((16, 1876), np.complex64), np.zeros((16, 1875), np.complex64)
    launch = filtering.spectral_response(spectrum, weights, folded, first=first, last=last)
    moved = 32 * sum(sectors(launch, i) for i in range(3))
    assert moved < 1.15 * 2 * 16 * (last - first) * 8


def test_what_does_not_fit_is_refused() -> None:
    held = hold(counts(4, 20), [20])
    out, live = np.empty((4, 20), np.float32), np.empty(4, np.uint8)
    with pytest.raises(ValueError, match="live has the shape"):
        filtering.gather(*held.tables, out, live[:3], detrend=True)
    with pytest.raises(ValueError, match="median has the shape"):
        filtering.gather(*held.tables, out, live, detrend=False, median=np.empty(3))
    with pytest.raises(ValueError, match="spans has the shape"):
        filtering.gather(held.ring, held.columns, held.columns, out, live, detrend=True)
    spectrum, weights = np.ones((2, 11), np.complex64), np.ones(9, np.float32)
    folded = np.zeros((2, 10), np.complex64)
    with pytest.raises(ValueError, match="not within 11 bins and 9 weights"):
        filtering.spectral_response(spectrum, weights, folded, first=0, last=10)
    with pytest.raises(ValueError, match="cannot be extended by 20"):
        filtering.sosfiltfilt(
            out.astype(np.float64),
            np.empty((1, 60, 32)),
            out,
            filtering.cascade(sections_of(1)),
            padding=20,
            step=1,
        )


def test_a_hundred_thousand_channels_stay_within_the_limits_of_a_grid() -> None:
    out = np.empty((100_000, 1), np.float32)
    held = hold(np.zeros((1, 1), np.int32), [1])
    live = np.empty(100_000, np.uint8)
    for time_major in (False, True):
        launch = filtering.gather(*held.tables, out, live, detrend=True, time_major=time_major)
        assert launch.grid[1:] == (1, 1)
    spectrum = np.empty((100_000, 2), np.complex64)
    launch = filtering.spectral_response(
        spectrum, np.ones(2, np.float32), np.zeros((100_000, 1), np.complex64), first=0, last=2
    )
    assert launch.grid == (6_250, 1, 1)
