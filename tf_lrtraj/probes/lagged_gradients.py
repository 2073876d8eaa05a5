r"""The change of the gradient of the same batches along a trajectory.

Every cosine is that of the gradient itself, and descent is along minus the gradient.  A *negative*
cosine with a displacement means that the weights moved in the direction of descent; a *positive*
cosine with θ - θ̄ means that a step of descent leads back to the mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import LossProbe, lacking, put_estimate
from tf_lrtraj.probes.batches import size_of
from tf_lrtraj.probes.estimators import block_mean
from tf_lrtraj.probes.gradients import Segmented
from tf_lrtraj.probes.sketches import Sketch
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.trajectory import (
    as_trajectory,
    check_lags,
    checked_steps,
    earlier,
    read_point,
)
from tf_lrtraj.probes.vectors import RunningMean, dot, fingerprint
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.values import one_of

MEANS = ("running", "all")
# Vectors kept for a step: mean gradients of the even and of the odd batches, and the weights.
_EVEN, _ODD, _WEIGHTS, _OFF_MEAN = range(4)
_VECTORS = ["even_gradient", "odd_gradient", "weights", "weights_minus_mean"]
_OF_PAIRS = ("dot", "dot_across", "cosine", "start_cosine", "end_cosine")


@dataclasses.dataclass(eq=False, repr=False)
class LaggedGradients(LossProbe):
    r"""Cosines of the mean gradient of the same batches at steps `t` and `t + lag`, and with paths.

    The mean gradient of finitely many batches is not the full gradient: the batches' noise, which
    is the same at both steps, is part of it.  So there is also `full_cosine`, from products of one
    half of the batches at one step with the other half at the other, which are unbiased for the
    full gradient's if the batches are independent.  Disjoint batches that make up much of the data
    are not independent: when the full gradient is small, the deviations of the two halves have
    opposite signs, and products are negative.

    Coordinates: lag (first 0), step (the later one).

    Values, inf where there is no such pair of steps:
        dot, cosine [lag, step]: of the mean gradients; dot_across: ⟨g, g'⟩ over different batches.
        start_cosine [lag, step]: gradient at t with θ_{t+lag} - θ_t; end_cosine: gradient at
            t + lag with the same: negative where the weights went downhill.
        off_mean_cosine [step]: gradient with θ - θ̄, positive where a step leads back.
        loss [step].
        mean_cosine, full_cosine, mean_start_cosine, mean_end_cosine [lag], with `_se` from
            blocks of steps.

    Args:
        surface: the loss and its mode.
        trajectory: an object with `.steps` and `.read(step)`, or a mapping step → arrays.
        batches: at least 2; the same at every step.  The halves are the even and the odd ones.
        lags: ascending, in updates; by default up to a sixth of the trajectory, spaced in the
            logarithm.
        mean: θ̄: `"running"`, the mean of all steps so far (including the current one), `"all"`,
            the mean of all steps, or weights.
        sketch_size: None for exact products, in which case two half-batch gradients and the
            weights of every step are held until the largest lag has passed (3 copies a
            step); or the numbers kept of each instead, with which a cosine errs by about
            :math:`1/\sqrt{k}`.
        memory_limit: bytes for vectors kept in memory.
        seed: the seed of the sketches.

    Raises:
        ValueError: for lags that do not ascend or are longer than the trajectory, weights of
            another architecture (the step is named), or more memory than allowed.
    """

    kind = "lagged_gradients"
    fewest_batches = 2  # whose halves are compared

    surface: Surface
    trajectory: Any
    batches: Any
    _: dataclasses.KW_ONLY
    lags: Sequence[int] | None = None
    mean: Any = "running"
    sketch_size: int | None = None
    memory_limit: int = 1 << 31
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trajectory = as_trajectory(self.trajectory)
        self._steps = np.asarray(self.trajectory.steps, np.int64)
        self._lags = np.concatenate([[0], check_lags(self.lags, self._steps)])
        self._earlier = earlier(self._steps, self._lags)
        self._space = Segmented(self.surface.model, per_layer=False)
        self._mean: np.ndarray | None = None
        if isinstance(self.mean, str):
            one_of(MEANS).check("mean", self.mean)
        else:
            self._mean = self._weights_of(self.surface.point(self.mean))
        self._running = RunningMean()
        self._sketch = None
        if self.sketch_size is not None:
            self._sketch = Sketch(self._space.size, self.sketch_size, self.seed)
        # Number of steps for which vectors are needed.
        distance = np.where(self._earlier >= 0, np.arange(self._steps.size) - self._earlier, 0)
        self._depth = int(distance.max()) + 1
        size = 3 * self._depth * self._space.size * np.dtype(self._space.dtype).itemsize
        if self._sketch is None and size > self.memory_limit:
            raise ValueError(
                f"gradients and weights of {self._depth} steps must be held for the largest lag, "
                f"{size / 2**30:.1f} GiB; `memory_limit` allows {self.memory_limit / 2**30:.1f}. "
                "Choose shorter lags, or keep sketches, for example sketch_size=4096. "
                f"Received: lags up to {int(self._lags[-1])}"
            )
        self._held: dict[int, list[np.ndarray]] = {}

    def coordinates(self) -> dict[str, Any]:
        found: dict[str, Any] = {"lag": self._lags, "step": self._steps}
        if self._sketch is not None:
            found |= {"component": np.arange(self._sketch.k), "vector": _VECTORS}
        return found

    def parts(self) -> Collection[str]:
        return [] if self._sketch is None else ["sketch"]

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            **checked_steps(self.trajectory),
            "batches": fingerprint(self.batches),
            "batch_sizes": [size_of(batch) for batch in self.batches],
            "mean": self.mean if self._mean is None else fingerprint(self._mean),
            "num_weights": self._space.size,
            "sketch_size": self.sketch_size,
            "seed": self.seed if self.sketch_size else None,
        }

    def empty(self) -> ArrayRecord:
        record = super().empty()
        for name in _OF_PAIRS:
            record.values[name][self._earlier < 0] = np.inf  # there is no such pair
        return record

    def pieces(self, record: ArrayRecord) -> list[int]:
        return lacking(record, "off_mean_cosine")

    def measure(self, record: ArrayRecord, piece: int) -> None:
        now = self._vectors(record, piece)
        if self._sketch is not None:
            off_mean = now[_OFF_MEAN]
        else:
            self._mean_up_to(piece)
            off_mean = self._off_mean(now[_WEIGHTS])
        gradient = self._mean_gradient(now)
        for row, position in enumerate(self._earlier[:, piece]):
            if position < 0:
                continue
            then = now if position == piece else self._vectors(record, int(position))
            before = gradient if position == piece else self._mean_gradient(then)
            # Each half with itself shares its batches; one with the other shares none.
            across = 0.5 * (dot(then[_EVEN], now[_ODD]) + dot(then[_ODD], now[_EVEN]))
            record.put("dot", (row, piece), dot(before, gradient))
            record.put("dot_across", (row, piece), across)
            moved = now[_WEIGHTS].astype(np.float64) - then[_WEIGHTS]
            for name, vector in (("start_cosine", before), ("end_cosine", gradient)):
                cosine = _cosine(vector, moved) if position != piece else np.inf
                record.put(name, (row, piece), cosine)
        record.put("cosine", (slice(None), piece), self._cosines(record, piece))
        record.put("off_mean_cosine", piece, _cosine(gradient, off_mean))

    def _cosines(self, record: ArrayRecord, piece: int) -> np.ndarray:
        found = np.full(self._lags.size, np.inf)
        products = record.values["dot"]
        for row, position in enumerate(self._earlier[:, piece]):
            if position >= 0:
                lengths = products[0, piece] * products[0, position]
                found[row] = products[row, piece] / np.sqrt(lengths) if lengths > 0 else np.inf
        return found

    # Vectors ------------------------------------------------------------------------------

    def _vectors(self, record: ArrayRecord, position: int) -> list[np.ndarray]:
        """Those of `_VECTORS` that are kept: exact in memory, or sketches in the record."""
        if self._sketch is not None and not record.missing("sketch")[position].any():
            return list(record.values["sketch"][position])
        if position not in self._held:
            exact = self._measured(record, position)
            if self._sketch is not None:
                self._mean_up_to(position)
                exact.append(self._off_mean(exact[_WEIGHTS]))
                record.put("sketch", position, np.stack([self._sketch(v) for v in exact]))
                return list(record.values["sketch"][position])
            for old in [p for p in self._held if abs(p - position) >= self._depth]:
                del self._held[old]
            self._held[position] = exact
        return self._held[position]

    def _measured(self, record: ArrayRecord, position: int) -> list[np.ndarray]:
        point = self._point(position)
        losses = []
        halves = [RunningMean(), RunningMean()]
        for number, batch in enumerate(self.batches):
            loss, gradient = self.surface.gradient(point, batch)
            losses.append(loss)
            halves[number % 2].add(self._space.vector(gradient))
        record.put("loss", position, np.mean(losses))
        kept = [half.value.astype(self._space.dtype, copy=False) for half in halves]
        return [*kept, self._weights_of(point)]

    def _mean_gradient(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        share = (len(self.batches) + 1) // 2 / len(self.batches)
        return share * vectors[_EVEN] + (1.0 - share) * vectors[_ODD]

    def _point(self, position: int) -> Point:
        return read_point(self.surface, self.trajectory, int(self._steps[position]))

    def _weights_of(self, point: Point) -> np.ndarray:
        return self._space.vector(point.trainable)

    def _mean_up_to(self, position: int) -> None:
        """Brings the running mean to the weights of all steps up to `position`."""
        if self._mean is not None:
            return
        last = self._steps.size - 1 if self.mean == "all" else position
        if self._running.count > last + 1:
            self._running = RunningMean()
        while self._running.count <= last:
            self._running.add(self._weights_of(self._point(self._running.count)))

    def _off_mean(self, weights: np.ndarray) -> np.ndarray:
        mean = self._mean if self._mean is not None else self._running.value
        return weights - mean

    # What follows -------------------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        squares = record.values["dot_across"][0]
        for row, lag in enumerate(self._lags.tolist()):
            here = self._earlier[row] >= 0
            starts = self._steps[here] - lag
            for name, values in (
                ("mean_cosine", record.values["cosine"]),
                ("mean_start_cosine", record.values["start_cosine"]),
                ("mean_end_cosine", record.values["end_cosine"]),
            ):
                put_estimate(record, name, row, block_mean(starts, values[row, here], lag))
            # A ratio of unbiased means, over pairs of steps.
            found = block_mean(
                starts,
                record.values["dot_across"][row, here],
                lag,
                scales=(squares[here], squares[self._earlier[row, here]]),
            )
            put_estimate(record, "full_cosine", row, found)

    def passes(self, pieces: Sequence[int]) -> float:
        return self.spec.passes(
            gradients=len(self.batches) * len(pieces),
            calibration=self.surface.calibration_passes * len(pieces),
        )


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    below = np.sqrt(dot(first, first) * dot(second, second))
    return dot(first, second) / below if below > 0.0 else np.inf
