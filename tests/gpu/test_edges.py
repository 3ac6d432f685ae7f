"""What the kernels promise beyond what their other tests ask: found missing by faults put in."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest

from das_gpu.backends import Picture, filtering, imaging
from das_gpu.recipe import Scale
from tests.gpu.harness import nvrtc
from tests.gpu.harness.build import kernel_folder
from tests.gpu.harness.host import check, execute
from tests.gpu.harness.require import need_compiler, need_nvrtc
from tests.gpu.test_filtering_kernels import hold
from tests.gpu.test_imaging_kernels import images, make, pictured, scratch, spread, tables


@pytest.mark.parametrize("sign", [1, -1])
def test_the_median_of_a_negative_nan_is_nan(sign: int) -> None:
    """Processors make negative NaNs: 0/0 is one on x86."""
    need_compiler()
    samples = np.array([[1, np.copysign(np.nan, sign), 3]], np.float32)
    median = np.zeros(1)
    held = hold(samples, [3])
    check(filtering.median_rows(*held.tables, median, core=(0, 3)))
    assert np.isnan(median[0])


@pytest.mark.parametrize(("dtype", "error_db"), [("float32", 2.0**-15), ("float64", 2.0**-27)])
def test_percentiles_are_as_exact_as_their_codes(dtype: str, error_db: float) -> None:
    need_compiler()
    made = make(4, 20, 90, dtype=dtype, dead=0.0, scale=Scale("percentile", 2.0, 93.0))
    row, scale, held = made.row, made.chain.scale, scratch(made)
    made.signal[:, row.first : row.first + row.samples] = 10 ** (spread((80, 90), "normal") / 20)
    execute(imaging.pick_channels(row, made.live, made.chain.distance_m, held, np.inf))
    execute(imaging.envelope_db(row, made.signal, made.live, held, scale, subtract=False))
    for launch in imaging.levels(row, made.live, held, scale):
        execute(launch)
    bands = held.db.reshape(4, -1).astype(np.float64)
    expected = np.percentile(bands, [2, 93], axis=1).T
    assert np.abs(held.levels[:, :2] - expected).max() <= error_db * 1.000001


@pytest.mark.parametrize("pixels", [(9, 8), (20, 3)])
@pytest.mark.parametrize("resize", ["float", "pillow"])
def test_equal_limits_are_black_even_beside_them(resize: Any, pixels: tuple[int, int]) -> None:
    """Limits that were given can be equal where no level is."""
    need_compiler()
    made = pictured(Picture(*pixels, 255, "time-down", resize), "float32", 6, 20)
    made.live[:] = 1
    held, resized = scratch(made), tables(made)
    assert resized is not None
    held.db[...] = 61
    held.levels[:] = [60, 60, -np.inf]
    for launch in imaging.grey(made.row, made.live, held, resized):
        execute(launch)
    assert not images(held).any()


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("source", ["envelope_db.cu", "levels.cu"])
def test_blocks_publish_their_counts_before_they_take_a_ticket(source: str, real: str) -> None:
    """Fences and barriers stand around the ticket in the machine's order, too.

    On the processor blocks follow one another, so that nothing shows when they are missing.
    """
    need_nvrtc()
    from cupy.cuda import compiler

    folder = kernel_folder()
    options = nvrtc.cupy_options((f"-DREAL={real}", "-std=c++17", f"-I{folder}"), "80")
    text = (folder / source).read_text()
    program = compiler._NVRTCProgram(text, source, method="ptx")
    ptx, _ = program.compile(options, io.StringIO())
    ordering = re.findall(rb"\b(membar\.gl|fence\.\w+\.gpu|bar\.sync|atom\.global\.add)", ptx)
    ticket = [b"membar.gl", b"bar.sync", b"atom.global.add", b"bar.sync", b"membar.gl"]
    assert any(ordering[i : i + 5] == ticket for i in range(len(ordering)))
