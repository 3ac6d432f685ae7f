"""One reader of a segment, once, in a process of its own, for `reading.py`.

    python bench/reading_peers.py stream URL --threads 8 --channels ::5 --seconds 240

Every reader is asked for the same chunks: those of one segment's plan. What it reports counts
from its first request for a sample to the last sample in its place; imports, opening and
planning come before. The result goes to stdout as one line of JSON.

``check`` is the same for all readers that did the same: of those that only read, the sum of
the wanted channels over the first sample of every tile; of those that process, a digest of
every pixel.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import host
from das_gpu.archive import Archive, open_archive
from das_gpu.backends import Workspace
from das_gpu.backends.cpu import CpuBackend
from das_gpu.backends.window import HostRing
from das_gpu.model import RowWindow, Span, Status
from das_gpu.plan import Plan, plan
from das_gpu.process import Processor, design
from das_gpu.recipe import Recipe, parse_channels
from das_gpu.spans import ring_layout
from das_gpu.store import Access
from das_gpu.stream import SegmentStream

if TYPE_CHECKING:
    from obstore.store import AzureStore
    from zarr.storage import ObjectStore

Block = tuple[NDArray[Any], int, int]
"""Samples (channel, sample), the kept channel and the archive sample they begin with."""
Work = Callable[[], str]


@dataclass(frozen=True)
class Job:
    """What a reader is asked for: ``plan``'s only segment, with ``threads`` requests at a time."""

    url: str
    archive: Archive
    plan: Plan
    threads: int

    @property
    def channels(self) -> slice:
        """The kept channels."""
        return slice(*self.plan.read_channels, self.plan.channel_step)

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Archive samples of each column of stored chunks, as far as the segment reads it."""
        read, width = self.plan.segment(0).read, self.plan.acquisition.chunk_shape[1]
        numbers = self.plan.chunk_grid(self.plan.segment(0))[1]
        return [(max(n * width, read.t0), min((n + 1) * width, read.t1)) for n in numbers]

    def begins_tile(self, sample: int) -> bool:
        """Whether a row of tiles begins with this archive sample."""
        row, rest = divmod(sample - self.plan.sample_start, self.plan.tile_span)
        return rest == 0 and 0 <= row < self.plan.rows


def job(url: str, channels: str, seconds: float, threads: int, transport: Any = "obstore") -> Job:
    """Open an archive and plan its first ``seconds`` as one segment of four bands.

    Raises
    ------
    ValueError
        A tile is not as long as a stored chunk, so that the readers could not be checked.
    """
    archive = open_archive(url, access=Access(transport=transport))
    acquisition = archive.acquisition
    stop = round(seconds * acquisition.sampling_rate_hz)
    recipe = Recipe().with_settings({**parse_channels(channels), "tile.bands": 4})
    laid = plan(acquisition, recipe, (0, stop), segment_minutes=seconds / 60)
    if laid.tile_span != acquisition.chunk_shape[1]:
        raise ValueError(
            f"A tile has {laid.tile_span} samples and a stored chunk {acquisition.chunk_shape[1]}; "
            "simulate an archive whose chunks are as long as a tile."
        )
    return Job(url, archive, laid, threads)


# --- readers that only read ---------------------------------------------------------------


def bare(asked: Job) -> Work:
    """The floor: threads that get and decode, each into its one buffer, and nothing else."""
    import obstore
    from numcodecs import blosc

    store, data = azure_store(asked.url), asked.archive.data
    height, width = data.chunk_shape
    rows, columns = asked.plan.chunk_grid(asked.plan.segment(0))
    blosc.use_threads = False
    jobs, lock = iter(list(product(columns, rows))), threading.Lock()

    def load() -> int:
        buffer, total = np.empty((height, width), data.dtype), 0
        flat = buffer.reshape(-1).view(np.uint8)
        while True:
            with lock:
                one = next(jobs, None)
            if one is None:
                return total
            column, row = one
            blosc.decompress(obstore.get(store, data.key((row, column))).bytes(), flat)
            if asked.begins_tile(column * width):
                c0, c1, step = asked.channels.indices(sys.maxsize)
                low = max(0, c0 - row * height, (c0 - row * height) % step)
                total += int(buffer[low : c1 - row * height : step, 0].sum(dtype=np.int64))

    def work() -> str:
        with ThreadPoolExecutor(asked.threads) as pool:
            parts = [pool.submit(load) for _ in range(asked.threads)]
        return str(sum(part.result() for part in parts))

    return work


def stream(asked: Job) -> Work:
    """``SegmentStream`` into the CPU backend's ring; rows are let go as soon as they are there."""
    host.give_big_buffers_back()
    laid = asked.plan
    ring = HostRing(ring_layout(laid, laid.segment(0)))

    def work() -> str:
        total = 0
        with segment_stream(asked, ring) as rows:
            for row in rows:
                first = row.held0 + laid.halo_before // laid.hold_step
                (samples,) = ring.pieces(0, laid.kept_channels, first, first + 1)
                total += int(samples.sum(dtype=np.int64))
        return str(total)

    return work


