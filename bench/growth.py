"""How a run's costs grow with its length, and what all tiles of the published archive ask for.

    python bench/growth.py                # three minutes
    python bench/growth.py --tiny         # small; shows that it runs, no figure

``run``: one archive, the first 1, 2, 4 ... 64 segments of it, in this process: seconds and
requests to the store for each tile. ``cable``: a folder as the run over the whole cable and all 54
hours leaves it, 130,560 tiles in 218 segments, each image of the demo's size: how long it takes to
plan, to publish the manifests, to tell the status and to verify every image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from das_gpu import Recipe, extract
from das_gpu.backends import select
from das_gpu.identity import header_of, identity_of
from das_gpu.ledger import Ledger
from das_gpu.model import Status
from das_gpu.plan import Plan
from das_gpu.render import encode_png, file_name, iso_utc
from das_gpu.run import prepare
from das_gpu.segment import failed_records
from das_gpu.simulate import Scene, simulate
from das_gpu.sink import open_sink
from das_gpu.status import status
from das_gpu.store import Store
from das_gpu.verify import verify
from machine import describe

HERE = Path(__file__).resolve().parent
PACKAGES = ("das-gpu", "numpy", "scipy", "zarr", "numcodecs")
SEGMENT_MINUTES = 0.5
BARS = {
    "seconds_per_tile_64_over_1": 1.1,
    "requests_per_tile_64_over_1": 1.0,
    "plan_s": 10.0,
    "publish_s": 20.0,
    "status_s": 10.0,
    "verify_s": 60.0,
}
"""What is not to be passed; of the cable, seconds for all of its tiles."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    scene : Scene
        The archive that is read; every channel is kept.
    segments : tuple of int
        How many segments of it, run by run.
    cable : Scene
        The archive that is planned; it has no samples.
    first_channel : int
        Where the selection of it begins.
    repeats : int
        Runs of each length.
    """

    scene: Scene
    segments: tuple[int, ...]
    cable: Scene
    first_channel: int
    repeats: int


FULL = Size(
    scene=Scene(channels=300, seconds=66 * 60 * SEGMENT_MINUTES, chunk_shape=(300, 3000)),
    segments=(1, 2, 4, 8, 16, 32, 64),
    cable=Scene(channels=47_500, seconds=39_168_000 / 200),
    first_channel=10_000,
    repeats=5,
)
TINY = Size(
    scene=Scene(channels=60, seconds=4 * 60 * SEGMENT_MINUTES, chunk_shape=(60, 3000)),
    segments=(1, 2),
    cable=Scene(channels=15_000, seconds=3600.0),
    first_channel=7500,
    repeats=1,
)


@contextmanager
def requests_counted() -> Iterator[list[str]]:
    """Names of what is asked of stores meanwhile."""
    asked: list[str] = []
    get = Store.get

    def counted(store: Store, key: str, **how: Any) -> Any:
        asked.append(key)
        return get(store, key, **how)

    setattr(Store, "get", counted)  # noqa: B010 - a method that is put back below
    try:
        yield asked
    finally:
        setattr(Store, "get", get)  # noqa: B010


def run(size: Size, store: Path, folder: Path) -> dict[str, Any]:
    """Seconds and requests of runs of several lengths, in turn."""
    archive, whole = prepare(store, Recipe())
    rate_hz = whole.acquisition.sampling_rate_hz
    settings = {"selection.channel_step": 1, "tile.bands": 2, "tile.seconds": 15}
    found: dict[int, list[tuple[float, int, int]]] = {number: [] for number in size.segments}
    for repeat in range(1 + size.repeats):
        for number in size.segments[:: 1 if repeat % 2 else -1]:
            last = round(number * 60 * SEGMENT_MINUTES * rate_hz)
            stop = iso_utc(int(archive.times_ns(last, last + 1)[0]))
            recipe = Recipe().with_settings({**settings, "selection.stop": stop})
            out = folder / f"{number}-{repeat}"
            with requests_counted() as asked:
                begun_s = time.perf_counter()
                summary = extract(
                    store, out, recipe, backend="cpu", segment_minutes=SEGMENT_MINUTES, fast=False
                )
                seconds = time.perf_counter() - begun_s
            if repeat:  # the first run of each length only warms up
                found[number].append((seconds, len(asked), summary.made))
    return {
        str(number): {
            "tiles": runs[0][2],
            "runs_s": [round(seconds, 3) for seconds, _, _ in runs],
            "ms_per_tile": round(
                1000 * statistics.median(seconds for seconds, _, _ in runs) / runs[0][2], 3
            ),
            "requests_per_tile": round(runs[0][1] / runs[0][2], 3),
        }
        for number, runs in found.items()
    }


def cable_plan(store: Path, first_channel: int) -> Plan:
    """Plan every fifth channel of the archive, as the published one is used."""
    selection = {"selection.channel_start": first_channel, "selection.channel_step": 5}
    return prepare(store, Recipe().with_settings(selection))[1]


def image() -> bytes:
    """An image of the size that envelopes of noise have."""
    random = np.random.default_rng(0)
    level = np.abs(random.normal(size=(256, 256)) + 1j * random.normal(size=(256, 256)))
    return encode_png(np.clip(90 + 40 * np.log10(level), 0, 255).astype(np.uint8))


def timed(act: Callable[[], Result]) -> tuple[Result, float]:
    """Its result, and seconds."""
    begun_s = time.perf_counter()
    result = act()
    return result, round(time.perf_counter() - begun_s, 3)


def cable(size: Size, store: Path, out: Path) -> dict[str, Any]:
    """Lay a finished run into a folder, every image the same one by its hard links; look at it.

    Raises
    ------
    SystemExit
        When what is looked at is not a whole run.
    """
    plan, plan_s = timed(lambda: cable_plan(store, size.first_channel))
    archive = prepare(store, plan.recipe)[0]
    # Let go of one by one, as by a run: what is held is looked through by the garbage collector.
    segments = map(plan.segment, range(plan.n_segments))
    _, tiles_s = timed(lambda: [deque(plan.tiles(segment), maxlen=0) for segment in segments])
    data = image()
    digest = sha256(data).hexdigest()
    sink = open_sink(out)
    selected = select("cpu", 1, compiled=False)
    source = out.with_suffix(".png")
    source.write_bytes(data)
    with sink.hold("growth"):
        ledger = Ledger.open(
            sink,
            identity_of(archive, plan, selected, 15.0, "skip"),
            header_of(plan.recipe, selected, plan),
            n_segments=plan.n_segments,
        )
        for number in range(plan.n_segments):
            records = [
                replace(
                    record,
                    status=Status.OK.value,
                    reason=None,
                    file_name=file_name(
                        "plain",
                        start_ns=plan.acquisition.start_ns + 5_000_000 * record.sample_start,
                        channel=record.channel_start,
                        distance_m=record.distance_start_m,
                        suffix="png",
                    ),
                    db_low=100.0,
                    db_high=140.0,
                    sha256=digest,
                )
                for record in failed_records(plan, number, "")
            ]
            for record in records:
                path = out / str(record.file_name)
                path.parent.mkdir(parents=True, exist_ok=True)
                _link(source, path)
            ledger.finish_segment(number, records)
        totals, publish_s = timed(ledger.publish)
    found, status_s = timed(lambda: status(out))
    checked, verify_s = timed(lambda: verify(out))
    if totals.delivered != plan.n_tiles or found.done != plan.n_segments or checked.exit_code:
        raise SystemExit(f"This is not a whole run: {totals}, {found}, {checked}")
    return {
        "tiles": plan.n_tiles,
        "segments": plan.n_segments,
        "image_bytes": len(data),
        "plan_s": round(plan_s + tiles_s, 3),
        "plan_us_per_tile": round(1e6 * (plan_s + tiles_s) / plan.n_tiles, 1),
        "publish_s": publish_s,
        "publish_us_per_tile": round(1e6 * publish_s / plan.n_tiles, 1),
        "manifest_bytes": (out / "metadata.jsonl").stat().st_size,
        "status_s": status_s,
        "verify_s": verify_s,
        "verify_mb_per_s": round(checked.images * len(data) / 1e6 / verify_s, 1),
    }


def _link(source: Path, path: Path) -> None:
    """Another name of the file; of a new copy of it when a file system has no more names."""
    try:
        os.link(source, path)
    except OSError:
        copy = source.with_name(f"{source.name}.copy")
        copy.write_bytes(source.read_bytes())
        copy.replace(source)
        os.link(source, path)


def bars(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar, and what was found."""
    lengths = list(found["run"].values())
    values = {
        f"{what}_64_over_1": round(lengths[-1][name] / lengths[0][name], 3)
        for what, name in (
            ("seconds_per_tile", "ms_per_tile"),
            ("requests_per_tile", "requests_per_tile"),
        )
    }
    values |= {name: found["cable"][name] for name in BARS if name in found["cable"]}
    return {
        name: {"bar": BARS[name], "found": value, "met": value <= BARS[name]}
        for name, value in values.items()
    }


