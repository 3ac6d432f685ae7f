"""``das-gpu bench``: times of all contestants, whether they agree, results side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu import benchmark, reference
from das_gpu.agreement import SAME, SINGLE, judged
from das_gpu.archive import open_archive
from das_gpu.backends import cuda, fast, plain
from das_gpu.backends.cpu import CpuBackend, CpuWorkspace
from das_gpu.cli.bench import bench, result_lines
from das_gpu.cli.options import OutputOptions, RecipeOptions
from das_gpu.errors import DestinationError, UsageError
from das_gpu.recipe import Recipe
from das_gpu.stages import Ours, Reference, Stopwatch, Stretch, uncompiled
from tests import reference as restated
from tests.archives import random_walk, write_archive
from tests.gpu.harness import double
from tests.gpu.harness.require import need_compiler, need_nvrtc
from tests.outputs import images

STAGES = ["analytic", "common_mode", "envelope_db", "levels", "draw", "encode"]
SETTINGS: dict[str, Any] = {
    "selection.channel_step": 2,
    "tile.seconds": 5,
    "tile.bands": 2,
    "median.kind": "channel",
    "image.height": 32,
    "image.width": 24,
}
NOTEBOOK = {key: value for key, value in SETTINGS.items() if key != "median.kind"}
MINUTES = 0.2
TIMES = re.compile(r"\d (ms|s) \(")


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """24 channels x 20 s at 200 Hz."""
    return random_walk(24, 4000, seed=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, samples) -> Path:
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, samples, 200.0, (10, 900))


def recipe(**changed: Any) -> Recipe:
    return Recipe().with_settings(
        SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    )


def measure(archive: Path, chosen: Recipe | None = None, **changed: Any) -> dict[str, Any]:
    wanted = {"backend": "cpu", "minutes": MINUTES, "repeats": 1, "workers": 1} | changed
    return benchmark.measure(archive, chosen or recipe(), **wanted)


@pytest.fixture(scope="module", autouse=True)
def without_numba() -> Iterator[None]:
    """Most tests have one way of the CPU backend take part; those with both ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "installed", lambda: False)
        yield


@pytest.fixture(scope="module")
def result(archive) -> dict[str, Any]:
    return measure(archive, repeats=2)


def test_the_references_tile_is_the_notebooks(samples):
    """Against another restatement of the notebook's steps, which the real recordings vouch for."""
    counts = samples[:12, :1000:2]
    sos = reference.sections(14, 35, 8, 100.0)
    envelope = reference.envelope_db(reference.analytic(counts, sos))
    expected = restated.notebook_tile(counts, restated.band_pass(8, 14, 35, 100.0))
    np.testing.assert_array_equal(envelope, expected)
    picture = reference.picture(envelope, *reference.levels(envelope), 256, 256)
    np.testing.assert_array_equal(picture, restated.notebook_image(expected))


def test_each_contestant_is_timed_stage_by_stage_and_from_archive_to_images(result):
    field = result["contestants"]
    assert list(field) == ["cpu", "cpu-notebook", "reference"]
    assert list(field["cpu"]["stages"]) == STAGES
    # The notebook takes no median over channels.
    without = [stage for stage in STAGES if stage != "common_mode"]
    assert list(field["cpu-notebook"]["stages"]) == list(field["reference"]["stages"]) == without
    for one in field.values():
        for time in (*one["stages"].values(), one["read"], one["end to end"]):
            assert len(time["runs"]) == result["repeats"] == 2
            assert time["seconds"] == pytest.approx(sum(time["runs"]) / 2, abs=1e-6)
            assert time["processor_seconds"] >= 0
        assert one["tiles_per_s"] == pytest.approx(4 / one["end to end"]["seconds"])


