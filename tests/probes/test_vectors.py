"""Vectors in weight space."""

import keras
import numpy as np
from keras import ops

from tf_lrtraj.probes import vectors


def arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in ((2, 3), (3,), (), (1, 2, 2))]


def test_flat():
    given = arrays()
    numbers = vectors.flat(given)
    assert numbers.dtype == np.float64
    np.testing.assert_array_equal(numbers, np.concatenate([array.ravel() for array in given]))


def test_tensors_and_mixtures_of_both():
    given = [a.astype(np.float32) for a in arrays()]
    tensors = [ops.convert_to_tensor(a) for a in given]
    np.testing.assert_array_equal(vectors.flat(tensors), vectors.flat(given))
    mixed = [*tensors[:2], *given[2:]]
    np.testing.assert_array_equal(vectors.flat(mixed), vectors.flat(given))
    assert all(a.dtype == np.float64 for a in vectors.host(tensors))


def test_an_empty_vector():
    assert vectors.flat([]).shape == (0,) and vectors.norm([]) == 0.0


def test_sums_keep_the_digits_that_float32_would_lose():
    many = [np.full(1 << 22, 0.1, np.float32), np.array([1e4], np.float32)]
    wanted = np.sqrt((1 << 22) * float(np.float32(0.1)) ** 2 + 1e8)
    np.testing.assert_allclose(vectors.norm(many), wanted, rtol=1e-12)


def test_layers_of_a_nested_model():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")], name="a")
    inputs = keras.Input((2,))
    x = keras.layers.Dense(2, name="dense")(inner(inputs))
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    layers = vectors.layers_of(model)
    assert sorted(i for positions in layers.values() for i in positions) == [0, 1, 2, 3, 4, 5]
    assert [len(positions) for positions in layers.values()] == [2, 2, 2]
    for name, positions in layers.items():
        assert all(model.trainable_variables[i].path.startswith(name) for i in positions)
