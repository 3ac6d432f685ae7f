"""pyproject.toml, environment.yml and constraints.txt ask for the same things."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONDA: dict[str, Any] = yaml.safe_load((REPOSITORY / "environment.yml").read_text())

CONDA_NAMES = {
    "dask": ("dask", "distributed"),
    "cupy-cuda12x": ("cupy",),
    "cupy-cuda13x": ("cupy",),
    "rmm-cu12": ("rmm",),
    "rmm-cu13": ("rmm",),
}
"""Packages that conda calls otherwise, or keeps in more than one piece."""

CONDA_ONLY = {"python", "pip", "cuda-version"}


def conda_bounds(requirements: list[str]) -> dict[str, str]:
    """Requirements of pyproject.toml as conda would put them: name -> version bounds."""
    bounds = {}
    for requirement in map(Requirement, requirements):
        for name in CONDA_NAMES.get(requirement.name, (requirement.name,)):
            bounds[name] = str(requirement.specifier)
    return bounds


def environment() -> dict[str, str]:
    """environment.yml: name -> version bounds."""
    parsed = map(Requirement, CONDA["dependencies"])
    return {requirement.name: str(requirement.specifier) for requirement in parsed}


def pins() -> dict[str, str]:
    """constraints.txt: normalised name -> version."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    entries = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in entries}


def test_conda_environment_has_every_run_time_dependency_with_the_same_bounds() -> None:
    expected = conda_bounds(PROJECT["dependencies"])
    assert {name: environment().get(name) for name in expected} == expected


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_conda_environment_has_every_gpu_package_with_the_same_bounds(extra: str) -> None:
    expected = conda_bounds(EXTRAS[extra])
    assert {name: environment().get(name) for name in expected} == expected


def test_conda_environment_has_nothing_else() -> None:
    declared = conda_bounds(PROJECT["dependencies"]) | conda_bounds(EXTRAS["cuda12"])
    assert set(environment()) - set(declared) == CONDA_ONLY


def test_conda_environment_asks_for_the_same_python() -> None:
    assert environment()["python"] == PROJECT["requires-python"]


def test_gpu_extras_conflict_so_none_combines_them() -> None:
    both = [name for name, needs in EXTRAS.items() if "cu12" in str(needs) and "cu13" in str(needs)]
    assert both == []


@pytest.mark.parametrize("requirement", PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["torch"])
def test_constraints_pin_a_version_that_the_project_accepts(requirement: str) -> None:
    wanted = Requirement(requirement)
    version = pins()[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{wanted} is pinned to {version}"


def test_constraints_fit_either_version_of_cuda() -> None:
    """Of the GPU's packages only those that tests need are pinned; the extras choose the rest.

    None of these is asked for by the extra of the other version of CUDA, at another version.
    """
    tested = {"cupy-cuda13x", "dask-cuda", "nvidia-cuda-nvrtc"}
    theirs = {"cuda-core", "cuda-pathfinder", "nvidia-ml-py"}
    gpu = ("cupy", "dask-cuda", "rmm", "librmm", "nvidia", "cuda")
    assert {name for name in pins() if name.startswith(gpu)} == tested | theirs
