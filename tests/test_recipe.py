"""Recipes: presets, refusals, TOML in and out, times, and what the digest covers."""

from __future__ import annotations

import datetime as dt
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from das_gpu.errors import RecipeError
from das_gpu.recipe import (
    ArchiveSettings,
    FilterSettings,
    Recipe,
    Scale,
    SelectionSettings,
    parse_channels,
    parse_image_size,
)
from das_gpu.settings import KEYS, TABLES


def set_to(key: str, value: Any, preset: str = "continuous") -> Recipe:
    """The preset with one setting changed, `table.key`."""
    table, _, name = key.partition(".")
    return Recipe.model_validate({"preset": preset, table: {name: value}})


def value_of(recipe: Recipe, key: str) -> Any:
    table, _, name = key.partition(".")
    return getattr(getattr(recipe, table), name)


# Another acceptable value for every setting.
OTHERS: dict[str, Any] = {
    "archive.data": "strain",
    "archive.time": "clock",
    "archive.sampling_rate_hz": 500.0,
    "archive.channel_spacing_m": 1.02,
    "archive.gauge_length_m": 10.2,
    "archive.refractive_index": 1.47,
    "archive.wavelength_m": 1.55e-6,
    "archive.positions": "channel,longitude,latitude\n0,-125.0,44.5\n100,-125.1,44.6",
    "selection.channel_start": 10_000,
    "selection.channel_stop": 20_000,
    "selection.channel_step": 3,
    "selection.channel_reduce": "mean",
    "selection.start": "2021-11-02T00:00:00Z",
    "selection.stop": "2021-11-03T00:00:00Z",
    "selection.time_step": 1,
    "filter.low_hz": 10.0,
    "filter.high_hz": 40.0,
    "filter.order": 4,
    "filter.method": "iir",
    "filter.decimate": "before",
    "filter.halo_s": 1.5,
    "median.kind": "none",
    "tile.seconds": 30.0,
    "tile.bands": 4,
    "tile.overlap_time": 0.5,
    "tile.overlap_channels": 0.25,
    "image.format": "npy",
    "image.scale": "tile",
    "image.units": "strain",
    "image.resize": "pillow",
    "image.height": 128,
    "image.width": 512,
    "image.orientation": "time-right",
    "image.names": "notebook",
    "compute.dtype": "float64",
}

OPTICS_KEYS = ["archive.gauge_length_m", "archive.refractive_index", "archive.wavelength_m"]
"""Of no consequence in counts."""

PICTURE_KEYS = [
    "image.scale",
    "image.resize",
    "image.height",
    "image.width",
    "image.orientation",
]


# -- presets and defaults -----------------------------------------------------------------------


def test_the_continuous_preset_is_the_default() -> None:
    recipe = Recipe()
    assert recipe == Recipe.from_preset("continuous") == Recipe.load() == Recipe.from_toml("")
    assert {key: value_of(recipe, key) for key in KEYS} == {
        "archive.data": None,
        "archive.time": None,
        "archive.sampling_rate_hz": None,
        "archive.channel_spacing_m": None,
        "archive.gauge_length_m": None,
        "archive.refractive_index": None,
        "archive.wavelength_m": None,
        "archive.positions": None,
        "selection.channel_start": 0,
        "selection.channel_stop": None,
        "selection.channel_step": 5,
        "selection.channel_reduce": "stride",
        "selection.start": None,
        "selection.stop": None,
        "selection.time_step": 2,
        "filter.low_hz": 14.0,
        "filter.high_hz": 35.0,
        "filter.order": 8,
        "filter.method": "spectral",
        "filter.decimate": "after",
        "filter.halo_s": "auto",
        "median.kind": "auto",
        "tile.seconds": 15.0,
        "tile.bands": 10,
        "tile.overlap_time": 0.0,
        "tile.overlap_channels": 0.0,
        "image.format": "png",
        "image.scale": "percentile:0.5",
        "image.units": "counts",
        "image.resize": "float",
        "image.height": 256,
        "image.width": 256,
        "image.orientation": "time-down",
        "image.names": "plain",
        "compute.dtype": "float32",
    }


