"""A clone of the repository in which ``make`` has installed everything, in a second.

Its ``.venv`` is a real virtual environment that finds the packages of the one that runs the tests,
and das-gpu in this source. So what people do in a clone can be done there, all but the installing,
which whoever runs the tests by ``make test`` has just seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from functools import cached_property
from pathlib import Path

from tests.pages import REPOSITORY, Words

STAMPS = (
    ".venv/.made", ".venv/.installed", ".venv/.testable", ".venv/.torch", "node_modules/.installed"
)  # fmt: skip
"""Of the Makefile, for what need not be installed again."""
SCRIPT = """#!{python}
import sys
from das_gpu.__main__ import command
sys.exit(command())
"""
KUBECTL = """#!{python}
import json
import sys
assert sys.argv[1:] == ["apply", "-f", "-"], sys.argv
print(json.load(sys.stdin)["kind"], "taken")
"""
"""In the place of a cluster's: takes one object and says of what kind it is."""
FEW = ["tests/test_readme.py", "-k", "words_of_a_command", "-n", "0", "-p", "no:cacheprovider"]
"""Of all tests, where it is asked whether they begin."""
PATIENCE_S = 250


class Clone:
    """A clone in a folder, which is made when something is first done there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _python(self) -> Path:
        self.folder.mkdir()
        for name in ("Makefile", "constraints.txt", "package.json", "pyproject.toml", "tests"):
            (self.folder / name).symlink_to(REPOSITORY / name)
        (self.folder / "node_modules").mkdir()
        environment = self.folder / ".venv"
        _run(sys.executable, "-m", "venv", "--without-pip", environment, folder=self.folder)
        (packages,) = environment.glob("lib/python*/site-packages")
        shared = [str(REPOSITORY / "src"), *map(sysconfig.get_path, ("purelib", "platlib"))]
        (packages / "shared.pth").write_text("\n".join(dict.fromkeys(shared)))
        python = environment / "bin" / "python"
        for name, text in (("das-gpu", SCRIPT), ("kubectl", KUBECTL)):
            script = python.with_name(name)
            script.write_text(text.format(python=python))
            script.chmod(0o755)
        for name in STAMPS:
            (self.folder / name).touch()
        return python

    @cached_property
    def _wheels(self) -> Path:
        """A folder with das-gpu's wheel, made by the build tools that are installed."""
        build = [self._python, "-m", "build", "--wheel", "--no-isolation", REPOSITORY]
        _run(*build, "--outdir", self.folder / "dist", folder=self.folder)
        return self.folder / "dist"

    def make(self, target: str) -> None:
        """Do ``make TARGET``, of tests a few; nothing is installed on the way."""
        few = [f"ARGS={' '.join(FEW)}"] if target == "test" else []
        assert "Installing" not in self._runs("make", target, *few)

    def shell(self, text: str) -> str:
        """What bash prints when the environment is active and it is told this."""
        return self._runs("bash", "--norc", "-c", f"source .venv/bin/activate && {text}")

    def installs(self, wanted: Words) -> None:
        """Let pip install das-gpu, called as the page calls it, but none of what it needs."""
        names = "-".join(wanted)
        said = self._runs(
            *(self._python, "-m", "pip", "install", *wanted, "--no-deps"),
            *("--no-index", "--find-links", self._wheels, "--target", self.folder / names),
        )
        assert "Successfully installed das-gpu" in said

    def _runs(self, *command: str | Path) -> str:
        assert self._python.exists()
        return _run(*command, folder=self.folder)


def _run(*command: str | Path, folder: Path) -> str:
    # A test that is run here is none of those that run it.
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout
