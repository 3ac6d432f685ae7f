"""The documentation site: it is built without a warning, is whole, and asks no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import das_gpu
from das_gpu.cli import main
from das_gpu.settings import KEYS

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; what Sphinx has to say is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    answer = subprocess.run(
        [*command, "-d", str(folder / "trees"), str(DOCS), str(folder / "site")],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(DOCS.parent / "src")},
    )
    assert answer.returncode == 0, answer.stderr
    return folder / "site"


class Page(HTMLParser):
    """What a page loads by itself, where its links go, and which ids it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        self.ids.add(of.get("id", ""))
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        if LOADED.get(tag, "") in of:
            self.loads.append(of[LOADED[tag]])


@pytest.mark.slow
def test_every_page_is_there_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {file.stem: Page(file) for file in site.glob("*.html")}
    assert {file.stem for file in DOCS.glob("*.md")} <= set(pages)
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = file.removesuffix(".html") if file else name
            if (file and not (site / file).exists()) or (
                anchor and target in pages and anchor not in pages[target].ids
            ):
                broken.append(f"{name}: {link}")
    assert broken == []


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for file in site.glob("*.html"):
        page = Page(file)
        assert [each for each in page.loads if re.match(r"(\w+:)?//", each)] == [], file.name
        missing = [
            each
            for each in page.loads
            if not each.startswith(("data:", "#")) and not (site / each.split("?")[0]).exists()
        ]
        assert missing == [], file.name
    for style in (site / "_static").rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", style.read_text()) == []


@pytest.mark.slow
def test_the_reference_has_every_public_name_every_setting_and_every_command(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Page(site / "api.html")
    assert {f"das_gpu.{name}" for name in das_gpu.__all__} <= api.ids
    text = (site / "api.html").read_text()
    assert [key for key in KEYS if f">{key}<" not in text] == []
    assert main(["--help"]) == 0
    commands = re.findall(r"^│ ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) > 12
    shown = Page(site / "commands.html").ids
    assert [name for name in commands if f"das-gpu-{name}" not in shown] == []
