"""Recomputed batch-norm statistics against moments taken with NumPy."""

import random

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn


def network():
    inputs = keras.Input((5, 5, 2))
    x = keras.layers.Conv2D(3, 3, kernel_initializer=keras.initializers.HeNormal(seed=1))(inputs)
    x = keras.layers.BatchNormalization(name="first")(x)
    x = keras.layers.Dropout(0.5, seed=3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    inner = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="nested")])
    return keras.Model(inputs, keras.layers.Dense(2)(inner(x)))


def all_values(model):
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]


def values(model):
    return backend.values(model.trainable_variables), backend.values(model.non_trainable_variables)


@pytest.mark.parametrize("sizes", [[16], [8, 8], [5, 9, 2]])
def test_first_layer_statistics_equal_the_moments_of_all_its_inputs(sizes):
    # What the first layer sees does not depend on batch statistics, so pooling is
    # exact whatever the batch sizes.
    model = network()
    images = np.random.default_rng(0).normal(size=(16, 5, 5, 2)).astype(np.float32) * 3 + 1
    before = all_values(model)
    batches = [(part,) for part in np.split(images, np.cumsum(sizes)[:-1])]
    result = bn.recompute(model, *values(model), batches)
    seen = ops.convert_to_numpy(model.layers[1](images)).astype(np.float64)
    entry = bn.find_statistics(model)[0]
    assert entry.layer.name == "first"
    mean, variance = (ops.convert_to_numpy(result[i]) for i in (entry.mean, entry.variance))
    np.testing.assert_allclose(mean, seen.mean((0, 1, 2)), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(variance, seen.var((0, 1, 2)), rtol=1e-5)
    for old, new in zip(before, all_values(model), strict=True):
        np.testing.assert_array_equal(old, new)  # also the seed of the dropout's stream


def test_one_whole_batch_gives_the_training_mode_output():
    # With one batch, inference under the recomputed statistics is the training pass.
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(epsilon=1e-3)(keras.layers.Dense(6)(inputs))
    x = keras.layers.BatchNormalization(epsilon=1e-3)(keras.layers.Dense(6)(ops.relu(x)))
    model = keras.Model(inputs, x)
    data = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    trainable, non_trainable = values(model)
    recomputed = bn.recompute(model, trainable, non_trainable, [data])
    expected, _ = backend.forward(model, trainable, non_trainable, data, training=True)
    actual, _ = backend.forward(model, trainable, recomputed, data, training=False)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual), ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-5
    )


def test_nested_layers_are_found_and_frozen_ones_left_alone():
    model = network()
    assert [e.layer.name for e in bn.find_statistics(model)] == ["first", "nested"]
    model.get_layer("first").trainable = False
    assert [e.layer.name for e in bn.find_statistics(model)] == ["nested"]
    data = np.random.default_rng(0).normal(size=(8, 5, 5, 2)).astype(np.float32)
    frozen = model.get_layer("first")
    result = bn.recompute(model, *values(model), [data])
    positions = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    kept = ops.convert_to_numpy(result[positions[id(frozen.moving_mean)]])
    np.testing.assert_array_equal(kept, np.zeros(3))


def test_weights_and_statistics_are_split_as_they_are_listed():
    model = network()
    held = bn.weights_and_statistics(model)
    names = [v.path.split("/")[-2:] for v in held[len(model.trainable_variables) :]]
    assert names == [
        [n, m] for n in ("first", "nested") for m in ("moving_mean", "moving_variance")
    ]
    arrays = [np.full(v.shape, i, np.float32) for i, v in enumerate(held)]
    _, own = bn.split_weights(model, arrays[: len(model.trainable_variables)])
    for old, new in zip(values(model)[1], own, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(old), ops.convert_to_numpy(new))
    trainable, others = bn.split_weights(model, arrays)
    backend.assign(model.trainable_variables, trainable)
    backend.assign(model.non_trainable_variables, others)
    for array, variable in zip(arrays, held, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), array)


def test_no_data_and_unknown_policies_are_errors():
    model = network()
    with pytest.raises(ValueError, match="at least one batch"):
        bn.recompute(model, *values(model), [])
    with pytest.raises(ValueError, match=r"must be one of \['recompute'.*Received.*'refresh'"):
        bn.check_policy("refresh")


