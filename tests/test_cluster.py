"""Segments made by other processes: the same files, the same records, the same errors."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import distributed
import pytest
from distributed.scheduler import KilledWorker

from das_gpu import Recipe, cluster, extract, run, task
from das_gpu.backends import Selected
from das_gpu.backends.cpu import CpuBackend
from das_gpu.cli import main
from das_gpu.cluster import DaskWorkers, executor, local, packages
from das_gpu.cluster.worker import Answer
from das_gpu.credentials import Credential
from das_gpu.crew import Crew
from das_gpu.errors import (
    ClusterError,
    DasGpuError,
    DestinationError,
    DeviceError,
    InterruptedRunError,
    SourceError,
    UsageError,
    WorkerError,
)
from das_gpu.run import Progress
from das_gpu.sink import LocalSink
from das_gpu.store import Access
from das_gpu.task import Job, extract_task
from das_gpu.workers import BEGUN, Here
from tests.archives import random_walk, write_archive
from tests.outputs import files, lines

SMALL = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
)
FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "3", "--median", "channel"]
TILES = 30
PER_SEGMENT = 6


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


class Elsewhere(Here):
    """Threads that are given, and give back, what a process would be: copies by pickle."""

    @property
    def capacity(self) -> int:
        return 2

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sent = pickle.dumps((fn, args, kwargs))

        def work() -> Any:
            function, arguments, named = pickle.loads(sent)  # noqa: S301 - our own bytes
            return pickle.loads(pickle.dumps(function(*arguments, **named)))  # noqa: S301

        return super().submit(work)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are worked on as by other processes, without the time that these take to start."""

    @contextmanager
    def hire(*_: object) -> Iterator[Crew]:
        yield Crew(Elsewhere(), 1, Selected(CpuBackend(1), "asked for"), remote=True)

    monkeypatch.setattr(run, "hire", hire)


# --- the run ------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_processes_make_the_same_files(
    store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    summary = extract(store, tmp_path / "out", SMALL, cluster="local", segment_minutes=0.1)
    assert (summary.images, summary.made, summary.exit_code) == (TILES, TILES, 0)
    assert files(tmp_path / "out") == files(undisturbed)
    assert "worker process" in summary.backend_reason


def test_a_run_elsewhere_makes_the_same_files_and_counts_the_same(
    store: Path, undisturbed: Path, tmp_path: Path, elsewhere: None
) -> None:
    seen: list[Progress] = []
    summary = extract(store, tmp_path / "out", SMALL, segment_minutes=0.1, on_progress=seen.append)
    here = extract(store, tmp_path / "here", SMALL, segment_minutes=0.1)
    assert files(tmp_path / "out") == files(undisturbed)
    assert (summary.chunks, summary.stored_bytes) == (here.chunks, here.stored_bytes)
    done = [one.done_tiles for one in seen]
    assert (done[0], done[-1]) == (0, TILES)
    assert len(set(done)) > TILES / PER_SEGMENT, "rows of tiles are told of, not only segments"


