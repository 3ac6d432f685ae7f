"""The page of a run: what it says, and that nothing from outside can make it say or do more."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.cli.options import OutputOptions
from das_gpu.cli.report import page_at_end
from das_gpu.cli.report import report as report_command
from das_gpu.credentials import Credential
from das_gpu.errors import DestinationError, UsageError
from das_gpu.ledger import Ledger
from das_gpu.redaction import register
from das_gpu.render import encode_png
from das_gpu.report import report, sheets
from das_gpu.report.charts import levels_chart, rate_chart
from das_gpu.report.evidence import gather
from das_gpu.report.packing import packed
from das_gpu.report.pictures import grey_image
from das_gpu.report.sessions import Session, rates, read_sessions
from das_gpu.report.sheets import make_sheets
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access
from das_gpu.verify import verify
from tests.archives import random_walk, write_archive
from tests.outputs import lines

CONTAINER = "reported"
HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>'\"{{ 7 * 7 }}"
ONE_ROW = 0.25
"""Minutes of a segment that is one row of tiles."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Four rows of tiles of 120 channels."""
    path = tmp_path_factory.mktemp("recording") / "a.zarr"
    return write_archive(path, random_walk(120, 12_000, 7), 200.0, (120, 3000))


@pytest.fixture(scope="module")
def finished(recording, tmp_path_factory):
    """A finished run of 4 rows by 3 bands, in 4 segments; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    extract(recording, out, recipe(), segment_minutes=ONE_ROW)
    return out


@pytest.fixture
def out(finished, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def recipe(**settings):
    return Recipe().with_settings(
        {"tile.bands": 3, "image.height": 64, "image.width": 64} | settings
    )


class _Elements(HTMLParser):
    """The elements of a page, with the text that is directly in each."""

    def __init__(self):
        super().__init__()
        self.found = []
        self._open = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))
        self._open.append(self.found[-1])

    def handle_data(self, data):
        if self._open:
            self._open[-1][2].append(data)

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass


class Page:
    """A page as a browser would understand it."""

    def __init__(self, out):
        self.source = (out / "report.html").read_text(encoding="utf-8")
        parser = _Elements()
        parser.feed(self.source)
        self.elements = parser.found

    def all(self, tag):
        return [one for one in self.elements if one[0] == tag]

    @property
    def text(self):
        shown = (" ".join(text) for tag, _, text in self.elements if tag not in ("script", "style"))
        return " ".join(" ".join(shown).split())

    @property
    def data(self):
        return json.loads("".join(self.all("script")[0][2]))


def page_of(out, **options):
    report(out, **options)
    return Page(out)


def commands(page):
    """The commands that a page tells to run."""
    return [code for _, _, text in page.all("code") if (code := text[0]).startswith("das-gpu e")]


def change(out, segment, **changes):
    """Change the records of a segment's tiles; give each field one value, or one per tile."""
    path = out / f"segments/{segment:05d}.jsonl"
    rows = lines(path)
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value] * len(rows)
        for row, one in zip(rows, values, strict=True):
            row[name] = one
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lose(out, segment, status, reason):
    """Let a segment's tiles be without images."""
    change(out, segment, status=status, reason=reason, file_name=None, sha256=None)
    change(out, segment, db_low=None, db_high=None)


def set_run(out, **changes):
    path = out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What it says


def test_a_finished_run_is_told_with_what_was_asked_and_done(out, recording):
    page = page_of(out)
    for text in (
        "Finished; everything is delivered",
        "Exit code 0: all delivered",
        "12 of 12 tiles",
        str(recording),
        "2021-11-01 23:11:14 UTC to 2021-11-01 23:12:14 UTC, 1 min 0 s of recording",
        "channels 0 to 119, one in 5",
        "14 to 35 Hz, a Butterworth filter of order 8",
        "grey from percentile 0.5 to 99.5 of each tile; PNG of 8 bits, 64 x 64 pixels",
        json.loads((out / "run.json").read_text())["recipe_digest"],
        "low end (black): median",
        "No quality flag is set on any tile.",
        "No tile has a dead channel.",
    ):
        assert text in page.text, text
    assert page.data["rows"] * page.data["bands"] == 12


