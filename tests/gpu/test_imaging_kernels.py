"""The kernels from the analytic signal to the images, executed without a GPU.

Each is held against the CPU backend. `execute` fails at any access outside an argument, at
diverging barriers and at reads of shared memory that nothing wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from das_gpu.backends import MEDIAN_CHANNELS, Chain, Picture, cpu, imaging, resizing
from das_gpu.backends.launch import Launch
from das_gpu.backends.resizing import pillow_vertical_first
from das_gpu.backends.rowshape import RowShape, Scratch
from das_gpu.recipe import Scale
from tests.gpu.harness.host import check, execute, tsan_check
from tests.gpu.harness.require import need_compiler
from tests.workspaces import chain, workspace
from tests.workspaces import envelope as envelope_of

PRECISIONS = ("float32", "float64")
PERCENTILES = Scale.parse("percentile:0.5")
SMALL = Picture(16, 12, 255, "time-down", "float")
ALL_DEAD, ONE_LIVE = 0.0, -1.0

Run = Callable[[Launch], object]


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    need_compiler()


@dataclass
class Made:
    """A row's signal on the device, and the chain that the CPU backend would use."""

    chain: Chain
    row: RowShape
    signal: NDArray[Any]
    live: NDArray[np.uint8]

    @property
    def core(self) -> NDArray[Any]:
        return self.signal[:, self.row.first : self.row.first + self.row.samples].copy()


def make(
    bands: int = 2,
    width: int = 5,
    samples: int = 21,
    *,
    dtype: str = "float32",
    spare: int = 0,
    stride: int | None = None,
    before: int = 3,
    after: int = 2,
    dead: float = 0.2,
    seed: int = 0,
    **changed: Any,
) -> Made:
    """Noise on `spare` channels beyond the bands and on samples around the core, too.

    With a `stride` less than a band's width bands overlap.
    """
    rng = np.random.default_rng(seed)
    apart = stride or width
    channels, length = (bands - 1) * apart + width + spare, before + samples + after
    noise = rng.normal(size=(2, channels, length)) * 100
    signal = (noise[0] + 1j * noise[1]).astype(np.result_type(dtype, np.complex64))
    live = (rng.random(channels) >= dead).astype(np.uint8)
    if dead == ONE_LIVE:
        live[:] = 0
        live[channels // 2] = 1
    signal[live == 0] = 0
    made = chain(bands, width, samples, dtype=np.dtype(dtype), band_stride=stride, **changed)
    if "distance_m" not in changed:
        made = replace(made, distance_m=np.arange(channels, dtype=np.float64) * 10)
    row = RowShape(channels, length, before, samples, bands, width, apart, np.dtype(dtype))
    return Made(made, row, signal, live)


def scratch(made: Made, seed: int = 7) -> Scratch:
    """Arrays full of garbage, as a device's are."""
    rng = np.random.default_rng(seed)
    return Scratch(
        **{
            name: np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype)
            .reshape(shape)
            .copy()
            for name, (shape, dtype) in Scratch.needs(made.row, tables(made)).items()
        }
    )


def images(held: Scratch) -> NDArray[Any]:
    assert held.pixels is not None
    return np.asarray(held.pixels)


def tables(made: Made) -> resizing.Resizing | None:
    picture = made.chain.picture
    if picture is None:
        return None
    row = made.row
    return resizing.tables(row.samples, row.band_channels, row.dtype, picture)


def launches(made: Made, held: Scratch) -> Iterator[Launch]:
    """A whole row's, in their order."""
    row, scale = made.row, made.chain.scale
    yield imaging.pick_channels(row, made.live, made.chain.distance_m, held, made.chain.aperture_m)
    yield imaging.common_mode(row, made.signal, held)
    yield imaging.envelope_db(row, made.signal, made.live, held, scale, subtract=True)
    yield from imaging.levels(row, made.live, held, scale)
    resized = tables(made)
    if resized is not None:
        yield from imaging.grey(row, made.live, held, resized)


def run(made: Made, execute_one: Run = execute) -> Scratch:
    held = scratch(made)
    for launch in launches(made, held):
        assert (launch.source, launch.options) in imaging.VARIANTS
        execute_one(launch)
    return held


