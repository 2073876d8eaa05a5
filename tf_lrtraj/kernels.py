r"""Averaging kernels: the weights of an average of the iterates of a run.

A kernel is an immutable description of a weighted average of iterates
:math:`\theta_0, \dots, \theta_T`, where `T` is the number of updates made so far.  It does not
depend on TensorFlow, networks or data.  The callback that averages during training, the averages
built from snapshots, and the theory of averages and learning-rate schedules all use it.

There are two families of kernels:

* A `RecursiveKernel` needs one running copy of the weights,
  :math:`\phi_t = \phi_{t-1} + \alpha_t (\theta_t - \phi_{t-1})`.  It is described by its mixing
  coefficients :math:`\alpha_t` (`mixing`).  `BEMA` adds a correction to its running average when
  it is read.
* A `LagKernel` is a fixed combination of the last iterates,
  :math:`\phi_t = \sum_i w_i\, \theta_{t - l_i}` (`lags`).  It needs a ring buffer that reaches back
  to its largest lag.

Example:

>>> from tf_lrtraj import kernels
>>> kernels.Exponential(decay=0.5).weights(3)
array([0.125, 0.125, 0.25 , 0.5  ])
>>> kernels.Uniform(start=1).weights(3).round(3)
array([0.   , 0.333, 0.333, 0.333])
>>> kernels.from_config({"kernel": "TwoPoint", "gap": 2}).weights(3)
array([0. , 0.5, 0. , 0.5])

Every kernel takes `end`, the number of updates after which its average does not change.

>>> kernels.Uniform(start=1, end=2).weights(4)
array([0. , 0.5, 0.5, 0. , 0. ])
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.configurable import Configurable, Family, Parameter, PositiveSteps, Steps

__all__ = [
    "BEMA",
    "DECAYS",
    "Custom",
    "Exponential",
    "HalfLife",
    "Kernel",
    "LagKernel",
    "PowerFunction",
    "RecursiveKernel",
    "TwoPoint",
    "Uniform",
    "Window",
    "autocorrelation",
    "check_weights",
    "from_config",
]

# Tolerance of the sum of a user's weights, which must be 1: loose enough for weights from float32
# or a CSV file, tight enough to detect mistakes.
SUM_TOLERANCE = 1e-6

# Each update in float32 has an error of about 0.3 units in the last place.  An average over h
# updates accumulates √(h/2) of these errors, while its own fluctuation falls as 1/√(2h).  For
# iterates that fluctuate by a tenth of their size, the errors stay below 0.1 % of the average's
# fluctuation up to about this horizon (a test measures it).
LONG_HORIZON = 2000

# Decays `rate · (1 - x^p)` with x from 0 to 1, and the exponents γ = p - 1 of the power functions
# whose weights are their decrements.
DECAYS = {"linear": 0.0, "one_minus_sqrt": -0.5, "one_minus_square": 1.0}


def check_weights(weights: Any, length: int | None = None) -> np.ndarray:
    """Checks averaging weights and returns them as a new float64 vector.

    Args:
        weights: the weights, of any sign.
        length: number of weights; by default any number of at least 1.

    Raises:
        ValueError: if `weights` is not a vector of `length` finite numbers that sum to 1.
    """
    checked: np.ndarray = values.vector(length).check("weights", weights)
    total = float(checked.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"`weights` must sum to 1. Received: weights that sum to {total!r}")
    return checked


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


def autocorrelation(weights: np.ndarray) -> np.ndarray:
    r"""Computes the autocorrelation :math:`R(\Delta) = \sum_k c_k c_{k+\Delta}` of weights.

    Args:
        weights: [T+1] weights on the iterates.

    Returns:
        [T+1] array, `R(0)` to `R(T)`.  `R(0)` is the variance of an average of independent
        iterates of variance 1.

    >>> autocorrelation(np.array([0.5, 0.0, 0.5]))
    array([0.5 , 0.  , 0.25])
    """
    weights = values.vector().check("weights", weights)
    count = weights.size
    if count <= 2048:
        return np.correlate(weights, weights, mode="full")[count - 1 :]
    # Zero padding to 2n-1 or more prevents the circular correlation from wrapping.
    length = 1 << (2 * count - 2).bit_length()
    spectrum = np.fft.rfft(weights, length)
    return np.fft.irfft(spectrum * spectrum.conj(), length)[:count]


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

        >>> TwoPoint(gap=2).ring_weights(3)
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

        >>> TwoPoint(gap=2, end=4).slots(np.arange(7))
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

        >>> Uniform(start=500).first_average, TwoPoint(gap=200).first_average
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

        >>> TwoPoint(gap=9).memory_bytes(1_000_000) / 1e6
        40.0
        """
        if bytes_per_weight is not None:
            return self.copies * num_weights * bytes_per_weight
        running = self.copies - self.ring_size
        return num_weights * (4 * self.ring_size + (8 if self.needs_double else 4) * running)

    def without_end(self) -> Kernel:
        """Returns the same kernel without `end`."""
        return from_config({k: v for k, v in self.get_config().items() if k != "end"})

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


