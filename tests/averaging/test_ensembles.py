"""Ensembles of predictions against means formed by hand, and FGE in `model.fit`."""

import functools

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras import ops
from keras_helpers import everything

from tf_lrtraj import WeightAveraging, kernels, rates, schedules
from tf_lrtraj.averaging import Ensemble, SnapshotRecorder, Snapshots

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(96, 5)).astype(np.float32)
LABELS = INPUTS[:, :3].argmax(1).astype(np.int32)
CYCLE, BEFORE = 6, 12


def network(rate=0.1):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(momentum=0.8),
        keras.layers.ReLU(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedules.RateSchedule(rate)), loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def fge(tmp_path_factory):
    """Training, then FGE's cycles; a snapshot in the middle of each."""
    folder = tmp_path_factory.mktemp("fge") / "snapshots"
    rate = rates.Sequence([rates.Constant(0.2), rates.Triangular(0.3, 0.02, CYCLE)], [BEFORE])
    model = network(rate)
    recorder = SnapshotRecorder(folder, start=BEFORE + CYCLE // 2, every=CYCLE)
    averaging = WeightAveraging(
        {"swa": kernels.Uniform(start=BEFORE + CYCLE // 2, every=CYCLE)}, batch_norm_data=INPUTS
    )
    model.fit(INPUTS, LABELS, batch_size=16, epochs=8, verbose=0, callbacks=[recorder, averaging])
    return model, Snapshots(folder), averaging, rate


def outputs(model, x):
    """What a model gives when it is called, without `predict`."""
    return ops.convert_to_numpy(model(x, training=False))


def softmax(logits):
    values = np.exp(logits.astype(np.float64))
    return values / values.sum(1, keepdims=True)


def test_fge_collects_where_the_rate_is_lowest(fge):
    _, snapshots, _, rate = fge
    assert snapshots.steps.tolist() == list(range(15, 49, 6))
    assert np.all(rate(snapshots.steps - 1) == 0.02)  # the update that made each


@pytest.mark.parametrize("statistics", ["running", "recompute"])
def test_predictions_are_the_mean_of_the_members(fge, statistics):
    model, snapshots, _, _ = fge
    before = everything(model)
    ensemble = Ensemble(model, snapshots, statistics=statistics, batch_norm_data=INPUTS)
    actual = ensemble.predict(INPUTS)
    assert_same_bits(everything(model), before)
    other, expected = network(), []
    for step in snapshots.steps:
        *weights, mean, variance = snapshots.read(step)
        if statistics == "recompute":
            hidden = INPUTS.astype(np.float64) @ weights[0] + weights[1]
            mean, variance = hidden.mean(0), hidden.var(0)
        for variable, value in zip(other.trainable_variables, weights, strict=True):
            variable.assign(value)
        other.layers[1].moving_mean.assign(mean)
        other.layers[1].moving_variance.assign(variance)
        expected.append(softmax(outputs(other, INPUTS)))
    np.testing.assert_allclose(actual, np.mean(expected, 0), rtol=1e-5, atol=1e-6)
    result = ensemble.evaluate(INPUTS, LABELS)
    picked = np.array(expected)[:, np.arange(96), LABELS]
    np.testing.assert_allclose(result.member_losses, -np.log(picked).mean(1), rtol=1e-5)
    assert result.loss == pytest.approx(-np.log(picked.mean(0)).mean(), rel=1e-5)
    assert result.accuracy == pytest.approx((np.mean(expected, 0).argmax(1) == LABELS).mean())
    # Cross-entropy is convex in the probabilities.
    assert result.loss < result.member_losses.mean()
    assert "6 members, 96 examples" in str(result)


def test_its_average_of_weights_is_swa(fge):
    model, snapshots, averaging, _ = fge
    ensemble = Ensemble(model, snapshots, batch_norm_data=INPUTS)
    for ours, online in zip(ensemble.average_weights(), averaging.get_average("swa"), strict=True):
        np.testing.assert_allclose(ours, online, rtol=1e-6, atol=1e-7)
    result = ensemble.evaluate(INPUTS, LABELS)
    swa = averaging.evaluate((INPUTS, LABELS))["swa"]
    assert result.average_loss == pytest.approx(swa["loss"], rel=1e-4)
    assert result.average_accuracy == pytest.approx(swa["accuracy"])


# --- What outputs mean: predictions and scores against sums written out ----------------------


def sigmoid(logits):
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def as_they_are(outputs):
    return outputs.astype(np.float64)


class Subclass(keras.Model):
    """A model that does not know its outputs before it is called."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def call(self, inputs):
        return self.last(inputs)


def dense(units, *more, **options):
    return lambda: [keras.Input((4,)), keras.layers.Dense(units, **options), *(m() for m in more)]


L = keras.losses
CLASSES, ONE_HOT = RNG.integers(0, 3, 24), np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 24)]
MARKS, MANY = RNG.integers(0, 2, 24), RNG.integers(0, 2, (24, 3))
NUMBERS = RNG.normal(size=(24, 2))
to_linear = functools.partial(keras.layers.Activation, "linear", dtype="float32")
sparse_from_logits = functools.partial(L.sparse_categorical_crossentropy, from_logits=True)
# name: layers, loss, options, labels, how predictions come from outputs, which score
SITUATIONS = {
    "softmax": (dense(3, activation="softmax"), L.SparseCategoricalCrossentropy(), {}, CLASSES,
                as_they_are, "classes"),
    "softmax, linear layer behind, one-hot": (
        dense(3, to_linear, activation="softmax"), "categorical_crossentropy", {}, ONE_HOT,
        as_they_are, "classes"),
    "softmax layer, not compiled": (dense(3, keras.layers.Softmax), None, {}, CLASSES[:, None],
                                    as_they_are, "classes"),
    "softmax, told": (dense(3, activation="softmax"), None, {"logits": False}, CLASSES,
                      as_they_are, "classes"),
    "logits": (dense(3), L.SparseCategoricalCrossentropy(from_logits=True), {}, CLASSES, softmax,
               "classes"),
    "logits, loss as a function": (dense(3), sparse_from_logits, {}, CLASSES, softmax, "classes"),
    "logits, told": (dense(3), None, {"logits": True}, ONE_HOT, softmax, "classes"),
    "sigmoid [N, 1]": (dense(1, activation="sigmoid"), "binary_crossentropy", {}, MARKS,
                       as_they_are, "marks"),
    "sigmoid [N]": (dense(1, lambda: keras.layers.Reshape(()), activation="sigmoid"),
                    L.BinaryCrossentropy(), {}, MARKS.astype(bool), as_they_are, "marks"),
    "sigmoid, not compiled": (dense(1, activation="sigmoid"), None, {}, MARKS[:, None],
                              as_they_are, "marks"),
    "one logit": (dense(1), L.BinaryCrossentropy(from_logits=True), {}, MARKS, sigmoid, "marks"),
    "one logit, told": (dense(1), None, {"logits": True}, MARKS, sigmoid, "marks"),
    "several labels": (dense(3, activation="sigmoid"), "binary_crossentropy", {}, MANY,
                       as_they_are, "marks"),
    "several labels, logits": (dense(3), L.BinaryFocalCrossentropy(from_logits=True), {}, MANY,
                               sigmoid, "marks"),
    "regression": (dense(2), "mse", {}, NUMBERS, as_they_are, "values"),
    "regression between 0 and 1": (dense(2, activation="sigmoid"), L.Huber(), {},
                                   sigmoid(NUMBERS), as_they_are, "values"),
    "regression, told": (dense(2), None, {"logits": False}, NUMBERS, as_they_are, "values"),
}  # fmt: skip


def expected_score(how, predictions, labels):
    """(loss, accuracy), for integer, one-hot or independent labels, or values."""
    if how == "values":
        return np.mean((predictions - labels) ** 2), None
    if how == "marks":
        marks = labels.reshape(predictions.shape).astype(bool)
        return -np.log(np.where(marks, predictions, 1 - predictions)).mean(), (
            (predictions > 0.5) == marks
        ).mean()
    chosen = labels.argmax(1) if labels.shape == predictions.shape else labels.ravel()
    loss = -np.log(predictions[np.arange(len(chosen)), chosen]).mean()
    return loss, (predictions.argmax(1) == chosen).mean()


@pytest.mark.parametrize("subclass", [False, True], ids=["functional", "subclass"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_outputs_mean_what_model_loss_and_numbers_say(name, subclass):
    layers, loss, options, labels, to_predictions, how = SITUATIONS[name]
    keras.utils.set_random_seed(1)
    inner = keras.Sequential(layers())
    model = Subclass(inner) if subclass else inner
    x = RNG.normal(size=(24, 4)).astype(np.float32)
    model(x)
    if loss is not None:
        model.compile("sgd", loss)
    elif subclass and name == "sigmoid, not compiled":
        pytest.skip("kept as it is, which the next test covers")
    members = [[RNG.normal(size=w.shape) for w in model.get_weights()] for _ in range(3)]
    expected = []
    for weights in members:
        inner.set_weights(weights)
        expected.append(to_predictions(outputs(inner, x)))
    ensemble = Ensemble(model, members, **options)
    mean = np.mean(expected, 0)
    np.testing.assert_allclose(ensemble.predict(x), mean, rtol=1e-5, atol=1e-6)
    result = ensemble.evaluate(x, labels)
    loss, accuracy = expected_score(how, mean, labels)
    assert result.loss == pytest.approx(loss, rel=1e-4)
    each = [expected_score(how, e, labels) for e in expected]
    np.testing.assert_allclose(result.member_losses, [e[0] for e in each], rtol=1e-4)
    if how == "values":
        assert result.accuracy is None and result.member_accuracies is None
        assert "mean squared error" in str(result) and "accuracy" not in str(result)
    else:
        assert result.accuracy == pytest.approx(accuracy)
        np.testing.assert_allclose(result.member_accuracies, [e[1] for e in each])
        assert "accuracy" in str(result)


def test_every_position_of_an_image_may_have_classes():
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(3, 1)])
    model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True))
    members = [[RNG.normal(size=w.shape) for w in model.get_weights()] for _ in range(2)]
    x, y = RNG.normal(size=(5, 2, 2, 1)), RNG.integers(0, 3, (5, 2, 2))
    ensemble = Ensemble(model, members)
    found = ensemble.predict(x)
    logits = [x @ kernel[0, 0] + bias for kernel, bias in members]
    expected = np.mean([np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logits], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chosen = expected.reshape(20, 3)[np.arange(20), y.ravel()]
    assert ensemble.evaluate(x, y).loss == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


def test_numbers_between_0_and_1_of_which_nothing_is_known_are_kept():
    inner = keras.Sequential(dense(1, activation="sigmoid")())
    model, x = Subclass(inner), RNG.normal(size=(24, 4)).astype(np.float32)
    model(x)
    ensemble = Ensemble(model, [model.get_weights()])
    found = inner.predict(x, verbose=0)
    np.testing.assert_array_equal(ensemble.predict(x), found)
    for labels, how in ((MARKS, "marks"), (found[::-1], "values")):
        loss, _ = expected_score(how, found.astype(np.float64), labels)
        assert ensemble.evaluate(x, labels).loss == pytest.approx(loss, rel=1e-5)


def two_outputs(as_dict):
    inputs = keras.Input((4,))
    one, two = (keras.layers.Dense(3, name=n)(inputs) for n in ("here", "there"))
    return keras.Model(inputs, {"here": one, "there": two} if as_dict else [one, two])


@pytest.mark.parametrize(
    ("layers", "loss", "options", "labels", "message"),
    [
        (dense(3, activation="softmax"), None, {"logits": True}, CLASSES,
         r"probabilities already \(they lie between .* rows sum to 1\). Received: logits=True"),
        (dense(1, activation="sigmoid"), None, {"logits": True}, MARKS, "probabilities already"),
        (dense(3), None, {}, CLASSES, r"`logits` must be True or False.*they lie between -"),
        (dense(3), "sparse_categorical_crossentropy", {}, CLASSES,
         r"`logits` must be True if .*they lie between -"),
        (dense(3), L.BinaryCrossentropy(from_logits=True), {"logits": False}, MANY,
         "taken for probabilities, but they lie between -"),
        (dense(3), None, {"logits": "yes"}, CLASSES, "Received: logits='yes'"),
        (dense(3), None, {"logits": True}, CLASSES + 1, "labels from 0 to 2.*from 1 to 3"),
        (dense(3), None, {"logits": True}, CLASSES[:5], "each of 24 examples.*shape=\\(5,\\)"),
        (dense(3), None, {"logits": True}, CLASSES + 0.5, r"integer labels of shape \(24"),
        (dense(3), None, {"logits": True}, MANY * 2, "one-hot or probabilities of 3 classes"),
        (dense(1), None, {"logits": True}, MARKS - 1, "`y` must lie between 0 and 1.*-1"),
        (dense(1), None, {"logits": True}, np.array(["a"] * 24), "a number for each"),
        (dense(2), "mse", {}, CLASSES, r"a number for each of the outputs, of shape \(24, 2\)"),
    ],
)  # fmt: skip
def test_what_contradicts_the_numbers_is_refused(layers, loss, options, labels, message):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(layers())
    if loss is not None:
        model.compile("sgd", loss)
    x = 3.0 * RNG.normal(size=(24, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        Ensemble(model, [model.get_weights()], **options).evaluate(x, labels)


@pytest.mark.parametrize("as_dict", [True, False])
def test_models_with_several_outputs_are_refused(as_dict):
    model = two_outputs(as_dict)
    with pytest.raises(ValueError, match=r"must have one output.*\['here', 'there'\]"):
        Ensemble(model, [model.get_weights()])
    unknown = Subclass(model)
    unknown(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="must have one output"):
        Ensemble(unknown, [unknown.get_weights()]).predict(np.zeros((2, 4), np.float32))


def test_bad_input(fge):
    model, snapshots, _, _ = fge
    with pytest.raises(ValueError, match="`batch_norm_data` must hold training inputs"):
        Ensemble(model, snapshots)
    with pytest.raises(ValueError, match=r"`statistics` must be one of .*'copy'"):
        Ensemble(model, snapshots, statistics="copy", batch_norm_data=INPUTS)
    with pytest.raises(ValueError, match="at least one set"):
        Ensemble(model, [], batch_norm_data=INPUTS)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"2 arrays of the shapes .* Received: 8 arrays"):
        Ensemble(other, snapshots)
