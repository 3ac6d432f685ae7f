"""Backends: the arithmetic of one tile row, as semantic steps.

`process` states the recipe once over this protocol; a backend owns where the samples sit
and how the steps are carried out. `Chain` carries every number a backend needs, designed
on the host in float64, so that all backends get the same coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import UsageError
from das_gpu.model import RowWindow
from das_gpu.recipe import Scale

Array: TypeAlias = Any
"""An array where the backend keeps its arrays: NumPy's on the host."""


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


class Ring(Protocol):
    """The latest held samples of every kept channel, as a circular buffer."""

    def store(self, block: NDArray[Any], k0: int, held0: int) -> None:
        """Copy ``block`` (channel, sample) to kept channels from ``k0``, samples from ``held0``.

        Called by several loader threads at once, never for overlapping blocks.
        """


class Backend(Protocol):
    """One tile row's arithmetic. Shapes are (kept channel, kept sample) unless said."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""

    def ring(self, channels: int, capacity: int, dtype: np.dtype[Any]) -> Ring:
        """A ring of ``capacity`` held samples for ``channels`` kept channels."""

    def analytic(self, ring: Ring, row: RowWindow, chain: Chain) -> tuple[Array, NDArray[np.bool_]]:
        """Band-passed analytic signal of the row's core, complex, and which channels live.

        A channel that is constant, not finite or has no usable sample is not live; its
        values are zeros.
        """

    def common_mode(self, signal: Array, channels: NDArray[np.intp]) -> Array:
        """Median over ``channels`` of the real and of the imaginary part, per sample."""

    def envelope_db(self, signal: Array, common: Array | None) -> Array:
        """``20*log10(abs(signal - common) / 1e-6)``; -inf where the envelope is 0."""

    def levels(
        self, envelope: Array, live: NDArray[np.bool_], chain: Chain, scale: Scale
    ) -> NDArray[np.float64]:
        """Grey limits in dB per band, (band, 2); NaN for a band without a live channel.

        Floors zeros of live channels at 200 dB under their tile's maximum, in place.
        """

    def grey(
        self,
        envelope: Array,
        live: NDArray[np.bool_],
        levels: NDArray[np.float64],
        chain: Chain,
        picture: Picture,
    ) -> Sequence[NDArray[Any]]:
        """One image per band, (height, width) uint8 or uint16; channels not live are 0."""

    def to_host(self, envelope: Array) -> NDArray[np.floating[Any]]:
        """The envelope as a NumPy array."""


@dataclass(frozen=True)
class Selected:
    """A backend and why it was chosen."""

    backend: Backend
    reason: str


def select(kind: str, threads: int) -> Selected:
    """Choose the backend.

    Parameters
    ----------
    kind : {"auto", "cpu", "gpu"}
        What was asked for.
    threads : int
        Compute threads for the CPU backend.

    Raises
    ------
    UsageError
        When ``gpu`` is asked for, which this version cannot do, or another word is given.
    """
    from das_gpu.backends.cpu import CpuBackend

    if kind == "gpu":
        raise UsageError(
            "The GPU backend was asked for, and this version has only the CPU backend. "
            "Use --backend cpu or --backend auto."
        )
    if kind not in ("auto", "cpu"):
        raise UsageError(f"There is no backend {kind!r}; choose auto, cpu or gpu.")
    reason = "asked for" if kind == "cpu" else "chosen because this version has no GPU backend"
    return Selected(CpuBackend(threads), reason)
