"""README.md and docs/*.md: every block is run, and what pages claim in numbers is so.

A page is read from top to bottom in an empty folder, as a person would, and every command does
its work there by this source: ``das-gpu`` is its command line, Python blocks share one namespace.
The folder has what a page takes to be there: ``SOURCE``, an archive with the published one's
times and channels of which a few live; ``day1/*.h5``, recordings of an interrogator; and where a
page speaks to Azure, the same things in an emulator, whose address replaces the account's. No
other word is changed. Not run as it stands is:

- what asks for a cluster or a GPU: it is planned (``--dry-run``);
- ``bench``: of a few channels and half a minute, once;
- ``make`` and ``source .venv/...``: run in a clone that has all installed, so that what is left out
  is the installing, which ``make test`` itself does; of ``make test`` a single test is run there;
- ``pip install 'das-gpu[...]'``: run, with a wheel of this source and without what that needs;
  ``pip install torch``: where it is installed, so that nothing is fetched;
- ``python docs/slurm.py``: its ``extract`` is planned; `tests.test_docs_clusters` lets it run with
  a stand-in for SLURM. ``python docs/training.py`` is run by `tests.test_training`;
- ``kubectl``: run with a stand-in, since there is no cluster. What it is given is written by
  ``docs/kubernetes.py``; `tests.test_docs_clusters` looks at each part of that.
"""

from __future__ import annotations

import doctest
import re
import shlex
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from PIL import Image

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.model import TileRecord
from tests import pages
from tests.archives import random_walk, write_archive
from tests.azurite import Azurite
from tests.clone import Clone
from tests.hdf5 import write_series
from tests.pages import DOCS, OTHERS_PACKAGES, REPOSITORY, Block, Words, blocks, check, commands

README = REPOSITORY / "README.md"
OWN_TESTS = {"clusters.md": "test_docs_clusters.py", "tutorial.md": "test_tutorial.py"}
"""Pages whose blocks are run by tests of their own, which look at more than that they work."""
PAGES = [README, *(page for page in sorted(DOCS.glob("*.md")) if page.name not in OWN_TESTS)]
SHOWN = {"", "text", "bibtex"}
"""Languages of what is looked at, not run."""

