"""Levels in strain: an offset in dB and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu import units
from das_gpu.archive import open_archive
from das_gpu.cli import main
from das_gpu.errors import IdentityError, RecipeError
from das_gpu.recipe import ArchiveSettings, Recipe
from das_gpu.report import report
from das_gpu.run import extract, prepare
from tests.archives import random_walk, write_archive
from tests.layouts import write
from tests.outputs import envelopes, images, records

SMALL = {"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 2}
GAUGE_M = 51.04762
OFFSET_DB = 20 * np.log10(2.0230e-13) - 120
"""From dB re 1e-6 count to dB re 1 strain, for the OOI recording's interrogator."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 channels, 20 s at 200 Hz."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, random_walk(60, 4000, seed=1), 200.0, (20, 1000))


def counts(**settings: Any) -> Recipe:
    return Recipe().with_settings({**SMALL, **settings})


def strain(**settings: Any) -> Recipe:
    known = {"image.units": "strain", "archive.gauge_length_m": GAUGE_M}
    return counts(**known).with_settings(settings)


@pytest.mark.parametrize("scale", ["percentile:0.5", "tile"])
def test_in_strain_levels_are_moved_and_pixels_are_not(
    archive: Path, tmp_path: Path, scale: str
) -> None:
    extract(archive, tmp_path / "counts", counts(**{"image.scale": scale}))
    extract(archive, tmp_path / "strain", strain(**{"image.scale": scale}))
    plain, moved = images(tmp_path / "counts"), images(tmp_path / "strain")
    assert all(np.array_equal(plain[key], moved[key]) for key in plain)
    both = zip(records(tmp_path / "counts"), records(tmp_path / "strain"), strict=True)
    for before, after in both:
        for name in ("db_low", "db_high"):
            assert after[name] - before[name] == pytest.approx(OFFSET_DB, abs=1e-3)
        assert after.pop("db_reference") == "1 strain"
        same = {name: value for name, value in before.items() if not name.startswith("db_")}
        assert {name: after[name] for name in after if not name.startswith("db_")} == same


def test_arrays_hold_levels_in_strain(archive: Path, tmp_path: Path) -> None:
    extract(archive, tmp_path / "counts", counts(**{"image.format": "npy"}))
    extract(archive, tmp_path / "strain", strain(**{"image.format": "npy"}))
    plain, moved = envelopes(tmp_path / "counts"), envelopes(tmp_path / "strain")
    for key, levels in moved.items():
        assert levels.dtype == np.float32
        np.testing.assert_allclose(levels - plain[key], OFFSET_DB, atol=1e-3)
    assert records(tmp_path / "strain")[0]["db_low"] == pytest.approx(
        min(moved[min(moved)].min(), 0), abs=1e-3
    )


def test_fixed_limits_are_in_the_units_asked_for(archive: Path, tmp_path: Path) -> None:
    low, high = -230.0, -200.0
    extract(archive, tmp_path / "strain", strain(**{"image.scale": f"fixed:{low}:{high}"}))
    extract(
        archive,
        tmp_path / "counts",
        counts(**{"image.scale": f"fixed:{low - OFFSET_DB}:{high - OFFSET_DB}"}),
    )
    record = records(tmp_path / "strain")[0]
    assert (record["db_low"], record["db_high"]) == (low, high)
    plain, moved = images(tmp_path / "counts"), images(tmp_path / "strain")
    assert 0 < np.mean(moved[min(moved)]) < 255
    for key in plain:
        assert np.abs(plain[key].astype(int) - moved[key]).max() <= 1


def test_what_0_db_is_stands_in_run_json_and_on_the_page(archive: Path, tmp_path: Path) -> None:
    for name, recipe, reference in (
        ("counts", counts(), "1e-6 count"),
        ("strain", strain(), "1 strain"),
    ):
        extract(archive, tmp_path / name, recipe)
        assert json.loads((tmp_path / name / "run.json").read_text())["db_reference"] == reference
        page = Path(report(tmp_path / name).page).read_text()
        assert f"the envelope in dB re {reference}" in page
        assert f"level, dB re {reference}" in page


def test_the_values_that_make_strain_are_part_of_the_run(archive: Path, tmp_path: Path) -> None:
    extract(archive, tmp_path / "out", strain())
    assert extract(archive, tmp_path / "out", strain()).finished_before
    with pytest.raises(IdentityError, match=r"strain_per_count: was 2\.02"):
        extract(archive, tmp_path / "out", strain(**{"archive.refractive_index": 1.5}))


