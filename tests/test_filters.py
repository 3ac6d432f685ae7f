"""Filter design against SciPy and Pillow, which it restates in closed form."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from das_gpu.errors import RecipeError
from das_gpu.filters import (
    TRIM_RELATIVE,
    BandPass,
    alias_rejection_db,
    fall_time_s,
    fast_length,
    largest_step,
    padding,
    resize_weights,
    sections,
    spectral_weights,
    squared_response,
)

WHALES = BandPass(14.0, 35.0, 8, 200.0)


@st.composite
def bands(draw: st.DrawFn, order: int = 10, narrowest: float = 0.02) -> BandPass:
    """Bands well inside (0, Nyquist), in the range where SciPy's own design is accurate."""
    rate_hz = draw(st.floats(1.0, 2000.0))
    low = draw(st.floats(0.01, 0.4))
    width = draw(st.floats(narrowest, 0.45))
    assume(low + width < 0.49)
    return BandPass(low * rate_hz, (low + width) * rate_hz, draw(st.integers(1, order)), rate_hz)


# -- the design ---------------------------------------------------------------------------------


@given(band=bands())
@settings(deadline=None, max_examples=50)
def test_the_closed_form_is_the_response_of_scipys_sections(band: BandPass) -> None:
    from scipy.signal import sosfreqz

    frequency_hz = np.linspace(0, band.rate_hz / 2, 257)
    _, response = sosfreqz(sections(band), worN=frequency_hz, fs=band.rate_hz)
    np.testing.assert_allclose(
        squared_response(band, frequency_hz), np.abs(response) ** 2, rtol=0, atol=1e-10
    )


@given(band=bands())
def test_the_response_is_even_periodic_and_zero_at_both_ends(band: BandPass) -> None:
    half = band.rate_hz / 2
    assert squared_response(band, [0.0, half, -half, band.rate_hz]).tolist() == [0, 0, 0, 0]
    frequency_hz = np.linspace(0.01, 0.49, 50) * band.rate_hz
    expected = squared_response(band, frequency_hz)
    for same in (-frequency_hz, band.rate_hz - frequency_hz):
        np.testing.assert_allclose(squared_response(band, same), expected, rtol=1e-6, atol=1e-12)


@given(band=bands(order=16, narrowest=1e-6))
def test_the_zero_phase_response_is_half_at_the_corners(band: BandPass) -> None:
    corners = squared_response(band, [band.low_hz, band.high_hz])
    np.testing.assert_allclose(corners, 0.5, rtol=1e-6)


def test_far_outside_a_narrow_steep_band_nothing_overflows_audibly() -> None:
    band = BandPass(30.0, 30.001, 16, 200.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response = squared_response(band, np.linspace(0, 100, 1001))
    assert np.all(np.isfinite(response))
    assert response[0] == response[-1] == 0


@given(bands())
@pytest.mark.slow
def test_sections_are_those_that_scipy_designs_in_its_order(band: BandPass) -> None:
    """Order and pairing of poles and zeros too: rounding in `sosfiltfilt` depends on them."""
    from scipy.signal import butter

    # Poles of a band around a quarter of the rate lie in pairs as far from the unit circle.
    assume(abs(band.low_hz + band.high_hz - band.rate_hz / 2) > 1e-3 * band.rate_hz)
    corners_hz = [band.low_hz, band.high_hz]
    expected = butter(band.order, corners_hz, "bandpass", fs=band.rate_hz, output="sos")
    designed = sections(band)
    assert designed.shape == (band.n_sections, 6)
    assert designed.dtype == np.float64
    gain = np.abs(expected[0, :3]).max()
    np.testing.assert_allclose(designed[0, :3] / gain, expected[0, :3] / gain, atol=1e-6)
    np.testing.assert_allclose(designed[:, 3:], expected[:, 3:], atol=1e-6)
    np.testing.assert_array_equal(designed[1:, :3], expected[1:, :3])


def test_sections_of_the_whale_band_are_scipys_to_a_rounding() -> None:
    from scipy.signal import butter

    expected = butter(8, [14.0, 35.0], "bandpass", fs=200.0, output="sos")
    np.testing.assert_allclose(sections(WHALES), expected, rtol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3, 8, 16])
