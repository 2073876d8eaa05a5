"""Squared displacement from a stream of iterates: closed forms, twins, errors, sketches."""

import subprocess
import sys

import numpy as np
import pytest

from tf_lrtraj.probes.block_means import blocks
from tf_lrtraj.probes.displacement_tracker import DisplacementTracker
from tf_lrtraj.probes.filters import Filters
from tf_lrtraj.probes.trajectory import check_lags, default_lags, earlier
from tf_lrtraj.theory import QuadraticModel

RATE, A, NOISE = 0.4, np.array([1.5, 0.6, 0.2]), np.array([1.0, 2.0, 0.5])


def stationary_run(random, steps, rate=RATE):
    """[steps, 3] iterates of SGD on the quadratic model, begun in its stationary state."""
    variance = QuadraticModel(A, NOISE).stationary_variance(rate)
    theta = np.sqrt(variance) * random.standard_normal(3)
    found = np.empty((steps, 3))
    for t in range(steps):
        found[t] = theta
        theta = theta - rate * A * (theta - np.sqrt(NOISE) * random.standard_normal(3))
    return found


def tracked(iterates, lags, **options):
    tracker = DisplacementTracker(lags, **options)
    for t, theta in enumerate(iterates):
        tracker.add(t, [theta])
    return tracker


def test_displacement_is_that_of_the_stationary_model():
    model, lags = QuadraticModel(A, NOISE), [1, 2, 4, 8, 16, 32, 64]
    run = stationary_run(np.random.default_rng(0), 20_000)
    record = tracked(run, lags).record()
    whole = model.stationary_covariance(RATE)
    closed = [2 * np.trace(whole - model.lagged_covariance(RATE, lag)) for lag in lags]
    own = [2 * np.trace((np.eye(3) - np.diag((1 - RATE * A) ** lag)) @ whole) for lag in lags]
    np.testing.assert_allclose(closed, own)
    mean, error = record.values["mean_squared"], record.values["mean_squared_se"]
    assert np.all(np.abs(mean - closed) < 5.0 * error)
    assert np.all(error < 0.06 * mean)
    assert closed[-1] == pytest.approx(2 * np.trace(whole), rel=0.01)  # it has levelled off
    assert abs(record.values["squared_growth"]) < 5 * record.values["squared_growth_se"]
    assert record.values["squared_growth_se"] < 0.1


def test_errors_are_those_of_many_runs():
    lags, random = [1, 4, 16, 40], np.random.default_rng(1)
    means, errors = [], []
    for _ in range(120):
        values = tracked(stationary_run(random, 400), lags).record().values
        means.append(values["mean_squared"])
        errors.append(values["mean_squared_se"])
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(means, axis=0)
    assert np.all((ratio > 0.75) & (ratio < 1.35)), ratio


@pytest.mark.parametrize(("kind", "slope"), [("walk", 1.0), ("drift", 2.0)])
def test_growth_tells_a_walk_from_a_drift(kind, slope):
    random = np.random.default_rng(2)
    steps = random.standard_normal((3000, 20)) if kind == "walk" else np.ones((3000, 20))
    values = tracked(np.cumsum(steps, axis=0), [1, 10, 25, 50, 75, 100]).record().values
    assert values["squared_growth"] == pytest.approx(slope, abs=0.12)


def test_a_slow_twin():
    random = np.random.default_rng(3)
    iterates = random.standard_normal((60, 7)).cumsum(axis=0).astype(np.float32)
    record = tracked(iterates, [1, 3, 10], starts_per_lag=10).record()
    wide = iterates.astype(np.float64)
    for row, lag in enumerate([1, 3, 10]):
        twin = np.sum((wide[lag:] - wide[:-lag]) ** 2, axis=1)
        np.testing.assert_allclose(record.values["squared"][row, lag:], twin, rtol=1e-12)
        assert np.isinf(record.values["squared"][row, :lag]).all()
        assert record.values["mean_squared"][row] == pytest.approx(twin.mean())
    np.testing.assert_allclose(record.values["norm"], np.linalg.norm(wide, axis=1))
    start = np.linalg.norm(wide - wide[0], axis=1)
    np.testing.assert_allclose(record.values["from_start"], start)
    running = np.cumsum(wide, axis=0) / np.arange(1, 61)[:, None]
    mean = np.linalg.norm(wide - running, axis=1)
    np.testing.assert_allclose(record.values["from_mean"], mean, atol=1e-12)


