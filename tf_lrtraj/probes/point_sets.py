"""Named points, linear combinations of them, and losses there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.base import LossProbe
from tf_lrtraj.probes.batches import check_groups, size_of
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.trajectory import is_trajectory
from tf_lrtraj.probes.vectors import fingerprint
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.values import error


class Points:
    """Points by name, which are read when needed; a few are kept in memory.

    Args:
        surface: the surface of the model they belong to.
        points: name → weights as for `Surface.point` (None for the model's own), or an object with
            `steps` and `read(step)`, whose points are named by their steps.
        at_least: smallest number of points.
        keep: number of points in memory.

    Raises:
        ValueError: if there are too few, or one does not fit the model (it is named).
    """

    def __init__(self, surface: Surface, points: Any, *, at_least: int = 1, keep: int = 2) -> None:
        self._surface = surface
        self._keep = keep
        self._held: dict[str, Point] = {}
        self._sources: dict[str, Any]
        self._read: Any = None
        if isinstance(points, Mapping):
            # Values are read one at a time, because a mapping may compute them.
            self._sources = {str(name): name for name in points}
            self._read = points.__getitem__
        elif is_trajectory(points):
            self._sources = {str(int(step)): int(step) for step in points.steps}
            self._read = points.read
        else:
            raise error("points", "a mapping of names to weights, or have `steps`", points)
        self.names = list(self._sources)
        if len(self.names) < at_least:
            raise ValueError(
                f"`points` must hold at least {at_least} points. "
                f"Received: {len(self.names)}, {self.names}"
            )

    def __getitem__(self, name: str) -> Point:
        if name not in self._held:
            try:
                point = self._surface.point(self._read(self._sources[name]))
            except ValueError as error:
                raise ValueError(f"point {name!r}: {error}") from error
            while len(self._held) >= self._keep:
                del self._held[next(iter(self._held))]
            self._held[name] = point
        else:
            self._held[name] = self._held.pop(name)  # dropped last
        return self._held[name]

    def fingerprints(self) -> dict[str, str]:
        """Returns name → checksum of the point; reads, and so checks, each of them once."""
        return {name: fingerprint(list(self[name])) for name in self.names}


class Mixtures:
    """Linear combinations of points, `Σ weight * point` with weights that sum to 1.

    Batch-norm statistics, which only `batch_norm="frozen"` uses, are mixed as well: between points
    linearly, and beyond them, where a variance could turn negative, with the negative weights set
    to 0.  All other variables that are not trained, such as the state of seed generators, are those
    of the first point.
    """

    def __init__(self, surface: Surface) -> None:
        self._statistics = bn.find_statistics(surface.model)
        self._mix = backend.compiled(_mix)

    def __call__(
        self, points: Sequence[Point], weights: Sequence[float], only: Sequence[int] | None = None
    ) -> Point:
        """Returns the mixture of `points`.

        Args:
            points: any number of them.
            weights: one each.
            only: positions of the arrays to mix; the others, and all statistics, are those of the
                first point. None for all.
        """
        first = points[0]
        given = np.asarray(weights, np.float64)
        chosen = range(len(first.trainable)) if only is None else only
        table = np.zeros((len(first.trainable), len(points)))
        table[:, 0] = 1.0
        table[list(chosen)] = given
        dtype = "float64" if backend.has_float64() else "float32"
        trainable = self._mix(
            [point.trainable for point in points], ops.convert_to_tensor(table, dtype)
        )
        if only is not None or not self._statistics:
            return Point(list(trainable), first.non_trainable)
        shares = np.maximum(given, 0.0)
        shares /= shares.sum()
        mixed = [
            tuple(
                sum(float(s) * p.non_trainable[i] for s, p in zip(shares, points, strict=True))
                for i in (entry.mean, entry.variance)
            )
            for entry in self._statistics
        ]
        return Point(list(trainable), bn.replace(first.non_trainable, self._statistics, mixed))


def _mix(lists: Any, table: Any) -> list[Any]:
    """`Σ_p table[a, p] * lists[p][a]` for every array a."""
    mixed = []
    for position in range(len(lists[0])):
        parts = [
            ops.cast(table[position, i], arrays[position].dtype) * arrays[position]
            for i, arrays in enumerate(lists)
        ]
        mixed.append(sum(parts[1:], parts[0]))
    return mixed


@dataclasses.dataclass(eq=False, repr=False)
class PointProbe(LossProbe):
    """A probe of the losses and accuracies of batches at, between or around named points.

    The names of held-out values begin with `held_out_`.

    Args:
        surface: the loss and its mode.
        points: name → weights, or an object with `steps` and `read(step)`.
        batches: training batches.
        held_out: held-out batches; None for none.
    """

    surface: Surface
    points: Any
    batches: Any
    _: dataclasses.KW_ONLY
    held_out: Any = None

    fewest_points = 1
    points_in_memory = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        # Prefix of the names of values → batches.
        self._groups = {"": self.batches}
        for group in check_groups(held_out=self.held_out).values():
            self._groups["held_out_"] = group
        self.points = Points(
            self.surface, self.points, at_least=self.fewest_points, keep=self.points_in_memory
        )
        self._fingerprints = self.points.fingerprints()

    def coordinates(self) -> dict[str, Any]:
        return {
            "held_out" if prefix else "batch": np.arange(len(group))
            for prefix, group in self._groups.items()
        }

    def parts(self) -> Collection[str]:
        return ["held_out"] if self.held_out is not None else []

    def about(self) -> dict[str, Any]:
        found = {**self.surface.about(), "points": self._fingerprints}
        for prefix, group in self._groups.items():
            found[f"{prefix}batches"] = fingerprint(group)
            found[f"{prefix}batch_sizes"] = [size_of(batch) for batch in group]
        return found

    def put_losses(self, record: ArrayRecord, index: Any, point: Point) -> None:
        """Writes losses and accuracies at a point to `record` at an index."""
        together = [batch for group in self._groups.values() for batch in group]
        losses, accuracies = self.surface.evaluate(point, together)
        # From the last group to the first, whose loss marks the whole piece as measured.
        end = len(together)
        for prefix, group in reversed(self._groups.items()):
            part = slice(end - len(group), end)
            record.put(f"{prefix}accuracy", index, accuracies[part])
            record.put(f"{prefix}loss", index, losses[part])
            end -= len(group)

    def passes(self, pieces: Sequence[Any]) -> float:
        batches = sum(map(len, self._groups.values()))
        return self.spec.passes(len(pieces), batches, self.surface.calibration_passes)
