r"""Builds averages from other averages that were stored: post-hoc EMA.

Averages stored at some steps of a run are weighted sums of the same iterates, so a linear
combination of them is an average too.  The combination whose weights are closest to those of a
wanted average is the solution of a least-squares problem in the weights alone (Karras et al. 2024,
arXiv 2312.02696, section 3.2, for power functions of two exponents):

.. math:: \min_x \Bigl\lVert \sum_i x_i c^{(i)} - c \Bigr\rVert^2, \qquad \sum_i x_i = 1 .

The sum is constrained to 1, so that the average of a constant is that constant.

>>> from tf_lrtraj import kernels
>>> stored = [(kernels.PowerFunction(g), t) for g in (6.94, 16.97) for t in (500, 1000)]
>>> found = combine_averages(stored, kernels.PowerFunction(12.0))
>>> found.coefficients.round(2), round(found.error, 4)
(array([-0.02,  0.47,  0.01,  0.55]), 0.0459)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.theory.checks import averaging_weights

__all__ = ["Combination", "combine_averages"]

LARGEST = 1 << 31  # bytes of all weights together
_SMALLEST_SINGULAR = 1e-7  # relative to the largest: below this, float32 averages cancel


@dataclasses.dataclass(frozen=True)
class Combination:
    """A combination of stored averages, and its distance from the wanted average.

    Attributes:
        coefficients: [M] coefficients of the stored averages, with sum 1; they may be negative.
        weights: [T+1] weights of the combination on the iterates.
        target: [T+1] weights of the wanted average on the iterates.
    """

    coefficients: np.ndarray
    weights: np.ndarray
    target: np.ndarray

    @property
    def error(self) -> float:
        """The relative error, :math:`\\lVert w - c \\rVert / \\lVert c \\rVert`.

        For iterates that fluctuate independently it is the root mean square distance of the
        built average from the wanted one, as a share of the fluctuation of the wanted one.
        """
        return float(np.linalg.norm(self.weights - self.target) / np.linalg.norm(self.target))

    @property
    def moved(self) -> float:
        """Half the sum of :math:`|w_k - c_k|`: the share of the weight on other iterates.

        For any run, the distance of the combination from the wanted average is at most this share
        of the largest distance between two iterates.
        """
        return 0.5 * float(np.sum(np.abs(self.weights - self.target)))

    @property
    def amplification(self) -> float:
        """Sum of the absolute coefficients, by which rounding in stored averages may grow."""
        return float(np.sum(np.abs(self.coefficients)))


def combine_averages(
    stored: Sequence[tuple[Kernel, int]], target: Kernel | Any, num_steps: int | None = None
) -> Combination:
    """Finds the combination of stored averages that is closest to another average.

    Args:
        stored: (kernel, number of updates after which its average was stored) of each.
        target: the wanted average: a kernel, or [T+1] weights on the iterates.
        num_steps: T, the number of updates after which it is wanted; by default that of the
            newest stored average.

    Returns:
        `Combination`.

    Raises:
        ValueError: if nothing is stored, an average was stored after T, weights do not fit, or
            the weights of all averages together would take more than 2 GiB.
    """
    stored = list(stored)
    if not stored:
        raise ValueError("`stored` must hold at least one average. Received: none")
    for index, (kernel, step) in enumerate(stored):
        if not isinstance(kernel, Kernel):
            raise ValueError(
                f"`stored[{index}]` must be a kernel and a number of updates. Received: {kernel!r}"
            )
        values.integer(0).check(f"stored[{index}][1]", step)
    newest = max(step for _, step in stored)
    last = newest if num_steps is None else values.integer(0).check("num_steps", num_steps)
    if newest > last:
        raise ValueError(
            f"`stored` must hold averages of at most `num_steps` = {last} updates. "
            f"Received: one of {newest}"
        )
    size = 8 * (last + 1) * (len(stored) + 2)
    if size > LARGEST:
        raise ValueError(
            f"`stored` must need at most {LARGEST:,} bytes for weights on all iterates. "
            f"Received: {len(stored)} averages of up to {last:,} updates, {size:,} bytes. "
            "Choose fewer of them."
        )
    wanted = averaging_weights(target, last)
    rows = np.zeros((len(stored), last + 1))
    for row, (kernel, step) in zip(rows, stored, strict=True):
        row[: step + 1] = kernel.weights(step)
    # The sum is 1 if the others are added to one of them as differences from it.
    base = int(np.argmin(np.sum((rows - wanted) ** 2, axis=1)))
    others = np.delete(np.arange(len(stored)), base)
    coefficients = np.zeros(len(stored))
    if others.size:
        differences = rows[others] - rows[base]
        lengths = np.linalg.norm(differences, axis=1)
        lengths[lengths == 0.0] = 1.0
        scaled = (differences / lengths[:, None]).T
        shares = np.linalg.lstsq(scaled, wanted - rows[base], rcond=_SMALLEST_SINGULAR)[0]
        coefficients[others] = shares / lengths
    coefficients[base] = 1.0 - coefficients.sum()
    return Combination(coefficients, coefficients @ rows, wanted)
