"""`das-gpu preview`: a tile step by step, its picture, and the terminal that shows it."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from das_gpu import figure
from das_gpu.cli import inline, main
from das_gpu.cli.inline import protocol
from das_gpu.errors import UsageError
from das_gpu.preview import Preview, aim, look
from das_gpu.recipe import Recipe
from das_gpu.run import extract
from tests.archives import START_NS, clock_us, random_walk, write_archive
from tests.outputs import envelopes, images, records

SMALL: dict[str, Any] = {
    "selection.channel_step": 1,
    "tile.seconds": 5,
    "tile.bands": 3,
    "archive.channel_spacing_m": 2.0,
}
FAR = {"archive.channel_spacing_m": 200.0}
"""Channels span 12 km: the median over them is taken off."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 channels, the 23rd dead, 20 s at 200 Hz, chunks of 20 channels x 5 s."""
    samples = random_walk(60, 4000, seed=1)
    samples[22] = 7
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, samples, 200.0, (20, 1000))


def seen(source: Path, recipe: Recipe, **where: Any) -> Preview:
    return look(aim(source, recipe, **where))


def made(preset: str = "continuous", **settings: Any) -> Recipe:
    return Recipe.load(preset=preset, settings={**SMALL, **settings})


# -- the tile and its steps ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (made(**FAR), ["raw", "band-pass", "common-mode", "envelope"]),
        (made(), ["raw", "band-pass", "envelope"]),
        (made("notebook"), ["raw", "time-median", "band-pass", "envelope"]),
        (made(**FAR, **{"image.format": "png16", "image.orientation": "time-right"}), None),
        (made(**{"selection.channel_step": 4, "selection.channel_reduce": "mean"}), None),
    ],
    ids=["common mode", "none", "notebook", "16 bits", "mean"],
)
def test_the_last_panel_is_the_tile_that_extract_writes(
    archive: Path, tmp_path: Path, recipe: Recipe, names: list[str] | None
) -> None:
    extract(archive, tmp_path / "out", recipe, backend="cpu")
    found = images(tmp_path / "out")
    for row, band in ((0, 0), (1, 1), (3, 2)):
        at = np.datetime64(START_NS + (5 * row + 2) * 10**9, "ns")
        one = seen(archive, recipe, at=str(at), band=band)
        assert one.tile is not None
        place = one.record.sample_start, one.record.channel_start
        assert (one.row, one.band) == (row, band)
        assert np.array_equal(one.tile, found[place])
        (written,) = (
            r for r in records(tmp_path / "out") if r["file_name"] == one.record.file_name
        )
        assert one.record.as_json() == {
            **written,
            "segment": row,
            "reason": written["reason"] or None,
        }
        assert names is None or [step.name for step in one.steps] == names


def test_an_array_is_shown_as_it_is_delivered(archive: Path, tmp_path: Path) -> None:
    recipe = made(**{"image.format": "npy", "image.units": "strain", "archive.gauge_length_m": 10})
    extract(archive, tmp_path / "out", recipe, backend="cpu")
    one = seen(archive, recipe, band=0)
    assert np.array_equal(one.tile, envelopes(tmp_path / "out")[0, 0])
    assert np.allclose(one.steps[-1].values, one.tile, atol=1e-4)
    assert one.steps[-1].unit == "dB re 1 strain"


def test_each_step_is_what_its_name_says(archive: Path) -> None:
    raw, passed, common, envelope = seen(archive, made(**FAR), band=1).steps
    samples = random_walk(60, 4000, seed=1)
    samples[22] = 7
    assert np.array_equal(raw.values, samples[20:40, :1000:2])
    alive = np.arange(20) != 2
    assert np.isnan(passed.values[2]).all()
    assert np.isfinite(passed.values[alive]).all()
    # Nothing is left of the offsets, and what all channels share goes with the common mode.
    assert abs(passed.values[alive].mean()) < 1
    assert common.values[alive].std() < passed.values[alive].std() / 2
    level_db = 20 * np.log10(np.maximum(np.abs(common.values[alive]), 1e-9)) + 120
    assert (level_db <= envelope.values[alive] + 0.1).all()
    assert passed.low == -passed.high
    assert np.mean(np.abs(passed.values[alive]) > passed.high) == pytest.approx(0.01, abs=0.002)


