"""Predictions from the losses of some snapshots: against stationary runs known whole."""

import numpy as np
import pytest

from tf_lrtraj import kernels, theory


def stationary_run(rng, count, directions):
    """[K, D] iterates and the loss: independent relaxations of random times and sizes."""
    times = np.geomspace(rng.uniform(0.3, 1.0), rng.uniform(10.0, 60.0), directions)
    ratios = np.exp(-1.0 / times)
    sizes = rng.uniform(0.2, 1.0, directions)
    iterates = rng.normal(size=(count, directions))
    for t in range(1, count):
        iterates[t] = ratios * iterates[t - 1] + np.sqrt(1.0 - ratios**2) * iterates[t]
    return iterates, lambda point: 2.0 * sizes.sum() + float(sizes @ point**2)


def measure(iterates, loss, stride, lags, number):
    """Singles every `stride` and pairs on them, as arguments of `SparsePredictor`."""
    count = len(iterates)
    grid = np.arange(count - 1, -1, -stride)[::-1]
    starts, gaps = [], []
    for lag in lags:
        usable = grid[grid + lag < count]
        starts += usable[np.linspace(0, usable.size - 1, number).astype(int)].tolist()
        gaps += [lag] * number
    starts, gaps = np.array(starts), np.array(gaps)
    places = np.unique(np.concatenate([grid, starts, starts + gaps]))
    single = {i: loss(iterates[i]) for i in places.tolist()}
    jensen = [
        0.5 * (single[i] + single[i + g]) - loss(0.5 * (iterates[i] + iterates[i + g]))
        for i, g in zip(starts.tolist(), gaps.tolist(), strict=True)
    ]
    return places, np.array(list(single.values())), starts, gaps, np.array(jensen)


AVERAGES = [
    kernels.Exponential(0.8),
    kernels.Exponential(0.95),
    kernels.Window(6),
    kernels.Window(30),
    kernels.Uniform(),
    kernels.TwoPoint(20),
    kernels.Window(4, every=10),
]


def test_sparse_bands_hold_the_truth():
    """And lie closer to it than interpolated losses with gaps by lag alone."""
    rng = np.random.default_rng(0)
    inside, off, off_plain, runs = [], [], [], 60
    for _ in range(runs):
        iterates, loss = stationary_run(rng, 80, int(rng.integers(10, 80)))
        data = measure(iterates, loss, 4, (1, 3, 8, 20, 44, 76), 5)
        predictor = theory.SparsePredictor(80, *data)
        places, singles, starts, gaps, jensen = data
        plain = theory.AveragePredictor(
            np.interp(np.arange(80), places, singles), gaps, jensen, starts=starts, method="mixture"
        )
        for kernel in AVERAGES:
            true = loss(kernel.weights(79) @ iterates)
            found = predictor.predict(kernel, 0.9)
            inside.append(found.low <= true <= found.high)
            off.append(abs(found.loss / true - 1.0))
            off_plain.append(abs(plain.loss(kernel) / true - 1.0))
    assert 0.85 < np.mean(inside) < 0.98
    assert np.median(off) < 0.9 * np.median(off_plain)
    assert np.median(off) < 0.025


def test_the_best_weights_keep_what_they_promise():
    """Without the correction they chase single snapshots that happened to lie low."""
    rng = np.random.default_rng(1)
    gained, gained_plain = [], []
    for _ in range(10):
        iterates, loss = stationary_run(rng, 80, 30)
        places, singles, starts, gaps, jensen = data = measure(
            iterates, loss, 4, (1, 3, 8, 20, 44, 76), 5
        )
        plain = theory.AveragePredictor(
            np.interp(np.arange(80), places, singles), gaps, jensen, starts=starts, method="mixture"
        )
        best = min(loss(kernel.weights(79) @ iterates) for kernel in AVERAGES)
        sparse = theory.SparsePredictor(80, *data).optimal(caution=0.5).weights
        gained.append(loss(sparse @ iterates) / best)
        gained_plain.append(loss(plain.optimal(caution=0.5).weights @ iterates) / best)
    assert np.mean(gained) < np.mean(gained_plain)
    assert np.mean(gained) < 1.005


def test_measured_losses_enter_as_stated():
    """The derivative that the bands are made of, against differences of predictions."""
    rng = np.random.default_rng(2)
    iterates, loss = stationary_run(rng, 40, 20)
    places, singles, starts, gaps, jensen = measure(iterates, loss, 3, (1, 3, 9, 30), 4)
    predictor = theory.SparsePredictor(40, places, singles, starts, gaps, jensen)
    weights = kernels.Exponential(0.9).weights(39)
    slopes = predictor._lag_weights(weights) @ predictor.curve.sensitivity
    stated = predictor._loss_weights(weights, slopes)
    # Adding a constant to every loss adds it to the prediction: weights of losses sum to 1.
    assert stated.sum() == pytest.approx(1.0, abs=1e-10)
    shifted = theory.SparsePredictor(40, places, singles + 0.5, starts, gaps, jensen)
    assert shifted.loss(weights) - predictor.loss(weights) == pytest.approx(0.5, abs=1e-9)
    assert 0.0 < predictor.response <= 1.0


def test_with_one_snapshot_the_prediction_is_its_loss():
    rng = np.random.default_rng(3)
    iterates, loss = stationary_run(rng, 40, 20)
    places, singles, *rest = measure(iterates, loss, 3, (1, 3, 9, 30), 4)
    predictor = theory.SparsePredictor(40, places, singles, *rest)
    for place, single in zip(places.tolist(), singles.tolist(), strict=True):
        assert predictor.loss(np.eye(40)[place]) == pytest.approx(single, rel=1e-12)
    calibrated = predictor.calibrated(
        AVERAGES[3:5], [loss(k.weights(39) @ iterates) for k in AVERAGES[3:5]]
    )
    assert isinstance(calibrated, theory.SparsePredictor) and calibrated.model_error > 0.0


@pytest.mark.parametrize("places", [[0, 1, 2], [0, 2, 2, 5], [0, 2, 5, 9], [-1, 2, 5, 7]])
def test_positions_must_be_indices(places):
    with pytest.raises(ValueError, match="at least 4 ascending indices below 9"):
        theory.SparsePredictor(9, places, np.ones(len(places)), [0], [2], [0.1])


def test_pairs_must_join_measured_snapshots():
    with pytest.raises(ValueError, match="must be among `positions`"):
        theory.SparsePredictor(9, [0, 2, 4, 6], np.ones(4), [0, 1], [2, 2], [0.1, 0.1])
