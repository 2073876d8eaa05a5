r"""Converts averages to learning-rate schedules and back, exactly along every path.

For one curvature :math:`a` (all directions of a quadratic loss share it, or only one direction is
considered) any weighted average :math:`\sum_k c_k\theta_k` of a run with rates :math:`\lambda_t`
*is* the last iterate of another run with the same start, the same batches and other rates
:math:`\lambda'_t`.  At :math:`a = 0` the statement is exact for frozen gradients.

The rates follow from one recursion backwards in time. Let :math:`E_k` be the effect of a unit
displacement of :math:`\theta_k` (and of the momentum's velocity) on the average, and :math:`D_k`
the weight before step `k`. Then

.. math:: \lambda'_j = \lambda_j\, \frac{E_{j+1}}{D_{j+1} + E_{j+1}}.

Without momentum :math:`E_k = c_k + (1-\lambda_k a)E_{k+1}` and
:math:`D_k = \sum_{i<k} c_i`, so weights that are nowhere negative, of a run with
:math:`\lambda a \le 1`, always give rates between 0 and the base rates, with
no cancellation anywhere.  Proofs, and momentum: docs/theory/equivalence.md.

Time and memory are O(T): one compiled triangular band solve per recursion.

>>> schedule_from_weights([0.0, 0.5, 0.0, 0.5], base=0.1)   # two points 2 apart
array([0.1 , 0.05, 0.05])
>>> weights_from_schedule([0.1, 0.05, 0.05], base=0.1).round(12) + 0.0
array([0. , 0.5, 0. , 0.5])
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import Kernel, check_weights
from tf_lrtraj.theory import checks
from tf_lrtraj.theory.recursion import solve_backward

__all__ = [
    "Response",
    "ScheduleEquivalence",
    "equivalent_schedule",
    "response",
    "schedule_from_weights",
    "weights_from_schedule",
]

# Beyond this the denominator has lost 8 of float64's 16 digits to cancellation:
# the schedule has a pole there and the run would not follow the average.
MAX_CONDITION = 1e8


@dataclasses.dataclass(frozen=True)
class ScheduleEquivalence:
    """The schedule that equals an average, and how well it is determined.

    Attributes:
        schedule: [T] rates of the equivalent run.
        base: [T] rates of the run that is averaged.
        weights: [T+1] averaging weights, scaled to sum to 1 exactly.
        condition: how much cancellation enlarges rounding errors in the worst
            step; 1 where nothing cancels.
        negative_steps: steps whose equivalent rate is negative (uphill); only
            averages with negative weights, or base rates past `1 / curvature`,
            have any.
    """

    schedule: np.ndarray
    base: np.ndarray
    weights: np.ndarray
    condition: float
    negative_steps: np.ndarray


def schedule_from_weights(
    weights: Any,
    base: Any,
    curvature: float = 0.0,
    momentum: float = 0.0,
    *,
    convention: str = "keras",
    require_nonnegative: bool = False,
) -> np.ndarray:
    r"""Computes the schedule whose last iterate equals a weighted average of the base run.

    Args:
        weights: [T+1] weights on `θ_0 … θ_T` that sum to 1 (they may be
            negative), or a `kernels.Kernel` if `base` is an array.
        base: learning rates of the averaged run, a number or [T].
        curvature: the curvature `a` at which the equality is exact;
            0 is the curvature-free map (exact for frozen gradients).
        momentum: `β` in [0, 1) of both runs, which start at rest.
        convention: where momentum puts the rate.  "keras": `v ← βv - λg`,
            `θ ← θ + v`; "pytorch": `v ← βv + g`, `θ ← θ - λv`.
        require_nonnegative: raise where the schedule would be negative.

    Returns:
        [T] learning rates.

    Raises:
        ValueError: if an argument has a wrong shape, is not finite or out of
            range, if a base rate lies past the stability limit
            `2 (1 + β) / curvature`, or if no schedule exists because a
            denominator vanishes (possible for signed weights only, or with
            momentum, or with base rates past `1 / curvature`).

    Theorem and proof: docs/theory/equivalence.md (derived there).

    >>> schedule_from_weights([0.25, 0.25, 0.25, 0.25], base=0.4)
    array([0.3, 0.2, 0.1])
    """
    found = equivalent_schedule(weights, base, curvature, momentum, convention=convention)
    if require_nonnegative and found.negative_steps.size:
        step = int(found.negative_steps[0])
        raise ValueError(
            f"The equivalent schedule is negative at {found.negative_steps.size} of "
            f"{found.schedule.size} steps, first at step {step}: {float(found.schedule[step])!r}. "
            "Weights that are nowhere negative and base rates of at most 1/curvature avoid it."
        )
    return found.schedule


def equivalent_schedule(
    weights: Any,
    base: Any,
    curvature: float = 0.0,
    momentum: float = 0.0,
    *,
    convention: str = "keras",
) -> ScheduleEquivalence:
    """Computes `schedule_from_weights` with its condition; same arguments and errors.

    >>> equivalent_schedule([-0.5, 0.0, 1.5], base=0.1).schedule
    array([0.15, 0.15])
    """
    curvature, momentum = check_run(curvature, momentum, convention)
    weights, base = check_average(weights, base)
    check_stable(base, curvature, momentum)
    weights = weights / weights.sum()

    effect = response(weights, base, curvature, momentum, convention).kick[1:]
    before = np.cumsum(weights[:-1])
    size_before = np.cumsum(np.abs(weights[:-1]))
    if momentum and convention == "keras":
        before = _geometric(before, momentum)
        size_before = _geometric(size_before, momentum)
    total = before + effect

    size = size_before + np.abs(effect)
    # No weight before and no effect: the step has no influence, so any rate is valid.
    idle = size == 0.0
    lost = (np.abs(total) * MAX_CONDITION < size) & (base > 0.0)
    if lost.any():
        step = int(np.flatnonzero(lost)[-1])
        raise ValueError(
            f"No schedule equals this average: at step {step} the rate has a pole "
            f"(denominator {total[step]:.3e}, made of terms of size {size[step]:.3e}). "
            "Averages whose weights are nowhere negative, of a run without momentum and with "
            "rates of at most 1/curvature, always have one."
        )
    ratio = np.divide(effect, total, out=np.ones_like(total), where=~idle & (total != 0.0))
    active = ~idle & (base > 0.0)
    condition = float(np.max(size[active] / np.abs(total[active]), initial=1.0))
    schedule = base * ratio
    return ScheduleEquivalence(schedule, base, weights, condition, np.flatnonzero(schedule < 0.0))


def weights_from_schedule(
    schedule: Any,
    base: Any,
    curvature: float = 0.0,
    momentum: float = 0.0,
    *,
    convention: str = "keras",
) -> np.ndarray:
    r"""Computes the averaging weights on a base run that emulate a schedule.

    The inverse of `schedule_from_weights`.

    Without momentum and at curvature 0 the weights are the decrements of
    `schedule / base`; they are nowhere negative where that ratio never rises
    and never passes 1.

    Args:
        schedule: [T] wanted learning rates (any sign).
        base: learning rates of the run to average, a number or [T].  A base
            rate may be 0 only where the schedule is 0 too.
        curvature, momentum, convention: as in `schedule_from_weights`.

    Returns:
        [T+1] weights on `θ_0 … θ_T`, which sum to 1.

    Raises:
        ValueError: if an argument has a wrong shape, is not finite or out of
            range, if the base rate is 0 where the schedule is not, or if the
            wanted schedule diverges beyond float64's range.

    >>> weights_from_schedule([0.3, 0.2, 0.1], base=0.4).round(12)
    array([0.25, 0.25, 0.25, 0.25])
    """
    curvature, momentum = check_run(curvature, momentum, convention)
    schedule = values.vector().check("schedule", schedule)
    base = check_rates("base", base, schedule.size)
    check_stable(base, curvature, momentum)
    blocked = (base == 0.0) & (schedule != 0.0)
    if blocked.any():
        step = int(np.flatnonzero(blocked)[0])
        raise ValueError(
            f"`base` must not be 0 where the schedule is not: no average moves there. "
            f"Received: base[{step}]=0.0, schedule[{step}]={float(schedule[step])!r}"
        )
    at_end = np.zeros(schedule.size + 1)
    at_end[-1] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        total = response(at_end, schedule, curvature, momentum, convention).kick[1:]
        ratio = _ratio(schedule, base)
        before = (1.0 - ratio) * total
    if not np.all(np.isfinite(before)):
        raise ValueError(
            "`schedule` must keep the run within float64's range. Received: rates up to "
            f"{float(np.max(np.abs(schedule)))!r} at curvature={curvature!r}"
        )
    if momentum and convention == "keras":
        before[:-1] -= momentum * before[1:]
    weights = np.empty(schedule.size + 1)
    weights[0] = before[0]
    weights[1:-1] = np.diff(before)
    weights[-1] = 1.0 - before[-1]
    return weights


def _ratio(schedule: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns `schedule / base`; if both are 0, the previous ratio, which gives weight 0 there."""
    moving = base > 0.0
    ratio = np.divide(schedule, base, out=np.ones_like(base), where=moving)
    last = np.maximum.accumulate(np.where(moving, np.arange(base.size), -1))
    return np.where(last >= 0, ratio[last], 1.0)


