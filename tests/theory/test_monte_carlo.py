"""Formulas against simulated runs: 4 standard errors, over hundreds of random problems.

Seeds are fixed, so a pass or a failure repeats.  With 1e-4 the chance of a normal variable
beyond 4 standard errors, about one in ten such files would show an unlucky seed.
"""

from __future__ import annotations

import numpy as np
import pytest

from tf_lrtraj import kernels, theory

RUNS = 3000
TOLERANCE = 4.0  # standard errors


def random_kernels(rng):
    decay, gap, length, every = rng.uniform(0.3, 0.95), *rng.integers(1, 8, 3).tolist()
    weights = rng.normal(size=4)
    weights[0] += 1.0 - weights.sum()
    return {
        "ema": kernels.Exponential(decay, start=int(rng.integers(0, 4))),
        "swa": kernels.Uniform(start=int(rng.integers(0, 6)), every=every),
        "window": kernels.Window(length),
        "spaced": kernels.Window(2, every=every),
        "two": kernels.TwoPoint(gap),
        "custom": kernels.Custom(weights),
        "half-life": kernels.HalfLife(0.6, longest=4, every=every),
        "bema": kernels.BEMA(start=2),
        "ended bema": kernels.BEMA(start=1, end=4),
        "decay": kernels.PowerFunction(-0.5, start=1),
        "ended window": kernels.Window(length, end=5),
        "ended two": kernels.TwoPoint(2, end=4),
    }


def random_model(rng):
    size = int(rng.integers(1, 4))
    a, c = rng.uniform(0.0, 2.0, size), rng.uniform(0.0, 2.0, size)
    if rng.uniform() < 0.5:
        roots = rng.normal(size=(2, size, size))
        a, c = roots @ roots.transpose(0, 2, 1)
    return theory.QuadraticModel(a, c)


def misses(curve, expected, exact=1e-9):
    """Steps where a simulated curve is off, in standard errors and beyond rounding."""
    allowed = TOLERANCE * curve.stderr + exact * np.abs(expected)
    return np.flatnonzero(np.abs(curve.losses - expected) > allowed)


