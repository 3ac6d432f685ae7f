"""Whether a run's files are what its records say, and what a repair makes of those that are not."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.credentials import Credential
from das_gpu.errors import DestinationError, DestinationInUseError
from das_gpu.ledger import Ledger
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access
from das_gpu.verify import Fault, verify
from tests.archives import random_walk, write_archive
from tests.outputs import files
from tests.test_ledger import BANDS, HEADER, ROW_SAMPLES, make_record, make_segment

N_SEGMENTS = 3
CONTAINER = "verified"


def image_of(record):
    return record.file_name.encode() * 10


def with_sha(record):
    if record.file_name is None:
        return record
    return dataclasses.replace(record, sha256=hashlib.sha256(image_of(record)).hexdigest())


def plan_of(rows, rows_per_segment=1):
    """Identity and header of a run whose tiles `make_record` makes."""
    selection = {
        "sample_start": 0,
        "sample_step": 2,
        "tile_samples": ROW_SAMPLES // 2,
        "rows": rows,
        "channel_start": 10000,
        "channel_step": 5,
        "band_channels": 750,
        "bands": BANDS,
    }
    segments = -(-rows // rows_per_segment)
    plan = {"tiles": rows * BANDS, "segments": segments, "rows_per_segment": rows_per_segment}
    return {"selection": selection}, HEADER | {"plan": plan}


def open_run(sink, rows=N_SEGMENTS):
    return Ledger.open(sink, *plan_of(rows), n_segments=rows)


def fill(sink, numbers=range(N_SEGMENTS), statuses=("ok",) * BANDS):
    """Finish segments of a run, whole and right."""
    ledger = open_run(sink)
    for number in numbers:
        records = [with_sha(record) for record in make_segment(number, statuses)]
        for record in records:
            if record.file_name:
                sink.put(record.file_name, image_of(record), durable=False)
        ledger.finish_segment(number, records)
    ledger.publish()
    return ledger


@pytest.fixture
def sink(tmp_path):
    """A finished run."""
    sink = LocalSink(tmp_path / "out")
    fill(sink)
    return sink


@pytest.fixture
def out(sink):
    return Path(sink.location)


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def key_of(segment, band=0):
    return make_record(segment, segment, band).file_name


# Finding


def test_a_finished_run_is_right_and_is_not_touched(out):
    before = snapshot(out)

    found = verify(out)

    assert found.exit_code == 0
    assert not found.damaged
    assert (found.images, found.segments, found.to_do) == (12, 3, ())
    assert found.tiles == {"ok": 12}
    assert snapshot(out) == before


def test_progress_counts_the_images_that_were_read(out):
    told = []
    verify(out, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 12) for done in range(13)]


def test_an_image_that_is_gone_and_one_that_has_changed_are_named(out):
    (out / key_of(0)).unlink()
    data = bytearray((out / key_of(1, 2)).read_bytes())
    data[5] ^= 1
    (out / key_of(1, 2)).write_bytes(data)

    found = verify(out)

    assert found.faults == (
        Fault(0, key_of(0), "missing"),
        Fault(1, key_of(1, 2), "torn"),
    )
    assert found.put_back == (0, 1)
    assert found.exit_code == 12


def test_an_image_on_a_bad_sector_is_torn_and_the_others_are_read(out, monkeypatch):
    read = Path.read_bytes

    def fail(path):
        if path == out / key_of(1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert verify(out).faults == (Fault(1, key_of(1), "torn"),)


def test_images_that_may_not_be_read_are_not_called_damaged(out, monkeypatch):
    read = Path.read_bytes

    def fail(path):
        if path.suffix == ".png":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DestinationError, match="Reading"):
        verify(out)


@pytest.mark.parametrize("kept", [0, 1, 300, -1])
def test_a_segment_file_that_is_torn_is_named(out, kept):
    path = out / "segments/00001.jsonl"
    path.write_bytes(path.read_bytes()[:kept])

    found = verify(out)

    assert found.faults == (Fault(1, "segments/00001.jsonl", "torn"),)
    assert found.exit_code == 12
    assert found.tiles == {"ok": 8}


def rewritten(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[0]],
        lambda rows: [row | {"sample_start": row["sample_start"] + 1} for row in rows],
        lambda rows: [row | {"channel_start": row["channel_start"] + 5} for row in rows],
        lambda rows: [rows[0] | {"file_name": "images/../../secret.png"}, *rows[1:]],
        lambda rows: [rows[0] | {"file_name": rows[1]["file_name"]}, *rows[1:]],
    ],
)
def test_a_segment_whose_tiles_are_not_the_plans_is_named(out, change):
    rewritten(out / "segments/00002.jsonl", change)
    found = verify(out)
    assert Fault(2, "segments/00002.jsonl", "misplaced") in found.faults
    assert found.put_back == (2,)


def test_the_last_segment_may_be_shorter(tmp_path):
    sink = LocalSink(tmp_path)
    ledger = Ledger.open(sink, *plan_of(3, rows_per_segment=2), n_segments=2)
    for segment, rows in enumerate([(0, 1), (2,)]):
        gaps = [make_record(segment, row, band, "gap") for row in rows for band in range(BANDS)]
        ledger.finish_segment(segment, gaps)
    ledger.publish()
    assert verify(tmp_path).exit_code == 0


def test_segments_to_do_are_no_damage_and_neither_is_what_a_kill_leaves(tmp_path):
    sink = LocalSink(tmp_path)
    fill(sink, [0, 2])
    sink.put(key_of(1), b"image of a segment that was not finished")
    fill(sink, [])
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "images/.~das-gpu-1-ab-0").write_bytes(b"half")

    found = verify(tmp_path)

    assert found.to_do == (1,)
    assert found.extra == ("images/.~das-gpu-1-ab-0", key_of(1))
    assert found.manifests == ("metadata.jsonl",)
    assert not found.damaged
    assert found.exit_code == 10


@pytest.mark.parametrize(
    ("status", "code"), [("gap", 0), ("edge", 0), ("missing", 3), ("corrupt", 3), ("error", 3)]
)
def test_tiles_that_were_lost_are_said_and_a_gap_is_a_fact(tmp_path, status, code):
    fill(LocalSink(tmp_path), statuses=["ok", status, "ok", "ok"])
    found = verify(tmp_path)
    assert found.exit_code == code
    assert found.tiles == {"ok": 9, status: 3}


@pytest.mark.parametrize("name", ["metadata.jsonl", "undelivered.jsonl"])
@pytest.mark.parametrize("change", ["gone", "a line less", "a line more"])
def test_a_manifest_that_says_something_else_than_the_segments_is_damage(tmp_path, name, change):
    fill(LocalSink(tmp_path), statuses=["ok", "gap", "ok", "gap"])
    path = tmp_path / name
    lines = path.read_text().splitlines(keepends=True)
    if change == "gone":
        path.unlink()
    else:
        path.write_text("".join(lines[1:] if change == "a line less" else [*lines, lines[0]]))

    found = verify(tmp_path)

    assert found.manifests == (name,)
    assert found.faults == ()
    assert found.exit_code == 12


def test_files_nobody_vouches_for_are_extra_and_foreign_ones_are_named_apart(out):
    stray = make_record(9, 9, 0).file_name
    (out / stray).parent.mkdir(parents=True, exist_ok=True)
    for name in (stray, "segments/00003.jsonl", "images/cat.png", "notes.txt"):
        (out / name).write_text("something")
    for name in ("logs/20260101T000000000Z.jsonl", "report.html", "state.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("the run's own")

    with LocalSink(out).open_writer("images/2021-11-01/a.png"):
        found = verify(out)

    leftover = [key for key in found.extra if ".~" in key]
    assert len(leftover) == 1
    assert leftover[0].startswith("images/2021-11-01/")
    assert set(found.extra) == {stray, "segments/00003.jsonl", *leftover}
    assert found.foreign == ("images/cat.png", "notes.txt")
    assert found.exit_code == 12


def test_while_a_run_is_at_work_only_what_it_has_finished_is_looked_at(tmp_path):
    sink = LocalSink(tmp_path)
    fill(sink, [0, 1])
    with sink.hold("run"):
        sink.put(key_of(2), b"just made")
        (tmp_path / "metadata.jsonl").unlink()
        (tmp_path / key_of(1)).unlink()
        found = verify(tmp_path)
        with pytest.raises(DestinationInUseError):
            verify(tmp_path, repair=True)

    assert found.holder is not None
    assert found.holder.process == os.getpid()
    assert (found.extra, found.manifests) == ((), ())
    assert found.faults == (Fault(1, key_of(1), "missing"),)


def test_a_run_at_work_is_not_finished(out):
    with LocalSink(out).hold("run"):
        assert verify(out).exit_code == 10
    assert verify(out).exit_code == 0


def test_a_segment_that_is_made_again_meanwhile_is_not_called_damaged(out, monkeypatch):
    """Between the reading of its record and of its image."""
    get = LocalSink.get
    changed = []

    def late(sink, key):
        if key == key_of(1) and not changed:
            changed.append(key)
            records = [with_sha(each) for each in make_segment(1, ["gap", "ok", "ok", "ok"])]
            open_run(LocalSink(out)).finish_segment(1, records)
        return get(sink, key)

    monkeypatch.setattr(LocalSink, "get", late)
    found = verify(out)
    assert changed
    assert not (out / key_of(1)).exists()
    assert found.faults == ()


@pytest.mark.parametrize("content", [None, "{}", '{"identity": {}}', '{"identity": {}, "plan": 3}'])
def test_a_folder_without_a_run_or_with_another_versions_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(DestinationError, match=r"run\.json") as caught:
        verify(tmp_path)
    with pytest.raises(DestinationError):
        verify(tmp_path, repair=True)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["run.json"])


# Repairing


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """60 channels, 20 s at 200 Hz."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, random_walk(60, 4000, seed=1), 200.0, (20, 1000))


