"""Averages and schedules, one into the other, checked on runs simulated by the naive loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_lrtraj import kernels, rates, theory

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
    closed = theory.closed_form_schedule(kernel, 0.1, 150, curvature)
    found = theory.schedule_from_weights(kernel.weights(150), 0.1, curvature)
    np.testing.assert_allclose(closed, found, rtol=1e-9, atol=1e-15)


def test_closed_form_where_decay_and_contraction_coincide():
    for decay in [0.9, 0.9 + 1e-12, 0.9 - 1e-6, 0.8991]:
        kernel = kernels.Exponential(decay)
        np.testing.assert_allclose(
            theory.closed_form_schedule(kernel, 0.1, 400, 1.0),
            theory.schedule_from_weights(kernel.weights(400), 0.1, 1.0),
            rtol=1e-11,
        )


def test_long_runs_do_not_cancel():
    """Far from the end an EMA's rate is α/a; the textbook denominator 1 - a Σ w has none left."""
    kernel, curvature = kernels.Exponential(0.99), 0.5
    base = np.full(5000, 0.1)
    closed = theory.closed_form_schedule(kernel, 0.1, 5000, curvature)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weights=[0.5, 0.4], base=0.1), "`weights` must sum to 1. Received: .*0.9"),
        (
            dict(weights=[0.5, np.nan], base=0.1),
            r"`weights` must be finite. Received: .*nan.*\[1\]",
        ),
        (dict(weights=[[1.0]], base=0.1), r"`weights` must be a vector.*shape=\(1, 1\)"),
        (dict(weights=[1.0], base=0.1), r"T >= 1"),
        (dict(weights="abc", base=0.1), "`weights` must be an array of numbers"),
        (dict(weights=[0.0, 1.0], base=[0.1, 0.1]), r"`base` must be .*\[1\].*shape=\(2,\)"),
        (dict(weights=[0.0, 1.0], base=-0.1), "`base` must be at least 0. Received: .*-0.1"),
        (dict(weights=[0.0, 1.0], base=np.inf), "`base` must be finite"),
        (dict(weights=[0.0, 1.0], base=0.1, curvature=-1.0), "`curvature` must be at least 0"),
        (dict(weights=[0.0, 1.0], base=0.1, curvature=np.nan), "`curvature` must be at least 0"),
        (dict(weights=[0.0, 1.0], base=0.1, curvature=20.0), "stability limit .*= 0.1. Received"),
        (dict(weights=[0.0, 1.0], base=0.1, momentum=1.0), r"`momentum` must lie in \[0, 1\)"),
        (dict(weights=[0.0, 1.0], base=0.1, convention="x"), "`convention` must be one of"),
        (dict(weights=kernels.Exponential(0.9), base=0.1), "`base` must be a vector of T rates"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.schedule_from_weights(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(schedule=[], base=0.1), "`schedule` must be a non-empty vector"),
        (dict(schedule=[0.1, np.inf], base=0.1), r"`schedule` must be finite.*\[1\]"),
        (dict(schedule=[0.1, 0.1], base=[0.1]), r"`base` must be .*shape=\(1,\)"),
        (dict(schedule=[0.1, 0.1], base=[0.1, 0.0]), r"base\[1\]=0.0, schedule\[1\]=.*0.1"),
        (dict(schedule=np.full(2000, 9.0), base=0.1, curvature=1.0), "float64's range"),
    ],
)
def test_bad_arguments_of_the_inverse(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.weights_from_schedule(**arguments)


def test_closed_form_refuses_other_kernels():
    with pytest.raises(ValueError, match=r"`kernel` must be Exponential .*Received: .*every=2"):
        theory.closed_form_schedule(kernels.Window(4, every=2), 0.1, 10)
    with pytest.raises(ValueError, match=r"`kernel` must be Exponential .*Received: .*warmup=9"):
        theory.closed_form_schedule(kernels.Exponential(0.9, warmup=9), 0.1, 10)


def test_response_maps_start_and_batches():
    """`response` against the run itself: batches enter with a·w, the start with what is left."""
    rng = np.random.default_rng(5)
    base, minimisers = rng.uniform(0.01, 0.2, 50), rng.normal(size=50)
    weights = rng.normal(size=51)
    for momentum in [0.0, 0.8]:
        for convention in ["keras", "pytorch"]:
            found = theory.response(weights, base, 3.0, momentum, convention)
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


def test_fold_refuses_spacings_beyond_the_run():
    with pytest.raises(ValueError, match="`every` must be at most the number of updates"):
        theory.fold_onto_snapshots([0.5, 0.5], every=2)


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
