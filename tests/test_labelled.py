"""`das_gpu.envelope`: labelled samples in, labelled levels out, whatever holds the samples."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from das_gpu import Recipe, envelope, extract, open_archive
from das_gpu.errors import RecipeError, UsageError
from tests.archives import START_NS, clock_us, random_walk, write_archive
from tests.outputs import envelopes

CHANNELS, SAMPLES, RATE_HZ = 12, 2650, 200.0
SETTINGS = {
    "selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 1, "image.format": "npy",
}  # fmt: skip
DEAD = 5


def small(preset="continuous", **changed):
    settings = {name.replace("__", "."): value for name, value in changed.items()}
    return Recipe.from_preset(preset).with_settings(SETTINGS | settings)


RECIPES = {
    "continuous": small(),
    "common mode": small(median__kind="channel"),
    "iir": small(filter__method="iir"),
    "low band, halo longer than a tile": small(
        filter__low_hz=2.0, filter__high_hz=10.0, filter__order=4, tile__seconds=1
    ),
    "means of three": small(selection__channel_step=3, selection__channel_reduce="mean"),
    "stride of five": small(selection__channel_step=5),
    "notebook": small("notebook"),
}


@pytest.fixture(scope="module")
def samples():
    made = random_walk(CHANNELS, SAMPLES, seed=11, swell=10)
    made[DEAD] = 7
    return made


def labelled(samples, **coords):
    times = np.datetime64(START_NS, "ns") + (np.arange(samples.shape[1]) * 5_000_000).astype("m8")
    along = {"distance": ("distance", np.arange(samples.shape[0]) * 10.0, {"units": "m"})}
    return xr.DataArray(
        samples, dims=("distance", "time"), coords={"time": times, **along, **coords}
    )


# --- what a run computes ------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_levels_are_those_of_a_run(samples, tmp_path, name):
    recipe = RECIPES[name]
    store = write_archive(tmp_path / "a.zarr", samples, RATE_HZ, (5, 700))
    extract(store, tmp_path / "out", recipe, backend="cpu", fast=False)
    level = envelope(labelled(samples), recipe)
    wanted = envelopes(tmp_path / "out")
    assert wanted
    for (start, _), tile in wanted.items():
        ours = level.isel(time=slice(start // 2, start // 2 + tile.shape[1])).values
        audible = np.isfinite(ours)
        np.testing.assert_allclose(ours[audible], tile[audible], atol=1e-4)
        silent = np.flatnonzero(~audible.any(axis=1)) * recipe.selection.channel_step
        assert set(silent) <= {DEAD}
        assert audible.mean() > 0.6


def test_tiles_that_would_overlap_change_nothing(samples):
    """A run's tiles may share samples; of each sample there is one level."""
    plain = envelope(labelled(samples), small())
    other = envelope(
        labelled(samples), small(tile__overlap_time=0.5, tile__overlap_channels=0.5, tile__bands=3)
    )
    np.testing.assert_array_equal(other.values, plain.values)


@pytest.mark.parametrize("lazy", [False, True])
def test_strain_is_an_offset_from_counts(samples, lazy):
    recipe = small(image__units="strain", archive__refractive_index=1.4682)
    array = labelled(samples).assign_attrs(GaugeLength=51.04762)
    level = envelope(array.chunk(time=900) if lazy else array, recipe)
    assert level.attrs["units"] == "dB re 1 strain"
    assert "1 count is 2.0230e-13 strain" in level.attrs["notes"]
    assert level.dtype == np.float32
    counts = envelope(array, small()).values
    offset_db = 20 * np.log10(2.0230e-13) - 120
    np.testing.assert_allclose(level.values, counts + offset_db, atol=1e-3)
    with pytest.raises(RecipeError, match="samples are 'strain', by attribute units of the array"):
        envelope(array.assign_attrs(units="strain"), recipe)


