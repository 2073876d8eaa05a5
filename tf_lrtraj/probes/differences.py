r"""Derivatives of a loss from its values, which carry rounding noise.  NumPy only.

Two values of a float32 loss at points close by differ by the noise of some hundred roundings,
so a second difference over a step h errs by noise/h² on one side and by h² on the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

POINTS = 9  # equally spaced values that the noise is estimated from


class SecondDerivative(NamedTuple):
    """A second derivative by central differences.

    Attributes:
        value: extrapolated from the best step and twice that.
        error: what noise and the step's length may have done to it.
        step: the best step; inf where none gave a finite value.
    """

    value: float
    error: float
    step: float


def noise_level(values: Any) -> float:
    r"""Standard deviation of the noise in values of a smooth function at equal distances.

    The k-th differences of a smooth function over close points vanish quickly, those of
    independent noise of deviation ε do not: their mean square is
    :math:`\binom{2k}{k} \varepsilon^2`.  Of the orders k at which the differences
    change sign and the next two agree within a factor of 4, the lowest is taken (after
    Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33, 2011).

    Args:
        values: [m] with m ≥ 5.

    Returns:
        the deviation; 0 where all values are equal; where no order passes, the smallest
        estimate of all, an upper bound in kind.

    Raises:
        ValueError: for fewer values, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> levels = [noise_level(np.linspace(0, 1, 9) + 1e-3 * rng.normal(size=9)) for _ in range(500)]
    >>> round(float(np.median(levels)) / 1e-3, 1)
    0.9
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 1 or table.size < 5 or not np.isfinite(table).all():
        raise ValueError(f"`values` must be at least 5 finite numbers. Received: values={values!r}")
    levels, signs, share = [], [], 1.0
    for order in range(1, table.size):
        table = np.diff(table)
        share *= (4.0 * order - 2.0) / order  # (2k)! / (k!)²
        levels.append(float(np.sqrt(np.mean(table**2) / share)))
        signs.append(bool((table > 0.0).any() and (table < 0.0).any()))
    for k in range(len(levels) - 2):
        near = levels[k : k + 3]
        if signs[k] and max(near) <= 4.0 * min(near):
            return levels[k]
    return min(levels)


def second_derivative(
    steps: np.ndarray, minus: np.ndarray, middle: float, plus: np.ndarray, noise: float
) -> SecondDerivative:
    """The best second derivative from values at several steps on both sides.

    For each step h the error is the noise of the extrapolated difference, 3.13 noise/h²,
    plus a third of how much differences over h and 2h disagree (or 2h and 4h, scaled);
    the step with the smallest sum is taken.

    Args:
        steps: [J] steps, each twice the one before.
        minus, plus: [J] values at -steps and steps.
        middle: value at 0.
        noise: standard deviation of one value's noise.

    >>> h = 1e-3 * 2.0 ** np.arange(8)
    >>> round(second_derivative(h, np.exp(-h), 1.0, np.exp(h), 1e-16).value, 9)
    1.0
    """
    with np.errstate(invalid="ignore"):
        found = (plus + minus - 2.0 * middle) / steps**2
        change = np.abs(np.diff(found))
        further = np.append(change[1:] / 4.0, 0.0)
        values = found[:-1] - np.diff(found) / 3.0
        # Of (4 D(h) - D(2h)) / 3: ±h 4/3, ±2h 1/12, the middle 2.5, in units of 1/h².
        share = np.sqrt(2.0 * (4.0 / 3.0) ** 2 + 2.0 / 12.0**2 + 2.5**2)
        errors = share * noise / steps[:-1] ** 2 + np.maximum(change, further) / 3.0
    finite = np.isfinite(errors)
    if not finite.any():
        return SecondDerivative(np.inf, np.inf, np.inf)
    best = int(np.argmin(np.where(finite, errors, np.inf)))
    return SecondDerivative(float(values[best]), float(errors[best]), float(steps[best]))