def zarr_columns(asked: Job) -> Work:
    """Zarr's own array reads, a column of stored chunks at a time, with Zarr's own settings."""
    import zarr

    array: Any = zarr.open_group(object_store(asked.url), mode="r")[asked.archive.data.name]

    def work() -> str:
        total = 0
        for start, stop in asked.columns:
            samples = array[asked.channels, start:stop]
            if asked.begins_tile(start):
                total += int(samples[:, 0].sum(dtype=np.int64))
        return str(total)

    return work


def dask_array(asked: Job) -> Work:
    """A dask array of one block per stored chunk, computed in one call on threads."""
    counts = dask_counts(asked)
    start, stop = asked.columns[0][0], asked.columns[-1][1]
    wanted = counts[asked.channels, start:stop]

    def work() -> str:
        samples = wanted.compute(scheduler="threads", num_workers=asked.threads)
        firsts = [a - start for a, _ in asked.columns if asked.begins_tile(a)]
        return str(int(samples[:, firsts].sum(dtype=np.int64)))

    return work


# --- readers with the same processing -----------------------------------------------------


def stream_processed(asked: Job) -> Work:
    """``extract``'s own path, up to the images."""
    host.give_big_buffers_back()
    laid, backend = asked.plan, CpuBackend(host.processors())
    layout, chain = ring_layout(laid, laid.segment(0)), design(laid)

    def work() -> str:
        digest = sha256()
        with (
            backend.workspace(layout, chain) as workspace,
            segment_stream(asked, workspace.ring) as rows,
        ):
            processor = Processor(laid, chain, workspace)
            for row in rows:
                drawn = processor.begin(row, partial(rows.release, row.row))
                for image in processor.finish(drawn):
                    digest.update(image.pixels.tobytes())
        return digest.hexdigest()

    return work


def dask_rows_processed(asked: Job) -> Work:
    """Row of tiles after row of tiles: dask computes its window, then it is processed."""
    counts, rows = dask_counts(asked), Rows(asked)

    def work() -> str:
        digest = sha256()
        for row in range(asked.plan.rows):
            start, stop = rows.window(row)
            lazy = counts[asked.channels, start:stop]
            samples = lazy.compute(scheduler="threads", num_workers=asked.threads)
            for pixels in rows.images(row, [(samples, 0, start)]):
                digest.update(pixels)
        return digest.hexdigest()

    return work


def dask_graph_processed(asked: Job) -> Work:
    """The whole segment as one graph: a task per stored chunk, a task per row of tiles.

    No chunk is read twice, and reading goes on while rows are processed.
    """
    from dask.base import compute
    from dask.delayed import delayed

    rows = Rows(asked)
    origin = asked.columns[0][0]
    wanted = dask_counts(asked)[asked.channels, origin : asked.columns[-1][1]]
    blocks = wanted.to_delayed()
    channel0 = np.cumsum([0, *wanted.chunks[0][:-1]])
    process = delayed(rows.images)
    tasks = []
    for row in range(asked.plan.rows):
        start, stop = rows.window(row)
        touched = [n for n, (a, b) in enumerate(asked.columns) if a < stop and b > start]
        pieces = [
            (blocks[c, n], int(channel0[c]), asked.columns[n][0])
            for n, c in product(touched, range(blocks.shape[0]))
        ]
        tasks.append(process(row, pieces))

    def work() -> str:
        # dask annotates this one only in part.
        images = compute(*tasks, scheduler="threads", num_workers=asked.threads)  # type: ignore[no-untyped-call]
        digest = sha256()
        for pixels in (one for row in images for one in row):
            digest.update(pixels)
        return digest.hexdigest()

    return work