# What a layer is called on: model, data, [elements, channels] that the layer saw ---------------


VECTORS = np.random.default_rng(2).normal(size=(17, 4)).astype(np.float32) * 2 + 3


def sequential(*layers, shape=(4,), **options):
    return keras.Sequential([keras.Input(shape, **options), *layers])


def plain(**options):
    norm = keras.layers.BatchNormalization(**options)
    return sequential(norm), VECTORS, VECTORS


def low_precision(dtype):
    policy = keras.DTypePolicy(dtype)
    model = sequential(keras.layers.BatchNormalization(dtype=policy))
    seen = ops.cast(ops.cast(VECTORS, policy.compute_dtype), "float32")
    return model, VECTORS, ops.convert_to_numpy(seen)


def called_twice():
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, [norm(inputs), norm(3.0 * inputs + 1.0)])
    return model, VECTORS, np.concatenate([VECTORS, np.float32(3.0) * VECTORS + np.float32(1.0)])


def masked():
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0], [2, 0, 0, 0]])
    embedding = keras.layers.Embedding(4, 3, mask_zero=True)
    model = sequential(embedding, keras.layers.BatchNormalization(), dtype="int32")
    return model, tokens, ops.convert_to_numpy(embedding.embeddings.value)[tokens[tokens > 0]]


def another_axis():
    data = np.random.default_rng(3).normal(size=(7, 3, 4)).astype(np.float32)
    model = sequential(keras.layers.BatchNormalization(axis=1), shape=(3, 4))
    return model, data, np.moveaxis(data, 1, -1).reshape(-1, 3)


CASES = {
    "momentum 0": lambda: plain(momentum=0.0),
    "momentum 1": lambda: plain(momentum=1.0),
    "momentum 0, neither scale nor center": lambda: plain(momentum=0.0, scale=False, center=False),
    "momentum 1, neither scale nor center": lambda: plain(momentum=1.0, scale=False, center=False),
    "mixed_bfloat16": lambda: low_precision("mixed_bfloat16"),
    "bfloat16": lambda: low_precision("bfloat16"),
    "mixed_float16": lambda: low_precision("mixed_float16"),
    "called twice": called_twice,
    "masked elements": masked,
    "another axis": another_axis,
}
# Of mean and variance.
TOLERANCES = {"bfloat16": (2.0**-8, 2.0**-8), "called twice": (2e-6, 4e-6)}


def close(actual, expected, tolerance=2e-6):
    actual = np.asarray(ops.convert_to_numpy(ops.cast(actual, "float32")), np.float64)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def recomputed(model, data, batch_size=5):
    """(mean, variance) of each batch-norm layer; and checks that nothing in the model moved."""
    before = all_values(model)
    streams = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    result = bn.recompute(model, *values(model), data, batch_size=batch_size)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == streams  # noqa: NPY002
    for old, new in zip(before, all_values(model), strict=True):
        assert old.tobytes() == new.tobytes()
    return [(result[e.mean], result[e.variance]) for e in bn.find_statistics(model)]


@pytest.mark.parametrize("case", CASES)
def test_statistics_are_the_moments_of_all_that_the_layer_saw(case):
    model, data, seen = CASES[case]()
    ((mean, variance),) = recomputed(model, data, batch_size=2 if case == "masked elements" else 5)
    seen, tolerances = seen.astype(np.float64), TOLERANCES.get(case, (2e-6, 2e-6))
    close(mean, seen.mean(0), tolerances[0])
    close(variance, seen.var(0), tolerances[1])


def test_a_large_mean_does_not_drown_the_variance():
    # A second moment minus a squared mean would have nothing left in float32.
    data = VECTORS * 1e-3 + 100.0
    ((_, variance),) = recomputed(sequential(keras.layers.BatchNormalization()), data)
    exact = data.astype(np.float64).var(0)
    # Left is the rounding of the batches' means to float32, a thousandth of what they differ by.
    np.testing.assert_allclose(ops.convert_to_numpy(variance), exact, rtol=2e-3)