def levels_of(made: Made, db: NDArray[Any]) -> NDArray[np.float64]:
    """The kernels' levels of given envelopes, each being the level of a real signal."""
    row = made.row
    held = scratch(made)
    # 10 * log10(x * x) + 120 does not give db back exactly: what the kernels measured counts.
    amplitude = np.where(np.isneginf(db), 0, 10.0 ** ((db - 120) / 20))
    signal = np.zeros((row.channels, row.row_length), made.signal.dtype)
    signal[:, row.first : row.first + row.samples] = amplitude
    with_levels = replace(made, signal=signal)
    execute(imaging.pick_channels(row, made.live, made.chain.distance_m, held, np.inf))
    scale = made.chain.scale
    execute(imaging.envelope_db(row, signal, made.live, held, scale, subtract=False))
    for launch in imaging.levels(row, made.live, held, scale):
        execute(launch)
    expected = cpu_levels(with_levels, held.db)
    np.testing.assert_allclose(held.levels[:, :2], expected, rtol=0, atol=level_error(row))
    return np.array(held.levels)


def level_error(row: RowShape) -> float:
    return 1e-4 if row.dtype == np.float32 else 1e-7


def cpu_levels(made: Made, db: NDArray[Any]) -> NDArray[np.float64]:
    with workspace(made.chain) as work:
        return np.array(
            work.levels(envelope_of(db.copy(), made.live.astype(bool), made.chain.bands))
        )


def cpu_images(made: Made, db: NDArray[Any], levels: NDArray[np.float64]) -> NDArray[Any]:
    """The CPU backend's images of envelopes whose zeros have been lifted to the floor."""
    width = made.row.band_channels
    floors = np.repeat(levels[:, 2], width)[:, None].astype(db.dtype)
    live = made.live[: db.shape[0]].astype(bool)
    lifted = envelope_of(np.maximum(db, floors), live, made.chain.bands)
    with workspace(made.chain) as work:
        return np.stack(work.draw(lifted, levels[:, :2]).pixels)


def assert_images_agree(actual: NDArray[Any], expected: NDArray[Any], dtype: str) -> None:
    apart = np.abs(actual.astype(np.int64) - expected)
    most, share = (2, 0.05) if dtype == "float32" else (1, 0.001)
    assert actual.dtype == expected.dtype
    assert apart.max() <= most
    assert np.count_nonzero(apart) <= max(share * apart.size, 1)


# --- pick_channels ---------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [0.0, 0.3, 1.1, ONE_LIVE], ids=["all", "most", "none", "one"])
@pytest.mark.parametrize("channels", [1, 31, 1024, 1025, 2049, 3000])
def test_every_kth_live_channel_is_picked(channels: int, dead: float) -> None:
    made = make(1, channels, 1, dead=dead)
    held = scratch(made)
    execute(imaging.pick_channels(made.row, made.live, made.chain.distance_m, held, 0.0))
    expected = cpu.median_channels(made.live.astype(bool), made.chain.distance_m, 0.0)
    assert held.facts[0] == expected.size <= MEDIAN_CHANNELS
    np.testing.assert_array_equal(held.picked[: expected.size], expected)


@pytest.mark.parametrize("channels", [7, 100_003])
def test_facts_count_the_living_and_each_bands_dead(channels: int) -> None:
    made = make(3, channels // 3, 1, spare=channels % 3, dead=0.4)
    held = scratch(made)
    execute(imaging.pick_channels(made.row, made.live, made.chain.distance_m, held, 0.0))
    alive = np.flatnonzero(made.live)
    assert held.facts[1:4].tolist() == [alive.size, alive[0], alive[-1]]
    tiles = made.live[: made.row.image_channels].reshape(3, -1)
    np.testing.assert_array_equal(held.facts[4:], np.count_nonzero(tiles == 0, axis=1))


@pytest.mark.parametrize(("aperture_m", "picked"), [(-1.0, 5), (0.0, 5), (40.0, 5), (40.1, 0)])
@pytest.mark.parametrize("sign", [1, -1], ids=["ascending", "descending"])
def test_none_is_picked_where_the_living_span_too_little(
    aperture_m: float, picked: int, sign: int
) -> None:
    made = make(1, 9, 1, dead=0.0)
    made.live[[0, 1, 7, 8]] = 0
    held = scratch(made)
    execute(
        imaging.pick_channels(made.row, made.live, sign * np.arange(9.0) * 10, held, aperture_m)
    )
    assert held.facts[0] == picked


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_counters_are_reset(dtype: str) -> None:
    made = make(3, 2, 4, dtype=dtype)
    held = scratch(made)
    execute(imaging.pick_channels(made.row, made.live, made.chain.distance_m, held, 0.0))
    assert not held.counts.any()
    assert not held.tickets.any()
    assert (held.extremes == [np.iinfo(held.extremes.dtype).max, 0]).all()


# --- common_mode -----------------------------------------------------------------------------


def common_of(made: Made) -> NDArray[Any]:
    held = scratch(made)
    execute(imaging.pick_channels(made.row, made.live, made.chain.distance_m, held, 0.0))
    execute(imaging.common_mode(made.row, made.signal, held))
    return np.array(held.common)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 32, 33, 1023, 1024, 2047])
