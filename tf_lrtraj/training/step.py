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
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Builds the training step of one replica, for `strategy.run`.

    All its shapes are static, so that XLA can compile it, which TPUs need.

    Returns:
        `replica_step(images, labels, step)`, which makes the `step`-th update of model and averages
        from this replica's part of the batch and returns its share of the mean loss and of the
        accuracy.
    """
    decayed = decayed_variables(model, weight_decay_on)

    def replica_step(images: Any, labels: Any, step: Any) -> tuple[Any, Any]:
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
            averages.update(step)
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
) -> Callable[[Any, int, int], tuple[np.ndarray, np.ndarray]]:
    """Builds the function that makes several training steps in one graph.

    The loss is the mean cross-entropy over the *global* batch.  Weight decay adds
    `weight_decay * w` to the gradient of every weight that decays (an L2 term of the loss, so
    it passes through momentum); it is not part of the reported loss.

    Returns:
        `run(iterator, made, count)`, which makes `count` steps after the first `made` steps of the
        run and returns ([count] mean losses, [count] accuracies) of the global training batches.
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

    # Traced once, for any number of steps.
    number = tf.TensorSpec([], tf.int64)

    @tf.function(reduce_retracing=False)
    def run(iterator: Any, made: Any, count: Any) -> tuple[Any, Any]:
        size = tf.cast(count, tf.int32)
        losses = tf.TensorArray(tf.float32, size=size)
        accuracies = tf.TensorArray(tf.float32, size=size)
        for i in tf.range(size):
            images, labels = next(iterator)
            step = made + 1 + tf.cast(i, tf.int64)
            loss, accuracy = strategy.run(replica_step, args=(images, labels, step))
            loss = tf.cast(strategy.reduce("SUM", loss, axis=None), tf.float32)
            losses = losses.write(i, loss)
            accuracies = accuracies.write(i, strategy.reduce("SUM", accuracy, axis=None))
        return losses.stack(), accuracies.stack()

    concrete: list[Any] = []

    def call(iterator: Any, made: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        if not concrete:
            concrete.append(run.get_concrete_function(iterator, number, number))
        numbers = (tf.constant(value, tf.int64) for value in (made, count))
        losses, accuracies = concrete[0](iterator, *numbers)
        return losses.numpy(), accuracies.numpy()

    return call


def make_optimizer(learning_rate: Any, momentum: float, nesterov: bool) -> Any:
    """Makes SGD in Keras' convention: `v ← βv - λg`, `θ ← θ + v`."""
    return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)
