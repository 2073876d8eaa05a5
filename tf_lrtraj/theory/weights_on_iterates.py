"""Time scales of averaging weights, and folding of weights onto snapshots."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import kernels, values

__all__ = [
    "TimeScales",
    "ema_decay_for_window",
    "fold_onto_snapshots",
    "time_scales",
    "window_for_ema_decay",
]


@dataclasses.dataclass(frozen=True)
class TimeScales:
    """Time scales of an average, in updates.

    Attributes:
        mean_age: mean age of the iterates in it.  It is also the sum of the rate reductions, `Σ_j
            (λ_j - λ'_j) / λ_j`, of the curvature-free schedule.
        count: `1 / Σ c_k²`, the number of equally weighted iterates with the
            same noise if iterates were independent.
        half_rate: updates before the end at which the curvature-free schedule
            falls to half of the base rate or below (for good).
    """

    mean_age: float
    count: float
    half_rate: int


def time_scales(weights: Any, num_steps: int | None = None) -> TimeScales:
    """Computes time scales of an average: weights, or a kernel after `num_steps` updates.

    >>> time_scales(kernels.Window(length=9), num_steps=100)
    TimeScales(mean_age=4.0, count=9.0, half_rate=4)
    """
    if isinstance(weights, kernels.Kernel):
        weights = weights.weights(values.integer(0).check("num_steps", num_steps))
    weights = kernels.check_weights(weights)
    ages = np.arange(weights.size - 1, -1, -1)
    after = np.cumsum(weights[:0:-1])  # Σ_{k>j} c_k for j = T-1, T-2, …
    above = after > 0.5 + 1e-12
    half = int(np.argmax(above)) if above.any() else after.size
    return TimeScales(
        mean_age=float(round(weights @ ages, 12)),
        count=float(1.0 / (weights @ weights)),
        half_rate=half,
    )


def window_for_ema_decay(decay: float) -> float:
    r"""Computes the length of the uniform average (and linear decay) that matches an EMA.

    :math:`n = (1+d)/(1-d)`: both then have the same mean age :math:`d/(1-d)` *and* the same
    :math:`\sum c_k^2`. Curvature-free and for an EMA that has run long.

    >>> round(window_for_ema_decay(0.99), 9)
    199.0
    """
    decay = values.number(0, below=1).check("decay", decay)
    return (1.0 + decay) / (1.0 - decay)


def ema_decay_for_window(length: float) -> float:
    r"""Computes the EMA decay that matches a uniform average of `length`: :math:`d = (n-1)/(n+1)`.

    >>> ema_decay_for_window(199)
    0.99
    """
    length = values.number(1).check("length", length)
    return (length - 1.0) / (length + 1.0)


def fold_onto_snapshots(weights: Any, every: Any) -> tuple[np.ndarray, np.ndarray]:
    """Moves averaging weights onto the snapshots that were kept, by linear interpolation.

    An iterate between two snapshots is replaced by the point on the straight line between them,
    which keeps the mean age of the average. The equivalent curvature-free schedule is the wanted
    one averaged over each interval between snapshots. Weights before the first snapshot are
    assigned to that snapshot.

    Args:
        weights: [T+1] weights on every iterate.
        every: snapshots are kept at updates T, T - every, T - 2 every, …; or
            [K] the update counts themselves, ascending and ending with T.

    Returns:
        ([K] update counts of the snapshots, oldest first, [K] weights that sum as before).

    Raises:
        ValueError: if `every` is not an integer from 1 to T, nor such update counts.

    >>> steps, folded = fold_onto_snapshots([0.0, 0.0, 0.25, 0.25, 0.5], every=2)
    >>> steps, folded
    (array([0, 2, 4]), array([0.   , 0.375, 0.625]))
    >>> fold_onto_snapshots([0.0, 0.0, 0.25, 0.25, 0.5], [1, 4])[1].round(12)
    array([0.25, 0.75])
    """
    weights = values.vector().check("weights", weights)
    last = weights.size - 1
    steps = _kept_steps(every, last)
    if steps.size == 1:
        return steps, np.array([weights.sum()])
    time = np.arange(weights.size)
    left = np.clip(np.searchsorted(steps, time, side="right") - 1, 0, steps.size - 2)
    spacing = np.diff(steps)[left]
    fraction = np.maximum(time - steps[left], 0) / spacing
    folded = np.bincount(left, (1.0 - fraction) * weights, steps.size)
    folded += np.bincount(left + 1, fraction * weights, steps.size)
    return steps, folded


def _kept_steps(every: Any, last: int) -> np.ndarray:
    if np.ndim(every) == 0:
        every = values.integer(1).check("every", every)
        if every > max(last, 1):
            raise values.error("every", f"at most the number of updates, {last}", every)
        return np.arange(last % every, last + 1, every)
    steps = values.vector().check("every", every)
    ascending = np.all(np.diff(steps) > 0) and steps[0] >= 0 and steps[-1] == last
    if not ascending or np.any(steps != np.round(steps)):
        allowed = f"a spacing, or update counts that rise to {last}"
        raise values.error("every", allowed, every)
    return steps.astype(np.int64)
