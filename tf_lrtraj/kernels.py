r"""Averaging kernels: how the iterates of a run are weighted.

A kernel is a plain, immutable description of a weighted average of iterates
:math:`\theta_0, \dots, \theta_T` (`T` is the number of updates made so far).
It knows nothing of TensorFlow, of networks or of data, so the callback that
averages a running model, the averages built afterwards from snapshots and the
theory that turns an average into a learning-rate schedule all share one object.

Two families cover every kernel:

* a `RecursiveKernel` needs one running copy of the weights,
  :math:`\phi_t = \phi_{t-1} + \alpha_t (\theta_t - \phi_{t-1})`, and is
  described by its mixing coefficients :math:`\alpha_t` (`mixing`);
* a `LagKernel` is a fixed combination of the last iterates,
  :math:`\phi_t = \sum_i w_i\, \theta_{t - l_i}` (`lags`), and needs a ring
  buffer that reaches back to its largest lag.

Example:

>>> from tf_lrtraj import kernels
>>> kernels.Exponential(decay=0.5).weights(3)
array([0.125, 0.125, 0.25 , 0.5  ])
>>> kernels.Uniform(start=1).weights(3).round(3)
array([0.   , 0.333, 0.333, 0.333])
>>> kernels.from_config({"kernel": "TwoPoint", "gap": 2}).weights(3)
array([0. , 0.5, 0. , 0.5])

Every kernel takes `end`: after that many updates its average stays as it is.

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
    "Custom",
    "Exponential",
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

# Weights given by a user must sum to 1 this closely: loose enough for weights
# that went through float32 or a CSV file, tight enough to catch real mistakes.
SUM_TOLERANCE = 1e-6

# Each update in float32 leaves an error of about 0.3 units in the last place, and an average
# over h updates collects √(h/2) of them, while its own fluctuation falls as 1/√(2h).  For
# iterates that fluctuate by a tenth of their size the errors stay below 0.1 % of the
# average's fluctuation up to about this horizon (a test measures it).
LONG_HORIZON = 2000


def check_weights(weights: Any, length: int | None = None) -> np.ndarray:
    """Returns averaging weights as a float64 vector (a copy).

    Args:
        weights: as they were given, of any sign.
        length: number of weights; any number but none by default.

    Raises:
        ValueError: if they are no vector of finite numbers of that length that sum to 1.
    """
    checked: np.ndarray = values.vector(length).check("weights", weights)
    total = float(checked.sum())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"`weights` must sum to 1. Received: weights that sum to {total!r}")
    return checked


class Arithmetic:
    """What coefficients of kernels are computed with: NumPy, in float64.

    `tf_lrtraj.averaging.coefficients` has the same functions on tensors of a backend, for compiled
    steps: every formula stands once, whatever computes it.
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


ON_HOST = Arithmetic()


def autocorrelation(weights: np.ndarray) -> np.ndarray:
    r"""Computes the autocorrelation :math:`R(\Delta) = \sum_k c_k c_{k+\Delta}` of weights.

    Args:
        weights: [T+1] weights on the iterates.

    Returns:
        [T+1] array, `R(0)` to `R(T)`.  `R(0)` is the variance an average of
        independent iterates keeps.

    >>> autocorrelation(np.array([0.5, 0.0, 0.5]))
    array([0.5 , 0.  , 0.25])
    """
    weights = values.vector().check("weights", weights)
    count = weights.size
    if count <= 2048:
        return np.correlate(weights, weights, mode="full")[count - 1 :]
    # Zero padding to 2n-1 or more keeps the circular correlation from wrapping.
    length = 1 << (2 * count - 2).bit_length()
    spectrum = np.fft.rfft(weights, length)
    return np.fft.irfft(spectrum * spectrum.conj(), length)[:count]