# Layers out of the ordinary ---------------------------------------------------------------------


def test_a_layer_called_in_inference_mode_keeps_its_statistics():
    class Fixed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization(momentum=0.5)

        def build(self, shape):
            self.norm.build(shape)

        def call(self, inputs):
            return self.norm(inputs, training=False)

    fixed = Fixed()
    model = sequential(fixed, keras.layers.BatchNormalization())
    fixed.norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    (mean, variance), (free, _) = recomputed(model, VECTORS)
    close(mean, [1.0, 2.0, 3.0, 4.0])
    close(variance, np.ones(4))
    seen = (VECTORS - np.arange(1.0, 5.0)) / np.sqrt(1.0 + fixed.norm.epsilon)
    close(free, seen.mean(0), 1e-5)


def test_batch_renormalisation_normalises_by_the_batch():
    try:
        norm = keras.layers.BatchNormalization(renorm=True, name="first")
    except (TypeError, ValueError):
        pytest.skip("this Keras has no batch renormalisation")
    model = sequential(norm, keras.layers.BatchNormalization())
    norm.renorm_mean.assign(np.full(4, 50.0))  # of other weights: must play no part
    (mean, variance), (second, _) = recomputed(model, VECTORS, batch_size=17)
    close(mean, VECTORS.astype(np.float64).mean(0))
    close(second, np.zeros(4), 1e-5)
    assert norm.renorm
    entry = bn.find_statistics(model)[0]
    replaced = bn.replace(values(model)[1], [entry], [(mean, variance)])
    close(replaced[entry.stddev], np.sqrt(ops.convert_to_numpy(variance) + norm.epsilon))


def test_other_layers_with_statistics_are_left_alone():
    scaled = keras.layers.Normalization()
    scaled.adapt(VECTORS)
    inputs = keras.Input((4,))
    x = keras.layers.SpectralNormalization(keras.layers.Dense(3))(scaled(inputs))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    trainable, rest = values(model)
    entries = bn.find_statistics(model)
    result = bn.recompute(model, trainable, rest, [VECTORS])
    replaced = {p for e in entries for p in (e.mean, e.variance)}
    for position, (old, new) in enumerate(zip(rest, result, strict=True)):
        same = np.array_equal(ops.convert_to_numpy(old), ops.convert_to_numpy(new))
        assert same == (position not in replaced)
    recomputed(model, VECTORS)


def test_random_layers_go_on_from_batch_to_batch():
    # With one seed for every batch the same places would be dropped in each.
    inputs = keras.Input((64,))
    model = keras.Model(
        inputs, keras.layers.BatchNormalization()(keras.layers.Dropout(0.5, seed=1)(inputs))
    )
    ((mean, _),) = recomputed(model, np.ones((40, 64), np.float32), batch_size=1)
    dropped = ops.convert_to_numpy(mean)
    assert 0.2 < dropped.min() < dropped.max() < 1.8
    ((again, _),) = recomputed(model, np.ones((40, 64), np.float32), batch_size=1)
    np.testing.assert_array_equal(dropped, ops.convert_to_numpy(again))


def test_models_without_batch_norm_need_no_data():
    model = sequential(keras.layers.LayerNormalization())
    trainable, rest = values(model)
    assert bn.recompute(model, trainable, rest, []) == rest


def test_freezing_a_layer_between_two_uses():
    model = sequential(keras.layers.BatchNormalization(name="norm"))
    recompute = bn.Recompute(model)
    first = recompute(*values(model), [VECTORS])
    close(first[0], VECTORS.astype(np.float64).mean(0))
    model.get_layer("norm").trainable = False
    kept = recompute(*values(model), [VECTORS])
    for old, new in zip(backend.values(model.non_trainable_variables), kept, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(old), ops.convert_to_numpy(new))


def test_reading_shuffled_data_leaves_the_global_streams_alone():
    class Shuffled:
        def __iter__(self):
            order = np.random.permutation(len(VECTORS))  # noqa: NPY002
            random.random()
            yield VECTORS[order]

    recomputed(sequential(keras.layers.BatchNormalization()), Shuffled())
