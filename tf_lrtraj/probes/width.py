r"""How fast the loss rises away from a point, along random rays.

Rays are drawn once and used at every point, so points are compared pair by pair
(Izmailov et al. 2018, arXiv 1803.05407, section 3.3, compare SGD's last iterate with the
average of its iterates this way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import directions
from tf_lrtraj.probes.base import Probe, measure
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.point_sets import Groups, Points
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.uncertainty import mean_and_se
from tf_lrtraj.records import ArrayRecord

_CENTRE = -1  # stands for all rays at distance 0


class Width(Probe):
    """Losses along random rays from points; see `loss_along_rays`."""

    kind = "width"

    def __init__(
        self,
        surface: Surface,
        points: Any,
        batches: Sequence[Batch],
        *,
        distances: Sequence[float],
        held_out: Sequence[Batch] | None = None,
        num_rays: int = 8,
        seed: int = 0,
        ray_kind: str = "uniform",
        rise: float = 0.1,
    ) -> None:
        self.surface = surface
        self._groups = Groups(surface, batches, held_out)
        self._points = Points(surface, points, keep=1)
        self._distances = _check_distances(distances)
        if isinstance(num_rays, bool) or not isinstance(num_rays, int) or num_rays < 1:
            raise ValueError(
                f"`num_rays` must be an integer of at least 1. Received: num_rays={num_rays!r}"
            )
        if ray_kind not in directions.KINDS:
            raise ValueError(
                f"`ray_kind` must be one of {list(directions.KINDS)}. "
                f"Received: ray_kind={ray_kind!r}"
            )
        if not (np.isfinite(rise) and rise > 0.0):
            raise ValueError(f"`rise` must be a positive number. Received: rise={rise!r}")
        self._num_rays, self._seed, self._ray_kind = num_rays, seed, ray_kind
        self._rise = float(rise)
        self._axes = directions.filter_axes_of(surface.model)
        self._ray: tuple[Any, list[Any]] | None = None  # the last one drawn
        self._fingerprints = self._points.fingerprints()

    def empty(self) -> ArrayRecord:
        coordinates: dict[str, Any] = {
            "point": self._points.names,
            "other": self._points.names,
            "ray": np.arange(self._num_rays),
            "distance": self._distances,
            **self._groups.coordinates(),
        }
        dims: dict[str, tuple[str, ...]] = self._groups.dims("point", "ray", "distance")
        for prefix in self._groups.groups:
            dims[f"{prefix}width"] = ("point", "ray")
            for name in ("width_mean", "width_se"):
                dims[prefix + name] = ("point",)
            for name in ("width_difference", "width_difference_se"):
                dims[prefix + name] = ("point", "other")
        about = {
            **self.surface.about(),
            **self._groups.about(),
            "points": self._fingerprints,
            "seed": self._seed,
            "ray_kind": self._ray_kind,
            "rise": self._rise,
        }
        return ArrayRecord.empty(self.kind, coordinates, dims, about)

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int, int]]:
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
        name = self._points.names[number]
        point = self._points[name]
        if ray == _CENTRE:
            self._groups.measure(record, (number, slice(None), 0), point)
            return
        moved = self.surface.moved(
            point, self._direction(name, ray, point), -self._distances[index]
        )
        self._groups.measure(record, piece, moved)

    def _direction(self, name: str, ray: int, point: Point) -> list[Any]:
        # Filter-normalised rays are scaled by the weights of each point.
        key = (ray, name if self._ray_kind == "filter" else None)
        if self._ray is None or self._ray[0] != key:
            drawn = directions.random_direction(
                point.trainable, [self._seed, ray], self._ray_kind, filter_axes=self._axes
            )
            self._ray = key, drawn
        return self._ray[1]

    def passes(self, pieces: Sequence[Any]) -> float:
        return len(pieces) * self._groups.passes

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self._groups.first)

    def finish(self, record: ArrayRecord) -> None:
        for prefix in self._groups.groups:
            with np.errstate(invalid="ignore", over="ignore"):
                curves = record.values[f"{prefix}loss"].mean(axis=-1)
            widths = np.array(
                [[width(self._distances, curve, self._rise) for curve in rays] for rays in curves]
            )
            record.put(f"{prefix}width", slice(None), widths)
            mean, error = mean_and_se(widths)
            record.put(f"{prefix}width_mean", slice(None), mean)
            record.put(f"{prefix}width_se", slice(None), error)
            with np.errstate(invalid="ignore"):
                differences = widths[:, None] - widths[None]
            for i in range(len(widths)):
                differences[i, i] = 0.0  # infinite widths included
            mean, error = mean_and_se(differences)
            record.put(f"{prefix}width_difference", slice(None), mean)
            record.put(f"{prefix}width_difference_se", slice(None), error)


def width(distances: Any, losses: Any, rise: float) -> float:
    """The distance at which a loss has first risen by `rise` over its value at 0.

    Linear between measured distances; infinite where it is not reached.

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
        raise ValueError(
            "`distances` must be increasing numbers of at least 0, one of them positive. "
            f"Received: distances={np.asarray(distances).tolist()}"
        )
    return found if found[0] == 0.0 else np.concatenate([[0.0], found])