def test_the_notebook_preset_differs_only_where_the_notebook_does() -> None:
    plain, notebook = Recipe(), Recipe.from_preset("notebook")
    different = {key for key in KEYS if value_of(plain, key) != value_of(notebook, key)}
    assert {key: value_of(notebook, key) for key in different} == {
        "filter.method": "iir",
        "filter.decimate": "before",
        "filter.halo_s": 0.0,
        "median.kind": "time",
        "image.scale": "tile",
        "image.resize": "pillow",
        "image.names": "notebook",
        "compute.dtype": "float64",
    }


def test_the_preset_decides_only_what_is_left_out() -> None:
    by_table = Recipe.model_validate({"preset": "notebook", "filter": {"low_hz": 10}})
    by_object = Recipe(preset="notebook", filter=FilterSettings(low_hz=10.0))
    assert by_table == by_object == Recipe.load("notebook", settings={"filter.low_hz": 10})
    assert (by_table.filter.low_hz, by_table.filter.decimate) == (10.0, "before")


def test_a_table_taken_from_another_recipe_keeps_all_its_values() -> None:
    taken = Recipe().median
    assert Recipe(preset="notebook", median=taken).median.kind == "auto"


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.from_preset("fast")
    assert str(refused.value) == "preset is 'fast': it must be 'continuous' or 'notebook'."


def test_recipes_are_frozen_hashable_and_survive_pickling_into_a_fresh_process() -> None:
    recipe = set_to("filter.low_hz", 10)
    with pytest.raises(ValidationError):
        recipe.filter = FilterSettings()
    assert {recipe: 1}[set_to("filter.low_hz", 10.0)] == 1
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).digest)"
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(recipe), capture_output=True, check=True
    )
    assert run.stdout.decode().strip() == recipe.digest


# -- refusals -----------------------------------------------------------------------------------

REFUSED = [
    ("filter.low_hz", 0, "must be more than 0"),
    ("filter.low_hz", -1.0, "must be more than 0"),
    ("filter.low_hz", 35, "must be less than filter.high_hz, 35"),
    ("filter.high_hz", 3, "less than filter.high_hz, 3"),
    ("filter.low_hz", float("nan"), "must be a finite number"),
    ("filter.high_hz", float("inf"), "must be a finite number"),
    ("filter.low_hz", 10**400, "must be a number"),
    ("filter.low_hz", "14 Hz", "must be a number"),
    ("filter.low_hz", True, "must be a number"),
    ("filter.order", 0, "must be at least 1"),
    ("filter.order", 17, "must be at most 16"),
    ("filter.order", 8.0, "must be a whole number"),
    ("filter.method", "fft", "must be 'spectral' or 'iir'"),
    ("filter.halo_s", -0.5, "at least 0"),
    ("filter.halo_s", float("inf"), "finite"),
    ("filter.halo_s", 10**400, "finite"),
    ("filter.halo_s", "none", "must be 'auto' or"),
    ("filter.halo_s", True, "must be 'auto' or"),
    ("median.kind", None, "must be 'auto', 'channel', 'time' or 'none'"),
    ("tile.bands", 0, "must be at least 1"),
    ("tile.seconds", 0, "must be more than 0"),
    ("tile.seconds", float("nan"), "must be a finite number"),
    ("selection.channel_start", -1, "must be at least 0"),
    ("selection.channel_stop", 0, "must be at least 1"),
    ("selection.channel_step", 0, "must be at least 1"),
    ("selection.time_step", 0, "must be at least 1"),
    ("selection.start", "yesterday", "must be a date or a time such as"),
    ("selection.start", "2021-13-01", "a date and a time of day that exist"),
    ("selection.start", "2021-11-01T23:59:60Z", "a date and a time of day that exist"),
    ("selection.start", "2021-11-01T00:00:00.0123456789", "at most 9 decimals"),
    ("selection.start", "1500-01-01", "between the years 1678 and 2261"),
    ("selection.start", "9999-12-31T23:59:59-23:59", "between the years 1678 and 2261"),
    ("selection.start", np.datetime64("NaT"), "must be a date or a time such as"),
    ("selection.stop", 20211101, "must be text"),
    ("image.height", 0, "must be at least 1"),
    ("image.width", 8193, "must be at most 8192"),
    ("image.scale", "percentile:50", "P at least 0 and less than 50"),
    ("image.scale", "percentile", "must be 'percentile:P'"),
    ("image.scale", "percentile:nan", "must be 'percentile:P'"),
    ("image.scale", "percentile:-1", "must be 'percentile:P'"),
    ("image.scale", "fixed:70:40", "LOW less than HIGH"),
    ("image.scale", "fixed:-inf:40", "LOW less than HIGH"),
    ("image.scale", "fixed:1:2:3", "LOW less than HIGH"),
    ("image.scale", "fixed:a:b", "LOW less than HIGH"),
    ("image.scale", "tile:1", "must be 'percentile:P'"),
    ("image.scale", 3, "must be 'percentile:P'"),
    ("archive.data", "", "must not be empty"),
    ("archive.sampling_rate_hz", 0.0, "must be more than 0"),
    ("archive.channel_spacing_m", float("nan"), "must be a finite number"),
]


