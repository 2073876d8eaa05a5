r"""Predictions of several weights: their ensemble, and the prediction of their mean.

For a smooth function of the weights, members :math:`w_i` at distance :math:`\Delta` from their
mean differ in prediction by :math:`O(\Delta)`, while the mean of their predictions differs from
the prediction of their mean by :math:`O(\Delta^2)` only (Izmailov et al. 2018, arXiv 1803.05407,
section 3.5).  Both are measured on members drawn towards their mean,
:math:`\bar w + s\,(w_i - \bar w)`, at several scales `s`, so that the exponents are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.base import Probe, fingerprint, measure
from tf_lrtraj.probes.batches import Batch, check_batches, size_of
from tf_lrtraj.probes.exponents import exponents
from tf_lrtraj.probes.flat_vectors import joined, square_distance
from tf_lrtraj.probes.point_sets import Mixtures, Points
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.uncertainty import mean_and_se
from tf_lrtraj.records import ArrayRecord

SCALES = (1.0, 0.5, 0.25, 0.125)
_SCORES = tuple(f"{who}_{what}" for who in ("ensemble", "average") for what in ("loss", "accuracy"))


class Ensembles(Probe):
    """Predictions of several weights and of their mean; see `ensemble`."""

    kind = "ensemble"

    def __init__(
        self,
        surface: Surface,
        members: Any,
        batches: Sequence[Batch],
        *,
        logits: bool = True,
        scales: Sequence[float] = SCALES,
    ) -> None:
        self.surface = surface
        if surface.penalties:
            raise ValueError(
                "`surface` must be without penalties: an ensemble of predictions has no weights "
                "to penalise. Received: penalties=True"
            )
        self._batches = check_batches(batches)
        self._points = Points(surface, members, at_least=2)
        self._logits = bool(logits)
        self._scales = np.asarray(scales, np.float64)
        if (
            self._scales.ndim != 1
            or not self._scales.size
            or self._scales[0] != 1.0
            or bool((np.diff(self._scales) >= 0.0).any())
            or self._scales[-1] <= 0.0
        ):
            raise ValueError(
                "`scales` must descend from 1, the members themselves, and stay positive. "
                f"Received: scales={scales!r}"
            )
        self._mix = Mixtures(surface)
        fingerprints, self._average = self._averaged()
        self._about = {
            **surface.about(),
            "batches": fingerprint(self._batches),
            "batch_sizes": [size_of(batch) for batch in self._batches],
            "members": fingerprints,
            "logits": self._logits,
        }
        # Predictions of one scale: of the average, and of the members so far.
        self._scale = -1
        self._found: dict[int, list[np.ndarray]] = {}
        self._centre: list[np.ndarray] = []

    def _averaged(self) -> tuple[dict[str, str], Point]:
        """Checksums of all members, and the mean of their weights, summed in float64.

        Statistics are averaged too; only a frozen batch norm uses them.
        """
        fingerprints, count = {}, len(self._points.names)
        sums: list[np.ndarray] = []
        entries = bn.find_statistics(self.surface.model)
        for name in self._points.names:
            point = self._points[name]
            fingerprints[name] = self.surface.fingerprint(point)
            places = [i for entry in entries for i in (entry.mean, entry.variance)]
            arrays = [*point.trainable, *(point.non_trainable[i] for i in places)]
            host = [array.astype(np.float64) for array in backend.to_numpy(arrays)]
            sums = host if not sums else [a + b for a, b in zip(sums, host, strict=True)]
        return fingerprints, self.surface.point([total / count for total in sums])

    def empty(self) -> ArrayRecord:
        names = self._points.names
        coordinates: dict[str, Any] = {
            "member": names,
            "other": names,
            "batch": np.arange(len(self._batches)),
            "scale": self._scales,
        }
        pairs = ("scale", "member", "other", "batch")
        dims: dict[str, tuple[str, ...]] = {
            "distance": ("member", "other"),
            "from_average": ("member",),
            "spread": ("scale",),
            "pair_difference": pairs,
            "ensemble_difference": ("scale", "batch"),
            "member_loss": ("member", "batch"),
            "member_accuracy": ("member", "batch"),
        }
        if self._logits:
            dims["pair_logit_difference"] = pairs
            dims["ensemble_logit_difference"] = ("scale", "batch")
        for name in _SCORES:
            dims[name] = ("batch",)
        for name in ("member_loss", "member_accuracy", *_SCORES):
            dims[f"mean_{name}"] = dims[f"mean_{name}_se"] = ()
        for name in _SCORES:
            dims[f"{name}_change"] = dims[f"{name}_change_se"] = ()
        for name in self._differences():
            for end in ("", "_se"):
                dims[f"mean_{name}{end}"] = ("scale",)
                dims[f"{name}_exponent{end}"] = ()
        return ArrayRecord.empty(self.kind, coordinates, dims, self._about)

    def _differences(self) -> list[str]:
        ends = ["difference", "logit_difference"] if self._logits else ["difference"]
        return [f"{who}_{end}" for who in ("pair", "ensemble") for end in ends]

    # Measuring ----------------------------------------------------------------------------

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int]]:
        """(scale, member); at the last member of a scale the ensemble is compared as well."""
        lacking = {tuple(place[:3]) for place in np.argwhere(record.missing("pair_difference"))}
        count = len(self._points.names)
        found = [
            (scale, member)
            for scale in range(self._scales.size)
            for member in range(count)
            if any(
                {(scale, member, other), (scale, other, member)} & lacking
                for other in range(member + 1)
            )
        ]
        for scale in np.flatnonzero(record.missing("ensemble_difference").any(axis=-1)).tolist():
            if (scale, count - 1) not in found:
                found.append((scale, count - 1))
        return sorted(found)

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
        if member == len(self._points.names) - 1:
            self._measure_ensemble(record, scale)

    def _outputs(self, point: Point) -> list[Any]:
        """Predictions for each batch: an array, or a nest of arrays of several outputs."""
        return [
            keras.tree.map_structure(
                lambda array: array.astype(np.float64), self.surface.predict(point, batch[0])
            )
            for batch in self._batches
        ]

    def _member(self, scale: int, number: int) -> Point:
        point = self._points[self._points.names[number]]
        share = float(self._scales[scale])
        if share == 1.0:
            return point
        return self._mix([self._average, point], [1.0 - share, share])

    def _measure_member(self, record: ArrayRecord, member: int) -> None:
        scores = [
            self.surface.score(outputs, batch)
            for outputs, batch in zip(self._found[member], self._batches, strict=True)
        ]
        losses, accuracies = np.array(scores).T
        record.put("member_loss", member, losses)
        record.put("member_accuracy", member, accuracies)
        own = self._flat(self._points[self._points.names[member]])
        square = square_distance(own, self._flat(self._average))
        record.put("from_average", member, np.sqrt(square))
        for number in range(member + 1):
            other = self._flat(self._points[self._points.names[number]])
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
        """What is compared: (name of the difference, function of the outputs).

        What tells `pieces` that a piece is done comes last.
        """
        if not self._logits:
            return [(f"{who}_difference", lambda outputs: outputs)]
        return [(f"{who}_logit_difference", centred), (f"{who}_difference", softmax)]

    def _measure_ensemble(self, record: ArrayRecord, scale: int) -> None:
        members = [self._found[i] for i in range(len(self._points.names))]
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
        if self._logits:  # as logits, the logarithm of probabilities gives the probabilities
            outputs = [_each(lambda mean: np.log(np.maximum(mean, tiny)), one) for one in means]
        for who, predictions in (("ensemble", outputs), ("average", self._centre)):
            scores = [
                self.surface.score(output, batch)
                for output, batch in zip(predictions, self._batches, strict=True)
            ]
            losses, accuracies = np.array(scores).T
            record.put(f"{who}_loss", slice(None), losses)
            record.put(f"{who}_accuracy", slice(None), accuracies)

    # What follows -------------------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        for name in ("member_loss", "member_accuracy", *_SCORES):
            values = record.values[name]
            by_batch = values.mean(axis=0) if values.ndim == 2 else values
            mean, error = mean_and_se(by_batch)
            record.put(f"mean_{name}", (), mean)
            record.put(f"mean_{name}_se", (), error)
        for name in _SCORES:  # batch by batch, as batches differ far more than predictors do
            members = record.values[f"member_{name.split('_')[1]}"].mean(axis=0)
            with np.errstate(invalid="ignore"):
                mean, error = mean_and_se(record.values[name] - members)
            record.put(f"{name}_change", (), mean)
            record.put(f"{name}_change_se", (), error)
        squares = record.values["from_average"] ** 2
        spread = float(np.sqrt(squares.mean())) * self._scales
        record.put("spread", slice(None), spread)
        count = len(self._points.names)
        first, second = np.triu_indices(count, 1)
        for name in self._differences():
            values = record.values[name]
            if name.startswith("pair"):
                values = np.sqrt((values[:, first, second] ** 2).mean(axis=1))
            mean, error = mean_and_se(values)
            record.put(f"mean_{name}", slice(None), mean)
            record.put(f"mean_{name}_se", slice(None), error)
            power, its_error = exponents(spread, values)
            record.put(f"{name}_exponent", (), power)
            record.put(f"{name}_exponent_se", (), its_error)

    def passes(self, pieces: Sequence[tuple[int, int]]) -> float:
        count = len(
            {(s, m) for scale, last in pieces for s, m in [(scale, i) for i in range(last + 1)]}
        )
        each = len(self._batches) + self.surface.calibration_passes
        return float((count + 1) * each)

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self._batches[0])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis.

    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean over the classes, which probabilities do not depend on."""
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