def test_the_common_mode_is_the_exact_median_of_both_parts(channels: int, dtype: str) -> None:
    made = make(1, channels, 9 if channels < 100 else 3, dtype=dtype, dead=0.0, seed=channels)
    with workspace(made.chain) as work:
        expected = work.common_mode(cpu.Signal(made.core, made.live.astype(bool)))
    np.testing.assert_array_equal(common_of(made), expected)


@pytest.mark.parametrize("samples", [1, 4, 7, 8, 17])
def test_every_core_sample_has_its_own_median(samples: int) -> None:
    made = make(1, 4, samples, spare=3)
    picked = made.core[made.live == 1]
    expected = np.median(picked.real, axis=0) + 1j * np.median(picked.imag, axis=0)
    np.testing.assert_allclose(common_of(made), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_medians_of_any_values(dtype: str, data: st.DataObject) -> None:
    value = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**31, -(2.0**31), 1e30, -1e30]),
        st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
    values = data.draw(st.lists(value, min_size=1, max_size=40))
    made = make(1, len(values), 1, dtype=dtype, dead=0.0, before=0, after=0)
    made.signal[:, 0] = np.array(values) + 1j * np.array(values[::-1])
    expected = np.median(np.array(values, dtype=dtype))
    np.testing.assert_array_equal(common_of(made), [expected + 1j * expected])


def test_a_zero_median_is_never_minus_zero() -> None:
    made = make(1, 3, 1, dead=0.0)
    made.signal[...] = complex(-0.0, -0.0)
    common = common_of(made)
    assert not np.signbit(common.real).any()
    assert not np.signbit(common.imag).any()


def test_the_common_mode_is_zero_where_none_is_picked() -> None:
    assert not common_of(make(1, 6, 11, dead=1.1)).any()


# --- envelope_db -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("bands", "width", "samples", "spare"),
    [(1, 1, 1, 0), (3, 33, 7, 2), (2, 5, 257, 0), (1, 64, 256, 1), (7, 1, 30, 0)],
)
def test_the_envelope_is_the_cpu_backends(
    bands: int, width: int, samples: int, spare: int, dtype: str
) -> None:
    made = make(bands, width, samples, spare=spare, dtype=dtype, dead=0.1)
    held = run(made)
    with workspace(made.chain) as work:
        signal = cpu.Signal(made.core.copy(), made.live.astype(bool))
        common = work.common_mode(signal)
        expected = work.envelope_db(signal, common).values.reshape(-1, samples)
    with np.errstate(invalid="ignore"):
        near = expected > expected.max() - 60
    error = np.abs(held.db[near] - expected[near])
    assert error.size == 0 or error.max() < (2e-4 if dtype == "float32" else 1e-9)
    np.testing.assert_array_equal(np.isneginf(held.db), np.isneginf(expected))


def test_nothing_is_subtracted_without_a_common_mode() -> None:
    made = make(dead=0.0)
    held = scratch(made)
    launch = imaging.envelope_db(
        made.row, made.signal, made.live, held, made.chain.scale, subtract=False
    )
    held.facts[:] = 0
    execute(launch)
    np.testing.assert_allclose(held.db, 20 * np.log10(np.abs(made.core)) + 120, atol=2e-4)


@pytest.mark.slow
def test_a_hundred_thousand_channels() -> None:
    made = make(1, 100_000, 1, dead=0.0)
    held = scratch(made)
    execute(imaging.pick_channels(made.row, made.live, made.chain.distance_m, held, np.inf))
    launch = imaging.envelope_db(
        made.row, made.signal, made.live, held, made.chain.scale, subtract=False
    )
    execute(launch)
    assert held.levels[0, :2].tolist() == [held.db.min(), held.db.max()]


