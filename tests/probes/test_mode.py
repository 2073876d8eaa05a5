"""What batch norm and dropout do while a loss is measured, against NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes import Mode, Surface
from tf_lrtraj.probes.mode import as_in, random_layers

EPSILON = 1e-3


def numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def data(size=64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 2.0, size=(size, 3)).astype(np.float32)


def batch_of(size=64, seed=0, outputs=3):
    return data(size, seed), np.zeros((size, outputs), np.float32)


# Dropout


def dropout_model(rate=0.5):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dropout(rate, seed=4),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    model.set_weights([np.eye(3)])
    return model


def test_pinned_masks_are_the_same_at_all_points_and_for_all_calls():
    surface = Surface(dropout_model(), "mse", dropout="pinned")
    x = data()
    first = surface.predict(surface.point(), x)
    np.testing.assert_array_equal(surface.predict(surface.point(), x), first)
    np.testing.assert_allclose(surface.predict(surface.point([3.0 * np.eye(3)]), x), 3.0 * first)
    kept = first != 0.0
    np.testing.assert_allclose(first[kept], 2.0 * x[kept], rtol=1e-6)
    assert 0.35 < kept.mean() < 0.65
    # ... along a line and for gradients as well: the loss is exactly that of the masked inputs.
    masked = np.where(kept, 2.0 * x.astype(np.float64), 0.0)
    batch = x, np.zeros((64, 3), np.float32)
    np.testing.assert_allclose(
        surface.along(surface.point(), [np.eye(3)], [0.0, 0.5, 2.0], batch),
        np.mean(masked**2) * np.array([1.0, 0.25, 1.0]),
        rtol=1e-6,
    )
    _, (gradient,) = surface.gradient(surface.point(), batch)
    np.testing.assert_allclose(numpy(gradient), 2.0 * masked.T @ masked / (64 * 3), rtol=1e-5)


def test_pinned_masks_are_those_the_model_would_draw_next():
    model, x = dropout_model(), data()
    surface = Surface(model, "mse", dropout="pinned")
    pinned = surface.predict(surface.point(), x)
    np.testing.assert_array_equal(pinned, numpy(model(x, training=True)))
    # The model has drawn meanwhile: a point taken now has other masks, the old one its own.
    assert (surface.predict(surface.point(), x) != pinned).any()


def test_dropout_off_is_off():
    x = data()
    surface = Surface(dropout_model(), "mse")
    np.testing.assert_allclose(surface.predict(surface.point(), x), x, rtol=1e-6)


def test_random_layers_are_found_in_nested_models():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.GaussianNoise(1.0, seed=1)])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5, seed=2)(inner(inputs)))
    assert {type(layer).__name__ for layer in random_layers(model)} == {"GaussianNoise", "Dropout"}
    x = data()
    off, pinned = Surface(model, "mse"), Surface(model, "mse", dropout="pinned")
    np.testing.assert_array_equal(off.predict(off.point(), x), x)
    assert (pinned.predict(pinned.point(), x) != x).mean() > 0.9


# Batch norm


def norm_model(trainable=True):
    """x → batch norm → nested(batch norm), with every number of its own."""
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(epsilon=EPSILON, name="inner")]
    )
    inputs = keras.Input((3,))
    outer = keras.layers.BatchNormalization(epsilon=EPSILON, name="outer")
    outer.trainable = trainable
    model = keras.Model(inputs, inner(ops.tanh(outer(inputs))))
    rng = np.random.default_rng(3)
    for layer in (outer, inner.layers[-1]):
        values = [rng.normal(1.0, 0.3, 3), rng.normal(size=3), rng.normal(size=3)]
        layer.set_weights([*values, rng.uniform(0.5, 2.0, 3)])
    return model, [outer, inner.layers[-1]]


def normalised(x, layer, mean, variance):
    gamma, beta = numpy(layer.gamma), numpy(layer.beta)
    return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


def own(layer):
    return numpy(layer.moving_mean), numpy(layer.moving_variance)


def twin(x, layers, of):
    """The model's outputs, each layer normalising by `of(layer, what it is called on)`."""
    x = np.asarray(x, np.float64)
    for layer in layers:
        x = normalised(x, layer, *of(layer, x))
        x = np.tanh(x) if layer is layers[0] else x
    return x


