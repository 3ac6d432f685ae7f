"""The destination becomes full, read-only or absent in the middle of a run: nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.errors import DestinationError
from das_gpu.lock import LOCK_KEY
from das_gpu.run import Progress
from das_gpu.sink import LocalSink
from tests.archives import random_walk, write_archive
from tests.outputs import files, lines

FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "3", "--median", "channel"]
FLAGS += ["--segment-minutes", "0.1"]
RECIPE = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
)
SEGMENTS = 5
TILES = 30
TEMPORARY = ".~das-gpu-"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 30 s: 10 rows of 3 tiles, in 5 segments of 0.1 minutes."""
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 6000, seed=5), 200.0, (16, 700))


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert extract(store, out, RECIPE, segment_minutes=0.1).images == TILES
    return out


class Half(io.FileIO):
    """A file that takes half of what it is given, and then asks."""

    def __init__(self, path: Path, ask: Callable[[], None]) -> None:
        super().__init__(path, "x")
        self._ask = ask

    def write(self, data: Any) -> int:
        view = memoryview(data)
        super().write(view[: len(view) // 2])
        self._ask()
        return len(view) // 2 + super().write(view[len(view) // 2 :])


class Trouble:
    """What a folder's file system refuses, from some call on, until it is over.

    ``call`` is the sink's call that is refused: open, write, fsync or replace. It begins with
    the ``after``-th of them for a file whose key begins with ``at``. ``instead`` happens in the
    place of a refusal, once.
    """

    def __init__(
        self, out: Path, call: str, number: int, at: str, after: int, instead: Any = None
    ) -> None:
        self._out, self._call, self._number = out, call, number
        self._at, self._left, self._instead = at, after, instead
        self._key = threading.local()
        self._keys: dict[Path, str] = {}
        self._lock = threading.Lock()
        self.begun = False

    def meets(self, call: str, key: str) -> None:
        if call != self._call:
            return
        with self._lock:
            if not self.begun:
                self._left -= key.startswith(self._at)
                if self._left > 0:
                    return
                self.begun = True
                if self._instead is not None:
                    self._instead(self._out)
        if self._instead is None:
            raise OSError(self._number, os.strerror(self._number))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        opens, replaces, forces = Path.open, Path.replace, os.fsync
        replacing = LocalSink._replacing

        @contextmanager
        def noted(sink: LocalSink, key: str, *, durable: bool) -> Iterator[Any]:
            self._key.name = key
            with replacing(sink, key, durable=durable) as file:
                yield file

        def open_(path: Path, mode: str = "r", *args: Any, **how: Any) -> IO[Any]:
            if not path.name.startswith(TEMPORARY):
                return opens(path, mode, *args, **how)
            key = self._keys[path] = self._key.name
            self.meets("open", key)
            return io.BufferedWriter(Half(path, lambda: self.meets("write", key)))

        def replace(path: Path, target: Path) -> Path:
            self.meets("replace", self._keys[path])
            return replaces(path, target)

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            key = str(path.relative_to(self._out)) if path.is_relative_to(self._out) else ""
            self.meets("fsync", self._keys.get(path, key))
            forces(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalSink, "_replacing", noted)
            patch.setattr(Path, "open", open_)
            patch.setattr(Path, "replace", replace)
            patch.setattr(os, "fsync", fsync)
            yield
        assert self.begun, "there was no trouble: this test has shown nothing"


def check_whole(out: Path) -> int:
    """Everything that is there is whole; how many segments are."""
    assert not [path for path in out.rglob("*") if path.name.startswith(TEMPORARY)]
    assert not (out / LOCK_KEY).exists()
    if (out / "run.json").exists():
        json.loads((out / "run.json").read_text())
    segments = sorted(out.glob("segments/*"))
    for segment in segments:
        records = lines(segment)
        assert len(records) == TILES // SEGMENTS
        for record in records:
            image = (out / record["file_name"]).read_bytes()
            assert hashlib.sha256(image).hexdigest() == record["sha256"]
    for manifest in ("metadata.jsonl", "undelivered.jsonl"):
        if (out / manifest).exists():
            lines(out / manifest)
    return len(segments)


STAGES = [("images/", 8), ("segments/", 3), ("metadata.jsonl", 1)]
AT = [at.strip("/") for at, _ in STAGES]
REFUSALS = [
    ("write", errno.ENOSPC, "The disk is full: free some space, then run the same command again"),
    ("write", errno.EDQUOT, "Your quota there is used up: free some space"),
    ("fsync", errno.EDQUOT, "Your quota there is used up: free some space"),
    ("replace", errno.ENOSPC, "The disk is full: free some space"),
    ("open", errno.EROFS, "The file system is read-only"),
]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("at", "after"), STAGES, ids=AT)
@pytest.mark.parametrize(
    ("call", "number", "advice"),
    REFUSALS,
    ids=[f"{call} {errno.errorcode[number]}" for call, number, _ in REFUSALS],
)
@pytest.mark.slow
def test_a_destination_that_refuses_ends_the_run_and_the_same_command_continues_it(
    store: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    call: str,
    number: int,
    advice: str,
    at: str,
    after: int,
) -> None:
    out = tmp_path / "out"
    command = ["extract", str(store), str(out), *FLAGS]
    with Trouble(out, call, number, at, after).in_force():
        assert main(command) == 6
    told = " ".join(capsys.readouterr().err.split())
    assert advice in told
    finished = check_whole(out)
    assert (
        finished
        in {
            "images/": (0, 1),
            "segments/": (1, 2),
            "metadata.jsonl": (SEGMENTS,),
        }[at]
    )

    assert main(command) == 0
    assert check_whole(out) == SEGMENTS
    assert files(out) == files(undisturbed)


@pytest.mark.parametrize(("at", "after"), STAGES, ids=AT)
@pytest.mark.slow
def test_a_folder_that_is_taken_away_ends_the_run_and_is_not_made_again_by_it(
    store: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    at: str,
    after: int,
) -> None:
    """What was there is gone: a run that went on would deliver the rest and call it all."""
    out = tmp_path / "out"
    command = ["extract", str(store), str(out), *FLAGS]
    with Trouble(out, "open", 0, at, after, instead=shutil.rmtree).in_force():
        assert main(command) == 6
    assert "taken away meanwhile" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()

    assert main(command) == 0
    assert files(out) == files(undisturbed)


@pytest.mark.slow
def test_a_folder_that_is_moved_ends_a_run_of_worker_processes_and_continues_when_put_back(
    store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, away = tmp_path / "out", tmp_path / "away"

    def move(progress: Progress) -> None:
        if progress.done_tiles >= TILES // SEGMENTS and not away.exists():
            out.rename(away)

    with pytest.raises(DestinationError, match=r"no longer there|taken away meanwhile"):
        extract(
            store,
            out,
            RECIPE,
            segment_minutes=0.1,
            cluster="local",
            workers=1,
            on_progress=move,
        )
    assert not out.exists()

    away.rename(out)
    assert extract(store, out, RECIPE).images == TILES
    assert check_whole(out) == SEGMENTS
    assert files(out) == files(undisturbed)


SMALL_DISK = """
set -e
disk=$1 size=$2 kept=$3
shift 3
mount -t tmpfs -o size=$size tmpfs "$disk"
set +e
"$@"
echo "first $?"
cp -a "$disk/out" "$kept/first"
mount -o remount,size=64m "$disk"
"$@"
echo "second $?"
cp -a "$disk/out" "$kept/second"
"""


def mounts_are_allowed(folder: Path) -> bool:
    program = shutil.which("unshare")
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return program is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_real_disk_that_is_full_is_survived(
    store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """In memory, in a namespace of its own: nobody else sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounts_are_allowed(disk):
        pytest.skip("this machine lets us mount nothing")
    pages = sum(-(-path.stat().st_size // 4096) for path in undisturbed.rglob("*.png"))
    size = str(pages * 4096 // 2)
    command = [sys.executable, "-m", "das_gpu", "extract", str(store), str(disk / "out")]
    done = subprocess.run(
        [
            *("unshare", "-rm", "bash", "-c", SMALL_DISK, "-", str(disk), size, str(tmp_path)),
            *(*command, *FLAGS),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "The disk is full: free some space" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("first", "second"))] == [
        "first 6",
        "second 0",
    ]
    assert 0 < check_whole(tmp_path / "first") < SEGMENTS
    assert check_whole(tmp_path / "second") == SEGMENTS
    assert files(tmp_path / "second") == files(undisturbed)