@pytest.mark.parametrize(("key", "value", "limit"), REFUSED)
def test_an_impossible_value_is_refused_naming_key_value_and_limit(
    key: str, value: Any, limit: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        set_to(key, value)
    message = str(refused.value)
    assert "\n" not in message
    assert key in message
    assert limit in message
    assert "pydantic" not in message
    assert "input" not in message.lower()
    shown = str(value) if isinstance(value, str | int | float) else repr(value)
    assert shown[:10] in message


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("filter.lo", "filter.low_hz"),
        ("filter.low", "filter.low_hz"),
        ("filter.highhz", "filter.high_hz"),
        ("filters.low_hz", "filter.low_hz"),
        ("filter.time_step", "selection.time_step"),
        ("image.size", "image.resize"),
        ("tile.second", "tile.seconds"),
        ("low_hz", "filter.low_hz"),
        ("bands", "tile.bands"),
        ("selection.start.ns", "selection.start"),
        ("filters", "filter"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(wrong: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.load(settings={wrong: 1})
    assert str(refused.value) == f"{wrong} is not a setting; the nearest is {nearest}."


def test_every_problem_is_told_at_once_a_line_each() -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.from_toml(
            """
            colour = "grey"
            [filter]
            order = 20
            lo = 3
            [tile]
            bands = 0
            [selection]
            channel_start = 9
            channel_stop = 9
            start = 2021-11-02
            stop = 2021-11-02
            """
        )
    lines = str(refused.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "selection.channel_stop",
        "selection.stop",
        "filter.order",
        "filter.lo",
        "tile.bands",
        "colour",
    ]


def test_a_value_where_a_table_belongs_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^filter is 3: it must be a table of settings\.$"):
        Recipe.from_toml("filter = 3")
    with pytest.raises(RecipeError, match=r"^filter is 3: it must be a table of settings\.$"):
        Recipe.load(settings={"filter": 3, "filter.low_hz": 4})
    with pytest.raises(RecipeError, match="A recipe is a table of settings; 3 is not"):
        Recipe.model_validate(3)


def test_every_constructor_raises_our_error_with_the_cause() -> None:
    for construct in (
        lambda: Recipe(filter={"lo": 1}),  # type: ignore[arg-type]  # a table, unchecked
        lambda: Recipe.model_validate({"filter": {"lo": 1}}),
        lambda: FilterSettings.model_validate({"lo": 1}),
        lambda: Recipe.from_toml("[filter]\nlo = 1"),
        lambda: Recipe.load(settings={"filter.lo": 1}),
        lambda: Recipe().with_settings({"filter.lo": 1}),
    ):
        with pytest.raises(RecipeError, match=r"filter\.lo is not a setting") as refused:
            construct()
        assert refused.value.__cause__ is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("selection.channel_reduce", "mean"),
        ("image.format", "png16"),
        ("filter.halo_s", 2.0),
        ("filter.halo_s", "auto"),
    ],
)
def test_the_notebook_preset_refuses_what_the_notebook_had_not(key: str, value: Any) -> None:
    with pytest.raises(RecipeError) as refused:
        set_to(key, value, "notebook")
    assert str(refused.value).startswith(f"{key} is {value!r}: the notebook preset takes ")
    assert set_to(key, value)


def test_pillow_makes_8_bits() -> None:
    refused = {"format": "png16", "resize": "pillow"}
    with pytest.raises(RecipeError, match=r"^image\.resize is 'pillow': it must be 'float' with"):
        Recipe.model_validate({"image": refused})


def test_what_is_unusual_but_possible_is_let_through() -> None:
    for over in (
        {"filter": {"decimate": "before"}, "selection": {"channel_reduce": "mean"}},
        {"filter": {"low_hz": 0.05, "high_hz": 1}},
        {"preset": "notebook", "image": {"format": "npy"}},
        {"preset": "notebook", "filter": {"method": "spectral"}, "median": {"kind": "auto"}},
    ):
        assert Recipe.model_validate(over)


def test_numpy_scalars_are_numbers() -> None:
    recipe = Recipe.model_validate(
        {"selection": {"channel_start": np.int64(3)}, "filter": {"low_hz": np.float32(12.5)}}
    )
    assert (recipe.selection.channel_start, recipe.filter.low_hz) == (3, 12.5)


# -- times --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "2021-11-01T23:11:14.834Z",
        "2021-11-01T23:11:14.834",
        "2021-11-01 23:11:14.834000000",
        "2021-11-01t23:11:14.834z",
        "2021-11-02T00:11:14.834+01:00",
        "2021-11-01T15:41:14.834-0730",
        dt.datetime(2021, 11, 1, 23, 11, 14, 834000),  # noqa: DTZ001  # naive means UTC here
        dt.datetime(2021, 11, 1, 23, 11, 14, 834000, tzinfo=dt.UTC),
        dt.datetime(2021, 11, 2, 1, 11, 14, 834000, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        dt.datetime(
            2021, 11, 2, 0, 11, 44, 834000, tzinfo=dt.timezone(dt.timedelta(hours=1, seconds=30))
        ),
        np.datetime64("2021-11-01T23:11:14.834"),
        np.datetime64("2021-11-01T23:11:14.834000000"),
    ],
)
def test_equal_instants_are_one_text_and_one_digest(spelling: Any) -> None:
    recipe = set_to("selection.start", spelling)
    assert recipe.selection.start == "2021-11-01T23:11:14.834Z"
    assert recipe.selection.start_ns == 1_635_808_274_834_000_000
    assert recipe.digest == set_to("selection.start", "2021-11-01T23:11:14.834Z").digest