def moments(layer, x):
    return x.mean(0), x.var(0)


def test_by_the_batch():
    model, layers = norm_model()
    surface = Surface(model, "mse")
    found = surface.predict(surface.point(), data())
    np.testing.assert_allclose(found, twin(data(), layers, moments), rtol=1e-4, atol=1e-5)


def test_exact_moments_are_the_same_loss():
    model, layers = norm_model()
    mode = Mode()
    point = Surface(model, "mse").point()
    with as_in(model, mode, exact_moments=True):
        found, _ = backend.forward(model, *point, ops.convert_to_tensor(data()), training=True)
    wanted = twin(data(), layers, moments)
    np.testing.assert_allclose(numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_frozen():
    model, layers = norm_model()
    surface = Surface(model, "mse", batch_norm="frozen")
    found = surface.predict(surface.point(), data())
    wanted = twin(data(), layers, lambda layer, _: own(layer))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, numpy(model(data(), training=False)), rtol=1e-5, atol=1e-6)


def test_recalibrated_is_frozen_at_recomputed_statistics():
    model, _ = norm_model()
    batches = [batch_of(32, seed) for seed in (5, 6)]
    surface = Surface(model, "mse", batch_norm="recalibrated", moment_batches=batches)
    frozen = Surface(model, "mse", batch_norm="frozen")
    point = surface.point()
    recomputed = bn.recompute(model, *point, batches)
    found = surface.predict(point, data())
    assert (found != frozen.predict(point, data())).mean() > 0.9
    np.testing.assert_array_equal(
        found, frozen.predict(point._replace(non_trainable=recomputed), data())
    )
    # ... and of one batch, they are that batch's own moments.
    one = Surface(model, "mse", batch_norm="recalibrated", moment_batches=batches[:1])
    by_batch = Surface(model, "mse")
    np.testing.assert_allclose(
        one.predict(point, batches[0][0]),
        by_batch.predict(point, batches[0][0]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_layer_that_is_not_trained_keeps_its_statistics_in_every_mode():
    model, layers = norm_model(trainable=False)

    def of(layer, x):
        return own(layer) if layer is layers[0] else moments(layer, x)

    wanted = twin(data(), layers, of)
    by_batch = Surface(model, "mse")
    np.testing.assert_allclose(
        by_batch.predict(by_batch.point(), data()), wanted, rtol=1e-4, atol=1e-5
    )
    recalibrated = Surface(model, "mse", batch_norm="recalibrated", moment_batches=[batch_of()])
    np.testing.assert_allclose(
        recalibrated.predict(recalibrated.point(), data()), wanted, rtol=1e-4, atol=1e-5
    )
    # Exact moments, too, leave it alone.
    batch, point = batch_of(), by_batch.point()
    vector = [np.ones(tuple(v.shape)) for v in model.trainable_variables]
    product = by_batch.hessian_vector(point, batch, vector)
    assert len(product) == 2 and all(np.isfinite(numpy(part)).all() for part in product)


def test_what_a_record_says():
    model, _ = norm_model()
    assert Mode("frozen", "pinned").about(model) == {"batch_norm": "frozen", "dropout": "none"}
    about = Mode("frozen", "pinned").about(dropout_model())
    assert about == {"batch_norm": "none", "dropout": "pinned"}
    assert Surface(model, "mse").about()["keras_backend"] == backend.name()


@pytest.mark.parametrize("wrong", [{"batch_norm": "eval"}, {"dropout": True}])
def test_unknown_modes(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        Mode(**wrong)


def test_dropout_without_a_seed_is_pinned_too():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((50,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)]
    )
    surface = Surface(model, "mse", dropout="pinned")
    x = np.ones((4, 50), "float32")
    first, again = (surface.predict(surface.point(), x) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    # Each layer has masks of its own: two shares of one half, not one.
    assert 0.1 < (first > 0).mean() < 0.4