def loss_along_rays(
    model: Any,
    loss: Any,
    points: Any,
    batches: Sequence[Batch],
    *,
    distances: Sequence[float],
    held_out: Sequence[Batch] | None = None,
    num_rays: int = 8,
    seed: int = 0,
    ray_kind: str = "uniform",
    rise: float = 0.1,
    batch_norm: str = "batch",
    dropout: str = "off",
    moment_batches: Sequence[Batch] | None = None,
    penalties: bool = False,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """Losses of batches along random rays from one or more points, and their widths.

    Args:
        model, loss, batch_norm, dropout, moment_batches, penalties: see `Surface`.  `"frozen"`
            statistics stay those of each point along its rays.
        points: name → weights, or an object with `steps` and `read(step)`.
        batches: training batches.
        held_out: held-out batches; with them every value exists twice, its second copy
            named `held_out_…`.
        distances: increasing; 0 is added where it is missing.  In weight space for
            `"uniform"` rays, in norms of the kernels for `"filter"`.
        num_rays: the same rays are used at every point.
        seed: of the rays.
        ray_kind: see `random_direction`.
        rise: by how much the loss has to rise, in its units.
        path, progress, tell: see `measure`.

    Returns:
        a record over the coordinates `point`, `ray`, `distance`, `batch` and `held_out`:

        * `loss`, `accuracy` [point, ray, distance, batch];
        * `width` [point, ray]: the distance at which the mean loss over batches has risen by
          `rise`, infinite where it is not reached; `width_mean`, `width_se` [point] over rays;
        * `width_difference`, `width_difference_se` [point, other]: width at `point` minus
          width at `other`, ray by ray.

    Raises:
        ValueError: if distances do not increase, for weights of another model, or options
            out of range.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.eye(2, dtype="float32"), np.zeros((2, 1), "float32"))  # loss ‖w‖² / 2
    >>> record = loss_along_rays(
    ...     model, "mean_squared_error", {"minimum": [np.zeros((2, 1))]}, [batch],
    ...     distances=[1.0, 2.0], num_rays=2, rise=0.5,
    ... )
    >>> record.values["loss"][0, :, :, 0].round(6)  # the same on all rays
    array([[0. , 0.5, 2. ],
           [0. , 0.5, 2. ]])
    """
    surface = Surface(
        model,
        loss,
        batch_norm=batch_norm,
        dropout=dropout,
        moment_batches=moment_batches,
        penalties=penalties,
    )
    probe = Width(
        surface,
        points,
        batches,
        distances=distances,
        held_out=held_out,
        num_rays=num_rays,
        seed=seed,
        ray_kind=ray_kind,
        rise=rise,
    )
    return measure(probe, path, progress=progress, tell=tell)