def test_sketches_take_over_where_iterates_do_not_fit():
    random = np.random.default_rng(4)
    iterates = random.standard_normal((200, 2000)).cumsum(axis=0)
    exact = tracked(iterates, [1, 5, 20], memory_limit=1 << 30)
    assert exact.exact and exact.memory(2000, 8)[0] == 21 * 2000 * 8
    sketched = tracked(iterates, [1, 5, 20], memory_limit=100_000, sketch_size=200)
    assert sketched.exact is False and sketched.memory(2000)[1] == 21 * 200 * 8
    ours, true = (one.record().values for one in (sketched, exact))
    present = np.isfinite(true["squared"])
    ratio = ours["squared"][present] / true["squared"][present]
    # Each errs by √(2/k) or less; those of different differences are nearly independent.
    assert np.sqrt(np.mean((ratio - 1) ** 2)) < 1.3 * np.sqrt(2 / 200)
    assert np.abs(ratio - 1).max() > 0.02  # it was a sketch
    np.testing.assert_array_equal(ours["from_mean"], true["from_mean"])  # these stay exact
    assert sketched.record().about["sketch_size"] == 200


def test_memory_stays_bounded():
    tracker = DisplacementTracker([2, 6], every=2)
    for step in range(0, 100, 2):
        tracker.add(step, [np.full(5, step, np.float32)])
        assert len(tracker._ring) <= 4
    assert tracker.record().values["mean_squared"].tolist() == [5 * 4.0, 5 * 36.0]


def test_starts_are_thinned_for_long_lags_only():
    found = tracked(np.arange(200.0)[:, None], [1, 80]).record().values["squared"]
    assert np.isfinite(found[0]).sum() == 199
    assert np.isfinite(found[1]).sum() == 12  # every tenth


@pytest.mark.parametrize("options", [{}, {"exact": False, "sketch_size": 8}, {"filters": True}])
def test_a_restored_tracker_goes_on_to_the_bit(tmp_path, options):
    iterates = np.random.default_rng(9).standard_normal((60, 6, 3)).astype(np.float32)
    whole, first = (
        tracked(iterates, [1, 4, 9], **options),
        tracked(iterates[:25], [1, 4, 9], **options),
    )
    np.savez(tmp_path / "state.npz", **first.state())
    second = DisplacementTracker([1, 4, 9], **options)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
        state = dict(stored)
    second.restore(state, [iterates[0]])
    for t in range(25, 60):
        second.add(t, [iterates[t]])
    ours, twin = second.record(), whole.record()
    for name, values in twin.values.items():
        np.testing.assert_array_equal(ours.values[name], values, err_msg=name)
    with pytest.raises(ValueError, match=r"`state` is of weights of shapes.*Received: like="):
        DisplacementTracker([1, 4, 9], **options).restore(state, [np.zeros(3)])
    with pytest.raises(
        ValueError, match=r"this tracker's lags, \[1, 5\]. Received: lags \[1, 4, 9\]"
    ):
        DisplacementTracker([1, 5], **options).restore(state, [iterates[0]])
    other = DisplacementTracker([1, 4, 9], **{**options, "filters": True, "sketch_size": 5})
    if "exact" in options:
        with pytest.raises(ValueError, match=r"numbers, as this tracker.*Received: \[8\]"):
            other.restore(state, [iterates[0]])
    with pytest.raises(ValueError, match=r"no state before the first iterate"):
        DisplacementTracker([1]).state()


# Filters --------------------------------------------------------------------------------------


def test_normalised_filters_do_not_see_scales():
    random = np.random.default_rng(5)
    kernel, bias = random.standard_normal((3, 3, 2, 4)), random.standard_normal(4)
    scaled = kernel * np.array([0.1, 1.0, 3.0, 20.0])
    filters = Filters([kernel.shape, bias.shape])
    first, second = (np.concatenate([k.ravel(), bias]) for k in (kernel, scaled))
    assert filters.count == 4
    assert filters.square_distance(first, second) == pytest.approx(0.0, abs=1e-28)
    other = random.standard_normal(kernel.shape)
    twin = 0.0
    for i in range(4):
        u, v = kernel[..., i].ravel(), other[..., i].ravel()
        twin += (2 - 2 * u @ v / np.linalg.norm(u) / np.linalg.norm(v)) / 4
    third = np.concatenate([other.ravel(), bias + 1])
    assert filters.square_distance(second, third) == pytest.approx(twin)


