"""Second-order sections of a digital Butterworth band-pass, designed without SciPy.

Importing ``scipy.signal`` for its ``butter`` takes longer than processing many tiles. The design
is the textbook's (Oppenheim and Schafer, Discrete-Time Signal Processing, chapter 7): poles of
the low-pass prototype on the unit circle, turned into those of a band-pass, put inside the unit
circle by the bilinear transform with prewarped corners.
"""

from __future__ import annotations

import cmath
import math

import numpy as np
from numpy.typing import NDArray


def band_pass_sections(low: float, high: float, order: int) -> NDArray[np.float64]:
    """Design what ``scipy.signal.butter(order, [low, high], "bandpass", output="sos")`` does.

    Also in the order of the sections and in the pairing of zeros with poles, on which rounding
    depends: the pole next to the unit circle comes last, with the zeros next to it.

    Parameters
    ----------
    low, high : float
        Prewarped corners ``tan(pi*f/rate)``, ascending, above 0.
    order : int
        Of the low-pass prototype, at least 1.

    Returns
    -------
    (order, 6) float64 array
        ``b0 b1 b2 1 a1 a2`` a row.
    """
    analogue = _analogue_pairs(low, high, order)
    pairs = [_digital(pair) for pair in analogue]
    # All gain is in the first section: that of the analogue band-pass, (high - low)**order times
    # the product of 1 / (1 - s) over its poles s.
    gain = (high - low) ** order
    for first, second in analogue:
        gain /= ((1 - first) * (1 - second)).real
    zeros = {1: order, -1: order}
    sections = np.zeros((order, 6))
    for number in range(order - 1, -1, -1):
        worst = min(range(len(pairs)), key=lambda n: _distance(pairs[n]))
        first, second = pairs.pop(worst)
        near = _take_nearest(zeros, first), _take_nearest(zeros, first)
        sections[number] = (
            1,
            -sum(near),
            math.prod(near),
            1,
            -(first + second).real,
            (first * second).real,
        )
    sections[0, :3] *= gain
    return sections


def _analogue_pairs(low: float, high: float, order: int) -> list[tuple[complex, complex]]:
    """Poles of the analogue band-pass: conjugate pairs, and the real two that there may be."""
    half, centre = (high - low) / 2, low * high
    pairs: list[tuple[complex, complex]] = []
    for k in range(1, order + 1, 2):
        angle = math.pi * (order - k) / (2 * order)
        pole = -half * complex(math.cos(angle), math.sin(angle))
        root = cmath.sqrt(pole * pole - centre)
        if k == order:  # of an odd order one pole of the prototype is real, and stands for itself
            pairs.append((pole + root, pole - root))
        else:
            pairs += [(each, each.conjugate()) for each in (pole + root, pole - root)]
    return pairs


def _digital(pair: tuple[complex, complex]) -> tuple[complex, complex]:
    """The bilinear transform, in units of twice the sampling rate; next to the circle first."""
    first, second = ((1 + pole) / (1 - pole) for pole in pair)
    return (first, second) if abs(first) >= abs(second) else (second, first)


def _distance(pair: tuple[complex, complex]) -> float:
    """Of a pair's first pole from the unit circle."""
    return abs(1 - abs(pair[0]))


def _take_nearest(zeros: dict[int, int], pole: complex) -> int:
    """Take the zero next to a pole; there are as many at 1 as at -1 to begin with."""
    zero = min((zero for zero, left in zeros.items() if left), key=lambda zero: abs(zero - pole))
    zeros[zero] -= 1
    return zero
