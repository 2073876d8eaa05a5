"""Kernels whose average is one running copy of the weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.configurable import Parameter, PositiveSteps, Steps
from tf_lrtraj.kernels.kernel_base import ON_HOST, Arithmetic, RecursiveKernel

# Decays `rate · (1 - x^p)` with x from 0 to 1, and the exponents γ = p - 1 of the power functions
# whose weights are their decrements.
DECAYS = {"linear": 0.0, "one_minus_sqrt": -0.5, "one_minus_square": 1.0}


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
