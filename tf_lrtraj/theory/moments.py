r"""Exact first and second moments of SGD and of its averages, under any schedule.

The model: one quadratic loss per batch with a shared curvature, in its eigenbasis, so that mode `i`
follows θ ← θ - λ_t a_i (θ - ξ_t), Var ξ = σ_i². All moments are computed in one pass along the run;
only a few numbers per update are kept, independent of the number of modes. docs/theory/moments.md
proves the recursions.

`loss_curves` gives expected excess losses at every step, of the iterate and of
any number of averages in the same pass; `average_moments` gives mean and variance per mode
at the end of the run.

>>> import numpy as np
>>> from tf_lrtraj import kernels
>>> curves = loss_curves([1.0, 0.1], [1.0, 1.0], [0.5] * 200, [3.0, 3.0],
...                      {"ema": kernels.Exponential(0.95)})
>>> float(curves["raw"][-1].round(4)), float(curves["ema"][-1].round(4))
(0.1679, 0.0126)
>>> average_moments(kernels.TwoPoint(9), [1.0], [1.0], [0.5] * 99, [3.0]).variance.round(4)
array([0.167])
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import BEMA, Kernel, LagKernel, RecursiveKernel, Window
from tf_lrtraj.theory import checks
from tf_lrtraj.theory.dynamics import Dynamics, MomentumDynamics
from tf_lrtraj.theory.running_losses import (
    DenseStream,
    FixedStream,
    PairStream,
    RecursiveStream,
    Stream,
    WindowStream,
)

__all__ = ["Moments", "average_moments", "loss_curves"]

RAW = "raw"  # the iterate itself, beside the averages' names

# Modes per block. Small blocks are dominated by calls, large ones by memory access: the arrays of
# one step should fit the second-level cache, the ring buffers the third (32 MB).
_LARGEST_BLOCK = 10_000
_SMALLEST_BLOCK = 5_000
_RING_NUMBERS = 4_000_000

MakeDynamics = Callable[[slice], Dynamics]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of each mode, [D] each."""

    mean: np.ndarray
    variance: np.ndarray

    @property
    def second_moment(self) -> np.ndarray:
        """[D] mean square: squared bias plus variance."""
        return self.mean**2 + self.variance

    def loss(self, curvatures: Any) -> float:
        """Expected excess loss, half the curvature-weighted mean squares."""
        return 0.5 * float(np.dot(np.asarray(curvatures, dtype=np.float64), self.second_moment))


