"""Backends: the arithmetic of one tile row, as semantic steps.

`process` states the recipe once over this protocol; a backend owns where the samples sit
and how the steps are carried out. `Chain` carries every number a backend needs, designed
on the host in float64, so that all backends get the same coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from das_gpu.bloscframe import Pick
from das_gpu.errors import UsageError
from das_gpu.model import RingLayout, RowWindow
from das_gpu.recipe import Scale

Array: TypeAlias = Any
"""An array where the backend keeps its arrays: NumPy's on the host."""


MEDIAN_CHANNELS = 1024
"""Most channels a common-mode median is taken over: its standard error is then 0.04 of a
channel's noise."""


@dataclass(frozen=True)
class Picture:
    """How an envelope tile becomes an image.

    ``resize`` is ``float`` (grey levels resized in floating point, then rounded) or
    ``pillow`` (truncated to 8 bits, then resized by the installed Pillow).
    """

    height: int
    width: int
    highest: int
    orientation: Literal["time-down", "time-right"]
    resize: Literal["float", "pillow"]


@dataclass(frozen=True)
class Chain:
    """The recipe in numbers, for windows of one length.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64: the precision after the detrend.
    length : int
        Held samples in a window; ``core0`` of them come before the core.
    step : int
        Held samples per kept sample (1 when striding came first).
    tile_samples : int
        Kept samples of the core.
    weights : (bins,) float64 or None
        ``spectral``: gain of each one-sided frequency bin, the transform's 1/N included.
    sections : (n_sections, 6) float64 or None
        ``iir``: second-order sections, applied forward and backward.
    padding : int
        ``iir``: samples of odd extension at either end.
    median_first : bool
        Subtract each channel's median over the core before filtering.
    bands, band_channels : int
        Tiles in a row, and kept channels in each.
    band_stride : int or None
        Kept channels from a band's first to the next one's; None, as many as a band has.
    scale : Scale
        Where a tile's grey limits come from.
    picture : Picture or None
        How tiles become images; None when the envelope itself is wanted.
    distance_m : (channels,) float64
        Of each kept channel, along the cable.
    aperture_m : float
        Least span of the live channels for a common mode; 0 for no such rule.
    """

    dtype: np.dtype[Any]
    length: int
    core0: int
    step: int
    tile_samples: int
    weights: NDArray[np.float64] | None
    sections: NDArray[np.float64] | None
    padding: int
    median_first: bool
    bands: int
    band_channels: int
    scale: Scale
    picture: Picture | None
    distance_m: NDArray[np.float64]
    aperture_m: float
    band_stride: int | None = None

    @property
    def overlapping(self) -> bool:
        """Whether bands share channels."""
        return self.band_stride is not None and self.band_stride < self.band_channels

    def band(self, number: int) -> slice:
        """Kept channels of a band."""
        width = self.band_channels
        start = number * (width if self.band_stride is None else self.band_stride)
        return slice(start, start + width)


@dataclass(frozen=True)
class Outcome:
    """What leaves a backend for one tile row.

    Attributes
    ----------
    pixels : sequence of arrays
        Per band: (height, width) uint8 or uint16, channels not live being 0; or the envelope in
        dB, (channel, sample) float32, channels not live holding the tile's lowest live level.
    levels : (bands, 2) float64
        Grey limits in dB; NaN for a band without a live channel.
    dead : (bands,) int
        Channels of each band that are not live.
    live : (int, int) or None
        First and last channel of the row that live; None when none does.
    """

    pixels: Sequence[NDArray[Any]]
    levels: NDArray[np.float64]
    dead: NDArray[np.integer[Any]]
    live: tuple[int, int] | None


class Ring(Protocol):
    """The latest held samples of every kept channel, in slots of one column of chunks each."""

    @property
    def pick(self) -> Pick | None:
        """What puts together the items of samples that are wanted; None where nothing does."""

    @property
    def time_major(self) -> bool:
        """Whether `room` is the transpose of memory that is (sample, channel)."""

    def room(self, column: int, k0: int, k1: int) -> AbstractContextManager[NDArray[Any]]:
        """Host memory for channels ``[k0, k1)`` of a column, (channel, sample).

        What stands in it when the context ends without an error is in the ring once `flush` has
        been called. C-contiguous, or its transpose where the ring is ``time_major``. Entered by
        several loader threads at once, never for the same channels of a column.
        """

    def flush(self) -> bool:
        """Start to move what the loaders have handed over; True while some is on its way.

        Called by the thread that iterates over rows: soon again when True, and before each row.
        """

    def keep(self, held0: int) -> None:
        """Samples before ``held0`` are not wanted again; the layout says which slots are free."""

    def stop(self) -> None:
        """Let go of threads that wait for room; they get ``InterruptedRunError``."""