def test_the_notebooks_median_is_each_channel_s_own(archive: Path) -> None:
    raw, centred, *_ = seen(archive, made("notebook"), band=1).steps
    alive = np.arange(20) != 2
    medians = np.median(raw.values, axis=1, keepdims=True)
    assert np.allclose((raw.values - medians)[alive], centred.values[alive])


def test_only_the_chunks_of_the_tile_are_read(archive: Path) -> None:
    alone = aim(archive, made(), band=1, at="2021-11-01T23:11:24")
    assert alone.chunks == look(alone).chunks == 3  # one row of chunks: the core's and the halos'
    # The median over all channels takes them all.
    everyone = aim(archive, made(**FAR), band=1, at="2021-11-01T23:11:24")
    assert everyone.chunks == look(everyone).chunks == 9


def test_without_a_time_or_a_band_it_is_the_first_row_s_middle_tile(archive: Path) -> None:
    one = aim(archive, made())
    assert (one.row, one.band) == (0, 1)


@pytest.mark.parametrize("at", ["2021-11-01T23:11:00", "2021-11-01T23:11:35", "2021-11-02"])
def test_a_time_without_a_tile_is_refused_naming_those_there_are(archive: Path, at: str) -> None:
    with pytest.raises(
        UsageError, match=r"no whole tile at .* run from .*:14\.834Z to .*:34\.829Z"
    ):
        aim(archive, made(), at=at)


def test_a_band_or_a_time_that_makes_no_sense_is_refused(archive: Path) -> None:
    with pytest.raises(UsageError, match="no band 3: of tiles side by side there are 3, 0 to 2"):
        aim(archive, made(), band=3)
    with pytest.raises(UsageError, match=r"time 'noon' to look at must be a date or a time"):
        aim(archive, made(), at="noon")


# -- the picture --------------------------------------------------------------------------------


def words(preview: Preview) -> str:
    """All text of a picture."""
    from matplotlib.text import Text

    texts = (text.get_text() for text in figure._figure(preview).findobj(Text))
    return " ".join(" ".join(texts).split())


@pytest.mark.slow
def test_the_picture_names_source_time_recipe_units_and_limits(archive: Path) -> None:
    one = seen(archive, made(**FAR), band=1)
    text = words(one)
    for expected in (
        str(archive),
        "2021-11-01 23:11:14.834 to 23:11:19.834 UTC",
        "channels 20 to 40, every 1",
        "4.000 to 8.000 km",
        one.plan.recipe.digest[:12],
        "1 Raw",
        "2 Band-pass 14\N{EN DASH}35 Hz",
        "3 Common mode off",
        "4 Envelope",
        "5 Tile, 256 x 256 pixels",
        "distance, km",
        "channel",
        "time on 2021-11-01, UTC",
        "counts",
        "dB re 1e-6 count",
        "dead channels: 1 (red ticks)",
        "status edge: the halo is cut at the record's end",
        f"{one.record.db_low:.2f} to {one.record.db_high:.2f} dB re 1e-6 count",
    ):
        assert expected in text


def test_kilometres_and_channels_agree_along_an_uneven_cable(archive: Path) -> None:
    table = "channel,longitude,latitude,distance_m\n0,1,1,9000\n30,1,1,6000\n60,2,2,0\n"
    one = seen(archive, made(**{"archive.positions": table, "tile.bands": 1}))
    to_km, to_channel = figure._to_km_and_back(one)
    channels = np.array([-5.0, 0, 15, 30, 45, 60, 65])
    assert to_km(channels) == pytest.approx([9.5, 9, 7.5, 6, 3, 0, -1])
    assert to_channel(to_km(channels)) == pytest.approx(channels)


