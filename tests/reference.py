"""Float64 restatements of both recipes in plain SciPy, over arrays: what ours must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import signal


def band_pass(order: int, low_hz: float, high_hz: float, rate_hz: float) -> NDArray[np.float64]:
    """The design of both recipes."""
    return signal.butter(order, [low_hz, high_hz], "bandpass", fs=rate_hz, output="sos")


def notebook_tile(counts: NDArray[Any], sos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Envelope in dB of one tile that was strided already, as the notebook computes it."""
    x = counts.astype(np.float64)
    x = x - np.median(x, axis=1, keepdims=True)
    y = signal.sosfiltfilt(sos, x, axis=1)
    return 20 * np.log10(np.abs(signal.hilbert(y, axis=1)) / 1e-6)


def notebook_image(envelope_db: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Min-max, truncated to 8 bits, resized by Pillow; rows are time."""
    picture = envelope_db.T
    low, high = picture.min(), picture.max()
    grey = ((picture - low) / (high - low) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((256, 256), Image.Resampling.BICUBIC))


def analytic_of_record(
    counts: NDArray[Any], rate_hz: float, *, order: int = 8, low_hz: float = 14, high_hz: float = 35
) -> NDArray[np.complex128]:
    """Zero-phase band-passed analytic signal of whole traces, by the response of SciPy's sections.

    The record is detrended by the line through its ends and mirrored oddly at both of them, so
    that nothing wraps around.
    """
    x = counts.astype(np.float64)
    n = x.shape[1]
    ramp = np.arange(n) / (n - 1)
    x = x - x[:, :1] - (x[:, -1:] - x[:, :1]) * ramp
    pad = min(n - 1, int(6 * rate_hz))
    x = np.pad(x, ((0, 0), (pad, pad)), mode="reflect", reflect_type="odd")
    frequency_hz = np.fft.fftfreq(x.shape[1], 1 / rate_hz)
    _, h = signal.freqz_sos(
        band_pass(order, low_hz, high_hz, rate_hz), np.abs(frequency_hz), fs=rate_hz
    )
    gain = np.where(frequency_hz > 0, 2 * np.abs(h) ** 2, 0.0)
    return np.fft.ifft(np.fft.fft(x, axis=1) * gain, axis=1)[:, pad : pad + n]


def common_mode(z: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Median over channels of the real and of the imaginary part."""
    return np.median(z.real, axis=0) + 1j * np.median(z.imag, axis=0)


def level_db(z: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Envelope in dB re 1e-6 count."""
    return 20 * np.log10(np.abs(z) / 1e-6)


def errors_db(
    ours: NDArray[Any], reference: NDArray[Any], within_db: float = 60.0
) -> NDArray[np.float64]:
    """Absolute differences in dB where the reference is within so many dB of its maximum."""
    near = reference > reference.max() - within_db
    return np.abs(ours.astype(np.float64) - reference)[near]