def ensemble(
    model: Any,
    loss: Any,
    members: Any,
    batches: Sequence[Batch],
    *,
    logits: bool = True,
    scales: Sequence[float] = SCALES,
    batch_norm: str = "batch",
    dropout: str = "off",
    moment_batches: Sequence[Batch] | None = None,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    r"""Ensemble, members and average of weights: how well they do, and how far apart they predict.

    Memory: outputs for all batches of every member, 8 bytes a number, and the average and two
    members' weights.

    Args:
        model, loss: as `Surface` takes them.
        members: name → weights, or a trajectory with `.steps` and `.read(step)`; at least 2.
        batches: to predict on; held-out ones, as a rule.
        logits: the model's outputs are logits.  Probabilities are averaged in the ensemble,
            and its loss is that of the logarithm of their mean.  False: outputs are averaged
            as they are (probabilities, or a regression).
        scales: descending from 1: how far members are drawn towards their mean.
        batch_norm, dropout, moment_batches: as `Surface` takes them.  Each member and the
            average is measured in that mode: `"recalibrated"` recomputes statistics for every one
            of them (at every scale); `"frozen"` averages the members' statistics.
        path, progress, tell: as `probes.measure` takes them.

    Returns:
        A record of kind "ensemble" over `member`, `other`, `batch` and `scale`:

        * `distance` (member, other), `from_average` (member): of the weights; `spread` (scale):
          root mean square of the distances from the average, times the scale;
        * `pair_difference` (scale, member, other, batch): root mean square over examples of the
          length of the difference of two members' probabilities (outputs, without
          `logits`); `ensemble_difference` (scale, batch): that of the mean over members and the
          average's; `pair_logit_difference`, `ensemble_logit_difference`: of logits less
          their mean over classes;
        * for each of these, `mean_…` (scale), over pairs and batches, and `…_exponent`, the power
          of the spread, fitted batch by batch, both with `_se` over batches (inf for one);
        * `member_loss`, `member_accuracy` (member, batch), the ensemble's and the average's
          (batch), and `mean_…` of all with `_se`; an accuracy is inf without class labels;
          `ensemble_loss_change` and so on: against the members' mean on the same batches.

    Raises:
        ValueError: for fewer than 2 members, one of another architecture (it is named), or
            scales that do not descend from 1.
        RecordError: if `path` holds measurements of something else.
    """
    surface = Surface(
        model, loss, batch_norm=batch_norm, dropout=dropout, moment_batches=moment_batches
    )
    probe = Ensembles(surface, members, batches, logits=logits, scales=scales)
    return measure(probe, path, progress=progress, tell=tell)
