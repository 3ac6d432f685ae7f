"""The research notebook's own steps for one tile, in plain NumPy, SciPy and Pillow.

What das-gpu is measured against, and what its ``notebook`` recipe must equal pixel for pixel.
Every step is the call that a person would write for it, in float64; nothing here is used to
make images.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sections(low_hz: float, high_hz: float, order: int, rate_hz: float) -> NDArray[np.float64]:
    """Design the Butterworth band-pass at the rate that is left after striding.

    Returns
    -------
    (n_sections, 6) float64 array
        Second-order sections.
    """
    from scipy import signal

    designed: NDArray[np.float64] = signal.butter(
        order, [low_hz, high_hz], "bandpass", fs=rate_hz, output="sos"
    )
    return designed


def analytic(counts: NDArray[Any], sos: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Take each channel's median off, band-pass forwards and backwards, make analytic.

    Parameters
    ----------
    counts : (channel, sample) array
        The tile's samples, strided already.
    sos : (n_sections, 6) float64 array
        From `sections`.
    """
    from scipy import signal

    traces = counts.astype(np.float64)
    traces -= np.median(traces, axis=1, keepdims=True)
    filtered = signal.sosfiltfilt(sos, traces, axis=1)
    made: NDArray[np.complex128] = signal.hilbert(filtered, axis=1)
    return made


def envelope_db(values: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Level of the envelope, dB re 1e-6 count; -inf where it is 0."""
    with np.errstate(divide="ignore"):
        level: NDArray[np.float64] = 20 * np.log10(np.abs(values) / 1e-6)
    return level


def levels(envelope: NDArray[np.float64]) -> tuple[float, float]:
    """Grey limits of a tile: its lowest and its highest level, dB."""
    return float(envelope.min()), float(envelope.max())


def picture(
    envelope: NDArray[np.float64], low: float, high: float, height: int, width: int
) -> NDArray[np.uint8]:
    """Scale to grey levels, truncate to 8 bits, resize by Pillow: rows are time.

    Parameters
    ----------
    envelope : (channel, sample) float64 array
        In dB.
    low, high : float
        Grey limits, dB.
    height, width : int
        Pixels of the image.
    """
    from PIL import Image

    down = envelope.T
    # A channel without any signal leaves -inf, of which the notebook made a broken image too.
    with np.errstate(invalid="ignore", divide="ignore"):
        grey = ((down - low) / (high - low) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Write a PNG as Pillow does by itself."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
