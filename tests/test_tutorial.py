"""docs/tutorial.md, run from top to bottom as somebody would who follows it."""

from __future__ import annotations

import re
import shlex
import tomllib
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from das_gpu.cli import main
from das_gpu.scene import notes
from das_gpu.simulate import DEMO_SCENE

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (REPOSITORY / "docs/tutorial.md").read_text(), re.MULTILINE | re.DOTALL
)


def extras() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def do(command: list[str]) -> None:
    """A command of the page; one that installs das-gpu is asked only whether it could."""
    match command:
        case ["das-gpu", *given]:
            assert main(given) == 0, command
        case ["pip", "install", what]:
            assert what.removeprefix("das-gpu[").removesuffix("]") in extras()
        case _:
            pytest.fail(f"{command}: not a command that this test knows")


@pytest.mark.slow
def test_whoever_follows_the_tutorial_ends_with_a_detector_that_hears_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "bash":
            for line in block.splitlines():
                do(shlex.split(line, comments=True))
            capsys.readouterr()
        elif language == "toml":
            (tmp_path / "recipe.toml").write_text(block)
        else:
            assert language == "python"
            exec(compile(block, "tutorial.md", "exec"), names)  # noqa: S102 - our own page
    for made in ("images/report.html", "steps.png", "fin.png", "lists/label-studio.json"):
        assert (tmp_path / made).stat().st_size > 0
    assert len(list((tmp_path / "calls/images").rglob("*.png"))) == 288

    labelled, judged, *heard = capsys.readouterr().out.splitlines()
    assert labelled == "72 of 288 tiles have a call"
    assert int(judged.split(" %")[0]) > 90
    start = datetime.fromisoformat("2021-11-01T23:11:14.834Z")
    spans = []
    for line in heard:
        begin = (datetime.fromisoformat(line.split()[0]) - start) / timedelta(seconds=1)
        spans.append((begin, begin + 5))
    # Each note of the demo is heard somewhere, and nothing where there is none.
    sung = [(note.start_s, note.start_s + 4) for note in notes(DEMO_SCENE)]
    for first, last in sung:
        assert any(begin < last and first < end for begin, end in spans)
    for begin, end in spans:
        assert any(begin < last and first < end for first, last in sung)
