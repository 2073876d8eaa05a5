"""Checks of arguments that occur only in theory; all others are rules of `tf_lrtraj.values`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import Kernel, check_weights

__all__ = ["averaging_weights", "covariance", "momentum", "stable_rate"]

CONVENTIONS = ("keras", "pytorch")

# Symmetric matrices may be off by rounding, and rounding may push a zero eigenvalue below zero.
_MATRIX_TOLERANCE = 1e-10


def averaging_weights(kernel: Kernel | Any, num_steps: int) -> np.ndarray:
    """Returns the [T+1] weights of a kernel after `num_steps` = T updates, or checked weights."""
    if isinstance(kernel, Kernel):
        return kernel.weights(num_steps)
    return check_weights(kernel, num_steps + 1)


def covariance(name: str, value: Any, size: int | None = None) -> np.ndarray:
    """Returns `value` as a non-negative vector [D] or a positive semi-definite matrix [D, D].

    Args:
        name: the name of the argument, for the error.
        value: the value received.
        size: D; any by default.
    """
    array: np.ndarray = values.array().check(name, value)
    side = size or (array.shape[0] if array.size and array.ndim else 1)
    if array.shape not in ((side,), (side, side)):
        d = "D" if size is None else size
        raise ValueError(
            f"`{name}` must have shape [{d}] or [{d}, {d}]. Received: shape={array.shape}"
        )
    if array.ndim == 1:
        checked: np.ndarray = values.vector(at_least=0).check(name, array)
        return checked
    scale = np.abs(array).max(initial=0.0)
    asymmetry = np.abs(array - array.T).max(initial=0.0)
    if asymmetry > _MATRIX_TOLERANCE * scale:
        raise ValueError(f"`{name}` must be symmetric. Received: asymmetry {float(asymmetry)!r}")
    array = 0.5 * (array + array.T)
    smallest = np.linalg.eigvalsh(array)[0]
    if smallest < -_MATRIX_TOLERANCE * scale:
        raise ValueError(
            f"`{name}` must be positive semi-definite. Received: eigenvalue {float(smallest)!r}"
        )
    return array


def momentum(value: Any, convention: str) -> float:
    """Returns `value` as a momentum coefficient in [0, 1); checks the convention too."""
    values.one_of(CONVENTIONS).check("convention", convention)
    return float(values.number(0, below=1).check("momentum", value))


def stable_rate(value: Any, largest_curvature: float, beta: float = 0.0) -> float:
    """Returns `value` as a rate with a stationary state: 0 < λ a_max < 2 (1 + β)."""
    rate = float(values.number(above=0).check("learning_rate", value))
    limit = 2.0 * (1.0 + beta)
    if not rate * largest_curvature < limit:
        allowed = f"below the stability limit {float(limit / largest_curvature)!r}"
        raise values.error("learning_rate", allowed, value)
    return rate
