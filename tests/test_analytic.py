"""The compiled analytic signal, against its restatement with SciPy's transforms in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from das_gpu.errors import UsageError

pytest.importorskip("numba", reason="the extra `fast` is not installed")

from das_gpu.backends.analytic import AnalyticPlan, supported

# Each pair of types is a compilation of some seconds: no more of them than say something.
TYPES = [("int32", "float32"), ("uint16", "float32"), ("float32", "float32")]
TYPES += [("int32", "float64"), ("float64", "float64")]
smooth = st.sampled_from([n for n in range(1, 400) if supported(2, n)])


def counts(channels: int, length: int, held: str = "int32", seed: int = 0) -> np.ndarray:
    """Samples that wander, far from zero where the type has room for it."""
    random = np.random.default_rng(seed)
    steps = random.integers(-300, 300, endpoint=True, size=(channels, length))
    return (steps.cumsum(axis=1) // 8 + (1 << 15 if held == "uint16" else 1_800_000)).astype(held)


def restated(samples, kept_length, gains, first, wanted, real="float64"):
    """Detrend in float64, the rest in ``real`` by SciPy's transforms."""
    x = samples.astype(np.float64)
    length = x.shape[1]
    x = x - x[:, :1] - (x[:, -1:] - x[:, :1]) / (length - 1) * np.arange(length)
    spectrum = fft.rfft(x.astype(real), axis=1)
    folded = np.zeros((x.shape[0], kept_length), spectrum.dtype)
    for bin_, gain in enumerate(gains.astype(real)):
        folded[:, bin_ % kept_length] += spectrum[:, bin_] * gain
    return fft.ifft(folded, axis=1, norm="forward")[:, first : first + wanted]


def apply(plan, pieces, wanted, real):
    out = np.full((pieces[0].shape[0], wanted), np.nan, np.result_type(real, np.complex64))
    live = plan.apply(pieces, np.full(plan.room_size, np.nan, real), out)
    return out, live


