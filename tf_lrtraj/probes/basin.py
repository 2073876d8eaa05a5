r"""Losses along the segments between points, barriers on them, and how lopsided they are.

Two solutions lie in one basin if the straight line between them crosses no barrier;
see `tf_lrtraj.probes.barriers` for what is called one, and how its height is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import barriers
from tf_lrtraj.probes.base import Probe, measure
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.point_sets import Groups, Mixtures, Points
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.uncertainty import mean_and_se
from tf_lrtraj.probes.vectors import host, layers_of
from tf_lrtraj.records import ArrayRecord

ALL = "(all)"  # the entry of the coordinate `layer` for all weights together


class Segments(Probe):
    """Losses and accuracies of batches along segments between points; see `loss_along_segment`."""

    kind = "basin"

    def __init__(
        self,
        surface: Surface,
        points: Any,
        batches: Sequence[Batch],
        *,
        held_out: Sequence[Batch] | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        num: int = 21,
        extend: float | tuple[float, float] = (0.0, 0.0),
        per_layer: bool = False,
        level: float | None = None,
        relative_level: float = 0.05,
        centre: float = 0.5,
    ) -> None:
        self.surface = surface
        self._groups = Groups(surface, batches, held_out)
        self._points = Points(surface, points, at_least=2)
        self._pairs = barriers.check_pairs(pairs, self._points.names)
        self._positions = positions(num, extend)
        layers = layers_of(surface.model) if per_layer else {}
        self._layers: dict[str, list[int] | None] = {ALL: None, **layers}
        for name, value in (("level", level), ("relative_level", relative_level)):
            if value is not None and not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        self._level, self._relative_level = level, float(relative_level)
        self._centre = float(centre)
        self._mix = Mixtures(surface)
        self._fingerprints = self._points.fingerprints()

    def empty(self) -> ArrayRecord:
        offsets, _, _ = barriers.offsets(self._positions, self._centre)
        coordinates: dict[str, Any] = {
            "pair": [f"{a} to {b}" for a, b in self._pairs],
            "first": [a for a, _ in self._pairs],
            "second": [b for _, b in self._pairs],
            "point": self._points.names,
            "layer": list(self._layers),
            "position": self._positions,
            "offset": offsets,
            **self._groups.coordinates(),
        }
        dims: dict[str, tuple[str, ...]] = self._groups.dims("pair", "layer", "position")
        dims["length"] = ("pair", "layer")
        for prefix in self._groups.groups:
            for name in _SUMMARY:
                dims[prefix + name] = ("pair", "layer")
            for name in ("asymmetry", "asymmetry_se"):
                dims[prefix + name] = ("pair", "layer", "offset")
        about = {
            **self.surface.about(),
            **self._groups.about(),
            "points": self._fingerprints,
            "level": self._level,
            "relative_level": self._relative_level,
            "centre": self._centre,
        }
        return ArrayRecord.empty(self.kind, coordinates, dims, about)

    def pieces(self, record: ArrayRecord) -> Sequence[tuple[int, int, int]]:
        lacking = record.missing("loss").any(axis=-1)
        return [(int(p), int(k), int(i)) for p, k, i in np.argwhere(lacking)]

    def measure(self, record: ArrayRecord, piece: tuple[int, int, int]) -> None:
        pair, layer, index = piece
        first, second = (self._points[name] for name in self._pairs[pair])
        only = list(self._layers.values())[layer]
        if np.isnan(record.values["length"][pair, layer]):
            record.put("length", (pair, layer), _length(first, second, only))
        t = float(self._positions[index])
        self._groups.measure(record, piece, self._mix([first, second], [1.0 - t, t], only))

    def passes(self, pieces: Sequence[Any]) -> float:
        return len(pieces) * self._groups.passes

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self._groups.first)

    def finish(self, record: ArrayRecord) -> None:
        for prefix in self._groups.groups:
            losses, accuracies = (record.values[f"{prefix}{w}"] for w in ("loss", "accuracy"))
            for index in np.ndindex(losses.shape[:2]):
                found = summary(
                    self._positions,
                    losses[index],
                    accuracies[index],
                    level=self._level,
                    relative_level=self._relative_level,
                )
                for name, value in found.items():
                    record.put(prefix + name, index, value)
                lopsided = barriers.asymmetry(self._positions, losses[index], self._centre)
                record.put(f"{prefix}asymmetry", index, lopsided.difference)
                record.put(f"{prefix}asymmetry_se", index, lopsided.se)


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


def summary(
    positions: Any,
    losses: Any,
    accuracies: Any,
    *,
    level: float | None = None,
    relative_level: float = 0.05,
) -> dict[str, float]:
    """Barrier, rise and verdict of one segment, from [K, n] losses and accuracies.

    Args:
        positions: [K] positions, 0 and 1 among them.
        losses, accuracies: of n batches at each.
        level: below which a barrier counts as none; None for `relative_level` times the
            mean loss of the two ends.
    """
    where, between = barriers.segment(positions, losses)
    heights = barriers.excess(where, between)[1]
    barrier = barriers.highest(where, heights)
    middle, middle_se = mean_and_se(heights[np.argmin(np.abs(where - 0.5))])
    rise = barriers.highest(*barriers.over_larger_end(where, between))
    with np.errstate(invalid="ignore"):
        errors = 1.0 - barriers.segment(positions, accuracies)[1]
    error = barriers.highest(*barriers.excess(where, errors))
    if not np.isfinite(errors).all():  # targets that are no classes
        error = error._replace(height=float("nan"), se=float("nan"))
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
        "error_barrier": error.height,
        "error_barrier_se": error.se,
    }


def positions(num: int, extend: float | tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """`num` equally spaced positions from 0 to 1, and more at that spacing beyond the ends.

    Args:
        num: at least 3.
        extend: how far to go on before the first and beyond the second point, in lengths
            of the segment; one number for both.

    Raises:
        ValueError: for fewer positions, or a negative extension.

    >>> positions(3, (0.5, 0.0))
    array([-0.5,  0. ,  0.5,  1. ])
    """
    if isinstance(num, bool) or not isinstance(num, (int, np.integer)) or num < 3:
        raise ValueError(f"`num` must be an integer of at least 3. Received: num={num!r}")
    both = np.asarray(extend, np.float64)
    if both.shape not in ((), (2,)) or not np.all(np.isfinite(both)) or np.any(both < 0.0):
        raise ValueError(
            "`extend` must be two numbers of at least 0, or one for both ends. "
            f"Received: extend={extend!r}"
        )
    before, after = (int(np.ceil(x * (num - 1) - 1e-9)) for x in np.broadcast_to(both, 2))
    return np.arange(-before, num + after) / (num - 1)


def _length(first: Point, second: Point, only: Sequence[int] | None) -> float:
    chosen = range(len(first.trainable)) if only is None else only
    total = 0.0
    for i in chosen:
        a, b = host([first.trainable[i], second.trainable[i]])
        total += float(np.sum((a - b) ** 2))
    return float(np.sqrt(total))


def loss_along_segment(
    model: Any,
    loss: Any,
    points: Any,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    num: int = 21,
    extend: float | tuple[float, float] = (0.0, 0.0),
    per_layer: bool = False,
    level: float | None = None,
    relative_level: float = 0.05,
    centre: float = 0.5,
    batch_norm: str = "batch",
    dropout: str = "off",
    moment_batches: Sequence[Batch] | None = None,
    penalties: bool = False,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """Losses of batches along the segments between points, with barriers and verdicts.

    Args:
        model, loss, batch_norm, dropout, moment_batches, penalties: see `Surface`.  Between points
            `"frozen"` statistics are mixed linearly and beyond them stay those of the
            nearer one; `"recalibrated"` ones are measured at every position.
        points: name → weights, or an object with `steps` and `read(step)`; two or more.
        batches: training batches, the same for all segments.
        held_out: held-out batches; with them every value exists twice, its second copy
            named `held_out_…`.
        pairs: which points to connect, (first, second) by name; None for all pairs.
        num: positions from the first point (0) to the second (1), both included.
        extend: how far to go on beyond both ends, in lengths of the segment.
        per_layer: also measure segments on which only one layer's weights change (and all
            others, and all statistics, stay the first point's).
        level: a barrier below it, in units of the loss, counts as none.  None takes
            `relative_level` times the mean loss of the two ends.  That is a convention, of a
            size that a change of a few percent in the learning rate also makes; for ends
            with next to no loss, as after side trips, it is meaningless, and a share of the
            loss at the start of the trips should be given.
        relative_level: see `level`.
        centre: the position around which the two sides are compared.
        path, progress, tell: see `measure`.

    Returns:
        a record over the coordinates `pair`, `layer` (the first is all layers together),
        `position`, `batch`, `held_out` and `offset`:

        * `loss`, `accuracy` [pair, layer, position, batch]; `length` [pair, layer] of the
          segment in weight space;
        * `barrier`, `barrier_at` (its position), `barrier_se`, `barrier_cross`,
          `barrier_cross_se`, `barrier_upper`, `rise`, `rise_se` [pair, layer] as
          `tf_lrtraj.probes.barriers` defines them, in units of the loss;
        * `middle`, `middle_se` [pair, layer]: the height over the straight line at the position
          nearest the middle, where a convex basin is below it (negative: minus the Jensen
          gap of the two points);
        * `verdict`: -1 one basin, 0 undecided, 1 barrier, against `barrier_level`;
        * `error_barrier`, `error_barrier_se`: the barrier of the error rate;
        * `asymmetry`, `asymmetry_se` [pair, layer, offset]: loss at `centre + offset` minus
          loss at `centre - offset`.

    Raises:
        ValueError: for fewer than two points, weights of another model, or options
            out of range.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = (np.eye(2, dtype="float32"), np.zeros((2, 1), "float32"))  # loss ‖w‖² / 2
    >>> ends = {"a": [np.array([[-1.0], [0.0]])], "b": [np.array([[1.0], [0.0]])]}
    >>> record = loss_along_segment(model, "mean_squared_error", ends, [batch], num=5)
    >>> record.values["loss"][0, 0, :, 0]
    array([0.5  , 0.125, 0.   , 0.125, 0.5  ])
    >>> record.values["barrier"].item(), record.values["middle"].item()
    (0.0, -0.5)
    """
    surface = Surface(
        model,
        loss,
        batch_norm=batch_norm,
        dropout=dropout,
        moment_batches=moment_batches,
        penalties=penalties,
    )
    probe = Segments(
        surface,
        points,
        batches,
        held_out=held_out,
        pairs=pairs,
        num=num,
        extend=extend,
        per_layer=per_layer,
        level=level,
        relative_level=relative_level,
        centre=centre,
    )
    return measure(probe, path, progress=progress, tell=tell)


def own_batch_summary(
    record: ArrayRecord, *, level: float | None = None, relative_level: float = 0.05
) -> dict[str, float]:
    """The summary of batch i on segment i, over all i, from a record of `Segments`.

    For segments between the ends of side trips on the same batch from different starts,
    measured on the trips' batches in the order of the pairs: is the end of each trip in one
    basin with the other's, as far as the batch itself is concerned?  Uncertainties are
    over trips.

    Raises:
        ValueError: if there are not as many pairs as batches.
    """
    losses, accuracies = (
        barriers.own_batches(record.values[name][:, 0]) for name in ("loss", "accuracy")
    )
    return summary(
        record.coordinates["position"],
        losses,
        accuracies,
        level=level,
        relative_level=relative_level,
    )