# --- levels ----------------------------------------------------------------------------------


def spread(shape: tuple[int, int], kind: str) -> NDArray[np.float64]:
    rng = np.random.default_rng(3)
    db = rng.normal(60, 8, size=shape)
    if kind == "constant":
        db[...] = 61.7
    elif kind == "two values":
        db = np.where(rng.random(shape) < 0.5, 40.0, 60.0)
    elif kind == "wide":
        db = rng.uniform(-250, 400, size=shape)
    elif kind == "some zeros":
        db[rng.random(shape) < 0.1] = -np.inf
    elif kind == "all zeros":
        db[...] = -np.inf
    elif kind == "deep":
        db[rng.random(shape) < 0.1] = -180.0
    elif kind == "narrow":
        db = rng.normal(60, 1e-3, size=shape)
    return db


KINDS = ("normal", "constant", "two values", "some zeros", "all zeros", "deep", "narrow")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("percent", [0.5, 0.001, 12.5, 49.9])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_the_cpu_backends(kind: str, percent: float, dtype: str) -> None:
    scale = Scale("percentile", percent, 100 - percent)
    made = make(2, 40, 300, dtype=dtype, scale=scale)
    levels_of(made, spread((80, 300), kind))


def test_percentiles_of_levels_near_the_ends_of_the_range() -> None:
    made = make(1, 10, 50, dtype="float64", scale=PERCENTILES)
    levels_of(made, spread((10, 50), "wide"))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 201])
def test_percentiles_of_few_values(count: int, dtype: str) -> None:
    made = make(1, 1, count, dtype=dtype, dead=0.0, scale=PERCENTILES)
    levels_of(made, spread((1, count), "normal"))


@pytest.mark.parametrize("scale", ["tile", "fixed:40.5:70"])
@pytest.mark.parametrize("kind", ["normal", "some zeros", "all zeros", "constant"])
def test_other_scales_are_the_cpu_backends_and_need_no_further_launch(
    kind: str, scale: str
) -> None:
    made = make(2, 6, 30, scale=Scale.parse(scale))
    assert imaging.levels(made.row, made.live, scratch(made), made.chain.scale) == ()
    levels_of(made, spread((12, 30), kind))


@pytest.mark.parametrize("scale", ["percentile:0.5", "tile", "fixed:40:70"])
def test_a_band_without_a_live_channel_has_no_levels(scale: str) -> None:
    made = make(3, 4, 10, scale=Scale.parse(scale))
    made.live[:] = 1
    made.live[4:8] = 0
    levels = levels_of(made, spread((12, 10), "normal"))
    assert np.isnan(levels[1, :2]).all()
    assert np.isfinite(levels[[0, 2], :2]).all()


def test_zeros_are_lifted_to_200_db_below_the_maximum() -> None:
    made = make(2, 4, 10, dead=0.0, scale=PERCENTILES)
    db = np.full((8, 10), 60.0)
    db[0, 0] = -np.inf
    levels = levels_of(made, db)
    assert levels[0, 2] == pytest.approx(-140, abs=1e-3)
    assert levels[1, 2] == -np.inf


# --- grey ------------------------------------------------------------------------------------

SHAPES = [
    ((1, 1), (1, 1)),
    ((1, 1), (5, 7)),
    ((30, 41), (30, 41)),
    ((33, 47), (64, 300)),
    ((40, 1500), (16, 3)),
    ((150, 20), (2, 33)),
    ((9, 600), (40, 256)),
]
"""(channels, samples) of a tile and pixels along each; from one to many segments and blocks."""


def pictured(picture: Picture, dtype: str, channels: int, samples: int, bands: int = 2) -> Made:
    return make(bands, channels, samples, dtype=dtype, picture=picture, scale=PERCENTILES)


def picture_of(pixels: tuple[int, int], highest: int, orientation: Any, resize: Any) -> Picture:
    channels, samples = pixels
    shape = (samples, channels) if orientation == "time-down" else (channels, samples)
    return Picture(*shape, highest, orientation, resize)