@pytest.mark.parametrize("settings", [{"image.format": "png16"}, {"image.format": "npy"}])
@pytest.mark.slow
def test_the_picture_is_a_png_with_a_panel_for_each_step(
    archive: Path, settings: dict[str, Any]
) -> None:
    picture = np.asarray(Image.open(io.BytesIO(figure.draw(seen(archive, made(**settings))))))
    assert min(picture.shape[:2]) > 700
    grey = (np.ptp(picture, axis=2) == 0) & (picture[..., 0] > 30) & (picture[..., 0] < 220)
    coloured = np.ptp(picture, axis=2) > 60
    # The raw samples, the band-pass and the envelope in colours, the tile in grey.
    assert 0.05 < grey.mean() < 0.3
    assert 0.2 < coloured.mean() < 0.6


def test_what_is_lost_is_told_in_words(archive: Path, tmp_path: Path) -> None:
    samples = random_walk(60, 4000, seed=1)
    times = clock_us(4000, 200.0)
    times[500:] += 2_000_000
    gap = write_archive(tmp_path / "gap.zarr", samples, 200.0, (20, 1000), times_us=times)
    one = seen(gap, made())
    assert (one.record.status, one.tile, one.exit_code) == ("gap", None, 0)
    assert "No image: gap. the time axis jumps at sample 500, inside the tile" in words(one)
    missing = write_archive(tmp_path / "missing.zarr", samples, 200.0, (20, 1000))
    (missing / "RawData" / "1.0").unlink()
    one = seen(missing, made(), band=1)
    assert (one.record.status, one.tile, one.exit_code) == ("missing", None, 3)
    assert "No image: missing." in words(one)
    assert figure.draw(one).startswith(b"\x89PNG")


def test_a_tile_without_a_live_channel_is_drawn(tmp_path: Path) -> None:
    dead = write_archive(
        tmp_path / "dead.zarr", np.full((60, 4000), 7, np.int32), 200.0, (20, 1000)
    )
    one = seen(dead, made())
    assert one.tile is not None
    assert not one.tile.any()
    assert "No channel lives: the tile is black." in words(one)


@pytest.mark.slow
def test_a_hostile_name_stays_text(archive: Path, tmp_path: Path) -> None:
    place = tmp_path / "$\\frac{1}{$ \x1b[31m鯨 sig=c2VjcmV0c2VjcmV0.zarr"
    shutil.copytree(archive, place)
    one = seen(place, made())
    picture = figure.draw(one)
    assert b"c2VjcmV0" not in picture
    assert "\x1b" not in words(one)
    assert "$\\frac{1}{$ ?[31m" in words(one)


# -- the command --------------------------------------------------------------------------------

OPTIONS = ["--tile-seconds", "5", "--channels", "::1", "--bands", "3", "--channel-spacing", "200"]


