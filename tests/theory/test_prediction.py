"""Predicted losses of averages against averages that were really built."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from tf_lrtraj import kernels, theory
from tf_lrtraj.theory.gap_curve import fit_gap_curve
from tf_lrtraj.theory.simplex import minimise_over_weights


def quadratic(size, seed, condition=1e4):
    """A convex quadratic loss with a full Hessian, a linear term and an offset."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    hessian = (basis * np.geomspace(1.0 / condition, 1.0, size)) @ basis.T
    linear = rng.normal(size=size)
    return lambda x: 0.5 * np.einsum("...i,ij,...j", x, hessian, x) + x @ linear + 7.0


def all_gaps(loss, snapshots):
    halves = 0.5 * (snapshots[:, None] + snapshots[None])
    losses = loss(snapshots)
    gaps = 0.5 * (losses[:, None] + losses) - loss(halves)
    np.fill_diagonal(gaps, 0.0)
    return losses, gaps


def stationary_run(rng, count, size, every):
    """Snapshots of the diagonal noisy quadratic model in its stationary state, random spectrum."""
    curvatures = np.exp(rng.uniform(np.log(1e-3), 0.0, size))
    noise = rng.exponential(size=size)
    rate = rng.uniform(0.2, 1.5)
    contraction = 1 - rate * curvatures
    variance = rate * curvatures * noise / (2 - rate * curvatures)
    ratio = contraction**every
    snapshots = np.empty((count, size))
    snapshots[0] = rng.normal(size=size) * np.sqrt(variance)
    for k in range(1, count):
        kick = rng.normal(size=size) * np.sqrt(variance * (1 - ratio**2))
        snapshots[k] = ratio * snapshots[k - 1] + kick
    return curvatures, variance, ratio, snapshots


def measure_pairs(rng, curvatures, snapshots, lags, pairs):
    def loss(x):
        return 0.5 * (x**2) @ curvatures

    gaps, starts = np.repeat(lags, pairs), []
    for lag in gaps:
        starts.append(int(rng.integers(0, snapshots.shape[0] - lag)))
    starts = np.array(starts)
    first, second = snapshots[starts], snapshots[starts + gaps]
    values = 0.5 * (loss(first) + loss(second)) - loss(0.5 * (first + second))
    return loss, gaps, starts, values


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), drift=st.floats(0, 3))
def test_full_pair_matrix_is_exact_for_any_quadratic(seed, count, drift):
    rng = np.random.default_rng(seed)
    loss = quadratic(12, seed)
    snapshots = rng.normal(size=(count, 12)) + drift * np.arange(count)[:, None]
    losses, gaps = all_gaps(loss, snapshots)
    weights = rng.normal(size=count)
    weights /= weights.sum()
    built = loss(weights @ snapshots)
    predicted = theory.predict_average_loss(weights, losses, None, gaps)
    scale = np.abs(weights) @ np.abs(losses) + np.abs(weights) @ np.abs(gaps) @ np.abs(weights)
    assert abs(predicted - built) < 1e-10 * scale


def test_all_lags_are_used_as_they_are():
    rng = np.random.default_rng(0)
    losses, curve, weights = rng.normal(size=6), rng.random(5), rng.random(6)
    weights /= weights.sum()
    expected = weights @ losses
    for k in range(6):
        for m in range(6):
            if k != m:
                expected -= 2 * weights[k] * weights[m] * curve[abs(k - m) - 1]
    found = theory.predict_average_loss(weights, losses, np.arange(1, 6), curve)
    assert found == pytest.approx(expected, rel=1e-12)
    # Two measurements of one lag count by their mean, in any order.
    doubled = theory.predict_average_loss(
        weights,
        losses,
        [3, 1, 2, 3, 4, 5],
        [curve[2] + 0.1, *curve[:2], curve[2] - 0.1, *curve[3:]],
    )
    assert doubled == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "kernel",
    [kernels.HalfLife(0.3), kernels.BEMA(), kernels.PowerFunction(-0.5), kernels.TwoPoint(7)],
    ids=str,
)
def test_with_all_pairs_the_loss_of_every_kernel_is_exact(kernel):
    loss = quadratic(30, 4)
    snapshots = np.cumsum(np.random.default_rng(4).normal(size=(20, 30)), axis=0)
    losses, gaps = all_gaps(loss, snapshots)
    predictor = theory.AveragePredictor(losses, None, gaps)
    expected = loss(kernel.weights(19) @ snapshots)
    assert predictor.loss(kernel) == pytest.approx(expected, rel=1e-9)
    assert predictor.predict(kernel).loss == pytest.approx(expected, rel=1e-9)