class Workspace(Protocol):
    """One segment's place on a backend: its ring, and one tile row's arithmetic step by step.

    All steps are called by one thread. ``Array`` stands for whatever the backend hands from one
    step to the next; shapes are (kept channel, kept sample).
    """

    @property
    def ring(self) -> Ring:
        """Of the segment's layout."""

    @property
    def depth(self) -> int:
        """Rows to begin before the first is collected, so that the device is never idle."""

    def analytic(self, row: RowWindow) -> Array:
        """Band-passed analytic signal of the row's core, complex, and which channels live.

        A channel that is constant, not finite or has no usable sample is not live; its
        values are zeros.
        """

    def common_mode(self, signal: Array) -> Array:
        """Median of the real and of the imaginary part, per sample, over some live channels.

        These are every k-th live channel, k the smallest that leaves at most `MEDIAN_CHANNELS`;
        none, when the live channels span less than the chain's ``aperture_m``: then the common
        mode is zero.
        """

    def envelope_db(self, signal: Array, common: Array | None) -> Array:
        """``20*log10(abs(signal - common) / 1e-6)``; -inf where the envelope is 0."""

    def levels(self, envelope: Array) -> Array:
        """Grey limits per band by the chain's scale.

        Zeros of live channels count as, and are drawn, 200 dB under their tile's maximum.
        """

    def draw(self, envelope: Array, levels: Array) -> Array:
        """Images of all bands, or their arrays."""

    def collect(self, drawn: Array) -> Outcome:
        """Wait for a row and bring it to the host; rows are collected in the order drawn."""


class Backend(Protocol):
    """Where tile rows are processed."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""

    @property
    def ahead(self) -> bool:
        """Whether the ring is to have room for what comes after a row that is computed on.

        Not where those who load and those who compute share the same processors: one waits for
        the other in any case, and memory is spared.
        """

    def workspace(
        self, layout: RingLayout, chain: Chain, fillers: int = 1
    ) -> AbstractContextManager[Workspace]:
        """Everything one segment needs, made once; segments at once share none of it.

        ``fillers`` is the number of threads that are in the ring's rooms at once.
        """


@dataclass(frozen=True)
class Selected:
    """A backend and why it was chosen."""

    backend: Backend
    reason: str


def select(
    kind: str, threads: int, compiled: bool | None = None, *, resident: bool = False
) -> Selected:
    """Choose the backend.

    Parameters
    ----------
    kind : {"auto", "cpu", "gpu"}
        What was asked for; ``auto`` takes the GPU where everything it needs is there.
    threads : int
        Compute threads for the CPU backend.
    compiled : bool, optional
        Whether the CPU backend's loops are to be compiled; by default where numba is installed.
    resident : bool
        Images and arrays stay on the device: `Outcome.pixels` is then made of the device's arrays.

    Raises
    ------
    UsageError
        When ``gpu`` or compiled loops are asked for and something is missing, or another word is
        given.
    """
    from das_gpu.backends import cuda

    if kind not in ("auto", "cpu", "gpu"):
        raise UsageError(f"There is no backend {kind!r}; choose auto, cpu or gpu.")
    if kind == "cpu":
        return _cpu("asked for", threads, compiled)
    missing = cuda.first_missing()
    if missing is None:
        from das_gpu.backends.gpu import GpuBackend

        why = "asked for" if kind == "gpu" else "chosen because all it needs is there"
        return Selected(GpuBackend(resident=resident), f"{why}: {cuda.device()}")
    if kind == "gpu":
        raise UsageError(
            f"The GPU backend was asked for and cannot run: {missing.found} {missing.remedy} "
            "`das-gpu doctor` shows all it needs; --backend cpu goes without it."
        )
    return _cpu(f"chosen because there is no GPU to use: {missing.found}", threads, compiled)


def _cpu(reason: str, threads: int, compiled: bool | None) -> Selected:
    from das_gpu.backends import fast
    from das_gpu.backends.cpu import CpuBackend

    if compiled is None:
        compiled = fast.installed()
    elif compiled and not fast.installed():
        raise UsageError(
            "--fast asks for compiled loops, and numba, which compiles them, is not installed. "
            "`pip install 'das-gpu[fast]'` brings it; without --fast NumPy does the work."
        )
    if compiled:
        reason = f"{reason.rstrip('.')}; numba compiles its loops"
    return Selected(CpuBackend(threads, compiled=compiled), reason)
