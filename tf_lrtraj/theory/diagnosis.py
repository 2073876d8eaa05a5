"""Finds contradictions between measured losses and gaps and the model of the predictions."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_lrtraj.theory.prediction import AveragePredictor
from tf_lrtraj.theory.scatter import measurement_covariance

__all__ = ["Finding", "diagnose"]

# Standard errors beyond which a departure is reported.
_SIGNIFICANT = 3.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One departure from the model.

    Attributes:
        code: "negative-gap", "not-quadratic", "not-a-relaxation", "changes-in-time",
            "still-rising", "losses-drift", "not-quadratic-far" or "scatter-unknown".
        message: the observation, with its numbers, and its consequence for predictions.
    """

    code: str
    message: str


def diagnose(predictor: AveragePredictor) -> list[Finding]:
    """Checks the data behind a predictor; an empty list means that nothing contradicts it.

    >>> lags = [1, 2, 4]
    >>> broken = AveragePredictor(np.ones(9), lags, [0.2, -0.5, 0.3])
    >>> diagnose(broken)[0].code
    'negative-gap'
    """
    findings = _from_losses(predictor)
    if predictor.curve is None:
        return _from_matrix(predictor) + findings
    return _from_pairs(predictor) + findings


def _from_matrix(predictor: AveragePredictor) -> list[Finding]:
    gaps = predictor.gap_matrix
    mean = gaps.mean(axis=0)
    values = np.linalg.eigvalsh(-(gaps - mean[:, None] - mean + mean.mean()))
    negative = -values[values < 0.0].sum()
    total = np.abs(values).sum()
    if total > 0.0 and negative > 1e-6 * total:
        return [
            Finding(
                "not-quadratic",
                f"{negative / total:.1%} of the pairs' spread has negative curvature, which "
                "no convex quadratic loss shows: noise, or a loss that is not quadratic between "
                "these snapshots. Optimal weights use the nearest gaps that one could have.",
            )
        ]
    return []


def _from_pairs(predictor: AveragePredictor) -> list[Finding]:
    curve, gaps, values = predictor.curve, predictor.gaps, predictor.jensen_gaps
    assert curve is not None
    findings = []
    negative = np.flatnonzero(values < -_SIGNIFICANT * predictor.gap_errors)
    if negative.size:
        worst = negative[np.argmin(values[negative])]
        findings.append(
            Finding(
                "negative-gap",
                f"{negative.size} of {gaps.size} measured Jensen gaps are negative beyond their "
                f"error (at lag {gaps[worst]}: {values[worst]:.3g}): the loss is not convex "
                "between those snapshots, and a quadratic prediction does not hold there.",
            )
        )
    fitted = curve.values[gaps]
    if np.any(fitted <= 0.0) or curve.ratios.size == 0 or not np.isfinite(predictor.dimension):
        findings.append(
            Finding(
                "scatter-unknown",
                "Too few pairs per lag to see how much they scatter: the bands hold measurement "
                "errors only. Measure several pairs at some lags.",
            )
        )
        return findings
    relative = (values - fitted) / fitted
    covariance = measurement_covariance(curve, gaps, predictor.pairs) / predictor.dimension
    covariance += np.diag(predictor.gap_errors**2)
    covariance /= np.outer(fitted, fitted)
    findings += _lack_of_fit(predictor, relative, covariance)

    centres = np.array([part.mean() for part in predictor.pairs]) + 0.5 * gaps
    centres = (centres - centres.mean()) / predictor.num_snapshots
    if np.ptp(centres) > 0.1:
        slope = centres @ relative / (centres @ centres)
        error = np.sqrt(centres @ covariance @ centres) / (centres @ centres)
        if abs(slope) > _SIGNIFICANT * error:
            findings.append(
                Finding(
                    "changes-in-time",
                    f"Gaps of the same lag change by {slope:+.0%} (± {error:.0%}) over the run: "
                    "it is not in a stationary state. Predict from its later part, or measure "
                    "pairs where the average lies.",
                )
            )
    half, last = curve.values[gaps.max() // 2], curve.values[gaps.max()]
    if last > 1.2 * half:
        findings.append(
            Finding(
                "still-rising",
                f"The gap still rises at the largest measured lag ({gaps.max()} snapshots: "
                f"{last:.3g}, at half of it {half:.3g}): slow directions relax over longer times "
                "than were measured, and predictions beyond that lag extrapolate.",
            )
        )
    return findings


def _lack_of_fit(
    predictor: AveragePredictor, relative: np.ndarray, covariance: np.ndarray
) -> list[Finding]:
    """Reports the lag whose mean is farthest off the curve, if beyond the scatter of pairs."""
    found = []
    for lag in np.unique(predictor.gaps).tolist():
        rows = predictor.gaps == lag
        mean = relative[rows].mean()
        error = np.sqrt(covariance[np.ix_(rows, rows)].mean())
        if abs(mean) > _SIGNIFICANT * error:
            found.append((abs(mean) / error, lag, mean, error))
    if not found:
        return []
    _, lag, mean, error = max(found)
    return [
        Finding(
            "not-a-relaxation",
            f"The gap at lag {lag} lies {mean:+.0%} (± {error:.0%}) off the nearest sum of "
            "decaying exponentials: it oscillates or falls with distance, as cyclical "
            "rates and strong momentum make it do.",
        )
    ]


def _from_losses(predictor: AveragePredictor) -> list[Finding]:
    findings = []
    losses = predictor.losses
    if losses.size >= 8:
        time = np.linspace(-0.5, 0.5, losses.size)
        slope = time @ losses / (time @ time)
        left = losses - losses.mean() - slope * time
        # Neighbouring losses are correlated; estimate how many are independent.
        memory = np.corrcoef(left[1:], left[:-1])[0, 1] if left.std() > 0.0 else 0.0
        memory = min(max(float(memory), 0.0), 0.99)
        effective = (1.0 + memory) / (1.0 - memory)
        error = np.sqrt(left @ left / (losses.size - 2) * effective / (time @ time))
        if abs(slope) > _SIGNIFICANT * error and abs(slope) > 1e-12 * np.abs(losses).max():
            findings.append(
                Finding(
                    "losses-drift",
                    f"Single losses change by {slope:+.3g} (± {error:.1g}) over the run: averages "
                    "that reach far back pay for it. The optimal weights take it into account.",
                )
            )
    drop = 2.0 * predictor.gap_matrix.mean()
    if abs(predictor.bend) * drop > 0.05:
        findings.append(
            Finding(
                "not-quadratic-far",
                f"Measured averages depart from the quadratic prediction by "
                f"{predictor.bend * drop:+.0%} of the drop for an average over the whole run: the "
                "loss is not quadratic over such distances.",
            )
        )
    return findings
