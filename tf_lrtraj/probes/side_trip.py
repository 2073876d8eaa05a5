r"""Side trips: steps on one fixed batch that branch off a point and leave it as it was.

A trip shows what a batch's own loss can fall to in a few steps, and what that does to
all other data (Sandler et al. 2023, arXiv 2301.02312).  It is made on copies of the
arrays: no variable of the model or of its optimizer, and no random stream, is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import Probe, fingerprint, measure
from tf_lrtraj.probes.batches import Batch, check_batches, size_of
from tf_lrtraj.probes.optimizers import KerasOptimizer, Sgd
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.uncertainty import crossed_mean, mean_and_se
from tf_lrtraj.probes.vectors import host, norm
from tf_lrtraj.records import ArrayRecord


class SideTrip(Probe):
    """Losses along side trips from one point; see `side_trip`.

    Args:
        surface: the loss; its batch norm and dropout hold for the steps as well.
        keep_ends: keep the end of each trip in memory as it is measured, a copy of the
            weights for each trip.  Without it (and after resuming) `end_point` walks the
            trip again, which takes `num_steps` gradients and gives the same to the bit.
        weights, batches, …: see `side_trip`.
    """

    kind = "side_trip"

    def __init__(
        self,
        surface: Surface,
        weights: Any,
        batches: Sequence[Any],
        *,
        held_out: Sequence[Batch] | None = None,
        learning_rate: float | Sequence[float] | None = None,
        optimizer: Any = None,
        others: Sequence[Batch] | None = None,
        num_steps: int = 9,
        momentum: float = 0.0,
        nesterov: bool = False,
        velocity: Sequence[Any] | None = None,
        weight_decay: float = 0.0,
        keep_ends: bool = False,
    ) -> None:
        self.surface = surface
        self.origin = surface.point(weights)
        self._sets = _sets(batches)
        self._groups = {}
        if held_out is not None:
            self._groups["held_out"] = check_batches(held_out, "held_out")
        if others is not None:
            self._groups["others"] = check_batches(others, "others")
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(
                f"`num_steps` must be an integer of at least 1. Received: num_steps={num_steps!r}"
            )
        self._num_steps = num_steps
        if optimizer is None:
            rates = _rates(learning_rate, num_steps)
            self._optimizer: Sgd | KerasOptimizer = Sgd(
                surface.model, self.origin, rates, momentum, nesterov, weight_decay, velocity
            )
        else:
            _check_alone(learning_rate, momentum, nesterov, velocity, weight_decay)
            self._optimizer = KerasOptimizer(surface.model, optimizer, num_steps)
        self._keep_ends = keep_ends
        self._ends: dict[int, Point] = {}
        self._start = host(self.origin.trainable)
        self._walked: tuple[int, int, Iterator[Any]] | None = None

    def empty(self) -> ArrayRecord:
        coordinates: dict[str, Any] = {
            "trip": np.arange(len(self._sets)),
            "step": np.arange(self._num_steps + 1),
        }
        dims: dict[str, tuple[str, ...]] = {
            name: ("trip", "step")
            for name in ("train_loss", "train_accuracy", "distance", "gradient_norm")
        }
        for group, batches in self._groups.items():
            coordinates[group] = np.arange(len(batches))
            for what in ("loss", "accuracy"):
                dims[f"{group}_{what}"] = ("trip", "step", group)
        for group in ("train", *self._groups):
            for what in ("mean", "mean_se", "change", "change_se"):
                dims[f"{group}_{what}"] = ("step",)
        about = {
            **self.surface.about(),
            "weights": fingerprint(list(self.origin)),
            "batches": fingerprint(self._sets),
            "batches_per_trip": [len(batches) for batches in self._sets],
            "batch_sizes": [[size_of(b) for b in batches] for batches in self._sets],
            **{group: fingerprint(batches) for group, batches in self._groups.items()},
            **{f"{g}_sizes": [size_of(b) for b in batches] for g, batches in self._groups.items()},
            **self._optimizer.about(),
        }
        return ArrayRecord.empty(self.kind, coordinates, dims, about)

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int]]:
        lacking = record.missing("train_loss")
        return [(int(trip), int(step)) for trip, step in np.argwhere(lacking)]

    def measure(self, record: ArrayRecord, piece: tuple[int, int]) -> None:
        trip, step = piece
        point, gradient = self._reach(trip, step)
        numbers = self._evaluate(trip, point)
        numbers["gradient_norm"] = norm(gradient)
        numbers["distance"] = norm(
            [a - b for a, b in zip(host(point.trainable), self._start, strict=True)]
        )
        if self._keep_ends and step == self._num_steps:
            self._ends[trip] = point
        # The training loss comes last: it stands for the whole piece.
        for name in sorted(numbers, key=lambda name: name == "train_loss"):
            record.put(name, piece, numbers[name])

    def _reach(self, trip: int, step: int) -> tuple[Point, list[Any]]:
        """A point of a trip and the gradient there; goes on from the last one where it can."""
        if self._walked is None or self._walked[0] != trip or self._walked[1] > step:
            self._walked = trip, 0, self._walk(trip)
        _, done, walk = self._walked
        self._walked = None  # in case the walk fails
        for _ in range(done, step):
            next(walk)
        found = next(walk)
        self._walked = trip, step + 1, walk
        return found

    def passes(self, pieces: Sequence[tuple[int, int]]) -> float:
        shared = sum(map(len, self._groups.values()))
        calibration = 2 * self.surface.calibration_passes  # for the losses and for the gradient
        return sum(3 + len(self._sets[trip]) + shared + calibration for trip, _ in pieces)

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self._sets[0][0])

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
                    mean, error = mean_and_se(numbers[..., 0], axis=0)
                else:
                    mean, error = crossed_mean(np.moveaxis(numbers, 1, 2))
                record.put(f"{group}_{what}", slice(None), mean)
                record.put(f"{group}_{what}_se", slice(None), error)

    # Ends ---------------------------------------------------------------------------------

    def end_point(self, trip: int) -> Point:
        """Where a trip ends: a point that `Surface.point`, and so every probe, takes.

        Its batch-norm statistics are those of the start.

        Raises:
            ValueError: if there is no such trip.
        """
        if not 0 <= trip < len(self._sets):
            raise ValueError(
                f"`trip` must be from 0 to {len(self._sets) - 1}. Received: trip={trip!r}"
            )
        if trip in self._ends:
            return self._ends[trip]
        *_, (point, _) = self._walk(trip, last_gradient=False)
        if self._keep_ends:
            self._ends[trip] = point
        return point

    def ends(self, prefix: str = "") -> Mapping[str, Point]:
        """A mapping `prefix + number of the trip` → its end, computed when it is read.

        For `tf_lrtraj.probes.basin`, which needs two ends at a time.
        """
        return _Ends(self, prefix)

    @property
    def num_trips(self) -> int:
        """How many trips there are."""
        return len(self._sets)

    # Walking ------------------------------------------------------------------------------

    def _walk(self, trip: int, last_gradient: bool = True) -> Iterator[tuple[Point, list[Any]]]:
        """Points of a trip from its start to its end, each with the next step's gradient."""
        point, state, batches = self.origin, self._optimizer.state, self._sets[trip]
        for step in range(self._num_steps + 1):
            last = step == self._num_steps
            if last and not last_gradient:
                yield point, []
                return
            _, gradient = self.surface.gradient(point, batches[step % len(batches)])
            yield point, gradient
            if not last:
                moved, state = self._optimizer(point.trainable, state, gradient, step)
                point = Point(moved, self.origin.non_trainable)

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


