r"""Compares a schedule with an average on a spectrum of curvatures.

The schedule that equals an average depends on the curvature, so on a spectrum no scalar schedule
equals the average along every path.  `schedule_mismatch` computes the difference of any schedule
from the average per curvature, separately for bias and variance; `schedule_fit.best_schedule` finds
the schedule with the smallest difference in the loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.theory.schedule_equivalence import check_average, check_run, check_stable, response

__all__ = ["ScheduleMismatch", "schedule_mismatch"]


@dataclasses.dataclass(frozen=True)
class ScheduleMismatch:
    r"""Ends of a scheduled run against an average of the base run, per curvature.

    A direction of curvature `a` that starts at distance :math:`m_0` with batch
    noise :math:`\sigma^2` ends with second moment
    ``bias**2 * m_0**2 + variance * σ²``.  All arrays are [D].

    Attributes:
        curvatures: the curvatures `a`.
        average_bias, schedule_bias: remaining share of the start (signed).
        average_variance, schedule_variance: variance per unit of batch noise.
        path_variance: variance of the *difference* between the two ends on the
            same batches, per unit of batch noise; 0 where the equality is path by path.
    """

    curvatures: np.ndarray
    average_bias: np.ndarray
    schedule_bias: np.ndarray
    average_variance: np.ndarray
    schedule_variance: np.ndarray
    path_variance: np.ndarray

    def average_losses(self, initial: Any = 1.0, noise_variances: Any = 1.0) -> np.ndarray:
        """[D] expected excess loss of the average, from squared distances `initial**2`."""
        return self._losses(self.average_bias, self.average_variance, initial, noise_variances)

    def schedule_losses(self, initial: Any = 1.0, noise_variances: Any = 1.0) -> np.ndarray:
        """[D] expected excess loss of the scheduled run; arguments as in `average_losses`."""
        return self._losses(self.schedule_bias, self.schedule_variance, initial, noise_variances)

    def _losses(
        self, bias: np.ndarray, variance: np.ndarray, initial: Any, noise_variances: Any
    ) -> np.ndarray:
        initial, noise_variances = np.asarray(initial), np.asarray(noise_variances)
        return 0.5 * self.curvatures * ((bias * initial) ** 2 + variance * noise_variances)


def schedule_mismatch(
    schedule: Any,
    weights: Any,
    base: Any,
    curvatures: Any,
    momentum: float = 0.0,
    *,
    convention: str = "keras",
) -> ScheduleMismatch:
    """Computes how a schedule and an average differ at the end of the run, per curvature.

    Args:
        schedule: [T] learning rates of the run without averaging.
        weights: [T+1] averaging weights, or a kernel if `base` is an array.
        base: learning rates of the averaged run, a number or [T].
        curvatures: [D].
        momentum, convention: as in `schedule_from_weights`, for both runs.

    Returns:
        A `ScheduleMismatch`.  O(D T) time.

    Raises:
        ValueError: if shapes do not fit, a value is not finite or negative, or
            a base rate is past the stability limit of the largest curvature.

    Derived in docs/theory/equivalence.md.

    >>> two_points = [0.0, 0.5, 0.5]
    >>> found = schedule_mismatch([0.1, 0.05], two_points, 0.1, [0.1, 5.0])
    >>> found.average_bias.round(4), found.schedule_bias.round(4)
    (array([0.985, 0.375]), array([0.985, 0.375]))
    """
    curvatures = values.vector(at_least=0).check("curvatures", curvatures)
    _, momentum = check_run(0.0, momentum, convention)
    weights, base = check_average(weights, base)
    check_stable(base, curvatures.max(), momentum)
    schedule = values.vector(base.size).check("schedule", schedule)
    at_end = np.zeros(base.size + 1)
    at_end[-1] = 1.0

    found = np.empty((5, curvatures.size))
    for i, curvature in enumerate(curvatures.tolist()):
        average = response(weights, base, curvature, momentum, convention)
        run = response(at_end, schedule, curvature, momentum, convention)
        gap = average.noise - run.noise
        found[:, i] = (
            average.start,
            run.start,
            curvature**2 * (average.noise @ average.noise),
            curvature**2 * (run.noise @ run.noise),
            curvature**2 * (gap @ gap),
        )
    return ScheduleMismatch(curvatures, *found)
