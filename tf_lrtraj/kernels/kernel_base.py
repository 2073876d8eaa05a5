"""Base classes of kernels: those with a running average, and those with a ring of iterates."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.configurable import Configurable, Parameter
from tf_lrtraj.kernels.weight_vectors import autocorrelation

# Each update in float32 has an error of about 0.3 units in the last place.  An average over h
# updates accumulates √(h/2) of these errors, while its own fluctuation falls as 1/√(2h).  For
# iterates that fluctuate by a tenth of their size, the errors stay below 0.1 % of the average's
# fluctuation up to about this horizon (a test measures it).
LONG_HORIZON = 2000


class Arithmetic:
    """Functions that compute coefficients of kernels, here with NumPy in float64.

    `tf_lrtraj.averaging.coefficients` implements them on tensors of a backend, so that compiled
    steps use the same formulas.
    """

    def integers(self, steps: Any) -> Any:
        return np.asarray(steps, dtype=np.int64)

    def numbers(self, values: Any) -> Any:
        return np.asarray(values, dtype=np.float64)

    where: Callable[..., Any] = staticmethod(np.where)
    maximum: Callable[..., Any] = staticmethod(np.maximum)
    minimum: Callable[..., Any] = staticmethod(np.minimum)
    log1p: Callable[..., Any] = staticmethod(np.log1p)
    expm1: Callable[..., Any] = staticmethod(np.expm1)
    power: Callable[..., Any] = staticmethod(np.power)


ON_HOST = Arithmetic()


@dataclasses.dataclass(frozen=True, repr=False)
class Kernel(Configurable, abc.ABC):
    """Base class of kernels; see `RecursiveKernel` and `LagKernel`.

    Every kernel raises ValueError if an argument is out of range, or if the average would end
    before it begins.

    Attributes:
        end: number of updates after which the average does not change; None for no end.
    """

    family = "kernel"
    left_out = frozenset({"end"})

    end: Annotated[int | None, Parameter(values.integer(0).or_none(), counts_steps=True)] = (
        dataclasses.field(default=None, kw_only=True)
    )

    def weights(self, num_steps: int) -> np.ndarray:
        """Returns the weights on `θ_0 … θ_T` of the average after `num_steps` = T updates.

        Returns:
            [T+1] float64 array that sums to 1; 0 on iterates after `end`.

        Raises:
            ValueError: if `num_steps` is not an integer of at least 0.
        """
        num_steps = values.integer(0).check("num_steps", num_steps)
        held = self._held(num_steps)
        return np.pad(self._weights(held), (0, num_steps - held))

    @abc.abstractmethod
    def _weights(self, num_steps: int) -> np.ndarray:
        """Computes `weights`; `num_steps` is checked and at most `end`."""

    def _held(self, num_steps: int) -> int:
        """Returns the number of updates whose average is kept after `num_steps`."""
        return num_steps if self.end is None else min(num_steps, self.end)

    @property
    @abc.abstractmethod
    def copies(self) -> int:
        """Number of copies of the weights kept during a run (the memory cost)."""

    @property
    def ring_size(self) -> int:
        """Number of `copies` that are iterates; the remaining one is a running average."""
        return 0

    def ring_weights(self, step: int) -> np.ndarray:
        """Returns the [ring_size] weights of the kept iterates, by place, after `step` updates.

        The weighted sum is added to the running average.  Without a running average it is the
        average.

        >>> from tf_lrtraj import kernels
        >>> kernels.TwoPoint(gap=2).ring_weights(3)
        array([0.5, 0.5, 0. ])
        """
        return np.zeros(0)

    def slots(self, steps: Any, arithmetic: Arithmetic = ON_HOST) -> Any:
        """Returns the places in the ring that store `θ_t` (`t` of any shape).

        Args:
            steps: numbers of updates.
            arithmetic: the arithmetic; that of the backend inside a compiled step.

        Returns:
            Integer places in `0 … ring_size - 1`; -1 if nothing is written, as after `end`.

        >>> from tf_lrtraj import kernels
        >>> kernels.TwoPoint(gap=2, end=4).slots(np.arange(7))
        array([ 0,  1,  2,  0,  1, -1, -1])
        """
        steps = arithmetic.integers(steps)
        slots = self._slots(steps, arithmetic) if self.ring_size else 0 * steps - 1
        return slots if self.end is None else arithmetic.where(steps <= self.end, slots, -1)

    def _slots(self, steps: Any, arithmetic: Arithmetic) -> Any:
        """Computes `slots` without `end`; the iterate `lag` updates ago is `lag` places back."""
        return steps % self.ring_size

    @property
    @abc.abstractmethod
    def first_average(self) -> int | None:
        """The smallest number of updates after which more than one iterate has a weight.

        Before that, the average is a single iterate.  None if it always is.

        >>> from tf_lrtraj import kernels
        >>> kernels.Uniform(start=500).first_average, kernels.TwoPoint(gap=200).first_average
        (501, 200)
        """

    @property
    def is_nonnegative(self) -> bool:
        """Whether no weight can be negative, so that averaged variances are not negative."""
        return True

    def autocorrelation(self, num_steps: int) -> np.ndarray:
        """Returns the [T+1] autocorrelation of `weights(num_steps)`; see `autocorrelation`."""
        return autocorrelation(self.weights(num_steps))

    @property
    def needs_double(self) -> bool:
        """Whether float32 is too coarse for the running average; see `LONG_HORIZON`."""
        return False

    def memory_bytes(self, num_weights: int, bytes_per_weight: int | None = None) -> int:
        """Returns the bytes of the average for a model of `num_weights` weights.

        By default a weight takes 4 bytes, or 8 in a running average that `needs_double`.

        >>> from tf_lrtraj import kernels
        >>> kernels.TwoPoint(gap=9).memory_bytes(1_000_000) / 1e6
        40.0
        """
        if bytes_per_weight is not None:
            return self.copies * num_weights * bytes_per_weight
        running = self.copies - self.ring_size
        return num_weights * (4 * self.ring_size + (8 if self.needs_double else 4) * running)

    def without_end(self) -> Kernel:
        """Returns the same kernel without `end`."""
        given = self.get_config()
        return type(self)(**{k: v for k, v in given.items() if k not in (self.family, "end")})

    def __repr__(self) -> str:
        arguments = [f"{k}={v!r}" for k, v in self.get_config().items() if k != self.family]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def _check(self) -> None:
        begin = self.first_average
        if self.end is not None and begin is not None and self.end < begin:
            allowed = (
                f"at least {begin}, the number of updates after which the average begins, or None"
            )
            raise values.error("end", allowed, self.end)


class RecursiveKernel(Kernel):
    r"""A running average, :math:`\phi_t = \phi_{t-1} + \alpha_t(\theta_t - \phi_{t-1})`."""

    start: int
    every: int = 1

    def mixing(self, steps: Any, arithmetic: Arithmetic = ON_HOST) -> Any:
        """Returns mixing coefficients `α_t` at the given numbers of updates `t` (any shape).

        `α_t` = 1 replaces the average by the iterate, as at all updates up to `start`.  `α_t` = 0
        does not change the average, as between averaged iterates and after `end`.

        Args:
            steps: numbers of updates.
            arithmetic: the arithmetic; that of the backend inside a compiled step.
        """
        steps = arithmetic.integers(steps)
        after = steps - self.start
        averaged = (after <= 0) | (after % self.every == 0)
        if self.end is not None:
            averaged = averaged & (steps <= self.end)
        count = after // self.every
        share = self._share(arithmetic.numbers(arithmetic.maximum(count, 1)), arithmetic)
        share = arithmetic.where(count < 1, 1.0, share)
        return arithmetic.where(averaged, share, 0.0)

    @abc.abstractmethod
    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        """Returns `α` of the n-th averaged iterate after `θ_start`, for `n` of at least 1."""

    def correction(self, steps: Any) -> Any:
        """Returns the factor of the added correction `θ_t - θ_start` (`t` of any shape).

        See `BEMA`; 0 for every other kernel.
        """
        return np.zeros(np.shape(steps))

    @property
    def copies(self) -> int:
        return 1 + self.ring_size

    @property
    def horizon(self) -> float:
        """The largest number of updates that the average reaches back; infinite if it grows."""
        return math.inf if self.end is None else float(self.end)

    @property
    def needs_double(self) -> bool:
        return self.horizon > LONG_HORIZON

    def _weights(self, num_steps: int) -> np.ndarray:
        mixing = self.mixing(np.arange(num_steps + 1))
        # c_k = α_k Π_{i>k} (1 - α_i)
        survival = np.ones(num_steps + 1)
        survival[:-1] = np.cumprod(1.0 - mixing[:0:-1])[::-1]
        return mixing * survival


class LagKernel(Kernel):
    r"""A fixed combination of the last iterates, :math:`\phi_t = \sum_i w_i \theta_{t-l_i}`."""

    @property
    @abc.abstractmethod
    def max_lag(self) -> int:
        """The largest lag needed up to `end`; older iterates are not read."""

    def lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns lags and weights of the average after `step` updates.

        Returns:
            ([K] int64 lags in `0 … min(step, max_lag)`, plus the updates made since `end`;
            [K] float64 weights that sum to 1).
        """
        held = self._held(step)
        lags, weights = self._lags(held)
        return lags + (step - held), weights

    @abc.abstractmethod
    def _lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Computes `lags`; `step` is at most `end`."""

    @property
    def ring_size(self) -> int:
        return self.max_lag + 1

    @property
    def copies(self) -> int:
        return self.ring_size

    def ring_weights(self, step: int) -> np.ndarray:
        lags, weights = self.lags(step)
        placed = np.zeros(self.ring_size)
        np.add.at(placed, (step - lags) % self.ring_size, weights)
        return placed

    def _weights(self, num_steps: int) -> np.ndarray:
        lags, values = self._lags(num_steps)
        weights = np.zeros(num_steps + 1)
        np.add.at(weights, num_steps - lags, values)
        return weights