def test_padding_is_that_of_sosfiltfilt(order: int) -> None:
    from scipy.signal import sosfiltfilt

    band = BandPass(14.0, 35.0, order, 200.0)
    sos = sections(band)
    noise = np.random.default_rng(1).normal(size=400)
    np.testing.assert_array_equal(
        sosfiltfilt(sos, noise, padlen=padding(band)), sosfiltfilt(sos, noise)
    )
    with pytest.raises(ValueError, match="padlen"):  # one sample less is not enough for SciPy
        sosfiltfilt(sos, noise[: padding(band)])


def test_padding_is_51_samples_for_order_8() -> None:
    assert padding(WHALES) == 51


@pytest.mark.parametrize(
    ("low_hz", "high_hz", "order", "rate_hz"),
    [
        (14, 100, 8, 200),
        (35, 14, 8, 200),
        (0, 35, 8, 200),
        (14, 35, 0, 200),
        (14, math.nan, 8, 200),
        (14, 35, 8, math.inf),
    ],
)
def test_a_band_outside_the_sampled_range_is_refused(
    low_hz: float, high_hz: float, order: int, rate_hz: float
) -> None:
    with pytest.raises(RecipeError, match=r"must (ascend|be at least 1)"):
        BandPass(low_hz, high_hz, order, rate_hz)


# -- the spectral form --------------------------------------------------------------------------


def decimated_analytic(window: np.ndarray, band: BandPass, step: int) -> np.ndarray:
    """The use that `spectral_weights` documents, in NumPy."""
    n = window.shape[-1]
    m = n // step
    weights = spectral_weights(band, n, step)
    weighted = np.fft.rfft(window)[..., : weights.size] * weights
    folded = np.zeros((*window.shape[:-1], m), dtype=complex)
    for start in range(0, weights.size, m):
        part = weighted[..., start : start + m]
        folded[..., : part.shape[-1]] += part
    return np.fft.ifft(folded, norm="forward")


