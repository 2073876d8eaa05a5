r"""The loss on the plane through three points, and the projection of a trajectory onto it.

With points \(w_1, w_2, w_3\) the plane has the orthonormal basis
\(\hat u = (w_2 - w_1)/\|w_2 - w_1\|\) and \(\hat v\), what is left of \(w_3 - w_1\) when its part
along \(\hat u\) is taken away, divided by its norm (Garipov et al. 2018, arXiv 1802.10026,
appendix; Izmailov et al. 2018, arXiv 1803.05407, figure 1).  Distances on the plane are
those in weight space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.point_sets import Mixtures, PointProbe
from tf_lrtraj.probes.trajectory import is_trajectory, read_point
from tf_lrtraj.probes.vectors import Vector, flat
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.values import error, integer, number

# Sine of the angle at the first point below which three points of float32 weights cannot be
# distinguished from points on one line.
_FLAT = 1e-3


class Basis:
    """The plane through three points, in float64 on the host (three copies of the weights).

    Args:
        points: three vectors of weights.
        names: their names in errors.

    Raises:
        ValueError: if they lie on one line, or two of them coincide.

    >>> basis = Basis([[np.zeros(3)], [np.array([2.0, 0, 0])], [np.array([1.0, 1, 0])]])
    >>> basis.coordinates
    array([[0., 0.],
           [2., 0.],
           [1., 1.]])
    >>> basis.project([np.array([1.0, 2.0, 3.0])])
    (1.0, 2.0, 3.0)
    >>> basis.shares(1.0, 0.5)  # of the three points
    array([0.25, 0.25, 0.5 ])
    """

    def __init__(self, points: Sequence[Vector], names: Sequence[str] = ("1", "2", "3")) -> None:
        self.origin = flat(points[0])
        u = flat(points[1]) - self.origin
        v = flat(points[2]) - self.origin
        length, other = float(np.linalg.norm(u)), float(np.linalg.norm(v))
        named = f"{names[0]!r}, {names[1]!r} and {names[2]!r}"
        if length == 0.0 or other == 0.0:
            raise ValueError(f"the points {named} of a plane must differ; two of them coincide.")
        u /= length
        along = float(u @ v)
        v -= along * u
        v -= float(u @ v) * u  # repeated, to remove rounding errors
        height = float(np.linalg.norm(v))
        if height < _FLAT * other or height < _FLAT * length:
            raise ValueError(
                f"the points {named} lie on one line, so no plane is theirs alone: the third is "
                f"{height:.3g} away from the line of the others, which are {length:.3g} apart. "
                "Choose another, or measure a segment"
            )
        self.u, self.v = u, v / height
        self.coordinates = np.array([[0.0, 0.0], [length, 0.0], [along, height]])

    def shares(self, x: float, y: float) -> np.ndarray:
        """Returns the [3] weights, with sum 1, of the three points at a point of the plane."""
        (_, _), (length, _), (along, height) = self.coordinates
        third = y / height
        second = (x - third * along) / length
        return np.array([1.0 - second - third, second, third])

    def project(self, weights: Vector) -> tuple[float, float, float]:
        """Returns (u, v, distance from the plane) of weights."""
        rest = flat(weights) - self.origin
        x, y = float(self.u @ rest), float(self.v @ rest)
        rest -= x * self.u
        rest -= y * self.v
        return x, y, float(np.linalg.norm(rest))


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Plane(PointProbe):
    """Losses of batches on a grid of the plane through three points.

    Coordinates: u and v (distances in weight space), batch, held_out, step; and where the
    points lie: point (names), point_u, point_v.

    Values:
        loss, accuracy [v, u, batch]; with `held_out` also held_out_loss, held_out_accuracy.
        trajectory_u, trajectory_v [step]; trajectory_residual [step]: distance of the step from the
            plane; the plane does not show the losses of distant steps.

    `"frozen"` batch-norm statistics are mixed as the weights are, with negative shares set to 0.

    Args:
        surface, points, batches, held_out: see `PointProbe`; three points: the first is the
            origin, the second lies on the u axis, the third on the side of positive v.
        num: points of the grid along u and v; one number for both.
        margin: extension of the grid beyond the points on all sides, as a multiple of the larger of
            their extents along u and v.
        trajectory: an object with `steps` and `read(step)` to project; read one step
            at a time.

    Raises:
        ValueError: unless there are three points of this model that are not on one line.

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.eye(2, dtype="float32"), np.zeros((2, 1), "float32"))  # loss ‖w‖² / 2
    >>> corners = {"origin": (0.0, 0.0), "right": (2.0, 0.0), "top": (0.0, 1.0)}
    >>> points = {name: [np.array([[x], [y]])] for name, (x, y) in corners.items()}
    >>> plane = Plane(probes.Surface(model, "mse"), points, [batch], num=(3, 2), margin=0.0)
    >>> record = probes.measure(plane)
    >>> record.coordinates["u"], record.coordinates["v"]
    (array([0., 1., 2.]), array([0., 1.]))
    >>> record.values["loss"][:, :, 0]
    array([[0. , 0.5, 2. ],
           [0.5, 1. , 2.5]])
    """

    kind = "plane"
    fewest_points = 3
    points_in_memory = 3

    num: int | tuple[int, int] = (21, 21)
    margin: float = 0.3
    trajectory: Any = None

    def __post_init__(self) -> None:
        sides = tuple(self.num) if isinstance(self.num, (tuple, list)) else (self.num, self.num)
        if len(sides) != 2 or not all(map(integer(2).accepts, sides)):
            raise error("num", "two integers of at least 2, or one for both", self.num)
        self.margin = number(0).check("margin", self.margin)
        if self.trajectory is not None and not is_trajectory(self.trajectory):
            raise ValueError(
                "`trajectory` must have `steps` and `read(step)`. "
                f"Received: an object of type {type(self.trajectory).__name__}"
            )
        super().__post_init__()
        names = self.points.names
        if len(names) != 3:
            raise error("points", "three, for a plane", names)
        self._corners = [self.points[name] for name in names]
        self.basis = Basis([point.trainable for point in self._corners], names)
        self._u, self._v = (
            _axis(self.basis.coordinates, i, int(sides[i]), self.margin) for i in range(2)
        )
        steps = [] if self.trajectory is None else [int(s) for s in self.trajectory.steps]
        self._steps = np.array(steps, np.int64)
        self._mix = Mixtures(self.surface)

    def coordinates(self) -> dict[str, Any]:
        return {
            "u": self._u,
            "v": self._v,
            "point": self.points.names,
            "point_u": self.basis.coordinates[:, 0],
            "point_v": self.basis.coordinates[:, 1],
            "step": self._steps,
            **super().coordinates(),
        }

    def about(self) -> dict[str, Any]:
        return super().about() | {"margin": self.margin}

    def pieces(self, record: ArrayRecord) -> list[tuple[str, int, int]]:
        lacking = record.missing("loss").any(axis=-1)
        cells = [("cell", int(i), int(j)) for i, j in np.argwhere(lacking)]
        steps = np.flatnonzero(record.missing("trajectory_residual"))
        return [*(("step", int(k), 0) for k in steps), *cells]

    def measure(self, record: ArrayRecord, piece: tuple[str, int, int]) -> None:
        what, i, j = piece
        if what == "cell":
            shares = self.basis.shares(float(self._u[j]), float(self._v[i]))
            self.put_losses(record, (i, j), self._mix(self._corners, list(shares)))
            return
        point = read_point(self.surface, self.trajectory, int(self._steps[i]))
        found = self.basis.project(point.trainable)
        for name, value in zip(("u", "v", "residual"), found, strict=True):
            record.put(f"trajectory_{name}", i, value)

    def passes(self, pieces: Sequence[tuple[str, int, int]]) -> float:
        return super().passes([piece for piece in pieces if piece[0] == "cell"])


def _axis(where: np.ndarray, axis: int, count: int, margin: float) -> np.ndarray:
    low, high = float(where[:, axis].min()), float(where[:, axis].max())
    # The same margin on all sides; otherwise three points almost on a line would give a strip.
    room = margin * float(np.ptp(where, axis=0).max())
    return np.linspace(low - room, high + room, count)