def test_a_worker_opens_archive_plan_and_sink_once_for_a_run(
    store: Path, tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    opens = task.open_planned
    monkeypatch.setattr(task, "open_planned", lambda *args: (opened.append(1), opens(*args))[1])
    for name in ("a", "b"):
        extract(store, tmp_path / name, SMALL, segment_minutes=0.1)
    assert len(opened) == 2


def test_images_are_on_the_disk_before_their_segment_is_vouched_for(
    store: Path, tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's sink does not know what a worker's has still to force to the disk."""
    unsynced: list[int] = []
    made = task.extract_task

    def watched(job: Job, number: int) -> Any:
        result = made(job, number)
        sink = next(iter(task._opened.values())).sink
        unsynced.append(len(sink._unsynced_files))
        return result

    monkeypatch.setattr(run, "extract_task", Sent(watched))
    extract(store, tmp_path / "out", SMALL, segment_minutes=60)
    assert unsynced == [0]


class Sent:
    """A function of a test that passes through a pickle unharmed."""

    kept: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        Sent.kept = staticmethod(function)

    def __call__(self, *args: Any) -> Any:
        return Sent.kept(*args)


@pytest.mark.parametrize(("failures", "errors"), [(2, 0), (3, PER_SEGMENT)])
def test_a_segment_whose_device_fails_is_tried_three_times(
    store: Path,
    undisturbed: Path,
    tmp_path: Path,
    elsewhere: None,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    errors: int,
) -> None:
    left = [failures]
    made = task.extract_segment

    def failing(archive: Any, plan: Any, number: int, *args: Any, **kwargs: Any) -> Any:
        if number == 2 and left[0]:
            left[0] -= 1
            raise DeviceError("The GPU fell off the bus.")
        return made(archive, plan, number, *args, **kwargs)

    monkeypatch.setattr(task, "extract_segment", failing)
    summary = extract(store, tmp_path / "out", SMALL, segment_minutes=0.1)
    assert summary.tiles["error"] == errors
    if not errors:
        assert files(tmp_path / "out") == files(undisturbed)


def test_ctrl_c_keeps_what_is_finished(
    store: Path, undisturbed: Path, tmp_path: Path, elsewhere: None
) -> None:
    pressed = Event()

    def interrupt(progress: Progress) -> None:
        here = current_thread() is main_thread() and not pressed.is_set()
        if here and progress.done_tiles >= 2 * PER_SEGMENT:
            pressed.set()
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="same command continues"):
        extract(store, tmp_path / "out", SMALL, segment_minutes=0.1, on_progress=interrupt)
    done = len(lines(tmp_path / "out" / "metadata.jsonl"))
    assert 0 < done < TILES
    assert done % PER_SEGMENT == 0
    again = extract(store, tmp_path / "out", SMALL)
    assert again.made == TILES - done
    assert files(tmp_path / "out") == files(undisturbed)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_driver_alone(
    store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A terminal sends it to every process of the command."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "das_gpu", "extract", str(store), str(out), *FLAGS]
    command += ["--segment-minutes", "0.001", "--cluster", "local", "--workers", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        deadline = time.monotonic() + 60
        while not list(out.glob("segments/*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) == (130, False), said
    assert "same command continues" in said
    assert subprocess.run(command[:-4], capture_output=True).returncode == 0
    made = {name for name in files(out) if name.startswith("images")}
    assert made == {name for name in files(undisturbed) if name.startswith("images")}


@pytest.mark.parametrize("begun", [False, True])
def test_a_cluster_of_gpus_does_not_compute_on_the_cpu(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    """Asked for by name, or by the run that is to be continued."""
    if begun:
        extract(store, tmp_path, SMALL, backend="cpu", segment_minutes=60)
    asked = ["--cluster", "cuda", *([] if begun else ["--backend", "cpu"])]
    before = files(tmp_path)
    assert main(["extract", str(store), str(tmp_path), *FLAGS, *asked]) == 2
    assert "--cluster cuda computes on GPUs" in capsys.readouterr().err
    assert files(tmp_path) == before


# --- what is sent -------------------------------------------------------------------------


def test_a_task_is_small_and_holds_no_secret(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "sv=1&sig=" + "c2VjcmV0LWNhbmFyeS1vZi10aGUtdGVzdA%3D%3D"
    monkeypatch.setenv("CANARY", canary)
    access = Access(Credential.parse("sas:CANARY"), account="account")
    job = Job(
        run="0",
        version="1",
        source=access.locate("az://container/a.zarr"),
        access=access,
        recipe=SMALL,
        segment_minutes=15.0,
        out=access.locate("az://container/out"),
        out_access=access,
        backend="gpu",
        threads=1,
        loaders=12,
        on_missing="skip",
    )
    assert job.access.credential.resolve("account").value == canary
    sent = pickle.dumps((extract_task, job, 7))
    assert b"CANARY" in sent
    assert b"c2VjcmV0" not in sent
    assert len(sent) < 8192


def test_a_worker_with_another_version_makes_nothing(
    store: Path, tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "version", lambda _: "0.0.1")
    with pytest.raises(ClusterError, match=r"begun by das-gpu 0\.0\.1.*same version"):
        extract(store, tmp_path / "out", SMALL, segment_minutes=0.1)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_worker_that_does_not_see_the_output_folder_makes_nothing(
    store: Path, tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its own under the same name would hold images that nobody finds."""
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(task, "open_sink", lambda *_: LocalSink(tmp_path / "own"))
    with pytest.raises(DestinationError, match="place that all workers share"):
        extract(store, tmp_path / "out", SMALL, segment_minutes=0.1)
    assert not list(tmp_path.rglob("*.png"))


# --- dask's executor ----------------------------------------------------------------------


class Dask:
    """What `DaskWorkers` asks of a client, in the hands of a test."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = SimpleNamespace(asyncio_loop=loop)
        self.tasks: dict[str, tuple[Any, Future[Any]]] = {}
        self.restarted: list[str] = []
        self.status, self.seen = "running", time.time()

    def submit(
        self, _perform: object, *args: Any, key: str, pure: bool, retries: int
    ) -> Future[Any]:
        assert (pure, retries) == (False, 0)
        self.tasks[key] = args, Future()
        return self.tasks[key][1]

    async def gather(self, future: Future[Any], *, asynchronous: bool) -> Any:
        assert asynchronous
        return await asyncio.wrap_future(future)

    def subscribe_topic(self, _topic: str, handler: Callable[[Any], None]) -> None:
        self.handler = handler

    def scheduler_info(self, **_: object) -> dict[str, Any]:
        return {"workers": {WORKER: {"status": self.status, "nthreads": 1, "last_seen": self.seen}}}

    def restart_workers(self, workers: list[str], **_: object) -> dict[str, str]:
        self.restarted += workers
        return dict.fromkeys(workers, "OK")

    def run(self, number: int) -> None:
        """Let a worker do the task, of that number."""
        (_, function, args, kwargs), future = list(self.tasks.values())[number]
        self.say(number, "begun")
        try:
            answer = Answer(function(*args, **kwargs))
        except DasGpuError as error:
            answer = Answer(error=error)
        self.say(number, "ended")
        if not future.cancelled():
            future.set_result(answer)

    def say(self, number: int, what: str, **facts: object) -> None:
        key = list(self.tasks)[number]
        self.handler((0.0, {"key": key, "say": what, "worker": WORKER, **facts}))


WORKER = "tcp://127.0.0.1:1"


@pytest.fixture
def dask() -> Iterator[Dask]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Dask(loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    for each in asyncio.all_tasks(loop):
        each.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def fail(error: Exception) -> None:
    raise error


def test_results_and_errors_of_tasks_arrive_as_they_are(dask: Dask) -> None:
    workers = DaskWorkers(dask)
    fine = workers.submit(int, "7")
    failed = workers.submit(fail, SourceError("the store is gone"))
    assert not fine.done()
    dask.run(0)
    dask.run(1)
    assert fine.result(1) == 7
    with pytest.raises(SourceError, match="the store is gone"):
        failed.result(1)
    assert len(dask.tasks) == 2, "no two tasks have the same key"


def test_what_workers_say_is_passed_on(dask: Dask) -> None:
    workers, heard = DaskWorkers(dask), []
    workers.on_beat = lambda future, tiles: heard.append((future, tiles))
    future = workers.submit(int, "7")
    dask.say(0, "begun")
    dask.say(0, "tiles", tiles=3)
    assert heard == [(future, BEGUN), (future, 3)]
    assert workers.where(future) == WORKER


def test_what_dask_raises_is_told_apart(dask: Dask) -> None:
    """A worker that died is the segment's affair, a scheduler that is gone the run's."""
    workers = DaskWorkers(dask)
    killed, lost, other = (workers.submit(int) for _ in range(3))
    inner = [future for _, future in dask.tasks.values()]
    inner[0].set_exception(KilledWorker("task-1", SimpleNamespace(address="tcp://127.0.0.1"), 3))
    inner[1].cancel()
    inner[2].set_exception(RuntimeError("no"))
    with pytest.raises(WorkerError, match="fewer --workers"):
        killed.result(1)
    with pytest.raises(ClusterError, match="connection to the dask scheduler was lost"):
        lost.result(1)
    with pytest.raises(ClusterError, match="same command continues"):
        other.result(1)


@pytest.mark.slow
def test_a_task_that_fails_when_its_lost_result_is_wanted_again_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its worker dies with what it has made, and then every worker that does it anew."""
    with distributed.Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        killed = KilledWorker("task-1", SimpleNamespace(address="tcp://127.0.0.1"), 3)

        async def lost(*_: object) -> dict[str, object]:
            return {"status": "error", "keys": list(client.futures)}

        send = client._send_to_scheduler

        def ask_again(message: dict[str, Any]) -> None:
            if message["op"] == "report-key":
                state = client.futures[message["key"]]
                client.loop.call_later(0.05, state.set_error, killed, None)
            else:
                send(message)

        monkeypatch.setattr(client, "_gather_remote", lost)
        monkeypatch.setattr(client, "_send_to_scheduler", ask_again)
        with pytest.raises(WorkerError, match="One worker process after the other died"):
            DaskWorkers(client).submit(int, "7").result(10)


def test_a_cancelled_task_has_ended_when_its_worker_says_so(dask: Dask) -> None:
    workers = DaskWorkers(dask)
    running, queued = workers.submit(int, "1"), workers.submit(int, "2")
    dask.say(0, "begun")
    for future in (running, queued):
        workers.cancel(future, WorkerError("It hung."))
    with pytest.raises(WorkerError, match="It hung"):
        queued.result(0)
    assert not running.done()
    dask.say(0, "ended")
    with pytest.raises(WorkerError, match="It hung"):
        running.result(0)
    assert not dask.restarted


def test_what_has_ended_is_not_cancelled_on_its_way_here(dask: Dask) -> None:
    workers = DaskWorkers(dask)
    done = workers.submit(int, "7")
    dask.say(0, "begun")
    dask.say(0, "ended")
    workers.cancel(done, WorkerError("It hung."))
    dask.tasks[next(iter(dask.tasks))][1].set_result(Answer(7))
    assert done.result(1) == 7


def test_a_worker_that_does_not_let_go_is_restarted(
    dask: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.0)
    workers = DaskWorkers(dask)
    stuck = workers.submit(int, "1")
    dask.say(0, "begun")
    workers.tidy()
    assert not dask.restarted, "it is not cancelled"
    workers.cancel(stuck, WorkerError("It hung."))
    workers.tidy()
    assert dask.restarted == [WORKER]
    with pytest.raises(WorkerError, match="It hung"):
        stuck.result(0)


def test_workers_that_are_paused_count_for_nothing_and_can_be_restarted(dask: Dask) -> None:
    dask.status = "paused"
    workers = DaskWorkers(dask)
    assert workers.capacity == 0
    assert workers.trouble() == "1 of 1 workers are paused for want of memory"
    assert workers.relieve()
    assert dask.restarted == [WORKER]


def test_workers_that_do_not_answer_can_be_restarted(dask: Dask) -> None:
    workers = DaskWorkers(dask)
    assert not workers.relieve()
    dask.seen -= 2 * executor.SILENT_S
    assert workers.trouble() == "1 of 1 workers do not answer"
    assert workers.relieve()
    assert dask.restarted == [WORKER]


def test_stopping_cancels_everything_and_waits_for_what_is_running(dask: Dask) -> None:
    workers = DaskWorkers(dask)
    running, queued = workers.submit(int, "1"), workers.submit(int, "2")
    dask.say(0, "begun")
    stopped = Event()

    def stop() -> None:
        workers.shutdown(cancel_futures=True)
        stopped.set()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(stop)
        with pytest.raises(InterruptedRunError):
            queued.result(5)
        assert not stopped.wait(0.1)
        dask.say(0, "ended")
        assert stopped.wait(5)
    with pytest.raises(InterruptedRunError):
        running.result(0)


@pytest.mark.parametrize(("failures", "comes_up"), [(1, True), (2, False)])
def test_workers_that_are_killed_while_they_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch, dask: Dask, failures: int, comes_up: bool
) -> None:
    left = [failures]

    def begin(*_: object) -> Dask:
        if left[0]:
            left[0] -= 1
            raise ClusterError("The workers of --cluster local did not come up.")
        return dask

    monkeypatch.setattr(local, "_begin", begin)
    if comes_up:
        with cluster.start("local", 1) as team:
            assert team.capacity == 1
    else:
        with pytest.raises(ClusterError, match="did not come up"), cluster.start("local", 1):
            pass


def test_a_worker_process_that_nothing_else_ends_is_killed() -> None:
    """Workers ignore SIGTERM, with which Python would end them before it waits for them."""
    left = get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    left.name = "Dask Worker process (from Nanny)"
    other = get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    for process in (left, other):
        process.start()
    local._kill_left()
    left.join(10)
    assert left.exitcode == -signal.SIGKILL
    assert other.is_alive()
    other.kill()
    other.join()


# --- what is missing ----------------------------------------------------------------------


def test_an_unknown_kind_of_cluster_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose local or cuda"):
        extract(store, tmp_path, SMALL, cluster="slurm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "name"), [("dask_cuda", "dask-cuda"), ("rmm", "RMM")])
def test_a_cluster_of_gpus_without_its_packages_says_which_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def find_spec(asked: str) -> object | None:
        return None if asked == module else object()

    monkeypatch.setattr(packages, "find_spec", find_spec)
    monkeypatch.setattr(packages, "import_module", lambda _: None)
    with pytest.raises(UsageError, match=f"{name} is not installed.*pip install"), start():
        pass


def test_an_old_dask_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip falls back to where a newer one does not fit has another interface."""
    monkeypatch.setattr(packages, "version", lambda _: "0.18.0")
    with pytest.raises(UsageError, match=r"dask-cuda 0\.18\.0 is older than 26"), start():
        pass


def start() -> Any:
    return cluster.start("cuda")
