"""Stationary factors and effective rates against sums, long runs and each other."""

from __future__ import annotations

import numpy as np
import pytest

from tf_lrtraj import kernels, theory
from tf_lrtraj.theory import moments

CONTRACTIONS = np.array([-1.0, -0.99, -0.3, 0.0, 0.2, 0.9, 0.999, 1.0 - 1e-9, 1.0])


def direct(weights, contraction):
    """Σ_kl c_k c_l ρ^|k-l|, the whole double sum."""
    steps = np.arange(len(weights))
    return weights @ np.power(contraction, np.abs(steps[:, None] - steps)) @ weights


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Window(1),
        kernels.Window(2),
        kernels.Window(37),
        kernels.Window(5, every=7),
        kernels.TwoPoint(1),
        kernels.TwoPoint(50),
        kernels.Custom([1.5, 0.0, -0.5]),
    ],
    ids=str,
)
def test_lag_kernels_equal_the_double_sum(kernel):
    weights = kernel.weights(kernel.max_lag)
    expected = [direct(weights, rho) for rho in CONTRACTIONS]
    found = theory.stationary_factor(kernel, CONTRACTIONS)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(
        theory.stationary_factor(weights, CONTRACTIONS), expected, atol=1e-12
    )
    later = theory.stationary_factor(kernel, CONTRACTIONS, num_steps=kernel.max_lag + 3)
    np.testing.assert_allclose(later, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_ema_equals_the_double_sum_of_a_long_run(decay):
    weights = kernels.Exponential(decay).weights(600)
    expected = [direct(weights, rho) for rho in CONTRACTIONS]
    found = theory.stationary_factor(kernels.Exponential(decay, start=10), CONTRACTIONS)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("num_steps", [0, 3, 4, 9, 20, 30])
@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Uniform(3),
        kernels.Uniform(2, every=4),
        kernels.Exponential(0.9),
        kernels.Uniform(3, end=9),
        kernels.Exponential(0.9, end=4),
        kernels.Window(3, end=20),
    ],
    ids=str,
)
def test_averages_that_have_just_begun_or_ended(kernel, num_steps):
    expected = [direct(kernel.weights(num_steps), rho) for rho in CONTRACTIONS]
    found = theory.stationary_factor(kernel, CONTRACTIONS, num_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    if kernel.end == num_steps:
        np.testing.assert_array_equal(theory.stationary_factor(kernel, CONTRACTIONS), found)


@pytest.mark.parametrize("exponent", np.arange(-12.0, 0.0, 0.5))
@pytest.mark.parametrize("length", [2, 30, 3000])
def test_uniform_closed_form_keeps_its_digits_near_one(length, exponent):
    # Σ R(Δ) ρ^Δ has positive terms only, so the plain sum is accurate.
    rho = 1.0 - 10.0**exponent
    lags = np.arange(1, length)
    expected = 1.0 / length + 2.0 * np.sum((length - lags) * rho**lags) / length**2
    found = theory.stationary_factor(kernels.Window(length), rho)
    assert found == pytest.approx(expected, rel=1e-12)


def test_factor_is_the_limit_of_a_long_run():
    a, rate = np.array([0.3, 1.0, 1.9]), 1.0
    model = theory.QuadraticModel(a, np.ones(3))
    remedies = [kernels.Exponential(0.8, debias=True), kernels.Exponential(0.8, warmup=4, every=2)]
    plain = [kernels.Exponential(0.95), kernels.Window(20), kernels.TwoPoint(7)]
    for kernel in (*plain, *remedies, kernels.Exponential(0.8, every=3)):
        end = moments.average_moments(kernel, a, np.ones(3), np.full(800, rate), np.ones(3))
        factor = theory.stationary_factor(kernel, 1.0 - rate * a)
        np.testing.assert_allclose(
            end.variance, factor * model.stationary_variance(rate), rtol=1e-10
        )


def test_shapes_and_scalars():
    assert isinstance(theory.stationary_factor(kernels.TwoPoint(1), 0.5), float)
    assert theory.stationary_factor(kernels.TwoPoint(1), np.full((2, 3), 0.5)).shape == (2, 3)
    assert isinstance(theory.effective_learning_rate(kernels.TwoPoint(1), 0.1, 1.0), float)
    grid = theory.effective_learning_rate(kernels.Window(3), [[0.1], [0.2]], [0.5, 1.0, 2.0])
    assert grid.shape == (2, 3)


@pytest.mark.parametrize("seed", range(20))
def test_effective_rate_has_the_same_stationary_variance(seed):
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.01, 3.0)
    rate = rng.uniform(0.0, 2.0 / a)
    kernel = [
        kernels.Exponential(rng.uniform(0.0, 1.0)),
        kernels.Window(int(rng.integers(1, 50))),
        kernels.TwoPoint(int(rng.integers(1, 50))),
        kernels.Custom([3.0, -2.0]),
    ][seed % 4]
    model = theory.QuadraticModel([a], [1.0])
    effective = theory.effective_learning_rate(kernel, rate, a)
    kept = theory.stationary_factor(kernel, 1.0 - rate * a) * model.stationary_variance(rate)
    assert effective * a < 2.0
    np.testing.assert_allclose(model.stationary_variance(effective), kept, rtol=1e-10)
    assert model.effective_learning_rate(kernel, rate) == pytest.approx(effective, rel=1e-9)


