"""``--cluster cuda`` without a GPU: dask-cuda's own cluster over stand-ins for the driver and RMM.

The stand-ins are folders on the PYTHONPATH of the process that starts the cluster; its workers
inherit it. `tests.gpu.harness.worker` puts the strict double in the place of CuPy in the workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from das_gpu import Recipe, extract
from tests.archives import random_walk, write_archive
from tests.gpu.agreement import assert_runs_agree
from tests.gpu.harness.worker import PRELOAD

pytestmark = [pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).parent / "harness"
STAND_INS = [HARNESS / "fake_nvml", HARNESS / "rmm_recorder"]
GIBIBYTE = 1 << 30

FACTS = """
import json, logging, os, signal, sys

def facts():
    import cupy, psutil
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator
    return {
        "process": os.getpid(),
        "devices": os.environ["CUDA_VISIBLE_DEVICES"],
        "canary": os.environ["CANARY"],
        "started": psutil.Process().cmdline(),
        "threads": len(os.sched_getaffinity(0)),
        "pool": rmm.asked,
        "allocator": cupy.cuda.get_allocator() is rmm_cupy_allocator,
        "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "heard": [
            name
            for name in ("distributed.worker", "tornado.application")
            if logging.getLogger(name).isEnabledFor(logging.ERROR)
        ],
    }

def listening():
    import psutil
    me = psutil.Process()
    return [
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]

def main():
    from das_gpu import cluster

    with cluster.start("cuda") as team:
        seen = {}
        for _ in range(50):
            futures = [team.submit(facts) for _ in range(4)]
            seen |= {one["devices"]: one for one in (each.result(60) for each in futures)}
            if len(seen) == team.capacity:
                break
        answer = {"capacity": team.capacity, "workers": seen, "listening": listening()}
    print(json.dumps(answer))

if __name__ == "__main__":
    main()
"""


def environment(**changed: str) -> dict[str, str]:
    """This process's, with the stand-ins before everything else."""
    path = os.pathsep.join(map(str, [*STAND_INS, REPOSITORY]))
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, "PYTHONPATH": path, **changed}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the workers of a cluster on two GPUs say of themselves."""
    script = tmp_path_factory.mktemp("cluster") / "facts.py"
    script.write_text(FACTS)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env=environment(CANARY="inherited"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_each_gpu_has_a_worker_process_that_sees_it_first(cluster: dict[str, Any]) -> None:
    assert cluster["capacity"] == 2
    assert sorted(cluster["workers"]) == ["0,1", "1,0"]
    assert len({one["process"] for one in cluster["workers"].values()}) == 2


def test_workers_are_spawned_and_inherit_the_environment(cluster: dict[str, Any]) -> None:
    """Forking would copy the readers' locks; credentials are named by environment variables."""
    for one in cluster["workers"].values():
        assert "spawn_main" in " ".join(one["started"])
        assert one["canary"] == "inherited"


def test_cupy_allocates_from_a_bounded_pool_of_rmm(cluster: dict[str, Any]) -> None:
    """Of the 16 GiB of a stand-in."""
    for one in cluster["workers"].values():
        (pool,) = one["pool"]
        assert pool["pool_allocator"]
        assert not pool["managed_memory"]
        assert pool["initial_pool_size"] == int(0.1 * 16 * GIBIBYTE) // 256 * 256
        assert pool["maximum_pool_size"] == int(0.9 * 16 * GIBIBYTE) // 256 * 256
        assert one["allocator"]


def test_nothing_listens_on_other_than_loopback(cluster: dict[str, Any]) -> None:
    assert set(cluster["listening"]) == {"127.0.0.1"}


def test_a_terminals_ctrl_c_leaves_workers_alone(cluster: dict[str, Any]) -> None:
    assert all(one["interrupt"] for one in cluster["workers"].values())


def test_what_dask_trips_over_while_a_worker_closes_is_not_heard(cluster: dict[str, Any]) -> None:
    assert not any(one["heard"] for one in cluster["workers"].values())


def test_without_a_gpu_the_cluster_says_so(tmp_path: Path) -> None:
    ran = run(tmp_path / "none.zarr", tmp_path / "out", FAKE_NVML_DEVICES="0")
    assert ran.returncode == 2
    assert "--cluster cuda finds no GPU: NVML Shared Library Not Found" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def run(store: Path, out: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """``das-gpu extract --cluster cuda`` on a small recording, made here."""
    write_archive(store, random_walk(36, 6000, seed=5), 200.0, (16, 700))
    command = [sys.executable, "-m", "das_gpu", "extract", str(store), str(out)]
    command += ["--channels", "::1", "--tile-seconds", "3", "--bands", "3"]
    command += ["--segment-minutes", "0.1", "--cluster", "cuda"]
    return subprocess.run(
        command, env=environment(**changed), capture_output=True, text=True, timeout=280
    )


def test_a_whole_run_on_two_gpus_agrees_with_the_cpu(tmp_path: Path) -> None:
    """The driver touches no device; in the workers every launch goes through the double."""
    store = tmp_path / "a.zarr"
    ran = run(store, tmp_path / "gpu", **{PRELOAD: '["tests.gpu.harness.worker"]'})
    assert ran.returncode == 0, ran.stderr
    assert "Computing on the GPU, by 2 worker processes, asked for" in ran.stderr
    assert "Traceback" not in ran.stderr
    recipe = Recipe().with_settings(
        {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3}
    )
    extract(store, tmp_path / "cpu", recipe, backend="cpu", segment_minutes=0.1)
    assert_runs_agree(tmp_path / "gpu", tmp_path / "cpu", "float32")


def test_workers_without_a_gpu_backend_end_the_run_before_anything_is_written(
    tmp_path: Path,
) -> None:
    """NVML finds devices, but no driver can be loaded: CuPy would not run."""
    ran = run(tmp_path / "a.zarr", tmp_path / "out")
    assert ran.returncode == 2, ran.stderr
    assert "There is no NVIDIA driver on this machine" in ran.stderr
    assert not (tmp_path / "out").exists()
