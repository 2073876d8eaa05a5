"""Averages and schedules, one into the other, against naive loops and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lrtraj import kernels, rates, theory
from tf_lrtraj.theory import schedule_equivalence, schedule_fit

TOLERANCE = 1e-10


def run(learning_rates, curvature, minimisers, start, momentum=0.0, convention="keras"):
    """[T+1] iterates of SGD with momentum on one direction, step by step."""
    theta, velocity, iterates = start, 0.0, [start]
    for rate, minimiser in zip(learning_rates, minimisers, strict=True):
        gradient = curvature * (theta - minimiser)
        if convention == "keras":
            velocity = momentum * velocity - rate * gradient
            theta = theta + velocity
        else:
            velocity = momentum * velocity + gradient
            theta = theta - rate * velocity
        iterates.append(theta)
    return np.array(iterates)


def slow_schedule(weights, base, curvature):
    """The backward recursion as it stands in the literature of this package, in a plain loop."""
    num_steps = base.size
    s = np.zeros(num_steps)
    s[-1] = weights[-1]
    for j in range(num_steps - 2, -1, -1):
        s[j] = weights[j + 1] + (1 - base[j + 1] * curvature) * s[j + 1]
    w = base * s
    schedule, later = np.zeros(num_steps), 0.0
    for j in range(num_steps - 1, -1, -1):
        schedule[j] = w[j] / (1 - curvature * later)
        later += w[j]
    return schedule


def mixed_powers(x, y, m):
    """Σ_{i<m} x^i y^{m-1-i} = (x^m - y^m) / (x - y), also where x and y nearly coincide."""
    if abs(x - y) > 1e-3 * max(abs(x), abs(y)):
        return (x**m - y**m) / (x - y)
    # (x^m - y^m)/(x - y) = y^{m-1} expm1(m z) / expm1(z) with x = y e^z
    if y <= 0.0:  # both near 0, or both negative and close: few terms or plain sums
        return np.array([np.sum(x ** np.arange(k) * y ** np.arange(k - 1, -1, -1.0)) for k in m])
    z = np.log1p((x - y) / y)
    return y ** (m - 1) * (m if z == 0.0 else np.expm1(m * z) / np.expm1(z))


def closed_form_schedule(kernel, rate, num_steps, curvature=0.0):
    """The schedules of familiar averages by the formulas of docs/theory/equivalence.md."""
    left = np.arange(num_steps, 0, -1)
    contraction = 1.0 - rate * curvature
    ratio = np.ones(num_steps)
    if isinstance(kernel, kernels.Exponential):
        tail = left <= num_steps - kernel.start
        m = left[tail]
        effect = (1.0 - kernel.decay) * mixed_powers(kernel.decay, contraction, m)
        ratio[tail] = effect / (kernel.decay**m + effect)
    elif isinstance(kernel, kernels.TwoPoint):
        tail = left <= (kernel.gap if num_steps >= kernel.gap else 0)
        effect = np.power(contraction, left[tail] - 1)
        ratio[tail] = effect / (1.0 + effect)
    else:
        if isinstance(kernel, kernels.Window):
            length = min(kernel.length, num_steps + 1)
        else:
            length = max(num_steps + 1 - kernel.start, 1)
        tail = left < length
        effect = mixed_powers(1.0, contraction, left[tail])
        ratio[tail] = effect / (length - left[tail] + effect)
    return rate * ratio


def draw_problem(seed, num_steps, signed, reach):
    """Random weights and base rates; `reach` is the largest base rate times curvature."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(3)
    ages = np.arange(num_steps, -1, -1)
    if shape == 0:
        weights = rng.exponential(size=num_steps + 1)
    elif shape == 1:
        weights = rng.exponential(size=num_steps + 1) * np.exp(
            -ages / rng.uniform(1, num_steps + 1)
        )
    else:
        weights = rng.exponential(size=num_steps + 1) * (rng.random(num_steps + 1) < 0.1)
        weights[-1] += 0.1
    if signed:
        # Negative parts that leave the average far from a pole of the map.
        weights *= rng.choice([-0.4, 1.0], p=[0.3, 0.7], size=num_steps + 1)
        weights[-1] += 0.2 * np.abs(weights).sum() + abs(weights.sum())
    weights /= weights.sum()
    kind = rng.integers(3)
    if kind == 0:
        base = np.full(num_steps, 0.1)
    elif kind == 1:
        base = 0.1 * rng.uniform(0.05, 1.0, num_steps)
    else:
        base = 0.1 * np.linspace(1.0, 0.02, num_steps)
    curvature = reach / base.max()
    return weights, base, curvature, rng.normal(size=num_steps), float(rng.normal())


