"""The log of a run: JSON lines, without secrets, and never a reason to stop."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from das_gpu import Recipe, extract, redaction
from das_gpu.errors import DestinationError
from das_gpu.journal import facts, written_to
from tests.archives import random_walk, write_archive
from tests.outputs import lines

SMALL = Recipe().with_settings({"tile.seconds": 3, "tile.bands": 1, "median.kind": "channel"})
_log = logging.getLogger("das_gpu.somewhere")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 1800, seed=5), 200.0, (16, 700))


def test_a_line_says_when_what_and_the_facts(tmp_path: Path) -> None:
    with written_to(tmp_path / "a.jsonl"):
        _log.info("segment %d finished", 7, extra=facts(segment=7, tiles=[1]))
        _log.debug("a detail")
    [line] = lines(tmp_path / "a.jsonl")
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "event": "segment 7 finished", "segment": 7, "tiles": [1]}


def test_nothing_is_written_after_the_block(tmp_path: Path) -> None:
    with written_to(tmp_path / "a.jsonl"):
        pass
    _log.warning("too late")
    assert lines(tmp_path / "a.jsonl") == []


def test_two_runs_of_one_process_have_a_log_each(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)

    def run(name: str) -> None:
        with written_to(tmp_path / name):
            both.wait()
            for _ in range(100):
                _log.info("by %s", name)
            both.wait()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        assert {line["event"] for line in lines(tmp_path / name)} == {f"by {name}"}


def test_what_belongs_to_no_run_is_in_every_log(tmp_path: Path) -> None:
    with written_to(tmp_path / "a.jsonl"):
        thread = threading.Thread(target=_log.warning, args=("of the lock",))
        thread.start()
        thread.join()
    assert [line["event"] for line in lines(tmp_path / "a.jsonl")] == ["of the lock"]


def test_a_log_that_is_over_is_not_opened_again(tmp_path: Path) -> None:
    """By a thread that had found it just before."""
    with written_to(tmp_path / "a.jsonl"):
        handler = logging.getLogger("das_gpu").handlers[-1]
    handler.emit(logging.makeLogRecord({"msg": "too late"}))
    assert lines(tmp_path / "a.jsonl") == []


def test_an_exception_has_its_trace(tmp_path: Path) -> None:
    with written_to(tmp_path / "a.jsonl"):
        try:
            int("of a dimension")
        except ValueError:
            _log.exception("It failed.")
    [line] = lines(tmp_path / "a.jsonl")
    assert "test_an_exception_has_its_trace" in line["trace"]


def test_secrets_do_not_get_into_it(tmp_path: Path) -> None:
    redaction.register("hunter2-hunter2")
    with written_to(tmp_path / "a.jsonl"):
        _log.warning("asked with hunter2-hunter2", extra=facts(url="https://a/b?sig=c2VjcmV0"))
    text = (tmp_path / "a.jsonl").read_text()
    assert "hunter2" not in text
    assert "c2VjcmV0" not in text
    assert json.loads(text)["level"] == "warning"


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DestinationError, match=r"a\.jsonl cannot be written.*--log-json"),
        written_to(tmp_path / "file" / "a.jsonl"),
    ):
        pass


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this machine has no /dev/full")
    with written_to(full):
        _log.warning("lost")
    assert capsys.readouterr() == ("", "")


def test_every_run_into_a_folder_leaves_a_log_there(store: Path, tmp_path: Path) -> None:
    extract(store, tmp_path / "out", SMALL)
    extract(store, tmp_path / "out", SMALL)
    first, second = sorted((tmp_path / "out" / "logs").iterdir())
    events = [line["event"] for line in lines(first)]
    assert (events[0], events[-1]) == ("run begun", "run ended")
    assert "segment finished" in events
    assert "segment finished" not in [line["event"] for line in lines(second)]


def test_the_log_goes_where_it_is_wanted(store: Path, tmp_path: Path) -> None:
    extract(store, tmp_path / "out", SMALL, log_json=tmp_path / "elsewhere" / "a.jsonl")
    assert lines(tmp_path / "elsewhere" / "a.jsonl")[0]["tiles"] == 3
    assert not (tmp_path / "out" / "logs").exists()


def test_a_run_that_fails_says_so_in_the_log(store: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "b.zarr"
    shutil.copytree(store, broken)
    next((broken / "RawData").glob("0.1")).unlink()
    with pytest.raises(Exception, match="RawData"):
        extract(broken, tmp_path / "out", SMALL, on_missing="error")
    [log] = (tmp_path / "out" / "logs").iterdir()
    assert lines(log)[-1]["error"] == "ChunkMissingError"
