"""What docs/clusters.md and its scripts tell people to run is what das-gpu and dask understand."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from das_gpu import Recipe, extract
from das_gpu.cli import main
from tests.archives import random_walk, write_archive
from tests.outputs import files

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "clusters.md").read_text()
FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "3", "--median", "channel"]
SMALL = Recipe().with_settings(
    {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slurm() -> ModuleType:
    return script("slurm")


@pytest.fixture(scope="module")
def kubernetes() -> ModuleType:
    return script("kubernetes")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 30 s: 10 rows of 3 tiles."""
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 6000, seed=5), 200.0, (16, 700))


def options_of(command: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in command if word.startswith("--") and word != "--"}


def known_to_dask_cuda() -> str:
    """The source of its command line, which cannot be imported without a driver."""
    found = importlib.util.find_spec("dask_cuda")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name("cli.py").read_text()


def require_known_to_dask(command: list[str]) -> None:
    from distributed.cli.dask_worker import main as worker

    context = worker.make_context("dask worker", command)
    assert (context.params["nthreads"], context.params["memory_limit"]) == (1, "0")


# --- the page -----------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Commands of the page, word by word, without comments and what they are piped to."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [re.split(r" [#|]", line)[0].split() for line in lines if line]


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words[:3]))
def test_every_option_on_the_page_exists(
    command: list[str],
    slurm: ModuleType,
    kubernetes: ModuleType,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAS_GPU_BANDS", "3")  # the store has no channels for ten
    match command[:2]:
        case ["python", path]:
            module = {"docs/slurm.py": slurm, "docs/kubernetes.py": kubernetes}[path]
            asked = module.arguments(command[2:])
            assert asked.workers in (4, 40)
            planned = ["extract", str(store), str(tmp_path), *asked.extract[2:]]
            planned[planned.index("--channels") + 1] = "::5"
            assert main([*planned, "--dry-run"]) == 0
        case ["das-gpu", "extract"]:
            words = {"SOURCE": str(store), "OUT": str(tmp_path)}
            assert main([*(words.get(word, word) for word in command[1:]), "--dry-run"]) == 0
        case ["dask", "worker"]:
            require_known_to_dask(command[2:])
        case ["dask", "scheduler"]:
            from distributed.cli.dask_scheduler import main as scheduler

            assert scheduler.make_context("dask scheduler", command[2:])
        case _:
            assert command[0] == "kubectl"


@pytest.mark.parametrize("code", [0, 2, 3, 5, 130])
def test_the_loop_for_nights_ends_when_a_person_is_needed_or_all_is_done(
    tmp_path: Path, code: int
) -> None:
    passing = [1, 4, 6, 11, 137]
    (tmp_path / "codes").write_text("".join(f"{each}\n" for each in [*passing, code, 0]))
    fake = tmp_path / "das-gpu"
    fake.write_text(
        '#!/bin/sh\ncode=$(head -n 1 "$CODES")\nsed -i 1d "$CODES"\necho "$*"\nexit "$code"\n'
    )
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("das-gpu", "sleep"):
        (tmp_path / name).chmod(0o755)
    (loop,) = blocks("sh")
    done = subprocess.run(
        ["sh", "-c", loop],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODES": str(tmp_path / "codes")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.splitlines() == ["extract SOURCE OUT --channels 10000::5"] * 6
    assert (tmp_path / "codes").read_text() == "0\n"


def test_systemd_does_not_start_again_what_the_loop_would_leave() -> None:
    (unit,) = blocks("ini")
    (text,) = re.findall(r"RestartPreventExitStatus=(.*)", unit)
    assert text.split() == ["2", "3", "5", "130"]


def test_every_page_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", TEXT)
    assert [link for link in links if not (DOCS / link).exists()] == []
    assert {"slurm.py", "kubernetes.py"} <= set(links)


# --- SLURM --------------------------------------------------------------------------------


def test_a_job_is_asked_for_what_its_workers_need(slurm: ModuleType) -> None:
    given = ["--per-job", "4", "--cores", "2", "--memory", "3GB", "--account", "ocean"]
    asked = slurm.job(slurm.arguments([*given, "--", "a", "b", "--bands", "3"]))
    assert (asked["cores"], asked["processes"], asked["job_cpu"]) == (4, 4, 8)
    assert asked["memory"] == "12000000000 B"
    assert (asked["account"], asked["queue"]) == ("ocean", None)
    require_known_to_dask(["--nthreads", "1", *asked["worker_extra_args"]])


def test_a_job_with_a_gpu_has_one_worker_that_takes_memory_from_rmm(slurm: ModuleType) -> None:
    given = ["--gpu", "--sbatch=--constraint=a100", "--", "a", "b"]
    asked = slurm.job(slurm.arguments(given))
    assert asked["job_extra_directives"] == ["--gpus=1", "--constraint=a100"]
    assert (asked["processes"], asked["worker_command"]) == (1, "dask_cuda.cli")
    told = options_of(asked["worker_extra_args"])
    assert {option for option in told if f'"{option}"' not in known_to_dask_cuda()} == set()
    with pytest.raises(SystemExit):
        slurm.arguments(["--gpu", "--per-job", "2", "--", "a", "b"])


def test_keys_are_for_their_owner_and_for_the_time_of_the_run(
    slurm: ModuleType, tmp_path: Path
) -> None:
    with slurm.keys(tmp_path) as (security, variables):
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert {Path(file).parent for file in variables.values()} == {folder}
        assert security.get_connection_args("client")["require_encryption"] is True
        for role in ("scheduler", "worker", "client"):
            assert security.get_tls_config_for_role(role)["key"] == str(folder / "key.pem")
    assert list(tmp_path.iterdir()) == []


class Slurm:
    """``sbatch`` and ``scancel`` that run a job's script here, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.jobs.mkdir()
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.programs = folder / "programs"
        self.programs.mkdir()
        for name, text in {
            "sbatch": 'copy=$(mktemp "$JOBS/XXXXXX") && cp "$1" "$copy"\n'
            '[ -z "$LONG" ] || echo "sleep 60" >"$copy"\n'
            'setsid sh "$copy" >"$copy.said" 2>&1 </dev/null &\necho "$!" >"$copy.number"\n'
            'echo "Submitted batch job $!"\n',
            "scancel": 'echo "$1" >>"$JOBS/cancelled"\nkill -TERM "-$1"\n',
        }.items():
            (self.programs / name).write_text(f"#!/bin/sh\n{text}")
            (self.programs / name).chmod(0o755)
        path = f"{self.programs}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "JOBS": str(self.jobs)}

    def queue_is_long(self) -> None:
        """From now on a job waits, and its workers never come."""
        self.environment["LONG"] = "yes"

    def start(self, *extract: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(DOCS / "slurm.py"), "--workers", "1", "--memory", "1GB"]
        command += ["--interface", "lo", "--shared", str(self.shared), "--logs", str(self.jobs)]
        return subprocess.Popen(
            [*command, "--", *extract],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submitted(self) -> set[int]:
        return {int(file.read_text()) for file in self.jobs.glob("*.number")}

    def cancelled(self) -> set[int]:
        file = self.jobs / "cancelled"
        return set(map(int, file.read_text().split())) if file.exists() else set()

    def kill_what_is_left(self) -> None:
        for number in self.submitted():
            try:
                os.killpg(number, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def batch_system(tmp_path: Path) -> Any:
    # Only looked for: its import takes this process's Ctrl-C for itself.
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("no dask-jobqueue here")
    if shutil.which("setsid") is None:
        pytest.skip("no setsid here")
    made = Slurm(tmp_path)
    yield made
    made.kill_what_is_left()


@pytest.mark.slow
def test_jobs_of_slurm_make_the_same_files(
    batch_system: Slurm, store: Path, tmp_path: Path
) -> None:
    command = [str(store), str(tmp_path / "out"), *FLAGS, "--segment-minutes", "0.1"]
    with batch_system.start(*command) as running:
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert "worker process" in said
    extract(store, tmp_path / "here", SMALL, segment_minutes=0.1)
    made, expected = files(tmp_path / "out"), files(tmp_path / "here")
    for found in (made, expected):
        for log in [name for name in found if name.startswith("logs/")]:
            del found[log]
    assert made == expected
    assert len(batch_system.submitted()) == 1
    assert batch_system.submitted() == batch_system.cancelled()
    assert list(batch_system.shared.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "scancel"])
def test_a_stop_in_the_queue_leaves_no_job_behind(
    stop: signal.Signals, batch_system: Slurm, store: Path, tmp_path: Path
) -> None:
    batch_system.queue_is_long()
    with batch_system.start(str(store), str(tmp_path / "out"), *FLAGS) as running:
        deadline = time.monotonic() + 60
        while not batch_system.submitted() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(stop)
        _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) == (128 + stop, False), said
    assert batch_system.submitted() == batch_system.cancelled() != set()
    assert list(batch_system.shared.iterdir()) == []


@pytest.mark.slow
def test_a_mistake_is_told_before_anything_is_queued(batch_system: Slurm, tmp_path: Path) -> None:
    with batch_system.start(str(tmp_path / "nowhere.zarr"), str(tmp_path / "out")) as running:
        _, said = running.communicate(timeout=60)
    assert running.returncode == 4
    assert "nowhere.zarr" in said
    assert batch_system.submitted() == set()


class Kept:
    """A cluster of which it is asked how many workers it is to have."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def scale(self, workers: int) -> None:
        self.asked.append(workers)


@pytest.fixture
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.slow
def test_das_gpu_is_stopped_once_and_its_exit_code_is_kept(
    slurm: ModuleType, tmp_path: Path, restored_signals: None, number: signal.Signals
) -> None:
    ready, heard = tmp_path / "ready", tmp_path / "heard"
    child = (
        "import os, signal, sys, time\n"
        f"heard = open({str(heard)!r}, 'a')\n"
        "def stop(number, _):\n"
        "    print(number, file=heard, flush=True)\n"
        "    time.sleep(0.2)\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"open({str(ready)!r} + '~', 'w').write(str(os.getsid(0)))\n"
        f"os.rename({str(ready)!r} + '~', {str(ready)!r})\n"
        "time.sleep(20)\n"
    )

    def warn() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(warn)
        assert slurm.run([sys.executable, "-c", child], {}, Kept(), 3) == 130
    assert heard.read_text().split() == [str(int(signal.SIGTERM))]
    assert int(ready.read_text()) != os.getsid(0), "a terminal's Ctrl-C would reach it, too"


def test_jobs_that_ended_too_early_are_asked_for_again(
    slurm: ModuleType, restored_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "LOOK_S", 0.05)
    cluster = Kept()
    program = "import time; time.sleep(0.3)"
    assert slurm.run([sys.executable, "-c", program], {}, cluster, 3) == 0
    assert len(cluster.asked) > 2
    assert set(cluster.asked) == {3}


def test_a_driver_that_is_killed_counts_as_failed(
    slurm: ModuleType, restored_signals: None
) -> None:
    program = "import os; os.kill(os.getpid(), 9)"
    assert slurm.run([sys.executable, "-c", program], {}, Kept(), 1) == 137


# --- Kubernetes ---------------------------------------------------------------------------


@pytest.fixture
def job(kubernetes: ModuleType, store: Path, tmp_path: Path) -> dict[str, Any]:
    given = ["--name", "night", "--image", "registry/das-gpu:0.1.0", "--workers", "40"]
    given += ["--memory", "6Gi", "--secret", "storage:AZURE_STORAGE_SAS_TOKEN"]
    given += ["--claim", "cable:/data", "--", str(store), str(tmp_path), *FLAGS]
    made = kubernetes.job(kubernetes.arguments(given))
    assert json.loads(json.dumps(made)) == made
    return made


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["cluster"]["spec"]
    found = {name: cluster[name]["spec"] for name in ("worker", "scheduler")}
    return {"driver": job["spec"]["job"]["spec"], **found}


def container(job: dict[str, Any], pod: str) -> dict[str, Any]:
    (only,) = pods(job)[pod]["containers"]
    return only


def test_all_pods_are_of_one_image(job: dict[str, Any]) -> None:
    used = {container(job, pod)["image"] for pod in pods(job)}
    used |= {each["image"] for each in pods(job)["driver"]["initContainers"]}
    assert used == {"registry/das-gpu:0.1.0"}


def test_a_worker_pod_makes_one_segment_at_a_time(job: dict[str, Any]) -> None:
    assert job["spec"]["cluster"]["spec"]["worker"]["replicas"] == 40
    worker = container(job, "worker")
    assert worker["command"][:2] == ["dask", "worker"]
    require_known_to_dask(worker["command"][2:])
    assert worker["resources"]["limits"] == {"cpu": "1", "memory": "6Gi"}
    assert worker["resources"]["requests"] == worker["resources"]["limits"]


def test_secrets_reach_workers_and_driver_by_reference_and_nobody_else(
    job: dict[str, Any],
) -> None:
    reference = {"secretKeyRef": {"name": "storage", "key": "AZURE_STORAGE_SAS_TOKEN"}}
    expected = [{"name": "AZURE_STORAGE_SAS_TOKEN", "valueFrom": reference}]
    assert container(job, "worker")["env"] == container(job, "driver")["env"] == expected
    assert "env" not in container(job, "scheduler")


def test_workers_and_driver_see_the_same_volume(job: dict[str, Any]) -> None:
    for pod in ("worker", "driver"):
        assert container(job, pod)["volumeMounts"] == [{"name": "cable", "mountPath": "/data"}]
        (volume,) = pods(job)[pod]["volumes"]
        assert volume["persistentVolumeClaim"] == {"claimName": "cable"}


@pytest.mark.slow
def test_the_driver_is_a_command_that_das_gpu_understands(job: dict[str, Any]) -> None:
    driver = container(job, "driver")
    assert driver["command"][0] == "das-gpu"
    assert driver["command"][-2:] == ["--scheduler", "tcp://night-scheduler:8786"]
    assert main([*driver["command"][1:], "--dry-run"]) == 0
    assert pods(job)["driver"]["restartPolicy"] == "Never"


def test_the_driver_begins_when_the_scheduler_listens(job: dict[str, Any]) -> None:
    (first,) = pods(job)["driver"]["initContainers"]
    python, option, program, address = first["command"]
    assert (python, option, address) == ("python", "-c", "night-scheduler")
    compile(program, "initContainer", "exec")
    (port, _) = job["spec"]["cluster"]["spec"]["scheduler"]["service"]["ports"]
    assert (port["name"], port["port"]) == ("tcp-comm", 8786)
    assert f", {port['port']})" in program


def test_the_service_leads_to_the_scheduler_of_this_job(job: dict[str, Any]) -> None:
    service = job["spec"]["cluster"]["spec"]["scheduler"]["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": "night",
        "dask.org/component": "scheduler",
    }
    offered = {port["name"] for port in container(job, "scheduler")["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == offered


def test_a_worker_with_a_gpu_asks_for_one(kubernetes: ModuleType) -> None:
    made = kubernetes.job(kubernetes.arguments(["--image", "i", "--gpu", "--", "a", "b"]))
    worker = container(made, "worker")
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["command"][:3] == ["dask", "cuda", "worker"]
    source = known_to_dask_cuda()
    told = options_of(worker["command"])
    assert {
        each for each in told if f'"{each}' not in source and f'/{each}"' not in source
    } == set()


@pytest.mark.parametrize(
    "wrong",
    [["--name", "Night_1"], ["--secret", "storage"], ["--claim", ":/x"], ["--workers", "0"]],
)
def test_what_kubernetes_would_refuse_is_refused_at_once(
    kubernetes: ModuleType, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        kubernetes.arguments(["--image", "i", *wrong, "--", "a", "b"])
    assert wrong[0] in capsys.readouterr().err