def _model(
    curvatures: Any, noise_variances: Any, initial: Any, initial_variances: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    a = values.vector(at_least=0).check("curvatures", curvatures)
    noise = values.vector(a.size, at_least=0).check("noise_variances", noise_variances)
    mean = values.vector(a.size).check("initial", initial)
    if initial_variances is None:
        spread = np.zeros_like(mean)
    else:
        spread = values.vector(a.size, at_least=0).check("initial_variances", initial_variances)
    return a, noise, mean, spread


def dynamics_factory(
    curvatures: np.ndarray,
    gradient_noise: np.ndarray,
    second_moments: np.ndarray,
    momentum: float,
    convention: str,
) -> MakeDynamics:
    """Makes the dynamics of a slice of the modes."""

    def make(part: slice) -> Dynamics:
        arrays = curvatures[part], gradient_noise[part], second_moments[part]
        if momentum:
            return MomentumDynamics(*arrays, momentum, convention)
        return Dynamics(*arrays)

    return make


def loss_curves(
    curvatures: Any,
    noise_variances: Any,
    learning_rates: Any,
    initial: Any,
    kernels: Mapping[str, Kernel] | None = None,
    *,
    momentum: float = 0.0,
    convention: str = "keras",
    initial_variances: Any = None,
) -> dict[str, np.ndarray]:
    """Computes expected excess losses after every update, of the iterate and of averages.

    Args:
        curvatures: [D], not negative.
        noise_variances: [D], variance of a batch's minimiser per mode.
        learning_rates: [T], the rate of each update; they may be negative.
        initial: [D] start (its mean, if `initial_variances` is given).
        kernels: averages by name; "raw" is taken by the iterate.
        momentum: β in [0, 1), starting at rest.
        convention: "keras" (v ← βv - λg, θ ← θ + v) or "pytorch" (v ← βv + g, θ ← θ - λv).
        initial_variances: [D] variance of the start; none by default.

    Returns:
        {"raw": [T+1], name: [T+1], …}. To separate bias and variance: the curves are sums of the
        curves without noise and the curves from `initial` = 0.  Past the stability limit losses
        grow, to inf.

    Raises:
        ValueError: for wrong shapes, NaN, negative curvatures or variances, an unknown
            convention, a momentum outside [0, 1), or a kernel of no known family.
    """
    a, noise, mean, spread = _model(curvatures, noise_variances, initial, initial_variances)
    beta = checks.momentum(momentum, convention)
    rates = values.array(1).check("learning_rates", learning_rates)
    make = dynamics_factory(a, a * a * noise, mean**2 + spread, beta, convention)
    return run_streams(make, 0.5 * a, rates, kernels or {})


def run_streams(
    make_dynamics: MakeDynamics,
    mode_weights: np.ndarray,
    rates: np.ndarray,
    kernels: Mapping[str, Kernel],
    *,
    block: int | None = None,
) -> dict[str, np.ndarray]:
    """Σ_i w_i E φ_i² after every update, for the iterate ("raw") and every kernel's average.

    Args:
        make_dynamics: slice of modes → their `Dynamics` at step 0.
        mode_weights: [D] weights w; half the curvatures for the excess loss.
        rates: [T].
        kernels: averages by name.
        block: modes per block; chosen to fit the cache by default.
    """
    plan = _Plan(kernels, array("d", rates))
    size = mode_weights.size
    if block is None:
        rows = 8 + sum(stream.rows for stream in plan.streams)
        block = min(max(_RING_NUMBERS // rows, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        blocks = -(-size // block)
        block = -(-size // blocks)  # as even as can be
    raw = np.zeros(rates.size + 1)
    # A run beyond the stability limit grows to inf, and inf times 0 is nan: both are results.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for begin in range(0, size, block):
            part = slice(begin, begin + block)
            raw += _run_block(make_dynamics(part), mode_weights[part].copy(), plan)
        return {RAW: raw, **plan.curves(raw)}


def _run_block(dynamics: Dynamics, weights: np.ndarray, plan: _Plan) -> np.ndarray:
    second, streams = dynamics.second, plan.streams
    raw = array("d", [float(weights.dot(second))])
    for stream in streams:
        stream.open(dynamics, weights, raw)
    steps = [stream.step for stream in streams]
    for t, rate in enumerate(plan.rates, start=1):
        dynamics.select(rate)
        dynamics.advance()
        raw.append(float(weights.dot(second)))
        for step in steps:
            step(t)
        if t % 64 == 0:
            dynamics.flush()
            for stream in streams:
                stream.flush()
    for stream in streams:
        stream.close()
    return np.asarray(raw)


class _Plan:
    """The streams that a set of kernels needs, and each average's curve from their sums."""

    def __init__(self, kernels: Mapping[str, Kernel], rates: array[float]) -> None:
        self.rates = rates
        self.recursive: dict[str, RecursiveStream] = {}
        self.windows: dict[str, WindowStream] = {}
        self.corrected: dict[str, tuple[np.ndarray, FixedStream]] = {}
        self.lagged: dict[str, LagKernel] = {}
        steps = np.arange(len(rates) + 1)
        pair_gaps: set[int] = set()
        dense_gaps: set[int] = set()
        self.ends = {
            n: k.end
            for n, k in kernels.items()
            if isinstance(k, LagKernel | BEMA) and k.end is not None
        }
        for name, kernel in kernels.items():
            if name == RAW:
                raise ValueError(f"`kernels` must not use the name {RAW!r}: it is the iterate's.")
            if name in self.ends:
                kernel = kernel.without_end()
            if isinstance(kernel, RecursiveKernel):
                self.recursive[name] = RecursiveStream(rates, kernel.mixing(steps))
                if isinstance(kernel, BEMA):
                    fixed = FixedStream(rates, kernel.start)
                    self.corrected[name] = kernel.correction(steps), fixed
            elif isinstance(kernel, Window) and kernel.every == 1 and kernel.length > 1:
                self.windows[name] = WindowStream(rates, min(kernel.length, len(rates) + 1))
            elif isinstance(kernel, LagKernel):
                self.lagged[name] = kernel
                gaps = self._gaps(kernel)
                # Passes over the modes per step, as the table in streams.py counts them.
                dense = bool(gaps) and 7 * len(gaps) > 2 * max(gaps)
                (dense_gaps if dense else pair_gaps).update(gaps)
            else:
                raise ValueError(
                    "`kernels` must hold recursive or lag kernels of tf_lrtraj.kernels. "
                    f"Received: {name}={kernel!r}"
                )
        pair_gaps -= dense_gaps
        self.pairs = {gap: PairStream(rates, gap) for gap in sorted(pair_gaps)}
        self.dense = DenseStream(rates, np.array(sorted(dense_gaps))) if dense_gaps else None
        self.streams: list[Stream] = [*self.recursive.values(), *self.windows.values()]
        self.streams += [*self.pairs.values(), *(stream for _, stream in self.corrected.values())]
        if self.dense:
            self.streams.append(self.dense)

    def _gaps(self, kernel: LagKernel) -> set[int]:
        """Gaps, up to the run's length, between the iterates the kernel ever combines."""
        gaps: set[int] = set()
        seen = None
        for step in range(min(kernel.max_lag, len(self.rates)) + 1):
            lags = np.asarray(kernel.lags(step)[0])
            if seen is None or not np.array_equal(lags, seen):
                gaps.update(np.unique(np.abs(lags[:, None] - lags)).tolist())
                seen = lags
        return gaps - {0}

    def curves(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        curves = {name: stream.curve(raw) for name, stream in self.recursive.items()}
        for name, (correction, fixed) in self.corrected.items():
            curves[name] = _corrected(curves[name], raw, self.recursive[name], correction, fixed)
        curves.update({name: stream.total for name, stream in self.windows.items()})
        table = {0: raw, **{gap: stream.total for gap, stream in self.pairs.items()}}
        if self.dense:
            columns = self.dense.total.T
            table.update(zip(self.dense.gaps.tolist(), columns, strict=True))
        curves.update({name: _combine(kernel, table) for name, kernel in self.lagged.items()})
        for name, end in self.ends.items():
            curves[name][end + 1 :] = curves[name][min(end, len(self.rates))]
        return curves


def _corrected(
    curve: np.ndarray,
    raw: np.ndarray,
    running: RecursiveStream,
    correction: np.ndarray,
    fixed: FixedStream,
) -> np.ndarray:
    """Curve of φ_t + γ_t (θ_t - θ_s), from that of the running average φ_t and of the iterate."""
    first = fixed.at
    if first >= raw.size:
        return curve
    mixing, with_fixed = np.asarray(running.mixing), fixed.total
    with_iterate = (1.0 - mixing) * running.total + mixing * raw  # E φ_t θ_t
    crossed = np.zeros_like(raw)  # E φ_t θ_s
    crossed[first] = raw[first]
    for t in range(first + 1, raw.size):
        crossed[t] = (1.0 - mixing[t]) * crossed[t - 1] + mixing[t] * with_fixed[t]
    square = raw - 2.0 * with_fixed + raw[first]
    return curve + 2.0 * correction * (with_iterate - crossed) + correction**2 * square


def _combine(kernel: LagKernel, table: Mapping[int, np.ndarray]) -> np.ndarray:
    """Curve of a lag kernel from `table[gap][t]` = Σ_i w_i E θ_t θ_{t-gap}."""
    count = table[0].size
    curve = np.zeros(count)
    full = kernel.max_lag
    for t in range(min(full, count)):
        for newer, gap, factor in _pairs(kernel, t):
            curve[t] += factor * table[gap][t - newer]
    if full < count:
        for newer, gap, factor in _pairs(kernel, full):
            curve[full:] += factor * table[gap][full - newer : count - newer]
    return curve


def _pairs(kernel: LagKernel, step: int) -> Iterator[tuple[int, int, float]]:
    """(lag of the newer iterate, gap, coefficient) of each term of the average's square."""
    lags, weights = (found.tolist() for found in kernel.lags(step))
    for i, lag in enumerate(lags):
        yield lag, 0, weights[i] ** 2
        for j in range(i + 1, len(lags)):
            yield min(lag, lags[j]), abs(lags[j] - lag), 2.0 * weights[i] * weights[j]


def average_moments(
    kernel: Kernel | Any,
    curvatures: Any,
    noise_variances: Any,
    learning_rates: Any,
    initial: Any,
    *,
    momentum: float = 0.0,
    convention: str = "keras",
    initial_variances: Any = None,
) -> Moments:
    """Computes mean and variance per mode of an average at the end of the run.

    Time is O(T D) and memory O(T + D) for every kernel.

    Args:
        kernel: a kernel, or [T+1] weights on `θ_0 … θ_T` that sum to 1 (signed allowed).
        curvatures, noise_variances, learning_rates, initial, momentum, convention: as in
            `loss_curves`.
        initial_variances: as in `loss_curves`.

    Raises:
        ValueError: as `loss_curves`, or if weights do not sum to 1.

    >>> average_moments([0.5, 0.5], [1.0], [1.0], [0.5], [3.0]).mean
    array([2.25])
    """
    a, noise, mean, spread = _model(curvatures, noise_variances, initial, initial_variances)
    beta = checks.momentum(momentum, convention)
    rates = values.array(1).check("learning_rates", learning_rates)
    weights = checks.averaging_weights(kernel, rates.size)
    dynamics = dynamics_factory(a, a * a * noise, spread, beta, convention)(slice(None))

    # ψ_t is the average's part up to step t; its moments with the state ride along.
    state = np.zeros_like(dynamics.y)  # E x_t
    state[0] = mean
    bias = weights[0] * mean
    joint = weights[0] * dynamics.y  # Cov(x_t, ψ_t)
    variance = weights[0] ** 2 * spread
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for t, (rate, weight) in enumerate(
            zip(rates.tolist(), weights[1:].tolist(), strict=True), start=1
        ):
            dynamics.select(rate)
            dynamics.advance()
            dynamics.apply(state)
            dynamics.apply(joint)
            if weight:
                bias += weight * state[0]
                variance += weight * (2.0 * joint[0] + weight * dynamics.second)
                joint += weight * dynamics.y
            if t % 64 == 0:
                dynamics.flush()
    # Signed weights can leave a rounding error below zero.
    return Moments(mean=bias, variance=np.maximum(variance, 0.0))