@pytest.fixture(scope="module")
def finish(recording):
    """The command that begins a run of four segments, and continues it."""
    recipe = Recipe().with_settings({"tile.bands": 2, "tile.seconds": 5})

    def finish(out, **options):
        return extract(recording, out, recipe, segment_minutes=5 / 60, **options)

    return finish


@pytest.fixture(scope="module")
def undisturbed(finish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(folder).exit_code == 0
    return folder


def test_what_extract_has_written_is_right(undisturbed):
    found = verify(undisturbed)
    assert found.exit_code == 0
    assert (found.segments, found.images) == (4, 8)


def test_the_same_command_finishes_what_was_repaired_bit_for_bit(undisturbed, finish, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    images = sorted((out / "images").rglob("*.png"))
    images[0].unlink()
    images[2].write_bytes(images[2].read_bytes()[:-1])
    (out / "segments/00002.jsonl").write_bytes(b"")
    (out / "undelivered.jsonl").unlink()
    stray = out / make_record(9, 900, 0).file_name
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text("stray")
    (out / "quarantine").mkdir()
    (out / "quarantine/.~das-gpu-1-ab-0").write_bytes(b"half")
    (out / "labels.csv").write_text("precious")
    untouched = (out / "segments/00003.jsonl").stat().st_mtime_ns

    found = verify(out, repair=True)

    assert found.repaired
    assert found.exit_code == 10
    assert found.to_do == found.put_back == (0, 1, 2)
    again = verify(out)
    assert (again.exit_code, again.faults, again.manifests) == (10, (), ())
    assert finish(out).exit_code == 0
    assert (out / "labels.csv").read_text() == "precious"
    (out / "labels.csv").unlink()
    assert files(out) == files(undisturbed)
    assert verify(out).exit_code == 0
    assert (out / "segments/00003.jsonl").stat().st_mtime_ns == untouched


def test_a_repair_of_a_right_run_changes_nothing(out):
    before = {path: time for path, time in snapshot(out).items() if path.is_file()}
    found = verify(out, repair=True)
    assert (found.repaired, found.exit_code) == (False, 0)
    assert {path: time for path, time in snapshot(out).items() if path.is_file()} == before


def test_a_repair_of_manifests_and_strays_leaves_nothing_to_do(out):
    (out / "metadata.jsonl").write_text("")
    stray = make_record(9, 9, 0).file_name
    (out / stray).write_text("stray")

    found = verify(out, repair=True)

    assert (found.repaired, found.exit_code, found.to_do) == (True, 0, ())
    assert verify(out).exit_code == 0
    assert not (out / stray).exists()


@pytest.mark.slow
def test_in_a_container_too(azurite, finish, undisturbed, monkeypatch, tmp_path):
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    azurite.create_container(CONTAINER)
    owner = Access(Credential("connection-string", "CONNECTION"))
    out = azurite.url(CONTAINER, "run")
    assert finish(out, out_access=owner).exit_code == 0
    assert verify(out, owner).exit_code == 0
    sink = open_sink(out, owner)
    first, second, *_ = sink.list("images/")
    sink.delete(first)
    sink.put(second, b"torn")
    sink.put("images/labels.csv", b"precious")

    found = verify(out, owner, repair=True)

    assert {(fault.key, fault.found) for fault in found.faults} == {
        (first, "missing"),
        (second, "torn"),
    }
    assert found.exit_code == 10
    assert sink.holder() is None
    assert finish(out, out_access=owner).exit_code == 0
    assert verify(out, owner).foreign == ("images/labels.csv",)
    for key in ("metadata.jsonl", first, second):
        assert sink.get(key) == (undisturbed / key).read_bytes()


# Size


def test_memory_does_not_grow_with_the_size_of_the_manifest(tmp_path):
    """Per tile the name of its image at most, and not its line."""
    peaks = []
    for rows in (10, 80):
        folder = tmp_path / str(rows)
        ledger = open_run(LocalSink(folder), rows)
        for row in range(rows):
            gaps = [make_record(row, row, band, "gap", reason="x" * 500) for band in range(BANDS)]
            ledger.finish_segment(row, gaps)
        size = (folder / "segments/00000.jsonl").stat().st_size * rows
        tracemalloc.start()
        verify(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < size / 10


# The command


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(each) for each in arguments])
    written = capsys.readouterr()
    return code, written.out, written.err


def test_the_command_names_what_it_found_and_what_to_do(out, capsys):
    code, told, _ = run(capsys, "verify", out)
    assert code == 0
    assert "12 read in" in told

    (out / key_of(0)).unlink()
    (out / "notes.txt").write_text("precious")
    code, told, _ = run(capsys, "verify", out)
    assert code == 12
    assert f"missing   {key_of(0)}" in told
    assert "foreign   notes.txt" in told
    assert "--repair" in told

    code, told, _ = run(capsys, "verify", out, "--repair")
    assert code == 10
    assert "1 segment is to do again; the command that began the run" in told

    code, told, _ = run(capsys, "verify", out)
    assert code == 10
    assert "1 segment is to do" in told


def test_the_command_answers_machines(out, capsys):
    for band in range(BANDS):
        (out / key_of(0, band)).unlink()
    code, told, _ = run(capsys, "verify", out, "--json")
    facts = json.loads(told)
    assert code == facts["exit_code"] == 12
    assert facts["faults"] == [
        {"segment": 0, "key": key_of(0, band), "found": "missing"} for band in range(BANDS)
    ]
    assert facts["put_back"] == [0]


def test_many_files_are_counted_where_people_read(out, capsys):
    for number in range(13):
        (out / f"notes{number:02d}.txt").write_text("precious")
    _, told, _ = run(capsys, "verify", out)
    assert "notes09.txt" in told
    assert "notes10.txt" not in told
    assert "and 3 more" in told


def test_a_repair_beside_a_run_is_refused_with_its_own_exit_code(out, capsys):
    with LocalSink(out).hold("run"):
        code, _, said = run(capsys, "verify", out, "--repair")
    assert code == 11
    assert f"process {os.getpid()}" in said


def test_no_run_no_verdict(tmp_path, capsys):
    code, _, said = run(capsys, "verify", tmp_path)
    assert code == 6
    assert "There is no run in" in said


@pytest.mark.slow
def test_a_terminal_shows_rate_and_time_left(out):
    driver, terminal = pty.openpty()
    command = [sys.executable, "-m", "das_gpu", "verify", str(out)]
    with os.fdopen(driver, "rb", buffering=0) as screen:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=60)
        os.close(terminal)
        shown = b""
        try:
            while piece := screen.read(1 << 16):
                shown += piece
        except OSError:
            # Linux's word for the end of a terminal.
            pass
    assert answer.returncode == 0
    assert b"12/12 images" in shown
    assert b"images/s" in shown