def drawn(made: Made) -> tuple[NDArray[Any], NDArray[Any]]:
    """The kernels' images, and the CPU backend's of the same envelopes and levels."""
    rng = np.random.default_rng(11)
    resized = tables(made)
    assert resized is not None
    held = scratch(made)
    held.db[...] = rng.normal(60, 8, size=held.db.shape)
    held.db[rng.random(held.db.shape) < 0.01] = -np.inf
    held.levels[:] = [45.25, 71.125, -130]
    for launch in imaging.grey(made.row, made.live, held, resized):
        assert (launch.source, launch.options) in imaging.VARIANTS
        execute(launch)
    return images(held), cpu_images(made, held.db, held.levels)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
@pytest.mark.parametrize(("tile", "pixels"), SHAPES)
def test_images_are_the_cpu_backends(
    tile: tuple[int, int], pixels: tuple[int, int], orientation: str, dtype: str
) -> None:
    picture = picture_of(pixels, 255, orientation, "float")
    assert_images_agree(*drawn(pictured(picture, dtype, *tile)), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_images_of_16_bits(dtype: str) -> None:
    actual, expected = drawn(pictured(Picture(20, 30, 65535, "time-down", "float"), dtype, 40, 50))
    assert actual.dtype == np.uint16
    np.testing.assert_allclose(actual.astype(float), expected, atol=2)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
@pytest.mark.parametrize(("tile", "pixels"), SHAPES)
def test_pillows_images_are_identical(
    tile: tuple[int, int], pixels: tuple[int, int], orientation: str, dtype: str
) -> None:
    picture = picture_of(pixels, 255, orientation, "pillow")
    np.testing.assert_array_equal(*drawn(pictured(picture, dtype, *tile)))


@pytest.mark.parametrize("resize", ["float", "pillow"])
@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
def test_a_band_without_levels_is_black(orientation: Any, resize: Any) -> None:
    made = make(
        2, 6, 20, picture=Picture(8, 9, 255, orientation, resize), dead=0.0, scale=PERCENTILES
    )
    made.live[6:] = 0
    held = run(made)
    assert images(held)[0].any()
    assert not images(held)[1].any()


@pytest.mark.parametrize("resize", ["float", "pillow"])
def test_equal_limits_are_black(resize: Any) -> None:
    made = pictured(Picture(8, 9, 255, "time-down", resize), "float32", 6, 20)
    held = scratch(made)
    resized = tables(made)
    assert resized is not None
    held.db[...] = 60
    held.levels[:] = [60, 60, -np.inf]
    for launch in imaging.grey(made.row, made.live, held, resized):
        execute(launch)
    assert not images(held).any()


# --- which way Pillow goes first ---------------------------------------------------------------


def in_fixed_point(image: NDArray[np.uint8], n_out: int, axis: int) -> NDArray[np.uint8]:
    """One pass of Pillow's resampling, from the tables that the kernels get."""
    n_in = image.shape[axis]
    resized = resizing.tables(
        n_in, n_in, np.dtype("f4"), Picture(n_out, n_out, 255, "time-down", "pillow")
    )
    dense = np.zeros((n_out, n_in), np.int64)
    for out, (low, high) in enumerate(resized.time_bounds):
        dense[out, low:high] = resized.time_weights[: high - low, out]
    moved = np.moveaxis(image, axis, 0).astype(np.int64)
    summed = (dense @ moved + (1 << 21)) >> 22
    return np.moveaxis(np.clip(summed, 0, 255).astype(np.uint8), 0, axis)


@pytest.mark.parametrize("lost", [-1, 0, 1, 39, 40, 41, 60])
@pytest.mark.parametrize("width", [(60, 40), (40, 60)], ids=["narrower", "wider"])
def test_the_installed_pillow_takes_the_axes_in_the_order_expected(
    width: tuple[int, int], lost: int
) -> None:
    image = np.random.default_rng(5).integers(0, 256, (100, width[0])).astype(np.uint8)
    after = (100 - lost, width[1])
    resized = np.asarray(Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC))
    first = 0 if pillow_vertical_first(image.shape, after) else 1
    half = in_fixed_point(image, after[first], first)
    np.testing.assert_array_equal(in_fixed_point(half, after[1 - first], 1 - first), resized)