@dataclasses.dataclass(frozen=True, repr=False)
class Exponential(RecursiveKernel):
    r"""Exponential moving average (EMA).

    The average is :math:`\theta_T` while `T <= start`.  After that, every `every`-th update
    replaces it by `decay * average + (1 - decay) * θ_T`.

    The first iterate keeps a noticeable weight for about `1 / (1 - decay)` updates.  One of two
    options reduces it:

    * `warmup`: the n-th update mixes in at least `warmup / (warmup + n)` of the iterate, so the
      average reaches back over a fixed share of the run until `decay` takes over.  1 is a uniform
      average that turns into an EMA; 9 is the `num_updates` rule of
      `tf.train.ExponentialMovingAverage`, `min(decay, (1+n)/(10+n))`.
    * `debias`: `θ_start` has no weight, and the other weights are divided by their sum (as in
      Adam, Kingma & Ba 2015, arXiv 1412.6980).

    Args:
        decay: decay per averaged iterate, in [0, 1).  The average reaches back about
            `every / (1 - decay)` updates.
        start: number of updates before averaging begins.
        every: number of updates between averaged iterates.
        warmup: strength of the warm-up, at least 0; 0 for none.
        debias: whether to remove the weight of `θ_start`.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if an argument is out of range, or both `warmup` and `debias` are set.

    >>> Exponential(0.9, start=1).weights(3).round(3)
    array([0.  , 0.81, 0.09, 0.1 ])
    >>> Exponential(0.9, warmup=1).weights(3)
    array([0.25, 0.25, 0.25, 0.25])
    >>> Exponential(0.5, debias=True).weights(2).round(3)
    array([0.   , 0.333, 0.667])
    """

    # The configuration of a plain EMA holds its decay and start only.
    left_out: ClassVar[frozenset[str]] = frozenset({"every", "warmup", "debias", "end"})

    decay: Annotated[float, Parameter(values.number(0, below=1))]
    start: Steps = 0
    every: PositiveSteps = 1
    warmup: Annotated[float, Parameter(values.number(0))] = 0.0
    debias: Annotated[bool, Parameter(values.boolean())] = False

    def _check(self) -> None:
        if self.warmup and self.debias:
            raise ValueError(
                "Only one of `warmup` and `debias` can be set. "
                f"Received: warmup={self.warmup!r}, debias=True"
            )
        super()._check()

    @property
    def is_plain(self) -> bool:
        """Whether every update after `start` uses the same mixing coefficient."""
        return self.every == 1 and not self.warmup and not self.debias

    @property
    def first_average(self) -> int | None:
        # With `debias` the first averaged iterate has all the weight.
        return self.start + (2 if self.debias else 1) * self.every if self.decay else None

    @property
    def horizon(self) -> float:
        return min(1.0 / (1.0 - self.decay), super().horizon)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        share = 1.0 - self.decay
        if self.warmup:
            return arithmetic.maximum(share, self.warmup / (self.warmup + n))
        if self.debias and self.decay:
            # 1 - decay^n without cancellation, which would be too large in float32.
            debiased = -share / arithmetic.expm1(n * math.log(self.decay))
            return arithmetic.where(n < 2, 1.0, debiased)
        return share

    def _weights(self, num_steps: int) -> np.ndarray:
        if not self.is_plain:
            return super()._weights(num_steps)
        weights = np.zeros(num_steps + 1)
        if num_steps <= self.start:
            weights[-1] = 1.0
            return weights
        ages = np.arange(num_steps - self.start, -1, -1)
        weights[self.start :] = (1.0 - self.decay) * self.decay**ages
        weights[self.start] = self.decay ** ages[0]
        return weights


