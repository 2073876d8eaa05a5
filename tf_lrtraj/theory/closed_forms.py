r"""Familiar averages as schedules in closed form, their time scales, and sparse snapshots.

Constant base rate :math:`\lambda`, contraction :math:`\rho = 1 - \lambda a`,
`m` = T - j updates left (the update itself counted):

========================  =========================================================
average                   equivalent rate over :math:`\lambda`
========================  =========================================================
EMA, decay d              :math:`(1-d)g_m / (d^m + (1-d)g_m)`,
                          :math:`g_m = \sum_{i<m} d^i\rho^{m-1-i}`
mean of the last n        :math:`h_m / (n - m + h_m)`, :math:`h_m = \sum_{i<m}\rho^i`
two points Δ apart        :math:`\rho^{m-1}/(1 + \rho^{m-1})` for :math:`m \le \Delta`
========================  =========================================================

They follow from the theorem in docs/theory/equivalence.md and serve as
independent references for its recursion.  At :math:`a = 0` they read
:math:`1 - d^m`, :math:`m/n` and ½.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import kernels
from tf_lrtraj.kernels import Exponential, Kernel, TwoPoint, Uniform, Window
from tf_lrtraj.theory import checks
from tf_lrtraj.theory.schedule_equivalence import check_run, check_stable

__all__ = [
    "TimeScales",
    "closed_form_schedule",
    "ema_decay_for_window",
    "fold_onto_snapshots",
    "time_scales",
    "window_for_ema_decay",
]


def closed_form_schedule(
    kernel: Kernel, learning_rate: float, num_steps: int, curvature: float = 0.0
) -> np.ndarray:
    """`schedule_from_weights` of a familiar average of a constant-rate run, by its formula.

    Args:
        kernel: a plain `Exponential`, `Uniform` or `Window` (both with `every=1`) or `TwoPoint`,
            which has not ended after `num_steps`.
        learning_rate: the constant base rate.
        num_steps: T.
        curvature: the curvature at which the equality is exact.

    Returns:
        [T] rates.

    Raises:
        ValueError: for another kernel, or arguments out of range.

    >>> closed_form_schedule(kernels.Uniform(start=1), 0.4, num_steps=4).round(12)
    array([0.4, 0.3, 0.2, 0.1])
    """
    num_steps = checks.integer("num_steps", num_steps, 1)
    curvature, _ = check_run(curvature, 0.0, "keras")
    rate = checks.number("learning_rate", learning_rate, 0.0, np.inf, "a positive finite number")
    check_stable(np.array([rate]), curvature, 0.0)
    left = np.arange(num_steps, 0, -1)
    contraction = 1.0 - rate * curvature

    ratio: np.ndarray = np.ones(num_steps)
    end = getattr(kernel, "end", None)  # what is no kernel is refused below
    if end is not None and end < num_steps:
        raise ValueError(
            f"`kernel` must not end before the run of {num_steps} updates. Received: {kernel!r}"
        )
    if isinstance(kernel, Exponential) and kernel.is_plain:
        tail = left <= num_steps - kernel.start
        m = left[tail]
        effect = (1.0 - kernel.decay) * _mixed_powers(kernel.decay, contraction, m)
        ratio[tail] = effect / (kernel.decay**m + effect)
    elif isinstance(kernel, TwoPoint):
        if num_steps >= kernel.gap:
            tail = left <= kernel.gap
            effect = np.power(contraction, left[tail] - 1)
            ratio[tail] = effect / (1.0 + effect)
    elif isinstance(kernel, Uniform | Window) and kernel.every == 1:
        if isinstance(kernel, Window):
            length = min(kernel.length, num_steps + 1)
        else:
            length = max(num_steps + 1 - kernel.start, 1)
        tail = left < length
        effect = _mixed_powers(1.0, contraction, left[tail])
        ratio[tail] = effect / (length - left[tail] + effect)
    else:
        raise ValueError(
            "`kernel` must be Exponential (without warm-up, debiasing or every), TwoPoint, or "
            "Uniform or Window with every=1. "
            f"Received: kernel={kernel!r}"
        )
    return rate * ratio


def _mixed_powers(x: float, y: float, m: np.ndarray) -> np.ndarray:
    """Σ_{i<m} x^i y^{m-1-i} = (x^m - y^m) / (x - y), also where x and y nearly coincide."""
    if abs(x - y) > 1e-3 * max(abs(x), abs(y)):
        return (x**m - y**m) / (x - y)
    # (x^m - y^m)/(x - y) = y^{m-1} expm1(m z) / expm1(z) with x = y e^z
    if y <= 0.0:  # both near 0, or both negative and close: few terms or plain sums
        return np.array([np.sum(x ** np.arange(k) * y ** np.arange(k - 1, -1, -1.0)) for k in m])
    z = np.log1p((x - y) / y)
    return y ** (m - 1) * (m if z == 0.0 else np.expm1(m * z) / np.expm1(z))


@dataclasses.dataclass(frozen=True)
class TimeScales:
    """How far back an average reaches, in updates.

    Attributes:
        mean_age: mean age of the iterates in it.  It is also the training it
            forgoes: `Σ_j (λ_j - λ'_j) / λ_j` of the curvature-free schedule.
        count: `1 / Σ c_k²`, the number of equally weighted iterates with the
            same noise if iterates were independent.
        half_rate: updates before the end at which the curvature-free schedule
            falls to half of the base rate or below (for good).
    """

    mean_age: float
    count: float
    half_rate: int


def time_scales(weights: Any, num_steps: int | None = None) -> TimeScales:
    """Time scales of an average, given by its weights or as a kernel after `num_steps` updates.

    >>> time_scales(kernels.Window(length=9), num_steps=100)
    TimeScales(mean_age=4.0, count=9.0, half_rate=4)
    """
    if isinstance(weights, Kernel):
        weights = weights.weights(checks.integer("num_steps", num_steps, 0))
    weights = checks.vector("weights", weights)
    if abs(weights.sum() - 1.0) > kernels.SUM_TOLERANCE:
        raise ValueError(f"`weights` must sum to 1. Received: a sum of {float(weights.sum())!r}")
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
    r"""Length of the uniform average (and of the linear decay to 0) that matches an EMA.

    :math:`n = (1+d)/(1-d)`: both then have the same mean age :math:`d/(1-d)`
    *and* the same :math:`\sum c_k^2`; there is no trade-off to choose.
    Curvature-free and for an EMA that has run long.

    >>> round(window_for_ema_decay(0.99), 9)
    199.0
    """
    decay = checks.number("decay", decay, -np.nextafter(0.0, 1.0), 1.0, "in [0, 1)")
    return (1.0 + decay) / (1.0 - decay)


def ema_decay_for_window(length: float) -> float:
    r"""The EMA decay that matches a uniform average of `length`: :math:`d = (n-1)/(n+1)`.

    >>> ema_decay_for_window(199)
    0.99
    """
    length = checks.number("length", length, np.nextafter(1.0, 0.0), np.inf, "at least 1")
    return (length - 1.0) / (length + 1.0)


def fold_onto_snapshots(weights: Any, every: Any) -> tuple[np.ndarray, np.ndarray]:
    """Moves averaging weights onto the snapshots that were kept, by linear interpolation.

    An iterate between two snapshots is taken to lie on the straight line
    between them, which keeps the mean age of the average.  Curvature-free, the
    schedule it equals is the wanted one averaged over each stretch between
    snapshots.  Weights before the first snapshot go to that snapshot.

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
    weights = checks.vector("weights", weights)
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
        every = checks.integer("every", every, 1)
        if every > max(last, 1):
            raise ValueError(
                "`every` must be at most the number of updates. "
                f"Received: every={every!r} for {last}"
            )
        return np.arange(last % every, last + 1, every)
    steps = checks.vector("every", every)
    ascending = np.all(np.diff(steps) > 0) and steps[0] >= 0 and steps[-1] == last
    if not ascending or np.any(steps != np.round(steps)):
        raise ValueError(
            f"`every` must be a spacing, or update counts that rise to {last}. "
            f"Received: every={every!r}"
        )
    return steps.astype(np.int64)
