r"""The share of the stationary variance that averages keep, and effective learning rates.

At a constant rate :math:`\lambda` a mode of curvature :math:`a` contracts by
:math:`\rho = 1 - \lambda a` per step and fluctuates with variance
:math:`s(\lambda) = \lambda a \sigma^2 / (2 - \lambda a)`.  An average with
autocorrelation :math:`R` keeps the share

.. math:: X(\rho) = R(0) + 2 \sum_{\Delta \ge 1} R(\Delta) \rho^\Delta

of it (`stationary_factor`), as a run at the *effective rate* would:
:math:`s(\lambda_{\text{eff}}) = X s(\lambda)` (`effective_learning_rate`).
Proofs: docs/theory/moments.md.

>>> from tf_lrtraj import kernels
>>> round(stationary_factor(kernels.TwoPoint(gap=50), contraction=0.9), 4)
0.5026
>>> round(effective_learning_rate(kernels.Exponential(0.99), 0.1, curvature=1.0), 5)
0.00913
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import (
    Exponential,
    HalfLife,
    Kernel,
    LagKernel,
    TwoPoint,
    Uniform,
    Window,
    autocorrelation,
)
from tf_lrtraj.theory.checks import averaging_weights

__all__ = [
    "effective_learning_rate",
    "ema_decay_for_factor",
    "stationary_factor",
    "window_length_for_factor",
]


def mode_variance(
    curvatures: np.ndarray, noise_variances: np.ndarray, rate: float, beta: float = 0.0
) -> np.ndarray:
    """Stationary variance per mode, with heavy-ball momentum β (either convention)."""
    pace = rate * curvatures
    spread = (1.0 - beta) * (2.0 * (1.0 + beta) - pace)
    return pace * (1.0 + beta) * noise_variances / spread


def mode_covariance(
    curvatures: np.ndarray, noise: np.ndarray, rate: float, beta: float = 0.0
) -> np.ndarray:
    """Stationary covariance [D, D] of the modes, for the minimisers' covariance [D, D] there."""
    pace = rate * curvatures
    if beta == 0.0:
        total = pace[:, None] + pace - np.outer(pace, pace)
        # Two flat modes never move: 0 is the limit of ever flatter ones.
        return np.outer(pace, pace) * noise / np.where(total == 0.0, 1.0, total)
    # Per pair of modes, X = M_i X M_jᵀ + N: a linear system in the 4 entries of X.
    one = np.empty((curvatures.size, 2, 2))  # of (θ, v), v ← βv - pace θ, θ ← θ + v
    one[:, 0, 0], one[:, 0, 1] = 1.0 - pace, beta
    one[:, 1, 0], one[:, 1, 1] = -pace, beta
    size = curvatures.size
    product = np.einsum("iab,jcd->ijacbd", one, one).reshape(size, size, 4, 4)
    system = np.eye(4) - product
    flat = (pace[:, None] == 0.0) & (pace == 0.0)
    system[flat] = np.eye(4)
    kick = np.outer(pace, pace) * noise
    return np.linalg.solve(system, np.repeat(kick[:, :, None, None], 4, axis=2))[:, :, 0, 0]


def stationary_factor(
    kernel: Kernel | Any, contraction: Any, num_steps: int | None = None
) -> float | np.ndarray:
    r"""Computes the variance of an average over that of the iterate, in the stationary state.

    Args:
        kernel: a kernel, or [n] weights on n consecutive iterates, oldest first.
        contraction: ρ = 1 - λa per step, in [-1, 1], a number or an array of any shape.
        num_steps: updates since step 0, where the run was already stationary. By default the limit
            of long runs. Averages that reach back further as the run goes on (`Uniform`,
            `PowerFunction`, `BEMA`, `HalfLife` without `longest`) need it, because in an endless
            run they have no fixed weights.

    Returns:
        X, a float or an array of the shape of `contraction`; at most 1 for weights that are
        nowhere negative.

    Raises:
        ValueError: for a contraction outside [-1, 1], or such an average without `num_steps` or
            `end`.

    EMA: X = (1-d)/(1+d) · (1+dρ)/(1-dρ).  n consecutive: [n(1-ρ²) - 2ρ(1-ρⁿ)] / [n²(1-ρ)²].
    Two points: (1+ρ^Δ)/2.  Derived in docs/theory/moments.md.

    >>> from tf_lrtraj import kernels
    >>> stationary_factor(kernels.Window(4), [0.0, 0.5, 1.0])
    array([0.25    , 0.515625, 1.      ])
    """
    rho = values.array().check("contraction", contraction)
    if np.any(np.abs(rho) > 1.0):
        allowed = "in [-1, 1], beyond which there is no stationary state"
        raise values.error("contraction", allowed, contraction)
    if num_steps is not None:
        num_steps = values.integer(0).check("num_steps", num_steps)
    factor = _factor(kernel, rho, num_steps)
    return float(factor) if rho.ndim == 0 else factor


