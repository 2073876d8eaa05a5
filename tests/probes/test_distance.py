"""Distances along stored trajectories and between two: closed forms, twins, errors, sketches."""

import subprocess
import sys

import numpy as np
import pytest

from tf_lrtraj import probes
from tf_lrtraj.probes.directions import Filters
from tf_lrtraj.probes.estimators import blocks
from tf_lrtraj.probes.trajectory import check_lags, default_lags, earlier
from tf_lrtraj.theory import QuadraticModel

A, NOISE, RATE = np.array([1.5, 0.6, 0.2]), np.array([1.0, 2.0, 0.5]), 0.4


def distance(*args, **options):
    return probes.measure(probes.Distance(*args, **options), progress=False)


def separation(*args, **options):
    return probes.measure(probes.Separation(*args, **options), progress=False)


class Trajectory:
    """As `averaging.Snapshots` is read: weights, then batch-norm statistics."""

    num_trainable = 2

    def __init__(self, steps, seed=0, shape=(3, 2)):
        self.steps = np.asarray(steps)
        self.reads = []
        self._seed, self._shape = seed, shape

    def read(self, step):
        assert isinstance(step, int)
        self.reads.append(step)
        random = np.random.default_rng([self._seed, step])
        drift = 0.01 * step
        kernel = drift + random.standard_normal(self._shape).astype(np.float32)
        return [kernel, kernel[0], 100.0 * random.standard_normal(5)]


def vectors(trajectory):
    return {
        int(step): np.concatenate([a.ravel() for a in trajectory.read(int(step))[:2]]).astype(float)
        for step in trajectory.steps
    }


def test_a_slow_twin_with_uneven_steps():
    trajectory = Trajectory([0, 10, 20, 50, 60, 70, 100])
    reference = trajectory.read(30)[:2]
    record = distance(trajectory, lags=[10, 40], reference=reference)
    assert record.complete and record.kind == "distance"
    points = vectors(trajectory)
    for row, lag in enumerate([10, 40]):
        for column, step in enumerate(trajectory.steps.tolist()):
            found = record.values["squared"][row, column]
            if step - lag in points:
                twin = np.sum((points[step] - points[step - lag]) ** 2)
                assert found == pytest.approx(twin, rel=1e-12)
            else:
                assert np.isinf(found)
    column = np.concatenate([a.ravel() for a in reference])
    twin = [np.linalg.norm(p - column) for p in points.values()]
    np.testing.assert_allclose(record.values["from_reference"], twin)
    running = np.cumsum(list(points.values()), axis=0) / np.arange(1, 8)[:, None]
    twin = [np.linalg.norm(p - m) for p, m in zip(points.values(), running, strict=True)]
    np.testing.assert_allclose(record.values["from_mean"], twin, atol=1e-12)
    np.testing.assert_allclose(record.values["norm"], np.linalg.norm(list(points.values()), axis=1))


def test_reading_again_where_memory_is_short_changes_nothing():
    lags = [1, 2, 8]
    rich, poor = Trajectory(range(30)), Trajectory(range(30))
    first = distance(rich, lags=lags)
    second = distance(poor, lags=lags, memory_limit=1)
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second.values[name])
    assert len(rich.reads) < 35 < len(poor.reads) < 30 * 5


def test_sketches_read_every_step_once():
    trajectory = Trajectory(range(60), shape=(400, 3))
    exact = distance(trajectory, lags=[1, 4, 9])
    trajectory.reads.clear()
    found = distance(trajectory, lags=[1, 4, 9], exact=False, sketch_size=256, memory_limit=1)
    assert len(trajectory.reads) <= 60 + 3  # and the ends, for checksums
    present = np.isfinite(exact.values["squared"])
    ratio = found.values["squared"][present] / exact.values["squared"][present]
    assert np.sqrt(np.mean((ratio - 1) ** 2)) < 1.3 * np.sqrt(2 / 256)
    assert found.about["sketch_size"] == 256 and np.abs(ratio - 1).max() > 0.01


