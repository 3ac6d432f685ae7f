"""Extract with workers that SLURM starts (needs ``pip install dask-jobqueue``).

Usage, on a login node or in a small job of its own::

    python docs/slurm.py --workers 40 --memory 4GB --walltime 08:00:00 --account ocean -- \
        SOURCE OUT --channels 10000::5

What follows ``--`` is given to ``das-gpu extract``, whose exit code this script ends with. The
scheduler runs in this process and ends with it. Jobs that end before the run does, at their
time limit or because somebody more important came, are submitted again. Whatever happens, the
same command continues. Scheduler, workers and driver speak TLS with a key made for this run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask

LOOK_S = 15.0
"""Between two looks at whether jobs are to be submitted again."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CONFIG = {
    # Pages that would show the run to everybody on the network.
    "distributed.scheduler.http.routes": [],
}
WORKER_VARIABLES = ["export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'"]
RMM = ["--rmm-pool-size", "0.1", "--rmm-maximum-pool-size", "0.9"]
RMM += ["--set-rmm-allocator-for-libs", "cupy"]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Run das-gpu extract with workers that SLURM starts.",
        usage="%(prog)s [options] -- SOURCE OUT [options of das-gpu extract]",
    )
    add = parser.add_argument
    add("--workers", type=int, default=8, metavar="N", help="worker processes (default 8)")
    add("--per-job", type=int, default=1, metavar="N", help="of these in one job (default 1)")
    add("--cores", type=int, default=1, metavar="N", help="processors of each (default 1)")
    add("--memory", default="4GB", metavar="SIZE", help="memory of each (default 4GB)")
    add("--gpu", action="store_true", help="one job and one GPU for each worker")
    add("--walltime", default="04:00:00", metavar="H:M:S", help="of a job (default 04:00:00)")
    add("--partition", metavar="NAME", help="where jobs are queued")
    add("--account", metavar="NAME", help="who pays")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="any other, --sbatch=--x=y")
    add("--interface", metavar="NAME", help="network that scheduler and workers meet on, as ib0")
    add(
        "--shared",
        type=Path,
        default=Path.home(),
        metavar="FOLDER",
        help="folder that all nodes see, for the keys of this run (default: the home folder)",
    )
    add(
        "--logs",
        type=Path,
        default=Path("slurm-logs"),
        metavar="FOLDER",
        help="where jobs write what they say (default slurm-logs)",
    )
    add("--show", action="store_true", help="print a job's script and submit nothing")
    add("extract", nargs="+", metavar="...", help="SOURCE OUT and options of das-gpu extract")
    options = parser.parse_args(given)
    if min(options.workers, options.per_job, options.cores) < 1:
        parser.error("--workers, --per-job and --cores are at least 1")
    if options.gpu and options.per_job > 1:
        parser.error("--gpu gives each worker a job of its own: leave --per-job out")
    return options


def job(options: argparse.Namespace) -> dict[str, Any]:
    """What one job asks SLURM for and runs, as `dask_jobqueue.SLURMCluster` takes it."""
    # SLURM holds jobs to their memory. dask would stop a worker for ever at 80 % of it.
    worker = ["--memory-limit", "0", *(RMM if options.gpu else [])]
    asks = ["--gpus=1", *options.sbatch] if options.gpu else options.sbatch
    return {
        # dask's threads: each makes one segment at a time.
        "cores": options.per_job,
        "processes": options.per_job,
        "job_cpu": options.per_job * options.cores,
        "memory": f"{dask.utils.parse_bytes(options.memory) * options.per_job} B",
        "walltime": options.walltime,
        "queue": options.partition,
        "account": options.account,
        "job_extra_directives": asks,
        "interface": options.interface,
        "log_directory": str(options.logs.absolute()),
        "job_name": "das-gpu",
        "job_script_prologue": WORKER_VARIABLES,
        "worker_command": "dask_cuda.cli" if options.gpu else "distributed.cli.dask_worker",
        "worker_extra_args": worker,
    }


@contextmanager
def keys(shared: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Files with a key and a certificate for this run: dask's settings, and a driver's variables.

    Only their owner can read them; they are gone when the context ends.
    """
    from distributed import Security

    made = Security.temporary()
    with tempfile.TemporaryDirectory(dir=shared, prefix=".das-gpu-") as folder:
        certificate, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        certificate.write_text(made.tls_ca_file)
        key.write_text(made.tls_client_key)
        files: dict[str, Any] = {"tls_ca_file": str(certificate)}
        for role in ("scheduler", "worker", "client"):
            files |= {f"tls_{role}_cert": str(certificate), f"tls_{role}_key": str(key)}
        prefix = "DASK_DISTRIBUTED__COMM__TLS__"
        variables = {
            f"{prefix}CA_FILE": str(certificate),
            f"{prefix}CLIENT__CERT": str(certificate),
            f"{prefix}CLIENT__KEY": str(key),
        }
        yield Security(require_encryption=True, **files), variables


def wait_for_a_worker(cluster: Any) -> None:
    """Wait until a job has come up; a queue takes as long as it takes."""
    while not cluster.scheduler.workers:
        time.sleep(1)


def run(command: list[str], variables: dict[str, str], cluster: Any, workers: int) -> int:
    """Run a command beside a cluster that is kept at its size; its exit code.

    A signal that asks this process to stop is handed on as SIGTERM. The command has a session of
    its own: a terminal's Ctrl-C would reach it as well, and a second one means at once.
    """
    with subprocess.Popen(  # noqa: S603 - das-gpu itself, with the user's own options
        command, env={**os.environ, **variables}, start_new_session=True
    ) as child:
        for number in STOPS:
            signal.signal(number, lambda *_: child.terminate())
        while True:
            cluster.scale(workers)
            try:
                code = child.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            # Killed by a signal: what a shell would say.
            return code if code >= 0 else 128 - code


def stop(number: int, _: object) -> None:
    """End in good order, so that no job is left in the queue."""
    raise SystemExit(128 + number)


def main() -> int:
    """Submit, extract, cancel what is left."""
    options = arguments()
    # Its import takes Ctrl-C for itself, so it comes before the handlers.
    from dask_jobqueue import SLURMCluster

    for number in STOPS:
        signal.signal(number, stop)
    command = [sys.executable, "-m", "das_gpu", "extract", *options.extract]
    if not options.show:
        # A mistake is told now, and not after a night in the queue.
        planned = subprocess.run(  # noqa: S603 - as above
            [*command, "--dry-run"], stdout=subprocess.DEVNULL, check=False
        )
        if planned.returncode:
            return planned.returncode

    with dask.config.set(CONFIG), keys(options.shared) as (security, variables):
        listening = {"dashboard_address": "127.0.0.1:0"}
        with SLURMCluster(
            security=security, protocol="tls://", scheduler_options=listening, **job(options)
        ) as cluster:
            if options.show:
                sys.stdout.write(cluster.job_script())
                return 0
            cluster.scale(options.workers)
            wait_for_a_worker(cluster)
            command += ["--scheduler", cluster.scheduler_address]
            return run(command, variables, cluster, options.workers)


if __name__ == "__main__":
    sys.exit(main())
