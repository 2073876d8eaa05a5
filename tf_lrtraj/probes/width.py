r"""The rise of the loss along random rays from a point.

The same rays are used at every point, so points are compared ray by ray
(Izmailov et al. 2018, arXiv 1803.05407, section 3.3, compare SGD's last iterate with the
average of its iterates this way).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import directions
from tf_lrtraj.probes.base import put_estimate
from tf_lrtraj.probes.point_sets import PointProbe
from tf_lrtraj.probes.surface import Point
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.statistics import mean_and_se
from tf_lrtraj.values import error, integer, number, one_of

_CENTRE = -1  # stands for all rays at distance 0


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Width(PointProbe):
    """Losses of batches along random rays from one or more points, and their widths.

    Coordinates: point and other (point), ray, distance, batch, held_out.

    Values, with `held_out` each also as `held_out_…`:
        loss, accuracy [point, ray, distance, batch].
        width [point, ray]: the distance at which the mean loss over batches has risen by
            `rise`, infinite where it is not reached; width_mean, width_se [point] over rays.
        width_difference, width_difference_se [point, other]: width at `point` minus width at
            `other`, ray by ray.

    `"frozen"` batch-norm statistics stay those of each point along its rays.

    Args:
        surface, points, batches, held_out: see `PointProbe`.
        distances: increasing distances; 0 is added if it is missing.  They are in weight space for
            `"uniform"` rays, and in norms of the kernels for `"filter"`.
        num_rays: number of rays, which are the same at every point.
        seed: the seed of the rays.
        ray_kind: see `random_direction`.
        rise: the rise of the loss at the width, in units of the loss.

    Raises:
        ValueError: if distances do not increase, for weights of another model, or options
            out of range.

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.eye(2, dtype="float32"), np.zeros((2, 1), "float32"))  # loss ‖w‖² / 2
    >>> surface, points = probes.Surface(model, "mse"), {"minimum": [np.zeros((2, 1))]}
    >>> rays = Width(surface, points, [batch], distances=[1.0, 2.0], num_rays=2, rise=0.5)
    >>> probes.measure(rays).values["loss"][0, :, :, 0].round(6)  # the same on all rays
    array([[0. , 0.5, 2. ],
           [0. , 0.5, 2. ]])
    """

    kind = "width"
    points_in_memory = 1

    distances: Sequence[float]
    num_rays: int = 8
    seed: int = 0
    ray_kind: str = "uniform"
    rise: float = 0.1

    def __post_init__(self) -> None:
        self._distances = _check_distances(self.distances)
        self.num_rays = integer(1).check("num_rays", self.num_rays)
        one_of(directions.KINDS).check("ray_kind", self.ray_kind)
        self.rise = number(above=0).check("rise", self.rise)
        super().__post_init__()
        self._axes = directions.filter_axes_of(self.surface.model)
        self._ray: tuple[Any, list[Any]] | None = None  # the last one drawn

    def coordinates(self) -> dict[str, Any]:
        return {
            "point": self.points.names,
            "other": self.points.names,
            "ray": np.arange(self.num_rays),
            "distance": self._distances,
            **super().coordinates(),
        }

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "seed": self.seed,
            "ray_kind": self.ray_kind,
            "rise": self.rise,
        }

    def pieces(self, record: ArrayRecord) -> list[tuple[int, int, int]]:
        lacking = np.any(record.missing("loss"), axis=-1)
        found = []
        for point in range(lacking.shape[0]):
            if lacking[point, :, 0].any():
                found.append((point, _CENTRE, 0))
            rays = np.argwhere(lacking[point, :, 1:])
            found += [(point, int(ray), int(i) + 1) for ray, i in rays]
        return found

    def measure(self, record: ArrayRecord, piece: tuple[int, int, int]) -> None:
        number, ray, index = piece
        name = self.points.names[number]
        point = self.points[name]
        if ray == _CENTRE:
            self.put_losses(record, (number, slice(None), 0), point)
            return
        moved = self.surface.moved(
            point, self._direction(name, ray, point), -self._distances[index]
        )
        self.put_losses(record, piece, moved)

    def _direction(self, name: str, ray: int, point: Point) -> list[Any]:
        # Filter-normalised rays are scaled by the weights of each point.
        key = (ray, name if self.ray_kind == "filter" else None)
        if self._ray is None or self._ray[0] != key:
            drawn = directions.random_direction(
                point.trainable, [self.seed, ray], self.ray_kind, filter_axes=self._axes
            )
            self._ray = key, drawn
        return self._ray[1]

    def finish(self, record: ArrayRecord) -> None:
        for prefix in self._groups:
            with np.errstate(invalid="ignore", over="ignore"):
                curves = record.values[f"{prefix}loss"].mean(axis=-1)
            widths = np.array(
                [[width(self._distances, curve, self.rise) for curve in rays] for rays in curves]
            )
            record.put(f"{prefix}width", slice(None), widths)
            mean, spread = mean_and_se(widths)
            record.put(f"{prefix}width_mean", ..., mean)
            record.put(f"{prefix}width_se", ..., spread)
            with np.errstate(invalid="ignore"):
                differences = widths[:, None] - widths[None]
            for i in range(len(widths)):
                differences[i, i] = 0.0  # infinite widths included
            put_estimate(record, f"{prefix}width_difference", ..., mean_and_se(differences))


def width(distances: Any, losses: Any, rise: float) -> float:
    """Returns the distance at which a loss has first risen by `rise` over its value at 0.

    It is interpolated linearly, and infinite if the rise is not reached.

    >>> width([0.0, 1.0, 2.0], [1.0, 1.0, 3.0], rise=0.5)
    1.25
    >>> width([0.0, 1.0], [1.0, 1.2], rise=0.5)
    inf
    """
    distances = np.asarray(distances, np.float64)
    losses = np.asarray(losses, np.float64)
    wanted = losses[0] + rise
    reached = np.flatnonzero(losses >= wanted)
    if not reached.size or not np.isfinite(wanted):
        return float("inf")
    after = int(reached[0])
    low, high = losses[after - 1], losses[after]
    share = (wanted - low) / (high - low) if np.isfinite(high) else 1.0
    return float(distances[after - 1] + share * (distances[after] - distances[after - 1]))


def _check_distances(distances: Any) -> np.ndarray:
    found = np.asarray(distances, np.float64)
    if (
        found.ndim != 1
        or not found.size
        or not np.all(np.isfinite(found))
        or found[0] < 0.0
        or not np.all(np.diff(found) > 0.0)
        or found[-1] == 0.0
    ):
        allowed = "increasing numbers of at least 0, one of them positive"
        raise error("distances", allowed, distances)
    return found if found[0] == 0.0 else np.concatenate([[0.0], found])