# Two runs -------------------------------------------------------------------------------------


def descend(start, noise, rate=RATE):
    theta, found = np.array(start, float), {}
    for t, xi in enumerate(noise):
        found[t] = [theta]
        theta = theta - rate * A * (theta - xi)
    return found


def test_shared_batches_bring_two_runs_together_exactly():
    random = np.random.default_rng(0)
    noise = np.sqrt(NOISE) * random.standard_normal((30, 3))
    first, second = descend([3.0, -1.0, 2.0], noise), descend([-2.0, 0.5, 1.0], noise)
    record = separation(first, second, batches="shared")
    difference = np.array([5.0, -1.5, 1.0])
    closed = [np.linalg.norm((1 - RATE * A) ** t * difference) for t in range(30)]
    np.testing.assert_allclose(record.values["distance"], closed, rtol=1e-5)
    assert record.about["batches"] == "shared"


def test_independent_batches_keep_them_twice_the_variance_apart():
    random = np.random.default_rng(1)
    runs = [descend(np.zeros(3), np.sqrt(NOISE) * random.standard_normal((20_000, 3)), RATE)
            for _ in range(2)]  # fmt: skip
    found = separation(*runs).values["distance"][1000:] ** 2
    closed = 2 * QuadraticModel(A, NOISE).stationary_variance(RATE).sum()
    blocks = found.reshape(20, -1).mean(axis=1)
    assert abs(found.mean() - closed) < 4 * blocks.std(ddof=1) / np.sqrt(20)


def test_separation_twin():
    first, second = Trajectory(range(0, 50, 5)), Trajectory(range(0, 60, 10), seed=1)
    whole = separation(first, second, filters=True)
    steps = whole.coordinates["step"].tolist()
    assert steps == [0, 10, 20, 30, 40]
    a, b = vectors(first), vectors(second)
    twin = [np.linalg.norm(a[s] - b[s]) for s in steps]
    np.testing.assert_allclose(whole.values["distance"], twin)
    np.testing.assert_allclose(whole.values["norm_b"], [np.linalg.norm(b[s]) for s in steps])
    ways = [(a[s] - a[0], b[s] - b[0]) for s in steps[1:]]
    twin = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in ways]
    np.testing.assert_allclose(whole.values["displacement_cosine"][1:], twin, rtol=1e-5)
    units = [
        [p[:6].reshape(3, 2) / np.linalg.norm(p[:6].reshape(3, 2), axis=0) for p in (a[s], b[s])]
        for s in steps
    ]
    twin = [np.sum((u - v) ** 2) / 2 for u, v in units]
    np.testing.assert_allclose(whole.values["filters_squared"], twin, rtol=1e-5)


# Errors and growth ----------------------------------------------------------------------------


def stationary_run(random, steps, rate=RATE):
    """[steps, 3] iterates of SGD on the quadratic model, begun in its stationary state."""
    variance = QuadraticModel(A, NOISE).stationary_variance(rate)
    theta = np.sqrt(variance) * random.standard_normal(3)
    found = np.empty((steps, 3))
    for t in range(steps):
        found[t] = theta
        theta = theta - rate * A * (theta - np.sqrt(NOISE) * random.standard_normal(3))
    return found


def along(iterates, lags, **options):
    return distance(dict(enumerate([theta] for theta in iterates)), lags=lags, **options).values


