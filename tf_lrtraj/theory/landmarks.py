"""Results of `QuadraticModel` about one step and one point; see docs/theory/model.md."""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["GradientStatistics", "OneStep", "Shell"]


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The best single gradient step, in expectation over batches.

    Attributes:
        best_rate: learning rate of the lowest expected loss.
        gain: decrease of the loss there.
        zero_crossing: the rate at which the gain is 0 again, twice `best_rate`.
    """

    best_rate: float
    gain: float

    @property
    def zero_crossing(self) -> float:
        return 2.0 * self.best_rate


@dataclasses.dataclass(frozen=True)
class Shell:
    """The position of a point relative to the ellipsoid on which E‖θ‖² is constant.

    Attributes:
        drift: E‖θ_{t+1}‖² - ‖θ_t‖² from here.
        position: θᵀ(2A - λA²)θ over λ tr(A²C): 1 on the shell, below 1 inside (the norm
            grows), above 1 outside (it shrinks); inf without noise.
    """

    drift: float
    position: float


@dataclasses.dataclass(frozen=True)
class GradientStatistics:
    """Statistics of the gradients of batches at a point.

    Attributes:
        signal: squared norm of the full gradient, θᵀA²θ.
        noise: variance of a batch's gradient about it, tr(A²C).
    """

    signal: float
    noise: float

    @property
    def cosine_between_batches(self) -> float:
        """E⟨g_x, g_y⟩ / E‖g‖² of independent batches (a ratio of expectations)."""
        return self._share

    @property
    def cosine_to_full(self) -> float:
        """E⟨g_x, g⟩ / (‖g‖ √E‖g_x‖²), the same way."""
        return self._share**0.5

    @property
    def noise_scale(self) -> float:
        """Noise over signal, in batches; times the batch size, the "simple noise scale"
        of McCandlish et al. 2018 (arXiv 1812.06162).  inf where the full gradient vanishes."""
        return self.noise / self.signal if self.signal else np.inf

    @property
    def _share(self) -> float:
        total = self.signal + self.noise
        return self.signal / total if total else 0.0
