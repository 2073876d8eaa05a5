r"""Ensembles of predictions, compared with averages of weights.

FGE (Garipov et al. 2018, arXiv 1802.10026) averages the *predictions* of models collected along a
cyclical schedule.  SWA averages their *weights*; it approximates FGE to first order at the cost of
one model (Izmailov et al. 2018, arXiv 1803.05407, section 3.5).  `Ensemble` averages predictions,
and evaluates the average of weights for comparison.

FGE needs a cyclical schedule and a recorder (`model` is compiled, and `x`, `y` are data):

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

import numpy as np

from tf_lrtraj.averaging.borrowing import borrow
from tf_lrtraj.averaging.model_outputs import (
    OutputKind,
    Score,
    find_kind,
    score,
    several_outputs,
    single_output,
)
from tf_lrtraj.averaging.model_weights import ModelWeights
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.values import boolean, one_of

# "running" uses the statistics recorded with each member.
STATISTICS = ("recompute", "running")


@dataclasses.dataclass(frozen=True)
class EnsembleResult:
    """Losses and accuracies of an ensemble, its members and the average of their weights.

    Attributes:
        loss, accuracy: loss and accuracy of the mean of the members' predictions.  The loss is
            the cross-entropy.  For a regression it is the mean squared error, and every accuracy
            is None.
        member_losses, member_accuracies: [K] loss and accuracy of each member.
        average_loss, average_accuracy: loss and accuracy of the model whose weights are the mean
            of the members' weights.
        examples: number of examples.
        loss_name: "cross-entropy" or "mean squared error".
    """

    loss: float
    accuracy: float | None
    member_losses: np.ndarray
    member_accuracies: np.ndarray | None
    average_loss: float
    average_accuracy: float | None
    examples: int
    loss_name: str = "cross-entropy"

    def __str__(self) -> str:
        accuracies = self.member_accuracies
        best, mean = (None, None) if accuracies is None else (accuracies.max(), accuracies.mean())
        rows = [
            ("ensemble", self.loss, self.accuracy),
            ("average of weights", self.average_loss, self.average_accuracy),
            ("best member", self.member_losses.min(), best),
            ("mean member", self.member_losses.mean(), mean),
        ]
        lines = [f"{len(self.member_losses)} members, {self.examples:,} examples"]
        what = "loss" if self.loss_name == "cross-entropy" else self.loss_name
        for name, loss, accuracy in rows:
            shown = "" if accuracy is None else f"  accuracy {accuracy:7.2%}"
            lines.append(f"{name:<20}{what} {loss:8.4f}{shown}")
        return "\n".join(lines)


class Ensemble:
    """Several sets of weights of one model, whose predictions are averaged.

    Predictions are probabilities, or values of a regression.  The kind of the model's outputs is
    determined once, from its last activation, its loss and the first member's outputs
    (`tf_lrtraj.averaging.model_outputs`).

    The members are read one at a time, so memory stays at two copies of the weights and one array
    of predictions.  The model's own weights are restored after each member.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> kernels = [np.eye(2, dtype="float32"), np.zeros((2, 2), "float32")]
    >>> ensemble = Ensemble(model, [[kernel, np.zeros(2)] for kernel in kernels], logits=True)
    >>> x = np.array([[0.0, np.log(3.0)]], "float32")
    >>> ensemble.predict(x).round(3)  # the mean of (1/4, 3/4) and (1/2, 1/2)
    array([[0.375, 0.625]])

    Args:
        model: a built Keras model with one output.
        members: `Snapshots`, or a list of members, each a list of arrays in the order of
            `model.trainable_variables` (and then of its batch-norm means and variances in turn).
        logits: whether the model's outputs are logits, so that a softmax or a sigmoid is applied;
            None to determine it.
        statistics: batch-norm statistics of members: `"recompute"` computes them from
            `batch_norm_data`, and `"running"` uses the recorded ones.  Statistics of the average
            of weights are always recomputed.
        batch_norm_data: inputs, as `WeightAveraging` takes them.
        batch_size: batch size of predictions and of the recomputation.

    Raises:
        ValueError: if there are no members, members do not fit the model, data is missing, or
            the model has several outputs.
    """

    def __init__(
        self,
        model: Any,
        members: Snapshots | Sequence[Sequence[Any]],
        *,
        logits: bool | None = None,
        statistics: str = "recompute",
        batch_norm_data: Any = None,
        batch_size: int = 128,
    ) -> None:
        one_of(STATISTICS).check("statistics", statistics)
        boolean().or_none().check("logits", logits)
        single_output(model)
        if not len(members):
            raise ValueError("`members` must hold at least one set of weights. Received: none")
        self.model = model
        self.logits = logits
        self.statistics = statistics
        self.batch_size = batch_size
        self._members = members
        # Statistics of the average of weights are always recomputed, so data is needed.
        ModelWeights(model, "recompute", batch_norm_data)
        policy = "recompute" if statistics == "recompute" else "average"
        self._convert = ModelWeights(model, policy, batch_norm_data, batch_size)
        self._kind: OutputKind | None = None
        if isinstance(members, Snapshots):
            self._convert.check_shapes([v.shape for v in members.variables])

    def __len__(self) -> int:
        return len(self._members)

    def _weights(self) -> Iterator[list[np.ndarray]]:
        members = self._members
        if isinstance(members, Snapshots):
            for step in members.steps.tolist():
                yield members.read(step)
            return
        for member in members:
            yield [np.asarray(array) for array in member]

    def _predictions(self, weights: Sequence[Any], x: Any, policy: str | None = None) -> np.ndarray:
        with borrow(self.model, *self._convert(weights, policy), "a member of an ensemble"):
            outputs = self.model.predict(x, batch_size=self.batch_size, verbose=0)
        if isinstance(outputs, (list, tuple, dict)):
            names = list(outputs) if isinstance(outputs, dict) else len(outputs)
            raise several_outputs(names)
        outputs = np.asarray(outputs)
        if self._kind is None:
            self._kind = find_kind(self.model, outputs, self.logits)
        return self._kind.predictions(outputs)

    def predictions(self, x: Any) -> Iterator[np.ndarray]:
        """Yields each member's probabilities or values, in the shape of the outputs."""
        for weights in self._weights():
            yield self._predictions(weights, x)

    def predict(self, x: Any) -> np.ndarray:
        """Computes the mean of the members' probabilities or values.

        Args:
            x: inputs, as `model.predict` takes them.

        Returns:
            A float64 array in the shape of the outputs.

        Raises:
            ValueError: if it cannot be determined whether outputs are logits, or `logits`
                contradicts them.
        """
        total: Any = 0.0
        for probabilities in self.predictions(x):
            total = total + probabilities
        return total / len(self)

    def average_weights(self) -> list[np.ndarray]:
        """Computes the mean of the members' trainable weights, in float64."""
        count = len(self.model.trainable_variables)
        total: list[Any] = [0.0] * count
        for weights in self._weights():
            total = [t + np.asarray(w, np.float64) for t, w in zip(total, weights, strict=False)]
        return [t / len(self) for t in total]

    def evaluate(self, x: Any, y: Any) -> EnsembleResult:
        """Evaluates the ensemble, its members and the average of their weights.

        Args:
            x: [N, …] inputs.
            y: labels: integers [N] or one-hot [N, classes]; 0 and 1 if each output is an
                independent probability; values for a regression.

        Raises:
            ValueError: if the labels do not fit the outputs, or as `predict`.
        """
        total: Any = 0.0
        members = []
        for predictions in self.predictions(x):
            members.append(self._score(predictions, y))
            total = total + predictions
        average = self._score(self._predictions(self.average_weights(), x, "recompute"), y)
        ensemble = self._score(total / len(self), y)
        accuracies = [member.accuracy for member in members]
        return EnsembleResult(
            loss=ensemble.loss,
            accuracy=ensemble.accuracy,
            member_losses=np.array([member.loss for member in members]),
            member_accuracies=None if ensemble.accuracy is None else np.array(accuracies),
            average_loss=average.loss,
            average_accuracy=average.accuracy,
            examples=ensemble.examples,
            loss_name=ensemble.loss_name,
        )

    def _score(self, predictions: np.ndarray, y: Any) -> Score:
        assert self._kind is not None
        return score(self._kind, predictions, y)
