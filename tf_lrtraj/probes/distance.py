r"""Displacement along stored trajectories.

For a stationary run of the quadratic model (docs/theory/model.md)

.. math:: \mathbb E\lVert\theta_{t+\Delta} - \theta_t\rVert^2
   = 2\operatorname{tr}\bigl[(I - (I - \lambda A)^\Delta)\,S\bigr],

which levels off at :math:`2\operatorname{tr} S`; a random walk grows as :math:`\Delta`, a
steady drift as :math:`\Delta^2`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import Probe, lacking, put_estimate
from tf_lrtraj.probes.directions import Filters
from tf_lrtraj.probes.estimators import Estimate, block_mean, growth
from tf_lrtraj.probes.sketches import Sketch
from tf_lrtraj.probes.trajectory import Reader, as_trajectory, check_lags, checked_steps, earlier
from tf_lrtraj.probes.vectors import (
    RunningMean,
    check_shapes,
    dot,
    fingerprint,
    joined,
    square_distance,
)
from tf_lrtraj.records import ArrayRecord

_OF_STEPS = ("norm", "from_start", "from_mean")


@dataclasses.dataclass(eq=False, repr=False)
class Distance(Probe):
    """Squared displacement by lag, norm, and distances from start and mean.

    Coordinates: lag, step (the later one).

    Values:
        squared [lag, step]: ‖θ_step - θ_{step-lag}‖², inf if there is no such pair;
        mean_squared, mean_squared_se [lag]: the error from blocks of starts at least as long as the
            lag (inf where fewer than three fit).
        squared_growth, squared_growth_se []: d ln D / d ln Δ at the largest lags: 0 if
            displacement has levelled off, 1 for a random walk, 2 for a drift.
        filters_squared and so on: the same between normalised filters, with `filters`.
        norm, from_start, from_mean (the mean of all steps so far), from_reference [step].

    Args:
        trajectory: an object with `.steps` and `.read(step)`, or a mapping step → arrays.
        lags: ascending, in updates, each the distance of two steps; by default up to a sixth of
            the trajectory, spaced in the logarithm.
        exact: whether to use the weights themselves; those that do not fit into `memory_limit`
            are read again.  False: random projections, for which each step is read once; the
            relative standard error of a squared displacement is up to √(2/k) (`probes.Sketch`).
        sketch_size: k, the numbers of a projection.
        filters: whether to measure displacements between normalised filters too, as the mean over
            filters of 2 - 2 cos, for scale-invariant weights.
        filter_axes: `probes.filter_axes_of(model)`; None takes the last axis of every array.
        reference: weights from which the distance is measured as well.
        count: number of arrays, from the first on, that are weights; by default the trajectory's
            `num_trainable`, or all.
        memory_limit: bytes for weights kept in memory.
        seed: the seed of the projections.

    Raises:
        ValueError: for lags that do not ascend or are longer than the trajectory, or
            steps of other shapes.

    >>> from tf_lrtraj import probes
    >>> steps = {step: [np.array([3.0 * step, 4.0 * step])] for step in range(5)}
    >>> probes.measure(Distance(steps, lags=[1, 2])).values["mean_squared"]
    array([ 25., 100.])
    """

    kind = "distance"

    trajectory: Any
    _: dataclasses.KW_ONLY
    lags: Sequence[int] | None = None
    exact: bool = True
    sketch_size: int = 4096
    filters: bool = False
    filter_axes: Sequence[tuple[int, ...]] | None = None
    reference: Sequence[Any] | None = None
    count: int | None = None
    memory_limit: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        self.trajectory = as_trajectory(self.trajectory)
        self._steps = np.asarray(self.trajectory.steps, np.int64)
        self._lags = check_lags(self.lags, self._steps)
        self._earlier = earlier(self._steps, self._lags)
        self._read = Reader(self.trajectory, count=self.count, memory_limit=self.memory_limit)
        self._start = self._read(self._steps[0])
        shapes = self._read.shapes
        self._filters = Filters(shapes, self.filter_axes) if self.filters else None
        self._reference: np.ndarray | None = None
        if self.reference is not None:
            given = list(self.reference)[: len(shapes)]
            self._reference = joined(check_shapes("reference", given, shapes))
        # Name of a squared displacement → the displaced quantity.
        self._pairs = ["squared", "filters_squared"] if self._filters else ["squared"]
        sizes = [self._start.size, max(self._filters.size, 1) if self._filters else 1]
        self._sketches = {
            name: Sketch(sizes[number], self.sketch_size, [self.seed, number])
            for number, name in enumerate([] if self.exact else self._pairs)
        }
        self._mean = RunningMean()

    def coordinates(self) -> dict[str, Any]:
        found: dict[str, Any] = {"lag": self._lags, "step": self._steps}
        return found if self.exact else found | {"component": np.arange(self.sketch_size)}

    def parts(self) -> Collection[str]:
        there = {
            "filters": self._filters is not None,
            "reference": self._reference is not None,
            "sketch": not self.exact,
        }
        return [part for part, measured in there.items() if measured]

    def about(self) -> dict[str, Any]:
        return {
            **checked_steps(self.trajectory),
            "num_weights": self._start.size,
            "num_arrays": len(self._read.shapes),
            **about_filters(self._filters, self.filter_axes),
            "reference": None if self._reference is None else fingerprint(self._reference),
            "sketch_size": None if self.exact else self.sketch_size,
            "seed": None if self.exact else self.seed,
        }

    def empty(self) -> ArrayRecord:
        record = super().empty()
        for name in self._pairs:
            record.values[name][self._earlier < 0] = np.inf  # there is no such pair
        return record

    def pieces(self, record: ArrayRecord) -> list[int]:
        return lacking(record, "from_mean")

    def measure(self, record: ArrayRecord, piece: int) -> None:
        vector = self._read(self._steps[piece])
        for row, position in enumerate(self._earlier[:, piece].tolist()):
            if position >= 0 and self.exact:
                then = self._read(self._steps[position])
                record.put("squared", (row, piece), square_distance(vector, then))
                if self._filters is not None:
                    square = self._filters.square_distance(vector, then)
                    record.put("filters_squared", (row, piece), square)
        for name, sketch in self._sketches.items():
            whole = vector
            if name == "filters_squared" and self._filters is not None:
                whole = self._filters.normalised(vector)
            record.put(f"{name}_sketch", piece, sketch(whole))
        record.put("norm", piece, math.sqrt(dot(vector, vector)))
        record.put("from_start", piece, math.sqrt(square_distance(vector, self._start)))
        if self._reference is not None:
            square = square_distance(vector, self._reference)
            record.put("from_reference", piece, math.sqrt(square))
        while self._mean.count <= piece:  # after an interruption, earlier steps are read again
            self._mean.add(self._read(self._steps[self._mean.count]))
        record.put("from_mean", piece, math.sqrt(square_distance(vector, self._mean.value)))

    def finish(self, record: ArrayRecord) -> None:
        for name in self._sketches:
            sketches = record.values[f"{name}_sketch"]
            scale = 1.0
            if name == "filters_squared" and self._filters is not None:
                scale = max(self._filters.count, 1)
            for row, column in np.argwhere(self._earlier >= 0):
                difference = sketches[column] - sketches[self._earlier[row, column]]
                record.put(name, (row, column), float(difference @ difference) / scale)
        for name in self._pairs:
            values = record.values[name]
            for row, lag in enumerate(self._lags.tolist()):
                here = np.isfinite(values[row])
                found = Estimate(np.inf, np.inf)
                if here.any():
                    found = block_mean(self._steps[here] - lag, values[row, here], lag)
                put_estimate(record, f"mean_{name}", row, found)
            put_estimate(record, f"{name}_growth", (), growth(self._steps, self._lags, values))

    def passes(self, pieces: Sequence[int]) -> float:
        return self.spec.passes(len(pieces))

    def seconds_per_pass(self) -> float:
        """Measures the time of one step: reading it, and a distance for every lag."""
        start = time.perf_counter()
        other = joined(self._read.arrays(int(self._steps[-1])))
        read = time.perf_counter()
        square_distance(self._start, other)
        each = time.perf_counter() - read
        return read - start + (4 + (len(self._lags) if self.exact else 0)) * each


def about_filters(filters: Filters | None, axes: Any) -> dict[str, Any]:
    """Returns the description of normalised filters in a record."""
    return {
        "filters": filters.count if filters else 0,
        "filter_axes": None if axes is None else [list(of_array) for of_array in axes],
    }
