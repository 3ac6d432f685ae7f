"""The GPU backend: CuPy's memory, streams and transforms around the kernels in ``kernels/``.

A segment has a workspace of its own: three streams (copies in, computing, copies out), its
transforms' plans, a ring on the device and every array a row needs, all made once. One thread
works on it. Rows are begun one ahead, so that the device computes while the host waits for the
row before; within a row the host looks at nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from das_gpu.backends import Array, Chain, Outcome, cuda, imaging, resizing
from das_gpu.backends.devicememory import DeviceMemory
from das_gpu.backends.devicering import Buffer, DeviceRing, block_samples
from das_gpu.backends.launch import Launch
from das_gpu.backends.resident import Resident, arrays
from das_gpu.backends.rowshape import FACTS, RowShape, Scratch
from das_gpu.backends.transforms import Source, Transforms
from das_gpu.errors import DeviceError
from das_gpu.model import RingLayout, RowWindow

DEPTH = 1
"""Rows begun before the first is collected."""
SPARE_BUFFERS = 2
"""Pinned buffers beyond one for each thread that fills them: these are being copied."""

_INDEX = np.dtype(np.int64)
_FLAG = np.dtype(np.uint8)


class GpuBackend:
    """`das_gpu.backends.Backend` on one CUDA device.

    Parameters
    ----------
    device : int
        Its number.
    resident : bool
        Images and arrays stay on the device.
    """

    kind: Literal["gpu"] = "gpu"
    ahead = True

    def __init__(self, device: int = 0, *, resident: bool = False) -> None:
        self.device = device
        self.resident = resident
        # A stream's memory stays with it when it is given back, for the next segment to have.
        self._idle: deque[Streams] = deque()
        self._batch_channels: int | None = None

    @contextmanager
    def workspace(
        self, layout: RingLayout, chain: Chain, fillers: int = 1
    ) -> Iterator[GpuWorkspace]:
        """A workspace in the device's memory; see `das_gpu.backends.Backend`.

        Raises
        ------
        DeviceError
            The device fails, or has too little memory for the ring or the smallest batch.
        """
        import cupy

        with cuda.vendor_errors("opening the device"):
            device = cupy.cuda.Device(self.device)
        with device:
            try:
                with cuda.vendor_errors("making room for a segment"):
                    streams = self._take_streams(cupy)
                    workspace = GpuWorkspace(
                        cupy,
                        self.device,
                        streams,
                        layout,
                        chain,
                        fillers,
                        self._batch_channels,
                        resident=self.resident,
                    )
            except MemoryError as error:
                raise DeviceError(
                    f"The device's memory cannot hold a segment of {layout.channels} channels. "
                    "Free memory on it, select fewer channels, or use --backend cpu."
                ) from error
            try:
                yield workspace
            except BaseException:
                with suppress(DeviceError):
                    workspace.close()
                raise
            workspace.close()
            # What memory was free before the first segment says what fits; later it is ours.
            self._batch_channels = workspace.batch_channels
            self._idle.append(streams)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array on the device for who asks, its contents undefined."""
        import cupy

        with cuda.vendor_errors("making room for a result"), cupy.cuda.Device(self.device):
            return cupy.empty(shape, dtype)

    def _take_streams(self, cupy: Any) -> Streams:
        """Streams that no other segment uses."""
        try:
            return self._idle.pop()
        except IndexError:
            return Streams(*(cupy.cuda.Stream(non_blocking=True) for _ in range(3)))


@dataclass(frozen=True)
class Streams:
    """A segment's streams: copies to the device, all computing, copies to the host."""

    copying_in: Any
    computing: Any
    copying_out: Any


@dataclass(frozen=True)
class Row:
    """A row on its way: rows use the places for them in turn.

    Attributes
    ----------
    tables : (n,) int64 pinned array
        What says where the row's samples are.
    scratch : Scratch
        Device arrays that its kernels write.
    live : (channels,) uint8 device array
        Which channels live.
    results : dict of str to pinned array
        Where its images and numbers arrive, by the name of the device array.
    delivered : event
        After which they have arrived.
    """

    tables: NDArray[np.int64]
    scratch: Scratch
    live: Array
    results: dict[str, NDArray[Any]]
    delivered: Any


