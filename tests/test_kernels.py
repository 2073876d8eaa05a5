"""Every kernel against the average it defines, followed update by update."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tf_lrtraj import kernels
from tf_lrtraj.kernels import kernel_base

HORIZONS = [0, 1, 2, 3, 5, 8, 13, 40]


# --- slow twins: the definitions of the public surface, on unit vectors as iterates ----------


def unit_iterates(num_steps):
    """θ_0 … θ_T as the unit vectors, so that an average of them shows its own weights."""
    return list(np.eye(num_steps + 1))


def twin_exponential(num_steps, decay, start=0, every=1, warmup=0.0, debias=False):
    iterates = unit_iterates(num_steps)
    average, total, count = iterates[0], 0.0, 0
    biased = np.zeros(num_steps + 1)
    for t, iterate in enumerate(iterates):
        if t <= start:
            average = iterate
        elif (t - start) % every == 0:
            count += 1
            if debias:  # the average of a run that began at nothing, and the sum of its weights
                biased = decay * biased + (1 - decay) * iterate
                total = decay * total + (1 - decay)
                average = biased / total
            else:
                kept = min(decay, count / (warmup + count))
                average = kept * average + (1 - kept) * iterate
    return average


def twin_half_life(num_steps, ratio, longest=None, start=0, every=1):
    iterates = unit_iterates(num_steps)
    average, count = iterates[0], 0
    for t, iterate in enumerate(iterates):
        if t <= start:
            average = iterate
        elif (t - start) % every == 0:
            count += 1
            updates = every * ratio * count
            updates = updates if longest is None else min(updates, longest)
            share = 1.0 - 0.5 ** (every / updates)
            average = (1.0 - share) * average + share * iterate
    return average


def twin_bema(num_steps, ema_power=0.5, bias_power=0.2, lag=10.0, multiplier=1.0, start=0):
    iterates = unit_iterates(num_steps)
    ema = first = average = iterates[0]
    for t, iterate in enumerate(iterates):
        if t <= start:
            ema = first = average = iterate
        else:
            size = lag + multiplier * (t - start)
            beta, alpha = size**-ema_power, size**-bias_power
            ema = (1.0 - beta) * ema + beta * iterate
            average = ema + alpha * (iterate - first)
    return average


def twin_power_function(num_steps, exponent, start=0, every=1):
    iterates = unit_iterates(num_steps)
    if num_steps <= start:
        return iterates[-1]
    collected = iterates[start + every :: every]
    if not collected:
        return iterates[start]
    edges = np.arange(len(collected) + 1.0) ** (exponent + 1)
    shares = np.diff(edges) / edges[-1]
    return sum(share * iterate for share, iterate in zip(shares, collected, strict=True))


def twin_uniform(num_steps, start=0, every=1):
    iterates = unit_iterates(num_steps)
    if num_steps <= start:
        return iterates[-1]
    collected = [
        iterate for t, iterate in enumerate(iterates) if t >= start and (t - start) % every == 0
    ]
    return sum(collected) / len(collected)


def twin_window(num_steps, length, every=1):
    iterates = unit_iterates(num_steps)
    collected = []
    t = num_steps
    while t >= 0 and len(collected) < length:
        collected.append(iterates[t])
        t -= every
    return sum(collected) / len(collected)


def twin_two_point(num_steps, gap):
    iterates = unit_iterates(num_steps)
    if num_steps < gap:
        return iterates[-1]
    return (iterates[num_steps] + iterates[num_steps - gap]) / 2


def twin_custom(num_steps, weights):
    iterates = unit_iterates(num_steps)
    needed = [lag for lag, weight in enumerate(weights) if weight != 0.0]
    if num_steps < max(needed):
        return iterates[-1]
    return sum(weights[lag] * iterates[num_steps - lag] for lag in needed)


TWINS = {
    "Exponential": twin_exponential,
    "HalfLife": twin_half_life,
    "BEMA": twin_bema,
    "Uniform": twin_uniform,
    "PowerFunction": twin_power_function,
    "Window": twin_window,
    "TwoPoint": twin_two_point,
    "Custom": twin_custom,
}

KERNELS = [
    kernels.Exponential(0.9),
    kernels.Exponential(0.0),
    kernels.Exponential(0.5, start=3),
    kernels.Exponential(0.999, start=13),
    kernels.Exponential(0.8, every=3),
    kernels.Exponential(0.8, start=2, every=4),
    kernels.Exponential(0.9, warmup=1),
    kernels.Exponential(0.6, warmup=9, start=1),
    kernels.Exponential(0.99, start=4, every=2, warmup=2.5),
    kernels.Exponential(0.95, debias=True),
    kernels.Exponential(0.9, start=3, every=2, debias=True),
    kernels.HalfLife(0.05),
    kernels.HalfLife(0.5, start=3),
    kernels.HalfLife(1.3, longest=6.5, start=1),
    kernels.HalfLife(0.2, longest=9, start=2, every=3),
    kernels.HalfLife(0.004, start=1),  # half-lives too short to leave anything come first
    kernels.HalfLife(0.5, longest=0.01),
    kernels.BEMA(),
    kernels.BEMA(start=4),
    kernels.BEMA(ema_power=0.3, bias_power=0.4, lag=1.0, multiplier=0.5, start=1),
    kernels.BEMA(ema_power=1.0, bias_power=1.0, lag=4.0, multiplier=0.0),
    kernels.BEMA(ema_power=0.5, bias_power=0.5, lag=3.0),  # θ_0 has no weight in the first
    kernels.BEMA(ema_power=0.0, bias_power=0.0),
    kernels.PowerFunction(-0.5),
    kernels.PowerFunction(-0.9, start=2, every=3),
    kernels.PowerFunction(0.0),
    kernels.PowerFunction(6.94),
    kernels.PowerFunction(2.5, start=3),
    kernels.PowerFunction(16.97, start=2, every=3),
    kernels.Uniform(),
    kernels.Uniform(start=5),
    kernels.Uniform(every=3),
    kernels.Uniform(start=2, every=4),
    kernels.Uniform(start=100),
    kernels.Window(1),
    kernels.Window(4),
    kernels.Window(3, every=5),
    kernels.Window(1000),
    kernels.TwoPoint(1),
    kernels.TwoPoint(8),
    kernels.Custom([1.0]),
    kernels.Custom([0.5, 0.25, 0.25]),
    kernels.Custom([1.5, 0.0, -0.5]),
    kernels.Custom([0.0, 0.0, 1.0]),
    kernels.Custom([0.4, 0.6, 0.0, 0.0]),
    kernels.Exponential(0.7, start=2, end=7),
    kernels.Exponential(0.7, every=3, warmup=2.0, end=8),
    kernels.HalfLife(0.4, start=1, every=2, end=9),
    kernels.BEMA(start=2, end=7),
    kernels.PowerFunction(2.0, start=1, end=6),
    kernels.Uniform(start=2, every=2, end=9),
    kernels.Window(4, end=2),
    kernels.Window(3, every=2, end=11),
    kernels.TwoPoint(3, end=5),
    kernels.Custom([1.5, 0.0, -0.5], end=4),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=repr)

step_counts = st.integers(0, 60)
endless_kernel = st.one_of(
    st.builds(kernels.Exponential, st.floats(0.0, 0.9999), st.integers(0, 40)),
    st.builds(
        kernels.Exponential,
        st.floats(0.0, 0.9999),
        st.integers(0, 40),
        st.integers(1, 12),
        st.floats(0.0, 20.0),
    ),
    st.builds(
        lambda decay, start, every: kernels.Exponential(decay, start, every, debias=True),
        st.floats(0.0, 0.9999),
        st.integers(0, 40),
        st.integers(1, 12),
    ),
    st.builds(
        kernels.HalfLife,
        st.floats(0.05, 20.0),
        st.none() | st.floats(0.1, 100.0),
        st.integers(0, 40),
        st.integers(1, 5),
    ),
    st.builds(
        kernels.BEMA,
        *(st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(1.0, 100.0), st.floats(0.0, 10.0)),
        st.integers(0, 40),
    ),
    st.builds(
        kernels.PowerFunction, st.floats(-0.95, 50.0), st.integers(0, 40), st.integers(1, 12)
    ),
    st.builds(kernels.Uniform, st.integers(0, 40), st.integers(1, 12)),
    st.builds(kernels.Window, st.integers(1, 30), st.integers(1, 12)),
    st.builds(kernels.TwoPoint, st.integers(1, 70)),
    st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=8).map(
        lambda values: kernels.Custom([1.0 - sum(values), *values])
    ),
)


def ended(kernel, after):
    """The kernel with an `end` so many updates after its average begins."""
    return kernels.from_config({**kernel.get_config(), "end": (kernel.first_average or 0) + after})


any_kernel = st.one_of(endless_kernel, st.builds(ended, endless_kernel, st.integers(0, 20)))


def twin_weights(kernel, num_steps):
    arguments = kernel.get_config()
    held = min(num_steps, arguments.pop("end", num_steps))
    weights = np.zeros(num_steps + 1)
    weights[: held + 1] = TWINS[arguments.pop("kernel")](held, **arguments)
    return weights


def test_every_kernel_has_a_twin():
    assert set(TWINS) == set(kernels.KERNELS) == {type(kernel).__name__ for kernel in KERNELS}


# --- weights ---------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("num_steps", HORIZONS)
def test_weights_equal_the_definition(kernel, num_steps):
    weights = kernel.weights(num_steps)
    assert weights.shape == (num_steps + 1,)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, twin_weights(kernel, num_steps), rtol=1e-13, atol=1e-17)


@settings(max_examples=150, deadline=None)
@given(any_kernel, step_counts)
def test_weights_of_any_kernel_equal_the_definition_and_sum_to_one(kernel, num_steps):
    weights = kernel.weights(num_steps)
    np.testing.assert_allclose(weights, twin_weights(kernel, num_steps), rtol=1e-12, atol=1e-15)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)


@every_kernel
def test_weights_are_a_fresh_array(kernel):
    first = kernel.weights(13)
    expected = first.copy()
    first[:] = 7.0
    np.testing.assert_array_equal(kernel.weights(13), expected)


def test_weights_of_long_runs():
    ema = kernels.Exponential(0.9999).weights(200_000)
    assert ema.sum() == pytest.approx(1.0, abs=1e-12)
    assert ema[-1] == pytest.approx(1e-4, rel=1e-12)
    assert ema[-10_001] == pytest.approx(1e-4 * math.exp(10_000 * math.log(0.9999)), rel=1e-9)
    swa = kernels.Uniform(start=50_000, every=50).weights(200_000)
    assert np.count_nonzero(swa) == 3001
    assert swa[50_000] == swa[200_000] == 1 / 3001


def test_when_each_kernel_leaves_the_raw_iterate():
    """The conventions for small T: up to and at `start`, and one update later."""
    for kernel in (kernels.Exponential(0.5, start=3), kernels.Uniform(start=3)):
        assert kernel.weights(3).tolist() == [0, 0, 0, 1]
        assert kernel.weights(4).tolist() == [0, 0, 0, 0.5, 0.5]
    assert kernels.TwoPoint(3).weights(2).tolist() == [0, 0, 1]
    assert kernels.TwoPoint(3).weights(3).tolist() == [0.5, 0, 0, 0.5]
    assert kernels.Custom([0.5, 0.0, 0.5]).weights(1).tolist() == [0, 1]
    assert kernels.Window(3).weights(1).tolist() == [0.5, 0.5]


# --- update coefficients: what a running average does ----------------------------------------


@settings(max_examples=100, deadline=None)
@given(any_kernel, step_counts)
def test_running_the_updates_gives_the_weighted_sum(kernel, num_steps):
    """Recursion or ring buffer, iterate by iterate, equals weights @ iterates."""
    iterates = np.random.default_rng(0).normal(size=(num_steps + 1, 3))
    expected = kernel.weights(num_steps) @ iterates
    if isinstance(kernel, kernels.RecursiveKernel):
        average = np.full(3, np.nan)  # the first update must replace whatever was there
        for t, iterate in enumerate(iterates):
            alpha = float(kernel.mixing(t))
            assert 0.0 <= alpha <= 1.0
            average = iterate if alpha == 1.0 else average + alpha * (iterate - average)
    else:
        average = 0.0
    ring = np.full((kernel.ring_size, 3), np.nan)  # a slot never written must never be read
    for t, iterate in enumerate(iterates):
        if (slot := int(kernel.slots(t))) >= 0:
            ring[slot] = iterate
        if isinstance(kernel, kernels.LagKernel):
            lags, values = kernel.lags(t)
            np.testing.assert_array_equal(
                np.bincount((t - lags) % kernel.ring_size, values, kernel.ring_size),
                kernel.ring_weights(t),
            )
    weights = kernel.ring_weights(num_steps)
    assert weights.shape == (kernel.ring_size,)
    used = weights != 0.0
    average = average + weights[used] @ ring[used]
    np.testing.assert_allclose(average, expected, rtol=1e-10, atol=1e-10)


class InFloat32(kernel_base.Arithmetic):
    """What a backend without float64 computes coefficients with."""

    def integers(self, steps):
        return np.asarray(steps, np.int32)

    def numbers(self, values):
        return np.asarray(values, np.float32)


@every_kernel
def test_coefficients_lose_nothing_in_float32(kernel):
    if not isinstance(kernel, kernels.RecursiveKernel):
        return
    steps = np.unique(np.geomspace(1, 1_000_000, 2000).astype(np.int64))
    found = kernel.mixing(steps, InFloat32())
    constant = isinstance(kernel, kernels.Exponential) and not kernel.warmup and not kernel.debias
    assert constant or found.dtype == np.float32
    np.testing.assert_allclose(found, kernel.mixing(steps), rtol=2e-6)


@every_kernel
def test_lags_are_what_they_promise(kernel):
    if isinstance(kernel, kernels.RecursiveKernel):
        assert kernel.mixing(0) == 1.0
        steps = np.arange(24).reshape(4, 6)
        mixing = kernel.mixing(steps)
        assert mixing.shape == steps.shape
        assert mixing.dtype == np.float64
        assert mixing.ravel().tolist() == [float(kernel.mixing(t)) for t in range(24)]
        return
    for step in HORIZONS:
        if kernel.end is not None and step > kernel.end:
            continue
        lags, values = kernel.lags(step)
        assert lags.dtype == np.int64
        assert values.dtype == np.float64
        assert lags.shape == values.shape
        assert lags.min() >= 0
        assert lags.max() <= min(step, kernel.max_lag)
        assert len(set(lags.tolist())) == lags.size
        assert values.sum() == pytest.approx(1.0, abs=1e-12)
    # The largest lag is needed at some step, so no smaller buffer would do.
    if kernel.end is None:
        assert kernel.lags(kernel.max_lag)[0].max() == kernel.max_lag


@settings(max_examples=150, deadline=None)
@given(any_kernel)
def test_an_average_begins_where_two_iterates_have_weight(kernel):
    begin = kernel.first_average
    counts = [
        np.count_nonzero(twin_weights(kernel, t)) for t in range(200 if begin is None else begin)
    ]
    assert max(counts, default=1) == 1
    if begin is not None:
        assert np.count_nonzero(twin_weights(kernel, begin)) > 1


@every_kernel
def test_nonnegative_kernels_have_no_negative_weight(kernel):
    lowest = min(twin_weights(kernel, t).min() for t in HORIZONS)
    assert kernel.is_nonnegative == (lowest >= 0.0)


@every_kernel
def test_the_correction_of_an_average_is_its_rings(kernel):
    if not isinstance(kernel, kernels.RecursiveKernel):
        return
    correction = kernel.correction(np.arange(30).reshape(5, 6))
    assert correction.shape == (5, 6)
    for t, factor in enumerate(correction.ravel().tolist()):
        assert np.all(kernel.ring_weights(t) == [-factor, factor][: kernel.ring_size])


def test_an_average_that_ends_costs_no_more_than_what_it_holds():
    assert kernels.Uniform(end=1000).memory_bytes(10) == 40
    assert kernels.Uniform(end=5000).memory_bytes(10) == 80
    assert kernels.TwoPoint(3, end=5).copies == 4


def test_uniform_collects_on_its_grid_only():
    mixing = kernels.Uniform(start=2, every=3).mixing(np.arange(9))
    np.testing.assert_allclose(mixing, [1, 1, 1, 0, 0, 1 / 2, 0, 0, 1 / 3], rtol=1e-15)


def test_swa_running_mean_is_izmailovs_update():
    """w ← (w·n + w_new)/(n+1), Izmailov et al. 2018, claim S3."""
    kernel = kernels.Uniform(start=4, every=2)
    for n in range(1, 20):
        assert kernel.mixing(4 + 2 * n) == pytest.approx(1 / (n + 1), rel=1e-15)


@pytest.mark.parametrize(
    ("kernel", "copies"),
    [
        (kernels.Exponential(0.9, start=5), 1),
        (kernels.Uniform(5, 7), 1),
        (kernels.Window(1, every=9), 1),
        (kernels.Window(4), 4),
        (kernels.Window(4, every=5), 16),
        (kernels.TwoPoint(9), 10),
        (kernels.Custom([0.5, 0.0, 0.5]), 3),
        (kernels.Custom([0.5, 0.5, 0.0]), 2),
        (kernels.HalfLife(0.1), 1),
        (kernels.HalfLife(0.1, longest=100), 1),
        (kernels.BEMA(), 3),
        (kernels.BEMA(end=1000), 3),
    ],
    ids=repr,
)
def test_memory(kernel, copies):
    assert kernel.copies == copies
    # What is kept as it is takes 4 bytes, a running average with a long horizon 8.
    running = 1000 * (copies - kernel.ring_size)
    in_ring = 4000 * kernel.ring_size
    assert kernel.memory_bytes(1000) == in_ring + running * (8 if kernel.needs_double else 4)
    assert kernel.memory_bytes(1000, bytes_per_weight=8) == 8000 * copies


# --- autocorrelation -------------------------------------------------------------------------


def twin_autocorrelation(weights):
    count = len(weights)
    return np.array(
        [sum(weights[k] * weights[k + lag] for k in range(count - lag)) for lag in range(count)]
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=40))
def test_autocorrelation_equals_the_double_sum(weights):
    weights = np.array(weights)
    np.testing.assert_allclose(
        kernels.autocorrelation(weights), twin_autocorrelation(weights), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("count", [2047, 2048, 2049, 3000, 4096, 4097])
def test_autocorrelation_of_long_weights_equals_the_direct_sum(count):
    """Past 2048 weights it goes through an FFT; nothing may wrap around."""
    weights = np.random.default_rng(count).normal(size=count)
    expected = np.correlate(weights, weights, mode="full")[count - 1 :]
    result = kernels.autocorrelation(weights)
    assert result.shape == (count,)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12 * count)


def test_autocorrelation_of_an_exponential_is_its_closed_form():
    """R(Δ) = α/(2-α) (1-α)^|Δ| in the limit of a long run."""
    alpha = 0.1
    result = kernels.Exponential(1 - alpha).autocorrelation(1000)
    lags = np.arange(50)
    np.testing.assert_allclose(result[:50], alpha / (2 - alpha) * (1 - alpha) ** lags, rtol=1e-12)


@every_kernel
def test_autocorrelation_sums_to_one(kernel):
    """Σ over all lags, both signs, of R is (Σ c)² = 1."""
    result = kernel.autocorrelation(20)
    assert result.shape == (21,)
    assert 2 * result.sum() - result[0] == pytest.approx(1.0, abs=1e-12)


# --- configs and errors (test_configurable.py holds what kernels and rates share) -----------------


@settings(max_examples=150, deadline=None)
@given(any_kernel)
@example(kernels.Custom([0.1] * 10))
def test_config_round_trip_through_json(kernel):
    copy = kernels.from_config(json.loads(json.dumps(kernel.get_config())))
    assert copy == kernel
    assert hash(copy) == hash(kernel)
    assert copy.without_end().end is None


def test_configs_leave_out_what_a_plain_average_does_not_need():
    assert json.dumps(kernels.Exponential(0.5, 3).get_config()) == (
        '{"kernel": "Exponential", "decay": 0.5, "start": 3}'
    )
    assert kernels.Uniform(3).get_config() == {"kernel": "Uniform", "start": 3, "every": 1}
    assert kernels.Custom(np.array([0.5, 0.5])) == kernels.Custom([0.5, 0.5])
    assert repr(kernels.Custom([1.5, -0.5], end=4)) == "Custom(weights=[1.5, -0.5], end=4)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.Exponential(1.0), "`decay` must be a number of at least 0 and below 1."),
        (lambda: kernels.Exponential(0.9, warmup=math.inf), r"warmup=inf"),
        (lambda: kernels.Exponential(0.9, debias=1), r"debias=1"),
        (lambda: kernels.Exponential(0.9, warmup=9, debias=True), r"can be set.*warmup=9"),
        (
            lambda: kernels.PowerFunction.from_relative_std(0.31),
            "`width` must be a number above 0 and of at most 0.300283. Received: width=0.31",
        ),
        (lambda: kernels.PowerFunction(-1.0), "`exponent` must be a number above -1. Received:"),
        (lambda: kernels.HalfLife(0), "`ratio` must be a number of at least 1e-06. Received:"),
        (lambda: kernels.HalfLife(0.1, longest=0), "`longest` must be .*Received: longest=0"),
        (lambda: kernels.HalfLife(0.004, end=4), r"`end` must be at least 5, .*Received: end=4"),
        (lambda: kernels.BEMA(lag=0.2, multiplier=0.5), "`lag` must be at least .*, 0.5. Received"),
        (lambda: kernels.BEMA(ema_power=-1), "`ema_power` must be a number of at least 0"),
        (
            lambda: kernels.PowerFunction.from_decay("cosine"),
            r"`shape` must be one of \['linear', 'one_minus_sqrt', 'one_minus_square'\].*'cosine'",
        ),
        (lambda: kernels.Exponential(0.9, start=1.5), r"start=1.5"),
        (lambda: kernels.Uniform(every=0), r"at least 1. Received: every=0"),
        (lambda: kernels.Window(2.0), r"length=2.0"),
        (lambda: kernels.TwoPoint(0), r"gap=0"),
        (lambda: kernels.Custom([]), r"non-empty vector.*weights=\[\]"),
        (lambda: kernels.Custom([[1.0]]), r"non-empty vector"),
        (lambda: kernels.Custom([math.nan, 1.0]), r"finite.*nan"),
        (lambda: kernels.Custom([0.5, 0.6]), r"must sum to 1.*1.1"),
        (lambda: kernels.Custom([1.0, "x"]), r"weights=\[1.0, 'x'\]"),
        (
            lambda: kernels.from_config({"kernel": "Custom", "coefficients": [1.0]}),
            r"takes \['weights', 'end'\]",
        ),
        (lambda: kernels.Uniform(start=5, end=5), r"`end` must be at least 6, .*Received: end=5"),
        (lambda: kernels.TwoPoint(8, end=7), r"`end` must be at least 8"),
        (lambda: kernels.Custom([0.5, 0.0, 0.5], end=1), r"`end` must be at least 2"),
        (lambda: kernels.autocorrelation(np.ones((2, 2))), r"`weights` must be a non-empty vector"),
        (lambda: kernels.autocorrelation([]), r"`weights` must be a non-empty vector"),
    ],
)
def test_errors_name_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@every_kernel
@pytest.mark.parametrize("num_steps", [-1, 1.0, None, True])
def test_number_of_steps_is_checked(kernel, num_steps):
    with pytest.raises(ValueError, match=rf"num_steps={num_steps!r}"):
        kernel.weights(num_steps)


# --- remedies of an EMA's start, and the power function -----------------------------------------


def test_a_warm_up_of_nine_is_tensorflows_num_updates_rule():
    # tf.train.ExponentialMovingAverage(decay, num_updates): min(decay, (1 + n) / (10 + n)).
    kernel, n = kernels.Exponential(0.97, warmup=9), np.arange(500)
    expected = np.minimum(0.97, (1 + n) / (10 + n))
    np.testing.assert_allclose(1 - kernel.mixing(n + 1), expected, rtol=1e-14)


def test_a_warm_up_counts_from_the_start():
    # Counted before it, warmup + n would pass through 0.
    mixing = kernels.Exponential(0.9, start=5, warmup=2).mixing(np.arange(9))
    np.testing.assert_allclose(mixing, [1, 1, 1, 1, 1, 1, 2 / 3, 1 / 2, 2 / 5])


def test_a_warm_up_of_one_is_uniform_until_the_decay_takes_over():
    kernel = kernels.Exponential(0.99, warmup=1)
    for num_steps in (0, 1, 7, 98):
        uniform = kernels.Uniform().weights(num_steps)
        np.testing.assert_allclose(kernel.weights(num_steps), uniform, rtol=1e-12)


def test_debiasing_forgets_the_first_iterate():
    weights = kernels.Exponential(0.999, start=5, debias=True).weights(50)
    assert np.all(weights[:6] == 0.0)
    assert weights[6] == pytest.approx(0.999**44 * 0.001 / (1 - 0.999**45), rel=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, 12.0**-0.5, 0.295, 0.3])
def test_relative_width_of_a_power_function(width):
    # The standard deviation of the weights in time, as a share of a long run.
    steps = 20_000
    weights = kernels.PowerFunction.from_relative_std(width).weights(steps)
    time = np.arange(steps + 1) / steps
    mean = weights @ time
    assert np.sqrt(weights @ (time - mean) ** 2) == pytest.approx(width, rel=1e-4)


def test_the_widths_that_karras_et_al_use():
    # Their exponents 16.97 and 6.94 stand for widths of 0.05 and 0.10.
    for width, exponent in ((0.05, 16.97), (0.10, 6.94)):
        found = kernels.PowerFunction.from_relative_std(width).exponent
        assert found == pytest.approx(exponent, abs=5e-3)


# --- half-lives that grow, bias-corrected EMA, and averages that belong to decays ---------------


def test_half_lives_of_the_published_training_code():
    """Karras et al. 2022, in images: before each update `cur_nimg` images have been seen."""
    batch, half_life, ratio = 512, 500_000, 0.05
    kernel = kernels.HalfLife(ratio, longest=half_life / batch, start=1)
    for update in (1, 2, 10, 1000, 100_000):
        seen = (update - 1) * batch
        decay = 0.5 ** (batch / max(min(half_life, seen * ratio), 1e-8))
        assert 1.0 - kernel.mixing(update) == pytest.approx(decay, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("every", [1, 7])
def test_a_half_life_is_counted_in_updates(every):
    weights = kernels.HalfLife(1.0, longest=70, every=every).weights(700)
    late = weights[::every][80 // every :]  # the limit is reached after 70 updates
    np.testing.assert_allclose(late[70 // every :], 2.0 * late[: -70 // every], rtol=1e-12)


def test_growing_half_lives_become_a_power_function():
    half_life = kernels.HalfLife(math.log(2.0) / 3.0).weights(5000)
    power = kernels.PowerFunction(2.0).weights(5000)
    np.testing.assert_allclose(half_life[500:], power[500:], rtol=0.01)


def test_the_first_average_of_short_half_lives_is_found_at_once():
    for ratio in (1e-6, 3.7e-5, 0.0185, 0.5):
        kernel = kernels.HalfLife(ratio)
        first = kernel.first_average
        assert kernel.mixing(first) < 1.0
        assert first == 1 or kernel.mixing(first - 1) == 1.0
    assert kernels.HalfLife(0.5, longest=0.01).first_average is None


def test_bema_is_the_papers_average():
    """Block et al. 2025: their EMA, and the correction, added to it."""
    rng = np.random.default_rng(3)
    iterates = np.cumsum(rng.normal(size=(60, 2)), axis=0)
    ema = iterates[0]
    for t in range(1, 60):
        ema = (1 - (10 + t) ** -0.5) * ema + (10 + t) ** -0.5 * iterates[t]
        expected = ema + (10 + t) ** -0.2 * (iterates[t] - iterates[0])
        found = kernels.BEMA().weights(t) @ iterates[: t + 1]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bema_lags_less_than_its_ema():
    """On a straight line the mean age of the weights is how far the average lies behind."""
    ages = np.arange(500, -1, -1)
    kernel = kernels.BEMA()
    ema = kernels.BEMA(bias_power=10.0)  # a correction of nothing
    assert ema.weights(500) @ ages == pytest.approx(21.0, abs=1.0)
    # Σ c² grows by 2 α² + 2 α (β - e_s).
    alpha, e = 510**-0.2, ema.weights(500)
    noise = kernel.weights(500) @ kernel.weights(500)
    assert noise == pytest.approx(e @ e + 2 * alpha**2 + 2 * alpha * (e[-1] - e[0]), rel=1e-9)
    # α_T times the way since the start makes up for it, and more.
    assert kernel.weights(500) @ ages == pytest.approx(
        ema.weights(500) @ ages - 500 * 510**-0.2, rel=1e-9
    )


@pytest.mark.parametrize("exponent", [-0.999, -0.5, -0.1, 0.0, 2.0])
def test_power_functions_of_long_runs_lose_no_digits(exponent):
    """Differences of powers would: √k - √(k-1) of k = 10^6 has 10 digits left."""
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    steps, p = 1_000_000, Decimal(exponent) + 1
    weights = kernels.PowerFunction(exponent).weights(steps)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    for k in (1, 2, 1000, steps - 1, steps):
        part = Decimal(k) / steps, Decimal(k - 1) / steps
        exact = part[0] ** p - (part[1] ** p if k > 1 else 0)
        assert weights[k] == pytest.approx(float(exact), rel=1e-13)


def test_negative_exponents_weigh_early_iterates_more():
    weights = kernels.PowerFunction(-0.5).weights(100)[1:]
    np.testing.assert_allclose(weights, np.diff(np.sqrt(np.arange(101))) / 10, rtol=1e-12)
    assert np.all(np.diff(weights) < 0.0)


def test_horizons():
    assert kernels.Exponential(0.999).horizon == pytest.approx(1000)
    assert kernels.Uniform().horizon == kernels.PowerFunction(3.0).horizon == math.inf
    assert kernels.PowerFunction(-0.5).horizon == kernels.HalfLife(0.1).horizon == math.inf
    limited = kernels.HalfLife(0.1, longest=math.log(2) * 1000)
    assert limited.horizon == pytest.approx(1000, rel=1e-3)
    assert kernels.HalfLife(0.1, end=5000).horizon == pytest.approx(500 / math.log(2), rel=1e-2)
    assert kernels.BEMA().horizon == math.inf
    assert kernels.BEMA(end=9990).horizon == pytest.approx(100)
    assert kernels.BEMA(lag=16.0, multiplier=0.0).horizon == pytest.approx(4)
    assert [kernels.BEMA(end=n).needs_double for n in (10**6, 10**7)] == [0, 1]
    assert [kernels.Exponential(d).needs_double for d in (0.9, 0.999, 0.9999)] == [0, 0, 1]
    assert kernels.Uniform(every=50).needs_double
    assert not kernels.Window(5000).needs_double  # formed anew whenever it is read
