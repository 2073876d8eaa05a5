"""Mismatch on a spectrum, and the fitted schedule, against plain loops and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lrtraj import kernels, theory
from tf_lrtraj.theory import schedule_fit


def make_model(seed=0, size=8, low=1e-3):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        curvatures=np.geomspace(low, 1.0, size), noise_variances=rng.uniform(0.1, 1.0, size)
    )


def slow_losses(model, learning_rates, initial):
    moments, losses = initial**2, []
    for rate in [*learning_rates, None]:
        losses.append(0.5 * model.curvatures @ moments)
        if rate is not None:
            step = rate * model.curvatures
            moments = (1 - step) ** 2 * moments + step**2 * model.noise_variances
    return np.array(losses)


def noise_and_start_coefficients(weights, learning_rates, curvature, momentum=0.0):
    """The average as an explicit linear map of the start and of every batch (O(T²))."""
    num_steps = learning_rates.size
    state = np.zeros((num_steps + 1,))  # θ as coefficients on (start, batches)
    state[0], velocity, average = 1.0, np.zeros(num_steps + 1), 0.0
    average = weights[0] * state
    for t, rate in enumerate(learning_rates):
        gradient = curvature * state
        gradient[t + 1] -= curvature
        velocity = momentum * velocity - rate * gradient
        state = state + velocity
        average = average + weights[t + 1] * state
    return average


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_mismatch_equals_the_explicit_linear_maps(momentum):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=61)
    weights /= weights.sum()
    base, schedule = rng.uniform(0.1, 1.0, 60), rng.uniform(-0.1, 1.0, 60)
    curvatures = np.array([0.0, 1e-3, 0.3, 1.9])
    found = theory.schedule_mismatch(schedule, weights, base, curvatures, momentum)
    last = np.eye(61)[-1]
    for i, curvature in enumerate(curvatures):
        average = noise_and_start_coefficients(weights, base, curvature, momentum)
        end = noise_and_start_coefficients(last, schedule, curvature, momentum)
        assert found.average_bias[i] == pytest.approx(average[0], rel=1e-10)
        assert found.schedule_bias[i] == pytest.approx(end[0], rel=1e-10)
        assert found.average_variance[i] == pytest.approx(np.sum(average[1:] ** 2), rel=1e-10)
        assert found.schedule_variance[i] == pytest.approx(np.sum(end[1:] ** 2), rel=1e-10)
        difference = np.sum((average[1:] - end[1:]) ** 2)
        assert found.path_variance[i] == pytest.approx(difference, rel=1e-9)


def test_mismatch_vanishes_at_the_reference_curvature_only():
    base = np.full(300, 0.5)
    kernel = kernels.Exponential(0.97)
    schedule = theory.schedule_from_weights(kernel, base, curvature=0.1)
    found = theory.schedule_mismatch(schedule, kernel, base, [0.01, 0.1, 1.0])
    assert found.path_variance[1] < 1e-28
    assert min(found.path_variance[[0, 2]]) > 1e-6
    np.testing.assert_allclose(
        found.average_losses(2.0, 0.3)[1], found.schedule_losses(2.0, 0.3)[1]
    )
    expected = 0.5 * 0.01 * (found.average_bias[0] ** 2 * 4 + found.average_variance[0] * 0.3)
    assert found.average_losses(2.0, 0.3)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(curvatures=[-1.0]), "`curvatures` must not be negative"),
        (dict(curvatures=[20.0]), "stability limit"),
        (dict(schedule=[0.1]), r"`schedule` must be of shape \[2\]"),
        (dict(schedule=[0.1, np.nan]), "`schedule` must be finite"),
    ],
)
def test_mismatch_refuses_bad_arguments(change, message):
    arguments = dict(schedule=[0.1, 0.1], weights=[0, 0.5, 0.5], base=0.1, curvatures=[1.0])
    with pytest.raises(ValueError, match=message):
        theory.schedule_mismatch(**{**arguments, **change})


def test_loss_curve_equals_the_plain_loop():
    model, rng = make_model(), np.random.default_rng(0)
    rates, initial = rng.uniform(0, 1.9, 100), rng.normal(size=8)
    np.testing.assert_allclose(
        schedule_fit.loss_curve(model, rates, initial),
        slow_losses(model, rates, initial),
        rtol=1e-12,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_steps=st.integers(1, 30))
def test_adjoint_gradient_equals_finite_differences(seed, num_steps):
    model, rng = make_model(seed), np.random.default_rng(seed)
    rates, initial = rng.uniform(0.05, 1.5, num_steps), rng.normal(size=8) + 2
    mix = rng.normal(size=num_steps + 1)

    def value(rates):
        return mix @ np.log(slow_losses(model, rates, initial))

    slopes = mix / slow_losses(model, rates, initial)
    gradient = theory.loss_curve_gradient(model, rates, initial, slopes)
    step = 1e-5
    numeric = np.empty(num_steps)
    for j in range(num_steps):
        shift = step * np.eye(num_steps)[j]
        # fourth order, so that truncation is far below the tolerance
        near = value(rates + shift) - value(rates - shift)
        far = value(rates + 2 * shift) - value(rates - 2 * shift)
        numeric[j] = (8 * near - far) / (12 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7 * np.abs(numeric).max())


def averaged_losses(model, kernel, rate, num_steps, initial):
    """Losses of the average after 0 … T updates, each from its own explicit weights."""
    losses = [0.5 * model.curvatures @ initial**2]
    for t in range(1, num_steps + 1):
        found = theory.schedule_mismatch(
            np.full(t, rate), kernel.weights(t), rate, model.curvatures
        )
        losses.append(found.average_losses(initial, model.noise_variances).sum())
    return np.array(losses)


@pytest.mark.parametrize("shape", ["free", "monotone", "linear", "exponential"])
@pytest.mark.parametrize(
    "kernel",
    [kernels.Exponential(0.95), kernels.Uniform(start=40), kernels.TwoPoint(20)],
    ids=str,
)
def test_fitted_schedule_is_never_worse_than_the_closed_forms(shape, kernel):
    model, initial, num_steps = make_model(), np.full(8, 2.0), 80
    curve = averaged_losses(model, kernel, 0.5, num_steps, initial)
    weights = kernel.weights(num_steps)
    for target in [curve, curve[-1]]:
        fit = theory.fit_schedule(
            model, target, np.full(num_steps, 0.5), initial, shape=shape, weights=weights
        )
        losses = slow_losses(model, fit.schedule, initial)
        np.testing.assert_allclose(fit.losses, losses, rtol=1e-11)
        steps = slice(1, None) if np.ndim(target) else slice(-1, None)
        misfit = np.sqrt(np.mean(np.log(losses[steps] / curve[steps]) ** 2))
        assert fit.misfit == pytest.approx(misfit, rel=1e-9, abs=1e-13)
        assert fit.misfit <= min(fit.closed_forms.values())
        assert fit.schedule.min() >= 0.0
        if shape in ("monotone", "linear", "exponential"):
            assert np.all(np.diff(fit.schedule) <= 1e-15)
        if shape == "free":
            # every equivalent schedule at one curvature was among those compared
            for curvature in [0.0, *model.curvatures[[0, -1]]]:
                reference = theory.schedule_from_weights(weights, 0.5, curvature)
                reference_losses = slow_losses(model, reference, initial)
                other = np.log(reference_losses[steps] / curve[steps])
                assert fit.misfit <= np.sqrt(np.mean(other**2)) + 1e-12


def test_search_improves_and_reaches_attainable_targets():
    model, initial = make_model(), np.full(8, 2.0)
    wanted = 0.6 * np.exp(-np.linspace(0, 2, 60))
    target = slow_losses(model, wanted, initial)
    for shape in ["free", "monotone"]:
        fit = theory.fit_schedule(model, target, 0.6, initial, shape=shape, max_iterations=3000)
        assert fit.misfit < 1e-4
        assert fit.misfit < 0.01 * min(fit.closed_forms.values())
    wanted = 0.6 * np.minimum(np.arange(60, 0, -1) / 23.5, 1) * 0.9 + 0.06
    fit = theory.fit_schedule(
        model, slow_losses(model, wanted, initial), 0.6, initial, shape="linear"
    )
    np.testing.assert_allclose(fit.schedule, wanted, rtol=1e-3)


def test_one_curvature_recovers_the_exact_equivalence_at_the_end():
    model = SimpleNamespace(curvatures=np.array([0.7]), noise_variances=np.array([0.4]))
    initial = np.array([1.5])
    kernel = kernels.Exponential(0.9)
    target = averaged_losses(model, kernel, 0.5, 50, initial)[-1]
    fit = theory.fit_schedule(model, target, np.full(50, 0.5), initial, weights=kernel.weights(50))
    assert fit.misfit < 1e-10


def test_candidates_and_max_rate():
    model, initial = make_model(), np.full(8, 2.0)
    wanted = np.linspace(1.2, 0.1, 30)
    target = slow_losses(model, wanted, initial)
    fit = theory.fit_schedule(model, target, 0.5, initial, candidates=[wanted])
    np.testing.assert_array_equal(fit.schedule, wanted)
    assert fit.start == "candidate 0"
    assert fit.misfit < 1e-15  # of sums in another order
    wider = theory.fit_schedule(model, target, 0.5, initial, max_rate=1.5)
    bounded = theory.fit_schedule(model, target, 0.5, initial)
    assert bounded.schedule.max() <= 0.5
    assert wider.misfit < bounded.misfit
    np.testing.assert_array_equal(
        theory.best_schedule(model, target, 0.5, initial), bounded.schedule
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(target_losses=[1.0, -1.0, 1.0]), "`target_losses` must be positive.*-1.0"),
        (dict(target_losses=1.0), r"or one number with `base` of shape \[T\]"),
        (dict(target_losses=[1.0, np.nan, 1.0]), "`target_losses` must be finite"),
        (dict(base=[0.1, 0.1, 0.1]), r"`base` must be .*\[2\]"),
        (dict(base=2.0), r"stability limit 2.0. Received: rates up to .*2.0"),
        (dict(initial=[1.0]), r"`initial` must be of shape \[8\]"),
        (dict(shape="cubic"), "`shape` must be one of .*Received: shape='cubic'"),
        (dict(max_rate=5.0), "`max_rate` must be positive and below 2.0"),
        (dict(candidates=[[0.1]]), r"`candidates` must be of shape \[2\]"),
        (dict(max_iterations=0), "`max_iterations` must be an integer of at least 1"),
    ],
)
def test_fit_refuses_bad_arguments(change, message):
    arguments = dict(target_losses=[2.0, 1.0, 0.9], base=0.5, initial=np.ones(8))
    with pytest.raises(ValueError, match=message):
        theory.fit_schedule(make_model(), **{**arguments, **change})


def test_long_runs_on_many_curvatures():
    model = make_model(size=20)
    rates, initial = np.linspace(0.9, 0.0, 10_000), np.ones(20)
    losses = schedule_fit.loss_curve(model, rates, initial)
    np.testing.assert_allclose(losses, slow_losses(model, rates, initial), rtol=1e-10)
    gradient = theory.loss_curve_gradient(model, rates, initial, np.ones(10_001))
    shift = 1e-4 * (np.arange(10_000) == 9_000)
    ends = [slow_losses(model, rates + sign * shift, initial).sum() for sign in (1, -1)]
    assert gradient[9_000] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)


def test_a_quadratic_model_of_matrices():
    """Curvature and noise that do not commute, against the model's own exact losses."""
    rng = np.random.default_rng(0)
    half, other = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    model = theory.QuadraticModel(half @ half.T / 8, other @ other.T)
    initial, rates = rng.normal(size=4), rng.uniform(0, 1.5 / np.linalg.norm(half, 2) ** 2, 40)
    np.testing.assert_allclose(
        schedule_fit.loss_curve(model, rates, initial),
        model.expected_loss(rates, initial),
        rtol=1e-11,
    )
    kernel = kernels.Exponential(0.9)
    target = model.expected_loss_of_average(kernel, np.full(40, 0.3), initial)
    fit = theory.fit_schedule(model, target, 0.3, initial, weights=kernel.weights(40))
    assert fit.misfit <= min(fit.closed_forms.values())
    np.testing.assert_allclose(fit.losses, model.expected_loss(fit.schedule, initial), rtol=1e-11)


def test_averages_seen_by_the_mismatch_are_those_of_the_exact_moments():
    model = theory.QuadraticModel(np.geomspace(0.01, 1, 6), np.linspace(0.1, 1, 6))
    base, initial = np.linspace(0.9, 0.1, 50), np.full(6, 1.3)
    kernel = kernels.Uniform(start=20)
    schedule = theory.schedule_from_weights(kernel, base, 0.1)
    found = theory.schedule_mismatch(schedule, kernel, base, model.curvatures)
    average = found.average_losses(initial, model.noise_variances).sum()
    expected = model.expected_loss_of_average(kernel, base, initial)[-1]
    assert average == pytest.approx(expected, rel=1e-11)
    run = found.schedule_losses(initial, model.noise_variances).sum()
    assert run == pytest.approx(model.expected_loss(schedule, initial)[-1], rel=1e-11)
