r"""The Jensen gap of two snapshots as a function of their distance in time.

In the stationary state of the quadratic model :math:`G(\Delta) = \sum_p x_p
(1 - \rho_p^\Delta)` with :math:`x_p \ge 0`, one term per relaxation time.  A
slow mode far from equilibrium looks like :math:`x\Delta` (a random walk) and a
steady drift like :math:`x\Delta^2`.  Any such sum with non-negative amplitudes
makes the predicted loss of an average a convex function of its weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["GapCurve", "fit_gap_curve"]

METHODS = ("auto", "mixture", "interpolate", "table")

_TIMES = 40  # relaxation times tried, evenly spaced on a logarithmic axis


@dataclasses.dataclass(frozen=True)
class GapCurve:
    """Jensen gap against lag.

    Attributes:
        values: [K] gaps at lags 0 … K-1; `values[0]` is 0.
        sensitivity: [K, M] derivative of `values` with respect to the M measured gaps.
        ratios: [P] per-snapshot contraction of each term found; 1 is the random walk.
        amplitudes: [P] its amplitude (of lag, for the random walk).
        drift: amplitude of the squared lag.
        method: how it was made: "mixture", "interpolate" or "table".
    """

    values: np.ndarray
    sensitivity: np.ndarray
    ratios: np.ndarray
    amplitudes: np.ndarray
    drift: float
    method: str


def fit_gap_curve(
    gaps: np.ndarray,
    jensen_gaps: np.ndarray,
    count: int,
    errors: np.ndarray | None = None,
    method: str = "auto",
) -> GapCurve:
    """Fits the gap at all lags below `count` to measurements at some lags.

    Args:
        gaps: [M] integer lags from 1 to count - 1; a lag may come several times.
        jensen_gaps: [M] measured gaps.
        count: K, number of snapshots.
        errors: [M] standard errors, used as weights of the fit; without them relative errors are
            assumed to be equal.
        method: "mixture" (non-negative sum of decaying exponentials, random walk and
            drift), "interpolate" (monotone cubic through the means, constant beyond the
            last), "table" (means, every lag measured) or "auto" (table where
            every lag has a value and no error is stated, else mixture).

    Raises:
        ValueError: if `method` is unknown, or "table" lacks a lag.

    >>> lags = np.array([1, 2, 4, 8])
    >>> fit_gap_curve(lags, 1 - 0.5**lags, 9).values.round(2)
    array([0.  , 0.5 , 0.75, 0.87, 0.94, 0.97, 0.98, 0.99, 1.  ])
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}. Received: method={method!r}")
    missing = np.setdiff1d(np.arange(1, count), gaps)
    if method == "auto":
        method = "table" if missing.size == 0 and errors is None else "mixture"
    if method == "table" and missing.size:
        raise ValueError(
            f"A table needs a gap at every lag from 1 to {count - 1}. "
            f"Received: none at lag {missing[0]}"
        )
    if method == "mixture":
        return _mixture(gaps, jensen_gaps, count, errors)
    return _through_means(gaps, jensen_gaps, count, method)


def _through_means(gaps: np.ndarray, jensen_gaps: np.ndarray, count: int, method: str) -> GapCurve:
    lags, where = np.unique(gaps, return_inverse=True)
    means = np.zeros((lags.size, gaps.size))
    means[where, np.arange(gaps.size)] = 1.0
    means /= means.sum(axis=1, keepdims=True)
    sensitivity = np.zeros((count, gaps.size))
    if method == "table":
        sensitivity[lags] = means
    else:
        from scipy.interpolate import PchipInterpolator

        knots, wanted = np.append(0, lags), np.minimum(np.arange(count), lags[-1])
        values = np.append(0.0, means @ jensen_gaps)
        curve = PchipInterpolator(knots, values)(wanted)
        # Derivatives of the linear interpolant are used for the cubic one.
        hats = np.stack([np.interp(wanted, knots, row) for row in np.eye(knots.size)[1:]], axis=1)
        none = np.zeros(0)
        return GapCurve(curve, hats @ means, none, none, 0.0, method)
    none = np.zeros(0)
    return GapCurve(sensitivity @ jensen_gaps, sensitivity, none, none, 0.0, method)


def _mixture(
    gaps: np.ndarray, jensen_gaps: np.ndarray, count: int, errors: np.ndarray | None
) -> GapCurve:
    from scipy.optimize import nnls  # takes about a second to import

    lags = np.arange(count)
    times = np.geomspace(0.3, 4.0 * count, _TIMES)
    ratios = np.concatenate(([0.0], np.exp(-1.0 / times)))
    # Columns of comparable size: 1 - ρ^Δ, Δ and Δ², the last two in units of the run's length.
    columns = np.concatenate(
        [1.0 - ratios[:, None] ** lags, [lags / count], [(lags / count) ** 2]]
    ).T
    measured = columns[gaps]

    scale = np.abs(jensen_gaps).max() or 1.0
    spread = np.abs(jensen_gaps) + 0.1 * scale
    amplitudes = np.zeros(columns.shape[1])
    if errors is not None:
        positive = errors > 0.0
        floor = errors[positive].min() if positive.any() else scale
        spread = np.maximum(errors, floor)
    # Scatter is proportional to the gap itself, so the second round weighs by the fitted gap.
    for _ in range(1 if errors is not None else 3):
        amplitudes, _ = nnls(measured / spread[:, None], jensen_gaps / spread, maxiter=10_000)
        if errors is None:
            spread = np.maximum(measured @ amplitudes, 0.02 * scale)

    active = np.flatnonzero(amplitudes > 1e-12 * scale)
    sensitivity = np.zeros((count, gaps.size))
    if active.size:
        inverse = np.linalg.pinv(measured[:, active] / spread[:, None], rcond=1e-10)
        sensitivity = columns[:, active] @ inverse / spread
    decaying = active[active <= ratios.size]  # the random walk included
    found_ratios = np.append(ratios, 1.0)[decaying]
    found = amplitudes[decaying] / np.where(decaying == ratios.size, count, 1.0)
    return GapCurve(
        values=columns @ amplitudes,
        sensitivity=sensitivity,
        ratios=found_ratios,
        amplitudes=found,
        drift=float(amplitudes[-1]) / count**2,
        method="mixture",
    )
