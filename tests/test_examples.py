"""Examples in docstrings and in the README do what they show."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gpu import Recipe, extract
from tests.archives import random_walk, write_archive

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
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


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own README
    assert capsys.readouterr().out.startswith("40 images")


@pytest.mark.slow
def test_the_picture_of_the_readme_is_drawn_from_a_run(recording, tmp_path):
    extract(recording, tmp_path / "run", Recipe())
    picture = tmp_path / "picture.png"
    script = REPOSITORY / "docs" / "picture.py"
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    subprocess.run([sys.executable, script, tmp_path / "run", picture], check=True, env=environment)
    with Image.open(picture) as image:
        assert min(image.size) > 400
        assert np.unique(np.asarray(image.convert("L"))).size > 30