def simple(samples, real="float32"):
    """Signal and live channels of a plan that keeps every sample of half the rate."""
    length = samples.shape[1]
    gains = np.ones(length // 2) / length
    plan = AnalyticPlan(length, length // 2, gains, 0, length // 2, np.dtype(real))
    return apply(plan, [samples], length // 2, real)


def rms(values):
    return np.sqrt(np.mean(np.abs(values) ** 2, axis=-1))


@given(smooth, st.integers(1, 6).filter(lambda n: n != 6), st.sampled_from(TYPES), st.data())
@settings(max_examples=150)
@pytest.mark.slow
def test_the_signal_is_that_of_plain_transforms(kept_length, step, types, data):
    held, real = types
    length = max(2, kept_length * step)
    if not supported(length, kept_length):
        length *= 2
    samples = counts(data.draw(st.integers(1, 19)), length, held, seed=length)
    random = np.random.default_rng(length)
    gains = random.random(data.draw(st.integers(0, length // 2 + 1))) + 0.1
    gains[random.random(gains.size) < data.draw(st.sampled_from([0, 0.7]))] = 0
    first = data.draw(st.integers(0, kept_length - 1))
    wanted = data.draw(st.integers(1, kept_length - first))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    pieces = np.split(samples, cuts, axis=1)
    plan = AnalyticPlan(length, kept_length, gains, first, wanted, np.dtype(real))
    ours, live = apply(plan, pieces, wanted, real)
    expected = restated(samples, kept_length, gains, first, wanted)
    np.testing.assert_array_equal(live, np.ptp(samples, axis=1) > 0)
    away = np.linalg.norm(samples.astype(float) - samples[:, :1], axis=1)
    scale = max(gains, default=0) * np.sqrt(length) * away
    assert (rms(ours - expected) <= 4 * np.finfo(real).eps * scale).all()


@pytest.mark.parametrize(("length", "kept_length"), [(3750, 1875), (4096, 1024), (3645, 3645)])
def test_rounding_is_no_coarser_than_that_of_plain_transforms(length, kept_length):
    samples, wanted = counts(20, length), kept_length // 2
    gains = np.linspace(1, 2, length // 2 + 1) / length
    part = gains, kept_length // 4, wanted
    exact = restated(samples, kept_length, *part)
    for real in ("float32", "float64"):
        plan = AnalyticPlan(length, kept_length, *part, np.dtype(real))
        ours, live = apply(plan, [samples], wanted, real)
        assert live.all()
        error = rms((ours - exact).ravel()) / rms(exact.ravel())
        if real == "float64":
            assert error < 1e-14
        else:
            plain = restated(samples, kept_length, *part, real="float32")
            assert error < 1.5 * rms((plain - exact).ravel()) / rms(exact.ravel())


def test_windows_longer_than_a_cache_are_transformed_part_by_part():
    samples = counts(3, 57_600)
    gains = np.ones(9000) / 57_600
    plan = AnalyticPlan(57_600, 9600, gains, 4000, 1600, np.dtype("float64"))
    ours, _ = apply(plan, [samples], 1600, "float64")
    exact = restated(samples, 9600, gains, 4000, 1600)
    assert (rms(ours - exact) < 1e-14 * rms(exact)).all()


@pytest.mark.parametrize(("held", "real"), [("float32", "float32"), ("float64", "float64")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 8, 30, 59])
def test_a_channel_that_is_not_finite_is_dead_and_zero(held, real, bad, place):
    samples = counts(11, 60, held)
    whole, _ = simple(samples, real)
    samples[[2, 10], place] = bad
    ours, live = simple(samples, real)
    dead = np.isin(np.arange(11), [2, 10])
    np.testing.assert_array_equal(live, ~dead)
    assert not ours[dead].any()
    np.testing.assert_array_equal(ours[~dead], whole[~dead])


@pytest.mark.parametrize(("held", "real"), TYPES)
def test_a_constant_channel_is_dead_and_a_straight_line_lives(held, real):
    samples = counts(3, 90, held)
    samples[0] = 30_001
    samples[1] = 2 * np.arange(90)
    ours, live = simple(samples, real)
    assert live.tolist() == [False, True, True]
    assert not ours[:2].any()
    assert ours[2].all()


@pytest.mark.parametrize("place", [0, 1, 44, 88, 89])
def test_one_sample_that_differs_makes_a_channel_live(place):
    samples = np.full((9, 90), 7, np.int32)
    samples[4, place] = 8
    assert np.flatnonzero(simple(samples)[1]).tolist() == [4]


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_a_channel_comes_out_the_same_alone_and_in_company(channels, real):
    samples = counts(channels, 240)
    together, _ = simple(samples, real)
    alone = [simple(samples[k : k + 1], real)[0][0] for k in range(channels)]
    np.testing.assert_array_equal(together, alone)


def test_pieces_in_any_layout_and_type_are_the_same_samples():
    samples = counts(10, 60) % 2048
    expected, _ = simple(samples)
    ring = np.zeros((12, 100), np.int32)
    ring[1:11, 30:90] = samples
    np.testing.assert_array_equal(simple(ring[1:11, 30:90])[0], expected)
    np.testing.assert_array_equal(simple(np.asfortranarray(samples))[0], expected)
    np.testing.assert_array_equal(simple(samples[::-1])[0], expected[::-1])
    np.testing.assert_array_equal(simple(np.repeat(samples, 2, axis=1)[:, ::2])[0], expected)
    same = np.broadcast_to(samples[3], (10, 60))
    np.testing.assert_array_equal(simple(same)[0], np.tile(expected[3], (10, 1)))
    plan = AnalyticPlan(60, 30, np.ones(30) / 60, 0, 30, np.dtype("float32"))
    cut = [samples[:, :0], samples[:, :1], samples[:, 1:5], samples[:, 5:30], samples[:, 30:]]
    np.testing.assert_array_equal(apply(plan, cut, 30, "float32")[0], expected)


@pytest.mark.parametrize("held", [">i4", "float16", "uint64"])
def test_unusual_types_are_read_by_way_of_float64(held):
    samples = counts(3, 60) % 2048
    np.testing.assert_array_equal(
        simple(samples.astype(held), "float64")[0], simple(samples, "float64")[0]
    )


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("wanted", [1, 3, 4, 30])
@pytest.mark.parametrize("shift", range(0, 9, 2))
def test_nothing_is_written_outside_the_room_and_the_output(shift, wanted, real):
    samples = counts(11, 60)
    plan = AnalyticPlan(60, 30, np.ones(31) / 60, 0, wanted, np.dtype(real))
    rooms = np.full(plan.room_size + 64, 7, real)
    outs = np.full((13, wanted), 7, np.result_type(real, np.complex64))
    stop = shift + plan.room_size
    plan.apply([samples], rooms[shift:stop], outs[1:12])
    assert (rooms[:shift] == 7).all()
    assert (rooms[stop:] == 7).all()
    assert (outs[[0, 12]] == 7).all()
    expected = restated(samples, 30, np.ones(31) / 60, 0, wanted)
    assert np.abs(outs[1:12] - expected).max() < 1e-2


def test_no_channels_are_no_trouble():
    signal, live = simple(np.empty((0, 60), np.int32))
    assert (signal.shape, live.shape) == ((0, 30), (0,))


def test_threads_share_a_plan():
    samples, gains = counts(64, 3750), np.ones(1000) / 3750
    plan = AnalyticPlan(3750, 1875, gains, 100, 1500, np.dtype("float32"))
    expected, _ = apply(plan, [samples], 1500, "float32")
    together = np.empty_like(expected)

    def part(k: int) -> None:
        room = np.empty(plan.room_size, np.float32)
        plan.apply([samples[k : k + 4]], room, together[k : k + 4])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(part, range(0, 64, 4)))
    np.testing.assert_array_equal(together, expected)


def test_lengths_of_other_primes_are_not_supported():
    assert supported(3750, 1875)
    assert supported(2, 1)
    assert not supported(3752, 1875)
    assert not supported(3750, 7)
    assert not supported(1, 1)
    assert not supported(2, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((14, 7, np.ones(3), 0, 7), "from 14 samples to 7"),
        ((12, 6, np.ones(8), 0, 6), "8 gains"),
        ((12, 6, np.ones(7), 1, 6), "Samples 1 to 7 of 6"),
        ((12, 6, np.ones(7), 0, 0), "at least one"),
        ((12, 6, np.ones(7), -1, 3), "none outside"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        AnalyticPlan(*arguments, np.dtype("float32"))


SAMPLES = np.zeros((2, 12), np.int32)
ROOM = np.zeros(10_000, np.float32)
OUT = np.zeros((2, 6), np.complex64)


@pytest.mark.parametrize(
    ("pieces", "room", "out"),
    [
        ([], ROOM, OUT),
        ([SAMPLES[:, :11]], ROOM, OUT),
        ([SAMPLES, SAMPLES[:, :1]], ROOM, OUT),
        ([SAMPLES[:1]], ROOM, OUT),
        ([SAMPLES[:, :6], SAMPLES[:1, 6:]], ROOM, OUT),
        ([SAMPLES[:, :6], SAMPLES[:, 6:].astype(float)], ROOM, OUT),
        ([SAMPLES], ROOM[:100], OUT),
        ([SAMPLES], ROOM[::2], OUT),
        ([SAMPLES], ROOM.astype(float), OUT),
        ([SAMPLES], ROOM, OUT[:, :5]),
        ([SAMPLES], ROOM, OUT.astype(complex)),
        ([SAMPLES], ROOM, np.asfortranarray(OUT)),
    ],
)
def test_arrays_that_do_not_fit_the_plan_are_refused(pieces, room, out):
    plan = AnalyticPlan(12, 6, np.ones(7), 0, 6, np.dtype("float32"))
    with pytest.raises(UsageError, match="were given"):
        plan.apply(pieces, room, out)