@dataclasses.dataclass(frozen=True)
class Response:
    """The linear response of a weighted average to the start and to every batch.

    Attributes:
        kick: [T+1] effect of a unit displacement of `θ_k` (and, in the Keras
            convention, of the velocity with it).
        noise: [T] weights `w_j`: the minimiser of batch `j` enters the average
            with weight `curvature * w_j`.
        start: weight of `θ_0`; `start + curvature * Σ_j w_j` = Σ of the averaging weights.
    """

    kick: np.ndarray
    noise: np.ndarray
    start: float


def response(
    weights: np.ndarray,
    rates: np.ndarray,
    curvature: float = 0.0,
    momentum: float = 0.0,
    convention: str = "keras",
) -> Response:
    """Computes the linear map from start and batches to `Σ weights_k θ_k`.

    Args:
        weights: [T+1]; all zero but a last 1 for the last iterate itself.
        rates: [T]; they may be negative.

    >>> response(np.array([0.0, 0.5, 0.5]), np.array([0.1, 0.1]), curvature=2.0).noise
    array([0.09, 0.05])

    Raises:
        ValueError: for arrays that do not fit or are not finite, or numbers out of range.
    """
    weights = values.vector().check("weights", weights)
    rates = values.vector(weights.size - 1).check("rates", rates)
    curvature, momentum = check_run(curvature, momentum, convention)
    if momentum == 0.0:
        kick = solve_backward(weights, 1.0 - rates * curvature)
        return Response(kick, rates * kick[1:], float(kick[0]))
    # Two unknowns per step, interleaved so that each depends on the next two only:
    # keras:   kick_k = x_k + β kick_{k+1},  x_k = weights_k + x_{k+1} - a λ_k kick_{k+1}
    # pytorch: x_k = weights_k + x_{k+1} - a w_k,  w_k = λ_k x_{k+1} + β w_{k+1}
    one = np.empty(2 * rates.size + 1)
    two = np.empty(2 * rates.size)
    known = np.zeros(2 * rates.size + 2)
    if convention == "keras":
        one[0::2], one[1::2] = 1.0, -curvature * rates
        two[0::2], two[1::2] = momentum, 1.0
        known[1::2] = weights
        solved = solve_backward(known, one, two)
        kick = solved[0::2]
        return Response(kick, rates * kick[1:], float(solved[1]))
    one[0::2], one[1::2] = -curvature, rates
    two[0::2], two[1::2] = 1.0, momentum
    known[0::2] = weights
    solved = solve_backward(known, one, two)
    return Response(solved[0::2], solved[1:-1:2], float(solved[0]))


