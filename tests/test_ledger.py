"""What is done, what is still to do, and the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from das_gpu import render
from das_gpu.errors import DestinationError, IdentityError
from das_gpu.ledger import Ledger, read_identity
from das_gpu.model import Status, TileRecord
from das_gpu.sink import LocalSink

IDENTITY = {
    "recipe": "ab12",
    "algorithm": 1,
    "selection": {"channels": [10000, 47500, 5], "samples": [0, 6000]},
    "source": {"location": "/data/a.zarr", "shape": [47500, 6000], "codec": "blosc"},
}
HEADER = {
    "versions": {"numpy": "2.4.6", "zarr": "3.1.6"},
    "machine": {"cores": 2},
    "created": "2026-01-01T00:00:00+00:00",
}
FIRST_NS = 1635808274834000000
SAMPLE_NS = 5_000_000
BANDS = 4
ROW_SAMPLES = 3000


def make_record(segment, row, band, status=Status.OK, **changes):
    """A tile as a run would record it."""
    status = Status(status)
    start_ns = FIRST_NS + row * ROW_SAMPLES * SAMPLE_NS
    channel = 10000 + band * 3750
    key = render.file_name(
        "plain", start_ns=start_ns, channel=channel, distance_m=channel * 2.0419, suffix="png"
    )
    fields = {
        "file_name": key if status.delivered else None,
        "status": status.value,
        "segment": segment,
        "start_time": render.iso_utc(start_ns),
        "end_time": render.iso_utc(start_ns + ROW_SAMPLES * SAMPLE_NS),
        "channel_start": channel,
        "channel_stop": channel + 3750,
        "channel_step": 5,
        "sample_start": row * ROW_SAMPLES,
        "sample_stop": (row + 1) * ROW_SAMPLES,
        "sample_step": 2,
        "distance_start_m": channel * 2.0419,
        "distance_stop_m": (channel + 3750) * 2.0419,
        "db_low": 150.25 if status.delivered else None,
        "db_high": 188.5 if status.delivered else None,
        "dead_channels": 0,
        "quality": 3,
        "sha256": hashlib.sha256(b"image").hexdigest() if status.delivered else None,
        "split_key": render.split_key(start_ns),
        "reason": None if status is Status.OK else f"because it is {status.value}",
    }
    return TileRecord(**fields | changes)


def make_segment(segment, statuses=("ok",) * BANDS):
    """One row of tiles, one segment."""
    return [make_record(segment, segment, band, status) for band, status in enumerate(statuses)]


def open_ledger(folder, *, identity=IDENTITY, header=HEADER, n_segments=3, **options):
    return Ledger.open(LocalSink(folder), identity, header, n_segments=n_segments, **options)


def put_images(folder, records):
    for record in records:
        if record.file_name is not None:
            LocalSink(folder).put(record.file_name, b"image", durable=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


# Starting and continuing


def test_a_new_run_says_what_it_is(tmp_path):
    ledger = open_ledger(tmp_path / "out")

    run = json.loads((tmp_path / "out/run.json").read_text())
    assert list(run)[:2] == ["das_gpu", "identity"]
    assert run["identity"] == IDENTITY
    assert run["created"] == HEADER["created"]
    assert not ledger.resumed
    assert ledger.pending() == [0, 1, 2]
    assert read_identity(LocalSink(tmp_path / "out")) == IDENTITY


def test_a_folder_without_a_run_has_no_identity(tmp_path):
    assert read_identity(LocalSink(tmp_path / "out")) is None
    assert not (tmp_path / "out").exists()


def test_the_same_run_continues_with_what_is_missing(tmp_path):
    open_ledger(tmp_path).finish_segment(1, make_segment(1))
    before = (tmp_path / "run.json").read_bytes()

    # A tuple and 6000.0 are what a caller may have where JSON gives a list and 6000.
    same = IDENTITY | {"selection": {"channels": (10000, 47500, 5), "samples": (0, 6000.0)}}
    later = HEADER | {"created": "2026-02-02T00:00:00+00:00"}
    ledger = open_ledger(tmp_path, identity=same, header=later)

    assert ledger.resumed
    assert ledger.warnings == ()
    assert ledger.done(1)
    assert not ledger.done(0)
    assert ledger.pending() == [0, 2]
    assert (tmp_path / "run.json").read_bytes() == before


def test_another_run_is_refused_with_every_difference_named(tmp_path):
    open_ledger(tmp_path).finish_segment(0, make_segment(0))
    before = files(tmp_path)
    other = {
        "recipe": "cd34",
        "algorithm": 1,
        "selection": {"channels": [10000, 47500, 10], "samples": [0, 6000]},
        "source": {"location": "/data/a.zarr", "shape": [47500, 6000], "etag": None},
    }

    with pytest.raises(IdentityError) as caught:
        open_ledger(tmp_path, identity=other)

    message = str(caught.value)
    for difference in (
        'recipe: was "ab12", is "cd34"',
        "selection.channels: was [10000, 47500, 5], is [10000, 47500, 10]",
        'source.codec: was "blosc", is absent',
        "source.etag: was absent, is null",
    ):
        assert difference in message
    assert "algorithm" not in message
    assert "--overwrite" in message
    assert files(tmp_path) == before


def test_other_versions_are_noted_once_and_warned_about(tmp_path):
    open_ledger(tmp_path)
    header = HEADER | {"versions": {"numpy": "2.5.0", "zarr": "3.1.6"}}

    first = open_ledger(tmp_path, header=header)
    second = open_ledger(tmp_path, header=header)
    third = open_ledger(tmp_path)

    assert len(first.warnings) == 1
    assert 'versions.numpy "2.4.6"' in first.warnings[0]
    assert '"2.5.0"' in first.warnings[0]
    assert second.warnings == ()
    assert '"2.5.0" and continues with "2.4.6"' in third.warnings[0]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["versions"] == HEADER["versions"]
    assert run["continued"] == [
        {"versions": {"numpy": "2.5.0", "zarr": "3.1.6"}},
        {"versions": HEADER["versions"]},
    ]


@pytest.mark.parametrize("name", ["notes.txt", "images/cat.png", ".hidden"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")

    with pytest.raises(DestinationError, match="holds something else") as caught:
        open_ledger(tmp_path, overwrite=overwrite)

    assert name in str(caught.value)
    assert files(tmp_path) == [name]


@pytest.mark.parametrize(
    "content", ["", '{"das_gpu": "0.1', "[1, 2]", "{}", '{"identity": 3}', "null", "\ud800"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_or_foreign_run_json_is_left_alone(tmp_path, content, overwrite):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogatepass"))

    with pytest.raises(DestinationError, match="damaged"):
        open_ledger(tmp_path, overwrite=overwrite)
    with pytest.raises(DestinationError, match="damaged"):
        read_identity(LocalSink(tmp_path))

    assert files(tmp_path) == ["run.json"]


def test_a_stray_of_a_run_killed_at_its_very_start_does_not_occupy_the_folder(tmp_path):
    (tmp_path / ".~das-gpu-1-ab-0").write_bytes(b"half")

    open_ledger(tmp_path)

    assert files(tmp_path) == ["run.json"]


@pytest.mark.parametrize("logs", [1, 150])
def test_the_log_of_a_run_that_came_to_nothing_does_not_occupy_the_folder(
    tmp_path, logs, monkeypatch
):
    everything = LocalSink.list
    # Which keys a limit leaves is the system's choice: let it be the unlucky one.
    monkeypatch.setattr(
        LocalSink, "list", lambda sink, prefix="", limit=None: everything(sink, prefix)[:limit]
    )
    for number in range(logs):
        LocalSink(tmp_path).put(f"logs/{number}.jsonl", b"", durable=False)
    LocalSink(tmp_path).put("state.json", b"{}")

    (tmp_path / "zebra.txt").write_text("precious")
    with pytest.raises(DestinationError, match=r"there is zebra\.txt\. Choose"):
        open_ledger(tmp_path)

    (tmp_path / "zebra.txt").unlink()
    assert open_ledger(tmp_path).pending() == [0, 1, 2]


# Starting over


def fill(folder):
    """A finished run with foreign files in it; returns the foreign ones."""
    ledger = open_ledger(folder)
    for segment in range(3):
        records = make_segment(segment)
        put_images(folder, records)
        ledger.finish_segment(segment, records)
    ledger.publish()
    notebook = render.file_name(
        "notebook", start_ns=FIRST_NS, channel=1, distance_m=2.0419e-5, suffix="npy"
    )
    LocalSink(folder).put(notebook, b"image")
    LocalSink(folder).put("report.html", b"<html>")
    LocalSink(folder).put("state.json", b"{}")
    ledger.quarantine(2, "killed its worker", make_segment(2, ["error"] * BANDS))
    foreign = [
        "logs/20260101T000000000Z.jsonl",
        "README.txt",
        "images/labels.csv",
        "images/2021-11-01/23/cat.png",
        "segments/x.txt",
    ]
    for name in foreign:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("precious")
    return foreign


def test_overwrite_deletes_the_earlier_run_and_nothing_else(tmp_path):
    foreign = fill(tmp_path)

    ledger = open_ledger(tmp_path, identity={"recipe": "other"}, overwrite=True)

    assert files(tmp_path) == sorted([*foreign, "run.json"])
    assert read_identity(LocalSink(tmp_path)) == {"recipe": "other"}
    assert not ledger.resumed
    assert ledger.pending() == [0, 1, 2]


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledSink(LocalSink):
    """A sink whose process dies at its n-th change."""

    def __init__(self, root, changes):
        super().__init__(root)
        self.changes = changes
        self.lock = threading.Lock()

    def _change(self):
        with self.lock:
            if self.changes == 0:
                raise Killed
            self.changes -= 1

    def put(self, key, data, *, durable=True):
        self._change()
        super().put(key, data, durable=durable)

    def delete(self, key):
        self._change()
        super().delete(key)


@pytest.mark.slow
def test_a_kill_while_starting_over_leaves_no_false_claim(tmp_path):
    """Whatever is declared done has its images, and the two runs never mix."""
    for changes in range(0, 60, 2):
        folder = tmp_path / str(changes)
        foreign = fill(folder)
        sink = KilledSink(folder, changes)
        try:
            Ledger.open(sink, {"recipe": "other"}, HEADER, overwrite=True, n_segments=3)
        except Killed:
            assert read_identity(LocalSink(folder)) == IDENTITY
        else:
            assert read_identity(LocalSink(folder)) == {"recipe": "other"}
            break
        ledger = open_ledger(folder)
        for segment in set(range(3)) - set(ledger.pending()):
            assert all((folder / record.file_name).exists() for record in make_segment(segment))
        again = open_ledger(folder, identity={"recipe": "other"}, overwrite=True)
        assert again.pending() == [0, 1, 2]
        assert files(folder) == sorted([*foreign, "run.json"])
    assert changes > 15, "the kills have not gone through all deletions"


# Segments


def test_segments_with_lost_tiles_are_tried_again_and_gaps_are_not(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=6)
    for segment, status in enumerate(["ok", "gap", "missing", "corrupt", "error"]):
        ledger.finish_segment(segment, make_segment(segment, ["ok", status]))

    assert ledger.pending() == [2, 3, 4, 5]
    assert ledger.pending(["error"]) == [4, 5]
    assert ledger.pending(retry_statuses=()) == [5]
    assert all(ledger.done(segment) for segment in range(5))


def torn_versions(whole):
    first = whole.index(b"\n") + 1
    row = json.loads(whole[:first])
    yield b""
    yield whole[: len(whole) // 2 + 10]
    yield whole[:-1]
    yield whole[:first] + b"\0" * 100
    yield whole[first:].replace(b'"segment": 0', b'"segment": 1')
    yield whole[: first - 1] + b"," + whole[:first]
    yield b"[]\n"
    yield b"\xff\xfe\n"
    for change in (
        {"status": "fine"},
        {"status": ["ok"]},
        {"sample_start": None},
        {"file_name": None},
        {"extra": 1},
    ):
        yield json.dumps(row | change).encode() + b"\n"


def test_a_torn_or_foreign_segment_file_counts_as_not_done(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=1)
    ledger.finish_segment(0, make_segment(0))
    path = tmp_path / "segments/00000.jsonl"
    whole = path.read_bytes()
    assert ledger.done(0)

    for torn in torn_versions(whole):
        path.write_bytes(torn)
        assert not ledger.done(0), torn
        assert ledger.pending() == [0]
        assert ledger.publish().segments == 0

    path.write_bytes(whole)
    assert ledger.done(0)


@pytest.mark.parametrize(
    "records",
    [
        [],
        make_segment(1),
        [make_record(0, 0, 0, file_name=None)],
        [make_record(0, 0, 0, "gap", file_name="images/x.png")],
        [dataclasses.replace(make_record(0, 0, 0), status="fine")],
        [make_record(0, 0, 0, db_low=float("-inf"))],
    ],
)
def test_records_that_could_not_be_read_back_are_refused(tmp_path, records):
    ledger = open_ledger(tmp_path)
    with pytest.raises(ValueError, match=r"segment 0|JSON compliant"):
        ledger.finish_segment(0, records)
    assert files(tmp_path) == ["run.json"]


def test_images_are_safe_before_the_segment_vouches_for_them(tmp_path, monkeypatch):
    order = []
    force, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        force(descriptor)

    def record_replace(path, target):
        order.append(f"-> {Path(target).name}")
        return replace(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux's /proc")
    sink = LocalSink(tmp_path)
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=1)
    record = make_record(0, 0, 0)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)

    sink.put(record.file_name, b"image", durable=False)
    ledger.finish_segment(0, [record])

    image = Path(record.file_name).name
    assert order.index(f"-> {image}") < order.index(image) < order.index("-> 00000.jsonl")
    assert order[-1] in ("segments", tmp_path.name)


def test_a_better_attempt_replaces_the_worse_and_removes_what_it_no_longer_delivers(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=1)
    earlier = make_segment(0, ["ok", "edge", "missing", "ok"])
    put_images(tmp_path, earlier)
    ledger.finish_segment(0, earlier)
    assert ledger.pending() == [0]

    later = make_segment(0, ["ok", "gap", "ok", "ok"])
    put_images(tmp_path, later)
    ledger.finish_segment(0, later)

    assert ledger.pending() == []
    assert files(tmp_path / "images") == sorted(
        record.file_name.removeprefix("images/") for record in later if record.file_name
    )


def test_a_manifest_changed_by_hand_makes_nothing_foreign_deleted(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=1)
    for name in ("run.json", "images/../run.json", "images/mine.png"):
        ledger.finish_segment(0, [make_record(0, 0, 0, file_name=name)])
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images/mine.png").write_text("precious")
        ledger.finish_segment(0, make_segment(0))
        assert (tmp_path / "run.json").exists()
        assert (tmp_path / "images/mine.png").exists()


def test_nothing_is_read_to_finish_a_segment_for_the_first_time(tmp_path, monkeypatch):
    ledger = open_ledger(tmp_path, n_segments=2)
    ledger.finish_segment(0, make_segment(0))
    ledger = open_ledger(tmp_path, n_segments=2)
    asked = []
    monkeypatch.setattr(LocalSink, "get", lambda _, key: asked.append(key))
    monkeypatch.setattr(LocalSink, "list", lambda *_, **__: pytest.fail("listed"))

    ledger.finish_segment(1, make_segment(1))
    assert asked == []
    ledger.finish_segment(0, make_segment(0))
    assert asked == ["segments/00000.jsonl"]


def test_segments_that_are_put_back_are_pending_and_keep_their_images(tmp_path):
    ledger = open_ledger(tmp_path)
    for segment in range(3):
        put_images(tmp_path, make_segment(segment))
        ledger.finish_segment(segment, make_segment(segment))
    images = files(tmp_path / "images")
    ledger.quarantine(2, "hung", [])

    ledger.put_back([2, 0, 0])

    assert ledger.pending() == [0, 2]
    assert ledger.quarantined() == {}
    assert not (tmp_path / "quarantine").exists()
    assert open_ledger(tmp_path).pending() == [0, 2]
    assert files(tmp_path / "images") == images
    ledger.finish_segment(0, make_segment(0))
    assert ledger.pending() == [2]


# Quarantine

FAILED = make_segment(1, ["error"] * BANDS)


def test_a_segment_in_quarantine_is_left_alone_until_it_is_asked_for(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.quarantine(1, "Failed 3 times; the last time: its worker was killed.", FAILED)

    for each in (ledger, open_ledger(tmp_path)):
        assert each.pending() == [0, 2]
        assert each.pending(quarantined=True) == [0, 1, 2]
        assert each.quarantined() == {1: "Failed 3 times; the last time: its worker was killed."}
    ledger.publish()
    assert [row["status"] for row in lines(tmp_path / "undelivered.jsonl")] == ["error"] * BANDS
    marker = json.loads((tmp_path / "quarantine/00001.json").read_text())
    assert marker["segment"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", marker["failed_at"])


def test_quarantine_leaves_what_an_earlier_run_has_delivered(tmp_path):
    ledger = open_ledger(tmp_path)
    put_images(tmp_path, make_segment(1, ["ok", "missing", "ok", "ok"]))
    ledger.finish_segment(1, make_segment(1, ["ok", "missing", "ok", "ok"]))
    earlier = (tmp_path / "segments/00001.jsonl").read_bytes()

    ledger.quarantine(1, "hung", FAILED)

    assert (tmp_path / "segments/00001.jsonl").read_bytes() == earlier
    assert ledger.pending() == [0, 2]


@pytest.mark.parametrize("give_up", ["give_up", "quarantine"])
def test_images_that_a_failed_attempt_has_replaced_are_not_vouched_for(tmp_path, give_up):
    """It may have made an image anew, with other bytes, before it came to nothing."""
    earlier = make_segment(1, ["ok", "missing", "ok", "gap"])
    ledger = open_ledger(tmp_path)
    put_images(tmp_path, earlier)
    ledger.finish_segment(1, earlier)
    (tmp_path / earlier[0].file_name).write_bytes(b"another")
    (tmp_path / earlier[2].file_name).write_bytes(b"image")

    if give_up == "quarantine":
        ledger.quarantine(1, "hung", FAILED)
    else:
        ledger.give_up(1, FAILED)

    left = lines(tmp_path / "segments/00001.jsonl")
    assert [row["status"] for row in left] == ["error", "missing", "ok", "gap"]
    assert not (tmp_path / earlier[0].file_name).exists()
    assert (tmp_path / earlier[2].file_name).exists()


@pytest.mark.parametrize("status", ["ok", "missing"])
def test_a_segment_that_is_finished_is_out_of_quarantine(tmp_path, status):
    ledger = open_ledger(tmp_path)
    ledger.quarantine(1, "hung", FAILED)

    ledger.finish_segment(1, make_segment(1, [status]))

    assert ledger.quarantined() == {}
    assert ledger.pending() == ([0, 2] if status == "ok" else [0, 1, 2])
    assert not (tmp_path / "quarantine").exists()


def test_a_kill_on_the_way_into_quarantine_leaves_the_segment_to_be_tried_again(tmp_path):
    seen = set()
    for changes in range(5):
        folder = tmp_path / str(changes)
        open_ledger(folder)
        sink = KilledSink(folder, 100)
        ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=3)
        sink.changes = changes
        with suppress(Killed):
            ledger.quarantine(1, "hung", FAILED)
        again = open_ledger(folder)
        marked, present = 1 in again.quarantined(), (folder / "segments/00001.jsonl").exists()
        assert again.pending() == ([0, 2] if marked else [0, 1, 2])
        assert present or not marked
        seen.add((present, marked))
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_kill_on_the_way_out_of_quarantine_leaves_no_marker_for_good(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.quarantine(1, "hung", FAILED)
    sink = KilledSink(tmp_path, 100)
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=3)
    sink.changes = 1
    with pytest.raises(Killed):
        ledger.finish_segment(1, make_segment(1))
    assert (tmp_path / "quarantine/00001.json").exists()

    again = open_ledger(tmp_path)

    assert again.pending() == [0, 2]
    assert again.quarantined() == {}
    assert files(tmp_path) == ["run.json", "segments/00001.jsonl"]


def test_a_segment_whose_file_is_gone_is_not_kept_in_quarantine(tmp_path):
    """Or its tiles would be in neither manifest."""
    open_ledger(tmp_path).quarantine(1, "hung", FAILED)
    (tmp_path / "segments/00001.jsonl").unlink()

    ledger = open_ledger(tmp_path)

    assert ledger.pending() == [0, 1, 2]
    assert ledger.quarantined() == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_marker_that_cannot_be_read_keeps_its_segment_in_quarantine(tmp_path, content):
    ledger = open_ledger(tmp_path)
    ledger.quarantine(1, "hung", FAILED)
    (tmp_path / "quarantine/00001.json").write_bytes(content)

    assert open_ledger(tmp_path).pending() == [0, 2]
    assert "not known" in ledger.quarantined()[1]


def test_a_marker_tells_no_secret(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.quarantine(1, "GET https://x.blob.core.windows.net/c?sig=c2VjcmV0 failed", FAILED)
    assert "c2VjcmV0" not in (tmp_path / "quarantine/00001.json").read_text()
    assert "sig=(secret)" in ledger.quarantined()[1]


RUNNER = """
import pickle, sys
from das_gpu.ledger import Ledger
from das_gpu.sink import LocalSink
identity, header, segments = pickle.load(sys.stdin.buffer)
sink = LocalSink(sys.argv[1])
ledger = Ledger.open(sink, identity, header, n_segments=len(segments))
for number in ledger.pending():
    for record in segments[number]:
        sink.put(record.file_name, record.file_name.encode() * 1000, durable=False)
    ledger.finish_segment(number, segments[number])
    if number % 5 == 0:
        ledger.publish()
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_goes_on_where_it_was(tmp_path):
    segments = [make_segment(number) for number in range(200)]
    finished = 0
    for delay_s in (0.0, 0.007, 0.016):
        child = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, child.stdout:
            pickle.dump((IDENTITY, HEADER, segments), child.stdin)
            child.stdin.close()
            first = int(child.stdout.readline())
            time.sleep(delay_s)
            child.kill()
            child.wait()
            told = [first, *map(int, child.stdout.read().split())]
        assert first == finished, "a finished segment was done again"

        ledger = open_ledger(tmp_path, n_segments=len(segments))
        assert not [name for name in files(tmp_path) if ".~" in name]
        finished = ledger.pending()[0]
        assert finished in (told[-1] + 1, told[-1] + 2)
        for record in (record for segment in segments[:finished] for record in segment):
            data = (tmp_path / record.file_name).read_bytes()
            assert data == record.file_name.encode() * 1000
        assert ledger.publish().tiles == finished * BANDS