def test_few_lags_of_a_mixture_predict_the_stationary_loss():
    """Expected gaps at 7 lags give expected losses of averages to a few parts in a thousand."""
    rng = np.random.default_rng(1)
    curvatures, variance, ratio, _ = stationary_run(rng, 2, 30, 5)
    scale = 0.25 * curvatures * variance
    lags = np.array([1, 2, 4, 8, 16, 32, 50])
    gaps = ((1 - ratio ** lags[:, None]) * scale).sum(axis=1)
    losses = np.full(60, 2 * scale.sum())
    for kernel in [kernels.Uniform(), kernels.Exponential(0.9), kernels.TwoPoint(25)]:
        weights = kernel.weights(59)
        time = np.arange(60)
        covariance = np.array(
            [weights @ r ** np.abs(time[:, None] - time) @ weights for r in ratio]
        )
        true = 2 * (scale * covariance).sum()
        found = theory.predict_average_loss(weights, losses, lags, gaps)
        assert found == pytest.approx(true, rel=5e-3)


def test_gap_curve_methods():
    lags = np.array([1, 3, 9, 27])
    true = lambda x: 2 * (1 - 0.7**x) + 3 * (1 - 0.97**x)  # noqa: E731
    wanted = true(np.arange(1, 41))
    mixture = fit_gap_curve(lags, true(lags), 41)
    np.testing.assert_allclose(mixture.values[1:28], wanted[:27], rtol=0.015)
    np.testing.assert_allclose(mixture.values[28:], wanted[27:], rtol=0.06)  # extrapolated
    assert mixture.method == "mixture"
    smooth = fit_gap_curve(lags, true(lags), 41, method="interpolate")
    np.testing.assert_allclose(smooth.values[lags], true(lags), rtol=1e-12)
    assert np.all(np.diff(smooth.values) >= 0)
    assert np.all(smooth.values[27:] == smooth.values[27])
    assert mixture.values[0] == smooth.values[0] == 0.0


@pytest.mark.parametrize("method", ["mixture", "interpolate", "table"])
def test_sensitivity_of_the_gap_curve_is_its_derivative(method):
    rng = np.random.default_rng(0)
    lags = np.arange(1, 21) if method == "table" else np.array([1, 2, 4, 8, 14])
    values = (1 - 0.8**lags) * (1 + 0.1 * rng.normal(size=lags.size))
    values = np.sort(values)
    errors = np.full(lags.size, 0.1)
    curve = fit_gap_curve(lags, values, 21, errors, method)
    assert curve.method == method
    for m in range(lags.size):
        shift = 1e-7 * (np.arange(lags.size) == m)
        moved = fit_gap_curve(lags, values + shift, 21, errors, method).values - curve.values
        where = slice(None) if method != "interpolate" else lags  # linear between the lags
        np.testing.assert_allclose(
            moved[where] / 1e-7, curve.sensitivity[where, m], rtol=1e-4, atol=1e-5
        )