@given(
    band=bands(narrowest=0.05),
    m=st.integers(20, 300),
    step=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_weights_make_the_filtered_hilbert_transform_strided(
    band: BandPass, m: int, step: int, seed: int
) -> None:
    from scipy.signal import hilbert, sosfreqz

    n = m * step
    window = np.random.default_rng(seed).normal(size=(2, n))
    frequency_hz = np.fft.rfftfreq(n, 1 / band.rate_hz)
    _, response = sosfreqz(sections(band), worN=frequency_hz, fs=band.rate_hz)
    filtered = np.fft.irfft(np.fft.rfft(window) * np.abs(response) ** 2, n)
    expected = hilbert(filtered)[:, ::step]
    error = np.abs(decimated_analytic(window, band, step) - expected)
    assert error.max() < 1e-9 * np.abs(window).max()


def test_the_spectral_chain_is_sosfiltfilt_then_hilbert_on_a_signal_at_rest_at_its_ends() -> None:
    from scipy.signal import hilbert, sosfiltfilt

    noise = np.zeros(20_000)
    noise[4000:-4000] = np.random.default_rng(3).normal(size=12_000)
    expected = hilbert(sosfiltfilt(sections(WHALES), noise))[::2]
    error = np.abs(decimated_analytic(noise, WHALES, 2) - expected)
    assert error.max() < 1e-10 * np.abs(expected).max()


@given(band=bands(), n=st.integers(1, 2000))
def test_trimmed_weights_leave_out_nothing_that_counts(band: BandPass, n: int) -> None:
    weights = spectral_weights(band, n, 1)
    assert 1 <= weights.size <= n // 2 + 1
    assert weights[0] == 0
    frequency_hz = np.fft.rfftfreq(n, 1 / band.rate_hz)
    left_out = 2 / n * squared_response(band, frequency_hz[weights.size :])
    assert np.all(left_out <= TRIM_RELATIVE * weights.max())


@pytest.mark.parametrize(("n", "step"), [(3001, 2), (0, 1), (10, 0)])
def test_a_window_that_is_no_multiple_of_the_step_is_refused(n: int, step: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        spectral_weights(WHALES, n, step)


# -- the halo -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop_db", "fall_s"), [(20, 0.09), (40, 0.33), (60, 0.62), (120, 1.50), (140, 1.80)]
)
def test_fall_times_of_the_whale_band(drop_db: float, fall_s: float) -> None:
    assert fall_time_s(WHALES, drop_db) == pytest.approx(fall_s, abs=0.01)


@pytest.mark.parametrize(
    "band",
    [
        WHALES,
        BandPass(14.0, 35.0, 8, 100.0),
        BandPass(0.05, 1.0, 8, 20.0),
        BandPass(1.0, 99.0, 4, 200.0),
        BandPass(40.0, 42.0, 2, 1000.0),
        BandPass(10.0, 30.0, 1, 100.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("drop_db", [60.0, 140.0])
def test_fall_time_is_that_of_scipys_impulse_response(band: BandPass, drop_db: float) -> None:
    from scipy.signal import sosfreqz

    found = fall_time_s(band, drop_db)
    # The response on a grid of 16 fall times; zeros after it sample the envelope 8 times finer.
    n = 1 << math.ceil(math.log2(16 * found * band.rate_hz))
    frequency_hz = np.fft.rfftfreq(n, 1 / band.rate_hz)
    _, response = sosfreqz(sections(band), worN=frequency_hz, fs=band.rate_hz)
    envelope = np.abs(np.fft.ifft(np.abs(response) ** 2, 8 * n))[: 4 * n]
    above = np.flatnonzero(envelope > 10 ** (-drop_db / 20) * envelope[0])
    expected = (above[-1] + 1) / (8 * band.rate_hz)
    # The coarser grid of the two may pass over the last ripple of a slowly falling envelope.
    assert found == pytest.approx(expected, abs=1 / band.rate_hz, rel=0.02)


def test_a_low_band_rings_for_minutes_and_is_computed_at_once() -> None:
    fall_time_s.cache_clear()
    began = time.process_time()
    assert fall_time_s(BandPass(0.05, 1.0, 8, 200.0)) == pytest.approx(217, abs=2)
    fall_time_s(WHALES)
    assert time.process_time() - began < 0.05
    fall_time_s(WHALES)
    assert fall_time_s.cache_info().hits == 1


def test_a_filter_that_rings_for_hours_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"0\.0001 to 90 Hz .* too long for a halo"):
        fall_time_s(BandPass(0.0001, 90.0, 1, 200.0))


@pytest.mark.parametrize("drop_db", [0, -3, 241])
def test_a_drop_beyond_float64_is_refused(drop_db: float) -> None:
    with pytest.raises(ValueError, match="at most 240"):
        fall_time_s(WHALES, drop_db)


# -- decimation ---------------------------------------------------------------------------------


def brute_rejection_db(band: BandPass, step: int, method: str) -> float:
    """Try every frequency on a fine grid: does it fold into the band from outside of itself?"""
    rate_out_hz = band.rate_hz / step
    f = np.linspace(0, band.rate_hz / 2, 5001)
    folds = np.zeros(f.size, dtype=bool)
    for k in range(-step, step + 1):
        if k:
            folds |= (f - k * rate_out_hz >= band.low_hz) & (f - k * rate_out_hz <= band.high_hz)
            if method == "iir":
                mirrored = k * rate_out_hz - f
                folds |= (mirrored >= band.low_hz) & (mirrored <= band.high_hz)
    response = squared_response(band, f[folds]).max(initial=0.0)
    return math.inf if response == 0 else -20 * math.log10(response)


@given(
    band=bands(order=8, narrowest=0.05),
    step=st.integers(1, 8),
    method=st.sampled_from(["spectral", "iir"]),
)
@settings(deadline=None, max_examples=60)
def test_rejection_is_that_of_the_worst_folding_frequency(
    band: BandPass, step: int, method: str
) -> None:
    found = alias_rejection_db(band, step, method)  # type: ignore[arg-type]  # sampled text
    if found == math.inf:
        assert brute_rejection_db(band, step, method) > 600  # at Nyquist itself, if anywhere
    elif found < 400:
        assert brute_rejection_db(band, step, method) == pytest.approx(found, abs=1.0, rel=0.03)


def test_published_figures_of_the_order_8_band() -> None:
    attenuation_db = -20 * np.log10(squared_response(WHALES, [50.0, 65.0]))
    assert attenuation_db == pytest.approx([111, 192], abs=0.5)
    assert alias_rejection_db(WHALES, 2, "iir") == pytest.approx(192, abs=0.5)
    wide = BandPass(14.0, 48.0, 8, 200.0)
    assert alias_rejection_db(wide, 2, "iir") == pytest.approx(27, abs=0.5)


def test_nothing_folds_without_decimation_nor_in_the_analytic_signal_at_half_rate() -> None:
    assert alias_rejection_db(WHALES, 1, "iir") == math.inf
    assert alias_rejection_db(WHALES, 2, "spectral") == math.inf


def test_a_band_across_the_new_nyquist_folds_onto_itself() -> None:
    assert alias_rejection_db(BandPass(40.0, 60.0, 8, 200.0), 2, "iir") == 0


def test_rejection_is_what_a_decimated_tone_shows() -> None:
    band, step, n = BandPass(14.0, 35.0, 2, 200.0), 4, 2000
    worst_hz = band.low_hz + band.rate_hz / step
    tone = np.cos(2 * np.pi * worst_hz * np.arange(n) / band.rate_hz)
    level_db = -20 * math.log10(float(np.abs(decimated_analytic(tone, band, step)).max()))
    assert alias_rejection_db(band, step, "spectral") == pytest.approx(level_db, abs=0.01)


@given(
    band=bands(order=8, narrowest=0.05),
    method=st.sampled_from(["spectral", "iir"]),
    limit_db=st.floats(10, 120),
)
@settings(deadline=None, max_examples=40)
def test_the_largest_step_passes_and_no_larger_one_does(
    band: BandPass, method: str, limit_db: float
) -> None:
    largest = largest_step(band, method, limit_db)  # type: ignore[arg-type]  # sampled text
    steps = range(1, math.ceil(band.rate_hz / (band.high_hz - band.low_hz)) + 5)
    passing = [s for s in steps if brute_rejection_db(band, s, method) >= limit_db + 2]
    assert largest >= max(passing)
    assert alias_rejection_db(band, largest, method) >= limit_db  # type: ignore[arg-type]


def test_largest_steps_of_the_whale_band() -> None:
    assert largest_step(WHALES, "iir") == 2
    assert largest_step(WHALES, "spectral") == 7
    assert largest_step(BandPass(14.0, 48.0, 8, 200.0), "iir") == 1


# -- lengths ------------------------------------------------------------------------------------


def test_fast_lengths_are_the_next_products_of_2_3_and_5() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(14) for b in range(9) for c in range(6))
    for n in range(-2, 5000):
        assert fast_length(n) == next(length for length in smooth if length >= n)


@given(n=st.integers(1, 2**60))
def test_fast_lengths_of_any_size_are_near_and_smooth(n: int) -> None:
    length = rest = fast_length(n)
    assert n <= length < 2 * n or n == length == 1
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1


# -- resizing -----------------------------------------------------------------------------------


def applied(bounds: np.ndarray, weights: np.ndarray, n_in: int) -> np.ndarray:
    """Weights as a dense (n_out, n_in) matrix."""
    matrix = np.zeros((len(bounds), n_in))
    for row, (first, stop), weight in zip(matrix, bounds, weights, strict=True):
        row[first:stop] = weight[: stop - first]
        assert not weight[stop - first :].any()
    return matrix


@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 300)),
    out=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_separable_weights_resize_as_pillow_does(
    shape: tuple[int, int], out: tuple[int, int], seed: int
) -> None:
    from PIL import Image

    image = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    expected = Image.fromarray(image).resize(out[::-1], Image.Resampling.BICUBIC)
    down = applied(*resize_weights(shape[0], out[0]), shape[0])
    across = applied(*resize_weights(shape[1], out[1]), shape[1])
    np.testing.assert_allclose(down @ image @ across.T, expected, rtol=0, atol=1e-5)


@given(n_in=st.integers(1, 5000), n_out=st.integers(1, 600))
def test_weights_keep_a_constant_and_stay_inside(n_in: int, n_out: int) -> None:
    bounds, weights = resize_weights(n_in, n_out)
    assert bounds.shape == (n_out, 2)
    assert bounds.dtype == np.intp
    assert weights.shape[0] == n_out
    assert np.all((bounds[:, 0] >= 0) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] <= n_in))
    assert np.all(bounds[:, 1] - bounds[:, 0] <= weights.shape[1])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)


# -- importing ----------------------------------------------------------------------------------


def test_the_spectral_path_never_imports_scipy() -> None:
    code = (
        "import sys\n"
        "from das_gpu.filters import *\n"
        "band = BandPass(14, 35, 8, 200)\n"
        "fall_time_s(band), spectral_weights(band, 3840, 2), padding(band)\n"
        "largest_step(band, 'iir'), resize_weights(1500, 256)\n"
        "sys.exit(any(name.startswith('scipy') for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
