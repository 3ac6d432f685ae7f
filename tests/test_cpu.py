"""The CPU backend's steps, each against the plainest NumPy or SciPy statement of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from das_gpu.backends import Chain, Picture, cpu, grey, select
from das_gpu.errors import UsageError
from das_gpu.model import RowWindow, Span, Status
from das_gpu.recipe import Scale


def chain(bands: int, width: int, samples: int, dtype: str = "float32") -> Chain:
    return Chain(
        dtype=np.dtype(dtype), length=samples, core0=0, step=1, tile_samples=samples,
        weights=None, sections=None, padding=0, median_first=False,
        bands=bands, band_channels=width,
    )  # fmt: skip


@given(st.integers(2, 40), st.integers(0, 90), st.integers(0, 90), st.integers(0, 99))
def test_odd_reflection_is_numpy_pads_however_often_it_folds(n, before, after, seed):
    known = np.random.default_rng(seed).normal(size=(3, n))
    expected = np.pad(known, ((0, 0), (before, after)), mode="reflect", reflect_type="odd")
    window = np.empty((3, before + n + after))
    cpu._gather([known], window, before, before + n)
    np.testing.assert_allclose(window, expected, rtol=0, atol=1e-9 * (before + after + 1))


def test_a_single_known_sample_is_repeated():
    window = np.empty((2, 5))
    cpu._gather([np.array([[3.0], [4.0]])], window, 2, 3)
    assert (window == [[3], [4]]).all()


@given(st.integers(1, 30), st.integers(1, 60), st.lists(st.integers(1, 30), max_size=8))
def test_a_ring_returns_the_latest_samples_wherever_they_wrap(channels, capacity, widths):
    ring = cpu.HostRing(channels, capacity, np.dtype(np.int32))
    held = -7  # a halo before the first tile has negative places
    for width in widths:
        stop = held + min(width, capacity)
        ring.store(np.broadcast_to(np.arange(held, stop), (channels, stop - held)), 0, held)
        held = stop
    low = max(-7, held - capacity)
    pieces = ring.pieces(0, channels, low, held)
    assert (np.concatenate(pieces, axis=1) == np.arange(low, held)).all()
    with pytest.raises(ValueError, match="do not fit"):
        ring.pieces(0, 1, 0, capacity + 1)


@given(st.integers(1, 70), st.integers(1, 300), st.integers(0, 99), st.integers(1, 3))
def test_common_mode_is_the_median_of_real_and_imaginary_parts(channels, samples, seed, threads):
    random = np.random.default_rng(seed)
    z = random.normal(size=(channels, samples)) + 1j * random.normal(size=(channels, samples))
    z = z.astype(np.complex64)
    picked = np.flatnonzero(random.random(channels) < 0.7)
    picked = picked if picked.size else np.array([0])
    ours = cpu.CpuBackend(threads).common_mode(z, picked)
    assert ours.dtype == np.complex64
    np.testing.assert_array_equal(ours.real, np.median(z[picked].real, axis=0))
    np.testing.assert_array_equal(ours.imag, np.median(z[picked].imag, axis=0))


def test_the_envelope_of_one_count_is_120_db_and_of_nothing_minus_infinity():
    envelope = cpu.CpuBackend().envelope_db(np.array([[1 + 0j, 10j, 0j]]), None)
    assert envelope.tolist() == [[120.0, 140.0, -np.inf]]


def live(samples: np.ndarray, dtype: str = "float32") -> list[bool]:
    """Which channels live when these samples (channel, sample) are a whole window."""
    channels, length = samples.shape
    ring = cpu.HostRing(channels, length, samples.dtype)
    ring.store(samples, 0, 0)
    spectral = replace(chain(1, channels, length, dtype), weights=np.ones(length // 2))
    row = RowWindow(0, 0, length, (Span(0, channels, 0, length, Status.OK),), 0, 0, 0)
    signal, alive = cpu.CpuBackend().analytic(ring, row, spectral)
    assert np.isfinite(signal).all()
    assert not signal[~alive].any()
    return alive.tolist()


@pytest.mark.parametrize("integer", [np.int16, np.int32])
def test_a_constant_channel_is_dead_and_extreme_integers_are_not(integer):
    info = np.iinfo(integer)
    held = [[5] * 4, [info.min, info.max, 0, 0], [info.max] * 4, [0, 0, 0, 1]]
    assert live(np.array(held, dtype=integer)) == [False, True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_channel_with_a_sample_that_is_not_finite_is_dead(bad):
    assert live(np.array([[1.0, bad, 2.0, 1.0], [1.0, 3.0, 2.0, 0.0]])) == [False, True]


@given(st.integers(2, 200), st.integers(0, 99), st.integers(1, 31), st.sampled_from(["i2", "i4"]))
def test_the_integer_detrend_is_the_one_in_float64(samples, seed, bits, kind):
    """Narrow channels to a hundredth of a count, wide ones handed back, whatever the integers."""
    random = np.random.default_rng(seed)
    half = min(2**bits, 2 ** (8 * int(kind[1])) - 1) // 2
    counts = random.integers(-half, half, endpoint=True, size=(6, samples)).astype(kind)
    exact = cpu._detrended(counts.astype(np.float64))
    ours = np.empty((6, samples), np.float32)
    low, high = cpu._range([counts])
    wide = cpu._detrend_narrow([counts[:, :1], counts[:, 1:]], low, high, ours)
    span = high.astype(float) - low
    assert set(wide) == set(np.flatnonzero(span > cpu.NARROW_COUNTS))
    narrow = np.setdiff1d(np.arange(6), wide)
    np.testing.assert_allclose(ours[narrow], exact[narrow], rtol=0, atol=0.03)


@given(st.integers(0, 999), st.floats(0, 49), st.integers(1, 400))
def test_percentile_levels_are_numpys_over_the_live_channels(seed, share, samples):
    random = np.random.default_rng(seed)
    envelope = random.normal(150, 9, size=(8, samples))
    live = np.array([True, True, False, True, *(random.random(4) < 0.5)])
    envelope[~live] = -np.inf
    levels = cpu.CpuBackend().levels(
        envelope, live, chain(2, 4, samples), Scale("percentile", share, 100 - share)
    )
    for band in range(2):
        rows = slice(4 * band, 4 * band + 4)
        values = envelope[rows][live[rows]]
        if values.size:
            expected = np.percentile(values, [share, 100 - share])
            np.testing.assert_allclose(levels[band], expected, rtol=0, atol=1e-9)
        else:
            assert np.isnan(levels[band]).all()


def test_zeros_of_a_live_channel_are_floored_200_db_under_the_maximum():
    envelope = np.array([[170.0, -np.inf, 150.0]])
    levels = cpu.CpuBackend().levels(
        envelope, np.array([True]), chain(1, 1, 3), Scale("tile", 0, 0)
    )
    assert envelope.tolist() == [[170.0, -30.0, 150.0]]
    assert levels.tolist() == [[-30.0, 170.0]]


@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
@pytest.mark.parametrize("shape", [(60, 1500), (750, 90), (256, 256), (3, 2), (1, 700)])
def test_float_grey_is_pillows_antialiased_bicubic(shape, orientation):
    envelope = np.random.default_rng(1).normal(150, 9, size=shape)
    picture = Picture(120, 200, 255, orientation, "float")
    ours = grey.in_float(envelope, np.ones(shape[0], bool), 130, 170, picture)
    level = (envelope - 130) * 255 / 40
    turned = level.T if orientation == "time-down" else level
    image = Image.fromarray(np.ascontiguousarray(turned, dtype=np.float32))
    theirs = np.clip(np.asarray(image.resize((200, 120), Image.Resampling.BICUBIC)), 0, 255)
    assert ours.shape == (120, 200)
    assert np.abs(ours - theirs).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("resize", ["float", "pillow"])
def test_dead_channels_are_black_and_leave_the_others_alone(resize):
    envelope = np.full((8, 16), 160.0)
    live = np.arange(8) >= 4
    envelope[~live] = -np.inf
    picture = Picture(16, 8, 255, "time-down", resize)
    backend = cpu.CpuBackend()
    pixels = backend.grey(envelope, live, np.array([[140.0, 160.0]]), chain(1, 8, 16), picture)[0]
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_sixteen_bits_use_their_whole_range():
    envelope = np.linspace(100, 200, 64).reshape(1, 64)
    picture = Picture(1, 64, 65535, "time-right", "float")
    pixels = grey.in_float(envelope, np.array([True]), 100, 200, picture)
    assert pixels.dtype == np.uint16
    assert (pixels.min(), pixels.max()) == (0, 65535)


def test_a_tile_of_one_level_is_black_not_a_division_by_zero():
    for resize in ("float", "pillow"):
        picture = Picture(4, 4, 255, "time-down", resize)
        flat = np.full((4, 4), 150.0)
        levels = np.array([[150.0, 150.0]])
        image = cpu.CpuBackend().grey(flat, np.ones(4, bool), levels, chain(1, 4, 4), picture)[0]
        assert not image.any()


def test_auto_says_why_it_chose_the_cpu_and_gpu_is_refused():
    chosen = select("auto", 2)
    assert (chosen.backend.kind, "GPU" in chosen.reason) == ("cpu", True)
    with pytest.raises(UsageError, match="--backend cpu"):
        select("gpu", 1)
    with pytest.raises(UsageError, match="'tpu'"):
        select("tpu", 1)
