"""Exponents of power laws, fitted batch by batch; pure NumPy."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.probes.uncertainty import mean_and_se


def exponents(sizes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of log value against log size, and its standard error over batches.

    Each batch has a slope of its own by least squares; the error is that of their mean.

    Args:
        sizes: [S] positive.
        values: [S, N]; batches with a value that is not positive are left out.

    Returns:
        (slope, error); inf where they cannot be told.

    >>> values = np.array([[1.0, 3.0], [4.0, 12.0], [16.0, 48.0]])
    >>> [round(number, 9) for number in exponents(np.array([1.0, 2.0, 4.0]), values)]
    [2.0, 0.0]
    """
    sizes, values = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    kept = (np.isfinite(values) & (values > 0.0)).all(axis=0)
    if sizes.size < 2 or not kept.any() or np.any(sizes <= 0.0):
        return np.inf, np.inf
    place = np.log(sizes) - np.log(sizes).mean()
    slopes = place @ np.log(values[:, kept]) / (place @ place)
    mean, error = mean_and_se(slopes)
    return float(mean), float(np.nan_to_num(error, nan=np.inf))
