"""Completion: what a shell offers after Tab is pressed, asked of the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from das_gpu.cli import main
from das_gpu.cli.pages import PAGES

SHELLS = ("bash", "zsh", "fish")
PRINTING = "das-gpu() { printf '<%s>' \"$@\"; echo end; }"
"""Stands for the command, where only its arguments matter."""


@cache
def printed(shell: str) -> str:
    """What `das-gpu completion` prints for a shell."""
    command = [sys.executable, "-m", "das_gpu", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The script of the shell that a test is for, in a folder with some files."""
    shell = getattr(request, "param", "bash")
    file = tmp_path / f"completion.{shell}"
    file.write_text(printed(shell))
    (tmp_path / "recs" / "night.zarr").mkdir(parents=True)
    (tmp_path / "recs" / "my recipe.toml").touch()
    return file


def offered_by_bash(script: Path, line: str) -> set[str]:
    """What bash's own machinery would offer at the end of a line."""
    asked = (
        'source "$1"; COMP_LINE=$2; COMP_POINT=${#2}; registered=$(complete -p das-gpu); '
        "[[ $registered =~ -F\\ ([^ ]+) ]]; ${BASH_REMATCH[1]}; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    command = ["bash", "--norc", "-c", asked, "bash", str(script), line]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=script.parent, timeout=30
    )
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - {""}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("das-gpu ext", {"extract"}),
        ("das-gpu re", {"recipe", "report"}),
        ("das-gpu recipe --preset ", {"continuous", "notebook"}),
        ("das-gpu extract demo: out --format=png", {"png", "png16"}),
        ("das-gpu extract demo: out --format png1", {"png16"}),
        ("das-gpu extract demo: out --start 2021-11-01T23:11:30 --tile", {"--tile-seconds"}),
        ("das-gpu extract re", {"recs"}),
        ("das-gpu extract https://a.blob.core.windows.net/c re", {"recs"}),
        ("das-gpu extract --fast demo: out re", set()),
        ("das-gpu recipe --config recs/my", {"recs/my recipe.toml"}),
        ("das-gpu recipe --config=recs/my", {"recs/my recipe.toml"}),
        ("das-gpu index recs/a.h5 recs/n", {"recs/night.zarr"}),
        ("das-gpu status re", {"recs"}),
        ("das-gpu completion ", set(SHELLS)),
        ("das-gpu extract demo: out --low ", set()),
    ],
)
def test_bash_offers_commands_options_choices_and_files(
    script: Path, line: str, offered: set[str]
) -> None:
    assert offered_by_bash(script, line) == offered


def test_bash_offers_every_option_of_a_command_and_no_hidden_one(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["verify", "--help"])
    shown = capsys.readouterr().out
    offered = offered_by_bash(script, "das-gpu verify -") - {"--help", "-h", "--version"}
    assert {"--repair", "--json", "--quiet", "-q", "--credential"} <= offered
    assert all(option in shown for option in offered)


def typed(shell: list[str], lines: list[str], folder: Path) -> str:
    """What a shell in a terminal shows for what is typed, up to the word "end"."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        shell, stdin=follower, stdout=follower, stderr=follower, cwd=folder, start_new_session=True
    )
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 30
    try:
        for line in lines:
            os.write(leader, line.encode())
            time.sleep(0.3)
        while b">end" not in shown and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 4096)
    finally:
        child.kill()
        child.wait()
        os.close(leader)
    return shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("script", "shell", "prepared"),
    [
        ("bash", ["bash", "--norc", "-i"], ""),
        ("zsh", ["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; "),
    ],
    indirect=["script"],
    ids=["bash", "zsh"],
)
def test_the_tab_key_completes_in_a_terminal(script: Path, shell: list[str], prepared: str) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed here")
    lines = [f"{prepared}source {script.name}; {PRINTING}\n", "das-gpu extr\tdemo: rec\t\n"]
    shown = typed(shell, lines, script.parent)
    assert re.search("<extract><demo:><recs/?>end", shown)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_offers_the_same(script: Path) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed here")
    asked = f"source {script}; complete -C 'das-gpu extr'; complete -C 'das-gpu recipe --preset '"
    done = subprocess.run(["fish", "-N", "-c", asked], capture_output=True, text=True, timeout=30)
    offered = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert offered >= {"extract", "continuous", "notebook"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_knows_every_command(shell: str) -> None:
    assert all(re.search(rf"\b{command}\b", printed(shell)) for command in PAGES)


def test_another_shell_is_refused_with_those_that_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert '"bash", "zsh", "fish"' in capsys.readouterr().err
