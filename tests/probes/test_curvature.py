"""Curvature from measured losses: closed form, agreement with products, and ReLU's kinks."""

import keras
import numpy as np
import pytest
from keras import ops
from probe_cases import measured

from tf_lrtraj import backend, probes
from tf_lrtraj.probes.curvature import _precision

# Without float64 the mean over a batch adds to the noise.
TOLERANCE = 5e-3 if backend.has_float64() else 2e-2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(activation, dtype="float32"):
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    x = inputs
    for i in range(2):
        x = keras.layers.Conv2D(
            16, 3, use_bias=False, dtype=dtype, kernel_initializer=keras.initializers.HeNormal(i)
        )(x)
        x = keras.layers.BatchNormalization(dtype=dtype)(x)
        x = keras.layers.Activation(activation, dtype=dtype)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    init = keras.initializers.GlorotNormal(3)
    return keras.Model(inputs, keras.layers.Dense(4, dtype=dtype, kernel_initializer=init)(x))


def images(count, size=32, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(size, 8, 8, 3)).astype(dtype), rng.integers(0, 4, size))
        for _ in range(count)
    ]


def test_least_squares_in_closed_form():
    rng = np.random.default_rng(1)
    batches = [
        (rng.normal(size=(6, 3)).astype("f"), rng.normal(size=(6, 1)).astype("f")) for _ in range(4)
    ]
    w = np.array([[1.5], [-1.0], [0.5]], "f")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([w])
    v = measured(probes.Curvature, model, "mse", None, batches).values
    for i, (x, y) in enumerate(batches):
        x, y = x.astype(np.float64), y.astype(np.float64)
        gradient = 2.0 * x.T @ (x @ w - y) / 6.0
        wanted = 2.0 * float(((x @ gradient) ** 2).sum()) / 6.0
        np.testing.assert_allclose(v["product"][i], wanted, rtol=1e-5)
        np.testing.assert_allclose(v["curvature"][i], wanted, rtol=0.1 * TOLERANCE)
        assert abs(v["curvature"][i] - wanted) <= 2.0 * v["curvature_error"][i]
        square = float((gradient**2).sum())
        np.testing.assert_allclose(v["per_square"][i], wanted / square, rtol=0.1 * TOLERANCE)
        np.testing.assert_allclose(v["slope"][i], -square, rtol=1e-5)
        # The noise of float32, of the loss's own size.
        loss = float(((x @ w - y) ** 2).mean())
        assert 1e-10 * loss < v["noise"][i] < 3e-6 * loss


@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_losses_and_products_agree_where_the_loss_is_smooth(batch_norm, direction):
    record = measured(
        probes.Curvature,
        network("gelu"),
        LOSS,
        None,
        images(3),
        batch_norm=batch_norm,
        direction=direction,
        seed=1,
    )
    v = record.values
    gap = np.abs(v["curvature"] - v["product"])
    assert (gap <= 3.0 * v["curvature_error"] + 1e-4 * np.abs(v["product"])).all()
    # The direction may be nearly flat; then only the error in its own unit counts.
    scale = np.maximum(np.abs(v["product"]), 1e-3 * np.abs(v["product"]).max())
    assert (gap / scale < TOLERANCE).all()
    np.testing.assert_allclose(v["disagreement"], gap / np.abs(v["product"]))


def test_in_float64_they_agree_to_many_digits():
    if backend.name() != "tensorflow":
        pytest.skip("only TensorFlow computes in float64 throughout")
    record = measured(
        probes.Curvature, network("tanh", "float64"), LOSS, None, images(2, dtype=np.float64)
    )
    assert record.about["epsilon"] == 2.0**-52
    assert (record.values["noise"] < 1e-14).all()
    assert (record.values["disagreement"] < 1e-6).all()


def test_with_relu_they_are_two_questions():
    # The product does not see the kinks, of which a step crosses some: what the losses
    # say depends on the step, and the record holds both.
    relu = measured(probes.Curvature, network("relu"), LOSS, None, images(3)).values
    gelu = measured(probes.Curvature, network("gelu"), LOSS, None, images(3)).values
    assert np.median(relu["disagreement"]) > 5.0 * np.median(gelu["disagreement"])
    assert np.isfinite(relu["curvature"]).all()


def test_with_recalibrated_statistics_there_is_no_product():
    record = measured(
        probes.Curvature,
        network("gelu"), LOSS, None, images(1), batch_norm="recalibrated",
        moment_batches=images(1),
    )  # fmt: skip
    assert "product" not in record.values and record.complete


def test_precision_is_that_of_the_coarsest_layer():
    layers = [keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_bfloat16")]
    assert _precision(keras.Sequential([*layers, keras.layers.Dense(2)])) == 2.0**-7
    assert _precision(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])) == 2.0**-23


def test_a_point_where_nothing_changes():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.ones((1, 1))])
    record = measured(probes.Curvature, model, "mse", None, [(np.ones((2, 1)), np.ones((2, 1)))])
    assert record.values["curvature"][0] == 0.0 and record.values["slope"][0] == 0.0
    assert ops.size(model.weights[0]) == 1
