r"""Side trips: steps on one fixed batch from a point.

A trip shows how far the loss of a batch falls in a few steps, and the effect on all other data
(Sandler et al. 2023, arXiv 2301.02312).  It uses copies of the arrays and changes no variable of
the model or its optimizer and no random stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import LossProbe, put_estimate
from tf_lrtraj.probes.batches import Batch, check_batches, check_groups, size_of
from tf_lrtraj.probes.optimizers import KerasOptimizer, Sgd
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.vectors import fingerprint, host, norm
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.statistics import crossed_mean, mean_and_se
from tf_lrtraj.values import error, integer


@dataclasses.dataclass(eq=False, repr=False)
class SideTrip(LossProbe):
    """Steps on one fixed batch from a point, and the losses of all data along them.

    Coordinates: trip, step (0 is the start), held_out, others.

    Values:
        train_loss, train_accuracy [trip, step]: of the trip's own batch, or the mean of its set.
        held_out_loss, held_out_accuracy [trip, step, held_out]; others_… likewise.
        distance [trip, step]: from the start; gradient_norm [trip, step]: of the batch that the
            next step is made on, without weight decay.
        train_mean, held_out_mean, others_mean [step]: over trips and batches, and …_change from
            the start, each with its standard error …_se: over trips, and for `held_out`
            and `others` over trips and batches, crossed.

    The gradients are of the loss that is measured, in the surface's mode.  `"frozen"` batch-norm
    statistics are those of the start; `"recalibrated"` ones are measured at every step, and the
    gradient treats them as constants.

    Args:
        surface: the loss and its mode, which also applies to the steps.
        weights: the start of the trips, as `Surface.point` takes it; None for the model's own.
        batches: one entry for each trip: a batch, `(inputs, targets)`, or a list of them, on
            which the trip steps in turn.
        held_out: batches that were not used for training; None for none.
        learning_rate: the learning rate of all steps, or one for each.
        optimizer: the optimizer of the steps instead of SGD: a Keras optimizer, its configuration
            (`keras.optimizers.serialize`) or its name.  A private copy is used.  If it was built
            for the model, as `model.optimizer` by `fit`, every trip starts with its state: moments,
            step count, learning rate.  The settings of SGD below, and `learning_rate`, must then be
            left out.
        others: other training batches, whose mean estimates the loss of all training data.
        num_steps: steps of a trip.
        momentum, nesterov: settings of SGD in Keras' convention, `v ← βv - λg`, `θ ← θ + v`.
        velocity: v at the start, in the order of `model.trainable_variables` (such as
            `model.optimizer.momentums`); None for zeros.
        weight_decay: this number times the weights is added to the gradient of every kernel.
        keep_ends: whether to keep the end of each trip in memory, a copy of the weights for each
            trip.  Otherwise (and after resuming) `end_point` repeats the trip, which takes
            `num_steps` gradients and gives the same bits.

    Raises:
        ValueError: for weights, a velocity or an optimizer of another model, no batches, or
            options out of range.

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.array([[1.0]], "float32"), np.array([[0.0]], "float32"))
    >>> surface, start = probes.Surface(model, "mse"), [np.ones((1, 1))]
    >>> trip = SideTrip(surface, start, [batch], learning_rate=0.25, num_steps=2)  # halves it
    >>> probes.measure(trip).values["train_loss"]
    array([[1.    , 0.25  , 0.0625]])
    """

    kind = "side_trip"

    surface: Surface
    weights: Any
    batches: Sequence[Any]
    _: dataclasses.KW_ONLY
    held_out: Any = None
    learning_rate: float | Sequence[float] | None = None
    optimizer: Any = None
    others: Any = None
    num_steps: int = 9
    momentum: float = 0.0
    nesterov: bool = False
    velocity: Sequence[Any] | None = None
    weight_decay: float = 0.0
    keep_ends: bool = False

    def __post_init__(self) -> None:
        self._sets = _sets(self.batches)
        self.batches = [batch for batches in self._sets for batch in batches]
        super().__post_init__()
        self._groups = check_groups(held_out=self.held_out, others=self.others)
        self.weights = self.surface.point(self.weights)
        self.num_steps = integer(1).check("num_steps", self.num_steps)
        self._optimizer = self._of_steps()
        self._ends: dict[int, Point] = {}
        self._start = host(self.weights.trainable)
        self._walked: tuple[int, int, Iterator[Any]] | None = None

    def _of_steps(self) -> Sgd | KerasOptimizer:
        """Returns the optimizer of the steps.

        Raises:
            ValueError: if settings of SGD are given together with an optimizer.
        """
        if self.optimizer is None:
            return Sgd(
                self.surface.model,
                self.weights,
                _rates(self.learning_rate, self.num_steps),
                self.momentum,
                self.nesterov,
                self.weight_decay,
                self.velocity,
            )
        given = {
            "learning_rate": self.learning_rate is not None,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "velocity": self.velocity is not None,
            "weight_decay": self.weight_decay,
        }
        beside = [name for name, there in given.items() if there]
        if beside:
            raise ValueError(
                f"`optimizer` has settings of its own: leave out {beside}. Received: both"
            )
        return KerasOptimizer(self.surface.model, self.optimizer, self.num_steps)

    def coordinates(self) -> dict[str, Any]:
        return {
            "trip": np.arange(len(self._sets)),
            "step": np.arange(self.num_steps + 1),
            **{group: np.arange(len(batches)) for group, batches in self._groups.items()},
        }

    def parts(self) -> Collection[str]:
        return self._groups

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            "weights": fingerprint(list(self.weights)),
            "batches": fingerprint(self._sets),
            "batches_per_trip": [len(batches) for batches in self._sets],
            "batch_sizes": [[size_of(b) for b in batches] for batches in self._sets],
            **{group: fingerprint(batches) for group, batches in self._groups.items()},
            **{f"{g}_sizes": [size_of(b) for b in batches] for g, batches in self._groups.items()},
            **self._optimizer.about(),
        }

    def pieces(self, record: ArrayRecord) -> list[tuple[int, int]]:
        return [(int(t), int(step)) for t, step in np.argwhere(record.missing("train_loss"))]

    def measure(self, record: ArrayRecord, piece: tuple[int, int]) -> None:
        trip, step = piece
        point, gradient = self._reach(trip, step)
        numbers = self._evaluate(trip, point)
        numbers["gradient_norm"] = norm(gradient)
        numbers["distance"] = norm(
            [a - b for a, b in zip(host(point.trainable), self._start, strict=True)]
        )
        if self.keep_ends and step == self.num_steps:
            self._ends[trip] = point
        # The training loss is written last: it marks the whole piece as measured.
        for name in sorted(numbers, key=lambda name: name == "train_loss"):
            record.put(name, piece, numbers[name])

    def _reach(self, trip: int, step: int) -> tuple[Point, list[Any]]:
        """Returns a point of a trip and its gradient; continues from the last point if possible."""
        if self._walked is None or self._walked[0] != trip or self._walked[1] > step:
            self._walked = trip, 0, self._walk(trip)
        _, done, walk = self._walked
        self._walked = None  # in case a step fails
        for _ in range(done, step):
            next(walk)
        found = next(walk)
        self._walked = trip, step + 1, walk
        return found

    def passes(self, pieces: Sequence[tuple[int, int]]) -> float:
        shared = sum(map(len, self._groups.values()))
        calibration = self.surface.calibration_passes
        return sum(
            self.spec.passes(1, len(self._sets[trip]) + shared, calibration) for trip, _ in pieces
        )

    def finish(self, record: ArrayRecord) -> None:
        values = record.values
        losses = {"train": values["train_loss"][:, :, None]}
        losses |= {group: values[f"{group}_loss"] for group in self._groups}
        for group, found in losses.items():
            with np.errstate(invalid="ignore"):
                changes = found - found[:, :1]
            for what, numbers in (("mean", found), ("change", changes)):
                # [step, trip, batch] -> [trip, batch, step]
                if group == "train":
                    mean = mean_and_se(numbers[..., 0], axis=0)
                else:
                    mean = crossed_mean(np.moveaxis(numbers, 1, 2))
                put_estimate(record, f"{group}_{what}", ..., mean)

    # Ends ---------------------------------------------------------------------------------

    def end_point(self, trip: int) -> Point:
        """Returns the end of a trip: a point that `Surface.point`, and so every probe, accepts.

        Its batch-norm statistics are those of the start.

        Raises:
            ValueError: if there is no such trip.
        """
        integer(0, len(self._sets) - 1).check("trip", trip)
        if trip in self._ends:
            return self._ends[trip]
        *_, (point, _) = self._walk(trip, last_gradient=False)
        if self.keep_ends:
            self._ends[trip] = point
        return point

    # Walking ------------------------------------------------------------------------------

    def _walk(self, trip: int, last_gradient: bool = True) -> Iterator[tuple[Point, list[Any]]]:
        """Yields the points of a trip from its start to its end, each with the next step's
        gradient."""
        point, state, batches = self.weights, self._optimizer.state, self._sets[trip]
        for step in range(self.num_steps + 1):
            last = step == self.num_steps
            if last and not last_gradient:
                yield point, []
                return
            _, gradient = self.surface.gradient(point, batches[step % len(batches)])
            yield point, gradient
            if not last:
                moved, state = self._optimizer(point.trainable, state, gradient, step)
                point = Point(moved, self.weights.non_trainable)

    def _evaluate(self, trip: int, point: Point) -> dict[str, Any]:
        own = self._sets[trip]
        together = [*own, *(batch for group in self._groups.values() for batch in group)]
        losses, accuracies = self.surface.evaluate(point, together)
        found: dict[str, Any] = {
            "train_loss": losses[: len(own)].mean(),
            "train_accuracy": accuracies[: len(own)].mean(),
        }
        start = len(own)
        for group, batches in self._groups.items():
            part = slice(start, start + len(batches))
            found |= {f"{group}_loss": losses[part], f"{group}_accuracy": accuracies[part]}
            start += len(batches)
        return found


def _sets(batches: Any) -> list[list[Batch]]:
    """Returns the batches of each trip; a list (not a tuple) of batches is a set."""
    trips = list(batches)
    if not trips:
        raise ValueError(
            "`batches` must hold a batch for each of one or more trips. Received: none"
        )
    found = []
    for trip in trips:
        several = isinstance(trip, list) and all(isinstance(b, (tuple, list)) for b in trip)
        found.append(check_batches(trip if several else [trip]))
    return found


def _rates(learning_rate: Any, num_steps: int) -> np.ndarray:
    if learning_rate is None:
        raise ValueError("`learning_rate` or `optimizer` must be given. Received: neither of them")
    rates = np.asarray(learning_rate, np.float64)
    if rates.shape not in ((), (num_steps,)) or not np.all(np.isfinite(rates) & (rates > 0.0)):
        allowed = f"a positive number, or one for each of the {num_steps} steps"
        raise error("learning_rate", allowed, learning_rate)
    return np.broadcast_to(rates, num_steps).copy()
