"""From windows in the ring to the analytic signal on a device, a batch of channels at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from das_gpu.backends import Array, Chain, filtering, response
from das_gpu.backends.devicememory import DeviceMemory
from das_gpu.backends.launch import Launch
from das_gpu.errors import DeviceError

_log = logging.getLogger(__name__)

MEMORY_SHARE = 0.4
"""Of the device's free memory, what a batch of channels may take."""
LEAST_CHANNELS = 32
"""A smaller batch than this is not tried when memory runs out."""


@dataclass(frozen=True)
class Source:
    """Where a row's windows are: the ring, and the tables that say where in it."""

    ring: Array
    columns: Array
    spans: Array
    time_major: bool


@dataclass(frozen=True)
class _Batch:
    """Channels ``[k0, k1)``, transformed together.

    ``window`` (channels, length) is gathered; ``filtered`` is what is transformed, the window
    itself or what `sosfiltfilt` made of it.
    """

    k0: int
    k1: int
    window: Array
    filtered: Array
    spectrum: Array
    folded: Array
    signal: Array
    medians: Array | None
    forward: Any
    inverse: Any


class Transforms:
    """The arrays, plans and weights that turn a row's windows into its analytic signal.

    Batches take turns with one set of arrays; only the signal is there for the whole row.

    Attributes
    ----------
    signal : (channels, kept samples) complex device array
        Written by `apply`; halos included.

    Parameters
    ----------
    cupy : module
        CuPy.
    memory : DeviceMemory
        Where arrays are made.
    stream : stream
        The one that computes; current whenever this object is used.
    chain : Chain
        The recipe in numbers.
    batch_channels : int, optional
        What fitted before; by default as many as `MEMORY_SHARE` of the free memory holds.

    Raises
    ------
    DeviceError
        The device has too little memory for the smallest batch.
    """

    def __init__(
        self,
        cupy: Any,
        memory: DeviceMemory,
        stream: Any,
        chain: Chain,
        batch_channels: int | None = None,
    ) -> None:
        self._cufft = cupy.cuda.cufft
        self._memory, self._stream, self._chain = memory, stream, chain
        self._channels = chain.distance_m.size
        self._kept = -(-chain.length // chain.step)
        self._spectral = chain.weights is not None
        self._length = chain.length if self._spectral else self._kept
        self._real = chain.dtype
        self._complex = np.result_type(chain.dtype, np.complex64)
        self._gathered = chain.dtype if self._spectral else np.dtype(np.float64)
        if chain.weights is not None:
            weights = chain.weights
            self._passband = response.passband(weights, chain.dtype)
        else:
            weights = response.one_sided_weights(self._kept)
            self._passband = 0, weights.size
        self._sections = None if chain.sections is None else filtering.cascade(chain.sections)
        self._weights = memory.send(weights.astype(chain.dtype), stream)
        self.signal = memory.array((self._channels, self._kept), self._complex)
        free, _ = cupy.cuda.runtime.memGetInfo()
        self._batches = self._as_many_as_fit(free, batch_channels)

    @property
    def batch_channels(self) -> int:
        """Channels transformed together."""
        return self._batches[0].k1

    def apply(self, source: Source, live: Array, run: Callable[[Launch], None]) -> None:
        """Write `signal`, and which channels live.

        Parameters
        ----------
        source : Source
            The row's windows.
        live : (channels,) uint8 device array
            Written.
        run : callable
            Launches on the current stream.
        """
        for batch in self._batches:
            self._gather(batch, source, live, run)
            if self._sections is not None:
                run(
                    filtering.sosfiltfilt(
                        batch.window,
                        self._scratch,
                        batch.filtered,
                        self._sections,
                        padding=self._chain.padding,
                        step=self._chain.step,
                    )
                )
            batch.forward.fft(batch.filtered, batch.spectrum, self._cufft.CUFFT_FORWARD)
            first, last = self._passband
            run(
                filtering.spectral_response(
                    batch.spectrum, self._weights, batch.folded, first=first, last=last
                )
            )
            batch.inverse.fft(batch.folded, batch.signal, self._cufft.CUFFT_INVERSE)

    def _gather(
        self, batch: _Batch, source: Source, live: Array, run: Callable[[Launch], None]
    ) -> None:
        chain = self._chain
        tables = source.ring, source.columns, source.spans
        if batch.medians is not None:
            run(
                filtering.median_rows(
                    *tables,
                    batch.medians,
                    core=(chain.core0, chain.core0 + chain.step * chain.tile_samples),
                    first_channel=batch.k0,
                    time_major=source.time_major,
                )
            )
        run(
            filtering.gather(
                *tables,
                batch.window,
                self._memory.at(live.data + batch.k0, (batch.k1 - batch.k0,), live.dtype),
                detrend=self._spectral,
                median=batch.medians,
                first_channel=batch.k0,
                time_major=source.time_major,
            )
        )

    # --- made once ------------------------------------------------------------------------

    def _as_many_as_fit(self, free: int, tried: int | None) -> list[_Batch]:
        """As many channels at once as memory allows; half as many when that is too many."""
        share = tried or int(MEMORY_SHARE * free) // self._channel_bytes()
        channels = min(self._channels, max(LEAST_CHANNELS, share))
        while True:
            mark = self._memory.mark()
            try:
                return self._batches_of(channels)
            except MemoryError as error:
                self._memory.give_back(mark)
                if channels <= LEAST_CHANNELS:
                    raise DeviceError(
                        f"The device has {free / 2**30:.1f} GiB free: too little for {channels} "
                        f"channels of {self._chain.length} samples at a time. Free memory on it, "
                        "select fewer channels, or use --backend cpu."
                    ) from error
            channels = max(LEAST_CHANNELS, channels // 2)
            _log.warning("The GPU is short of memory: %d channels at a time.", channels)

    def _channel_bytes(self) -> int:
        """Memory a batch takes for each channel, work areas as large as what is transformed."""
        item = self._complex.itemsize
        transformed = item * (self._length // 2 + 1)
        gathered = self._gathered.itemsize * self._chain.length
        extra = 0
        if not self._spectral:
            extra = 8 * (self._chain.length + 2 * self._chain.padding)
            extra += self._real.itemsize * self._kept
        return gathered + extra + 2 * transformed + 2 * item * self._kept

    def _batches_of(self, channels: int) -> list[_Batch]:
        memory, item = self._memory, self._complex.itemsize
        window = memory.allocate(channels * self._chain.length * self._gathered.itemsize)
        filtered = window
        if not self._spectral:
            filtered = memory.allocate(channels * self._kept * self._real.itemsize)
            shape = filtering.sosfiltfilt_scratch(channels, self._chain.length, self._chain.padding)
            self._scratch = memory.array(shape, np.dtype(np.float64))
        spectrum = memory.allocate(channels * (self._length // 2 + 1) * item)
        folded = memory.allocate(channels * self._kept * item)
        # The response writes only where it is not zero, and transforms leave their input alone.
        folded.memset_async(0, channels * self._kept * item, self._stream)
        medians = None
        if self._chain.median_first:
            medians = memory.allocate(channels * 8)
        plans: dict[int, tuple[Any, Any]] = {}
        batches = []
        for k0 in range(0, self._channels, channels):
            k1 = min(k0 + channels, self._channels)
            rows = k1 - k0
            if rows not in plans:
                plans[rows] = self._plans(rows)
            signal = self.signal.data + k0 * self._kept * item
            batches.append(
                _Batch(
                    k0=k0,
                    k1=k1,
                    window=memory.at(window, (rows, self._chain.length), self._gathered),
                    filtered=memory.at(filtered, (rows, self._length), self._real),
                    spectrum=memory.at(spectrum, (rows, self._length // 2 + 1), self._complex),
                    folded=memory.at(folded, (rows, self._kept), self._complex),
                    signal=memory.at(signal, (rows, self._kept), self._complex),
                    medians=None
                    if medians is None
                    else memory.at(medians, (rows,), np.dtype(np.float64)),
                    forward=plans[rows][0],
                    inverse=plans[rows][1],
                )
            )
        return batches

    def _plans(self, rows: int) -> tuple[Any, Any]:
        """Forward and inverse transform of this many channels, each with its own work area."""
        cufft, single = self._cufft, self._real == np.float32
        return (
            cufft.Plan1d(self._length, cufft.CUFFT_R2C if single else cufft.CUFFT_D2Z, rows),
            cufft.Plan1d(self._kept, cufft.CUFFT_C2C if single else cufft.CUFFT_Z2Z, rows),
        )