@pytest.mark.parametrize("seeds", [range(i, i + 25) for i in range(0, 200, 25)], ids=str)
def test_transients_of_every_average(seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        model, named = random_model(rng), random_kernels(rng)
        momentum, convention = [0.0, 0.0, 0.7, 0.9][seed % 4], ["keras", "pytorch"][seed % 2]
        limit = model.stability_limit(momentum)
        rates = rng.uniform(0.0, 0.7 * limit, int(rng.integers(1, 15)))
        start = rng.normal(size=model.size)
        options = {"momentum": momentum, "convention": convention}
        expected = model.expected_losses(rates, start, named, **options)
        found = model.simulate(rates, start, RUNS, seed, named, **options)
        # The end of the run only: steps of one run are not independent tests.
        for name, curve in {"raw": found, **found.averages}.items():
            last = len(rates)
            assert last not in misses(curve, expected[name]), (seed, name)
            assert 0 not in misses(curve, expected[name])


@pytest.mark.parametrize("seeds", [range(i, i + 25) for i in range(200, 250, 25)], ids=str)
def test_stationary_state_and_what_averages_keep_of_it(seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        model, named = random_model(rng), random_kernels(rng)
        rate = rng.uniform(0.05, 0.9) * model.stability_limit()
        spread = model.stationary_covariance(rate)
        starts = rng.multivariate_normal(np.zeros(model.size), spread, RUNS, method="svd")
        steps = 16
        found = model.simulate(np.full(steps, rate), starts, RUNS, seed, named)
        expected = {"raw": model.stationary_loss(rate)}
        for name, kernel in named.items():
            expected[name] = model.stationary_loss_of_average(kernel, rate, num_steps=steps)
        for name, curve in {"raw": found, **found.averages}.items():
            assert steps not in misses(curve, expected[name]), (seed, name)

        products = np.einsum("ri,rj->rij", found.iterates, starts)
        error = products.std(axis=0) / np.sqrt(RUNS)
        lagged = model.lagged_covariance(rate, steps)
        assert np.all(np.abs(products.mean(axis=0) - lagged) <= TOLERANCE * error + 1e-12)

        average = found.final_averages["custom"]
        products = np.einsum("ri,rj->rij", average, average)
        error = products.std(axis=0) / np.sqrt(RUNS)
        kept = model.stationary_covariance_of_average(named["custom"], rate)
        assert np.all(np.abs(products.mean(axis=0) - kept) <= TOLERANCE * error + 1e-12)


def test_the_tolerance_would_catch_a_wrong_formula():
    model = theory.QuadraticModel([1.0, 0.5], [1.0, 1.0])
    rates = np.full(10, 0.5)
    found = model.simulate(rates, [1.0, 1.0], RUNS, 0)
    wrong = model.expected_loss(rates, [1.0, 1.0]) * 1.15
    assert misses(found, wrong).size > 5


# --- The simulation itself


@pytest.fixture
def model():
    return theory.QuadraticModel([1.0, 0.3], [1.0, 2.0])


def test_the_same_seed_gives_the_same_numbers(model):
    rates = np.full(5, 0.5)
    first, again, other = (model.simulate(rates, [1.0, 1.0], 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.losses, again.losses)
    np.testing.assert_array_equal(first.iterates, again.iterates)
    assert not np.any(first.iterates == other.iterates)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_averages_are_those_of_the_path_that_was_run(model, momentum):
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.0, 0.5, 40)
    named = {
        **random_kernels(rng),
        "long window": kernels.Window(11),
        "long gap": kernels.TwoPoint(100),
    }
    # The random numbers of a step do not depend on how many follow, so prefixes of the
    # run are its path.
    path = np.array(
        [model.simulate(rates[:t], [1.0, 1.0], 7, 3, momentum=momentum).iterates for t in range(41)]
    )
    for t in (0, 1, 5, 11, 12, 40):
        found = model.simulate(rates[:t], [1.0, 1.0], 7, 3, named, momentum=momentum)
        for name, kernel in named.items():
            expected = np.einsum("k,krd->rd", kernel.weights(t), path[: t + 1])
            np.testing.assert_allclose(
                found.final_averages[name], expected, rtol=1e-12, atol=1e-14, err_msg=name
            )


@pytest.mark.parametrize("num_runs", [2, 400, 80_000])  # one block, and several
def test_means_and_standard_errors_are_those_of_the_runs(model, num_runs):
    found = model.simulate(np.full(6, 0.5), [2.0, 1.0], num_runs, 0, {"two": kernels.TwoPoint(2)})
    for curve, points in [
        (found, found.iterates),
        (found.averages["two"], found.final_averages["two"]),
    ]:
        losses = 0.5 * points**2 @ model.curvatures
        assert curve.losses[-1] == pytest.approx(losses.mean(), rel=1e-12)
        expected = losses.std(ddof=1) / np.sqrt(num_runs)
        assert curve.stderr[-1] == pytest.approx(expected, rel=1e-10)
        assert curve.stderr[0] == pytest.approx(0.0, abs=1e-15)


def test_iterates_come_back_in_the_coordinates_of_the_model():
    rng = np.random.default_rng(0)
    a = np.array([[2.0, 1.0], [1.0, 2.0]])
    model = theory.QuadraticModel(a, np.zeros((2, 2)))
    starts = rng.normal(size=(3, 2))
    found = model.simulate([0.1, 0.2], starts, 3, 0)
    step = (np.eye(2) - 0.2 * a) @ (np.eye(2) - 0.1 * a)
    np.testing.assert_allclose(found.iterates, starts @ step.T, rtol=1e-12)


def test_kernels_by_name_by_place_or_alone(model):
    two, ema = kernels.TwoPoint(1), kernels.Exponential(0.5)
    run = lambda named: set(model.simulate([0.1], [1.0, 1.0], 2, 0, named).averages)  # noqa: E731
    assert run(None) == set()
    assert run(two) == {"0"}
    assert run([two, ema]) == {"0", "1"}
    assert run({"ema": ema}) == {"ema"}
