"""Segments made by the workers of a dask cluster that is there already, as a batch system's is.

The scheduler and its workers are processes of their own, started as an operator would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from distributed import Client

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.errors import ClusterError
from das_gpu.run import Progress
from tests.archives import random_walk, write_archive
from tests.outputs import files, lines

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
)
FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "3", "--median", "channel"]
TILES = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 30 s: 10 rows of 3 tiles, in 5 segments of 0.1 minutes."""
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 6000, seed=5), 200.0, (16, 700))


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert extract(store, out, SMALL, segment_minutes=0.1).exit_code == 0
    return out


class Cluster:
    """A scheduler and workers, each a process that a test may stop."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(self.file),
        )  # fmt: skip
        wait_until(self.file.exists)

    def worker(self) -> subprocess.Popen[bytes]:
        """One more, with a nanny that looks after it."""
        arguments = ("worker", "--scheduler-file", str(self.file), "--nthreads", "1")
        return self._start(*arguments, "--no-dashboard", "--local-directory", str(self.file.parent))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.file.parent,
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def cluster_in(folder: Path, workers: int) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(folder)
        stack.callback(cluster.stop)
        for _ in range(workers):
            cluster.worker()
        if workers:
            with Client(scheduler_file=str(cluster.file), set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=60)
                # A busy machine takes seconds to import it, which tests with short limits lack.
                client.run(exec, "import das_gpu.task")
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("cluster"), workers=2) as found:
        yield found


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_the_workers_of_a_scheduler_make_the_same_files(
    store: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "out"
    asked = ["--scheduler-file", str(cluster.file), "--segment-minutes", "0.1"]
    assert main(["extract", str(store), str(out), *FLAGS, *asked]) == 0
    assert files(out) == files(undisturbed)


def test_a_scheduler_is_found_by_its_address_too(
    store: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster
) -> None:
    address = json.loads(cluster.file.read_text())["address"]
    summary = extract(store, tmp_path / "out", SMALL, scheduler=address, segment_minutes=0.1)
    assert "worker process" in summary.backend_reason
    assert files(tmp_path / "out") == files(undisturbed)


def test_a_driver_that_dies_leaves_the_workers_to_others(
    store: Path, undisturbed: Path, tmp_path: Path, cluster: Cluster
) -> None:
    """And nothing that it had begun goes on behind the back of the next run."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "das_gpu", "extract", str(store), str(out), *FLAGS]
    command += ["--scheduler-file", str(cluster.file), "--segment-minutes", "0.1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        wait_until(lambda: list(out.glob("images/**/*.png")))
        driver.kill()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert files(out) == files(undisturbed)


def test_a_scheduler_that_dies_ends_the_run_and_another_continues_it(
    store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    with cluster_in(tmp_path / "cluster", workers=1) as mortal:

        def kill(_: Progress) -> None:
            if list(tmp_path.glob("out/segments/*.jsonl")):
                mortal.scheduler.kill()

        began = time.monotonic()
        with pytest.raises(ClusterError, match="connection to the dask scheduler was lost"):
            extract(
                store,
                tmp_path / "out",
                SMALL,
                scheduler_file=mortal.file,
                segment_minutes=0.1,
                on_progress=kill,
            )
        assert time.monotonic() - began < 60
    done = len(lines(tmp_path / "out" / "metadata.jsonl"))
    assert 0 < done < TILES
    assert extract(store, tmp_path / "out", SMALL).made == TILES - done
    assert files(tmp_path / "out") == files(undisturbed)


def test_a_worker_that_is_frozen_loses_its_segment_to_another(
    store: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that neither works nor dies: the worst that a machine can do."""
    from das_gpu.cluster import executor

    monkeypatch.setattr(executor, "GRACE_S", 1.0)
    monkeypatch.setattr(executor, "SILENT_S", 2.5)
    monkeypatch.setattr(executor, "ASK_S", 2.0)
    (tmp_path / "cluster").mkdir()
    frozen: list[int] = []
    with cluster_in(tmp_path / "cluster", workers=2) as mixed:

        def freeze(progress: Progress) -> None:
            if not frozen and progress.done_tiles >= 3:
                frozen.append(a_worker(mixed))
                os.kill(frozen[0], signal.SIGSTOP)

        try:
            summary = extract(
                store,
                tmp_path / "out",
                SMALL,
                scheduler_file=mixed.file,
                segment_minutes=0.1,
                stall_minutes=0.1,
                on_progress=freeze,
                access=impatient(),
            )
        finally:
            for process in frozen:
                kill_if_there(process)
    assert frozen
    assert summary.exit_code == 0
    assert files(tmp_path / "out") == files(undisturbed)


def a_worker(cluster: Cluster) -> int:
    """Number of the process that does the work of one of the workers."""
    import psutil

    nanny = psutil.Process(cluster.processes[1].pid)
    for child in nanny.children():
        if "resource_tracker" not in " ".join(child.cmdline()):
            return int(child.pid)
    raise AssertionError("the nanny has no worker")


def kill_if_there(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def impatient() -> object:
    from das_gpu.patience import Patience
    from das_gpu.store import Access

    return Access(patience=Patience.within(1.0))


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (["--scheduler", "tcp://127.0.0.1:9"], 1, "no dask scheduler answers"),
        (["--scheduler", "nonsense://x"], 2, "does not name a dask scheduler"),
        (["--scheduler-file", "absent.json"], 2, "there is no such file"),
        (["--scheduler", "tcp://127.0.0.1:9", "--cluster", "local"], 2, "exclude each other"),
    ],
)
def test_a_scheduler_that_cannot_be_had_is_an_error_that_says_so(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    code: int,
    said: str,
) -> None:
    from das_gpu.cluster import attach

    monkeypatch.setattr(sys.modules[attach.__module__], "ANSWER_S", 1.0)
    assert main(["extract", str(store), str(tmp_path / "out"), *FLAGS, *asked]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scheduler_without_workers_is_waited_for_and_no_longer(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    with (
        cluster_in(tmp_path / "cluster", workers=0) as empty,
        pytest.raises(ClusterError, match="no worker is there"),
    ):
        extract(
            store,
            tmp_path / "out",
            SMALL,
            scheduler_file=empty.file,
            stall_minutes=0.02,
            access=impatient(),
        )