def assert_path_exact(weights, base, curvature, minimisers, start, **momentum):
    schedule = theory.schedule_from_weights(weights, base, curvature, **momentum)
    iterates = run(base, curvature, minimisers, start, **momentum)
    last = run(schedule, curvature, minimisers, start, **momentum)[-1]
    scale = np.abs(weights) @ np.abs(iterates)
    assert abs(last - weights @ iterates) <= TOLERANCE * scale
    return schedule


problems = {
    "seed": st.integers(0, 2**32 - 1),
    "num_steps": st.one_of(st.integers(1, 60), st.integers(1, 2000)),
    "reach": st.one_of(st.just(0.0), st.floats(1e-9, 1.0), st.floats(1.0, 1.999)),
}


@settings(max_examples=150, deadline=None)
@given(**problems)
def test_average_is_the_last_iterate_of_the_scheduled_run(seed, num_steps, reach):
    weights, base, curvature, minimisers, start = draw_problem(seed, num_steps, False, reach)
    schedule = assert_path_exact(weights, base, curvature, minimisers, start)
    if reach <= 1.0:
        assert np.all(schedule >= 0.0)
        assert np.all(schedule <= base * (1 + 1e-12))
    back = theory.weights_from_schedule(schedule, base, curvature)
    np.testing.assert_allclose(back, weights, rtol=0, atol=TOLERANCE)


@settings(max_examples=150, deadline=None)
@given(**problems)
def test_signed_weights_are_path_exact(seed, num_steps, reach):
    reach = min(reach, 1.0)  # beyond, poles are common; see the test of all random signs
    weights, base, curvature, minimisers, start = draw_problem(seed, num_steps, True, reach)
    schedule = assert_path_exact(weights, base, curvature, minimisers, start)
    back = theory.weights_from_schedule(schedule, base, curvature)
    np.testing.assert_allclose(back, weights, rtol=0, atol=TOLERANCE * np.abs(weights).sum())


@pytest.mark.parametrize("seed", range(60))
def test_wild_signed_weights_are_path_exact_or_refused(seed):
    """Gaussian weights cross zero again and again: exact to their conditioning, or an error."""
    rng = np.random.default_rng(seed)
    num_steps = int(rng.integers(2, 2000))
    weights = rng.normal(size=num_steps + 1)
    weights /= weights.sum()
    base = 0.1 * rng.uniform(0.1, 1.0, num_steps)
    curvature = rng.choice([0.0, 0.3, 5.0, 15.0, 19.5])
    try:
        found = theory.equivalent_schedule(weights, base, curvature)
    except ValueError as error:
        assert "No schedule equals this average" in str(error)
        return
    assert_path_exact(weights, base, curvature, rng.normal(size=num_steps), 1.0)
    back = theory.weights_from_schedule(found.schedule, base, curvature)
    scale = np.abs(weights).sum()
    np.testing.assert_allclose(back, weights, rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_array_equal(found.negative_steps, np.flatnonzero(found.schedule < 0))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_steps=st.integers(1, 400),
    reach=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
    momentum=st.sampled_from([0.3, 0.9, 0.99]),
    convention=st.sampled_from(["keras", "pytorch"]),
)
def test_momentum_with_curvature_is_path_exact(seed, num_steps, reach, momentum, convention):
    weights, base, curvature, minimisers, start = draw_problem(seed, num_steps, False, reach)
    try:
        found = theory.equivalent_schedule(
            weights, base, curvature, momentum, convention=convention
        )
    except ValueError as error:  # momentum overshoots, so poles exist for positive weights too
        assert "No schedule" in str(error)
        return
    if found.condition < 1e5:
        assert_path_exact(
            weights, base, curvature, minimisers, start, momentum=momentum, convention=convention
        )


