"""Minima, crossings and polynomials of curves whose answers are known."""

import numpy as np
import pytest

from tf_lrtraj.probes import fits
from tf_lrtraj.statistics import bootstrap

LOG = fits.rate_grid(1e-3, 10.0, 33)
EVEN = fits.rate_grid(0.0, 3.0, 25, "linear")


def parabola(rates, best=0.7, gain=1.3, start=2.0):
    return start - gain + gain * (rates / best - 1.0) ** 2


# Grids


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((0.01, 1.0, 3), [0.0, 0.01, 0.1, 1.0]),
        ((0.01, 1.0, 3, "log", False), [0.01, 0.1, 1.0]),
        ((1.0, 3.0, 3, "linear"), [0.0, 1.0, 2.0, 3.0]),
        ((0.0, 1.0, 2, "linear"), [0.0, 1.0]),
    ],
)
def test_grids(arguments, wanted):
    np.testing.assert_allclose(fits.rate_grid(*arguments), wanted, rtol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 3), "low=0.0"),
        ((1.0, 0.5, 3), "low=1.0, high=0.5"),
        ((0.1, np.inf, 3), "high=inf"),
        ((0.1, 1.0, 1), "num=1"),
        ((0.1, 1.0, 3, "sqrt"), "scale='sqrt'"),
    ],
)
def test_bad_grids(arguments, message):
    with pytest.raises(ValueError, match=message):
        fits.rate_grid(*arguments)


@pytest.mark.parametrize(
    "rates", [[0.0], [0.0, 0.2, 0.1], [0.0, 0.1, 0.1], [0.0, np.nan], [-0.1, 0.1], [[0.0, 1.0]]]
)
def test_bad_rates(rates):
    with pytest.raises(ValueError, match=r"Received: rates="):
        fits.check_rates(rates)


def test_a_grid_goes_on_as_it_was():
    np.testing.assert_allclose(fits.continued(EVEN), 3.0 + 0.125 * np.arange(1, 25))
    np.testing.assert_allclose(fits.continued(LOG), fits.rate_grid(10.0, 100.0, 9, zero=False)[1:])
    assert fits.continued(np.array([0.0, 1.0])).tolist() == [2.0, 4.0, 8.0, 16.0]


# Single curves


@pytest.mark.parametrize("rates", [LOG, EVEN])
def test_a_parabola_is_known_from_any_grid(rates):
    losses = parabola(rates)
    found = fits.minimum(rates, losses)
    assert found.bracketed
    np.testing.assert_allclose([found.rate, found.loss, found.gain], [0.7, 0.7, 1.3], rtol=1e-12)
    np.testing.assert_allclose(fits.zero_crossing(rates, losses), 1.4, rtol=1e-12)
    fit = fits.polynomial(rates, losses, 2, 2.0 * found.rate)
    np.testing.assert_allclose(fit.curvature, 2.0 * 1.3 / 0.7**2, rtol=1e-9)
    np.testing.assert_allclose(fit(rates), losses, rtol=1e-8)
    assert fit.error < 1e-12


def test_ends_of_the_grid():
    falling, rising = parabola(EVEN, best=9.0), parabola(EVEN, best=-1.0)
    found = fits.minimum(EVEN, falling)
    assert (found.rate, found.bracketed) == (3.0, False)
    assert fits.zero_crossing(EVEN, falling) == np.inf
    found = fits.minimum(EVEN, rising)
    assert (found.rate, found.gain, found.bracketed) == (0.0, 0.0, True)
    assert fits.zero_crossing(EVEN, rising) == 0.0


def test_losses_that_overflow():
    rates = np.array([0.0, 1.0, 2.0, 3.0])
    losses = np.array([2.0, 1.0, np.inf, np.inf])
    assert fits.minimum(rates, losses) == fits.Minimum(1.0, 1.0, 1.0, True)
    assert fits.zero_crossing(rates, losses) == 1.0  # the last rate known to gain
    assert fits.polynomial(rates, losses, 1, 3.0).error == np.inf
    assert fits.valid_to(rates, losses, 1).tolist() == [0.0, 0.0, 0.0]


def test_the_error_of_a_fit_is_its_distance_in_the_mean_over_the_window():
    # The best line through x² on [0, 1] leaves x² - x + 1/6, of mean square 1/180.
    rates = np.linspace(0.0, 1.0, 2001)
    np.testing.assert_allclose(
        fits.polynomial(rates, rates**2, 1, 1.0, drop=0.5).error, 2.0 / np.sqrt(180.0), rtol=1e-5
    )
    # Even where most points crowd at small rates.
    crowded = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 4001)])
    np.testing.assert_allclose(
        fits.polynomial(crowded, crowded**2, 1, 1.0, drop=0.5).error,
        2.0 / np.sqrt(180.0),
        rtol=1e-3,
    )