# The manifest


statuses = st.sampled_from([*Status])
segments = st.lists(
    st.lists(st.tuples(statuses, st.integers(0, 5), st.integers(0, 1023)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25)
@given(segments=segments, random=st.randoms(use_true_random=False), array=st.booleans())
def test_every_tile_is_in_one_of_the_two_manifests_as_it_was_recorded(
    tmp_path_factory, segments, random, array
):
    folder = tmp_path_factory.mktemp("run")
    ledger = open_ledger(folder, n_segments=len(segments))
    records = []
    for segment, tiles in enumerate(segments):
        made = [
            make_record(segment, segment, band, status, dead_channels=dead, quality=quality)
            for band, (status, dead, quality) in enumerate(tiles)
        ]
        if array:
            made = [
                dataclasses.replace(record, file_name=None, array_file=record.file_name)
                for record in made
            ]
        records += made
        ledger.finish_segment(segment, random.sample(made, len(made)))

    totals = ledger.publish()

    delivered = [record for record in records if Status(record.status).delivered]
    # The manifest has an empty text for no reason; see the test of late reasons.
    expected = [record.as_json() | {"reason": record.reason or ""} for record in delivered]
    assert lines(folder / "metadata.jsonl") == expected
    others = [record for record in records if record not in delivered]
    assert lines(folder / "undelivered.jsonl") == [record.as_json() for record in others]

    assert totals.segments == len(segments)
    assert totals.tiles == len(records)
    assert totals.delivered == len(delivered)
    assert totals.statuses == {
        status: sum(record.status == status for record in records) for status in Status
    }
    assert totals.lost == sum(r.status in ("missing", "corrupt", "error") for r in records)
    assert totals.dead_channels == sum(record.dead_channels for record in records)
    assert totals.tiles_with_dead_channels == sum(record.dead_channels > 0 for record in records)
    assert totals.tiles_by_quality_bit == {
        bit: count
        for bit in (1 << i for i in range(10))
        if (count := sum(record.quality & bit > 0 for record in records))
    }


def test_the_file_name_is_the_first_field_of_the_manifest(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=1)
    ledger.finish_segment(0, make_segment(0))
    ledger.publish()

    text = (tmp_path / "metadata.jsonl").read_text()
    assert text.startswith('{"file_name": "images/2021-11-01/23/20211101T231114834Z_ch10000.png"')
    assert (tmp_path / "undelivered.jsonl").read_bytes() == b""


def test_publishing_twice_writes_the_same_bytes(tmp_path):
    ledger = open_ledger(tmp_path, n_segments=2)
    for segment in (1, 0):
        ledger.finish_segment(segment, make_segment(segment, ["ok", "gap", "edge"]))
    totals = ledger.publish()
    before = [(tmp_path / name).read_bytes() for name in ("metadata.jsonl", "undelivered.jsonl")]

    assert open_ledger(tmp_path, n_segments=2).publish() == totals
    after = [(tmp_path / name).read_bytes() for name in ("metadata.jsonl", "undelivered.jsonl")]
    assert after == before


def write_run(folder, n_segments, tiles):
    """A finished run of any size, its segment files written directly."""
    ledger = open_ledger(folder, n_segments=n_segments)
    text = json.dumps(make_record(123456, 0, 0).as_json())
    (folder / "segments").mkdir()
    for segment in range(n_segments):
        rows = (
            text.replace('"segment": 123456', f'"segment": {segment}').replace(
                '"sample_start": 0', f'"sample_start": {segment * tiles + tile}'
            )
            for tile in range(tiles)
        )
        (folder / f"segments/{segment:05d}.jsonl").write_text("\n".join(rows) + "\n")
    return ledger


@pytest.mark.slow
def test_publishing_an_archive_of_the_published_size_takes_seconds(tmp_path):
    ledger = write_run(tmp_path, n_segments=218, tiles=600)

    start_s = time.process_time()
    totals = ledger.publish()
    taken_s = time.process_time() - start_s

    assert totals.tiles == 130_800
    # About 2 s of one core; the rest is for a busy machine.
    assert taken_s < 10


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_segments(tmp_path):
    peaks = []
    for n_segments in (8, 64):
        ledger = write_run(tmp_path / str(n_segments), n_segments=n_segments, tiles=40)
        tracemalloc.start()
        ledger.publish()
        ledger.pending()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Which files are in memory together is a matter of chance; all of them would be 8 times.
    assert peaks[1] < 1.5 * peaks[0]


# Readers


@pytest.fixture
def load_dataset(tmp_path, monkeypatch):
    """Hugging Face `datasets`, off line, with a cache of its own."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()

    def load(folder):
        loaded = datasets.load_dataset(
            "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
        )
        return loaded["train"]

    return load


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hugging_face_datasets_reads_the_folder_as_it_is(tmp_path, load_dataset, dtype):
    out = tmp_path / "out"
    sink = LocalSink(out)
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=2)
    rng = np.random.default_rng(1)
    images = {}
    for segment in range(2):
        records = []
        for record in make_segment(segment, ["ok", "edge", "gap", "ok"]):
            if record.file_name is None:
                records.append(record)
                continue
            pixels = rng.integers(0, np.iinfo(dtype).max, (32, 24), dtype, endpoint=True)
            images[record.file_name] = pixels
            data = render.encode_png(pixels)
            sink.put(record.file_name, data, durable=False)
            sha256 = hashlib.sha256(data).hexdigest()
            records.append(dataclasses.replace(record, sha256=sha256))
        ledger.finish_segment(segment, records)
    ledger.publish()
    sink.put("report.html", b"<html>")

    rows = load_dataset(out)

    expected = lines(out / "metadata.jsonl")
    assert len(rows) == len(expected) == 6
    for row, line in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), images[line["file_name"]])
        for field in ("status", "start_time", "channel_start", "db_low", "sha256", "reason"):
            assert row[field] == line[field]


@pytest.mark.slow
def test_hugging_face_datasets_reads_a_reason_that_comes_late(tmp_path, load_dataset):
    """It fixes each column's type by the first 10 MB; there, no tile has a reason."""
    ledger = write_run(tmp_path / "out", n_segments=1, tiles=20_000)
    path = tmp_path / "out/segments/00000.jsonl"
    text = path.read_text()
    last = text.rstrip("\n").rindex("\n") + 1
    late = text[last:].replace('"ok"', '"edge"').replace('"reason": null', '"reason": "late"')
    path.write_text(text[:last] + late)
    ledger.publish()
    assert (tmp_path / "out/metadata.jsonl").stat().st_size > 10 << 20
    LocalSink(tmp_path / "out").put(
        make_record(0, 0, 0).file_name, render.encode_png(np.zeros((4, 4), np.uint8))
    )

    rows = load_dataset(tmp_path / "out")

    assert rows.num_rows == 20_000
    assert rows[19_999]["reason"] == "late"
