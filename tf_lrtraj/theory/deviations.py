r"""Predictions that account for each snapshot's own deviation, from losses of some snapshots.

If Jensen gaps depend on the lag alone, the deviation :math:`\delta_k` of a snapshot contributes
:math:`c_k\delta_k` to the prediction for an average. But a snapshot with a low loss is also closer
to the others: in the stationary model its gaps are smaller too,

.. math:: \mathbb E[G_{kl}\mid\delta_k,\delta_l] - G(|k-l|)
   \approx \tfrac14 h(|k-l|)\,(\delta_k+\delta_l),
   \qquad h(\Delta) = \eta\,\frac{\sum_p x_p^2(1-\rho_p^\Delta)^2}{\sum_p x_p^2},

so that little more than :math:`c_k^2\delta_k` remains. :math:`\eta`, which is 1 in that model, is
fitted to the measured pairs.  The same correction removes the deviations of the measured pairs'
ends from the gap curve.  Derivation: docs/theory/prediction.md, section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.theory.gap_curve import GapCurve, fit_gap_curve
from tf_lrtraj.theory.prediction import AveragePredictor
from tf_lrtraj.theory.scatter import form_variance

__all__ = ["SparsePredictor"]


class SparsePredictor(AveragePredictor):
    """Predicts losses of averages from the losses of some snapshots and pairs between them.

    Args:
        count: K, the number of equally spaced snapshots.
        positions: [m] indices of the snapshots whose losses were measured, ascending; at least 4.
        losses: [m] their losses, all on the same data.
        starts: [M] index of the earlier snapshot of each measured pair; both ends are in
            `positions`.
        gaps: [M] lags of the pairs, in snapshots.
        jensen_gaps: [M] their Jensen gaps.

    Attributes:
        response: the fitted η, from 0 (deviations carry over whole) to 1.

    Raises:
        ValueError: if arrays do not fit each other.

    >>> predictor = SparsePredictor(9, [0, 2, 4, 6, 8], np.full(5, 3.0), [0, 2, 4], [2, 4, 4],
    ...                             [0.75, 0.9375, 0.9375])
    >>> round(predictor.loss(np.full(9, 1 / 9)), 2)
    1.52
    """

    def __init__(
        self,
        count: int,
        positions: Any,
        losses: Any,
        starts: Any,
        gaps: Any,
        jensen_gaps: Any,
    ) -> None:
        count = values.integer(4).check("count", count)
        places = values.vector().check("positions", positions).astype(np.int64)
        measured = values.vector(places.size).check("losses", losses)
        if places.size < 4 or np.any(np.diff(places) < 1) or places[0] < 0 or places[-1] >= count:
            allowed = f"at least 4 ascending indices below {count}"
            raise values.error("positions", allowed, positions)
        # Linear maps from measured losses: all losses by interpolation, and their straight line.
        basis = np.eye(places.size)
        spread = np.stack([np.interp(np.arange(count), places, row) for row in basis], axis=1)
        line = np.stack([np.ones(count), np.arange(count) / count - 0.5], axis=1)
        trend = line @ np.linalg.pinv(line[places])
        super().__init__(spread @ measured, gaps, jensen_gaps, starts=starts, method="mixture")
        self.positions = places
        self._spread, self._trend = spread, trend
        ends = np.stack([np.array([p[0] for p in self.pairs])] * 2)
        ends[1] += self.gaps
        if not np.isin(ends, places).all():
            raise ValueError("`starts` and starts + gaps must be among `positions`")
        deviations = (spread - trend) @ measured
        assert self.curve is not None
        self.response = 0.0
        for _ in range(2):  # the gaps' correction and their curve depend on each other
            share = _shares(self.curve, count)
            pull = 0.25 * share[self.gaps] * deviations[ends].sum(axis=0)
            fitted = np.maximum(self.curve.values[self.gaps], 1e-300)
            left = (self.jensen_gaps - self.curve.values[self.gaps]) / fitted
            size = float(np.sum((pull / fitted) ** 2))
            found = float(left @ (pull / fitted)) / size if size > 0.0 else 0.0
            self.response = min(max(found, 0.0), 1.0)
            self.curve = fit_gap_curve(
                self.gaps, self.jensen_gaps - self.response * pull, count, None, "mixture"
            )
        lags = np.arange(count)
        self._carried = self.response * _shares(self.curve, count)[np.abs(lags[:, None] - lags)]
        self._ends = ends
        self.gap_matrix = self.curve.values[np.abs(lags[:, None] - lags)] + 0.25 * self._carried * (
            deviations[:, None] + deviations
        )

    def _variance(self, weights: np.ndarray) -> tuple[float, float]:
        """As in `AveragePredictor`, with the error of snapshots that were not measured.

        For fixed terms of the curve and fixed η the prediction is linear in the measured losses and
        gaps, so its error in the stationary model is one quadratic form.
        """
        variance = (self.model_error * self._drop(weights)) ** 2
        assert self.curve is not None
        if not np.isfinite(self.dimension):
            return variance, np.inf
        slopes = self._lag_weights(weights) @ self.curve.sensitivity
        form = -np.outer(weights, weights)
        first, second = self._ends
        share = 0.25 * slopes
        np.subtract.at(form, (first, first), share)
        np.subtract.at(form, (second, second), share)
        np.add.at(form, (first, second), share)
        np.add.at(form, (second, first), share)
        form[self.positions, self.positions] += self._loss_weights(weights, slopes)
        return variance + form_variance(self.curve, form) / self.dimension, self.degrees

    def _loss_weights(self, weights: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """[m] derivative of the predicted loss with respect to the measured losses."""
        carried = weights * (1.0 - self._carried @ weights)
        # If a pair's ends have high losses, its gap was corrected down, and so was the drop.
        pull = 0.25 * slopes * self._carried[self._ends[0], self._ends[1]]
        for end in self._ends:
            np.add.at(carried, end, pull)
        return self._trend.T @ weights + (self._spread - self._trend).T @ carried


def _shares(curve: GapCurve, count: int) -> np.ndarray:
    """Returns by lag the [K] share, in [0, 1], of two snapshots' deviations that is in their
    gap."""
    relaxing = curve.ratios < 1.0
    ratios, size = curve.ratios[relaxing], curve.amplitudes[relaxing] ** 2
    if not size.any():
        return np.zeros(count)
    kept = ratios ** np.arange(count)[:, None]
    return (1.0 - kept) ** 2 @ size / size.sum()