def test_errors_by_degree_and_window():
    # A quartic: degree 4 fits all of it, lower degrees the worse the wider the window.
    losses = parabola(EVEN) + 0.3 * EVEN**3 + 0.1 * EVEN**4
    found = fits.errors(EVEN, losses)
    assert (found[3, 2:4] < 1e-10).all()
    assert (np.diff(found[:3, 2:4], axis=0) < 0.0).all()
    assert (np.diff(found[1, 1:]) > 0.0).all()
    assert found[3, 0] == np.inf  # too few points for anything to be left over


def test_no_error_is_made_up_where_nothing_was_measured():
    losses = parabola(EVEN, best=2.0)
    assert np.isinf(fits.errors(EVEN, losses, windows=[2.0])).all()  # up to 4, measured to 3
    assert np.isinf(fits.errors(EVEN, parabola(EVEN, best=-1.0))).all()  # nothing gained


def test_range_of_validity():
    losses = parabola(EVEN) + 0.3 * EVEN**3
    drop = fits.minimum(EVEN, losses).gain
    found = fits.valid_to(EVEN, losses, 2, [0.01, 0.05, 1e9])
    for end, level in zip(found, [0.01, 0.05, 1e9], strict=True):
        errors = {
            rate: fits.polynomial(EVEN, losses, 2, rate, drop).error for rate in EVEN[EVEN > 0]
        }
        assert errors[end] <= level
        beyond = [rate for rate in EVEN if rate > end]
        assert not beyond or errors[beyond[0]] > level
    assert 0.0 < found[0] < found[1] < found[2] == 3.0
    assert fits.valid_to(EVEN, losses, 3, [1e-6])[0] == 3.0


# Many curves


def test_bootstrap_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(1, 60))
    value, error = bootstrap(curves, lambda y: y[0], 2000)
    np.testing.assert_allclose(value, curves.mean(), rtol=1e-12)
    np.testing.assert_allclose(error, curves.std() / np.sqrt(60), rtol=0.08)
    assert bootstrap(curves, lambda y: y[0], 50)[1] == bootstrap(curves, lambda y: y[0], 50)[1]
    # What is shared by all batches is not averaged away by more batches.
    crossed = np.repeat(rng.normal(size=(1, 1, 40)), 50, axis=1)
    _, error = bootstrap(crossed, lambda y: y[0], 2000)
    np.testing.assert_allclose(error, crossed[0, 0].std() / np.sqrt(40), rtol=0.08)


def test_bootstrap_of_a_single_batch_knows_no_error():
    assert bootstrap(np.ones((3, 1)), lambda y: y.min())[1] == np.inf


# Noise


def test_noise_is_found_beneath_a_smooth_function():
    rng = np.random.default_rng(1)
    t = np.linspace(-4e-3, 4e-3, 9)
    for size in (1e-9, 1e-7):
        levels = [
            fits.noise_level(np.cos(t) + 5.0 * t + size * rng.normal(size=9)) for _ in range(300)
        ]
        assert 0.7 < np.median(levels) / size < 1.2
        assert np.quantile(levels, 0.05) > 0.3 * size


def test_noise_of_equal_values_is_none_and_bad_values_are_refused():
    assert fits.noise_level(np.ones(9)) == 0.0
    with pytest.raises(ValueError, match="at least 5 finite"):
        fits.noise_level([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="at least 5 finite"):
        fits.noise_level([1.0, np.inf, 3.0, 4.0, 5.0])


def test_second_derivatives_err_by_no_more_than_they_say():
    rng = np.random.default_rng(2)
    steps = 1e-3 * 2.0 ** np.arange(11)
    for noise in (1e-12, 1e-8, 1e-5):
        inside = []
        for _ in range(200):
            plus, minus = (np.exp(s * steps) + noise * rng.normal(size=11) for s in (1.0, -1.0))
            found = fits.second_derivative(steps, minus, 1.0 + noise * rng.normal(), plus, noise)
            inside.append(abs(found.value - 1.0) <= 2.0 * found.error)
            assert found.error < 40.0 * noise**0.5  # what balancing the two can reach
        assert np.mean(inside) > 0.97


def test_no_second_derivative_of_infinite_losses():
    steps = 2.0 ** np.arange(4)
    found = fits.second_derivative(steps, np.full(4, np.inf), 0.0, np.ones(4), 0.0)
    assert found == (np.inf, np.inf, np.inf)
