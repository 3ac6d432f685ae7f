"""A file is there whole, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from das_gpu.credentials import Credential
from das_gpu.errors import DestinationError, UsageError
from das_gpu.locations import parse_location
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access

IMAGE = "images/2021-11-01/23/a.png"


@pytest.fixture
def sink(tmp_path):
    return LocalSink(tmp_path / "out")


@pytest.fixture(params=["folder", "container"])
def any_sink(request, tmp_path, monkeypatch):
    """Each kind of sink, empty; a test with this one holds for all."""
    if request.param == "folder":
        return open_sink(tmp_path / "out")
    azurite = request.getfixturevalue("azurite")
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    url = azurite.url(azurite.create_container("sinks"), tmp_path.name)
    return open_sink(url, Access(Credential("connection-string", "CONNECTION")))


def everything(folder):
    """Every file below a folder, temporary ones too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_what_is_put_can_be_got_listed_replaced_and_deleted(any_sink):
    sink = any_sink
    assert sink.get(IMAGE) is None
    assert sink.list() == []

    sink.put(IMAGE, b"one")
    sink.put(IMAGE, b"two")
    sink.put("run.json", b"", durable=False)

    assert sink.get(IMAGE) == b"two"
    assert sink.get("run.json") == b""
    assert sink.list() == [IMAGE, "run.json"]
    assert sink.list("images/2021-11") == [IMAGE]
    assert sink.list("segments/") == []
    assert len(sink.list(limit=1)) == 1

    sink.delete(IMAGE)
    sink.delete(IMAGE)
    sink.flush()
    assert sink.list() == ["run.json"]


def test_deleting_the_last_file_of_a_folder_removes_the_folder_but_never_the_root(sink, tmp_path):
    sink.put(IMAGE, b"x")
    sink.put("images/other.png", b"x")
    sink.delete(IMAGE)
    assert not (tmp_path / "out/images/2021-11-01").exists()
    assert (tmp_path / "out/images").is_dir()

    sink.delete("images/other.png")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_folder_is_made_by_the_first_put_and_not_before(sink, tmp_path):
    assert sink.get("run.json") is None
    sink.sweep()
    sink.flush()
    assert not (tmp_path / "out").exists()

    sink.put("run.json", b"{}")
    assert everything(tmp_path / "out") == ["run.json"]


def test_a_writer_shows_nothing_until_it_is_closed(any_sink):
    sink = any_sink
    sink.put("metadata.jsonl", b"old")
    with sink.open_writer("metadata.jsonl") as file:
        file.write(b"ne")
        assert sink.get("metadata.jsonl") == b"old"
        assert sink.list() == ["metadata.jsonl"]
        file.write(b"w")
    assert sink.get("metadata.jsonl") == b"new"


def test_a_writer_that_fails_leaves_the_earlier_file_and_nothing_else(any_sink, tmp_path):
    sink = any_sink
    sink.put("metadata.jsonl", b"old")
    with suppress(ZeroDivisionError), sink.open_writer("metadata.jsonl") as file:
        file.write(b"half of it")
        raise ZeroDivisionError

    assert sink.get("metadata.jsonl") == b"old"
    assert sink.list() == ["metadata.jsonl"]
    assert everything(tmp_path) in (["out/metadata.jsonl"], [])


@pytest.mark.parametrize(
    "key", ["", "/etc/x", "../x", "images/../../x", "a//b", "./a", "a/", "a\\b", "a\0b"]
)
@pytest.mark.parametrize("act", ["put", "get", "delete"])
def test_a_key_cannot_leave_the_folder(any_sink, tmp_path, key, act):
    sink = any_sink
    with pytest.raises(DestinationError, match="inside the output folder"):
        sink.put(key, b"x") if act == "put" else getattr(sink, act)(key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key", ["a b.png", "ä%41?x=1#y.png", "images/2021-11-01T23:11:14.834000000_start20419.0.png"]
)
def test_a_name_may_hold_any_other_character(any_sink, key):
    any_sink.put(key, b"x")
    assert any_sink.list() == [key]
    assert any_sink.get(key) == b"x"
    any_sink.delete(key)
    assert any_sink.list() == []


