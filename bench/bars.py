"""All that das-gpu must be, measured side by side in one run, and whether it is.

    python bench/bars.py                               # everything, five runs of each
    python bench/bars.py --parts steady startup        # some of it
    python bench/bars.py --check                       # exit code 1 when a bar is missed
    python bench/bars.py --tiny                        # small and once; shows that it runs

One simulated archive, 12,000 channels x 240 s, serves all parts; longer and wider ones are links
to its chunks. What is compared takes turns (A B C, then C B A), so that whatever else the machine
does falls on all of it; medians count. Run it on a machine that does nothing else: start-up, memory
and seconds have no peer beside them.

continuous   ``das-gpu extract STORE OUT --channels ::5 --bands 4``, whole process, over the
             notebook's own pipeline with its dask client
notebook     the same with ``--preset notebook``, whose images must be the peer's, pixel by pixel
steady       a row of tiles once a run is going, over fetching and decoding its chunks alone
kernels      single steps over plain NumPy, SciPy and Pillow, on one core
memory       peak at 37,500 channels, and what eight times the length changes
startup      first byte asked for, first sample asked for, ``--help``
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bars_parts
from bars_archive import FULL, TINY, compression, recorded
from bars_work import Bar, Job, Measured
from loops import compiled
from machine import describe

HERE = Path(__file__).resolve().parent
PACKAGES = ("das-gpu", "numpy", "scipy", "xarray", "zarr", "numcodecs", "dask", "pillow")
FORMAT = 1
PARTS = ("continuous", "notebook", "steady", "kernels", "memory", "startup")
ALONE: Mapping[str, Callable[[Job], Measured]] = {
    "steady": bars_parts.steady,
    "kernels": bars_parts.kernels,
    "memory": bars_parts.memory,
    "startup": bars_parts.start_up,
}


def measure(job: Job, parts: Sequence[str]) -> dict[str, Measured]:
    """Measure the parts, one after the other; those with the same peer together."""
    found: dict[str, Measured] = {}
    beside = [part for part in parts if part in bars_parts.WHOLE]
    if beside:
        found[" and ".join(beside)] = bars_parts.to_images(job, beside)
    for part in parts:
        if part in ALONE:
            found[part] = ALONE[part](job)
    return found


def bars_of(found: Mapping[str, Measured]) -> list[Bar]:
    """Give all parts' bars."""
    return [bar for measured in found.values() for bar in measured.bars]


def result_of(job: Job, found: Mapping[str, Measured]) -> dict[str, Any]:
    """Put figures, bars and what they were measured on together, ready for JSON."""
    scene = job.sizes.scene
    packages = (*PACKAGES, "numba", "llvmlite") if "yes" in job.fast else PACKAGES
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiny": job.tiny,
        "repeats": job.repeats,
        "archive": {
            "channels": scene.channels,
            "seconds": scene.seconds,
            "chunk_shape": scene.chunk_shape,
            "stored_over_decoded": round(compression(job.store), 3),
        },
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars_of(found)],
        "parts": {name: measured.figures for name, measured in found.items()},
        "machine": describe(packages),
    }


def missed(bars: Sequence[Bar]) -> list[str]:
    """Name the bars that are not met, those not measured included."""
    return [
        f"{bar.part}: {bar.what}: "
        f"{'not measured' if bar.value is None else f'{bar.value:g} {bar.unit}'}, "
        f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}"
        for bar in bars
        if bar.met is False
    ]


def main() -> int:
    """Measure, write the JSON result and print its table."""
    from table import bars_table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each that count")
    parser.add_argument("--tiny", action="store_true", help="a small archive, once; no figure")
    default = HERE / "results" / "bars.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a bar is missed")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1 run of each is needed")
    sizes, repeats = (TINY, 1) if options.tiny else (FULL, options.repeats)
    ways = ("yes", "no") if compiled() else ("no",)
    with tempfile.TemporaryDirectory(prefix="das-gpu-bars-") as made:
        store = recorded(Path(made), sizes.scene)
        job = Job(store, sizes, Path(made), repeats, options.tiny, ways)
        found = measure(job, options.parts)
        result = result_of(job, found)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(bars_table(result))
    if not options.check:
        return 0
    lines = missed(bars_of(found))
    for line in lines:
        print(f"missed: {line}")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