def _factor(kernel: Kernel | Any, rho: np.ndarray, num_steps: int | None) -> np.ndarray:
    if isinstance(kernel, Kernel) and kernel.end is not None:
        num_steps = kernel.end if num_steps is None else min(num_steps, kernel.end)
    if isinstance(kernel, Uniform) and num_steps is not None:
        count = 1 + max(num_steps - kernel.start, 0) // kernel.every
        return _uniform_factor(count, rho**kernel.every)
    if isinstance(kernel, Kernel) and num_steps is not None:
        return _sum_factor(kernel.weights(num_steps), rho)
    if isinstance(kernel, Exponential):  # its warm-up has no effect any more
        return _exponential_factor(kernel.decay, rho**kernel.every)
    if isinstance(kernel, HalfLife) and kernel.longest is not None:
        return _exponential_factor(0.5 ** (kernel.every / kernel.longest), rho**kernel.every)
    if isinstance(kernel, TwoPoint):
        return 0.5 * (1.0 + rho**kernel.gap)
    if isinstance(kernel, Window):
        return _uniform_factor(kernel.length, rho**kernel.every)
    if isinstance(kernel, LagKernel):
        return _sum_factor(kernel.weights(kernel.max_lag), rho)
    if isinstance(kernel, Kernel):
        raise ValueError(
            f"`num_steps` must be given for a {type(kernel).__name__} kernel, which reaches back "
            "further as the run goes on. Received: num_steps=None"
        )
    return _sum_factor(averaging_weights(kernel, np.size(kernel) - 1), rho)


def _exponential_factor(decay: float, rho: np.ndarray) -> np.ndarray:
    return (1.0 - decay) / (1.0 + decay) * (1.0 + decay * rho) / (1.0 - decay * rho)


def _sum_factor(weights: np.ndarray, rho: np.ndarray) -> np.ndarray:
    terms = 2.0 * autocorrelation(weights)
    terms[0] *= 0.5
    with np.errstate(under="ignore"):
        return np.polynomial.polynomial.polyval(rho, terms)


def _uniform_factor(count: float, rho: np.ndarray) -> np.ndarray:
    """Mean of `count` consecutive iterates; real counts are fine where ρ is not negative."""
    gap = 1.0 - rho
    factor = np.ones_like(rho)
    # The closed form is 0/0 at ρ = 1.  With R(Δ) = (n-Δ)/n² and ρ^Δ expanded in 1-ρ,
    # X = 1 + (2/n²) Σ_k C(n+1, k+2) (-(1-ρ))^k.
    near = count * gap < 0.1
    term = np.full(np.count_nonzero(near), (count + 1.0) / count)
    for k in range(1, 13):
        term = term * -gap[near] * ((count + 1.0 - (k + 1)) / (k + 2))
        factor[near] += term
    far = ~near
    rest = gap[far]
    with np.errstate(under="ignore"):
        whole = count * (1.0 + rho[far]) * rest - 2.0 * rho[far] * (1.0 - rho[far] ** count)
    factor[far] = whole / (count * rest) ** 2
    return factor