FIRST_NS = 1_635_832_797_500_000_000
"""2021-11-02T05:59:57.500: OOI's archive around the minute that the README extracts."""
CHANNELS, LIVE, SAMPLES = 10_300, 300, 13_000
OOI = "ooi_South_Tx.zarr/ooi_South_Tx.zarr"
STORAGE = re.compile(r"https://(?:ACCOUNT|dasdata)\.blob\.core\.windows\.net")
ELSEWHERE = {"--cluster", "--scheduler", "--scheduler-file"}
"""Options of a run on machines, or with devices, that are not here."""


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take to be there."""
    folder = tmp_path_factory.mktemp("things")
    samples = np.zeros((CHANNELS, SAMPLES), np.int32)
    samples[-LIVE:] = random_walk(LIVE, SAMPLES, seed=7)
    times_us = FIRST_NS // 1000 + np.arange(SAMPLES) * 5000
    chunks = (CHANNELS - LIVE, 3000)
    with zarr.config.set({"array.write_empty_chunks": True}):  # dead channels, not lost ones
        write_archive(folder / "SOURCE", samples, 200.0, chunks, times_us=times_us)
    write_series(folder / "day1", random_walk(60, 7000, seed=8), (3000, 4000))
    return folder


@pytest.fixture(scope="module")
def storage(azurite: Azurite, things: Path) -> str:
    """Address of an account that has them in public containers."""
    for container, name, prefix in (("zarr", "SOURCE", OOI), ("das", "day1", "day1")):
        azurite.create_container(container, public="container")
        azurite.upload_folder(things / name, container, prefix)
    return azurite.endpoint


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone") / "das-gpu")


@dataclass
class Reader:
    """Somebody who does in a folder what a page says, block by block."""

    storage: str
    folder: Path
    clone: Clone
    variables: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def does(self, block: Block) -> None:
        """Run a block, or fail: there is none that nobody looks at."""
        match block.language:
            case "bash":
                text = STORAGE.sub(self.storage, block.text)
                for command in commands(text, self.variables):
                    check(command)
                    self.runs(command)
            case "python":
                if not block.text.startswith(">>> "):
                    exec(compile(block.text, str(block), "exec"), self.names)  # noqa: S102 - ours
            case "toml":
                (self.folder / "recipe.toml").write_text(block.text)
                Recipe.load(config=self.folder / "recipe.toml")
            case "text" if block.text.startswith("channel,"):
                (self.folder / "positions.csv").write_text(block.text)
            case language:
                assert language in SHOWN, f"{block}: a block of {language!r} is run by nobody"
                hidden = re.findall(r"(?m)^\$? ?(?:das-gpu|pip|make|python) .*", block.text)
                assert hidden == [], f"{block}: commands belong in a block of bash"

    def runs(self, command: Words) -> None:
        """Do a command that has been checked, as far as that can be done here."""
        match command:
            case ["das-gpu", "bench", *given]:
                few = ["--channels", "::20", "--minutes", "0.5", "--repeats", "1"]
                assert main(["bench", *given, *few, "--out", "bench.json"]) == 0
            case ["das-gpu", *given]:
                if ELSEWHERE & set(given) or given[-2:] == ["--backend", "gpu"]:
                    given = [*given, "--dry-run"]
                expected = {0, 1} if given == ["doctor"] else {0}  # 1: there is no GPU
                assert main(self.spelt_out(given)) in expected, shlex.join(command)
            case ["python", "docs/slurm.py" as script, *given]:
                asked = pages.module(script).arguments(given)
                assert main(["extract", *asked.extract, "--dry-run"]) == 0
            case ["python", "docs/kubernetes.py" as script, *given]:
                writing = shlex.join(["python", str(REPOSITORY / script), *given])
                assert self.clone.shell(f"{writing} | kubectl apply -f -") == "DaskJob taken\n"
            case ["kubectl", "apply", "-f", "-"]:
                pass  # it came after the pipe of the one before
            case ["make", target]:
                self.clone.make(target)
                if target == "demo":
                    assert len(list((self.clone.folder / "demo/images").rglob("*.png"))) == 40
                    assert (self.clone.folder / "demo/report.html").exists()
            case ["pip", "install", *wanted] if not OTHERS_PACKAGES & set(wanted):
                self.clone.installs(wanted)
            case ["source", ".venv/bin/activate"]:
                found = self.clone.shell("command -v das-gpu").strip()
                assert found == str(self.clone.folder / ".venv/bin/das-gpu")
            case ["source", "<(", *making, ")"]:
                shown = self.clone.shell(f"source <({shlex.join(making)}) && complete -p das-gpu")
                assert shown.endswith(" das-gpu\n")
            case ["pip", "install", *wanted]:
                if all(map(find_spec, wanted)):
                    said = self.clone.shell(shlex.join(["python", "-m", *command]))
                    assert "already satisfied" in said
            case ["python", "docs/training.py", *_]:
                pass
            case _:
                raise AssertionError(f"{shlex.join(command)}: nobody here runs this command")

    def spelt_out(self, words: Words) -> Words:
        """Words with the files that a pattern stands for."""
        found: Words = []
        for word in words:
            files = sorted(self.folder.glob(word)) if "*" in word else []
            found += map(str, files) if files else [word]
        return found


def every_command() -> list[Any]:
    found = []
    for page in PAGES:
        variables: dict[str, str] = {}
        for block in blocks(page):
            if block.language == "bash":
                for command in commands(block.text, variables):
                    name = f"{block} {' '.join(command[:3])}"
                    found.append(pytest.param(command, id=name))
    return found


@pytest.mark.parametrize("command", every_command())
def test_a_command_of_a_page_is_understood(command: Words) -> None:
    check(command)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_works_from_top_to_bottom(
    page: Path,
    storage: str,
    things: Path,
    clone: Clone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for thing in things.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    reader = Reader(storage, tmp_path, clone)
    for block in blocks(page):
        reader.does(block)
    failed, _ = doctest.testfile(str(page), module_relative=False, globs={"folder": tmp_path})
    assert failed == 0


@pytest.mark.parametrize(
    "line",
    [
        "das-gpu extract demo: images --no-such-option",
        "das-gpu extract demo: images --bands ten",
        "das-gpu extrakt demo: images",
        "das-gpu extract",
        "pip install 'das-gpu[wings]'",
        "pip install numpy-of-somebody",
        "make nonsense",
        "python docs/none.py",
        "python docs/slurm.py -- SOURCE OUT --channel 3",
        "source somewhere/else",
        "kubectl destroy",
        "rm -rf /",
        "das-gpu info demo: > facts",
    ],
)
def test_a_command_that_cannot_work_is_found(line: str) -> None:
    (command,) = commands(line, {})
    with pytest.raises((AssertionError, OSError, SystemExit)):
        check(command)


@pytest.mark.parametrize(
    ("language", "text"),
    [("fish", "das-gpu info demo:\n"), ("text", "das-gpu info demo:\n"), ("toml", "[filtre]\n")],
)
def test_a_block_that_nobody_runs_is_found(
    language: str, text: str, clone: Clone, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"run by nobody|block of bash|not a setting"):
        Reader("", tmp_path, clone).does(Block("page.md", 1, language, text))


def test_words_of_a_command_are_those_a_shell_would_see() -> None:
    text = 'AT=a/b\ndas-gpu info $AT --x "y z" # why\nmake a && make \\\n  b | kubectl c\n'
    assert commands(text, {}) == [
        ["das-gpu", "info", "a/b", "--x", "y z"], ["make", "a"], ["make", "b"], ["kubectl", "c"],
    ]  # fmt: skip


def test_pages_that_are_left_out_here_have_tests_of_their_own() -> None:
    there = {page: test for page, test in OWN_TESTS.items() if (DOCS / page).exists()}
    assert "clusters.md" in there
    for page, test in there.items():
        assert f'{page}"' in Path(__file__).with_name(test).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_field_of_a_record_is_explained() -> None:
    text = (DOCS / "manifest.md").read_text()
    table = text[text.index("| field ") : text.index("## The same command")]
    explained = re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\|(.*?)\|", table)))
    assert sorted(explained) == sorted(each.name for each in fields(TileRecord))


def test_the_citation_has_what_its_format_asks_for() -> None:
    said = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(said)
    assert (said["cff-version"], said["type"]) == ("1.2.0", "software")
    assert said["authors"]
    assert all(set(author) == {"name"} for author in said["authors"])


def test_the_entry_for_bibtex_says_what_the_citation_says() -> None:
    said = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    (entry,) = (block.text for block in blocks(README) if block.language == "bibtex")
    cited = dict(re.findall(r"(\w+) *= *\{+(.*?)\}+,?\n", entry))
    assert cited.pop("year").isdigit()
    assert cited == {
        "title": said["title"], "author": said["authors"][0]["name"], "version": said["version"],
    }  # fmt: skip


# --- pictures -----------------------------------------------------------------------------


def is_a_picture(path: Path) -> None:
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert min(image.size) > 400
        assert np.unique(np.asarray(image.convert("L"))).size > 30


@pytest.mark.parametrize("name", ["demo.png", "recipes.png"])
def test_pictures_are_small_and_show_something(name: str) -> None:
    is_a_picture(DOCS / name)


@pytest.mark.slow
def test_the_picture_of_the_readme_is_drawn_from_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    recording = write_archive(tmp_path / "a.zarr", random_walk(300, 6000, 1), 200.0, (300, 3000))
    assert extract(recording, tmp_path / "run", Recipe()).images == 20
    pages.module("docs/picture.py").main(tmp_path / "run", tmp_path / "picture.png")
    is_a_picture(tmp_path / "picture.png")


@pytest.mark.slow
def test_the_recipes_differ_as_the_figure_and_its_caption_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    figure = pages.module("docs/recipes.py")
    made = figure.find()
    figure.draw(made, tmp_path / "recipes.png")
    is_a_picture(tmp_path / "recipes.png")
    (caption,) = re.findall(r"(?m)^\*Above: .*", README.read_text())
    (edge_db,) = re.findall(r"more than (\d+) dB off", caption)
    (pump_db,) = re.findall(r"(\d+) dB above what is there", caption)
    limits = re.findall(r"less than ([\d.]+) dB", caption)
    assert limits == ["0.001", "0.001"]
    notebook, continuous = made["notebook"], made["continuous"]
    assert int(edge_db) < notebook.edge_error_db(0.1) < int(edge_db) + 1
    assert continuous.edge_error_db(0.1) < 0.001
    assert round(notebook.pump_db()) == int(pump_db)
    assert abs(continuous.pump_db()) < 0.001
