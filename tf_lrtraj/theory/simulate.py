r"""Monte Carlo on the quadratic model: many runs of SGD at once, averages kept online.

It draws batches, makes steps and keeps averages with the kernels' own update rules.  It thus checks
the expectations of `tf_lrtraj.theory.moments`, and also gives single trajectories and
distributions.  Runs are simulated in blocks that fit the processor's cache, so most of the time
goes into random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg.blas import daxpy

from tf_lrtraj import values
from tf_lrtraj.kernels import BEMA, Kernel, LagKernel, RecursiveKernel, Window

__all__ = ["Curve", "Run", "Simulation", "simulate"]

# Numbers per array of one block of runs (512 KB: smaller blocks spend their time in calls),
# numbers in a ring buffer, and steps whose losses are kept before they are summed up.
_BLOCK_NUMBERS = 65_536
_LARGEST_RING = 8_000_000
_STEPS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean over runs of the excess loss after t = 0 … T updates, and its standard error."""

    losses: np.ndarray
    stderr: np.ndarray


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The result of `simulate`.

    Attributes:
        losses: [T+1] mean excess loss of the iterate over runs.
        stderr: [T+1] its standard error.
        averages: by name, a `Curve` per kernel.
        iterates: [num_runs, D] final iterates.
        final_averages: by name, [num_runs, D] final averages.
    """

    losses: np.ndarray
    stderr: np.ndarray
    averages: dict[str, Curve]
    iterates: np.ndarray
    final_averages: dict[str, np.ndarray]


def named_kernels(
    kernels: Kernel | Sequence[Kernel] | Mapping[str, Kernel] | None,
) -> dict[str, Kernel]:
    """Kernels by name; those of a sequence are named "0", "1", …"""
    if kernels is None:
        return {}
    if isinstance(kernels, Kernel):
        kernels = [kernels]
    if not isinstance(kernels, Mapping):
        kernels = {str(i): kernel for i, kernel in enumerate(kernels)}
    for name, kernel in kernels.items():
        if not isinstance(kernel, RecursiveKernel | LagKernel):
            raise ValueError(
                "`kernels` must hold recursive or lag kernels of tf_lrtraj.kernels. "
                f"Received: {name}={kernel!r}"
            )
    return dict(kernels)


def simulate(
    curvatures: np.ndarray,
    noise_factor: np.ndarray,
    learning_rates: Any,
    initial: Any,
    num_runs: int,
    seed: int,
    kernels: Kernel | Sequence[Kernel] | Mapping[str, Kernel] | None = None,
    *,
    momentum: float = 0.0,
    convention: str = "keras",
    basis: np.ndarray | None = None,
) -> Simulation:
    """Runs SGD many times; called by `QuadraticModel.simulate`.

    Args:
        curvatures: [D] of the modes.
        noise_factor: the noise factor of the batches' minimisers, as in `Run`.
        learning_rates: [T].
        initial: [D], or [num_runs, D], in the model's coordinates.
        num_runs: at least 2.
        seed: the seed of the random numbers.  Runs are drawn in blocks, each from a stream of its
            own, so the same arguments give the same numbers.
        kernels: averages to keep.
        momentum, convention: as in `moments.loss_curves`.
        basis: [D, D], columns are modes; none if coordinates are modes.

    Raises:
        ValueError: for wrong shapes, NaN, fewer than 2 runs, or a kernel of no known family.
    """
    rates = values.array(1).check("learning_rates", learning_rates)
    num_runs = values.integer(2).check("num_runs", num_runs)
    seed = values.integer(0).check("seed", seed)
    starts = values.array().check("initial", initial)
    size = curvatures.size
    if starts.shape not in ((size,), (num_runs, size)):
        raise ValueError(
            f"`initial` must have shape [{size}] or [{num_runs}, {size}]. "
            f"Received: shape={starts.shape}"
        )
    starts = np.broadcast_to(starts if basis is None else starts @ basis, (num_runs, size))
    named = named_kernels(kernels)

    rows = max([1, *(kernel.ring_size for kernel in named.values())])
    block = max(1, min(_BLOCK_NUMBERS // size, _LARGEST_RING // (rows * size)))
    block = -(-num_runs // -(-num_runs // block))  # as even as can be
    begins = range(0, num_runs, block)
    streams = np.random.SeedSequence(seed).spawn(len(begins))
    totals = [_Total(rates.size + 1) for _ in range(1 + len(named))]
    finals: list[list[np.ndarray]] = []
    for begin, stream in zip(begins, streams, strict=True):
        run = Run(
            starts[begin : begin + block].copy(),
            np.random.default_rng(stream),
            curvatures,
            noise_factor,
            momentum,
            convention,
        )
        averages = [_average(kernel, rates.size) for kernel in named.values()]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            finals.append(_run_block(run, 0.5 * curvatures, rates.tolist(), averages, totals))
    joined = [np.concatenate(parts) for parts in zip(*finals, strict=True)]
    if basis is not None:
        joined = [part @ basis.T for part in joined]
    curves = [total.curve() for total in totals]
    return Simulation(
        losses=curves[0].losses,
        stderr=curves[0].stderr,
        averages=dict(zip(named, curves[1:], strict=True)),
        iterates=joined[0],
        final_averages=dict(zip(named, joined[1:], strict=True)),
    )


def _run_block(
    run: Run,
    half: np.ndarray,
    rates: list[float],
    averages: list[_Average],
    totals: list[_Total],
) -> list[np.ndarray]:
    theta = run.theta
    scratch = np.empty_like(theta)
    losses = np.empty((len(totals), _STEPS_AT_ONCE, len(theta)))
    count = 0
    for total in totals:
        total.begin(len(theta))
    for average in averages:
        average.start(theta)
    for t in range(len(rates) + 1):
        if t:
            run.step(rates[t - 1])
        for row, point in enumerate([theta, *(a.update(theta, t) for a in averages)]):
            np.multiply(point, point, out=scratch)
            np.dot(scratch, half, out=losses[row, count])
        count += 1
        if count == _STEPS_AT_ONCE or t == len(rates):
            for total, found in zip(totals, losses, strict=True):
                total.add(found[:count])
            count = 0
    return [theta, *(average.value for average in averages)]


class Run:
    """The iterates [runs, D] of one block; gradients are A (θ - ξ) with ξ Gaussian.

    Args:
        theta: [runs, D] starts; changed in place.
        random: draws the batches.
        curvatures: [D].
        noise_factor: [D] standard deviations of ξ, or a matrix F [D, D] with Cov ξ = F Fᵀ.
        momentum, convention: as in `moments.loss_curves`.
    """

    def __init__(
        self,
        theta: np.ndarray,
        random: np.random.Generator,
        curvatures: np.ndarray,
        noise_factor: np.ndarray,
        momentum: float = 0.0,
        convention: str = "keras",
    ) -> None:
        self.theta = theta
        self._random = random
        self._curvatures = curvatures
        self._kick = curvatures * noise_factor if noise_factor.ndim == 1 else None
        self._mix = (curvatures[:, None] * noise_factor).T if noise_factor.ndim == 2 else None
        self._noise = np.empty_like(theta)
        self._beta, self._keras = momentum, convention == "keras"
        self._velocity = np.zeros_like(theta) if momentum else None

    def _batch_noise(self, scale: float) -> np.ndarray:
        """[runs, D] scale · A ξ, in one pass over the random numbers."""
        self._random.standard_normal(out=self._noise)
        if self._mix is not None:
            return self._noise @ (scale * self._mix)
        self._noise *= scale * self._kick  # type: ignore[operator]  # one of the two is there
        return self._noise

    def step(self, rate: float) -> None:
        """One update of every run, each on a batch of its own."""
        theta, velocity = self.theta, self._velocity
        if velocity is None:
            theta *= 1.0 - rate * self._curvatures
            theta += self._batch_noise(rate)
            return
        gradient = self._batch_noise(-1.0)
        gradient += self._curvatures * theta
        velocity *= self._beta
        if self._keras:
            velocity -= rate * gradient
            theta += velocity
        else:
            velocity += gradient
            theta -= rate * velocity


class _Average:
    """An average [runs, D] of one block, kept online."""

    value: np.ndarray

    def start(self, theta: np.ndarray) -> None:
        self.value = theta.copy()

    def update(self, theta: np.ndarray, t: int) -> np.ndarray:
        raise NotImplementedError


class _Recursive(_Average):
    """φ ← (1 - α_t) φ + α_t θ."""

    def __init__(self, kernel: RecursiveKernel, num_steps: int) -> None:
        self._mixing = kernel.mixing(np.arange(num_steps + 1)).tolist()

    def update(self, theta: np.ndarray, t: int) -> np.ndarray:
        alpha = self._mixing[t]
        if alpha == 1.0:
            self.value[...] = theta
        elif alpha != 0.0:
            self.value *= 1.0 - alpha
            daxpy(theta.reshape(-1), self.value.reshape(-1), a=alpha)  # in place, one pass
        return self.value


class _Corrected(_Average):
    """φ_t + γ_t (θ_t - θ_s), with a running average φ_t."""

    def __init__(self, kernel: BEMA, num_steps: int) -> None:
        self._running = _Recursive(kernel, num_steps)
        self._start, self._end = kernel.start, kernel.end
        self._correction = kernel.correction(np.arange(num_steps + 1)).tolist()

    def start(self, theta: np.ndarray) -> None:
        super().start(theta)
        self._running.start(theta)
        self._fixed = theta.copy()

    def update(self, theta: np.ndarray, t: int) -> np.ndarray:
        if self._end is not None and t > self._end:
            return self.value
        if t == self._start:
            self._fixed[...] = theta
        running = self._running.update(theta, t)
        np.subtract(theta, self._fixed, out=self.value)
        self.value *= self._correction[t]
        self.value += running
        return self.value


class _Lagged(_Average):
    """Σ w_i θ_{t - l_i} from a ring buffer."""

    def __init__(self, kernel: LagKernel) -> None:
        self._kernel = kernel
        self._rows = kernel.copies
        self._end = kernel.end

    def start(self, theta: np.ndarray) -> None:
        super().start(theta)
        self._ring = np.zeros((self._rows, *theta.shape))

    def update(self, theta: np.ndarray, t: int) -> np.ndarray:
        if self._end is not None and t > self._end:
            return self.value
        self._ring[t % self._rows] = theta
        lags, weights = self._kernel.lags(t)
        np.multiply(self._ring[(t - lags[0]) % self._rows], weights[0], out=self.value)
        total = self.value.reshape(-1)
        for lag, weight in zip(lags[1:].tolist(), weights[1:].tolist(), strict=True):
            daxpy(self._ring[(t - lag) % self._rows].reshape(-1), total, a=weight)  # in place
        return self.value


class _Moving(_Lagged):
    """The mean of the last n by a running sum, which is recomputed once per turn of the ring."""

    def start(self, theta: np.ndarray) -> None:
        super().start(theta)
        self._sum = np.zeros_like(theta)

    def update(self, theta: np.ndarray, t: int) -> np.ndarray:
        if self._end is not None and t > self._end:
            return self.value
        slot = t % self._rows
        self._sum -= self._ring[slot]
        self._sum += theta
        self._ring[slot] = theta
        if slot == 0:
            np.sum(self._ring, axis=0, out=self._sum)
        np.multiply(self._sum, 1.0 / min(t + 1, self._rows), out=self.value)
        return self.value


def _average(kernel: Kernel, num_steps: int) -> _Average:
    if isinstance(kernel, BEMA):
        return _Corrected(kernel, num_steps)
    if isinstance(kernel, RecursiveKernel):
        return _Recursive(kernel, num_steps)
    assert isinstance(kernel, LagKernel)
    if isinstance(kernel, Window) and kernel.every == 1:
        return _Moving(kernel)
    return _Lagged(kernel)


class _Total:
    """Mean and standard error per step, over blocks of runs."""

    def __init__(self, length: int) -> None:
        self._mean = np.zeros(length)
        self._deviation = np.zeros(length)  # sum of squared deviations from the mean
        self._seen = 0
        self._new = 0
        self._at = 0

    def begin(self, runs: int) -> None:
        """Starts the next block of `runs` runs."""
        self._seen += self._new
        self._new = runs
        self._at = 0

    def add(self, losses: np.ndarray) -> None:
        """Adds losses [steps, runs] of the steps that follow those already added."""
        part = slice(self._at, self._at + len(losses))
        self._at += len(losses)
        mean = losses.mean(axis=1)
        deviation = np.sum((losses - mean[:, None]) ** 2, axis=1)
        shift = mean - self._mean[part]
        share = self._new / (self._seen + self._new)
        self._mean[part] += share * shift
        self._deviation[part] += deviation + shift**2 * (self._seen * share)

    def curve(self) -> Curve:
        runs = self._seen + self._new
        with np.errstate(invalid="ignore"):
            stderr = np.sqrt(self._deviation / (runs - 1) / runs)
        return Curve(self._mean, stderr)