def _geometric(values: np.ndarray, ratio: float) -> np.ndarray:
    """y_k = values_k + ratio * y_{k+1}."""
    return solve_backward(values, np.full(values.size - 1, ratio))


def check_run(curvature: Any, momentum: Any, convention: str) -> tuple[float, float]:
    """`curvature` and `momentum` as floats in range, under a known convention."""
    return values.number(0).check("curvature", curvature), checks.momentum(momentum, convention)


def check_rates(name: str, value: Any, num_steps: int) -> np.ndarray:
    """[T] rates of at least 0 from a number or a vector."""
    rates = values.array().check(name, value)
    if rates.shape not in ((), (num_steps,)) or np.any(rates < 0.0):
        allowed = f"a number, or of shape [{num_steps}] with one rate per update, and at least 0"
        raise values.error(name, allowed, value)
    return np.array(np.broadcast_to(rates, (num_steps,)))


def check_average(weights: Any, base: Any) -> tuple[np.ndarray, np.ndarray]:
    """[T+1] weights (of a vector or a kernel) and [T] base rates that fit each other."""
    if isinstance(weights, Kernel):
        if np.ndim(base) != 1:
            allowed = "a vector of T rates where the average is given as a kernel"
            raise values.error("base", allowed, base)
        weights = weights.weights(np.size(base))
    weights = check_weights(weights)
    if weights.size < 2:
        allowed = "T+1 weights, one per iterate of a run of T >= 1 updates"
        raise values.error("weights", allowed, weights)
    return weights, check_rates("base", base, weights.size - 1)


def check_stable(base: np.ndarray, curvature: float, momentum: float) -> None:
    """Raises if a base rate lies at or past the stability limit of a constant rate."""
    limit = 2.0 * (1.0 + momentum)
    if curvature * base.max() >= limit:
        raise ValueError(
            "`base` must stay below the stability limit 2 (1 + momentum) / curvature = "
            f"{float(limit / curvature)!r}. Received: a rate of {float(base.max())!r} at "
            f"curvature={float(curvature)!r}"
        )
