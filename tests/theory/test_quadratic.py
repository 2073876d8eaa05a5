"""The quadratic model against enumerated batches, Lyapunov equations and long runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg

from tf_lrtraj import kernels, theory
from tf_lrtraj.theory import landmarks, moments, quadratic


def random_matrix(rng, size, rank=None):
    root = rng.normal(size=(size, rank or size))
    return root @ root.T / size


@pytest.fixture(params=range(6))
def problem(request):
    """(model, A, C, rng) with spectra, matrices that do not commute, and both mixed."""
    rng = np.random.default_rng(request.param)
    size = 3
    a, c = rng.uniform(0.2, 1.5, size), rng.uniform(0.1, 2.0, size)
    full_a, full_c = random_matrix(rng, size), random_matrix(rng, size, rank=2)
    a, c = [(a, c), (full_a, full_c), (a, full_c), (full_a, c), (a, c), (full_a, full_c)][
        request.param
    ]
    matrix_a = a if a.ndim == 2 else np.diag(a)
    matrix_c = c if c.ndim == 2 else np.diag(c)
    return theory.QuadraticModel(a, c), matrix_a, matrix_c, rng


# --- One step, with batches enumerated: an endless stream of batches is replaced by a few
# minimisers with exactly the covariance C, over which expectations are plain means.


def enumerated_batches(matrix_c):
    values, vectors = np.linalg.eigh(matrix_c)
    axes = (vectors * np.sqrt(len(values) * np.maximum(values, 0.0))).T
    return np.concatenate([axes, -axes])


@pytest.mark.parametrize("held_out", [False, True])
def test_one_step_loss_and_its_best_rate_equal_the_mean_over_batches(problem, held_out):
    model, a, c, rng = problem
    batches = enumerated_batches(c)
    np.testing.assert_allclose(batches.T @ batches / len(batches), c, atol=1e-12)
    point = rng.normal(size=3)
    rates = np.array([-0.1, 0.0, 0.3, 1.0, 2.0])

    def expected(rate):
        losses = []
        for x, y in itertools.product(batches, batches):
            moved = point - rate * a @ (point - x) - (y if held_out else x)
            losses.append(0.5 * moved @ a @ moved)
        return np.mean(losses)

    found = model.one_step_loss(rates, point, held_out)
    np.testing.assert_allclose(found, [expected(rate) for rate in rates], rtol=1e-12)

    best = model.best_step(point, held_out)
    here = expected(0.0)
    assert expected(best.best_rate) == pytest.approx(here - best.gain, rel=1e-12)
    assert expected(best.zero_crossing) == pytest.approx(here, rel=1e-12)
    for shift in (-1e-3, 1e-3):
        assert expected(best.best_rate + shift) > expected(best.best_rate)


def test_gradient_statistics_equal_the_mean_over_batches(problem):
    model, a, c, rng = problem
    point = rng.normal(size=3)
    gradients = (point - enumerated_batches(c)) @ a
    full = a @ point
    found = model.gradient_statistics(point)
    assert found.signal == pytest.approx(full @ full)
    assert found.noise == pytest.approx(np.mean(np.sum((gradients - full) ** 2, axis=1)))
    pairs = np.mean(gradients @ gradients.T)  # independent batches: all pairs
    squares = np.mean(np.sum(gradients**2, axis=1))
    assert found.cosine_between_batches == pytest.approx(pairs / squares)
    to_full = np.mean(gradients @ full) / (np.linalg.norm(full) * np.sqrt(squares))
    assert found.cosine_to_full == pytest.approx(to_full)
    assert found.noise_scale == pytest.approx(found.noise / found.signal)


def test_shell_drift_equals_the_mean_over_batches(problem):
    model, a, c, rng = problem
    point, rate = rng.normal(size=3), 0.3 * model.stability_limit()
    moved = point - rate * (point - enumerated_batches(c)) @ a
    drift = np.mean(np.sum(moved**2, axis=1)) - point @ point
    found = model.shell(point, rate)
    assert found.drift == pytest.approx(drift)
    # Scaled onto the shell, a point neither gains nor loses norm.
    on_shell = model.shell(point / np.sqrt(found.position), rate)
    assert on_shell.position == pytest.approx(1.0)
    assert on_shell.drift == pytest.approx(0.0, abs=1e-12)
    assert model.shell(0.9 * point / np.sqrt(found.position), rate).drift > 0.0


def test_points_without_gradient_or_noise():
    quiet = theory.QuadraticModel([1.0], [0.0])
    assert quiet.best_step([0.0], held_out=True) == landmarks.OneStep(best_rate=0.0, gain=0.0)
    assert quiet.gradient_statistics([0.0]).cosine_to_full == 0.0
    assert quiet.gradient_statistics([0.0]).noise_scale == np.inf
    assert quiet.shell([1.0], 0.1).position == np.inf


def test_stationary_held_out_gain_ends_at_the_rate_that_made_the_state():
    model = theory.QuadraticModel([1.7], [0.4])
    step = model.best_step([0.0], True, spread=model.stationary_variance(0.3))
    assert step.zero_crossing == pytest.approx(0.3) and step.best_rate == pytest.approx(0.15)
    # A step at that rate leaves the expected loss as it is, so it holds on any spectrum too.
    rng = np.random.default_rng(0)
    spectrum = theory.QuadraticModel(random_matrix(rng, 5), random_matrix(rng, 5))
    rate = 0.6 * spectrum.stability_limit()
    step = spectrum.best_step(np.zeros(5), True, spread=spectrum.stationary_covariance(rate))
    assert step.zero_crossing == pytest.approx(rate, rel=1e-12)


# --- Finite populations


def test_noise_of_batches_equals_enumeration():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(6, 2))
    samples -= samples.mean(axis=0)
    one = samples.T @ samples / 6
    without = np.array([np.mean(b, axis=0) for b in itertools.combinations(samples, 4)])
    with_ = np.array([np.mean(b, axis=0) for b in itertools.product(samples, repeat=4)])
    found = quadratic.noise_of_batches(one, 4, population=6, replacement=False)
    np.testing.assert_allclose(found, without.T @ without / len(without), atol=1e-14)
    found = quadratic.noise_of_batches(one, 4)
    np.testing.assert_allclose(found, with_.T @ with_ / len(with_), atol=1e-14)
    assert quadratic.noise_of_batches([3.0], 6, population=6, replacement=False) == 0.0
    assert quadratic.noise_of_batches([3.0], 1, population=1, replacement=False) == 0.0
    model = theory.QuadraticModel.of_batches(np.eye(2), one, 4, population=6, replacement=False)
    np.testing.assert_allclose(model.noise_variances, without.T @ without / len(without))


# --- Stationary state


def test_stationary_covariance_solves_the_lyapunov_equation(problem):
    model, a, c, _ = problem
    rate = 0.7 * model.stability_limit()
    step = np.eye(3) - rate * a
    expected = scipy.linalg.solve_discrete_lyapunov(step, rate**2 * a @ c @ a)
    found = model.stationary_covariance(rate)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(model.stationary_variance(rate), np.diag(expected), atol=1e-12)
    assert model.stationary_loss(rate) == pytest.approx(0.5 * np.trace(a @ expected))
    assert model.stationary_distance(rate) == pytest.approx(np.sqrt(np.trace(expected)))
    np.testing.assert_allclose(
        model.lagged_covariance(rate, 3), np.linalg.matrix_power(step, 3) @ expected, atol=1e-12
    )


def test_stationary_covariance_with_momentum(problem):
    model, a, c, _ = problem
    beta = 0.8
    rate = 0.6 * model.stability_limit(beta)
    eye = np.eye(3)
    step = np.block([[eye - rate * a, beta * eye], [-rate * a, beta * eye]])
    kick = np.vstack([rate * a, rate * a])
    expected = scipy.linalg.solve_discrete_lyapunov(step, kick @ c @ kick.T)[:3, :3]
    np.testing.assert_allclose(model.stationary_covariance(rate, beta), expected, atol=1e-11)
    assert model.stationary_loss(rate, beta) == pytest.approx(0.5 * np.trace(a @ expected))
    for convention in ("keras", "pytorch"):
        curve = model.expected_loss(
            np.full(400, rate), np.ones(3), momentum=beta, convention=convention
        )
        assert curve[-1] == pytest.approx(model.stationary_loss(rate, beta), rel=1e-6)


def test_stationary_covariance_of_averages(problem):
    model, a, _, _ = problem
    rate = 0.5 * model.stability_limit()
    kernel = kernels.Custom([0.5, 0.0, 0.75, -0.25])
    weights = kernel.weights(3)
    expected = np.zeros((3, 3))
    for k, j in itertools.product(range(4), repeat=2):
        lagged = model.lagged_covariance(rate, abs(k - j))
        expected += weights[k] * weights[j] * (lagged if k >= j else lagged.T)
    found = model.stationary_covariance_of_average(kernel, rate)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    loss = model.stationary_loss_of_average(kernel, rate)
    assert loss == pytest.approx(0.5 * np.trace(a @ expected))


def test_stationary_shell_and_distances(problem):
    model, _, _, rng = problem
    rate = 0.4 * model.stability_limit()
    spread = model.stationary_covariance(rate)
    shell = model.shell(np.zeros(3), rate, spread=spread)
    assert shell.position == pytest.approx(1.0) and shell.drift == pytest.approx(0.0, abs=1e-12)
    rates = np.full(int(6.0 / (rate * model.mode_curvatures.min())), rate)
    apart = model.trajectory_distance(rates, rng.normal(size=3), shared_batches=False)
    together = model.trajectory_distance(rates, rng.normal(size=3), shared_batches=True)
    assert apart[-1] == pytest.approx(2.0 * np.trace(spread), rel=1e-2)
    assert together[-1] < 1e-4 * together[0]
    square = model.expected_square_distance(rates, np.zeros(3))
    assert square[-1] == pytest.approx(np.trace(spread), rel=1e-2)


def test_square_root_law_of_the_distance():
    model = theory.QuadraticModel([0.5, 1.0], [1.0, 2.0])
    for rate in (1e-5, 1e-6):
        limit = np.sqrt(0.5 * rate * 2.5)
        assert model.stationary_distance(rate) == pytest.approx(limit, rel=2.0 * rate)


# --- Transients in any basis


def test_transients_do_not_depend_on_the_basis():
    rng = np.random.default_rng(3)
    a, noise, start = rng.uniform(0.1, 1.0, 4), random_matrix(rng, 4), rng.normal(size=4)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    straight = theory.QuadraticModel(a, noise)
    turned = theory.QuadraticModel(
        rotation @ np.diag(a) @ rotation.T, rotation @ noise @ rotation.T
    )
    rates = rng.uniform(0.0, 1.5, 25)
    spread = random_matrix(rng, 4)
    named = {"ema": kernels.Exponential(0.8), "window": kernels.Window(6)}
    found = turned.expected_losses(
        rates, rotation @ start, named, initial_covariance=rotation @ spread @ rotation.T
    )
    expected = straight.expected_losses(rates, start, named, initial_covariance=spread)
    for name, curve in expected.items():
        np.testing.assert_allclose(found[name], curve, rtol=1e-11)
    diagonal = turned.expected_loss(rates, rotation @ start, initial_covariance=np.ones(4))
    np.testing.assert_allclose(
        diagonal, straight.expected_loss(rates, start, initial_covariance=np.ones(4))
    )
    np.testing.assert_allclose(
        turned.expected_square_distance(rates, rotation @ start),
        straight.expected_square_distance(rates, start),
    )


def test_transients_equal_the_matrix_recursion(problem):
    model, a, c, rng = problem
    start, rates = rng.normal(size=3), rng.uniform(0.0, 1.0, 12)
    second = np.outer(start, start)
    losses, squares = [0.5 * np.trace(a @ second)], [np.trace(second)]
    for rate in rates:
        step = np.eye(3) - rate * a
        second = step @ second @ step.T + rate**2 * a @ c @ a
        losses.append(0.5 * np.trace(a @ second))
        squares.append(np.trace(second))
    np.testing.assert_allclose(model.expected_loss(rates, start), losses, rtol=1e-11)
    np.testing.assert_allclose(model.expected_square_distance(rates, start), squares, rtol=1e-11)
    assert model.irreducible_loss == pytest.approx(0.5 * np.trace(a @ c))


def test_flat_modes_stay_where_they_are():
    model = theory.QuadraticModel([[1.0, 0.0], [0.0, 0.0]], np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert model.stationary_covariance(0.5)[1, 1] == 0.0
    assert model.stationary_covariance(0.5, momentum=0.5)[1, 1] == 0.0
    np.testing.assert_allclose(
        model.expected_square_distance([0.5] * 50, [0.0, 2.0])[-1], 4 + 1 / 3
    )
    flat = theory.QuadraticModel([0.0], [1.0])
    assert flat.stability_limit() == np.inf and flat.stationary_loss(5.0) == 0.0


# --- What averages keep of the stationary state ---------------------------------------------------

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


@pytest.mark.parametrize("every", [1, 3])
def test_a_limited_half_life_is_an_ema_in_the_end(every):
    kernel = kernels.HalfLife(0.5, longest=12, start=10, every=every)
    weights = kernel.weights(10 + 900)
    expected = [direct(weights, rho) for rho in CONTRACTIONS]
    np.testing.assert_allclose(theory.stationary_factor(kernel, CONTRACTIONS), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "kernel",
    [kernels.Uniform(), kernels.PowerFunction(-0.5), kernels.HalfLife(0.1), kernels.BEMA()],
    ids=str,
)
def test_averages_that_reach_back_ever_further_need_a_number_of_steps(kernel):
    with pytest.raises(ValueError, match=rf"given for a {type(kernel).__name__} kernel, which"):
        theory.stationary_factor(kernel, 0.5)


@pytest.mark.parametrize("num_steps", [0, 3, 4, 9, 20, 30])
@pytest.mark.parametrize(
    "kernel",
    [
        kernels.PowerFunction(-0.5, start=2),
        kernels.HalfLife(0.3, longest=5, start=1, every=2),
        kernels.BEMA(start=3),
        kernels.BEMA(start=3, end=20),
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
