"""Where a run stands, by what its folder says."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from das_gpu import Recipe, extract
from das_gpu.credentials import Credential
from das_gpu.errors import DestinationError, UsageError
from das_gpu.segmentfile import count_statuses
from das_gpu.sink import LocalSink, open_sink
from das_gpu.state import STATE_KEY, Running, State, read_state
from das_gpu.status import Failure, status
from das_gpu.store import Access
from tests.archives import random_walk, write_archive
from tests.test_ledger import make_record, make_segment
from tests.test_verify import fill, open_run, run, snapshot

STATE = State(
    run="a1",
    started="2026-01-01T00:00:00Z",
    updated="2026-01-01T00:10:00Z",
    done_tiles=300,
    total_tiles=900,
    tiles_per_s=0.5,
    remaining_s=1200.0,
    running=(Running(2, "2026-01-01T00:09:00Z", 7, "worker 3 on node7"),),
    waiting=5,
    retried={1: 2},
)


@pytest.fixture
def out(tmp_path):
    """A run of which two of three segments are finished, with tiles lost."""
    ledger = fill(LocalSink(tmp_path), [0])
    lost = [
        make_record(1, 1, 0, "missing", reason="chunk 3.4 is not there"),
        make_record(1, 1, 1, "missing", reason="chunk 3.4 is not there"),
        make_record(1, 1, 2, "corrupt", reason="chunk 3.5 cannot be decoded"),
        make_record(1, 1, 3, "gap", reason="12 samples are not in the recording"),
    ]
    ledger.finish_segment(1, lost)
    return tmp_path


# What is done


def test_segments_and_tiles_are_counted_and_reasons_grouped(out):
    before = snapshot(out)

    found = status(out)

    assert (found.segments, found.done, found.to_do, found.failed) == (3, 2, 1, 1)
    assert found.total_tiles == 12
    assert found.tiles == {"ok": 4, "missing": 2, "corrupt": 1, "gap": 1}
    assert found.failures == (
        Failure(1, "missing", 2, "chunk 3.4 is not there"),
        Failure(1, "corrupt", 1, "chunk 3.5 cannot be decoded"),
    )
    assert (found.quarantined, found.holder, found.state) == ({}, None, None)
    assert found.exit_code == 10
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("became", "code"), [("ok", 0), ("edge", 0), ("gap", 0), ("missing", 3), ("error", 3)]
)
def test_a_finished_run_has_the_exit_code_of_what_became_of_its_tiles(tmp_path, became, code):
    fill(LocalSink(tmp_path), statuses=["ok", "ok", "ok", became])
    found = status(tmp_path)
    assert found.exit_code == code
    assert found.failed == (3 if code else 0)


def test_quarantine_is_told_with_its_reason_and_counts_as_loss(tmp_path):
    ledger = fill(LocalSink(tmp_path), [0, 2])
    ledger.quarantine(1, "its worker was killed 3 times", make_segment(1, ["error"] * 4))
    found = status(tmp_path)
    assert found.quarantined == {1: "its worker was killed 3 times"}
    assert (found.done, found.failed, found.exit_code) == (3, 1, 3)


def test_a_segment_file_that_is_torn_counts_as_to_do(out):
    path = out / "segments/00000.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for torn in (
        b"",
        whole[:-1],
        whole[: len(whole) // 2 + 10],
        whole[:first] + b"\0" * 100,
        whole[: first - 1] + b"," + whole[:first],
        whole[: first // 2] + b"\n" + whole[first:],
        whole[:first] + b"\0\0" + whole[first:],
        b"[]\n",
        b"\xff\xfe\n",
        whole.replace(b'"ok"', b'"fine"'),
    ):
        path.write_bytes(torn)
        assert status(out).done == 1, torn


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("reason", ['"status": "error", ', 'x"}\n{"status": "ok", "a": "'])
def test_a_reason_cannot_pass_for_a_status(array, reason):
    rows = [
        make_record(0, 0, band, state, reason=reason).as_json()
        for band, state in enumerate(["ok", "gap", "edge", "gap"])
    ]
    if array:
        rows = [{key: row[key] for key in row if key != "file_name"} for row in rows]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    assert count_statuses(data) == {"ok": 1, "gap": 2, "edge": 1}


@pytest.mark.parametrize("content", [None, "{}", '{"identity": {}, "plan": {"segments": "3"}}'])
def test_a_folder_without_a_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(DestinationError, match=r"run\.json"):
        status(tmp_path)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(DestinationError, match="no run"):
        status(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stores_that_hold_no_runs_are_refused():
    with pytest.raises(UsageError):
        status("s3://bucket/run")


# Who is at work


def test_a_state_is_read_as_it_was_written(tmp_path):
    sink = LocalSink(tmp_path)
    assert read_state(sink) is None
    sink.put(STATE_KEY, STATE.as_bytes(), durable=False)
    assert read_state(sink) == STATE


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", STATE.as_bytes().replace(b"7", b'"x"')]
)
def test_a_state_that_is_not_understood_counts_as_none(tmp_path, content):
    (tmp_path / STATE_KEY).write_bytes(content)
    assert read_state(LocalSink(tmp_path)) is None


def test_the_state_of_a_killed_run_is_not_shown(out):
    sink = LocalSink(out)
    sink.put(STATE_KEY, STATE.as_bytes())
    assert status(out).state is None
    with sink.hold("another"):
        assert status(out).state is None
    with sink.hold("a1"):
        assert status(out).state == STATE


def test_a_run_that_tries_lost_tiles_again_is_not_finished(tmp_path):
    sink = LocalSink(tmp_path)
    fill(sink, statuses=["ok", "missing"])
    with sink.hold("a1"):
        assert status(tmp_path).exit_code == 10
    assert status(tmp_path).exit_code == 3


def test_a_run_at_work_says_what_it_is_doing(tmp_path):
    archive = write_archive(
        tmp_path / "small.zarr", random_walk(60, 4000, seed=1), 200.0, (20, 1000)
    )
    out = tmp_path / "out"
    begun, go_on = threading.Event(), threading.Event()

    def wait(progress):
        if progress.done_tiles:
            begun.set()
            go_on.wait(20)

    recipe = Recipe().with_settings({"tile.bands": 2, "tile.seconds": 5})
    options = {"segment_minutes": 5 / 60, "on_progress": wait}
    worker = threading.Thread(target=extract, args=(archive, out, recipe), kwargs=options)
    worker.start()
    try:
        assert begun.wait(20)
        deadline = time.monotonic() + 20
        while (found := status(out)).state is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        go_on.set()
        worker.join(30)

    assert found.holder is not None
    assert found.holder.process == os.getpid()
    assert found.state is not None
    assert found.state.run == found.holder.run
    assert found.state.total_tiles == found.total_tiles == 8
    assert found.exit_code == 10
    after = status(out)
    assert (after.holder, after.state, after.exit_code) == (None, None, 0)


def test_a_container_tells_the_same(azurite, monkeypatch, tmp_path):
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    azurite.create_container("status")
    owner = Access(Credential("connection-string", "CONNECTION"))
    url = azurite.url("status", "run")
    sink = open_sink(url, owner)
    fill(sink, [0]).quarantine(1, "hung", make_segment(1, ["error"] * 4))
    with sink.hold("a1"):
        sink.put(STATE_KEY, STATE.as_bytes())
        found = status(url, owner)
    assert found.state == STATE
    assert found.holder is not None
    assert found.holder.run == "a1"
    assert (found.done, found.quarantined) == (2, {1: "hung"})
    assert status(url, owner).holder is None


# Size


def test_an_archive_of_the_published_size_is_looked_through_in_a_second(tmp_path):
    ledger = open_run(LocalSink(tmp_path), 218)
    text = json.dumps(make_record(123456, 0, 0).as_json())
    (tmp_path / "segments").mkdir()
    for segment in range(218):
        line = text.replace('"segment": 123456', f'"segment": {segment}') + "\n"
        (tmp_path / f"segments/{segment:05d}.jsonl").write_text(line * 600)
    assert ledger.n_segments == 218

    began_s = time.process_time()
    found = status(tmp_path)
    taken_s = time.process_time() - began_s

    assert (found.done, found.tiles) == (218, {"ok": 130_800})
    # About 0.3 s of one core; the rest is for a busy machine.
    assert taken_s < 2


# The command


def test_the_command_tells_people_where_the_run_stands(out, capsys):
    code, told, _ = run(capsys, "status", out)
    assert code == 10
    assert "segments  2 of 3 done, 1 of them with lost tiles" in told
    assert "tiles     8 of 12 done: 4 ok, " in told
    assert "segment 1, 2 tiles missing: chunk 3.4 is not there" in told
    assert "1 segment to do" in told


def test_the_command_tells_people_who_is_at_work(out, capsys):
    sink = LocalSink(out)
    with sink.hold("a1"):
        sink.put(STATE_KEY, STATE.as_bytes())
        code, told, _ = run(capsys, "status", out)
    assert code == 10
    assert f"process {os.getpid()} on" in told
    assert "300 of 900 tiles, 0.5 tiles/s, 20 min 0 s left" in told
    assert "segment 2 since 2026-01-01T00:09:00Z, 7 tiles, worker 3 on node7" in told
    assert "segments 1 (2 x)" in told


def test_all_reasons_are_shown_when_they_are_asked_for(tmp_path, capsys):
    ledger = fill(LocalSink(tmp_path), [2])
    for segment in (0, 1):
        records = [
            make_record(segment, segment, band, "error", reason=f"reason {segment}{band}")
            for band in range(4)
        ]
        ledger.finish_segment(segment, records)
    ledger.quarantine(1, "hung", records)

    code, few, _ = run(capsys, "status", tmp_path)
    _, every, _ = run(capsys, "status", tmp_path, "--failed")

    assert code == 3
    assert "segment 1: hung" in few
    assert "reason 13" not in few
    assert "and 6 more" in few
    assert [f"reason {segment}{band}" in every for segment in (0, 1) for band in range(4)] == [
        True
    ] * 8
    assert "--retry-quarantined" in every


def test_the_command_answers_machines(out, capsys):
    sink = LocalSink(out)
    with sink.hold("a1"):
        sink.put(STATE_KEY, STATE.as_bytes())
        code, told, _ = run(capsys, "status", out, "--json")
    facts = json.loads(told)
    assert code == facts["exit_code"] == 10
    assert facts["segments"] == {
        "total": 3, "done": 2, "to_do": 1, "failed": 1, "quarantined": 0,
    }  # fmt: skip
    assert facts["tiles"] == {"total": 12, "ok": 4, "missing": 2, "corrupt": 1, "gap": 1}
    assert facts["failures"][0]["reason"] == "chunk 3.4 is not there"
    assert facts["holder"]["process"] == os.getpid()
    assert facts["state"]["running"][0]["segment"] == 2
    assert facts["state"]["retried"] == {"1": 2}


def test_no_run_no_status(tmp_path, capsys):
    code, told, said = run(capsys, "status", tmp_path / "out", "--json")
    assert code == 6
    assert "There is no run in" in said
    assert json.loads(told)["exit_code"] == 6


@pytest.mark.parametrize("variable", ["DAS_GPU_OUT_CREDENTIAL", "DAS_GPU_CREDENTIAL"])
def test_the_credential_of_out_is_taken_from_where_extract_has_it(
    azurite, monkeypatch, capsys, variable
):
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    azurite.create_container("status")
    monkeypatch.setenv("DAS_GPU_CREDENTIAL", "anonymous")
    monkeypatch.setenv(variable, "connection-string:CONNECTION")
    code, _, said = run(capsys, "status", azurite.url("status", "nothing"))
    assert code == 6
    assert "There is no run in" in said


def test_the_plan_of_a_run_is_in_its_own_file(tmp_path):
    path = write_archive(tmp_path / "small.zarr", random_walk(6, 4000, seed=1), 200.0, (6, 1000))
    extract(path, tmp_path / "out", Recipe().with_settings({"tile.bands": 2, "tile.seconds": 5}))
    plan = json.loads(Path(tmp_path / "out/run.json").read_text())["plan"]
    assert (plan["tiles"], plan["segments"], plan["rows_per_segment"]) == (8, 1, 4)