class GpuWorkspace:
    """`das_gpu.backends.Workspace` on a device; made by `GpuBackend.workspace`."""

    depth = DEPTH

    def __init__(
        self,
        cupy: Any,
        device: int,
        streams: Streams,
        layout: RingLayout,
        chain: Chain,
        fillers: int,
        batch_channels: int | None,
        *,
        resident: bool = False,
    ) -> None:
        self._device, self._layout, self._chain = device, layout, chain
        self._shape = RowShape.of(chain)
        self._streams, self._computing = streams, streams.computing
        self._memory = memory = DeviceMemory(cupy)
        self.resident = Resident(cupy, memory, self._computing) if resident else None
        with self._computing:
            samples = memory.array((max(layout.capacity, 1),), np.dtype(layout.dtype))
            buffers = [
                Buffer(memory.pinned((block_samples(layout),), samples.dtype), memory.event())
                for _ in range(fillers + SPARE_BUFFERS)
            ]
            self.ring = DeviceRing(layout, samples, buffers, streams.copying_in)
            self._distance_m = self._send(chain.distance_m)
            self._resizing = self._make_resizing()
            most = 3 * (len(layout.bounds) - 1) + 6 * layout.channels
            self._tables = memory.array((most,), _INDEX)
            self._rows = [self._make_row() for _ in range(DEPTH + 1)]
            self._transforms = Transforms(cupy, memory, self._computing, chain, batch_channels)
        self._gathered, self._drawn = memory.event(), memory.event()
        self._begun = 0
        self._computing.synchronize()

    def close(self) -> None:
        """Wait for the device, so that no memory is given back while it is in use."""
        with cuda.vendor_errors("finishing a segment"):
            for stream in (self._streams.copying_in, self._computing, self._streams.copying_out):
                stream.synchronize()

    @property
    def batch_channels(self) -> int:
        """Channels transformed together."""
        return self._transforms.batch_channels

    def analytic(self, row: RowWindow) -> Row:
        """Gather, filter and make analytic, batch by batch; choose channels for the median."""
        place = self._rows[self._begun % len(self._rows)]
        self._begun += 1
        pieces = self._layout.pieces(row.held0, row.held0 + row.length)
        columns = [column for column, _, _ in pieces]
        with self._working("computing the analytic signal"):
            source = self._send_tables(row, columns, place.tables)
            for arrived in self.ring.arrivals(columns):
                self._computing.wait_event(arrived)
            self._transforms.apply(source, place.live, self._run)
            self._gathered.record(self._computing)
            self.ring.was_read(self._gathered)
            aperture_m = self._chain.aperture_m
            self._run(
                imaging.pick_channels(
                    self._shape, place.live, self._distance_m, place.scratch, aperture_m
                )
            )
        return place

    def common_mode(self, signal: Row) -> Array:
        """Median over the chosen channels."""
        with self._working("taking the common mode"):
            self._run(imaging.common_mode(self._shape, self._transforms.signal, signal.scratch))
        return signal.scratch.common

    def envelope_db(self, signal: Row, common: Array | None) -> Row:
        """Power in dB, and the first look at its levels."""
        with self._working("computing the envelope"):
            self._run(
                imaging.envelope_db(
                    self._shape,
                    self._transforms.signal,
                    signal.live,
                    signal.scratch,
                    self._chain.scale,
                    subtract=common is not None,
                )
            )
        return signal

    def levels(self, envelope: Row) -> Array:
        """Grey limits per band, which stay on the device."""
        with self._working("finding grey levels"):
            for launch in imaging.levels(
                self._shape, envelope.live, envelope.scratch, self._chain.scale
            ):
                self._run(launch)
        return envelope.scratch.levels

    def draw(self, envelope: Row, levels: Array) -> Row:  # noqa: ARG002 - the scratch has them
        """Resize, and send the row's images and numbers to the host."""
        with self._working("drawing images"):
            if self._resizing is not None:
                for launch in imaging.grey(
                    self._shape, envelope.live, envelope.scratch, self._resizing
                ):
                    self._run(launch)
            if self.resident is not None:
                made = envelope.scratch.db if self._resizing is None else envelope.scratch.pixels
                self.resident.keep(made)
            out = self._streams.copying_out
            self._drawn.record(self._computing)
            out.wait_event(self._drawn)
            for name, result in envelope.results.items():
                source = envelope.live if name == "live" else getattr(envelope.scratch, name)
                source.data.copy_to_host_async(result.ctypes.data, result.nbytes, out)
            envelope.delivered.record(out)
        return envelope

    def collect(self, drawn: Row) -> Outcome:
        """Wait for the row's copies, and take its results out of the pinned memory."""
        with self._working("bringing images to the host"):
            drawn.delivered.synchronize()
        results, facts = drawn.results, drawn.results["facts"]
        levels = results["levels"].copy()
        pixels: Sequence[Array]
        if self.resident is not None:
            with self._working("keeping results on the device"):
                if self._resizing is None:
                    live = results["live"] != 0
                    pixels = self.resident.envelopes(live, levels, self._chain)
                else:
                    pixels = self.resident.images()
        elif self._resizing is None:
            pixels = arrays(results["db"], results["live"] != 0, levels, self._chain)
        else:
            pixels = list(results["pixels"].copy())
        first, last = int(facts[2]), int(facts[3])
        return Outcome(
            pixels=pixels,
            levels=levels[:, :2],
            dead=facts[FACTS:].copy(),
            live=(first, last) if first >= 0 else None,
        )

    def load(self, held: Array, start: int) -> None:
        """Fill the ring's first column from the device, after what the caller's stream was given.

        Parameters
        ----------
        held : (channel, sample) device array
            Of all of the ring's channels.
        start : int
            The column's first sample that is filled.
        """
        with cuda.vendor_errors("reading an array of the device"):
            column = self.ring.samples.reshape(self._layout.channels, -1)
            column[:, start : start + held.shape[1]] = held
            self._gathered.record()
            self._computing.wait_event(self._gathered)

    def store(self, envelope: Row, target: Array) -> None:
        """Write a row's envelope, its last samples, to a device array; dead channels as -inf."""
        with self._working("keeping an envelope on the device"):
            live = envelope.results["live"]
            envelope.live.data.copy_to_host_async(live.ctypes.data, live.nbytes, self._computing)
            target[...] = envelope.scratch.db[:, -target.shape[1] :]
            self._computing.synchronize()
            for channel in np.flatnonzero(live == 0).tolist():
                target[channel] = -np.inf
            self._computing.synchronize()

    @contextmanager
    def _working(self, doing: str) -> Iterator[None]:
        """The computing stream is current, and what CuPy raises is told as ours."""
        with cuda.vendor_errors(doing), self._computing:
            yield

    def _run(self, launch: Launch) -> None:
        cuda.run(launch, self._device)

    def _send(self, host: NDArray[Any]) -> Array:
        return self._memory.send(host, self._computing)

    def _send_tables(
        self, row: RowWindow, columns: Sequence[int], pinned: NDArray[np.int64]
    ) -> Source:
        """Say on the device where the row's samples are."""
        layout, memory = self._layout, self._memory
        bounds = np.array(layout.blocks)
        table = [
            number
            for column in columns
            for start, stop in [layout.samples(column)]
            for number in (start - row.held0, stop - start, self.ring.offset(column))
        ]
        for span in row.spans:
            block = int(np.searchsorted(bounds, span.k0, side="right")) - 1
            limits = int(bounds[block]), int(bounds[block + 1])
            table += [span.k0, span.k1, span.v0, span.v1, *limits]
        pinned[: len(table)] = table
        place = self._tables.data
        place.copy_from_host_async(
            pinned.ctypes.data, _INDEX.itemsize * len(table), self._computing
        )
        spans = place + _INDEX.itemsize * 3 * len(columns)
        return Source(
            ring=self.ring.samples,
            columns=memory.at(place, (len(columns), 3), _INDEX),
            spans=memory.at(spans, (len(row.spans), 6), _INDEX),
            time_major=self.ring.time_major,
        )

    def _make_resizing(self) -> resizing.Resizing | None:
        """Tables for the pictures, on the device."""
        chain, shape = self._chain, self._shape
        if chain.picture is None:
            return None
        made = resizing.tables(shape.samples, shape.band_channels, chain.dtype, chain.picture)
        names = ("time_bounds", "time_weights", "channel_bounds", "channel_weights")
        return replace(made, **{name: self._send(getattr(made, name)) for name in names})

    def _make_row(self) -> Row:
        memory = self._memory
        needs = Scratch.needs(self._shape, self._resizing)
        wanted = {name: needs[name] for name in ("facts", "levels")}
        if self._resizing is None:
            wanted["live"] = (self._shape.channels,), _FLAG
        if self.resident is None:
            name = "db" if self._resizing is None else "pixels"
            wanted[name] = needs[name]
        return Row(
            tables=memory.pinned(self._tables.shape, _INDEX),
            scratch=Scratch(**{name: memory.array(*need) for name, need in needs.items()}),
            live=memory.array((self._shape.channels,), _FLAG),
            results={name: memory.pinned(*need) for name, need in wanted.items()},
            delivered=memory.event(),
        )