class Rows:
    """The product's own arithmetic on rows of tiles whose samples another reader has read."""

    def __init__(self, asked: Job) -> None:
        self._plan = asked.plan
        self._backend = CpuBackend(host.processors())
        self._chain = design(asked.plan)
        self._open = threading.local()

    def window(self, row: int) -> tuple[int, int]:
        """Archive samples of a row's tiles with their halos, as far as they are recorded."""
        start = self._start(row)
        stop = start + self._plan.window_span
        return max(0, start), min(self._plan.acquisition.n_samples, stop)

    def images(self, row: int, blocks: Iterable[Block]) -> list[bytes]:
        """Images of a row of tiles, given blocks that cover its window."""
        laid, (start, stop) = self._plan, self.window(row)
        work = self._workspace()
        held0 = self._start(row)
        for samples, k0, t0 in blocks:
            first, last = max(start, t0), min(stop, t0 + samples.shape[1])
            with work.ring.room(0, k0, k0 + samples.shape[0]) as room:
                room[:, first - held0 : last - held0] = samples[:, first - t0 : last - t0]
        span = Span(0, laid.kept_channels, start - held0, stop - held0, Status.OK)
        window = RowWindow(row, 0, laid.window_span, (span,), 0, 0, 0)
        processor = Processor(laid, self._chain, work)
        return [one.pixels.tobytes() for one in processor.finish(processor.begin(window))]

    def _workspace(self) -> Workspace:
        """This thread's own, whose ring is one window."""
        if not hasattr(self._open, "work"):
            laid = self._plan
            layout = replace(
                ring_layout(laid, laid.segment(0)), first=0, bounds=(0, laid.window_span), slots=1
            )
            manager = self._backend.workspace(layout, self._chain)
            self._open.work = manager.__enter__()
        work: Workspace = self._open.work
        return work

    def _start(self, row: int) -> int:
        return self._plan.sample_start + row * self._plan.tile_span - self._plan.halo_before


# --- what they share ----------------------------------------------------------------------


def segment_stream(asked: Job, ring: Any) -> SegmentStream:
    """The product's stream as a run sets it up."""
    return SegmentStream(
        asked.archive,
        asked.plan,
        asked.plan.segment(0),
        ring,
        ring_layout(asked.plan, asked.plan.segment(0)),
        loaders=asked.threads,
        decoders=host.processors(),
    )


def azure_store(url: str) -> AzureStore:
    """Make obstore's store for ``http://HOST:PORT/ACCOUNT/CONTAINER``, with its own settings."""
    from obstore.store import AzureStore

    endpoint, _, container = url.rpartition("/")
    account = endpoint.rpartition("/")[2]
    config: Any = {"account_name": account, "endpoint": endpoint, "skip_signature": True}
    return AzureStore(container, config=config, client_options={"allow_http": True})


def object_store(url: str) -> ObjectStore[AzureStore]:
    """Wrap it for Zarr."""
    from zarr.storage import ObjectStore

    return ObjectStore(azure_store(url), read_only=True)


def dask_counts(asked: Job) -> Any:
    """The recording as a dask array, as xarray opens it: one block per stored chunk."""
    import xarray as xr

    dataset = xr.open_zarr(object_store(asked.url), consolidated=True, decode_cf=False)
    return dataset[asked.archive.data.name].data


READERS: Mapping[str, Callable[[Job], Work]] = {
    "bare": bare,
    "stream": stream,
    "stream azure-sdk": stream,
    "zarr": zarr_columns,
    "dask": dask_array,
    "stream + processing": stream_processed,
    "dask graph + processing": dask_graph_processed,
    "dask rows + processing": dask_rows_processed,
}


def resident_mb(most: bool) -> float:
    """Memory of this process now, or the most it ever had, in 10^6 bytes."""
    # Linux hands the high-water mark of getrusage down from parent to child.
    status = Path("/proc/self/status")
    if status.exists():
        name = "VmHWM:" if most else "VmRSS:"
        (line,) = (one for one in status.read_text().splitlines() if one.startswith(name))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measured(asked: Job, work: Work) -> dict[str, Any]:
    """Run a reader and say what it took."""
    chunk_rows, columns = asked.plan.chunk_grid(asked.plan.segment(0))
    chunks = len(chunk_rows) * len(columns)
    before_mb, cpu_s, begin = resident_mb(most=False), time.process_time(), time.perf_counter()
    check = work()
    seconds = time.perf_counter() - begin
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(time.process_time() - cpu_s, 3),
        "peak_mb": round(resident_mb(most=True)),
        "opened_mb": round(before_mb),
        "chunks": chunks,
        "decoded_mb": round(chunks * asked.archive.data.chunk_nbytes / 1e6, 1),
        "check": check,
    }


def main() -> None:
    """Run one reader once."""
    parser = argparse.ArgumentParser(description="Read a segment once, in one way.")
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("url")
    parser.add_argument("--threads", type=int, required=True, help="requests at a time")
    parser.add_argument("--channels", default="::", help="START:STOP:STEP")
    parser.add_argument("--seconds", type=float, required=True, help="of the recording")
    options = parser.parse_args()
    transport = "azure-sdk" if options.reader.endswith("azure-sdk") else "obstore"
    asked = job(options.url, options.channels, options.seconds, options.threads, transport)
    with host.single_threaded_blas():
        work = READERS[options.reader](asked)
        print(json.dumps(measured(asked, work)))


if __name__ == "__main__":
    main()
