"""Streaming moments against the O(T²) sums they stand for."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from tf_lrtraj import kernels
from tf_lrtraj.theory import moments

KERNELS = {
    "ema": kernels.Exponential(0.8),
    "late ema": kernels.Exponential(0.6, start=7),
    "no ema": kernels.Exponential(0.0),
    "swa": kernels.Uniform(start=2),
    "spaced swa": kernels.Uniform(start=1, every=3),
    "window": kernels.Window(5),
    "pair window": kernels.Window(2),
    "one": kernels.Window(1),
    "spaced window": kernels.Window(4, every=5),
    "dense window": kernels.Window(6, every=2),
    "endless window": kernels.Window(1000),
    "two": kernels.TwoPoint(4),
    "neighbours": kernels.TwoPoint(1),
    "two, too far": kernels.TwoPoint(1000),
    "signed": kernels.Custom([1.5, -0.5]),
    "dense": kernels.Custom([0.5, 0.2, -0.3, 0.6, 0.0]),
    "sparse": kernels.Custom([0.5, *[0.0] * 10, 0.2, 0.0, 0.0, 0.3]),
    "half-life": kernels.HalfLife(0.3, longest=6, start=1, every=2),
    "bema": kernels.BEMA(),
    "late bema": kernels.BEMA(ema_power=0.8, bias_power=0.3, lag=2.0, start=4),
    "bema, too late": kernels.BEMA(start=1000),
    "ended bema": kernels.BEMA(start=2, end=8),
    "decay": kernels.PowerFunction(-0.5, start=3),
    "ended ema": kernels.Exponential(0.8, end=6),
    "ended window": kernels.Window(5, end=3),
    "ended two": kernels.TwoPoint(4, end=9),
    "ended dense": kernels.Custom([0.5, 0.2, -0.3, 0.6], end=1000),
}


@dataclasses.dataclass
class Case:
    """A random problem and the response of every iterate to the start and to each batch."""

    a: np.ndarray
    noise: np.ndarray
    rates: np.ndarray
    initial: np.ndarray
    spread: np.ndarray
    momentum: float
    convention: str

    @property
    def options(self) -> dict:
        return {"momentum": self.momentum, "convention": self.convention}

    @property
    def arguments(self) -> tuple:
        return self.a, self.noise, self.rates, self.initial

    def responses(self) -> np.ndarray:
        """[D, T+1 iterates, 1 + T impulses]: run the update rule on unit impulses."""
        count = len(self.rates)
        response = np.zeros((len(self.a), count + 1, count + 1))
        for i, a in enumerate(self.a):
            theta = np.zeros(count + 1)
            theta[0] = 1.0
            velocity = np.zeros(count + 1)
            response[i, 0] = theta
            for t, rate in enumerate(self.rates):
                minimiser = np.zeros(count + 1)
                minimiser[t + 1] = 1.0
                gradient = a * (theta - minimiser)
                if self.convention == "keras":
                    velocity = self.momentum * velocity - rate * gradient
                    theta = theta + velocity
                else:
                    velocity = self.momentum * velocity + gradient
                    theta = theta - rate * velocity
                response[i, t + 1] = theta
        return response

    def reference(self, responses: np.ndarray, weights: np.ndarray) -> moments.Moments:
        """Mean and variance of Σ c_k θ_k, from the whole covariance of the iterates."""
        effect = np.einsum("k,dkj->dj", weights, responses[:, : len(weights)])
        variance = effect[:, 0] ** 2 * self.spread + self.noise * np.sum(effect[:, 1:] ** 2, axis=1)
        return moments.Moments(effect[:, 0] * self.initial, variance)


def make_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    count = int(rng.integers(0, 32))
    a = rng.uniform(0.0, 2.0, size) * (rng.uniform(size=size) > 0.2)
    rates = rng.uniform(-0.1, 0.9, count)
    if seed % 3 == 0:
        rates[:] = rng.uniform(0.0, 0.9)
    return Case(
        a=a,
        noise=rng.uniform(0.0, 2.0, size) * (rng.uniform(size=size) > 0.2),
        rates=rates,
        initial=rng.normal(size=size) * 10.0 ** rng.uniform(-2, 2),
        spread=rng.uniform(0.0, 1.0, size),
        momentum=[0.0, 0.0, 0.9, 0.5][seed % 4],
        convention=["keras", "pytorch"][seed // 4 % 2],
    )


@pytest.mark.parametrize("seeds", [range(i, i + 50) for i in range(0, 200, 50)], ids=str)
def test_every_average_at_every_step_equals_the_full_covariance(seeds):
    for seed in seeds:
        case = make_case(seed)
        responses = case.responses()
        curves = moments.loss_curves(
            *case.arguments, KERNELS, initial_variances=case.spread, **case.options
        )
        assert set(curves) == {"raw", *KERNELS}
        for name, kernel in {"raw": kernels.Exponential(0.0), **KERNELS}.items():
            expected = np.array(
                [
                    case.reference(responses, kernel.weights(t)).loss(case.a)
                    for t in range(len(case.rates) + 1)
                ]
            )
            np.testing.assert_allclose(
                curves[name],
                expected,
                rtol=1e-10,
                atol=1e-13 * expected.max(),
                err_msg=f"{seed} {name}",
            )


@pytest.mark.parametrize("seeds", [range(i, i + 20) for i in range(100, 160, 20)], ids=str)
def test_moments_at_the_end_equal_the_full_covariance(seeds):
    for seed in seeds:
        case = make_case(seed)
        responses = case.responses()
        count = len(case.rates)
        rng = np.random.default_rng(seed)
        signed = rng.normal(size=count + 1)
        signed /= signed.sum()
        last = np.eye(count + 1)[-1]
        for kernel in [*KERNELS.values(), signed, last]:
            found = moments.average_moments(
                kernel, *case.arguments, initial_variances=case.spread, **case.options
            )
            weights = kernel.weights(count) if isinstance(kernel, kernels.Kernel) else kernel
            expected = case.reference(responses, weights)
            scale = np.abs(weights).max()
            np.testing.assert_allclose(
                found.mean, expected.mean, rtol=1e-10, atol=1e-13 * scale * abs(case.initial).max()
            )
            np.testing.assert_allclose(
                found.variance, expected.variance, rtol=1e-10, atol=1e-12 * scale**2
            )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_longer_run_than_any_block_of_the_streams(momentum):
    rng = np.random.default_rng(0)
    case = Case(
        a=np.array([1.0, 0.05, 0.0]),
        noise=np.array([1.0, 0.5, 1.0]),
        rates=rng.uniform(0.0, 1.2, 300) * (1.0 - momentum),
        initial=np.array([5.0, -3.0, 1.0]),
        spread=np.zeros(3),
        momentum=momentum,
        convention="pytorch",
    )
    long = {
        "two": kernels.TwoPoint(70),
        "window": kernels.Window(90),
        "ema": kernels.Exponential(0.97),
        "spaced": kernels.Window(3, every=60),
    }
    curves = moments.loss_curves(*case.arguments, long, **case.options)
    responses = case.responses()
    for name, kernel in long.items():
        for t in [0, 63, 64, 69, 70, 89, 90, 91, 139, 140, 141, 179, 180, 270, 299, 300]:
            expected = case.reference(responses, kernel.weights(t)).loss(case.a)
            assert curves[name][t] == pytest.approx(expected, rel=1e-11), (name, t)


def test_blocks_of_modes_add_up():
    rng = np.random.default_rng(1)
    a, noise, start = rng.uniform(0.0, 1.0, (3, 23))
    rates = rng.uniform(0.0, 1.0, 40)
    make = moments.dynamics_factory(a, a * a * noise, start**2, 0.0, "keras")
    whole = moments.run_streams(make, 0.5 * a, rates, KERNELS)
    parts = moments.run_streams(make, 0.5 * a, rates, KERNELS, block=5)
    for name, curve in whole.items():
        np.testing.assert_allclose(parts[name], curve, rtol=1e-12)


def test_curves_split_into_bias_and_variance():
    case = make_case(7)
    zero = np.zeros_like(case.a)
    whole = moments.loss_curves(*case.arguments, KERNELS, **case.options)
    bias = moments.loss_curves(case.a, zero, case.rates, case.initial, KERNELS, **case.options)
    variance = moments.loss_curves(case.a, case.noise, case.rates, zero, KERNELS, **case.options)
    for name, curve in whole.items():
        np.testing.assert_allclose(bias[name] + variance[name], curve, rtol=1e-10)


def test_no_momentum_is_momentum_zero_in_either_convention():
    case = make_case(8)
    plain = moments.loss_curves(*case.arguments, KERNELS)
    for convention in ("keras", "pytorch"):
        tiny = moments.loss_curves(*case.arguments, KERNELS, momentum=1e-300, convention=convention)
        for name, curve in plain.items():
            np.testing.assert_allclose(tiny[name], curve, rtol=1e-11)


def test_conventions_agree_at_a_constant_rate_only():
    def run(rates, convention):
        return moments.loss_curves([1.0], [1.0], rates, [1.0], momentum=0.5, convention=convention)[
            "raw"
        ]

    constant, falling = np.full(10, 0.1), np.linspace(0.2, 0.1, 10)
    np.testing.assert_allclose(run(constant, "keras"), run(constant, "pytorch"), rtol=1e-12)
    assert abs(run(falling, "keras")[-1] / run(falling, "pytorch")[-1] - 1.0) > 1e-3


def test_what_has_vanished_does_not_slow_the_run_down():
    # Without noise everything decays; numbers near 1e-308 would be computed in microcode.
    a = np.linspace(0.3, 0.9, 4000)
    rates = np.linspace(1.0, 0.9, 1500)
    named = {"ema": kernels.Exponential(0.5), "two": kernels.TwoPoint(40)}

    def seconds(noise):
        begin = time.perf_counter()
        curves = moments.loss_curves(a, np.full(a.size, noise), rates, np.ones(a.size), named)
        return time.perf_counter() - begin, curves

    alive = min(seconds(1.0)[0] for _ in range(3))
    vanished = min(seconds(0.0)[0] for _ in range(3))
    assert seconds(0.0)[1]["raw"][-1] == 0.0
    assert vanished < 4.0 * alive


def test_a_run_past_the_stability_limit_grows_to_inf():
    curve = moments.loss_curves([1.0], [1.0], np.full(3000, 3.0), [1.0])["raw"]
    assert np.isinf(curve[-1]) and np.all(np.diff(curve[:100]) > 0.0)
