"""Averages made of stored ones, against sums over iterates and the normal equations."""

import numpy as np
import pytest

from tf_lrtraj import kernels, theory

POWER = [kernels.PowerFunction(6.94), kernels.PowerFunction(16.97)]
EVERY_100 = [(kernel, step) for kernel in POWER for step in range(100, 1001, 100)]
CASES = {
    "one of them": (EVERY_100, POWER[0], 1000),
    "a power between": (EVERY_100, kernels.PowerFunction(12.0), 1000),
    "a narrower power": (EVERY_100, kernels.PowerFunction(25.0), 1000),
    "ema": (EVERY_100, kernels.Exponential(0.99), 1000),
    "at another time": (EVERY_100, kernels.PowerFunction(10.0), 950),
    "two stored": (EVERY_100[9::10], kernels.PowerFunction(12.0), 1000),
    "one stored": ([(POWER[0], 800)], kernels.Window(100), 1000),
    "the same twice": ([(POWER[0], 500)] * 2 + [(POWER[1], 500)], kernels.PowerFunction(9.0), 500),
    "weights": (EVERY_100, np.r_[np.zeros(801), np.full(200, 1 / 200)], 1000),
}


@pytest.mark.parametrize("name", CASES)
def test_coefficients_solve_the_least_squares_problem(name):
    stored, target, last = CASES[name]
    stored = [(kernel, step) for kernel, step in stored if step <= last]
    found = theory.combine_averages(stored, target, last)
    rows = np.array([np.pad(k.weights(t), (0, last - t)) for k, t in stored])
    wanted = target.weights(last) if isinstance(target, kernels.Kernel) else target
    np.testing.assert_array_equal(found.target, wanted)
    np.testing.assert_allclose(found.weights, found.coefficients @ rows, atol=1e-12)
    assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-12)
    left = found.weights - wanted
    # At the minimum the gradient is the same along every coefficient (a multiplier of the sum).
    gradient = rows @ left
    scale = np.linalg.norm(rows, axis=1).max() * np.linalg.norm(wanted)
    assert np.ptp(gradient) < 1e-5 * scale
    assert found.error == pytest.approx(np.linalg.norm(left) / np.linalg.norm(wanted))
    assert found.moved == pytest.approx(np.abs(left).sum() / 2)
    assert found.amplification == pytest.approx(np.abs(found.coefficients).sum())
    if name == "one of them":
        assert found.error < 1e-6
    if name == "one stored":
        np.testing.assert_array_equal(found.coefficients, [1.0])


def test_a_mean_between_two_times_is_exact():
    """(n U_n - m U_m) / (n - m): the only case that needs no approximation."""
    stored = [(kernels.Uniform(), 299), (kernels.Uniform(), 199)]
    found = theory.combine_averages(stored, kernels.Window(100))
    np.testing.assert_allclose(found.coefficients, [3.0, -2.0], rtol=1e-10)
    assert found.error < 1e-12 and found.moved < 1e-12
    assert found.amplification == pytest.approx(5.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("walk", [False, True], ids=["noise", "walk"])
def test_errors_on_random_trajectories(seed, walk):
    iterates = np.random.default_rng(seed).normal(size=(1001, 400))
    if walk:
        iterates = np.cumsum(iterates, axis=0)
    for kernel in (kernels.PowerFunction(12.0), kernels.Exponential(0.99)):
        found = theory.combine_averages(EVERY_100, kernel)
        wanted = kernel.weights(1000) @ iterates
        built = sum(
            share * (k.weights(t) @ iterates[: t + 1])
            for share, (k, t) in zip(found.coefficients, EVERY_100, strict=True)
        )
        distance = np.linalg.norm(built - wanted)
        widest = max(np.linalg.norm(iterates - iterate, axis=1).max() for iterate in iterates[::50])
        assert distance <= found.moved * 2 * widest  # the triangle of any two and one of these
        if not walk:  # then the error is the relative distance, but for chance
            assert distance / np.linalg.norm(wanted) == pytest.approx(found.error, rel=0.15)


def test_more_stored_averages_come_closer():
    errors = []
    for every in (1000, 100, 50):
        stored = [(kernel, step) for kernel in POWER for step in range(every, 1001, every)]
        errors.append(theory.combine_averages(stored, kernels.PowerFunction(12.0)).error)
    assert errors[0] > 4 * errors[1] > 8 * errors[2]
    assert errors[2] < 5e-3
