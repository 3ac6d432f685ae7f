"""Examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.archives import random_walk, write_archive

SOURCE = Path(__file__).resolve().parents[1] / "src"
PUBLIC = ("archive", "feed", "labelled", "recipe", "run")
WITH_EXAMPLES = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """1200 channels x 30 s: what the examples call ``recording``."""
    path = tmp_path_factory.mktemp("recording") / "recording.zarr"
    return write_archive(path, random_walk(1200, 6000, seed=1), 200.0, (600, 3000))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_examples_in_docstrings(path, recording, tmp_path):
    module = import_module(module_name(path))
    names = {**vars(module), "recording": recording, "folder": tmp_path}
    failed, attempted = doctest.testmod(module, extraglobs=names)
    assert attempted > 0
    assert failed == 0


def test_the_public_functions_have_examples():
    public = ("das_gpu", *(f"das_gpu.{name}" for name in PUBLIC))
    assert set(public) <= {module_name(path) for path in WITH_EXAMPLES}
