r"""The scatter of measured pairs and of true averages around a fitted gap curve.

Every Jensen gap, and the drop :math:`\sum_k c_kL(\theta_k) - L(\varphi)` of an
average, is a quadratic form :math:`\tfrac12\sum_i a_i\,\theta_i^\top W\theta_i`
in the run (one vector over time per direction).  In the Gaussian stationary
state of the model directions are independent with covariance
:math:`s_i\rho_i^{|k-l|}`, hence

.. math:: \mathrm{Cov}(W, V) = \frac{8}{D}\sum_p x_p^2\, \mathrm{tr}(W\Gamma_pV\Gamma_p)

for terms :math:`x_p(1-\rho_p^\Delta)` of the gap curve, each made of `D` equal directions.  `D` is
estimated from the scatter of the measured pairs.  Derived in docs/theory/prediction.md.
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj.theory.gap_curve import GapCurve

__all__ = [
    "effective_dimension",
    "error_variance",
    "form_variance",
    "measurement_covariance",
    "single_scatter",
]


def effective_dimension(
    curve: GapCurve,
    gaps: np.ndarray,
    pairs: list[np.ndarray],
    jensen_gaps: np.ndarray,
    gap_errors: np.ndarray,
) -> tuple[float, float]:
    """Estimates the effective number of directions from the scatter of measured pairs.

    Args:
        gaps: [M] lags measured.
        pairs: for each of them the earlier snapshots of its pairs.
        jensen_gaps: [M] measured means over those pairs.
        gap_errors: [M] their measurement errors.

    Returns:
        (D, degrees of freedom); (inf, inf) if the fit leaves no residuals.
    """
    fitted = curve.values[gaps]
    if curve.ratios.size == 0 or np.any(fitted <= 0.0):
        return np.inf, np.inf
    covariance = measurement_covariance(curve, gaps, pairs)

    # Relative residuals, as the fit weighs them.
    left = (np.eye(gaps.size) - curve.sensitivity[gaps]) / fitted[:, None]
    spread = left @ covariance @ left.T
    trace = float(np.trace(spread))
    if trace <= 1e-9 * np.trace(covariance / np.outer(fitted, fitted)):
        return np.inf, np.inf
    residual = float(np.sum((left @ jensen_gaps) ** 2))
    noise = float(np.sum((left * gap_errors) ** 2))
    # Even if noise explains all of it, a tenth is attributed to scatter.
    excess = max(residual - noise, 0.1 * residual)
    if excess <= 1e-14 * gaps.size:
        return np.inf, np.inf
    return trace / excess, max(trace**2 / float(np.sum(spread**2)), 1.0)


def measurement_covariance(
    curve: GapCurve, gaps: np.ndarray, pairs: list[np.ndarray]
) -> np.ndarray:
    """[M, M] covariance of the measured gaps from the run's fluctuations, for D = 1."""
    count = curve.values.size
    steps = np.zeros((sum(part.size for part in pairs), count))
    mean = np.zeros((gaps.size, steps.shape[0]))
    row = 0
    for m, (lag, part) in enumerate(zip(gaps.tolist(), pairs, strict=True)):
        rows = np.arange(row, row + part.size)
        steps[rows, part] = -1.0
        steps[rows, part + lag] = 1.0
        mean[m, rows] = 1.0 / part.size
        row += part.size
    covariance = np.zeros((gaps.size, gaps.size))
    for ratio, amplitude in zip(curve.ratios, curve.amplitudes, strict=True):
        overlap = steps @ _correlation(ratio, count) @ steps.T
        covariance += 0.5 * amplitude**2 * (mean @ overlap**2 @ mean.T)
    return covariance


def error_variance(
    curve: GapCurve,
    gaps: np.ndarray,
    pairs: list[np.ndarray],
    weights: np.ndarray,
    sensitivity: np.ndarray,
) -> float:
    """Variance of (true drop - predicted drop) of an average, for D = 1.

    Args:
        weights: [K] of the average.
        sensitivity: [M] derivative of the predicted drop with respect to the measured gaps.
    """
    form = np.diag(weights) - np.outer(weights, weights)
    for lag, part, slope in zip(gaps.tolist(), pairs, sensitivity.tolist(), strict=True):
        share = 0.25 * slope / part.size
        np.subtract.at(form, (part, part), share)
        np.subtract.at(form, (part + lag, part + lag), share)
        np.add.at(form, (part, part + lag), share)
        np.add.at(form, (part + lag, part), share)
    return form_variance(curve, form)


def form_variance(curve: GapCurve, form: np.ndarray) -> float:
    """Variance of a quadratic form `W`, [K, K], in a stationary run, for D = 1."""
    variance = 0.0
    for ratio, amplitude in zip(curve.ratios, curve.amplitudes, strict=True):
        product = form @ _correlation(ratio, form.shape[0])
        variance += 8.0 * amplitude**2 * float(np.sum(product * product.T))
    return variance


def single_scatter(curve: GapCurve) -> np.ndarray:
    """[K, K] covariance of the single excess losses in the stationary state, for D = 1.

    The part of `error_variance` that is quadratic in the weights: what the
    losses of single snapshots, each with its own deviation, add to an average.
    """
    count = curve.values.size
    total = np.zeros((count, count))
    for ratio, amplitude in zip(curve.ratios, curve.amplitudes, strict=True):
        if ratio < 1.0:
            total += 8.0 * amplitude**2 * _correlation(ratio, count) ** 2
    return total


def _correlation(ratio: float, count: int) -> np.ndarray:
    """[K, K] correlation over time; of the random walk, up to constants that never matter."""
    lags = np.arange(count)
    values = -lags.astype(np.float64) if ratio == 1.0 else ratio**lags
    return values[np.abs(lags[:, None] - lags)]
