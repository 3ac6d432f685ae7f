"""Puts faults into the kernels and the GPU backend one at a time, and looks which tests see them.

    python tests/gpu/mutants.py [--list] [--only NAME ...] [--json FILE] [-j JOBS]

A fault that no test sees needs a better test or, where the program is still right, an argument
beside the fault. Without one the exit code is 1. Each run works on a copy of the tree as it was
at the start.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# Started as a program, Python looks beside the script, not where the package `tests` is.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.mutant import Mutant
from tests.gpu.mutants_filtering import FILTERING_KERNELS
from tests.gpu.mutants_headers import SHARED_KERNELS
from tests.gpu.mutants_imaging import IMAGING_KERNELS

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("src", "kernels", "tests", "pyproject.toml")
TIMEOUT_S = 240
"""Longer than any choice of tests takes, first compilation included."""

KERNELS = (*SHARED_KERNELS, *FILTERING_KERNELS, *IMAGING_KERNELS)

# --- order on the device -----------------------------------------------------------------------

ORDERING = ("record", "wait_event", "synchronize")
BACKEND = tuple(
    f"src/das_gpu/backends/{name}.py"
    for name in ("gpu", "devicering", "transforms", "devicememory")
)
ORDER_TESTS = (
    "tests/gpu/test_order.py",
    "tests/gpu/test_resident.py",
    "tests/gpu/test_backend.py::test_no_order_of_the_device_changes_a_byte",
    "tests/gpu/test_backend.py::test_segments_at_once_share_no_stream_and_no_plan",
)
ORDER_ARGUMENTS = {
    "gpu.__init__: self._computing.synchronize() -> pass": "What was sent is read on the stream "
    "that sent it, from pinned memory that lives as long as the workspace. The wait lets a device "
    "that fails here say so as a failure to open.",
}
"""By name of the mutant."""


def order_mutants(file: str, text: str) -> list[Mutant]:
    """A mutant for every line of a module that records, waits or synchronises, or asks an event.

    Parameters
    ----------
    file : str
        The module's file, for the mutants.
    text : str
        Its text.

    Raises
    ------
    ValueError
        A call is not a statement of its own, so that it cannot be left out.
    """
    tree = ast.parse(text)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    encoded = text.encode()

    def begin_and_text(node: ast.expr | ast.stmt) -> tuple[int, str]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        return len(encoded[:begin].decode()), encoded[begin:end].decode()

    found: list[tuple[int, str, str]] = []
    statements = {
        id(node.value): node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "done":
            found.append((*begin_and_text(node), "True"))
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr in ORDERING:
            if id(node) not in statements:
                raise ValueError(f"{file}:{node.lineno}: cannot be left out of its statement")
            found.append((*begin_and_text(statements[id(node)]), "pass"))
    stem = Path(file).stem
    made: list[Mutant] = []
    for begin, old, new in sorted(found):
        name = f"{stem}.{_function_at(tree, text.count(chr(10), 0, begin) + 1)}: {old} -> {new}"
        argument = ORDER_ARGUMENTS.get(name, "")
        before = sum(mutant.name.startswith(name) for mutant in made)
        name += f" ({1 + before})" if before else ""
        made.append(Mutant(name, file, old, new, ORDER_TESTS, argument, begin))
    return made


def _function_at(tree: ast.Module, line: int) -> str:
    """Name of the innermost function that holds a line."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return max(around, key=lambda node: node.lineno).name if around else "module"


def all_mutants(root: Path) -> list[Mutant]:
    """Those of the kernels, and those found in the backend of the tree at ``root``."""
    order = [mutant for file in BACKEND for mutant in order_mutants(file, _read(root, file))]
    return [*KERNELS, *order]


def _read(root: Path, file: str) -> str:
    return (root / file).read_text()


