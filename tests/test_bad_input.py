"""What goes wrong with archives, recipes and destinations, and what users are told.

An error is one paragraph that names the value and what to do, an exit code, and nothing
half-written. What is merely imperfect in a recording is no error: it is delivered as far as
it goes, and the manifest says what became of each tile.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from das_gpu.cli import main
from tests.archives import clock_us, random_walk, write_archive
from tests.outputs import lines, records

SMALL = ["--set", "tile.bands=2", "--set", "tile.seconds=5"]
N_SAMPLES = 8000
ROWS = 8


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DAS_GPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def samples() -> NDArray[np.int32]:
    """60 channels, 40 s at 200 Hz: tiles of 5 s are columns of chunks."""
    return random_walk(60, N_SAMPLES, seed=3)


@pytest.fixture
def archive(tmp_path: Path, samples: NDArray[np.int32]) -> Path:
    """A sound archive of the test's own, in chunks of 20 channels x 5 s."""
    return write_archive(tmp_path / "archive.zarr", samples, 200.0, (20, 1000))


# --- errors -----------------------------------------------------------------------------

Change = Callable[[Path], None]


def without(*names: str) -> Change:
    """Take variables out of an archive."""

    def change(path: Path) -> None:
        for name in names:
            shutil.rmtree(path / name)
        zarr.consolidate_metadata(str(path))

    return change


def with_attribute(name: str, value: object) -> Change:
    """Give the group an attribute."""

    def change(path: Path) -> None:
        zarr.open_group(str(path), mode="r+", use_consolidated=False).attrs[name] = value
        zarr.consolidate_metadata(str(path))

    return change


def with_data_of_rank_3(path: Path) -> None:
    """Put a cube in the place of the recording."""
    shutil.rmtree(path / "RawData")
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    group.create_array("RawData", shape=(2, 60, N_SAMPLES), dtype="i4", chunks=(1, 20, 1000))
    zarr.consolidate_metadata(str(path))


def emptied(path: Path) -> None:
    """Leave a folder that is no archive."""
    shutil.rmtree(path)
    path.mkdir()
    (path / "notes.txt").write_text("nothing to see")


@dataclass(frozen=True)
class Refusal:
    """A change to a sound archive, options, and what must be answered."""

    code: int
    said: tuple[str, ...]
    options: tuple[str, ...] = ()
    change: Change | None = None


RECORD = ("2021-11-01T23:11:14.834Z", "2021-11-01T23:11:54.829Z")