def test_walk_and_drift_are_found():
    lags = np.array([1, 2, 5, 10, 20, 39])
    curve = fit_gap_curve(lags, 0.3 * lags + 0.01 * lags**2, 40)
    all_lags = np.arange(40)
    np.testing.assert_allclose(
        curve.values, 0.3 * all_lags + 0.01 * all_lags**2, rtol=0.02, atol=1e-3
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), rank=st.integers(1, 50))
def test_program_meets_its_optimality_conditions(seed, count, rank):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(rank, count))
    hessian, linear = half.T @ half, rng.normal(size=count) * 10 ** rng.uniform(-2, 2)
    weights = minimise_over_weights(hessian, linear)
    gradient = hessian @ weights + linear
    scale = np.abs(hessian).max() + np.abs(linear).max()
    assert weights.min() >= 0.0
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)
    assert np.ptp(gradient[weights > 0]) < 1e-10 * scale
    assert gradient.min() > gradient[weights > 0].min() - 1e-10 * scale


def test_program_agrees_with_a_general_solver():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        half, linear = rng.normal(size=(20, 12)), 5 * rng.normal(size=12)
        hessian = half.T @ half
        found = minimise_over_weights(hessian, linear)
        other = optimize.minimize(
            lambda c, h=hessian, f=linear: 0.5 * c @ h @ c + f @ c,
            np.full(12, 1 / 12),
            jac=lambda c, h=hessian, f=linear: h @ c + f,
            bounds=[(0, None)] * 12,
            constraints={"type": "eq", "fun": lambda c: c.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(found, other.x, atol=1e-6)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_optimal_weights_meet_the_conditions_of_the_prediction(nonnegative, seed):
    """The gradient of `predict_average_loss` itself, by central differences (exact for it)."""
    rng = np.random.default_rng(seed)
    curvatures, _, _, snapshots = stationary_run(rng, 25, 40, 8)
    _, gaps, _, values = measure_pairs(rng, curvatures, snapshots, [1, 2, 4, 8, 16], 6)
    losses = 0.5 * snapshots**2 @ curvatures
    weights = theory.optimal_weights(losses, gaps, values, nonnegative=nonnegative)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)

    def loss(weights):
        return theory.predict_average_loss(weights, losses, gaps, values)

    # Along directions that keep the sum: from one weight to another.
    best = loss(weights)
    scale = np.abs(losses).max()
    pivot = int(np.argmax(weights))
    slopes = np.zeros(25)
    for k in range(25):
        direction = np.zeros(25)
        direction[k] += 0.1
        direction[pivot] -= 0.1
        slopes[k] = (loss(weights + direction) - loss(weights - direction)) / 0.2
    if nonnegative:
        assert weights.min() >= 0.0
        assert np.abs(slopes[weights > 0]).max() < 1e-8 * scale
        assert slopes.min() > -1e-8 * scale
    else:
        assert np.abs(slopes).max() < 1e-8 * scale
        assert best <= loss(theory.optimal_weights(losses, gaps, values)) + 1e-12
    for kernel in [kernels.Uniform(), kernels.Exponential(0.8), kernels.TwoPoint(9)]:
        assert best <= loss(kernel.weights(24)) + 1e-12


def test_optimum_with_all_pairs_is_the_true_minimum_over_the_span():
    rng = np.random.default_rng(3)
    loss = quadratic(30, 3)
    snapshots = rng.normal(size=(8, 30))
    losses, gaps = all_gaps(loss, snapshots)
    weights = theory.optimal_weights(losses, None, gaps, nonnegative=False)
    best = optimize.minimize(
        lambda c: loss(np.append(c, 1 - c.sum()) @ snapshots), np.full(7, 1 / 8), tol=1e-12
    )
    assert loss(weights @ snapshots) == pytest.approx(best.fun, rel=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_bands_hold_the_truth_at_their_stated_rate(level):
    """Random spectra, a few random pairs at a few lags, averages of each family.

    The statement tested is about the average over such problems; about 450
    (weakly dependent) trials put the rate within 0.03 of its mean.
    """
    rng = np.random.default_rng(2024)
    hits = []
    for _ in range(150):
        count, size = int(rng.integers(30, 80)), int(rng.choice([5, 20, 100]))
        every, pairs = int(rng.choice([3, 10, 30])), int(rng.choice([2, 4, 8]))
        curvatures, _, _, snapshots = stationary_run(rng, count, size, every)
        lags = [1, 2, 4, 8, 16, count // 2, int(0.8 * count)]
        loss, gaps, starts, values = measure_pairs(rng, curvatures, snapshots, lags, pairs)
        predictor = theory.AveragePredictor(loss(snapshots), gaps, values, starts=starts)
        for kernel in [
            kernels.Uniform(),
            kernels.Window(int(rng.integers(3, count // 2))),
            kernels.Exponential(rng.uniform(0.5, 0.95)),
        ]:
            weights = kernel.weights(count - 1)
            found = predictor.predict(weights, level)
            assert found.low <= found.loss <= found.high
            hits.append(found.low <= loss(weights @ snapshots) <= found.high)
    assert level - 0.06 < np.mean(hits) < level + 0.06


def test_bands_account_for_measurement_noise():
    """Noisy losses and gaps of one fixed run whose pairs all agree with the curve."""
    rng = np.random.default_rng(0)
    lags = np.repeat(np.arange(1, 20), 4)
    drop = 2 * (1 - 0.8**lags)
    weights = kernels.Exponential(0.7).weights(19)
    true = theory.predict_average_loss(weights, np.full(20, 5.0), lags, drop)
    inside = []
    for _ in range(200):
        predictor = theory.AveragePredictor(
            5.0 + 0.2 * rng.normal(size=20),
            lags,
            drop + 0.3 * rng.normal(size=lags.size),
            loss_errors=0.2,
            gap_errors=0.3,
        )
        found = predictor.predict(weights, 0.9)
        inside.append(found.low <= true <= found.high)
        # at least the noise of the losses, which nothing can average away
        assert found.error >= 0.2 * np.sqrt(weights @ weights)
    assert 0.85 <= np.mean(inside) <= 1.0


def test_caution_keeps_weights_from_chasing_noise():
    """True losses of chosen weights over many runs: caution helps, and signed weights need it."""
    rng = np.random.default_rng(4)
    results = {"trusting": [], "cautious": [], "signed": [], "cautious signed": []}
    for _ in range(30):
        curvatures, _, _, snapshots = stationary_run(rng, 30, 50, 5)
        loss, gaps, starts, values = measure_pairs(rng, curvatures, snapshots, [1, 2, 4, 8, 16], 8)
        losses = loss(snapshots)
        noise = 0.1 * losses.mean()
        predictor = theory.AveragePredictor(
            losses + noise * rng.normal(size=30), gaps, values, starts=starts, loss_errors=noise
        )
        for name, found in {
            "trusting": predictor.optimal(),
            "cautious": predictor.optimal(caution=2.0),
            "signed": predictor.optimal(nonnegative=False),
            "cautious signed": predictor.optimal(nonnegative=False, caution=2.0, smooth=True),
        }.items():
            results[name].append(loss(found.weights @ snapshots) / losses.mean())
            assert found.optimality < 1e-8
    means = {name: np.mean(values) for name, values in results.items()}
    assert means["cautious"] < means["trusting"] < 0.15
    assert means["cautious signed"] < 0.1
    assert means["signed"] > 1.0  # worse than no average at all, which is why caution exists


def test_gains_are_stated():
    found = theory.AveragePredictor([3.0, 2.0, 4.0], [1, 2], [0.5, 0.5]).optimal()
    assert found.gain_over_last == pytest.approx(4.0 - found.loss)
    assert found.gain_over_best == pytest.approx(2.0 - found.loss)
    assert found.gain_over_best > 0


def test_recommendation_is_the_best_of_a_fine_sweep():
    rng = np.random.default_rng(7)
    curvatures, _, _, snapshots = stationary_run(rng, 40, 30, 4)
    snapshots += 2.0 * np.exp(-np.arange(40) / 8.0)[:, None]  # a transient: old snapshots are bad
    loss, gaps, _, values = measure_pairs(rng, curvatures, snapshots, [1, 2, 5, 10, 20, 30], 6)
    predictor = theory.AveragePredictor(loss(snapshots), gaps, values)
    found = predictor.recommend()
    swa = [predictor.loss(kernels.Window(n)) for n in range(1, 41)]
    assert found.swa_length == 1 + int(np.argmin(swa))
    assert found.swa_loss == pytest.approx(min(swa), rel=1e-12)
    ema = [predictor.loss(kernels.Exponential(d)) for d in np.linspace(0.05, 0.99, 400)]
    assert found.ema_loss <= min(ema) + 1e-6 * abs(min(ema))
    assert found.ema_loss == pytest.approx(predictor.loss(kernels.Exponential(found.ema_decay)))
    two = [predictor.loss(kernels.TwoPoint(g)) for g in range(1, 40)]
    assert found.two_point_gap == 1 + int(np.argmin(two))
    assert found.two_point_loss == pytest.approx(min(two), rel=1e-12)


def test_calibration_finds_the_bend_and_what_is_left():
    """Measured drops that depart from the prediction in proportion to their size, then noise."""
    rng = np.random.default_rng(5)
    lags = np.array([1, 2, 4, 8, 16, 32])
    losses = 5.0 + 0.1 * rng.normal(size=40)
    predictor = theory.AveragePredictor(losses, lags, 1 - 0.9**lags)
    known = [kernels.Window(n).weights(39) for n in (4, 8, 16, 30, 40)]
    mean = np.array([weights @ losses for weights in known])
    drops = mean - [predictor.loss(weights) for weights in known]
    exact = predictor.calibrated(known, mean - drops * (1 + 0.08 * drops))
    assert exact.bend == pytest.approx(0.08, rel=1e-9)
    assert exact.model_error < 1e-12
    other = kernels.Exponential(0.9).weights(39)
    drop = other @ losses - predictor.loss(other)
    assert exact.loss(other) == pytest.approx(other @ losses - drop * (1 + 0.08 * drop), rel=1e-12)
    assert predictor.bend == predictor.model_error == 0.0

    ratios = 1 + 0.08 * drops + 0.05 * rng.normal(size=5)
    noisy = predictor.calibrated(known, mean - drops * ratios)
    left_out = []
    for i in range(5):
        rest = np.delete(np.arange(5), i)
        bend = np.linalg.lstsq(drops[rest, None], ratios[rest] - 1, rcond=None)[0][0]
        left_out.append(ratios[i] - 1 - bend * drops[i])
    assert noisy.model_error == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=1e-9)
    assert noisy.predict(other).error >= noisy.model_error * drop * (1 - 1e-12)
    with pytest.raises(ValueError, match="at least 2 averages"):
        predictor.calibrated(known[:1], [1.0])


def test_diagnosis_is_silent_on_sound_data_and_speaks_on_broken():
    rng = np.random.default_rng(11)
    lags = [1, 2, 4, 8, 16, 25]
    false_alarms = []
    for _ in range(40):
        curvatures, _, _, snapshots = stationary_run(rng, 60, 60, 40)
        loss, gaps, starts, values = measure_pairs(rng, curvatures, snapshots, lags, 5)
        sound = theory.AveragePredictor(loss(snapshots), gaps, values, starts=starts)
        codes = {finding.code for finding in theory.diagnose(sound)} - {"still-rising"}
        false_alarms += sorted(codes)
    assert len(false_alarms) <= 4

    def codes(losses, values):
        predictor = theory.AveragePredictor(losses, gaps, values, starts=starts)
        return {finding.code for finding in theory.diagnose(predictor)}

    losses = loss(snapshots)
    broken = values.copy()
    broken[3] = -values.max()
    assert "negative-gap" in codes(losses, broken)
    centre = (starts + 0.5 * gaps - 30) / 60
    assert "changes-in-time" in codes(losses, values * (1 + 1.8 * centre))
    assert "losses-drift" in codes(losses + 30 * np.linspace(1, 0, 60), values)
    oscillating = np.mean(values) * (1.05 - np.cos(2 * np.pi * gaps / 8.0))
    scatter = 1 + 0.05 * rng.normal(size=gaps.size)
    assert "not-a-relaxation" in codes(losses, oscillating * scatter)
    assert "still-rising" in codes(losses, 0.1 * gaps * scatter)
    few = theory.AveragePredictor(losses, [1, 2], [1.0, 1.5])
    assert "scatter-unknown" in {finding.code for finding in theory.diagnose(few)}


def test_diagnosis_of_all_pairs():
    loss = quadratic(12, 0)
    losses, gaps = all_gaps(loss, np.random.default_rng(0).normal(size=(6, 12)))
    assert theory.diagnose(theory.AveragePredictor(losses, None, gaps)) == []
    broken = theory.AveragePredictor(losses, None, -gaps)
    assert [finding.code for finding in theory.diagnose(broken)] == ["not-quadratic"]


def test_signed_weights_without_a_minimum_are_refused():
    with pytest.raises(ValueError, match="Signed weights have no minimum"):
        theory.optimal_weights([1.0, 2.0, 3.0], [1, 2], [0.0, 0.0], nonnegative=False)


# --- From the losses of some snapshots: stationary runs known whole -------------------------------


def relaxing_run(rng, count, directions):
    """[K, D] iterates and the loss: independent relaxations of random times and sizes."""
    times = np.geomspace(rng.uniform(0.3, 1.0), rng.uniform(10.0, 60.0), directions)
    ratios = np.exp(-1.0 / times)
    sizes = rng.uniform(0.2, 1.0, directions)
    iterates = rng.normal(size=(count, directions))
    for t in range(1, count):
        iterates[t] = ratios * iterates[t - 1] + np.sqrt(1.0 - ratios**2) * iterates[t]
    return iterates, lambda point: 2.0 * sizes.sum() + float(sizes @ point**2)


def measure_on_grid(iterates, loss, stride, lags, number):
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
        iterates, loss = relaxing_run(rng, 80, int(rng.integers(10, 80)))
        data = measure_on_grid(iterates, loss, 4, (1, 3, 8, 20, 44, 76), 5)
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
        iterates, loss = relaxing_run(rng, 80, 30)
        places, singles, starts, gaps, jensen = data = measure_on_grid(
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
    iterates, loss = relaxing_run(rng, 40, 20)
    places, singles, starts, gaps, jensen = measure_on_grid(iterates, loss, 3, (1, 3, 9, 30), 4)
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
    iterates, loss = relaxing_run(rng, 40, 20)
    places, singles, *rest = measure_on_grid(iterates, loss, 3, (1, 3, 9, 30), 4)
    predictor = theory.SparsePredictor(40, places, singles, *rest)
    for place, single in zip(places.tolist(), singles.tolist(), strict=True):
        assert predictor.loss(np.eye(40)[place]) == pytest.approx(single, rel=1e-12)
    calibrated = predictor.calibrated(
        AVERAGES[3:5], [loss(k.weights(39) @ iterates) for k in AVERAGES[3:5]]
    )
    assert isinstance(calibrated, theory.SparsePredictor) and calibrated.model_error > 0.0


# --- Curvatures and noise from the gaps of a known model ------------------------------------------

RATE = 0.8
A = np.array([0.02, 0.3])
NOISE = np.array([2.0, 0.5])


def gaps_of(lags, every):
    """Exact gaps of the stationary state: a (c(0) - c(Δ)) / 4 for each mode."""
    variance = RATE * A * NOISE / (2 - RATE * A)
    moved = variance * (1 - (1 - RATE * A) ** (every * np.asarray(lags)[:, None]))
    return (0.25 * A * moved).sum(axis=1)


@pytest.fixture(scope="module")
def found():
    lags = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89]
    return theory.estimate_spectrum(lags, gaps_of(lags, 2), count=90, every=2, rate=RATE)


def test_excess_loss_of_the_stationary_state(found):
    model = theory.QuadraticModel(A, NOISE)
    excess = 0.5 * (A * model.stationary_variance(RATE)).sum()
    assert found.excess.sum() == pytest.approx(excess, rel=0.01)
    assert found.unresolved < 0.05


def test_the_estimate_is_stationary_at_the_runs_rate(found):
    losses = found.model.expected_loss(np.full(50, RATE), found.initial)
    np.testing.assert_allclose(losses, found.excess.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    "kernel", [kernels.Uniform(), kernels.Exponential(0.95), kernels.TwoPoint(60)], ids=repr
)
def test_averages_lose_what_they_lose_in_the_model(found, kernel):
    """The estimate's averages against those of the model the gaps came from."""
    model = theory.QuadraticModel(A, NOISE)
    initial = np.sqrt(model.stationary_variance(RATE))
    rates = np.full(120, RATE)
    expected = model.expected_loss_of_average(kernel, rates, initial)[-1]
    estimated = found.model.expected_loss_of_average(kernel, rates, found.initial)[-1]
    assert estimated == pytest.approx(expected, rel=0.03)


def test_one_mode_has_one_curvature():
    lags = np.array([1, 2, 4, 8, 16, 32])
    gaps = 0.1 * (1 - np.exp(-lags / 7.0))
    found = theory.estimate_spectrum(lags, gaps, count=40, every=5, rate=0.5)
    assert found.curvature == pytest.approx((1 - np.exp(-1 / 35.0)) / 0.5, rel=1e-3)
    assert found.excess.sum() == pytest.approx(0.2, rel=5e-3)  # decays lie on a grid


def test_a_walk_counts_as_unresolved():
    lags = np.array([1, 2, 4, 8, 16, 32])
    found = theory.estimate_spectrum(lags, 0.01 * lags, count=40, every=1, rate=1.0)
    assert found.unresolved > 0.9
    assert np.all(found.curvatures > 0)


# --- Squared distances in place of losses ---------------------------------------------------------


def test_squared_distances_of_any_type_and_size():
    rng = np.random.default_rng(0)
    snapshots = (rng.normal(size=(7, 300_000)) * 0.01 + 100.0).astype(np.float32)
    found = theory.squared_distances(snapshots)
    wide = snapshots.astype(np.float64)
    expected = np.array([[np.sum((a - b) ** 2) for b in wide] for a in wide])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_distance_of_averages_is_exact_from_all_pairs():
    rng = np.random.default_rng(1)
    snapshots = np.cumsum(rng.normal(size=(20, 50)), axis=0)
    distances = theory.squared_distances(snapshots)
    point = rng.normal(size=50)
    to_point = np.sum((snapshots - point) ** 2, axis=1)
    for weights in [
        kernels.Exponential(0.8).weights(19),
        kernels.Uniform(start=5).weights(19),
        np.append(rng.normal(size=19) / 10, 0.0),
    ]:
        weights = weights.copy()
        weights[-1] += 1 - weights.sum()
        average = weights @ snapshots
        found = theory.predict_squared_distance(weights, to_point, None, distances)
        assert found == pytest.approx(np.sum((average - point) ** 2), rel=1e-10)


def test_distance_of_averages_from_displacements_by_lag():
    """A stationary run of many directions: lags alone predict to the run's own scatter."""
    rng = np.random.default_rng(2)
    snapshots = np.zeros((100, 3000))
    for k in range(1, 100):
        snapshots[k] = 0.9 * snapshots[k - 1] + rng.normal(size=3000)
    snapshots = snapshots[40:]
    distances = theory.squared_distances(snapshots)
    displacement = [np.diag(distances, lag).mean() for lag in range(1, 41)]
    norms = np.sum(snapshots**2, axis=1)
    weights = kernels.Window(20).weights(59)
    found = theory.predict_squared_distance(weights, norms, np.arange(1, 41), displacement)
    assert found == pytest.approx(np.sum((weights @ snapshots) ** 2), rel=0.1)