def test_strain_without_a_gauge_length_is_refused(archive: Path) -> None:
    with pytest.raises(RecipeError, match=r"gauge length.*Give --gauge-length in metres"):
        prepare(archive, counts(**{"image.units": "strain"}))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"units": "strain"}, "'strain', by attribute units of the group"),
        ({"data_type": "strain_rate"}, "'strain_rate', by attribute data_type of the group"),
        ({"unit": "nanostrain/s"}, "'nanostrain/s'"),
        ({"data_units": "1/s"}, "'1/s'"),
        ({"RawDataUnit": "rad"}, "'rad'"),
        ({"DataUnits": "meter / second"}, "'meter / second'"),
    ],
)
def test_strain_is_not_made_of_what_is_no_count(
    tmp_path: Path, attributes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "a", attributes={"GaugeLength": 10.2, **attributes})
    acquisition = open_archive(path).acquisition
    with pytest.raises(RecipeError, match=r"Leave out --units strain") as caught:
        units.offset_db(acquisition, counts(**{"image.units": "strain"}))
    assert f"its samples are {said}" in str(caught.value)
    (note,) = units.notes(acquisition, counts())
    assert f"samples are {said}" in note


@pytest.mark.parametrize(
    "attributes",
    [{}, {"units": "counts"}, {"RawDataUnit": "rad * 2PI/2^16"}, {"unit": 1}, {"units": "mm"}],
)
def test_counts_under_any_name_become_strain(tmp_path: Path, attributes: dict[str, Any]) -> None:
    path = write(tmp_path / "a", attributes={"GaugeLength": 10.2, **attributes})
    acquisition = open_archive(path).acquisition
    (note,) = units.notes(acquisition, counts(**{"image.units": "strain"}))
    assert "strain, by a gauge length of 10.2 m" in note


def test_samples_called_strain_are_strain(tmp_path: Path) -> None:
    path = write(tmp_path / "a", names=("strain_rate", "time_us"))
    settings = ArchiveSettings(time="time_us", gauge_length_m=10.2)
    with pytest.raises(RecipeError, match="its samples are strain_rate, by their name"):
        units.offset_db(open_archive(path, settings).acquisition, strain())


def test_of_floats_it_is_said_what_they_are_taken_for(tmp_path: Path) -> None:
    samples = random_walk(60, 4000, seed=1).astype(np.float32)
    path = write_archive(tmp_path / "a.zarr", samples, 200.0, (20, 1000))
    _, plan = prepare(path, strain())
    assert any("taken for counts of 2 pi / 2^16 rad" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("attributes", "wavelength_nm"),
    [
        (
            {"GaugeLength": 10.2, "Fibre Refractive Index": 1.47, "Laser Wavelength (nm)": 1550.0},
            1550.0,
        ),
        ({"gauge_length_m": "10.2 m", "refractive_index": [1.47], "wavelength": 1.31e-6}, 1310.0),
        ({"GaugeLength": 10.2, "FiberRefractiveIndex": 1.47, "LaserWavelength": 1.55}, 1550.0),
        ({"GaugeLength": 10.2, "GroupIndex": 1.47}, 1550.12),
    ],
)
def test_attributes_as_interrogators_write_them_are_read(
    tmp_path: Path, attributes: dict[str, Any], wavelength_nm: float
) -> None:
    path = write(tmp_path / "a", attributes=attributes)
    found = open_archive(path).acquisition.optics
    assert found is not None
    assert (found.gauge_length_m, found.refractive_index) == (10.2, 1.47)
    assert found.wavelength_m == pytest.approx(wavelength_nm * 1e-9, rel=1e-12)
    assert found.gauge_length_origin.startswith("attribute ")


def test_the_recipe_wins_over_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", attributes={"GaugeLength": 10.2, "wavelength": 1310})
    settings = ArchiveSettings(gauge_length_m=20.0, refractive_index=1.5, wavelength_m=1.5e-6)
    found = open_archive(path, settings).acquisition.optics
    assert found is not None
    assert (found.gauge_length_m, found.refractive_index, found.wavelength_m) == (20.0, 1.5, 1.5e-6)
    assert found.wavelength_origin == "recipe"


def test_the_command_says_what_strain_is_made_of(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--units", "strain", "--gauge-length", "51.04762", "--bands", "2"]
    assert main(["extract", str(archive), str(out), *options]) == 0
    said = capsys.readouterr().err
    assert "1 count is 2.0230e-13 strain, by a gauge length of 51.0476 m (recipe)" in said
    assert "1550.12 nm (assumed)" in said
