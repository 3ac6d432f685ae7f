"""docs/science.md says what das-gpu computes: its numbers are measured anew, its figures drawn."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT = json.loads((DOCS / "science.json").read_text())
NAMES = ("science", "science_page", "science_figures")


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], Any]]:
    """Imports a script of the page; they import each other as programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module
        for name in NAMES:
            sys.modules.pop(name, None)


def numbers(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, f"{path}/{key}")
    else:
        yield path, tree


def test_the_page_has_the_kept_numbers_in_its_tables_and_its_text(
    script: Callable[[str], Any],
) -> None:
    page = (DOCS / "science.md").read_text()
    of_page = script("science_page")
    assert of_page.with_tables(page, KEPT) == page
    assert [each for each in of_page.phrases(KEPT) if each not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    ["units", "grid", "band_pass", "aliasing", "edges", "median", "aperture", "agreement"],
)
def test_measured_again_the_numbers_are_the_same(
    script: Callable[[str], Any], section: str
) -> None:
    found = dict(numbers(getattr(script("science"), section)()))
    kept = dict(numbers(KEPT["filter" if section == "band_pass" else section]))
    assert found.keys() == kept.keys()
    # What is left of rounding differs from processor to processor: no more than twice as much.
    rel_tol = 0.5 if section == "agreement" else 0.02
    different = {
        name: (found[name], kept[name])
        for name in found
        if not math.isclose(found[name], kept[name], rel_tol=rel_tol, abs_tol=1e-5)
    }
    assert different == {}


@pytest.mark.slow
def test_the_figures_are_drawn_for_small_screens(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    script("science_figures").draw(tmp_path, KEPT)
    shown = set(re.findall(r"\(figures/(\w+\.png)\)", (DOCS / "science.md").read_text()))
    assert {file.name for file in tmp_path.iterdir()} == shown
    for name in shown:
        assert (DOCS / "figures" / name).stat().st_size < 100_000
        with Image.open(tmp_path / name) as image:
            assert 800 <= image.width <= 1000
            assert np.unique(np.asarray(image.convert("L"))).size > 30
