"""What the command imports before it has something to do: no library that the work does not need.

Which libraries, not how long: time depends on the machine, and every one of these costs tenths
of a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from das_gpu.backends.cuda import driver_library
from tests.archives import clock_us, random_walk
from tests.layouts import write

WATCHED = """
import json, os, sys
def packages():
    return sorted(sys.modules.copy())
def look(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        folder, name = os.path.split(os.fsdecode(arguments[0]))
        if "/RawData" in folder and "/RawDataTime" not in folder and name[-1:].isdigit():
            os.write(1, json.dumps(packages()).encode() + b"\\n")
            os._exit(0)
from das_gpu.__main__ import command
sys.addaudithook(look)
try:
    command()
except SystemExit as end:
    if end.code:
        raise
    sys.stderr.write(json.dumps(packages()) + "\\n")
"""
"""Runs the command; names what is imported when it opens its first chunk of samples."""

UNUSED = {
    *("zarr", "scipy.signal", "xarray", "pandas", "dask", "distributed", "das_gpu.cluster"),
    *("azure", "obstore", "aiohttp", "requests", "urllib3", "ssl", "rich"),
    *("cupy", "das_gpu.backends.gpu", "das_gpu.azure", "das_gpu.blobsink"),
}
"""Of no use to an extraction on the CPU from a folder into a folder."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def imported_at_first_sample(archive: Path, out: Path, *options: str) -> set[str]:
    done = run("extract", archive, out, "--bands", "1", *options)
    # Two loaders may both be quick enough to say it.
    return set(json.loads(done.stdout.splitlines()[0]))


def record(path: Path, zarr_format: int, *, consolidated: bool = True, **how: object) -> Path:
    samples = random_walk(8, 6000, 1)
    return write(
        path,
        zarr_format=zarr_format,
        consolidated=consolidated,
        data=samples,
        times=clock_us(samples.shape[1], 200.0),
        chunks=(8, 600),
        **how,
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.slow
def test_a_plain_archive_on_disk_is_begun_without_the_libraries_of_others(
    tmp_path: Path, zarr_format: int, consolidated: bool
) -> None:
    archive = record(tmp_path / "a.zarr", zarr_format, consolidated=consolidated)
    found = imported_at_first_sample(archive, tmp_path / "out", "--backend", "cpu")
    assert not UNUSED & found
    assert {"das_gpu.stream", "numpy"} <= found


@pytest.mark.slow
def test_cupy_is_not_imported_to_find_that_there_is_no_driver(tmp_path: Path) -> None:
    try:
        driver_library()
    except OSError:
        archive = record(tmp_path / "a.zarr", 2)
        assert not UNUSED & imported_at_first_sample(archive, tmp_path / "out")
    else:
        pytest.skip("there is a driver")


@pytest.mark.slow
def test_an_archive_that_is_not_plain_is_begun_with_zarr(tmp_path: Path) -> None:
    archive = record(tmp_path / "a.zarr", 3, shards=(8, 1200))
    found = imported_at_first_sample(archive, tmp_path / "out", "--backend", "cpu")
    assert UNUSED & found >= {"zarr"}


def test_the_command_ends_without_looking_for_garbage_that_ends_with_it() -> None:
    script = (
        "import atexit, gc, sys; from das_gpu.__main__ import command; sys.argv = ['das-gpu', "
        "'--version']; atexit.register(lambda: print(gc.get_freeze_count() > 10_000)); command()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True"


@pytest.mark.slow
def test_help_needs_no_numbers_and_no_recipe() -> None:
    done = run("extract", "--help")
    assert "Usage" in done.stdout
    found = set(json.loads(done.stderr.splitlines()[-1]))
    assert not (UNUSED - {"rich", "ssl"} | {"numpy", "scipy", "pydantic", "numcodecs"}) & found
