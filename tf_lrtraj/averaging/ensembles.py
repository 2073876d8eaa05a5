r"""Ensembles of predictions, beside averages of weights.

FGE (Garipov et al. 2018, arXiv 1802.10026) averages the *predictions* of models
collected along a cyclical schedule; SWA averages their *weights*, which is its
first-order approximation at the cost of one model (Izmailov et al. 2018, arXiv
1803.05407, section 3.5).  `Ensemble` does the first and gives the second to compare.

With a model compiled and x, y at hand, FGE is a schedule and a recorder:

    rate = rates.Sequence([0.1, rates.Triangular(0.05, 0.005, length=200)], [1000])
    model.compile(keras.optimizers.SGD(schedules.RateSchedule(rate), momentum=0.9), ...)
    recorder = SnapshotRecorder("snapshots", start=1100, every=200)   # the middle of each cycle
    model.fit(x, y, epochs=10, callbacks=[recorder])
    Ensemble(model, Snapshots("snapshots"), batch_norm_data=x[:4096]).evaluate(x_test, y_test)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj import batch_norm as bn
from tf_lrtraj.averaging.borrowing import borrow
from tf_lrtraj.averaging.snapshots import Snapshots

# "running": each member's statistics as training left them.
STATISTICS = ("recompute", "running")


@dataclasses.dataclass(frozen=True)
class EnsembleResult:
    """How an ensemble does beside its members and the average of their weights.

    Attributes:
        loss, accuracy: of the mean of the members' probabilities (cross-entropy).
        member_losses, member_accuracies: [K] of each member alone.
        average_loss, average_accuracy: of the model whose weights are the members' mean.
        examples: number of labels they are means over.
    """

    loss: float
    accuracy: float
    member_losses: np.ndarray
    member_accuracies: np.ndarray
    average_loss: float
    average_accuracy: float
    examples: int

    def __str__(self) -> str:
        rows = [
            ("ensemble", self.loss, self.accuracy),
            ("average of weights", self.average_loss, self.average_accuracy),
            ("best member", self.member_losses.min(), self.member_accuracies.max()),
            ("mean member", self.member_losses.mean(), self.member_accuracies.mean()),
        ]
        lines = [f"{len(self.member_losses)} members, {self.examples:,} examples"]
        lines += [f"{name:<20}loss {loss:8.4f}  accuracy {acc:7.2%}" for name, loss, acc in rows]
        return "\n".join(lines)


class Ensemble:
    """Several sets of weights of one model, whose predicted probabilities are averaged.

    The members are read one at a time, so that memory stays at two copies of the weights
    and one array of predictions; the model has its own weights back after each.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> kernels = [np.eye(2, dtype="float32"), np.zeros((2, 2), "float32")]
    >>> ensemble = Ensemble(model, [[kernel, np.zeros(2)] for kernel in kernels], logits=True)
    >>> x = np.array([[0.0, np.log(3.0)]], "float32")
    >>> ensemble.predict(x).round(3)  # the mean of (1/4, 3/4) and (1/2, 1/2)
    array([[0.375, 0.625]])

    Args:
        model: a built Keras model with one output of shape [batch, classes].
        members: `Snapshots`, or a list of members, each a list of arrays in the order of
            `model.trainable_variables` (and then of its batch-norm means and variances in turn).
        logits: whether the model's outputs are logits, so that a softmax is applied.
        statistics: batch-norm statistics of members: `"recompute"` from `batch_norm_data`
            (the average of weights always has that), or `"running"` as they were recorded.
        batch_norm_data: inputs, as `WeightAveraging` takes them.
        batch_size: of predictions and of recomputation.

    Raises:
        ValueError: if members do not fit the model, there is none, or data is missing.
    """

    def __init__(
        self,
        model: Any,
        members: Snapshots | Sequence[Sequence[Any]],
        *,
        logits: bool = True,
        statistics: str = "recompute",
        batch_norm_data: Any = None,
        batch_size: int = 128,
    ) -> None:
        if statistics not in STATISTICS:
            raise ValueError(
                f"`statistics` must be one of {list(STATISTICS)}. "
                f"Received: statistics={statistics!r}"
            )
        self.model = model
        self.logits = logits
        self.statistics = statistics
        self.batch_norm_data = bn.check_data(batch_norm_data)
        self.batch_size = batch_size
        self._members = members
        self._found = bn.find_statistics(model)
        self._recompute = bn.Recompute(model)
        if not len(members):
            raise ValueError("`members` must hold at least one set of weights. Received: none")
        if self._found and batch_norm_data is None:
            raise ValueError(
                "The model has batch-norm layers: give `batch_norm_data`, some training inputs, so "
                "that statistics can be recomputed. Received: batch_norm_data=None"
            )
        self._expected = [tuple(v.shape) for v in model.trainable_variables]
        self._shapes = list(self._expected)
        for entry in self._found:
            self._shapes += [tuple(entry.layer.moving_mean.shape)] * 2
        if isinstance(members, Snapshots):
            self._check([v.shape for v in members.variables])

    def __len__(self) -> int:
        return len(self._members)

    def _check(self, shapes: list[tuple[int, ...]]) -> None:
        enough = self._shapes if self.statistics == "running" else self._expected
        if shapes not in (enough, self._shapes):
            raise ValueError(
                f"Members must hold {len(enough)} arrays of the model's shapes. Received: "
                f"{len(shapes)} arrays, of which "
                f"{sum(a == b for a, b in zip(shapes, enough, strict=False))} fit."
            )

    def _weights(self) -> Iterator[list[np.ndarray]]:
        members = self._members
        if isinstance(members, Snapshots):
            for step in members.steps.tolist():
                yield members.read(step)
            return
        for member in members:
            arrays = [np.asarray(array) for array in member]
            self._check([array.shape for array in arrays])
            yield arrays

    def _probabilities(self, weights: Sequence[Any], x: Any, statistics: str) -> np.ndarray:
        model, count = self.model, len(self._expected)
        trainable = [
            keras.ops.cast(w, v.dtype)
            for w, v in zip(weights[:count], model.trainable_variables, strict=True)
        ]
        non_trainable = backend.values(model.non_trainable_variables)
        if self._found and statistics == "recompute":
            non_trainable = self._recompute(
                trainable, non_trainable, self.batch_norm_data, batch_size=self.batch_size
            )
        elif self._found:
            extra = weights[count:]
            pairs = list(zip(extra[::2], extra[1::2], strict=True))
            non_trainable = bn.replace(non_trainable, self._found, pairs)
        with borrow(model, trainable, non_trainable, "a member of an ensemble"):
            outputs = model.predict(x, batch_size=self.batch_size, verbose=0)
        outputs = np.asarray(outputs, np.float64)
        return _softmax(outputs) if self.logits else outputs

    def predictions(self, x: Any) -> Iterator[np.ndarray]:
        """[N, classes] probabilities of each member in turn."""
        for weights in self._weights():
            yield self._probabilities(weights, x, self.statistics)

    def predict(self, x: Any) -> np.ndarray:
        """[N, classes] mean of the members' probabilities, float64.

        Args:
            x: inputs, as `model.predict` takes them.
        """
        total: Any = 0.0
        for probabilities in self.predictions(x):
            total = total + probabilities
        return total / len(self)

    def average_weights(self) -> list[np.ndarray]:
        """The mean of the members' trainable weights, in float64."""
        total: list[Any] = [0.0] * len(self._expected)
        for weights in self._weights():
            total = [t + np.asarray(w, np.float64) for t, w in zip(total, weights, strict=False)]
        return [t / len(self) for t in total]

    def evaluate(self, x: Any, y: Any) -> EnsembleResult:
        """Loss and accuracy of the ensemble, of its members and of the average of their weights.

        Args:
            x: [N, …] inputs.
            y: [N] integer labels.

        Raises:
            ValueError: if the labels are not [N] integers.
        """
        labels = np.asarray(y)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                "`y` must be a vector of integer labels. "
                f"Received: shape={labels.shape}, dtype={labels.dtype}"
            )
        total: Any = 0.0
        members = []
        for probabilities in self.predictions(x):
            members.append(_score(probabilities, labels))
            total = total + probabilities
        losses, accuracies = np.array(members).T
        average = self._probabilities(self.average_weights(), x, "recompute")
        return EnsembleResult(
            *_score(total / len(self), labels),
            losses,
            accuracies,
            *_score(average, labels),
            examples=labels.size,
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _score(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(cross-entropy, accuracy)."""
    if probabilities.shape[:1] != labels.shape:
        raise ValueError(
            f"`y` must hold a label for each of {probabilities.shape[0]} examples. "
            f"Received: shape={labels.shape}"
        )
    chosen = probabilities[np.arange(labels.size), labels]
    tiny = np.finfo(np.float64).tiny
    loss = -np.mean(np.log(np.maximum(chosen, tiny)))
    return float(loss), float(np.mean(probabilities.argmax(axis=-1) == labels))
