"""Argument checks shared by the theory modules: each error names the value received."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

CONVENTIONS = ("keras", "pytorch")

# Symmetric matrices may be off by rounding, and rounding may push a zero eigenvalue below zero.
_MATRIX_TOLERANCE = 1e-10


def finite_array(name: str, value: Any) -> np.ndarray:
    """`value` as a float64 array of finite numbers (a copy)."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`{name}` must be an array of numbers. Received: {value!r}") from None
    if not np.all(np.isfinite(array)):
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(
            f"`{name}` must be finite. Received: {float(array[tuple(where)])!r} at index {where}"
        )
    return array


def vector(name: str, value: Any, length: int | None = None) -> np.ndarray:
    """`value` as a non-empty (or, with `length`, exactly so long) finite vector."""
    array = finite_array(name, value)
    if array.ndim != 1 or (array.size == 0 if length is None else array.size != length):
        wanted = "a non-empty vector" if length is None else f"of shape [{length}]"
        raise ValueError(f"`{name}` must be {wanted}. Received: shape={array.shape}")
    return array


def nonnegative_vector(name: str, value: Any, length: int | None = None) -> np.ndarray:
    """`vector` whose entries are not negative."""
    array = vector(name, value, length)
    if np.any(array < 0.0):
        raise ValueError(f"`{name}` must not be negative. Received: {float(array.min())!r}")
    return array


def covariance(name: str, value: Any, size: int) -> np.ndarray:
    """`value` as a non-negative vector [D] or a symmetric positive semi-definite matrix [D, D]."""
    array = finite_array(name, value)
    if array.ndim == 1:
        return nonnegative_vector(name, array, size)
    if array.shape != (size, size):
        raise ValueError(
            f"`{name}` must have shape [{size}] or [{size}, {size}]. Received: shape={array.shape}"
        )
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


def learning_rates(value: Any) -> np.ndarray:
    """[T] finite learning rates; they may be negative (equivalent schedules can be), T may be 0."""
    array = finite_array("learning_rates", value)
    if array.ndim != 1:
        raise ValueError(
            f"`learning_rates` must have shape [T], one per update. Received: shape={array.shape}"
        )
    return array


def number(name: str, value: Any, low: float, high: float, allowed: str) -> float:
    """`value` as a float strictly between `low` and `high`; `allowed` words the range."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not low < result < high:
        raise ValueError(f"`{name}` must be {allowed}. Received: {name}={value!r}")
    return result


def momentum(value: Any, convention: str) -> float:
    """`value` as a momentum coefficient in [0, 1) under a known convention."""
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise ValueError(
            f"`convention` must be one of {list(CONVENTIONS)}. Received: convention={convention!r}"
        )
    try:
        beta = float(value)
    except (TypeError, ValueError, OverflowError):
        beta = math.nan
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"`momentum` must lie in [0, 1). Received: momentum={value!r}")
    return beta


def integer(name: str, value: Any, minimum: int) -> int:
    """`value` as an int of at least `minimum`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        result = minimum - 1
    if result < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. Received: {name}={value!r}"
        )
    return result


def stable_rate(value: Any, largest_curvature: float, beta: float = 0.0) -> float:
    """`value` as a learning rate with a stationary state: 0 < λ a_max < 2 (1 + β)."""
    rate = number("learning_rate", value, 0.0, math.inf, "a positive finite number")
    limit = 2.0 * (1.0 + beta)
    if not rate * largest_curvature < limit:
        raise ValueError(
            "`learning_rate` must lie below the stability limit "
            f"{float(limit / largest_curvature)!r}. Received: learning_rate={value!r}"
        )
    return rate