@pytest.mark.parametrize("convention", ["keras", "pytorch"])
def test_momentum_is_exact_for_frozen_gradients_of_any_length(convention):
    """At curvature 0 any sequence of gradients, whatever its source, gives the same end."""
    rng = np.random.default_rng(0)
    num_steps, momentum = 300, 0.9
    gradients = rng.normal(size=num_steps)
    base = rng.uniform(0.02, 0.1, num_steps)
    weights = rng.exponential(size=num_steps + 1)
    weights /= weights.sum()

    def frozen(learning_rates):
        theta, velocity, iterates = 0.0, 0.0, [0.0]
        for rate, gradient in zip(learning_rates, gradients, strict=True):
            if convention == "keras":
                velocity = momentum * velocity - rate * gradient
                theta += velocity
            else:
                velocity = momentum * velocity + gradient
                theta -= rate * velocity
            iterates.append(theta)
        return np.array(iterates)

    schedule = theory.schedule_from_weights(weights, base, 0.0, momentum, convention=convention)
    average = weights @ frozen(base)
    assert frozen(schedule)[-1] == pytest.approx(average, rel=1e-12)
    back = theory.weights_from_schedule(schedule, base, 0.0, momentum, convention=convention)
    np.testing.assert_allclose(back, weights, atol=TOLERANCE)


def test_momentum_formula_at_constant_base():
    weights = kernels.Exponential(0.95).weights(200)
    steps, beta = np.arange(200), 0.9
    k = np.arange(201)
    powers = 1 - beta ** (k[None, :] - steps[:, None])
    expected = 0.3 * np.where(k > steps[:, None], powers, 0) @ weights / (1 - beta ** (200 - steps))
    np.testing.assert_allclose(
        theory.schedule_from_weights(weights, 0.3, momentum=beta), expected, rtol=1e-12
    )


def test_pytorch_convention_needs_no_correction_without_curvature():
    weights = kernels.Uniform(start=50).weights(100)
    plain = theory.schedule_from_weights(weights, 0.3)
    torch = theory.schedule_from_weights(weights, 0.3, momentum=0.9, convention="pytorch")
    np.testing.assert_allclose(torch, plain, rtol=1e-12)


def test_recursion_equals_the_plain_loop():
    rng = np.random.default_rng(3)
    weights = rng.exponential(size=501)
    weights /= weights.sum()
    base = rng.uniform(0.01, 0.3, 500)
    for curvature in [0.0, 1e-3, 1.0, 3.0, 6.0]:
        np.testing.assert_allclose(
            theory.schedule_from_weights(weights, base, curvature),
            slow_schedule(weights, base, curvature),
            rtol=1e-10,
        )


@pytest.mark.parametrize("curvature", [0.0, 0.5, 1.0, 9.0, 10.0, 14.0, 19.9])
@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Exponential(0.9),
        kernels.Exponential(0.95, start=30),
        kernels.Exponential(0.5 + 1e-9),
        kernels.Uniform(start=100),
        kernels.Uniform(),
        kernels.Window(length=20),
        kernels.Window(length=1000),
        kernels.TwoPoint(gap=17),
        kernels.TwoPoint(gap=1000),
    ],
    ids=str,
)
def test_closed_forms(kernel, curvature):
    closed = closed_form_schedule(kernel, 0.1, 150, curvature)
    found = theory.schedule_from_weights(kernel.weights(150), 0.1, curvature)
    np.testing.assert_allclose(closed, found, rtol=1e-9, atol=1e-15)


