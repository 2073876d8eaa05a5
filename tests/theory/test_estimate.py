"""Curvatures and noise recovered from Jensen gaps of a known quadratic model."""

import numpy as np
import pytest

from tf_lrtraj import kernels, theory

RATE = 0.8
A = np.array([0.02, 0.3])
NOISE = np.array([2.0, 0.5])


def gaps_of(lags, every):
    """Exact gaps of the stationary state: a (c(0) - c(Δ)) / 4 for each mode."""
    variance = RATE * A * NOISE / (2 - RATE * A)
    moved = variance * (1 - (1 - RATE * A) ** (every * np.asarray(lags)[:, None]))
    return (0.25 * A * moved).sum(axis=1)


@pytest.fixture(scope="module")
def found():
    lags = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89]
    return theory.estimate_spectrum(lags, gaps_of(lags, 2), count=90, every=2, rate=RATE)


def test_excess_loss_of_the_stationary_state(found):
    model = theory.QuadraticModel(A, NOISE)
    excess = 0.5 * (A * model.stationary_variance(RATE)).sum()
    assert found.excess.sum() == pytest.approx(excess, rel=0.01)
    assert found.unresolved < 0.05


def test_the_estimate_is_stationary_at_the_runs_rate(found):
    losses = found.model.expected_loss(np.full(50, RATE), found.initial)
    np.testing.assert_allclose(losses, found.excess.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    "kernel", [kernels.Uniform(), kernels.Exponential(0.95), kernels.TwoPoint(60)], ids=repr
)
def test_averages_lose_what_they_lose_in_the_model(found, kernel):
    """The estimate's averages against those of the model the gaps came from."""
    model = theory.QuadraticModel(A, NOISE)
    initial = np.sqrt(model.stationary_variance(RATE))
    rates = np.full(120, RATE)
    expected = model.expected_loss_of_average(kernel, rates, initial)[-1]
    estimated = found.model.expected_loss_of_average(kernel, rates, found.initial)[-1]
    assert estimated == pytest.approx(expected, rel=0.03)


def test_one_mode_has_one_curvature():
    lags = np.array([1, 2, 4, 8, 16, 32])
    gaps = 0.1 * (1 - np.exp(-lags / 7.0))
    found = theory.estimate_spectrum(lags, gaps, count=40, every=5, rate=0.5)
    assert found.curvature == pytest.approx((1 - np.exp(-1 / 35.0)) / 0.5, rel=1e-3)
    assert found.excess.sum() == pytest.approx(0.2, rel=5e-3)  # decays lie on a grid


def test_a_walk_counts_as_unresolved():
    lags = np.array([1, 2, 4, 8, 16, 32])
    found = theory.estimate_spectrum(lags, 0.01 * lags, count=40, every=1, rate=1.0)
    assert found.unresolved > 0.9
    assert np.all(found.curvatures > 0)


@pytest.mark.parametrize(
    ("gaps", "rate", "message"),
    [
        ([0.1, 0.2], 0.0, "`rate` must be positive. Received: rate=0.0"),
        ([0.0, 0.0], 1.0, "no mode has a positive amplitude"),
        ([0.1, np.nan], 1.0, "jensen_gaps"),
    ],
)
def test_bad_input(gaps, rate, message):
    with pytest.raises(ValueError, match=message):
        theory.estimate_spectrum([1, 2], gaps, count=10, every=1, rate=rate)
