"""The compiled steps, each against the NumPy path that is their reference."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from das_gpu.backends import Picture, fast, grey, loops, machinecode, plain

pytest.importorskip("numba", reason="the extra `fast` is not installed")

REALS = ["float32", "float64"]
calm = settings(deadline=None, max_examples=40)  # the first call of each kind compiles


def complex_noise(shape: tuple[int, int], real: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    z = 100 * random.normal(size=shape) + 100j * random.normal(size=shape)
    return z.astype(np.result_type(real, np.complex64))


def what_is_missing() -> str | None:
    """Asked anew, as a new process would."""
    fast.first_missing.cache_clear()
    loops._loop.cache_clear()
    try:
        return fast.first_missing(np.dtype("float32"), np.dtype("int32"))
    finally:
        fast.first_missing.cache_clear()
        loops._loop.cache_clear()


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("held", ["int16", "int32", "float32", "float64"])
def test_everything_compiles_for_what_archives_hold(real, held):
    assert fast.first_missing(np.dtype(real), np.dtype(held), 65535) is None


def test_without_numba_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(fast, "find_spec", lambda _: None)
    said = what_is_missing()
    assert said is not None
    assert "numba is not installed" in said
    assert "das-gpu[fast]" in said


def test_a_numba_that_cannot_be_imported_is_a_reason_not_a_failure(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(machinecode, "kept", lambda _: None)
    said = what_is_missing()
    assert said is not None
    assert "numba cannot be imported" in said


def test_a_numba_that_cannot_compile_is_a_reason_not_a_failure(monkeypatch):
    monkeypatch.setattr(fast, "envelope_db", lambda *_: {}["leg"])
    said = what_is_missing()
    assert said is not None
    assert "numba cannot compile or keep what it compiled (KeyError" in said


@given(
    st.integers(1, 1100), st.integers(1, 40), st.integers(0, 999), st.sampled_from(REALS), st.data()
)
@calm
def test_medians_are_numpys_to_the_last_bit(n, samples, seed, real, data):
    shape = data.draw(st.sampled_from(["smooth", "ties", "heavy", "skew", "tiny"]))
    z = complex_noise((n, samples), real, seed)
    if shape == "ties":
        z = (z / 60).round().astype(z.dtype)
    elif shape == "heavy":
        z = (z**9).astype(z.dtype)
    elif shape == "skew":
        z = np.exp(np.abs(z) / 100).astype(z.dtype)
    elif shape == "tiny":
        z = (z * 1e-38 * 1e-4).astype(z.dtype)
    picked = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.8)
    picked = (picked if picked.size else np.array([n - 1]))[:: data.draw(st.integers(1, 3))]
    start = data.draw(st.integers(0, samples - 1))
    out = np.full(samples, np.nan, z.dtype)
    fast.medians(z, picked, start, samples, out)
    np.testing.assert_array_equal(out[start:].real, np.median(z[picked, start:].real, axis=0))
    np.testing.assert_array_equal(out[start:].imag, np.median(z[picked, start:].imag, axis=0))
    assert np.isnan(out[:start]).all()


@pytest.mark.parametrize("real", REALS)
def test_the_median_ends_for_values_that_are_not_finite(real):
    z = complex_noise((50, 8), real)
    z[:30] = complex(np.nan, np.inf)
    z[30:35] = -np.inf
    fast.medians(z, np.arange(50), 0, 8, out := np.zeros(8, z.dtype))
    assert (out.imag == np.inf).all()


@pytest.mark.parametrize(("real", "bar_db"), [("float32", 3e-5), ("float64", 1e-12)])
def test_the_level_is_that_of_log10_over_all_magnitudes(real, bar_db):
    """float32 has a step of 1.5e-5 dB at 200 dB, and of 3e-5 above 256."""
    tiny = float(np.finfo(real).smallest_normal)
    magnitude = np.logspace(np.log10(tiny) / 2, 18, 20_000).astype(real)[None]
    values = (magnitude * np.exp(0.7j)).astype(np.result_type(real, np.complex64))
    values[0, :2000] = 1 + 1e-3 * np.arange(2000)
    out = np.empty(values.shape, real)
    fast.envelope_db(values, None, out, *np.empty((2, 1), real))
    exact = 20 * np.log10(np.abs(values.astype(np.complex128))) + 120
    assert np.abs(out - exact).max() < bar_db


@pytest.mark.parametrize("steps", [fast, plain])
@pytest.mark.parametrize("real", REALS)
def test_the_common_mode_is_taken_off_wherever_the_levels_go(real, steps):
    """To memory of their own, or into the first half of the signal's."""
    values = complex_noise((37, 41), real)
    before, common = values.copy(), values[2].copy()
    apart, inside = np.empty((37, 41), real), values.view(real).reshape(-1)[: 37 * 41]
    ranges = np.empty((2, 37), real)
    steps.envelope_db(values, common, apart, *ranges)
    assert (values == before).all()
    assert (apart[2] == -np.inf).all()
    rest = np.arange(37) != 2
    expected = 20 * np.log10(np.abs((before - common)[rest].astype(np.complex128)) / 1e-6)
    np.testing.assert_allclose(apart[rest], expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ranges, [apart.min(axis=1), apart.max(axis=1)])
    steps.envelope_db(values, common, inside.reshape(37, 41), *ranges)
    np.testing.assert_array_equal(inside.reshape(37, 41), apart)


