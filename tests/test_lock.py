"""One run at a time writes to a folder, and a dead one bars nobody."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from das_gpu import lock
from das_gpu.errors import DestinationError, DestinationInUseError
from das_gpu.lock import LOCK_KEY, SOMEBODY, Holder, folder_holder, hold_folder
from das_gpu.sink import LocalSink

HOLDS = """
import sys, time
from pathlib import Path
from das_gpu.lock import hold_folder
with hold_folder(Path(sys.argv[1]), "theirs"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@contextmanager
def another_process(out: Path) -> Iterator[subprocess.Popen[str]]:
    """One that holds the folder until it is killed."""
    command = [sys.executable, "-c", HOLDS, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


# --- who ----------------------------------------------------------------------------------


def test_a_holder_says_who_it_is_to_people_and_to_programs() -> None:
    holder = Holder("abc", "node7", 1234, "2026-11-23T02:15:00Z")
    assert str(holder) == "process 1234 on node7, since 2026-11-23T02:15:00Z"
    assert Holder.from_json(holder.to_json()) == holder
    here = Holder.here("abc")
    assert (here.run, here.host, here.process) == ("abc", socket.gethostname(), os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", here.since)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0\0\0", b"{", b"[]", b'"x"', b"{}", b"\xff", b'{"run": 1}'),
        b'{"run": "a", "host": 1, "process": 1, "since": ""}',
        b'{"run": "a", "host": "b", "process": "1", "since": ""}',
    ],
    ids=repr,
)
def test_a_content_that_says_nobody_is_nobody(content: bytes) -> None:
    assert Holder.from_json(content) is None


def test_the_rest_of_a_longer_holder_does_no_harm() -> None:
    """Between writing and shortening, a reader may come."""
    holder = Holder("abc", "node7", 1234, "2026-11-23T02:15:00Z")
    assert Holder.from_json(holder.to_json() + b'15:00Z"}\n') == holder


def test_a_process_of_this_machine_that_is_no_more_is_known_to_be_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    gone = Holder("abc", socket.gethostname(), child.pid, "")
    assert gone.is_dead
    assert not Holder("abc", "elsewhere", child.pid, "").is_dead
    assert not Holder.here("abc").is_dead
    assert not Holder("abc", socket.gethostname(), 2**70, "").is_dead


# --- holding ------------------------------------------------------------------------------


def test_a_folder_is_held_by_whom_the_lock_names(out: Path) -> None:
    assert folder_holder(out) is None
    with hold_folder(out, "mine") as hold:
        assert (hold.run, hold.lost.is_set(), hold.why) == ("mine", False, "")
        found = folder_holder(out)
        assert found is not None
        assert (found.run, found.process) == ("mine", os.getpid())
    assert folder_holder(out) is None


