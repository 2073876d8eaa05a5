"""Vectors of averaging weights: their check and their autocorrelation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import values

# Tolerance of the sum of a user's weights, which must be 1: loose enough for weights from float32
# or a CSV file, tight enough to detect mistakes.
SUM_TOLERANCE = 1e-6


def check_weights(weights: Any, length: int | None = None) -> np.ndarray:
    """Checks averaging weights and returns them as a new float64 vector.

    Args:
        weights: the weights, of any sign.
        length: number of weights; by default any number of at least 1.

    Raises:
        ValueError: if `weights` is not a vector of `length` finite numbers that sum to 1.
    """
    checked: np.ndarray = values.vector(length).check("weights", weights)
    total = float(checked.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"`weights` must sum to 1. Received: weights that sum to {total!r}")
    return checked


def autocorrelation(weights: np.ndarray) -> np.ndarray:
    r"""Computes the autocorrelation :math:`R(\Delta) = \sum_k c_k c_{k+\Delta}` of weights.

    Args:
        weights: [T+1] weights on the iterates.

    Returns:
        [T+1] array, `R(0)` to `R(T)`.  `R(0)` is the variance of an average of independent
        iterates of variance 1.

    >>> autocorrelation(np.array([0.5, 0.0, 0.5]))
    array([0.5 , 0.  , 0.25])
    """
    weights = values.vector().check("weights", weights)
    count = weights.size
    if count <= 2048:
        return np.correlate(weights, weights, mode="full")[count - 1 :]
    # Zero padding to 2n-1 or more prevents the circular correlation from wrapping.
    length = 1 << (2 * count - 2).bit_length()
    spectrum = np.fft.rfft(weights, length)
    return np.fft.irfft(spectrum * spectrum.conj(), length)[:count]
