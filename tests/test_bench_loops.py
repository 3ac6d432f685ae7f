"""No benchmark takes NumPy's times for those of compiled loops."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from das_gpu.backends import fast

BENCH = Path(__file__).resolve().parents[1] / "bench"
BROKEN = "numba cannot be imported: no leg to stand on."


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("loops")


def test_without_numba_compiled_loops_do_not_take_part(loops, monkeypatch):
    monkeypatch.setattr(fast, "installed", lambda: False)
    assert loops.compiled() is False
    with pytest.raises(SystemExit, match=r"numba is not installed.*das-gpu\[fast\]"):
        loops.insist()


@pytest.mark.parametrize("way", ["compiled", "insist"])
def test_where_loops_fall_back_nothing_is_measured(loops, monkeypatch, way):
    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(fast, "first_missing", lambda *_, **__: BROKEN)
    with pytest.raises(SystemExit, match=BROKEN):
        getattr(loops, way)()


@pytest.mark.parametrize("script", ["bars", "kernels", "profiling"])
def test_benchmarks_with_compiled_ways_ask(loops, monkeypatch, script, tmp_path):
    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(fast, "first_missing", lambda *_, **__: BROKEN)
    monkeypatch.setattr("sys.argv", [script, "--tiny", "--json", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit, match=BROKEN):
        importlib.import_module(script).main()
    assert not (tmp_path / "result.json").exists()


def test_das_gpu_beside_its_peers_asks(loops, monkeypatch, tmp_path):
    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(fast, "first_missing", lambda *_, **__: BROKEN)
    ways = importlib.import_module("peers_ways")
    counts = tmp_path / "counts.i4"
    counts.write_bytes(bytes(4 * 2 * 3000))
    job = ways.Job(counts, channels=2, rate_hz=200.0)
    with (
        pytest.raises(SystemExit, match=BROKEN),
        ways.das_gpu(job, tile_s=None, dtype="float32", linear=True),
    ):
        pass
