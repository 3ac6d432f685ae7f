"""A time in which everything goes wrong, then quiet: all is delivered, bit by bit the same."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from das_gpu import Recipe, extract
from tests.archives import random_walk, write_archive
from tests.azurite import serve_blobs
from tests.killing.commands import Command, running
from tests.killing.remains import delivered, strays
from tests.proxy import Answer, FaultProxy, Hang, Latency, Reset, Truncate

CHAOS_S = float(os.environ.get("DAS_GPU_TEST_CHAOS_S", "15"))
"""At least; it goes on until every blow of `BLOWS` has been struck."""
LONGEST_CHAOS_S = CHAOS_S + 120
QUIET_RUNS = 4
FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "2", "--median", "channel"]
FLAGS += ["--segment-minutes", "0.05", "--patience", "15"]
CLUSTER = ["--cluster", "local", "--workers", "2"]
SAME = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 2, "median.kind": "channel"}
)
INTERRUPTIONS = {
    3: "tiles were lost to the storms; the same command tries them again",
    4: "the archive could not be opened",
    -signal.SIGKILL: "the driver was killed",
}
AT_WORK = "by 2 worker processes"
STORMS = {
    "503": Answer(503),
    "reset": Reset(after=200),
    "hang": Hang(),
    "truncate": Truncate(after=0.5),
}
BLOWS = ["worker"] * 6 + ["driver", *STORMS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 144 s: 48 rows of 2 tiles, in 48 segments."""
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 28_800, seed=13), 200.0, (12, 600))


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert extract(store, out, SAME, segment_minutes=0.05).exit_code == 0
    return out


@pytest.fixture
def network(store: Path) -> Iterator[FaultProxy]:
    """The archive on a server of blobs, behind a network that can fail."""

    def answer(key: str) -> bytes | int:
        path = store / key
        return path.read_bytes() if path.is_file() else 404

    with serve_blobs(answer) as served:
        port = int(served.url.split(":")[2].partition("/")[0])
        with FaultProxy(port, account="account") as proxy:
            yield proxy


@dataclass
class Agitator:
    """Strikes a run again and again; every kind of blow as often as `BLOWS` has it."""

    network: FaultProxy
    luck: np.random.Generator = field(default_factory=lambda: np.random.default_rng(60))
    struck: Counter[str] = field(default_factory=Counter)
    _bag: list[str] = field(default_factory=list)

    def strike(self, command: Command) -> None:
        self._bag = self._bag or self.luck.permutation(BLOWS).tolist()
        blow = self._bag.pop()
        if blow in STORMS:
            self.network.inject(STORMS[blow], seconds=float(self.luck.uniform(1, 3)))
        elif blow == "driver":
            command.process.kill()
        elif not self._kill_a_worker(command):
            self._bag.insert(0, blow)
            return
        self.struck[blow] += 1

    @property
    def done(self) -> bool:
        return Counter(BLOWS) <= self.struck

    def _kill_a_worker(self, command: Command) -> bool:
        workers = command.workers()
        if not workers:
            return False
        try:
            workers[self.luck.integers(len(workers))].kill()
        except psutil.NoSuchProcess:
            return False
        return True


@pytest.mark.slow
def test_after_kills_and_storms_of_every_kind_everything_is_delivered_bit_by_bit(
    network: FaultProxy, undisturbed: Path, tmp_path: Path
) -> None:
    """Runs into fresh folders, one after another, each until it has come through."""
    expected = delivered(undisturbed)
    agitator, ends, finished = Agitator(network), Counter[int](), 0

    def run(out: Path) -> list[str]:
        return ["extract", network.url("container"), str(out), *FLAGS, *CLUSTER]

    def whole(out: Path) -> bool:
        assert delivered(out) == expected
        assert strays(out) == []  # no segment is in quarantine, either
        return True

    network.inject(Latency(0.02))
    began_s = time.monotonic()

    def goes_on() -> bool:
        past_s = time.monotonic() - began_s
        return past_s < CHAOS_S or (past_s < LONGEST_CHAOS_S and not agitator.done)

    while goes_on():
        out = tmp_path / str(finished)
        with running(run(out), tmp_path) as command:
            while command.process.poll() is None and goes_on():
                time.sleep(agitator.luck.uniform(0.5, 2.5))
                # A cluster of which a worker is killed while it is being made does not come up.
                if AT_WORK in command.said:
                    agitator.strike(command)
            if not goes_on():
                network.clear()
            code = command.end()
            ends[code] += 1
            assert code in {0, *INTERRUPTIONS}, command.said
            finished += code == 0 and whole(out)

    made_in_chaos = len(list(tmp_path.glob("*/segments/*.jsonl")))
    out = tmp_path / str(finished - (code == 0))
    for _ in range(QUIET_RUNS):
        with running(run(out), tmp_path) as command:
            code = command.end()
            assert code in (0, 3), command.said
        if code == 0:
            break
    assert code == 0, "in quiet a few runs of the same command deliver everything"
    assert whole(out)
    assert agitator.done, agitator.struck
    assert made_in_chaos >= 1, "the blows came so thick that nothing was tried"
