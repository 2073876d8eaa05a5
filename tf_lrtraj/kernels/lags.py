"""Kernels whose average is a fixed combination of the last iterates."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np

from tf_lrtraj.configurable import Parameter, PositiveSteps
from tf_lrtraj.kernels.kernel_base import LagKernel
from tf_lrtraj.kernels.weight_vectors import check_weights


@dataclasses.dataclass(frozen=True, repr=False)
class Window(LagKernel):
    """Mean of the last `length` iterates spaced by `every`: `θ_T, θ_{T-every}, …`.

    Fewer iterates are averaged while `T` is small.  The ring buffer holds
    `(length - 1) * every + 1` copies of the weights.

    Args:
        length: number of averaged iterates.
        every: number of updates between averaged iterates.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if `length` or `every` is below 1.

    >>> Window(length=2, every=2).weights(3)
    array([0. , 0.5, 0. , 0.5])
    """

    length: PositiveSteps
    every: PositiveSteps = 1

    @property
    def first_average(self) -> int | None:
        return self.every if self.length > 1 else None

    @property
    def max_lag(self) -> int:
        return (self.length - 1) * self.every

    def _lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(self.length, step // self.every + 1)
        return self.every * np.arange(count), np.full(count, 1.0 / count)


@dataclasses.dataclass(frozen=True, repr=False)
class TwoPoint(LagKernel):
    """Mean of two iterates `gap` updates apart: `(θ_T + θ_{T-gap}) / 2`.

    It is `θ_T` while `T < gap`.  Source: Sandler et al. 2023 (arXiv 2301.02312).

    Args:
        gap: number of updates between the two iterates.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if `gap` is below 1.

    >>> TwoPoint(gap=2).weights(1), TwoPoint(gap=2).weights(2)
    (array([0., 1.]), array([0.5, 0. , 0.5]))
    """

    gap: PositiveSteps

    @property
    def first_average(self) -> int | None:
        return self.gap

    @property
    def max_lag(self) -> int:
        return self.gap

    def _lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        if step < self.gap:
            return np.zeros(1, dtype=np.int64), np.ones(1)
        return np.array([0, self.gap]), np.array([0.5, 0.5])


def _coefficients(weights: Any) -> tuple[float, ...]:
    return tuple(check_weights(weights).tolist())


@dataclasses.dataclass(frozen=True, repr=False)
class Custom(LagKernel):
    """Average with given weights on `θ_T, θ_{T-1}, …`.

    It is `θ_T` until all required iterates exist (as in `TwoPoint`).

    Args:
        weights: weights that sum to 1, newest iterate first; they may be negative.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if `weights` is not a finite vector that sums to 1.

    >>> Custom([1.5, -0.5]).weights(2)
    array([ 0. , -0.5,  1.5])
    """

    # Every kernel has a method `weights`, so the field has another name.
    coefficients: Annotated[tuple[float, ...], Parameter(_coefficients, name="weights")]

    def __init__(self, weights: Any, *, end: int | None = None) -> None:
        object.__setattr__(self, "coefficients", weights)
        object.__setattr__(self, "end", end)
        self.__post_init__()

    @property
    def first_average(self) -> int | None:
        return self.max_lag if np.count_nonzero(self.coefficients) > 1 else None

    @property
    def is_nonnegative(self) -> bool:
        return min(self.coefficients) >= 0.0

    @property
    def max_lag(self) -> int:
        nonzero = np.flatnonzero(self.coefficients)
        return int(nonzero[-1])

    def _lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        if step < self.max_lag:
            return np.zeros(1, dtype=np.int64), np.ones(1)
        lags = np.flatnonzero(self.coefficients)
        return lags, np.asarray(self.coefficients)[lags]
