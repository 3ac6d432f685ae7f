"""Extract on Kubernetes, by the operator of dask-kubernetes: write the DaskJob to stdout.

Usage, on any machine, with nothing but Python::

    python docs/kubernetes.py --name night --image REGISTRY/das-gpu:0.1.0 --workers 40 \
        --secret storage:AZURE_STORAGE_SAS_TOKEN -- az://zarr/ooi.zarr az://images/night \
        --account ooi --channels 10000::5 | kubectl apply -f -
    kubectl logs -f night-runner
    kubectl delete daskjob night

What follows ``--`` is given to ``das-gpu extract``, in the image, whose Python has das-gpu. The
operator starts a scheduler, workers and the driver, and removes scheduler and workers when the
driver ends; deleting the job and applying it again continues the run.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

PORT = 8786
WAIT_FOR_SCHEDULER = f"""
import socket, sys, time
while True:
    try:
        socket.create_connection((sys.argv[1], {PORT}), 5).close()
        break
    except OSError:
        time.sleep(2)
"""
WORKER = ["--name", "$(DASK_WORKER_NAME)", "--nthreads", "1", "--no-dashboard"]
# Kubernetes holds a pod to its memory. dask would stop a worker for ever at 80 % of it.
WORKER += ["--memory-limit", "0"]
RMM = ["--rmm-pool-size", "0.1", "--rmm-maximum-pool-size", "0.9"]
RMM += ["--set-rmm-allocator-for-libs", "cupy"]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Write a DaskJob that runs das-gpu extract.",
        usage="%(prog)s [options] -- SOURCE OUT [options of das-gpu extract]",
    )
    add = parser.add_argument
    add("--name", default="das-gpu", help="of the job (default das-gpu)")
    add("--image", required=True, help="container image with das-gpu")
    add("--workers", type=int, default=8, metavar="N", help="worker pods (default 8)")
    add("--cpu", default="1", help="processors of each worker (default 1)")
    add("--memory", default="4Gi", metavar="SIZE", help="memory of each worker (default 4Gi)")
    add("--gpu", action="store_true", help="a GPU for each worker")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="SECRET:KEY",
        help="put a secret's key into the variable of that name, in workers and driver",
    )
    add(
        "--claim",
        action="append",
        default=[],
        metavar="CLAIM:PATH",
        help="mount a volume claim (ReadWriteMany) in workers and driver",
    )
    add("extract", nargs="+", metavar="...", help="SOURCE OUT and options of das-gpu extract")
    options = parser.parse_args(given)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?", options.name):
        parser.error(f"--name {options.name}: small letters, digits and hyphens, at most 53")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1")
    for option in ("secret", "claim"):
        for each in getattr(options, option):
            if not all(each.partition(":")[::2]):
                parser.error(f"--{option} {each}: two names with a colon between them are needed")
    return options


def job(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the whole job, as the operator takes it."""
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskJob",
        "metadata": {"name": options.name},
        "spec": {
            "job": {"spec": _driver(options)},
            "cluster": {
                "spec": {
                    "worker": {"replicas": options.workers, "spec": _worker(options)},
                    "scheduler": {
                        "spec": _scheduler(options),
                        "service": _service(options.name),
                    },
                }
            },
        },
    }


def _driver(options: argparse.Namespace) -> dict[str, Any]:
    address = f"{options.name}-scheduler"
    waiting = ["python", "-c", WAIT_FOR_SCHEDULER, address]
    command = ["das-gpu", "extract", *options.extract, "--scheduler", f"tcp://{address}:{PORT}"]
    pod = _pod(options, "job", command, {"cpu": "1", "memory": "1Gi"})
    first = {"name": "scheduler-is-there", "image": options.image, "command": waiting}
    # An exit code other than 0 is for people to look at: 3 would come again and again.
    return {**pod, "initContainers": [first], "restartPolicy": "Never"}


def _worker(options: argparse.Namespace) -> dict[str, Any]:
    asks = {"cpu": options.cpu, "memory": options.memory}
    if not options.gpu:
        return _pod(options, "worker", ["dask", "worker", *WORKER], asks)
    command = ["dask", "cuda", "worker", *WORKER, *RMM]
    return _pod(options, "worker", command, {**asks, "nvidia.com/gpu": "1"})


def _pod(
    options: argparse.Namespace, name: str, command: list[str], asks: dict[str, str]
) -> dict[str, Any]:
    """Describe a pod of one container that reads the archive and writes images."""
    secrets = [each.partition(":")[::2] for each in options.secret]
    claims = [each.partition(":")[::2] for each in options.claim]
    container = {
        "name": name,
        "image": options.image,
        "command": command,
        # By reference: a secret is in no manifest, no log and no task.
        "env": [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
            for secret, key in secrets
        ],
        "resources": {"requests": asks, "limits": asks},
        "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in claims],
    }
    volumes = [
        {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim, _ in claims
    ]
    return {"containers": [container], "volumes": volumes}


def _scheduler(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the scheduler's pod; it sees neither secrets nor data."""
    asks = {"cpu": "1", "memory": "1Gi"}
    container = {
        "name": "scheduler",
        "image": options.image,
        "command": ["dask", "scheduler", "--host", "0.0.0.0"],  # noqa: S104 - of its own pod
        "resources": {"requests": asks, "limits": asks},
        "ports": [
            {"name": "tcp-comm", "containerPort": PORT},
            {"name": "http-dashboard", "containerPort": 8787},
        ],
        "readinessProbe": {"httpGet": {"port": "http-dashboard", "path": "/health"}},
    }
    return {"containers": [container]}


def _service(name: str) -> dict[str, Any]:
    """Describe how workers, driver and operator find the scheduler."""
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [
            {"name": "tcp-comm", "protocol": "TCP", "port": PORT, "targetPort": "tcp-comm"},
            {
                "name": "http-dashboard",
                "protocol": "TCP",
                "port": 8787,
                "targetPort": "http-dashboard",
            },
        ],
    }


if __name__ == "__main__":
    json.dump(job(arguments()), sys.stdout, indent=1)
