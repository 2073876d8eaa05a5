"""Estimators from the Gram matrix of batch gradients, against simulations of known Σ and G."""

import itertools

import numpy as np
import pytest

from tf_lrtraj.probes import estimators
from tf_lrtraj.theory import QuadraticModel

G = np.array([0.6, -0.3, 0.2, 0.0, 0.1])
ROOT = np.diag([1.0, 0.5, 2.0, 0.3, 1.5]) + 0.2 * np.tri(5, k=-1)  # of Σ, for one example
SIGNAL, NOISE = float(G @ G), float(np.trace(ROOT @ ROOT.T))


def gradients(random, sizes, runs):
    """[runs, N, 5] batch gradients of batches of the given sizes."""
    noise = random.standard_normal((runs, len(sizes), 5)) @ ROOT.T
    return G + noise / np.sqrt(sizes)[:, None]


@pytest.mark.parametrize("sizes", [[16] * 6, [4, 8, 16, 32]])
def test_signal_and_noise_are_unbiased(sizes):
    found = np.array(
        [
            estimators.signal_and_noise(g @ g.T, np.array(sizes, float))
            for g in gradients(np.random.default_rng(1), sizes, 8000)
        ]
    )
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - [SIGNAL, NOISE]) < 3.5 * error)
    assert np.all(error < 0.01 * np.array([SIGNAL, NOISE]) + 0.002)


def test_jackknife_errors_are_those_of_many_repetitions():
    sizes, random = [16] * 12, np.random.default_rng(2)
    found = [estimators.alignment(g @ g.T, sizes) for g in gradients(random, sizes, 500)]
    for name in ("signal", "noise", "pair_cosine", "rest_cosine", "share"):
        values = np.array([getattr(one, name).value for one in found])
        errors = np.array([getattr(one, name).error for one in found])
        # The jackknife errs upwards for few batches, never far down.
        assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std() < 1.5, name


def test_errors_that_took_pairs_for_independent_would_be_too_small():
    sizes, random = [16] * 12, np.random.default_rng(3)
    naive, spread = [], []
    for g in gradients(random, sizes, 300):
        pairs = estimators.off_diagonal(g @ g.T)
        naive.append(pairs.std(ddof=1) / np.sqrt(pairs.size))
        spread.append(pairs.mean())
    assert np.mean(naive) < 0.8 * np.std(spread)


def test_the_noise_scale_tends_to_its_true_value_with_many_batches():
    sizes = [64] * 200
    (g,) = gradients(np.random.default_rng(4), sizes, 1)
    found = estimators.alignment(g @ g.T, sizes).noise_scale
    assert abs(found.value - NOISE / SIGNAL) < 4.0 * found.error
    assert found.error < 0.2 * found.value


def test_expectations_of_the_quadratic_model():
    """E⟨g_x, g_y⟩ = θᵀA²θ and E‖g_x‖² = θᵀA²θ + tr(A²C) (theory of the model)."""
    random = np.random.default_rng(5)
    a, noise, theta = np.array([2.0, 0.5, 1.0]), np.array([0.3, 2.0, 0.7]), np.array([1.0, 2, -1])
    closed = QuadraticModel(a, noise).gradient_statistics(theta)
    found = []
    for _ in range(4000):
        g = a * (theta - np.sqrt(noise) * random.standard_normal((5, 3)))
        found.append(estimators.signal_and_noise(g @ g.T, np.ones(5)))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(mean - [closed.signal, closed.noise]) < 3.5 * error)
    big = a * (theta - np.sqrt(noise) * random.standard_normal((200, 3)))
    share = estimators.alignment(big @ big.T, np.ones(200, int)).share
    assert abs(share.value - closed.cosine_between_batches) < 4.0 * share.error


def test_cosines_against_slow_twins():
    g = np.random.default_rng(6).standard_normal((6, 4)) + 0.5
    gram = g @ g.T

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    pairs = [cosine(g[i], g[j]) for i, j in itertools.combinations(range(6), 2)]
    np.testing.assert_allclose(estimators.off_diagonal(estimators.cosines(gram)), pairs)
    rest = [cosine(g[i], np.delete(g, i, axis=0).mean(axis=0)) for i in range(6)]
    np.testing.assert_allclose(estimators.cosines_to_rest(gram), rest)
    whole = [cosine(one, g.mean(axis=0)) for one in g]
    np.testing.assert_allclose(estimators.cosines_to_mean(gram), whole)
    direction = np.array([1.0, 0.0, -1.0, 2.0])
    products, square = g @ direction, float(direction @ direction)
    found = estimators.direction_cosines(gram, products, square)
    np.testing.assert_allclose(found, [cosine(one, direction) for one in g])
    found = estimators.mean_direction_cosine(gram, products, square)
    assert found.value == pytest.approx(cosine(g.mean(axis=0), direction))
    without = [cosine(np.delete(g, i, axis=0).mean(axis=0), direction) for i in range(6)]
    assert found.error == pytest.approx(np.sqrt(5 / 6 * np.sum((without - np.mean(without)) ** 2)))


def test_orthogonal_vectors_show_the_bias_against_the_mean_of_all():
    gram = np.eye(9)
    np.testing.assert_allclose(estimators.cosines_to_mean(gram), 1 / 3)
    np.testing.assert_array_equal(estimators.cosines_to_rest(gram), 0.0)


def test_what_cannot_be_told():
    found = estimators.alignment(np.zeros((3, 3)), [1, 1, 1])
    assert np.isnan(found.pair_cosine.value) and np.isinf(found.pair_cosine.error)
    assert found.noise_scale.value == np.inf
    # Gradients that cancel have no signal, so no scale.
    opposed = 4.0 * np.eye(3) - np.ones((3, 3))
    assert estimators.alignment(opposed, [1, 1, 1]).noise_scale == (np.inf, np.inf)
    with pytest.raises(ValueError, match=r"at least 3 batches. Received: 2"):
        estimators.alignment(np.eye(2), [1, 1])
