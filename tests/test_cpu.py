"""The CPU backend's steps, each against the plainest NumPy or SciPy statement of it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from das_gpu.backends import Picture, cpu, fast, grey, percentile, plain, select
from das_gpu.backends.window import HostRing, detrended, gather
from das_gpu.errors import UsageError
from das_gpu.model import RingLayout, RowWindow, Span, Status
from das_gpu.recipe import Scale
from tests.workspaces import chain, workspace
from tests.workspaces import envelope as envelope_of


@given(st.integers(2, 40), st.integers(0, 90), st.integers(0, 90), st.integers(0, 99))
@pytest.mark.slow
def test_odd_reflection_is_numpy_pads_however_often_it_folds(n, before, after, seed):
    known = np.random.default_rng(seed).normal(size=(3, n))
    expected = np.pad(known, ((0, 0), (before, after)), mode="reflect", reflect_type="odd")
    window = np.empty((3, before + n + after))
    gather([known], window, before, before + n)
    np.testing.assert_allclose(window, expected, rtol=0, atol=1e-9 * (before + after + 1))


def test_a_single_known_sample_is_repeated():
    window = np.empty((2, 5))
    gather([np.array([[3.0], [4.0]])], window, 2, 3)
    assert (window == [[3], [4]]).all()


@given(st.integers(1, 30), st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
@pytest.mark.slow
def test_a_ring_returns_what_was_put_in_its_columns(channels, widths, data):
    bounds = np.cumsum([-7, *widths])  # a halo before the first tile has negative places
    slots = data.draw(st.integers(1, len(widths)))
    layout = RingLayout(
        3, tuple(int(b) for b in bounds), slots, channels, "int32", (0, channels), False
    )
    ring = HostRing(layout)
    for column in range(3, 3 + len(widths)):
        with ring.room(column, 0, channels) as room:
            room[...] = np.arange(*layout.samples(column))
    low = layout.samples(3 + len(widths) - slots)[0]
    first = data.draw(st.integers(low, int(bounds[-1])))
    last = data.draw(st.integers(first, int(bounds[-1])))
    pieces = ring.pieces(0, channels, first, last)
    assert all(piece.size for piece in pieces)
    found = np.concatenate([np.empty((channels, 0), np.int32), *pieces], axis=1)
    assert (found == np.arange(first, last)).all()


@given(st.integers(1, 70), st.integers(1, 300), st.integers(0, 99), st.integers(1, 3))
@pytest.mark.slow
def test_common_mode_is_the_median_of_real_and_imaginary_parts(channels, samples, seed, threads):
    random = np.random.default_rng(seed)
    z = random.normal(size=(channels, samples)) + 1j * random.normal(size=(channels, samples))
    z = z.astype(np.complex64)
    picked = random.random(channels) < 0.7
    picked[0] = True
    with workspace(chain(1, channels, samples), threads) as work:
        ours = work.common_mode(cpu.Signal(z, picked))
    assert ours.dtype == np.complex64
    np.testing.assert_array_equal(ours.real, np.median(z[picked].real, axis=0))
    np.testing.assert_array_equal(ours.imag, np.median(z[picked].imag, axis=0))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_items_are_worked_on_by_all_threads_and_keep_their_order(threads):
    together, seen = threading.Barrier(threads, timeout=30), set()

    def step(item):
        if item < threads:
            together.wait()  # nobody gets past it alone
        seen.add(threading.current_thread())
        return item * item

    backend = cpu.CpuBackend(threads)
    assert backend.each(step, range(50)) == [item * item for item in range(50)]
    assert threading.current_thread() in seen
    assert len(seen) == threads
    assert backend.each(step, []) == []


@pytest.mark.parametrize("failing", ["the caller", "a helper"])
def test_after_an_error_nothing_is_begun_and_nobody_is_still_at_work(failing):
    caller, both = threading.current_thread(), threading.Barrier(2, timeout=30)
    ended = []

    def step(item):
        if item < 2:
            both.wait()
        if (threading.current_thread() is caller) == (failing == "the caller"):
            raise ZeroDivisionError
        time.sleep(0.1)
        ended.append(item)

    with pytest.raises(ZeroDivisionError):
        cpu.CpuBackend(2).each(step, range(10))
    assert len(ended) == 1


def test_the_envelope_of_one_count_is_120_db_and_of_nothing_minus_infinity():
    signal = cpu.Signal(np.array([[1 + 0j, 10j, 0j]]), np.array([True]))
    with workspace(chain(1, 1, 3)) as work:
        envelope = work.envelope_db(signal, None)
    assert envelope.values.tolist() == [[[120.0, 140.0, -np.inf]]]


def live(samples: np.ndarray, dtype: str = "float32") -> list[bool]:
    """Which channels live when these samples (channel, sample) are a whole window."""
    channels, length = samples.shape
    spectral = chain(1, channels, length, dtype=np.dtype(dtype), weights=np.ones(length // 2))
    layout = RingLayout(0, (0, length), 1, channels, samples.dtype.name, (0, channels), False)
    row = RowWindow(0, 0, length, (Span(0, channels, 0, length, Status.OK),), 0, 0, 0)
    with cpu.CpuBackend().workspace(layout, spectral) as work:
        with work.ring.room(0, 0, channels) as room:
            room[...] = samples
        signal = work.analytic(row)
    assert np.isfinite(signal.values).all()
    assert not signal.values[~signal.live].any()
    return signal.live.tolist()


@pytest.mark.parametrize("integer", [np.int16, np.int32])
def test_a_constant_channel_is_dead_and_extreme_integers_are_not(integer):
    info = np.iinfo(integer)
    held = [[5] * 4, [info.min, info.max, 0, 0], [info.max] * 4, [0, 0, 0, 1]]
    assert live(np.array(held, dtype=integer)) == [False, True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_channel_with_a_sample_that_is_not_finite_is_dead(bad):
    assert live(np.array([[1.0, bad, 2.0, 1.0], [1.0, 3.0, 2.0, 0.0]])) == [False, True]


@given(st.integers(2, 200), st.integers(0, 99), st.integers(1, 31), st.sampled_from(["i2", "i4"]))
@pytest.mark.slow
def test_the_integer_detrend_is_the_one_in_float64(samples, seed, bits, kind):
    """Narrow channels to a hundredth of a count, wide ones to a rounding, whatever the integers."""
    random = np.random.default_rng(seed)
    half = min(2**bits, 2 ** (8 * int(kind[1])) - 1) // 2
    counts = random.integers(-half, half, endpoint=True, size=(6, samples)).astype(kind)
    exact = detrended(counts.astype(np.float64))
    ours = np.empty((6, samples), np.float32)
    plain.Detrend(counts.shape[1], ours.dtype).apply([counts[:, :1], counts[:, 1:]], ours)
    wide = np.ptp(counts.astype(float), axis=1) > plain.NARROW_COUNTS
    np.testing.assert_allclose(ours[~wide], exact[~wide], rtol=0, atol=0.03)
    np.testing.assert_array_equal(ours[wide], exact[wide].astype(np.float32))


def test_counts_at_both_ends_of_32_bits_do_not_pass_for_neighbours():
    """Their differences wrap around to a few counts."""
    counts = np.array([[2**31 - 1, -(2**31), 2**31 - 3, -(2**31) + 5]], np.int32)
    ours = np.empty((1, 4), np.float32)
    assert plain.Detrend(4, ours.dtype).apply([counts], ours).all()
    np.testing.assert_array_equal(ours, detrended(counts.astype(np.float64)).astype(np.float32))


@given(st.integers(0, 999), st.floats(0, 49), st.integers(1, 400))
@pytest.mark.slow
def test_percentile_levels_are_numpys_over_the_live_channels(seed, share, samples):
    random = np.random.default_rng(seed)
    envelope = random.normal(150, 9, size=(8, samples))
    live = np.array([True, True, False, True, *(random.random(4) < 0.5)])
    envelope[~live] = -np.inf
    made = chain(2, 4, samples, scale=Scale("percentile", share, 100 - share))
    with workspace(made) as work:
        levels = work.levels(envelope_of(envelope, live, 2))
    for band in range(2):
        rows = slice(4 * band, 4 * band + 4)
        values = envelope[rows][live[rows]]
        if values.size:
            expected = np.percentile(values, [share, 100 - share])
            np.testing.assert_allclose(levels[band], expected, rtol=0, atol=1e-9)
        else:
            assert np.isnan(levels[band]).all()


@given(
    st.integers(1, 40_000),
    st.floats(0, 100),
    st.integers(0, 999),
    st.sampled_from(["noise", "ties", "sorted", "one far away", "two heaps"]),
)
@pytest.mark.slow
def test_percentiles_are_numpys_however_the_levels_lie(size, share, seed, kind):
    """Sorted levels, and few that are taken here and there from among them, may mislead."""
    random = np.random.default_rng(seed)
    levels = random.normal(150, 9, size=size).astype(np.float32)
    match kind:
        case "ties":
            levels = levels.round()
        case "sorted":
            levels.sort()
        case "one far away":
            levels[-1] = -600
        case "two heaps":
            levels[:: 2 + seed % 50] -= 100
    before = levels.copy()
    found = percentile.percentiles(levels, (min(share, 100 - share), max(share, 100 - share)))
    expected = np.percentile(
        levels.astype(np.float64), [min(share, 100 - share), max(share, 100 - share)]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(levels, before)


def test_percentiles_are_right_when_the_few_that_are_taken_mislead():
    """Every third level is taken, and just these are a hundred lower."""
    levels = np.random.default_rng(1).normal(150, 9, size=3 * percentile.SAMPLED_LEVELS)
    levels[::3] -= 100
    expected = np.percentile(levels, [50, 99])
    found = percentile.percentiles(levels, (50, 99))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_percentiles_are_right_where_a_tail_holds_just_too_few():
    """Only levels that are taken lie low, so that tails hold as many as these made expect."""
    levels = np.arange(3.0 * percentile.SAMPLED_LEVELS)
    levels[1::3] += 1e6
    levels[2::3] += 1e6
    last = levels.size - 1
    for place in np.arange(10, 60, 0.5):
        percents = 100 * place / last, 99.0
        found = percentile.percentiles(levels, percents)
        np.testing.assert_allclose(found, np.percentile(levels, percents), rtol=1e-12)


def test_zeros_of_a_live_channel_are_floored_200_db_under_the_maximum():
    envelope = np.array([[170.0, -np.inf, 150.0]])
    with workspace(chain(1, 1, 3)) as work:
        levels = work.levels(envelope_of(envelope, np.array([True])))
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
    with workspace(chain(1, 8, 16, picture=picture)) as work:
        outcome = work.draw(envelope_of(envelope, live), np.array([[140.0, 160.0]]))
    (pixels,) = outcome.pixels
    assert (outcome.dead.tolist(), outcome.live) == ([4], (4, 7))
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
        with workspace(chain(1, 4, 4, picture=picture)) as work:
            outcome = work.draw(envelope_of(flat, np.ones(4, bool)), levels)
        assert not outcome.pixels[0].any()


def test_another_word_than_auto_cpu_or_gpu_is_refused():
    with pytest.raises(UsageError, match="'tpu'"):
        select("tpu", 1)


def test_loops_are_compiled_where_numba_is_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(fast, "installed", lambda: True)
    chosen = select("cpu", 1)
    assert (chosen.backend.compiled, chosen.reason) == (True, "asked for; numba compiles its loops")
    assert select("cpu", 1, compiled=False).backend.compiled is False
    monkeypatch.setattr(fast, "installed", lambda: False)
    assert select("cpu", 1).backend.compiled is False
    with pytest.raises(UsageError, match=r"das-gpu\[fast\]"):
        select("cpu", 1, compiled=True)


def test_a_numba_that_fails_leaves_the_work_to_numpy_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(fast, "first_missing", lambda *_, **__: "numba has a broken leg.")
    z = np.array([[1 + 1j, 2 + 0j]], np.complex64)
    layout = RingLayout(0, (0, 2), 1, 1, "int32", (0, 1), False)
    with cpu.CpuBackend(compiled=True).workspace(layout, chain(1, 1, 2)) as work:
        common = work.common_mode(cpu.Signal(z, np.array([True])))
    np.testing.assert_array_equal(common, z[0])
    assert "NumPy does what compiled loops would do sooner: numba has a broken leg." in caplog.text
