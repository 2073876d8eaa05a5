r"""Second moments of SGD on a quadratic, advanced one update at a time, in place.

In the eigenbasis of the curvature each mode is its own small linear system.
Its state is :math:`x = (\theta)`, or :math:`x = (\theta, v)` with momentum, and

.. math:: x_{t+1} = M_t x_t + \text{noise}, \qquad
          y_t = \mathbb E[x_t \theta_t], \qquad
          \mathbb E[x_{t+1} \theta_s] = M_t\, \mathbb E[x_t \theta_s] \; (s \le t)

because the noise of a batch is independent of the past.  The classes below hold the moments of many
modes as arrays [dim, D], advance them, and apply `M` to columns and rows.  The moments of averages
are computed from these (`tf_lrtraj.theory.running_losses`).

A step allocates no temporary arrays, which matters most at sizes that fit the processor's cache.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg.blas import daxpy

# Products of contractions decay geometrically. Below this they are set to 0, long before they
# become subnormal numbers, which are a hundred times slower.
_NEGLIGIBLE = 1e-250


def flush(array: np.ndarray) -> None:
    """Sets tiny entries to zero, in place."""
    array[np.abs(array) < _NEGLIGIBLE] = 0.0


class Dynamics:
    """Plain SGD, θ ← θ - λ (a θ - noise): one number of state per mode.

    Args:
        curvatures: [D] eigenvalues `a`.
        gradient_noise: [D] variance of a batch's gradient at any point, `a² σ²`.
        second_moments: [D] start, `E θ²`.
    """

    dim = 1

    def __init__(
        self, curvatures: np.ndarray, gradient_noise: np.ndarray, second_moments: np.ndarray
    ) -> None:
        self.curvatures = curvatures
        self.gradient_noise = gradient_noise
        self.rate = math.nan  # of the update that `advance` makes next; none yet
        self.y = np.zeros((self.dim, curvatures.size))
        self.y[0] = second_moments
        self.second = self.y[0]  # E θ², a view
        self._contraction = np.empty_like(curvatures)

    def select(self, rate: float) -> None:
        """Chooses the learning rate that the following calls use."""
        if rate != self.rate:
            self.rate = rate
            np.multiply(self.curvatures, -rate, out=self._contraction)
            self._contraction += 1.0

    def advance(self) -> None:
        """Makes one update of the second moments."""
        second = self.second
        second *= self._contraction
        second *= self._contraction
        daxpy(self.gradient_noise, second, a=self.rate * self.rate)

    def apply(self, columns: np.ndarray) -> None:
        """columns ← M columns, in place, for an array [..., dim, D]."""
        columns *= self._contraction

    def apply_right(self, rows: np.ndarray) -> None:
        """rows ← rows M, in place, for an array [..., dim, D]."""
        rows *= self._contraction

    def flush(self) -> None:
        flush(self.y)


class MomentumDynamics(Dynamics):
    """SGD with heavy-ball momentum: two numbers of state per mode, starting at rest.

    "keras": v ← βv - λg, θ ← θ + v.  "pytorch": v ← βv + g, θ ← θ - λv.
    """

    dim = 2

    def __init__(
        self,
        curvatures: np.ndarray,
        gradient_noise: np.ndarray,
        second_moments: np.ndarray,
        momentum: float,
        convention: str,
    ) -> None:
        super().__init__(curvatures, gradient_noise, second_moments)
        self._beta = momentum
        self._keras = convention == "keras"
        self._velocity = np.zeros_like(curvatures)  # E v²
        self._scaled = np.empty_like(curvatures)

    def select(self, rate: float) -> None:
        if rate != self.rate:
            self.rate = rate
            # What θ feeds into v.
            self._scaled[:] = self.curvatures
            if self._keras:
                self._scaled *= -rate

    def advance(self) -> None:
        beta, feed, rate = self._beta, self._scaled, self.rate
        theta, cross = self.y
        # First v' = βv + feed·θ + noise, then θ' = θ + gain·v'.
        gain, spread = (1.0, rate * rate) if self._keras else (-rate, 1.0)
        velocity = beta * beta * self._velocity + feed * (2.0 * beta * cross + feed * theta)
        velocity += spread * self.gradient_noise
        mixed = beta * cross + feed * theta  # E θ v'
        theta += gain * (2.0 * mixed + gain * velocity)
        cross[:] = mixed + gain * velocity
        self._velocity = velocity

    def apply(self, columns: np.ndarray) -> None:
        theta, velocity = columns[..., 0, :], columns[..., 1, :]
        velocity *= self._beta
        velocity += self._scaled * theta
        if self._keras:
            theta += velocity
        else:
            theta -= self.rate * velocity

    def apply_right(self, rows: np.ndarray) -> None:
        theta, velocity = rows[..., 0, :], rows[..., 1, :]
        if self._keras:
            velocity += theta
        else:
            velocity -= self.rate * theta
        theta += self._scaled * velocity
        velocity *= self._beta

    def flush(self) -> None:
        super().flush()
        flush(self._velocity)