@dataclasses.dataclass(frozen=True, repr=False)
class Kernel(Configurable, abc.ABC):
    """Weights on the iterates of a run; see `RecursiveKernel` and `LagKernel`.

    Every kernel raises ValueError if an argument is out of range, or if the average would end
    before it begins.

    Attributes:
        end: number of updates after which the average stays as it is; None if it never ends.
    """

    family = "kernel"
    left_out = frozenset({"end"})

    end: Annotated[int | None, Parameter(values.integer(0).or_none(), counts_steps=True)] = (
        dataclasses.field(default=None, kw_only=True)
    )

    def weights(self, num_steps: int) -> np.ndarray:
        """Returns the weights on `θ_0 … θ_T` of the average held after `num_steps` = T updates.

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
        """`weights` of a `num_steps` that is checked and not beyond `end`."""

    def _held(self, num_steps: int) -> int:
        """The number of updates whose average is held after `num_steps`."""
        return num_steps if self.end is None else min(num_steps, self.end)

    @property
    @abc.abstractmethod
    def copies(self) -> int:
        """Copies of the weights kept while a run goes on (the memory cost)."""

    @property
    @abc.abstractmethod
    def first_average(self) -> int | None:
        """The least number of updates after which more than one iterate has a weight.

        Before that the average is a single iterate.  None if it always is.

        >>> Uniform(start=500).first_average, TwoPoint(gap=200).first_average
        (501, 200)
        """

    @property
    def is_nonnegative(self) -> bool:
        """Whether no weight is ever negative, so that an average of variances is one."""
        return True

    def autocorrelation(self, num_steps: int) -> np.ndarray:
        """[T+1] autocorrelation of `weights(num_steps)`; see `autocorrelation`."""
        return autocorrelation(self.weights(num_steps))

    @property
    def needs_double(self) -> bool:
        """Whether float32 is too coarse for its running average; see `LONG_HORIZON`."""
        return False

    def memory_bytes(self, num_weights: int, bytes_per_weight: int | None = None) -> int:
        """Bytes held for a model of `num_weights` weights.

        By default a weight takes 4 bytes, or 8 where the average `needs_double`.

        >>> TwoPoint(gap=9).memory_bytes(1_000_000) / 1e6
        40.0
        """
        if bytes_per_weight is None:
            bytes_per_weight = 8 if self.needs_double else 4
        return self.copies * num_weights * bytes_per_weight

    def without_end(self) -> Kernel:
        """The same kernel with no `end`."""
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
    r"""An average in one copy, :math:`\phi_t = \phi_{t-1} + \alpha_t(\theta_t - \phi_{t-1})`."""

    start: int
    every: int

    def mixing(self, steps: Any, arithmetic: Arithmetic = ON_HOST) -> Any:
        """Returns mixing coefficients `α_t` at the given numbers of updates `t` (any shape).

        `α_t` = 1 replaces the average by the iterate (always so up to `start`),
        0 leaves the average as it is (between iterates that count, and after `end`).

        Args:
            steps: numbers of updates.
            arithmetic: what computes them; inside a compiled step that of the backend.
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
        """`α` of the n-th iterate that is averaged after `θ_start`, for `n` of at least 1."""

    @property
    def copies(self) -> int:
        return 1

    @property
    def horizon(self) -> float:
        """How many updates the average reaches back at most; infinite if it grows."""
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
        """The largest lag needed until `end`; iterates older than this are not read."""

    def lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns lags and weights of the average after `step` updates.

        Returns:
            ([K] int64 lags in `0 … min(step, max_lag)`, to which the updates made since
            `end` are added; [K] float64 weights that sum to 1).
        """
        held = self._held(step)
        lags, weights = self._lags(held)
        return lags + (step - held), weights

    @abc.abstractmethod
    def _lags(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`lags` of a `step` that is not beyond `end`."""

    def slots(self, steps: Any, arithmetic: Arithmetic = ON_HOST) -> Any:
        """Returns the places in a ring of `copies` iterates that take `θ_t` (`t` of any shape).

        Args:
            steps: numbers of updates.
            arithmetic: what computes them; inside a compiled step that of the backend.

        Returns:
            integer places in `0 … copies - 1`, and -1 after `end`, when nothing is written: then
            the iterate `lag` updates back stays at `(t - lag) % copies`.

        >>> TwoPoint(gap=2, end=4).slots(np.arange(7))
        array([ 0,  1,  2,  0,  1, -1, -1])
        """
        steps = arithmetic.integers(steps)
        slots = steps % self.copies
        return slots if self.end is None else arithmetic.where(steps <= self.end, slots, -1)

    @property
    def copies(self) -> int:
        return self.max_lag + 1

    def _weights(self, num_steps: int) -> np.ndarray:
        lags, values = self._lags(num_steps)
        weights = np.zeros(num_steps + 1)
        np.add.at(weights, num_steps - lags, values)
        return weights


