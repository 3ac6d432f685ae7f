"""Tables in documents are those of kept results, to the digit."""

from __future__ import annotations

import copy
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from das_gpu import benchmark
from das_gpu.recipe import Recipe
from tests.archives import random_walk, write_archive

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "bench/results/bench.json": "README.md",
    "bench/results/bars.json": "bench/README.md",
}
DOCUMENT = """# Speed

<!-- performance: bench.json -->
old
<!-- /performance -->

| not | ours |
"""
BAR: dict[str, Any] = {"unit": "times", "aim": None, "at_least": True, "met": True}
BARS: dict[str, Any] = {
    "date": "2031-02-03T04:05:06+00:00",
    "tiny": False,
    "repeats": 5,
    "archive": {
        "channels": 12000, "seconds": 240.0, "chunk_shape": [3000, 3000],
        "stored_over_decoded": 0.496,
    },
    "bars": [
        {**BAR, "part": "continuous", "what": "faster", "value": 9.126, "limit": 6.0, "aim": 9.0},
        {**BAR, "part": "steady", "what": "over", "value": 3.4, "limit": 3.0, "at_least": False,
         "met": False},
        {**BAR, "part": "memory", "what": "peak", "value": 412.6, "limit": 600.0, "unit": "MB",
         "at_least": False},
        {**BAR, "part": "kernels", "what": "resize", "value": None, "limit": 3.0, "met": False},
        {**BAR, "part": "startup", "what": "first sample", "value": 0.7312, "limit": None,
         "unit": "s", "met": None},
    ],
    "machine": {
        "cpu": "A processor", "cores": 2, "memory_gb": 25.3, "python": "3.11.7",
        "packages": {"das-gpu": "0.1.0", "numba": "0.68.1"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("table")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of ``das-gpu bench`` itself, as it comes out of its JSON."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    archive = write_archive(path, random_walk(24, 4000, seed=3), 200.0, (12, 900))
    settings = {"selection.channel_step": 2, "tile.seconds": 5, "tile.bands": 2}
    images = {"image.height": 16, "image.width": 16, "median.kind": "channel"}
    recipe = Recipe().with_settings({**settings, **images})
    found = benchmark.measure(archive, recipe, backend="cpu", minutes=0.2, repeats=1, workers=1)
    again: dict[str, Any] = json.loads(json.dumps(found))
    return again


def rows(text: str) -> dict[str, list[str]]:
    """Cells of each line of a Markdown table, by the first of them."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "table.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# --- das-gpu bench ------------------------------------------------------------------------


def test_a_row_has_each_contestants_seconds_and_its_ratio_to_the_reference(table, result):
    made = copy.deepcopy(result)
    field = made["contestants"]
    field["cpu"]["stages"]["draw"]["seconds"] = 0.0021
    field["reference"]["stages"]["draw"]["seconds"] = 0.0126
    field["cpu"]["end to end"]["seconds"] = 1.234
    field["reference"]["end to end"]["seconds"] = 11.11
    kind, text = table.render(made)
    found = rows(text)
    assert kind == "performance"
    head = next(iter(found.values()))
    cpu, reference = head.index("cpu"), head.index("reference")
    assert (found["resize"][cpu], found["resize"][reference]) == ("2.1 ms (6.0x)", "12.6 ms")
    whole = found["archive to images"]
    assert (whole[cpu], whole[reference]) == ("1.23 s (9.0x)", "11.11 s")
    assert found["median over channels"][reference] == "-"
    assert "x)" not in found["median over channels"][cpu]


def test_the_caption_names_contestants_machine_and_versions(table, result):
    _, text = table.render(result)
    for name, one in result["contestants"].items():
        assert f"`{name}`: {one['about']}." in text
    machine, versions = result["machine"], result["versions"]
    assert (machine["model"] or machine["processor"]) in text
    assert all(f"{name} {number}" in text for name, number in versions.items())
    assert "Medians of 1 on 1 thread, start-up left out, " in text
    assert result["date"][:10] in text


def test_a_result_whose_images_differ_says_so(table, result):
    assert "All make the images they should" in table.render({**result, "agrees": True})[1]
    assert "**They do not make the same images**" in table.render({**result, "agrees": False})[1]


def test_every_number_of_a_result_changes_the_table(table, result):
    """None is shown from elsewhere, and none that the table should show is left out."""
    _, before = table.render(result)
    paths = [("repeats",), ("threads",), ("stretch", "tiles"), ("stretch", "bands")]
    for name, one in result["contestants"].items():
        at = ("contestants", name)
        paths += [(*at, "stages", stage, "seconds") for stage in one["stages"]]
        paths += [(*at, "read", "seconds"), (*at, "end to end", "seconds"), (*at, "tiles_per_s")]
    for *way, last in paths:
        changed = copy.deepcopy(result)
        part = changed
        for key in way:
            part = part[key]
        part[last] = part[last] * 3 + 1
        assert table.render(changed)[1] != before, (*way, last)


# --- bars ---------------------------------------------------------------------------------


def test_bars_are_told_with_their_limits_and_what_is_missed_stands_out(table):
    kind, text = table.render(BARS)
    assert kind == "bars"
    assert [line for line in text.splitlines() if line.startswith("|")][2:] == [
        "| continuous | faster | 9.13 times | at least 6, aim 9 | yes |",
        "| steady | over | 3.40 times | at most 3 | **no** |",
        "| memory | peak | 413 MB | at most 600 | yes |",
        "| kernels | resize | not measured | at least 3 | **no** |",
        "| startup | first sample | 731 ms |  |  |",
    ]
    assert text.endswith(
        "Medians of 5 on 2 cores of A processor, 25.3 GB, Python 3.11.7, das-gpu 0.1.0, numba "
        "0.68.1; 12,000 channels x 240 s in chunks of 3000 x 3000, stored at 0.50 of their "
        "decoded size; 2031-02-03."
    )


def test_a_trials_table_says_that_it_is_one(table):
    assert "trial" not in table.render(BARS)[1]
    assert "**A trial of the benchmark, no figure.**" in table.render({**BARS, "tiny": True})[1]


# --- documents ----------------------------------------------------------------------------


def test_writing_changes_what_is_between_the_markers_alone(table, result):
    kind, text = table.render(result)
    written = table.replaced(DOCUMENT, kind, text)
    assert written.startswith("# Speed\n\n<!-- performance: bench.json -->\n\n| one row of 2 tiles")
    assert written.endswith("\n\n<!-- /performance -->\n\n| not | ours |\n")
    assert text in written
    assert "old" not in written
    assert table.replaced(written, kind, text) == written


@pytest.mark.slow
def test_a_document_that_differs_by_a_digit_is_found_and_mended(result, tmp_path):
    kept, document = tmp_path / "bench.json", tmp_path / "README.md"
    kept.write_text(json.dumps(result))
    document.write_text(DOCUMENT)
    assert run(kept, "--write", document).returncode == 0
    assert run(kept, "--check", document).returncode == 0
    right = document.read_text()

    digit = re.search(r"\d (?=m?s \()", right)
    assert digit is not None
    other = "7" if digit[0] != "7 " else "8"
    document.write_text(right[: digit.start()] + other + right[digit.start() + 1 :])
    found = run(kept, "--check", document)
    assert found.returncode == 1
    assert len(found.stdout.splitlines()) == 2
    assert "--write" in found.stderr
    assert run(kept, "--write", document).returncode == 0
    assert document.read_text() == right

    result = copy.deepcopy(result)
    result["contestants"]["cpu"]["end to end"]["seconds"] *= 1.5
    kept.write_text(json.dumps(result))
    assert run(kept, "--check", document).returncode == 1


@pytest.mark.parametrize(
    ("document", "said"),
    [("# Speed\n", "There are 0 places"), (DOCUMENT + DOCUMENT, "There are 2 places")],
)
def test_a_document_without_one_place_for_the_table_is_left_alone(result, tmp_path, document, said):
    kept, file = tmp_path / "bench.json", tmp_path / "README.md"
    kept.write_text(json.dumps(result))
    file.write_text(document)
    found = run(kept, "--write", file)
    assert found.returncode == 2
    assert said in found.stderr
    assert file.read_text() == document


def test_what_is_no_result_is_refused(tmp_path):
    kept = tmp_path / "other.json"
    for text, said in (("{}", "no result"), ("no JSON", "Expecting value")):
        kept.write_text(text)
        found = run(kept)
        assert found.returncode == 2
        assert said in found.stderr
    assert run(tmp_path / "none.json").returncode == 2


@pytest.mark.parametrize(("kept", "document"), PLACES.items())
def test_the_documents_show_the_kept_results(table, kept, document):
    """A result that is kept is shown, a table that is shown has its result, and they agree."""
    text, result = (ROOT / document).read_text(), ROOT / kept
    assert (f": {kept} -->" in text) == result.exists()
    if result.exists():
        assert table.stale(text, json.loads(result.read_text())) == []