def test_effective_rates_of_slow_averages():
    # Small λa and α: 1/λ_eff = 1/λ + a/α.  n points far apart: λ/n.  Flat modes: λ.
    rate, a, alpha = 1e-3, 1.0, 1e-3
    found = theory.effective_learning_rate(kernels.Exponential(1.0 - alpha), rate, a)
    assert 1.0 / found == pytest.approx(1.0 / rate + a / alpha, rel=2e-3)
    far = theory.effective_learning_rate(kernels.Window(8, every=100_000), 1e-3, 1.0)
    assert far == pytest.approx(1e-3 / 8.0, rel=1e-3)
    assert theory.effective_learning_rate(kernels.Window(100), 0.3, 0.0) == 0.3
    assert theory.effective_learning_rate(kernels.Custom([3.0, -2.0]), 0.1, 1.0) > 0.1


def test_effective_rate_of_a_spectrum_matches_the_total_loss():
    rng = np.random.default_rng(0)
    model = theory.QuadraticModel(np.geomspace(1e-3, 1.0, 7), rng.uniform(0.5, 2.0, 7))
    for kernel in (kernels.Exponential(0.99), kernels.TwoPoint(300), kernels.Custom([2.0, -1.0])):
        rate = model.effective_learning_rate(kernel, 0.5)
        assert model.stationary_loss(rate) == pytest.approx(
            model.stationary_loss_of_average(kernel, 0.5), rel=1e-9
        )
    with pytest.raises(ValueError, match="needs noise in a curved mode"):
        theory.QuadraticModel([1.0, 0.0], [0.0, 1.0]).effective_learning_rate(
            kernels.TwoPoint(1), 0.5
        )


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99, 1.0 - 1e-6])
@pytest.mark.parametrize("factor", [1.0, 0.7, 1e-3])
def test_lengths_and_decays_of_a_given_factor(rho, factor):
    decay = theory.ema_decay_for_factor(factor, rho)
    assert 0.0 <= decay < 1.0
    found = theory.stationary_factor(kernels.Exponential(decay), rho)
    assert found == pytest.approx(factor, rel=1e-6)  # decays near 1 are held to 1e-16 only
    length = theory.window_length_for_factor(factor, rho)
    below, above = (
        theory.stationary_factor(kernels.Window(n), rho)
        for n in (int(np.floor(length + 1e-9)), int(np.ceil(length - 1e-9)))
    )
    assert above - 1e-9 <= factor <= below + 1e-9


def test_time_scales_of_equal_noise_lie_between_two_and_three():
    # α n → 3 for modes that hardly average (X → 1), → 2 for long averages.
    for rho, decay, expected in [(1.0 - 1e-8, 0.999, 3.0), (0.5, 0.9999, 2.0)]:
        factor = theory.stationary_factor(kernels.Exponential(decay), rho)
        length = theory.window_length_for_factor(factor, rho)
        assert length * (1.0 - decay) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.stationary_factor(kernels.TwoPoint(1), 1.1), r"must lie in \[-1, 1\].*1.1"),
        (
            lambda: theory.stationary_factor(kernels.TwoPoint(1), [0.5, np.nan]),
            r"`contraction` must be finite",
        ),
        (lambda: theory.stationary_factor(kernels.Uniform(), 0.5), "`num_steps` must be given"),
        (lambda: theory.stationary_factor([0.5, 0.6], 0.5), "must sum to 1"),
        (
            lambda: theory.stationary_factor(kernels.Uniform(), 0.5, num_steps=-1),
            "`num_steps` must be an integer of at least 0",
        ),
        (
            lambda: theory.effective_learning_rate(kernels.TwoPoint(1), 2.0, 1.0),
            "must be below 2, the stability limit. Received: 2.0",
        ),
        (
            lambda: theory.effective_learning_rate(kernels.TwoPoint(1), 0.0, 1.0),
            "`learning_rate` must be positive",
        ),
        (
            lambda: theory.effective_learning_rate(kernels.TwoPoint(1), 0.1, -1.0),
            "`curvature` must not be negative",
        ),
        (lambda: theory.ema_decay_for_factor(1.5, 0.5), r"`factor` must be in \(0, 1\]"),
        (lambda: theory.ema_decay_for_factor(0.0, 0.5), r"`factor` must be in \(0, 1\]"),
        (lambda: theory.window_length_for_factor(0.5, 1.0), r"`contraction` must be in \[0, 1\)"),
        (lambda: theory.window_length_for_factor(0.5, -0.1), r"`contraction` must be in \[0, 1\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