def test_closed_form_where_decay_and_contraction_coincide():
    for decay in [0.9, 0.9 + 1e-12, 0.9 - 1e-6, 0.8991]:
        kernel = kernels.Exponential(decay)
        np.testing.assert_allclose(
            closed_form_schedule(kernel, 0.1, 400, 1.0),
            theory.schedule_from_weights(kernel.weights(400), 0.1, 1.0),
            rtol=1e-11,
        )


def test_long_runs_do_not_cancel():
    """Far from the end an EMA's rate is α/a; the textbook denominator 1 - a Σ w has none left."""
    kernel, curvature = kernels.Exponential(0.99), 0.5
    base = np.full(5000, 0.1)
    closed = closed_form_schedule(kernel, 0.1, 5000, curvature)
    found = theory.schedule_from_weights(kernel, base, curvature)
    np.testing.assert_allclose(found, closed, rtol=1e-11)
    assert found[0] == pytest.approx(0.01 / 0.5, rel=1e-9)
    textbook = slow_schedule(kernel.weights(5000), base, curvature)
    assert np.max(np.abs(textbook / closed - 1)) > 1e-3


def test_familiar_ends():
    """An EMA of a constant-rate run ends at λα and starts at min(λ, α/a); SWA ends at λ/n."""
    ema = theory.schedule_from_weights(kernels.Exponential(0.99).weights(5000), 0.1, 2.0)
    assert ema[-1] == pytest.approx(0.1 * 0.01, rel=1e-12)
    assert ema[0] == pytest.approx(0.01 / 2.0, rel=1e-12)
    fast = theory.schedule_from_weights(kernels.Exponential(0.99).weights(5000), 0.1, 0.05)
    assert fast[0] == pytest.approx(0.1, rel=1e-6)
    swa = theory.schedule_from_weights(kernels.Window(40).weights(5000), 0.1, 2.0)
    assert swa[-1] == pytest.approx(0.1 / 40, rel=1e-12)


def test_decay_is_emulated_by_its_decrements():
    schedule = rates.as_array(rates.OneMinusSqrt(0.4, hold=300, steps=200), 500)
    weights = theory.weights_from_schedule(schedule, 0.4)
    ratio = np.append(schedule / 0.4, 0.0)
    np.testing.assert_allclose(weights[1:], -np.diff(ratio), atol=1e-14)
    assert weights[0] == pytest.approx(0.0, abs=1e-14)
    assert weights.min() > -1e-14


def one_minus_square(start, steps):
    """A rate of 1 up to `start`, then 1 - x²."""
    x = np.arange(steps) / steps
    return rates.Table(np.concatenate([np.ones(start), 1.0 - x**2]))


DECAYS = {
    "linear": lambda start, steps: (
        rates.Sequence([1.0, rates.Linear(1.0, steps)], [start])
        if start
        else rates.Linear(1.0, steps)
    ),
    "one_minus_sqrt": lambda start, steps: rates.OneMinusSqrt(1.0, hold=start, steps=steps),
    "one_minus_square": one_minus_square,
}


@pytest.mark.parametrize("num_steps", [1, 2, 9, 200])
@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("shape", kernels.DECAYS)
def test_averages_that_belong_to_decays(shape, start, num_steps):
    """One average, read at any time, is a decay from `start` to that time."""
    kernel = kernels.PowerFunction.from_decay(shape, start)
    schedule = 0.4 * rates.as_array(DECAYS[shape](start, num_steps), start + num_steps)
    found = theory.schedule_from_weights(kernel.weights(start + num_steps), 0.4)
    np.testing.assert_allclose(found, schedule, rtol=1e-12, atol=1e-15)
    back = theory.weights_from_schedule(schedule, 0.4)
    np.testing.assert_allclose(back, kernel.weights(start + num_steps), atol=1e-14)
    # Once it has ended, the average is that of the decay from `start` to `end`.
    if num_steps > 1:
        ended = kernels.PowerFunction.from_decay(shape, start, end=start + num_steps)
        later = ended.weights(start + num_steps + 5)
        np.testing.assert_array_equal(
            later[: start + num_steps + 1], kernel.weights(start + num_steps)
        )


