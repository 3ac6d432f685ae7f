"""The tutorial's pictures of what people see: what ``preview`` draws, and a part of the page.

Usage, where the tutorial has been followed (needs playwright, and a Chromium, which the variable
``CHROMIUM`` may name)::

    python docs/screens.py steps.png calls/report.html docs/figures
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
STEPS_WIDTH = 1400
SHOWN = {"width": 900, "height": 880}
"""Of the page, from a little above its map."""
ABOVE = 20
QUALITY = 75


def main(preview: Path, page: Path, folder: Path) -> None:
    """Write ``steps.webp`` and ``report.webp`` into a folder."""
    with Image.open(preview) as drawn:
        height = round(drawn.height * STEPS_WIDTH / drawn.width)
        steps = drawn.convert("RGB").resize((STEPS_WIDTH, height), Image.Resampling.LANCZOS)
    steps.save(folder / "steps.webp", quality=QUALITY, method=6)
    with Image.open(io.BytesIO(screenshot(page, browser()))) as seen:
        seen.convert("RGB").save(folder / "report.webp", quality=QUALITY, method=6)


def browser() -> str:
    """The Chromium of this machine.

    Raises
    ------
    SystemExit
        When there is none.
    """
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise SystemExit(f"There is no Chromium: set CHROMIUM, or install one of {CHROMIUM}.")
    return found


def screenshot(page: Path, program: str) -> bytes:
    """A PNG of a run's page: its map, and the beginning of its contact sheet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, and in a container with little shared memory, it starts only like this.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=program, args=options)
        shown = chromium.new_page(viewport=SHOWN, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.locator("#shots").scroll_into_view_if_needed()
        shown.locator("#shots[data-loaded]").wait_for()
        top = shown.locator("#map-title").evaluate("(one) => one.getBoundingClientRect().top")
        clip = {"x": 0, "y": top + shown.evaluate("scrollY") - ABOVE, **SHOWN}
        picture: bytes = shown.screenshot(full_page=True, clip=clip)
        chromium.close()
    return picture


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