def test_its_command_is_the_one_that_continues_the_run(recording, tmp_path, capsys):
    out = tmp_path / "two words"
    settings = {
        "filter.low_hz": 12.5,
        "image.scale": "fixed:120:190",
        "selection.channel_stop": 100,
    }
    extract(recording, out, recipe(**settings), on_missing="fill", segment_minutes=ONE_ROW)
    commands = [
        text for tag, _, text in page_of(out).all("code") if text[0].startswith("das-gpu e")
    ]

    program, *arguments = shlex.split(commands[0][0])

    assert program == "das-gpu"
    assert main(arguments) == 0
    assert "Nothing to do" in capsys.readouterr().err


def test_the_recipe_it_shows_is_the_runs(out):
    page = page_of(out)
    assert page.all("pre")[-1][1]["aria-label"] == "The recipe"
    text = "".join(page.all("code")[-1][2])
    assert Recipe.from_toml(text) == recipe()


def test_losses_are_told_with_their_reasons_grouped_and_how_to_try_again(out):
    reasons = [f"chunk 3.{number} is not there" for number in range(3)]
    lose(out, 1, "missing", reasons)
    lose(out, 2, "gap", "7 samples are not in the recording")
    page = page_of(out)

    assert "Finished; 3 tiles were lost" in page.text
    assert "Exit code 3: finished, with tiles missing" in page.text
    assert "chunk 3.0 is not there (and others like it)" in page.text
    assert "chunk 3.1" not in page.text
    assert "7 samples are not in the recording" in page.text
    assert "3 tiles lie across a gap" in page.text
    assert page.text.index("chunk 3.0") < page.text.index("7 samples"), "the gravest first"
    commands = [
        code for _, _, text in page.all("code") if (code := text[0]).startswith("das-gpu e")
    ]
    assert len(commands) == 2
    assert [reasons[0], False] in page.data["remarks"].values()


def test_a_segment_in_quarantine_is_told_with_its_reason(out):
    ledger = Ledger(LocalSink(out), 4, resumed=True)
    lose(out, 2, "error", "it hung")
    ledger.quarantine(2, "Failed time and again", _records(out, 2))
    page = page_of(out)
    assert "Failed time and again" in page.text
    assert any(command.endswith(" --retry-quarantined") for command in commands(page))


def _records(out, segment):
    from das_gpu.segmentfile import record_of

    return [record_of(row) for row in lines(out / f"segments/{segment:05d}.jsonl")]


def test_a_run_with_segments_to_do_says_so_and_shows_the_rest(out):
    (out / "segments/00003.jsonl").unlink()
    page = page_of(out)
    assert "Not finished: 1 segment is to do" in page.text
    assert "Exit code 10" in page.text
    status = base64.b64decode(page.data["status"])
    assert [page.data["codes"][one] for one in status[-4:]] == ["ok", *["to do"] * 3]


def test_a_run_of_which_nothing_is_done_has_a_page(out):
    for folder in ("segments", "images", "logs"):
        shutil.rmtree(out / folder)
    page = page_of(out)
    assert "Not finished: 4 segments are to do" in page.text
    assert "no log of this run lies with it" in page.text
    assert "No tile has levels yet." in page.text
    assert page.data["files"]["rows"] == [""] * 4


def test_a_run_without_a_tile_has_a_page(out):
    run = json.loads((out / "run.json").read_text())
    run["identity"]["selection"]["rows"] = 0
    run["plan"]["segments"] = 0
    (out / "run.json").write_text(json.dumps(run))
    shutil.rmtree(out / "segments")
    assert "This run has no tiles." in page_of(out).text


def test_a_run_at_work_is_not_disturbed_and_told(out):
    with LocalSink(out).hold("a1"):
        page = page_of(out)
    assert "At work" in page.text
    assert "There is no exit code yet" in page.text


def test_arrays_have_no_contact_sheet_but_all_the_rest(recording, tmp_path):
    out = tmp_path / "out"
    extract(recording, out, recipe(**{"image.format": "npy"}))
    written = report(out)
    page = Page(out)
    assert (written.images, written.thumbnails) == (0, 0)
    assert not [one for one in page.all("section") if one[1].get("id") == "sheet"]
    assert "12 of 12 tiles" in page.text
    assert "low end (black): median" in page.text
    assert "in NumPy arrays of float32" in page.text