@pytest.mark.parametrize(
    ("version", "before", "after", "expected"),
    [
        ("13.0.0", (1500, 600), (256, 256), True),
        ("13.1", (600, 1500), (256, 256), False),
        ("12.3.0", (1500, 600), (256, 256), False),
        ("12.2.0", (1500, 14), (256, 256), True),
        ("12.2.0", (1500, 15), (256, 256), False),
        ("12.1.1", (1500, 14), (256, 256), False),
        ("11.0.0", (1500, 14), (256, 256), False),
        ("13.0.0", (100, 90), (100, 50), False),
    ],
)
def test_the_order_follows_pillows_version(
    version: str, before: tuple[int, int], after: tuple[int, int], expected: bool
) -> None:
    assert pillow_vertical_first(before, after, version) is expected


# --- the row as a whole ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("scale", ["percentile:0.5", "tile", "fixed:110:160"])
def test_a_rows_images_are_the_cpu_backends(scale: str, dtype: str) -> None:
    assert_row_agrees(
        make(3, 40, 90, dtype=dtype, spare=4, dead=0.05, picture=SMALL, scale=Scale.parse(scale))
    )


@pytest.mark.parametrize(
    ("stride", "samples", "picture"),
    [(25, 90, SMALL), (1, 90, SMALL), (17, 18, replace(SMALL, resize="pillow"))],
    ids=["overlapping", "one channel apart", "pillow, channels first"],
)
def test_bands_may_overlap(stride: int, samples: int, picture: Picture) -> None:
    """Dead channels are dead in each band that has them."""
    assert_row_agrees(
        make(5, 40, samples, stride=stride, spare=4, dead=0.2, picture=picture, scale=PERCENTILES)
    )


def assert_row_agrees(made: Made) -> None:
    """Images, levels and facts are the CPU backend's."""
    dtype = made.row.dtype.name
    held = run(made)
    with workspace(made.chain) as work:
        signal = cpu.Signal(made.core, made.live.astype(bool))
        envelope = work.envelope_db(signal, work.common_mode(signal))
        expected = work.draw(envelope, work.levels(envelope))
    assert_images_agree(images(held), np.stack(expected.pixels), dtype)
    np.testing.assert_allclose(held.levels[:, :2], expected.levels, atol=0.02, rtol=0)
    np.testing.assert_array_equal(held.facts[4:], expected.dead)


def test_a_row_takes_six_launches_in_float32_and_seven_in_float64() -> None:
    for dtype, expected in (("float32", 6), ("float64", 7)):
        made = make(picture=SMALL, dtype=dtype, scale=PERCENTILES)
        assert len(list(launches(made, scratch(made)))) == expected


CHECKED = [
    pytest.param("float32", SMALL, id="float32"),
    pytest.param("float64", SMALL, id="float64"),
    pytest.param("float32", replace(SMALL, resize="pillow"), id="pillow, channels first"),
    pytest.param("float64", Picture(4, 12, 255, "time-down", "pillow"), id="pillow, time first"),
]


def tall(dtype: str, picture: Picture) -> Made:
    """More than a block's channels, and enough bands that blocks finish out of order."""
    return make(2, 35, 18, dtype=dtype, picture=picture, scale=PERCENTILES)


@pytest.mark.parametrize(("dtype", "picture"), CHECKED)
@pytest.mark.slow
def test_results_do_not_depend_on_the_order_of_threads_and_blocks(
    dtype: str, picture: Picture
) -> None:
    run(tall(dtype, picture), check)


@pytest.mark.parametrize(("dtype", "picture"), CHECKED)
def test_nothing_is_undefined(dtype: str, picture: Picture) -> None:
    run(tall(dtype, picture), lambda launch: execute(launch, flavour="ubsan"))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "picture"), CHECKED)
def test_threads_do_not_race(dtype: str, picture: Picture) -> None:
    """What does not draw is launched alike whatever Pillow has to do with it: checked once."""

    def once(launch: Launch) -> None:
        draws = launch.source == "grey_resize.cu"
        (tsan_check if draws or picture.resize == "float" else execute)(launch)

    run(tall(dtype, picture), once)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"band_channels": 1 << 20, "samples": 1 << 12, "channels": 1 << 24}, "counted"),
        ({"channels": 9}, "of 9 channels"),
        ({"row_length": 22}, "ends beyond"),
    ],
)
def test_impossible_rows_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(make().row, **changed)


def test_the_row_follows_the_chain() -> None:
    made = chain(4, 6, 25, length=101, core0=20, step=2)
    assert RowShape.of(made) == RowShape(24, 51, 10, 25, 4, 6, 6, np.dtype("float32"))
    overlapping = replace(made, band_stride=4)
    assert RowShape.of(overlapping).band_stride == 4
