"""docs/screens.py draws the tutorial's pictures from a preview and a run's page, as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gpu.cli import main
from tests.absent import absent
from tests.archives import random_walk, write_archive
from tests.pages import DOCS, module

NAMES = ("steps.webp", "report.webp")


def seen(path: Path) -> tuple[int, int]:
    """Size of a picture that shows something, and is small enough for a page."""
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert np.unique(np.asarray(image.convert("L"))).size > 30
        return image.size


@pytest.mark.slow
def test_the_pictures_of_the_tutorial_can_be_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screens = module("docs/screens.py")
    try:
        screens.browser()
    except SystemExit as none:
        absent(str(none))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recording = write_archive(tmp_path / "a.zarr", random_walk(300, 6000, 1), 200.0, (300, 3000))
    assert main(["preview", str(recording), "--bands", "1", "-o", "steps.png"]) == 0
    assert main(["extract", str(recording), "calls", "--bands", "4", "--tile-seconds", "5"]) == 0
    screens.main(Path("steps.png"), Path("calls/report.html"), tmp_path)
    width, height = seen(tmp_path / "steps.webp")
    with Image.open("steps.png") as preview:
        assert (width, height) == (1400, round(1400 * preview.height / preview.width))
    assert seen(tmp_path / "report.webp") == seen(DOCS / "figures" / "report.webp")


@pytest.mark.parametrize("name", NAMES)
def test_the_tutorial_shows_what_is_drawn(name: str) -> None:
    assert f"(figures/{name})" in (DOCS / "tutorial.md").read_text()
    seen(DOCS / "figures" / name)


def test_without_a_chromium_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match="There is no Chromium: set CHROMIUM"):
        module("docs/screens.py").browser()
