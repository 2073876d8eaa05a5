"""Means and their standard errors over batches, rays and trips; pure NumPy.

A standard error that cannot be estimated, of a single number, is NaN here
(infinite in a record).
"""

from __future__ import annotations

import numpy as np
from scipy import special


def mean_and_se(values: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """The mean along an axis, and its standard error for independent entries.

    >>> mean_and_se(np.array([1.0, 3.0]))
    (np.float64(2.0), np.float64(1.0))
    """
    values = np.asarray(values, np.float64)
    count = values.shape[axis]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.mean(values, axis=axis)
        if count < 2:
            return mean, np.full_like(mean, np.nan)
        return mean, np.std(values, axis=axis, ddof=1) / np.sqrt(count)


def crossed_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The mean of [n, m, …] numbers over two crossed factors, and its standard error.

    Every trip is measured on the same held-out batches, so the n m numbers are not
    independent.  With effects of rows, of columns and of their pairs,
    \(x_{ij} = \mu + r_i + c_j + e_{ij}\), the variance of the mean is estimated without bias by

    .. math:: \frac{s^2(\bar x_{i\cdot})}{n} + \frac{s^2(\bar x_{\cdot j})}{m}
        - \frac{s^2_e}{nm},

    and never taken to be less than either of its first two terms.  A factor of one
    entry is held fixed: the error is then over the other alone.

    >>> crossed_mean(np.array([[0.0, 2.0], [0.0, 2.0]]))  # rows do not differ
    (np.float64(1.0), np.float64(1.0))
    """
    values = np.asarray(values, np.float64)
    n, m = values.shape[:2]
    with np.errstate(invalid="ignore", over="ignore"):
        rows, columns = values.mean(axis=1), values.mean(axis=0)
        mean = rows.mean(axis=0)
        of_rows = rows.var(axis=0, ddof=1) / n if n > 1 else None
        of_columns = columns.var(axis=0, ddof=1) / m if m > 1 else None
        if of_rows is None or of_columns is None:
            known = of_rows if of_columns is None else of_columns
            return mean, np.full_like(mean, np.nan) if known is None else np.sqrt(known)
        rest = values - rows[:, None] - columns[None] + mean
        shared = np.sum(rest**2, axis=(0, 1)) / ((n - 1) * (m - 1) * n * m)
        variance = np.maximum(of_rows + of_columns - shared, np.maximum(of_rows, of_columns))
        return mean, np.sqrt(variance)


def student(count: int, level: float = 0.975) -> float:
    """Quantile of Student's distribution for the mean of `count` numbers; infinite for one.

    >>> round(student(8), 3)
    2.365
    """
    return float(special.stdtrit(count - 1, level)) if count > 1 else float("inf")
