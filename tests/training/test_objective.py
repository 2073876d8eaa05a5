"""Losses and metrics of Keras, over batches of unequal parts, are Keras' own over all examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lrtraj.training.objective import KerasMetric, classification, of_keras

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(20, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 20)
VALUES, WANTED = (RNG.normal(size=(20, 2)).astype(np.float32) for _ in range(2))
TOKENS, TOKEN_LOGITS = RNG.integers(0, 4, (20, 3)), RNG.normal(size=(20, 3, 4)).astype(np.float32)
CLASSES, SHARES = (
    np.eye(4, dtype=np.float32)[LABELS],
    np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True),
)
BINARY, PROBABILITY = (LABELS > 1).astype(np.float32)[:, None], SHARES[:, :1]
M = keras.metrics
METRICS = {
    "accuracy": (lambda: M.SparseCategoricalAccuracy(), LABELS, LOGITS),
    "top": (lambda: M.SparseTopKCategoricalAccuracy(k=2), LABELS, LOGITS),
    "tokens": (lambda: M.SparseCategoricalAccuracy(), TOKENS, TOKEN_LOGITS),
    "mae": (lambda: M.MeanAbsoluteError(), WANTED, VALUES),
    "rmse": (lambda: M.RootMeanSquaredError(), WANTED, VALUES),
    "r2": (lambda: M.R2Score(), WANTED, VALUES),
    "auc": (lambda: M.AUC(num_thresholds=20), BINARY, PROBABILITY),
    "precision": (lambda: M.Precision(), BINARY, PROBABILITY),
    "f1": (lambda: M.F1Score(average="macro"), CLASSES, SHARES),
    "iou": (lambda: M.MeanIoU(4), LABELS, LABELS[::-1].copy()),
}


@pytest.mark.parametrize(("metric", "targets", "outputs"), METRICS.values(), ids=METRICS)
def test_sums_over_padded_batches_are_keras_own_value(metric, targets, outputs):
    metric = metric()
    metric.update_state(targets, outputs)
    expected = float(np.mean(metric.result()))
    metric.reset_state()
    ours = KerasMetric(metric)
    totals = None
    for rows, padding in ((slice(0, 8), 0), (slice(8, 13), 3), (slice(13, 20), 1)):
        padded = [
            np.concatenate([a[rows], np.repeat(a[:1], padding, 0)]) for a in (targets, outputs)
        ]
        present = np.r_[np.ones(len(padded[0]) - padding), np.zeros(padding)]
        sums = [np.asarray(s, np.float64) for s in ours.sums(*padded, tf.constant(present))]
        totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
    assert float(np.mean(ours.result(totals))) == pytest.approx(expected, rel=1e-5)
    assert all(not np.any(v.numpy()) for v in metric.variables)  # its own state is not used


L = keras.losses
LOSSES = {
    "mse": (L.MeanSquaredError(), WANTED, VALUES),
    "mse of a vector": (L.MeanSquaredError(), WANTED[:, 0], VALUES[:, :1]),
    "huber": (L.Huber(delta=0.5), WANTED, VALUES),
    "binary": (L.BinaryCrossentropy(), BINARY, PROBABILITY),
    "classes": (L.SparseCategoricalCrossentropy(from_logits=True), LABELS, LOGITS),
    "smoothed": (L.CategoricalCrossentropy(True, label_smoothing=0.1), CLASSES, LOGITS),
    "tokens": (L.SparseCategoricalCrossentropy(from_logits=True), TOKENS, TOKEN_LOGITS),
}


@pytest.mark.parametrize(("loss", "targets", "outputs"), LOSSES.values(), ids=LOSSES)
def test_losses_of_examples_average_to_keras_own(loss, targets, outputs):
    losses = of_keras(loss).loss(targets, tf.constant(outputs))
    assert losses.shape == (20,)
    assert float(tf.reduce_mean(losses)) == pytest.approx(float(loss(targets, outputs)), rel=1e-5)


def test_ignored_tokens_do_not_count():
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    tokens = TOKENS.copy()
    tokens[4] = 0
    found = of_keras(loss).loss(tf.constant(tokens), tf.constant(TOKEN_LOGITS)).numpy()
    log_p = tf.nn.log_softmax(TOKEN_LOGITS).numpy()
    each = -np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    for row, losses, labels in zip(found, each, tokens, strict=True):
        kept = losses[labels != 0]
        assert row == pytest.approx(kept.mean() if kept.size else 0.0, rel=1e-5)


def test_the_default_takes_tokens_and_mixed_labels():
    objective = classification()
    losses = objective.loss(tf.constant(TOKENS), tf.constant(TOKEN_LOGITS)).numpy()
    log_p = tf.nn.log_softmax(TOKEN_LOGITS).numpy()
    each = -np.take_along_axis(log_p, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, each.mean(-1), rtol=1e-5)
    right = (TOKEN_LOGITS.argmax(-1) == TOKENS).mean(-1)
    np.testing.assert_allclose(objective.means["accuracy"](TOKENS, TOKEN_LOGITS), right, rtol=1e-6)
    mixed = 0.7 * CLASSES + 0.3 * np.roll(CLASSES, 1, 0)
    losses = objective.loss(tf.constant(mixed), tf.constant(LOGITS)).numpy()
    expected = -(mixed * tf.nn.log_softmax(LOGITS).numpy()).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_state_that_is_no_sum_is_refused():
    class Smallest(keras.metrics.Metric):
        def __init__(self):
            super().__init__()
            self.least = self.add_variable((), "ones")

    with pytest.raises(ValueError, match=r"whose state is a sum .* Smallest"):
        KerasMetric(Smallest())
