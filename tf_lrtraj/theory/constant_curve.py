r"""`ConstantCurve`: the smoothed loss curve of a constant-rate run, with standard errors.

Inside the run the curve is a local quadratic in the logarithm of the step (tricube weights).
Beyond its end it is :math:`a + b\,t^{-\alpha}`, where `a` and `b` are fitted to the last half of
the run and :math:`\alpha` is uncertain.  Both are linear in the losses, so errors at several steps
can be drawn jointly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import values

__all__ = ["ConstantCurve", "CurveLevels"]

FEWEST = 8  # smallest number of points of a curve
_WIDTH = 0.25  # half width of the smoothing window, in log steps
_NEIGHBOURS = 10  # smallest number of points in the window
# Mean and standard deviation of α beyond the end of the curve: see docs/theory/decays.md
_DECAY = 0.5, 0.15
_FARTHEST = 2.0  # end of the continuation, as a multiple of the last step
_NOISE_FROM = 0.1  # start of the residuals that determine the noise, as a share of the last step


@dataclasses.dataclass(frozen=True)
class CurveLevels:
    """The smoothed curve at some steps.

    Attributes:
        losses: [Q] smoothed losses.
        slopes: [Q] derivatives of `losses` with respect to the step.
        rows: [Q, K] derivatives of `losses` with respect to the losses of the curve.
        continuation: [Q] change of `losses` for one standard deviation of α; 0 inside the run.
        errors: [Q] standard errors of `losses`.
    """

    losses: np.ndarray
    slopes: np.ndarray
    rows: np.ndarray
    continuation: np.ndarray
    errors: np.ndarray


class ConstantCurve:
    """The loss curve of a run at a constant rate.

    Args:
        steps: [K] increasing steps of at least 0, at least 8 of them above 0.
        losses: [K] losses of the iterates at `steps`, all on the same data.

    Attributes:
        steps, losses: the points above step 0.
        noise: standard deviation of a single loss about the smoothed curve.
        spacing: median distance of neighbouring steps.

    Raises:
        ValueError: if the steps do not increase, a value is not finite, or there are too few.

    >>> curve = ConstantCurve(np.arange(1, 50), 2.0 + 1.0 / np.arange(1, 50))
    >>> round(float(curve.levels([20.0]).losses[0]), 2)
    2.05
    """

    def __init__(self, steps: Any, losses: Any) -> None:
        steps = values.vector(at_least=0.0).check("steps", steps)
        losses = values.vector(steps.size).check("losses", losses)
        falling = np.flatnonzero(np.diff(steps) <= 0.0)
        if falling.size:
            at = int(falling[0])
            raise ValueError(
                f"`steps` must increase. Received: {steps[at + 1]:g} after {steps[at]:g} at "
                f"position {at + 1}"
            )
        kept = steps > 0.0
        self.steps, self.losses = steps[kept], losses[kept]
        if self.steps.size < FEWEST:
            raise ValueError(
                f"`steps` must hold at least {FEWEST} steps above 0. Received: {self.steps.size}"
            )
        self.spacing = float(np.median(np.diff(self.steps)))
        self.noise = self._noise()

    @property
    def first(self) -> float:
        """The first step above 0."""
        return float(self.steps[0])

    @property
    def last(self) -> float:
        """The last step."""
        return float(self.steps[-1])

    @property
    def farthest(self) -> float:
        """The last step of the continuation."""
        return _FARTHEST * self.last

    def levels(self, steps: Any) -> CurveLevels:
        """Computes the curve at steps between `first` and `farthest`."""
        at = np.clip(np.asarray(steps, np.float64), self.first, None)
        rows, slope_rows = self._local_rows(np.minimum(at, self.last))
        bend = np.zeros(at.size)
        beyond = at > self.last
        if np.any(beyond):
            mean, spread = _DECAY
            rows[beyond], slope_rows[beyond] = self._continued_rows(at[beyond], mean)
            high, _ = self._continued_rows(at[beyond], mean + spread)
            low, _ = self._continued_rows(at[beyond], mean - spread)
            bend[beyond] = 0.5 * (high - low) @ self.losses
        errors = np.hypot(self.noise * np.sqrt(np.sum(rows**2, axis=1)), bend)
        slopes = slope_rows @ self.losses / at
        return CurveLevels(rows @ self.losses, slopes, rows, bend, errors)

    def _local_rows(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows of the local fit: for values, and for derivatives in the log step."""
        away = np.log(self.steps) - np.log(at)[:, None]
        count = min(_NEIGHBOURS, self.steps.size)
        needed = np.partition(np.abs(away), count - 1, axis=1)[:, count - 1]
        width = np.maximum(_WIDTH, 1.001 * needed)[:, None]
        weights = np.clip(1.0 - np.abs(away / width) ** 3, 0.0, None) ** 3
        powers = (away / width)[:, :, None] ** np.arange(3)
        moments = np.einsum("qk,qki,qkj->qij", weights, powers, powers)
        solved = np.linalg.solve(moments, np.swapaxes(weights[:, :, None] * powers, 1, 2))
        return solved[:, 0], solved[:, 1] / width

    def _continued_rows(self, at: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns such rows for the continuation a + b (t^-α - 1)/α."""
        used = np.flatnonzero(self.steps >= 0.5 * self.last)
        used = np.arange(self.steps.size)[-max(used.size, FEWEST) :]
        ratio = self.steps[used] / self.last
        design = np.stack([np.ones(used.size), (ratio**-decay - 1.0) / decay], axis=1)
        inverse = np.linalg.pinv(design)
        ahead = at / self.last
        rows, slopes = np.zeros((2, at.size, self.steps.size))
        rows[:, used] = inverse[0] + ((ahead**-decay - 1.0) / decay)[:, None] * inverse[1]
        slopes[:, used] = -(ahead**-decay)[:, None] * inverse[1]
        return rows, slopes

    def _noise(self) -> float:
        """Estimates the standard deviation of a loss, robust to spikes.

        The estimate is increased for positive autocorrelation of the residuals.
        """
        used = self.steps >= _NOISE_FROM * self.last
        if used.sum() < FEWEST:
            used = np.arange(self.steps.size) >= self.steps.size - FEWEST
        rows, _ = self._local_rows(self.steps[used])
        own = rows[np.arange(rows.shape[0]), np.flatnonzero(used)]
        left = self.losses[used] - rows @ self.losses
        left /= np.sqrt(np.maximum(1.0 - 2.0 * own + np.sum(rows**2, axis=1), 1e-3))
        scale = 1.4826 * float(np.median(np.abs(left)))
        if scale <= 1e-13 * float(np.abs(self.losses).max()):
            return 0.0
        clipped = np.clip(left, -3.0 * scale, 3.0 * scale)
        memory = float(clipped[1:] @ clipped[:-1] / (clipped @ clipped))
        memory = min(max(memory, 0.0), 0.9)
        return scale * float(np.sqrt((1.0 + memory) / (1.0 - memory)))
