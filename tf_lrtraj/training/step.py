"""The compiled training step: forward and backward pass, update, and averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lrtraj.averaging import AverageState
from tf_lrtraj.models import decayed_variables


def per_example_loss(labels: Any, logits: Any, label_smoothing: float = 0.0) -> Any:
    """Returns the [B] softmax cross-entropy in float32 or wider, for smoothed one-hot labels.

    Smoothing gives `label_smoothing / classes` to every class and the rest to the label.
    """
    if logits.dtype != tf.float64:
        logits = tf.cast(logits, tf.float32)
    if label_smoothing == 0.0:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes, dtype=logits.dtype)
    targets = targets * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def correct(labels: Any, logits: Any) -> Any:
    """Returns [B] numbers, 1.0 where the largest logit is that of the label."""
    predicted = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.cast(tf.equal(predicted, labels), tf.float32)


def make_replica_step(
    model: Any,
    optimizer: Any,
    averages: AverageState | None,
    *,
    batch_size: int,
    replicas: int = 1,
    weight_decay: float = 0.0,
    weight_decay_on: str = "kernels",
    label_smoothing: float = 0.0,
) -> Callable[[Any, Any, dict[str, Any]], tuple[Any, Any]]:
    """Builds the training step of one replica, for `strategy.run`.

    All its shapes are static, so that XLA can compile it, which TPUs need.

    Returns:
        `replica_step(images, labels, row)`, which makes one update of model and averages from this
        replica's part of the batch and returns its share of the mean loss and of the accuracy.
    """
    decayed = decayed_variables(model, weight_decay_on)

    def replica_step(images: Any, labels: Any, row: dict[str, Any]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = per_example_loss(labels, logits, label_smoothing)
            loss = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        if weight_decay:
            # Gradients are summed over replicas, so each adds its share of the decay.
            gradients = [
                g + tf.cast(weight_decay / replicas, g.dtype) * tf.cast(v.value, g.dtype)
                if on
                else g
                for g, v, on in zip(gradients, model.trainable_variables, decayed, strict=True)
            ]
        optimizer.apply(gradients, model.trainable_variables)
        if averages is not None:
            averages.update(row)
        return loss, tf.reduce_sum(correct(labels, logits)) / batch_size

    return replica_step


def make_train_steps(
    strategy: Any,
    model: Any,
    optimizer: Any,
    averages: AverageState | None,
    *,
    batch_size: int,
    weight_decay: float = 0.0,
    weight_decay_on: str = "kernels",
    label_smoothing: float = 0.0,
) -> Callable[[Any, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Builds the function that makes several training steps in one graph.

    The loss is the mean cross-entropy over the *global* batch.  Weight decay adds
    `weight_decay * w` to the gradient of every weight that decays (an L2 term of the loss, so
    it passes through momentum); it is not part of the reported loss.

    Returns:
        `run(iterator, plan)`, which makes as many steps as `plan` has rows (`AverageState.plan`;
        see `empty_plan` for runs without averages) and returns ([n] mean losses, [n] accuracies) of
        the global training batches.
    """
    replica_step = make_replica_step(
        model,
        optimizer,
        averages,
        batch_size=batch_size,
        replicas=strategy.num_replicas_in_sync,
        weight_decay=weight_decay,
        weight_decay_on=weight_decay_on,
        label_smoothing=label_smoothing,
    )

    @tf.function(reduce_retracing=False)
    def run(iterator: Any, mixing: Any, slots: Any) -> tuple[Any, Any]:
        count = tf.shape(mixing)[0]
        losses = tf.TensorArray(tf.float32, size=count)
        accuracies = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            images, labels = next(iterator)
            row = {"mixing": mixing[i], "slots": slots[i]}
            loss, accuracy = strategy.run(replica_step, args=(images, labels, row))
            loss = tf.cast(strategy.reduce("SUM", loss, axis=None), tf.float32)
            losses = losses.write(i, loss)
            accuracies = accuracies.write(i, strategy.reduce("SUM", accuracy, axis=None))
        return losses.stack(), accuracies.stack()

    concrete: dict[str, Any] = {}

    def call(iterator: Any, plan: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        mixing = tf.constant(plan["mixing"], tf.float64)
        slots = tf.constant(plan["slots"], tf.int32)
        if "run" not in concrete:
            # Traced once, for any number of steps.
            concrete["run"] = run.get_concrete_function(
                iterator,
                tf.TensorSpec([None, mixing.shape[1]], tf.float64),
                tf.TensorSpec([None, slots.shape[1]], tf.int32),
            )
        losses, accuracies = concrete["run"](iterator, mixing, slots)
        return losses.numpy(), accuracies.numpy()

    return call


def empty_plan(count: int) -> dict[str, np.ndarray]:
    """Returns the plan of `count` steps of a run without averages."""
    return {"mixing": np.zeros((count, 0)), "slots": np.zeros((count, 0), np.int32)}


def make_optimizer(learning_rate: Any, momentum: float, nesterov: bool) -> Any:
    """Makes SGD in Keras' convention: `v ← βv - λg`, `θ ← θ + v`."""
    return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)
