"""Code blocks of the documentation, and what a command must be to stand in one."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from cyclopts import App, CycloptsError

from das_gpu import cli

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
_PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: frozenset[str] = frozenset(_PROJECT["optional-dependencies"])
OTHERS_PACKAGES = frozenset({"torch"})
"""What pages may install that is no extra of das-gpu."""
KUBECTL = frozenset({"apply", "create", "delete", "logs"})

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Z_]+)=(\S+)")

Words = list[str]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its language, its text, the line of the page it begins at."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All of a page, in order, but for directives of the documentation site."""
    text = page.read_text()
    return [
        Block(page.name, text.count("\n", 0, each.start()) + 1, each[1].strip(), each[2])
        for each in _FENCE.finditer(text)
        if not each[1].startswith("{")
    ]


def commands(text: str, variables: dict[str, str]) -> list[Words]:
    """Words of each command of a shell block, without comments; variables are put in.

    Pipes and ``&&`` part commands. Of the shell's language pages use no more than that.
    """
    found: list[Words] = []
    for line in text.replace("\\\n", " ").splitlines():
        known = re.sub(r"\$([A-Z_]+)", lambda each: variables[each[1]], line)
        lexer = shlex.shlex(known, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: Words = []
        for word in [*lexer, "&&"]:
            if word not in ("|", "&&"):
                words.append(word)
                continue
            if len(words) == 1 and (assigned := _ASSIGNMENT.fullmatch(words[0])):
                variables[assigned[1]] = assigned[2]
            elif words:
                found.append(words)
            words = []
    return found


def check(command: Words) -> None:
    """Refuse, by AssertionError, a command that cannot work: whatever is not known here too."""
    match command:
        case ["das-gpu", *given]:
            understood(given)
        case ["make", target]:
            done = subprocess.run(
                ["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
        case ["source", ".venv/bin/activate"]:
            assert "VENV := .venv\n" in (REPOSITORY / "Makefile").read_text()
        case ["source", "<(", "das-gpu", *given, ")"]:
            understood(given)
        case ["pip", "install", *wanted]:
            for each in wanted:
                named = re.fullmatch(r"das-gpu\[([\w,]+)\]", each)
                extras = set(named[1].split(",")) if named else set()
                assert extras <= EXTRAS, f"{each}: there are the extras {sorted(EXTRAS)}"
                assert named or each in OTHERS_PACKAGES, f"{each} is no package the pages know"
        case ["python", script, *given]:
            text = (REPOSITORY / script).read_text()
            compile(text, script, "exec")
            if "def arguments(" in text:
                understood(["extract", *module(script).arguments(given).extract])
        case ["kubectl", verb, *_]:
            assert verb in KUBECTL
        case _:
            raise AssertionError(f"{shlex.join(command)}: nobody here knows this command")


def understood(given: Words) -> None:
    """Whether das-gpu's own parser takes these words: command, options, kinds of values."""
    try:
        _parser().parse_args(given, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise AssertionError(f"das-gpu {shlex.join(given)}: {error}") from error


@cache
def _parser() -> App:
    return cli.application()


def module(script: str) -> ModuleType:
    """A script of ``docs``, imported."""
    path = REPOSITORY / script
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses look their annotations up
    spec.loader.exec_module(made)
    return made