def test_what_is_left_at_the_end_is_as_good_as_the_middle():
    """2950 samples are four windows and 550 samples more, of which the last 2 s lack their halo."""
    samples = random_walk(CHANNELS, 4000, seed=2)
    whole = envelope(labelled(samples), small(tile__seconds=20)).values[:, 1200:1275]
    short = envelope(labelled(samples[:, :2950]), small()).values
    assert short.shape[1] == 1475
    loud = whole > whole.max() - 60
    assert np.abs(short[:, 1200:1275] - whole)[loud].max() < 0.15


def test_an_array_shorter_than_a_window_is_one(samples):
    level = envelope(labelled(samples[:, :500]), small(tile__seconds=15, filter__halo_s=1))
    assert level.shape == (CHANNELS, 250)
    assert np.isfinite(level.drop_isel(distance=DEAD).values).all()


def test_a_tone_has_its_level():
    """One count of amplitude is 120 dB re 1e-6 count."""
    t = np.arange(SAMPLES) / RATE_HZ
    tone = 100 * np.sin(2 * np.pi * 22 * t) * np.ones((3, 1))
    level = envelope(labelled(tone), small()).isel(time=slice(300, -300))
    np.testing.assert_allclose(level.values, 160, atol=0.05)


def test_the_notebook_is_scipys_own_steps(samples):
    recipe = small("notebook")
    level = envelope(labelled(samples), recipe)
    sos = signal.butter(8, [14, 35], "bandpass", fs=100.0, output="sos")
    traces = samples[:, 0:600:2].astype(float)
    filtered = signal.sosfiltfilt(sos, traces - np.median(traces, axis=1, keepdims=True), axis=1)
    live = np.arange(CHANNELS) != DEAD
    expected = 20 * np.log10(np.abs(signal.hilbert(filtered[live], axis=1)) / 1e-6)
    np.testing.assert_allclose(level.values[live, :300], expected, atol=1e-4)
    assert level.dtype == np.float64


# --- dask ---------------------------------------------------------------------------------


def splits(total):
    """Sizes of up to seven chunks."""
    cuts = st.lists(st.integers(1, total - 1), max_size=6, unique=True)
    return cuts.map(lambda cuts: tuple(np.diff([0, *sorted(cuts), total]).tolist()))


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=5)
@given(chunks=st.tuples(splits(CHANNELS), splits(SAMPLES)))
@pytest.mark.slow
def test_chunks_change_nothing(samples, numpys, name, chunks):
    whole = labelled(samples)
    lazy = envelope(whole.copy(data=da.from_array(samples, chunks=chunks)), RECIPES[name])
    assert isinstance(lazy.data, da.Array)
    assert lazy.dtype == RECIPES[name].compute.dtype
    computed = lazy.compute(scheduler="synchronous")
    # Equal to the last bit, edges of chunks included: every window sees the same samples.
    xr.testing.assert_identical(computed, numpys(name))


@pytest.fixture(scope="module")
def numpys(samples):
    made = {}

    def made_once(name):
        if name not in made:
            made[name] = envelope(labelled(samples), RECIPES[name])
        return made[name]

    return made_once


def test_a_dask_array_is_not_computed_before_it_is_asked_for(samples):
    def refuse(*_):
        raise AssertionError("computed")

    chunks = ((CHANNELS,), (SAMPLES,))
    never = da.map_blocks(refuse, dtype="i4", chunks=chunks, meta=np.empty((0, 0), "i4"))
    lazy = envelope(labelled(samples).copy(data=never), small())
    assert lazy.shape == (CHANNELS, SAMPLES // 2)
    with pytest.raises(AssertionError, match="computed"):
        lazy.compute(scheduler="synchronous")


def test_the_view_of_an_archive_is_taken_as_it_is(samples, tmp_path):
    store = write_archive(tmp_path / "a.zarr", samples, RATE_HZ, (5, 700), time_first=True)
    lazy = envelope(open_archive(store).dataset.RawData, small())
    assert lazy.dims == ("time", "distance")
    level = envelope(labelled(samples), small())
    np.testing.assert_array_equal(lazy.compute().values.T, level.values)
    np.testing.assert_array_equal(lazy.time.values, level.time.values)


def test_only_the_blocks_that_are_wanted_are_computed(samples):
    touched = []

    def note(block, block_info=None):
        touched.append(block_info[0]["chunk-location"][1])
        return block

    source = da.from_array(samples, chunks=(CHANNELS, 600)).map_blocks(
        note, dtype=samples.dtype, meta=np.empty((0, 0), samples.dtype)
    )
    lazy = envelope(labelled(samples).copy(data=source), small(filter__halo_s=0.5))
    lazy.isel(time=slice(0, 100)).compute(scheduler="synchronous")
    assert set(touched) == {0, 1}


def test_a_dask_cluster_computes_it_too(samples):
    from dask.distributed import Client

    lazy = envelope(labelled(samples).chunk(time=700), small())
    with (
        dask.config.set({"distributed.worker.memory.pause": False}),
        Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None),
    ):
        computed = lazy.compute()
    xr.testing.assert_identical(computed, envelope(labelled(samples), small()))


