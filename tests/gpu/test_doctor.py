"""``das-gpu doctor``: what is there, what is missing, what to do; and whether a run would start."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from das_gpu import cluster
from das_gpu.backends import cuda
from das_gpu.backends.cuda import Finding
from das_gpu.cli import main

NAMES = ["CuPy wheel", "driver", "CuPy and driver", "devices", "compiler", "transforms"]
SECONDS = 3.0


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one."""

    def missing() -> str:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "driver_library", missing)


def found(monkeypatch: pytest.MonkeyPatch, *extras: Finding) -> None:
    """A machine that has all the GPU backend needs, and what is given for clusters."""

    def findings(*, load: bool) -> Iterator[Finding]:
        assert load, "what is there is imported, where that can work"
        yield from extras

    everything = [Finding(name, f"the {name}") for name in NAMES]
    monkeypatch.setattr(cuda, "findings", lambda: iter(everything))
    monkeypatch.setattr(cluster, "findings", findings)


def test_a_machine_without_a_driver_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], no_driver: None
) -> None:
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    lines = dict(line.split("  ", 1) for line in said.splitlines())
    assert lines["Python"].strip() == sys.version.split()[0]
    assert "MISSING: There is no NVIDIA driver on this machine." in lines["driver"]
    assert "Install NVIDIA's driver" in lines["driver"]
    assert "devices" not in lines, "what needs the driver is not looked for"
    assert "--backend gpu cannot run here" in lines["verdict"]


def test_machines_are_told_in_json(capsys: pytest.CaptureFixture[str], no_driver: None) -> None:
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["gpu"] is False
    assert [(one["name"], one["ok"]) for one in facts["backend"]] == [
        ("CuPy wheel", True),
        ("driver", False),
    ]
    assert facts["backend"][-1]["remedy"]
    assert {one["name"] for one in facts["cluster"]} == {"dask-cuda", "RMM"}


@pytest.mark.parametrize("remedy", ["", "Install it."])
def test_only_what_the_backend_needs_decides(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    """A cluster's packages are shown, and may be missing."""
    found(monkeypatch, Finding("RMM", "it is said of RMM", remedy))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert all(f"the {name}\n" in said for name in NAMES)
    assert ("MISSING: it is said of RMM Install it." in said) == bool(remedy)
    assert "--backend gpu runs here." in said


@pytest.mark.parametrize("missing", NAMES)
def test_any_of_them_missing_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def broken() -> str:
        raise RuntimeError(f"no {missing}\nand much more")

    looks = [(name, broken if name == missing else (lambda: "there"), "Mend it.") for name in NAMES]
    monkeypatch.setattr(cuda, "_NEEDS", tuple(looks))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert f"MISSING: no {missing}. Mend it." in said
    assert "and much more" not in said


@pytest.mark.slow
def test_a_package_that_cannot_be_imported_is_missing(tmp_path: Path) -> None:
    """As dask-cuda is, installed without its extra: nothing is printed but that."""
    (tmp_path / "rmm.py").write_text("raise RuntimeError('librmm.so is not there')")
    script = (
        "from das_gpu import cluster\n"
        "for load in (False, True):\n"
        "    print(next(one for one in cluster.findings(load=load) if one.name == 'RMM').found)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout.splitlines() == [
        "installed",
        "RMM cannot be imported: librmm.so is not there.",
    ], ran.stderr


def test_it_answers_at_once_without_a_gpu() -> None:
    """Processor time, which other tests that run meanwhile do not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-m", "das_gpu", "doctor"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stdout + ran.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
