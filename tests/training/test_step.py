"""The training step against a step written out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lrtraj import kernels
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.training.objective import classification, per_example_loss
from tf_lrtraj.training.step import make_train_steps

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(6, 8, 3)).astype(np.float32)  # 6 batches of 8
LABELS = RNG.integers(0, 4, size=(6, 8)).astype(np.int32)


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def by_hand(kernel, bias, rate, momentum, decay, smoothing, nesterov, on="kernels"):
    """SGD on a linear softmax classifier in float64; yields (mean loss, kernel, bias)."""
    velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
    for x, y in zip(INPUTS.astype(np.float64), LABELS, strict=True):
        targets = np.eye(4)[y] * (1 - smoothing) + smoothing / 4
        p = softmax(x @ kernel + bias)
        loss = -(targets * np.log(p)).sum(-1).mean()
        delta = (p - targets) / len(x)
        gradients = [x.T @ delta + decay * kernel, delta.sum(0)]
        if on == "all":
            gradients[1] += decay * bias
        for i, (weight, g) in enumerate(zip((kernel, bias), gradients, strict=True)):
            velocity[i] = momentum * velocity[i] - rate * g
            weight += momentum * velocity[i] - rate * g if nesterov else velocity[i]
        yield loss, kernel.copy(), bias.copy()


@pytest.mark.parametrize(
    ("momentum", "decay", "smoothing", "nesterov", "on"),
    [
        (0.0, 0.0, 0.0, False, "kernels"),
        (0.9, 0.01, 0.0, False, "kernels"),
        (0.9, 0.3, 0.0, False, "all"),
        (0.9, 0.01, 0.1, True, "kernels"),
    ],
)
def test_steps_equal_sgd_written_out(momentum, decay, smoothing, nesterov, on):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, bias_initializer="ones")])
    kernel, bias = (v.numpy().astype(np.float64) for v in model.trainable_variables)
    iterates = [(kernel.copy(), bias.copy())]
    strategy = tf.distribute.get_strategy()
    optimizer = keras.optimizers.SGD(0.3, momentum=momentum, nesterov=nesterov)
    optimizer.build(model.trainable_variables)
    averages = AverageState(
        model.trainable_variables,
        {"ema": kernels.Exponential(0.5), "window": kernels.Window(3)},
    )
    run = make_train_steps(
        strategy,
        model,
        optimizer,
        averages,
        batch_size=8,
        weight_decay=decay,
        weight_decay_on=on,
        objective=classification(smoothing),
    )
    iterator = iter(tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)))
    losses = np.concatenate([run(iterator, 0, 4)["loss"], run(iterator, 4, 2)["loss"]])
    expected = list(by_hand(kernel, bias, 0.3, momentum, decay, smoothing, nesterov, on))
    np.testing.assert_allclose(losses, [row[0] for row in expected], rtol=2e-6)
    for variable, value in zip(model.trainable_variables, expected[-1][1:], strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-6, atol=1e-6)
    iterates += [row[1:] for row in expected]
    for name, rule in averages.kernels.items():
        weights = rule.weights(6)
        for i, average in enumerate(averages.average(name, 6)):
            reference = sum(w * it[i] for w, it in zip(weights, iterates, strict=True))
            np.testing.assert_allclose(average.numpy(), reference, rtol=2e-6, atol=1e-6)


def test_a_run_without_averages_and_its_accuracy():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    optimizer = keras.optimizers.SGD(0.0)
    run = make_train_steps(tf.distribute.get_strategy(), model, optimizer, None, batch_size=8)
    iterator = iter(tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)))
    accuracies = run(iterator, 0, 6)["accuracy"]
    expected = (model(INPUTS.reshape(-1, 3)).numpy().argmax(-1).reshape(6, 8) == LABELS).mean(-1)
    np.testing.assert_allclose(accuracies, expected, rtol=1e-6)


def test_smoothed_loss_equals_its_definition():
    logits = RNG.normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 1])
    for smoothing in (0.0, 0.2):
        targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
        expected = -(targets * np.log(softmax(logits.astype(np.float64)))).sum(-1)
        actual = per_example_loss(labels, logits, smoothing).numpy()
        np.testing.assert_allclose(actual, expected, rtol=2e-6)
