"""Ensembles of predictions against means formed by hand, and FGE in `model.fit`."""

import keras
import numpy as np
import pytest
from keras import ops

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


def everything(model):
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]


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
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)
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
        expected.append(softmax(other.predict(INPUTS, verbose=0)))
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


def test_lists_of_weights_and_probabilities():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    members = [[RNG.normal(size=(2, 2)), RNG.normal(size=2)] for _ in range(3)]
    x = RNG.normal(size=(7, 2)).astype(np.float32)
    actual = Ensemble(model, members, logits=False).predict(x)
    expected = np.mean([softmax(x @ kernel + bias) for kernel, bias in members], 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bad_input(fge):
    model, snapshots, _, _ = fge
    with pytest.raises(ValueError, match="give `batch_norm_data`"):
        Ensemble(model, snapshots)
    with pytest.raises(ValueError, match=r"`statistics` must be one of .*'copy'"):
        Ensemble(model, snapshots, statistics="copy", batch_norm_data=INPUTS)
    with pytest.raises(ValueError, match="at least one set"):
        Ensemble(model, [], batch_norm_data=INPUTS)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"2 arrays of the model's shapes. Received: 8 arrays"):
        Ensemble(other, snapshots)
    with pytest.raises(ValueError, match="a vector of integer labels"):
        Ensemble(model, snapshots, batch_norm_data=INPUTS).evaluate(INPUTS, np.eye(3)[LABELS])