def test_filters_along_the_given_axes():
    kernel = np.random.default_rng(6).standard_normal((3, 3, 4, 2))  # depthwise: 8 filters
    filters = Filters([kernel.shape], [(-2, -1)])
    unit = filters.normalised(kernel.ravel()).reshape(kernel.shape)
    assert filters.count == 8
    np.testing.assert_allclose(np.sum(unit**2, axis=(0, 1)), 1.0)
    with pytest.raises(ValueError, match=r"each of 1 arrays. Received: 2 entries"):
        Filters([kernel.shape], [(-1,), (-1,)])


def test_scale_invariant_weights_level_off_in_filters_only():
    """Norms that grow for ever, directions that stay: raw distances alone would mislead."""
    random = np.random.default_rng(7)
    iterates = [
        (1 + 0.01 * t) * (np.ones((6, 3)) + 0.1 * random.standard_normal((6, 3)))
        for t in range(600)
    ]
    values = tracked(iterates, [1, 5, 25, 50, 75, 100], filters=True).record().values
    assert values["squared_growth"] > 0.7
    assert abs(values["filters_squared_growth"]) < 0.2
    sketched = tracked(
        iterates, [1, 5, 25, 50, 75, 100], filters=True, exact=False, sketch_size=100
    )
    found = sketched.record().values["filters_squared"]
    np.testing.assert_allclose(found, values["filters_squared"], rtol=1e-4)  # 18 numbers: kept


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lags", [[], [0, 1], [2, 1], [1, 1], [1.5], "abc", [[1]]])
def test_lags_must_ascend(lags):
    with pytest.raises(ValueError, match=r"`lags` must be ascending positive integers. Received"):
        DisplacementTracker(lags)


def test_bad_input():
    with pytest.raises(ValueError, match=r"multiples of `every` = 4.*Received: 6"):
        DisplacementTracker([4, 6], every=4)
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1"):
        DisplacementTracker([4], every=0)
    tracker = DisplacementTracker([1])
    tracker.add(3, [np.zeros(2)])
    with pytest.raises(ValueError, match=r"fewer than 2 iterates. Received: 1"):
        tracker.record()
    with pytest.raises(ValueError, match=r"larger than 3, the last. Received: step=3"):
        tracker.add(3, [np.zeros(2)])
    with pytest.raises(ValueError, match=r"shapes of the first iterate. Received: shapes=\[\(3,\)"):
        tracker.add(4, [np.zeros(3)])


def test_lags_of_steps():
    steps = np.arange(0, 101, 10)
    with pytest.raises(ValueError, match=r"at most 100, from the first.*Received: 110"):
        check_lags([10, 110], steps)
    with pytest.raises(ValueError, match=r"which are 10 or a multiple.*Received: 15"):
        check_lags([10, 15], steps)
    np.testing.assert_array_equal(check_lags(None, steps), [10])
    uneven = np.array([0, 10, 40, 90, 100])
    assert (earlier(uneven, default_lags(uneven)) >= 0).any(axis=1).all()


def test_too_few_blocks_leave_the_error_unknown():
    values = tracked(np.random.default_rng(8).standard_normal((50, 2)), [1, 20]).record().values
    assert np.isfinite(values["mean_squared"]).all()
    assert np.isfinite(values["mean_squared_se"][0]) and np.isinf(values["mean_squared_se"][1])
    assert np.isinf(values["squared_growth"]) and np.isinf(values["squared_growth_se"])


def test_no_keras():
    code = (
        "import sys, tf_lrtraj.probes.displacement_tracker, tf_lrtraj.probes.sketches, "
        "tf_lrtraj.probes.estimators, tf_lrtraj.probes.trajectory; "
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blocks_are_no_shorter_than_the_lag():
    starts = np.arange(0, 1000, 5)
    for lag in (5, 50, 200, 300):
        numbers = blocks(starts, lag)
        lengths = [np.ptp(starts[numbers == i]) + 5 for i in range(numbers.max() + 1)]
        assert min(lengths) >= lag - 5 and len(lengths) >= 3
    assert blocks(starts, 400) is None