def test_a_linear_decay_is_the_uniform_average_after_its_first_iterate():
    for steps in (40, 41, 90):
        np.testing.assert_allclose(
            kernels.PowerFunction.from_decay("linear", start=39).weights(steps),
            kernels.Uniform(start=40).weights(steps),
            rtol=1e-13,
        )


def test_schedules_of_growing_half_lives_and_of_bema():
    """The closed forms of docs/theory/equivalence.md, section 4."""
    steps = 300
    j = np.arange(steps)
    half_lives = 0.2 * np.arange(1, steps + 1)
    kept = np.cumprod(0.5 ** (1.0 / half_lives[::-1]))[::-1]  # Π_{n>j} 2^(-1/h_n)
    found = theory.schedule_from_weights(kernels.HalfLife(0.2).weights(steps), 0.1)
    np.testing.assert_allclose(found, 0.1 * (1.0 - kept), rtol=1e-10)
    far = j > 100
    limit = 1.0 - (j / steps) ** (np.log(2.0) / 0.2)
    np.testing.assert_allclose(found[far] / 0.1, limit[far], atol=0.01)

    start = 50
    n = np.arange(1, steps - start + 1)
    kept = np.ones(steps)
    kept[start:] = np.cumprod((1.0 - (10.0 + n) ** -0.5)[::-1])[::-1]
    raised = 1.0 - kept + np.where(j >= start, (10.0 + steps - start) ** -0.2, 0.0)
    raised[:start] = 1.0
    found = theory.schedule_from_weights(kernels.BEMA(start=start).weights(steps), 0.1)
    np.testing.assert_allclose(found, 0.1 * raised, rtol=1e-10)


def test_base_rates_of_zero():
    """A warm-up from 0: the first step moves nothing, both ways agree on the average."""
    base = rates.as_array(rates.Warmup(0.2, steps=5), 40)
    assert base[0] == 0.0
    weights = kernels.Uniform(start=10).weights(40)
    schedule = theory.schedule_from_weights(weights, base, 0.7)
    assert schedule[0] == 0.0
    back = theory.weights_from_schedule(schedule, base, 0.7)
    np.testing.assert_allclose(back, weights, atol=1e-14)


def test_a_kernel_stands_for_its_weights():
    base = np.linspace(0.2, 0.1, 30)
    kernel = kernels.Exponential(0.8)
    np.testing.assert_array_equal(
        theory.schedule_from_weights(kernel, base, 1.0),
        theory.schedule_from_weights(kernel.weights(30), base, 1.0),
    )


def test_weights_within_tolerance_of_one_are_scaled():
    weights = np.full(4, 0.25 * (1 + 5e-7))
    np.testing.assert_allclose(theory.schedule_from_weights(weights, 0.4), [0.3, 0.2, 0.1])


