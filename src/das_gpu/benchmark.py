"""``das-gpu bench``: backends side by side on a stretch of a user's own archive, and their results.

Times mean little without agreement, so both are in one result: whoever is timed must also have
made the images that it was asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from das_gpu import backends, host
from das_gpu.agreement import DOUBLE, SAME, SINGLE, Bar, judged
from das_gpu.archive import Archive, open_archive
from das_gpu.backends import cuda
from das_gpu.backends.cpu import CpuBackend
from das_gpu.errors import RecipeError, UsageError
from das_gpu.locations import Location
from das_gpu.recipe import Recipe
from das_gpu.run import resolve_source
from das_gpu.stages import STAGES, Contestant, Lap, Ours, Reference, Stopwatch, Stretch, uncompiled
from das_gpu.store import Access

FORMAT = 1
"""Of results; raised when an older one can no longer be compared."""
READ, WHOLE = "read", "end to end"
MINUTES = 1.0
REPEATS = 5
_COMPILED = "loops compiled by numba"


def measure(
    source: str | Path,
    recipe: Recipe | None = None,
    *,
    backend: str = "auto",
    minutes: float = MINUTES,
    repeats: int = REPEATS,
    workers: int | None = None,
    access: Access | None = None,
    on_step: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Time the backends and the notebook's steps on a stretch, and compare what they make.

    Contestants take turns. Each has done everything once before it is timed, so starting Python,
    importing, compiling and the first reading from a disk are left out.

    Parameters
    ----------
    source : str or Path
        As for `das_gpu.run.extract`.
    recipe : Recipe, optional
        What the backends compute; the notebook's steps take its selection, band and tiles.
    backend : {"auto", "cpu", "gpu"}
        ``auto`` takes the GPU too where all it needs is there; ``cpu`` does not, ``gpu`` insists.
    minutes : float
        Length of the stretch, from the recipe's start.
    repeats : int
        Timed runs of everything; the median counts.
    workers : int, optional
        Compute threads; by default the processors this process may use.
    access : Access, optional
        How the archive is reached.
    on_step : callable, optional
        Told the fraction done.

    Returns
    -------
    dict
        Ready for JSON; ``agrees`` is False when some images are not what they should be.

    Raises
    ------
    UsageError
        For numbers that mean nothing, a recipe that does not fit, or a GPU that is not there.
    SourceError, AccessDeniedError
        When the archive cannot be read.
    """
    if not minutes > 0 or repeats < 1 or (workers is not None and workers < 1):
        raise UsageError(
            f"{minutes:g} minutes, {repeats} repeats and {workers} workers cannot be measured: "
            "give more than 0 minutes, and at least 1 of the others."
        )
    recipe, threads = recipe or Recipe(), workers or host.processors()
    archive = open_archive(resolve_source(source), recipe.archive, access)
    stretch = Stretch.of(archive, recipe, minutes)
    field, left_out = _contestants(archive, stretch, backend, minutes, threads)
    report = _Steps(on_step, (1 + repeats) * 3 + 1)
    with host.single_threaded_blas(), tempfile.TemporaryDirectory(prefix="das-gpu-bench-") as made:
        watches = {one.name: Stopwatch() for one in field}
        _time_rows(field, watches, repeats, report)
        _time_runs(field, watches, repeats, Path(made), report)
        agreement = [judged(*pair, Path(made)) for pair in _pairs(field, stretch, archive, minutes)]
        report()
    plan = stretch.plan
    return {
        "format": FORMAT,
        "das_gpu": version("das-gpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": host.versions(),
        "source": archive.fingerprint() | _place(archive.location),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest,
        "stretch": {
            "minutes": minutes,
            "tiles": plan.n_tiles,
            "rows": plan.rows,
            "bands": plan.bands,
            "tile_channels": plan.band_channels,
            "tile_samples": plan.tile_samples,
            "decoded_bytes": plan.chunk_reads * archive.data.chunk_nbytes,
        },
        "repeats": repeats,
        "threads": threads,
        "contestants": {one.name: _figures(one, watches[one.name]) for one in field},
        "left_out": left_out,
        "agreement": agreement,
        "agrees": all(each["agrees"] for each in agreement),
    }


def _contestants(
    archive: Archive, stretch: Stretch, backend: str, minutes: float, threads: int
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and who does not and why."""
    recipe, left_out = stretch.plan.recipe, {}
    about = f"{recipe.preset} recipe in {recipe.compute.dtype}"
    numpy = CpuBackend(threads)
    field: list[Contestant] = [Ours("cpu", f"das-gpu, {about}", stretch, numpy, threads)]
    loops_missing = uncompiled(stretch)
    if loops_missing is None:
        compiled = CpuBackend(threads, compiled=True)
        text = f"das-gpu, {about}, {_COMPILED}"
        field.append(Ours("cpu-compiled", text, stretch, compiled, threads))
    else:
        left_out["cpu-compiled"] = loops_missing
    missing = None if backend == "cpu" else cuda.first_missing()
    if backend == "gpu" or (backend == "auto" and missing is None):
        selected = backends.select("gpu", threads)
        text = f"das-gpu, {about}, {cuda.device()}"
        field.append(Ours("gpu", text, stretch, selected.backend, threads))
    elif missing is not None:
        left_out["gpu"] = missing.found
    try:
        notebook = Stretch.of(archive, _notebook(recipe), minutes)
    except RecipeError as error:
        left_out["reference"] = f"the notebook's steps cannot do this: {error}"
        return field, left_out
    if recipe.preset != "notebook" or recipe.compute.dtype != "float64":
        cpu = CpuBackend(threads, compiled=uncompiled(notebook) is None)
        text = "das-gpu, notebook recipe in float64" + (f", {_COMPILED}" if cpu.compiled else "")
        field.append(Ours("cpu-notebook", text, notebook, cpu, threads))
    return [*field, Reference(notebook, threads)], left_out


def _notebook(recipe: Recipe) -> Recipe:
    """The notebook's recipe for the same selection, band and tiles."""
    wanted = {
        "archive": None,
        "selection": {"channel_reduce"},
        "filter": {"method", "decimate", "halo_s"},
        "tile": None,
    }
    tables = {
        name: getattr(recipe, name).model_dump(exclude=without) for name, without in wanted.items()
    }
    size = {"height": recipe.image.height, "width": recipe.image.width}
    return Recipe.model_validate({"preset": "notebook", **tables, "image": size})


# --- times ------------------------------------------------------------------------------------


class _Steps:
    """Counts what has been done of what there is to do."""

    def __init__(self, tell: Callable[[float], None] | None, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._tell is not None:
            self._tell(self._done / self._total)


def _turns(field: Sequence[Contestant], repeats: int) -> Iterator[tuple[bool, list[Contestant]]]:
    """Orders to run in, and whether it counts: who goes first alternates."""
    for repeat in range(repeats + 1):
        yield repeat > 0, list(field)[:: 1 if repeat % 2 else -1]


def _time_rows(
    field: Sequence[Contestant], watches: Mapping[str, Stopwatch], repeats: int, report: _Steps
) -> None:
    """Make the middle row again and again, all contestants' samples being in memory."""
    with ExitStack() as stack:
        rows = {one.name: stack.enter_context(one.held()) for one in field}
        for counts, order in _turns(field, repeats):
            for one in order:
                rows[one.name](watches[one.name] if counts else Stopwatch())
            report()


def _time_runs(
    field: Sequence[Contestant],
    watches: Mapping[str, Stopwatch],
    repeats: int,
    folder: Path,
    report: _Steps,
) -> None:
    """Read the stretch, and make all of its images; those of the last time are kept."""
    for counts, order in _turns(field, repeats):
        for one in order:
            with (watches[one.name] if counts else Stopwatch())(READ):
                one.read()
        report()
        for one in order:
            out = folder / one.name
            shutil.rmtree(out, ignore_errors=True)
            with (watches[one.name] if counts else Stopwatch())(WHOLE):
                one.whole(out)
        report()


def _figures(one: Contestant, watch: Stopwatch) -> dict[str, Any]:
    tiles = one.stretch.plan.n_tiles
    whole_s = statistics.median(lap.seconds for lap in watch.laps[WHOLE])
    return {
        "about": one.about,
        "recipe_digest": one.stretch.plan.recipe.digest,
        "stages": {name: _median(watch.laps[name]) for name in STAGES if name in watch.laps},
        READ: _median(watch.laps[READ]),
        WHOLE: _median(watch.laps[WHOLE]),
        "tiles_per_s": tiles / whole_s,
    }


def _median(laps: Sequence[Lap]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(lap.seconds for lap in laps),
        "processor_seconds": statistics.median(lap.processor_seconds for lap in laps),
        "runs": [round(lap.seconds, 6) for lap in laps],
    }


def _machine() -> dict[str, Any]:
    """This machine, and how busy it is."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {**host.description(), "model": _processor_model(), "load_average_at_end": load}


def _processor_model() -> str | None:
    """The processor's name, as far as the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _place(location: Location) -> dict[str, str]:
    """Where an archive is, as far as a result that is passed on should tell: no one's folders."""
    return {"location": location.path.name if location.is_local else str(location)}


def _pairs(
    field: Sequence[Contestant], stretch: Stretch, archive: Archive, minutes: float
) -> Iterator[tuple[Contestant, Contestant, Bar, bool]]:
    """Whom to hold against whom, how close they must be, and whether by their images too."""
    by_name = {one.name: one for one in field}
    recipe, cpu = stretch.plan.recipe, by_name["cpu"]
    single = recipe.compute.dtype == "float32"
    for name in ("cpu-compiled", "gpu"):
        if name in by_name:
            yield by_name[name], cpu, SINGLE if single else DOUBLE, True
    if single:
        exact = Stretch.of(archive, recipe.with_settings({"compute.dtype": "float64"}), minutes)
        double = Ours("cpu-float64", "das-gpu in float64", exact, CpuBackend(1), 1)
        yield cpu, double, SINGLE, False
    if "reference" in by_name:
        same = ("cpu-notebook",) if "cpu-notebook" in by_name else ("cpu", "cpu-compiled")
        for name in (name for name in same if name in by_name):
            yield by_name[name], by_name["reference"], SAME, True


# --- results ----------------------------------------------------------------------------------


def load(file: Path) -> dict[str, Any]:
    """Read a result that was kept.

    Raises
    ------
    UsageError
        When the file cannot be read or holds something else.
    """
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = result["format"] == FORMAT and isinstance(result["contestants"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} does not hold a result of das-gpu bench: {error!r}. Give a file that "
            "`das-gpu bench --out FILE` has written."
        ) from error
    if not known:
        raise UsageError(
            f"{file} holds a result of format {result['format']}, this das-gpu reads format "
            f"{FORMAT}. Measure again with `das-gpu bench --out FILE`."
        )
    return result


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Set two results side by side.

    Returns
    -------
    dict
        ``differences``: what was not the same in both, by name. ``rows``: contestant, stage, the
        seconds of either and their ratio, how many times as fast the second is.
    """
    rows = []
    for name, one in first["contestants"].items():
        other = second["contestants"].get(name)
        if other is None:
            continue
        pairs = {stage: (time, other["stages"].get(stage)) for stage, time in one["stages"].items()}
        pairs |= {stage: (one[stage], other[stage]) for stage in (READ, WHOLE)}
        rows += [
            {
                "contestant": name,
                "stage": stage,
                "first_s": a["seconds"],
                "second_s": b["seconds"],
                "ratio": a["seconds"] / b["seconds"],
            }
            for stage, (a, b) in pairs.items()
            if b is not None
        ]
    parts = ("das_gpu", "machine", "versions", "source", "recipe_digest", "stretch", "threads")
    return {
        "differences": {
            part: [first.get(part), second.get(part)]
            for part in parts
            if _lasting(first.get(part)) != _lasting(second.get(part))
        },
        "rows": rows,
    }


def _lasting(part: Any) -> Any:
    """A part of a result without what is never the same twice."""
    if not isinstance(part, Mapping):
        return part
    return {name: value for name, value in part.items() if name != "load_average_at_end"}