def test_dead_channels_and_quality_flags_are_told_by_band_and_by_bit(out):
    change(out, 1, dead_channels=[0, 4, 0], quality=2 + 256)
    page = page_of(out)
    assert "1 tiles have dead channels, 4 in all." in page.text
    assert "GpsStatus, bit 1 3 GpBits, bit 0 3" in page.text
    dead = base64.b64decode(page.data["layers"]["dead"]["data"])
    assert [at for at, one in enumerate(dead) if one] == [4]
    quality = page.data["layers"]["quality"]
    of_tiles = [quality["values"][one - 1] for one in base64.b64decode(quality["data"])]
    assert of_tiles == [0] * 3 + [258] * 3 + [0] * 6


def test_a_tile_that_is_no_tile_of_the_run_is_left_out(out):
    keys = [row["file_name"] for row in lines(out / "metadata.jsonl")]
    change(out, 1, sample_start=[3000, 17, 10**9])
    assert gather(open_sink(out)).tiles.files == [*keys[:4], None, None, *keys[6:]]


# What it must not do


def hostile_run(out):
    """Put markup into every text of a run that anybody may have written."""
    run = json.loads((out / "run.json").read_text())
    run["identity"]["source"]["location"] = HOSTILE
    run["recipe"]["archive"]["data"] = HOSTILE
    run["backend"] = {"kind": HOSTILE, "reason": HOSTILE}
    run["machine"] = run["versions"] = {HOSTILE: HOSTILE}
    run["plan"]["notes"] = [HOSTILE]
    run |= {"created": HOSTILE, "das_gpu": HOSTILE, "continued": [HOSTILE, {HOSTILE: HOSTILE}]}
    (out / "run.json").write_text(json.dumps(run))
    names = [f"images/{HOSTILE}.png", "../../etc/passwd", "javascript:alert(1)"]
    change(out, 0, file_name=names, reason=HOSTILE, start_time=HOSTILE, distance_start_m=HOSTILE)
    lose(out, 1, "error", HOSTILE)
    (out / "quarantine").mkdir()
    (out / "quarantine/00001.json").write_text(json.dumps({"reason": HOSTILE}))
    return out


def test_hostile_texts_stay_text(out):
    page = page_of(hostile_run(out))
    tags = [tag for tag, _, _ in page.elements]
    assert (tags.count("script"), tags.count("style"), tags.count("img")) == (2, 1, 1)
    assert page.text.count("alert(1)") > 10
    assert "{{ 7 * 7 }}" in page.text
    handlers = [name for _, attrs, _ in page.elements for name in attrs if name.startswith("on")]
    assert handlers == []


def test_a_hostile_file_name_is_no_link(out):
    data = page_of(hostile_run(out)).data
    assert [data["files"]["odd"][str(tile)] for tile in range(3)] == [None] * 3


def test_hostile_numbers_do_no_harm(out):
    change(out, 0, db_low=["a", True, 1e300], quality=[-5, 2**70, 3], dead_channels=[-1, 2**70, 0])
    assert page_of(out).data["rows"] == 4


def test_text_that_is_no_text_does_no_harm(out):
    lose(out, 1, "error", "half a letter: \ud800")
    assert "half a letter: ?" in page_of(out).text


def test_secrets_are_not_shown(out):
    register("hunter2hunter2")
    set_run(out, backend={"kind": "cpu", "reason": "hunter2hunter2"})
    lose(out, 1, "error", "GET https://a/b?sv=1&sig=c2VjcmV0 failed")
    source = page_of(out).source
    assert "hunter2" not in source
    assert "c2VjcmV0" not in source
    assert source.count("(secret)") >= 2