@dataclasses.dataclass(frozen=True, repr=False)
class Exponential(RecursiveKernel):
    r"""Exponential moving average (EMA).

    The average is :math:`\theta_T` while `T <= start`; after that each `every`-th update
    replaces it by `decay * average + (1 - decay) * θ_T`.

    An EMA remembers the iterate it started from for about `1 / (1 - decay)` updates.
    Two remedies, of which at most one is chosen:

    * `warmup`: the n-th update mixes in at least `warmup / (warmup + n)` of the iterate,
      so that the average reaches back over a fixed share of the run until
      `decay` takes over.  1 is a uniform average that turns into an EMA; 9 is the
      `num_updates` rule of `tf.train.ExponentialMovingAverage`, `min(decay, (1+n)/(10+n))`.
    * `debias`: the weights of an EMA that started from nothing, divided by their sum
      (as in Adam, Kingma & Ba 2015, arXiv 1412.6980): `θ_start` has no weight.

    Args:
        decay: in [0, 1).  The average reaches back about `every / (1 - decay)` updates.
        start: number of updates before averaging begins.
        every: updates from one that is averaged to the next.
        warmup: at least 0; 0 for none.
        debias: see above.
        end: number of updates after which the average stays as it is; None for never.

    Raises:
        ValueError: if an argument is out of range, or both remedies are asked for.

    >>> Exponential(0.9, start=1).weights(3).round(3)
    array([0.  , 0.81, 0.09, 0.1 ])
    >>> Exponential(0.9, warmup=1).weights(3)
    array([0.25, 0.25, 0.25, 0.25])
    >>> Exponential(0.5, debias=True).weights(2).round(3)
    array([0.   , 0.333, 0.667])
    """

    # A plain EMA is described by its decay and start.
    left_out: ClassVar[frozenset[str]] = frozenset({"every", "warmup", "debias", "end"})

    decay: Annotated[float, Parameter(values.number(0, below=1))]
    start: Steps = 0
    every: PositiveSteps = 1
    warmup: Annotated[float, Parameter(values.number(0))] = 0.0
    debias: Annotated[bool, Parameter(values.boolean())] = False

    def _check(self) -> None:
        if self.warmup and self.debias:
            raise ValueError(
                "`warmup` and `debias` both forget the start of a run: choose one. "
                f"Received: warmup={self.warmup!r}, debias=True"
            )
        super()._check()

    @property
    def is_plain(self) -> bool:
        """Whether every update after `start` mixes in the same share of the iterate."""
        return self.every == 1 and not self.warmup and not self.debias

    @property
    def first_average(self) -> int | None:
        # Debiased, the first averaged iterate has all the weight.
        return self.start + (2 if self.debias else 1) * self.every if self.decay else None

    @property
    def horizon(self) -> float:
        return min(1.0 / (1.0 - self.decay), super().horizon)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        share = 1.0 - self.decay
        if self.warmup:
            return arithmetic.maximum(share, self.warmup / (self.warmup + n))
        if self.debias and self.decay:
            # 1 - decay^n without cancellation, which float32 could not afford.
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
class Uniform(RecursiveKernel):
    """Uniform average from `start` on, every `every` updates (SWA, Izmailov et al. 2018).

    The average is `θ_T` while `T <= start`; after that the mean of
    `θ_start, θ_{start+every}, …` up to `T`, or up to `end`.

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
    r"""Average whose weights grow as a power of time (Karras et al. 2024, arXiv 2312.02696).

    It always reaches back over the same share of the run.  The average is
    :math:`\theta_T` while `T <= start`; after that the n-th averaged iterate has a weight
    proportional to :math:`n^{\gamma+1} - (n-1)^{\gamma+1}`, which is their
    :math:`\beta_n = (1 - 1/n)^{\gamma+1}`.

    Args:
        exponent: γ >= 0; 0 weighs all the same, larger ones forget faster.
        start: number of updates before averaging begins; `θ_start` itself has no weight.
        every: updates from one that is averaged to the next.
        end: number of updates after which the average stays as it is; None for never.

    Raises:
        ValueError: if an argument is out of range.

    >>> PowerFunction(exponent=1.0).weights(3).round(3)
    array([0.   , 0.111, 0.333, 0.556])
    >>> round(PowerFunction.from_relative_std(0.1).exponent, 2)
    6.94
    """

    exponent: Annotated[float, Parameter(values.number(0))]
    start: Steps = 0
    every: PositiveSteps = 1

    @property
    def first_average(self) -> int | None:
        return self.start + 2 * self.every

    @classmethod
    def from_relative_std(cls, width: float, start: int = 0, every: int = 1) -> PowerFunction:
        r"""Makes the kernel whose weights have this standard deviation, as a share of the run.

        :math:`\sigma^2 = (\gamma+1)\,(\gamma+2)^{-2}(\gamma+3)^{-1}` (same source, section 3.1).

        Raises:
            ValueError: if `width` is not in (0, 0.2887), the upper end being a uniform average.
        """
        # The widest is that of a uniform average.
        width = values.number(above=0, at_most=12.0**-0.5).check("width", width)
        t = width**-2
        roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
        return cls(max(float(np.max(roots.real)), 0.0), start, every)

    def _share(self, n: Any, arithmetic: Arithmetic) -> Any:
        # 1 - (1 - 1/n)^(γ+1), and 1 for the first one, without cancellation for large n.
        kept = arithmetic.log1p(-1.0 / arithmetic.maximum(n, 2.0))
        return arithmetic.where(n < 2, 1.0, -arithmetic.expm1((self.exponent + 1.0) * kept))

    def _weights(self, num_steps: int) -> np.ndarray:
        weights = np.zeros(num_steps + 1)
        collected = weights[self.start + self.every :: self.every]  # a view
        if collected.size:
            edges = np.arange(collected.size + 1) / collected.size
            collected[:] = np.diff(edges ** (self.exponent + 1.0))
        else:
            weights[min(num_steps, self.start)] = 1.0
        return weights


@dataclasses.dataclass(frozen=True, repr=False)
class Window(LagKernel):
    """Mean of the last `length` iterates spaced by `every`: `θ_T, θ_{T-every}, …`.

    Fewer iterates are averaged while `T` is small.  The ring buffer holds
    `(length - 1) * every + 1` copies of the weights.

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

    It is `θ_T` alone while `T < gap`.  Sandler et al. 2023 (arXiv 2301.02312).

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
    """Any weights on `θ_T, θ_{T-1}, …`, newest first; they may be negative and must sum to 1.

    It is `θ_T` alone until all the iterates it needs exist (as in `TwoPoint`).

    Raises:
        ValueError: if `weights` is not a finite vector that sums to 1.

    >>> Custom([1.5, -0.5]).weights(2)
    array([ 0. , -0.5,  1.5])
    """

    # `weights` is the method every kernel has, so the field has another name.
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
    *(Exponential, Uniform, PowerFunction, Window, TwoPoint, Custom),
)


def from_config(config: Mapping[str, Any]) -> Kernel:
    """Builds a kernel from `{"kernel": name, **arguments}`, as `get_config` writes it.

    Raises:
        ValueError: if the kernel's name or an argument is unknown or missing
            (close names are suggested), or a value is out of range.

    >>> from_config({"kernel": "Exponential", "decay": 0.9}) == Exponential(0.9)
    True
    """
    return KERNELS.from_config(config)
