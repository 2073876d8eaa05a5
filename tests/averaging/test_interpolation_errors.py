"""The error stated of an interpolated average, against runs of which every iterate is known.

The true error must lie within the stated one, and that within `FACTOR` of the true.  The margin
was chosen on other runs than these.
"""

import functools

import numpy as np
import pytest
from helpers import write_snapshots

from tf_lrtraj import kernels
from tf_lrtraj.averaging import post_hoc
from tf_lrtraj.averaging.interpolation_error import MARGIN, interpolation_error

FACTOR = 8.0
FACTOR_OF_SWINGS = 30.0  # swings back and forth between distant snapshots cancel
STEPS = 600
KERNELS = {
    "short ema": kernels.Exponential(0.9),
    "ema": kernels.Exponential(0.99),
    "window": kernels.Window(100),
    "swa": kernels.Uniform(start=300),
    "two points": kernels.TwoPoint(63),
    "signed": kernels.Custom([1.5, *[0.0] * 53, -0.5]),
}


def sgd(rate, momentum=0.0):
    velocity = 0.0

    def step(weights, gradient):
        nonlocal velocity
        velocity = momentum * velocity - rate * gradient
        return weights + velocity

    return step


def adam(rate, decay=0.0):
    first, second, count = 0.0, 0.0, 0

    def step(weights, gradient):
        nonlocal first, second, count
        count += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**count)
        direction = direction / (np.sqrt(second / (1 - 0.999**count)) + 1e-7)
        return weights - rate * (direction + decay * weights)

    return step


OPTIMIZERS = {
    "slow sgd": lambda: sgd(0.05),
    "fast sgd": lambda: sgd(0.5),
    "momentum": lambda: sgd(0.05, 0.9),
    "nearly all momentum": lambda: sgd(0.01, 0.98),
    "slow adam": lambda: adam(1e-3),
    "fast adam": lambda: adam(1e-2),
    "adamw": lambda: adam(3e-3, decay=0.1),
}


@functools.cache
def trajectory(optimizer, seed=7):
    """[T+1, n] iterates of a small network with two layers, in float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1500, 10))
    y = (x @ rng.normal(size=(10, 3)) + 0.3 * rng.normal(size=(1500, 3))).argmax(1)
    sizes = [(10, 24), (24,), (24, 3), (3,)]
    weights = np.concatenate([rng.normal(size=s).ravel() / np.sqrt(s[0]) for s in sizes])
    step = OPTIMIZERS[optimizer]()
    found = [weights]
    for _ in range(STEPS):
        chosen = rng.integers(1500, size=32)
        weights = step(weights, gradient(weights, x[chosen], y[chosen]))
        found.append(weights)
    return np.array(found, np.float32)


def gradient(flat, x, y):
    """Of the mean cross-entropy."""
    first, bias, last, shift = np.split(flat, [240, 264, 336])
    first, last = first.reshape(10, 24), last.reshape(24, 3)
    hidden = np.tanh(x @ first + bias)
    logits = hidden @ last + shift
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    chances[np.arange(len(y)), y] -= 1.0
    chances /= len(y)
    back = (chances @ last.T) * (1.0 - hidden**2)
    parts = (x.T @ back, back.sum(0), hidden.T @ chances, chances.sum(0))
    return np.concatenate([part.ravel() for part in parts])


def true_error(iterates, average):
    """Distance of the built average from the true one, over that of the built from the raw."""
    weights, iterates = average.weights, iterates.astype(np.float64)
    built = weights.weights @ iterates[weights.steps]
    true = weights.target @ iterates[: weights.last + 1]
    return np.linalg.norm(built - true) / np.linalg.norm(built - iterates[weights.last])


TIMES = {
    "every 10": np.arange(0, STEPS + 1, 10),
    "every 40": np.arange(0, STEPS + 1, 40),
    "denser towards the end": np.r_[0:300:50, 300:500:20, 500 : STEPS + 1 : 10],
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_true_error_lies_within_the_stated_one(tmp_path, optimizer, times):
    iterates = trajectory(optimizer)
    folder = write_snapshots(tmp_path, TIMES[times], iterates)
    found = post_hoc.average_snapshots(folder, KERNELS, progress=False)
    ratios = {name: each.error / true_error(iterates, each) for name, each in found.items()}
    assert min(ratios.values()) >= 1.0, ratios
    swings = (optimizer, times) == ("nearly all momentum", "every 40")
    assert max(ratios.values()) <= (FACTOR_OF_SWINGS if swings else FACTOR), ratios


@pytest.mark.parametrize("memory", [0.0, 1.0, 4.0, 30.0, np.inf])
def test_runs_that_relax_or_walk(tmp_path, memory):
    """From independent iterates to a random walk: the margin is nearly all that is added."""
    rng = np.random.default_rng(1)
    iterates = rng.normal(size=(401, 3000))
    ratio = np.exp(-1.0 / memory) if memory else 0.0
    for t in range(1, 401):
        kick = 1.0 if memory == np.inf else np.sqrt(1 - ratio**2)
        iterates[t] = ratio * iterates[t - 1] + kick * iterates[t]
    iterates = iterates.astype(np.float32)
    for steps in (np.arange(0, 401, 10), np.r_[0:200:20, 200:401:5]):
        folder = write_snapshots(tmp_path / str(len(steps)), steps, iterates)
        averages = {k: v for k, v in KERNELS.items() if k != "short ema"}
        for name, average in post_hoc.average_snapshots(folder, averages, progress=False).items():
            true = true_error(iterates, average)
            assert true < average.error < 2.5 * MARGIN * true, (name, average.error, true)


def test_a_steady_drift_costs_nothing(tmp_path):
    iterates = np.outer(np.arange(101.0), np.random.default_rng(2).normal(size=50))
    iterates = iterates.astype(np.float32)
    folder = write_snapshots(tmp_path, range(0, 101, 10), iterates)
    for average in post_hoc.average_snapshots(folder, KERNELS, progress=False).values():
        assert average.error < 1e-3
        expected = average.weights.target @ iterates
        np.testing.assert_allclose(average.arrays[0], expected, rtol=1e-5, atol=1e-5)


def test_weight_before_the_first_snapshot_counts(tmp_path):
    """Iterates that drift steadily: all the error there is comes from before it."""
    iterates = np.arange(101.0, dtype=np.float32)[:, None]
    folder = write_snapshots(tmp_path, range(50, 101, 5), iterates)
    kernel = kernels.Exponential(0.91)
    average = post_hoc.average_snapshots(folder, {"ema": kernel}, progress=False)["ema"]
    assert 0.01 > average.weights.early > 0.005
    true = true_error(iterates, average)
    assert true < average.error == pytest.approx(MARGIN * true, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_snapshots_tell_nothing(count):
    steps = np.arange(count) * 10
    target = kernels.Window(5).weights(int(steps[-1]))
    assert interpolation_error(steps, np.zeros((count, 3)), target) is None
