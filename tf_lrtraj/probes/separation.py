"""The distance between two trajectories, step by step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.base import Probe, lacking
from tf_lrtraj.probes.directions import Filters
from tf_lrtraj.probes.distance import about_filters
from tf_lrtraj.probes.trajectory import Reader, as_trajectory, checked_steps
from tf_lrtraj.probes.vectors import dot, joined, square_distance
from tf_lrtraj.records import ArrayRecord


@dataclasses.dataclass(eq=False, repr=False)
class Separation(Probe):
    """The distance between two runs at each common step.

    On a quadratic loss, two runs on the same batches converge to each other for any noise; two runs
    on independent batches keep a squared distance of twice the stationary variance
    (docs/theory/model.md).

    Coordinates: step.

    Values:
        distance, norm_a, norm_b [step]; filters_squared [step] with `filters`.
        displacement_cosine [step]: cosine of the displacements of both runs since the first common
            step; inf at that step.

    Args:
        trajectory_a, trajectory_b: objects with `.steps` and `.read(step)`, or mappings step →
            arrays.
        filters, filter_axes, count: as in `Distance`.
        batches: "shared" or "independent", the batches of the two runs, for the record.

    Raises:
        ValueError: if the runs have no step in common, or are of other architectures.
    """

    kind = "separation"

    trajectory_a: Any
    trajectory_b: Any
    _: dataclasses.KW_ONLY
    filters: bool = False
    filter_axes: Sequence[tuple[int, ...]] | None = None
    count: int | None = None
    batches: str = ""

    def __post_init__(self) -> None:
        self.trajectory_a = as_trajectory(self.trajectory_a, "trajectory_a")
        self.trajectory_b = as_trajectory(self.trajectory_b, "trajectory_b")
        pair = self.trajectory_a, self.trajectory_b
        self._steps = np.intersect1d(pair[0].steps, pair[1].steps).astype(np.int64)
        if not self._steps.size:
            raise ValueError(
                "two trajectories must have steps in common. Received: steps "
                f"{np.asarray(pair[0].steps)} and {np.asarray(pair[1].steps)}"
            )
        self._reads = [Reader(one, count=self.count, memory_limit=0) for one in pair]
        for read in self._reads:
            read(self._steps[0])
        first, second = (read.shapes for read in self._reads)
        if first != second:
            raise ValueError(
                "two trajectories must be of one architecture. "
                f"Received: arrays of shapes {first} and {second}"
            )
        self._filters = Filters(first, self.filter_axes) if self.filters else None

    def coordinates(self) -> dict[str, Any]:
        return {"step": self._steps}

    def parts(self) -> Collection[str]:
        return ["filters"] if self._filters is not None else []

    def about(self) -> dict[str, Any]:
        found = {
            "batches": self.batches,
            **about_filters(self._filters, self.filter_axes),
            "num_arrays": len(self._reads[0].shapes),
        }
        for name, one in (("a", self.trajectory_a), ("b", self.trajectory_b)):
            found |= {f"{key}_{name}": value for key, value in checked_steps(one).items()}
        return found

    def pieces(self, record: ArrayRecord) -> list[int]:
        return lacking(record, "displacement_cosine")

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
        return self.spec.passes(len(pieces))

    def seconds_per_pass(self) -> float:
        """Measures the time of one step."""
        start = time.perf_counter()
        first, second = (joined(read.arrays(int(self._steps[-1]))) for read in self._reads)
        square_distance(first, second)
        return time.perf_counter() - start