def effective_learning_rate(
    kernel: Kernel | Any,
    learning_rate: Any,
    curvature: Any,
    num_steps: int | None = None,
) -> float | np.ndarray:
    r"""Computes the constant rate whose iterate fluctuates as much as the average does.

    Args:
        kernel, num_steps: as in `stationary_factor`.
        learning_rate: λ of the averaged run, a number or an array.
        curvature: `a`, a number or an array; 0 ≤ a and λa < 2.

    Returns:
        :math:`\lambda_{\text{eff}} = 2X\lambda / (2 - \lambda a + X \lambda a)`, which is below
        :math:`2/a` for every X: it always exists.  Above λ where X > 1, which only negative weights
        can cause.  In the limit of flat modes it is λ, because slow motion is not averaged out.

    Raises:
        ValueError: past the stability limit λa = 2, or as `stationary_factor`.

    Small λa and long memory: 1/λ_eff ≈ 1/λ + a/(1 - decay) for an EMA.
    Derived in docs/theory/moments.md; the question is that of arXiv 2301.02312.

    >>> from tf_lrtraj import kernels
    >>> effective_learning_rate(kernels.TwoPoint(1000), 0.1, [0.0, 0.1, 1.0]).round(4)
    array([0.1   , 0.0501, 0.0513])
    """
    rate = values.array().check("learning_rate", learning_rate)
    a = values.array().check("curvature", curvature)
    if np.any(rate <= 0.0):
        raise values.error("learning_rate", "positive", learning_rate)
    if np.any(a < 0.0):
        raise values.error("curvature", "at least 0", curvature)
    pace = np.asarray(rate * a)
    if np.any(pace >= 2.0):
        raise ValueError(
            "`learning_rate` times `curvature` must be below 2, the stability limit. "
            f"Received: {float(pace.max())!r}"
        )
    factor = np.asarray(stationary_factor(kernel, 1.0 - pace, num_steps))
    effective = 2.0 * factor * rate / (2.0 - pace + factor * pace)
    return float(effective) if pace.ndim == 0 else effective


def ema_decay_for_factor(factor: float, contraction: float) -> float:
    """Computes the EMA decay that keeps the share `factor` of the stationary variance.

    With `stationary_factor` it turns any average into the EMA of equal stationary
    variance at one contraction.  (`theory.ema_decay_for_window` matches mean age instead.)

    Args:
        factor: X in (0, 1].
        contraction: ρ in [0, 1).

    >>> from tf_lrtraj import kernels
    >>> round(ema_decay_for_factor(stationary_factor(kernels.Window(100), 0.5), 0.5), 4)
    0.9799
    """
    share, rho = _check_share(factor, contraction)
    # d² ρ (1-X) + d (1-ρ)(1+X) - (1-X) = 0, its root in [0, 1) without cancellation.
    middle = (1.0 - rho) * (1.0 + share)
    return 2.0 * (1.0 - share) / (middle + math.sqrt(middle**2 + 4.0 * rho * (1.0 - share) ** 2))


def window_length_for_factor(factor: float, contraction: float) -> float:
    """Computes the length (a real number) of the uniform average that keeps `factor`.

    Args:
        factor: X in (0, 1].
        contraction: ρ in [0, 1).

    >>> from tf_lrtraj import kernels
    >>> round(window_length_for_factor(stationary_factor(kernels.Exponential(0.98), 0.9), 0.9), 2)
    107.55
    """
    from scipy.optimize import brentq  # slow to import, and rarely needed

    share, slow = _check_share(factor, contraction)
    rho = np.array(slow)

    def miss(count: float) -> float:
        return float(_uniform_factor(count, rho)) - share

    # X ≤ (1+ρ)/((1-ρ) n) for every n, so the length lies below.
    high = 1.0 + float((1.0 + rho) / (1.0 - rho)) / share
    return float(brentq(miss, 1.0, high, xtol=1e-12, rtol=1e-13)) if share < 1.0 else 1.0


def _check_share(factor: float, contraction: float) -> tuple[float, float]:
    share = values.number(above=0, at_most=1).check("factor", factor)
    return share, values.number(0, below=1).check("contraction", contraction)
