"""Ctrl-C, a batch system's warning, and impatience: a run ends in time, and goes on later."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bench.blob_server import serve

from das_gpu import Recipe, extract
from das_gpu.cli.stop import stoppable
from tests.archives import random_walk, write_archive
from tests.outputs import files

FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "3", "--median", "channel"]
SMALL = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 30 s: 10 rows of 3 tiles, in 5 segments of 0.1 minutes."""
    folder = tmp_path_factory.mktemp("store")
    write_archive(folder / "a.zarr", random_walk(36, 6000, seed=5), 200.0, (16, 700))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGINT, []), (signal.SIGTERM, ["--cluster", "local", "--workers", "2"])],
)
def test_a_signal_stops_a_run_within_seconds(
    folder: Path, tmp_path: Path, number: signal.Signals, asked: list[str]
) -> None:
    """The store answers so slowly that a segment would take a minute more."""
    out = tmp_path / "out"
    with serve(folder, latency_ms=400.0) as slow:
        command = [sys.executable, "-m", "das_gpu", "extract", f"{slow}/a.zarr", str(out), *FLAGS]
        command += ["--segment-minutes", "0.1", "--loaders", "1", *asked]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            wait_for_file(out, "segments/*.jsonl")
            running.send_signal(number)
            signalled = time.monotonic()
            _, said = running.communicate(timeout=60)
            seconds = time.monotonic() - signalled
    assert running.returncode == 130, said
    assert "Ctrl-C once more leaves at once" in said
    assert "same command continues" in said
    assert "Traceback" not in said
    assert seconds < 20
    assert not list(out.rglob(".~das-gpu-*"))
    assert not (out / "run.lock").exists()
    done = len(list(out.glob("segments/*.jsonl")))
    assert 1 <= done < 5


def wait_for_file(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stopped_run_is_continued_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    extract(folder / "a.zarr", tmp_path / "undisturbed", SMALL, segment_minutes=0.1)
    command = [sys.executable, "-m", "das_gpu", "extract", str(folder / "a.zarr")]
    command += [str(tmp_path / "out"), *FLAGS, "--segment-minutes", "0.1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        wait_for_file(tmp_path / "out", "images/**/*.png")
        running.terminate()
    assert running.returncode in (130, 0)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


IMPATIENT = """
import time
from das_gpu.cli.stop import stoppable

with stoppable():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == "stopping\n"
        running.send_signal(second)
        _, said = running.communicate(timeout=10)
    assert running.returncode == 130
    assert "Left at once. The same command continues the run." in said


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    """Only the main thread may say what they do."""
    ended = threading.Event()

    def work() -> None:
        with stoppable():
            ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended.is_set()


STUCK = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from das_gpu import __main__ as program, workers

def main():
    ThreadPoolExecutor(1).submit(threading.Event().wait)
    workers.threading.enumerate()[-1].name = workers.STUCK
    print("done")
    return 3

program.main = main
program.command()
"""


def test_a_thread_that_hangs_does_not_keep_the_command_from_ending() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=20
    )
    assert (ended.returncode, ended.stdout) == (3, "done\n")