def test_a_result_says_what_was_measured_on_what(result, archive):
    assert result["stretch"]["tiles"] == 4
    assert (result["stretch"]["tile_channels"], result["stretch"]["tile_samples"]) == (6, 500)
    assert result["source"]["location"] == archive.name
    assert result["recipe_digest"] == recipe().digest
    assert Recipe.model_validate(result["recipe"]) == recipe()
    assert result["threads"] == 1
    assert result["machine"]["cores"] >= 1
    assert result["versions"].keys() >= {"python", "numpy", "scipy", "pillow"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_notebook_recipe_and_the_notebooks_steps_give_the_same_pixels(result):
    single, same = result["agreement"]
    assert single["compared"] == ["cpu", "cpu-float64"]
    assert 0 < single["envelope_db"] <= 0.02
    assert same["compared"] == ["cpu-notebook", "reference"]
    assert (same["images"], same["grey_levels"], same["pixels"]) == (4, 0, 0.0)
    assert result["agrees"]


def test_the_reference_writes_the_stretchs_images_under_the_notebooks_names(archive, tmp_path):
    opened = open_archive(archive)
    stretch = Stretch.of(opened, Recipe(preset="notebook").with_settings(NOTEBOOK), MINUTES)
    Reference(stretch, 1).whole(tmp_path / "theirs")
    Ours("cpu", "", stretch, CpuBackend(1), 1).whole(tmp_path / "ours")
    names = sorted(path.name for path in (tmp_path / "theirs" / "images").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ours" / "images").iterdir())
    assert len(images(tmp_path / "ours")) == len(names) == 4


def test_an_archive_stored_time_first_gives_the_reference_the_same_tiles(
    archive, samples, tmp_path
):
    turned = write_archive(tmp_path / "t.zarr", samples, 200.0, (10, 900), time_first=True)
    chosen = Recipe(preset="notebook").with_settings(NOTEBOOK)
    one, other = (
        Reference(Stretch.of(open_archive(path), chosen, MINUTES), 1).envelopes_db()
        for path in (archive, turned)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("preset", ["continuous", "notebook"])
@pytest.mark.slow
def test_compiled_loops_take_part_where_numba_is_and_agree(archive, monkeypatch, preset):
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    monkeypatch.setattr(fast, "installed", lambda: True)
    own = preset == "notebook"
    chosen = Recipe(preset="notebook").with_settings(NOTEBOOK) if own else recipe()
    found = measure(archive, chosen)
    others = ["reference"] if own else ["cpu-notebook", "reference"]
    assert list(found["contestants"]) == ["cpu", "cpu-compiled", *others]
    pairs = [each["compared"] for each in found["agreement"]]
    assert pairs[0] == ["cpu-compiled", "cpu"]
    assert pairs[-1] == ["cpu-compiled" if own else "cpu-notebook", "reference"]
    assert found["agrees"]


@pytest.mark.slow
def test_loops_count_as_compiled_by_what_each_runs_backend_will_ask(archive, monkeypatch):
    """The backend asks nothing that was not asked before, so no contestant falls back."""
    asked = []
    ask = fast.first_missing

    def noted(*args, **more):
        asked.append((args, more))
        return ask(*args, **more)

    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(fast, "first_missing", noted)
    deep = recipe(image__format="png16")
    opened = open_archive(archive)
    for chosen in (recipe(), deep, Recipe(preset="notebook").with_settings(NOTEBOOK)):
        stretch = Stretch.of(opened, chosen, MINUTES)
        assert uncompiled(stretch) is None
        (foreseen,) = asked
        backend = CpuBackend(1, compiled=True)
        with Ours("cpu-compiled", "", stretch, backend, 1).held() as row:
            row(Stopwatch())
        assert asked == [foreseen, foreseen]
        asked.clear()


def test_loops_that_numba_cannot_compile_are_not_timed_as_compiled(archive, monkeypatch, caplog):
    said = "numba cannot compile or keep what it compiled (OSError: no room). Get it."
    monkeypatch.setattr(fast, "installed", lambda: True)
    monkeypatch.setattr(fast, "first_missing", lambda *_, **__: said)
    found = measure(archive)
    assert list(found["contestants"]) == ["cpu", "cpu-notebook", "reference"]
    assert found["left_out"] == {"cpu-compiled": said}
    assert "compiled" not in json.dumps(found["contestants"])
    assert f"cpu-compiled: left out. {said}" in result_lines(found)
    assert "NumPy does what compiled loops would do" not in caplog.text


def test_without_numba_the_result_says_what_would_bring_it(result):
    assert "das-gpu[fast]" in result["left_out"]["cpu-compiled"]


def test_a_recipe_that_is_the_notebooks_own_is_not_run_twice(archive):
    chosen = Recipe(preset="notebook").with_settings(NOTEBOOK)
    found = measure(archive, chosen)
    assert list(found["contestants"]) == ["cpu", "reference"]
    assert [each["compared"] for each in found["agreement"]] == [["cpu", "reference"]]
    assert found["agrees"]


@pytest.mark.slow
def test_without_a_gpu_it_is_left_out_and_the_result_says_why(archive, monkeypatch):
    def absent() -> str:
        raise OSError

    monkeypatch.setattr(cuda, "driver_library", absent)
    found = measure(archive, backend="auto")
    assert "gpu" not in found["contestants"]
    assert "no NVIDIA driver" in found["left_out"]["gpu"]
    with pytest.raises(UsageError, match="no NVIDIA driver"):
        measure(archive, backend="gpu")


def test_a_band_that_the_notebook_cannot_filter_leaves_the_reference_out(archive):
    """It strides first: of 200 Hz nothing above 50 Hz is left."""
    found = measure(archive, recipe(filter__low_hz=60, filter__high_hz=80))
    assert list(found["contestants"]) == ["cpu"]
    assert "Nyquist frequency of 50 Hz" in found["left_out"]["reference"]


def test_tiles_that_overlap_are_compared_one_by_one(archive):
    preset = Recipe.from_preset("notebook").with_settings(NOTEBOOK)
    overlaps = {"tile.overlap_time": 0.5, "tile.overlap_channels": 0.5}
    found = measure(archive, preset.with_settings(overlaps))
    # 12 s are 3 rows of tiles of 5 s, half a tile apart.
    assert found["stretch"]["rows"] == 3
    assert found["stretch"]["bands"] == 2 * NOTEBOOK["tile.bands"] - 1
    assert found["agrees"]


@pytest.mark.slow
def test_tiles_with_dead_channels_are_not_held_against_the_notebook(samples, tmp_path):
    dead = samples.copy()
    dead[2] = 7
    path = write_archive(tmp_path / "dead.zarr", dead, 200.0, (10, 900))
    same = measure(path)["agreement"][-1]
    assert (same["images"], same["agrees"]) == (2, True)


@pytest.mark.slow
def test_a_gpu_takes_part_and_is_held_against_the_cpu(archive, monkeypatch):
    """By the strict double of CuPy, whose kernels run on the processor."""
    need_compiler()
    need_nvrtc()
    monkeypatch.setattr(cuda, "driver_library", lambda: "the double")
    monkeypatch.setattr(cuda, "_functions", {})
    with double.installed("late"):
        found = measure(archive, backend="gpu")
    assert list(found["contestants"]) == ["cpu", "gpu", "cpu-notebook", "reference"]
    assert list(found["contestants"]["gpu"]["stages"]) == STAGES
    against = found["agreement"][0]
    assert (against["compared"], against["images"]) == (["gpu", "cpu"], 4)
    assert 0 < against["envelope_db"] <= 0.02
    assert found["agrees"]


# --- disagreement -----------------------------------------------------------------------------


def run(archive: Path, **changed: Any) -> int:
    flags = {"channels": "::2", "tile_seconds": 5.0, "bands": 2, "image_size": "32x24"}
    wanted = {"backend": "cpu", "minutes": MINUTES, "repeats": 1, "workers": 1} | changed
    return bench(str(archive), options=RecipeOptions(**flags), **wanted)


@pytest.mark.slow
def test_one_wrong_pixel_is_a_disagreement_and_exit_code_3(archive, monkeypatch, capsys):
    exact = plain.by_pillow

    def off_by_one(*arguments: Any) -> np.ndarray:
        pixels = exact(*arguments).copy()
        pixels[0, 0] ^= 1
        return pixels

    monkeypatch.setattr(plain, "by_pillow", off_by_one)
    assert run(archive) == 3
    assert "cpu-notebook and reference DO NOT AGREE" in capsys.readouterr().out


def test_an_envelope_that_is_not_a_number_is_a_disagreement(archive):
    class Broken(Ours):
        def envelopes_db(self) -> list[np.ndarray]:
            return [np.full_like(tile, np.nan) for tile in super().envelopes_db()]

    stretch = Stretch.of(open_archive(archive), recipe(), MINUTES)
    ours = Ours("cpu", "", stretch, CpuBackend(1), 1)
    broken = Broken("gpu", "", stretch, CpuBackend(1), 1)
    nowhere = archive.parent
    assert judged(ours, ours, SINGLE, False, nowhere)["agrees"]
    found = judged(broken, ours, SINGLE, False, nowhere)
    assert not found["agrees"]
    json.dumps(found, allow_nan=False)


def test_envelopes_are_held_to_their_bar(archive, monkeypatch):
    exact = CpuWorkspace.envelope_db

    def louder(self: CpuWorkspace, *arguments: Any) -> Any:
        made = exact(self, *arguments)
        made.values[...] += 2e-4
        return made

    stretch = Stretch.of(
        open_archive(archive), Recipe(preset="notebook").with_settings(NOTEBOOK), MINUTES
    )
    ours, theirs = Ours("cpu", "", stretch, CpuBackend(1), 1), Reference(stretch, 1)
    assert judged(ours, theirs, SAME, False, archive.parent)["agrees"]
    monkeypatch.setattr(CpuWorkspace, "envelope_db", louder)
    found = judged(ours, theirs, SAME, False, archive.parent)
    assert found["envelope_db"] == pytest.approx(2e-4, rel=0.1)
    assert not found["agrees"]
    assert judged(ours, theirs, replace(SAME, envelope_db=3e-4), False, archive.parent)["agrees"]


# --- the command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_table_names_each_contestant_and_stage(archive, capsys):
    assert run(archive) == 0
    written = capsys.readouterr().out
    assert "cpu-notebook and reference agree" in written
    head, *rest = [line for line in written.splitlines() if line.startswith(("one row", "  "))]
    assert head.split()[-3:] == ["cpu", "cpu-notebook", "reference"]
    named = [line.split("  ")[1].strip() for line in rest]
    assert named[-3:] == ["read", "end to end", "tiles/s"]
    assert [name for name in named if name in STAGES] == named[:-3]
    assert all(len(TIMES.findall(line)) >= 2 for line in rest[:-1])


@pytest.mark.slow
def test_json_goes_to_stdout_and_the_same_is_kept_in_the_file(archive, tmp_path, capsys):
    file = tmp_path / "kept" / "result.json"
    assert run(archive, out=file, output=OutputOptions(json=True)) == 0
    kept = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == {**kept, "exit_code": 0}


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_said(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match=r"cannot be written to .*file/result\.json"):
        run(archive, out=tmp_path / "file" / "result.json")


@pytest.mark.parametrize("changed", [{"minutes": 0.0}, {"repeats": 0}, {"workers": 0}])
def test_numbers_that_measure_nothing_are_refused(archive, changed):
    with pytest.raises(UsageError, match="cannot be measured"):
        measure(archive, **changed)


def test_a_stretch_whose_middle_is_lost_is_refused(samples, tmp_path):
    path = write_archive(tmp_path / "lost.zarr", samples, 200.0, (24, 1000))
    (path / "RawData" / "0.1").unlink()
    with pytest.raises(UsageError, match="in the middle of the stretch, cannot be measured"):
        measure(path)


# --- side by side -----------------------------------------------------------------------------


def kept(folder: Path, name: str, result: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text(json.dumps(result))
    return file


def test_two_results_side_by_side_show_how_many_times_as_fast_the_second_is(
    result, tmp_path, capsys
):
    faster = json.loads(json.dumps(result))
    faster["threads"] = 4
    faster["machine"]["load_average_at_end"] = 17.0
    faster["contestants"]["cpu"]["stages"]["draw"]["seconds"] /= 4
    del faster["contestants"]["reference"]
    pair = (kept(tmp_path, "a.json", result), kept(tmp_path, "b.json", faster))
    assert bench(compare=pair, output=OutputOptions(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    ratios = {(row["contestant"], row["stage"]): row["ratio"] for row in found["rows"]}
    assert ratios.pop(("cpu", "draw")) == pytest.approx(4)
    assert set(ratios.values()) == {1.0}
    assert len(ratios) == 7 + 7
    assert found["differences"] == {"threads": [1, 4]}
    assert bench(compare=pair) == 0
    written = capsys.readouterr().out
    assert "not the same in both: threads: 1 and 4" in written
    assert re.search(r"cpu +draw +[\d.]+ ms +[\d.e-]+ ms +4\.00\n", written)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "\x00"])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(UsageError, match=r"other\.json does not hold a result of das-gpu bench"):
        benchmark.load(tmp_path / "other.json")


def test_a_result_of_another_format_is_refused(tmp_path, result):
    file = kept(tmp_path, "new.json", result | {"format": 99})
    with pytest.raises(UsageError, match="format 99, this das-gpu reads format 1"):
        benchmark.load(file)