class _Ends(Mapping[str, Point]):
    """Ends of trips by name."""

    def __init__(self, trips: SideTrip, prefix: str) -> None:
        self._trips = trips
        self._names = {f"{prefix}{i}": i for i in range(trips.num_trips)}

    def __getitem__(self, name: str) -> Point:
        return self._trips.end_point(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _sets(batches: Any) -> list[list[Batch]]:
    """The batches of each trip; a list (not a tuple) of batches is a set."""
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
        raise ValueError(
            "`learning_rate` must be a positive number, or one for each of the "
            f"{num_steps} steps. Received: learning_rate={learning_rate!r}"
        )
    return np.broadcast_to(rates, num_steps).copy()


def _check_alone(
    learning_rate: Any, momentum: float, nesterov: bool, velocity: Any, weight_decay: float
) -> None:
    """Raises ValueError for settings of SGD beside an optimizer, which has its own."""
    given = {
        "learning_rate": learning_rate is not None,
        "momentum": momentum,
        "nesterov": nesterov,
        "velocity": velocity is not None,
        "weight_decay": weight_decay,
    }
    beside = [name for name, there in given.items() if there]
    if beside:
        raise ValueError(f"`optimizer` has settings of its own: leave out {beside}. Received: both")


def side_trip(
    model: Any,
    loss: Any,
    weights: Any,
    batches: Sequence[Any],
    *,
    held_out: Sequence[Batch] | None = None,
    learning_rate: float | Sequence[float] | None = None,
    optimizer: Any = None,
    others: Sequence[Batch] | None = None,
    num_steps: int = 9,
    momentum: float = 0.0,
    nesterov: bool = False,
    velocity: Sequence[Any] | None = None,
    weight_decay: float = 0.0,
    batch_norm: str = "batch",
    dropout: str = "off",
    moment_batches: Sequence[Batch] | None = None,
    penalties: bool = False,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """Steps on one fixed batch from a point, and the losses of all data along them.

    Args:
        model, loss, batch_norm, dropout, moment_batches, penalties: see `Surface`.  The
            gradients are of the loss that is measured, in the same mode.  `"frozen"` statistics
            stay those of the start; `"recalibrated"` ones are measured at every step and taken
            as given by the gradient.
        weights: where the trips start, as `Surface.point` takes it; None for the model's own.
        batches: one entry for each trip: a batch, `(inputs, targets)`, or a list of them, on
            which the trip steps in turn.
        held_out: batches that nothing was trained on; None for none.
        learning_rate: of all steps, or one for each.
        optimizer: makes the steps instead of SGD: a Keras optimizer, its configuration
            (`keras.optimizers.serialize`) or its name.  A private copy is used.  Where it was
            built for the model, as `model.optimizer` was by `fit`, every trip starts with its
            state: moments, count of steps, learning rate.  The settings of SGD below, and
            `learning_rate`, must then be left out.
        others: other training batches, whose mean stands for the loss of all training data.
        num_steps: steps of a trip.
        momentum, nesterov: of SGD in Keras' convention, `v ← βv - λg`, `θ ← θ + v`.
        velocity: v at the start, in the order of `model.trainable_variables` (such as
            `model.optimizer.momentums`); None for zeros.
        weight_decay: times the weights, added to the gradient of every kernel.
        path, progress, tell: see `measure`.

    Returns:
        a record over the coordinates `trip`, `step` (0 is the start), `held_out` and `others`:

        * `train_loss`, `train_accuracy` [trip, step] of the trip's own batch, or the mean
          of its set;
        * `held_out_loss`, `held_out_accuracy` [trip, step, held_out]; `others_…` likewise;
        * `distance` [trip, step] from the start; `gradient_norm` [trip, step] of the batch
          that the next step is made on, without weight decay;
        * `train_mean`, `held_out_mean`, `others_mean` [step] over trips and batches, and
          `…_change` from the start, each with its standard error `…_se`: over trips, and
          for `held_out` and `others` over trips and batches, crossed.

    Raises:
        ValueError: for weights, a velocity or an optimizer of another model, no batches, or
            options out of range.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.array([[1.0]], "float32"), np.array([[0.0]], "float32"))
    >>> record = side_trip(
    ...     model, "mean_squared_error", [np.ones((1, 1))], [batch], held_out=[batch],
    ...     learning_rate=0.25, num_steps=2,
    ... )  # each step halves the weight
    >>> record.values["train_loss"]
    array([[1.    , 0.25  , 0.0625]])
    """
    surface = Surface(
        model,
        loss,
        batch_norm=batch_norm,
        dropout=dropout,
        moment_batches=moment_batches,
        penalties=penalties,
    )
    probe = SideTrip(
        surface,
        weights,
        batches,
        held_out=held_out,
        learning_rate=learning_rate,
        optimizer=optimizer,
        others=others,
        num_steps=num_steps,
        momentum=momentum,
        nesterov=nesterov,
        velocity=velocity,
        weight_decay=weight_decay,
    )
    return measure(probe, path, progress=progress, tell=tell)