# --- running -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes
    ----------
    mutant : Mutant
        Whose verdict it is.
    killed_by : str
        The test that failed, ``timeout`` or how the tests crashed; empty when all passed.
    seconds : float
        Spent.
    """

    mutant: Mutant
    killed_by: str
    seconds: float

    @property
    def unexplained(self) -> bool:
        """Whether it survived without an argument."""
        return not self.killed_by and not self.mutant.argument


def snapshot(source: Path, target: Path) -> Path:
    """Copy what the tests need."""
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", "*.pyc", ".*_cache")
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=ignore)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    return target


def environment(root: Path) -> dict[str, str]:
    """In which Python imports the copy, and objects are kept between the runs."""
    kept = Path.home() / ".cache" / "das-gpu" / "kernels"
    made = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "DAS_GPU_KERNEL_CACHE": os.environ.get("DAS_GPU_KERNEL_CACHE") or str(kept),
    }
    made.pop("DAS_GPU_KERNEL_SOURCES", None)
    return made


def check_imports(root: Path) -> None:
    """Make sure that an installed das_gpu is not what the tests of a copy see.

    Raises
    ------
    RuntimeError
        It is.
    """
    code = "import das_gpu, tests.gpu; print(das_gpu.__file__); print(tests.gpu.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment(root), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    for file in done.stdout.splitlines():
        if not Path(file).is_relative_to(root):
            raise RuntimeError(f"{file} is imported, not the copy in {root}")


def run_tests(root: Path, tests: Sequence[str]) -> tuple[str, str]:
    """What failed first, or nothing, and the output.

    Raises
    ------
    RuntimeError
        The tests could not be run, so that nothing is known.
    """
    # Only the name of what fails is asked for, so that what makes failures readable is left out.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    command += ["--assert", "plain", "-p", "pytest_timeout"]
    process = subprocess.Popen(
        [*command, *tests], cwd=root, env=environment(root), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "timeout", ""
    if process.returncode == 0:
        return "", output
    if process.returncode < 0:
        return f"crash ({signal.Signals(-process.returncode).name})", output
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/gpu/)?(.+?)(?: - .*)?$", output, re.MULTILINE)
    if process.returncode != 1 or failed is None or "CompileError" in output:
        raise RuntimeError(f"The tests in {root} could not be run:\n{output[-4000:]}")
    return failed[1], output


def try_mutant(mutant: Mutant, clean: Path) -> Verdict:
    """Run a mutant's tests in a copy of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = snapshot(clean, Path(folder).resolve())
        file = root / mutant.file
        file.write_text(mutant.applied(file.read_text()))
        try:
            killed_by, _ = run_tests(root, mutant.tests)
        except RuntimeError as error:
            raise RuntimeError(f"{mutant.name}: {error}") from error
    return Verdict(mutant, killed_by, time.monotonic() - started)


def try_all(mutants: Sequence[Mutant], jobs: int, root: Path = REPOSITORY) -> list[Verdict]:
    """Run every mutant's tests on a tree as it is now, survivors last.

    Raises
    ------
    ValueError
        A fault has no place, or several.
    RuntimeError
        The tests fail without a fault, or cannot be run with one.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        clean = snapshot(root, Path(folder).resolve())
        check_imports(clean)
        for mutant in mutants:
            mutant.applied(_read(clean, mutant.file))
        wanted = sorted({test for mutant in mutants for test in mutant.tests})
        with ThreadPoolExecutor(jobs) as pool:
            for failed, output in pool.map(
                lambda share: run_tests(clean, share) if share else ("", ""),
                [wanted[part::jobs] for part in range(jobs)],
            ):
                if failed:
                    raise RuntimeError(f"Without a fault, {failed} fails:\n{output[-4000:]}")
            verdicts = []
            for verdict in pool.map(lambda mutant: try_mutant(mutant, clean), mutants):
                verdicts.append(verdict)
                sys.stderr.write(f"{len(verdicts)}/{len(mutants)} {line_of(verdict)}\n")
                sys.stderr.flush()
    return sorted(verdicts, key=lambda verdict: not verdict.killed_by)


# --- telling -----------------------------------------------------------------------------------


def line_of(verdict: Verdict) -> str:
    """A verdict in a line."""
    mutant = verdict.mutant
    if verdict.killed_by:
        fate = f"killed by {verdict.killed_by}"
    else:
        fate = f"SURVIVES: {mutant.argument or 'without an argument'}"
    return f"{Path(mutant.file).name} | {mutant.name} | {fate} | {verdict.seconds:.0f} s"


def as_json(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as a table that can be kept."""
    rows = [
        {
            "name": verdict.mutant.name,
            "file": verdict.mutant.file,
            "old": verdict.mutant.old,
            "new": verdict.mutant.new,
            "killed_by": verdict.killed_by or None,
            "argument": verdict.mutant.argument or None,
        }
        for verdict in verdicts
    ]
    return json.dumps(rows, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 1 where a mutant survives without an argument."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, or parts of names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to a file")
    parser.add_argument("-j", type=int, default=2, dest="jobs", help="runs at once (2)")
    given = parser.parse_args(arguments)
    mutants = [
        mutant
        for mutant in all_mutants(REPOSITORY)
        if given.only is None or any(name in mutant.name for name in given.only)
    ]
    if not mutants:
        parser.error("no mutant has such a name")
    if given.list:
        sys.stdout.writelines(f"{mutant.file} | {mutant.name}\n" for mutant in mutants)
        return 0
    verdicts = try_all(mutants, given.jobs)
    sys.stdout.writelines(f"{line_of(verdict)}\n" for verdict in verdicts)
    if given.json is not None:
        given.json.write_text(as_json(verdicts))
    return int(any(verdict.unexplained for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