def test_displacement_is_that_of_the_stationary_model():
    model, lags = QuadraticModel(A, NOISE), [1, 2, 4, 8, 16, 32, 64]
    run = stationary_run(np.random.default_rng(0), 20_000)
    values = along(run, lags)
    whole = model.stationary_covariance(RATE)
    closed = [2 * np.trace(whole - model.lagged_covariance(RATE, lag)) for lag in lags]
    own = [2 * np.trace((np.eye(3) - np.diag((1 - RATE * A) ** lag)) @ whole) for lag in lags]
    np.testing.assert_allclose(closed, own)
    mean, error = values["mean_squared"], values["mean_squared_se"]
    assert np.all(np.abs(mean - closed) < 5.0 * error)
    assert np.all(error < 0.06 * mean)
    assert closed[-1] == pytest.approx(2 * np.trace(whole), rel=0.01)  # it has levelled off
    assert abs(values["squared_growth"]) < 5 * values["squared_growth_se"]
    assert values["squared_growth_se"] < 0.1


def test_errors_are_those_of_many_runs():
    lags, random = [1, 4, 16, 40], np.random.default_rng(1)
    means, errors = [], []
    for _ in range(120):
        values = along(stationary_run(random, 400), lags)
        means.append(values["mean_squared"])
        errors.append(values["mean_squared_se"])
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(means, axis=0)
    assert np.all((ratio > 0.75) & (ratio < 1.35)), ratio


@pytest.mark.parametrize(("kind", "slope"), [("walk", 1.0), ("drift", 2.0)])
def test_growth_tells_a_walk_from_a_drift(kind, slope):
    random = np.random.default_rng(2)
    steps = random.standard_normal((3000, 20)) if kind == "walk" else np.ones((3000, 20))
    values = along(np.cumsum(steps, axis=0), [1, 10, 25, 50, 75, 100])
    assert values["squared_growth"] == pytest.approx(slope, abs=0.12)


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
    with pytest.raises(ValueError, match=r"each of 1 arrays. Received: filter_axes="):
        Filters([kernel.shape], [(-1,), (-1,)])


def test_scale_invariant_weights_level_off_in_filters_only():
    """Norms that grow for ever, directions that stay: raw distances alone would mislead."""
    random = np.random.default_rng(7)
    iterates = [
        (1 + 0.01 * t) * (np.ones((6, 3)) + 0.1 * random.standard_normal((6, 3)))
        for t in range(600)
    ]
    values = along(iterates, [1, 5, 25, 50, 75, 100], filters=True)
    assert values["squared_growth"] > 0.7
    assert abs(values["filters_squared_growth"]) < 0.2
    options = {"filters": True, "exact": False, "sketch_size": 100}
    found = along(iterates, [1, 5, 25, 50, 75, 100], **options)["filters_squared"]
    np.testing.assert_allclose(found, values["filters_squared"], rtol=1e-4)  # 18 numbers: kept


# Lags and blocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("lags", [[], [0, 1], [2, 1], [1, 1], [1.5], "abc", [[1]]])
def test_lags_must_ascend(lags):
    with pytest.raises(ValueError, match=r"`lags` must be ascending positive integers. Received"):
        check_lags(lags, np.arange(9))


def test_lags_of_steps():
    steps = np.arange(0, 101, 10)
    with pytest.raises(ValueError, match=r"at most 100, from the first.*Received: lags=110"):
        check_lags([10, 110], steps)
    with pytest.raises(ValueError, match=r"which are 10 or a multiple.*Received: 15"):
        check_lags([10, 15], steps)
    np.testing.assert_array_equal(check_lags(None, steps), [10])
    uneven = np.array([0, 10, 40, 90, 100])
    assert (earlier(uneven, default_lags(uneven)) >= 0).any(axis=1).all()


def test_too_few_blocks_leave_the_error_unknown():
    values = along(np.random.default_rng(8).standard_normal((50, 2)), [1, 20])
    assert np.isfinite(values["mean_squared"]).all()
    assert np.isfinite(values["mean_squared_se"][0]) and np.isinf(values["mean_squared_se"][1])
    assert np.isinf(values["squared_growth"]) and np.isinf(values["squared_growth_se"])


def test_no_keras():
    code = (
        "import sys; from tf_lrtraj.probes import barriers, estimators, fits, sketches; "
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
