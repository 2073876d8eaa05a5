"""Losses of models with several outputs, and with penalties on weights, as Keras has them."""

import keras
import numpy as np
import pytest
from probe_cases import FIRST, measured, of_case

from tf_lrtraj import backend, probes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 3)).astype("float32")
A = RNG.integers(0, 3, 32)
B = RNG.normal(size=(32, 2)).astype("float32")
CROSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def cubic(targets, outputs):
    return keras.ops.abs(targets - outputs) ** 3


# name -> (outputs as a dict, compile's loss and loss_weights, targets)
FORMS = {
    "dict": (True, {"a": CROSS, "b": "mse"}, None, {"a": A, "b": B}),
    "dict, weighted": (True, {"a": CROSS, "b": "mae"}, {"a": 0.5, "b": 2.0}, {"a": A, "b": B}),
    "list": (False, [CROSS, "mse"], None, [A, B]),
    "list, weighted": (False, [CROSS, cubic], [1.0, 0.25], (A, B)),
    "list, by name": (False, {"a": CROSS, "b": "mse"}, {"a": 3.0, "b": 1.0}, {"a": A, "b": B}),
    "one has no loss": (False, [None, "mse"], None, [A, B]),
}


def built(as_dict, loss, weights):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    a = keras.layers.Dense(3, name="a")(hidden)
    b = keras.layers.Dense(2, name="b")(hidden)
    model = keras.Model(inputs, {"a": a, "b": b} if as_dict else [a, b])
    model.compile(keras.optimizers.SGD(0.1), loss, loss_weights=weights)
    return model


