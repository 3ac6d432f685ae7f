"""Compiled loops: kept on disk, loaded without numba, and never handed what they cannot take."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from das_gpu.backends import fast, loops, machinecode

pytest.importorskip("numba", reason="the extra `fast` is not installed")

FLOAT = np.dtype("float32")
AWAY = np.zeros(4, FLOAT)
TRUNCATE = "das_gpu_eightbit_truncate_all_f4"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A folder of its own to keep code in, and nothing loaded yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    loops._loop.cache_clear()
    yield tmp_path / "das-gpu"
    loops._loop.cache_clear()


def truncated() -> list[int]:
    """Greys of some levels, by a loop loaded or compiled for it."""
    loops._loop.cache_clear()
    levels = np.array([[0.0, 1.0, 2.0, 4.0]], FLOAT)
    return list(fast.truncated(levels, np.ones(1, bool), 0.0, 4.0, 255)[0])


def test_a_loop_is_compiled_once_and_then_loaded(elsewhere, monkeypatch):
    assert truncated() == [0, 63, 127, 255]
    (file,) = elsewhere.iterdir()
    assert file.name.startswith(TRUNCATE)
    monkeypatch.setitem(sys.modules, "das_gpu.backends.compiling", None)
    assert truncated() == [0, 63, 127, 255]


@pytest.mark.parametrize("left", [0, 40, -1], ids=["empty", "cut", "nearly whole"])
def test_code_that_was_damaged_is_compiled_anew(elsewhere, left):
    truncated()
    (file,) = elsewhere.iterdir()
    file.write_bytes(file.read_bytes()[:left])
    assert machinecode.kept(TRUNCATE) is None
    assert truncated() == [0, 63, 127, 255]
    assert machinecode.kept(TRUNCATE) is not None


def test_code_of_another_processor_is_not_loaded(elsewhere, monkeypatch):
    truncated()
    monkeypatch.setattr(machinecode, "_circumstances", lambda: "another")
    truncated()
    assert len(list(elsewhere.iterdir())) == 2


def test_where_nothing_can_be_kept_every_process_compiles(elsewhere):
    elsewhere.parent.joinpath("das-gpu").write_text("in the way")
    assert truncated() == [0, 63, 127, 255]


def test_code_is_kept_with_the_user_where_the_package_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machinecode, "_HERE", tmp_path / "file")
    monkeypatch.setattr(machinecode, "_circumstances", lambda: "here")
    machinecode.keep("symbol", b"code")
    assert machinecode.kept("symbol") == b"code"
    assert [file.name for file in (tmp_path / "das-gpu").iterdir()] == ["symbol.here.o"]


WITHOUT = """
import sys
import numpy as np
from das_gpu.backends import fast

assert fast.first_missing(np.dtype("float32"), np.dtype("int32"), sections=True) is None
assert "numba" not in sys.modules
"""


@pytest.mark.slow
def test_once_everything_is_compiled_numba_is_not_imported():
    assert fast.first_missing(FLOAT, np.dtype("int32"), sections=True) is None
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_digest_covers_every_module_that_code_comes_from():
    folder = Path(loops.__file__).parent
    made_of = re.compile("compiled_loop|intrinsic|llvmlite|LOOPS")
    found = {file.stem for file in folder.glob("*.py") if made_of.search(file.read_text())}
    assert set(machinecode.SOURCES) == found - {"machinecode"}


@pytest.mark.parametrize(
    "levels",
    [
        np.zeros((2, 2), np.float64),
        np.zeros(4, FLOAT),
        np.zeros((2, 4), FLOAT)[:, ::2],
    ],
    ids=["type", "dimensions", "gaps"],
)
def test_an_array_that_a_loop_cannot_take_is_refused(levels):
    step = loops.loop("compiled.envelope_32", real=FLOAT)
    with pytest.raises(TypeError, match=r"was given .* where it takes float32 of 2 dimensions"):
        step(np.zeros((2, 4), FLOAT), AWAY, levels)


def test_too_few_arguments_are_refused():
    with pytest.raises(ValueError, match=r"longer than argument"):
        loops.loop("compiled.envelope_32", real=FLOAT)(np.zeros((2, 4), FLOAT))


@pytest.mark.slow
def test_a_loop_that_allocates_is_no_loop(monkeypatch):
    """Its code would not stand alone: it would need numba's memory."""
    from das_gpu.backends import compiled, compiling

    @compiled.compiled_loop()
    def greedy(values):
        values[0] = np.empty(values.size).sum()

    monkeypatch.setattr(compiled, "greedy", greedy, raising=False)
    arguments = (loops.Argument(np.dtype("f8"), 1),)
    with pytest.raises(RuntimeError, match=r"compiled\.greedy needs .*NRT_"):
        compiling.compile_loop("compiled.greedy", arguments, "symbol")
