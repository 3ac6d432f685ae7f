"""The compiled steps of the notebook's recipe, each against SciPy, NumPy or Pillow's way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from das_gpu.backends import plain
from das_gpu.errors import UsageError
from tests.workspaces import chain

pytest.importorskip("numba", reason="the extra `fast` is not installed")

from das_gpu.backends import fast, twoway

REALS = ["float32", "float64"]
ROUNDING = {"float32": 1e-6, "float64": 1e-12}
calm = settings(deadline=None, max_examples=40)  # the first call of each kind compiles


def band(order: int = 8, low_hz: float = 14, high_hz: float = 35) -> np.ndarray:
    return signal.butter(order, [low_hz, high_hz], "bandpass", fs=100, output="sos")


def walks(channels: int, samples: int, seed: int = 0, offset: float = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return offset + 300 * random.normal(size=(channels, samples)).cumsum(axis=1)


def by_scipy(sos: np.ndarray, window: np.ndarray, padding: int, step: int = 1) -> np.ndarray:
    return signal.sosfiltfilt(sos, window, axis=1, padtype="odd", padlen=padding)[:, ::step]


def ours(sos: np.ndarray, window: np.ndarray, padding: int, step: int, real: str) -> np.ndarray:
    out = np.full((len(window), -(-window.shape[1] // step)), np.nan, real)
    twoway.TwoWayFilter(sos, padding, step).apply(window, out)
    return out


# --- the filter -------------------------------------------------------------------------------


@given(
    order=st.integers(1, 9),
    channels=st.integers(1, 19),
    samples=st.integers(1, 700),
    step=st.integers(1, 5),
    real=st.sampled_from(REALS),
    data=st.data(),
)
@calm
@pytest.mark.slow
def test_the_filter_is_scipys_to_rounding(order, channels, samples, step, real, data):
    padding = data.draw(st.integers(0, min(samples - 1, 60)))
    window, sos = walks(channels, samples, seed=samples), band(order)
    exact = by_scipy(sos, window, padding, step)
    found = ours(sos, window, padding, step, real)
    # A channel of few samples may filter to next to nothing: what went in counts too.
    scale = np.abs(window).max(axis=1, keepdims=True)
    if samples > 400:
        scale = np.abs(by_scipy(sos, window, padding)).max(axis=1, keepdims=True)
    assert (np.abs(found - exact) <= ROUNDING[real] * scale).all()


def test_counts_far_from_zero_lose_nothing_to_the_offset():
    window, sos = walks(9, 1500, offset=1.8e6).round(), band()
    exact = by_scipy(sos, window, 51)
    error = np.abs(ours(sos, window, 51, 1, "float64") - exact).max()
    assert error <= 1e-12 * np.abs(window).max()


def test_sections_of_any_design_are_filtered():
    window = walks(8, 900)
    for sos in (
        signal.cheby2(5, 40, 20, fs=100, output="sos"),
        signal.ellip(3, 1, 60, [5, 45], "bandstop", fs=100, output="sos"),
        np.array([[1.0, 0, 0, 1, 0, 0]]),
    ):
        exact = by_scipy(sos, window, 30)
        error = np.abs(ours(sos, window, 30, 1, "float64") - exact).max()
        assert error <= 1e-12 * np.abs(exact).max()


def test_a_channel_does_not_depend_on_its_neighbours():
    window, sos = walks(21, 600), band()
    together = ours(sos, window, 51, 2, "float64")
    for k in (0, 7, 8, 20):
        alone = ours(sos, window[k : k + 1], 51, 2, "float64")
        np.testing.assert_array_equal(together[k : k + 1], alone)


def test_zeros_stay_zeros_beside_channels_that_live():
    window = walks(10, 400)
    window[[0, 9]] = 0
    found = ours(band(), window, 51, 1, "float64")
    assert not found[[0, 9]].any()
    assert np.isfinite(found).all()
    assert found[1:9].any(axis=1).all()


def test_the_window_is_left_as_it_was():
    window = walks(8, 300)
    before = window.copy()
    ours(band(), window, 51, 1, "float32")
    np.testing.assert_array_equal(window, before)


def test_threads_share_a_filter():
    shared, windows = (
        twoway.TwoWayFilter(band(), 51, 1),
        [walks(16, 800, seed) for seed in range(8)],
    )

    def apply(window: np.ndarray) -> np.ndarray:
        out = np.empty_like(window)
        shared.apply(window, out)
        return out

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(apply, windows))
    for window, one in zip(windows, found, strict=True):
        np.testing.assert_array_equal(one, apply(window))


@pytest.mark.parametrize(
    ("sos", "padding", "step", "said"),
    [
        (np.ones((2, 5)), 0, 1, "a0 = 1"),
        (np.zeros((0, 6)), 0, 1, "a0 = 1"),
        (2 * np.eye(6)[3:4], 0, 1, "a0 = 1"),
        (band(), -1, 1, "padding must be 0 or more"),
        (band(), 51, 0, "step 1 or more"),
    ],
)
def test_an_impossible_filter_is_refused(sos, padding, step, said):
    with pytest.raises(UsageError, match=said):
        twoway.TwoWayFilter(sos, padding, step)


def test_a_window_shorter_than_its_padding_is_refused():
    with pytest.raises(UsageError, match="51 samples cannot be extended by 51"):
        ours(band(), walks(2, 51), 51, 1, "float64")


def test_room_of_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"\(2, 50\); the room for it has \(2, 49\)"):
        twoway.TwoWayFilter(band(), 51, 2).apply(walks(2, 100), np.empty((2, 49)))


@pytest.mark.parametrize(
    ("window", "out"),
    [
        (walks(2, 100).astype(np.float32), np.empty((2, 100))),
        (walks(2, 200)[:, ::2], np.empty((2, 100))),
        (walks(2, 100), np.empty((2, 100), np.int32)),
    ],
)
def test_arrays_of_another_kind_are_refused(window, out):
    with pytest.raises(UsageError, match="float64 and either float32 or float64"):
        twoway.TwoWayFilter(band(), 51, 1).apply(window, out)


# --- the analytic signal ----------------------------------------------------------------------


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("length", [2, 3, 7, 30, 101, 250, 375, 1500])
def test_the_analytic_signal_is_scipys_at_any_length(length, real):
    x = walks(18, length).astype(real)
    first, samples = length // 4, length - length // 2
    out = np.full((18, samples), np.nan, np.result_type(real, np.complex64))
    twoway.Quadrature(length, first, samples, np.dtype(real)).apply(x, out)
    exact = signal.hilbert(x.astype(np.float64), axis=1)[:, first : first + samples]
    assert np.abs(out - exact).max() <= ROUNDING[real] * np.abs(x).max()


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("length", [600, 602])
def test_the_band_pass_is_the_plain_one(length, real):
    """A window with a core inside it, every other sample kept, one channel that does not live."""
    made = chain(
        1, 20, 200, length=length, core0=100, step=2, sections=band(), padding=51,
        dtype=np.dtype(real),
    )  # fmt: skip
    window = walks(20, length)
    window[3] = 0
    found, exact = np.full((2, 20, 200), np.nan, np.result_type(real, np.complex64))
    live = twoway.band_pass(made, band())([window], found)
    np.testing.assert_array_equal(live, plain.band_pass(made)([window], exact))
    assert live.sum() == 19
    assert np.abs(found - exact).max() <= ROUNDING[real] * np.abs(exact).max()


# --- medians over time ------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(2, 400), st.integers(0, 999), st.data())
@calm
def test_medians_over_time_are_numpys_to_the_last_bit(channels, samples, seed, data):
    window = walks(channels, samples, seed, offset=1.8e6)
    kind = data.draw(st.sampled_from(["smooth", "counts", "ties", "tiny"]))
    if kind == "counts":
        window = window.round()
    elif kind == "ties":
        window = (window / 500).round()
    elif kind == "tiny":
        window = window * 1e-300
    start = data.draw(st.integers(0, samples - 1))
    stop = data.draw(st.integers(start + 1, samples))
    window[:, 0] += np.spacing(window[:, 0]) * 4  # so that every channel lives
    window[:, 1] -= np.spacing(window[:, 1]) * 4
    exact = window - np.median(window[:, start:stop], axis=1, keepdims=True)
    live = fast.centre(window, (0, samples), (start, stop))
    assert live.all()
    np.testing.assert_array_equal(window, exact)


def test_channels_that_do_not_live_become_zeros():
    window = walks(6, 40)
    window[0] = 7.0
    window[1, 30] = np.nan
    window[2, 39] = np.inf
    window[3, 10] = -np.inf
    window[4, 5:] = window[4, 5]  # constant where it is known
    live = fast.centre(window, (5, 40), (5, 40))
    np.testing.assert_array_equal(live, [False, False, False, False, False, True])
    np.testing.assert_array_equal(window.any(axis=1), live)


def test_without_a_median_a_window_stays_as_it_is():
    window = walks(3, 40)
    window[1] = 5.0
    before = window.copy()
    np.testing.assert_array_equal(fast.centre(window, (0, 40), None), [True, False, True])
    before[1] = 0
    np.testing.assert_array_equal(window, before)


@pytest.mark.parametrize(("known", "core"), [((0, 0), (0, 4)), ((0, 4), (3, 3)), ((0, 5), None)])
def test_a_range_that_is_not_in_the_window_is_refused(known, core):
    with pytest.raises(UsageError, match="at least one sample of the window"):
        fast.centre(walks(2, 4), known, core)


# --- greys of eight bits ----------------------------------------------------------------------


@given(st.integers(0, 999), st.sampled_from(REALS), st.integers(1, 255))
@calm
def test_truncated_greys_are_numpys_to_the_last_bit(seed, real, highest):
    random = np.random.default_rng(seed)
    low, high = random.uniform([120, 160], [130, 170])
    tile = random.uniform(low - 3, high + 3, size=(7, 300)).astype(real)
    # Here a rounding decides between two greys.
    tile[0, : highest + 1] = low + (high - low) * np.arange(highest + 1) / highest
    live = random.random(7) < 0.8
    live[0] = True
    exact = np.clip((tile - low) / (high - low) * highest, 0, highest)
    exact[~live] = 0
    found = fast.truncated(tile, live, low, high, highest)
    np.testing.assert_array_equal(found, exact.astype(np.uint8))


def test_limits_without_a_range_make_black():
    tile = np.full((2, 3), 150.0)
    assert not fast.truncated(tile, np.array([True, True]), 150.0, 150.0, 255).any()