def test_a_file_where_the_output_folder_should_be(tmp_path):
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(DestinationError, match="is a file"):
        LocalSink(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_a_file_where_a_folder_above_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"precious")
    sink = LocalSink(tmp_path / "file" / "out")

    with pytest.raises(DestinationError, match="is a file, not a folder"):
        sink.put(IMAGE, b"x")

    assert everything(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_folder_where_a_file_should_be(sink, tmp_path):
    (tmp_path / "out" / "run.json").mkdir(parents=True)

    with pytest.raises(DestinationError, match="folder stands where a file must go"):
        sink.put("run.json", b"{}")
    with pytest.raises(DestinationError, match="folder stands where a file must go"):
        sink.get("run.json")
    assert everything(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_place_that_nobody_can_write():
    with pytest.raises(DestinationError, match=r"Writing /proc/nowhere/run.json failed: .+\. "):
        LocalSink("/proc/nowhere").put("run.json", b"{}")


def test_running_out_of_space_leaves_the_earlier_file_and_nothing_else(tmp_path):
    """A file-size limit stands for the full disk: the write itself is refused half way."""
    LocalSink(tmp_path).put("a.png", b"old")
    script = f"""
import resource
from das_gpu.errors import DestinationError
from das_gpu.sink import LocalSink
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    LocalSink({str(tmp_path)!r}).put("a.png", b"x" * 1_000_000)
except DestinationError as error:
    raise SystemExit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "a.png failed" in done.stderr
    assert "ulimit -f" in done.stderr
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert everything(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
)
def test_every_refusal_says_what_to_do(sink, tmp_path, monkeypatch, number, advice):
    """These cannot be had from a real disk without being its administrator."""

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DestinationError, match=advice) as caught:
        sink.put(IMAGE, b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert everything(tmp_path) == []


@pytest.fixture
def synced(monkeypatch):
    """Paths in the order they are forced to the disk, truly forced."""
    paths: list[str] = []
    force = os.fsync

    def record(descriptor):
        force(descriptor)
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", record)
    return paths


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


@needs_proc
def test_a_durable_put_forces_the_file_then_every_folder_that_changed(sink, tmp_path, synced):
    sink.put("segments/00000.jsonl", b"{}\n")

    root = tmp_path / "out"
    assert Path(synced[0]).name.startswith(".~das-gpu-")
    assert set(synced[1:]) == {str(root / "segments"), str(root), str(tmp_path)}


@needs_proc
def test_images_are_forced_by_flush_and_only_once(sink, tmp_path, synced):
    keys = [f"images/2021-11-01/23/{i}.png" for i in range(5)]
    for key in keys:
        sink.put(key, b"x" * 1000, durable=False)
    assert synced == []

    sink.flush()
    files = [str(tmp_path / "out" / key) for key in keys]
    assert sorted(synced[:5]) == files
    assert str(tmp_path / "out/images/2021-11-01/23") in synced[5:]

    synced.clear()
    sink.flush()
    assert synced == []


@needs_proc
def test_a_flush_that_fails_is_tried_again_by_the_next(sink, tmp_path, synced, monkeypatch):
    sink.put(IMAGE, b"x", durable=False)

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DestinationError, match="Forcing files"):
            sink.flush()

    sink.flush()
    assert str(tmp_path / "out" / IMAGE) in synced


def test_flush_waits_for_files_that_another_thread_is_forcing(sink, monkeypatch):
    """Else a segment could be declared done while its images are only on their way."""
    sink.put(IMAGE, b"x", durable=False)
    forcing, go_on, force = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor):
        forcing.set()
        assert go_on.wait(10)
        force(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sink.flush)
        assert forcing.wait(10)
        second = pool.submit(sink.flush)
        time.sleep(0.05)
        assert not second.done()
        go_on.set()
        first.result(10)
        second.result(10)


@pytest.mark.slow
def test_many_threads_put_replace_delete_and_flush(any_sink):
    """Folders come and go meanwhile; every file that stays is whole."""
    sink = any_sink

    def work(worker):
        for i in range(12):
            sink.put(f"images/{i % 3}/{worker}.png", bytes([worker]) * 5000, durable=False)
            if i % 5 == 0:
                sink.flush()
            if i % 3 == 2:
                sink.delete(f"images/{i % 3}/{worker}.png")
            sink.put("images/shared.png", bytes([worker]) * 5000, durable=False)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))

    keys = sink.list()
    assert keys == sorted(
        [f"images/{i}/{w}.png" for i in (0, 1) for w in range(6)] + ["images/shared.png"]
    )
    for key in keys:
        data = sink.get(key)
        assert len(data) == 5000
        assert len(set(data)) == 1


def test_sweep_removes_leftovers_and_nothing_of_others(sink, tmp_path):
    sink.put(IMAGE, b"x")
    out = tmp_path / "out"
    leftovers = [".~das-gpu-1-ab-0", "images/2021-11-01/23/.~das-gpu-1-ab-1"]
    foreign = [".~lock.notes.odt#", "notes/.~das-gpu-mine"]
    for name in leftovers + foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"?")
    assert IMAGE in sink.list()
    assert not set(leftovers) & set(sink.list())

    sink.sweep()

    assert everything(out) == sorted([IMAGE, *foreign])


WRITER = """
import itertools, sys
from das_gpu.sink import LocalSink
sink = LocalSink(sys.argv[1])
for i in itertools.count():
    sink.put(f"images/{i % 7}.png", bytes([i % 256]) * 1_000_000, durable=i % 5 == 0)
    if i == 7:
        print("going", flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_no_torn_file_and_no_stray_after_the_next_sweep(tmp_path):
    images, strays = tmp_path / "images", 0
    for delay_s in (0.003 * attempt for attempt in range(40)):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"going\n"
            time.sleep(delay_s)
            child.send_signal(signal.SIGKILL)
            child.wait()
        strays += sum(path.name.startswith(".~") for path in images.iterdir())

        sink = LocalSink(tmp_path)
        sink.sweep()
        assert everything(images) == [f"{i}.png" for i in range(7)]
        for path in images.iterdir():
            data = path.read_bytes()
            assert len(data) == 1_000_000
            assert len(set(data)) == 1
        if strays and delay_s:
            return
    pytest.fail("no kill fell into a write: this test has shown nothing")


def test_open_sink_takes_paths_and_file_urls(tmp_path):
    folder = tmp_path / "a b"
    for out in (folder, str(folder), folder.as_uri(), f"file://localhost{folder}"):
        assert open_sink(out).location == str(folder)
        assert str(open_sink(out)) == str(folder)


def test_a_relative_path_stays_the_same_folder_after_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sink = open_sink("out")
    monkeypatch.chdir("/")
    sink.put("run.json", b"{}")
    assert (tmp_path / "out/run.json").exists()


@pytest.mark.parametrize("out", ["s3://bucket/x", "gs://bucket/x"])
def test_stores_that_are_only_read_from_are_refused(out):
    with pytest.raises(UsageError, match="only reads from such stores"):
        open_sink(out)
    with pytest.raises(UsageError, match="only reads from such stores"):
        open_sink(parse_location(out))


@pytest.mark.parametrize(
    "out", ["https://acc.blob.core.windows.net/c/p?sig=SECRET", "S3://k:SECRET@b/x"]
)
def test_an_address_with_a_secret_in_it_is_refused_without_repeating_it(out):
    with pytest.raises(UsageError, match="process lists and logs") as caught:
        open_sink(out)
    assert "SECRET" not in str(caught.value)


def test_a_file_url_of_another_machine_is_refused():
    with pytest.raises(UsageError, match="elsewhere"):
        open_sink("file://elsewhere/data")
