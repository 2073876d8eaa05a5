"""Eigenvalues of the Hessian by Lanczos iteration, against the whole matrix and closed forms."""

import keras
import numpy as np
import pytest
from probe_cases import measured

from tf_lrtraj import probes


def whole_hessian(surface, batches):
    """The slow, obvious twin: a product for every weight, and all eigenvalues."""
    point = surface.point()
    shapes = [np.shape(array) for array in point.trainable]
    sizes = [int(np.prod(shape)) for shape in shapes]
    rows = []
    for i in range(sum(sizes)):
        unit = np.split(np.eye(sum(sizes), dtype="f")[i], np.cumsum(sizes)[:-1])
        vector = [part.reshape(shape) for part, shape in zip(unit, shapes, strict=True)]
        products = [surface.hessian_vector(point, batch, vector) for batch in batches]
        flat = [
            np.concatenate([keras.ops.convert_to_numpy(a).ravel() for a in product])
            for product in products
        ]
        rows.append(np.mean(flat, axis=0, dtype=np.float64))
    return np.array(rows)


def test_a_network_with_batch_norm_against_its_whole_hessian():
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(16, 4)).astype("f"), rng.integers(0, 3, 16)) for _ in range(3)]
    surface = probes.Surface(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    hessian = whole_hessian(surface, batches)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-6)
    wanted = np.linalg.eigvalsh(hessian)
    probe = probes.Eigenvalues(surface, None, batches, iterations=30, count=4, starts=2)
    record = probes.measure(probe, progress=False)
    values = record.values
    for start in range(2):
        np.testing.assert_allclose(values["eigenvalues"][start], wanted[::-1][:4], rtol=1e-4)
        np.testing.assert_allclose(values["smallest"][start, -1], wanted[0], rtol=1e-3)
        # Ritz values approach from inside, and never fall.
        assert (values["largest"][start] <= wanted[-1] + 1e-6).all()
        assert (np.diff(values["largest"][start]) >= -1e-6).all()
    assert wanted[0] < -1e-3  # so that the smallest is no rounded zero


def test_bounds_hold_before_convergence():
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(40, 12)).astype("f"), np.zeros((40, 1), "f")
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, use_bias=False)])
    wanted = np.linalg.eigvalsh(2.0 * inputs.T.astype(np.float64) @ inputs / 40.0)
    record = measured(
        probes.Eigenvalues, model, "mse", None, [(inputs, targets)], iterations=5, count=3
    )
    for found, bound in zip(*(record.values[k][0] for k in ("eigenvalues", "bounds")), strict=True):
        nearest = np.abs(wanted - found).min()
        assert nearest <= bound * (1 + 1e-4) + 1e-5
    assert record.values["bounds"][0, 2] > 1e-2  # the third is not converged yet
    # All 12 products give all eigenvalues, whatever more is asked for.
    record = measured(
        probes.Eigenvalues, model, "mse", None, [(inputs, targets)], iterations=50, count=12
    )
    np.testing.assert_allclose(record.values["eigenvalues"][0], wanted[::-1], rtol=1e-4)


def test_a_repeated_eigenvalue_exhausts_the_krylov_space():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, use_bias=False)])
    scales = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 0.0])
    batch = np.diag(scales).astype("f"), np.zeros((6, 1), "f")
    record = measured(probes.Eigenvalues, model, "mse", None, [batch], iterations=6, count=6)
    wanted = np.sort(2.0 * scales**2 / 6.0)[::-1]
    np.testing.assert_allclose(record.values["eigenvalues"][0], wanted, atol=1e-5)
    assert (record.values["off_diagonal"][0] == 0.0).sum() >= 2


def test_recalibrated_batch_norm_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    batch = np.zeros((4, 2), "f"), np.zeros((4, 2), "f")
    surface = probes.Surface(model, "mse", batch_norm="recalibrated", moment_batches=[batch])
    with pytest.raises(ValueError, match=r"'batch' or 'frozen'\. Received: surface=Mode"):
        probes.Eigenvalues(surface, None, [batch])
