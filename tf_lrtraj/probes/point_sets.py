"""Named points that a probe reads one after another, and mixtures of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.base import fingerprint
from tf_lrtraj.probes.batches import Batch, check_batches, size_of
from tf_lrtraj.probes.surface import Point, Surface


class Points:
    """Points by name, read when they are asked for; a few are kept in memory.

    Args:
        surface: of the model they belong to.
        points: name → whatever `Surface.point` takes, or an object with `steps` and
            `read(step)`, whose points are named by their steps.
        at_least: how many there must be.
        keep: how many are held at a time.

    Raises:
        ValueError: if there are too few, or one does not fit the model; its name is told.
    """

    def __init__(self, surface: Surface, points: Any, *, at_least: int = 1, keep: int = 2) -> None:
        self._surface = surface
        self._keep = keep
        self._held: dict[str, Point] = {}
        self._sources: dict[str, Any]
        self._read: Any = None
        if isinstance(points, Mapping):
            # Values are asked for one at a time: a mapping may compute them.
            self._sources = {str(name): name for name in points}
            self._read = points.__getitem__
        elif is_trajectory(points):
            self._sources = {str(int(step)): int(step) for step in points.steps}
            self._read = points.read
        else:
            raise ValueError(
                "`points` must be a mapping of names to weights, or have `steps` and `read`. "
                f"Received: an object of type {type(points).__name__}"
            )
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
            self._held[name] = self._held.pop(name)  # the last to be dropped
        return self._held[name]

    def fingerprints(self) -> dict[str, str]:
        """Name → checksum of the point; reads every point once, and so checks them all."""
        return {name: fingerprint(list(self[name])) for name in self.names}


def is_trajectory(thing: Any) -> bool:
    """Whether something has `steps` and `read(step)`."""
    return hasattr(thing, "steps") and callable(getattr(thing, "read", None))


class Mixtures:
    """Linear combinations of points, `Σ weight * point` with weights that sum to 1.

    Batch-norm statistics, which only `batch_norm="frozen"` uses, are mixed as well:
    between points linearly, and beyond them, where a variance could turn negative,
    with the negative weights set to 0.  All else that is not trained (such as the
    state of seed generators) is the first point's.
    """

    def __init__(self, surface: Surface) -> None:
        self._statistics = bn.find_statistics(surface.model)
        self._mix = backend.compiled(_mix)

    def __call__(
        self, points: Sequence[Point], weights: Sequence[float], only: Sequence[int] | None = None
    ) -> Point:
        """The mixture of `points`.

        Args:
            points: any number of them.
            weights: one each.
            only: positions of the arrays to mix; the others, and all statistics, stay
                those of the first point.  None mixes all.
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


class Groups:
    """Training batches, and held-out ones beside them, evaluated together at a point.

    Args:
        surface: what evaluates.
        batches: training batches.
        held_out: held-out batches; None for none.

    Raises:
        ValueError: if there is no batch, or `held_out` is given and empty.
    """

    def __init__(self, surface: Surface, batches: Any, held_out: Any = None) -> None:
        self._surface = surface
        self.groups = {"": check_batches(batches)}
        if held_out is not None:
            self.groups["held_out_"] = check_batches(held_out, "held_out")

    @property
    def first(self) -> Batch:
        """A batch to take the time with."""
        return self.groups[""][0]

    @property
    def passes(self) -> int:
        """Forward passes that one evaluation takes."""
        return sum(map(len, self.groups.values())) + self._surface.calibration_passes

    def coordinates(self) -> dict[str, np.ndarray]:
        """`batch` and, if there are any, `held_out`."""
        names = {"": "batch", "held_out_": "held_out"}
        return {names[prefix]: np.arange(len(group)) for prefix, group in self.groups.items()}

    def dims(self, *axes: str) -> dict[str, tuple[str, ...]]:
        """Loss and accuracy of every group over the given axes and its batches."""
        return {
            f"{prefix}{what}": (*axes, "held_out" if prefix else "batch")
            for prefix in self.groups
            for what in ("loss", "accuracy")
        }

    def about(self) -> dict[str, Any]:
        """Checksums and sizes."""
        found: dict[str, Any] = {}
        for prefix, group in self.groups.items():
            found[f"{prefix}batches"] = fingerprint(group)
            found[f"{prefix}batch_sizes"] = [size_of(batch) for batch in group]
        return found

    def measure(self, record: Any, index: Any, point: Point) -> None:
        """Puts losses and accuracies at a point into `record` at an index."""
        together = [batch for group in self.groups.values() for batch in group]
        losses, accuracies = self._surface.evaluate(point, together)
        # From the last group to the first, whose loss stands for the whole piece.
        end = len(together)
        for prefix, group in reversed(self.groups.items()):
            part = slice(end - len(group), end)
            record.put(f"{prefix}accuracy", index, accuracies[part])
            record.put(f"{prefix}loss", index, losses[part])
            end -= len(group)