@pytest.mark.parametrize(
    "midnight",
    ["2021-11-02", "2021-11-02T00:00", dt.date(2021, 11, 2), np.datetime64("2021-11-02")],
)
def test_a_date_alone_is_its_midnight(midnight: Any) -> None:
    assert set_to("selection.stop", midnight).selection.stop == "2021-11-02T00:00:00Z"
    assert set_to("selection.stop", np.datetime64("2021")).selection.stop_ns == (
        1_609_459_200 * 10**9
    )


@given(ns=st.integers(-(2**63) + 2 * 10**9, 2**63 - 2 * 10**9))
def test_every_nanosecond_is_kept(ns: int) -> None:
    selection = SelectionSettings(start=str(np.datetime64(ns, "ns")))
    assert selection.start_ns == ns
    assert selection.stop_ns is None
    assert SelectionSettings(stop=selection.start).stop_ns == ns


def test_a_range_of_time_must_ascend() -> None:
    late, early = "2021-11-02T01:00:00+01:00", "2021-11-02"
    with pytest.raises(RecipeError, match=r"later than selection\.start, 2021-11-02T00:00:00Z"):
        SelectionSettings(start=early, stop=late)
    one_nanosecond = SelectionSettings(start=early, stop="2021-11-02T00:00:00.000000001")
    assert one_nanosecond.stop == "2021-11-02T00:00:00.000000001Z"


# -- the grey scale -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scale", "canonical"),
    [
        ("percentile:0.50", Scale("percentile", 0.5, 99.5), "percentile:0.5"),
        ("percentile:2", Scale("percentile", 2.0, 98.0), "percentile:2"),
        ("percentile:0", Scale("tile", 0.0, 100.0), "tile"),
        ("tile", Scale("tile", 0.0, 100.0), "tile"),
        ("fixed:40:7e1", Scale("fixed", 40.0, 70.0), "fixed:40:70"),
        ("fixed:-0:0.1", Scale("fixed", 0.0, 0.1), "fixed:0:0.1"),
    ],
)
def test_scales_have_one_spelling(text: str, scale: Scale, canonical: str) -> None:
    image = set_to("image.scale", text).image
    assert image.parsed_scale == scale
    assert image.scale == str(scale) == canonical