REFUSALS = {
    "no such path": Refusal(4, ("archive.zarr", "spelling"), change=shutil.rmtree),
    "not a Zarr group": Refusal(4, ("not a Zarr group", "notes.txt"), change=emptied),
    "no data variable": Refusal(4, ("no array", "archive.data"), change=without("RawData")),
    "wrong rank": Refusal(
        4, ("3 dimension", "(2, 60, 8000)", "archive.data"), change=with_data_of_rank_3
    ),
    "no time variable": Refusal(
        4, ("no time variable", "archive.time"), change=without("RawDataTime")
    ),
    "attribute contradicts the time axis": Refusal(
        4, ("sampling_rate", "100 Hz", "200 Hz"), change=with_attribute("sampling_rate", 100)
    ),
    "given rate contradicts the time axis": Refusal(
        2, ("100 Hz", "200 Hz", "Leave it out"), ("--sampling-rate", "100")
    ),
    "no such variable": Refusal(2, ("strain", "RawData"), ("--data", "strain")),
    "empty time range": Refusal(
        2,
        ("must be later", "2021-11-01T23:11:20Z"),
        ("--start", "2021-11-01T23:11:20", "--stop", "2021-11-01T23:11:20"),
    ),
    "times before the record": Refusal(2, RECORD, ("--start", "2021-11-01T22:00")),
    "times after the record": Refusal(2, RECORD, ("--start", "2030-01-01", "--stop", "2030-01-02")),
    "time range shorter than a tile": Refusal(
        2, ("less than one tile", "5 s"), ("--stop", "2021-11-01T23:11:18")
    ),
    "unreadable time": Refusal(2, ("selection.start", "yesterday"), ("--start", "yesterday")),
    "unknown key in the file": Refusal(
        2, ("filter.low", "filter.low_hz"), ("--config", "{folder}/typo.toml")
    ),
    "file that is not TOML": Refusal(
        2, ("broken.toml", "TOML"), ("--config", "{folder}/broken.toml")
    ),
    "no such file": Refusal(2, ("absent.toml",), ("--config", "{folder}/absent.toml")),
    "unknown key on the command line": Refusal(
        2, ("tile.band ", "tile.bands"), ("--set", "tile.band=3")
    ),
    "setting without a value": Refusal(
        2, ("--set tile.bands", "SECTION.KEY=VALUE"), ("--set", "tile.bands")
    ),
    "setting of the wrong type": Refusal(2, ("tile.bands", "many"), ("--set", "tile.bands=many")),
    "band above Nyquist": Refusal(2, ("120", "Nyquist", "100 Hz"), ("--high", "120")),
    "band upside down": Refusal(2, ("40", "35", "less than"), ("--low", "40")),
    "step that aliases": Refusal(2, ("fold", "selection.time_step"), ("--time-step", "10")),
    "channels outside": Refusal(2, ("0:100", "0:60"), ("--channels", "0:100")),
    "channels that descend": Refusal(2, ("'50:10'", "more than"), ("--channels", "50:10")),
    "channels that are no range": Refusal(2, ("'all'", "START:STOP:STEP"), ("--channels", "all")),
    "more bands than channels": Refusal(2, ("13 bands", "12 kept channels"), ("--bands", "13")),
    "image size that is none": Refusal(2, ("'big'", "HEIGHTxWIDTH"), ("--image-size", "big")),
    "image size beyond the limit": Refusal(2, ("9000", "8192"), ("--image-size", "9000x10")),
    "scale that is none": Refusal(2, ("image.scale", "auto"), ("--scale", "auto")),
    "halo longer than the record": Refusal(2, ("halo", "40.000 s", "41"), ("--halo", "41")),
    "preset against the setting": Refusal(
        2, ("halo", "notebook"), ("--preset", "notebook", "--halo", "2")
    ),
    "empty segment": Refusal(2, ("0 minutes",), ("--segment-minutes", "0")),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_with_a_reason_and_nothing_written(
    refusal: Refusal, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "typo.toml").write_text("[filter]\nlow = 10.0\n")
    (tmp_path / "broken.toml").write_text("[filter\n")
    if refusal.change is not None:
        refusal.change(archive)
    options = [text.format(folder=tmp_path) for text in refusal.options]
    before = sorted(path.name for path in tmp_path.iterdir())

    code = main(["extract", str(archive), str(tmp_path / "out"), *SMALL, *options])

    expect_refusal(capsys.readouterr(), code, refusal.code, refusal.said)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def expect_refusal(
    written: pytest.CaptureResult[str], code: int, expected: int, said: tuple[str, ...]
) -> None:
    """One paragraph on stderr that says it all, after the run's notes if it got that far."""
    *notes, message = written.err.rstrip("\n").split("\ndas-gpu: ")
    if not notes:
        assert message.startswith("das-gpu: "), written.err
    assert code == expected, written.err
    assert written.out == ""
    assert "Traceback" not in written.err
    assert "\n" not in message
    for words in said:
        assert words in message


def a_file_stands_there(folder: Path) -> str:
    (folder / "out").write_text("mine")
    return str(folder / "out")


def the_parent_is_a_file(folder: Path) -> str:
    (folder / "parent").write_text("mine")
    return str(folder / "parent" / "out")


def the_system_refuses(_: Path) -> str:
    return "/proc/das-gpu-out"


def a_folder_of_something_else(folder: Path) -> str:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("mine")
    return str(folder / "out")


def a_damaged_run(folder: Path) -> str:
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text("{")
    return str(folder / "out")


def a_cloud_container(_: Path) -> str:
    return "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("destination", "code", "said"),
    [
        (a_file_stands_there, 6, "is a file"),
        (the_parent_is_a_file, 6, "choose another output folder"),
        (the_system_refuses, 6, "/proc/das-gpu-out"),
        (a_folder_of_something_else, 6, "thesis.tex"),
        (a_damaged_run, 6, "run.json"),
        (a_cloud_container, 2, "s3://"),
    ],
)
def test_destination_that_cannot_be_used_is_left_as_it_is(
    destination: Callable[[Path], str],
    code: int,
    said: str,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = destination(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    found = main(["extract", str(archive), out, *SMALL])
    expect_refusal(capsys.readouterr(), found, code, (said,))
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


# --- outcomes ---------------------------------------------------------------------------


def outcome(out: Path) -> list[list[str]]:
    """Statuses as rows x bands."""
    found = [record["status"] for record in records(out)]
    return [found[2 * row : 2 * row + 2] for row in range(len(found) // 2)]


SOUND = [["edge", "edge"], *[["ok", "ok"]] * (ROWS - 2), ["edge", "edge"]]
"""The first and the last tiles of a record have a halo on one side only."""


def extract(source: Path, out: Path, *options: str) -> int:
    return main(["extract", str(source), str(out), *SMALL, *options])


def test_sound_archive_is_delivered_whole(archive: Path, tmp_path: Path) -> None:
    assert extract(archive, tmp_path / "out") == 0
    assert outcome(tmp_path / "out") == SOUND
    assert lines(tmp_path / "out" / "undelivered.jsonl") == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_inf_and_constant_channels_are_dead_and_counted(
    dtype: str, samples: NDArray[np.int32], tmp_path: Path
) -> None:
    """Band 0 holds channels 0, 5, ... 25; each flaw is in the middle of a row of 1,000 samples."""
    flawed = samples.astype(dtype)
    flawed[5] = 7.0
    flawed[10, 2500] = np.nan
    flawed[15, 5500] = np.inf
    flawed[30, 5500] = -np.inf
    source = write_archive(tmp_path / "a.zarr", flawed, 200.0, (20, 1000))
    assert extract(source, tmp_path / "out") == 0
    assert outcome(tmp_path / "out") == SOUND
    dead = {
        (r["sample_start"] // 1000, r["channel_start"]): r["dead_channels"]
        for r in records(tmp_path / "out")
    }
    assert {key: n for key, n in dead.items() if key[1] == 0} == {
        (row, 0): 1 + (row in (2, 5)) for row in range(ROWS)
    }
    assert {row for (row, band), n in dead.items() if band == 30 and n} == {5}


def test_wholly_dead_tile_is_a_black_image(samples: NDArray[np.int32], tmp_path: Path) -> None:
    flawed = samples.copy()
    flawed[:30] = 1_800_000
    source = write_archive(tmp_path / "a.zarr", flawed, 200.0, (20, 1000))
    assert extract(source, tmp_path / "out") == 0
    black = [record for record in records(tmp_path / "out") if record["channel_start"] == 0]
    assert {record["dead_channels"] for record in black} == {6}
    assert {record["db_low"] for record in black} == {None}


def truncated(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-100])


@pytest.mark.parametrize(("harm", "status"), [(Path.unlink, "missing"), (truncated, "corrupt")])
@pytest.mark.slow
def test_lost_chunk_loses_its_tiles_and_cuts_its_neighbours_halos(
    harm: Callable[[Path], None],
    status: str,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Chunk (0, 3) holds channels 0 to 19, so band 0 only, and row 3."""
    chunk = archive / "RawData" / "0.3"
    whole = chunk.read_bytes()
    harm(chunk)
    out = tmp_path / "out"
    assert extract(archive, out) == 3
    expected = [row.copy() for row in SOUND]
    expected[2][0] = expected[4][0] = "edge"
    expected[3][0] = status
    assert outcome(out) == expected
    assert len(list((out / "images").rglob("*.png"))) == 15
    (lost,) = lines(out / "undelivered.jsonl")
    assert (lost["status"], lost["channel_start"], lost["sample_start"]) == (status, 0, 3000)
    assert "0.3" in lost["reason"]
    said = capsys.readouterr().err
    assert f"Not delivered: 1 {status}. The same command tries these again" in said
    assert "undelivered.jsonl" in said

    chunk.write_bytes(whole)
    assert extract(archive, out) == 0
    assert outcome(out) == SOUND
    assert lines(out / "undelivered.jsonl") == []


def test_lost_chunk_stops_a_run_that_must_be_whole(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "RawData" / "0.3").unlink()
    code = extract(archive, tmp_path / "out", "--on-missing", "error")
    expect_refusal(capsys.readouterr(), code, 4, ("0.3",))


def test_lost_chunk_can_count_as_dead_channels(archive: Path, tmp_path: Path) -> None:
    (archive / "RawData" / "0.3").unlink()
    assert extract(archive, tmp_path / "out", "--on-missing", "fill") == 0
    dead = Counter[int]()
    for record in records(tmp_path / "out"):
        if record["channel_start"] == 0:
            dead[record["sample_start"] // 1000] += record["dead_channels"]
    assert dead[3] == 4  # channels 0, 5, 10, 15


@pytest.mark.parametrize(("jump_s", "kind"), [(10, "forward"), (-10, "backward")])
def test_time_axis_that_jumps_makes_a_gap_and_no_failure(
    jump_s: int,
    kind: str,
    samples: NDArray[np.int32],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times_us = clock_us(N_SAMPLES, 200.0)
    times_us[4500:] += jump_s * 1_000_000
    source = write_archive(tmp_path / "a.zarr", samples, 200.0, (20, 1000), times_us=times_us)
    out = tmp_path / "out"
    assert extract(source, out) == 0
    expected = [row.copy() for row in SOUND]
    expected[4] = ["gap", "gap"]
    # The halo reaches 1.9 s beyond a row, the jump is 2.5 s away from the next.
    assert outcome(out) == expected
    assert {record["status"] for record in lines(out / "undelivered.jsonl")} == {"gap"}
    assert "2 tiles lie across a gap in the recording" in capsys.readouterr().err


def test_jump_in_a_halo_only_cuts_the_halo(samples: NDArray[np.int32], tmp_path: Path) -> None:
    times_us = clock_us(N_SAMPLES, 200.0)
    times_us[4900:] += 10_000_000
    source = write_archive(tmp_path / "a.zarr", samples, 200.0, (20, 1000), times_us=times_us)
    assert extract(source, tmp_path / "out") == 0
    expected = [row.copy() for row in SOUND]
    expected[4], expected[5] = ["gap", "gap"], ["edge", "edge"]
    assert outcome(tmp_path / "out") == expected