def test_folders_made_for_the_lock_go_with_it(out: Path, tmp_path: Path) -> None:
    with hold_folder(out, "mine"):
        assert [path.name for path in out.iterdir()] == [LOCK_KEY]
    assert list(tmp_path.iterdir()) == []

    with hold_folder(out, "mine"):
        (out / "run.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_a_folder_that_was_there_stays(out: Path) -> None:
    out.mkdir(parents=True)
    with hold_folder(out, "mine"):
        pass
    assert list(out.iterdir()) == []


def test_the_second_run_is_refused_and_told_who_is_first(out: Path) -> None:
    with another_process(out) as child:
        text = (
            rf"{out}: process {child.pid} on {socket.gethostname()}, since .*Z\. .*das-gpu status"
        )
        with pytest.raises(DestinationInUseError, match=text) as caught, hold_folder(out, "mine"):
            pytest.fail("two runs hold one folder")
        assert caught.value.exit_code == 11
        found = folder_holder(out)
        assert found is not None
        assert (found.run, found.process) == ("theirs", child.pid)


def test_a_second_run_of_the_same_process_is_refused_too(out: Path) -> None:
    with hold_folder(out, "first"), pytest.raises(DestinationInUseError), hold_folder(out, "x"):
        pytest.fail("two runs hold one folder")


def test_a_run_that_was_refused_leaves_the_first_one_its_lock(out: Path) -> None:
    with hold_folder(out, "first"):
        for _ in range(2):
            with pytest.raises(DestinationInUseError), hold_folder(out, "second"):
                pass
        found = folder_holder(out)
        assert found is not None
        assert found.run == "first"


def test_a_killed_run_bars_nobody(out: Path) -> None:
    with another_process(out) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (out / LOCK_KEY).exists()
        assert folder_holder(out) is None
        with hold_folder(out, "mine"):
            found = folder_holder(out)
            assert found is not None
            assert found.run == "mine"
    assert list(out.iterdir()) == []


def test_a_process_that_the_holder_has_started_does_not_keep_the_lock(out: Path) -> None:
    """Workers and their helpers may outlive a run that is killed."""
    with hold_folder(out, "mine"), subprocess.Popen(["sleep", "20"]) as started:
        files = Path(f"/proc/{started.pid}/fd").iterdir()
        assert str(out / LOCK_KEY) not in [str(file.readlink()) for file in files]
        started.kill()


def test_who_asks_for_the_holder_keeps_no_run_from_beginning(out: Path) -> None:
    """To ask, the lock is taken, for a moment and together with others who ask."""
    out.mkdir(parents=True)
    (out / LOCK_KEY).write_bytes(b"")
    asking = os.open(out / LOCK_KEY, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert folder_holder(out) is None
    threading.Timer(0.05, os.close, [asking]).start()
    with hold_folder(out, "mine") as hold:
        assert hold.run == "mine"


def test_of_many_that_begin_at_once_one_at_a_time_holds(out: Path) -> None:
    """Also while the folder and the lock's file come and go."""
    holding: list[int] = []
    most: list[int] = []

    def hold(number: int) -> int:
        held = 0
        for _ in range(10):
            try:
                with hold_folder(out, str(number)):
                    holding.append(number)
                    most.append(len(holding))
                    held += 1
                    holding.remove(number)
            except DestinationInUseError:
                pass
        return held

    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(hold, range(4)))
    assert max(most) == 1
    assert sum(held) >= 10


def test_an_unreadable_lock_that_is_held_is_somebodys(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PAUSE_S", 0.0)
    with hold_folder(out, "mine"):
        (out / LOCK_KEY).write_bytes(b"")
        assert folder_holder(out) == SOMEBODY
        with (
            pytest.raises(DestinationInUseError, match="a process that has not said which it is"),
            hold_folder(out, "second"),
        ):
            pass


def test_what_a_power_cut_leaves_in_the_lock_does_no_harm(out: Path) -> None:
    out.mkdir(parents=True)
    longer = Holder("x" * 300, "node7", 1, "").to_json()
    half = longer[: len(longer) // 2]
    for content in (b"", bytes(100), longer, half, half + bytes(50), b"{"):
        (out / LOCK_KEY).write_bytes(content)
        with hold_folder(out, "mine"):
            written = (out / LOCK_KEY).read_bytes()
            assert Holder.from_json(written) is not None
            assert written.endswith(b"}\n")
        assert list(out.iterdir()) == []


def test_a_file_of_that_name_that_is_not_ours_is_left_alone(out: Path) -> None:
    out.mkdir(parents=True)
    (out / LOCK_KEY).write_bytes(b"precious")
    with pytest.raises(DestinationError, match=r"has not written.* Move that file"):
        hold_folder(out, "mine").__enter__()
    assert (out / LOCK_KEY).read_bytes() == b"precious"


def test_a_link_of_that_name_is_not_followed(out: Path, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"")
    (out / LOCK_KEY).symlink_to(tmp_path / "precious")
    with pytest.raises(DestinationError, match="Locking"), LocalSink(out).hold("mine"):
        pass
    assert (tmp_path / "precious").read_bytes() == b""


def test_the_lock_of_a_run_whose_folder_was_replaced_is_not_taken_away(
    out: Path, tmp_path: Path
) -> None:
    with hold_folder(out, "first"):
        out.rename(tmp_path / "moved")
        second = hold_folder(out, "second")
        second.__enter__()
    found = folder_holder(out)
    assert found is not None
    assert found.run == "second"
    second.__exit__(None, None, None)
    assert folder_holder(tmp_path / "moved") is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_with_a_warning(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), hold_folder(out, "mine"):
        assert "has no locks" in caplog.text
        found = folder_holder(out)
        assert found is not None
        assert found.run == "mine"
    assert not out.exists()


def test_a_dead_holder_is_told_even_without_locks(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_process(out) as child:
        child.kill()
        child.wait()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert folder_holder(out) is None


# --- as a sink ----------------------------------------------------------------------------


def test_a_sink_holds_its_folder_and_does_not_show_the_lock(out: Path) -> None:
    sink = LocalSink(out)
    assert sink.holder() is None
    with sink.hold("mine") as hold:
        found = sink.holder()
        assert found is not None
        assert found.run == hold.run == "mine"
        assert sink.list() == []
        sink.put("run.json", b"{}")
        sink.put(f"images/{LOCK_KEY}", b"a file like any other")
        assert sink.list() == [f"images/{LOCK_KEY}", "run.json"]
        assert sink.list(limit=1) != [LOCK_KEY]
        with pytest.raises(DestinationInUseError), LocalSink(out).hold("second"):
            pass
    assert not (out / LOCK_KEY).exists()
    sink.put("run.json", b"{}")


def test_the_folder_that_is_made_for_the_lock_survives_a_power_cut(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    force = os.fsync

    def record(descriptor: int) -> None:
        force(descriptor)
        forced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    sink = LocalSink(out)
    with sink.hold("mine"):
        monkeypatch.setattr(os, "fsync", record)
        sink.put("run.json", b"{}")
    assert {str(out), str(out.parent), str(out.parent.parent)} <= set(forced)


@pytest.mark.parametrize("how", ["removed", "moved", "put in the place of"])
@pytest.mark.parametrize("who", ["the sink that holds it", "another process's sink"])
def test_a_folder_that_goes_away_while_it_is_held_is_not_made_again(
    out: Path, tmp_path: Path, how: str, who: str
) -> None:
    holds = LocalSink(out)
    with holds.hold("mine"):
        sink = holds if who == "the sink that holds it" else LocalSink(out)
        sink.put("images/a/1.png", b"x")
        out.rename(tmp_path / "moved")
        if how == "put in the place of":
            (out / "images" / "a").mkdir(parents=True)
        for key in ("images/a/2.png", "segments/00000.jsonl", "metadata.jsonl"):
            with pytest.raises(DestinationError, match=r"run\.lock is no longer there"):
                sink.put(key, b"x")
        if how == "moved":
            (tmp_path / "moved").rename(out)
            sink.put("images/a/2.png", b"x")
            assert sink.list() == ["images/a/1.png", "images/a/2.png"]
        else:
            assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with (
        pytest.raises(DestinationError, match="is a file, not a folder"),
        LocalSink(tmp_path / "file" / "out").hold("mine"),
    ):
        pass
    assert LocalSink(tmp_path / "file" / "out").holder() is None


def test_a_disk_too_full_for_the_lock_is_left_as_it_was(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DestinationError, match="disk is full"), LocalSink(out).hold("mine"):
        pass
    assert not out.parent.exists()