# --- labels -------------------------------------------------------------------------------


def test_labels_are_those_of_the_kept_samples_and_channels(samples):
    depth = ("distance", np.arange(CHANNELS) * -2.0, {"units": "m"})
    name = ("distance", [f"c{n}" for n in range(CHANNELS)])
    given = labelled(samples, depth=depth, name=name)
    recipe = small(selection__channel_start=1, selection__channel_step=3)
    level = envelope(given, recipe)
    kept = given.isel(distance=slice(1, None, 3), time=slice(None, None, 2))
    xr.testing.assert_equal(level.coords.to_dataset(), kept.coords.to_dataset())
    assert level.attrs["units"] == "dB re 1e-6 count"
    assert level.attrs["sampling_rate_hz"] == 100.0
    for part in ("first of every 3 channels", "band-pass 14-35 Hz", "every 2. sample", "in dB"):
        assert part in level.attrs["processing"]
    assert "No common-mode median" in level.attrs["notes"]
    assert {type(value) for value in level.attrs.values()} == {str, float}


def test_means_of_channels_lie_between_them(samples):
    given = labelled(samples, name=("distance", list("abcdefghijkl")))
    level = envelope(given, RECIPES["means of three"])
    np.testing.assert_array_equal(level.distance, [10, 40, 70, 100])
    assert "name" not in level.coords
    assert "mean of each 3 channels" in level.attrs["processing"]


@pytest.mark.parametrize("lazy", [False, True])
def test_either_order_of_dimensions(samples, lazy):
    given = labelled(samples).transpose()
    level = envelope(given.chunk() if lazy else given, small())
    assert level.dims == ("time", "distance")
    xr.testing.assert_identical(level.T.compute(), envelope(labelled(samples), small()))


def test_channels_without_a_coordinate(samples):
    given = xr.DataArray(
        samples, dims=("channel", "time"), coords={"time": np.arange(SAMPLES) / RATE_HZ}
    )
    level = envelope(given, small())
    assert level.dims == ("channel", "time")
    np.testing.assert_allclose(level.time, np.arange(0, SAMPLES, 2) / RATE_HZ)
    assert "assuming 2.0419 m" in level.attrs["notes"]


def test_another_unit_is_kept(samples):
    given = labelled(samples.astype("f8")).assign_attrs(units="nm/m")
    assert envelope(given, small()).attrs["units"] == "dB re 1e-6 nm/m"


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(np.arange(SAMPLES) / RATE_HZ, id="seconds"),
        pytest.param((np.arange(SAMPLES) * 5).astype("m8[ms]"), id="timedeltas"),
        pytest.param(clock_us(SAMPLES, RATE_HZ).astype("M8[us]"), id="microseconds"),
    ],
)
def test_the_sampling_rate_is_that_of_the_times(samples, times):
    given = labelled(samples).assign_coords(time=times)
    level = envelope(given, small())
    assert level.attrs["sampling_rate_hz"] == 100.0
    np.testing.assert_array_equal(level.values, envelope(labelled(samples), small()).values)


