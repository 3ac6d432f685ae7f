"""Tables of channel positions: what is read, what lies between, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from das_gpu.archive import open_archive
from das_gpu.errors import IdentityError, RecipeError, UsageError
from das_gpu.positions import MOST_BYTES, canonical, parse, read
from das_gpu.recipe import Recipe
from das_gpu.run import extract, prepare
from tests.archives import random_walk, write_archive
from tests.outputs import records

HEAD = "channel,longitude,latitude,distance_m"
TABLE = f"{HEAD}\n0,-125.0,44.0,100\n20,-125.2,44.4,120\n60,-126.0,44.6,200\n"
SMALL = {"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 3}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 channels, 20 s at 200 Hz."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, random_walk(60, 4000, seed=1), 200.0, (20, 1000))


def recipe(table: str, **settings: object) -> Recipe:
    return Recipe().with_settings({**SMALL, "archive.positions": table, **settings})


# -- the table ----------------------------------------------------------------------------------


def test_between_listed_channels_positions_are_interpolated() -> None:
    table = parse(TABLE)
    for channel, expected in [(0, (-125.0, 44.0, 100)), (10, (-125.1, 44.2, 110))]:
        found = table.longitude(channel), table.latitude(channel), table.distance_m(channel)
        assert found == pytest.approx(expected)
    assert table.longitude(40) == pytest.approx(-125.6)
    # An edge of the last tile lies one channel beyond it: the line goes on.
    assert table.distance_m(61) == pytest.approx(202)


def test_a_cable_may_cross_the_180th_meridian() -> None:
    table = parse("channel,longitude,latitude\n0,179.5,0\n10,-179.5,0\n20,-178.5,0")
    assert table.longitude(2) == pytest.approx(179.7)
    assert table.longitude(5) == pytest.approx(180)
    assert table.longitude(8) == pytest.approx(-179.7)
    assert table.longitude(20) == pytest.approx(-178.5)


def test_without_distances_the_table_says_none() -> None:
    table = parse("channel,longitude,latitude\n0,1,2\n10,2,3")
    assert table.distance_m(5) is None
    assert table.spacing_m is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", "column names"),
        ("channel;longitude;latitude\n0;1;2\n", "column names.*line 1 is 'channel;longitude"),
        ("channel,longitude\n0,1\n", "column names"),
        ("channel,longitude,latitude,latitude\n0,1,2,3\n", "each there once"),
        ("channel,longitude,latitude,distance_km\n0,1,2,3\n", "distance_m; line 1"),
        (f"{HEAD}\n0,1,2,3\n", "at least two channels, and lists 1"),
        (f"{HEAD}\n0,1,2,3\n1,1,2\n", "line 3 has 3"),
        (f"{HEAD}\n# remark\n\n0,1,2,3\n0,1,2,4\n", "ascending order; line 5 has 0 after 0"),
        (f"{HEAD}\n-1,1,2,3\n1,1,2,4\n", "whole numbers as channels; line 2 has '-1'"),
        (f"{HEAD}\n1.5,1,2,3\n2,1,2,4\n", "whole numbers as channels; line 2 has '1.5'"),
        (f"{HEAD}\n1e99,1,2,3\n2,1,2,4\n", "whole numbers as channels; line 2"),
        (f"{HEAD}\n1,west,2,3\n2,1,2,4\n", "from -180 to 360 as longitude; line 2 has 'west'"),
        (f"{HEAD}\n1,1,2,3\n2,1,91,4\n", "from -90 to 90 as latitude; line 3 has '91'"),
        (f"{HEAD}\n1,1,2,nan\n2,1,2,4\n", "numbers as distance_m; line 2 has 'nan'"),
        (f"{HEAD}\n1,1,2,3\n2,1,2,3\n", "one direction; on line 3, 3 m comes after 3 m"),
        (f"{HEAD}\n1,1,2,3\n2,1,2,4\n3,1,2,3.5\n", "on line 4, 3.5 m comes after 4 m"),
        (f'{HEAD}\n1,1,2,"3\n', "CSV; line 2 is not"),
        (f"{HEAD}\n1,1,2,3\n2,\0,2,4\n", r"line 3 (has '\\x00'|is not: line contains NUL)"),
        (f"{HEAD}\n1,1,2,{'9' * 200_000}\n", "CSV; line 2 is not: field larger"),
        ("x" * (MOST_BYTES + 1), f"at most {MOST_BYTES} characters"),
    ],
    ids="",
)
def test_a_broken_table_is_refused_naming_the_line(tmp_path: Path, text: str, limit: str) -> None:
    file = tmp_path / "cable.csv"
    file.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(RecipeError, match=rf"positions file .*cable.csv cannot.*{limit}"):
        read(file)
    with pytest.raises(RecipeError, match=rf"archive.positions is .*: it must .*{limit}"):
        recipe(text)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(RecipeError, match=r"image\.csv is not text in UTF-8"):
        read(tmp_path / "image.csv")
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(RecipeError, match=f"{path.name} cannot be read: .*directory"):
            read(path)


def test_a_file_as_spreadsheets_write_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cable.csv"
    file.write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    assert read(file) == canonical(TABLE)


# -- a run --------------------------------------------------------------------------------------


def test_distances_and_degrees_of_the_table_stand_in_the_manifest(
    archive: Path, tmp_path: Path
) -> None:
    extract(archive, tmp_path / "out", recipe(TABLE))
    first, second, third = records(tmp_path / "out")[:3]
    assert (first["distance_start_m"], first["distance_stop_m"]) == (100, 120)
    assert (third["distance_start_m"], third["distance_stop_m"]) == pytest.approx((160, 200))
    found = [
        second[f"{name}_{end}"] for end in ("start", "stop") for name in ("longitude", "latitude")
    ]
    assert found == pytest.approx([-125.2, 44.4, -125.6, 44.5])
    # Read back by a rerun: the records are sound.
    assert extract(archive, tmp_path / "out", recipe(TABLE)).finished_before


def test_without_distances_the_spacing_gives_them_and_without_a_table_nothing_changes(
    archive: Path, tmp_path: Path
) -> None:
    spaced = "channel,longitude,latitude\n0,-125,44\n59,-126,44.6\n"
    extract(archive, tmp_path / "spaced", recipe(spaced))
    extract(archive, tmp_path / "plain", Recipe().with_settings(SMALL))
    spaced_records, plain = records(tmp_path / "spaced"), records(tmp_path / "plain")
    added = {f"{name}_{end}" for name in ("longitude", "latitude") for end in ("start", "stop")}
    for one, other in zip(spaced_records, plain, strict=True):
        assert {key: value for key, value in one.items() if key not in added} == other
    assert spaced_records[0].keys() - plain[0].keys() == added


def test_a_mean_of_channels_lies_at_its_group_s_middle(archive: Path, tmp_path: Path) -> None:
    means = recipe(TABLE, **{"selection.channel_step": 5, "selection.channel_reduce": "mean"})
    extract(archive, tmp_path / "out", means)
    first = records(tmp_path / "out")[0]
    assert first["distance_start_m"] == pytest.approx(102)
    assert (first["longitude_start"], first["longitude_stop"]) == pytest.approx((-125.02, -125.24))


def test_channels_beyond_the_table_are_named(archive: Path) -> None:
    short = "channel,longitude,latitude\n10,-125,44\n39,-126,44.6\n"
    with pytest.raises(
        UsageError, match=r"of channels 10 to 39, and channels 0 to 9 and 40 to 59 are selected"
    ):
        prepare(archive, recipe(short))
    inside = {"selection.channel_start": 10, "selection.channel_stop": 40}
    assert prepare(archive, recipe(short, **inside))[1].kept_channels == 30


def test_the_common_mode_needs_5_km_of_the_table_s_distances(archive: Path) -> None:
    far = f"{HEAD}\n0,-125,44,0\n59,-126,44.6,5000\n"
    assert prepare(archive, recipe(far))[1].common_mode
    assert not prepare(archive, recipe(TABLE))[1].common_mode


def test_the_table_is_part_of_the_run_and_its_path_is_not(archive: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(TABLE)
    extract(archive, tmp_path / "out", recipe(read(tmp_path / "a.csv")))
    (tmp_path / "a.csv").unlink()
    assert extract(archive, tmp_path / "out", recipe(read(tmp_path / "b.csv"))).finished_before
    moved = TABLE.replace("44.6", "44.7")
    with pytest.raises(IdentityError, match=r"recipe\.archive\.positions"):
        extract(archive, tmp_path / "out", recipe(moved))
    assert "a.csv" not in (tmp_path / "out" / "run.json").read_text()


def test_workers_are_sent_the_table_itself(archive: Path) -> None:
    opened = pickle.loads(pickle.dumps(open_archive(archive, recipe(TABLE).archive)))  # noqa: S301
    assert opened.acquisition.positions == parse(TABLE)


def test_the_lazy_view_has_the_table_s_distances(archive: Path) -> None:
    dataset = open_archive(archive, recipe(TABLE).archive).dataset
    assert dataset.distance.values[[0, 10, 20, 40]] == pytest.approx([100, 110, 120, 160])
