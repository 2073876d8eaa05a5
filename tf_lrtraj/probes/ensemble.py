r"""Predictions of several weights: their ensemble, and the prediction of their mean.

For a smooth function of the weights, members :math:`w_i` at distance :math:`\Delta` from their
mean differ in prediction by :math:`O(\Delta)`, while the mean of their predictions differs from
the prediction of their mean by :math:`O(\Delta^2)` only (Izmailov et al. 2018, arXiv 1803.05407,
section 3.5).  Both are measured on members drawn towards their mean,
:math:`\bar w + s\,(w_i - \bar w)`, at several scales `s`, so that the exponents are fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.base import LossProbe, lacking, put_estimate
from tf_lrtraj.probes.batches import size_of
from tf_lrtraj.probes.point_sets import Mixtures, Points
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.vectors import fingerprint, joined, square_distance
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.specs import ENSEMBLE_SCALES
from tf_lrtraj.statistics import exponents, mean_and_se
from tf_lrtraj.values import error

_SCORES = tuple(f"{who}_{what}" for who in ("ensemble", "average") for what in ("loss", "accuracy"))
_MEMBERS = ("member_loss", "member_accuracy")


@dataclasses.dataclass(eq=False, repr=False)
class Ensemble(LossProbe):
    """Losses of an ensemble, its members and the average of weights; differences of predictions.

    Coordinates: member and other (member), batch, scale.

    Values:
        distance [member, other], from_average [member]: of the weights; spread [scale]: root
            mean square of the distances from the average, times the scale.
        pair_difference [scale, member, other, batch]: root mean square over examples of the
            length of the difference of two members' probabilities (outputs, without `logits`);
            ensemble_difference [scale, batch]: that of the mean over members and the
            average's; pair_logit_difference, ensemble_logit_difference: of logits less their
            mean over classes.
        mean_… [scale] of these, over pairs and batches, and …_exponent []: the power of the
            spread, fitted batch by batch; both with `_se` over batches (inf for one).
        member_loss, member_accuracy [member, batch]; ensemble_…, average_… [batch]; mean_… []
            of all, with `_se`; an accuracy is inf without class labels.
        ensemble_loss_change [] and so on, with `_se`: against the members' mean on the same
            batches.

    Each member and the average is measured in the surface's mode: `"recalibrated"` recomputes
    batch-norm statistics for every one of them, at every scale; `"frozen"` averages the members'.

    Memory: outputs for all batches of every member, 8 bytes a number, and the average and two
    members' weights.

    Args:
        surface: what is measured, without penalties.
        members: name → weights, or a trajectory with `.steps` and `.read(step)`; at least 2.
        batches: batches to predict on, usually held-out ones.
        logits: whether the model's outputs are logits.  Probabilities are averaged in the ensemble,
            and its loss is that of the logarithm of their mean.  False: outputs are averaged as
            they are (probabilities, or a regression).
        scales: scales s of the members' distance from their mean, descending from 1.

    Raises:
        ValueError: for fewer than 2 members, one of another architecture (it is named), or
            scales that do not descend from 1.
    """

    kind = "ensemble"

    surface: Surface
    members: Any
    batches: Any
    _: dataclasses.KW_ONLY
    logits: bool = True
    scales: Sequence[float] = ENSEMBLE_SCALES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surface.penalties:
            raise ValueError(
                "`surface` must be without penalties: an ensemble of predictions has no weights "
                "to penalise. Received: penalties=True"
            )
        self.members = Points(self.surface, self.members, at_least=2)
        self._scales = np.asarray(self.scales, np.float64)
        if (
            self._scales.ndim != 1
            or not self._scales.size
            or self._scales[0] != 1.0
            or bool((np.diff(self._scales) >= 0.0).any())
            or self._scales[-1] <= 0.0
        ):
            raise error("scales", "positive and descend from 1, the members", self.scales)
        self._mix = Mixtures(self.surface)
        self._fingerprints, self._average = self._averaged()
        # Predictions of one scale: of the average, and of the members so far.
        self._scale = -1
        self._found: dict[int, list[np.ndarray]] = {}
        self._centre: list[np.ndarray] = []

    def _averaged(self) -> tuple[dict[str, str], Point]:
        """Checksums of all members, and the mean of their weights, summed in float64.

        Statistics are averaged too; only a frozen batch norm uses them.
        """
        fingerprints, count = {}, len(self.members.names)
        sums: list[np.ndarray] = []
        for name in self.members.names:
            point = self.members[name]
            fingerprints[name] = self.surface.fingerprint(point)
            arrays = backend.to_numpy(bn.join_weights(self.surface.model, *point))
            host = [array.astype(np.float64) for array in arrays]
            sums = host if not sums else [a + b for a, b in zip(sums, host, strict=True)]
        return fingerprints, self.surface.point([total / count for total in sums])

    def coordinates(self) -> dict[str, Any]:
        return {
            "member": self.members.names,
            "other": self.members.names,
            "batch": np.arange(len(self.batches)),
            "scale": self._scales,
        }

    def parts(self) -> Collection[str]:
        return ["logits"] if self.logits else []

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            "batches": fingerprint(self.batches),
            "batch_sizes": [size_of(batch) for batch in self.batches],
            "members": self._fingerprints,
            "logits": bool(self.logits),
        }

    def _differences(self) -> list[str]:
        ends = ["difference", "logit_difference"] if self.logits else ["difference"]
        return [f"{who}_{end}" for who in ("pair", "ensemble") for end in ends]

    # Measuring ----------------------------------------------------------------------------

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int]]:
        """Returns (scale, member); the last member of a scale includes the ensemble."""
        missing = record.missing("pair_difference").any(axis=-1)
        either = np.tril(np.logical_or(missing, np.swapaxes(missing, 1, 2))).any(axis=-1)
        found = {(int(scale), int(member)) for scale, member in np.argwhere(either)}
        last = len(self.members.names) - 1
        return sorted(found | {(scale, last) for scale in lacking(record, "ensemble_difference")})

    def measure(self, record: ArrayRecord, piece: tuple[int, int]) -> None:
        scale, member = piece
        if scale != self._scale:
            self._scale, self._found = scale, {}
            self._centre = self._centre or self._outputs(self._average)
        for number in range(member + 1):
            if number not in self._found:
                self._found[number] = self._outputs(self._member(scale, number))
        if scale == 0:
            self._measure_member(record, member)
        outputs = self._found[member]
        for number in range(member + 1):
            self._put_pair(record, piece, number, outputs)
        if member == len(self.members.names) - 1:
            self._measure_ensemble(record, scale)

    def _outputs(self, point: Point) -> list[Any]:
        """Returns the predictions for each batch: an array, or nested arrays for several
        outputs."""
        return [
            keras.tree.map_structure(
                lambda array: array.astype(np.float64), self.surface.predict(point, batch[0])
            )
            for batch in self.batches
        ]

    def _member(self, scale: int, number: int) -> Point:
        point = self.members[self.members.names[number]]
        share = float(self._scales[scale])
        if share == 1.0:
            return point
        return self._mix([self._average, point], [1.0 - share, share])

    def _measure_member(self, record: ArrayRecord, member: int) -> None:
        scores = [
            self.surface.score(outputs, batch)
            for outputs, batch in zip(self._found[member], self.batches, strict=True)
        ]
        losses, accuracies = np.array(scores).T
        record.put("member_loss", member, losses)
        record.put("member_accuracy", member, accuracies)
        own = self._flat(self.members[self.members.names[member]])
        square = square_distance(own, self._flat(self._average))
        record.put("from_average", member, np.sqrt(square))
        for number in range(member + 1):
            other = self._flat(self.members[self.members.names[number]])
            distance = np.sqrt(square_distance(own, other))
            record.put("distance", (member, number), distance)
            record.put("distance", (number, member), distance)

    @staticmethod
    def _flat(point: Point) -> np.ndarray:
        return joined(backend.to_numpy(point.trainable))

    def _put_pair(
        self, record: ArrayRecord, piece: tuple[int, int], number: int, outputs: list[np.ndarray]
    ) -> None:
        scale, member = piece
        for name, turn in self._turns("pair"):
            values = [
                _rms(_each(turn, first), _each(turn, second))
                for first, second in zip(outputs, self._found[number], strict=True)
            ]
            record.put(name, (scale, member, number), values)
            record.put(name, (scale, number, member), values)

    def _turns(self, who: str) -> list[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Yields the comparisons: (name of the difference, function of the outputs).

        The one that marks a piece as measured for `pieces` comes last.
        """
        if not self.logits:
            return [(f"{who}_difference", lambda outputs: outputs)]
        return [(f"{who}_logit_difference", centred), (f"{who}_difference", softmax)]

    def _measure_ensemble(self, record: ArrayRecord, scale: int) -> None:
        members = [self._found[i] for i in range(len(self.members.names))]
        for name, turn in self._turns("ensemble"):
            means = [
                keras.tree.map_structure(_mean_of, *(_each(turn, one) for one in of_batch))
                for of_batch in zip(*members, strict=True)
            ]
            if name == "ensemble_difference" and scale == 0:
                self._score_ensemble(record, means)
            values = [_rms(m, _each(turn, c)) for m, c in zip(means, self._centre, strict=True)]
            record.put(name, scale, values)

    def _score_ensemble(self, record: ArrayRecord, means: list[np.ndarray]) -> None:
        tiny = np.finfo(np.float32).tiny
        outputs = means
        if self.logits:  # as logits, the logarithm of probabilities gives the probabilities
            outputs = [_each(lambda mean: np.log(np.maximum(mean, tiny)), one) for one in means]
        for who, predictions in (("ensemble", outputs), ("average", self._centre)):
            scores = [
                self.surface.score(output, batch)
                for output, batch in zip(predictions, self.batches, strict=True)
            ]
            losses, accuracies = np.array(scores).T
            record.put(f"{who}_loss", ..., losses)
            record.put(f"{who}_accuracy", ..., accuracies)

    # What follows -------------------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        for name in (*_MEMBERS, *_SCORES):
            values = record.values[name]
            by_batch = values.mean(axis=0) if values.ndim == 2 else values
            put_estimate(record, f"mean_{name}", (), mean_and_se(by_batch))
        for name in _SCORES:  # batch by batch, as batches differ far more than predictors do
            members = record.values[f"member_{name.split('_')[1]}"].mean(axis=0)
            with np.errstate(invalid="ignore"):
                change = mean_and_se(record.values[name] - members)
            put_estimate(record, f"{name}_change", (), change)
        squares = record.values["from_average"] ** 2
        spread = float(np.sqrt(squares.mean())) * self._scales
        record.put("spread", ..., spread)
        count = len(self.members.names)
        first, second = np.triu_indices(count, 1)
        for name in self._differences():
            values = record.values[name]
            if name.startswith("pair"):
                values = np.sqrt((values[:, first, second] ** 2).mean(axis=1))
            put_estimate(record, f"mean_{name}", ..., mean_and_se(values))
            put_estimate(record, f"{name}_exponent", (), exponents(spread, values))

    def passes(self, pieces: Sequence[tuple[int, int]]) -> float:
        count = len({(scale, i) for scale, last in pieces for i in range(last + 1)})
        return self.spec.passes(count, len(self.batches), self.surface.calibration_passes)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis.

    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def centred(logits: np.ndarray) -> np.ndarray:
    """Returns logits minus their mean over the classes, on which probabilities do not depend."""
    return logits - logits.mean(axis=-1, keepdims=True)


def _each(function: Callable[[np.ndarray], np.ndarray], outputs: Any) -> Any:
    return keras.tree.map_structure(function, outputs)


def _mean_of(*arrays: np.ndarray) -> np.ndarray:
    return np.mean(arrays, axis=0)


def _rms(first: Any, second: Any) -> float:
    """Root mean square over examples of the length by which their predictions differ.

    Several outputs of a model count as one long prediction.
    """
    total = 0.0
    for one, other in zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True):
        total = total + np.sum((one - other).reshape(len(one), -1) ** 2, axis=1)
    return float(np.sqrt(np.mean(total)))