def measure(size: Size, folder: Path) -> dict[str, Any]:
    """Both parts."""
    store, empty = folder / "archive.zarr", folder / "cable.zarr"
    simulate(store, size.scene)
    simulate(empty, size.cable, samples=False)
    short = folder / "eighth.zarr"
    simulate(short, replace(size.cable, seconds=size.cable.seconds / 8), samples=False)
    os.sync()
    found = {
        "run": run(size, store, folder),
        "eighth": cable(size, short, folder / "eighth"),
        "cable": cable(size, empty, folder / "cable"),
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **found,
        "bars": bars(found),
        "machine": describe(PACKAGES),
    }


def table(result: dict[str, Any]) -> str:
    """Figures and bars, as Markdown."""
    lines = ["| segments | tiles | ms a tile | requests a tile |", "|---|---|---|---|"]
    lines += [
        f"| {number} | {each['tiles']} | {each['ms_per_tile']:.2f} "
        f"| {each['requests_per_tile']:.2f} |"
        for number, each in result["run"].items()
    ]
    lines += ["", "| figure | bar | found |", "|---|---|---|"]
    for name, each in result["bars"].items():
        missed = "" if each["met"] else ", **missed**"
        lines.append(f"| {name} | {each['bar']:g} | {each['found']:g}{missed} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON result, print the tables."""
    parser = argparse.ArgumentParser(description="Measure how the costs of a run grow.")
    parser.add_argument("--tiny", action="store_true", help="small; no figure")
    default = HERE / "results" / "growth.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(TINY if options.tiny else FULL, Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(options.json)


if __name__ == "__main__":
    main()