@given(low=st.floats(-1e300, 1e300), high=st.floats(-1e300, 1e300))
def test_fixed_levels_are_kept_exactly(low: float, high: float) -> None:
    assume(low < high)
    scale = Scale.parse(f"fixed:{low!r}:{high!r}")
    assert (scale.low, scale.high) == (low, high)
    assert Scale.parse(str(scale)) == scale


# -- layers: preset, file, single settings ------------------------------------------------------


def test_settings_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('preset = "notebook"\n[filter]\nlow_hz = 10\nhigh_hz = 40\n')
    recipe = Recipe.load(config=config, settings={"filter.high_hz": "45.5"})
    assert (recipe.filter.low_hz, recipe.filter.high_hz) == (10.0, 45.5)
    assert recipe.median.kind == "time"
    assert Recipe.load("continuous", str(config)).median.kind == "auto"
    assert Recipe.load(config=config, settings={"preset": "continuous"}).median.kind == "auto"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("tile.bands", "4", 4),
        ("tile.bands", "1_0", 10),
        ("tile.seconds", "7.5", 7.5),
        ("filter.halo_s", "auto", "auto"),
        ("filter.halo_s", '"auto"', "auto"),
        ("filter.halo_s", "3", 3.0),
        ("median.kind", "none", "none"),
        ("archive.data", "123", "123"),
        ("archive.data", "'true'", "true"),
        ("archive.data", "RawData", "RawData"),
        ("selection.start", "2021-11-02T00:00:00.000000001Z", "2021-11-02T00:00:00.000000001Z"),
        ("image.scale", "fixed:40:70", "fixed:40:70"),
    ],
)
def test_text_is_read_as_a_toml_scalar_or_as_text(key: str, text: str, value: Any) -> None:
    found = value_of(Recipe.load(settings={key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["4 bands", "[4]", "true", "nan", "4\nx = 1", ""])
def test_text_that_is_no_such_scalar_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^tile\.bands is .*: it must be a whole number\.$"):
        Recipe.load(settings={"tile.bands": text})


def test_none_puts_a_setting_back_to_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text("[selection]\nchannel_stop = 7\n[filter]\nlow_hz = 10\n")
    back: dict[str, Any] = {"selection.channel_stop": None, "filter.low_hz": None}
    assert Recipe.load(config=config, settings=back) == Recipe()
    assert Recipe.load(config=config).with_settings(back) == Recipe()
    with pytest.raises(RecipeError, match="nearest"):
        Recipe.load(settings={"filter.low": None})


def test_with_settings_leaves_the_original_alone() -> None:
    recipe = Recipe.from_preset("notebook")
    changed = recipe.with_settings({"tile.bands": 4, "archive.data": "x"})
    assert (recipe.tile.bands, changed.tile.bands, changed.preset) == (10, 4, "notebook")
    with pytest.raises(RecipeError, match="preset of a finished recipe cannot be changed"):
        recipe.with_settings({"preset": "continuous"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    absent, broken, binary = (tmp_path / name for name in ("absent", "broken.toml", "binary"))
    broken.write_text("[filter\n")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"absent cannot be read: .*No such file"):
        Recipe.load(config=absent)
    with pytest.raises(RecipeError, match=r"broken\.toml is not valid TOML: .*line 1"):
        Recipe.load(config=broken)
    with pytest.raises(RecipeError, match=r"binary cannot be read: .*utf-8"):
        Recipe.load(config=binary)


# -- TOML out -----------------------------------------------------------------------------------

number = st.floats(1e-300, 1e300, exclude_min=True)
name = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
instant = st.none() | st.integers(-(2**62), 2**62).map(lambda ns: str(np.datetime64(ns, "ns")))
whole = st.integers(1, 2**70)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any possible recipe of the continuous preset."""
    low, high = sorted(draw(st.tuples(number, number)))
    assume(low < high)
    values: dict[str, Any] = {
        "archive.data": draw(name),
        "archive.time": draw(name),
        "archive.sampling_rate_hz": draw(st.none() | number),
        "archive.channel_spacing_m": draw(st.none() | number),
        "selection.channel_start": draw(whole),
        "selection.channel_step": draw(whole),
        "selection.time_step": draw(whole),
        "selection.start": draw(instant),
        "filter.low_hz": low,
        "filter.high_hz": high,
        "filter.order": draw(st.integers(1, 16)),
        "filter.halo_s": draw(st.just("auto") | st.floats(0, 1e300)),
        "tile.seconds": draw(number),
        "tile.bands": draw(whole),
        "tile.overlap_time": draw(st.floats(0, 0.9)),
        "tile.overlap_channels": draw(st.floats(0, 0.9)),
        "image.height": draw(st.integers(1, 8192)),
        "image.format": draw(st.sampled_from(["png", "png16", "npy"])),
        "image.scale": f"percentile:{draw(st.floats(0, 50, exclude_max=True))!r}",
    }
    tables: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        tables.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
    return Recipe.model_validate(tables)


@given(recipe=recipes())
@settings(deadline=None, max_examples=40)
def test_toml_gives_back_an_equal_recipe(recipe: Recipe) -> None:
    again = Recipe.from_toml(recipe.to_toml())
    assert again == recipe
    assert again.digest == recipe.digest
    assert again.to_toml() == recipe.to_toml()


@pytest.mark.parametrize("preset", ["continuous", "notebook"])
def test_presets_survive_toml_and_every_key_is_explained(preset: str) -> None:
    recipe = Recipe.from_preset(preset)
    text = recipe.to_toml()
    assert Recipe.from_toml(text) == recipe
    lines = text.splitlines()
    for key in KEYS:
        written = f"{key.partition('.')[2]} = "
        (line,) = [line for line in lines if line.removeprefix("# ").startswith(written)]
        assert line.rpartition("# ")[2].strip()
    assert "low_hz = 14.0 # Hz, lower corner" in lines


def test_bare_toml_dates_are_times() -> None:
    recipe = Recipe.from_toml("[selection]\nstart = 2021-11-02\nstop = 2021-11-02T01:00:00+00:30")
    assert (recipe.selection.start, recipe.selection.stop) == (
        "2021-11-02T00:00:00Z",
        "2021-11-02T00:30:00Z",
    )


# -- the digest ---------------------------------------------------------------------------------


def test_there_is_another_value_for_every_setting() -> None:
    assert set(OTHERS) == set(KEYS)
    assert all(value_of(set_to(key, value), key) == value for key, value in OTHERS.items())


@pytest.mark.parametrize("key", KEYS)
def test_each_setting_alone_changes_the_digest(key: str) -> None:
    plain = Recipe().with_settings({"image.units": "strain"}) if key in OPTICS_KEYS else Recipe()
    assert plain.with_settings({key: OTHERS[key]}).digest != plain.digest


@pytest.mark.parametrize("key", OPTICS_KEYS)
def test_in_counts_the_optics_change_nothing(key: str) -> None:
    assert set_to(key, OTHERS[key]).digest == Recipe().digest


def test_one_table_of_positions_has_one_digest() -> None:
    spelled = (
        "channel , Latitude,longitude,note\r\n# a remark\n0.0,44.50,-125,a\n\n100,44.6,-125.1,\n"
    )
    assert set_to("archive.positions", spelled) == set_to(
        "archive.positions", OTHERS["archive.positions"]
    )
    moved = OTHERS["archive.positions"].replace("44.6", "44.7")
    assert set_to("archive.positions", moved).digest != set_to("archive.positions", spelled).digest


@pytest.mark.parametrize("key", [key for key in KEYS if key != "image.format"])
def test_of_an_array_the_picture_settings_change_nothing(key: str) -> None:
    array = Recipe.load(settings={"image.format": "npy"})
    changed = array.with_settings({key: OTHERS[key]})
    assert (changed.digest == array.digest) == (key in [*PICTURE_KEYS, *OPTICS_KEYS])


def test_the_preset_itself_changes_nothing() -> None:
    notebook = Recipe.from_preset("notebook")
    written_out = {"preset": "continuous", **notebook.model_dump(exclude={"preset"})}
    assert Recipe.model_validate(written_out).digest == notebook.digest
    assert notebook.digest != Recipe().digest


def test_settings_without_a_say_change_nothing() -> None:
    every_sample = set_to("selection.time_step", 1)
    assert every_sample.with_settings({"filter.decimate": "before"}).digest == every_sample.digest
    every_channel = set_to("selection.channel_step", 1)
    assert (
        every_channel.with_settings({"selection.channel_reduce": "mean"}).digest
        == every_channel.digest
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_default_written_out_changes_nothing(key: str) -> None:
    assert set_to(key, value_of(Recipe(), key)).digest == Recipe().digest


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("filter.low_hz", 14, 14.0),
        ("filter.halo_s", 0.0, -0.0),
        ("filter.halo_s", 2, 2.0),
        ("image.scale", "percentile:0.5", "percentile:5e-1"),
        ("image.scale", "percentile:0", "tile"),
        ("image.scale", "fixed:-0.0:70", "fixed:0:70.0"),
    ],
)
def test_equal_values_in_other_spellings_change_nothing(key: str, one: Any, other: Any) -> None:
    assert set_to(key, one).digest == set_to(key, other).digest


def test_the_digest_is_the_same_tomorrow() -> None:
    # Folders written by an earlier version are resumed by this text.
    assert len(Recipe().digest) == 64
    assert Recipe().digest == "c6c02fe46ebe452bffe1922610762f10cc985369b47524c95755b387dd0fde27"


# -- what the command line takes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "stop", "step"),
    [
        ("10000::5", 10_000, None, 5),
        ("10000:20000:5", 10_000, 20_000, 5),
        ("::5", 0, None, 5),
        (":300", 0, 300, 7),
        ("5:", 5, None, 7),
        (":", 0, None, 7),
        (" 1 : 9 : 2 ", 1, 9, 2),
    ],
)
def test_channels_are_a_slice_that_leaves_the_step_alone(
    text: str, start: int, stop: int | None, step: int
) -> None:
    before = Recipe.load(settings={"selection.channel_step": 7, "selection.channel_stop": 40})
    selection = before.with_settings(parse_channels(text)).selection
    assert (selection.channel_start, selection.channel_stop, selection.channel_step) == (
        start,
        stop,
        step,
    )


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("20000:10000:5", "must be more than START, 20000"),
        ("7:7", "must be more than START, 7"),
        (":0", "must be more than START, 0"),
        ("0:9:0", "step of 0: it must be at least 1"),
        ("-5::2", "whole numbers of at least 0"),
        ("::-1", "whole numbers of at least 0"),
        ("5", "write START:STOP:STEP"),
        ("1:2:3:4", "write START:STOP:STEP"),
        ("a:b", "write START:STOP:STEP"),
        ("1.5:2", "write START:STOP:STEP"),
        ("²:", "write START:STOP:STEP"),
    ],
)
def test_impossible_channels_are_refused(text: str, limit: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_channels(text)
    assert repr(text) in str(refused.value)
    assert limit in str(refused.value)


def test_image_sizes() -> None:
    image = Recipe.load(settings=parse_image_size("128X512")).image
    assert (image.height, image.width) == (128, 512)
    for text in ("256", "256x", "axb", "-1x4", "2.5x4", "1x2x3", ""):
        with pytest.raises(RecipeError, match="HEIGHTxWIDTH"):
            parse_image_size(text)
    with pytest.raises(RecipeError, match=r"image\.width is 0: it must be at least 1"):
        Recipe.load(settings=parse_image_size("4x0"))


# -- importing ----------------------------------------------------------------------------------


def test_recipes_are_made_without_scipy_or_tomlkit() -> None:
    code = (
        "import sys\n"
        "from das_gpu.recipe import Recipe\n"
        "Recipe.load(settings={'tile.bands': '4'}).digest\n"
        "sys.exit(any(n.split('.')[0] in ('scipy', 'tomlkit') for n in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tables_are_the_recipes_own() -> None:
    assert list(TABLES) == [key for key in Recipe.model_fields if key != "preset"]
    assert TABLES["archive"] is ArchiveSettings
