"""The compiled training step: forward and backward pass, update, and averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_lrtraj.averaging import AverageState
from tf_lrtraj.models import decayed_variables
from tf_lrtraj.training.objective import Objective, classification

Losses = dict[str, Any]  # "loss" and the names of metrics


def make_replica_step(
    model: Any,
    optimizer: Any,
    averages: AverageState | None,
    *,
    batch_size: int,
    replicas: int = 1,
    weight_decay: float = 0.0,
    weight_decay_on: str = "kernels",
    objective: Objective | None = None,
) -> Callable[[Any, Any, Any], tuple[Losses, Losses]]:
    """Builds the training step of one replica, for `strategy.run`.

    All its shapes are static, so that XLA can compile it, which TPUs need.

    Returns:
        `replica_step(inputs, targets, step)`, which makes the `step`-th update of model and
        averages from this replica's part of the batch.  It returns its share of the mean loss and
        of the objective's means, and the sums of the objective's metrics.
    """
    decayed = decayed_variables(model, weight_decay_on)
    objective = objective or classification()

    def replica_step(inputs: Any, targets: Any, step: Any) -> tuple[Losses, Losses]:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(objective.loss(targets, outputs)) / batch_size
            # Penalties that the model's own layers add, each replica its share.
            penalties = [tf.cast(one, loss.dtype) / replicas for one in model.losses]
            minimised = tf.add_n([loss, *penalties]) if penalties else loss
        found = tape.gradient(minimised, [v.value for v in model.trainable_variables])
        # The gradient of an embedding names rows; the optimizer would add them in any order.
        gradients = [
            tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in found
        ]
        if weight_decay:
            # Gradients are summed over replicas, so each adds its share of the decay.
            gradients = [
                g + tf.cast(weight_decay / replicas, g.dtype) * tf.cast(v.value, g.dtype)
                if on and g is not None
                else g
                for g, v, on in zip(gradients, model.trainable_variables, decayed, strict=True)
            ]
        optimizer.apply(gradients, model.trainable_variables)
        if averages is not None:
            averages.update(step)
        means = {"loss": loss}
        for name, values in objective.means.items():
            means[name] = tf.reduce_sum(values(targets, outputs)) / batch_size
        return means, objective.measured(targets, outputs, None)

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
    objective: Objective | None = None,
) -> Callable[[Any, int, int], dict[str, np.ndarray]]:
    """Builds the function that makes several training steps in one graph.

    The loss is the mean of the objective over the *global* batch.  Weight decay adds
    `weight_decay * w` to the gradient of every weight that decays (an L2 term of the loss, so
    it passes through momentum).  Neither it nor the penalties of the model's layers
    (`kernel_regularizer=…`), which are minimised too, are part of the reported loss.

    Args:
        objective: the loss and the metrics; `classification()` by default.

    Returns:
        `run(iterator, made, count)`, which makes `count` steps after the first `made` steps of the
        run and returns [count] values of the global training batches by name: "loss" and the
        objective's metrics.
    """
    objective = objective or classification()
    replica_step = make_replica_step(
        model,
        optimizer,
        averages,
        batch_size=batch_size,
        replicas=strategy.num_replicas_in_sync,
        weight_decay=weight_decay,
        weight_decay_on=weight_decay_on,
        objective=objective,
    )

    # Traced once, for any number of steps.
    number = tf.TensorSpec([], tf.int64)

    names = ["loss", *objective.means, *objective.metrics]

    def total(value: Any) -> Any:
        return strategy.reduce("SUM", value, axis=None)

    @tf.function(reduce_retracing=False)
    def run(iterator: Any, made: Any, count: Any) -> dict[str, Any]:
        size = tf.cast(count, tf.int32)
        kept = {name: tf.TensorArray(tf.float32, size=size) for name in names}
        for i in tf.range(size):
            inputs, targets = next(iterator)
            step = made + 1 + tf.cast(i, tf.int64)
            means, sums = strategy.run(replica_step, args=(inputs, targets, step))
            found = {name: tf.cast(total(mean), tf.float32) for name, mean in means.items()}
            found |= objective.results(
                {name: [total(value) for value in values] for name, values in sums.items()}
            )
            kept = {name: array.write(i, found[name]) for name, array in kept.items()}
        return {name: array.stack() for name, array in kept.items()}

    concrete: list[Any] = []

    def call(iterator: Any, made: int, count: int) -> dict[str, np.ndarray]:
        if not concrete:
            concrete.append(run.get_concrete_function(iterator, number, number))
        numbers = (tf.constant(value, tf.int64) for value in (made, count))
        found = concrete[0](iterator, *numbers)
        return {name: found[name].numpy() for name in names}

    return call