@pytest.mark.parametrize("real", REALS)
def test_levels_beyond_the_floats_range_stay_what_they_are(real):
    huge = np.finfo(real).max
    tiny = np.finfo(real).smallest_subnormal
    values = np.array([[huge, np.inf, np.nan, 0, tiny]], np.result_type(real, np.complex64))
    with np.errstate(invalid="ignore"):
        fast.envelope_db(values, None, out := np.empty((1, 5), real), *np.empty((2, 1), real))
    assert out[0, :2].tolist() == [np.inf, np.inf]
    assert np.isnan(out[0, 2])
    assert (out[0, 3:] == -np.inf).all()  # the square of the least number is 0


@pytest.mark.parametrize("highest", [255, 65535])
@pytest.mark.parametrize("orientation", ["time-down", "time-right"])
@pytest.mark.parametrize("shape", [(60, 1500), (75, 90), (256, 256), (3, 2), (1, 70)])
@pytest.mark.parametrize("real", REALS)
def test_images_are_those_of_the_plain_path(shape, orientation, highest, real):
    random = np.random.default_rng(3)
    envelope = random.normal(150, 9, size=shape).astype(real)
    live = random.random(shape[0]) < 0.8
    envelope[~live] = -np.inf
    picture = Picture(120, 100, highest, orientation, "float")
    ours = fast.in_float(envelope, live, 131.25, 170.5, picture)
    plain = grey.in_float(envelope, live, 131.25, 170.5, picture)
    assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
    apart = np.abs(ours.astype(int) - plain)
    assert apart.max() <= 1
    share = 0.001 if highest == 255 or real == "float64" else 0.05
    assert np.count_nonzero(apart) <= max(share * apart.size, 1)


def test_a_tile_of_one_level_is_black():
    picture = Picture(4, 4, 255, "time-down", "float")
    assert not fast.in_float(np.full((4, 4), 150.0), np.ones(4, bool), 150, 150, picture).any()


def test_threads_at_once_get_what_one_gets():
    z = complex_noise((300, 400), "float32")
    alone = np.empty(400, z.dtype)
    fast.medians(z, np.arange(300), 0, 400, alone)
    together = np.empty(400, z.dtype)
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda s: fast.medians(z, np.arange(300), s, s + 25, together), range(0, 400, 25)
            )
        )
    np.testing.assert_array_equal(together, alone)


BLAS = """
import subprocess
import sys
import numpy as np
from das_gpu.backends import compiling

compiling._import_numba()
assert "scipy.linalg" not in sys.modules
import numba

product = numba.njit(lambda a, b: np.dot(a, b))(np.ones((2, 3)), np.ones((3, 2)))
assert product.tolist() == [[3.0, 3.0], [3.0, 3.0]]
"""


@pytest.mark.slow
def test_a_programs_own_loops_have_products_of_matrices_all_the_same():
    """numba is kept from looking for SciPy's BLAS as it starts; it finds it when it is wanted."""
    done = subprocess.run([sys.executable, "-c", BLAS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
