"""What a run minimises and what it measures: the loss of each example, and metrics.

A batch is (inputs, targets), and a model has one output.  Losses are means over examples; the
losses of an example's tokens are averaged first.

>>> import numpy as np
>>> objective = classification()
>>> labels, logits = np.array([0, 1]), np.array([[9.0, 0.0], [9.0, 0.0]], "float32")
>>> [name for name in objective.means], objective.means["accuracy"](labels, logits).numpy()
(['accuracy'], array([1., 0.], dtype=float32))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_lrtraj.probes.losses import per_example

__all__ = ["KerasMetric", "Objective", "classification", "correct", "of_keras", "per_example_loss"]

PerExample = Callable[[Any, Any], Any]  # (targets, outputs) → [B]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss and the metrics of a run.

    Attributes:
        loss: (targets, outputs) → [B] losses that training minimises.
        evaluated: the losses that evaluations report.
        means: name → (targets, outputs) → [B] values, which are averaged over examples.
        metrics: name → a metric of Keras.
    """

    loss: PerExample
    evaluated: PerExample
    means: Mapping[str, PerExample] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, KerasMetric] = dataclasses.field(default_factory=dict)

    def measured(self, targets: Any, outputs: Any, present: Any) -> dict[str, list[Any]]:
        """Returns the sums of each metric of Keras over a batch.

        Args:
            present: [B] 1 for each real example and 0 for padding; None if all are real.
        """
        if present is None and self.metrics:
            present = tf.ones(tf.shape(outputs)[:1])
        return {
            name: metric.sums(targets, outputs, present) for name, metric in self.metrics.items()
        }

    def results(self, sums: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Returns the value of each metric of Keras for sums over all batches."""
        return {name: metric.result(sums[name]) for name, metric in self.metrics.items()}


class KerasMetric:
    """A metric of Keras as a function of sums, which are added over batches and replicas.

    The state of the metric must consist of sums that begin at 0, as it does for means, counts
    (AUC, precision, recall) and confusion matrices.  The metric's own variables are not used.

    Args:
        metric: a `keras.metrics.Metric` whose variables exist.

    Raises:
        ValueError: if its state does not begin at 0.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self._shapes = [(tuple(v.shape), v.dtype) for v in metric.variables]
        if any(np.any(keras.ops.convert_to_numpy(v.value)) for v in metric.variables):
            raise ValueError(
                "the metric must be one whose state is a sum over examples. Received: "
                f"{type(metric).__name__}, whose state does not begin at 0"
            )

    def sums(self, targets: Any, outputs: Any, present: Any) -> list[Any]:
        """Returns the metric's state after one batch alone; `present` are weights, [B]."""
        empty = [tf.zeros(shape, dtype) for shape, dtype in self._shapes]
        state = self._metric.stateless_update_state(
            empty, targets, outputs, sample_weight=tf.cast(present, tf.float32)
        )
        return [tf.convert_to_tensor(value) for value in state]

    def result(self, sums: Sequence[Any]) -> Any:
        """Returns the value of the metric, a scalar tensor."""
        state = [
            tf.cast(value, dtype) for value, (_, dtype) in zip(sums, self._shapes, strict=True)
        ]
        return tf.cast(self._metric.stateless_result(state), tf.float32)


def classification(
    label_smoothing: float = 0.0, metrics: Mapping[str, KerasMetric] | None = None
) -> Objective:
    """Returns the softmax cross-entropy of logits with accuracy; evaluations do not smooth.

    Args:
        label_smoothing: see `per_example_loss`.
        metrics: further metrics.
    """
    return Objective(
        functools.partial(per_example_loss, label_smoothing=label_smoothing),
        per_example_loss,
        {"accuracy": correct},
        dict(metrics or {}),
    )


def of_keras(loss: Any, metrics: Mapping[str, KerasMetric] | None = None) -> Objective:
    """Returns the objective of a loss of Keras.

    Args:
        loss: a `keras.losses.Loss`.
        metrics: name → metric.
    """
    losses = per_example(loss)
    return Objective(losses, losses, {}, dict(metrics or {}))


def per_example_loss(labels: Any, logits: Any, label_smoothing: float = 0.0) -> Any:
    """Returns the [B] softmax cross-entropy in float32 or wider, for smoothed one-hot labels.

    Labels are classes, [B] or [B, …] (the mean over all but the first axis is returned), or
    probabilities of classes, [B, …, C].  Smoothing gives `label_smoothing / classes` to every class
    and the rest to the label.
    """
    if logits.dtype != tf.float64:
        logits = tf.cast(logits, tf.float32)
    labels = tf.convert_to_tensor(labels)
    classes = logits.shape[-1]
    if label_smoothing == 0.0 and not labels.dtype.is_floating:
        return _over_tokens(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    if labels.dtype.is_floating:
        targets = tf.cast(labels, logits.dtype)
    else:
        targets = tf.one_hot(labels, classes, dtype=logits.dtype)
    targets = targets * (1.0 - label_smoothing) + label_smoothing / classes
    return _over_tokens(tf.nn.softmax_cross_entropy_with_logits(targets, logits))


def correct(labels: Any, logits: Any) -> Any:
    """Returns [B] numbers, 1.0 where the largest logit is that of the (likeliest) label.

    For labels of tokens, [B, …], it is the share of the example's tokens.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.is_floating:
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    predicted = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return _over_tokens(tf.cast(tf.equal(predicted, labels), tf.float32))


def _over_tokens(values: Any) -> Any:
    """Returns [B] means over all axes but the first; values [B] as they are."""
    rank = len(values.shape)
    return values if rank == 1 else tf.reduce_mean(values, axis=list(range(1, rank)))