def test_the_policy_lets_only_its_own_script_and_style_run(out):
    page = page_of(out)
    policy = next(
        attrs["content"]
        for _, attrs, _ in page.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(one.split(" ", 1) for one in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for name, text in (
        ("script-src", page.all("script")[1][2]),
        ("style-src", page.all("style")[0][2]),
    ):
        digest = base64.b64encode(hashlib.sha256("".join(text).encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_the_page_asks_for_nothing_from_elsewhere(out):
    page = page_of(out)
    addresses = [
        attrs[name] for _, attrs, _ in page.elements for name in ("src", "href") if name in attrs
    ]
    assert {one for one in addresses if not one.startswith("#")} == {"data:,"}
    style = "".join(page.all("style")[0][2])
    assert "url(" not in style
    assert "@import" not in style


def test_links_inside_the_page_lead_somewhere(out):
    lose(out, 1, "missing", "chunk 3.1 is not there")
    page = page_of(out)
    ids = {attrs["id"] for _, attrs, _ in page.elements if "id" in attrs}
    for _, attrs, _ in page.all("a"):
        target = attrs["href"].removeprefix("#")
        assert target in ids or int(target.removeprefix("tile-")) < 12


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(one, other):
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(out, theme):
    style = "".join(page_of(out).all("style")[0][2])
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for paper in ("paper", "panel"):
        for ink in ("ink", "soft", "link", "good", "bad", "open"):
            assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for mark in ("focus", "low", "high"):
        assert _contrast(colours[mark], colours["paper"]) >= 3, mark


# Its place


@pytest.mark.parametrize("content", [None, "{}", '{"identity": {}}'])
def test_a_folder_without_a_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(DestinationError, match=r"run\.json"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("part", "name"), [("selection", "sampling_rate_hz"), ("source", "first_time")]
)
def test_a_run_that_does_not_say_where_its_tiles_lie_is_refused(out, part, name):
    run = json.loads((out / "run.json").read_text())
    run["identity"][part][name] = "no"
    (out / "run.json").write_text(json.dumps(run))
    with pytest.raises(DestinationError, match=r"run\.json"):
        report(out)


def test_stores_that_hold_no_runs_are_refused():
    with pytest.raises(UsageError):
        report("s3://bucket/run")


def test_a_run_in_a_container_gets_its_page_there(azurite, out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_TILES", 0)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    azurite.upload_folder(out, azurite.create_container(CONTAINER), "run")
    access = Access(Credential.parse("connection-string:AZURE_STORAGE_CONNECTION_STRING"))

    written = report(azurite.url(CONTAINER, "run"), access)

    assert written.page.endswith(f"/{CONTAINER}/run/report.html")
    keys = azurite.keys(CONTAINER, "run/report")
    assert len(keys) == 2
    with azurite.service() as service:
        page = service.get_blob_client(CONTAINER, "run/report.html").download_blob().readall()
    assert keys[0] == "run/report.html"
    assert keys[1].removeprefix("run/").encode() in page
    assert written.thumbnails == 12


def test_what_verify_finds_is_the_same_with_a_page(out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_TILES", 0)
    report(out)
    found = verify(out)
    assert (found.foreign, found.extra, found.exit_code) == ((), (), 0)


# The contact sheet


def sheet_files(out):
    return sorted(path.name for path in (out / "report/sprites").glob("*"))


def test_the_thumbnails_of_a_small_run_are_inside_the_page(out):
    written = report(out)
    assert (written.thumbnails, written.sheets_beside) == (12, 0)
    assert not (out / "report").exists()
    sheet = Image.open(io.BytesIO(base64.b64decode(Page(out).data["sheets"]["embedded"]["0"])))
    assert sheet.size == (16 * 80, 80)


def _repaint(out, level, depth=8, size=64):
    """Replace images by even ones, each of its own level."""
    for segment in range(4):
        rows = lines(out / f"segments/{segment:05d}.jsonl")
        shas = []
        for band, row in enumerate(rows):
            value = level(segment * 3 + band) * (1 if depth == 8 else 257)
            pixels = np.full((size, size), value, np.uint8 if depth == 8 else np.uint16)
            data = encode_png(pixels)
            (out / row["file_name"]).write_bytes(data)
            shas.append(hashlib.sha256(data).hexdigest())
        change(out, segment, sha256=shas)


@pytest.mark.parametrize("depth", [8, 16])
def test_each_tile_has_its_own_picture_on_the_sheet(out, depth):
    _repaint(out, lambda tile: 20 * tile, depth)
    data = page_of(out).data["sheets"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["embedded"]["0"]))))
    for tile in range(12):
        down, right = divmod(tile, data["columns"])
        middle = sheet[down * 80 + 40, right * 80 + 40]
        assert abs(int(middle) - 20 * tile) <= 3, tile


def test_sheets_beside_the_page_are_made_again_only_where_images_have_changed(out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_TILES", 0)
    monkeypatch.setattr(sheets, "_TILES", 3)
    first = report(out)
    before = sheet_files(out)
    assert (first.sheets_made, len(before)) == (4, 4)

    assert report(out).sheets_made == 0

    change(out, 2, sha256=["0" * 64] * 3)
    again = report(out)
    after = sheet_files(out)
    assert again.sheets_made == 1
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert [Path(key).name for key in Page(out).data["sheets"]["keys"]] == after


def test_files_beside_the_sheets_that_are_not_the_pages_stay(out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_TILES", 0)
    (out / "report/sprites").mkdir(parents=True)
    (out / "report/sprites/mine.jpg").write_bytes(b"mine")
    (out / "report/sprites/00000-0123456789abcdef.jpg").write_bytes(b"stale")
    report(out)
    assert "mine.jpg" in sheet_files(out)
    assert "00000-0123456789abcdef.jpg" not in sheet_files(out)


def test_sheets_too_big_for_the_page_go_beside_it(out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_BYTES", 10)
    written = report(out)
    assert written.sheets_beside == 1
    assert Page(out).data["sheets"]["embedded"] == {}


def test_without_time_the_thumbnails_are_left_out_and_the_page_says_how_to_get_them(out):
    written = report(out, within_s=-1.0)
    assert (written.left_out, written.thumbnails) == (12, 0)
    assert "12 of 12 images have no thumbnail yet" in Page(out).text
    assert report(out).left_out == 0


def test_an_image_that_cannot_be_read_is_told_and_looked_for_again(out, monkeypatch):
    monkeypatch.setattr(sheets, "EMBEDDED_TILES", 0)
    first, second, third = (row["file_name"] for row in lines(out / "segments/00000.jsonl"))
    good = (out / first).read_bytes()
    (out / first).unlink()
    (out / second).write_bytes(b"no picture")
    (out / third).write_bytes(encode_png(np.zeros((5, 5), np.uint8)))

    written = report(out)

    assert (written.unreadable, written.thumbnails) == (3, 9)
    assert "3 images are not there, or cannot be read" in Page(out).text
    (out / first).write_bytes(good)
    again = report(out)
    assert (again.unreadable, again.sheets_made) == (2, 1)


def test_drawing_tells_how_far_it_is(out):
    told = []
    report(out, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(12, 12)]


def _png(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("write", [encode_png, _png])
def test_a_picture_is_read_as_it_was_written_whoever_wrote_it(write):
    pixels = np.random.default_rng(1).integers(0, 256, (33, 47), dtype=np.uint8)
    assert np.array_equal(np.asarray(grey_image(write(pixels), (47, 33))), pixels)


def test_sixteen_bits_come_to_eight():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.asarray(grey_image(encode_png(pixels), (256, 256))), pixels >> 8)


def test_what_is_no_picture_of_the_size_is_none():
    whole = encode_png(np.zeros((32, 32), np.uint8))
    assert grey_image(whole, (32, 32)) is not None
    for data in (b"", b"\x89PNG", whole[:30], whole[:60], whole.replace(b"IDAT", b"IDOT")):
        assert grey_image(data, (32, 32)) is None
    assert grey_image(whole, (32, 31)) is None


@pytest.mark.slow
def test_a_picture_that_unpacks_to_more_than_its_size_takes_no_memory():
    head = encode_png(np.zeros((32, 32), np.uint8))[:33]
    data = zlib.compress(bytes(10**8))
    bomb = head + len(data).to_bytes(4, "big") + b"IDAT" + data + bytes(8) + b"IEND" + bytes(4)
    grey_image(encode_png(np.ones((2, 2), np.uint16)), (2, 2))  # loads the library
    tracemalloc.start()
    grey_image(bomb, (32, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


# What the script is told


def _names(data):
    """Names of the files, as the page's script puts them together."""
    before, rows = "", []
    for told in data["files"]["rows"]:
        before = told if isinstance(told, str) else before[: told[0]] + told[1]
        rows.append(before)
    names = [data["files"]["above"] + row + band for row in rows for band in data["files"]["bands"]]
    for tile, name in data["files"]["odd"].items():
        names[int(tile)] = name and data["files"]["above"] + name
    return names


@pytest.mark.parametrize("names", ["plain", "notebook"])
def test_the_script_is_told_the_name_of_every_image(recording, tmp_path, names):
    out = tmp_path / "out"
    extract(recording, out, recipe(**{"image.names": names}))
    evidence = gather(open_sink(out))
    data = json.loads(json.dumps(packed(evidence, make_sheets(open_sink(out), evidence, -1.0))))
    assert _names(data) == [row["file_name"] for row in lines(out / "metadata.jsonl")]
    assert data["files"]["odd"] == {}


def test_a_name_that_does_not_fit_its_row_is_told_by_itself(out):
    keys = [row["file_name"] for row in lines(out / "metadata.jsonl")]
    keys[4] = "images/2021-11-01/23/20211101T231100000Z_ch77777.png"
    change(out, 1, file_name=keys[3:6])
    assert _names(page_of(out).data) == keys


def test_times_and_distances_are_the_records_own(out):
    change(out, 2, start_time="2021-11-01T23:30:00.000000Z")
    data = page_of(out).data
    starts = [data["start"] + round(row * data["tileMs"]) + data["late"][row] for row in range(4)]
    assert [one - starts[0] for one in starts] == [0, 15_000, 1_125_166, 45_000]
    assert data["km"] == pytest.approx([0, 0.081676, 0.163352, 0.245028], abs=1e-5)


def test_rows_without_a_record_lie_behind_the_last_one_that_has_one(out):
    change(out, 2, start_time="2021-11-01T23:30:00.000000Z")
    (out / "segments/00003.jsonl").unlink()
    starts = gather(open_sink(out)).start_ms
    assert starts[3] - starts[2] == 15_000


def test_levels_survive_being_told_in_a_byte(out):
    evidence = gather(open_sink(out))
    layer = packed(evidence, make_sheets(open_sink(out), evidence, -1.0))["layers"]["high"]
    steps = np.frombuffer(base64.b64decode(layer["data"]), np.uint8).astype(float)
    levels = layer["least"] + (steps - 1) / 254 * (layer["most"] - layer["least"])
    assert steps.min() >= 1
    assert np.abs(levels - evidence.tiles.high_db).max() <= (layer["most"] - layer["least"]) / 254


# Curves


def test_the_rate_comes_to_the_tiles_that_were_made_and_leaves_pauses_out():
    first = Session(0.0, 10.0, ((5.0, 50), (10.0, 100)))
    later = Session(1000.0, 1020.0, ((1020.0, 20),))
    found, width_s = rates([first, later], 60)
    assert width_s == 10
    assert found == pytest.approx([15, 1, 1])


def test_logs_are_read_and_those_of_a_run_that_was_replaced_are_not(out):
    def log(name, *events):
        entries = [{"time": f"{time}Z", "event": event} | more for time, event, more in events]
        text = "\n".join(json.dumps(entry) for entry in entries)
        (out / "logs" / name).write_text(f"{text}\nno json segment finished\n")

    shutil.rmtree(out / "logs")
    (out / "logs").mkdir()
    for year in (2020, 2022):
        log(
            f"{year}.jsonl",
            (f"{year}-01-01T00:00:00", "run begun", {}),
            (f"{year}-01-01T00:00:04", "segment finished", {"tiles": 8}),
            (f"{year}-01-01T00:00:05", "segment finished", {"tiles": "many"}),
            (f"{year}-01-01T00:00:06", "run stopped: it was told to", {}),
        )
    log("nothing.jsonl", ("2023-01-01T00:00:00", "run begun", {}))
    set_run(out, created="2021-06-01T00:00:00+00:00")
    found = gather(open_sink(out)).sessions
    assert [(one.seconds, one.tiles) for one in found] == [(6.0, 8)]
    assert len(read_sessions(open_sink(out), None)) == 2
    assert "8 tiles made" in page_of(out).text


def test_charts_keep_inside_their_frame():
    low = np.array([140.0, 141.0, np.nan, 150.0], np.float32)
    levels = levels_chart(low, low + 40, "1 strain")
    assert [curve.name for curve in levels.curves] == ["low end (black)", "high end (white)"]
    even = levels_chart(low[:1], low[:1], "1e-6 count")
    for chart in (levels, even, rate_chart(np.array([0.0, 5.0]), 4000.0)):
        for curve in chart.curves:
            points = [tuple(map(float, one.split())) for one in curve.path[1:].split(" L")]
            assert all(chart.left <= x <= chart.right for x, _ in points)
            assert all(chart.top <= y <= chart.bottom for _, y in points)
        assert len(chart.x_ticks) >= 1
    assert levels_chart(low[2:3], low[2:3], "1 count") is None


# The command


def test_the_command_tells_where_the_page_is(out, capsys):
    assert report_command(str(out)) == 0
    shown = capsys.readouterr().out
    assert f"{out}/report.html" in shown
    assert "12 of 12 images" in shown


def test_the_command_has_counts_for_machines(out, capsys):
    assert report_command(str(out), output=OutputOptions(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == f"{out}/report.html"
    assert (found["tiles"], found["images"], found["thumbnails"], found["exit_code"]) == (
        12,
        12,
        12,
        0,
    )


def test_the_end_of_a_run_tells_of_its_page(out, capsys):
    assert page_at_end(str(out), Access()) is not None
    assert f"Page: {out}/report.html." in capsys.readouterr().err


def test_a_run_that_had_nothing_to_do_leaves_its_page_alone(out, capsys):
    page = out / "report.html"
    assert page_at_end(str(out), Access(), changed=False) == str(page)
    page.write_text("mine")
    assert page_at_end(str(out), Access(), changed=False) == str(page)
    assert page.read_text() == "mine"
    assert capsys.readouterr().err.splitlines()[-1] == f"Page: {page}."


def test_a_page_that_is_older_than_a_segment_is_written_anew(out):
    page = out / "report.html"
    page.write_text("mine")
    os.utime(page, (1, 1))
    assert page_at_end(str(out), Access(), changed=False) == str(page)
    assert "<html" in page.read_text()


@pytest.mark.slow
def test_all_that_a_page_needs_is_loaded_while_the_run_is_at_work(out):
    script = (
        "import sys; from das_gpu.cli import main; from das_gpu.cli.report import EarlyPage\n"
        "import threading; EarlyPage().begin()\n"
        "[each.join() for each in threading.enumerate() if each.name == 'das-gpu-page']\n"
        "before = set(sys.modules); assert main(['report', sys.argv[1]]) == 0\n"
        "print(sorted(each for each in set(sys.modules) - before if 'encodings' not in each))"
    )
    command = [sys.executable, "-c", script, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    late = ast.literal_eval(done.stdout.splitlines()[-1])
    assert not [name for name in late if name.split(".")[0] in ("jinja2", "PIL", "tomlkit")]
    assert not [name for name in late if name.startswith("das_gpu.report")]


def test_the_end_of_a_run_tells_how_to_get_what_it_leaves_out(out, capsys, monkeypatch):
    # The package's name `report` is the command; the module is found by its whole name only.
    monkeypatch.setattr(sys.modules["das_gpu.cli.report"], "_PATIENCE_S", -1.0)
    page_at_end(str(out), Access())
    said = capsys.readouterr().err
    assert f"12 thumbnails are left out of it, which take longer: das-gpu report {out}" in said


def test_a_page_that_cannot_be_written_leaves_the_run_as_it_is(out, capsys):
    (out / "report.html").mkdir()
    assert page_at_end(str(out), Access()) is None
    assert "note: The page of this run could not be written: Writing" in capsys.readouterr().err
