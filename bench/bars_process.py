"""One process of `bars.py`: prints what it measured of itself as one line of JSON.

python bench/bars_process.py rows STORE OUT --fast yes    # times of a run's rows of tiles
python bench/bars_process.py bare STORE OUT               # the floor: fetch, decode, keep nothing
python bench/bars_process.py peak STORE OUT --channels ::1 --workers 2    # peak memory
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHANNEL_STEP = 5
BANDS = 4


def rows(store: str, out: str, *, fast: bool) -> dict[str, Any]:
    """Run `das_gpu.run.extract` and note when each row of tiles was written.

    Returns
    -------
    dict
        ``row_s``: since the run began to hand out its work, by row; ``processor_s`` likewise.
    """
    from das_gpu.recipe import Recipe
    from das_gpu.run import Progress, extract

    written: dict[int, tuple[float, float]] = {}

    def note(progress: Progress) -> None:
        written.setdefault(progress.done_tiles, (time.perf_counter(), time.process_time()))

    settings = {"selection.channel_step": CHANNEL_STEP, "tile.bands": BANDS}
    summary = extract(
        store,
        out,
        Recipe().with_settings(settings),
        backend="cpu",
        fast=fast,
        on_progress=note,
    )
    begun_s, begun_cpu_s = written.pop(0)
    return {
        "row_s": [round(s - begun_s, 5) for s, _ in written.values()],
        "processor_s": [round(s - begun_cpu_s, 5) for _, s in written.values()],
        "tiles": summary.images,
        "chunks": summary.chunks,
    }


def bare(store: str) -> dict[str, Any]:
    """Fetch and decode every chunk of samples on as many threads as a run has; keep nothing.

    Each thread reads into one buffer of its own and decodes into another.

    Returns
    -------
    dict
        ``seconds`` and ``processor_s`` of the whole, ``columns`` of chunks that were read.
    """
    import numpy as np
    from numcodecs import blosc

    from das_gpu.host import processors

    folder = Path(store) / "RawData"
    shape = json.loads((folder / ".zarray").read_text())["chunks"]
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    # Down a column, then the next, as a run does.
    files.sort(key=lambda file: tuple(int(n) for n in reversed(file.name.split("."))))
    largest = max(file.stat().st_size for file in files)
    blosc.use_threads = False
    waiting, lock = iter(files), threading.Lock()

    def load() -> None:
        body = memoryview(bytearray(largest))
        samples = np.empty(shape, np.int32).reshape(-1).view(np.uint8)
        while True:
            with lock:
                file = next(waiting, None)
            if file is None:
                return
            with file.open("rb", buffering=0) as stored:
                size = stored.readinto(body)
            declared = int.from_bytes(body[12:16], "little")
            if size != declared:  # Blosc would read on, into what was here before
                raise ValueError(f"{file} has {size} bytes of the {declared} it declares")
            blosc.decompress(body[:size], samples)

    threads = processors()
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(load) for _ in range(threads)]:
            done.result()
    return {
        "seconds": time.perf_counter() - begun_s,
        "processor_s": time.process_time() - begun_cpu_s,
        "columns": len({file.name.split(".")[1] for file in files}),
        "chunks": len(files),
    }


def peak(arguments: list[str]) -> dict[str, Any]:
    """Run ``das-gpu extract`` here and give the most memory this process ever had, in 10^6 B."""
    from das_gpu.cli import main as command

    code = command(["extract", *arguments])

    from reading_peers import resident_mb  # after the run: what it imports is no part of that

    return {"exit_code": code, "peak_mb": round(resident_mb(most=True), 1)}


def main() -> None:
    """Measure one thing once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["rows", "bare", "peak"])
    parser.add_argument("store")
    parser.add_argument("out", help="a folder that is not there; bare does not write it")
    parser.add_argument("--fast", choices=["yes", "no"], default="yes", help="of rows")
    chosen, more = parser.parse_known_args()
    if chosen.what != "peak" and more:
        parser.error(f"{chosen.what} takes no {' '.join(more)}")
    if chosen.what == "rows":
        found = rows(chosen.store, chosen.out, fast=chosen.fast == "yes")
    elif chosen.what == "bare":
        found = bare(chosen.store)
    else:
        found = peak([chosen.store, chosen.out, *more])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
