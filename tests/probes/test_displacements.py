"""Distances along stored trajectories and between two: closed forms, twins, resuming."""

import numpy as np
import pytest

from tf_lrtraj import probes
from tf_lrtraj.probes.distance import Distance, Separation
from tf_lrtraj.records import RecordError
from tf_lrtraj.theory import QuadraticModel

A, NOISE, RATE = np.array([1.5, 0.6, 0.2]), np.array([1.0, 2.0, 0.5]), 0.4


class Trajectory:
    """As `averaging.Snapshots` is read: weights, then batch-norm statistics."""

    num_trainable = 2

    def __init__(self, steps, seed=0, shape=(3, 2), break_at=None):
        self.steps = np.asarray(steps)
        self.reads = []
        self._seed, self._shape, self._break_at = seed, shape, break_at

    def read(self, step):
        assert isinstance(step, int)
        self.reads.append(step)
        if len(self.reads) == self._break_at:
            raise KeyboardInterrupt
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
    record = probes.displacement(trajectory, lags=[10, 40], reference=reference)
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


def test_the_tracker_and_the_probe_agree():
    trajectory = Trajectory(range(0, 400, 5))
    lags = [5, 10, 40]
    tracker = probes.DisplacementTracker(lags, every=5, starts_per_lag=100, filters=True)
    for step in trajectory.steps.tolist():
        tracker.add(step, trajectory.read(step)[:2])
    ours, theirs = tracker.record(), probes.displacement(trajectory, lags=lags, filters=True)
    assert set(ours.values) == set(theirs.values)
    for name, values in ours.values.items():
        np.testing.assert_array_equal(values, theirs.values[name], err_msg=name)


def test_reading_again_where_memory_is_short_changes_nothing():
    lags = [1, 2, 8]
    rich, poor = Trajectory(range(30)), Trajectory(range(30))
    first = probes.displacement(rich, lags=lags)
    second = probes.displacement(poor, lags=lags, memory_limit=1)
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second.values[name])
    assert len(rich.reads) < 35 < len(poor.reads) < 30 * 5


def test_sketches_read_every_step_once():
    trajectory = Trajectory(range(60), shape=(400, 3))
    exact = probes.displacement(trajectory, lags=[1, 4, 9])
    trajectory.reads.clear()
    found = probes.displacement(
        trajectory, lags=[1, 4, 9], exact=False, sketch_size=256, memory_limit=1
    )
    assert len(trajectory.reads) <= 60 + 3  # and the ends, for checksums
    present = np.isfinite(exact.values["squared"])
    ratio = found.values["squared"][present] / exact.values["squared"][present]
    assert np.sqrt(np.mean((ratio - 1) ** 2)) < 1.3 * np.sqrt(2 / 256)
    assert found.about["sketch_size"] == 256 and np.abs(ratio - 1).max() > 0.01


@pytest.mark.parametrize("options", [{}, {"exact": False, "sketch_size": 4}, {"filters": True}])
def test_interrupted_and_resumed(tmp_path, options):
    whole = probes.displacement(Trajectory(range(40)), lags=[1, 3, 7], **options)
    path = tmp_path / "distance.npz"
    for after in (8, 20):
        with pytest.raises(KeyboardInterrupt):
            probes.displacement(
                Trajectory(range(40), break_at=after), lags=[1, 3, 7], path=path, **options
            )
    probe = Distance(Trajectory(range(40)), lags=[1, 3, 7], **options)
    assert 0 < len(probe.pieces(probe.empty().read(path))) < 40
    resumed = probes.displacement(Trajectory(range(40)), lags=[1, 3, 7], path=path, **options)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(values, resumed.values[name], err_msg=name)
    with pytest.raises(RecordError, match=r"first_weights"):
        probes.displacement(Trajectory(range(40), seed=1), lags=[1, 3, 7], path=path, **options)


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
    record = probes.distance_between(first, second, batches="shared")
    difference = np.array([5.0, -1.5, 1.0])
    closed = [np.linalg.norm((1 - RATE * A) ** t * difference) for t in range(30)]
    np.testing.assert_allclose(record.values["distance"], closed, rtol=1e-5)
    assert record.about["batches"] == "shared"


def test_independent_batches_keep_them_twice_the_variance_apart():
    random = np.random.default_rng(1)
    runs = [descend(np.zeros(3), np.sqrt(NOISE) * random.standard_normal((20_000, 3)), RATE)
            for _ in range(2)]  # fmt: skip
    found = probes.distance_between(*runs).values["distance"][1000:] ** 2
    closed = 2 * QuadraticModel(A, NOISE).stationary_variance(RATE).sum()
    blocks = found.reshape(20, -1).mean(axis=1)
    assert abs(found.mean() - closed) < 4 * blocks.std(ddof=1) / np.sqrt(20)


def test_separation_twin_and_resuming(tmp_path):
    first, second = Trajectory(range(0, 50, 5)), Trajectory(range(0, 60, 10), seed=1)
    whole = probes.distance_between(first, second, filters=True)
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

    path = tmp_path / "separation.npz"
    broken = Trajectory(range(0, 60, 10), seed=1, break_at=6)
    with pytest.raises(KeyboardInterrupt):
        probes.distance_between(first, broken, filters=True, path=path)
    probe = Separation(first, second, filters=True)
    assert 0 < len(probe.pieces(probe.empty().read(path))) < 5
    resumed = probes.distance_between(first, second, filters=True, path=path)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(values, resumed.values[name])


# Bad input ------------------------------------------------------------------------------------


def test_bad_input():
    trajectory = Trajectory(range(0, 100, 10))
    with pytest.raises(ValueError, match=r"`lags` must be ascending.*Received: lags=\[20, 10\]"):
        probes.displacement(trajectory, lags=[20, 10])
    with pytest.raises(ValueError, match=r"at most 90.*Received: 100"):
        probes.displacement(trajectory, lags=[10, 100])
    with pytest.raises(ValueError, match=r"`.steps` and `.read\(step\)`.*Received: list"):
        probes.displacement([1, 2])
    with pytest.raises(ValueError, match=r"at least 2 ascending step numbers"):
        probes.displacement({0: [np.zeros(2)]})
    with pytest.raises(ValueError, match=r"step 1 with 1 arrays, number 0 of shape \(3,\)"):
        probes.displacement({0: [np.zeros(2)], 1: [np.zeros(3)]})
    with pytest.raises(ValueError, match=r"`reference` must hold.*Received: shapes=\[\(7,\)\]"):
        probes.displacement(trajectory, reference=[np.zeros(7)])
    with pytest.raises(ValueError, match=r"`sketch_size` must be|`k` must be.*Received: k=0"):
        probes.displacement(trajectory, exact=False, sketch_size=0)


def test_bad_pairs():
    first = Trajectory(range(0, 50, 10))
    with pytest.raises(ValueError, match=r"of one architecture.*number 0 of shape \(4, 2\)"):
        probes.distance_between(first, Trajectory(range(0, 50, 10), shape=(4, 2)))
    with pytest.raises(ValueError, match=r"must have steps in common"):
        probes.distance_between(first, Trajectory(range(5, 50, 10)))
    with pytest.raises(ValueError, match=r"`trajectory_b` must have"):
        probes.distance_between(first, None)
