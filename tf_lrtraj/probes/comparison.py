"""How far a measured loss depends on what batch norm and dropout do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.base import Probe, fingerprint, measure
from tf_lrtraj.probes.batches import Batch, check_batches, size_of
from tf_lrtraj.probes.mode import random_layers
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Surface, check_model
from tf_lrtraj.probes.uncertainty import mean_and_se
from tf_lrtraj.records import ArrayRecord


class Modes(Probe):
    """The loss of the same batches at the same point in several modes.

    Coordinates: mode [M], text "batch norm, dropout"; batch [N].

    Values:
        loss, accuracy [mode, batch]: accuracy is inf where targets are no class labels.
        mean, mean_se [mode]: of the loss, with standard error over batches.
        difference, difference_se [mode]: mean of the loss less that of the first mode, batch
            by batch, so that what batches share does not count as error.
        spread []: the largest mean less the smallest, in units of the first mode's mean.

    Args:
        surfaces: mode → surface; the same model and loss in each.
        weights, batches: as in `Line`.

    Raises:
        ValueError: if there is no surface, or batches do not fit.
    """

    kind = "modes"

    def __init__(
        self, surfaces: Mapping[str, Surface], weights: Any, batches: Sequence[Batch]
    ) -> None:
        if not surfaces:
            raise ValueError("`surfaces` must hold at least one. Received: none")
        self.surfaces = dict(surfaces)
        self.batches = check_batches(batches)
        self.point = next(iter(self.surfaces.values())).point(weights)

    def empty(self) -> ArrayRecord:
        pair, each = ("mode", "batch"), ("mode",)
        dims: dict[str, tuple[str, ...]] = {"loss": pair, "accuracy": pair, "spread": ()}
        dims |= dict.fromkeys(["mean", "mean_se", "difference", "difference_se"], each)
        coordinates = {"mode": list(self.surfaces), "batch": np.arange(len(self.batches))}
        about = {
            "modes": {name: surface.about() for name, surface in self.surfaces.items()},
            "batch_sizes": sorted({size_of(batch) for batch in self.batches}),
            "weights": fingerprint([*self.point.trainable, *self.point.non_trainable]),
            "batches": fingerprint(self.batches),
        }
        return ArrayRecord.empty(self.kind, coordinates, dims, about)

    def pieces(self, record: ArrayRecord) -> list[Any]:
        """Modes: a point is recalibrated once for all its batches."""
        return np.flatnonzero(record.missing("loss").any(1)).tolist()

    def measure(self, record: ArrayRecord, piece: Any) -> None:
        surface = list(self.surfaces.values())[piece]
        losses, accuracies = surface.evaluate(self.point, self.batches)
        record.put("loss", piece, losses)
        record.put("accuracy", piece, accuracies)

    def passes(self, pieces: Sequence[Any]) -> float:
        surfaces = list(self.surfaces.values())
        return sum(len(self.batches) + surfaces[m].calibration_passes for m in pieces)

    def seconds_per_pass(self) -> float:
        return next(iter(self.surfaces.values())).seconds_per_pass(self.batches[0])

    def finish(self, record: ArrayRecord) -> None:
        losses = record.values["loss"]
        with np.errstate(invalid="ignore"):
            for name, numbers in (("mean", losses), ("difference", losses - losses[:1])):
                mean, error = mean_and_se(numbers)
                record.put(name, ..., mean)
                record.put(f"{name}_se", ..., error)
            means = record.values["mean"]
            record.put("spread", (), (means.max() - means.min()) / means[0])


def compare_modes(
    model: Any,
    loss: Any,
    weights: Any,
    batches: Sequence[Batch],
    *,
    moment_batches: Sequence[Batch] | None = None,
    penalties: bool = False,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """The loss of batches in every mode that makes a difference to this model.

    Batch norm by the batch comes first, then frozen, then recalibrated if there are
    `moment_batches`; each with dropout off, and pinned if the model draws random numbers.

    Args:
        model, loss: see `Surface`.
        weights, batches, path, progress, tell: see `Modes`, which also describes the record.
        moment_batches: batches to recalibrate statistics on.
        penalties: see `Surface`.

    Raises:
        ValueError: for arguments that do not fit.

    >>> import keras, numpy as np
    >>> layers = [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    >>> batch = np.full((4, 2), 7.0) + np.eye(4, 2), np.zeros((4, 1))
    >>> record = compare_modes(keras.Sequential(layers), "mse", None, [batch])
    >>> record.coordinates["mode"]
    array(['batch, off', 'frozen, off'], dtype='<U11')
    """
    check_model(model)
    norms = ["batch"]
    if bn.find_statistics(model, frozen=True):
        norms += ["frozen"]
        norms += ["recalibrated"] if moment_batches else []
    dropouts = ["off", "pinned"] if random_layers(model) else ["off"]
    surfaces = {
        f"{norm}, {dropout}": Surface(
            model,
            loss,
            batch_norm=norm,
            dropout=dropout,
            moment_batches=moment_batches,
            penalties=penalties,
        )
        for norm in norms
        for dropout in dropouts
    }
    return measure(Modes(surfaces, weights, batches), path, progress=progress, tell=tell)