@dataclasses.dataclass(frozen=True, repr=False)
class HalfLife(RecursiveKernel):
    r"""EMA whose half-life grows with time (the ramp-up of Karras et al. 2022, arXiv 2206.00364).

    The average is :math:`\theta_T` while `T <= start`.  After that, the n-th averaged iterate has
    the mixing coefficient :math:`\alpha_n = 1 - 2^{-1/h_n}`.  The half-life is
    :math:`h_n = \text{ratio}\cdot n` until it reaches `longest`.  Until then the average reaches
    back over a fixed share of the run; for large n it behaves as a `PowerFunction` of exponent
    :math:`\ln 2/\text{ratio} - 1`.

    `start=1` gives the rule of the authors' training code, whose average after the first update is
    :math:`\theta_1`.

    Args:
        ratio: half-life as a share of the time since `start`, at least 1e-6.
        longest: upper limit of the half-life in updates, at least 1e-6 and not necessarily an
            integer; None for no limit.
        start: number of updates before averaging begins.
        every: number of updates between averaged iterates.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if an argument is out of range.

    >>> HalfLife(ratio=0.5).weights(3).round(3)
    array([0.079, 0.236, 0.315, 0.37 ])
    >>> HalfLife(ratio=0.5, longest=1).weights(3).round(3)
    array([0.062, 0.188, 0.25 , 0.5  ])
    """

    ratio: Annotated[float, Parameter(values.number(1e-6))]
    longest: Annotated[
        float | None, Parameter(values.number(1e-6).or_none(), counts_steps=True)
    ] = None
    start: Steps = 0
    every: PositiveSteps = 1

    @property
    def first_average(self) -> int | None:
        # In float64, α is 1 for half-lives of up to 1/54.
        if float(self._share(math.inf, ON_HOST)) == 1.0:
            return None
        n = max(1, math.floor(1.0 / (54.0 * self.ratio)))
        while float(self._share(n, ON_HOST)) == 1.0:
            n += 1
        return self.start + n * self.every

    @property
    def horizon(self) -> float:
        last = math.inf if self.end is None else max((self.end - self.start) // self.every, 1)
        share = float(self._share(last, ON_HOST))
        return min(1.0 / share if share else math.inf, super().horizon)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        half_life = self.ratio * n
        if self.longest is not None:
            half_life = arithmetic.minimum(half_life, self.longest / self.every)
        return -arithmetic.expm1(-math.log(2.0) / half_life)


@dataclasses.dataclass(frozen=True, repr=False)
class BEMA(RecursiveKernel):
    r"""Bias-corrected EMA (Block et al. 2025, "EMA Without the Lag", arXiv 2508.00180).

    An EMA lags behind the iterates.  A share of their displacement since `start` is added to
    compensate for it.  The average is :math:`\theta_T` while `T <= start`.  After that, with
    :math:`n = T - start`,

    .. math:: E_T = E_{T-1} + \beta_n (\theta_T - E_{T-1}), \qquad
              \phi_T = E_T + \alpha_n (\theta_T - \theta_{start}),

    :math:`\beta_n = (\text{lag} + \text{multiplier}\cdot n)^{-\text{ema\_power}}` and
    :math:`\alpha_n = (\text{lag} + \text{multiplier}\cdot n)^{-\text{bias\_power}}`; the
    defaults are those of the authors.  Three copies of the weights are kept: :math:`E_T`,
    :math:`\theta_{start}` and :math:`\theta_T`.  The weight on :math:`\theta_{start}` becomes
    negative after a few updates.  (`Exponential(debias=True)` is a different correction, that of
    Adam.)

    Args:
        ema_power: exponent of :math:`\beta_n`, in [0, 10]; at 0 the EMA equals the iterate.
        bias_power: exponent of :math:`\alpha_n`, in [0, 10]; the correction decays faster for
            larger values.
        lag: offset of the time, in [0, 1e12]; larger values make the average longer at first.
        multiplier: factor of the number of updates since `start`, in [0, 1e12].
        start: number of updates before averaging begins.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if an argument is out of range, or `lag + multiplier` is below 1, where a
            mixing coefficient would exceed 1.

    >>> BEMA().weights(3).round(3)
    array([-0.24 ,  0.155,  0.209,  0.876])
    """

    ema_power: Annotated[float, Parameter(values.number(0, 10))] = 0.5
    bias_power: Annotated[float, Parameter(values.number(0, 10))] = 0.2
    lag: Annotated[float, Parameter(values.number(0, 1e12))] = 10.0
    multiplier: Annotated[float, Parameter(values.number(0, 1e12))] = 1.0
    start: Steps = 0

    def _check(self) -> None:
        if self.lag + self.multiplier < 1.0:
            raise values.error("lag", f"at least 1 - multiplier, {1 - self.multiplier}", self.lag)
        super()._check()

    @property
    def first_average(self) -> int | None:
        # After one update the weight of θ_start is what both shares leave, which may be 0.
        left = 1.0 - float(self._share(1.0, ON_HOST)) - float(self.correction(self.start + 1))
        return self.start + (1 if left else 2)

    @property
    def is_nonnegative(self) -> bool:
        return False

    @property
    def horizon(self) -> float:
        # Without growth the last share equals the first.
        last = 1.0 if not self.multiplier else math.inf
        last = last if self.end is None else max(float(self.end - self.start), 1.0)
        share = float(self._share(last, ON_HOST))
        return min(1.0 / share if share else math.inf, super().horizon)

    @property
    def ring_size(self) -> int:
        return 2

    def ring_weights(self, step: int) -> np.ndarray:
        return float(self.correction(step)) * np.array([-1.0, 1.0])

    def _slots(self, steps: Any, arithmetic: Arithmetic) -> Any:
        # Place 0 stores θ_start, and place 1 the newest iterate.
        return arithmetic.minimum(arithmetic.maximum(steps - self.start, 0), 1)

    def correction(self, steps: Any) -> Any:
        steps = np.asarray(steps, np.int64)
        if self.end is not None:
            steps = np.minimum(steps, self.end)
        after = steps - self.start
        size = self.lag + self.multiplier * np.maximum(after, 1.0)
        return np.where(after > 0, np.power(size, -self.bias_power), 0.0)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        return arithmetic.power(self.lag + self.multiplier * n, -self.ema_power)

    def _weights(self, num_steps: int) -> np.ndarray:
        weights = super()._weights(num_steps)
        correction = float(self.correction(num_steps))
        weights[-1] += correction
        weights[min(self.start, num_steps)] -= correction
        return weights


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(RecursiveKernel):
    """Uniform average from `start` on (SWA, Izmailov et al. 2018, arXiv 1803.05407).

    The average is `θ_T` while `T <= start`.  After that it is the mean of
    `θ_start, θ_{start+every}, …` up to `T`, or up to `end`.

    Args:
        start: number of updates before averaging begins.
        every: number of updates between averaged iterates.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if `start` is negative, `every` is below 1, or `end` comes before an average.

    >>> Uniform(start=2, every=2).weights(5)
    array([0. , 0. , 0.5, 0. , 0.5, 0. ])
    """

    start: Steps = 0
    every: PositiveSteps = 1

    @property
    def first_average(self) -> int | None:
        return self.start + self.every

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        return 1.0 / (1.0 + n)

    def _weights(self, num_steps: int) -> np.ndarray:
        weights = np.zeros(num_steps + 1)
        if num_steps <= self.start:
            weights[-1] = 1.0
        else:
            collected = weights[self.start :: self.every]  # a view
            collected[:] = 1.0 / collected.size
        return weights


@dataclasses.dataclass(frozen=True, repr=False)
class PowerFunction(RecursiveKernel):
    r"""Average whose weights are a power of time (Karras et al. 2024, arXiv 2312.02696).

    The average always reaches back over the same share of the run.  It is :math:`\theta_T` while
    `T <= start`.  After that, the n-th averaged iterate has a weight proportional to
    :math:`n^{\gamma+1} - (n-1)^{\gamma+1}`, which corresponds to
    :math:`\beta_n = (1 - 1/n)^{\gamma+1}` in the source.  After any number of updates the average
    corresponds to a decay of the rate by the factor :math:`1 - x^{\gamma+1}`, where x grows from 0
    at `start` to 1 at the end (`from_decay`).

    Args:
        exponent: γ > -1.  0 gives equal weights, larger values discount early iterates faster,
            and negative values give early iterates more weight.
        start: number of updates before averaging begins; `θ_start` itself has no weight.
        every: number of updates between averaged iterates.
        end: number of updates after which the average does not change; None for no end.

    Raises:
        ValueError: if an argument is out of range.

    >>> PowerFunction(exponent=1.0).weights(3).round(3)
    array([0.   , 0.111, 0.333, 0.556])
    >>> round(PowerFunction.from_relative_std(0.1).exponent, 2)
    6.94
    >>> PowerFunction.from_decay("one_minus_sqrt", start=1).weights(5).round(3)
    array([0.   , 0.   , 0.5  , 0.207, 0.159, 0.134])
    """

    exponent: Annotated[float, Parameter(values.number(above=-1))]
    start: Steps = 0
    every: PositiveSteps = 1

    @property
    def first_average(self) -> int | None:
        return self.start + 2 * self.every

    @classmethod
    def from_relative_std(cls, width: float, start: int = 0, every: int = 1) -> PowerFunction:
        r"""Makes the kernel whose weights have a given standard deviation.

        :math:`\sigma^2 = (\gamma+1)\,(\gamma+2)^{-2}(\gamma+3)^{-1}` (same source, section 3.1).
        A uniform average has 0.2887.  The maximum is 0.3003, at γ = -0.382.  Smaller exponents
        give the same widths again, with weights concentrated at `start`; this method does not
        return them.

        Args:
            width: standard deviation of the weights, as a share of the run.
            start, every: as in the constructor.

        Raises:
            ValueError: if `width` is not in (0, 0.3003].
        """
        # dσ²/dγ = 0 where (γ+1)² + (γ+1) = 1.
        widest = 0.5 * (math.sqrt(5.0) - 3.0)
        top = math.sqrt(widest + 1.0) / (widest + 2.0) / math.sqrt(widest + 3.0)
        width = values.number(above=0, at_most=top).check("width", width)
        t = width**-2
        roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
        return cls(max(float(np.max(roots.real)), widest), start, every)

    @classmethod
    def from_decay(cls, shape: str, start: int = 0, *, end: int | None = None) -> PowerFunction:
        r"""Makes the kernel whose average corresponds to a decay of the learning rate to 0.

        Assume curvature 0 (frozen gradients) and a constant rate λ.  For every T, the average after
        T updates is the last iterate of a run whose rate falls from λ at step `start` to 0 at step
        T, so one run contains the decays of all lengths.  Derived in docs/theory/equivalence.md,
        section 4.

        Args:
            shape: the factor of the rate, for x from 0 to 1: "linear", 1 - x; "one_minus_sqrt",
                1 - √x; or "one_minus_square", 1 - x².  (A cosine is not a power function;
                `theory.weights_from_schedule` returns its weights.)
            start: number of updates after which the rate begins to fall.
            end: number of updates after which the average does not change; None for no end.

        Raises:
            ValueError: if the shape is unknown, or as in the constructor.

        >>> from tf_lrtraj import rates, theory
        >>> kernel = PowerFunction.from_decay("one_minus_sqrt", start=3)
        >>> theory.schedule_from_weights(kernel.weights(8), base=0.4).round(3)
        array([0.4  , 0.4  , 0.4  , 0.4  , 0.221, 0.147, 0.09 , 0.042])
        >>> rates.as_array(rates.OneMinusSqrt(0.4, hold=3, steps=5), 8).round(3)
        array([0.4  , 0.4  , 0.4  , 0.4  , 0.221, 0.147, 0.09 , 0.042])
        """
        return cls(DECAYS[values.one_of(DECAYS).check("shape", shape)], start, end=end)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        # 1 - (1 - 1/n)^(γ+1), and 1 for the first one, without cancellation for large n.
        kept = arithmetic.log1p(-1.0 / arithmetic.maximum(n, 2.0))
        return arithmetic.where(n < 2, 1.0, -arithmetic.expm1((self.exponent + 1.0) * kept))

    def _weights(self, num_steps: int) -> np.ndarray:
        weights = np.zeros(num_steps + 1)
        collected = weights[self.start + self.every :: self.every]  # a view
        if collected.size:
            n = np.arange(1.0, collected.size + 1)
            # (n/N)^(γ+1) - ((n-1)/N)^(γ+1), without cancellation.
            collected[:] = (n / n.size) ** (self.exponent + 1.0) * self._share(n, ON_HOST)
        else:
            weights[min(num_steps, self.start)] = 1.0
        return weights


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


KERNELS: Family[Kernel] = Family(
    "kernel",
    "Exponential(decay=0.99)",
    *(Exponential, HalfLife, BEMA, Uniform, PowerFunction, Window, TwoPoint, Custom),
)


def from_config(config: Mapping[str, Any]) -> Kernel:
    """Builds a kernel from `{"kernel": name, **arguments}`, as `get_config` returns it.

    Raises:
        ValueError: if the kernel's name or an argument is unknown or missing
            (close names are suggested), or a value is out of range.

    >>> from_config({"kernel": "Exponential", "decay": 0.9}) == Exponential(0.9)
    True
    """
    return KERNELS.from_config(config)
