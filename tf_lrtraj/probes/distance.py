"""Displacement along stored trajectories, and the distance between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import Probe, fingerprint, measure
from tf_lrtraj.probes.displacement_tracker import empty_record, summarise
from tf_lrtraj.probes.filters import Filters
from tf_lrtraj.probes.flat_vectors import RunningMean, dot, joined, square_distance
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.sketches import Sketch
from tf_lrtraj.probes.trajectory import (
    Reader,
    as_trajectory,
    check_lags,
    checked_steps,
    earlier,
    same_shapes,
)
from tf_lrtraj.records import ArrayRecord


class Distance(Probe):
    """Squared displacement against lag of a stored trajectory; see `displacement`."""

    kind = "distance"

    def __init__(
        self,
        trajectory: Any,
        *,
        lags: Sequence[int] | None = None,
        exact: bool = True,
        sketch_size: int = 4096,
        filters: bool = False,
        filter_axes: Sequence[tuple[int, ...]] | None = None,
        reference: Sequence[Any] | None = None,
        count: int | None = None,
        memory_limit: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        trajectory = as_trajectory(trajectory)
        self._steps = np.asarray(trajectory.steps, np.int64)
        self._lags = check_lags(lags, self._steps)
        self._earlier = earlier(self._steps, self._lags)
        self._read = Reader(trajectory, count=count, memory_limit=memory_limit)
        self._start = self._read(self._steps[0])
        size = self._start.size
        self._filters = Filters(self._read.shapes, filter_axes) if filters else None
        self._reference: np.ndarray | None = None
        if reference is not None:
            given = list(reference)[: len(self._read.shapes)]
            found = [tuple(np.shape(array)) for array in given]
            if found != self._read.shapes:
                raise ValueError(
                    "`reference` must hold arrays of the trajectory's shapes. "
                    f"Received: shapes={found}"
                )
            self._reference = joined(given)
        self._sketches: dict[str, Sketch] = {}
        if not exact:
            self._sketches["squared"] = Sketch(size, sketch_size, [seed, 0])
            if self._filters is not None:
                self._sketches["filters_squared"] = Sketch(
                    max(self._filters.size, 1), sketch_size, [seed, 1]
                )
        self._mean = RunningMean()
        self._sketch_size = None if exact else sketch_size
        self._about = {
            **checked_steps(trajectory, fingerprint),
            "num_weights": size,
            "num_arrays": len(self._read.shapes),
            "filters": self._filters.count if self._filters else 0,
            "filter_axes": None if filter_axes is None else [list(axes) for axes in filter_axes],
            "reference": None if reference is None else fingerprint(self._reference),
            "sketch_size": self._sketch_size,
            "seed": None if exact else seed,
        }

    def empty(self) -> ArrayRecord:
        return empty_record(
            self._steps,
            self._lags,
            self._about,
            filters=self._filters is not None,
            reference=self._reference is not None,
            sketch_size=self._sketch_size,
        )

    def pieces(self, record: ArrayRecord) -> Sequence[int]:
        return [int(i) for i in np.flatnonzero(record.missing("from_mean"))]

    def measure(self, record: ArrayRecord, piece: int) -> None:
        vector = self._read(self._steps[piece])
        for row, position in enumerate(self._earlier[:, piece].tolist()):
            if position >= 0 and not self._sketches:
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
        while self._mean.count <= piece:  # after an interruption, those before are read again
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
        summarise(record)

    def passes(self, pieces: Sequence[int]) -> float:
        return float(len(pieces))

    def seconds_per_pass(self) -> float:
        """Here a pass is what one step takes: reading, and a distance for every lag."""
        start = time.perf_counter()
        other = joined(self._read.arrays(int(self._steps[-1])))
        read = time.perf_counter()
        square_distance(self._start, other)
        each = time.perf_counter() - read
        return read - start + (4 + (0 if self._sketches else len(self._lags))) * each


def displacement(
    trajectory: Any,
    *,
    lags: Sequence[int] | None = None,
    exact: bool = True,
    sketch_size: int = 4096,
    filters: bool = False,
    filter_axes: Sequence[tuple[int, ...]] | None = None,
    reference: Sequence[Any] | None = None,
    count: int | None = None,
    memory_limit: int = 1 << 30,
    seed: int = 0,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    r"""Squared displacement against lag, norm, and distances from start and mean.

    Args:
        trajectory: with `.steps` and `.read(step)`, or a mapping step → arrays.
        lags: ascending, in updates, each the distance of two steps; by default up to a sixth of the
            trajectory, spaced in the logarithm.
        exact: from the weights themselves; those that `memory_limit` cannot hold until
            their lag has passed are read again.  False: from random projections, each step
            read once; a squared displacement then errs by up to √(2/k) of itself
            (`probes.Sketch`).
        sketch_size: k.
        filters: also displacements between filters divided by their norms, as mean over
            filters of 2 - 2 cos: what scale-invariant weights are judged by.
        filter_axes: `probes.filter_axes_of(model)`; None takes the last axis of every array.
        reference: weights from which the distance is told as well.
        count: how many arrays, from the first on, are weights; by default the
            trajectory's `num_trainable`, or all.
        memory_limit: bytes that kept weights may take.
        seed: of the projections.
        path, progress, tell: as `probes.measure` takes them.

    Returns:
        A record of kind "distance" over `lag` and `step` (the later one), with

        * `squared`: ‖θ_step - θ_{step-lag}‖², inf where there is no such pair;
          `mean_squared` and `mean_squared_se` per lag, the error from blocks of starts at
          least as long as the lag (inf where fewer than three fit);
        * `squared_growth`, `squared_growth_se`: d ln D / d ln Δ at the largest lags: 0 if
          displacement has levelled off, 1 for a random walk, 2 for a drift;
        * the same of `filters_squared`;
        * `norm`, `from_start`, `from_mean` (the mean of all steps so far), `from_reference`.

    Raises:
        ValueError: for lags that do not ascend or are longer than the trajectory, or
            steps of other shapes.
        RecordError: if `path` holds measurements of something else.
    """
    probe = Distance(
        trajectory,
        lags=lags,
        exact=exact,
        sketch_size=sketch_size,
        filters=filters,
        filter_axes=filter_axes,
        reference=reference,
        count=count,
        memory_limit=memory_limit,
        seed=seed,
    )
    return measure(probe, path, progress=progress, tell=tell)


class Separation(Probe):
    """Distance between two trajectories, step by step; see `distance_between`."""

    kind = "separation"

    def __init__(
        self,
        trajectory_a: Any,
        trajectory_b: Any,
        *,
        filters: bool = False,
        filter_axes: Sequence[tuple[int, ...]] | None = None,
        count: int | None = None,
        batches: str = "",
    ) -> None:
        pair = [
            as_trajectory(trajectory, name)
            for trajectory, name in ((trajectory_a, "trajectory_a"), (trajectory_b, "trajectory_b"))
        ]
        self._steps = np.intersect1d(pair[0].steps, pair[1].steps).astype(np.int64)
        if not self._steps.size:
            raise ValueError(
                "two trajectories must have steps in common. Received: steps "
                f"{np.asarray(pair[0].steps)} and {np.asarray(pair[1].steps)}"
            )
        self._reads = [Reader(one, count=count, memory_limit=0) for one in pair]
        for read in self._reads:
            read(self._steps[0])
        same_shapes(*self._reads)
        self._filters = Filters(self._reads[0].shapes, filter_axes) if filters else None
        self._about: dict[str, Any] = {
            "batches": batches,
            "filters": self._filters.count if self._filters else 0,
            "filter_axes": None if filter_axes is None else [list(axes) for axes in filter_axes],
            "num_arrays": len(self._reads[0].shapes),
        }
        for name, one in zip("ab", pair, strict=True):
            for key, value in checked_steps(one, fingerprint).items():
                self._about[f"{key}_{name}"] = value

    def empty(self) -> ArrayRecord:
        names = ["distance", "norm_a", "norm_b", "displacement_cosine"]
        names += ["filters_squared"] if self._filters else []
        dims = {name: ("step",) for name in names}
        return ArrayRecord.empty(self.kind, {"step": self._steps}, dims, self._about)

    def pieces(self, record: ArrayRecord) -> Sequence[int]:
        return [int(i) for i in np.flatnonzero(record.missing("displacement_cosine"))]

    def measure(self, record: ArrayRecord, piece: int) -> None:
        first, second = (read(self._steps[piece]) for read in self._reads)
        record.put("distance", piece, math.sqrt(square_distance(first, second)))
        for name, vector in (("norm_a", first), ("norm_b", second)):
            record.put(name, piece, math.sqrt(dot(vector, vector)))
        if self._filters is not None:
            record.put("filters_squared", piece, self._filters.square_distance(first, second))
        starts = [read(self._steps[0]) for read in self._reads]
        moved = [now - start for now, start in zip((first, second), starts, strict=True)]
        below = math.sqrt(dot(moved[0], moved[0]) * dot(moved[1], moved[1]))
        record.put("displacement_cosine", piece, dot(*moved) / below if below else math.inf)

    def passes(self, pieces: Sequence[int]) -> float:
        return float(len(pieces))

    def seconds_per_pass(self) -> float:
        """Here a pass is what one step takes."""
        start = time.perf_counter()
        first, second = (joined(read.arrays(int(self._steps[-1]))) for read in self._reads)
        square_distance(first, second)
        return time.perf_counter() - start


def distance_between(
    trajectory_a: Any,
    trajectory_b: Any,
    *,
    filters: bool = False,
    filter_axes: Sequence[tuple[int, ...]] | None = None,
    count: int | None = None,
    batches: str = "",
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """How far apart two runs are at each step that both have.

    On a quadratic loss runs on the same batches come together whatever the noise, and runs on
    independent ones stay twice the stationary variance apart (docs/theory/model.md).

    Args:
        trajectory_a, trajectory_b: with `.steps` and `.read(step)`, or mappings step → arrays.
        filters, filter_axes, count: as in `displacement`.
        batches: what the record says of the two runs' batches, "shared" or "independent".
        path, progress, tell: as `probes.measure` takes them.

    Returns:
        A record of kind "separation" over `step`: `distance`, `norm_a`, `norm_b`,
        `displacement_cosine` (cosine of the ways that both have gone since the first
        common step; inf at that step) and with `filters` `filters_squared`.

    Raises:
        ValueError: if the runs have no step in common, or are of other architectures.
        RecordError: if `path` holds measurements of something else.
    """
    probe = Separation(
        trajectory_a,
        trajectory_b,
        filters=filters,
        filter_axes=filter_axes,
        count=count,
        batches=batches,
    )
    return measure(probe, path, progress=progress, tell=tell)
