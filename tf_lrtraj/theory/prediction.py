r"""Predicts losses of averages from the losses of snapshots and of a few pairs.

For any quadratic loss, any weights that sum to 1 and any snapshots,

.. math:: L\Bigl(\sum_k c_k\theta_k\Bigr) = \sum_k c_k L(\theta_k) - 2\sum_{k,l} c_k c_l G_{kl},
   \qquad G_{kl} = \tfrac12\bigl(L(\theta_k) + L(\theta_l)\bigr)
                   - L\bigl(\tfrac12(\theta_k + \theta_l)\bigr).

Along a slowly drifting run :math:`G_{kl}` depends on the lag alone, so a few
pairs at a handful of lags predict every average, and the best weights solve a
convex quadratic program.  Proofs, and what is approximate: docs/theory/prediction.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

from tf_lrtraj import values
from tf_lrtraj.kernels import Exponential, TwoPoint, Window, autocorrelation
from tf_lrtraj.theory import checks, measurements
from tf_lrtraj.theory.gap_curve import GapCurve, fit_gap_curve
from tf_lrtraj.theory.scatter import effective_dimension, error_variance, single_scatter
from tf_lrtraj.theory.simplex import minimise_over_weights

__all__ = [
    "AveragePredictor",
    "OptimalAverage",
    "Prediction",
    "Recommendation",
    "optimal_weights",
    "predict_average_loss",
]


def predict_average_loss(weights: Any, losses: Any, gaps: Any, jensen_gaps: Any) -> float:
    """Predicts the loss of a weighted average of equally spaced snapshots.

    Args:
        weights: [K] weights that sum to 1 (they may be negative), oldest first, or a kernel.
        losses: [K] losses of the snapshots.
        gaps: [M] lags of the measured pairs, in snapshots (a lag may come
            several times); None with a matrix of all pairs.
        jensen_gaps: [M] Jensen gaps of those pairs, or the [K, K] matrix of
            all, with which the prediction is exact for a quadratic loss.

    Raises:
        ValueError: if shapes do not fit, weights do not sum to 1, a lag is
            beyond the run or a value is not finite.

    >>> predict_average_loss([0.5, 0.0, 0.5], [1.0, 2.0, 3.0], [1, 2], [0.25, 0.5])
    1.5
    """
    return AveragePredictor(losses, gaps, jensen_gaps).loss(weights)


def optimal_weights(
    losses: Any, gaps: Any, jensen_gaps: Any, nonnegative: bool = True
) -> np.ndarray:
    """Returns the [K] weights with the lowest predicted loss.  Arguments: `predict_average_loss`.

    Signed weights are exact for exact losses but fit the noise of noisy ones;
    `AveragePredictor.optimal` takes errors into account.

    Raises:
        ValueError: as `predict_average_loss`, and if signed weights have no minimum.

    >>> optimal_weights([1.0, 1.0, 9.0], [1, 2], [0.25, 0.25])
    array([0.5, 0.5, 0. ])
    """
    return AveragePredictor(losses, gaps, jensen_gaps).optimal(nonnegative).weights


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A predicted loss with its uncertainty.

    Attributes:
        loss: the prediction.
        error: its standard error: measurement noise, few pairs, and model error.
        low, high: the band at the requested level.
    """

    loss: float
    error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class OptimalAverage:
    """The weights with the lowest predicted loss.

    Attributes:
        weights: [K], oldest snapshot first.
        loss: predicted loss.
        gain_over_last, gain_over_best: by how much that is below the last and
            the best single snapshot.
        optimality: largest violation of the optimality conditions, in units of loss.
    """

    weights: np.ndarray
    loss: float
    gain_over_last: float
    gain_over_best: float
    optimality: float


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The best member of each family of averages, by predicted loss.

    Attributes:
        ema_decay: decay per snapshot; `ema_decay ** (1 / every)` per update for
            snapshots every `every` updates.
        ema_loss: its predicted loss.
        swa_length: number of last snapshots to average uniformly.
        swa_loss: its predicted loss.
        two_point_gap: distance, in snapshots, of the snapshot to average with the last.
        two_point_loss: its predicted loss.
    """

    ema_decay: float
    ema_loss: float
    swa_length: int
    swa_loss: float
    two_point_gap: int
    two_point_loss: float


class AveragePredictor:
    """Predicts the loss of any average of equally spaced snapshots, with its uncertainty.

    Args:
        losses: [K] losses of the snapshots, all on the same data.
        gaps: [M] lags of the measured pairs in snapshots, or None with a matrix.
        jensen_gaps: [M] their Jensen gaps (or means over several pairs of that
            lag, with `counts`), or the [K, K] matrix of all pairs.
        loss_errors: standard errors of the losses, a number or [K].  With the same data for all
            they are 0, the default, because common errors cancel.
        gap_errors: measurement errors of the Jensen gaps, a number or [M]; the scatter
            from pair to pair is estimated from the data and must not be in it.
        starts: [M] index of the earlier snapshot of each pair; evenly
            spread over the run where not given.
        counts: [M] pairs behind each Jensen gap, 1 where not given; evenly spread too.
        method: how gaps at other lags are found; see `gap_curve.fit_gap_curve`.

    Attributes:
        curve: the fitted `GapCurve`; None with a matrix.
        gap_matrix: [K, K] Jensen gaps used in predictions.
        dimension: effective number of equally noisy directions, from the
            scatter of the pairs; infinite with a matrix or too few pairs to tell.
        model_error: relative error of the predicted drop, from `calibrated`.

    >>> lags = [1, 2, 4, 8]
    >>> drop = 1 - 0.5 ** np.array(lags)
    >>> predictor = AveragePredictor(np.full(20, 3.0), lags, drop)
    >>> round(predictor.loss(np.full(20, 0.05)), 3)
    1.28
    >>> predictor.recommend().swa_length
    20
    """

    def __init__(
        self,
        losses: Any,
        gaps: Any,
        jensen_gaps: Any,
        *,
        loss_errors: Any = 0.0,
        gap_errors: Any = 0.0,
        starts: Any = None,
        counts: Any = None,
        method: str = "auto",
    ) -> None:
        self.losses = values.vector().check("losses", losses)
        count = self.losses.size
        self.loss_errors = measurements.errors("loss_errors", loss_errors, count)
        self.bend, self.model_error = 0.0, 0.0
        self.dimension, self.degrees = np.inf, np.inf
        self.curve: GapCurve | None = None
        measured = values.array().check("jensen_gaps", jensen_gaps)
        if measured.ndim == 2:
            if gaps is not None and np.size(gaps):
                allowed = "None where `jensen_gaps` is the matrix of all pairs"
                raise values.error("gaps", allowed, gaps)
            self.gap_matrix = measurements.pair_matrix(measured, count)
            return

        self.jensen_gaps = values.vector().check("jensen_gaps", measured)
        self.gaps = measurements.lags("gaps", gaps, self.jensen_gaps.size, count)
        self.gap_errors = measurements.errors("gap_errors", gap_errors, self.gaps.size)
        self.pairs = measurements.pairs(self.gaps, starts, counts, count)
        stated = self.gap_errors if np.any(self.gap_errors > 0.0) else None
        # Measurement noise alone would make the fit follow the scatter of the pairs, so it
        # decides on smoothing ("mixture") but not on the weights of the fit.
        if method == "auto" and stated is not None:
            method = "mixture"
        self.curve = fit_gap_curve(self.gaps, self.jensen_gaps, count, None, method)
        lags = np.arange(count)
        self.gap_matrix = self.curve.values[np.abs(lags[:, None] - lags)]
        self.dimension, self.degrees = effective_dimension(
            self.curve, self.gaps, self.pairs, self.jensen_gaps, self.gap_errors
        )

    @property
    def num_snapshots(self) -> int:
        """K."""
        return self.losses.size

    def loss(self, weights: Any) -> float:
        """Returns the predicted loss of the average with these [K] weights (or of this kernel)."""
        weights = self._weights(weights)
        drop = self._drop(weights)
        return float(weights @ self.losses - drop * (1.0 + self.bend * drop))

    def predict(self, weights: Any, level: float = 0.9) -> Prediction:
        """Returns the prediction with a band that holds the true loss with probability `level`.

        The band covers the noise of losses and gaps, the scatter of a few pairs and
        of the run itself around the fitted curve (Gaussian fluctuations), and
        the relative `model_error`.  Where few pairs leave the scatter
        uncertain the band widens (Student's t).
        """
        from tf_lrtraj.statistics import student  # slow to import, and not always needed

        level = values.number(above=0, below=1).check("level", level)
        weights = self._weights(weights)
        loss = self.loss(weights)
        variance, degrees = self._variance(weights)
        error = float(np.sqrt(variance))
        reach = student(degrees, level) * error
        return Prediction(loss, error, loss - reach, loss + reach)

    def _variance(self, weights: np.ndarray) -> tuple[float, float]:
        """Variance of the predicted loss, and the degrees of freedom it is known by."""
        variance = float(np.sum((weights * self.loss_errors) ** 2))
        variance += (self.model_error * self._drop(weights)) ** 2
        if self.curve is None:
            return variance, np.inf
        sensitivity = self._lag_weights(weights) @ self.curve.sensitivity
        variance += float(np.sum((sensitivity * self.gap_errors) ** 2))
        if not np.isfinite(self.dimension):
            return variance, np.inf
        scatter = error_variance(self.curve, self.gaps, self.pairs, weights, sensitivity)
        return variance + scatter / self.dimension, self.degrees

    def optimal(
        self, nonnegative: bool = True, caution: float = 0.0, smooth: bool = False
    ) -> OptimalAverage:
        r"""Finds the weights with the lowest predicted loss, or the lowest upper edge of it.

        Args:
            nonnegative: forbid negative weights.
            caution: z of the upper edge that is minimised, predicted loss + z standard errors (of
                the losses, of the drop by `model_error`, and of the deviations of single snapshots
                from the curve). 0 trusts the measurements; 2 is cautious.
            smooth: replace the losses by their straight-line trend.  If gaps depend on the lag
                alone, signed weights fit the deviations of single snapshots from the trend; use
                True for signed weights.

        Returns:
            An `OptimalAverage`; its `loss` is the plain prediction.
        """
        caution = values.number(0).check("caution", caution)
        trusted = max(1.0 - caution * self.model_error, 0.0)
        losses = _trend(self.losses) if smooth else self.losses
        hessian, linear = _program(losses, trusted * self.gap_matrix)
        noise = np.diag(self.loss_errors**2)
        if self.curve is not None and np.isfinite(self.dimension):
            noise += single_scatter(self.curve) / self.dimension
        noisy = caution > 0.0 and bool(np.any(noise))
        weights = minimise_over_weights(hessian, linear, nonnegative or noisy)
        total = hessian
        if noisy:
            # sqrt(v) lies below its tangent v/(2s) + s/2, so each program improves on the last.
            for _ in range(100):
                spread = np.sqrt(weights @ noise @ weights)
                if spread == 0.0:
                    break
                total = hessian + caution * noise / spread
                before, weights = weights, minimise_over_weights(total, linear, nonnegative)
                if np.abs(weights - before).max() < 1e-12:
                    break
        gradient = total @ weights + linear
        used = weights > 0.0 if nonnegative else np.ones(weights.size, dtype=bool)
        violation = max(np.ptp(gradient[used]), gradient[used].min() - gradient.min())
        loss = self.loss(weights)
        return OptimalAverage(
            weights=weights,
            loss=loss,
            gain_over_last=float(self.losses[-1] - loss),
            gain_over_best=float(self.losses.min() - loss),
            optimality=float(violation),
        )

    def recommend(self) -> Recommendation:
        """Finds the EMA decay, SWA length and two-point gap with the lowest predicted losses."""
        count = self.num_snapshots
        if count < 2:
            raise ValueError("A recommendation needs at least 2 snapshots. Received: 1")
        swa = [self.loss(Window(length)) for length in range(1, count + 1)]
        two = [self.loss(TwoPoint(gap)) for gap in range(1, count)]

        def ema_loss(log_age: float) -> float:
            age = np.exp(log_age)
            return self.loss(Exponential(age / (1.0 + age)))

        grid = np.linspace(np.log(0.05), np.log(5.0 * count), 60)
        best = int(np.argmin([ema_loss(x) for x in grid]))
        bounds = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
        found = optimize.minimize_scalar(
            ema_loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}
        )
        age = np.exp(found.x)
        return Recommendation(
            ema_decay=float(age / (1.0 + age)),
            ema_loss=float(found.fun),
            swa_length=int(np.argmin(swa)) + 1,
            swa_loss=float(np.min(swa)),
            two_point_gap=int(np.argmin(two)) + 1,
            two_point_loss=float(np.min(two)),
        )

    def calibrated(self, averages: Sequence[Any], measured: Any) -> AveragePredictor:
        """Returns a predictor corrected by a few averages whose losses were measured.

        If the loss is not quadratic over the averaged distances, the drop ``Σ c L - L(average)``
        departs from its prediction, and the more so the larger it is. One coefficient (`bend`)
        corrects this; the leave-one-out residuals give the `model_error` of the bands.

        Args:
            averages: [N] weights or kernels, N >= 2, best long ones.
            measured: [N] their measured losses.
        """
        measured = values.vector(len(averages)).check("measured", measured)
        if measured.size < 2:
            raise ValueError("`averages` must hold at least 2 averages. Received: 1")
        weights = np.stack([self._weights(average) for average in averages])
        drops = np.array([self._drop(row) for row in weights])
        if np.any(drops <= 0.0):
            raise ValueError("`averages` must be predicted to differ from single snapshots")
        ratios = (weights @ self.losses - measured) / drops - 1.0

        def bend(rows: np.ndarray) -> float:
            return float(drops[rows] @ ratios[rows] / (drops[rows] @ drops[rows]))

        everyone = np.arange(measured.size)
        left_out = [ratios[i] - bend(np.delete(everyone, i)) * drops[i] for i in everyone.tolist()]
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        found.bend = bend(everyone)
        found.model_error = float(np.sqrt(np.mean(np.square(left_out))))
        return found

    def _drop(self, weights: np.ndarray) -> float:
        """Returns 2 Σ c_k c_l G_kl, the difference of the members' mean loss and the average's."""
        return float(2.0 * weights @ self.gap_matrix @ weights)

    def _lag_weights(self, weights: np.ndarray) -> np.ndarray:
        """[K] derivative of the drop with respect to the gap at each lag."""
        slopes = 4.0 * autocorrelation(weights)
        slopes[0] = 0.0
        return slopes

    def _weights(self, weights: Any) -> np.ndarray:
        return checks.averaging_weights(weights, self.num_snapshots - 1)


def _program(losses: np.ndarray, gap_matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted loss as ½ cᵀHc + fᵀc on weights that sum to 1, with H made positive."""
    mean = gap_matrix.mean(axis=0)
    # Σ c_k c_l G_kl is unchanged up to linear terms by centring G, because Σ c = 1.
    hessian = -4.0 * (gap_matrix - mean[:, None] - mean + mean.mean())
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    if values[0] < -1e-10 * np.abs(values).max():
        # Measured pairs can contradict every quadratic loss; the nearest one that exists is used.
        hessian = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return hessian, losses - 4.0 * mean


def _trend(losses: np.ndarray) -> np.ndarray:
    """The least-squares line through the losses."""
    if losses.size < 3:
        return losses
    time = np.arange(losses.size) - 0.5 * (losses.size - 1)
    return losses.mean() + time * (time @ losses) / (time @ time)
