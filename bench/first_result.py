"""Time to the images: ``das-gpu extract`` against the notebook's pipeline, whole processes.

    python bench/first_result.py                 # 12,000 channels x 60 s, three runs of each
    python bench/first_result.py --tiny          # seconds long; shows that it runs, no figure

Both read the same simulated archive and write the same number of images. The runs take
turns, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from das_gpu.simulate import Scene, simulate
from machine import describe

HERE = Path(__file__).resolve().parent
BANDS = 4
PACKAGES = ("das-gpu", "numpy", "scipy", "xarray", "zarr", "numcodecs", "dask", "pillow")
DEADLINE_S = 900.0


def das_gpu_command(store: Path, out: Path) -> list[str]:
    """Give the command under test."""
    what = [str(store), str(out), "--channels", "::5", "--bands", str(BANDS)]
    return [sys.executable, "-m", "das_gpu", "extract", *what]


def peer_command(store: Path, out: Path) -> list[str]:
    """Give the peer's command, for the same tiles."""
    what = [str(store), str(out), "--channel-step", "5", "--time-step", "2"]
    return [sys.executable, str(HERE / "notebook_pipeline.py"), *what, "--bands", str(BANDS)]


def timed(command: list[str], out: Path, images: int) -> float:
    """Seconds of one whole process.

    Raises
    ------
    SystemExit
        When it fails or writes another number of images than it should.
    """
    begin = time.perf_counter()
    # Off a terminal neither draws progress; what they say matters only when they fail.
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    found = len(list(out.rglob("*.png")))
    if found != images:
        raise SystemExit(f"{' '.join(command)}\nwrote {found} images, not {images}.")
    return seconds


def compare(scene: Scene, repeats: int, folder: Path) -> dict[str, object]:
    """Run both in turn on one archive and put the figures together."""
    store = simulate(folder / "archive.zarr", scene)
    images = BANDS * int(scene.seconds // 15)
    commands: dict[str, Callable[[Path, Path], list[str]]] = {
        "das_gpu": das_gpu_command,
        "peer": peer_command,
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats):
        # Who goes first alternates too.
        for name in list(commands)[:: 1 if repeat % 2 == 0 else -1]:
            out = folder / f"{name}-{repeat}"
            seconds[name].append(round(timed(commands[name](store, out), out, images), 3))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "archive": {
            "channels": scene.channels,
            "seconds": scene.seconds,
            "chunk_shape": scene.chunk_shape,
        },
        "images": images,
        "seconds": seconds,
        "median_seconds": medians,
        "ratio_of_medians": round(medians["peer"] / medians["das_gpu"], 2),
        "machine": describe(PACKAGES),
    }


def main() -> None:
    """Measure, write the JSON result, and say it in one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--tiny", action="store_true", help="1200 channels x 30 s, once")
    default = HERE / "results" / "first_result.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1 run of each is needed")

    if options.tiny:
        scene, repeats = Scene(channels=1200, seconds=30.0), 1
    else:
        scene, repeats = Scene(channels=12_000, seconds=60.0), options.repeats
    with tempfile.TemporaryDirectory() as folder:
        result = compare(scene, repeats, Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    medians = result["median_seconds"]
    print(
        f"{result['images']} images, median seconds of {repeats}: {medians}; "
        f"das-gpu is {result['ratio_of_medians']} times as fast; {options.json}"
    )


if __name__ == "__main__":
    main()
