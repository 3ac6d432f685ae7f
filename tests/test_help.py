"""The help of every command: what it does, each option, and examples that are true."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest
from cyclopts import Argument

from das_gpu.cli import application, main
from das_gpu.cli.manual import CODES, Page, description
from das_gpu.cli.pages import MAIN, PAGES

NUMBER_UNITS = {"N", "HZ", "METRES", "SECONDS", "MINUTES"}
FOREIGN = ("https://", "az://", "cuda", "gpu", ".h5", "day1", "completion")
"""What examples that cannot be run here, or are run elsewhere, have in them."""


@pytest.fixture(autouse=True)
def a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DAS_GPU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def options(command: str) -> list[Argument]:
    """What a command takes, hidden options excepted."""
    found = application()[command].assemble_argument_collection(parse_docstring=True)
    return [argument for argument in found if argument.show]


def command_lines(page: Page) -> list[list[str]]:
    """Arguments of every das-gpu that the examples of a page call."""
    lines = [part.strip() for example in page.examples for part in example.split("&&")]
    words = [shlex.split(line.split(" >")[0]) for line in lines if line.startswith("das-gpu")]
    return [arguments[1:] for arguments in words]


def test_every_command_has_a_page_and_no_page_is_left_over() -> None:
    commands = {name for name in application() if not name.startswith("-")}
    assert commands == set(PAGES)
    assert {name for page in PAGES.values() for name in page.see} <= commands


@pytest.mark.parametrize("command", PAGES)
def test_a_command_says_what_it_does_in_a_line_and_then_in_a_paragraph(command: str) -> None:
    summary, paragraph = description(application()[command].default_command).split("\n\n", 1)
    assert len(summary) <= 68, "the list of commands breaks it at 80 columns"
    assert summary.endswith(".")
    assert len(paragraph) > 80


@pytest.mark.parametrize("command", PAGES)
def test_every_option_says_what_it_is_in_a_sentence_and_numbers_their_unit(command: str) -> None:
    for argument in options(command):
        text = argument.parameter.help or ""
        assert re.match(r"[A-Z0-9a-z].*(\.|\.\s\[default: .*\]|:.*\])$", text), argument.name
        if {int, float} & {argument.hint, *get_args(argument.hint)}:
            assert argument.parameter.metavar in NUMBER_UNITS, argument.name
            assert "[default: " in text, argument.name


@pytest.mark.parametrize("command", PAGES)
def test_a_page_is_complete_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    text = shown(capsys, command)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "\nExamples\n  das-gpu " in text or "\nExamples\n  echo" in text
    assert "\nExit codes\n  0    " in text
    assert {int(code) for code in re.findall(r"^  (\d+)  ", text, re.MULTILINE)} <= set(CODES)
    if command not in ("simulate", "doctor", "completion"):
        assert "DAS_GPU_OPTION" in text
    for name in ("--quiet", "--verbose", "--debug"):
        assert name in text


def test_the_first_page_names_every_command_in_one_line_and_every_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(capsys)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for command in PAGES:
        assert re.search(rf"^│ {command} +[A-Z].*\. +│$", text, re.MULTILINE), command
    for code, meaning in CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning[:20])}", text, re.MULTILINE)
    for name in MAIN.environment:
        assert name in text


@pytest.mark.parametrize("command", PAGES)
@pytest.mark.slow
def test_examples_are_understood_by_the_parser(command: str) -> None:
    lines = command_lines(PAGES[command])
    assert any(line[0] == command for line in lines) or command == "completion"
    for line in lines:
        run, bound, _ = application().parse_args(line, exit_on_error=False, print_error=False)
        assert run.__name__ == line[0]
        assert bound.arguments or len(line) == 1


@pytest.mark.slow
def test_examples_that_need_nothing_from_elsewhere_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which they build on each other: a recording, a run, what follows from it."""
    monkeypatch.chdir(tmp_path)
    main(["recipe"])
    Path("my-recipe.toml").write_text(capsys.readouterr().out)
    ran = set()
    order = ("simulate", "info", "plan", "recipe", "preview", "extract", "status", "verify")
    for name in (*order, "report", "export", "bench"):
        for line in command_lines(PAGES[name]):
            text = " ".join(line)
            if any(foreign in text for foreign in FOREIGN):
                continue
            if name in ("bench", "preview") and "recording.zarr" in line:
                continue  # long, and the same as on the demonstration
            if "second.json" in line:
                shutil.copy("first.json", "second.json")
            assert main(line) == 0, (text, capsys.readouterr().err)
            ran.add(name)
    assert ran == {*order, "report", "export", "bench"}