def test_the_recipe_gives_the_sampling_rate_where_there_are_no_times(samples):
    given = labelled(samples).drop_vars("time")
    level = envelope(given, small(archive__sampling_rate_hz=RATE_HZ))
    np.testing.assert_array_equal(level.values, envelope(labelled(samples), small()).values)


def test_the_recipes_times_are_looked_up(samples):
    """Halos still reach beyond them."""
    whole = envelope(labelled(samples), small(tile__seconds=1))
    recipe = small(
        tile__seconds=1,
        selection__start="2021-11-01T23:11:18.834",
        selection__stop="2021-11-01T23:11:24.834",
    )
    for each in (labelled(samples), labelled(samples).chunk(time=300)):
        part = envelope(each, recipe).compute()
        np.testing.assert_array_equal(part.time, whole.time[400:1000])
        np.testing.assert_array_equal(part.values, whole.values[:, 400:1000])


# --- flaws --------------------------------------------------------------------------------


def test_dead_channels_are_silent_under_a_common_mode_too(samples):
    level = envelope(labelled(samples), RECIPES["common mode"])
    assert np.isneginf(level.values[DEAD]).all()
    assert np.isfinite(np.delete(level.values, DEAD, axis=0)).mean() > 0.99


def test_dead_channels_are_minus_infinity_and_spare_the_others(samples):
    flawed = samples.astype("f4")
    flawed[2, 100] = np.nan
    flawed[3, 2000] = np.inf
    level = envelope(labelled(flawed), small())
    sound = envelope(labelled(samples.astype("f4")), small())
    silent = np.isneginf(level.values)
    assert silent[DEAD].all()
    assert silent[2, :300].all()
    assert not silent[2, 600:].any()
    assert silent[3, 900:1200].all()
    others = [0, 1, 4, 6]
    np.testing.assert_array_equal(level.values[others], sound.values[others])
    assert not np.isnan(level.values).any()


@pytest.mark.parametrize("lazy", [False, True])
def test_a_window_that_the_clock_jumps_in_is_nan_and_others_are_cut_at_it(samples, lazy):
    given = labelled(samples)
    times = given.time.values.copy()
    times[1500:] += np.timedelta64(7, "s")
    given = given.assign_coords(time=times)
    level = envelope(given.chunk(time=500) if lazy else given, small()).compute()
    lost = np.isnan(level.values).all(axis=0)
    assert lost[600:900].all()
    assert not lost[:600].any()
    assert not lost[900:].any()
    # The window before reads up to the jump, the one after from it: neither filters across.
    before = envelope(labelled(samples[:, :1500]), small(tile__seconds=3)).values
    np.testing.assert_array_equal(level.values[:, 300:600], before[:, 300:600])


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a: a.values, UsageError, "takes an xarray.DataArray"),
        (lambda a: a.rename(time="t"), UsageError, "one of them called 'time'"),
        (lambda a: a.isel(distance=0), UsageError, "two dimensions"),
        (lambda a: a.astype(complex), UsageError, "real numbers"),
        (lambda a: a.isel(time=slice(0, 0)), UsageError, "no sample"),
        (lambda a: a.drop_vars("time"), UsageError, "sampling rate"),
        (lambda a: a.assign_coords(time=["noon"] * SAMPLES), UsageError, "datetime64"),
        (lambda a: a.isel(time=slice(0, 40)), RecipeError, "shorter"),
        (lambda a: a.isel(time=slice(None, None, 4)), RecipeError, "Nyquist"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(samples, change, error, words):
    with pytest.raises(error, match=words):
        envelope(change(labelled(samples)), small())


def test_a_rate_that_contradicts_the_times_is_refused(samples):
    with pytest.raises(UsageError, match="advance at 200 Hz"):
        envelope(labelled(samples), small(archive__sampling_rate_hz=500.0))


def test_times_are_refused_where_the_array_does_not_say_when(samples):
    given = labelled(samples).assign_coords(time=np.arange(SAMPLES) / RATE_HZ)
    with pytest.raises(UsageError, match="say when"):
        envelope(given, small(selection__start="2021-11-02"))