@pytest.mark.parametrize("name", FORMS)
def test_loss_and_step_are_those_of_keras(name):
    as_dict, loss, weights, targets = FORMS[name]
    model = built(as_dict, loss, weights)
    surface = probes.Surface(model)
    found, gradient = surface.gradient(surface.point(), (X, targets))
    before = backend.to_numpy(backend.values(model.trainable_variables))
    wanted = model.evaluate(X, targets, batch_size=32, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(wanted, rel=1e-5)
    model.fit(X, targets, batch_size=32, verbose=0)
    after = backend.to_numpy(backend.values(model.trainable_variables))
    for old, new, slope in zip(before, after, backend.to_numpy(gradient), strict=True):
        np.testing.assert_allclose(old - 0.1 * slope, new, rtol=1e-4, atol=1e-6)


def test_weights_of_examples_for_each_output():
    as_dict, loss, _, targets = FORMS["dict"]
    surface = probes.Surface(built(as_dict, loss, None))
    first, second = np.arange(32.0), np.arange(32.0)[::-1].copy()
    rows = [(X[i : i + 1], {"a": A[i : i + 1], "b": B[i : i + 1]}) for i in range(32)]
    losses, _ = surface.evaluate(surface.point(), rows)
    alone = probes.Surface(built(True, {"a": CROSS, "b": None}, None))
    of_a, _ = alone.evaluate(alone.point(), rows)
    wanted = (first @ of_a) / first.sum() + (second @ (losses - of_a)) / second.sum()
    batch = (X, targets, {"a": first, "b": second})
    assert surface.loss(surface.point(), batch) == pytest.approx(wanted, rel=1e-5)
    shared = (X, targets, first)
    wanted = first @ losses / first.sum()
    assert surface.loss(surface.point(), shared) == pytest.approx(wanted, rel=1e-5)


REFUSED = {
    "no loss": ({"a": None, "b": None}, {"a": A, "b": B}, "at least one loss"),
    "a number": ({"a": CROSS, "b": 3}, {"a": A, "b": B}, "must be a keras.losses.Loss"),
    "another name": ({"a": CROSS, "c": "mse"}, {"a": A, "b": B}, r"the loss must .*'a', 'b'"),
    "targets missing": ({"a": CROSS, "b": "mse"}, {"a": A}, r"the targets must .*keys \['a'\]"),
    "targets of one": ({"a": CROSS, "b": "mse"}, A, "the targets must be a dict or list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_structures_that_do_not_fit(name):
    loss, targets, message = REFUSED[name]
    model = built(True, {"a": CROSS, "b": "mse"}, None)
    with pytest.raises(ValueError, match=message):
        surface = probes.Surface(model, loss)
        surface.loss(surface.point(), (X, targets))


@pytest.mark.parametrize("name", FIRST)
def test_every_probe_of_several_outputs(name):
    """The same numbers as of one joined output with the sum of both losses."""
    model = built(True, {"a": CROSS, "b": "mse"}, None)
    joined = keras.layers.Concatenate()([model.output["a"], model.output["b"]])
    single = keras.Model(model.input, joined)

    def both(targets, outputs):
        cross = CROSS.call(targets[:, 0], outputs[:, :3])
        return cross + keras.ops.mean((targets[:, 1:] - outputs[:, 3:]) ** 2, axis=-1)

    parts = [slice(0, 8), slice(8, 16), slice(16, 24)]
    nested = [(X[part], {"a": A[part], "b": B[part]}) for part in parts]
    flat = [(X[part], np.column_stack([A[part], B[part]]).astype("float32")) for part in parts]
    found, wanted = of_case(name, model, None, nested), of_case(name, single, both, flat)
    for key, value in wanted.values.items():
        if not key.endswith(("product", "disagreement", "_se", "_error", "step_taken", "noise")):
            np.testing.assert_allclose(found.values[key], value, rtol=1e-2, atol=2e-5, err_msg=key)


def test_an_ensemble_of_several_outputs():
    """Both outputs count as one long prediction; the ensemble averages each of them."""
    model = built(True, {"a": "mse", "b": "mse"}, None)
    here = backend.to_numpy(backend.values(model.trainable_variables))
    members = {f"m{i}": [w + 0.1 * RNG.normal(size=w.shape) for w in here] for i in range(3)}
    targets = {"a": RNG.normal(size=(32, 3)).astype("float32"), "b": B}
    record = measured(probes.Ensemble, model, None, members, [(X, targets)], logits=False)
    surface = probes.Surface(model)
    outputs = [surface.predict(surface.point(member), X) for member in members.values()]
    joined = [np.concatenate([one["a"], one["b"]], axis=1) for one in outputs]
    away = np.sqrt(((joined[0] - joined[2]) ** 2).sum(1).mean())
    assert record.values["pair_difference"][0, 0, 2, 0] == pytest.approx(away, rel=1e-5)
    mean = {key: np.mean([one[key] for one in outputs], axis=0) for key in ("a", "b")}
    wanted = sum(np.mean((mean[key] - targets[key]) ** 2) for key in ("a", "b"))
    assert record.values["ensemble_loss"][0] == pytest.approx(wanted, rel=1e-5)
    assert np.isposinf(record.values["ensemble_accuracy"]).all()


# --- Penalties on weights --------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test")
class Quartic(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return 0.01 * keras.ops.sum(weights**4)

    def get_config(self):
        return {}


PENALTIES = {
    "L2, of biases too": ("l2", "l2"),
    "L1 and L2": (keras.regularizers.L1L2(0.01, 0.02), None),
    "of the user's own": (Quartic(), None),
}


def penalised(name, **options):
    kernel, bias = PENALTIES[name]
    keras.utils.set_random_seed(5)
    layers = [
        keras.layers.Dense(4, activation="tanh", kernel_regularizer=kernel, **options),
        keras.layers.Dense(2, kernel_regularizer=kernel, bias_regularizer=bias),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.layers[-1].bias.assign([0.5, -1.0])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_those_of_keras(name):
    model = penalised(name)
    whole, bare = probes.Surface(model, penalties=True), probes.Surface(model)
    total = model.evaluate(X, B, batch_size=32, verbose=0)
    penalty = float(keras.ops.convert_to_numpy(sum(model.losses)))
    assert whole.loss(whole.point(), (X, B)) == pytest.approx(total, rel=1e-5)
    assert bare.loss(bare.point(), (X, B)) == pytest.approx(total - penalty, rel=1e-4)
    _, gradient = whole.gradient(whole.point(), (X, B))
    before = backend.to_numpy(backend.values(model.trainable_variables))
    model.fit(X, B, batch_size=32, verbose=0)
    after = backend.to_numpy(backend.values(model.trainable_variables))
    for old, new, slope in zip(before, after, backend.to_numpy(gradient), strict=True):
        np.testing.assert_allclose(old - 0.1 * slope, new, rtol=1e-4, atol=1e-6)


def test_a_record_says_whether_penalties_count():
    model, batch = penalised("L2, of biases too"), [(X, B)]
    for penalties, said in ((False, "left out"), (True, "included")):
        record = measured(
            probes.Line,
            model,
            None,
            None,
            batch,
            rates=[0.1, 0.2],
            bracket="none",
            penalties=penalties,
        )
        assert record.about["penalties"] == said
        texts = [text.get_text() for text in record.plot().texts]
        caption = record.plot()._supxlabel.get_text().replace("\n", " ")
        assert f"penalties of regularizers {said}" in " ".join([*texts, caption])
    plain = probes.Surface(built(True, {"a": CROSS, "b": "mse"}, None))
    assert "penalties" not in plain.about()


def test_penalties_that_cannot_be_included():
    model = penalised("L2, of biases too", activity_regularizer="l2")
    with pytest.raises(ValueError, match=r"penalties of weights only.*dense"):
        probes.Surface(model, penalties=True)
    assert probes.Surface(model).about()["penalties"] == "left out"
    surface = probes.Surface(penalised("L2, of biases too"), penalties=True)
    here = surface.point()
    with pytest.raises(ValueError, match="must be without penalties"):
        probes.Ensemble(surface, {"a": here, "b": here}, [(X, B)])