def test_pole_is_refused():
    # λa = 1, so θ_1 alone carries what step 0 did: D_1 + E_1 = c_0 + c_1 = 0.
    weights = np.array([-1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"No schedule equals this average: at step 0 .*pole"):
        theory.schedule_from_weights(weights, 0.5, curvature=2.0)
    # At curvature 0 every sum of 1 has a schedule.
    np.testing.assert_allclose(theory.schedule_from_weights(weights, 0.5), [1.0, 0.5])


def test_negative_rates_are_found_and_refused_on_request():
    weights = np.array([1.2, 0.3, -0.5])
    found = theory.equivalent_schedule(weights, 0.1)
    np.testing.assert_array_equal(found.negative_steps, [0, 1])
    with pytest.raises(ValueError, match=r"negative at 2 of 2 steps, first at step 0"):
        theory.schedule_from_weights(weights, 0.1, require_nonnegative=True)


def test_response_maps_start_and_batches():
    """`response` against the run itself: batches enter with a·w, the start with what is left."""
    rng = np.random.default_rng(5)
    base, minimisers = rng.uniform(0.01, 0.2, 50), rng.normal(size=50)
    weights = rng.normal(size=51)
    for momentum in [0.0, 0.8]:
        for convention in ["keras", "pytorch"]:
            found = schedule_equivalence.response(weights, base, 3.0, momentum, convention)
            average = weights @ run(base, 3.0, minimisers, 0.7, momentum, convention)
            expected = 0.7 * found.start + 3.0 * found.noise @ minimisers
            assert average == pytest.approx(expected, rel=1e-11)
            total = found.start + 3.0 * found.noise.sum()
            assert total == pytest.approx(weights.sum(), rel=1e-11)


def test_time_scales_of_an_ema_and_its_window_agree():
    ema = theory.time_scales(kernels.Exponential(0.98), 5000)
    length = theory.window_for_ema_decay(0.98)
    window = theory.time_scales(kernels.Window(round(length)), 5000)
    assert length == pytest.approx(99.0)
    assert ema.mean_age == pytest.approx(window.mean_age, rel=1e-9)
    assert ema.count == pytest.approx(window.count, rel=1e-9)
    assert ema.half_rate == int(np.floor(np.log(2) / -np.log(0.98)))
    assert theory.ema_decay_for_window(length) == pytest.approx(0.98, rel=1e-12)


def test_mean_age_is_the_training_forgone():
    weights = np.random.default_rng(0).exponential(size=101)
    weights /= weights.sum()
    schedule = theory.schedule_from_weights(weights, 0.3)
    forgone = np.sum(1 - schedule / 0.3)
    assert theory.time_scales(weights).mean_age == pytest.approx(forgone, rel=1e-10)


@pytest.mark.parametrize("every", [1, 2, 7, 10, 99, 100])
def test_folded_weights_equal_the_average_of_interpolated_iterates(every):
    rng = np.random.default_rng(every)
    weights = rng.normal(size=101)
    weights /= weights.sum()
    iterates = rng.normal(size=101)
    steps, folded = theory.fold_onto_snapshots(weights, every)
    np.testing.assert_array_equal(np.diff(steps), every)
    assert steps[-1] == 100
    interpolated = np.interp(np.arange(101), steps, iterates[steps])
    assert folded @ iterates[steps] == pytest.approx(weights @ interpolated, rel=1e-10, abs=1e-12)
    assert folded.sum() == pytest.approx(1.0, rel=1e-10)


def test_fold_onto_unequally_spaced_snapshots():
    rng = np.random.default_rng(7)
    weights = rng.normal(size=101)
    weights /= weights.sum()
    iterates = rng.normal(size=101)
    steps = np.array([3, 4, 20, 21, 60, 97, 100])
    found, folded = theory.fold_onto_snapshots(weights, steps)
    np.testing.assert_array_equal(found, steps)
    interpolated = np.interp(np.arange(101), steps, iterates[steps])
    assert folded @ iterates[steps] == pytest.approx(weights @ interpolated, rel=1e-10)
    np.testing.assert_allclose(
        theory.fold_onto_snapshots(weights, np.arange(0, 101, 10))[1],
        theory.fold_onto_snapshots(weights, 10)[1],
        rtol=1e-13,
    )
    assert theory.fold_onto_snapshots(weights, [100])[1] == pytest.approx([1.0])


@pytest.mark.parametrize("steps", [[0, 5, 5, 10], [0, 5], [-1, 10], [0.5, 10]])
def test_fold_refuses_steps_that_are_none(steps):
    with pytest.raises(ValueError, match="update counts that rise to 10"):
        theory.fold_onto_snapshots(np.full(11, 1 / 11), steps)


# --- On a spectrum: mismatch and the fitted schedule ----------------------------------------------


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
    gradient = schedule_fit.loss_curve_gradient(model, rates, initial, slopes)
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


def test_long_runs_on_many_curvatures():
    model = make_model(size=20)
    rates, initial = np.linspace(0.9, 0.0, 10_000), np.ones(20)
    losses = schedule_fit.loss_curve(model, rates, initial)
    np.testing.assert_allclose(losses, slow_losses(model, rates, initial), rtol=1e-10)
    gradient = schedule_fit.loss_curve_gradient(model, rates, initial, np.ones(10_001))
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
