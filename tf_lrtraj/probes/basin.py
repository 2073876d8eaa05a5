r"""Losses along the segments between points, barriers on them, and their asymmetry.

Two solutions lie in one basin if there is no barrier on the straight line between them;
`tf_lrtraj.probes.barriers` defines a barrier and estimates its height.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import barriers
from tf_lrtraj.probes.point_sets import Mixtures, PointProbe
from tf_lrtraj.probes.surface import Point
from tf_lrtraj.probes.vectors import host, layers_of
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.statistics import mean_and_se
from tf_lrtraj.values import error, integer, number

ALL = "(all)"  # the entry of the coordinate `layer` for all weights together
_SUMMARY = (
    "barrier",
    "barrier_at",
    "barrier_se",
    "barrier_cross",
    "barrier_cross_se",
    "barrier_upper",
    "barrier_level",
    "verdict",
    "middle",
    "middle_se",
    "rise",
    "rise_se",
    "error_barrier",
    "error_barrier_se",
)


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Basin(PointProbe):
    """Losses of batches along the segments between points, with barriers and verdicts.

    Coordinates: pair, layer (the first is all layers together), position, batch, held_out,
    offset; of the pairs also first, second and point.

    Values, with `held_out` each also as `held_out_…`:
        loss, accuracy [pair, layer, position, batch]; length [pair, layer]: of the segment in
            weight space.
        barrier, barrier_at (its position), barrier_se, barrier_cross, barrier_cross_se,
            barrier_upper, rise, rise_se [pair, layer]: as `tf_lrtraj.probes.barriers` defines
            them, in units of the loss.
        middle, middle_se [pair, layer]: the height over the straight line at the position nearest
            the middle; in a convex basin it is negative, minus the Jensen gap of the two points.
        verdict [pair, layer]: -1 one basin, 0 undecided, 1 barrier, against barrier_level.
        error_barrier, error_barrier_se [pair, layer]: the barrier of the error rate.
        asymmetry, asymmetry_se [pair, layer, offset]: loss at `centre + offset` minus loss at
            `centre - offset`.

    Between points `"frozen"` batch-norm statistics are mixed linearly and beyond them stay those
    of the nearer one; `"recalibrated"` ones are measured at every position.

    Args:
        surface, points, batches, held_out: see `PointProbe`; two points or more.
        pairs: the pairs of points to connect, (first, second) by name; None for all pairs.
        num: positions from the first point (0) to the second (1), both included.
        extend: extension beyond both ends, in lengths of the segment.
        per_layer: also measure segments on which only one layer's weights change; all others, and
            all statistics, are those of the first point.
        level: the height, in units of the loss, below which a barrier counts as none.  None for
            `relative_level` times the mean loss of the two ends.  This is a convention; a change of
            a few percent in the learning rate has an effect of the same size.  If the losses of the
            ends are nearly 0, as after side trips, give a share of the loss at the start of the
            trips instead.
        relative_level: see `level`.
        centre: the position around which the two sides are compared.

    Raises:
        ValueError: for fewer than two points, weights of another model, or options
            out of range.

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.eye(2, dtype="float32"), np.zeros((2, 1), "float32"))  # loss ‖w‖² / 2
    >>> ends = {"a": [np.array([[-1.0], [0.0]])], "b": [np.array([[1.0], [0.0]])]}
    >>> record = probes.measure(Basin(probes.Surface(model, "mse"), ends, [batch], num=5))
    >>> record.values["loss"][0, 0, :, 0]
    array([0.5  , 0.125, 0.   , 0.125, 0.5  ])
    >>> record.values["barrier"].item(), record.values["middle"].item()
    (0.0, -0.5)
    """

    kind = "basin"
    fewest_points = 2

    pairs: Sequence[tuple[str, str]] | None = None
    num: int = 21
    extend: float | tuple[float, float] = (0.0, 0.0)
    per_layer: bool = False
    level: float | None = None
    relative_level: float = 0.05
    centre: float = 0.5

    def __post_init__(self) -> None:
        self._positions = positions(self.num, self.extend)
        self.level = number(above=0).or_none().check("level", self.level)
        self.relative_level = number(above=0).check("relative_level", self.relative_level)
        self.centre = number().check("centre", self.centre)
        super().__post_init__()
        self._pairs = barriers.check_pairs(self.pairs, self.points.names)
        layers = layers_of(self.surface.model) if self.per_layer else {}
        self._layers: dict[str, list[int] | None] = {ALL: None, **layers}
        self._mix = Mixtures(self.surface)

    def coordinates(self) -> dict[str, Any]:
        offsets, _, _ = barriers.offsets(self._positions, self.centre)
        return {
            "pair": [f"{a} to {b}" for a, b in self._pairs],
            "first": [a for a, _ in self._pairs],
            "second": [b for _, b in self._pairs],
            "point": self.points.names,
            "layer": list(self._layers),
            "position": self._positions,
            "offset": offsets,
            **super().coordinates(),
        }

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "level": self.level,
            "relative_level": self.relative_level,
            "centre": self.centre,
        }

    def pieces(self, record: ArrayRecord) -> list[Any]:
        """Returns (pair, layer, position)."""
        return np.argwhere(record.missing("loss").any(axis=-1)).tolist()

    def measure(self, record: ArrayRecord, piece: Any) -> None:
        pair, layer, index = piece
        first, second = (self.points[name] for name in self._pairs[pair])
        only = list(self._layers.values())[layer]
        if np.isnan(record.values["length"][pair, layer]):
            record.put("length", (pair, layer), _length(first, second, only))
        t = float(self._positions[index])
        self.put_losses(record, tuple(piece), self._mix([first, second], [1.0 - t, t], only))

    def finish(self, record: ArrayRecord) -> None:
        for prefix in self._groups:
            losses, accuracies = (record.values[f"{prefix}{w}"] for w in ("loss", "accuracy"))
            for index in np.ndindex(losses.shape[:2]):
                found = summary(
                    self._positions,
                    losses[index],
                    accuracies[index],
                    level=self.level,
                    relative_level=self.relative_level,
                )
                for name, value in found.items():
                    record.put(prefix + name, index, value)
                lopsided = barriers.asymmetry(self._positions, losses[index], self.centre)
                record.put(f"{prefix}asymmetry", index, lopsided.difference)
                record.put(f"{prefix}asymmetry_se", index, lopsided.se)


def summary(
    positions: Any,
    losses: Any,
    accuracies: Any,
    *,
    level: float | None = None,
    relative_level: float = 0.05,
) -> dict[str, float]:
    """Returns barrier, rise and verdict of one segment, from [K, n] losses and accuracies.

    Args:
        positions: [K] positions, 0 and 1 among them.
        losses, accuracies: those of n batches at each position.
        level: height below which a barrier counts as none; None for `relative_level` times the
            mean loss of the two ends.
    """
    where, between = barriers.segment(positions, losses)
    heights = barriers.excess(where, between)[1]
    barrier = barriers.highest(where, heights)
    middle, middle_se = mean_and_se(heights[np.argmin(np.abs(where - 0.5))])
    rise = barriers.highest(*barriers.over_larger_end(where, between))
    with np.errstate(invalid="ignore"):
        errors = 1.0 - barriers.segment(positions, accuracies)[1]
    wrong = barriers.highest(*barriers.excess(where, errors))
    if not np.isfinite(errors).all():  # targets that are not classes
        wrong = wrong._replace(height=float("nan"), se=float("nan"))
    if level is None:
        level = relative_level * float(np.mean(between[[0, -1]]))
    return {
        "barrier": barrier.height,
        "barrier_at": barrier.at,
        "barrier_se": barrier.se,
        "barrier_cross": barrier.cross,
        "barrier_cross_se": barrier.cross_se,
        "barrier_upper": barrier.upper,
        "barrier_level": level,
        "verdict": barriers.verdict(barrier, level, between.shape[1]),
        "middle": float(middle),
        "middle_se": float(middle_se),
        "rise": rise.height,
        "rise_se": rise.se,
        "error_barrier": wrong.height,
        "error_barrier_se": wrong.se,
    }


def positions(num: int, extend: float | tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Returns `num` equally spaced positions from 0 to 1, and more beyond the ends.

    Args:
        num: at least 3.
        extend: extension before the first and beyond the second point, in lengths of the segment;
            one number for both.

    Raises:
        ValueError: for fewer positions, or a negative extension.

    >>> positions(3, (0.5, 0.0))
    array([-0.5,  0. ,  0.5,  1. ])
    """
    num = integer(3).check("num", num)
    both = np.asarray(extend, np.float64)
    if both.shape not in ((), (2,)) or not np.all(np.isfinite(both)) or np.any(both < 0.0):
        raise error("extend", "two numbers of at least 0, or one for both ends", extend)
    before, after = (int(np.ceil(x * (num - 1) - 1e-9)) for x in np.broadcast_to(both, 2))
    return np.arange(-before, num + after) / (num - 1)


def _length(first: Point, second: Point, only: Sequence[int] | None) -> float:
    chosen = range(len(first.trainable)) if only is None else only
    total = 0.0
    for i in chosen:
        a, b = host([first.trainable[i], second.trainable[i]])
        total += float(np.sum((a - b) ** 2))
    return float(np.sqrt(total))