@pytest.mark.slow
def test_the_command_writes_a_picture_and_says_what_it_shows(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["preview", str(archive), "--at", "2021-11-01T23:11:22", "--band", "2", *OPTIONS]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["picture"] == "preview_20211101T231119834Z_ch00040.png"
    assert (tmp_path / facts["picture"]).read_bytes().startswith(b"\x89PNG")
    assert facts["start_time"] == "2021-11-01T23:11:19.834000Z"
    assert (facts["channel_start"], facts["channel_stop"]) == (40, 60)
    assert (facts["status"], facts["db_reference"], facts["shown"]) == ("ok", "1e-6 count", None)
    assert [step["name"] for step in facts["steps"]][:2] == ["raw", "band-pass"]
    stored = sum(path.stat().st_size for path in (archive / "RawData").glob("[012].[012]"))
    assert (facts["chunks"], facts["stored_bytes"]) == (9, stored)
    assert "Reading 9 chunks, 720 kB decoded." in said.err
    assert main([*command, "-o", "here/steps.png"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^picture +here/steps.png$", shown, re.MULTILINE)
    assert re.search(rf"^read +9 chunks, {stored / 1000:.3g} kB", shown, re.MULTILINE)
    assert (tmp_path / "here" / "steps.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "steps.pdf"], 2, "end it in .png"),
        (["--at", "2031-01-01"], 2, "no whole tile"),
        (["-o", "/dev/null/steps.png"], 6, "/dev/null"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_done_has_its_exit_code(
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["preview", str(archive), *OPTIONS, *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_source_that_is_not_there_is_exit_code_4(tmp_path: Path) -> None:
    assert main(["preview", str(tmp_path / "absent.zarr")]) == 4


def test_without_matplotlib_the_command_says_how_to_get_it(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["preview", str(archive)]) == 2
    assert "pip install 'das-gpu[plot]'" in capsys.readouterr().err


# -- terminals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, None),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "default,1,0"}, None),
        ({"TERM_PROGRAM": "iTerm.app", "TERM": "screen-256color"}, None),
        ({}, None),
    ],
)
def test_terminals_are_known_by_their_environment(
    environment: dict[str, str], way: str | None
) -> None:
    assert protocol(environment) == way


def on_terminal(arguments: list[str], **environment: str) -> str:
    """Run the command with a terminal as its stderr; return what the terminal was sent."""
    names = ("KITTY_WINDOW_ID", "TERM_PROGRAM", "TMUX", "TERM")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "das_gpu", "preview", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=clean | {"COLUMNS": "120", **environment},
    )
    os.close(follower)
    shown = b"".join(_blocks(leader)).decode()
    os.close(leader)
    assert child.wait(timeout=60) == 0, shown
    return shown


def _blocks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(descriptor, 1 << 16)
        except OSError:  # how Linux reports that the other end is closed
            return
        if not block:
            return
        yield block


@pytest.mark.slow
def test_kitty_is_sent_the_picture_in_pieces(archive: Path, tmp_path: Path) -> None:
    file = tmp_path / "steps.png"
    shown = on_terminal([str(archive), *OPTIONS, "-o", str(file)], KITTY_WINDOW_ID="1")
    pieces = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", shown)
    assert pieces[0][0] == "a=T,f=100,q=2,c=120,m=1"
    assert {keys for keys, _ in pieces[1:-1]} == {"m=1"}
    assert pieces[-1][0] == "m=0"
    assert max(len(data) for _, data in pieces) == 4096
    assert base64.b64decode("".join(data for _, data in pieces)) == file.read_bytes()


def sent(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str]:
    """What a terminal is sent of a small picture, and how."""
    for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM", "TMUX", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        way = inline.show(b"a picture", terminal)
        terminal.write("end")
    shown = b"".join(_blocks(leader)).decode()
    os.close(leader)
    return way, shown.removesuffix("end").strip()


def test_iterm2_is_sent_the_picture_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = base64.b64encode(b"a picture").decode()
    keys = "inline=1;size=9;width=100%;preserveAspectRatio=1"
    assert sent({"TERM_PROGRAM": "iTerm.app"}, monkeypatch) == (
        "iterm2",
        f"\x1b]1337;File={keys}:{data}\x07",
    )


def test_a_terminal_that_is_not_known_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent({"TERM": "xterm-256color"}, monkeypatch) == (None, "")


def test_what_is_no_terminal_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    monkeypatch.delenv("TMUX", raising=False)
    stream = io.StringIO()
    assert inline.show(b"a picture", stream) is None
    assert stream.getvalue() == ""


@pytest.mark.slow
def test_who_asks_to_be_shown_is_told_when_that_cannot_be(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "steps.png")
    assert main(["preview", str(archive), *OPTIONS, "-o", file, "--show"]) == 0
    assert "no terminal that is known to show pictures" in capsys.readouterr().err
