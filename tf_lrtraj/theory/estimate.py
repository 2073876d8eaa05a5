r"""Estimates a quadratic model of a run from the Jensen gaps of pairs of its snapshots.

In the stationary state a mode of curvature a and variance c has the gap
:math:`x(1 - \rho^\Delta)` at a lag of Δ snapshots, with :math:`x = ac/4` and
:math:`\rho = (1 - \lambda a)^n` for snapshots n updates apart: the gap curve's decays are
curvatures and its amplitudes are excess losses, :math:`\tfrac12 ac = 2x`
(docs/theory/prediction.md).  With momentum β the rate is the effective one, λ/(1 - β), which
holds for modes that relax slowly against 1/(1 - β) updates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize

from tf_lrtraj import values
from tf_lrtraj.theory import measurements
from tf_lrtraj.theory.gap_curve import GapCurve, fit_gap_curve
from tf_lrtraj.theory.quadratic import QuadraticModel

__all__ = ["SpectrumEstimate", "estimate_spectrum"]

# Relaxation time of an unresolved mode, as a multiple of the largest lag.
_SLOW = 4.0


@dataclasses.dataclass(frozen=True)
class SpectrumEstimate:
    """Estimated curvatures of a run.

    Attributes:
        curvatures: [D] curvatures of the modes, ascending.
        noise_variances: [D] variances of the batches' minimisers, with which the stationary state
            at the run's rate has the measured excess losses.
        excess: [D] excess loss of each mode at that rate.
        curvature: the one curvature whose single relaxation comes closest to the gaps.
        unresolved: share of the excess in modes slower than the longest lag, whose curvature is not
            determined.
        gaps: [K] the fitted gap curve by lag in snapshots.
    """

    curvatures: np.ndarray
    noise_variances: np.ndarray
    excess: np.ndarray
    curvature: float
    unresolved: float
    gaps: np.ndarray

    @property
    def model(self) -> QuadraticModel:
        """The model; `initial` gives the position of a stationary run in it."""
        return QuadraticModel(self.curvatures, self.noise_variances)

    @property
    def initial(self) -> np.ndarray:
        """[D] distances from the minimum with the excess losses of the stationary state."""
        return np.sqrt(2.0 * self.excess / self.curvatures)


def estimate_spectrum(
    lags: Any, jensen_gaps: Any, count: int, every: int, rate: float
) -> SpectrumEstimate:
    """Estimates curvatures and noise of a stationary run, from Jensen gaps of its snapshots.

    Args:
        lags: [M] distances of the pairs, in snapshots.
        jensen_gaps: [M] ½(L(θ) + L(θ')) - L(½(θ + θ')).
        count: K, the number of snapshots; lags are at most K - 1.
        every: updates between snapshots.
        rate: the run's effective learning rate, λ/(1 - β).

    Raises:
        ValueError: if no gap is positive, or as `fit_gap_curve`.

    Two modes, of curvatures 0.01 and 0.2, at rate 1:

    >>> lags = np.array([1, 2, 5, 10, 20, 50, 100, 200])
    >>> gaps = 0.3 * (1 - 0.99 ** lags) + 0.1 * (1 - 0.8 ** lags)
    >>> found = estimate_spectrum(lags, gaps, count=201, every=1, rate=1.0)
    >>> bool(abs(found.excess.sum() - 0.8) < 0.02)
    True
    """
    rate = values.number(above=0).check("rate", rate)
    count = values.integer(2).check("count", count)
    every = values.integer(1).check("every", every)
    gaps = values.vector().check("jensen_gaps", jensen_gaps)
    lags = measurements.lags("lags", lags, gaps.size, count)
    curve = fit_gap_curve(lags, gaps, count, method="mixture")
    ratios, amplitudes, unresolved = _modes(curve, count)
    if not amplitudes.size or amplitudes.sum() <= 0:
        raise ValueError(
            "`jensen_gaps` must show that snapshots differ: no mode has a positive amplitude. "
            f"Received: jensen_gaps={gaps!r}"
        )
    curvatures = np.maximum(1.0 - ratios ** (1.0 / every), 1e-12) / rate
    order = np.argsort(curvatures)
    curvatures, excess = curvatures[order], 2.0 * amplitudes[order]
    variances = 2.0 * excess / curvatures  # E θ² of each mode
    # Stationary: E θ² = λ a σ² / (2 - λ a).
    noise = variances * (2.0 - rate * curvatures) / (rate * curvatures)
    single = _single(lags, gaps, count)
    return SpectrumEstimate(
        curvatures,
        noise,
        excess,
        float(max(1.0 - single ** (1.0 / every), 1e-12) / rate),
        float(unresolved / excess.sum()),
        curve.values,
    )


def _modes(curve: GapCurve, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns contraction per snapshot and amplitude of each mode, and the unresolved excess."""
    keep = curve.amplitudes > 0
    ratios, amplitudes = curve.ratios[keep].astype(float), curve.amplitudes[keep].astype(float)
    # A random walk, x Δ, is a mode whose relaxation time is beyond the measured lags.
    slow = np.exp(-1.0 / (_SLOW * count))
    walk = ratios >= 1.0
    amplitudes = np.where(walk, amplitudes / (1.0 - slow), amplitudes)
    ratios = np.where(walk, slow, np.maximum(ratios, 1e-6))
    beyond = ratios > np.exp(-1.0 / count)
    return ratios, amplitudes, float(2.0 * amplitudes[beyond].sum())


def _single(lags: np.ndarray, gaps: np.ndarray, count: int) -> float:
    """Contraction per snapshot of the single relaxation closest to the gaps, least squares."""

    def misfit(log_time: float) -> float:
        shape = 1.0 - np.exp(-lags / np.exp(log_time))
        amplitude = max(float(shape @ gaps) / float(shape @ shape), 0.0)
        return float(np.sum((gaps - amplitude * shape) ** 2))

    tried = np.linspace(np.log(0.2), np.log(_SLOW * count), 200)
    best = tried[int(np.argmin([misfit(t) for t in tried]))]
    step = tried[1] - tried[0]
    found = optimize.minimize_scalar(misfit, bounds=(best - step, best + step), method="bounded")
    return float(np.exp(-1.0 / np.exp(found.x)))
